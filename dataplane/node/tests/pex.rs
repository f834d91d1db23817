//! Neighbours through neighbours, while no scheduler answers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod kit;

use std::time::Duration;

use dragonfly_node::node::Role;
use dragonfly_scheduler::core::CoreSettings;
use kit::{Origin, SchedulerProcess, TestMesh, TestNode, authority, bytes, log, read_all};

fn neighbours(node: &TestNode) -> usize {
    node.node.tasks().first().map_or(0, |t| t.neighbours())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_scheduler_neighbours_are_found_through_neighbours() {
    log();
    let authority = authority();
    let mut settings = CoreSettings::default();
    // A sparse graph: nobody was told of more than a few others.
    settings.swarm.degree = 2;
    settings.swarm.mesh = 2;
    settings.swarm.first_level = 2;
    let addr = "127.0.0.1:0".parse().unwrap();
    let scheduler = SchedulerProcess::start(addr, authority.clone(), settings).await;
    let mesh = TestMesh::new(vec![scheduler.addr], authority);
    let _seed = mesh.node(100, Role::Seed).await;
    let mut peers = vec![];
    for n in 1..=7 {
        peers.push(mesh.node(n, Role::Peer).await);
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let body = bytes(10 << 20, 1);
    let origin = Origin::with(body.clone(), true, 1 << 20).await;
    let url = origin.url("file");
    let last = peers.pop().unwrap();
    let dying = async {
        let reading = read_all(&last, &url);
        let kill = async {
            tokio::time::sleep(Duration::from_millis(2500)).await;
            let before: Vec<usize> = peers.iter().map(neighbours).collect();
            scheduler.kill().await;
            last.node.shutdown().await;
            before
        };
        tokio::select! {
            _ = reading => panic!("it was not meant to finish"),
            before = kill => before,
        }
    };
    let watched = async {
        let before = dying.await;
        let mut most = vec![0; peers.len()];
        for _ in 0..20 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            for (most, peer) in most.iter_mut().zip(&peers) {
                *most = (*most).max(neighbours(peer));
            }
        }
        (before, most)
    };
    let all = futures::future::join_all(peers.iter().map(|p| read_all(p, &url)));
    let both = tokio::time::timeout(Duration::from_secs(40), async {
        tokio::join!(all, watched)
    });
    let Ok((got, (before, after))) = both.await else {
        kit::describe_all();
        panic!("no end within 40 s");
    };
    assert!(got.into_iter().all(|got| got.unwrap() == body));
    eprintln!("neighbours before {before:?}, after {after:?}");
    let sum = |of: &[usize]| of.iter().sum::<usize>();
    // Every peer knew of as many as it had; who lost one found more than that.
    assert!(sum(&after) >= sum(&before) + 3, "{before:?} {after:?}");
}
