//! The node engine: seed and peer are this, with different data.
//!
//! Owns the store, the tasks in use, the connections and the sessions with the schedulers. The tasks
//! of tokio that it runs: one that ticks the engines of tasks in use, one that takes what schedulers
//! send, one a session, two a connection (in the transport), one a lease held.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock, RwLock, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use dragonfly_proto::geometry::Geometry;
use dragonfly_proto::id::{ContentKey, NodeId};
use dragonfly_proto::rpc::{self, failure::Code, from_node};
use dragonfly_proto::sign::{PublicKey, SigningKey};
use dragonfly_proto::ticket::Ticket;
use dragonfly_proto::trust::{EpochCert, SignedSize, Verifier};
use dragonfly_source::{Fetcher, QueryFilter};
use dragonfly_storage::{ErrorKind, Store};
use dragonfly_swarm::engine::Objective;
use dragonfly_transport::{Local, Mesh, Security, Timeouts};
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::limits::{RateLimit, Recent};
use crate::links::ConnState;
use crate::metrics::Metrics;
use crate::origin::PendingOrigins;
use crate::session::{FromScheduler, Sessions};
use crate::task::{Effects, Meta, Task, from_hex, lock, most_blocks};
use crate::turns::weight;

/// A node that misbehaved is not spoken to for this long.
const BAN: Duration = Duration::from_secs(600);
/// Bans remembered.
const MAX_BANS: usize = 1024;
/// A task that nobody needed for this long is put away; it stays on disk.
const IDLE: Duration = Duration::from_secs(60);
/// Engines' clock: fine enough for the 10 ms within which announcements are batched.
const TICK: Duration = Duration::from_millis(5);
/// Members of a task remembered, for when no scheduler can be asked.
const MAX_MEMBERS: usize = 64;
/// Tasks of which they are.
const MAX_SWARMS: usize = 4096;
/// Tickets kept: of one that is gone another is given with the next join.
const MAX_TICKETS: usize = 65_536;

/// What the node may do besides exchanging blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Serves its node's clients.
    Peer,
    /// Goes to origins for others.
    Seed,
}

/// Who this node is; fixed while it runs.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Stable over restarts.
    pub node: NodeId,
    /// Slot or host name.
    pub name: String,
    /// Which part of the network; empty where there is one only.
    pub zone: String,
    /// Seed or peer.
    pub role: Role,
    /// The mesh.
    pub mesh: [u8; 16],
    /// `ip:port` that others reach the peer transport at.
    pub addresses: Vec<SocketAddr>,
}

/// What policy says to a node; may change at any moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Bytes a second sent to other nodes; 0 for no limit.
    pub upload_limit: u64,
    /// Bytes a second taken from other nodes; 0 for no limit.
    pub download_limit: u64,
    /// Whether this node may go to the origin when no seed can.
    pub back_to_source: bool,
    /// How long an origin's answer is used without asking again.
    pub freshness: Duration,
    /// What is made fast where uplinks differ.
    pub slowest_first: bool,
    /// Which query parameters tell contents apart.
    pub query: QueryFilter,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            upload_limit: 0,
            download_limit: 0,
            back_to_source: true,
            freshness: Duration::from_secs(30),
            slowest_first: true,
            query: QueryFilter::default(),
        }
    }
}

/// What a node is made of.
pub struct Parts {
    /// Who it is.
    pub identity: Identity,
    /// Where content is kept.
    pub store: Store,
    /// How it reaches origins; replaced when policy changes.
    pub fetcher: Fetcher,
    /// How connections are protected.
    pub security: Security,
    /// Keys that sign tickets and epochs, known before any scheduler was spoken to.
    pub authorities: Vec<PublicKey>,
    /// Policy at the start.
    pub settings: Settings,
    /// Schedulers.
    pub schedulers: crate::session::Bootstrap,
}

