//! What fails while all nodes pull: each pull ends with the right image (containerd compares every layer
//! with its digest) or with what the registry itself says, within a bound.

use std::time::{Duration, Instant};

use dragonfly_cluster::place::READY;
use dragonfly_cluster::pod;
use dragonfly_crds::Distribution;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams};
use serde_json::json;

use super::gate::{Gate, Mode};
use super::nodes::{counter, hosts, peer, until_told};
use super::place::Bed;

/// The registry that fails, as images name it.
const FAULTY: &str = "faulty.test";

struct Faults {
    bed: Bed,
    gate: Gate,
    /// Bytes of each image's own layer.
    len: usize,
    /// No pull takes longer.
    limit: Duration,
    /// Of what was pulled nothing is kept, for want of room.
    big: bool,
}

impl Faults {
    async fn start(len: usize, limit: Duration, big: bool) -> Self {
        let bed = Bed::start().await;
        let gate = Gate::before(bed.cluster.registry().address()).await;
        // One node's cache is on a disk of its own, that can be filled.
        let node = bed.node(1);
        let size = format!("size={}", (if big { 2 } else { 3 }) * len + (96 << 20));
        node.run(&["mkdir", "-p", "/var/lib/dragonfly"])
            .await
            .unwrap();
        node.run(&[
            "mount",
            "-t",
            "tmpfs",
            "-o",
            &size,
            "tmpfs",
            "/var/lib/dragonfly",
        ])
        .await
        .unwrap();
        let faults = Self {
            bed,
            gate,
            len,
            limit,
            big,
        };
        faults.told().await;
        faults
    }

    /// A mesh, with the registry that fails, on all nodes.
    async fn told(&self) {
        let url = format!("http://{}", self.gate.address);
        let mirror = json!({
            "registries": [{"host": FAULTY, "url": url}], "others": "Never", "percent": 100,
        });
        let mut storage = json!({"reserveFreePercent": 0});
        if self.big {
            storage["quota"] = json!((self.len * 3 / 2).to_string());
        }
        let spec = json!({"profile": "Light", "storage": storage, "mirror": mirror});
        self.bed.mesh_of(spec).await;
        for node in self.bed.cluster.nodes() {
            until_told(node, FAULTY, true).await;
        }
    }

    fn pods(&self, name: &str) -> Vec<(String, String)> {
        let nodes = self.bed.cluster.nodes();
        nodes
            .map(|node| (format!("{name}-{}", node.name()), node.name().to_owned()))
            .collect()
    }

    /// A new image on all nodes at once; what its layer is.
    async fn begin(&self, name: &str, mode: Mode) -> String {
        let started = Instant::now();
        let seed = fastrand::u64(..);
        let layer = self.bed.push(&format!("{name}:v1"), self.len, seed).await;
        self.gate.does(mode, &layer);
        self.ask_for(name).await;
        eprintln!("{name}: pushed and asked for after {:?}", started.elapsed());
        layer
    }

    /// A pod on each node.
    async fn ask_for(&self, name: &str) {
        for (pod, node) in self.pods(name) {
            let image = format!("{FAULTY}/{name}:v1");
            self.bed.pod(&pod, &node, &image, None).await;
        }
    }

