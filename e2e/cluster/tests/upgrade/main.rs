//! A mesh that is brought to another release and back while its clients download.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "tests"
)]

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use dragonfly_cluster::downloads::{Client as Downloader, Ended, summary};
use dragonfly_cluster::earlier::Earlier;
use dragonfly_cluster::image::{Architecture, component};
use dragonfly_cluster::operator::{Read, config, install, read};
use dragonfly_cluster::wait::{ready_deployment, wait_for, wait_until};
use dragonfly_cluster::{
    Cluster, ClusterOptions, Failed, Place, Result, apply, mesh, pod, pods_possible,
};
use dragonfly_crds::Distribution;
use dragonfly_e2e::{binary, sample};
use futures::future::try_join_all;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::ResourceExt;
use kube::api::Api;

/// What is upgraded from. The last release, once there is one.
const FROM: &str = "57117f9b46cab114e93c378461633bc51d83604d";
/// How long a release may take to be everywhere on a machine that does other things too.
const READY: Duration = Duration::from_secs(400);

const MESH: &str = "
apiVersion: d7y.io/v1alpha1
kind: Distribution
metadata: {name: default}
spec:
  profile: Light
  # Each download is a content of its own; little of a machine that may be rather full.
  storage: {quota: 1Gi, reserveFreePercent: 0}
";

/// One of the two.
#[derive(Clone, Copy, PartialEq)]
enum Release {
    Old,
    New,
}

struct Bed {
    // Before the cluster, so that a failure can still be told.
    place: Place,
    cluster: Cluster,
    old: Earlier,
}

impl Bed {
    async fn start() -> Result<Self> {
        let old = tokio::task::spawn_blocking(|| Earlier::at(FROM)).await;
        let old = old.map_err(|e| Failed::at("the earlier commit", e))??;
        let cluster = Cluster::start(&ClusterOptions::nodes(2)).await?;
        let place = Place::new(&cluster).await?;
        let bed = Self {
            place,
            cluster,
            old,
        };
        for release in [Release::Old, Release::New] {
            for name in ["dragonfly", "dragonfly-operator"] {
                let image =
                    component(name)?.image(Architecture::HERE, &bed.program(release, name)?)?;
                bed.cluster
                    .load_image(&image, &image_of(release, name))
                    .await?;
            }
        }
        let origin: PathBuf = env!("CARGO_BIN_EXE_test-origin").into();
        let image = component("test-origin")?.image(Architecture::HERE, &origin)?;
        bed.cluster.load_image(&image, "test-origin:dev").await?;
        Ok(bed)
    }

    fn program(&self, release: Release, name: &str) -> Result<PathBuf> {
        match (release, name) {
            (Release::Old, _) => Ok(self.old.program(name)),
            (Release::New, "dragonfly") => binary::dragonfly(),
            (Release::New, _) => binary::operator(),
        }
    }

