//! Origins that say now this and now that, and clients that name origins which lead nowhere: what others
//! ask for is had all the same.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod kit;

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dragonfly_node::download::Wish;
use dragonfly_node::node::{Role, Settings};
use dragonfly_proto::rpc::{self, failure::Code};
use dragonfly_scheduler::core::CoreSettings;
use kit::says::origin;
use kit::{SchedulerProcess, TestMesh, authority, bytes, log, read, read_all, source};

async fn world() -> (SchedulerProcess, TestMesh) {
    log();
    let authority = authority();
    let any = "127.0.0.1:0".parse().unwrap();
    let scheduler = SchedulerProcess::start(any, authority.clone(), CoreSettings::default()).await;
    let mesh = TestMesh::new(vec![scheduler.addr], authority);
    (scheduler, mesh)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_held_before_an_origin_said_its_length_is_had_when_it_says_it() {
    let says = Arc::new(Mutex::new(false));
    let body = bytes(1 << 20, 1);
    let (told, sent) = (says.clone(), body.clone());
    let url = origin(move |_| {
        // As a proxy does it that has it in its cache only the second time.
        let length = match *told.lock().unwrap() {
            false => String::new(),
            true => format!("content-length: {}\r\n", sent.len()),
        };
        let head = format!("200 OK\r\netag: \"v1\"\r\n{length}");
        (head, sent.clone(), 0)
    })
    .await;
    let url = format!("{url}/file");
    let settings = || Settings {
        freshness: Duration::from_millis(1),
        back_to_source: false,
        ..Settings::default()
    };
    // One that held all of it, and one that held a part.
    let (dir, scrap) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (scheduler, mesh) = world().await;
    let seed = mesh.node(100, Role::Seed).await;
    let node_of = |mesh: TestMesh, n, dir| async move {
        mesh.node_of(n, 9, Role::Peer, settings(), dir, 1 << 30)
            .await
    };
    let a = node_of(mesh.clone(), 1, dir).await;
    let b = node_of(mesh, 2, scrap).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let part = Wish::Range(0, Some(1 << 18));
    let part = b.node.fetch(&source(&url), part).await.unwrap();
    drop(part);
    assert!(read_all(&a, &url).await.unwrap() == body);
    // Those machines are away for a while; everything else is new by then.
    let mut kept = vec![];
    for kit::TestNode { node, dir } in [a, b] {
        node.shutdown().await;
        kept.push(dir);
    }
    seed.node.shutdown().await;
    drop((seed, scheduler));
    *says.lock().unwrap() = true;
    let (_scheduler, mesh) = world().await;
    let _seed = mesh.node(101, Role::Seed).await;
    let c = mesh.node(3, Role::Peer).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(read_all(&c, &url).await.unwrap() == body);
    for (n, dir) in (1..).zip(kept) {
        let back = node_of(mesh.clone(), n, dir).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        for _ in 0..2 {
            let got = tokio::time::timeout(Duration::from_secs(20), read_all(&back, &url)).await;
            assert!(got.unwrap().unwrap() == body);
        }
    }
}

fn digest(bytes: &[u8]) -> String {
    let sum = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    let hex: String = sum.as_ref().iter().map(|b| format!("{b:02x}")).collect();
    format!("sha256:{hex}")
}

/// A client names a digest and a place that sends `others` at `rate`; another one, on this node or on the
/// first one's, names the same digest and where it is. What the second one gets.
async fn same_digest_from_two(others: Vec<u8>, rate: u64, same_node: bool) {
    let (_scheduler, mesh) = world().await;
    let _seed = mesh.node(100, Role::Seed).await;
    let (a, b) = (
        mesh.node(1, Role::Peer).await,
        mesh.node(2, Role::Peer).await,
    );
    tokio::time::sleep(Duration::from_millis(300)).await;
    let body = bytes(1 << 20, 1);
    let good = kit::Origin::start(body.clone()).await;
    let other = origin(move |_| {
        let head = format!(
            "200 OK\r\netag: \"e\"\r\ncontent-length: {}\r\n",
            others.len()
        );
        (head, others.clone(), rate)
    })
    .await;
    let named = |url: String| rpc::Source {
        digest: digest(&body),
        ..source(&url)
    };
    let (other, first) = (named(format!("{other}/x")), a.node.clone());
    let first = tokio::spawn(async move { first.fetch(&other, Wish::Whole).await.map(drop) });
    tokio::time::sleep(Duration::from_millis(500)).await;
    let node = if same_node { &a } else { &b };
    for _ in 0..2 {
        let read = read(node, named(good.url("file")));
        let got = tokio::time::timeout(Duration::from_secs(10), read).await;
        assert!(got.unwrap().unwrap() == body);
    }
    let file = good.requests.load(Ordering::Relaxed);
    assert_eq!(file, 1, "what was had once is held");
    // The first one's place is to blame for what that one gets.
    if rate > 1 << 19 {
        let failure = first.await.unwrap().unwrap_err();
        assert_eq!(failure.code(), Code::Digest, "{failure:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_digest_that_somebody_asks_a_slow_origin_for_is_had_from_a_fast_one() {
    same_digest_from_two(bytes(1 << 20, 9), 2048, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_digest_that_somebody_asks_a_wrong_origin_for_is_had_from_the_right_one() {
    same_digest_from_two(bytes(3 << 20, 9), 1 << 20, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_on_one_node() {
    same_digest_from_two(bytes(1 << 20, 9), 2048, true).await;
    same_digest_from_two(bytes(1 << 20, 9), 1 << 20, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_digest_that_somebody_compared_is_had_from_him_wherever_it_is_said_to_be() {
    let (_scheduler, mesh) = world().await;
    let _seed = mesh.node(100, Role::Seed).await;
    let (a, b) = (
        mesh.node(1, Role::Peer).await,
        mesh.node(2, Role::Peer).await,
    );
    tokio::time::sleep(Duration::from_millis(300)).await;
    let body = bytes(1 << 20, 1);
    let named = |url: &str| rpc::Source {
        digest: digest(&body),
        ..source(url)
    };
    let origin = kit::Origin::start(body.clone()).await;
    assert!(read(&a, named(&origin.url("file"))).await.unwrap() == body);
    tokio::time::sleep(Duration::from_millis(100)).await;
    let nobody = named("http://127.0.0.1:1/nobody");
    assert!(read(&b, nobody).await.unwrap() == body);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_origin_keeps_no_digest_from_others_where_two_replicas_share_the_tasks() {
    log();
    let authority = authority();
    let start = || {
        let any = "127.0.0.1:0".parse().unwrap();
        SchedulerProcess::start(any, authority.clone(), CoreSettings::default())
    };
    let schedulers = [start().await, start().await];
    let mesh = TestMesh::new(schedulers.iter().map(|s| s.addr).collect(), authority);
    let _seed = mesh.node(100, Role::Seed).await;
    let (a, b) = (
        mesh.node(1, Role::Peer).await,
        mesh.node(2, Role::Peer).await,
    );
    tokio::time::sleep(Duration::from_millis(1000)).await;
    let slow = kit::Origin::with(bytes(256 << 10, 99), true, 2048).await;
    // Enough that replicas own contents and requests in every way.
    for n in 0..8 {
        let body = bytes(256 << 10, n);
        let good = kit::Origin::start(body.clone()).await;
        let named = |url: String| rpc::Source {
            digest: digest(&body),
            ..source(&url)
        };
        let (first, there) = (a.node.clone(), named(slow.url(&format!("{n}"))));
        let first = tokio::spawn(async move { first.fetch(&there, Wish::Whole).await.map(drop) });
        tokio::time::sleep(Duration::from_millis(200)).await;
        let read = read(&b, named(good.url("file")));
        let got = tokio::time::timeout(Duration::from_secs(5), read).await;
        assert!(got.unwrap().unwrap() == body, "{n}");
        first.abort();
    }
}

/// A URL signed for S3.
fn signed(url: &str, signature: &str) -> String {
    format!("{url}?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Signature={signature}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_who_are_let_in_by_signatures_of_their_own_share_a_digest_that_nobody_compared_yet() {
    let (_scheduler, mesh) = world().await;
    let _seed = mesh.node(100, Role::Seed).await;
    let (a, b) = (
        mesh.node(1, Role::Peer).await,
        mesh.node(2, Role::Peer).await,
    );
    tokio::time::sleep(Duration::from_millis(300)).await;
    let body = bytes(2 << 20, 1);
    let (sent, bodies) = (body.clone(), Arc::new(Mutex::new(0)));
    let count = bodies.clone();
    let url = origin(move |head| {
        if head.starts_with("get ") {
            *count.lock().unwrap() += 1;
        }
        let head = format!("200 OK\r\netag: \"e\"\r\ncontent-length: {}\r\n", 2 << 20);
        (head, sent.clone(), 1 << 20)
    })
    .await;
    let named = |signature: &str| rpc::Source {
        digest: digest(&body),
        ..source(&signed(&format!("{url}/x"), signature))
    };
    let (first, shown) = (a.node.clone(), named("1"));
    let first = tokio::spawn(async move { first.fetch(&shown, Wish::Whole).await.map(drop) });
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(read(&b, named("2")).await.unwrap() == body);
    first.await.unwrap().unwrap();
    assert_eq!(*bodies.lock().unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_says_that_more_of_a_signed_url_does_not_count_keeps_no_digest_from_others() {
    let (_scheduler, mesh) = world().await;
    let _seed = mesh.node(100, Role::Seed).await;
    let (a, b) = (
        mesh.node(1, Role::Peer).await,
        mesh.node(2, Role::Peer).await,
    );
    tokio::time::sleep(Duration::from_millis(300)).await;
    let body = bytes(1 << 20, 1);
    let (good, other) = (body.clone(), bytes(1 << 20, 9));
    let url = origin(move |head| {
        let head_of = format!("200 OK\r\netag: \"e\"\r\ncontent-length: {}\r\n", 1 << 20);
        match head.contains("&which=other") {
            true => (head_of, other.clone(), 2048),
            false => (head_of, good.clone(), 0),
        }
    })
    .await;
    let named = |url: &str| rpc::Source {
        digest: digest(&body),
        ..source(url)
    };
    let shown = signed(&format!("{url}/x"), "1");
    let slow = rpc::Source {
        filtered_query: vec!["which".to_owned()],
        ..named(&format!("{shown}&which=other"))
    };
    let first = a.node.clone();
    let first = tokio::spawn(async move { first.fetch(&slow, Wish::Whole).await.map(drop) });
    tokio::time::sleep(Duration::from_millis(500)).await;
    let read = read(&b, named(&shown));
    let got = tokio::time::timeout(Duration::from_secs(10), read).await;
    assert!(got.unwrap().unwrap() == body);
    first.abort();
}
