//! Between the schedulers of one mesh: the one that writes the mesh's status is told what the others
//! counted.
//!
//! A caller shows a certificate of a scheduler. Nodes cannot have one: they are named after themselves,
//! and nobody is a scheduler but by the CA's key or a scheduler's own ServiceAccount. A plaintext mesh proves nothing to
//! anybody, here as elsewhere.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use dragonfly_proto::rpc::replicas_client::ReplicasClient;
use dragonfly_proto::rpc::replicas_server::{Replicas, ReplicasServer};
use dragonfly_proto::rpc::{self, Sketch};
use dragonfly_transport::Calls;
use tonic::transport::Endpoint;
use tonic::{Request, Response, Status};

/// Longest sketch taken, bytes: 64 failures and 16 policies of bounded texts are less.
const MAX_SKETCH: usize = 256 << 10;
const CONNECT: Duration = Duration::from_secs(3);
const ANSWER: Duration = Duration::from_secs(5);

/// Takes a sketch, or says who does.
pub type Sink = Arc<dyn Fn(Sketch) -> Result<(), String> + Send + Sync>;

/// The gRPC service of a replica.
#[derive(Clone)]
pub struct Service {
    sink: Sink,
    /// The mesh as certificates name it.
    identified: Option<String>,
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Replicas(identified: {:?})", self.identified)
    }
}

impl Service {
    /// Hands sketches to `sink`. `identified`: the mesh as certificates name it, behind mutual TLS,
    /// where callers have to show that they are its schedulers.
    #[must_use]
    pub fn server(sink: Sink, identified: Option<String>) -> ReplicasServer<Self> {
        ReplicasServer::new(Self { sink, identified }).max_decoding_message_size(MAX_SKETCH)
    }
}

#[tonic::async_trait]
impl Replicas for Service {
    async fn tell(&self, request: Request<Sketch>) -> Result<Response<rpc::Told>, Status> {
        if let Some(mesh) = &self.identified {
            let certs = request.peer_certs();
            let shown = certs.as_ref().and_then(|certs| certs.first());
            let shown = shown.ok_or_else(|| Status::unauthenticated("no certificate"))?;
            dragonfly_transport::is_scheduler(shown, mesh)
                .map_err(|_| Status::permission_denied("the certificate is no scheduler's"))?;
        }
        (self.sink)(request.into_inner()).map_err(Status::failed_precondition)?;
        Ok(Response::new(rpc::Told {}))
    }
}

/// Tells another replica.
///
/// # Errors
/// It cannot be reached, is no scheduler of this mesh, or is not the one that writes the status.
pub async fn tell(address: &str, tls: Option<Calls>, sketch: Sketch) -> Result<(), String> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|e| format!("{address}: {e}"))?
        .connect_timeout(CONNECT)
        .timeout(ANSWER);
    let connected = match tls {
        Some(tls) => endpoint.connect_with_connector(tls).await,
        None => endpoint.connect().await,
    };
    let channel =
        connected.map_err(|e| format!("{address}: {}", dragonfly_transport::reason(&e)))?;
    let told = ReplicasClient::new(channel).tell(sketch).await;
    told.map(|_| ())
        .map_err(|status| format!("{address}: {}", status.message()))
}
