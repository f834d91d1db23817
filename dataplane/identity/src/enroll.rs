//! A node gets its certificate, and a new one in time.

use std::path::PathBuf;
use std::time::Duration;

use dragonfly_proto::id::NodeId;
use dragonfly_proto::rpc::identity_client::IdentityClient;
use dragonfly_proto::rpc::{self, Role};
use dragonfly_transport::{
    Callee, Calls, OpeningKey, Sealing, TlsConfig, explain, issuer_name, reason, tls_error,
};
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tonic::transport::Endpoint;
use tonic::{Code, Status};

use crate::authority::LIFETIME;
use crate::{IdentityError, JoinToken, SCHEDULER_NAME};

/// Longest answer taken, bytes.
const MAX_REPLY: usize = 256 << 10;
/// Most certificates of a chain, or of a bundle, taken.
const MAX_CERTIFICATES: usize = 8;
/// Most keys taken to open what is sealed.
const MAX_OPENING: usize = 8;
/// Longest life of a certificate believed, seconds: a year.
const MAX_LIFETIME: u64 = 366 * 86_400;

/// What a part shows others.
#[derive(Clone)]
pub struct Credentials {
    /// For the peer transport, and for serving gRPC.
    pub tls: TlsConfig,
    /// The CA bundle, PEM, for calls of gRPC.
    pub ca: String,
    /// The chain, PEM.
    pub cert: String,
    /// The key, PEM.
    pub key: String,
    /// Get others after this.
    pub renew_after: Duration,
    /// Who one is, where the issuer says it.
    pub node: Option<NodeId>,
    /// The CA that signed.
    pub(crate) signer: CertificateDer<'static>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Not the key.
        write!(f, "Credentials({})", self.tls.who)
    }
}

impl Credentials {
    /// Of a chain, a key and a bundle, PEM, whose first certificate signed the chain.
    pub(crate) fn read(cert: &str, key: &str, ca: &str) -> Result<Self, IdentityError> {
        let roots = crate::ca::bundle(ca)?;
        let signer = roots.first().cloned();
        let signer =
            signer.ok_or_else(|| IdentityError::Mismatch("the issuer names none".to_owned()))?;
        let der = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(IdentityError::Ca)?;
        Ok(Self {
            tls: TlsConfig::new(crate::ca::bundle(cert)?, &der, &roots)?,
            ca: ca.to_owned(),
            cert: cert.to_owned(),
            key: key.to_owned(),
            renew_after: LIFETIME / 3,
            node: None,
            signer,
        })
    }

    /// The same certificate beside another CA bundle (PEM).
    ///
    /// # Errors
    /// It is no bundle.
    pub fn trusting(&self, bundle: &str) -> Result<Self, IdentityError> {
        let roots = crate::ca::bundle(bundle)?;
        let chain = crate::ca::bundle(&self.cert)?;
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).map_err(IdentityError::Ca)?;
        Ok(Self {
            tls: TlsConfig {
                sealing: self.tls.sealing.clone(),
                ..TlsConfig::new(chain, &key, &roots)?
            },
            ca: bundle.to_owned(),
            ..self.clone()
        })
    }

    /// Whether those who trust this bundle (PEM) take this certificate.
    #[must_use]
    pub fn is_trusted_by(&self, bundle: &str) -> bool {
        crate::ca::bundle(bundle).is_ok_and(|roots| roots.contains(&self.signer))
    }

    /// How to call the mesh's schedulers.
    #[must_use]
    pub fn client(&self) -> Calls {
        self.tls.schedulers.clone()
    }
}

/// Asks the schedulers in turn for a node's certificate.
///
/// # Errors
/// [`IdentityError::Refused`] when one said no (asking again changes nothing),
/// [`IdentityError::Unreachable`] when none answered.
pub async fn enroll(
    schedulers: &[String],
    token: &JoinToken,
    node: NodeId,
    role: Role,
) -> Result<Credentials, IdentityError> {
    issued(schedulers, token, node.0.to_vec(), role).await
}

/// Asks a scheduler for a certificate for somebody who only looks at the mesh. It holds for an hour,
/// and no node takes it for another's.
///
/// # Errors
/// Those of [`enroll`].
pub async fn view(scheduler: &str, token: &JoinToken) -> Result<Credentials, IdentityError> {
    issued(&[scheduler.to_owned()], token, vec![], Role::Viewer).await
}

