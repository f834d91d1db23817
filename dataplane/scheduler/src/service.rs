//! gRPC around the scheduler's decisions: one task a session that reads, one queue that writes.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dragonfly_proto::id::{ContentKey, NodeId};
use dragonfly_proto::rpc::scheduler_server::{Scheduler, SchedulerServer};
use dragonfly_proto::rpc::{self, FromNode, ToNode, from_node};
use dragonfly_transport::{Revoked, Role, Who, is_node};
use rustls::pki_types::CertificateDer;
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::core::{Core, CoreSettings, GATHER};

/// Messages that may wait for a node; one that is so far behind is cut off and comes back anew.
const QUEUE: usize = 4096;

/// A running scheduler; clones share it.
#[derive(Clone)]
pub struct Service {
    inner: Arc<Inner>,
}

struct Inner {
    core: Mutex<Core>,
    sessions: Mutex<HashMap<NodeId, Session>>,
    started: Instant,
    /// The core gathers what is to be flushed.
    gathers: Notify,
    /// The mesh as certificates name it, where nodes must show one that names them.
    identified: Option<String>,
    revoked: Revoked,
}

struct Session {
    number: u64,
    // Boxed: a channel has room for some at any time, and there are thousands of sessions.
    out: mpsc::Sender<Box<ToNode>>,
    /// Whom its certificate names.
    who: Option<Who>,
    /// Ends it from here.
    end: CancellationToken,
}

impl Drop for Session {
    fn drop(&mut self) {
        // Nothing more is taken from a node that is told nothing more.
        self.end.cancel();
    }
}

