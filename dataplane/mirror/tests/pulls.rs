//! Pulls through the mirrors of a mesh, from a registry that counts.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod bed;
mod double;
#[path = "../../node/tests/kit/mod.rs"]
mod kit;

use std::time::Duration;

use bed::{Bed, mirror_of, named, pull, settings};
use double::{Double, Fault, MANIFEST, ask, ask_part};
use dragonfly_mirror::{Registry, Settings, Tags};
use dragonfly_node::node::Role;
use kit::bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const REGISTRY: &str = "registry.test:5000";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_node_pulls_and_the_registry_sends_each_content_once() {
    let registry = Double::start().await;
    let other = Double::start().await;
    let layers = [bytes(9 << 20 | 77, 1), bytes(1 << 20, 2), bytes(100, 3)];
    let image = registry.push("team/app", "v1", &layers);
    let copy = other.push("copy/app", "v1", &layers);
    let named = vec![named(REGISTRY, &registry), named("other.test", &other)];
    let bed = Bed::start(3, &settings(named)).await;
    let pulls = bed
        .peers
        .iter()
        .map(|peer| pull(peer.at, REGISTRY, &image, "v1", None));
    for pulled in futures::future::join_all(pulls).await {
        let all = pulled.unwrap();
        assert!(all[1..4].iter().eq(&layers), "the bytes are the registry's");
    }
    for (name, len) in image.blobs.iter().zip(layers.iter().map(Vec::len)) {
        assert_eq!(registry.sent(name), len as u64, "{name} went out once");
    }
    assert_eq!(registry.count("GET", &image.manifest), 1);
    // The same layers by another registry are the same content.
    let pulled = pull(bed.peers[0].at, "other.test", &copy, "v1", None).await;
    assert!(pulled.unwrap()[1..4].iter().eq(&layers));
    for name in &copy.blobs[..3] {
        assert_eq!(other.sent(name), 0, "{name} was held already");
    }
    // Pulled again, the registry hears what the tag means and nothing else.
    let before = registry.seen().len();
    pull(bed.peers[1].at, REGISTRY, &image, "v1", None)
        .await
        .unwrap();
    assert_eq!(registry.seen().len(), before + 1);
    assert_eq!(bed.peers[0].mirror.metrics().fallbacks.get(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_fetched_ahead_is_what_pulls_ask_for() {
    let registry = Double::start().await;
    let image = registry.push("team/app", "v1", &[bytes(3 << 20 | 7, 1), bytes(99, 2)]);
    let settings = settings(vec![named(REGISTRY, &registry)]);
    let bed = Bed::start(2, &settings).await;
    // As a Preheat has it: URLs and digests; on one node, of two that pull.
    let below = |kind: &str, digest: &str| {
        let url = format!("{}/v2/team/app/{kind}/{digest}", registry.url());
        settings.image_source(&url, digest).unwrap()
    };
    let blobs = image.blobs.iter().map(|digest| below("blobs", digest));
    for source in blobs.chain([below("manifests", &image.manifest)]) {
        let node = &bed.peers[0].node.node;
        let download = node.download(source, Default::default()).await.unwrap();
        std::sync::Arc::new(download).finish().await.unwrap();
    }
    let gets = registry.count("GET", "/v2/");
    assert_eq!(gets, image.blobs.len() + 1, "each once");
    for peer in &bed.peers {
        pull(peer.at, REGISTRY, &image, "v1", None).await.unwrap();
    }
    assert_eq!(registry.count("GET", "/v2/"), gets, "{:?}", registry.seen());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_byte_leaves_long_before_the_last_arrives() {
    let registry = Double::start().await;
    let image = registry.push("a", "v1", &[bytes(4 << 20, 1)]);
    registry.fail(Fault {
        rate: 2 << 20,
        ..Fault::default()
    });
    let bed = Bed::start(2, &settings(vec![named(REGISTRY, &registry)])).await;
    let path = format!("/v2/a/blobs/{}?ns={REGISTRY}", image.blobs[0]);
    let since = std::time::Instant::now();
    let asked = bed.peers.iter().map(|peer| ask(peer.at, "GET", &path, &[]));
    for answer in futures::future::join_all(asked).await {
        assert_eq!((answer.status, answer.body.len()), (200, 4 << 20));
        let all = since.elapsed();
        assert!(
            answer.first < all / 2,
            "first byte after {:?} of {all:?}",
            answer.first
        );
    }
    assert_eq!(registry.sent(&image.blobs[0]), 4 << 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn private_content_is_only_for_whom_the_registry_lets_in() {
    let registry = Double::start().await;
    let image = registry.push("secret/app", "v1", &[bytes(300_000, 1)]);
    let layer = image.blobs[0].clone();
    registry.push("public/app", "v1", &[bytes(10, 2)]);
    registry.protect("secret/app", "Bearer good");
    let bed = Bed::start(2, &settings(vec![named(REGISTRY, &registry)])).await;
    let at = bed.peers[0].at;
    // The registry's own challenge comes through, with its body.
    let refused = pull(at, REGISTRY, &image, "v1", None).await.unwrap_err();
    assert_eq!(refused.status, 401);
    let challenge = "Bearer realm=\"https://auth.test/token\",service=\"registry.test\"";
    assert_eq!(refused.header("www-authenticate"), challenge);
    pull(at, REGISTRY, &image, "v1", Some("Bearer good"))
        .await
        .unwrap();
    // The bytes are on this node's disk by now.
    let path = |repository: &str| format!("/v2/{repository}/blobs/{layer}?ns={REGISTRY}");
    for authorization in [None, Some("Bearer bad"), Some("Basic Z29vZA==")] {
        let headers: Vec<_> = authorization
            .map(|a| ("authorization", a))
            .into_iter()
            .collect();
        let answer = ask(at, "GET", &path("secret/app"), &headers).await;
        assert_eq!(answer.status, 401, "{authorization:?}");
        assert!(
            answer.text().contains("said the registry"),
            "{}",
            answer.text()
        );
        let answer = ask(at, "HEAD", &path("secret/app"), &headers).await;
        assert_eq!(answer.status, 401, "{authorization:?}");
    }
    // Nor by way of a repository that is open.
    let answer = ask(at, "GET", &path("public/app"), &[]).await;
    assert_eq!(answer.status, 404, "{}", answer.text());
    // Nor by the node's other ways to content.
    let source = dragonfly_proto::rpc::Source {
        url: format!("{}/v2/secret/app/blobs/{layer}", registry.url()),
        digest: layer.clone(),
        ..Default::default()
    };
    let node = &bed.peers[0].node.node;
    let got = node.download(source, Default::default()).await;
    assert!(got.is_err(), "the socket's clients are not let in");
    // Another node gets it from the mesh, with credentials of its own.
    pull(bed.peers[1].at, REGISTRY, &image, "v1", Some("Bearer good"))
        .await
        .unwrap();
    assert_eq!(registry.sent(&layer), 300_000);
    // The registry's word counts for a while.
    let before = registry.seen().len();
    let answer = ask(
        at,
        "GET",
        &path("secret/app"),
        &[("authorization", "Bearer good")],
    )
    .await;
    assert_eq!((answer.status, registry.seen().len()), (200, before));
    for seen in registry.seen() {
        assert!(!seen.path.contains("ns="), "{}", seen.path);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manifest_is_one_though_somebody_asked_for_its_bytes_as_a_layer() {
    let registry = Double::start().await;
    let image = registry.push("a", "v1", &[bytes(1000, 1)]);
    let bed = Bed::start(2, &settings(vec![named(REGISTRY, &registry)])).await;
    let own = ask(
        registry.addr,
        "GET",
        "/v2/a/manifests/v1",
        &[("accept", MANIFEST)],
    )
    .await;
    // Registries have both in one store.
    let layer = registry.push("a", "v2", std::slice::from_ref(&own.body));
    assert_eq!(layer.blobs[0], image.manifest);
    let path = |kind: &str| format!("/v2/a/{kind}/{}?ns={REGISTRY}", image.manifest);
    let answer = ask(bed.peers[0].at, "GET", &path("blobs"), &[]).await;
    assert!(answer.status == 200 && answer.body == own.body);
    for (peer, method) in [(0, "HEAD"), (0, "GET"), (1, "GET")] {
        let answer = ask(bed.peers[peer].at, method, &path("manifests"), &[]).await;
        let said = (answer.status, answer.header("content-type"));
        assert_eq!(said, (200, MANIFEST), "{method} at peer {peer}");
    }
    assert_eq!(bed.peers[1].mirror.metrics().fallbacks.get(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tags_are_asked_for_each_time_and_kept_only_where_policy_says_so() {
    let registry = Double::start().await;
    let first = registry.push("a", "latest", &[bytes(1000, 1)]);
    let named = vec![named(REGISTRY, &registry)];
    let strict = settings(named);
    let lenient = Settings {
        tags: Tags::LastKnown,
        access_for: Duration::from_millis(1),
        ..strict.clone()
    };
    let mut bed = Bed::start(1, &strict).await;
    let node = bed.mesh.node(9, Role::Peer).await;
    bed.peers.push(mirror_of(node, lenient).await);
    let (strict, lenient) = (bed.peers[0].at, bed.peers[1].at);
    let path = format!("/v2/a/manifests/latest?ns={REGISTRY}");
    let accept = [("accept", MANIFEST)];
    for at in [strict, lenient] {
        let head = ask(at, "HEAD", &path, &accept).await;
        assert_eq!(head.header("docker-content-digest"), first.manifest);
        pull(at, REGISTRY, &first, "latest", None).await.unwrap();
    }
    let second = registry.push("a", "latest", &[bytes(1000, 2)]);
    for at in [strict, lenient] {
        let got = ask(at, "GET", &path, &accept).await;
        assert_eq!(got.header("docker-content-digest"), second.manifest);
        pull(at, REGISTRY, &second, "latest", None).await.unwrap();
    }
    registry.fail(Fault {
        status: Some(503),
        ..Fault::default()
    });
    let answer = ask(strict, "GET", &path, &accept).await;
    assert_eq!(answer.status, 503);
    assert!(answer.text().contains("said the registry"));
    pull(lenient, REGISTRY, &second, "latest", None)
        .await
        .unwrap();
    let answer = ask(lenient, "HEAD", &path, &accept).await;
    assert!(answer.header("warning").starts_with("110"), "{answer:?}");
    // Who was not let in before is not now.
    let other = [accept[0], ("authorization", "Bearer other")];
    assert_eq!(ask(lenient, "GET", &path, &other).await.status, 503);
    // What the registry says no to is gone, whatever was known.
    registry.fail(Fault {
        status: Some(404),
        ..Fault::default()
    });
    assert_eq!(ask(lenient, "GET", &path, &accept).await.status, 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registrys_refusals_come_as_they_are() {
    let registry = Double::start().await;
    registry.push("a", "v1", &[bytes(1000, 1)]);
    let bed = Bed::start(1, &settings(vec![named(REGISTRY, &registry)])).await;
    let at = bed.peers[0].at;
    let nowhere = format!("sha256:{}", "0".repeat(64));
    for path in [
        "manifests/nothing",
        &format!("manifests/{nowhere}"),
        &format!("blobs/{nowhere}"),
    ] {
        let path = format!("/v2/a/{path}?ns={REGISTRY}");
        let answer = ask(at, "GET", &path, &[("accept", MANIFEST)]).await;
        assert_eq!(answer.status, 404, "{path}");
        assert!(
            answer.text().contains("said the registry"),
            "{path}: {}",
            answer.text()
        );
        assert_eq!(
            ask(at, "HEAD", &path, &[("accept", MANIFEST)]).await.status,
            404
        );
    }
    for status in [403, 429, 500, 503] {
        registry.fail(Fault {
            status: Some(status),
            ..Fault::default()
        });
        for path in ["manifests/v1", &format!("blobs/{nowhere}"), "tags/list"] {
            let path = format!("/v2/a/{path}?ns={REGISTRY}");
            let answer = ask(at, "GET", &path, &[]).await;
            assert_eq!(answer.status, status, "{path}");
            assert!(answer.text().contains("said the registry"), "{path}");
            if status == 429 {
                assert_eq!(answer.header("retry-after"), "7");
            }
        }
    }
    registry.fail(Fault::default());
    // The mirror's own refusals are of the registry API's form.
    let rows = [
        ("GET", "/v2/a/manifests/v1?ns=stranger.test", 403, "DENIED"),
        // Docker Hub's, which is not mirrored here.
        ("GET", "/v2/a/manifests/v1", 403, "DENIED"),
        (
            "GET",
            "/v2/a/blobs/sha256:1?ns=registry.test:5000",
            400,
            "DIGEST_INVALID",
        ),
        (
            "POST",
            "/v2/a/blobs/uploads/?ns=registry.test:5000",
            405,
            "UNSUPPORTED",
        ),
        ("GET", "/elsewhere", 404, "NAME_UNKNOWN"),
    ];
    for (method, path, status, code) in rows {
        let answer = ask(at, method, path, &[]).await;
        assert_eq!(answer.status, status, "{path}");
        assert!(answer.text().contains(code), "{path}: {}", answer.text());
    }
    drop(registry);
    let answer = ask(at, "GET", &format!("/v2/a/tags/list?ns={REGISTRY}"), &[]).await;
    assert_eq!(answer.status, 502, "the runtime goes to its next host");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_and_both_ways_to_name_a_registry() {
    let registry = Double::start().await;
    let image = registry.push("a/b", "v1", &[bytes(1000, 1)]);
    let hub = Double::start().await;
    let library = hub.push("library/a", "v1", &[bytes(1000, 2)]);
    let all = vec![named(REGISTRY, &registry), named("docker.io", &hub)];
    let bed = Bed::start(1, &settings(all)).await;
    let at = bed.peers[0].at;
    assert_eq!(ask(at, "GET", "/v2/", &[]).await.status, 200);
    let list = ask(at, "GET", &format!("/v2/{REGISTRY}/a/b/tags/list?n=1"), &[]).await;
    assert_eq!(list.text(), "{\"name\":\"a/b\",\"tags\":[\"a\"]}");
    let next = format!("</v2/{REGISTRY}/a/b/tags/list?n=1&last=a>; rel=\"next\"");
    assert_eq!(list.header("link"), next);
    let path = format!(
        "/v2/a/b/referrers/{}?artifactType=x&ns={REGISTRY}",
        image.manifest
    );
    let referrers = ask(at, "GET", &path, &[]).await;
    assert!(referrers.text().contains(&image.manifest));
    assert_eq!(referrers.header("oci-filters-applied"), "artifactType");
    let path = format!("/v2/{REGISTRY}/a/b/blobs/{}", image.blobs[0]);
    assert_eq!(ask(at, "GET", &path, &[]).await.body, bytes(1000, 1));
    let last = registry.seen().last().unwrap().path.clone();
    assert!(last.starts_with("/v2/a/b/blobs/"), "{last}");
    // Docker names no registry: it asks mirrors for its own images alone.
    let path = format!("/v2/library/a/blobs/{}", library.blobs[0]);
    assert_eq!(ask(at, "GET", &path, &[]).await.body, bytes(1000, 2));
    assert_eq!(hub.sent(&library.blobs[0]), 1000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_goes_on_gets_the_rest() {
    let registry = Double::start().await;
    let body = bytes(3 << 20 | 5, 1);
    let image = registry.push("a", "v1", std::slice::from_ref(&body));
    let bed = Bed::start(1, &settings(vec![named(REGISTRY, &registry)])).await;
    let at = bed.peers[0].at;
    let path = format!("/v2/a/blobs/{}?ns={REGISTRY}", image.blobs[0]);
    // One that closes early, as runtimes do with ranges that they read in parallel.
    let part = ask_part(at, "GET", &path, &[], 100_000).await;
    assert!(body.starts_with(&part.body));
    let total = body.len();
    let rows = [
        ("bytes=0-", 0, total),
        ("bytes=100000-", 100_000, total),
        ("bytes=2000000-2000009", 2_000_000, 2_000_010),
        ("bytes=-7", total - 7, total),
        ("bytes=3145720-99999999", 3_145_720, total),
    ];
    for (range, start, end) in rows {
        let answer = ask(at, "GET", &path, &[("range", range)]).await;
        assert_eq!(answer.status, 206, "{range}");
        assert!(answer.body == body[start..end] && !answer.cut, "{range}");
        let said = format!("bytes {start}-{}/{total}", end - 1);
        assert_eq!(answer.header("content-range"), said);
    }
    let answer = ask(at, "GET", &path, &[("range", "bytes=3145733-")]).await;
    assert_eq!(answer.status, 416);
    assert_eq!(answer.header("content-range"), format!("bytes */{total}"));
    let answer = ask(at, "GET", &path, &[("range", "bytes=0-1,5-6")]).await;
    assert!(answer.status == 200 && answer.body == body);
    assert_eq!(registry.sent(&image.blobs[0]), total as u64);
}

/// A registry's front that leads every question on to another place, without a look at who asks or
/// whether it is there: registry.k8s.io does so.
async fn front(to: String) -> Registry {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let to = to.clone();
            tokio::spawn(async move {
                let mut head = vec![];
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await?);
                }
                let head = String::from_utf8_lossy(&head);
                let path = head.split(' ').nth(1).unwrap_or_default();
                let answer = format!(
                    "HTTP/1.1 307 On\r\nlocation: {to}{path}\r\ncontent-length: 0\r\n\
                     connection: close\r\n\r\n"
                );
                stream.write_all(answer.as_bytes()).await
            });
        }
    });
    Registry {
        host: "front.test".to_owned(),
        url: Some(url),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_leads_everybody_on_does_not_open_what_another_protects() {
    let registry = Double::start().await;
    let image = registry.push("secret/app", "v1", &[bytes(300_000, 1)]);
    let layer = image.blobs[0].clone();
    registry.protect("secret/app", "Bearer good");
    let elsewhere = Double::start().await;
    for (to, status) in [
        ("http://127.0.0.1:1".to_owned(), 502),
        (elsewhere.url(), 404),
        // To the very content: without credentials it says no.
        (registry.url(), 401),
    ] {
        let front = front(to.clone()).await;
        let bed = Bed::start(2, &settings(vec![named(REGISTRY, &registry), front])).await;
        let at = bed.peers[0].at;
        pull(at, REGISTRY, &image, "v1", Some("Bearer good"))
            .await
            .unwrap();
        for peer in &bed.peers {
            let path = format!("/v2/secret/app/blobs/{layer}?ns=front.test");
            let answer = ask(peer.at, "GET", &path, &[("authorization", "Bearer good")]).await;
            assert_eq!(answer.status, status, "{to}: {}", answer.text());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn layers_that_are_elsewhere_are_asked_for_there_by_get_alone_and_brought_once() {
    let storage = Double::start().await;
    let layers = [bytes(300_000, 1), bytes(100_000, 2)];
    let image = storage.push("app", "v1", &layers);
    let front = front(storage.url()).await;
    let bed = Bed::start(2, &settings(vec![front])).await;
    for peer in &bed.peers {
        let got = pull(peer.at, "front.test", &image, "v1", None).await;
        assert!(got.unwrap().contains(&layers[0]));
    }
    // The way there may be signed for one method.
    assert_eq!(storage.count("HEAD", "/blobs/"), 0);
    for (blob, len) in image.blobs.iter().zip(layers.iter().map(Vec::len)) {
        // And the first byte for each node.
        assert_eq!(storage.sent(blob), len as u64 + 2);
    }
}
