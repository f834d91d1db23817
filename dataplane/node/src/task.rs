//! One task at this node: its engine, its place on disk, its neighbours.
//!
//! The engine sits in a mutex that is held for microseconds: no IO, no waiting under it. Everything
//! that touches it goes through `Task::drive`, which afterwards carries out what the engine wants:
//! messages go to the connections' queues at once, the rest comes back as `Effects` for the node.
//! Lock order: `signing`, `state`, then a connection's queue; `verifier` and `meta` are never held with
//! them.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dragonfly_proto::geometry::Geometry;
use dragonfly_proto::id::{ContentKey, NodeId};
use dragonfly_proto::rpc;
use dragonfly_proto::sign::PublicKey;
use dragonfly_proto::ticket::Ticket;
use dragonfly_proto::trust::{RunSigner, SignedSize, Verifier};
use dragonfly_swarm::engine::{Action, Engine, NeighbourId, Stripe};
use dragonfly_transport::{CloseReason, Conn};
use tokio::sync::Notify;

use crate::links::ConnState;
use crate::meta::Meta;
use crate::pex::Heard;
use crate::wire;

/// Most blocks of content whose length is unknown: a neighbour's word that it holds the last block
/// that could be must not cost more than this many counters.
const UNKNOWN_MAX_BLOCKS: u32 = 1 << 20;

/// Most blocks that a content may have here.
pub(crate) fn most_blocks(g: &Geometry) -> u32 {
    let most = g.max_blocks();
    if g.total_len().is_none() {
        most.min(UNKNOWN_MAX_BLOCKS)
    } else {
        most
    }
}

/// A neighbour in this task.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    pub(crate) conn: Arc<Conn>,
    /// Our number for the task on that connection.
    pub(crate) ours: u32,
    /// Whether it is a seed, for the accounts.
    pub(crate) seed: bool,
}

/// What the mutex guards.
pub(crate) struct State {
    pub(crate) engine: Engine,
    pub(crate) geometry: Geometry,
    pub(crate) links: HashMap<NeighbourId, Link>,
    pub(crate) ticket: Option<Ticket>,
    pub(crate) lease: Option<RunSigner>,
    /// Members that came with the lease and have not told yet what they hold, while that is waited for.
    pub(crate) awaited: HashSet<NodeId>,
    pub(crate) size: Option<SignedSize>,
    pub(crate) failure: Option<rpc::Failure>,
    /// What each user of the task (reader, download) wants: byte ranges.
    pub(crate) wants: HashMap<u64, (u64, u64)>,
    /// How important the task is to its users, where they said so.
    pub(crate) priorities: HashMap<u64, u8>,
    /// When somebody last needed the task.
    pub(crate) used: Instant,
    /// What the scheduler said of neighbours that not everything may be asked of.
    pub(crate) told: HashMap<NodeId, Told>,
    /// What neighbours said of others.
    pub(crate) heard: Heard,
    /// Members that are seeds, by the scheduler's word.
    pub(crate) seeds: Vec<NodeId>,
    pub(crate) joined: bool,
}

impl State {
    /// Tells the engine what its links' round trips are: windows are as wide as the way is long.
    pub(crate) fn measure(&mut self) {
        for (id, link) in &self.links {
            self.engine.set_rtt(*id, link.conn.round_trip());
        }
    }

    /// Something came from a neighbour, or `gone` will tell nothing: a lease-holder that has heard every
    /// member it was told of need not wait any longer.
    pub(crate) fn hear(&mut self, now: Duration, gone: Option<NodeId>) {
        if self.awaited.is_empty() {
            return;
        }
        if !self.engine.is_collecting() {
            return self.awaited.clear();
        }
        let told = |(id, _): &(&NeighbourId, &Link)| self.engine.has_told(**id);
        let told: Vec<_> = self
            .links
            .iter()
            .filter(told)
            .map(|(_, l)| l.conn.peer())
            .collect();
        for node in told.into_iter().chain(gone) {
            self.awaited.remove(&node);
        }
        if self.awaited.is_empty() {
            self.engine.heard_all(now);
        }
    }
}