impl Service {
    /// Serves these decisions. `identified`: the mesh as certificates name it, behind mutual TLS, where
    /// nodes have to show a certificate that names them.
    #[must_use]
    pub fn new(core: Core, identified: Option<String>) -> Self {
        let inner = Inner {
            core: Mutex::new(core),
            sessions: Mutex::default(),
            started: Instant::now(),
            gathers: Notify::new(),
            identified,
            revoked: Revoked::default(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// The tonic service, its message limits set.
    #[must_use]
    pub fn server(&self) -> SchedulerServer<Self> {
        SchedulerServer::new(self.clone()).max_decoding_message_size(rpc::MAX_MESSAGE)
    }

    /// Lets time pass until stopped.
    pub async fn run(&self, stop: CancellationToken) {
        let mut every = tokio::time::interval(Duration::from_millis(500));
        loop {
            tokio::select! {
                _ = every.tick() => self.with(|core, now| core.tick(now)),
                () = self.inner.gathers.notified() => {
                    tokio::time::sleep(GATHER).await;
                    self.with(|core, now| core.flush(now));
                }
                () = stop.cancelled() => return,
            }
        }
    }

    /// Another policy for all nodes, and for this scheduler.
    pub fn set_policy(&self, policy: rpc::PolicyUpdate, settings: CoreSettings) {
        self.with(|core, _| core.set_policy(policy, settings));
    }

    /// Takes no session of these machines' nodes any more, and ends those that there are.
    pub fn revoke(&self, machines: &[String]) {
        if !self.inner.revoked.set(machines) {
            return;
        }
        // Its reader ends with it, and says that the node is gone.
        self.sessions().retain(|node, session| {
            let is_revoked =
                (session.who.as_ref()).is_some_and(|who| self.inner.revoked.has(who, Some(node)));
            if is_revoked {
                tracing::warn!(%node, "revoked: its session is ended");
            }
            !is_revoked
        });
    }

    /// Whether a node's certificate lets it have a session as what it says it is.
    fn judge(
        &self,
        mesh: &str,
        cert: Option<&CertificateDer<'_>>,
        id: &NodeId,
        role: rpc::Role,
    ) -> Result<Who, Status> {
        let cert = cert.ok_or_else(|| {
            Status::unauthenticated("no certificate: start the node with this mesh's join token")
        })?;
        let who = is_node(cert, id, mesh).map_err(|error| {
            Status::unauthenticated(format!("the certificate is not node {id}'s: {error}"))
        })?;
        let is_role = match who.role {
            Role::Seed => role == rpc::Role::Seed,
            Role::Peer => role == rpc::Role::Peer,
            _ => false,
        };
        if !is_role {
            return Err(Status::permission_denied(format!(
                "the node calls itself {role:?} and its certificate says {}",
                who.role
            )));
        }
        if self.inner.revoked.has(&who, Some(id)) {
            return Err(Status::permission_denied(format!(
                "{} is revoked (spec.security.revokedNodes)",
                who.node
            )));
        }
        Ok(who)
    }

    /// The mesh was deleted: nodes that are told to end from now on take what they hold with them.
    pub fn retire(&self) {
        self.with(|core, _| core.retire());
    }

    /// What the scheduler knows.
    #[must_use]
    pub fn inspect(&self) -> rpc::InspectReply {
        self.core().inspect()
    }

    /// Sums of what the nodes whose home this is reported.
    #[must_use]
    pub fn totals(&self) -> crate::sketch::Totals {
        self.core().totals().clone()
    }

    /// What was counted since the last call, and what is true now.
    #[must_use]
    pub fn sketch(&self) -> rpc::Sketch {
        self.core().sketch()
    }

    /// Whether the source of a content, a client's credentials included, is in memory.
    #[must_use]
    pub fn keeps_source(&self, content: &ContentKey) -> bool {
        self.core().keeps_source(content)
    }

    fn core(&self) -> MutexGuard<'_, Core> {
        self.inner
            .core
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn sessions(&self) -> MutexGuard<'_, HashMap<NodeId, Session>> {
        self.inner
            .sessions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a decision and queues what it wants sent. The core stays locked meanwhile, so that
    /// messages to one node keep their order.
    pub(crate) fn with<R>(&self, f: impl FnOnce(&mut Core, Duration) -> R) -> R {
        let mut core = self.core();
        let result = f(&mut core, self.inner.started.elapsed());
        let out = core.take_out();
        if core.is_gathering() {
            self.inner.gathers.notify_one();
        }
        let mut sessions = self.sessions();
        for (node, message) in out {
            let Some(session) = sessions.get(&node) else {
                continue;
            };
            let message = Box::new(ToNode {
                message: Some(message),
            });
            if session.out.try_send(message).is_err() {
                tracing::warn!(%node, "does not read its session; cutting it off");
                sessions.remove(&node);
            }
        }
        result
    }

    async fn read(
        &self,
        node: NodeId,
        number: u64,
        mut from: Streaming<FromNode>,
        end: CancellationToken,
    ) {
        loop {
            let message = tokio::select! {
                message = from.message() => message,
                () = end.cancelled() => break,
            };
            match message {
                Ok(Some(FromNode {
                    message: Some(message),
                })) => {
                    if !self.with(|core, now| core.handle(now, node, message)) {
                        // It would wait for answers for ever: it shall begin anew.
                        tracing::warn!(%node, "is not known: its session is ended");
                        break;
                    }
                }
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(status) => {
                    tracing::debug!(%node, reason = status.message(), "session broke");
                    break;
                }
            }
        }
        // In one step, as a session's beginning is: another one of the node may begin just now.
        self.with(|core, now| {
            let mut sessions = self.sessions();
            if sessions.get(&node).is_none_or(|s| s.number == number) {
                sessions.remove(&node);
                drop(sessions);
                tracing::info!(%node, "session ended");
                core.disconnect(now, node);
            }
        });
    }
}

#[tonic::async_trait]
impl Scheduler for Service {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<ToNode, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<FromNode>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let shown = request
            .peer_certs()
            .and_then(|certs| certs.first().cloned());
        let mut from = request.into_inner();
        let first = tokio::time::timeout(Duration::from_secs(10), from.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("no hello"))??;
        let Some(from_node::Message::Hello(hello)) = first.and_then(|m| m.message) else {
            return Err(Status::invalid_argument(
                "the first message of a session is hello",
            ));
        };
        let (out, messages) = mpsc::channel(QUEUE);
        let number = fastrand::u64(..);
        let name = hello.name.clone();
        let id = NodeId::from_slice(&hello.node)
            .ok_or_else(|| Status::invalid_argument("the node's identity is not 16 bytes"))?;
        let role = hello.role();
        let who = match &self.inner.identified {
            Some(mesh) => Some(self.judge(mesh, shown.as_ref(), &id, role)?),
            None => None,
        };
        let end = CancellationToken::new();
        let session = Session {
            number,
            out,
            who,
            end: end.clone(),
        };
        let begun = self.with(|core, now| {
            // In place before the core speaks, so that its welcome arrives.
            self.sessions().insert(id, session);
            core.connect(now, hello)
        });
        let node = begun.map_err(|refused| Status::invalid_argument(refused.0))?;
        tracing::info!(%node, name, "session began");
        let service = self.clone();
        tokio::spawn(async move { service.read(node, number, from, end).await });
        let messages = ReceiverStream::new(messages).map(|message| Ok(*message));
        Ok(Response::new(Box::pin(messages)))
    }

    async fn inspect(
        &self,
        request: Request<rpc::InspectRequest>,
    ) -> Result<Response<rpc::InspectReply>, Status> {
        if let Some(mesh) = &self.inner.identified {
            let certs = request.peer_certs();
            let shown = certs.as_ref().and_then(|c| c.first());
            let who = shown.and_then(|cert| Who::of(cert).ok());
            let who = who.filter(|who| who.mesh == *mesh);
            let who = who.ok_or_else(|| Status::unauthenticated("no certificate of this mesh"))?;
            if self.inner.revoked.has(&who, None) {
                return Err(Status::permission_denied(format!(
                    "{} is revoked",
                    who.node
                )));
            }
        }
        Ok(Response::new(Self::inspect(self)))
    }
}
