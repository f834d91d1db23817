//! Certificates for the parts of meshes: whoever shows a token of a mesh gets one that says what the
//! token says.
//!
//! A projected token is judged by the API server (TokenReview), for the audience of this one mesh: it
//! says the ServiceAccount, and so the role; and the pod and the node that it is bound to, and so the
//! identity. What the caller says of himself decides nothing. A join token (its secret part) is for who
//! runs elsewhere; schedulers pass that on.
//!
//! Invariants: no state but what a visit of a Distribution puts here, or a look at its Secrets where
//! another operator leads, so that every one answers alike; the CA's key leaves neither this process nor its Secret; a caller costs one bounded request
//! of the API server, and none where his token is for somebody else.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use dragonfly_identity::{Ca, IdentityError, OpeningKey, Role, Who, bundle, incoming, issuer_name};
use dragonfly_operator_core::Mesh;
use dragonfly_operator_core::names;
use dragonfly_proto::rpc;
use dragonfly_proto::rpc::identity_server::{Identity, IdentityServer};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use kube::Client;
use kube::api::{Api, PostParams};
use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use crate::Metrics;
use crate::ca::InUse;
use crate::context::said;
use crate::tokens::{self, Granted, Seeds, claims, joined, judge, shortened};

/// Callers whose tokens are judged at once; others wait.
const AT_ONCE: usize = 32;
/// How long the API server may take to judge a token.
const REVIEW: Duration = Duration::from_secs(5);
/// How long the issuer's own certificates are good, unless the CA is over before.
const OWN: Duration = Duration::from_secs(72 * 3600);
/// How long somebody who only looks at a mesh holds a certificate.
const VIEW: Duration = Duration::from_secs(3600);

/// A mesh, as far as its certificates go.
struct Known {
    of: tokens::Mesh,
    ca: Ca,
    /// What its seeds open by what is sealed.
    opening: Vec<OpeningKey>,
    /// DER, first the one that signs.
    trusted: Vec<Vec<u8>>,
    /// What the issuer shows to parts of this mesh, and since when.
    shown: Arc<CertifiedKey>,
    since: Instant,
    /// How long that is good; another one is made at a third.
    lifetime: Duration,
}

/// Gives certificates.
pub(crate) struct Issuer {
    meshes: RwLock<HashMap<String, Arc<Known>>>,
    client: Client,
    lifetime: Duration,
    turns: Semaphore,
    metrics: Arc<Metrics>,
}

impl std::fmt::Debug for Issuer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Issuer(..)")
    }
}

