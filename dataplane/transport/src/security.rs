//! Who is at the other end, and whether anybody else can listen.
//!
//! Plaintext is a choice of policy, never a fallback. Under TLS both sides show a certificate of
//! the mesh's CA whose DNS name is the node's ([`node_name`]): the dialler checks that it reached
//! the node it meant, the acceptor learns who called.

use std::sync::{Arc, RwLock};

use dragonfly_proto::id::NodeId;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

/// TLS material that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SecurityError {
    /// Certificates, key and roots do not make a configuration.
    #[error("unusable TLS material: {0}")]
    Tls(#[from] rustls::Error),
    /// No usable root certificates.
    #[error("unusable CA bundle: {0}")]
    Roots(#[from] rustls::server::VerifierBuilderError),
    /// The other side's certificate names no node of this mesh.
    #[error("the other side's certificate names no node")]
    NoNode,
}

/// One identity in use: certificates, key and the roots it trusts.
#[derive(Debug, Clone)]
pub struct TlsConfig {
    /// For dialling.
    pub client: Arc<ClientConfig>,
    /// For accepting.
    pub server: Arc<ServerConfig>,
}

impl TlsConfig {
    /// Mutual TLS 1.3 among the holders of certificates from `roots`.
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        key: &PrivateKeyDer<'static>,
        roots: &[CertificateDer<'static>],
    ) -> Result<Self, SecurityError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut store = RootCertStore::empty();
        for root in roots {
            store.add(root.clone())?;
        }
        let store = Arc::new(store);
        let verifier =
            WebPkiClientVerifier::builder_with_provider(store.clone(), provider.clone()).build()?;
        let versions = &[&rustls::version::TLS13];
        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(versions)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), key.clone_key())?;
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)?
            .with_root_certificates(store)
            .with_client_auth_cert(chain, key.clone_key())?;
        // Records are made by this crate (`tls`).
        server.enable_secret_extraction = true;
        client.enable_secret_extraction = true;
        Ok(Self {
            client: Arc::new(client),
            server: Arc::new(server),
        })
    }
}

/// How connections are protected now; certificates may be replaced while connections live.
#[derive(Debug, Clone)]
pub struct Security(Arc<RwLock<Option<TlsConfig>>>);

impl Security {
    /// Neither encrypted nor authenticated: only where policy says so.
    #[must_use]
    pub fn plaintext() -> Self {
        Self(Arc::new(RwLock::new(None)))
    }

    /// Mutual TLS.
    #[must_use]
    pub fn tls(config: TlsConfig) -> Self {
        Self(Arc::new(RwLock::new(Some(config))))
    }

    /// Uses another identity for connections from now on.
    pub fn replace(&self, config: TlsConfig) {
        *self
            .0
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = Some(config);
    }

    /// What new connections use; `None`: plaintext.
    #[must_use]
    pub fn current(&self) -> Option<TlsConfig> {
        self.0
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone()
    }
}

/// The name in schedulers' certificates.
pub const SCHEDULER_NAME: &str = "scheduler.d7y.internal";

/// The DNS name in a node's certificate.
#[must_use]
pub fn node_name(node: &NodeId) -> String {
    format!("{node}.node.d7y.internal")
}

pub(crate) fn server_name(node: &NodeId) -> Result<ServerName<'static>, SecurityError> {
    ServerName::try_from(node_name(node)).map_err(|_| SecurityError::NoNode)
}

/// Whether a certificate that chains to the mesh's CA is this node's: rustls checked the chain, this
/// checks the name, with the same code that checks it for a dialler.
///
/// # Errors
/// It is another's, or no certificate.
pub fn is_node(cert: &CertificateDer<'_>, node: &NodeId) -> Result<(), SecurityError> {
    is_named(cert, &server_name(node)?)
}

/// Whether a certificate that chains to the mesh's CA is a scheduler's. Only a holder of the CA's key
/// has one: the authority gives nodes no name but their own.
///
/// # Errors
/// It is another's, or no certificate.
pub fn is_scheduler(cert: &CertificateDer<'_>) -> Result<(), SecurityError> {
    let name = ServerName::try_from(SCHEDULER_NAME).map_err(|_| SecurityError::NoNode)?;
    is_named(cert, &name)
}

fn is_named(cert: &CertificateDer<'_>, name: &ServerName<'_>) -> Result<(), SecurityError> {
    let parsed = rustls::server::ParsedCertificate::try_from(cert)?;
    rustls::client::verify_server_name(&parsed, name)?;
    Ok(())
}
