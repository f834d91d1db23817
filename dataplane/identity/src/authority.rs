//! The mesh's authority: it says who is a node, and signs what schedulers promise.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use dragonfly_proto::id::NodeId;
use dragonfly_proto::rpc::identity_server::{Identity, IdentityServer};
use dragonfly_proto::rpc::{self, Role};
use dragonfly_proto::sign::{KeyError, SigningKey};
use dragonfly_transport::node_name;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData,
    SanType,
};
use rustls::pki_types::CertificateSigningRequestDer;
use tonic::{Request, Response, Status};

use crate::{JoinToken, SCHEDULER_NAME};

/// How long a node's certificate holds; it is renewed at a third.
pub(crate) const LIFETIME: Duration = Duration::from_secs(72 * 3600);
/// Certificates hold from a little before now, for clocks differ.
const SKEW: Duration = Duration::from_secs(300);
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
    /// A scheduler gave what is no certificate.
    #[error("the CA's certificate: {0}")]
    Ca(rustls::pki_types::pem::Error),
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
                let (cert, key) = new_ca(mesh)?;
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

    /// A certificate for the holder of a public key. One without names is good for asking only: nobody
    /// takes it for a server or a node.
    fn issue(
        &self,
        key: &impl PublicKeyData,
        names: Vec<String>,
        uri: &str,
        lifetime: Duration,
    ) -> Result<rcgen::Certificate, IdentityError> {
        let ca_key = KeyPair::from_pem(&self.ca_key)?;
        let issuer = Issuer::from_ca_cert_pem(&self.ca_pem, ca_key)?;
        let mut purposes = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if !names.is_empty() {
            purposes.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names.push(SanType::URI(uri.try_into()?));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = purposes;
        let now = SystemTime::now();
        params.not_before = (now - SKEW).into();
        params.not_after = (now + lifetime).into();
        Ok(params.signed_by(key, &issuer)?)
    }

    /// Certificate and key for a scheduler, PEM.
    pub fn scheduler(&self, name: &str) -> Result<(String, String), IdentityError> {
        let key = KeyPair::generate()?;
        let uri = format!("spiffe://{}/scheduler/{name}", self.mesh);
        // As long as the CA: who holds the CA's key gains nothing by renewing, and a scheduler whose
        // certificate ran out while it runs would lose every node.
        let cert = self.issue(&key, vec![SCHEDULER_NAME.to_owned()], &uri, CA_LIFETIME)?;
        Ok((cert.pem(), key.serialize_pem()))
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
        let der = CertificateSigningRequestDer::from(ask.csr.as_slice());
        let csr = CertificateSigningRequestParams::from_der(&der)
            .map_err(|e| Status::invalid_argument(format!("the signing request: {e}")))?;
        let role = match ask.role() {
            Role::Seed => "seed",
            Role::Peer => "peer",
            Role::Viewer => "viewer",
            Role::Unspecified => return Err(Status::invalid_argument("no role")),
        };
        let (whose, names, lifetime) = if ask.role() == Role::Viewer {
            ("anybody".to_owned(), vec![], VIEW)
        } else {
            let node = NodeId::from_slice(&ask.node)
                .ok_or_else(|| Status::invalid_argument("the node's identity is not 16 bytes"))?;
            (node.to_string(), vec![node_name(&node)], LIFETIME)
        };
        // Names in the request are not looked at: the authority says who somebody is.
        let uri = format!("spiffe://{}/{role}/{whose}", self.mesh);
        let cert = self
            .issue(&csr.public_key, names, &uri, lifetime)
            .map_err(|e| Status::internal(e.to_string()))?;
        tracing::info!(whose, role, "issued a certificate");
        let root = pem_to_der(&self.ca_pem).map_err(|e| Status::internal(e.to_string()))?;
        Ok(rpc::IssueReply {
            chain: vec![cert.der().to_vec()],
            roots: vec![root],
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

fn new_ca(mesh: &str) -> Result<(String, String), IdentityError> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    params
        .distinguished_name
        .push(DnType::CommonName, format!("Dragonfly mesh {mesh}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let now = SystemTime::now();
    params.not_before = (now - SKEW).into();
    params.not_after = (now + CA_LIFETIME).into();
    let cert = params.self_signed(&key)?;
    Ok((cert.pem(), key.serialize_pem()))
}

pub(crate) fn pem_to_der(pem: &str) -> Result<Vec<u8>, IdentityError> {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(IdentityError::Ca)?;
    Ok(der.to_vec())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim().to_owned()
}
