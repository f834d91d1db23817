//! The node engine: seed and peer are this, with different data.
//!
//! Owns the store, the tasks in use, the connections and the sessions with the schedulers. The tasks
//! of tokio that run all the time: one that accepts, one that ticks the engines of tasks in use, those of
//! `chores`, one that takes what schedulers send, one a session, two a connection (in the transport);
//! besides, one a lease held, a warming job, a look at an origin.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, RwLock, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dragonfly_proto::id::{ContentKey, NodeId};
use dragonfly_proto::rpc::{self, from_node};
use dragonfly_proto::sign::{PublicKey, SigningKey};
use dragonfly_proto::ticket::Ticket;
use dragonfly_source::{Fetcher, QueryFilter};
use dragonfly_storage::Store;
use dragonfly_transport::{Local, Mesh, Security, Timeouts};
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::apart::Parted;
use crate::clock::MeshClock;
use crate::damage::Checks;
use crate::limits::{RateLimit, Recent};
use crate::metrics::Metrics;
use crate::origin::PendingOrigins;
use crate::others::Bans;
use crate::sealed::Asking;
use crate::session::{FromScheduler, Sessions};
use crate::task::{Task, lock};
use crate::warming::Warming;

/// Tasks of which they are.
const MAX_SWARMS: usize = 4096;
/// Tickets kept: of one that is gone another is given with the next join.
const MAX_TICKETS: usize = 65_536;
/// The scheduler's word that the mesh was deleted may be this far behind the signal to end.
const LAST_WORD: Duration = Duration::from_secs(2);

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
    /// Machines whose nodes are not to be spoken with, whatever they show.
    pub revoked: Vec<String>,
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
            revoked: vec![],
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
    pub(crate) security: Security,
    /// A seed lacks a key to open what is sealed.
    pub(crate) keys_wanted: Notify,
    pub(crate) keys_changed: Notify,
    pub(crate) asking: Asking,
    pub(crate) parted: Parted,
    pub(crate) tasks: Mutex<HashMap<ContentKey, Arc<Task>>>,
    pub(crate) tickets: Mutex<Recent<ContentKey, Ticket>>,
    pub(crate) members: Mutex<Recent<ContentKey, Vec<rpc::Member>>>,
    /// What a scheduler said of tasks that are about to be opened here.
    pub(crate) early: Mutex<HashMap<ContentKey, Vec<rpc::Neighbours>>>,
    pub(crate) bans: Mutex<Bans>,
    pub(crate) checks: Checks,
    authorities: RwLock<Vec<PublicKey>>,
    pub(crate) settings: watch::Sender<Settings>,
    pub(crate) policy: Mutex<rpc::PolicyAck>,
    pub(crate) policies: watch::Sender<Option<rpc::PolicyUpdate>>,
    pub(crate) origins: PendingOrigins,
    pub(crate) upload_limit: RateLimit,
    pub(crate) download_limit: RateLimit,
    /// Counters of this node.
    pub metrics: Metrics,
    pub(crate) active: Notify,
    pub(crate) stop: CancellationToken,
    /// Where the node's part in the mesh runs; its clients' calls are elsewhere.
    pub(crate) threads: Handle,
    pub(crate) clock: MeshClock,
    pub(crate) warming: Warming,
    /// The mesh was deleted.
    pub(crate) retired: AtomicBool,
    /// Calls of clients under way.
    pub(crate) clients: AtomicUsize,
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
        let sessions = Sessions::new(parts.schedulers, parts.security.clone(), from_schedulers);
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
            checks: Checks::new(),
            authorities: RwLock::default(),
            settings: watch::Sender::new(settings),
            policy: Mutex::default(),
            policies: watch::Sender::new(None),
            origins: PendingOrigins::default(),
            security: parts.security.clone(),
            keys_wanted: Notify::new(),
            keys_changed: Notify::new(),
            asking: Asking::default(),
            parted: Parted::default(),
            metrics: Metrics::default(),
            active: Notify::new(),
            stop: CancellationToken::new(),
            threads: Handle::current(),
            clock: MeshClock::default(),
            warming: Warming::default(),
            retired: AtomicBool::new(false),
            clients: AtomicUsize::new(0),
        });
        let local = Local {
            node: node.identity.node,
            mesh: node.identity.mesh,
        };
        let mesh = Mesh::new(local, parts.security, Timeouts::default(), node.clone());
        mesh.revoke(&node.settings.borrow().revoked);
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
        tokio::spawn(node.clone().reporting());
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

    /// This node is about to end. Waits for the scheduler's word that the mesh was deleted, which may be a
    /// moment behind the signal; not where no client would hear of it.
    pub async fn last_word(&self) {
        let until = tokio::time::Instant::now() + LAST_WORD;
        let may_come = || {
            let clients = self.clients.load(Ordering::Relaxed) > 0;
            clients && !self.is_retired() && !self.schedulers().is_empty()
        };
        while may_come() && tokio::time::Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Whether a scheduler said that the mesh was deleted, and none gave a policy since.
    #[must_use]
    pub fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Relaxed)
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
        if let Some(mesh) = self.mesh() {
            mesh.revoke(&settings.revoked);
        }
        self.settings.send_replace(settings);
    }

    /// Shows schedulers another certificate from the next session on.
    pub fn set_grpc_tls(&self, tls: dragonfly_transport::Calls) {
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

    /// A node starts without any: the first scheduler that it reaches tells. What clients asked for
    /// before that is checked by them from then on.
    pub(crate) fn add_authorities(&self, keys: impl IntoIterator<Item = PublicKey>) {
        let all = {
            let mut known = self
                .authorities
                .write()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            let before = known.len();
            for key in keys {
                if !known.contains(&key) {
                    known.push(key);
                }
            }
            if known.len() == before {
                return;
            }
            known.clone()
        };
        self.tasks().iter().for_each(|task| task.trust(&all));
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
