//! Who gets a session, by the certificate that he shows.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod kit;

use std::sync::Arc;
use std::time::Duration;

use dragonfly_identity::{Authority, Credentials, SCHEDULER_NAME, bundle, enroll, incoming, view};
use dragonfly_proto::id::NodeId;
use dragonfly_proto::rpc::scheduler_client::SchedulerClient;
use dragonfly_proto::rpc::{self, FromNode, Role, from_node};
use dragonfly_scheduler::core::{Core, CoreSettings};
use dragonfly_scheduler::service::Service;
use dragonfly_transport::{Callee, Calls};
use kit::MESH;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Endpoint, Server};

struct Bed {
    service: Service,
    authority: Arc<Authority>,
    address: String,
    _dir: tempfile::TempDir,
}

async fn bed() -> Bed {
    let dir = tempfile::tempdir().unwrap();
    let authority = Arc::new(Authority::load_or_create(dir.path(), "m").unwrap());
    let core = Core::new(
        "s".to_owned(),
        vec![],
        MESH,
        authority.signing.clone(),
        CoreSettings::default(),
        1,
    );
    let service = Service::new(core, Some("m".to_owned()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let shown = authority.credentials("s").unwrap().tls.calls;
    let callers = incoming(listener, move || Some(shown.clone()), |_| {});
    let server = Server::builder()
        .add_service(service.server())
        .add_service(authority.server());
    tokio::spawn(server.serve_with_incoming(callers));
    Bed {
        service,
        authority,
        address,
        _dir: dir,
    }
}

type Session = (mpsc::Sender<FromNode>, tonic::Streaming<rpc::ToNode>);

impl Bed {
    async fn enrolled(&self, node: NodeId, role: Role) -> Credentials {
        let at = [self.address.clone()];
        enroll(&at, &self.authority.token(), node, role)
            .await
            .unwrap()
    }

    async fn session(
        &self,
        credentials: &Credentials,
        node: NodeId,
        role: Role,
    ) -> Result<Session, String> {
        // Who comes as somebody else does not mind who answers.
        let callee = Callee {
            mesh: None,
            role: dragonfly_transport::Role::Scheduler,
            name: SCHEDULER_NAME.to_owned(),
        };
        let key = PrivateKeyDer::from_pem_slice(credentials.key.as_bytes()).unwrap();
        let own = Some((bundle(&credentials.cert).unwrap(), &key));
        let calls = Calls::new(&bundle(&credentials.ca).unwrap(), own, callee).unwrap();
        let channel = Endpoint::from_shared(format!("http://{}", self.address))
            .unwrap()
            .connect_with_connector(calls)
            .await
            .unwrap();
        let (out, messages) = mpsc::channel(8);
        let hello = rpc::NodeHello {
            node: node.0.to_vec(),
            role: role.into(),
            signing_key: vec![1; 32],
            ..rpc::NodeHello::default()
        };
        let hello = FromNode {
            message: Some(from_node::Message::Hello(hello)),
        };
        out.send(hello).await.unwrap();
        let mut client = SchedulerClient::new(channel);
        let answer = client.session(ReceiverStream::new(messages)).await;
        let answer = answer.map_err(|status| status.message().to_owned())?;
        Ok((out, answer.into_inner()))
    }
}

#[tokio::test]
async fn a_session_is_had_only_as_what_the_certificate_says() {
    let bed = bed().await;
    let (own, other) = (NodeId([3; 16]), NodeId([4; 16]));
    let peer = bed.enrolled(own, Role::Peer).await;
    let seed = bed.enrolled(own, Role::Seed).await;
    let looks = view(&bed.address, &bed.authority.token()).await.unwrap();
    let scheduler = bed.authority.credentials("s").unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    // Another mesh that shares the CA: as somebody would make who copies STATE/mesh.
    for name in ["ca.pem", "ca.key", "authority.key", "join.secret"] {
        std::fs::copy(bed._dir.path().join(name), elsewhere.path().join(name)).unwrap();
    }
    let foreign = Authority::load_or_create(elsewhere.path(), "other").unwrap();
    let foreign = foreign.credentials("s").unwrap();
    for (what, shown, node, role, says) in [
        (
            "a peer as a seed",
            &peer,
            own,
            Role::Seed,
            "its certificate says peer",
        ),
        (
            "a seed as a peer",
            &seed,
            own,
            Role::Peer,
            "its certificate says seed",
        ),
        ("another node", &peer, other, Role::Peer, "is not node"),
        ("one who only looks", &looks, own, Role::Peer, "is not node"),
        ("a scheduler", &scheduler, own, Role::Peer, "is not node"),
        ("another mesh's", &foreign, own, Role::Peer, "is not node"),
    ] {
        let refused = bed.session(shown, node, role).await;
        let Err(said) = refused else {
            panic!("{what}: let in")
        };
        assert!(said.contains(says), "{what}: {said}");
    }
    assert!(bed.service.inspect().nodes.is_empty());
    let _peer = bed.session(&peer, own, Role::Peer).await.unwrap();
    let _seed = bed
        .session(&bed.enrolled(other, Role::Seed).await, other, Role::Seed)
        .await
        .unwrap();
    assert_eq!(bed.service.inspect().nodes.len(), 2);
}

#[tokio::test]
async fn a_revoked_nodes_session_is_ended_and_no_other_is_had() {
    let bed = bed().await;
    let (bad, good) = (NodeId([3; 16]), NodeId([4; 16]));
    let shown = bed.enrolled(bad, Role::Peer).await;
    let (_out, mut told) = bed.session(&shown, bad, Role::Peer).await.unwrap();
    let kept = bed.enrolled(good, Role::Peer).await;
    let (_good, mut kept_told) = bed.session(&kept, good, Role::Peer).await.unwrap();
    bed.service.revoke(&[bad.to_string()]);
    let ended = async { while let Ok(Some(_)) = told.message().await {} };
    tokio::time::timeout(Duration::from_secs(5), ended)
        .await
        .unwrap();
    let Err(said) = bed.session(&shown, bad, Role::Peer).await else {
        panic!("let in again")
    };
    assert!(said.contains("is revoked"), "{said}");
    // The other one was told welcome and is still listened to.
    assert!(kept_told.message().await.unwrap().is_some());
    let still = tokio::time::timeout(Duration::from_millis(200), kept_told.message()).await;
    assert!(still.is_err(), "its session ended too");
    bed.service.revoke(&[]);
    bed.session(&shown, bad, Role::Peer).await.unwrap();
}
