//! Who is at the other end, and whether anybody else can listen.
//!
//! Plaintext is a choice of policy, never a fallback. Under TLS both sides show a certificate of
//! the mesh's CA whose DNS name is the node's ([`node_name`]) and whose URI says mesh, role and machine
//! ([`Who`]): the dialler checks that it reached the node it meant, the acceptor learns who called, and
//! both that the other is a node of this mesh that nobody revoked.

use std::sync::{Arc, PoisonError, RwLock};

use dragonfly_proto::id::NodeId;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::calls::{Callee, Calls};
use crate::seal::Sealing;
use crate::who::{Role, Who};

/// TLS material that cannot be used, or another's that is refused.
#[derive(Debug, thiserror::Error)]
pub enum SecurityError {
    /// Certificates, key and roots do not make a configuration.
    #[error("unusable TLS material: {0}")]
    Tls(#[from] rustls::Error),
    /// No usable root certificates.
    #[error("unusable CA bundle: {0}")]
    Roots(#[from] rustls::server::VerifierBuilderError),
    /// The two ends did not come to terms.
    #[error("{0}")]
    Handshake(String),
    /// The other side's certificate names no node of this mesh.
    #[error("the other side's certificate names no node")]
    NoNode,
    /// The certificate is somebody's who has no business here.
    #[error("the certificate is {0}'s: {1}")]
    NotHere(String, &'static str),
    /// Policy no longer lets it in.
    #[error("{0} is revoked (spec.security.revokedNodes)")]
    Revoked(String),
}

/// One identity in use: certificates, key and the roots it trusts.
#[derive(Debug, Clone)]
pub struct TlsConfig {
    /// For dialling.
    pub client: Arc<ClientConfig>,
    /// For accepting.
    pub server: Arc<ServerConfig>,
    /// For serving gRPC, where a caller may come to ask for its certificate and has none yet.
    pub calls: Arc<ServerConfig>,
    /// For calling the mesh's schedulers over gRPC.
    pub schedulers: Calls,
    /// Whose it is.
    pub who: Who,
    /// The keys that came with it for what is not for every part to read; none at first.
    pub sealing: Sealing,
}

impl TlsConfig {
    /// Mutual TLS 1.3 among the holders of certificates from `roots`.
    ///
    /// # Errors
    /// Certificates, key and roots do not belong together, or the certificate does not say whose it is.
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        key: &PrivateKeyDer<'static>,
        roots: &[CertificateDer<'static>],
    ) -> Result<Self, SecurityError> {
        let who = Who::of(chain.first().ok_or(SecurityError::NoNode)?)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut store = RootCertStore::empty();
        for root in roots {
            store.add(root.clone())?;
        }
        let store = Arc::new(store);
        let versions = &[&rustls::version::TLS13];
        let server = |optional: bool| -> Result<ServerConfig, SecurityError> {
            let verifier =
                WebPkiClientVerifier::builder_with_provider(store.clone(), provider.clone());
            let verifier = if optional {
                verifier.allow_unauthenticated()
            } else {
                verifier
            };
            let mut config = ServerConfig::builder_with_provider(provider.clone())
                .with_protocol_versions(versions)?
                .with_client_cert_verifier(verifier.build()?)
                .with_single_cert(chain.clone(), key.clone_key())?;
            // A session that is taken up again is not asked for its certificate, which may have
            // expired meanwhile. Connections are few and live long.
            config.send_tls13_tickets = 0;
            // Records between nodes are made by this crate (`tls`); gRPC's are not.
            config.enable_secret_extraction = !optional;
            Ok(config)
        };
        let mut calls = server(true)?;
        calls.alpn_protocols = vec![b"h2".to_vec()];
        let server = server(false)?;
        let callee = Callee {
            mesh: Some(who.mesh.clone()),
            role: Role::Scheduler,
            name: SCHEDULER_NAME.to_owned(),
        };
        let schedulers = Calls::new(roots, Some((chain.clone(), key)), callee)?;
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)?
            .with_root_certificates(store)
            .with_client_auth_cert(chain, key.clone_key())?;
        // Records are made by this crate (`tls`).
        client.enable_secret_extraction = true;
        Ok(Self {
            client: Arc::new(client),
            server: Arc::new(server),
            calls: Arc::new(calls),
            schedulers,
            who,
            sealing: Sealing::default(),
        })
    }
}

/// How connections are protected now; certificates may be replaced while connections live.
#[derive(Debug, Clone)]
pub struct Security {
    tls: Arc<RwLock<Option<TlsConfig>>>,
    revoked: Revoked,
}

impl Security {
    /// Neither encrypted nor authenticated: only where policy says so.
    #[must_use]
    pub fn plaintext() -> Self {
        Self {
            tls: Arc::default(),
            revoked: Revoked::default(),
        }
    }

    /// Mutual TLS.
    #[must_use]
    pub fn tls(config: TlsConfig) -> Self {
        let plain = Self::plaintext();
        plain.replace(config);
        plain
    }

    /// Uses another identity for connections from now on.
    pub fn replace(&self, config: TlsConfig) {
        *self.tls.write().unwrap_or_else(PoisonError::into_inner) = Some(config);
    }

    /// What new connections use; `None`: plaintext.
    #[must_use]
    pub fn current(&self) -> Option<TlsConfig> {
        self.tls
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The keys for what is not for every part to read; none in plaintext.
    #[must_use]
    pub fn sealing(&self) -> Sealing {
        let tls = self.tls.read().unwrap_or_else(PoisonError::into_inner);
        tls.as_ref()
            .map_or_else(Sealing::default, |tls| tls.sealing.clone())
    }

    /// Who is let in no more.
    #[must_use]
    pub const fn revoked(&self) -> &Revoked {
        &self.revoked
    }
}

/// Machines, by Kubernetes' name of them or a node's identity, whose certificates are refused although
/// they are good. Clones share the list.
#[derive(Debug, Clone, Default)]
pub struct Revoked(Arc<RwLock<Vec<String>>>);

impl Revoked {
    /// These from now on. Whether that is another list.
    pub fn set(&self, all: &[String]) -> bool {
        let mut now = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let differs = *now != all;
        if differs {
            *now = all.to_vec();
        }
        differs
    }

    /// Whether this is one of them. `node`: its identity, where it is a node.
    #[must_use]
    pub fn has(&self, who: &Who, node: Option<&NodeId>) -> bool {
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if all.is_empty() {
            return false;
        }
        let node = node.map(ToString::to_string);
        all.iter()
            .any(|revoked| *revoked == who.node || Some(revoked) == node.as_ref())
    }
}

/// The name in schedulers' certificates.
pub const SCHEDULER_NAME: &str = "scheduler.d7y.internal";

/// The DNS name in a node's certificate.
#[must_use]
pub fn node_name(node: &NodeId) -> String {
    format!("{node}.node.d7y.internal")
}

/// The DNS name in the certificate of who gives a mesh's certificates.
#[must_use]
pub fn issuer_name(mesh: &str) -> String {
    format!("{mesh}.issuer.d7y.internal")
}

pub(crate) fn server_name(node: &NodeId) -> Result<ServerName<'static>, SecurityError> {
    ServerName::try_from(node_name(node)).map_err(|_| SecurityError::NoNode)
}

/// Whether a certificate that chains to the mesh's CA is this node's, as seed or peer of this mesh:
/// rustls checked the chain, this checks the name, with the same code that checks it for a dialler.
///
/// # Errors
/// It is another's, or no certificate.
pub fn is_node(cert: &CertificateDer<'_>, node: &NodeId, mesh: &str) -> Result<Who, SecurityError> {
    is_named(cert, &server_name(node)?)?;
    let who = of_mesh(cert, mesh)?;
    match who.role {
        Role::Seed | Role::Peer => Ok(who),
        _ => Err(SecurityError::NotHere(
            who.uri(),
            "only seeds and peers are nodes",
        )),
    }
}

/// Whether a certificate that chains to the mesh's CA is a scheduler's of this mesh.
///
/// # Errors
/// It is another's, or no certificate.
pub fn is_scheduler(cert: &CertificateDer<'_>, mesh: &str) -> Result<Who, SecurityError> {
    let name = ServerName::try_from(SCHEDULER_NAME).map_err(|_| SecurityError::NoNode)?;
    is_named(cert, &name)?;
    let who = of_mesh(cert, mesh)?;
    match who.role {
        Role::Scheduler => Ok(who),
        _ => Err(SecurityError::NotHere(who.uri(), "it is no scheduler")),
    }
}

fn of_mesh(cert: &CertificateDer<'_>, mesh: &str) -> Result<Who, SecurityError> {
    let who = Who::of(cert)?;
    if who.mesh == mesh {
        Ok(who)
    } else {
        Err(SecurityError::NotHere(who.uri(), "it is of another mesh"))
    }
}

fn is_named(cert: &CertificateDer<'_>, name: &ServerName<'_>) -> Result<(), SecurityError> {
    let parsed = rustls::server::ParsedCertificate::try_from(cert)?;
    rustls::client::verify_server_name(&parsed, name).map_err(|_| SecurityError::NoNode)?;
    Ok(())
}