/// A running node.
pub struct Node {
    pub(crate) identity: Identity,
    pub(crate) store: Store,
    pub(crate) signing: Arc<SigningKey>,
    fetcher: RwLock<Fetcher>,
    mesh: OnceLock<Weak<Mesh<Self>>>,
    me: OnceLock<Weak<Self>>,
    pub(crate) sessions: Sessions,
    tasks: Mutex<HashMap<ContentKey, Arc<Task>>>,
    tickets: Mutex<Recent<ContentKey, Ticket>>,
    members: Mutex<Recent<ContentKey, Vec<rpc::Member>>>,
    /// What a scheduler said of tasks that are about to be opened here.
    pub(crate) early: Mutex<HashMap<ContentKey, Vec<rpc::Neighbours>>>,
    bans: Mutex<HashMap<NodeId, Instant>>,
    authorities: RwLock<Vec<PublicKey>>,
    settings: watch::Sender<Settings>,
    pub(crate) policy: Mutex<rpc::PolicyAck>,
    pub(crate) policies: watch::Sender<Option<rpc::PolicyUpdate>>,
    pub(crate) origins: PendingOrigins,
    pub(crate) upload_limit: RateLimit,
    pub(crate) download_limit: RateLimit,
    /// Counters of this node.
    pub metrics: Metrics,
    pub(crate) active: Notify,
    pub(crate) stop: CancellationToken,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Node({}, {:?})", self.identity.name, self.identity.role)
    }
}

/// Seconds since 1970.
pub(crate) fn unix_now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

/// Milliseconds since 1970.
pub(crate) fn unix_now_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_millis() as u64
}

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No signing key.
    #[error(transparent)]
    Key(#[from] dragonfly_proto::sign::KeyError),
}

