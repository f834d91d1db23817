//! Clients: each gets one content after another, at some peer, and looks at what came.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use dragonfly_client::{Client, Range, Request};
use dragonfly_e2e::get::Get;
use dragonfly_e2e::mesh::Mesh;
use dragonfly_e2e::{Failed, Result, sample};
use tokio::task::JoinSet;

use crate::catalogue::Catalogue;

/// A download that is not over by then is one of the things that must not happen.
const LIMIT: Duration = Duration::from_secs(120);
/// The same when nothing is wrong.
const CALM: Duration = Duration::from_secs(30);

/// What came of downloads.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tally {
    pub(crate) right: u64,
    pub(crate) bytes: u64,
    /// Clients that were killed on purpose.
    pub(crate) killed: u64,
    /// Errors by what they said, without what differs from one to the next.
    pub(crate) errors: BTreeMap<String, u64>,
    /// What must not happen: wrong bytes, no end, no word.
    pub(crate) wrong: Vec<String>,
    pub(crate) slowest: Duration,
}

#[derive(Default)]
pub(crate) struct Results(Mutex<Tally>);

impl Results {
    pub(crate) fn take(&self) -> Tally {
        self.lock().clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Tally> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, outcome: Outcome, what: &str, took: Duration) {
        let mut tally = self.lock();
        tally.slowest = tally.slowest.max(took);
        match outcome {
            Outcome::Right(bytes) => {
                tally.right += 1;
                tally.bytes += bytes;
            }
            Outcome::Killed => tally.killed += 1,
            Outcome::Said(text) if text.trim().is_empty() => {
                tally.wrong.push(format!("{what}: failed without a word"));
            }
            Outcome::Said(text) => *tally.errors.entry(kind_of(&text)).or_default() += 1,
            Outcome::Wrong(why) => {
                let wrong = format!("{what} after {took:?}: {why}");
                // At once, among the faults of its time.
                println!("  WRONG    {wrong}");
                tally.wrong.push(wrong);
            }
        }
    }
}

enum Outcome {
    Right(u64),
    Killed,
    Said(String),
    Wrong(String),
}

/// An error's words without addresses, names and numbers.
fn kind_of(text: &str) -> String {
    let line = text.lines().next_back().unwrap_or_default();
    let plain =
        |word: &str| !word.contains(['/', '?']) && !word.chars().any(|c| c.is_ascii_digit());
    let words: Vec<_> = line.split_whitespace().filter(|w| plain(w)).collect();
    words.join(" ").chars().take(100).collect()
}

/// Where clients ask, and by which program.
#[derive(Clone)]
struct Peers {
    dragonfly: PathBuf,
    sockets: Vec<PathBuf>,
    work: PathBuf,
}

/// Clients at work.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    clients: JoinSet<()>,
}

impl Load {
    pub(crate) fn start(
        mesh: &Mesh,
        catalogue: &Arc<Catalogue>,
        results: &Arc<Results>,
        seed: u64,
        clients: u64,
    ) -> Result<Self> {
        let peers = Peers {
            dragonfly: mesh.dragonfly.clone(),
            sockets: mesh.peers.iter().map(|p| p.socket.clone()).collect(),
            work: mesh.work.clone(),
        };
        let stop = Arc::new(AtomicBool::new(false));
        let mut all = JoinSet::new();
        for n in 0..clients {
            let (peers, stop) = (peers.clone(), stop.clone());
            let (catalogue, results) = (catalogue.clone(), results.clone());
            let mut rng = fastrand::Rng::with_seed(seed ^ (n + 1) << 32);
            all.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let what = Wanted::choose(&mut rng, &catalogue, peers.sockets.len());
                    let began = Instant::now();
                    let output = peers.work.join(format!("client-{n}"));
                    let outcome = what.get(&peers, &catalogue, &output).await;
                    let _ = std::fs::remove_file(&output);
                    results.note(outcome, &what.to_string(), began.elapsed());
                    tokio::time::sleep(Duration::from_millis(rng.u64(..100))).await;
                }
            });
        }
        Ok(Self { stop, clients: all })
    }

    /// No more after those that are on their way.
    pub(crate) async fn stop(mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.clients.join_next().await {
            ended.map_err(|e| Failed::at("a client", e))?;
        }
        Ok(())
    }
}

/// How a content is got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    /// By the program, into a file.
    Program,
    /// By the program, which is killed after so many milliseconds.
    Interrupted(u64),
    /// By the library, all bytes.
    Stream,
    /// By the library, a part: where it begins and how long it is at most.
    Part(u64, u64),
}

struct Wanted {
    content: usize,
    peer: usize,
    how: How,
}

impl std::fmt::Display for Wanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "content-{} at peer-{} by {:?}",
            self.content, self.peer, self.how
        )
    }
}

impl Wanted {
    fn choose(rng: &mut fastrand::Rng, catalogue: &Catalogue, peers: usize) -> Self {
        let content = rng.usize(..catalogue.len());
        let how = match rng.u8(..10) {
            0..4 => How::Program,
            4 => How::Interrupted(rng.u64(..500)),
            5..8 => How::Stream,
            _ => How::Part(rng.u64(..catalogue.size(content)), rng.u64(1..2 << 20)),
        };
        Self {
            content,
            peer: rng.usize(..peers),
            how,
        }
    }

