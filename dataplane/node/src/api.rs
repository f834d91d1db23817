//! What a node's clients ask of it: the `Node` service on a unix socket.
//!
//! * `Download`: the content comes to this node, the client hears how far it is. `Read`: the bytes,
//!   in order, while they come. Both end with `done` or `failure`, or the stream breaks: a client
//!   that loses its node asks again and loses nothing.
//! * Who may connect is the socket's mode. A client names no isolation domain: its credentials make
//!   one (`download.rs`).
//! * Each call is a task of tokio that ends with its client.
//! * Connections are bounded, and those of clients that are gone end: see `callers`.
//! * Clients have threads of their own: however many there are, the node's part in the mesh goes on
//!   beside them.
//!
//! What those two calls do is in `delivery`. The calls about what the node holds are in `inventory`,
//! taking content from clients in `import`.

use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use dragonfly_proto::rpc::node_server::{Node as NodeApi, NodeServer};
use dragonfly_proto::rpc::{
    self, DownloadEvent, ReadChunk, download_event, failure::Code, read_chunk,
};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::UdsConnectInfo;
use tonic::{Request, Response, Status, Streaming};

use crate::callers::{callers, most_connections};
use crate::delivery::{self, Ask};
use crate::inventory::Inventory;
use crate::node::Node;
use crate::side::{self, Tickets};
pub use crate::socket::ApiError;
use crate::socket::Bound;

/// Messages that may wait for a client that reads slowly.
const QUEUE: usize = 4;
/// See [`ApiOptions::patience`].
const PATIENCE: Duration = Duration::from_secs(30);
/// Calls one connection may have under way.
const STREAMS: u32 = 256;
const MAX_HEADERS: usize = 64;
const MAX_TEXT: usize = 16 << 10;

/// Where and for whom the API is.
#[derive(Debug, Clone)]
pub struct ApiOptions {
    /// The socket; the side channel is beside it, `.side` added to its name.
    pub socket: PathBuf,
    /// Its mode: 0660 for its owner's group, 0666 for everybody on the machine.
    pub mode: u32,
    /// Connections that clients may have in all; one user has half of them at most.
    pub connections: usize,
    /// A client that does not say its first words for so long, or does not answer a ping, has gone. Each is
    /// pinged as often. Who waits for bytes answers, however long they take.
    pub patience: Duration,
}

impl ApiOptions {
    /// A socket for its owner and group.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
            mode: 0o660,
            connections: most_connections(),
            patience: PATIENCE,
        }
    }

    fn side(&self) -> PathBuf {
        let mut name = self.socket.file_name().unwrap_or_default().to_owned();
        name.push(".side");
        self.socket.with_file_name(name)
    }
}

/// The API of a node, listening.
pub struct Api {
    options: ApiOptions,
    api: Bound,
    side: Bound,
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Api({})", self.api.path.display())
    }
}

/// What all calls share.
pub(crate) struct Shared {
    pub(crate) node: Arc<Node>,
    pub(crate) tickets: Arc<Tickets>,
    pub(crate) inventory: Inventory,
    pub(crate) side: PathBuf,
    stop: CancellationToken,
}

impl Api {
    /// Takes the sockets; they answer once [`Api::run`] runs.
    ///
    /// # Errors
    /// Another process listens there, or the system refuses.
    pub async fn bind(node: Arc<Node>, options: &ApiOptions) -> Result<Self, ApiError> {
        let api = Bound::at(&options.socket, options.mode).await?;
        let side = Bound::at(&options.side(), options.mode).await?;
        let shared = Shared {
            stop: node.stop.child_token(),
            inventory: Inventory::new(&node),
            node,
            tickets: Arc::default(),
            side: side.path.clone(),
        };
        Ok(Self {
            options: options.clone(),
            api,
            side,
            shared: Arc::new(shared),
        })
    }

