//! Two nodes, an operator, registries, images and pods.

use std::time::{Duration, Instant};

use dragonfly_cluster::image::{Architecture, Image, Tree, component};
use dragonfly_cluster::place::READY;
use dragonfly_cluster::wait::wait_for;
use dragonfly_cluster::{
    Cluster, ClusterOptions, Node, Place, apply, diagnostics, operator, pods_possible,
};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams};
use serde_json::{Value, json};

/// A registry as nodes know it: its `hosts.toml` is there before the mirror comes.
pub(crate) const OPEN: &str = "registry.test";
/// One that asks for a password, with the same images.
pub(crate) const PRIVATE: &str = "registry.test:5001";
/// `anna` with the password `secret`.
const PASSWORDS: &str = "anna:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";

/// Two nodes, an operator, a registry with and one without a password, and images to be pulled.
pub(crate) struct Bed {
    // Before the cluster, so that a failure can still be told.
    pub(crate) place: Place,
    /// Another namespace of the cluster, without any secret or mesh.
    elsewhere: Place,
    pub(crate) cluster: Cluster,
}

impl Bed {
    pub(crate) async fn start() -> Self {
        let cluster = Cluster::start(&ClusterOptions::nodes(2)).await.unwrap();
        let place = operator::deploy(&cluster, &[]).await.unwrap();
        let elsewhere = Place::new(&cluster).await.unwrap();
        pods_possible(&elsewhere.client, &elsewhere.namespace)
            .await
            .unwrap();
        private_registry(&cluster).await;
        Self {
            place,
            elsewhere,
            cluster,
        }
    }

    /// The namespace of the operator and the mesh.
    pub(crate) fn system(&self) -> &str {
        &self.place.namespace
    }

    pub(crate) fn elsewhere(&self) -> &str {
        &self.elsewhere.namespace
    }

