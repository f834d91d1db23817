//! What a replica counts of its nodes, and who may tell it what others counted.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod kit;

use std::sync::{Arc, Mutex};

use dragonfly_identity::{Authority, SCHEDULER_NAME, bundle, enroll};
use dragonfly_proto::id::NodeId;
use dragonfly_proto::rpc::{self, Role, from_node};
use dragonfly_scheduler::replicas::{self, Service, Sink};
use dragonfly_transport::{Callee, Calls};
use kit::{World, content};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use tokio::net::TcpListener;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};

fn report(home: bool) -> rpc::Report {
    rpc::Report {
        home,
        from_origin: 100,
        from_seeds: 20,
        from_peers: 3,
        from_cache: 1000,
        tasks_done: 2,
        tasks_failed: 1,
        failures: vec![failure("https://a.example", 403)],
        ..rpc::Report::default()
    }
}

fn failure(origin: &str, http_status: u32) -> rpc::FailureCount {
    rpc::FailureCount {
        code: rpc::failure::Code::Origin.into(),
        http_status,
        origin: origin.to_owned(),
        count: 1,
        finding: 0,
    }
}

fn ack(revision: u64, error: &str) -> from_node::Message {
    from_node::Message::PolicyAck(rpc::PolicyAck {
        uid: "u".to_owned(),
        revision,
        hash: format!("hash-{revision}"),
        error: error.to_owned(),
    })
}

#[test]
fn a_node_is_counted_by_its_home_alone() {
    let mut w = World::running(true);
    w.peer(1);
    w.peer(2);
    w.seed(3);
    w.say(1, from_node::Message::Report(report(true)));
    w.say(2, from_node::Message::Report(report(false)));
    w.say(3, from_node::Message::Report(report(true)));
    w.say(2, ack(4, ""));
    let sketch = w.core.sketch();
    assert_eq!((sketch.peers, sketch.seeds), (1, 1));
    let sums = sketch.sums.unwrap();
    assert_eq!((sums.from_origin, sums.tasks_done), (200, 4));
    assert_eq!(sums.delivered, 1123, "what a seed gets is for others");
    assert_eq!(sketch.failures.len(), 1);
    assert_eq!(sketch.failures[0].count, 2);
    assert!(sketch.policies.is_empty(), "{:?}", sketch.policies);
    // It has told that; what nodes have now it tells each time.
    let next = w.core.sketch();
    assert_eq!(next.sums, Some(rpc::Sums::default()));
    assert_eq!((next.peers, next.failures.len()), (1, 0));
    // Metrics go on.
    assert_eq!(w.core.totals().sums.from_origin, 200);
    // The node chose another home.
    w.say(1, from_node::Message::Report(rpc::Report::default()));
    w.disconnect(3);
    let next = w.core.sketch();
    assert_eq!((next.peers, next.seeds), (0, 0));
}

#[test]
fn nodes_are_counted_by_what_they_say_of_their_policy_and_never_listed() {
    let mut w = World::running(true);
    let home = rpc::Report {
        home: true,
        ..rpc::Report::default()
    };
    for n in 1..=100 {
        w.peer(n);
        w.say(n, from_node::Message::Report(home.clone()));
        let refuses = n % 10 == 0;
        let why = format!("why {n}");
        w.say(n, ack(7, if refuses { &why } else { "" }));
    }
    let sketch = w.core.sketch();
    let counted: Vec<_> = sketch
        .policies
        .iter()
        .map(|p| (p.revision, p.nodes, p.error.as_str()))
        .collect();
    assert_eq!(counted, [(7, 90, ""), (7, 10, "why 10")]);
    // Each with a policy of its own, and words without end.
    for n in 1..=100 {
        w.say(n, ack(u64::from(n), &"x".repeat(100_000)));
    }
    let sketch = w.core.sketch();
    assert!(sketch.policies.len() <= 16 && sketch.peers == 100);
    assert!(sketch.policies.iter().all(|p| p.error.len() <= 512));
}

#[test]
fn what_nodes_find_of_their_runtimes_is_counted_while_they_say_it() {
    let mut w = World::running(true);
    let said = |findings: &[i32]| {
        from_node::Message::Report(rpc::Report {
            home: true,
            runtimes: Some(rpc::RuntimeSettings {
                findings: findings.to_vec(),
            }),
            ..rpc::Report::default()
        })
    };
    let list = i32::from(rpc::Finding::ConfigPathList);
    let mirrors = i32::from(rpc::Finding::RegistryMirrors);
    for (node, findings) in [(1, &[][..]), (2, &[list, mirrors, list]), (3, &[list])] {
        w.peer(node);
        w.say(node, said(findings));
    }
    // It says nothing of runtimes, and one of a newer release of kinds without end.
    w.peer(4);
    w.say(4, from_node::Message::Report(report(true)));
    w.peer(5);
    let many: Vec<_> = (1000..100_000).collect();
    w.say(5, said(&many));
    let counted = |w: &mut World| {
        let sketch = w.core.sketch();
        let findings = sketch.findings.iter().map(|f| (f.finding, f.nodes));
        (sketch.looked_at, findings.collect::<Vec<_>>())
    };
    let (looked_at, findings) = counted(&mut w);
    assert_eq!(looked_at, 4);
    assert_eq!(findings, [(0, 1), (list, 2), (mirrors, 1)]);
    // A session that is made anew takes nothing away.
    w.disconnect(3);
    w.peer(3);
    assert_eq!(counted(&mut w), (4, findings));
    // It is mended; nobody looks any more; another replica counts it.
    w.say(2, said(&[]));
    w.say(5, from_node::Message::Report(report(true)));
    w.say(3, from_node::Message::Report(rpc::Report::default()));
    assert_eq!(counted(&mut w), (2, vec![]));
}

