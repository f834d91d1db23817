//! What a node holds is damaged on its disk, and it does not know: a mesh in one process over real sockets.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod kit;

use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use dragonfly_node::node::{Role, Settings};
use dragonfly_proto::rpc::failure::Code;
use dragonfly_scheduler::core::CoreSettings;
use kit::{Origin, SchedulerProcess, TestMesh, TestNode, authority, bytes, log, read_all};

/// Blocks of the content in these tests.
const BLOCK: usize = 64 << 10;
const LEN: usize = 8 << 20;

/// Changes a byte of every block of all contents here: of its bytes, or of what is known of them. Or a
/// file ends too soon, which is how what a disk cannot read shows.
fn damage(dir: &Path, what: &str) {
    let mut damaged = 0;
    if what == "cut" {
        let all = files(dir);
        let data = |f: &&std::path::PathBuf| f.extension().is_some_and(|e| e == "data");
        for file in all.iter().filter(data) {
            let open = std::fs::File::options().write(true).open(file).unwrap();
            open.set_len(BLOCK as u64 / 2).unwrap();
            damaged += LEN / BLOCK;
        }
    }
    for file in files(dir) {
        if file.extension().is_some_and(|e| e == what) {
            let open = std::fs::File::options().read(true).write(true).open(&file);
            let open = open.unwrap();
            let len = open.metadata().unwrap().len();
            // Records lie closer together than blocks.
            let step = if what == "data" { BLOCK } else { 256 };
            for at in (100..len).step_by(step) {
                let mut byte = [0];
                open.read_exact_at(&mut byte, at).unwrap();
                open.write_all_at(&[byte[0] ^ 1], at).unwrap();
                damaged += 1;
            }
        }
    }
    assert!(damaged > LEN / BLOCK / 2, "{what}: {damaged}");
}

fn files(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut found = vec![];
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found
}

async fn until(what: &str, seconds: u64, is: impl Fn() -> bool) {
    let waits = async {
        while !is() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let done = tokio::time::timeout(Duration::from_secs(seconds), waits).await;
    if done.is_err() {
        kit::describe_all();
    }
    done.unwrap_or_else(|_| panic!("{what}: not within {seconds} s"));
}

/// A scheduler, a mesh and an origin of one content.
async fn world(peers_may_fetch: bool) -> (SchedulerProcess, TestMesh, Origin, Vec<u8>) {
    log();
    let authority = authority();
    let addr = "127.0.0.1:0".parse().unwrap();
    let mut settings = CoreSettings::default();
    settings.swarm.peers_may_fetch = peers_may_fetch;
    let scheduler = SchedulerProcess::start(addr, authority.clone(), settings).await;
    let mesh = TestMesh::new(vec![scheduler.addr], authority);
    let body = bytes(LEN, 3);
    let origin = Origin::start(body.clone()).await;
    (scheduler, mesh, origin, body)
}

/// A seed, and a peer that got the content by it.
async fn pair(mesh: &TestMesh, url: &str, body: &[u8]) -> (TestNode, TestNode) {
    let seed = mesh.node(100, Role::Seed).await;
    let peer = mesh.node(1, Role::Peer).await;
    sessions().await;
    assert!(read_all(&peer, url).await.unwrap() == body);
    (seed, peer)
}

async fn sessions() {
    tokio::time::sleep(Duration::from_millis(300)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_damaged_on_a_nodes_disk_is_deleted_there_and_had_anew() {
    for what in ["data", "index", "cut"] {
        let (_scheduler, mesh, origin, body) = world(false).await;
        let url = origin.url("file");
        let (seed, _first) = pair(&mesh, &url, &body).await;
        let second = mesh.node(2, Role::Peer).await;
        sessions().await;
        assert_eq!(origin.sent.load(Ordering::Relaxed), LEN as u64);

        damage(seed.dir.path(), what);
        let read = tokio::time::timeout(Duration::from_secs(20), read_all(&second, &url)).await;
        assert!(read.expect(what).unwrap() == body, "{what}");
        until(what, 10, || seed.node.metrics.contents_damaged.get() == 1).await;
        until(what, 10, || seed.node.tasks().is_empty()).await;
        let left = files(seed.dir.path());
        let of_content = |f: &&std::path::PathBuf| f.extension().is_some_and(|e| e == "data");
        assert_eq!(
            left.iter().filter(of_content).count(),
            0,
            "{what}: {left:?}"
        );
        // It is as good as any other again.
        let third = mesh.node(3, Role::Peer).await;
        sessions().await;
        assert!(read_all(&third, &url).await.unwrap() == body, "{what}");
        assert_eq!(third.node.metrics.bans.get(), 0, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_damaged_at_the_only_node_that_holds_it_is_had_from_the_origin_again() {
    for what in ["data", "index", "cut"] {
        let (_scheduler, mesh, origin, body) = world(false).await;
        let url = origin.url("file");
        let (seed, first) = pair(&mesh, &url, &body).await;
        first.node.shutdown().await;
        damage(seed.dir.path(), what);
        // One waits until it speaks to the seed again.
        let second = mesh.node(2, Role::Peer).await;
        sessions().await;
        let read = tokio::time::timeout(Duration::from_secs(40), read_all(&second, &url)).await;
        assert!(read.expect(what).unwrap() == body, "{what}");
        assert_eq!(seed.node.metrics.contents_damaged.get(), 1, "{what}");
        assert_eq!(origin.sent.load(Ordering::Relaxed), 2 * LEN as u64);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seed_that_all_were_sent_damaged_blocks_by_is_taken_back() {
    let (_scheduler, mesh, origin, body) = world(false).await;
    let url = origin.url("file");
    let (seed, first) = pair(&mesh, &url, &body).await;
    first.node.shutdown().await;
    damage(seed.dir.path(), "data");
    let mut peers = vec![];
    for n in 2..6 {
        peers.push(mesh.node(n, Role::Peer).await);
    }
    sessions().await;
    let all = futures::future::join_all(peers.iter().map(|p| read_all(p, &url)));
    let all = tokio::time::timeout(Duration::from_secs(60), all).await;
    for read in all.expect("an end") {
        assert!(read.unwrap() == body);
    }
    assert_eq!(seed.node.metrics.contents_damaged.get(), 1);
    assert_eq!(origin.sent.load(Ordering::Relaxed), 2 * LEN as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_disk_changed_while_a_node_was_away_its_clients_do_not_get() {
    // Records that were changed, and files that were cut, are found when the store is opened.
    let (_scheduler, mesh, origin, body) = world(false).await;
    let url = origin.url("file");
    let (_seed, first) = pair(&mesh, &url, &body).await;
    let TestNode { node, dir } = first;
    node.shutdown().await;
    drop(node);
    damage(dir.path(), "data");

    let again = mesh
        .node_with(1, Role::Peer, Settings::default(), dir)
        .await;
    sessions().await;
    let told = read_all(&again, &url).await.unwrap_err();
    assert_eq!(told.code(), Code::Changed, "{told:?}");
    let got = tokio::time::timeout(Duration::from_secs(20), read_all(&again, &url)).await;
    assert!(got.expect("an end").unwrap() == body);
    // Compared once: what is there now was just written.
    assert!(read_all(&again, &url).await.unwrap() == body);
    assert_eq!(again.node.metrics.contents_damaged.get(), 1);
    assert_eq!(origin.sent.load(Ordering::Relaxed), LEN as u64);
}