    pub(crate) fn node(&self, index: usize) -> Node<'_> {
        self.cluster.node(index).unwrap()
    }

    /// An address of the control plane's machine, where registries are.
    pub(crate) fn address(&self) -> String {
        let registry = self.cluster.registry();
        registry.address().rsplit_once(':').unwrap().0.to_owned()
    }

    /// The mesh whose containerds are told on the nodes with these labels; without a mirror for `None`.
    pub(crate) async fn mesh(&self, node_selector: Option<Value>) {
        let mirror = node_selector.map(|selector| {
            let mut mirror = self.mirror();
            mirror["nodeSelector"] = selector;
            mirror
        });
        self.mesh_with(mirror).await;
    }

    /// `spec.mirror` with both registries, and nobody told.
    pub(crate) fn mirror(&self) -> Value {
        let address = self.address();
        json!({
            "registries": [
                {"host": OPEN, "url": format!("http://{address}:5000")},
                {"host": PRIVATE, "url": format!("http://{address}:5001")},
            ],
            "others": "Never",
        })
    }

    /// The mesh with this as its mirror, once it is ready.
    pub(crate) async fn mesh_with(&self, mirror: Option<Value>) {
        // The disk of a machine for tests may be fuller than a node of the world would let it be.
        let mut spec = json!({"profile": "Light", "storage": {"reserveFreePercent": 0}});
        if let Some(mirror) = mirror {
            spec["mirror"] = mirror;
        }
        self.mesh_of(spec).await;
    }

    /// The mesh with this spec, once it is ready.
    pub(crate) async fn mesh_of(&self, spec: Value) {
        let object = json!({
            "apiVersion": "d7y.io/v1alpha1", "kind": "Distribution",
            "metadata": {"name": "default"}, "spec": spec,
        });
        self.place.apply(&object.to_string()).await;
        self.place.ready("default").await;
    }

    /// A mirror of the present spec on every node: one that is about to be replaced takes its entry
    /// along, and a pull then goes to the registry as it should.
    pub(crate) async fn mirror_is_everywhere(&self) {
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

    /// The namespaces tell what is in them when they go.
    pub(crate) async fn fail(&self, wrong: &str) -> ! {
        panic!("{wrong}");
    }

    /// Pushes an image with a layer of its own of so many bytes; the layer's digest.
    pub(crate) async fn push(&self, name: &str, len: usize, seed: u64) -> String {
        let blobs = self.push_image(name, len, seed).await.blobs();
        blobs[blobs.len() - 2].digest.clone()
    }

    pub(crate) async fn push_image(&self, name: &str, len: usize, seed: u64) -> Image {
        let program = dragonfly_e2e::binary::dragonfly().unwrap();
        let image = component("dragonfly")
            .unwrap()
            .image(Architecture::HERE, &program);
        let mut tree = Tree::default();
        tree.file("data", 0o644, unlike_others(len, seed));
        let image: Image = image.unwrap().layer(tree).unwrap();
        self.cluster.load_image(&image, name).await.unwrap();
        image
    }

    /// What was pulled of this registry goes from nodes, and its layer from the registry: images that are
    /// big together fit one after the other.
    pub(crate) async fn forget(&self, registry: &str, layer: &str) {
        for node in self.cluster.nodes() {
            let all = node
                .run(&["ctr", "-n", "k8s.io", "images", "ls"])
                .await
                .unwrap();
            let rows: Vec<Vec<&str>> = all
                .lines()
                .map(|l| l.split_whitespace().collect())
                .collect();
            // Reference, media type, digest.
            let theirs: Vec<_> = rows
                .iter()
                .filter(|row| row[0].starts_with(&format!("{registry}/")))
                .map(|row| row[2])
                .collect();
            let mut line = vec!["ctr", "-n", "k8s.io", "images", "rm", "--sync"];
            line.extend(
                rows.iter()
                    .filter(|row| theirs.contains(&row[2]))
                    .map(|row| row[0]),
            );
            node.run(&line).await.unwrap();
        }
        let hex = layer.trim_start_matches("sha256:");
        let blobs = "control-plane/registry/docker/registry/v2/blobs/sha256";
        let blob = self
            .cluster
            .info()
            .dir
            .join(blobs)
            .join(&hex[..2])
            .join(hex);
        std::fs::remove_dir_all(blob).unwrap();
    }

    /// Starts a pod on a node with an image that is always pulled.
    pub(crate) async fn pod(&self, name: &str, node: &str, image: &str, secret: Option<&str>) {
        self.pod_in(self.system(), name, node, image, secret).await;
    }

    pub(crate) async fn pod_in(
        &self,
        namespace: &str,
        name: &str,
        node: &str,
        image: &str,
        secret: Option<&str>,
    ) {
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
        apply::yaml(&self.place.client, namespace, &pod.to_string())
            .await
            .unwrap();
    }

    pub(crate) async fn delete_pod(&self, namespace: &str, name: &str) {
        let pods: Api<Pod> = Api::namespaced(self.place.client.clone(), namespace);
        let now = DeleteParams::default().grace_period(0);
        pods.delete(name, &now).await.unwrap();
    }

    /// Until a pod ran to its end; how long that took.
    pub(crate) async fn ran(&self, name: &str) -> Duration {
        self.ran_in(self.system(), name, READY).await
    }

    pub(crate) async fn ran_in(&self, namespace: &str, name: &str, limit: Duration) -> Duration {
        let since = Instant::now();
        let pods: Api<Pod> = Api::namespaced(self.place.client.clone(), namespace);
        let ended = wait_for(&pods, name, limit, |pod| {
            let status = pod.and_then(|p| p.status.as_ref()).ok_or("not there")?;
            match status.phase.as_deref() {
                Some("Succeeded") => Ok(()),
                _ => Err(diagnostics::pod_state(status)),
            }
        });
        if let Err(wrong) = ended.await {
            self.fail(&wrong.to_string()).await;
        }
        since.elapsed()
    }

    /// Until the kubelet says why an image cannot be pulled, in words that hold one of these.
    pub(crate) async fn refused(&self, namespace: &str, name: &str, words: &[&str]) -> String {
        self.refused_within(namespace, name, words, READY).await
    }

    pub(crate) async fn refused_within(
        &self,
        namespace: &str,
        name: &str,
        words: &[&str],
        limit: Duration,
    ) -> String {
        let pods: Api<Pod> = Api::namespaced(self.place.client.clone(), namespace);
        let said = wait_for(&pods, name, limit, |pod| {
            let status = pod.and_then(|p| p.status.as_ref()).ok_or("not there")?;
            let containers = status.container_statuses.iter().flatten();
            let mut waiting = containers.filter_map(|c| c.state.as_ref()?.waiting.clone());
            let said = waiting.find_map(|w| {
                w.message
                    .filter(|said| words.iter().any(|word| said.contains(word)))
            });
            said.ok_or_else(|| diagnostics::pod_state(status))
        });
        match said.await {
            Ok(said) => said,
            Err(wrong) => self.fail(&wrong.to_string()).await,
        }
    }
}

/// Bytes of which no block is another's: one random MiB over and over, numbered, which is quick also
/// where nothing is optimised.
fn unlike_others(len: usize, seed: u64) -> Vec<u8> {
    const UNIT: usize = 1 << 20;
    let mut unit = vec![0; UNIT];
    fastrand::Rng::with_seed(seed).fill(&mut unit);
    let mut all = Vec::with_capacity(len.next_multiple_of(UNIT));
    for number in 0..len.div_ceil(UNIT) as u64 {
        unit[..8].copy_from_slice(&number.to_le_bytes());
        all.extend_from_slice(&unit);
    }
    all.truncate(len);
    all
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
