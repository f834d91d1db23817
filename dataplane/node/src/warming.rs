//! Contents that a scheduler has this node get before anybody asks for them.
//!
//! A job first asks what its contents are and how long, and whether there is room for what is missing;
//! only then does it want any of it. Its downloads are the last in turn: whoever asks now goes first.
//! One task of tokio a job; a few jobs work at once, the others wait and say so.
//!
//! Nothing is kept of a job: one that is given again finds on disk what it got.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dragonfly_proto::geometry::Geometry;
use dragonfly_proto::id::{ContentKey, RequestKey};
use dragonfly_proto::rpc::{self, failure::Code, from_node, warmed::Outcome};
use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;

use crate::download::{RESTARTS, Wish};
use crate::find::Meant;
use crate::node::{Node, unix_now_ms};
use crate::task::lock;

/// Jobs that wait or work.
const MAX_JOBS: usize = 1024;
/// Contents of one job.
const MAX_SOURCES: usize = 256;
/// Jobs that work.
const AT_ONCE: usize = 4;
/// How often a job says how far it is, when it is further, and when it is not.
const FURTHER: Duration = Duration::from_secs(2);
const ALIVE: Duration = Duration::from_secs(30);
/// Behind all that clients want.
const LAST: u32 = 7;
/// Share of a content that what is kept beside it may take, in 1/n.
const BESIDE: u64 = 128;

/// The jobs of a node.
pub(crate) struct Warming {
    jobs: Mutex<HashMap<String, Running>>,
    turns: Arc<Semaphore>,
}

impl Default for Warming {
    fn default() -> Self {
        Self {
            jobs: Mutex::default(),
            turns: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }
}

struct Running {
    shared: Arc<Shared>,
    _task: AbortOnDropHandle<()>,
}

/// Between the work and who tells of it.
struct Shared {
    job: String,
    state: Mutex<State>,
}

struct State {
    /// The replica that asked last.
    to: String,
    /// It is to be told at once.
    asked: bool,
    contents: Vec<rpc::WarmedContent>,
}

/// Why a job ends without all contents.
enum Stop {
    NoRoom { missing: u64, room: u64 },
    Failed(rpc::Failure),
}

/// A content of a job, as far as it is known before any of it is wanted.
struct Measured {
    lookup: RequestKey,
    content: ContentKey,
    /// What was said of it holds for a while.
    lasts: bool,
    held: rpc::WarmedContent,
}

impl Node {
    /// A replica has a job for this node, or asks how far one is.
    pub(crate) fn on_warm(self: &Arc<Self>, from: String, warm: rpc::Warm) {
        let mut jobs = lock(&self.warming.jobs);
        if let Some(running) = jobs.get(&warm.job) {
            let mut state = lock(&running.shared.state);
            state.to = from;
            state.asked = true;
            return;
        }
        let refuse = |text: &str| {
            let failure = rpc::Failure::new(Code::Denied, text);
            self.tell_warmed(&from, &warm.job, Outcome::Failed, Some(failure), vec![]);
        };
        if jobs.len() >= MAX_JOBS {
            return refuse("this node has too many contents to get ahead: ask again later");
        }
        if warm.sources.len() > MAX_SOURCES {
            return refuse("more contents in one job than a node takes");
        }
        let shared = Arc::new(Shared {
            job: warm.job.clone(),
            state: Mutex::new(State {
                to: from,
                asked: false,
                contents: vec![rpc::WarmedContent::default(); warm.sources.len()],
            }),
        });
        tracing::info!(
            job = warm.job,
            contents = warm.sources.len(),
            "getting ahead"
        );
        let run = self.clone().run_job(shared.clone(), warm.sources);
        let task = AbortOnDropHandle::new(self.threads.spawn(run));
        jobs.insert(
            warm.job,
            Running {
                shared,
                _task: task,
            },
        );
    }

    /// A replica gives a job up.
    pub(crate) fn on_stop_warming(&self, job: &str) {
        if lock(&self.warming.jobs).remove(job).is_some() {
            tracing::info!(job, "no longer getting ahead");
        }
    }