impl Node {
    /// Makes the node and starts its tasks on the current runtime. `listener` is where other nodes
    /// connect.
    pub fn start(parts: Parts, listener: tokio::net::TcpListener) -> Result<Arc<Self>, StartError> {
        let (signing, _) = SigningKey::generate()?;
        let (from_schedulers, inbox) = mpsc::unbounded_channel();
        let settings = parts.settings;
        let sessions = Sessions::new(parts.schedulers, from_schedulers);
        let node = Arc::new(Self {
            upload_limit: RateLimit::new(settings.upload_limit),
            download_limit: RateLimit::new(settings.download_limit),
            identity: parts.identity,
            store: parts.store,
            signing: Arc::new(signing),
            fetcher: RwLock::new(parts.fetcher),
            mesh: OnceLock::new(),
            me: OnceLock::new(),
            sessions,
            tasks: Mutex::default(),
            tickets: Mutex::new(Recent::new(MAX_TICKETS)),
            members: Mutex::new(Recent::new(MAX_SWARMS)),
            early: Mutex::default(),
            bans: Mutex::default(),
            authorities: RwLock::new(parts.authorities),
            settings: watch::Sender::new(settings),
            policy: Mutex::default(),
            policies: watch::Sender::new(None),
            origins: PendingOrigins::default(),
            metrics: Metrics::default(),
            active: Notify::new(),
            stop: CancellationToken::new(),
        });
        let local = Local {
            node: node.identity.node,
            mesh: node.identity.mesh,
        };
        let mesh = Mesh::new(local, parts.security, Timeouts::default(), node.clone());
        // Set once, here: nothing else has seen the node yet.
        let _ = node.mesh.set(Arc::downgrade(&mesh));
        let _ = node.me.set(Arc::downgrade(&node));
        let stop = node.stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = mesh.accept(listener) => {}
                () = stop.cancelled() => {}
            }
        });
        tokio::spawn(node.clone().tick());
        tokio::spawn(node.clone().housekeeping());
        tokio::spawn(node.clone().listen_to_schedulers(inbox));
        node.sessions.start(&node);
        Ok(node)
    }

    /// Says goodbye: sessions end, connections close, what is on disk is made durable.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        if let Some(mesh) = self.mesh() {
            for conn in mesh.all() {
                conn.close(dragonfly_transport::CloseReason::Local(
                    "shutting down".to_owned(),
                ));
            }
        }
        let store = self.store.clone();
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || store.checkpoint()).await {
            tracing::warn!(%error, "cannot make the store durable");
        }
    }

    pub(crate) fn me(&self) -> Option<Arc<Self>> {
        self.me.get().and_then(Weak::upgrade)
    }

    pub(crate) fn mesh(&self) -> Option<Arc<Mesh<Self>>> {
        self.mesh.get().and_then(Weak::upgrade)
    }

    /// Who this node is.
    #[must_use]
    pub const fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Where its content is.
    #[must_use]
    pub const fn store(&self) -> &Store {
        &self.store
    }

    /// What policy says now.
    #[must_use]
    pub fn settings(&self) -> Settings {
        self.settings.borrow().clone()
    }

    /// Policies as schedulers send them.
    #[must_use]
    pub fn policies(&self) -> watch::Receiver<Option<rpc::PolicyUpdate>> {
        self.policies.subscribe()
    }

    /// Policy changed: limits and rules hold from now on, for tasks under way too.
    pub fn apply_settings(&self, settings: Settings) {
        self.upload_limit.set(settings.upload_limit);
        self.download_limit.set(settings.download_limit);
        self.settings.send_replace(settings);
    }

    /// Shows schedulers another certificate from the next session on.
    pub fn set_grpc_tls(&self, tls: crate::session::GrpcTls) {
        self.sessions.set_tls(tls);
    }

    /// Names of the schedulers with a session.
    #[must_use]
    pub fn schedulers(&self) -> Vec<String> {
        self.sessions.connected()
    }

    /// Another way to reach origins, for fetches from now on.
    pub fn set_fetcher(&self, fetcher: Fetcher) {
        *self
            .fetcher
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = fetcher;
    }

    pub(crate) fn fetcher(&self) -> Fetcher {
        self.fetcher
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone()
    }

    /// Tells the schedulers which policy this node runs, or why it refused one.
    pub fn acknowledge(&self, ack: rpc::PolicyAck) {
        *lock(&self.policy) = ack.clone();
        self.sessions.broadcast(from_node::Message::PolicyAck(ack));
    }

    pub(crate) fn authorities(&self) -> Vec<PublicKey> {
        self.authorities
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone()
    }

    pub(crate) fn add_authorities(&self, keys: impl IntoIterator<Item = PublicKey>) {
        let mut known = self
            .authorities
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        for key in keys {
            if !known.contains(&key) {
                known.push(key);
            }
        }
    }

    // ---- tasks ------------------------------------------------------------------------------

    /// Tasks in use.
    #[must_use]
    pub fn tasks(&self) -> Vec<Arc<Task>> {
        lock(&self.tasks).values().cloned().collect()
    }

    /// A task in use.
    #[must_use]
    pub fn find(&self, content: &ContentKey) -> Option<Arc<Task>> {
        lock(&self.tasks).get(content).cloned()
    }

    /// A task in use, or one on disk that is put in use: another node asks for it.
    pub(crate) fn find_or_revive(&self, content: &ContentKey) -> Option<Arc<Task>> {
        if let Some(task) = self.find(content) {
            task.state().used = Instant::now();
            return Some(task);
        }
        let stored = self.store.open_task(content).ok().flatten()?;
        let g = stored.geometry();
        let geometry = Geometry::new(g.block_size, g.total_len).ok()?;
        self.open(*content, geometry, Meta::default()).ok()
    }

    /// The task for a content, on disk and in use. `meta` is taken where nothing is kept yet.
    pub(crate) fn open(
        &self,
        content: ContentKey,
        geometry: Geometry,
        meta: Meta,
    ) -> Result<Arc<Task>, rpc::Failure> {
        let mut tasks = lock(&self.tasks);
        if let Some(task) = tasks.get(&content) {
            // Or it would be put away before its new user is entered.
            task.state().used = Instant::now();
            return Ok(task.clone());
        }
        let wanted = dragonfly_storage::Geometry {
            block_size: geometry.block_size(),
            total_len: geometry.total_len(),
        };
        let fresh = serde_json::to_vec(&meta).unwrap_or_default();
        let stored = self
            .store
            .create_or_open(content, wanted, &fresh)
            .map_err(|e| storage_failure(&e))?;
        let kept = stored
            .meta()
            .ok()
            .and_then(|b| serde_json::from_slice::<Meta>(&b).ok());
        let meta = kept.unwrap_or(meta);
        let g = stored.geometry();
        let geometry = Geometry::new(g.block_size, g.total_len)
            .map_err(|e| rpc::Failure::new(Code::Internal, e.to_string()))?;
        let mut verifier = Verifier::new(content, self.authorities());
        for cert in meta.epochs.iter().filter_map(|hex| epoch_from_hex(hex)) {
            if let Err(error) = verifier.add_epoch(&cert) {
                // A mesh with another authority: its blocks cannot be relayed in this one.
                tracing::warn!(task = %content.short(), %error, "a kept certificate is not valid");
            }
        }
        let mut config = dragonfly_swarm::engine::Config::default();
        if !self.settings.borrow().slowest_first {
            config.objective = Objective::Average;
        }
        config.max_blocks = most_blocks(&geometry);
        let size = meta.size.as_ref().and_then(size_from_meta);
        let task = Task::new(content, stored, geometry, config, verifier, meta);
        task.state().size = size;
        tasks.insert(content, task.clone());
        drop(tasks);
        self.active.notify_one();
        Ok(task)
    }

    pub(crate) fn ticket(&self, content: &ContentKey) -> Option<Ticket> {
        lock(&self.tickets)
            .get(content)
            .copied()
            .filter(|t| t.expires > unix_now())
    }

    pub(crate) fn keep_ticket(&self, ticket: Ticket) {
        lock(&self.tickets).put(ticket.content, ticket);
    }

    /// Carries out what an engine wants of the node.
    pub(crate) fn apply(&self, task: &Arc<Task>, effects: Effects) {
        if effects.is_empty() {
            return;
        }
        for conn in &effects.parted {
            self.close_stream(task, conn);
        }
        for (node, why) in effects.banned {
            self.ban(node, &why);
            self.lost(task, node, &why, true);
        }
        let content = task.key().0.to_vec();
        if let Some(count) = effects.need_neighbours {
            let known = {
                let state = task.state();
                state
                    .links
                    .values()
                    .map(|l| l.conn.peer().0.to_vec())
                    .collect()
            };
            let ask = rpc::NeedNeighbours {
                content: content.clone(),
                count: count as u32,
                known,
            };
            let asked = self
                .sessions
                .tell(&task.key(), from_node::Message::NeedNeighbours(ask));
            if !asked && let Some(node) = self.me() {
                node.find_neighbours(task, count);
            }
        }
        if effects.need_source {
            let ask = rpc::NeedSource {
                content,
                ranges: vec![],
            };
            if self
                .sessions
                .tell(&task.key(), from_node::Message::NeedSource(ask))
            {
                task.unheard.store(0, Ordering::Relaxed);
            } else if task.unheard.fetch_add(1, Ordering::Relaxed) > 0
                && self.settings().back_to_source
                && let Some(node) = self.me()
            {
                // Neither scheduler nor anybody who has the rest, twice in a row.
                node.go_alone(task);
            }
        }
    }

    pub(crate) fn lost(&self, task: &Arc<Task>, node: NodeId, reason: &str, banned: bool) {
        let lost = rpc::LostNode {
            content: task.key().0.to_vec(),
            node: node.0.to_vec(),
            reason: reason.to_owned(),
            banned,
        };
        self.sessions
            .tell(&task.key(), from_node::Message::LostNode(lost));
    }

    pub(crate) fn storage_failed(&self, task: &Arc<Task>, error: &dragonfly_storage::StorageError) {
        task.fail(storage_failure(error));
        // Nothing more is asked for; what is held is still served.
        let ((), effects) = task.drive(|s, now| {
            s.engine
                .set_wanted(now, dragonfly_swarm::engine::Wanted::Nothing);
        });
        self.apply(task, effects);
    }

    // ---- other nodes ------------------------------------------------------------------------

    pub(crate) fn ban(&self, node: NodeId, why: &str) {
        tracing::warn!(%node, why, "banned");
        self.metrics.bans.inc();
        let mut bans = lock(&self.bans);
        let now = Instant::now();
        if bans.len() >= MAX_BANS {
            bans.retain(|_, until| *until > now);
        }
        if bans.len() < MAX_BANS {
            bans.insert(node, now + BAN);
        }
    }

    pub(crate) fn is_banned(&self, node: &NodeId) -> bool {
        lock(&self.bans)
            .get(node)
            .is_some_and(|until| *until > Instant::now())
    }

    /// Keeps members for when no scheduler can be asked.
    pub(crate) fn remember_members(&self, task: &Arc<Task>, members: Vec<rpc::Member>) {
        {
            let mut state = task.state();
            for m in members.iter().filter(|m| m.seed) {
                if let Some(id) = NodeId::from_slice(&m.node)
                    && !state.seeds.contains(&id)
                    && state.seeds.len() < MAX_MEMBERS
                {
                    state.seeds.push(id);
                }
            }
        }
        let mut all = lock(&self.members);
        let mut known = all.remove(&task.key()).unwrap_or_default();
        for m in members {
            known.retain(|k| k.node != m.node);
            known.push(m);
        }
        let over = known.len().saturating_sub(MAX_MEMBERS);
        known.drain(..over);
        all.put(task.key(), known);
    }

    pub(crate) fn members_of(&self, task: &Task) -> Vec<rpc::Member> {
        let all = lock(&self.members);
        all.get(&task.key()).cloned().unwrap_or_default()
    }

    /// Opens a stream for the task with each of these nodes, dialling where there is no connection.
    pub(crate) fn connect_members(self: &Arc<Self>, task: &Arc<Task>, members: &[rpc::Member]) {
        for m in members {
            let Some(id) = NodeId::from_slice(&m.node) else {
                continue;
            };
            if id == self.identity.node || self.is_banned(&id) {
                continue;
            }
            let addrs: Vec<SocketAddr> = m
                .addresses
                .iter()
                .take(8)
                .filter_map(|a| a.parse().ok())
                .collect();
            let (node, task) = (self.clone(), task.clone());
            tokio::spawn(async move {
                let Some(mesh) = node.mesh() else { return };
                match mesh.connect(id, &addrs).await {
                    Ok(conn) => {
                        if let Some(links) = conn.state::<ConnState>() {
                            node.say_hello(&conn, links, &task);
                        }
                    }
                    Err(error) => {
                        tracing::debug!(task = %task.key().short(), %error, "no connection");
                        node.lost(&task, id, &error.to_string(), false);
                    }
                }
            });
        }
    }

    // ---- time -------------------------------------------------------------------------------

    /// Ticks the engines that have something to time; sleeps while there are none.
    async fn tick(self: Arc<Self>) {
        loop {
            let tasks = self.tasks();
            let mut busy = false;
            // What contends for this node's downlink: shares go by priority.
            let wanting = |t: &&Arc<Task>| {
                let s = t.state();
                !s.wants.is_empty() && s.engine.remaining() > 0
            };
            let top = tasks.iter().filter(wanting).map(|t| t.priority()).min();
            for task in &tasks {
                let share = top.map_or(1.0, |top| {
                    weight(task.priority()) as f32 / weight(top) as f32
                });
                let due = {
                    let mut state = task.state();
                    state.engine.set_share(share.min(1.0));
                    busy |= !state.links.is_empty() || !state.wants.is_empty();
                    state
                        .engine
                        .next_timeout()
                        .is_some_and(|at| at <= task.now())
                };
                if due {
                    let ((), effects) = task.drive(|s, now| s.engine.tick(now));
                    self.apply(task, effects);
                }
            }
            let pause = if busy {
                TICK
            } else {
                Duration::from_millis(500)
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.active.notified(), if !busy => {}
                () = self.stop.cancelled() => return,
            }
        }
    }

    /// Puts idle tasks away, collects garbage, reports.
    async fn housekeeping(self: Arc<Self>) {
        let mut every = tokio::time::interval(Duration::from_secs(10));
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = every.tick() => {}
                () = self.stop.cancelled() => return,
            }
            self.put_idle_away();
            let store = self.store.clone();
            let collected = tokio::task::spawn_blocking(move || {
                let now = unix_now_ms();
                let evicted = store.collect_garbage(now);
                (evicted, store.checkpoint())
            });
            if let Ok((evicted, durable)) = collected.await {
                for e in evicted {
                    tracing::info!(task = %e.key.short(), bytes = e.bytes, reason = ?e.reason, "evicted");
                    self.forget(&e.key);
                }
                if let Err(error) = durable {
                    tracing::warn!(%error, "cannot make the store durable");
                }
            }
            self.report();
        }
    }

    fn put_idle_away(&self) {
        let mut idle = vec![];
        lock(&self.tasks).retain(|_, task| {
            let s = task.state();
            let limit = if s.lease.is_some() { IDLE * 2 } else { IDLE };
            let keep = !s.wants.is_empty() || s.used.elapsed() < limit;
            let leased = s.lease.is_some();
            drop(s);
            if !keep {
                idle.push((task.clone(), leased));
            }
            keep
        });
        for (task, leased) in idle {
            self.close_streams(&task);
            task.notify_emission();
            if leased && !task.is_complete() {
                // Whoever wants the rest later must find a lease-holder that reads.
                self.sessions.tell(
                    &task.key(),
                    from_node::Message::Leave(rpc::Leave {
                        content: task.key().0.to_vec(),
                    }),
                );
                if task.store.held_count() > 0 && !task.is_unproven() {
                    let join = rpc::Join {
                        emitter: false,
                        ..self.join_message(&task, None)
                    };
                    self.sessions
                        .tell(&task.key(), from_node::Message::Join(join));
                }
            }
        }
        let used: std::collections::HashSet<_> = lock(&self.tasks).keys().copied().collect();
        self.origins.keep_only(&used);
    }

    /// Takes a task out of all connections; the other sides are told.
    pub(crate) fn close_streams(&self, task: &Arc<Task>) {
        let Some(mesh) = self.mesh() else { return };
        for conn in mesh.all() {
            self.close_stream(task, &conn);
        }
    }

    /// Takes a task out of one connection; the other side is told.
    pub(crate) fn close_stream(&self, task: &Task, conn: &Arc<dragonfly_transport::Conn>) {
        let Some(links) = conn.state::<ConnState>() else {
            return;
        };
        let (ours, stream) = links.close(&task.key());
        if let Some(ours) = ours {
            conn.send(ours, &dragonfly_proto::frame::Frame::Close);
        }
        if let Some(stream) = stream {
            self.leave(&stream);
        }
    }

    /// A content is no longer held.
    pub(crate) fn forget(&self, content: &ContentKey) {
        lock(&self.tickets).remove(content);
        lock(&self.members).remove(content);
        let leave = rpc::Leave {
            content: content.0.to_vec(),
        };
        self.sessions
            .tell(content, from_node::Message::Leave(leave));
    }

    /// Puts a task out of use. Its streams end: bound to what is forgotten they would keep what
    /// follows it from its neighbours.
    pub(crate) fn forget_task(&self, content: &ContentKey) -> Option<Arc<Task>> {
        let task = lock(&self.tasks).remove(content)?;
        self.close_streams(&task);
        task.notify_emission();
        Some(task)
    }

    /// Whether this is the task that is in use for its content.
    pub(crate) fn is_current(&self, task: &Arc<Task>) -> bool {
        lock(&self.tasks)
            .get(&task.key())
            .is_some_and(|t| Arc::ptr_eq(t, task))
    }

    fn report(&self) {
        let tasks = self.tasks();
        let reports = tasks.iter().take(256).map(|t| rpc::TaskReport {
            content: t.key().0.to_vec(),
            held: t.store.held_count(),
            complete: t.is_complete(),
        });
        let mut report = self.metrics.since_last_report();
        report.active_tasks = tasks.len() as u32;
        report.connections = self.mesh().map_or(0, |m| m.len() as u32);
        report.stored_bytes = self.store.usage().bytes;
        report.tasks = reports.collect();
        self.sessions.broadcast(from_node::Message::Report(report));
    }

    async fn listen_to_schedulers(
        self: Arc<Self>,
        mut inbox: mpsc::UnboundedReceiver<FromScheduler>,
    ) {
        loop {
            let message = tokio::select! {
                m = inbox.recv() => m,
                () = self.stop.cancelled() => None,
            };
            let Some((from, message)) = message else {
                return;
            };
            self.on_scheduler(from, message);
        }
    }
}

