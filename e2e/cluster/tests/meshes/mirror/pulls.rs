//! From the first entry on a node to the last trace.

use std::time::{Duration, Instant};

use dragonfly_cluster::apply;
use dragonfly_cluster::place::{READY, condition};
use dragonfly_cluster::wait::wait_for;
use dragonfly_crds::{Distribution, Preheat};
use k8s_openapi::api::apps::v1::DaemonSet;
use kube::api::Api;
use serde_json::json;

use super::nodes::{counter, hosts, is_told, peer, until_told, went};
use super::place::{Bed, OPEN, PRIVATE};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn images_are_pulled_through_the_mesh_on_chosen_nodes_until_there_is_no_mirror() {
    let bed = Bed::start().await;
    let before: Vec<_> = bed.cluster.nodes().map(|n| hosts(n, OPEN)).collect();
    assert!(
        before.iter().all(Option::is_some),
        "what is there stays there"
    );

    // None but the chosen node's containerd is told.
    bed.mesh(Some(json!({"kubernetes.io/hostname": "node-0"})))
        .await;
    until_told(bed.node(0), OPEN, true).await;
    until_told(bed.node(0), PRIVATE, true).await;
    assert!(!is_told(bed.node(1), OPEN) && hosts(bed.node(1), OPEN) == before[1]);
    // From a label to all of them, by apply.
    bed.mesh(Some(json!({}))).await;
    bed.mirror_is_everywhere().await;
    until_told(bed.node(1), OPEN, true).await;
    until_told(bed.node(0), OPEN, true).await;

    once_for_all_nodes(&bed).await;
    fetched_ahead(&bed).await;
    private_images(&bed).await;
    by_another_registry(&bed).await;
    a_peer_that_hangs(&bed).await;
    a_peer_that_is_killed(&bed).await;
    pull_secrets_of_policy(&bed).await;

    // Uninstalling restores all.
    bed.mesh(None).await;
    for (node, before) in bed.cluster.nodes().zip(&before) {
        until_told(node, OPEN, false).await;
        assert_eq!(&hosts(node, OPEN), before, "{} is as it was", node.name());
        assert_eq!(hosts(node, PRIVATE), None);
        let left = node
            .run(&["find", "/etc/containerd/certs.d", "-name", "*dragonfly*"])
            .await;
        assert_eq!(left.unwrap(), "", "no backup is left");
    }
    let sets: Api<DaemonSet> = bed.place.api();
    assert!(sets.get_opt("default-mirror").await.unwrap().is_none());
    bed.push("after:v1", 1 << 20, 9).await;
    bed.pod("after", "node-0", &format!("{OPEN}/after:v1"), None)
        .await;
    bed.ran("after").await;
    bed.cluster.stop().await.unwrap();
}

/// A pod on each node with a new image at once: each layer leaves the registry once.
async fn once_for_all_nodes(bed: &Bed) {
    const LEN: usize = 48 << 20;
    let layer = bed.push("app:v1", LEN, 1).await;
    for node in bed.cluster.nodes() {
        let name = format!("app-{}", node.name());
        bed.pod(&name, node.name(), &format!("{OPEN}/app:v1"), None)
            .await;
    }
    for node in bed.cluster.nodes() {
        bed.ran(&format!("app-{}", node.name())).await;
    }
    let sent = went(&bed.cluster, "registry", &format!("app/blobs/{layer}"));
    let size = LEN as u64;
    if !(size..size + 8192).contains(&sent.bytes) {
        let mut said = format!(
            "the registry sent {} bytes of a layer of {size}, in {} answers",
            sent.bytes, sent.gets
        );
        for node in bed.cluster.nodes() {
            for name in ["mesh_bytes", "direct_bytes", "fallbacks", "resumed"] {
                let name = format!("dragonfly_mirror_{name}_total");
                let count = counter(node, &name).await;
                said.push_str(&format!("\n{} {name} {count:?}", node.name()));
            }
        }
        panic!("{said}");
    }
    for node in bed.cluster.nodes() {
        let through = counter(node, "dragonfly_mirror_mesh_bytes_total")
            .await
            .unwrap();
        assert!(
            through >= size,
            "{} got {through} through the mesh",
            node.name()
        );
        let past = counter(node, "dragonfly_mirror_direct_bytes_total")
            .await
            .unwrap();
        assert_eq!(past, 0, "{}", node.name());
    }
}

