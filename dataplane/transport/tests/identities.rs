//! Certificates that are good for nothing here, each refused by either end with a reason.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod kit;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use dragonfly_proto::frame::Frame;
use dragonfly_proto::id::NodeId;
use dragonfly_transport::{Role, Security, TlsConfig, Who, explain, node_name};
use kit::{Ca, MESH, Peer, QUICK, SOON, until};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

const DAY: Duration = Duration::from_secs(86_400);

fn who(mesh: &str, role: Role, node: &str) -> Who {
    Who {
        mesh: mesh.to_owned(),
        role,
        node: node.to_owned(),
    }
}

/// What a node is told that calls, and what one that is called.
async fn both_ways(honest: &Peer, other: &Peer) -> [String; 2] {
    let calls = honest.mesh.connect(other.id, &[other.addr]).await;
    let called = other.mesh.connect(honest.id, &[honest.addr]).await;
    let called = match called {
        // Under TLS 1.3 who calls learns a moment later that he was refused.
        Ok(conn) => {
            until("the refused end is gone", SOON, || conn.is_closed()).await;
            let reasons = other.notes.reasons();
            reasons.into_iter().next().unwrap_or_default()
        }
        Err(error) => error.to_string(),
    };
    [
        calls.err().map(|e| e.to_string()).unwrap_or_default(),
        called,
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expired_early_foreign_and_misplaced_certificates_are_refused_with_the_reason() {
    let (ca, other_ca) = (Ca::new(), Ca::new());
    let id = NodeId([9; 16]);
    let key = || rcgen::KeyPair::generate().unwrap();
    let peer = who("m", Role::Peer, "machine");
    let now = SystemTime::now();
    let expired = ca.tls_as(&id, &peer, key(), |p| {
        p.not_before = (now - 3 * DAY).into();
        p.not_after = (now - DAY).into();
    });
    // As one that is made today looks to a machine whose clock is a day behind.
    let early = ca.tls_as(&id, &peer, key(), |p| {
        p.not_before = (now + DAY).into();
        p.not_after = (now + 4 * DAY).into();
    });
    let rows = [
        ("expired", expired, "expired at"),
        ("a clock a day off", early, "set the clock"),
        (
            "another mesh's CA",
            other_ca.tls_as(&id, &peer, key(), |_| {}),
            "another mesh's",
        ),
        (
            "another mesh of one CA",
            ca.tls_as(&id, &who("other", Role::Peer, "machine"), key(), |_| {}),
            "it is of another mesh",
        ),
        (
            "a scheduler's",
            ca.tls_as(&id, &who("m", Role::Scheduler, "machine"), key(), |_| {}),
            "only seeds and peers are nodes",
        ),
        (
            "one to look with",
            ca.tls_as(&id, &who("m", Role::Viewer, "anybody"), key(), |_| {}),
            "only seeds and peers are nodes",
        ),
        (
            "another node's",
            ca.tls_as(&NodeId([8; 16]), &peer, key(), |_| {}),
            "another's",
        ),
    ];
    for (what, tls, says) in rows {
        let honest = ca.peer(1);
        let other = Peer::of(id, MESH, Security::tls(tls), QUICK);
        let [calls, called] = both_ways(&honest, &other).await;
        assert!(calls.contains(says), "{what}: {calls}");
        assert!(!called.is_empty(), "{what}: let in");
        assert!(honest.mesh.is_empty(), "{what}: connected");
        assert!(honest.notes.opened.lock().unwrap().is_empty(), "{what}");
    }
}

/// Shows a certificate with a key that is not its own, as rustls itself would not.
#[derive(Debug)]
struct Thief(Arc<rustls::sign::CertifiedKey>);

impl rustls::client::ResolvesClientCert for Thief {
    fn resolve(
        &self,
        _: &[&[u8]],
        _: &[rustls::SignatureScheme],
    ) -> Option<Arc<rustls::sign::CertifiedKey>> {
        Some(self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stolen_certificate_is_worth_nothing_without_its_key() {
    let ca = Ca::new();
    let honest = ca.peer(1);
    let id = NodeId([2; 16]);
    let key = rcgen::KeyPair::generate().unwrap();
    let (cert, root) = ca.cert(&id, &key);
    let own = rcgen::KeyPair::generate().unwrap();
    let own = PrivateKeyDer::try_from(own.serialize_der()).unwrap();
    let error = TlsConfig::new(vec![cert.clone()], &own, std::slice::from_ref(&root));
    assert!(error.is_err(), "nobody starts with another's key");

    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(root).unwrap();
    let signs = rustls::crypto::aws_lc_rs::sign::any_supported_type(&own).unwrap();
    let stolen = Arc::new(rustls::sign::CertifiedKey::new(vec![cert], signs));
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_cert_resolver(Arc::new(Thief(stolen)));
    let stream = TcpStream::connect(honest.addr).await.unwrap();
    let name = ServerName::try_from(node_name(&honest.id)).unwrap();
    let connected = tokio_rustls::TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await;
    let refused = match connected {
        // The other side judges after this side has finished.
        Ok(mut io) => io.read_u8().await.unwrap_err(),
        Err(error) => error,
    };
    let tls = refused
        .get_ref()
        .and_then(|e| e.downcast_ref::<rustls::Error>());
    let said = explain(tls.unwrap_or_else(|| panic!("{refused}")));
    assert!(said.contains("its key is not the certificate's"), "{said}");
    assert!(honest.notes.opened.lock().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_machine_loses_its_connections_and_gets_no_other() {
    let ca = Ca::new();
    let (a, bad, good) = (ca.peer(1), ca.peer(2), ca.peer(3));
    let (lost, kept) = (a.connect(&bad).await, a.connect(&good).await);
    // As peers here are certified: by the name of a machine.
    a.mesh.revoke(&[format!("machine-{}", bad.id)]);
    until("its connection is ended", SOON, || {
        lost.is_closed() && bad.mesh.is_empty()
    })
    .await;
    assert!(!kept.is_closed());
    let error = a.mesh.connect(bad.id, &[bad.addr]).await.unwrap_err();
    let said = error.to_string();
    assert!(said.contains("is revoked"), "{said}");
    let before = a.notes.opened.lock().unwrap().len();
    if let Ok(conn) = bad.mesh.connect(a.id, &[a.addr]).await {
        until("it is hung up on", SOON, || conn.is_closed()).await;
    }
    assert_eq!(a.notes.opened.lock().unwrap().len(), before);
    // One that joined by token is known by its identity alone.
    a.mesh.revoke(&[good.id.to_string()]);
    until("that one too", SOON, || kept.is_closed()).await;
    a.mesh.revoke(&[]);
    a.connect(&bad).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ca_is_replaced_while_connections_live_and_no_new_one_fails() {
    let (old, new) = (Ca::new(), Ca::new());
    let ids = [1, 2, 3].map(|n| NodeId([n; 16]));
    let tls = |signer: &Ca, id: &NodeId, trusted: &[&Ca]| -> TlsConfig {
        let key = rcgen::KeyPair::generate().unwrap();
        let (cert, _) = signer.cert(id, &key);
        let roots: Vec<CertificateDer<'static>> = trusted.iter().map(|ca| ca.der()).collect();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        TlsConfig::new(vec![cert], &key, &roots).unwrap()
    };
    let securities = ids.map(|id| Security::tls(tls(&old, &id, &[&old])));
    let nodes = [0, 1, 2].map(|n| Peer::of(ids[n], MESH, securities[n].clone(), QUICK));
    let first = nodes[0].connect(&nodes[1]).await;
    let steps: [(&Ca, &[&Ca]); 3] = [
        (&old, &[&old, &new]),
        (&new, &[&new, &old]),
        (&new, &[&new]),
    ];
    for (signer, trusted) in steps {
        // One after the other, as a rollout goes: between each, anybody can speak with anybody.
        for n in 0..3 {
            securities[n].replace(tls(signer, &ids[n], trusted));
            for (from, to) in [(0, 2), (2, 1)] {
                let conn = nodes[from].connect(&nodes[to]).await;
                let closed = dragonfly_transport::CloseReason::Local("again".to_owned());
                conn.close(closed);
                until("the pair is apart", SOON, || {
                    nodes[from].mesh.get(&ids[to]).is_none()
                        && nodes[to].mesh.get(&ids[from]).is_none()
                })
                .await;
            }
        }
    }
    first.send(1, &Frame::Pass);
    until("the first one lives", SOON, || {
        !nodes[1].notes.frames.lock().unwrap().is_empty()
    })
    .await;
}