    async fn get(&self, peers: &Peers, catalogue: &Catalogue, output: &Path) -> Outcome {
        let url = catalogue.url(self.content);
        let began = Instant::now();
        let Some(socket) = peers.sockets.get(self.peer) else {
            return Outcome::Wrong("there is no such peer".to_owned());
        };
        match self.how {
            How::Program | How::Interrupted(_) => {
                let get = Get::start(&peers.dragonfly, socket, &url, output, &[]);
                let mut get = match get {
                    Ok(get) => get,
                    Err(wrong) => return Outcome::Wrong(wrong.to_string()),
                };
                if let How::Interrupted(after) = self.how {
                    tokio::time::sleep(Duration::from_millis(after)).await;
                    if !get.has_ended() {
                        get.process().kill();
                        return Outcome::Killed;
                    }
                }
                match get.wait(LIMIT).await {
                    Err(late) => Outcome::Wrong(late.to_string()),
                    Ok(ended) if ended.code == Some(0) => {
                        let output = output.to_owned();
                        let digest = tokio::task::spawn_blocking(move || sample::digest(&output));
                        match digest.await {
                            Ok(Ok(digest)) => self.compared(catalogue, began, &digest),
                            Ok(Err(wrong)) => Outcome::Wrong(wrong.to_string()),
                            Err(wrong) => Outcome::Wrong(wrong.to_string()),
                        }
                    }
                    Ok(ended) if ended.code.is_none() => Outcome::Wrong("it was killed".to_owned()),
                    Ok(_) if output.exists() => {
                        Outcome::Wrong("it failed and left a file".to_owned())
                    }
                    Ok(ended) => Outcome::Said(ended.complaint()),
                }
            }
            How::Stream | How::Part(..) => {
                match tokio::time::timeout(LIMIT, self.read(socket, &url)).await {
                    Err(_) => Outcome::Wrong(format!("no end after {LIMIT:?}")),
                    Ok(Err(said)) => Outcome::Said(said),
                    Ok(Ok(bytes)) => match self.how {
                        How::Part(start, _) => self.part_compared(catalogue, began, start, &bytes),
                        _ => self.compared(catalogue, began, &sample::digest_of(&bytes)),
                    },
                }
            }
        }
    }

    async fn read(&self, socket: &Path, url: &str) -> Result<Vec<u8>, String> {
        let client = Client::connect(socket).await.map_err(|e| e.to_string())?;
        let mut request = Request::new(url);
        if let How::Part(start, len) = self.how {
            request.range = Range::Part(start, Some(start + len));
        }
        let mut reader = client.read(&request);
        let mut bytes = vec![];
        while let Some(part) = reader.next().await.map_err(|e| e.to_string())? {
            bytes.extend_from_slice(&part);
        }
        Ok(bytes)
    }

    fn compared(&self, catalogue: &Catalogue, began: Instant, digest: &str) -> Outcome {
        let right = catalogue.right(self.content, began);
        if right.iter().any(|v| v.digest == digest) {
            return Outcome::Right(catalogue.size(self.content));
        }
        Outcome::Wrong(format!(
            "{digest} is none of the {} that are right",
            right.len()
        ))
    }

    fn part_compared(
        &self,
        catalogue: &Catalogue,
        began: Instant,
        start: u64,
        bytes: &[u8],
    ) -> Outcome {
        let How::Part(_, len) = self.how else {
            return Outcome::Wrong("no part was asked for".to_owned());
        };
        let wanted = len.min(catalogue.size(self.content) - start);
        if bytes.len() as u64 != wanted {
            return Outcome::Wrong(format!("{} bytes came of {wanted}", bytes.len()));
        }
        let same = |path: &Path| {
            let mut there = vec![0; bytes.len()];
            let file = std::fs::File::open(path);
            file.and_then(|file| file.read_exact_at(&mut there, start))
                .is_ok()
                && there == bytes
        };
        if catalogue
            .right(self.content, began)
            .iter()
            .any(|v| same(&v.path))
        {
            return Outcome::Right(wanted);
        }
        Outcome::Wrong("the part is of no version that is right".to_owned())
    }
}

/// Gets every content at every peer once nothing is wrong any more; all of it has to come.
pub(crate) async fn everything(mesh: &Mesh, catalogue: &Arc<Catalogue>) -> Result<Tally> {
    let results = Results::default();
    for content in 0..catalogue.len() {
        let url = catalogue.url(content);
        let mut gets = vec![];
        for peer in 0..mesh.peers.len() {
            gets.push((peer, mesh.get(peer, &url, &[])?));
        }
        for (peer, get) in gets {
            let what = Wanted {
                content,
                peer,
                how: How::Program,
            };
            // What changed a moment ago may still come; nothing has changed for a while.
            let began = Instant::now();
            let output = get.output.clone();
            let outcome = match get.wait(CALM).await {
                Err(late) => Outcome::Wrong(late.to_string()),
                Ok(ended) if ended.code == Some(0) => {
                    what.compared(catalogue, began, &sample::digest(&output)?)
                }
                Ok(ended) => Outcome::Wrong(ended.complaint()),
            };
            results.note(outcome, &what.to_string(), began.elapsed());
            let _ = std::fs::remove_file(&output);
        }
    }
    Ok(results.take())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_that_differ_by_numbers_and_addresses_are_of_one_kind() {
        let one = kind_of("GET http://127.0.0.1:81/a: answers 503 (busy), 6 attempts");
        let other = kind_of("GET http://10.77.0.2:9/b?x=1: answers 500 (busy), 12 attempts");
        assert_eq!(
            (one.as_str(), other.as_str()),
            (
                "GET answers (busy), attempts",
                "GET answers (busy), attempts"
            )
        );
    }
}
