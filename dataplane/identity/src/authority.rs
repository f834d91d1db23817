//! The mesh's authority: it says who is a node, and signs what schedulers promise.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use dragonfly_proto::id::NodeId;
use dragonfly_proto::rpc::identity_server::{Identity, IdentityServer};
use dragonfly_proto::rpc::{self, Role};
use dragonfly_proto::sign::{KeyError, SigningKey};
use dragonfly_transport::{Role as As, Who, node_name};
use rcgen::KeyPair;
use tonic::{Request, Response, Status};

use crate::ca::Ca;
use crate::enroll::Credentials;
use crate::{JoinToken, SCHEDULER_NAME};

/// How long a node's certificate holds; it is renewed at a third.
pub(crate) const LIFETIME: Duration = Duration::from_secs(72 * 3600);
/// How long somebody who only looks holds a certificate.
pub(crate) const VIEW: Duration = Duration::from_secs(3600);
const CA_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// What went wrong with keys, certificates or tokens.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file of the authority.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A certificate could not be made or read.
    #[error("certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// A signing key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A key for what is sealed.
    #[error(transparent)]
    Seal(#[from] dragonfly_transport::SealError),
    /// TLS would not take it.
    #[error(transparent)]
    Tls(#[from] dragonfly_transport::SecurityError),
    /// The token is none.
    #[error(
        "this is no join token: it begins with dfj1. and is what the scheduler wrote to its join-token file"
    )]
    Token,
    /// A scheduler said no, or is another mesh's: asking again changes nothing.
    #[error("turned away: {0}")]
    Refused(String),
    /// No scheduler answered; one may soon.
    #[error("no scheduler answers: {0}")]
    Unreachable(String),
    /// What should be a CA's certificate is none.
    #[error("the CA's certificate: {0}")]
    Ca(rustls::pki_types::pem::Error),
    /// A CA's certificate and key that cannot be used together.
    #[error("the CA's certificate and key: {0}")]
    Mismatch(String),
    /// A CA that is past its end signs nothing.
    #[error("the mesh's CA is over: it has to be replaced before it signs anything")]
    Over,
    /// What another CA made of a request for a CA is of no use.
    #[error("the certificate that was signed {0}")]
    Signed(String),
    /// What should be a signing request is none, or another key signed it.
    #[error("the signing request: {0}")]
    Request(String),
}

/// The CA, the signing key and the join secret of a mesh.
pub struct Authority {
    ca_pem: String,
    ca_key: String,
    /// Signs tickets and epochs.
    pub signing: Arc<SigningKey>,
    secret: String,
    mesh: String,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Authority({})", self.mesh)
    }
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, IdentityError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(IdentityError::File {
            path: path.to_owned(),
            source,
        }),
    }
}

/// Writes a secret: whole or not at all, for its owner only.
fn write(path: &Path, bytes: &[u8]) -> Result<(), IdentityError> {
    let file = |source| IdentityError::File {
        path: path.to_owned(),
        source,
    };
    let temp = path.with_extension("new");
    let mut f = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temp)
        .map_err(file)?;
    f.write_all(bytes)
        .and_then(|()| f.sync_all())
        .map_err(file)?;
    fs::rename(&temp, path).map_err(file)
}

/// The key that signs tickets and epochs, of a directory that may hold nothing else.
///
/// # Errors
/// There is none, or it is no key.
pub fn signing_key(dir: &Path) -> Result<SigningKey, IdentityError> {
    let path = dir.join("authority.key");
    let bytes = read(&path)?.ok_or_else(|| IdentityError::File {
        path,
        source: std::io::ErrorKind::NotFound.into(),
    })?;
    Ok(SigningKey::from_pkcs8(&bytes)?)
}

impl Authority {
    /// The authority kept in a directory; made there the first time.
    pub fn load_or_create(dir: &Path, mesh: &str) -> Result<Self, IdentityError> {
        let file = |source| IdentityError::File {
            path: dir.to_owned(),
            source,
        };
        fs::create_dir_all(dir).map_err(file)?;
        let at = |name: &str| dir.join(name);
        let (ca_pem, ca_key) = match (read(&at("ca.pem"))?, read(&at("ca.key"))?) {
            (Some(cert), Some(key)) => (text(&cert), text(&key)),
            // Nodes trust that certificate: a new CA in its place would turn every one of them away.
            (Some(_), None) => {
                return Err(IdentityError::File {
                    path: at("ca.key"),
                    source: std::io::ErrorKind::NotFound.into(),
                });
            }
            (None, _) => {
                let (cert, key) = Ca::generate(mesh, CA_LIFETIME)?;
                write(&at("ca.key"), key.as_bytes())?;
                write(&at("ca.pem"), cert.as_bytes())?;
                (text(cert.as_bytes()), text(key.as_bytes()))
            }
        };
        let signing = match read(&at("authority.key"))? {
            Some(bytes) => SigningKey::from_pkcs8(&bytes)?,
            None => {
                let (key, bytes) = SigningKey::generate()?;
                write(&at("authority.key"), &bytes)?;
                key
            }
        };
        let secret = match read(&at("join.secret"))? {
            Some(bytes) => text(&bytes),
            None => {
                let mut secret = [0; 32];
                aws_lc_rs::rand::fill(&mut secret).map_err(|_| KeyError::Random)?;
                let hex: String = secret.iter().map(|b| format!("{b:02x}")).collect();
                write(&at("join.secret"), hex.as_bytes())?;
                hex
            }
        };
        let authority = Self {
            ca_pem,
            ca_key,
            signing: Arc::new(signing),
            secret,
            mesh: mesh.to_owned(),
        };
        // Keys that somebody else keeps, such as a mounted Secret, cannot be written, and need not be.
        let token = authority.token();
        let revealed = token.reveal();
        if read(&at("join-token"))?.is_none_or(|kept| text(&kept) != revealed) {
            write(&at("join-token"), revealed.as_bytes())?;
        }
        Ok(authority)
    }