/// How a neighbour of another zone relates to this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Told {
    /// It may push.
    pub(crate) emitter: bool,
    /// What may be asked of it.
    pub(crate) may_ask: Option<Stripe>,
}

/// What the node has to do after the engine ran.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    pub(crate) need_neighbours: Option<usize>,
    pub(crate) need_source: bool,
    /// Connections on which the task's stream is to be closed.
    pub(crate) parted: Vec<Arc<Conn>>,
    /// Nodes that broke the protocol.
    pub(crate) banned: Vec<(NodeId, String)>,
}

impl Effects {
    pub(crate) fn is_empty(&self) -> bool {
        self.need_neighbours.is_none()
            && !self.need_source
            && self.parted.is_empty()
            && self.banned.is_empty()
    }
}

/// Where a task's bytes came from, bytes.
#[derive(Debug, Default)]
pub struct Traffic {
    /// From the origin, by this node.
    pub origin: AtomicU64,
    /// From seeds.
    pub seeds: AtomicU64,
    /// From peers.
    pub peers: AtomicU64,
    /// Held when the node opened the task.
    pub cache: AtomicU64,
    /// Sent to other nodes.
    pub uploaded: AtomicU64,
}

/// A task this node takes part in.
pub struct Task {
    key: ContentKey,
    pub(crate) store: dragonfly_storage::Task,
    state: Mutex<State>,
    verifier: Mutex<Verifier>,
    meta: Mutex<Meta>,
    /// Held while blocks are signed and stored: by whose word they are does not change meanwhile.
    /// Before `state`.
    pub(crate) signing: Mutex<()>,
    pub(crate) changed: Notify,
    /// Wakes who waits for the whole content alone, once it is there or failed. Clients are served by
    /// other threads: to wake one for every block would cost a tenth of what the block costs.
    pub(crate) ended: Notify,
    /// Wakes the holder of the lease: what is wanted may have changed.
    pub(crate) emission: Notify,
    /// As the client gave it, with its own headers, while the task is in use here: another seed may
    /// need it to take over.
    pub(crate) source: Mutex<Option<rpc::Source>>,
    /// The outcome of comparing the whole content with its digest.
    pub(crate) digest: tokio::sync::OnceCell<Result<String, rpc::Failure>>,
    /// Held by who compares what was kept.
    pub(crate) comparing: tokio::sync::Mutex<()>,
    /// For the accounts.
    pub traffic: Traffic,
    /// How often in a row a source was called for and there was no scheduler to hear it.
    pub(crate) unheard: AtomicU32,
    pub(crate) next_user: AtomicU64,
    /// Since when blocks find no space, in milliseconds of the task's time; 0 while they do.
    short_since: AtomicU64,
    /// The engine has blocks to emit; as of when it was last driven.
    first_copies: AtomicBool,
    started: Instant,
}

impl std::fmt::Debug for Task {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Task({})", self.key)
    }
}

static NEXT_NEIGHBOUR: AtomicU32 = AtomicU32::new(1);

/// A handle for one neighbour in one task, never used again in this process's plausible life.
pub(crate) fn new_neighbour_id() -> NeighbourId {
    NeighbourId(NEXT_NEIGHBOUR.fetch_add(1, Ordering::Relaxed))
}