impl Issuer {
    pub(crate) fn new(client: Client, lifetime: Duration, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            meshes: RwLock::default(),
            client,
            lifetime,
            turns: Semaphore::new(AT_ONCE),
            metrics,
        })
    }

    /// Gives certificates of a mesh from now on.
    ///
    /// # Errors
    /// The CA gives the issuer itself none.
    pub(crate) fn serve(
        &self,
        mesh: &Mesh,
        in_use: InUse,
        join_secret: String,
    ) -> Result<(), String> {
        let before = self.mesh(&mesh.uid);
        let same = before.filter(|known| {
            known.ca.der() == in_use.ca.der() && known.since.elapsed() < known.lifetime / 3
        });
        let (shown, since, lifetime) = match same {
            Some(known) => (known.shown.clone(), known.since, known.lifetime),
            None => {
                let lifetime = in_use.ca.lifetime(OWN);
                (shown(&in_use.ca, &mesh.uid)?, Instant::now(), lifetime)
            }
        };
        let trusted = bundle(&in_use.bundle).map_err(|e| e.to_string())?;
        let of = tokens::Mesh {
            uid: mesh.uid.clone(),
            namespace: mesh.namespace.clone(),
            name: mesh.name.clone(),
            seeds: if mesh.seeds_are_slots() {
                Seeds::Slots
            } else if mesh.spec.seeds.storage.host_path.is_some() {
                Seeds::OfMachines
            } else {
                Seeds::OfPods
            },
            revoked: mesh.spec.security.revoked_nodes.clone(),
            join_secret,
        };
        let known = Known {
            of,
            trusted: trusted.into_iter().map(|der| der.to_vec()).collect(),
            ca: in_use.ca,
            opening: in_use.opening,
            shown,
            since,
            lifetime,
        };
        let mut meshes = self.meshes.write().unwrap_or_else(PoisonError::into_inner);
        meshes.insert(mesh.uid.clone(), Arc::new(known));
        Ok(())
    }

    /// Gives none of meshes that are gone.
    pub(crate) fn retain(&self, is_there: impl Fn(&str) -> bool) {
        let mut meshes = self.meshes.write().unwrap_or_else(PoisonError::into_inner);
        meshes.retain(|uid, _| is_there(uid));
    }

    /// Gives no more of this mesh.
    pub(crate) fn forget(&self, uid: &str) {
        let mut meshes = self.meshes.write().unwrap_or_else(PoisonError::into_inner);
        meshes.remove(uid);
    }

    fn mesh(&self, uid: &str) -> Option<Arc<Known>> {
        let meshes = self.meshes.read().unwrap_or_else(PoisonError::into_inner);
        meshes.get(uid).cloned()
    }

    /// Answers callers until stopped.
    pub(crate) async fn run(self: Arc<Self>, listener: TcpListener, stop: CancellationToken) {
        let config = match self.config() {
            Ok(config) => config,
            Err(error) => return tracing::error!(%error, "no certificates are given"),
        };
        let callers = incoming(
            listener,
            move || Some(config.clone()),
            |why| tracing::debug!(why, "refused a caller"),
        );
        let service = IdentityServer::new(Service(self)).max_decoding_message_size(64 << 10);
        let serving = Server::builder()
            .timeout(Duration::from_secs(10))
            .http2_keepalive_interval(Some(Duration::from_secs(20)))
            .add_service(service)
            .serve_with_incoming_shutdown(callers, stop.cancelled_owned());
        if let Err(error) = serving.await {
            tracing::error!(%error, "no certificates are given any more");
        }
    }

    fn config(self: &Arc<Self>) -> Result<Arc<ServerConfig>, rustls::Error> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(Shown(self.clone())));
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }

    async fn answer(&self, ask: &rpc::IssueRequest) -> Result<rpc::IssueReply, Status> {
        let known = self.mesh(&ask.mesh).ok_or_else(|| {
            // It may be there in a moment: this operator may just have started.
            Status::unavailable(format!(
                "mesh {}: this operator gives no certificates of it (yet)",
                shortened(&ask.mesh)
            ))
        })?;
        let granted = if ask.token.contains('.') {
            self.reviewed(&known, ask).await?
        } else {
            joined(&known.of, ask)?
        };
        let lifetime = match granted.who.role {
            Role::Viewer => VIEW,
            _ => self.lifetime,
        };
        let cert = known
            .ca
            .issue_to(&ask.csr, granted.names, &granted.who, lifetime)
            .map_err(|error| match error {
                // It will be replaced, and then there is one.
                IdentityError::Over => Status::unavailable(error.to_string()),
                _ => Status::invalid_argument(error.to_string()),
            })?;
        tracing::info!(who = %granted.who, "issued a certificate");
        self.metrics.issued(granted.who.role.as_str());
        Ok(rpc::IssueReply {
            chain: vec![cert.to_vec()],
            roots: known.trusted.clone(),
            node: granted.node.map(|id| id.0.to_vec()).unwrap_or_default(),
            lifetime: known.ca.lifetime(lifetime).as_secs().max(1),
            sealing: known.ca.opening().public().to_vec(),
            opening: match granted.who.role {
                Role::Seed => known.opening.iter().map(|k| k.secret().to_vec()).collect(),
                _ => vec![],
            },
        })
    }

    async fn reviewed(&self, known: &Known, ask: &rpc::IssueRequest) -> Result<Granted, Status> {
        let audience = names::audience(&known.of.uid);
        let claims = claims(&ask.token).map_err(Status::unauthenticated)?;
        if !claims.audiences.contains(&audience) {
            return Err(Status::permission_denied(format!(
                "the token is for {}, and this mesh takes tokens for {audience} alone",
                shortened(&claims.audiences.join(", "))
            )));
        }
        // Never closed.
        let _turn = self.turns.acquire().await.ok();
        let review = TokenReview {
            spec: TokenReviewSpec {
                audiences: Some(vec![audience.clone()]),
                token: Some(ask.token.clone()),
            },
            ..TokenReview::default()
        };
        let reviews: Api<TokenReview> = Api::all(self.client.clone());
        let params = PostParams::default();
        let reviewed = tokio::time::timeout(REVIEW, reviews.create(&params, &review)).await;
        let reviewed = reviewed
            .map_err(|_| Status::unavailable("the API server takes too long to judge a token"))?
            .map_err(|e| Status::unavailable(format!("a token cannot be judged: {}", said(&e))))?;
        let status = reviewed.status.unwrap_or_default();
        judge(&known.of, &audience, &status, ask.role()).map_err(|why| {
            let why = match claims.expires {
                Some(end) if end < crate::unix() && status.authenticated != Some(true) => {
                    format!("{why}; it expired {} s ago", crate::unix() - end)
                }
                _ => why,
            };
            Status::permission_denied(why)
        })
    }
}

/// A certificate for the issuer itself.
fn shown(ca: &Ca, mesh: &str) -> Result<Arc<CertifiedKey>, String> {
    let key = rcgen::KeyPair::generate().map_err(|e| e.to_string())?;
    let who = Who {
        mesh: mesh.to_owned(),
        role: Role::Issuer,
        node: "operator".to_owned(),
    };
    let names = vec![issuer_name(mesh)];
    let cert = ca
        .issue(&key, names, &who, OWN)
        .map_err(|e| e.to_string())?;
    let der = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der())?;
    let key =
        rustls::crypto::aws_lc_rs::sign::any_supported_type(&der).map_err(|e| e.to_string())?;
    Ok(Arc::new(CertifiedKey::new(vec![cert], key)))
}

/// Which certificate a caller is shown: that of the mesh that he calls.
struct Shown(Arc<Issuer>);

impl std::fmt::Debug for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Shown(..)")
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let called = hello.server_name()?;
        let uid = called.split('.').next()?;
        let known = self.0.mesh(uid)?;
        (called == issuer_name(uid)).then(|| known.shown.clone())
    }
}

struct Service(Arc<Issuer>);

#[tonic::async_trait]
impl Identity for Service {
    async fn issue(
        &self,
        request: Request<rpc::IssueRequest>,
    ) -> Result<Response<rpc::IssueReply>, Status> {
        let ask = request.get_ref();
        let answer = self.0.answer(ask).await;
        if let Err(status) = &answer {
            self.0.metrics.issued("refused");
            let (mesh, why) = (shortened(&ask.mesh), status.message());
            tracing::warn!(mesh, why, "no certificate");
        }
        answer.map(Response::new)
    }
}
