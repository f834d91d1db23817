//! Content that changes at its origin is one version or the other, and never both.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "tests may fail loudly"
)]

mod kit;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use dragonfly_node::node::Role;
use dragonfly_scheduler::core::CoreSettings;
use kit::says::{Answer, origin};
use kit::{SchedulerProcess, TestMesh, TestNode, authority, bytes, log, read_all};

type Versions = [Vec<u8>; 2];

/// Two seeds, of which so many read at once, and a peer.
async fn world(emitters: u32) -> (SchedulerProcess, [TestNode; 2], TestNode) {
    log();
    let authority = authority();
    let any = "127.0.0.1:0".parse().unwrap();
    let mut settings = CoreSettings::default();
    settings.swarm.emitters = emitters;
    let scheduler = SchedulerProcess::start(any, authority.clone(), settings).await;
    let mesh = TestMesh::new(vec![scheduler.addr], authority);
    let seeds = [
        mesh.node(100, Role::Seed).await,
        mesh.node(101, Role::Seed).await,
    ];
    let client = mesh.node(1, Role::Peer).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    (scheduler, seeds, client)
}

fn versions() -> Versions {
    [bytes(6 << 20, 1), bytes(6 << 20, 2)]
}

/// An answer that says its length alone.
fn plain(body: &[u8], rate: u64) -> Answer {
    let head = format!("200 OK\r\ncontent-length: {}\r\n", body.len());
    (head, body.to_vec(), rate)
}

/// Nothing is delivered, or one of the two.
fn assert_not_mixed(got: &[u8], versions: &[Vec<u8>]) {
    let same = |of: &Vec<u8>| {
        let blocks = got.chunks(65536).zip(of.chunks(65536));
        blocks.filter(|(a, b)| a == b).count()
    };
    assert!(
        got.is_empty() || versions.iter().any(|version| version == got),
        "mixed: blocks of each version {:?}",
        versions.iter().map(same).collect::<Vec<_>>()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_versions_are_not_mixed_where_the_origin_gives_no_validator_and_a_seed_dies() {
    let (_scheduler, seeds, client) = world(1).await;
    let [old, new] = versions();
    let now = Arc::new(Mutex::new(plain(&old, 2 << 20)));
    let said = now.clone();
    let url = origin(move |_| said.lock().unwrap().clone()).await + "/file";
    let change = async {
        tokio::time::sleep(Duration::from_millis(1500)).await;
        *now.lock().unwrap() = plain(&new, 0);
        let reads = |seed: &&TestNode| seed.node.metrics.from_origin.get() > 0;
        seeds.iter().find(reads).unwrap().node.shutdown().await;
    };
    let both = async { tokio::join!(read_all(&client, &url), change) };
    let ended = tokio::time::timeout(Duration::from_secs(40), both).await;
    let (got, ()) = ended.unwrap();
    assert_not_mixed(&got.unwrap_or_default(), &[old, new]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_seeds_do_not_read_at_once_what_only_the_bytes_tell_apart() {
    let (_scheduler, seeds, client) = world(2).await;
    let all = versions();
    let (each, mut asked) = (all.clone(), 0);
    let url = origin(move |_| {
        asked += 1;
        plain(&each[asked % 2], 4 << 20)
    })
    .await
        + "/file";
    let got = read_all(&client, &url);
    let ended = tokio::time::timeout(Duration::from_secs(40), got).await;
    assert_not_mixed(&ended.unwrap().unwrap(), &all);
    let read = seeds.iter().map(|s| s.node.metrics.from_origin.get());
    assert_eq!(
        read.filter(|&bytes| bytes > 0).count(),
        1,
        "seeds that read"
    );
}