    /// As a person does it: kinds, rights and operator of a release, over what is there.
    async fn apply(&self, release: Release) -> Result<()> {
        let (client, system) = (&self.place.client, self.place.namespace.as_str());
        let earlier = |path: &str| self.old.read(path);
        let read: Read<'_> = match release {
            Release::Old => &earlier,
            Release::New => &read,
        };
        install(client, system, &[system], read).await?;
        let text = config(read, "operator/deployment.yaml", system)?;
        let text = text
            .replace(
                "image: dragonfly-operator:dev",
                &format!(
                    "image: registry.test/{}",
                    image_of(release, "dragonfly-operator")
                ),
            )
            .replace(
                "value: dragonfly:dev",
                &format!("value: registry.test/{}", image_of(release, "dragonfly")),
            );
        pods_possible(client, system).await?;
        apply::yaml(client, system, &text).await?;
        Ok(())
    }

    /// Until every part is of a release and the mesh is ready.
    async fn is_everywhere(&self, release: Release) -> Result<()> {
        let image = format!("registry.test/{}", image_of(release, "dragonfly"));
        let done = wait_until("the release to be everywhere", READY, || async {
            let pods = pod::with_labels(
                &self.place.client,
                &self.place.namespace,
                "app.kubernetes.io/instance=default",
            );
            let pods = pods.await?;
            let is_of = |pod: &Pod| {
                let containers = pod.spec.iter().flat_map(|s| &s.containers);
                containers
                    .clone()
                    .all(|c| c.image.as_deref() == Some(&image))
            };
            if pods.len() != 4 || !pods.iter().all(is_of) {
                let of: Vec<_> = pods
                    .iter()
                    .filter(|p| is_of(p))
                    .map(ResourceExt::name_any)
                    .collect();
                return Ok(Err(format!(
                    "{} pods, of them of the release {of:?}",
                    pods.len()
                )));
            }
            for pod in &pods {
                if let Err(why) = dragonfly_cluster::wait::ready_pod(Some(pod)) {
                    return Ok(Err(format!("{}: {why}", pod.name_any())));
                }
            }
            let meshes: Api<Distribution> = self.place.api();
            let mesh = meshes
                .get("default")
                .await
                .map_err(|e| Failed::at("the mesh", e))?;
            let rows = mesh.status.map(|s| s.conditions).unwrap_or_default();
            let ready = rows
                .iter()
                .any(|c| c.type_ == "Ready" && c.status == "True");
            Ok(if ready {
                Ok(())
            } else {
                Err(format!("{rows:?}"))
            })
        });
        done.await
    }

    /// To a release, while clients of both download on both nodes: how these ended.
    async fn change(&self, to: Release, what: &str, url: &str) -> Result<Vec<Ended>> {
        let mut clients = vec![];
        for node in self.cluster.nodes() {
            for (release, of) in [(Release::Old, "old"), (Release::New, "new")] {
                for (rate, speed) in [("2M", "slow"), ("16M", "fast")] {
                    clients.push(Downloader {
                        node,
                        program: self.program(release, "dragonfly")?,
                        name: format!("{what}-{}-{of}-{speed}", node.name()),
                        rate,
                    });
                }
            }
        }
        let over = AtomicBool::new(false);
        let changing = async {
            // Some are under way.
            tokio::time::sleep(Duration::from_secs(5)).await;
            let begun = Instant::now();
            let changed = async {
                self.apply(to).await?;
                self.is_everywhere(to).await
            };
            let changed = changed.await;
            eprintln!("{what}: everywhere after {:.1?}", begun.elapsed());
            // And some after it.
            tokio::time::sleep(Duration::from_secs(5)).await;
            over.store(true, Ordering::Relaxed);
            changed
        };
        let downloads = try_join_all(clients.iter().map(|client| client.go_on(url, &over)));
        let (changed, ended) = futures::join!(changing, downloads);
        changed?;
        Ok(ended?.into_iter().flatten().collect())
    }
}

fn image_of(release: Release, name: &str) -> String {
    match release {
        Release::Old => format!("{name}:old"),
        Release::New => format!("{name}:new"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "builds an earlier commit and takes minutes: make test-full runs it"]
async fn a_mesh_is_upgraded_and_taken_back_while_its_clients_download() {
    let bed = Bed::start().await.unwrap();
    bed.apply(Release::Old).await.unwrap();
    bed.place.apply(mesh::ORIGIN).await;
    let deployments: Api<Deployment> = bed.place.api();
    for name in ["dragonfly-operator", "origin"] {
        wait_for(&deployments, name, READY, ready_deployment)
            .await
            .unwrap();
    }
    bed.place.apply(MESH).await;
    bed.is_everywhere(Release::Old).await.unwrap();

    let services: Api<Service> = bed.place.api();
    let origin = services.get("origin").await.unwrap().spec.unwrap();
    let url = format!("http://{}/{}", origin.cluster_ip.unwrap(), mesh::CONTENT.0);
    let dir = tempfile::tempdir().unwrap();
    let len = mesh::CONTENT.1;
    let digest = sample::random(&dir.path().join("content"), len, len)
        .unwrap()
        .digest;

    for (to, what) in [(Release::New, "upgrade"), (Release::Old, "back")] {
        let ended = bed.change(to, what, &url).await.unwrap();
        let failed: Vec<_> = ended.iter().filter(|e| e.code != Some(0)).collect();
        for e in &failed {
            eprintln!(
                "{what}: {} after {:.1?}: {:?}: {}",
                e.name,
                e.took,
                e.code,
                e.last()
            );
        }
        eprintln!("{what}: {}", summary(&ended, &digest).unwrap());
        // They were there when nodes went: else this says nothing.
        assert!(
            ended.iter().any(|e| e.reconnects() > 0),
            "no download met a restart"
        );
        // What does not go on says that it may be tried again: no node (5), not a wrong answer. Who
        // asks for a node at the moment when there is none is told so at once.
        assert!(failed.iter().all(|e| e.code == Some(5)), "{failed:#?}");
        let broken: Vec<_> = failed
            .iter()
            .filter(|e| e.said.contains("\"event\":\"started\""))
            .collect();
        assert!(broken.is_empty(), "downloads under way ended: {broken:#?}");
    }
    bed.cluster.stop().await.unwrap();
}
