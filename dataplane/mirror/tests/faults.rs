//! Registries and meshes that fail while images are pulled.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod bed;
mod double;
#[path = "../../node/tests/kit/mod.rs"]
mod kit;

use std::time::{Duration, Instant};

use bed::{Bed, mirror_of, named, pull, settings};
use double::{Double, Fault, ask};
use dragonfly_mirror::Settings;
use dragonfly_node::node::{Role, Settings as NodeSettings};
use dragonfly_source::http::{HttpOptions, HttpSource};
use kit::{TestMesh, TestNode, authority, bytes};

const REGISTRY: &str = "registry.test:5000";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_that_the_registry_cuts_are_gone_on_with_inside() {
    let registry = Double::start().await;
    let image = registry.push("a", "v1", &[bytes(5 << 20 | 3, 1)]);
    registry.fail(Fault {
        cut_after: Some(700 << 10),
        ..Fault::default()
    });
    let bed = Bed::start(2, &settings(vec![named(REGISTRY, &registry)])).await;
    let pulls = bed
        .peers
        .iter()
        .map(|peer| pull(peer.at, REGISTRY, &image, "v1", None));
    for pulled in futures::future::join_all(pulls).await {
        pulled.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_mesh_pulls_go_on_upstream_and_are_resumed_and_checked() {
    let registry = Double::start().await;
    let image = registry.push("a", "v1", &[bytes(3 << 20 | 3, 1)]);
    let peer = mirror_of(outside().await, settings(vec![named(REGISTRY, &registry)])).await;
    for no_ranges in [false, true] {
        registry.fail(Fault {
            cut_after: Some(2 << 20),
            no_ranges,
            ..Fault::default()
        });
        let path = format!("/v2/a/blobs/{}?ns={REGISTRY}", image.blobs[0]);
        let answer = ask(peer.at, "GET", &path, &[]).await;
        if no_ranges {
            // Whatever is asked, the end never comes: it ends, and not as if it were the whole.
            assert!(answer.cut && answer.body.len() < 3 << 20);
        } else {
            assert!(!answer.cut && answer.body == bytes(3 << 20 | 3, 1));
        }
    }
    let metrics = peer.mirror.metrics();
    assert!(metrics.fallbacks.get() >= 2 && metrics.resumed.get() >= 2);
    registry.fail(Fault {
        corrupt: true,
        ..Fault::default()
    });
    let path = format!("/v2/a/blobs/{}?ns={REGISTRY}", image.blobs[0]);
    let answer = ask(peer.at, "GET", &path, &[]).await;
    assert!(
        answer.cut && answer.body.len() < (3 << 20 | 3),
        "the end is not sent"
    );
    assert_eq!(metrics.wrong_digests.get(), 1);
    // Where policy lets nobody past the mesh the runtime is told to go on.
    let http = HttpSource::new(HttpOptions::default()).unwrap();
    let strict = Settings {
        direct: false,
        ..settings(vec![named(REGISTRY, &registry)])
    };
    peer.mirror.apply(std::sync::Arc::new(http), strict);
    let answer = ask(peer.at, "GET", &path, &[]).await;
    assert_eq!(answer.status, 502);
    assert!(answer.text().contains("UNAVAILABLE"), "{}", answer.text());
}

/// A node that nobody lets into a mesh, and that may not go to origins itself.
async fn outside() -> TestNode {
    let mesh = TestMesh::new(vec!["127.0.0.1:9".parse().unwrap()], authority());
    let nowhere = NodeSettings {
        back_to_source: false,
        ..NodeSettings::default()
    };
    let dir = tempfile::tempdir().unwrap();
    mesh.node_with(1, Role::Peer, nowhere, dir).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_of_what_has_no_length_is_never_called_the_whole() {
    let registry = Double::start().await;
    let ranges = ["bytes=100000-", "bytes=5-9", "bytes=-7", "bytes=0-"];
    let bodies: Vec<_> = (1..=4).map(|n| bytes(2 << 20 | 5, n)).collect();
    let image = registry.push("a", "v1", &bodies);
    let settings = settings(vec![named(REGISTRY, &registry)]);
    let bed = Bed::start(1, &settings).await;
    let alone = mirror_of(outside().await, settings).await;
    // By the mesh, which asks for no parts; past it, from a registry that knows them and one that does not.
    for (at, no_ranges) in [(bed.peers[0].at, true), (alone.at, true), (alone.at, false)] {
        registry.fail(Fault {
            no_length: true,
            no_ranges,
            // So that the mesh does not know it before the part is asked for.
            rate: 8 << 20,
            ..Fault::default()
        });
        for (range, (name, body)) in ranges.iter().zip(image.blobs.iter().zip(&bodies)) {
            let path = format!("/v2/a/blobs/{name}?ns={REGISTRY}");
            let answer = ask(at, "GET", &path, &[("range", range)]).await;
            let what = format!("{range}, no_ranges: {no_ranges}, at {at}");
            assert_eq!(answer.status, 200, "{what}: no part can be named");
            assert!(
                !answer.cut && answer.body == *body,
                "{what}: {} bytes of {}",
                answer.body.len(),
                body.len()
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_length_at_a_head_takes_nothing_from_content() {
    let registry = Double::start().await;
    let body = bytes(300_000, 1);
    let image = registry.push("a", "v1", std::slice::from_ref(&body));
    let alone = mirror_of(outside().await, settings(vec![named(REGISTRY, &registry)])).await;
    for len in [0, 1000, 400_000] {
        registry.fail(Fault {
            head_length: Some(len),
            ..Fault::default()
        });
        let path = format!("/v2/a/blobs/{}?ns={REGISTRY}", image.blobs[0]);
        // Somebody else each time: what was said before counts for a while.
        let who = format!("Basic {len}");
        let answer = ask(alone.at, "GET", &path, &[("authorization", &who)]).await;
        assert_eq!((answer.status, answer.body.len()), (200, 300_000), "{len}");
        assert!(!answer.cut && answer.body == body, "{len}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn content_that_is_not_what_it_is_called_is_neither_served_nor_kept() {
    let registry = Double::start().await;
    let body = bytes(2 << 20 | 9, 1);
    let image = registry.push("a", "v1", std::slice::from_ref(&body));
    registry.fail(Fault {
        corrupt: true,
        ..Fault::default()
    });
    let settings = settings(vec![named(REGISTRY, &registry)]);
    let bed = Bed::start(2, &settings).await;
    let path = format!("/v2/a/blobs/{}?ns={REGISTRY}", image.blobs[0]);
    let asked = bed.peers.iter().map(|peer| ask(peer.at, "GET", &path, &[]));
    for answer in futures::future::join_all(asked).await {
        assert_eq!(answer.status, 200);
        assert!(answer.cut && answer.body.len() < body.len());
    }
    registry.fail(Fault::default());
    // Where policy lets nobody past the mesh that is no reason to go there either.
    let strict = Settings {
        direct: false,
        ..settings.clone()
    };
    let http = || std::sync::Arc::new(HttpSource::new(HttpOptions::default()).unwrap());
    let (first, gets) = (&bed.peers[0], || registry.count("GET", "/blobs/"));
    let before = gets();
    first.mirror.apply(http(), strict);
    let answer = ask(first.at, "GET", &path, &[]).await;
    assert_eq!((answer.status, gets()), (502, before), "{}", answer.text());
    assert!(answer.text().contains("UNAVAILABLE"), "{}", answer.text());
    first.mirror.apply(http(), settings);
    for peer in &bed.peers {
        let answer = ask(peer.at, "GET", &path, &[]).await;
        assert!(
            !answer.cut && answer.body == body,
            "the right one, once it is there"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pulls_under_way_survive_the_scheduler_and_the_seed() {
    let registry = Double::start().await;
    let body = bytes(6 << 20 | 1, 1);
    let image = registry.push("a", "v1", std::slice::from_ref(&body));
    registry.fail(Fault {
        rate: 2 << 20,
        ..Fault::default()
    });
    let mut bed = Bed::start(2, &settings(vec![named(REGISTRY, &registry)])).await;
    let path = format!("/v2/a/blobs/{}?ns={REGISTRY}", image.blobs[0]);
    let since = Instant::now();
    let pulls: Vec<_> = bed
        .peers
        .iter()
        .map(|peer| {
            let (at, path) = (peer.at, path.clone());
            tokio::spawn(async move { ask(at, "GET", &path, &[]).await })
        })
        .collect();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let scheduler = bed.scheduler.take().unwrap();
    scheduler.kill().await;
    bed.seed.take().unwrap().node.shutdown().await;
    for pulled in pulls {
        let answer = pulled.await.unwrap();
        assert!(
            !answer.cut && answer.body == body,
            "after {:?}",
            since.elapsed()
        );
    }
    assert!(
        since.elapsed() < Duration::from_secs(60),
        "{:?}",
        since.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_says_nothing_keeps_nobody_waiting_for_ever() {
    let registry = Double::start().await;
    let image = registry.push("a", "v1", &[bytes(1000, 1)]);
    registry.fail(Fault {
        silent: true,
        ..Fault::default()
    });
    let bed = Bed::start(1, &settings(vec![named(REGISTRY, &registry)])).await;
    let since = Instant::now();
    let path = format!("/v2/a/blobs/{}?ns={REGISTRY}", image.blobs[0]);
    let answer = ask(bed.peers[0].at, "GET", &path, &[]).await;
    assert_eq!(answer.status, 502);
    assert!(
        since.elapsed() < Duration::from_secs(25),
        "{:?}",
        since.elapsed()
    );
}