/// Where a pod gets its certificate, and what it shows there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Projected {
    /// The mesh's UID.
    pub mesh: String,
    /// The projected token; the kubelet writes it anew before it expires.
    pub token_file: PathBuf,
    /// The issuer's `host:port`.
    pub issuer: String,
    /// The mesh's CA bundle, PEM.
    pub ca: String,
}

/// Asks the mesh's issuer for a certificate by a projected token. What it is for, and whose, the token
/// says; `role` is only what the caller takes itself for.
///
/// # Errors
/// Those of [`enroll`]; [`IdentityError::File`] without a token.
pub async fn enroll_projected(at: &Projected, role: Role) -> Result<Credentials, IdentityError> {
    let token = tokio::fs::read_to_string(&at.token_file).await;
    let token = token.map_err(|source| IdentityError::File {
        path: at.token_file.clone(),
        source,
    })?;
    let (key, csr) = request()?;
    let ask = rpc::IssueRequest {
        token: token.trim().to_owned(),
        csr,
        node: vec![],
        role: role.into(),
        mesh: at.mesh.clone(),
    };
    let reply = call(&at.issuer, &at.ca, issuer(&at.mesh), "the bootstrap", ask).await?;
    credentials(&reply, &key)
}

/// A new key and a request for a certificate of it.
fn request() -> Result<(KeyPair, Vec<u8>), IdentityError> {
    let key = KeyPair::generate()?;
    let csr = CertificateParams::new(Vec::<String>::new())?.serialize_request(&key)?;
    let csr = csr.der().to_vec();
    Ok((key, csr))
}

async fn issued(
    schedulers: &[String],
    token: &JoinToken,
    node: Vec<u8>,
    role: Role,
) -> Result<Credentials, IdentityError> {
    let (key, csr) = request()?;
    let ask = rpc::IssueRequest {
        token: token.secret.clone(),
        csr,
        node,
        role: role.into(),
        mesh: String::new(),
    };
    let mut error = IdentityError::Unreachable("none is configured".to_owned());
    for address in schedulers {
        // A join token does not say what certificates call the mesh.
        let scheduler = Callee {
            mesh: None,
            role: dragonfly_transport::Role::Scheduler,
            name: SCHEDULER_NAME.to_owned(),
        };
        let called = call(address, &token.ca, scheduler, "the join token", ask.clone());
        match called.await {
            Ok(reply) => return credentials(&reply, &key),
            // That another is not there does not make a no undone.
            Err(IdentityError::Unreachable(_)) if matches!(error, IdentityError::Refused(_)) => {}
            Err(e) => error = e,
        }
    }
    Err(error)
}

/// Passes a request on to the mesh's issuer as it is: a scheduler does for who cannot reach that.
///
/// # Errors
/// As the issuer answered, or [`Code::Unavailable`] when it did not.
pub(crate) async fn relay(
    address: &str,
    ca: &str,
    mesh: &str,
    ask: rpc::IssueRequest,
) -> Result<rpc::IssueReply, Status> {
    let ask = rpc::IssueRequest {
        mesh: mesh.to_owned(),
        ..ask
    };
    let called = call(address, ca, issuer(mesh), "the bootstrap", ask).await;
    called.map_err(|error| match error {
        IdentityError::Refused(why) => Status::permission_denied(why),
        other => Status::unavailable(other.to_string()),
    })
}

/// Who gives the certificates of a mesh.
fn issuer(mesh: &str) -> Callee {
    Callee {
        mesh: Some(mesh.to_owned()),
        role: dragonfly_transport::Role::Issuer,
        name: issuer_name(mesh),
    }
}

