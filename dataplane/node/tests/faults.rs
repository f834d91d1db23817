//! Seeds, schedulers, peers, disks and origins fail in the middle of downloads.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod kit;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use dragonfly_node::download::Wish;
use dragonfly_node::node::{Role, Settings};
use dragonfly_proto::id::ContentKey;
use dragonfly_proto::rpc::failure::Code;
use dragonfly_proto::sign::SigningKey;
use dragonfly_scheduler::core::CoreSettings;
use kit::scripted::{Script, Scripted};
use kit::{SchedulerProcess, TestMesh, TestNode, authority, bytes, log, read_all, source};

struct World {
    scheduler: SchedulerProcess,
    mesh: TestMesh,
    authority: Arc<SigningKey>,
}

async fn world(peers_may_fetch: bool) -> World {
    log();
    let authority = authority();
    let mut settings = CoreSettings::default();
    settings.swarm.peers_may_fetch = peers_may_fetch;
    let addr = "127.0.0.1:0".parse().unwrap();
    let scheduler = SchedulerProcess::start(addr, authority.clone(), settings).await;
    let mesh = TestMesh::new(vec![scheduler.addr], authority.clone());
    World {
        scheduler,
        mesh,
        authority,
    }
}

async fn sessions() {
    tokio::time::sleep(Duration::from_millis(300)).await;
}

async fn within<T>(what: &str, seconds: u64, f: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(Duration::from_secs(seconds), f).await;
    if done.is_err() {
        kit::describe_all();
    }
    done.unwrap_or_else(|_| panic!("{what}: no end within {seconds} s"))
}

