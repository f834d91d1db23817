//! Downloads of a node's clients while something happens to the mesh.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use dragonfly_e2e::{Failed, Result};

use crate::Node;

/// A client that gets one content after the other.
#[derive(Debug, Clone)]
pub struct Client<'a> {
    /// Where it is.
    pub node: Node<'a>,
    /// Its `dragonfly`.
    pub program: PathBuf,
    /// What its contents and files are told apart by.
    pub name: String,
    /// Bytes a second, as `--limit-rate` has it.
    pub rate: &'static str,
}

/// How a download ended.
#[derive(Debug)]
pub struct Ended {
    /// Whose, and which.
    pub name: String,
    /// The exit code; none after a signal.
    pub code: Option<i32>,
    /// All that the client said, a line of JSON for each event.
    pub said: String,
    /// `sha256:…` of the file, where there is one.
    pub digest: Option<String>,
    /// From its start to its end.
    pub took: Duration,
}

impl Ended {
    /// How often the node was away meanwhile.
    pub fn reconnects(&self) -> usize {
        self.said.matches("\"event\":\"reconnecting\"").count()
    }

    /// Its last words.
    pub fn last(&self) -> &str {
        self.said.lines().last().unwrap_or_default()
    }
}

impl Client<'_> {
    /// Gets one content: `number` makes it one that nobody got before.
    ///
    /// # Errors
    /// The client cannot be started.
    pub async fn get(&self, url: &str, number: usize) -> Result<Ended> {
        let name = format!("{}-{number}", self.name);
        let (url, file) = (format!("{url}?which={name}"), format!("/run/{name}"));
        let program = self.program.display().to_string();
        let line = [
            // None waits for ever: a client that hangs is a failure.
            "timeout",
            "110",
            &program,
            "get",
            &url,
            "-O",
            &file,
            "--output",
            "json",
            "--socket",
            "/run/dragonfly/node.sock",
            "--limit-rate",
            self.rate,
        ];
        let began = Instant::now();
        let out = self.node.exec(&line).await?;
        let took = began.elapsed();
        let summed = self.node.exec(&["sha256sum", &file]).await?;
        self.node.exec(&["rm", "-f", &file]).await?;
        let sum = String::from_utf8_lossy(&summed.stdout).into_owned();
        let sum = sum.split(' ').next().unwrap_or_default().to_owned();
        Ok(Ended {
            name,
            code: out.status.code(),
            said: String::from_utf8_lossy(&out.stderr).into_owned(),
            digest: summed.status.success().then(|| format!("sha256:{sum}")),
            took,
        })
    }

    /// Whether there are bytes of a content that it gets.
    ///
    /// # Errors
    /// The node cannot be looked at.
    pub async fn has_begun(&self, number: usize) -> Result<bool> {
        let part = format!(".{}-{number}*", self.name);
        let line = [
            "find",
            "/run",
            "-maxdepth",
            "1",
            "-name",
            &part,
            "-size",
            "+0",
        ];
        Ok(!self.node.exec(&line).await?.stdout.is_empty())
    }

    /// Gets contents until it is over; the one that is under way then is waited for.
    ///
    /// # Errors
    /// Those of [`Self::get`].
    pub async fn go_on(&self, url: &str, over: &AtomicBool) -> Result<Vec<Ended>> {
        let mut all = vec![];
        while !over.load(Ordering::Relaxed) {
            all.push(self.get(url, all.len()).await?);
        }
        Ok(all)
    }
}

/// What came of many, for people; fails where bytes were wrong, or a file was left by one that failed.
///
/// # Errors
/// Which.
pub fn summary(all: &[Ended], digest: &str) -> Result<String> {
    for ended in all {
        let right = ended.digest.as_ref().is_some_and(|found| found == digest);
        let well = ended.code == Some(0);
        if well != right || (!well && ended.digest.is_some()) {
            return Err(Failed(format!(
                "{}: {:?}: {:?}",
                ended.name, ended.code, ended.digest
            )));
        }
    }
    let failed = all.iter().filter(|e| e.code != Some(0)).count();
    let resumed = all
        .iter()
        .filter(|e| e.code == Some(0) && e.reconnects() > 0)
        .count();
    let longest = all.iter().map(|e| e.took).max().unwrap_or_default();
    Ok(format!(
        "{} downloads, {failed} failed, {resumed} went on after their node was away, the longest took \
         {longest:.1?}",
        all.len()
    ))
}
