//! Real TLS: who is believed and who is not.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails loudly"
)]

mod common;

use common::{Honest, Reply, Seen, http, quick, serve};
use dragonfly_source::{HttpOptions, Kind, Request};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{PrivateKeyDer, pem::PemObject as _};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Self { issuer }
    }

    fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// An https origin for these names.
    async fn serve(
        &self,
        names: &[&str],
        handler: impl Fn(&Seen) -> Reply + Send + Sync + 'static,
    ) -> SocketAddr {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(names)
            .unwrap()
            .signed_by(&key, &self.issuer)
            .unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap(),
            )
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let handler: Arc<dyn Fn(&Seen) -> Reply + Send + Sync> = Arc::new(handler);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (acceptor, handler) = (acceptor.clone(), handler.clone());
                tokio::spawn(async move {
                    if let Ok(stream) = acceptor.accept(socket).await {
                        serve(
                            stream,
                            handler,
                            Arc::default(),
                            Arc::default(),
                            Arc::default(),
                        )
                        .await;
                    }
                });
            }
        });
        addr
    }
}

fn trusting(authority: &Authority, only: bool) -> HttpOptions {
    HttpOptions {
        ca_bundle: Some(authority.pem()),
        ca_bundle_only: only,
        ..quick()
    }
}

fn request(addr: SocketAddr) -> Request {
    Request::new(&format!("https://{addr}/file")).unwrap()
}

#[tokio::test]
async fn only_the_authority_that_was_given_is_believed() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let good = ours
        .serve(&["127.0.0.1"], |seen| Honest::new(10).reply(seen))
        .await;
    let other_name = ours
        .serve(&["other.example"], |seen| Honest::new(10).reply(seen))
        .await;
    let rows = [
        ("our authority", trusting(&ours, false), good, true),
        ("our authority alone", trusting(&ours, true), good, true),
        ("another authority", trusting(&theirs, false), good, false),
        ("the system's authorities", quick(), good, false),
        (
            "our authority, another name",
            trusting(&ours, false),
            other_name,
            false,
        ),
    ];
    for (name, options, addr, accepted) in rows {
        match http(options).open(&request(addr), None, None).await {
            Ok(opened) => {
                assert!(accepted, "{name}");
                assert_eq!(opened.metadata.total_len, Some(10), "{name}");
            }
            Err(error) => {
                assert!(!accepted, "{name}: {error}");
                assert_eq!(error.kind(), Kind::Tls, "{name}: {error}");
                assert!(!error.is_temporary(), "{name}");
                assert!(error.to_string().contains("CA bundle"), "{name}: {error}");
            }
        }
    }
}

#[tokio::test]
async fn https_does_not_become_http_unless_allowed() {
    let plain = common::Server::honest(Honest::new(10)).await;
    let location = plain.url("/file");
    let ours = Authority::new();
    let addr = ours
        .serve(&["127.0.0.1"], move |_| {
            Reply::sized("307 Temporary Redirect", &[("location", &location)], b"")
        })
        .await;
    let error = http(trusting(&ours, true))
        .open(&request(addr), None, None)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Refused, "{error}");
    assert!(plain.seen().is_empty());
    let allowing = HttpOptions {
        allow_downgrade: true,
        ..trusting(&ours, true)
    };
    assert!(
        http(allowing)
            .open(&request(addr), None, None)
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn a_port_without_tls_says_so() {
    let plain = common::Server::start(|_| Reply::default().close()).await;
    let error = http(quick())
        .open(&request(plain.addr), None, None)
        .await
        .unwrap_err();
    assert!(matches!(error.kind(), Kind::Tls | Kind::Connect), "{error}");
}