/// Until a node has its session again, and for longer than a returning scheduler listens before it
/// decides.
async fn back(n: &TestNode) {
    within("the session", 20, async {
        while n.node.schedulers().is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    tokio::time::sleep(Duration::from_millis(2300)).await;
}

/// What is left of a download's bytes.
async fn read(mut d: dragonfly_node::download::Download) -> Vec<u8> {
    let mut out = vec![];
    while let Some(b) = d.next_chunk().await.unwrap() {
        out.extend_from_slice(&b);
    }
    out
}

async fn all(
    nodes: &[&TestNode],
    url: &str,
) -> Vec<Result<Vec<u8>, dragonfly_proto::rpc::Failure>> {
    futures::future::join_all(nodes.iter().map(|n| read_all(n, url))).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seed_that_dies_in_the_middle_is_followed_by_another_and_little_is_fetched_twice() {
    let w = world(false).await;
    let seeds = [
        w.mesh.node(100, Role::Seed).await,
        w.mesh.node(101, Role::Seed).await,
    ];
    let (a, b) = (
        w.mesh.node(1, Role::Peer).await,
        w.mesh.node(2, Role::Peer).await,
    );
    sessions().await;
    let body = bytes(12 << 20, 1);
    let mut script = Script::of(body.clone());
    script.rate = 2 << 20;
    let origin = Scripted::start(script).await;
    let url = origin.url("file");
    let mut lost = 0;
    let kill = async {
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let first = seeds
            .iter()
            .find(|s| s.node.metrics.from_origin.get() > 0)
            .unwrap();
        first.node.shutdown().await;
        let emitted = first.node.metrics.uploaded.get();
        lost = first.node.metrics.from_origin.get().saturating_sub(emitted);
        origin.change(|s| s.rate = 0);
    };
    let (got, ()) = within("download", 25, async {
        let both = [&a, &b];
        tokio::join!(all(&both, &url), kill)
    })
    .await;
    assert!(got.into_iter().all(|r| r.unwrap() == body));
    // Beside what died with the first seed, blocks that were on their way: from the origin to it, and
    // from it to two peers.
    let bound = body.len() as u64 + lost + (2 << 20);
    let sent = origin.sent();
    let read: u64 = seeds.iter().map(|s| s.node.metrics.from_origin.get()).sum();
    assert!(
        sent <= bound && read <= bound,
        "the origin sent {sent}, {read} were read, bound {bound}"
    );
}

fn digest(body: &[u8]) -> String {
    let sum = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, body);
    let hex: String = sum.as_ref().iter().map(|b| format!("{b:02x}")).collect();
    format!("sha256:{hex}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_node_fetched_without_any_scheduler_is_for_all_when_the_mesh_is_back() {
    for by_digest in [false, true] {
        let w = world(true).await;
        let addr = w.scheduler.addr;
        w.scheduler.kill().await;
        let a = w.mesh.node(1, Role::Peer).await;
        let body = bytes(3 << 20, 2);
        let origin = Scripted::start(Script::of(body.clone())).await;
        let mut src = source(&origin.url("file"));
        if by_digest {
            src.digest = digest(&body);
        }
        let got = within("alone", 15, a.node.fetch(&src, Wish::Whole)).await;
        let content = got.unwrap().task().key();
        let scheduler =
            SchedulerProcess::start(addr, w.authority.clone(), CoreSettings::default()).await;
        let (b, c) = (
            w.mesh.node(2, Role::Peer).await,
            w.mesh.node(3, Role::Peer).await,
        );
        back(&a).await;
        for n in [&b, &c, &a] {
            let got = within("together", 20, n.node.fetch(&src, Wish::Whole)).await;
            let got = got.unwrap();
            assert_eq!(got.task().key(), content);
            assert!(read(got).await == body);
        }
        let read = [&a, &b, &c].map(|n| n.node.metrics.from_origin.get());
        assert_eq!(read, [body.len() as u64, 0, 0], "by digest: {by_digest}");
        assert_eq!([&a, &b, &c].map(|n| n.node.metrics.bans.get()), [0, 0, 0]);
        drop(scheduler);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mesh_that_comes_back_in_the_middle_goes_on_with_what_was_read_alone() {
    let w = world(true).await;
    let addr = w.scheduler.addr;
    w.scheduler.kill().await;
    let a = w.mesh.node(1, Role::Peer).await;
    let body = bytes(12 << 20, 21);
    let mut script = Script::of(body.clone());
    script.rate = 1 << 20;
    let origin = Scripted::start(script).await;
    let url = origin.url("file");
    let (mut seed, mut b) = (None, None);
    // A stream, which must not be told that the content changed.
    let (at_a, at_b) = within("both", 40, async {
        let other = async {
            tokio::time::sleep(Duration::from_millis(4500)).await;
            let settings = CoreSettings::default();
            let s = SchedulerProcess::start(addr, w.authority.clone(), settings).await;
            seed = Some(w.mesh.node(100, Role::Seed).await);
            let b = b.insert(w.mesh.node(2, Role::Peer).await);
            back(&a).await;
            origin.change(|s| s.rate = 0);
            let got = read_all(b, &url).await;
            (got, s)
        };
        tokio::join!(read_all(&a, &url), other)
    })
    .await;
    assert!(at_a.unwrap() == body && at_b.0.unwrap() == body);
    let nodes = [Some(&a), seed.as_ref(), b.as_ref()].map(|n| &n.unwrap().node.metrics);
    let read: u64 = nodes.iter().map(|m| m.from_origin.get()).sum();
    assert!(
        read <= body.len() as u64 + (4 << 20),
        "{read} bytes were read of {}",
        body.len()
    );
    assert_eq!(nodes.map(|m| m.bans.get()), [0, 0, 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn content_of_unknown_length_is_fetched_alone_and_proven_too() {
    let w = world(true).await;
    let addr = w.scheduler.addr;
    w.scheduler.kill().await;
    let a = w.mesh.node(1, Role::Peer).await;
    let body = bytes((1 << 20) + 77, 22);
    let mut script = Script::of(body.clone());
    script.says_length = false;
    let origin = Scripted::start(script).await;
    let url = origin.url("file");
    assert!(within("alone", 15, read_all(&a, &url)).await.unwrap() == body);
    let _scheduler =
        SchedulerProcess::start(addr, w.authority.clone(), CoreSettings::default()).await;
    let b = w.mesh.node(2, Role::Peer).await;
    back(&a).await;
    assert!(within("together", 20, read_all(&b, &url)).await.unwrap() == body);
    assert_eq!(b.node.metrics.bans.get(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_seed_and_scheduler_die_at_once_peers_finish_from_the_origin_where_policy_lets_them() {
    let w = world(true).await;
    let seed = w.mesh.node(100, Role::Seed).await;
    let (a, b) = (
        w.mesh.node(1, Role::Peer).await,
        w.mesh.node(2, Role::Peer).await,
    );
    sessions().await;
    let body = bytes(8 << 20, 3);
    let mut script = Script::of(body.clone());
    script.rate = 2 << 20;
    let origin = Scripted::start(script).await;
    let url = origin.url("file");
    let kill = async {
        tokio::time::sleep(Duration::from_millis(1200)).await;
        seed.node.shutdown().await;
        w.scheduler.kill().await;
        origin.change(|s| s.rate = 0);
    };
    let (got, ()) = within("download", 30, async {
        let both = [&a, &b];
        tokio::join!(all(&both, &url), kill)
    })
    .await;
    assert!(got.into_iter().all(|r| r.unwrap() == body));
    assert_eq!([&a, &b].map(|n| n.node.metrics.bans.get()), [0, 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_restarts_goes_on_with_what_it_holds() {
    let w = world(false).await;
    let _seed = w.mesh.node(100, Role::Seed).await;
    let dir = tempfile::tempdir().unwrap();
    let a = w
        .mesh
        .node_of(1, 9, Role::Peer, Settings::default(), dir, 1 << 30)
        .await;
    sessions().await;
    let body = bytes(8 << 20, 4);
    let mut script = Script::of(body.clone());
    script.rate = 4 << 20;
    let origin = Scripted::start(script).await;
    let url = origin.url("file");
    let part = tokio::time::timeout(Duration::from_millis(1200), read_all(&a, &url)).await;
    assert!(part.is_err(), "too fast to be interrupted");
    a.node.shutdown().await;
    let held = a.node.store().usage().bytes;
    assert!(held > 1 << 20, "{held}");
    let TestNode { node, dir } = a;
    drop(node);
    let a = w
        .mesh
        .node_of(1, 9, Role::Peer, Settings::default(), dir, 1 << 30)
        .await;
    // Asked before it has a session: it does not know the mesh's authority yet.
    assert!(within("the rest", 20, read_all(&a, &url)).await.unwrap() == body);
    let m = &a.node.metrics;
    assert_eq!(m.bans.get(), 0);
    let again = m.from_seeds.get() + m.from_peers.get();
    assert!(
        again <= body.len() as u64 - held + (256 << 10),
        "{again} came again, {held} were held"
    );
    assert!(
        origin.sent() <= body.len() as u64 + (1 << 20),
        "{}",
        origin.sent()
    );
}

/// A node that may keep so many bytes.
async fn small(w: &World, number: u8, role: Role, space: u64) -> TestNode {
    let dir = tempfile::tempdir().unwrap();
    w.mesh
        .node_of(number, 1, role, Settings::default(), dir, space)
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_a_clear_error_there_and_the_others_finish() {
    let w = world(false).await;
    let _seed = w.mesh.node(100, Role::Seed).await;
    let small = small(&w, 1, Role::Peer, 2 << 20).await;
    let (b, c) = (
        w.mesh.node(2, Role::Peer).await,
        w.mesh.node(3, Role::Peer).await,
    );
    sessions().await;
    let body = bytes(8 << 20, 5);
    let origin = Scripted::start(Script::of(body.clone())).await;
    let url = origin.url("file");
    let mut got = within("download", 20, all(&[&small, &b, &c], &url)).await;
    let full = got.remove(0).unwrap_err();
    assert_eq!(full.code(), Code::NoSpace, "{}", full.message);
    assert!(got.into_iter().all(|r| r.unwrap() == body));
    // It works on for what fits.
    let little = Scripted::start(Script::of(bytes(1 << 20, 6))).await;
    let got = within("a small one", 10, read_all(&small, &little.url("little"))).await;
    assert!(got.unwrap() == bytes(1 << 20, 6));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_at_the_only_node_that_wants_a_content_is_an_error_there() {
    let w = world(false).await;
    let _seed = w.mesh.node(100, Role::Seed).await;
    let small = small(&w, 1, Role::Peer, 2 << 20).await;
    sessions().await;
    // More blocks than the seed pushes before any of them was heard to have arrived.
    let origin = Scripted::start(Script::of(bytes(32 << 20, 5))).await;
    let got = within("an end", 20, read_all(&small, &origin.url("file"))).await;
    let full = got.unwrap_err();
    assert_eq!(full.code(), Code::NoSpace, "{}", full.message);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_range_that_is_refused_leaves_no_credentials() {
    let w = world(false).await;
    let _seed = w.mesh.node(100, Role::Seed).await;
    let a = w.mesh.node(1, Role::Peer).await;
    sessions().await;
    let origin = Scripted::start(Script::of(bytes(1 << 20, 31))).await;
    let mut src = source(&origin.url("file"));
    src.digest = digest(&bytes(1 << 20, 31));
    let content = ContentKey::from_digest("", &src.digest);
    let wish = Wish::Range(2 << 20, None);
    let refused = a.node.download(src, wish).await.err().unwrap();
    assert_eq!(refused.code(), Code::Invalid, "{}", refused.message);
    within("the scheduler forgets", 5, async {
        while w.scheduler.service.keeps_source(&content) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seed_short_of_space_for_several_contents_at_once_says_so_and_works_on() {
    let w = world(false).await;
    let _seed = small(&w, 100, Role::Seed, 6 << 20).await;
    let peer = w.mesh.node(1, Role::Peer).await;
    sessions().await;
    let mut origins = vec![];
    for n in 0..4 {
        let mut script = Script::of(bytes(4 << 20, n));
        script.rate = 4 << 20;
        origins.push(Scripted::start(script).await);
    }
    let urls: Vec<_> = origins.iter().map(|o| o.url("file")).collect();
    let reads = urls.iter().map(|url| read_all(&peer, url));
    let got = within("downloads", 60, futures::future::join_all(reads)).await;
    for (n, got) in got.into_iter().enumerate() {
        match got {
            Ok(body) => assert!(body == bytes(4 << 20, n as u64), "content {n}"),
            Err(failure) => assert_eq!(failure.code(), Code::NoSpace, "{}", failure.message),
        }
    }
    let little = Scripted::start(Script::of(bytes(1 << 20, 6))).await;
    let got = within("a small one", 20, read_all(&peer, &little.url("little"))).await;
    assert!(got.unwrap() == bytes(1 << 20, 6));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn content_that_changes_under_way_is_fetched_anew_and_never_mixed() {
    let w = world(false).await;
    let seed = w.mesh.node(100, Role::Seed).await;
    let (a, b) = (
        w.mesh.node(1, Role::Peer).await,
        w.mesh.node(2, Role::Peer).await,
    );
    sessions().await;
    let (old, new) = (bytes(24 << 20, 7), bytes(24 << 20, 8));
    let mut script = Script::of(old.clone());
    // The first answer ends early, so that its rest must be asked for again.
    (script.rate, script.cut_after) = (8 << 20, Some(6 << 20));
    let origin = Scripted::start(script).await;
    let src = source(&origin.url("file"));
    let change = async {
        tokio::time::sleep(Duration::from_millis(400)).await;
        origin.change(|s| {
            s.body = Arc::new(new.clone());
            (s.etag, s.rate, s.cut_after) = ("\"v2\"".into(), 0, None);
        });
    };
    let fetch = |n: &TestNode| {
        let (node, src) = (n.node.clone(), src.clone());
        async move { node.fetch(&src, Wish::Whole).await }
    };
    let (x, y, ()) = within("download", 30, async {
        tokio::join!(fetch(&a), fetch(&b), change)
    })
    .await;
    for d in [x, y] {
        let mut d = d.unwrap_or_else(|f| panic!("{f:?}"));
        let mut out = vec![];
        while let Some(b) = d.next_chunk().await.unwrap() {
            out.extend_from_slice(&b);
        }
        assert!(
            out == new,
            "not the new version: {} bytes, old {}",
            out.len(),
            out == old
        );
    }
    drop(seed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_origin_refuses_is_a_clear_error_and_soon() {
    let w = world(false).await;
    let _seed = w.mesh.node(100, Role::Seed).await;
    let a = w.mesh.node(1, Role::Peer).await;
    sessions().await;
    for status in [403, 404, 410] {
        let mut script = Script::of(vec![]);
        script.status = status;
        let origin = Scripted::start(script).await;
        let f = within("refusal", 5, read_all(&a, &origin.url("file")))
            .await
            .unwrap_err();
        assert_eq!(
            (f.code(), f.http_status),
            (Code::Origin, u32::from(status)),
            "{}",
            f.message
        );
    }
    // Nobody listens there.
    let f = within("nobody", 60, read_all(&a, "http://127.0.0.1:9/file"))
        .await
        .unwrap_err();
    assert_eq!(f.code(), Code::OriginUnavailable, "{}", f.message);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_origin_that_hangs_up_again_and_again_is_asked_for_the_rest() {
    let w = world(false).await;
    let _seed = w.mesh.node(100, Role::Seed).await;
    let a = w.mesh.node(1, Role::Peer).await;
    sessions().await;
    let body = bytes(3 << 20, 9);
    let mut script = Script::of(body.clone());
    script.cut_after = Some(1 << 20);
    let origin = Scripted::start(script).await;
    assert!(
        within("download", 30, read_all(&a, &origin.url("file")))
            .await
            .unwrap()
            == body
    );
    assert!(origin.sent() <= body.len() as u64 + (1 << 20));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_origin_that_hangs_does_not_keep_others_waiting() {
    let w = world(false).await;
    let _seed = w.mesh.node(100, Role::Seed).await;
    let a = w.mesh.node(1, Role::Peer).await;
    sessions().await;
    // Takes connections and never answers.
    let hung = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/never", hung.local_addr().unwrap());
    let (node, src) = (a.node.clone(), source(&url));
    let stuck = tokio::spawn(async move { node.download(src, Wish::Whole).await.map(|_| ()) });
    tokio::time::sleep(Duration::from_millis(300)).await;
    let body = bytes(1 << 20, 10);
    let origin = Scripted::start(Script::of(body.clone())).await;
    assert!(
        within("another", 5, read_all(&a, &origin.url("file")))
            .await
            .unwrap()
            == body
    );
    stuck.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn content_that_is_not_what_its_digest_says_is_refused_and_not_kept() {
    let w = world(false).await;
    let _seed = w.mesh.node(100, Role::Seed).await;
    let a = w.mesh.node(1, Role::Peer).await;
    sessions().await;
    let origin = Scripted::start(Script::of(bytes(2 << 20, 11))).await;
    let mut src = source(&origin.url("file"));
    src.digest = format!("sha256:{}", "ab".repeat(32));
    let failed = within("digest", 15, a.node.fetch(&src, Wish::Whole))
        .await
        .unwrap_err();
    assert_eq!(failed.code(), Code::Digest, "{}", failed.message);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(a.node.store().list().len(), 0, "what is wrong is kept");
    assert!(a.node.tasks().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_range_costs_the_blocks_it_needs_and_the_rest_can_be_had_later() {
    let w = world(false).await;
    let _seed = w.mesh.node(100, Role::Seed).await;
    let a = w.mesh.node(1, Role::Peer).await;
    sessions().await;
    let body = bytes(16 << 20, 12);
    let mut script = Script::of(body.clone());
    script.rate = 8 << 20;
    let origin = Scripted::start(script).await;
    let src = source(&origin.url("file"));
    let range = Wish::Range(5_000_000, Some(5_100_000));
    let mut d = within("range", 10, a.node.fetch(&src, range))
        .await
        .unwrap();
    let mut out = vec![];
    while let Some(b) = d.next_chunk().await.unwrap() {
        out.extend_from_slice(&b);
    }
    assert!(out == body[5_000_000..5_100_000]);
    drop(d);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let taken = a.node.metrics.from_seeds.get();
    assert!(taken <= 4 * 65536, "{taken} bytes for 100 kB");
    assert!(origin.sent() < 4 << 20, "the origin sent {}", origin.sent());
    assert!(
        within("the rest", 15, read_all(&a, &origin.url("file")))
            .await
            .unwrap()
            == body
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_download_limit_slows_down_and_does_not_break() {
    let w = world(false).await;
    let _seed = w.mesh.node(100, Role::Seed).await;
    let slow = Settings {
        download_limit: 1 << 20,
        ..Settings::default()
    };
    let a = w
        .mesh
        .node_with(1, Role::Peer, slow, tempfile::tempdir().unwrap())
        .await;
    let b = w.mesh.node(2, Role::Peer).await;
    sessions().await;
    let body = bytes(4 << 20, 13);
    let origin = Scripted::start(Script::of(body.clone())).await;
    let url = origin.url("file");
    let since = std::time::Instant::now();
    let got = within("both", 20, all(&[&a, &b], &url)).await;
    assert!(got.into_iter().all(|r| r.unwrap() == body));
    assert!(since.elapsed() > Duration::from_secs(3), "not limited");
    assert_eq!(origin.sent(), body.len() as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_tasks_at_once_between_three_nodes_arrive_whole() {
    let w = world(false).await;
    let _seed = w.mesh.node(100, Role::Seed).await;
    let nodes = [
        w.mesh.node(1, Role::Peer).await,
        w.mesh.node(2, Role::Peer).await,
    ];
    sessions().await;
    let body = bytes(200_000, 14);
    let origin = Scripted::start(Script::of(body.clone())).await;
    many(&nodes, &origin, 200, &body, 30).await;
    assert_eq!(origin.sent(), 200 * body.len() as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_files_of_four_kib_at_once_between_three_nodes_arrive_whole() {
    let w = world(false).await;
    let _seed = w.mesh.node(100, Role::Seed).await;
    let nodes = [
        w.mesh.node(1, Role::Peer).await,
        w.mesh.node(2, Role::Peer).await,
    ];
    sessions().await;
    let body = bytes(4096, 15);
    let origin = Scripted::start(Script::of(body.clone())).await;
    many(&nodes, &origin, 1000, &body, 40).await;
    assert_eq!(origin.sent(), 1000 * body.len() as u64);
}

async fn many(nodes: &[TestNode], origin: &Scripted, count: usize, body: &[u8], seconds: u64) {
    let mut set = tokio::task::JoinSet::new();
    for n in 0..count {
        for node in nodes {
            let (node, url, body) = (
                node.node.clone(),
                origin.url(&format!("f{n}")),
                body.to_vec(),
            );
            set.spawn(async move {
                let mut d = node.download(source(&url), Wish::Whole).await.unwrap();
                let mut out = vec![];
                while let Some(b) = d.next_chunk().await.unwrap() {
                    out.extend_from_slice(&b);
                }
                assert!(out == body, "{url}");
            });
        }
    }
    let since = std::time::Instant::now();
    within("all files", seconds, async {
        while let Some(done) = set.join_next().await {
            done.unwrap();
        }
    })
    .await;
    let bans: Vec<_> = nodes.iter().map(|n| n.node.metrics.bans.get()).collect();
    eprintln!(
        "{count} files at {} nodes in {:?}",
        nodes.len(),
        since.elapsed()
    );
    assert!(bans.iter().all(|b| *b == 0), "{bans:?}");
    let _ = origin.requests.load(Ordering::Relaxed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_gives_up_before_the_origin_answers_leaves_its_credentials_nowhere() {
    let w = world(false).await;
    let _seed = w.mesh.node(100, Role::Seed).await;
    let a = w.mesh.node(1, Role::Peer).await;
    sessions().await;
    let body = bytes(8 << 20, 32);
    let mut script = Script::of(body.clone());
    (script.rate, script.thinks) = (1 << 20, Duration::from_secs(1));
    let origin = Scripted::start(script).await;
    let mut src = source(&origin.url("file"));
    src.digest = digest(&body);
    let content = ContentKey::from_digest("", &src.digest);
    let gone = a.node.download(src, Wish::Whole);
    assert!(
        tokio::time::timeout(Duration::from_millis(300), gone)
            .await
            .is_err()
    );
    within("the scheduler hears of the content", 5, async {
        while w.scheduler.service.inspect().tasks.is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    within("the scheduler forgets", 5, async {
        while w.scheduler.service.keeps_source(&content) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_gives_up_leaves_its_credentials_nowhere() {
    let w = world(false).await;
    let _seed = w.mesh.node(100, Role::Seed).await;
    let a = w.mesh.node(1, Role::Peer).await;
    sessions().await;
    let mut script = Script::of(bytes(8 << 20, 31));
    script.rate = 1 << 20;
    let origin = Scripted::start(script).await;
    let mut src = source(&origin.url("file"));
    src.headers = vec![dragonfly_proto::rpc::Header {
        name: "authorization".to_owned(),
        value: "Bearer secret".to_owned(),
    }];
    let download = a.node.download(src, Wish::Whole).await.unwrap();
    let content = download.task().key();
    assert!(w.scheduler.service.keeps_source(&content));
    drop(download);
    within("the scheduler forgets", 5, async {
        while w.scheduler.service.keeps_source(&content) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}
