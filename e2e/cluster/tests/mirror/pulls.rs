//! From the first entry on a node to the last trace.

use std::time::{Duration, Instant};

use dragonfly_cluster::image::{Architecture, Image, Tree, component};
use dragonfly_cluster::wait::wait_for;
use dragonfly_cluster::{Cluster, ClusterOptions, Node, Place, diagnostics, operator};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams};
use serde_json::{Value, json};

use dragonfly_cluster::place::READY;

use crate::nodes::{counter, hosts, is_told, peer, until_told, went};

/// A registry as nodes know it: its `hosts.toml` is there before the mirror comes.
const OPEN: &str = "registry.test";
/// One that asks for a password, with the same images.
const PRIVATE: &str = "registry.test:5001";
/// `anna` with the password `secret`.
const PASSWORDS: &str = "anna:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";

/// Two nodes, an operator, a registry with and one without a password, and images to be pulled.
struct Bed {
    // Before the cluster, so that a failure can still be told.
    place: Place,
    cluster: Cluster,
}

impl Bed {
    async fn start() -> Self {
        let cluster = Cluster::start(&ClusterOptions::nodes(2)).await.unwrap();
        let place = operator::deploy(&cluster, &[]).await.unwrap();
        private_registry(&cluster).await;
        Self { place, cluster }
    }

    fn node(&self, index: usize) -> Node<'_> {
        self.cluster.node(index).unwrap()
    }

    /// An address of the control plane's machine, where registries are.
    fn address(&self) -> String {
        let registry = self.cluster.registry();
        registry.address().rsplit_once(':').unwrap().0.to_owned()
    }

    /// The mesh, with or without a mirror.
    async fn mesh(&self, node_selector: Option<Value>) {
        let address = self.address();
        // The disk of a machine for tests may be fuller than a node of the world would let it be.
        let mut spec = json!({"profile": "Light", "storage": {"reserveFreePercent": 0}});
        if let Some(selector) = node_selector {
            spec["mirror"] = json!({
                "registries": [
                    {"host": OPEN, "url": format!("http://{address}:5000")},
                    {"host": PRIVATE, "url": format!("http://{address}:5001")},
                ],
                "others": "Never",
                "nodeSelector": selector,
            });
        }
        let object = json!({
            "apiVersion": "d7y.io/v1alpha1", "kind": "Distribution",
            "metadata": {"name": "default"}, "spec": spec,
        });
        self.place.apply(&object.to_string()).await;
        self.place.ready("default").await;
    }

    /// A mirror of the present spec on every node: one that is about to be replaced takes its entry
    /// along, and a pull then goes to the registry as it should.
    async fn mirror_is_everywhere(&self) {
        let api: Api<DaemonSet> = self.place.api();
        let nodes = i32::try_from(self.cluster.nodes().count()).unwrap();
        let everywhere = wait_for(&api, "default-mirror", READY, |set| {
            let set = set.ok_or("not there")?;
            let status = set.status.as_ref().ok_or("no status yet")?;
            let current = status.observed_generation == set.metadata.generation;
            let updated = status.updated_number_scheduled == Some(nodes);
            if current && updated && status.number_available == Some(nodes) {
                Ok(())
            } else {
                Err(format!("{status:?}"))
            }
        });
        everywhere.await.unwrap();
    }

    /// Pushes an image with a layer of its own of so many bytes; the layer's digest.
    async fn push(&self, name: &str, len: usize, seed: u64) -> String {
        let program = dragonfly_e2e::binary::dragonfly().unwrap();
        let image = component("dragonfly")
            .unwrap()
            .image(Architecture::HERE, &program);
        let mut random = vec![0; len];
        fastrand::Rng::with_seed(seed).fill(&mut random);
        let mut tree = Tree::default();
        tree.file("data", 0o644, random);
        let image: Image = image.unwrap().layer(tree).unwrap();
        self.cluster.load_image(&image, name).await.unwrap();
        let blobs = image.blobs();
        blobs[blobs.len() - 2].digest.clone()
    }

    /// Starts a pod on a node with an image that is always pulled.
    async fn pod(&self, name: &str, node: &str, image: &str, secret: Option<&str>) {
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {
                "nodeName": node, "restartPolicy": "Never",
                "automountServiceAccountToken": false,
                "containers": [{
                    "name": "main", "image": image, "imagePullPolicy": "Always",
                    "args": ["--version"],
                }],
            },
        });
        if let Some(secret) = secret {
            pod["spec"]["imagePullSecrets"] = json!([{"name": secret}]);
        }
        self.place.apply(&pod.to_string()).await;
    }

    /// Until a pod ran to its end; how long that took.
    async fn ran(&self, name: &str) -> Duration {
        let since = Instant::now();
        let pods: Api<Pod> = self.place.api();
        let ended = wait_for(&pods, name, READY, |pod| {
            let status = pod.and_then(|p| p.status.as_ref()).ok_or("not there")?;
            match status.phase.as_deref() {
                Some("Succeeded") => Ok(()),
                _ => Err(diagnostics::pod_state(status)),
            }
        });
        ended.await.unwrap();
        since.elapsed()
    }

    /// Until the kubelet says why an image cannot be pulled.
    async fn refused(&self, name: &str) -> String {
        let pods: Api<Pod> = self.place.api();
        let said = wait_for(&pods, name, READY, |pod| {
            let status = pod.and_then(|p| p.status.as_ref()).ok_or("not there")?;
            let containers = status.container_statuses.iter().flatten();
            let mut waiting = containers.filter_map(|c| c.state.as_ref()?.waiting.clone());
            let said = waiting.find_map(|w| {
                w.message
                    .filter(|m| m.contains("401") || m.contains("authoriz"))
            });
            said.ok_or_else(|| diagnostics::pod_state(status))
        });
        said.await.unwrap()
    }
}

