//! The connection to the node, and the small calls.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dragonfly_proto::rpc::node_client::NodeClient;
use dragonfly_proto::rpc::{self, download_event};
use futures::{Stream, StreamExt};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::error::{Error, Result};
use crate::reader::Reader;
use crate::request::Request;

/// Lists may be long.
const MAX_REPLY: usize = 64 << 20;
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// A node's client; cheap to clone. It connects again by itself.
#[derive(Debug, Clone)]
pub struct Client {
    socket: Arc<PathBuf>,
    grpc: NodeClient<Channel>,
    patience: Duration,
}

/// What happens in a download.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Event {
    /// The content is known. Comes again when it changed, or the node restarted, meanwhile.
    Started(rpc::Started),
    /// So far.
    Progress(rpc::Progress),
    /// The node is away; asking again.
    Reconnecting,
    /// The node has all; the file is being made from that.
    Writing {
        /// Bytes of the file so far.
        written: u64,
        /// Bytes it will have.
        total: u64,
    },
    /// Bytes that the node holds by now. Comes only to who writes a file.
    Held(rpc::Held),
    /// All is there.
    Done(rpc::Done),
}

impl Client {
    /// Connects to the node behind a socket.
    ///
    /// # Errors
    /// [`Error::Unavailable`]: nobody listens there, or this user may not.
    pub async fn connect(socket: impl AsRef<Path>) -> Result<Self> {
        let socket = Arc::new(socket.as_ref().to_owned());
        // One connection to see that somebody is there: the reason is clearer than through gRPC.
        let unavailable = |reason: String| Error::Unavailable {
            socket: (*socket).clone(),
            reason,
        };
        UnixStream::connect(&*socket)
            .await
            .map_err(|e| unavailable(e.to_string()))?;
        let path = socket.clone();
        // The authority is for form: the socket says where.
        let channel = Endpoint::from_static("http://node.localhost")
            .initial_stream_window_size(2 << 20)
            .initial_connection_window_size(8 << 20)
            .connect_with_connector_lazy(tower::service_fn(move |_| {
                let path = path.clone();
                async move { UnixStream::connect(&*path).await.map(TokioIo::new) }
            }));
        let grpc = NodeClient::new(channel).max_decoding_message_size(MAX_REPLY);
        Ok(Self {
            socket,
            grpc,
            patience: Duration::from_secs(60),
        })
    }

    /// How long a download waits for a node that went away to come back; 60 s unless set: a pod that is
    /// replaced is back by then.
    #[must_use]
    pub const fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// The socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    pub(crate) fn grpc(&self) -> NodeClient<Channel> {
        self.grpc.clone()
    }

    pub(crate) fn error(&self, status: &Status) -> Error {
        if is_lost(status) {
            let reason = status.message().to_owned();
            return Error::Unavailable {
                socket: (*self.socket).clone(),
                reason,
            };
        }
        Error::Refused(status.message().to_owned())
    }

    pub(crate) const fn patience(&self) -> Patience {
        Patience {
            limit: self.patience,
            since: None,
            pause: PAUSE_MIN,
        }
    }

    /// Has the node get content, and tells how it goes. When the node restarts meanwhile it is asked
    /// again. Dropping the stream ends this client's interest.
    pub fn download(
        &self,
        request: &Request,
        want_descriptor: bool,
    ) -> impl Stream<Item = Result<Event>> + Send + 'static + use<> {
        self.downloading(request.message(request.range, want_descriptor))
    }

    pub(crate) fn downloading(
        &self,
        message: rpc::DownloadRequest,
    ) -> impl Stream<Item = Result<Event>> + Send + 'static + use<> {
        let state = Downloading {
            client: self.clone(),
            message,
            patience: self.patience(),
            events: None,
            over: false,
        };
        futures::stream::unfold(state, |mut state| async move {
            let event = state.next().await?;
            Some((event, state))
        })
    }

    /// The bytes in order while they come.
    #[must_use]
    pub fn read(&self, request: &Request) -> Reader {
        Reader::new(self.clone(), request.clone())
    }

    /// What the node knows of a source without asking the origin; `None` when it holds nothing.
    ///
    /// # Errors
    /// The node is not there, or does not understand the source.
    pub async fn stat(&self, request: &Request) -> Result<Option<rpc::TaskStat>> {
        self.stat_by(rpc::StatRequest {
            source: Some(request.source()),
            ..Default::default()
        })
        .await
    }

    /// Like [`Client::stat`], by the task's id.
    ///
    /// # Errors
    /// As [`Client::stat`].
    pub async fn stat_task(&self, task: &str) -> Result<Option<rpc::TaskStat>> {
        self.stat_by(rpc::StatRequest {
            task: task.to_owned(),
            source: None,
        })
        .await
    }

    async fn stat_by(&self, ask: rpc::StatRequest) -> Result<Option<rpc::TaskStat>> {
        let reply = self
            .grpc()
            .stat(ask)
            .await
            .map_err(|s| self.error(&s))?
            .into_inner();
        match reply.failure {
            Some(f) if f.code() == rpc::failure::Code::NotFound => Ok(None),
            Some(failure) => Err(Error::Node(failure)),
            None => Ok(reply.task),
        }
    }

    /// Has the node delete what it holds of a source. True: somebody uses it, and it goes when the
    /// last one is done.
    ///
    /// # Errors
    /// The node is not there, or holds nothing of it.
    pub async fn delete(&self, request: &Request) -> Result<bool> {
        self.delete_by(rpc::DeleteRequest {
            source: Some(request.source()),
            ..Default::default()
        })
        .await
    }

    /// Like [`Client::delete`], by the task's id.
    ///
    /// # Errors
    /// As [`Client::delete`].
    pub async fn delete_task(&self, task: &str) -> Result<bool> {
        self.delete_by(rpc::DeleteRequest {
            task: task.to_owned(),
            source: None,
        })
        .await
    }

    async fn delete_by(&self, ask: rpc::DeleteRequest) -> Result<bool> {
        let reply = self
            .grpc()
            .delete(ask)
            .await
            .map_err(|s| self.error(&s))?
            .into_inner();
        match reply.failure {
            Some(failure) => Err(Error::Node(failure)),
            None => Ok(reply.deferred),
        }
    }

    /// All that the node holds, latest used first.
    ///
    /// # Errors
    /// The node is not there.
    pub async fn list(&self) -> Result<Vec<rpc::TaskStat>> {
        let reply = self
            .grpc()
            .list(rpc::ListRequest {})
            .await
            .map_err(|s| self.error(&s))?;
        Ok(reply.into_inner().tasks)
    }

    /// The node itself.
    ///
    /// # Errors
    /// The node is not there.
    pub async fn status(&self) -> Result<rpc::StatusReply> {
        let reply = self
            .grpc()
            .status(rpc::StatusRequest {})
            .await
            .map_err(|s| self.error(&s))?;
        Ok(reply.into_inner())
    }
}