pub(crate) fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Task {
    pub(crate) fn new(
        key: ContentKey,
        store: dragonfly_storage::Task,
        geometry: Geometry,
        config: dragonfly_swarm::engine::Config,
        verifier: Verifier,
        meta: Meta,
    ) -> Arc<Self> {
        let mut engine = Engine::new(config, fastrand::u64(..), geometry.total_blocks());
        let held = store.held();
        engine.add_held(Duration::ZERO, held.ranges());
        while engine.poll().is_some() {}
        let state = State {
            engine,
            geometry,
            links: HashMap::new(),
            ticket: None,
            lease: None,
            awaited: HashSet::new(),
            size: None,
            failure: None,
            wants: HashMap::new(),
            priorities: HashMap::new(),
            used: Instant::now(),
            told: HashMap::new(),
            heard: Heard::default(),
            seeds: Vec::new(),
            joined: false,
        };
        let task = Self {
            key,
            store,
            state: Mutex::new(state),
            verifier: Mutex::new(verifier),
            meta: Mutex::new(meta),
            signing: Mutex::default(),
            changed: Notify::new(),
            ended: Notify::new(),
            emission: Notify::new(),
            source: Mutex::default(),
            digest: tokio::sync::OnceCell::new(),
            comparing: tokio::sync::Mutex::new(()),
            traffic: Traffic::default(),
            unheard: AtomicU32::new(0),
            next_user: AtomicU64::new(1),
            short_since: AtomicU64::new(0),
            first_copies: AtomicBool::new(false),
            started: Instant::now(),
        };
        let held = task.held_bytes();
        task.traffic.cache.store(held, Ordering::Relaxed);
        Arc::new(task)
    }

    /// The content's key.
    #[must_use]
    pub const fn key(&self) -> ContentKey {
        self.key
    }

    /// Engine time: since this task was opened here.
    pub(crate) fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// What clients of this node show the origin: told while one of them waits, or a lease needs it.
    pub(crate) fn wanted_source(&self, state: &State) -> Option<rpc::Source> {
        let needed = !state.wants.is_empty() || state.lease.is_some();
        needed.then(|| lock(&self.source).clone()).flatten()
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    pub(crate) fn verifier(&self) -> MutexGuard<'_, Verifier> {
        lock(&self.verifier)
    }

    /// What is kept with the task.
    #[must_use]
    pub fn meta(&self) -> Meta {
        lock(&self.meta).clone()
    }

    /// Changes what is kept with the task, on disk too.
    pub(crate) fn update_meta(&self, change: impl FnOnce(&mut Meta)) {
        let bytes = {
            let mut meta = lock(&self.meta);
            change(&mut meta);
            serde_json::to_vec(&*meta)
        };
        let saved = bytes
            .map_err(|e| e.to_string())
            .and_then(|b| self.store.set_meta(&b).map_err(|e| e.to_string()));
        if let Err(error) = saved {
            tracing::warn!(task = %self.key, error, "cannot keep the task's metadata");
        }
    }

    /// The mesh's authorities are known by now: what was kept of theirs counts.
    pub(crate) fn trust(&self, authorities: &[PublicKey]) {
        let meta = self.meta();
        let mut verifier = self.verifier();
        verifier.trust(authorities);
        meta.certify(&mut verifier);
    }

    /// Whether other nodes could not check what is held here.
    pub(crate) fn is_unproven(&self) -> bool {
        lock(&self.meta).unproven
    }

    /// How the content is cut; the length may be unknown yet.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        self.state().geometry
    }

    /// Bytes held of the content.
    #[must_use]
    pub fn held_bytes(&self) -> u64 {
        let g = self.geometry();
        let blocks = u64::from(self.store.held_count());
        let full = blocks * u64::from(g.block_size());
        // The last block is short: correct for it when it is held.
        match g.total_blocks().and_then(|n| n.checked_sub(1)) {
            Some(last) if self.store.is_held(last) => {
                full - u64::from(g.block_size() - g.block_len(last).unwrap_or(0))
            }
            _ => full,
        }
    }

    /// What the engine is at, in one line, for logs and bug reports.
    #[must_use]
    pub fn describe(&self) -> String {
        let s = self.state();
        let neighbours: Vec<_> = s
            .links
            .iter()
            .map(|(id, l)| {
                let has = s.engine.announced_by(*id);
                let data = s.engine.has_data_for(*id);
                format!(
                    "{} has {has}{}",
                    l.conn.peer().short(),
                    if data { ", to send" } else { "" }
                )
            })
            .collect();
        format!(
            "held {}/{:?}, remaining {}, lease {:?}, emitting {}, origin wanted {:?}, {:?}, [{}]",
            s.engine.held().count(),
            s.engine.total(),
            s.engine.remaining(),
            s.lease.as_ref().map(RunSigner::epoch),
            s.engine.is_emitting(),
            s.engine.origin_wanted(4),
            s.engine.stats(),
            neighbours.join("; ")
        )
    }

    /// Whether every block is held.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.store.is_complete()
    }

    /// Neighbours now.
    #[must_use]
    pub fn neighbours(&self) -> usize {
        self.state().links.len()
    }

    /// Runs `f` on the engine and carries out what the engine then wants.
    pub(crate) fn drive<R>(&self, f: impl FnOnce(&mut State, Duration) -> R) -> (R, Effects) {
        let now = self.now();
        let mut effects = Effects::default();
        let result = {
            let mut state = self.state();
            let result = f(&mut state, now);
            // What is due goes out with what this brings; the clock's own ticks are for quiet times.
            if state.engine.next_timeout().is_some_and(|due| due <= now) {
                state.engine.tick(now);
            }
            carry_out(&mut state, &mut effects);
            self.note_first_copies(&state);
            result
        };
        (result, effects)
    }

    /// Takes note, under the engine's lock, of whether it has blocks that nobody else got yet.
    pub(crate) fn note_first_copies(&self, state: &State) {
        let any = state.engine.has_first_copies();
        self.first_copies.store(any, Ordering::Relaxed);
    }

    /// Whether there is a block for this neighbour that nobody else got. Asked for every block that
    /// is sent, of many tasks: only of those that emit is the engine locked.
    pub(crate) fn emits_to(&self, neighbour: NeighbourId) -> bool {
        self.first_copies.load(Ordering::Relaxed) && self.state().engine.emits_to(neighbour)
    }

    /// Tells everybody who waits for the task that it went on.
    pub(crate) fn notify(&self) {
        self.changed.notify_waiters();
        if self.is_complete() {
            self.ended.notify_waiters();
        }
    }

    /// Tells the holder of the lease that what is wanted may have changed.
    pub(crate) fn notify_emission(&self) {
        self.emission.notify_one();
    }

    /// A block found no space: for how long that has been so.
    pub(crate) fn short_of_space(&self) -> Duration {
        let now = (self.now().as_millis() as u64).max(1);
        let since = &self.short_since;
        let begun = since.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
        Duration::from_millis(now.saturating_sub(begun.err().unwrap_or(now)))
    }

    /// A block found its space.
    pub(crate) fn found_space(&self) {
        if self.short_since.load(Ordering::Relaxed) != 0 {
            self.short_since.store(0, Ordering::Relaxed);
        }
    }

    /// Ends the task for all who wait for it. The first reason counts.
    pub(crate) fn fail(&self, failure: rpc::Failure) {
        tracing::warn!(task = %self.key.short(), code = failure.code, "{}", failure.message);
        self.state().failure.get_or_insert(failure);
        self.notify();
        self.ended.notify_waiters();
    }

    /// Why the task failed.
    #[must_use]
    pub fn failure(&self) -> Option<rpc::Failure> {
        self.state().failure.clone()
    }
}