/// A registry that serves what the cluster's has, to who knows the password.
async fn private_registry(cluster: &Cluster) {
    let dir = cluster.info().dir.join("private-registry");
    std::fs::create_dir_all(&dir).unwrap();
    let passwords = dir.join("passwords");
    std::fs::write(&passwords, PASSWORDS).unwrap();
    let registry = cluster.registry();
    let (address, _) = registry.address().rsplit_once(':').unwrap();
    let config = json!({
        "version": 0.1,
        "log": {"accesslog": {"disabled": false}, "level": "warn"},
        "storage": {"filesystem": {"rootdirectory": cluster.info().dir.join("control-plane/registry")}},
        "http": {"addr": format!("{address}:5001")},
        "auth": {"htpasswd": {"realm": "private", "path": passwords}},
    });
    let file = dir.join("config.yaml");
    std::fs::write(&file, config.to_string()).unwrap();
    let line = ["docker-registry", "serve", &file.display().to_string()].map(str::to_owned);
    cluster
        .start_daemon("private", line.to_vec())
        .await
        .unwrap();
}

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
    bed.mesh(Some(json!({"kubernetes.io/os": "linux"}))).await;
    bed.mirror_is_everywhere().await;
    until_told(bed.node(1), OPEN, true).await;
    until_told(bed.node(0), OPEN, true).await;

    once_for_all_nodes(&bed).await;
    private_images(&bed).await;
    a_peer_that_hangs(&bed).await;
    a_peer_that_is_killed(&bed).await;

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
    for node in bed.cluster.nodes() {
        let name = format!("thief-{}", node.name());
        bed.pod(&name, node.name(), &image, None).await;
        let said = bed.refused(&name).await;
        assert!(said.contains("secret"), "{said}");
        let pods: Api<Pod> = bed.place.api();
        pods.delete(&name, &DeleteParams::default().grace_period(0))
            .await
            .unwrap();
    }
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
