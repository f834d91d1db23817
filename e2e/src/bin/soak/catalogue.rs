//! What there is to get, and what it may hash to: contents change under way.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use dragonfly_e2e::origin::Origin;
use dragonfly_e2e::{Failed, Result, sample};

/// How many contents of which size, in bytes.
const SIZES: [(usize, u64); 5] = [
    (24, 4 << 10),
    (16, 150_000),
    (10, 2 << 20),
    (6, 7_500_001),
    (3, 32 << 20),
];
/// For so long after a change the content before may still be given: freshness, and the moment that a
/// question to the origin takes, while nobody may be there to ask it.
const STALE: Duration = Duration::from_secs(10);
/// A URL is asked for under another name after this: then it is another content to the mesh.
const ANEW: u64 = 7;

/// All contents, at their origin.
pub(crate) struct Catalogue {
    dir: PathBuf,
    pub(crate) origin: Arc<Origin>,
    began: Instant,
    contents: Vec<Mutex<Content>>,
}

struct Content {
    name: String,
    len: u64,
    versions: Vec<Version>,
}

/// One state of a content.
#[derive(Debug, Clone)]
pub(crate) struct Version {
    pub(crate) digest: String,
    pub(crate) path: PathBuf,
    until: Option<Instant>,
}

impl Catalogue {
    pub(crate) fn new(dir: &Path, origin: Arc<Origin>, seed: u64) -> Result<Self> {
        std::fs::create_dir_all(dir).map_err(|e| Failed::at(dir.display(), e))?;
        let lens = SIZES
            .iter()
            .flat_map(|(count, len)| std::iter::repeat_n(*len, *count));
        let all = Self {
            dir: dir.to_owned(),
            origin,
            began: Instant::now(),
            contents: lens
                .enumerate()
                .map(|(n, len)| {
                    Mutex::new(Content {
                        name: format!("content-{n}"),
                        len,
                        versions: vec![],
                    })
                })
                .collect(),
        };
        for n in 0..all.len() {
            all.change(n, seed.wrapping_mul(1009).wrapping_add(n as u64))?;
        }
        Ok(all)
    }

    pub(crate) fn len(&self) -> usize {
        self.contents.len()
    }

    /// From now on a content is another.
    pub(crate) fn change(&self, n: usize, seed: u64) -> Result<()> {
        let mut content = self.content(n);
        let file = format!("{}-{}", content.name, content.versions.len());
        let made = sample::random(&self.dir.join(file), content.len, seed)?;
        let now = Instant::now();
        for before in &mut content.versions {
            before.until.get_or_insert(now);
        }
        content.versions.push(Version {
            digest: made.digest,
            path: made.path.clone(),
            until: None,
        });
        self.origin.serve(&content.name, &made.path)?;
        Ok(())
    }

    /// Where a content is, under a name that changes from time to time.
    pub(crate) fn url(&self, n: usize) -> String {
        let name = self.content(n).name.clone();
        let age = self.began.elapsed().as_secs() / ANEW;
        format!("{}?age={age}", self.origin.url(&name))
    }

    /// What may be had by who began at a moment and is done now.
    pub(crate) fn right(&self, n: usize, began: Instant) -> Vec<Version> {
        let content = self.content(n);
        let late = |v: &&Version| v.until.is_none_or(|until| until + STALE > began);
        content.versions.iter().filter(late).cloned().collect()
    }

    /// A content's length.
    pub(crate) fn size(&self, n: usize) -> u64 {
        self.content(n).len
    }

    fn content(&self, n: usize) -> std::sync::MutexGuard<'_, Content> {
        // Numbers come from `len`.
        let n = n % self.contents.len().max(1);
        self.contents[n]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