    /// What a node joins by.
    #[must_use]
    pub fn token(&self) -> JoinToken {
        JoinToken {
            ca: self.ca_pem.clone(),
            secret: self.secret.clone(),
        }
    }

    fn ca_itself(&self) -> Result<Ca, IdentityError> {
        Ca::read(&self.ca_pem, &self.ca_key)
    }

    /// Certificate and key for a scheduler, PEM.
    pub fn scheduler(&self, name: &str) -> Result<(String, String), IdentityError> {
        let key = KeyPair::generate()?;
        let who = Who {
            mesh: self.mesh.clone(),
            role: As::Scheduler,
            node: name.to_owned(),
        };
        // As long as the CA: who holds the CA's key gains nothing by renewing, and a scheduler whose
        // certificate ran out while it runs would lose every node.
        let names = vec![SCHEDULER_NAME.to_owned()];
        let cert = self.ca_itself()?.issue(&key, names, &who, CA_LIFETIME)?;
        Ok((
            crate::enroll::pem("CERTIFICATE", &cert),
            key.serialize_pem(),
        ))
    }

    /// What a scheduler shows others.
    ///
    /// # Errors
    /// The CA cannot be used.
    pub fn credentials(&self, name: &str) -> Result<Credentials, IdentityError> {
        let (cert, key) = self.scheduler(name)?;
        Credentials::read(&cert, &key, &self.ca_pem)
    }

    /// The CA's certificate, PEM.
    #[must_use]
    pub fn ca(&self) -> &str {
        &self.ca_pem
    }

    /// The gRPC service that nodes enroll at.
    pub fn server(self: &Arc<Self>) -> IdentityServer<Service> {
        IdentityServer::new(Service(self.clone())).max_decoding_message_size(64 << 10)
    }

    fn answer(&self, ask: &rpc::IssueRequest) -> Result<rpc::IssueReply, Status> {
        let same = aws_lc_rs::constant_time::verify_slices_are_equal(
            ask.token.as_bytes(),
            self.secret.as_bytes(),
        );
        if same.is_err() {
            return Err(Status::permission_denied(
                "the join token is not this mesh's",
            ));
        }
        let role = match ask.role() {
            Role::Seed => As::Seed,
            Role::Peer => As::Peer,
            Role::Viewer => As::Viewer,
            Role::Scheduler => {
                return Err(Status::permission_denied(
                    "a join token makes nobody a scheduler",
                ));
            }
            Role::Unspecified => return Err(Status::invalid_argument("no role")),
        };
        let (whose, names, lifetime) = if role == As::Viewer {
            ("anybody".to_owned(), vec![], VIEW)
        } else {
            let node = NodeId::from_slice(&ask.node)
                .ok_or_else(|| Status::invalid_argument("the node's identity is not 16 bytes"))?;
            (node.to_string(), vec![node_name(&node)], LIFETIME)
        };
        let who = Who {
            mesh: self.mesh.clone(),
            role,
            node: whose,
        };
        let ca = self
            .ca_itself()
            .map_err(|e| Status::internal(e.to_string()))?;
        let cert = ca
            .issue_to(&ask.csr, names, &who, lifetime)
            .map_err(|e| match e {
                IdentityError::Request(_) => Status::invalid_argument(e.to_string()),
                _ => Status::internal(e.to_string()),
            })?;
        tracing::info!(%who, "issued a certificate");
        Ok(rpc::IssueReply {
            chain: vec![cert.to_vec()],
            roots: vec![ca.der().to_vec()],
            node: ask.node.clone(),
            lifetime: ca.lifetime(lifetime).as_secs().max(1),
            sealing: ca.opening().public().to_vec(),
            opening: match role {
                As::Seed => vec![ca.opening().secret().to_vec()],
                _ => vec![],
            },
        })
    }
}

/// The Identity service of an authority.
#[derive(Debug)]
pub struct Service(Arc<Authority>);

#[tonic::async_trait]
impl Identity for Service {
    async fn issue(
        &self,
        request: Request<rpc::IssueRequest>,
    ) -> Result<Response<rpc::IssueReply>, Status> {
        self.0.answer(request.get_ref()).map(Response::new)
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim().to_owned()
}