    /// Until the registry has sent a third of the layer.
    async fn under_way(&self, name: &str) {
        let since = Instant::now();
        while self.gate.sent() < self.len as u64 / 3 {
            if since.elapsed() > READY {
                self.bed
                    .fail(&format!("{name}: the pull does not begin"))
                    .await;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Until every node has run it.
    async fn all_ran(&self, name: &str, layer: &str) {
        let since = Instant::now();
        for (pod, _) in self.pods(name) {
            self.bed.ran_in(self.bed.system(), &pod, self.limit).await;
            self.bed.delete_pod(self.bed.system(), &pod).await;
        }
        eprintln!("{name}: on all nodes {:?} later", since.elapsed());
        if self.big {
            self.bed.forget(FAULTY, layer).await;
        }
    }

    /// Faults that a registry has for ever: its own error is what the kubelet says, and once it is well
    /// again everybody gets the image.
    async fn says(&self, name: &str, mode: Mode, words: &[&str]) {
        let layer = self.begin(name, mode).await;
        for (pod, _) in self.pods(name) {
            let said = self
                .bed
                .refused_within(self.bed.system(), &pod, words, self.limit)
                .await;
            eprintln!("{name}: {said}");
            // A new one, for the kubelet waits longer and longer with an old one.
            self.bed.delete_pod(self.bed.system(), &pod).await;
        }
        self.gate.does(Mode::Well, &layer);
        self.ask_for(name).await;
        self.all_ran(name, &layer).await;
    }

    /// Ends all pods of a part at once, without a word.
    async fn kill(&self, component: &str) {
        let labels = format!("app.kubernetes.io/component={component}");
        let client = &self.bed.place.client;
        let found = pod::with_labels(client, self.bed.system(), &labels)
            .await
            .unwrap();
        assert!(!found.is_empty(), "{component}");
        let pods: Api<k8s_openapi::api::core::v1::Pod> = self.bed.place.api();
        for pod in found {
            let now = DeleteParams::default().grace_period(0);
            pods.delete(&pod.name_any(), &now).await.unwrap();
        }
    }

    async fn cut(&self) {
        let cut = Mode::Cut(self.len as u64 / 4);
        let layer = self.begin("cut", cut).await;
        self.all_ran("cut", &layer).await;
    }

    /// The registry is away for some seconds, from the middle of the layer on.
    async fn stops(&self) {
        let slow = Mode::Slow(self.len as u64 / 4);
        let layer = self.begin("stops", slow).await;
        self.under_way("stops").await;
        self.gate.does(Mode::Gone, &layer);
        tokio::time::sleep(Duration::from_secs(5)).await;
        self.gate.does(Mode::Well, &layer);
        self.all_ran("stops", &layer).await;
    }

    async fn wrong(&self) {
        // containerd's own word, for it asks the registry itself in the end.
        let words = ["digest", "EOF", "commit", "unexpected", "short"];
        self.says("wrong", Mode::Wrong, &words).await;
    }

    async fn status(&self, status: u16) {
        let name = format!("status-{status}");
        let number = status.to_string();
        self.says(&name, Mode::Status(status), &[&number]).await;
    }

    async fn slow(&self) {
        let slow = Mode::Slow(self.len as u64 / 10);
        let layer = self.begin("slow", slow).await;
        self.all_ran("slow", &layer).await;
    }

    async fn killed(&self, component: &str) {
        let name = format!("without-{component}");
        let slow = Mode::Slow(self.len as u64 / 4);
        let layer = self.begin(&name, slow).await;
        self.under_way(&name).await;
        self.kill(component).await;
        self.gate.does(Mode::Well, &layer);
        self.all_ran(&name, &layer).await;
        // The part is back before the next fault.
        self.told().await;
    }

    async fn peer_killed(&self) {
        let slow = Mode::Slow(self.len as u64 / 4);
        let layer = self.begin("without-peer", slow).await;
        self.under_way("without-peer").await;
        let node = self.bed.node(0);
        node.run(&["kill", "-KILL", &peer(node).await])
            .await
            .unwrap();
        self.gate.does(Mode::Well, &layer);
        self.all_ran("without-peer", &layer).await;
        self.told().await;
    }

    /// One node's disk is full: its pulls go on, past the cache.
    async fn disk_full(&self) {
        let node = self.bed.node(1);
        let free = node
            .run(&["df", "--output=avail", "-B1", "/var/lib/dragonfly"])
            .await
            .unwrap();
        let free: u64 = free.lines().last().unwrap().trim().parse().unwrap();
        let filler = (free - self.len as u64 / 3).to_string();
        let path = "/var/lib/dragonfly/filler";
        node.run(&["fallocate", "-l", &filler, path]).await.unwrap();
        let layer = self.begin("full", Mode::Well).await;
        self.all_ran("full", &layer).await;
        node.run(&["rm", path]).await.unwrap();
        let direct = counter(node, "dragonfly_mirror_direct_bytes_total").await;
        eprintln!("past the full disk: {direct:?} bytes");
        let layer = self.begin("room", Mode::Well).await;
        self.all_ran("room", &layer).await;
    }

    /// The mesh goes in the middle: nothing of it is left, and everybody has the image.
    async fn uninstalled(self) {
        let slow = Mode::Slow(self.len as u64 / 4);
        let layer = self.begin("uninstalled", slow).await;
        self.under_way("uninstalled").await;
        let meshes: Api<Distribution> = self.bed.place.api();
        meshes
            .delete("default", &DeleteParams::default())
            .await
            .unwrap();
        self.gate.does(Mode::Well, &layer);
        self.all_ran("uninstalled", &layer).await;
        for node in self.bed.cluster.nodes() {
            until_told(node, FAULTY, false).await;
            assert_eq!(hosts(node, FAULTY), None);
        }
        self.bed.cluster.stop().await.unwrap();
    }
}

/// Those that a user of the world meets first; the others are in the test below.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pulls_under_way_end_with_the_right_image_or_the_registrys_own_error() {
    let faults = Faults::start(12 << 20, READY, false).await;
    faults.cut().await;
    faults.status(500).await;
    faults.wrong().await;
    faults.killed("seed").await;
    faults.disk_full().await;
    faults.uninstalled().await;
}

/// Images that are big are pulled in one test at a time: disks are not.
static BIG: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

async fn with_big_images() -> Faults {
    Faults::start(2 << 30, Duration::from_secs(1200), true).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "six images of 2 GiB on two nodes each: a quarter of an hour, and 20 GB of disk"]
async fn pulls_of_big_images_survive_what_registries_do() {
    let _alone = BIG.lock().await;
    let faults = with_big_images().await;
    faults.cut().await;
    faults.stops().await;
    for status in [500, 429] {
        faults.status(status).await;
    }
    faults.slow().await;
    faults.wrong().await;
    faults.bed.cluster.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "six images of 2 GiB on two nodes each: a quarter of an hour, and 20 GB of disk"]
async fn pulls_of_big_images_survive_what_happens_to_the_mesh() {
    let _alone = BIG.lock().await;
    let faults = with_big_images().await;
    // First, while the cache is empty: what it can evict is no full disk.
    faults.disk_full().await;
    faults.peer_killed().await;
    faults.killed("scheduler").await;
    faults.killed("seed").await;
    faults.uninstalled().await;
}
