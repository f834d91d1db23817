//! Meshes of other shapes than the samples': several schedulers, seeds with volumes of their own,
//! plaintext, addresses of IPv6 alone.

use dragonfly_cluster::place::READY;
use dragonfly_cluster::wait::{ready_deployment, wait_for};
use dragonfly_cluster::{ClusterOptions, IpFamily, Place, mesh, pod};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams};
use serde_json::json;

use super::nodes::{every_node_gets, with_operator};

/// A disk of a node, as an administrator makes it known.
fn volume(node: &str) -> String {
    let selected = json!({"key": "kubernetes.io/hostname", "operator": "In", "values": [node]});
    json!({
        "apiVersion": "v1", "kind": "PersistentVolume",
        "metadata": {"name": format!("disk-{node}")},
        "spec": {
            "capacity": {"storage": "2Gi"},
            "accessModes": ["ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": "disks",
            "local": {"path": "/var/lib/disk"},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [selected]}]}},
        },
    })
    .to_string()
}

const MESH: &str = "
apiVersion: d7y.io/v1alpha1
kind: SchedulerPool
metadata: {name: two}
spec: {replicas: 2}
---
apiVersion: d7y.io/v1alpha1
kind: Distribution
metadata: {name: wide}
spec:
  profile: Light
  storage: {reserveFreePercent: 0}
  schedulerPoolRef: {name: two}
  security: {transport: Plaintext}
  seeds:
    replicas: 2
    storage: {volumeClaim: {size: 1Gi, storageClassName: disks}}
  peers:
    storage: {emptyDir: {}}
";

/// Deletes a slot's pod and waits until another one is ready.
async fn restart(place: &Place, slot: &str) {
    let labels = format!("d7y.io/slot={slot}");
    let pods: Api<Pod> = place.api();
    for old in pod::with_labels(&place.client, &place.namespace, &labels)
        .await
        .unwrap()
    {
        let name = old.name_any();
        pods.delete(&name, &DeleteParams::default()).await.unwrap();
        place.gone::<Pod>(&name).await;
    }
    let deployments: Api<Deployment> = place.api();
    wait_for(
        &deployments,
        &format!("wide-{slot}"),
        READY,
        ready_deployment,
    )
    .await
    .unwrap();
}

#[tokio::test]
async fn a_plaintext_mesh_of_two_schedulers_and_seeds_with_volumes_serves_nodes_with_ipv6_alone() {
    let options = ClusterOptions::nodes(2).family(IpFamily::V6);
    let (cluster, place) = with_operator(&options).await;
    for node in cluster.nodes() {
        node.run(&["mkdir", "-p", "/var/lib/disk"]).await.unwrap();
        place.apply(&volume(node.name())).await;
    }
    place.apply(MESH).await;
    let found = place.ready("wide").await;
    let parts = found.status.as_ref().unwrap().components.unwrap();
    assert_eq!(
        (parts.schedulers.ready, parts.seeds.ready, parts.peers.ready),
        (2, 2, 2)
    );
    let sent = every_node_gets(&cluster, &place).await;
    assert_eq!(sent, mesh::CONTENT.1, "each byte once");

    // Slots come back as who they were: the seeds with what they hold, so that the origin is not asked
    // again by peers that are new and hold nothing.
    for slot in ["scheduler-0", "scheduler-1", "seed-0", "seed-1"] {
        restart(&place, slot).await;
    }
    let peers = pod::with_labels(
        &place.client,
        &place.namespace,
        "app.kubernetes.io/component=peer",
    );
    let pods: Api<Pod> = place.api();
    for peer in peers.await.unwrap() {
        pods.delete(&peer.name_any(), &DeleteParams::default())
            .await
            .unwrap();
        place.gone::<Pod>(&peer.name_any()).await;
    }
    place.ready("wide").await;
    let sent = every_node_gets(&cluster, &place).await;
    assert_eq!(sent, 0, "the seeds' volumes hold it");

    // One seed less takes its volume's claim along, and the mesh goes on.
    place
        .apply(&MESH.replace("replicas: 2\n    storage", "replicas: 1\n    storage"))
        .await;
    place.gone::<Deployment>("wide-seed-1").await;
    place.gone::<PersistentVolumeClaim>("wide-seed-1").await;
    place.ready("wide").await;
    cluster.stop().await.unwrap();
}
