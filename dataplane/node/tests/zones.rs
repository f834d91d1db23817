//! Two parts of the network, over real sockets: what crosses between them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod kit;

use std::time::Duration;

use dragonfly_node::node::Role;
use dragonfly_scheduler::core::CoreSettings;
use kit::{Origin, SchedulerProcess, TestMesh, TestNode, authority, bytes, log, read_all};

/// Bytes that nodes took from other nodes.
fn received(nodes: &[TestNode]) -> u64 {
    let of = |n: &TestNode| n.node.metrics.from_seeds.get() + n.node.metrics.from_peers.get();
    nodes.iter().map(of).sum()
}

fn uploaded(nodes: &[TestNode]) -> u64 {
    nodes.iter().map(|n| n.node.metrics.uploaded.get()).sum()
}

async fn world() -> (SchedulerProcess, TestMesh) {
    log();
    let authority = authority();
    let addr = "127.0.0.1:0".parse().unwrap();
    let scheduler = SchedulerProcess::start(addr, authority.clone(), CoreSettings::default()).await;
    let mesh = TestMesh::new(vec![scheduler.addr], authority);
    (scheduler, mesh)
}

async fn peers(mesh: &TestMesh, zone: &str, numbers: std::ops::Range<u8>) -> Vec<TestNode> {
    let mut nodes = vec![];
    for n in numbers {
        nodes.push(mesh.node_in(zone, n, Role::Peer).await);
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    nodes
}

async fn all(nodes: impl Iterator<Item = &TestNode>, url: &str, body: &[u8]) {
    let reads = futures::future::join_all(nodes.map(|n| read_all(n, url)));
    let Ok(got) = tokio::time::timeout(Duration::from_secs(40), reads).await else {
        kit::describe_all();
        panic!("no end within 40 s");
    };
    assert!(got.into_iter().all(|got| got.unwrap() == body));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_content_crosses_into_another_zone_once() {
    let (_scheduler, mesh) = world().await;
    let seed = vec![mesh.node_in("a", 100, Role::Seed).await];
    let near = peers(&mesh, "a", 1..4).await;
    let far = peers(&mesh, "b", 11..16).await;
    let body = bytes(24 << 20, 1);
    let origin = Origin::with(body.clone(), true, 16 << 20).await;
    all(near.iter().chain(&far), &origin.url("file"), &body).await;
    // What came into the zone is what its nodes took and did not get from each other.
    let crossed = received(&far) as f64 - uploaded(&far) as f64;
    let size = body.len() as f64;
    eprintln!("crossed {:.4} F", crossed / size);
    assert!(crossed >= size * 0.99, "{crossed} of {size}");
    assert!(crossed <= size * 1.04, "{crossed} of {size}");
    // And nothing went back: what the seed's zone took, it sent.
    let back = received(&near) as f64 + crossed - uploaded(&near) as f64 - uploaded(&seed) as f64;
    assert!(back.abs() <= size * 0.04, "{back} of {size}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_dies_is_replaced() {
    let (_scheduler, mesh) = world().await;
    let _seed = mesh.node_in("a", 100, Role::Seed).await;
    let near = peers(&mesh, "a", 1..3).await;
    let gateway = peers(&mesh, "b", 11..12).await;
    let far = peers(&mesh, "b", 12..15).await;
    let body = bytes(12 << 20, 2);
    let origin = Origin::with(body.clone(), true, 1 << 20).await;
    let url = origin.url("file");
    // Whoever comes first in its zone is its gateway.
    let dies = async {
        let reading = read_all(&gateway[0], &url);
        let killed = async {
            tokio::time::sleep(Duration::from_millis(1500)).await;
            let got = received(&gateway);
            gateway[0].node.shutdown().await;
            got
        };
        tokio::select! {
            _ = reading => panic!("the gateway was not meant to finish"),
            got = killed => got,
        }
    };
    let live = async {
        tokio::time::sleep(Duration::from_millis(400)).await;
        all(near.iter().chain(&far), &url, &body).await;
    };
    let (got, ()) = tokio::join!(dies, live);
    assert!(got > 0, "the gateway had begun");
    let crossed =
        received(&far) as f64 + got as f64 - uploaded(&far) as f64 - uploaded(&gateway) as f64;
    let size = body.len() as f64;
    eprintln!("crossed {:.4} F", crossed / size);
    // What the dead one had and had not passed on crosses again.
    assert!(crossed <= size * 1.25, "{crossed} of {size}");
}