/// What is held is for whom the registry lets in.
async fn private_images(bed: &Bed) {
    let layer = bed.push("secret:v1", 8 << 20, 2).await;
    // {"auths": {PRIVATE: {"auth": "anna:secret"}}}
    let auth = "YW5uYTpzZWNyZXQ=";
    let config = json!({"auths": {PRIVATE: {"auth": auth}}}).to_string();
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "anna"},
        "type": "kubernetes.io/dockerconfigjson", "stringData": {".dockerconfigjson": config},
    });
    bed.place.apply(&secret.to_string()).await;
    let image = format!("{PRIVATE}/secret:v1");
    for node in bed.cluster.nodes() {
        let name = format!("secret-{}", node.name());
        bed.pod(&name, node.name(), &image, Some("anna")).await;
    }
    for node in bed.cluster.nodes() {
        bed.ran(&format!("secret-{}", node.name())).await;
    }
    let sent = went(&bed.cluster, "private", &format!("secret/blobs/{layer}"));
    // Challenges have bodies too, of some hundred bytes.
    assert!(
        (8 << 20..(8 << 20) + 16_384).contains(&sent.bytes),
        "{sent:?} of a layer of {}",
        8 << 20
    );
    // The bytes are on both nodes' disks; neither here nor in another namespace is who shows nothing
    // given any of them, and who shows something wrong neither.
    let wrong = json!({"auths": {PRIVATE: {"username": "anna", "password": "guessed"}}});
    let wrong = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "wrong"},
        "type": "kubernetes.io/dockerconfigjson",
        "stringData": {".dockerconfigjson": wrong.to_string()},
    });
    apply::yaml(&bed.place.client, bed.elsewhere(), &wrong.to_string())
        .await
        .unwrap();
    let rows = [
        (bed.system(), None),
        (bed.elsewhere(), None),
        (bed.elsewhere(), Some("wrong")),
    ];
    for node in bed.cluster.nodes() {
        for (number, (namespace, shown)) in rows.iter().enumerate() {
            let name = format!("thief-{number}-{}", node.name());
            bed.pod_in(namespace, &name, node.name(), &image, *shown)
                .await;
            let said = bed.refused(namespace, &name, &["401", "authoriz"]).await;
            assert!(said.contains("secret"), "{said}");
            bed.delete_pod(namespace, &name).await;
        }
    }
    // Who is let in there is.
    apply::yaml(&bed.place.client, bed.elsewhere(), &secret.to_string())
        .await
        .unwrap();
    bed.pod_in(bed.elsewhere(), "friend", "node-0", &image, Some("anna"))
        .await;
    bed.ran_in(bed.elsewhere(), "friend", READY).await;
}

/// What a Preheat fetched by its URLs and digests is what nodes ask for: the registry sends it once.
async fn fetched_ahead(bed: &Bed) {
    let image = bed.push_image("ahead:v1", 8 << 20, 5).await;
    let below = format!("http://{}:5000/v2/ahead", bed.address());
    let file = |kind: &str, digest: &str| json!({"url": format!("{below}/{kind}/{digest}"), "digest": digest});
    let blobs = image.blobs();
    let mut files: Vec<_> = blobs
        .iter()
        .map(|blob| file("blobs", &blob.digest))
        .collect();
    files.push(file("manifests", &image.manifest().digest));
    let preheat = json!({
        "apiVersion": "d7y.io/v1alpha1", "kind": "Preheat", "metadata": {"name": "ahead"},
        "spec": {"distributionRef": {"name": "default"}, "files": files, "targets": {"role": "Peers"}},
    });
    bed.place.apply(&preheat.to_string()).await;
    let preheats: Api<Preheat> = bed.place.api();
    let done = wait_for(&preheats, "ahead", READY, |preheat| {
        let status = preheat.and_then(|p| p.status.as_ref()).ok_or("not there")?;
        let ready = status.conditions.iter().find(|c| c.type_ == "Ready");
        let ready = ready.ok_or("nothing is said yet")?;
        let progress = status.progress.as_ref().ok_or("nothing is done yet")?;
        if ready.reason == "Succeeded" {
            Ok(progress.targets.succeeded)
        } else {
            Err(format!("{}: {}", ready.reason, ready.message))
        }
    });
    match done.await {
        Ok(nodes) => assert_eq!(nodes, 2),
        Err(wrong) => bed.fail(&wrong.to_string()).await,
    }
    let sent = || went(&bed.cluster, "registry", "/v2/ahead/");
    let before = sent();
    let layer = went(
        &bed.cluster,
        "registry",
        &format!("ahead/blobs/{}", blobs[blobs.len() - 2].digest),
    );
    // A byte of it, to know what it is, and all of it.
    let len = blobs[blobs.len() - 2].bytes.len() as u64;
    assert!(layer.gets <= 2, "{layer:?}");
    assert!(layer.bytes < len + 8192, "{layer:?} of {len}");
    for node in bed.cluster.nodes() {
        let name = format!("ahead-{}", node.name());
        bed.pod(&name, node.name(), &format!("{OPEN}/ahead:v1"), None)
            .await;
    }
    for node in bed.cluster.nodes() {
        bed.ran(&format!("ahead-{}", node.name())).await;
    }
    let after = sent();
    assert!(after.heads > before.heads, "nodes asked whether they may");
    assert_eq!((after.gets, after.bytes), (before.gets, before.bytes));
}

