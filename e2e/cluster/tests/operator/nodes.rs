//! A real cluster with the operator in a pod, and what tests of meshes do there.

use std::time::Duration;

use dragonfly_cluster::image::{Architecture, component};
use dragonfly_cluster::wait::{ready_deployment, wait_for};
use dragonfly_cluster::{Cluster, ClusterOptions, Failed, Result, apply, mesh, pod, pods_possible};
use dragonfly_crds::Distribution;
use dragonfly_e2e::sample;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::api::{Api, DeleteParams};
use kube::{Client, ResourceExt};
use serde_json::json;

use crate::bed::{Place, condition, install, read};

/// Where the operator is, and the meshes of these tests.
pub(crate) const SYSTEM: &str = "dragonfly-system";
/// How long pods may take on a machine that does other things too.
pub(crate) const READY: Duration = Duration::from_secs(180);

async fn load(cluster: &Cluster, name: &str) -> Result<String> {
    let program = match name {
        "dragonfly" => dragonfly_e2e::binary::dragonfly()?,
        "dragonfly-operator" => dragonfly_e2e::binary::operator()?,
        _ => env!("CARGO_BIN_EXE_test-origin").into(),
    };
    let image = component(name)?.image(Architecture::HERE, &program)?;
    cluster.load_image(&image, &format!("{name}:dev")).await
}

/// A cluster of nodes with the operator as `config/` installs it, and an origin.
pub(crate) async fn with_operator(options: &ClusterOptions) -> Cluster {
    let cluster = Cluster::start(options).await.unwrap();
    let client = cluster.client().await.unwrap();
    install(&client, &[SYSTEM]).await.unwrap();
    let operator = load(&cluster, "dragonfly-operator").await.unwrap();
    let dragonfly = load(&cluster, "dragonfly").await.unwrap();
    load(&cluster, "test-origin").await.unwrap();
    let text = read("config/operator/deployment.yaml")
        .unwrap()
        .replace(
            "image: dragonfly-operator:dev",
            &format!("image: {operator}"),
        )
        .replace("value: dragonfly:dev", &format!("value: {dragonfly}"));
    pods_possible(&client, SYSTEM).await.unwrap();
    apply::yaml(&client, SYSTEM, &text).await.unwrap();
    apply::yaml(&client, SYSTEM, mesh::ORIGIN).await.unwrap();
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), SYSTEM);
    for name in ["dragonfly-operator", "origin"] {
        let ready = wait_for(&deployments, name, READY, ready_deployment).await;
        if let Err(wrong) = ready {
            fail(&client, &wrong).await;
        }
    }
    cluster
}

/// With what the cluster says of its pods.
async fn fail(client: &Client, wrong: &Failed) -> ! {
    let shown = dragonfly_cluster::diagnostics::of_namespace(client, SYSTEM).await;
    panic!("{wrong}\n{shown}");
}

/// A pod on each node gets the origin's file through its node's peer; what the origin sent for it.
pub(crate) async fn every_node_gets(cluster: &Cluster, place: &Place) -> u64 {
    let before = origin_sent(&place.client).await;
    let (url, (_, len)) = (origin_url(&place.client).await, mesh::CONTENT);
    let dir = tempfile::tempdir().unwrap();
    let digest = sample::random(&dir.path().join("content"), len, len)
        .unwrap()
        .digest;
    let pods: Api<Pod> = place.api();
    for node in cluster.nodes() {
        place.apply(&getter(node.name(), &url, &digest)).await;
        let name = format!("get-{}", node.name());
        let ended = wait_for(&pods, &name, READY, |pod| {
            let status = pod.and_then(|p| p.status.as_ref()).ok_or("not there")?;
            match status.phase.as_deref() {
                Some("Succeeded") => Ok(()),
                _ => Err(dragonfly_cluster::diagnostics::pod_state(status)),
            }
        });
        if let Err(wrong) = ended.await {
            fail(&place.client, &wrong).await;
        }
        pods.delete(&name, &DeleteParams::default().grace_period(0))
            .await
            .unwrap();
        place.gone::<Pod>(&name).await;
    }
    origin_sent(&place.client).await - before
}

/// Until a mesh of its newest generation is ready.
pub(crate) async fn ready(place: &Place, name: &str) -> Distribution {
    let api: Api<Distribution> = place.api();
    let waited = wait_for(&api, name, READY, |mesh| {
        let mesh = mesh.ok_or("not there")?;
        let ready = condition(mesh, "Ready").ok_or("nothing is said yet")?;
        let current = ready.observed_generation == mesh.metadata.generation;
        if current && ready.status == "True" {
            Ok(mesh.clone())
        } else {
            Err(format!("{ready:?}"))
        }
    });
    match waited.await {
        Ok(mesh) => mesh,
        Err(wrong) => fail(&place.client, &wrong).await,
    }
}

/// A pod of a user on a node, that gets a file through the node's peer.
fn getter(node: &str, url: &str, digest: &str) -> String {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("get-{node}")},
        "spec": {
            "nodeName": node,
            "restartPolicy": "Never",
            "automountServiceAccountToken": false,
            // The socket is root's and its group's.
            "securityContext": {"runAsUser": 0, "runAsGroup": 0},
            "containers": [{
                "name": "get", "image": "registry.test/dragonfly:dev",
                "args": ["get", url, "-O", "/out/file", "--digest", digest, "-q"],
                "volumeMounts": [
                    {"name": "socket", "mountPath": "/run/dragonfly"},
                    {"name": "out", "mountPath": "/out"},
                ],
            }],
            "volumes": [
                {"name": "socket", "hostPath": {"path": "/run/dragonfly", "type": "Directory"}},
                {"name": "out", "emptyDir": {}},
            ],
        },
    })
    .to_string()
}

pub(crate) async fn origin_url(client: &Client) -> String {
    let services: Api<Service> = Api::namespaced(client.clone(), SYSTEM);
    let origin = services.get("origin").await.unwrap();
    let address = origin.spec.unwrap().cluster_ip.unwrap();
    let host = if address.contains(':') {
        format!("[{address}]")
    } else {
        address
    };
    format!("http://{host}/{}", mesh::CONTENT.0)
}

pub(crate) async fn origin_sent(client: &Client) -> u64 {
    let origins = pod::with_labels(client, SYSTEM, "app=origin")
        .await
        .unwrap();
    let log = pod::log(client, SYSTEM, &origins[0].name_any())
        .await
        .unwrap();
    let last = log.lines().rfind(|line| line.contains(" sent "));
    last.and_then(|line| line.rsplit(' ').next()?.parse().ok())
        .unwrap_or_default()
}