impl Node {
    /// Nobody here wants a task any more: the scheduler is told, so that neither it nor this node keeps
    /// a client's credentials longer than the client.
    pub(crate) fn nobody_wants(&self, task: &Arc<Task>) {
        let told = {
            let state = task.state();
            if !state.wants.is_empty() || state.lease.is_some() {
                return;
            }
            state.joined
        };
        lock(&task.source).take();
        if told && !task.is_complete() && !task.is_unproven() {
            self.tell_held(task);
        }
    }
}

pub(crate) fn storage_failure(e: &dragonfly_storage::StorageError) -> rpc::Failure {
    let code = match e.kind() {
        ErrorKind::DiskFull | ErrorKind::QuotaExceeded => Code::NoSpace,
        ErrorKind::NotFound | ErrorKind::NotHeld => Code::NotFound,
        ErrorKind::Conflict => Code::Changed,
        _ => Code::Internal,
    };
    rpc::Failure::new(code, e.to_string())
}

fn epoch_from_hex(s: &str) -> Option<EpochCert> {
    EpochCert::decode(&from_hex(s)?).ok()
}

fn size_from_meta((total_len, epoch, hex): &(u64, u32, String)) -> Option<SignedSize> {
    let signature = from_hex(hex)?.try_into().ok()?;
    Some(SignedSize {
        total_len: *total_len,
        epoch: *epoch,
        signature,
    })
}
