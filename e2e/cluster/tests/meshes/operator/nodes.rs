//! A real cluster with the operator in a pod, and what tests of meshes do there.

use dragonfly_cluster::place::READY;
use dragonfly_cluster::wait::wait_for;
use dragonfly_cluster::{Cluster, ClusterOptions, Place, mesh, operator, pod};
use dragonfly_e2e::sample;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams};
use serde_json::json;

/// A cluster of nodes with the operator in a pod, and an origin beside it.
pub(crate) async fn with_operator(options: &ClusterOptions) -> (Cluster, Place) {
    let cluster = Cluster::start(options).await.unwrap();
    let place = operator::deploy(&cluster, &[]).await.unwrap();
    (cluster, place)
}

/// A pod on each node gets the origin's file through its node's peer; what the origin sent for it.
pub(crate) async fn every_node_gets(cluster: &Cluster, place: &Place) -> u64 {
    let before = origin_sent(place).await;
    let (url, (_, len)) = (origin_url(place).await, mesh::CONTENT);
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
        ended.await.unwrap();
        pods.delete(&name, &DeleteParams::default().grace_period(0))
            .await
            .unwrap();
        place.gone::<Pod>(&name).await;
    }
    origin_sent(place).await - before
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

pub(crate) async fn origin_url(place: &Place) -> String {
    let services: Api<Service> = place.api();
    let origin = services.get("origin").await.unwrap();
    let address = origin.spec.unwrap().cluster_ip.unwrap();
    let host = if address.contains(':') {
        format!("[{address}]")
    } else {
        address
    };
    format!("http://{host}/{}", mesh::CONTENT.0)
}

pub(crate) async fn origin_sent(place: &Place) -> u64 {
    let (client, namespace) = (&place.client, &place.namespace);
    let origins = pod::with_labels(client, namespace, "app=origin")
        .await
        .unwrap();
    let log = pod::log(client, namespace, &origins[0].name_any())
        .await
        .unwrap();
    let last = log.lines().rfind(|line| line.contains(" sent "));
    last.and_then(|line| line.rsplit(' ').next()?.parse().ok())
        .unwrap_or_default()
}
