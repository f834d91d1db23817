//! A node gets its certificate, and a new one in time.

use std::time::Duration;

use dragonfly_proto::id::NodeId;
use dragonfly_proto::rpc::identity_client::IdentityClient;
use dragonfly_proto::rpc::{self, Role};
use dragonfly_transport::TlsConfig;
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};

use crate::authority::LIFETIME;
use crate::{IdentityError, JoinToken, SCHEDULER_NAME};

/// What a node shows others.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// For the peer transport.
    pub tls: TlsConfig,
    /// The CA, PEM, for gRPC.
    pub ca: String,
    /// The chain, PEM.
    pub cert: String,
    /// The key, PEM.
    pub key: String,
    /// Get others after this.
    pub renew_after: Duration,
}

/// Asks the schedulers in turn for a certificate.
///
/// # Errors
/// When none gives one: the token is another mesh's, or none can be reached.
pub async fn enroll(
    schedulers: &[String],
    token: &JoinToken,
    node: NodeId,
    role: Role,
) -> Result<Credentials, IdentityError> {
    let key = KeyPair::generate()?;
    let csr = CertificateParams::new(Vec::<String>::new())?.serialize_request(&key)?;
    let ask = rpc::IssueRequest {
        token: token.secret.clone(),
        csr: csr.der().to_vec(),
        node: node.0.to_vec(),
        role: role.into(),
    };
    let mut last = "no scheduler is configured".to_owned();
    for address in schedulers {
        match call(address, token, ask.clone()).await {
            Ok(reply) => return credentials(&reply, &key, token),
            Err(e) => last = format!("{address}: {e}"),
        }
    }
    Err(IdentityError::Refused(last))
}

async fn call(
    address: &str,
    token: &JoinToken,
    ask: rpc::IssueRequest,
) -> Result<rpc::IssueReply, String> {
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(&token.ca))
        .domain_name(SCHEDULER_NAME);
    let endpoint = Endpoint::from_shared(format!("https://{address}"))
        .and_then(|e| e.tls_config(tls))
        .map_err(|e| e.to_string())?
        .connect_timeout(Duration::from_secs(3))
        .timeout(Duration::from_secs(10));
    let channel = endpoint.connect().await.map_err(|e| chain(&e))?;
    let reply = IdentityClient::new(channel).issue(ask).await;
    reply
        .map(tonic::Response::into_inner)
        .map_err(|s| s.message().to_owned())
}

fn chain(e: &dyn std::error::Error) -> String {
    match e.source() {
        Some(source) => format!("{e}: {}", chain(source)),
        None => e.to_string(),
    }
}

fn credentials(
    reply: &rpc::IssueReply,
    key: &KeyPair,
    token: &JoinToken,
) -> Result<Credentials, IdentityError> {
    let certs = |all: &[Vec<u8>]| -> Vec<CertificateDer<'static>> {
        all.iter()
            .take(8)
            .map(|der| CertificateDer::from(der.clone()))
            .collect()
    };
    let (chain, roots) = (certs(&reply.chain), certs(&reply.roots));
    let der = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let tls = TlsConfig::new(chain.clone(), &der, &roots)?;
    let cert = chain.iter().map(|c| pem("CERTIFICATE", c)).collect();
    Ok(Credentials {
        tls,
        ca: token.ca.clone(),
        cert,
        key: key.serialize_pem(),
        renew_after: LIFETIME / 3,
    })
}

fn pem(kind: &str, der: &[u8]) -> String {
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
        let wrong = JoinToken {
            secret: "0".repeat(64),
            ..token
        };
        let refused = enroll(std::slice::from_ref(&address), &wrong, node, Role::Peer).await;
        assert!(refused.unwrap_err().to_string().contains("join token"));
        let elsewhere = tempfile::tempdir().unwrap();
        let other = Authority::load_or_create(elsewhere.path(), "m").unwrap();
        let stranger = enroll(&[address], &other.token(), node, Role::Peer).await;
        assert!(
            stranger.is_err(),
            "a scheduler of another mesh was believed"
        );
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