    async fn run_job(self: Arc<Self>, shared: Arc<Shared>, sources: Vec<rpc::Source>) {
        let work = async {
            // Never closed.
            let _turn = self.warming.turns.acquire().await;
            self.get_all(&shared, sources).await
        };
        tokio::pin!(work);
        let (mut told, mut when) = (vec![], Instant::now());
        let ended = loop {
            tokio::select! {
                ended = &mut work => break ended,
                () = tokio::time::sleep(FURTHER) => {}
                () = self.stop.cancelled() => return,
            }
            let (to, contents, asked) = shared.look();
            if asked || contents != told || when.elapsed() > ALIVE {
                self.tell_warmed(
                    &to,
                    &shared.job,
                    Outcome::Unspecified,
                    None,
                    contents.clone(),
                );
                (told, when) = (contents, Instant::now());
            }
        };
        // Before it is said: a job that is asked for from now on is a new one.
        let mine = lock(&self.warming.jobs).remove(&shared.job);
        let (to, contents, _) = shared.look();
        let (outcome, failure) = match ended {
            Ok(()) => (Outcome::Done, None),
            Err(Stop::NoRoom { missing, room }) => {
                let text = format!("{missing} bytes are missing, {room} would fit");
                tracing::warn!(job = shared.job, missing, room, "no room to get ahead");
                let failure = rpc::Failure::new(Code::NoSpace, text);
                (Outcome::NoRoom, Some(failure))
            }
            Err(Stop::Failed(failure)) => {
                tracing::warn!(job = shared.job, failure.message, "cannot get ahead");
                (Outcome::Failed, Some(failure))
            }
        };
        self.tell_warmed(&to, &shared.job, outcome, failure, contents);
        // Ends this very task, after its last word.
        drop(mine);
    }

    fn tell_warmed(
        &self,
        to: &str,
        job: &str,
        outcome: Outcome,
        failure: Option<rpc::Failure>,
        contents: Vec<rpc::WarmedContent>,
    ) {
        let warmed = rpc::Warmed {
            job: job.to_owned(),
            outcome: outcome.into(),
            failure,
            contents,
        };
        // Where that replica is gone, whoever follows it asks.
        let key = ContentKey::from_digest("", job).0;
        self.sessions
            .reply(to, &key, from_node::Message::Warmed(warmed));
    }

    async fn get_all(
        self: &Arc<Self>,
        shared: &Shared,
        sources: Vec<rpc::Source>,
    ) -> Result<(), Stop> {
        let mut measured = vec![];
        for (at, source) in sources.iter().enumerate() {
            let found = self.measure(source).await;
            let found = found.map_err(|failure| Stop::Failed(named(source, failure)))?;
            shared.set(at, found.held);
            measured.push(found);
        }
        self.check_room(&measured)?;
        for (at, (source, found)) in sources.into_iter().zip(measured).enumerate() {
            if found.held.complete {
                self.keep_fresh(&found);
                continue;
            }
            let got = self.get_one(shared, at, &source).await;
            got.map_err(|failure| Stop::Failed(named(&source, failure)))?;
        }
        Ok(())
    }

    /// What a source is and what of it is held; nothing of it is asked for.
    async fn measure(&self, source: &rpc::Source) -> Result<Measured, rpc::Failure> {
        let Meant { lookup, source, .. } = self.identify(source.clone())?;
        let _asking = self.asking.for_now(&lookup, &source);
        if source.is_given_by_digest()
            && let Some(content) = self.held_by_digest(&lookup, &source)
            && let Some(held) = self.store.stat(&content)
        {
            return Ok(self.measured(lookup, content, true, &held.geometry));
        }
        let ask = rpc::Resolve {
            id: 0,
            request_key: lookup.0.to_vec(),
            source: Some(source),
            replicas: self.sessions.connected(),
            only_look: true,
        };
        let looked = self.sessions.resolve(ask).await?;
        if let Some(failure) = looked.failure {
            return Err(failure);
        }
        let geometry = looked.geometry.as_ref();
        let geometry = geometry.and_then(|g| Geometry::try_from(g).ok());
        match (ContentKey::from_slice(&looked.content), geometry) {
            (Some(content), Some(geometry)) => {
                let lasts = looked.origin.is_some_and(|origin| origin.fresh_ms > 0);
                Ok(self.measured(lookup, content, lasts, &geometry))
            }
            _ => Err(rpc::Failure::new(
                Code::Internal,
                "a scheduler's answer names no content",
            )),
        }
    }