    /// Serves until `stop`, or until the node shuts down. Calls under way break off: their clients
    /// ask again.
    ///
    /// # Errors
    /// The server broke.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), ApiError> {
        let (Some(api), Some(side)) = (self.api.listener.take(), self.side.listener.take()) else {
            return Ok(());
        };
        let _end_calls = self.shared.stop.clone().drop_guard();
        let threads = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(crate::threads())
            .thread_name("clients")
            .enable_all()
            .build()
            .map_err(ApiError::Threads)?;
        let (ended, outcome) = oneshot::channel();
        let (shared, options) = (self.shared.clone(), self.options.clone());
        // A runtime waits for its threads when it goes: not in one of another. The sockets' files go
        // with this call, which ends with the node, not with that thread.
        std::thread::Builder::new()
            .name("clients".to_owned())
            .spawn(move || {
                let served = threads.block_on(shared.serve(&options, api, side, stop));
                threads.shutdown_timeout(Duration::from_secs(1));
                let _ = ended.send(served);
            })
            .map_err(ApiError::Threads)?;
        outcome.await.unwrap_or(Ok(()))
    }
}

impl Shared {
    async fn serve(
        self: Arc<Self>,
        options: &ApiOptions,
        api: UnixListener,
        side: UnixListener,
        stop: CancellationToken,
    ) -> Result<(), ApiError> {
        let path = &options.socket;
        let listen = |l: UnixListener| {
            tokio::net::UnixListener::from_std(l).map_err(|e| ApiError::Listen(path.clone(), e))
        };
        let (api, side) = (listen(api)?, listen(side)?);
        let over = self.stop.clone();
        let service =
            NodeServer::new(Service(self.clone())).max_decoding_message_size(rpc::MAX_MESSAGE);
        let server = tonic::transport::Server::builder()
            .max_concurrent_streams(STREAMS)
            .http2_keepalive_interval(Some(options.patience))
            .http2_keepalive_timeout(Some(options.patience))
            .initial_stream_window_size(2 << 20)
            .initial_connection_window_size(8 << 20)
            .add_service(service)
            .serve_with_incoming_shutdown(
                callers(api, options.connections, options.patience),
                over.clone().cancelled_owned(),
            );
        tracing::info!(socket = %path.display(), "clients are served");
        let side = side::serve(side, self.tickets.clone(), over.clone());
        let chores = self.chores();
        let end = async {
            tokio::select! {
                () = stop.cancelled() => over.cancel(),
                () = over.cancelled() => {}
            }
            // Connections of clients that do not let go are not waited for.
            tokio::time::sleep(Duration::from_secs(2)).await;
        };
        tokio::select! {
            served = server => Ok(served?),
            () = async { tokio::join!(side, chores); futures::future::pending().await } => Ok(()),
            () = end => Ok(()),
        }
    }

    async fn chores(&self) {
        let mut every = tokio::time::interval(Duration::from_millis(500));
        loop {
            tokio::select! {
                _ = every.tick() => {}
                () = self.stop.cancelled() => return,
            }
            self.tickets.expire(Instant::now());
            self.inventory.delete_deferred(&self.node);
        }
    }
}

pub(crate) fn invalid(text: impl Into<String>) -> rpc::Failure {
    rpc::Failure::new(Code::Invalid, text)
}

fn mesh_is_gone() -> rpc::Failure {
    let text = "the mesh that this machine's node belonged to was deleted; get it from its origin, or \
                again when there is a mesh";
    rpc::Failure::new(Code::NoSource, text)
}

/// A source as a client may name it.
pub(crate) fn checked_source(source: Option<rpc::Source>) -> Result<rpc::Source, rpc::Failure> {
    let mut source = source.ok_or_else(|| invalid("the request names no source"))?;
    let long = source.url.len() > MAX_TEXT
        || source.headers.len() > MAX_HEADERS
        || source
            .headers
            .iter()
            .any(|h| h.name.len() + h.value.len() > MAX_TEXT)
        || source.filtered_query.len() > MAX_HEADERS
        || source.filtered_query.iter().any(|q| q.len() > MAX_TEXT);
    if long {
        return Err(invalid(format!(
            "the source is too long: at most {MAX_HEADERS} headers of {MAX_TEXT} bytes"
        )));
    }
    // Nobody chooses a domain: that would be choosing whose content to read.
    source.domain.clear();
    source.sealed = None;
    source.apart = false;
    source.digest = source.digest.to_ascii_lowercase();
    Ok(source)
}

/// The user at the other end.
fn uid<T>(request: &Request<T>) -> Option<u32> {
    let info = request.extensions().get::<UdsConnectInfo>()?;
    info.peer_cred.map(|c| c.uid())
}

/// Clones share everything.
#[derive(Clone)]
struct Service(Arc<Shared>);