/// `proof`: where the CA that is trusted comes from.
async fn call(
    address: &str,
    ca: &str,
    callee: Callee,
    proof: &str,
    ask: rpc::IssueRequest,
) -> Result<rpc::IssueReply, IdentityError> {
    let refused = |why: &str| IdentityError::Refused(format!("{address}: {why}"));
    let unreachable = |why: String| IdentityError::Unreachable(format!("{address}: {why}"));
    let calls = Calls::new(&crate::ca::bundle(ca)?, None, callee)?;
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|e| refused(&reason(&e)))?
        .connect_timeout(Duration::from_secs(3))
        .timeout(Duration::from_secs(10));
    let connected = endpoint.connect_with_connector(calls).await;
    let channel = connected.map_err(|e| match why(&e, proof) {
        Some(why) => refused(&why),
        None => unreachable(reason(&e)),
    })?;
    let reply = IdentityClient::new(channel)
        .max_decoding_message_size(MAX_REPLY)
        .issue(ask)
        .await;
    reply
        .map(tonic::Response::into_inner)
        .map_err(|status| match status.code() {
            Code::PermissionDenied
            | Code::Unauthenticated
            | Code::InvalidArgument
            | Code::Unimplemented => refused(status.message()),
            _ => unreachable(status.message().to_owned()),
        })
}

/// What an error of the connection says about who is at the other end, if it does.
fn why(error: &tonic::transport::Error, proof: &str) -> Option<String> {
    match tls_error(error)? {
        rustls::Error::InvalidCertificate(
            rustls::CertificateError::UnknownIssuer | rustls::CertificateError::BadSignature,
        ) => Some(format!("its certificate is another mesh's than {proof}")),
        rustls::Error::InvalidMessage(_) => Some(
            "it does not speak TLS (spec.security.transport: Plaintext): leave the join token away"
                .to_owned(),
        ),
        wrong @ rustls::Error::InvalidCertificate(_) => Some(explain(wrong)),
        _ => None,
    }
}

fn credentials(reply: &rpc::IssueReply, key: &KeyPair) -> Result<Credentials, IdentityError> {
    let text = |all: &[Vec<u8>]| -> String {
        let some = all.iter().take(MAX_CERTIFICATES);
        some.map(|der| pem("CERTIFICATE", der)).collect()
    };
    let lifetime = match reply.lifetime {
        0 => LIFETIME,
        seconds => Duration::from_secs(seconds.min(MAX_LIFETIME)),
    };
    let mut read = Credentials::read(
        &text(&reply.chain),
        &key.serialize_pem(),
        &text(&reply.roots),
    )?;
    read.tls.sealing = sealing(&reply.sealing, &reply.opening)?;
    Ok(Credentials {
        renew_after: lifetime / 3,
        node: NodeId::from_slice(&reply.node),
        ..read
    })
}

/// Keys as they are sent and kept.
pub(crate) fn sealing(public: &[u8], opening: &[Vec<u8>]) -> Result<Sealing, IdentityError> {
    let keys = opening.iter().take(MAX_OPENING);
    let keys: Result<Vec<_>, _> = keys.map(|secret| OpeningKey::new(secret)).collect();
    Ok(Sealing {
        // Who gives certificates may be of a release without.
        seal_for: public.try_into().ok(),
        open_with: keys?,
    })
}

