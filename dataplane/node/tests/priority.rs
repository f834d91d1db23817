//! Downloads that contend for one link.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod kit;

use std::time::Duration;

use dragonfly_node::download::Wish;
use dragonfly_node::node::{Role, Settings};
use dragonfly_scheduler::core::CoreSettings;
use kit::{Origin, SchedulerProcess, TestMesh, authority, bytes, log, read_all, source};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_more_important_of_two_downloads_ends_first_and_the_other_goes_on() {
    log();
    let authority = authority();
    let addr = "127.0.0.1:0".parse().unwrap();
    let scheduler = SchedulerProcess::start(addr, authority.clone(), CoreSettings::default()).await;
    let mesh = TestMesh::new(vec![scheduler.addr], authority);
    let slow = Settings {
        upload_limit: 4 << 20,
        ..Settings::default()
    };
    let seed = mesh
        .node_with(100, Role::Seed, slow, tempfile::tempdir().unwrap())
        .await;
    let peer = mesh.node(1, Role::Peer).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let origins = [
        Origin::start(bytes(8 << 20, 1)).await,
        Origin::start(bytes(8 << 20, 2)).await,
    ];
    let urls = [origins[0].url("low"), origins[1].url("high")];
    for url in &urls {
        read_all(&seed, url).await.unwrap();
    }
    let low = peer.node.download(source(&urls[0]), Wish::Whole);
    let low = low.await.unwrap();
    low.prioritise(7);
    let high = peer.node.download(source(&urls[1]), Wish::Whole);
    let high = high.await.unwrap();
    let limit = Duration::from_secs(30);
    tokio::time::timeout(limit, high.finish())
        .await
        .unwrap()
        .unwrap();
    let (ended, other) = (high.task().held_bytes(), low.task().held_bytes());
    eprintln!("when {ended} bytes had come, {other} of the other had");
    assert!(other > 0, "nobody starves");
    assert!(other < ended / 2, "{other} of {ended}");
    tokio::time::timeout(limit, low.finish())
        .await
        .unwrap()
        .unwrap();
}