#[test]
fn failures_of_any_number_of_origins_stay_few_and_none_is_forgotten() {
    let mut w = World::running(true);
    w.peer(1);
    for n in 0..100 {
        let failures = (0..16).map(|m| failure(&format!("https://{n}-{m}.example"), 403));
        let report = rpc::Report {
            home: true,
            failures: failures.collect(),
            ..rpc::Report::default()
        };
        w.say(1, from_node::Message::Report(report));
    }
    let sketch = w.core.sketch();
    assert!(sketch.failures.len() <= 65, "{}", sketch.failures.len());
    assert_eq!(sketch.failures.iter().map(|f| f.count).sum::<u64>(), 1600);
}

#[test]
fn a_content_is_active_while_somebody_is_getting_it() {
    let mut w = World::running(true);
    w.seed(9);
    w.peer(1);
    w.begun(1);
    w.join(1, 1, |j| j.wants = true);
    assert_eq!(w.core.sketch().active_tasks, 1);
    w.join(1, 1, |j| j.complete = true);
    assert_eq!(w.core.sketch().active_tasks, 0);
    assert!(!w.core.keeps_source(&content(1)));
}

#[tokio::test]
async fn only_a_scheduler_of_the_mesh_may_tell_what_was_counted() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Arc::new(Authority::load_or_create(dir.path(), "m").unwrap());
    let told = Arc::new(Mutex::new(vec![]));
    let sink: Sink = {
        let told = told.clone();
        Arc::new(move |sketch: rpc::Sketch| {
            if sketch.number == 0 {
                return Err("scheduler-1 writes the status".to_owned());
            }
            told.lock().unwrap().push(sketch.replica);
            Ok(())
        })
    };
    let (cert, key) = authority.scheduler("holder").unwrap();
    let tls = ServerTlsConfig::new()
        .identity(Identity::from_pem(cert, key))
        .client_ca_root(Certificate::from_pem(authority.ca()))
        .client_auth_optional(true);
    let server = Server::builder()
        .tls_config(tls)
        .unwrap()
        .add_service(Service::server(sink, Some("m".to_owned())))
        .add_service(authority.server());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));

    let roots = bundle(authority.ca()).unwrap();
    let callee = Callee {
        mesh: Some("m".to_owned()),
        role: dragonfly_transport::Role::Scheduler,
        name: SCHEDULER_NAME.to_owned(),
    };
    let (cert, key) = authority.scheduler("scheduler-2").unwrap();
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let own = (bundle(&cert).unwrap(), &key);
    let scheduler = Calls::new(&roots, Some(own), callee.clone()).unwrap();
    let sketch = rpc::Sketch {
        replica: "scheduler-2".to_owned(),
        number: 1,
        ..rpc::Sketch::default()
    };
    let said = replicas::tell(&address, Some(scheduler.clone()), sketch.clone()).await;
    said.unwrap();
    let early = rpc::Sketch {
        number: 0,
        ..sketch.clone()
    };
    let said = replicas::tell(&address, Some(scheduler), early).await;
    assert!(said.unwrap_err().contains("scheduler-1 writes"));

    // A node of this mesh, in possession of the join token.
    let token = authority.token();
    let node = enroll(
        std::slice::from_ref(&address),
        &token,
        NodeId([3; 16]),
        Role::Seed,
    );
    let node = node.await.unwrap();
    let nobody = Calls::new(&roots, None, callee.clone()).unwrap();
    for (who, tls) in [("a node", node.client()), ("nobody", nobody)] {
        let said = replicas::tell(&address, Some(tls), sketch.clone()).await;
        let error = said.unwrap_err();
        assert!(error.contains("certificate"), "{who}: {error}");
    }
    assert_eq!(*told.lock().unwrap(), ["scheduler-2"]);

    // Who answers is a scheduler, but not what was called, or not of this mesh.
    let issuer = Callee {
        role: dragonfly_transport::Role::Issuer,
        ..callee.clone()
    };
    let other = Callee {
        mesh: Some("other".to_owned()),
        ..callee
    };
    for (callee, says) in [
        (issuer, "another part was called"),
        (other, "it is of another mesh"),
    ] {
        let calls = Calls::new(&roots, None, callee).unwrap();
        let said = replicas::tell(&address, Some(calls), sketch.clone()).await;
        let error = said.unwrap_err();
        assert!(
            error.contains(says) && error.contains("spiffe://m/scheduler/"),
            "{error}"
        );
    }
}