fn carry_out(state: &mut State, effects: &mut Effects) {
    while let Some(action) = state.engine.poll() {
        match action {
            Action::Send(to, control) => {
                if let Some(link) = state.links.get(&to) {
                    wire::frames(&control, |f| link.conn.send(link.ours, f));
                }
            }
            Action::Wake(to) => {
                if let Some(link) = state.links.get(&to)
                    && let Some(conn) = link.conn.state::<ConnState>()
                {
                    conn.ready(link.ours);
                    link.conn.wake();
                }
            }
            Action::Ban(who, why) => {
                if let Some(link) = state.links.remove(&who) {
                    let why = dragonfly_transport::Violation(why.to_string());
                    effects.banned.push((link.conn.peer(), why.0.clone()));
                    link.conn.close(CloseReason::Violation(why));
                }
            }
            Action::Part(who) => {
                if let Some(link) = state.links.remove(&who) {
                    effects.parted.push(link.conn);
                }
            }
            Action::Drop(who) => {
                if let Some(link) = state.links.remove(&who) {
                    let idle = "owes blocks and sends none".to_owned();
                    link.conn.close(CloseReason::Local(idle));
                }
            }
            Action::NeedNeighbours { have, want } => {
                effects.need_neighbours = Some(want.saturating_sub(have));
            }
            Action::NeedSource => effects.need_source = true,
            // Whoever waits is told of every block, the last one too.
            Action::Complete | Action::Passed => {}
        }
    }
}
