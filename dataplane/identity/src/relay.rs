//! A scheduler's Identity service where the operator gives certificates: requests by join token are
//! passed on, for who runs elsewhere reaches schedulers and not the operator.

use std::fmt;

use dragonfly_proto::rpc;
use dragonfly_proto::rpc::identity_server::{Identity, IdentityServer};
use tokio::sync::{Semaphore, watch};
use tonic::{Request, Response, Status};

/// Requests that are passed on at once.
const AT_ONCE: usize = 16;

/// Where certificates of a mesh come from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Issuer {
    /// `host:port`.
    pub address: String,
    /// The mesh's CA bundle, PEM.
    pub ca: String,
}

/// Passes requests on. It can answer none itself: it has no key.
pub struct Relay {
    mesh: String,
    issuer: watch::Receiver<Option<Issuer>>,
    turns: Semaphore,
}

impl fmt::Debug for Relay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Relay({})", self.mesh)
    }
}

impl Relay {
    /// The gRPC service of a mesh (its UID) whose issuer may move.
    #[must_use]
    pub fn server(mesh: String, issuer: watch::Receiver<Option<Issuer>>) -> IdentityServer<Self> {
        let relay = Self {
            mesh,
            issuer,
            turns: Semaphore::new(AT_ONCE),
        };
        IdentityServer::new(relay).max_decoding_message_size(64 << 10)
    }
}

#[tonic::async_trait]
impl Identity for Relay {
    async fn issue(
        &self,
        request: Request<rpc::IssueRequest>,
    ) -> Result<Response<rpc::IssueReply>, Status> {
        // Never closed.
        let _turn = self.turns.acquire().await.ok();
        let issuer = self.issuer.borrow().clone();
        let issuer = issuer.ok_or_else(|| {
            Status::unavailable("this mesh's bootstrap names no issuer of certificates")
        })?;
        let ask = request.into_inner();
        crate::enroll::relay(&issuer.address, &issuer.ca, &self.mesh, ask)
            .await
            .map(Response::new)
    }
}