    fn measured(
        &self,
        lookup: RequestKey,
        content: ContentKey,
        lasts: bool,
        geometry: &Geometry,
    ) -> Measured {
        let held = self.store.stat(&content);
        let geometry = held.as_ref().map_or(geometry, |held| &held.geometry);
        let total = geometry.total_len();
        let blocks = held.as_ref().map_or(0, |held| held.held_blocks);
        let bytes = u64::from(blocks) * u64::from(geometry.block_size());
        Measured {
            lookup,
            content,
            lasts,
            held: rpc::WarmedContent {
                held: bytes.min(total.unwrap_or(u64::MAX)),
                total,
                complete: held.is_some_and(|held| held.complete),
            },
        }
    }

    /// Whether what is missing fits beside what may not be evicted.
    fn check_room(&self, all: &[Measured]) -> Result<(), Stop> {
        let missing: u64 = all
            .iter()
            .map(|m| m.held.total.unwrap_or(0).saturating_sub(m.held.held))
            .map(|bytes| bytes.saturating_add(bytes / BESIDE))
            .fold(0, u64::saturating_add);
        let ours: HashSet<_> = all.iter().map(|m| m.content).collect();
        let free = self.store.usage().free;
        if missing <= free {
            return Ok(());
        }
        let others = self.store.list().into_iter();
        let evictable = others
            .filter(|t| !t.pinned && t.handles == 0 && !ours.contains(&t.key))
            .map(|t| t.bytes)
            .fold(0, u64::saturating_add);
        let room = free.saturating_add(evictable);
        if missing <= room {
            Ok(())
        } else {
            Err(Stop::NoRoom { missing, room })
        }
    }

    /// What is held was just confirmed: it is as good as just got.
    fn keep_fresh(&self, found: &Measured) {
        let now = unix_now_ms();
        if let Ok(Some(task)) = self.store.open_task(&found.content) {
            task.touch(now);
        }
        if !found.lasts {
            return;
        }
        let kept = self
            .store
            .remember_request(found.lookup, found.content, now);
        if let Err(error) = kept {
            tracing::debug!(%error, "cannot remember a request");
        }
    }

    async fn get_one(
        self: &Arc<Self>,
        shared: &Shared,
        at: usize,
        source: &rpc::Source,
    ) -> Result<(), rpc::Failure> {
        let mut tries = 0;
        loop {
            let download = self.download(source.clone(), Wish::Whole).await?;
            download.prioritise(LAST);
            let finish = download.finish();
            tokio::pin!(finish);
            let ended = loop {
                tokio::select! {
                    ended = &mut finish => break ended,
                    () = tokio::time::sleep(Duration::from_secs(1)) => {}
                }
                let p = download.progress();
                let content = rpc::WarmedContent {
                    held: p.have,
                    total: p.total,
                    complete: false,
                };
                shared.set(at, content);
            };
            match ended {
                Ok(()) => {
                    let p = download.progress();
                    let content = rpc::WarmedContent {
                        held: p.have,
                        total: Some(p.have),
                        complete: true,
                    };
                    shared.set(at, content);
                    return Ok(());
                }
                Err(f) if f.code() == Code::Changed && tries < RESTARTS => tries += 1,
                Err(f) => return Err(f),
            }
        }
    }
}

/// With the source, so that of many contents it is known which failed. Never with its query.
fn named(source: &rpc::Source, failure: rpc::Failure) -> rpc::Failure {
    let url = source.url.split(['?', '#']).next().unwrap_or_default();
    if failure.message.contains(url) {
        return failure;
    }
    rpc::Failure {
        message: format!("{url}: {}", failure.message),
        ..failure
    }
}

impl Shared {
    fn set(&self, at: usize, content: rpc::WarmedContent) {
        if let Some(place) = lock(&self.state).contents.get_mut(at) {
            *place = content;
        }
    }

    fn look(&self) -> (String, Vec<rpc::WarmedContent>, bool) {
        let mut state = lock(&self.state);
        let asked = std::mem::take(&mut state.asked);
        (state.to.clone(), state.contents.clone(), asked)
    }
}