/// Whether the call broke because the node, or the way to it, went away.
pub(crate) fn is_lost(status: &Status) -> bool {
    !matches!(
        status.code(),
        Code::InvalidArgument
            | Code::Unimplemented
            | Code::ResourceExhausted
            | Code::OutOfRange
            | Code::PermissionDenied
            | Code::Unauthenticated
    )
}

/// For how long to ask again a node that is away.
pub(crate) struct Patience {
    limit: Duration,
    since: Option<Instant>,
    pause: Duration,
}

impl Patience {
    /// Something came: the next loss has all the time again.
    pub(crate) const fn renew(&mut self) {
        self.since = None;
        self.pause = PAUSE_MIN;
    }

    /// Pauses before the next attempt; false when it is time to give up.
    pub(crate) async fn wait(&mut self) -> bool {
        let since = *self.since.get_or_insert_with(Instant::now);
        if since.elapsed() >= self.limit {
            return false;
        }
        tokio::time::sleep(self.pause.mul_f64(0.5 + fastrand::f64())).await;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        true
    }
}

struct Downloading {
    client: Client,
    message: rpc::DownloadRequest,
    patience: Patience,
    events: Option<tonic::Streaming<rpc::DownloadEvent>>,
    over: bool,
}

impl Downloading {
    async fn next(&mut self) -> Option<Result<Event>> {
        if self.over {
            return None;
        }
        let event = self.step().await;
        self.over = matches!(event, Ok(Event::Done(_)) | Err(_));
        Some(event)
    }

    async fn step(&mut self) -> Result<Event> {
        loop {
            let events = match &mut self.events {
                Some(events) => events,
                none => match self.client.grpc.download(self.message.clone()).await {
                    Ok(events) => none.insert(events.into_inner()),
                    Err(status) => {
                        self.lost(&status).await?;
                        continue;
                    }
                },
            };
            let event = match events.next().await {
                Some(Ok(event)) => event.event,
                Some(Err(status)) => {
                    self.lost(&status).await?;
                    return Ok(Event::Reconnecting);
                }
                None => {
                    self.lost(&Status::unavailable("the node ended the call"))
                        .await?;
                    return Ok(Event::Reconnecting);
                }
            };
            self.patience.renew();
            match event {
                Some(download_event::Event::Started(e)) => return Ok(Event::Started(e)),
                Some(download_event::Event::Progress(e)) => return Ok(Event::Progress(e)),
                Some(download_event::Event::Held(e)) => return Ok(Event::Held(e)),
                Some(download_event::Event::Done(e)) => return Ok(Event::Done(e)),
                Some(download_event::Event::Failure(f)) => return Err(Error::Node(f)),
                // Of a later release.
                None => {}
            }
        }
    }

    async fn lost(&mut self, status: &Status) -> Result<()> {
        self.events = None;
        if is_lost(status) && self.patience.wait().await {
            tracing::debug!(reason = status.message(), "asking the node again");
            return Ok(());
        }
        Err(self.client.error(status))
    }
}
