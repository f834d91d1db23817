//! A whole mesh in one process: scheduler, seed and peers over real sockets, from a real origin.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod kit;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use dragonfly_node::node::{Role, Settings};
use dragonfly_scheduler::core::CoreSettings;
use kit::scripted::{Script, Scripted};
use kit::{Origin, SchedulerProcess, TestMesh, authority, bytes, log, read_all};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_get_a_file_from_each_other_and_the_origin_sends_it_once() {
    log();
    let authority = authority();
    let scheduler = SchedulerProcess::start(
        "127.0.0.1:0".parse().unwrap(),
        authority.clone(),
        CoreSettings::default(),
    )
    .await;
    let mesh = TestMesh::new(vec![scheduler.addr], authority);
    let body = bytes(20 << 20 | 12345, 1);
    let origin = Origin::start(body.clone()).await;
    let _seed = mesh.node(100, Role::Seed).await;
    let mut peers = vec![];
    for n in 1..=4 {
        peers.push(mesh.node(n, Role::Peer).await);
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let url = origin.url("file");
    let started = Instant::now();
    let mut all = tokio::task::JoinSet::new();
    for p in peers {
        let url = url.clone();
        all.spawn(async move { (read_all(&p, &url).await, p) });
    }
    let mut from_peers = 0;
    while let Some(done) = all.join_next().await {
        let (result, p) = done.unwrap();
        assert!(result.unwrap() == body, "the bytes are not the origin's");
        from_peers += p.node.metrics.from_peers.get();
    }
    eprintln!(
        "all in {:?}, origin sent {}, peers {}",
        started.elapsed(),
        origin.sent.load(Ordering::Relaxed),
        from_peers
    );
    assert!(origin.sent.load(Ordering::Relaxed) <= body.len() as u64);
    assert!(from_peers > body.len() as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_seeds_that_emit_share_the_origin_and_it_sends_each_block_once() {
    log();
    let authority = authority();
    let mut settings = CoreSettings::default();
    settings.swarm.emitters = 2;
    let addr = "127.0.0.1:0".parse().unwrap();
    let scheduler = SchedulerProcess::start(addr, authority.clone(), settings).await;
    let mesh = TestMesh::new(vec![scheduler.addr], authority);
    let body = bytes(16 << 20 | 777, 9);
    let origin = Origin::with(body.clone(), true, 4 << 20).await;
    let seeds = [
        mesh.node(100, Role::Seed).await,
        mesh.node(101, Role::Seed).await,
    ];
    let mut peers = vec![];
    for n in 1..=3 {
        peers.push(mesh.node(n, Role::Peer).await);
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let url = origin.url("file");
    let all = futures::future::join_all(peers.iter().map(|p| read_all(p, &url)));
    let Ok(got) = tokio::time::timeout(Duration::from_secs(40), all).await else {
        kit::describe_all();
        panic!("no end within 40 s");
    };
    assert!(got.into_iter().all(|got| got.unwrap() == body));
    let read: Vec<u64> = seeds
        .iter()
        .map(|s| s.node.metrics.from_origin.get())
        .collect();
    eprintln!(
        "read from the origin: {read:?}, it sent {} of {}",
        origin.sent.load(Ordering::Relaxed),
        body.len()
    );
    assert_eq!(read.iter().sum::<u64>(), body.len() as u64, "{read:?}");
    assert!(
        read.iter().all(|r| *r > body.len() as u64 / 4),
        "both read: {read:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_one_of_two_seeds_dies_the_other_reads_its_share_too() {
    log();
    let authority = authority();
    let mut settings = CoreSettings::default();
    settings.swarm.emitters = 2;
    settings.swarm.peers_may_fetch = false;
    let addr = "127.0.0.1:0".parse().unwrap();
    let scheduler = SchedulerProcess::start(addr, authority.clone(), settings).await;
    let mesh = TestMesh::new(vec![scheduler.addr], authority);
    let body = bytes(12 << 20, 10);
    let origin = Origin::with(body.clone(), true, 1 << 20).await;
    let seeds = [
        mesh.node(100, Role::Seed).await,
        mesh.node(101, Role::Seed).await,
    ];
    let (a, b) = (
        mesh.node(1, Role::Peer).await,
        mesh.node(2, Role::Peer).await,
    );
    tokio::time::sleep(Duration::from_millis(300)).await;
    let url = origin.url("file");
    let kill = async {
        tokio::time::sleep(Duration::from_millis(1000)).await;
        seeds[1].node.shutdown().await;
    };
    let all = async { tokio::join!(read_all(&a, &url), read_all(&b, &url), kill) };
    let Ok((x, y, ())) = tokio::time::timeout(Duration::from_secs(40), all).await else {
        kit::describe_all();
        panic!("no end within 40 s");
    };
    assert!(x.unwrap() == body && y.unwrap() == body);
    let read: Vec<u64> = seeds
        .iter()
        .map(|s| s.node.metrics.from_origin.get())
        .collect();
    eprintln!("read from the origin: {read:?} of {}", body.len());
    // What the dead one had read and not passed on is read again.
    assert!(read[0] > body.len() as u64 / 2, "{read:?}");
    assert!(
        read.iter().sum::<u64>() < body.len() as u64 + (4 << 20),
        "{read:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn content_of_unknown_length_and_tiny_and_empty_files_arrive_whole() {
    log();
    let authority = authority();
    let scheduler = SchedulerProcess::start(
        "127.0.0.1:0".parse().unwrap(),
        authority.clone(),
        CoreSettings::default(),
    )
    .await;
    let mesh = TestMesh::new(vec![scheduler.addr], authority);
    let _seed = mesh.node(100, Role::Seed).await;
    let (a, b) = (
        mesh.node(1, Role::Peer).await,
        mesh.node(2, Role::Peer).await,
    );
    tokio::time::sleep(Duration::from_millis(300)).await;
    for (len, ranges) in [
        (0, true),
        (1, true),
        (65536, true),
        (0, false),
        (5, false),
        (3 << 20 | 9, false),
        (4 << 20, false),
    ] {
        let body = bytes(len, len as u64);
        let origin = Origin::with(body.clone(), ranges, 0).await;
        let url = origin.url("file");
        let got = tokio::time::timeout(Duration::from_secs(20), async {
            tokio::join!(read_all(&a, &url), read_all(&b, &url))
        });
        let (x, y) = got
            .await
            .unwrap_or_else(|_| panic!("{len} bytes, ranges {ranges}: no end"));
        assert!(
            x.unwrap() == body && y.unwrap() == body,
            "{len} bytes, ranges {ranges}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_seed_a_peer_goes_to_the_origin_where_policy_allows_it() {
    log();
    let authority = authority();
    let scheduler = SchedulerProcess::start(
        "127.0.0.1:0".parse().unwrap(),
        authority.clone(),
        CoreSettings::default(),
    )
    .await;
    let mesh = TestMesh::new(vec![scheduler.addr], authority);
    let (a, b) = (
        mesh.node(1, Role::Peer).await,
        mesh.node(2, Role::Peer).await,
    );
    tokio::time::sleep(Duration::from_millis(300)).await;
    let body = bytes(5 << 20, 3);
    let origin = Origin::start(body.clone()).await;
    let url = origin.url("file");
    let (x, y) = tokio::join!(read_all(&a, &url), read_all(&b, &url));
    assert!(x.unwrap() == body && y.unwrap() == body);
    assert!(origin.sent.load(Ordering::Relaxed) <= body.len() as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_peer_goes_to_the_origin_where_policy_forbids_it() {
    log();
    let authority = authority();
    let mut settings = CoreSettings::default();
    settings.swarm.peers_may_fetch = false;
    let scheduler =
        SchedulerProcess::start("127.0.0.1:0".parse().unwrap(), authority.clone(), settings).await;
    let mesh = TestMesh::new(vec![scheduler.addr], authority);
    let strict = Settings {
        back_to_source: false,
        ..Settings::default()
    };
    let a = mesh
        .node_with(1, Role::Peer, strict, tempfile::tempdir().unwrap())
        .await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let origin = Origin::start(bytes(100, 3)).await;
    let failure = read_all(&a, &origin.url("file")).await.unwrap_err();
    assert!(
        failure.message.contains("spec.backToSource"),
        "{}",
        failure.message
    );
    scheduler.kill().await;
    let failure = read_all(&a, &origin.url("file")).await.unwrap_err();
    assert!(failure.message.contains("policy"), "{}", failure.message);
    assert_eq!(origin.requests.load(Ordering::Relaxed), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_download_outlives_its_scheduler_and_the_origin_sends_nothing_twice() {
    log();
    let authority = authority();
    let scheduler = SchedulerProcess::start(
        "127.0.0.1:0".parse().unwrap(),
        authority.clone(),
        CoreSettings::default(),
    )
    .await;
    let addr = scheduler.addr;
    let mesh = TestMesh::new(vec![addr], authority.clone());
    let _seed = mesh.node(100, Role::Seed).await;
    let (a, b) = (
        mesh.node(1, Role::Peer).await,
        mesh.node(2, Role::Peer).await,
    );
    tokio::time::sleep(Duration::from_millis(300)).await;
    let body = bytes(12 << 20, 4);
    let origin = Origin::with(body.clone(), true, 2 << 20).await;
    let url = origin.url("file");
    let both = async { tokio::join!(read_all(&a, &url), read_all(&b, &url)) };
    let kill = async {
        tokio::time::sleep(Duration::from_millis(700)).await;
        scheduler.kill().await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        SchedulerProcess::start(addr, authority, CoreSettings::default()).await
    };
    let ((x, y), scheduler) = tokio::join!(both, kill);
    assert!(x.unwrap() == body && y.unwrap() == body);
    let sent = origin.sent.load(Ordering::Relaxed);
    assert!(sent <= body.len() as u64 + (1 << 20), "origin sent {sent}");
    // The new scheduler learnt who holds it: a late peer gets it without the origin.
    let c = mesh.node(3, Role::Peer).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(read_all(&c, &url).await.unwrap() == body);
    assert!(origin.sent.load(Ordering::Relaxed) <= sent + (64 << 10));
    scheduler.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_scheduler_replicas_share_the_tasks_and_one_may_die() {
    log();
    let authority = authority();
    let any = "127.0.0.1:0".parse().unwrap();
    let first = SchedulerProcess::start(any, authority.clone(), CoreSettings::default()).await;
    let second = SchedulerProcess::start(any, authority.clone(), CoreSettings::default()).await;
    let mesh = TestMesh::new(vec![first.addr, second.addr], authority);
    let _seed = mesh.node(100, Role::Seed).await;
    let (a, b) = (
        mesh.node(1, Role::Peer).await,
        mesh.node(2, Role::Peer).await,
    );
    tokio::time::sleep(Duration::from_millis(2500)).await;
    // Enough contents that each pair of owners (of request and of content) comes up.
    let mut origins = vec![];
    for n in 0..8 {
        origins.push(Origin::start(bytes(300_000, n)).await);
    }
    let all = async {
        for origin in &origins {
            let url = origin.url("file");
            let (x, y) = tokio::join!(read_all(&a, &url), read_all(&b, &url));
            assert!(x.unwrap() == *origin.body && y.unwrap() == *origin.body);
            assert_eq!(
                origin.sent.load(Ordering::Relaxed),
                origin.body.len() as u64
            );
        }
    };
    tokio::time::timeout(Duration::from_secs(20), all)
        .await
        .expect("replicas do not meet");
    // A content's own replica knows where it comes from, whichever of them looked it up: whoever gets
    // the lease next has it from there.
    for n in 0..8 {
        let mut script = Script::of(bytes(4 << 20, 50 + n));
        script.rate = 2 << 20;
        let origin = Scripted::start(script).await;
        let wish = dragonfly_node::download::Wish::Whole;
        let src = kit::source(&origin.url("file"));
        let download = a.node.download(src, wish).await.unwrap();
        let content = download.task().key();
        let known = async {
            let keeps = |s: &SchedulerProcess| s.service.keeps_source(&content);
            let owner = |s: &SchedulerProcess| {
                let mut tasks = s.service.inspect().tasks.into_iter();
                tasks.any(|t| t.content == content.0 && !t.emitter.is_empty())
            };
            loop {
                if [&first, &second].iter().any(|s| owner(s) && keeps(s)) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(2), known)
            .await
            .unwrap_or_else(|_| panic!("content {n}: its replica knows of no source"));
    }
    first.kill().await;
    let origin = Origin::start(bytes(300_000, 99)).await;
    let url = origin.url("f");
    let both = async { tokio::join!(read_all(&a, &url), read_all(&b, &url)) };
    let (x, y) = tokio::time::timeout(Duration::from_secs(20), both)
        .await
        .expect("no end");
    assert!(x.unwrap() == *origin.body && y.unwrap() == *origin.body);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whether_what_is_held_is_current_is_asked_without_a_body_and_a_new_version_is_fetched() {
    log();
    let authority = authority();
    let addr = "127.0.0.1:0".parse().unwrap();
    let scheduler = SchedulerProcess::start(addr, authority.clone(), CoreSettings::default()).await;
    let mesh = TestMesh::new(vec![scheduler.addr], authority);
    let settings = || Settings {
        freshness: Duration::ZERO,
        ..Settings::default()
    };
    let dir = || tempfile::tempdir().unwrap();
    let _seed = mesh.node_with(100, Role::Seed, settings(), dir()).await;
    let peer = mesh.node_with(1, Role::Peer, settings(), dir()).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let (first, second) = (bytes(3 << 20, 1), bytes(3 << 20, 2));
    let origin = Scripted::start(Script::of(first.clone())).await;
    let url = origin.url("file");
    let len = first.len() as u64;
    for asked in 0..3 {
        let before = origin.requests.load(Ordering::Relaxed);
        assert!(read_all(&peer, &url).await.unwrap() == first);
        assert_eq!(origin.sent(), len, "asked {asked} times before");
        assert!(
            origin.requests.load(Ordering::Relaxed) > before,
            "nobody asked the origin"
        );
    }
    origin.change(|s| (s.etag, s.body) = ("\"v2\"".into(), second.clone().into()));
    assert!(read_all(&peer, &url).await.unwrap() == second);
    assert_eq!(origin.sent(), 2 * len);
}
