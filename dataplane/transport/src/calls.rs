//! TLS of gRPC calls between parts of a mesh. That the mesh's CA vouches for who answers, under the name
//! that was called, is not all: his certificate has to say that he is of this mesh, and in the role
//! that is called.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore,
    SignatureScheme,
};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::security::SecurityError;
use crate::who::{Role, Who};

/// Who has to answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Callee {
    /// The mesh as certificates name it; `None`: that of the CA, by whatever name.
    pub mesh: Option<String>,
    /// What it is there.
    pub role: Role,
    /// The DNS name in its certificate.
    pub name: String,
}

/// How a part is called: a connector for `tonic::transport::Endpoint`, whose URI has to say `http`, for
/// TLS is made here.
#[derive(Clone)]
pub struct Calls {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl fmt::Debug for Calls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the key.
        write!(f, "Calls({:?})", self.name)
    }
}

impl Calls {
    /// `own`: the chain and the key that are shown; who has no certificate yet shows none.
    ///
    /// # Errors
    /// What does not belong together.
    pub fn new(
        roots: &[CertificateDer<'static>],
        own: Option<(Vec<CertificateDer<'static>>, &PrivateKeyDer<'static>)>,
        callee: Callee,
    ) -> Result<Self, SecurityError> {
        let name = ServerName::try_from(callee.name.clone()).map_err(|_| SecurityError::NoNode)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut store = RootCertStore::empty();
        for root in roots {
            store.add(root.clone())?;
        }
        let chain = WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider.clone())
            .build()?;
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            // It checks all that the usual one does, which it asks first.
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Expecting { chain, callee }));
        let mut config = match own {
            Some((own, key)) => builder.with_client_auth_cert(own, key.clone_key())?,
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self {
            config: Arc::new(config),
            name,
        })
    }

    async fn connect(self, to: Uri) -> io::Result<TokioIo<TlsStream<TcpStream>>> {
        let authority = to.authority().map(http::uri::Authority::as_str);
        let authority = authority.ok_or_else(|| io::Error::other("no address to call"))?;
        let stream = TcpStream::connect(authority).await?;
        stream.set_nodelay(true)?;
        let tls = TlsConnector::from(self.config).connect(self.name, stream);
        tls.await.map(TokioIo::new)
    }
}

impl tower::Service<Uri> for Calls {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        Box::pin(self.clone().connect(to))
    }
}

/// What rustls checks, and who it is.
#[derive(Debug)]
struct Expecting {
    chain: Arc<WebPkiServerVerifier>,
    callee: Callee,
}

impl Expecting {
    fn judge(&self, cert: &CertificateDer<'_>) -> Result<(), SecurityError> {
        let who = Who::of(cert)?;
        let not = |why| Err(SecurityError::NotHere(who.uri(), why));
        if self.callee.mesh.as_ref().is_some_and(|m| *m != who.mesh) {
            return not("it is of another mesh");
        }
        if self.callee.role != who.role {
            return not("another part was called");
        }
        Ok(())
    }
}

impl ServerCertVerifier for Expecting {
    fn verify_server_cert(
        &self,
        cert: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified = self
            .chain
            .verify_server_cert(cert, intermediates, name, ocsp, now)?;
        self.judge(cert).map_err(|wrong| {
            let wrong = CertificateError::Other(OtherError(Arc::new(wrong)));
            rustls::Error::InvalidCertificate(wrong)
        })?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls12_signature(message, cert, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}