type Events<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Service {
    /// Runs a call as a task that ends with its client, with the node, or by itself.
    fn stream<T, F>(
        &self,
        failed: fn(rpc::Failure) -> T,
        call: impl FnOnce(Arc<Shared>, mpsc::Sender<Result<T, Status>>) -> F,
    ) -> Response<Events<T>>
    where
        T: Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let (out, events) = mpsc::channel(QUEUE);
        let call = call(self.0.clone(), out.clone());
        let shared = self.0.clone();
        tokio::spawn(async move {
            let _counted = Counted::new(&shared.node);
            let is_over = tokio::select! {
                () = call => false,
                () = out.closed() => false,
                () = shared.stop.cancelled() => true,
            };
            if is_over {
                shared.node.last_word().await;
                // One that comes back is waited for; one whose mesh is gone is not.
                let last = if shared.node.is_retired() {
                    Ok(failed(mesh_is_gone()))
                } else {
                    Err(Status::unavailable("the node is shutting down"))
                };
                let _ = out.send(last).await;
            }
        });
        Response::new(Box::pin(ReceiverStream::new(events)))
    }
}

/// A client's call, counted for as long as this lives.
struct Counted(Arc<Node>);

impl Counted {
    fn new(node: &Arc<Node>) -> Self {
        node.clients.fetch_add(1, Ordering::Relaxed);
        Self(node.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.clients.fetch_sub(1, Ordering::Relaxed);
    }
}

#[tonic::async_trait]
impl NodeApi for Service {
    type DownloadStream = Events<DownloadEvent>;
    type ReadStream = Events<ReadChunk>;

    async fn download(
        &self,
        request: Request<rpc::DownloadRequest>,
    ) -> Result<Response<Self::DownloadStream>, Status> {
        let uid = uid(&request);
        let ask = Ask::check(request.into_inner());
        let failed = |failure| DownloadEvent {
            event: Some(download_event::Event::Failure(failure)),
        };
        Ok(self.stream(failed, move |shared, out| async move {
            let outcome = match ask {
                Ok(ask) => delivery::download(&shared, &ask, uid, &out).await,
                Err(failure) => Err(failure),
            };
            let event = match outcome {
                Ok(done) => DownloadEvent {
                    event: Some(download_event::Event::Done(done)),
                },
                Err(failure) => failed(failure),
            };
            let _ = out.send(Ok(event)).await;
        }))
    }

    async fn read(
        &self,
        request: Request<rpc::DownloadRequest>,
    ) -> Result<Response<Self::ReadStream>, Status> {
        let ask = Ask::check(request.into_inner());
        let failed = |failure| ReadChunk {
            chunk: Some(read_chunk::Chunk::Failure(failure)),
        };
        Ok(self.stream(failed, move |shared, out| async move {
            let outcome = match ask {
                Ok(ask) => delivery::read(&shared, &ask, &out).await,
                Err(failure) => Err(failure),
            };
            let chunk = match outcome {
                Ok(done) => ReadChunk {
                    chunk: Some(read_chunk::Chunk::Done(done)),
                },
                Err(failure) => failed(failure),
            };
            let _ = out.send(Ok(chunk)).await;
        }))
    }

    async fn stat(
        &self,
        request: Request<rpc::StatRequest>,
    ) -> Result<Response<rpc::StatReply>, Status> {
        Ok(Response::new(self.0.stat(request.into_inner()).await))
    }

    async fn import(
        &self,
        request: Request<Streaming<rpc::ImportChunk>>,
    ) -> Result<Response<rpc::ImportReply>, Status> {
        let reply = tokio::select! {
            reply = self.0.import(request.into_inner()) => reply?,
            () = self.0.stop.cancelled() => {
                return Err(Status::unavailable("the node is shutting down"));
            }
        };
        Ok(Response::new(reply))
    }

    async fn delete(
        &self,
        request: Request<rpc::DeleteRequest>,
    ) -> Result<Response<rpc::DeleteReply>, Status> {
        Ok(Response::new(self.0.delete(request.into_inner()).await))
    }

    async fn list(&self, _: Request<rpc::ListRequest>) -> Result<Response<rpc::ListReply>, Status> {
        Ok(Response::new(self.0.list().await))
    }

    async fn status(
        &self,
        _: Request<rpc::StatusRequest>,
    ) -> Result<Response<rpc::StatusReply>, Status> {
        Ok(Response::new(self.0.status()))
    }
}