pub(crate) fn pem(kind: &str, der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines = text.as_bytes().chunks(64).map(String::from_utf8_lossy);
    let lines: Vec<_> = lines.collect();
    format!(
        "-----BEGIN {kind}-----\n{}\n-----END {kind}-----\n",
        lines.join("\n")
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::net::TcpListener;
    use tonic::transport::{Identity, Server, ServerTlsConfig};

    use super::*;
    use crate::Authority;

    async fn scheduler(authority: &Arc<Authority>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (cert, key) = authority.scheduler("s").unwrap();
        let tls = ServerTlsConfig::new().identity(Identity::from_pem(cert, key));
        let server = Server::builder()
            .tls_config(tls)
            .unwrap()
            .add_service(authority.server());
        tokio::spawn(async move {
            let incoming = async_stream(listener);
            server.serve_with_incoming(incoming).await.unwrap();
        });
        address
    }

    fn async_stream(listener: TcpListener) -> tonic::transport::server::TcpIncoming {
        tonic::transport::server::TcpIncoming::from(listener)
    }

    #[tokio::test]
    async fn a_node_with_the_token_gets_a_certificate_that_others_take_and_others_get_none() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Arc::new(Authority::load_or_create(dir.path(), "m").unwrap());
        let address = scheduler(&authority).await;
        let token = authority.token();
        let node = NodeId([3; 16]);
        let given = enroll(std::slice::from_ref(&address), &token, node, Role::Peer)
            .await
            .unwrap();
        assert!(given.cert.contains("BEGIN CERTIFICATE"));
    }

    #[tokio::test]
    async fn who_is_turned_away_is_told_from_who_finds_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Arc::new(Authority::load_or_create(dir.path(), "m").unwrap());
        let address = scheduler(&authority).await;
        let elsewhere = tempfile::tempdir().unwrap();
        let other = Authority::load_or_create(elsewhere.path(), "m").unwrap();
        let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let gone = nobody.local_addr().unwrap().to_string();
        drop(nobody);
        // A scheduler without TLS.
        let plain = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let plaintext = plain.local_addr().unwrap().to_string();
        let server = Server::builder().add_service(authority.server());
        tokio::spawn(server.serve_with_incoming(async_stream(plain)));
        let wrong = JoinToken {
            secret: "0".repeat(64),
            ..authority.token()
        };
        for (what, schedulers, token, refused, says) in [
            ("wrong secret", vec![&address], &wrong, true, "join token"),
            (
                "wrong secret, one gone",
                vec![&address, &gone],
                &wrong,
                true,
                "join token",
            ),
            (
                "another mesh",
                vec![&address],
                &other.token(),
                true,
                "another mesh",
            ),
            (
                "plaintext",
                vec![&plaintext],
                &authority.token(),
                true,
                "Plaintext",
            ),
            ("gone", vec![&gone], &authority.token(), false, "refused"),
        ] {
            let schedulers: Vec<_> = schedulers.into_iter().cloned().collect();
            let error = enroll(&schedulers, token, NodeId([3; 16]), Role::Peer)
                .await
                .unwrap_err();
            let is_refused = matches!(error, IdentityError::Refused(_));
            let text = error.to_string();
            assert!(
                is_refused == refused && text.contains(says),
                "{what}: {text}"
            );
        }
        let one_is_enough = [gone, address];
        let token = authority.token();
        let given = enroll(&one_is_enough, &token, NodeId([3; 16]), Role::Peer).await;
        given.unwrap();
    }

    #[tokio::test]
    async fn who_only_looks_gets_a_certificate_that_names_no_node() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Arc::new(Authority::load_or_create(dir.path(), "m").unwrap());
        let address = scheduler(&authority).await;
        let given = view(&address, &authority.token()).await.unwrap();
        let der = CertificateDer::from_pem_slice(given.cert.as_bytes()).unwrap();
        assert!(dragonfly_transport::is_node(&der, &NodeId([0; 16]), "m").is_err());
        assert!(given.renew_after < Duration::from_secs(3600));
    }

    #[test]
    fn a_mounted_directory_that_holds_all_files_is_only_read() {
        let dir = tempfile::tempdir().unwrap();
        let made = Authority::load_or_create(dir.path(), "m").unwrap();
        // Who makes Secrets by hand often ends lines.
        let token = format!("{}\n", made.token().reveal());
        std::fs::write(dir.path().join("join-token"), token).unwrap();
        let listed = || {
            let files = std::fs::read_dir(dir.path()).unwrap().flatten();
            let mut all: Vec<_> = files
                .map(|f| {
                    (
                        f.file_name(),
                        std::fs::read(f.path()).unwrap(),
                        f.metadata().unwrap().modified().unwrap(),
                    )
                })
                .collect();
            all.sort();
            all
        };
        let before = listed();
        let again = Authority::load_or_create(dir.path(), "m").unwrap();
        assert_eq!(again.token(), made.token());
        assert_eq!(listed(), before);
    }

    #[test]
    fn a_ca_without_its_key_is_an_error_and_no_new_ca() {
        let dir = tempfile::tempdir().unwrap();
        Authority::load_or_create(dir.path(), "m").unwrap();
        std::fs::remove_file(dir.path().join("ca.key")).unwrap();
        let error = Authority::load_or_create(dir.path(), "m").unwrap_err();
        assert!(error.to_string().contains("ca.key"), "{error}");
    }

    #[test]
    fn an_authority_comes_back_from_its_directory() {
        let dir = tempfile::tempdir().unwrap();
        let a = Authority::load_or_create(dir.path(), "m").unwrap();
        let b = Authority::load_or_create(dir.path(), "m").unwrap();
        assert_eq!(a.token(), b.token());
        assert_eq!(a.signing.public(), b.signing.public());
    }
}