/// A layer that one registry brought is not fetched from another.
async fn by_another_registry(bed: &Bed) {
    let layer = bed.push("shared:v1", 6 << 20, 6).await;
    bed.pod("shared-0", "node-0", &format!("{OPEN}/shared:v1"), None)
        .await;
    bed.ran("shared-0").await;
    let image = format!("{PRIVATE}/shared:v1");
    bed.pod("shared-1", "node-1", &image, Some("anna")).await;
    bed.ran("shared-1").await;
    let part = format!("shared/blobs/{layer}");
    let (first, other) = (
        went(&bed.cluster, "registry", &part),
        went(&bed.cluster, "private", &part),
    );
    assert_eq!(first.gets, 1, "{first:?}");
    assert!(other.heads > 0, "it was asked who may read: {other:?}");
    assert!(other.bytes < 16_384, "challenges at most: {other:?}");
}

/// With pull secrets of the mesh who shows nothing is let in too, where policy says so and no longer.
async fn pull_secrets_of_policy(bed: &Bed) {
    let mut mirror = bed.mirror();
    mirror["percent"] = json!(100);
    mirror["pullSecrets"] = json!([{"name": "anna"}, {"name": "not-there-yet"}]);
    bed.mesh_with(Some(mirror)).await;
    for node in bed.cluster.nodes() {
        until_told(node, PRIVATE, true).await;
    }
    let image = format!("{PRIVATE}/secret:v1");
    for node in bed.cluster.nodes() {
        let name = format!("guest-{}", node.name());
        bed.pod_in(bed.elsewhere(), &name, node.name(), &image, None)
            .await;
    }
    for node in bed.cluster.nodes() {
        let name = format!("guest-{}", node.name());
        bed.ran_in(bed.elsewhere(), &name, READY).await;
    }
    let mesh: Distribution = bed.place.get("default").await;
    let status = serde_json::to_string(&mesh.status).unwrap();
    assert!(!status.contains("anna"), "not even a name: {status}");
    assert!(condition(&mesh, "Ready").is_some());
}

/// A node whose peer hangs pulls from the registry, without waiting for it.
async fn a_peer_that_hangs(bed: &Bed) {
    let node = bed.node(1);
    let peer = peer(node).await;
    node.run(&["kill", "-STOP", &peer]).await.unwrap();
    let took = until_told(node, OPEN, false).await;
    eprintln!("withdrawn {took:?} after the peer hung");
    assert!(took < Duration::from_secs(5), "withdrawn after {took:?}");
    let layer = bed.push("direct:v1", 1 << 20, 3).await;
    bed.pod("direct", node.name(), &format!("{OPEN}/direct:v1"), None)
        .await;
    let took = bed.ran("direct").await;
    assert!(
        took < Duration::from_secs(25),
        "a pull that waited: {took:?}"
    );
    let sent = went(&bed.cluster, "registry", &format!("direct/blobs/{layer}"));
    assert_eq!(sent.gets, 1, "from the registry");
    node.run(&["kill", "-CONT", &peer]).await.unwrap();
    until_told(node, OPEN, true).await;
}

/// One that is killed while an image comes: the pod runs all the same.
async fn a_peer_that_is_killed(bed: &Bed) {
    let node = bed.node(0);
    let peer = peer(node).await;
    bed.push("big:v1", 200 << 20, 4).await;
    bed.pod("big", node.name(), &format!("{OPEN}/big:v1"), None)
        .await;
    let before = counter(node, "dragonfly_mirror_mesh_bytes_total")
        .await
        .unwrap();
    let since = Instant::now();
    while counter(node, "dragonfly_mirror_mesh_bytes_total")
        .await
        .unwrap()
        < before + (10 << 20)
    {
        assert!(since.elapsed() < READY, "the pull does not begin");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    node.run(&["kill", "-KILL", &peer]).await.unwrap();
    bed.ran("big").await;
    until_told(node, OPEN, true).await;
}
