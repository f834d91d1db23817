//! gRPC around the scheduler's decisions: one task a session that reads, one queue that writes.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dragonfly_proto::id::{ContentKey, NodeId};
use dragonfly_proto::rpc::scheduler_server::{Scheduler, SchedulerServer};
use dragonfly_proto::rpc::{self, FromNode, ToNode, from_node};
use tokio::sync::{Notify, mpsc};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
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
    /// Nodes must show a certificate of the mesh that names them.
    identified: bool,
}

struct Session {
    number: u64,
    out: mpsc::Sender<Result<ToNode, Status>>,
}

impl Service {
    /// Serves these decisions. `identified`: behind mutual TLS, so that nodes have to show a
    /// certificate that names them.
    #[must_use]
    pub fn new(core: Core, identified: bool) -> Self {
        let inner = Inner {
            core: Mutex::new(core),
            sessions: Mutex::default(),
            started: Instant::now(),
            gathers: Notify::new(),
            identified,
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
            let message = Ok(ToNode {
                message: Some(message),
            });
            if session.out.try_send(message).is_err() {
                tracing::warn!(%node, "does not read its session; cutting it off");
                sessions.remove(&node);
            }
        }
        result
    }

    async fn read(&self, node: NodeId, number: u64, mut from: Streaming<FromNode>) {
        loop {
            match from.message().await {
                Ok(Some(FromNode {
                    message: Some(message),
                })) => {
                    self.with(|core, now| core.handle(now, node, message));
                }
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(status) => {
                    tracing::debug!(%node, reason = status.message(), "session broke");
                    break;
                }
            }
        }
        let last = {
            let mut sessions = self.sessions();
            let mine = sessions.get(&node).is_none_or(|s| s.number == number);
            if mine {
                sessions.remove(&node);
            }
            mine
        };
        if last {
            tracing::info!(%node, "session ended");
            self.with(|core, now| core.disconnect(now, node));
        }
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
        if self.inner.identified {
            let cert = shown.ok_or_else(|| {
                Status::unauthenticated(
                    "no certificate: start the node with this mesh's join token",
                )
            })?;
            dragonfly_transport::is_node(&cert, &id).map_err(|_| {
                Status::unauthenticated(format!("the certificate is not node {id}'s"))
            })?;
        }
        // In place before the core speaks, so that its welcome arrives.
        self.sessions().insert(id, Session { number, out });
        let node = self
            .with(|core, now| core.connect(now, hello))
            .map_err(|refused| Status::invalid_argument(refused.0))?;
        tracing::info!(%node, name, "session began");
        let service = self.clone();
        tokio::spawn(async move { service.read(node, number, from).await });
        Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
    }

    async fn inspect(
        &self,
        request: Request<rpc::InspectRequest>,
    ) -> Result<Response<rpc::InspectReply>, Status> {
        if self.inner.identified && request.peer_certs().is_none_or(|c| c.is_empty()) {
            return Err(Status::unauthenticated("no certificate of this mesh"));
        }
        Ok(Response::new(Self::inspect(self)))
    }
}
