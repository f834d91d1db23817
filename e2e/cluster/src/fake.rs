//! Fake nodes: objects that kwok keeps ready, with pods that it says are running. For what has to be
//! right with a thousand nodes and needs none of them to run anything.

use std::path::Path;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, ListParams, PostParams};
use serde_json::json;

use dragonfly_e2e::{Failed, Result};

use crate::definitions::downloaded;
use crate::tools::Tool;
use crate::wait::{ready_node, wait_until};
use crate::{Cluster, ClusterOptions};

const GO_MOD: &str = include_str!("../go/kwok/go.mod");
const GO_SUM: &str = include_str!("../go/kwok/go.sum");
/// How its nodes and pods behave, from its own module.
const STAGES: [&str; 5] = [
    "node/fast/node-initialize.yaml",
    "node/heartbeat-with-lease/node-heartbeat-with-lease.yaml",
    "pod/fast/pod-ready.yaml",
    "pod/fast/pod-complete.yaml",
    "pod/fast/pod-delete.yaml",
];
/// What fake nodes are known by: label and annotation.
pub const LABEL: &str = "type=kwok";
/// How many requests are under way at once.
const AT_ONCE: usize = 20;
const READY: Duration = Duration::from_secs(300);

/// Adds fake nodes `fake-0` and so on, and waits until all are ready. Once a cluster.
///
/// # Errors
/// The cluster has no controllers or was started by another process; kwok cannot be built; the API
/// server's.
pub async fn nodes(cluster: &Cluster, count: usize) -> Result<()> {
    if cluster.info().nodes.is_empty() {
        let needed = ClusterOptions::nodes(1).nodes.len();
        return Err(Failed(format!(
            "fake nodes need controllers: start with {needed} node or more"
        )));
    }
    let dir = cluster.info().dir.clone();
    let prepared = tokio::task::spawn_blocking(move || prepare(&dir));
    let (program, config) = prepared.await.map_err(|e| Failed::at("kwok", e))??;
    let line = [
        program,
        format!("--kubeconfig={}", cluster.kubeconfig().display()),
        format!("--config={config}"),
        "--manage-all-nodes=false".to_owned(),
        format!("--manage-nodes-with-label-selector={LABEL}"),
        "--node-lease-duration-seconds=40".to_owned(),
        "--server-address=127.0.0.1:10247".to_owned(),
    ];
    cluster.start_daemon("kwok", line.to_vec()).await?;

    let all: Api<Node> = Api::all(cluster.client().await?);
    let made = futures::stream::iter(0..count).map(|n| {
        let all = all.clone();
        async move {
            let node = node(n)?;
            let made = all.create(&PostParams::default(), &node).await;
            made.map_err(|e| Failed::at(format!("fake-{n}"), e))
        }
    });
    made.buffer_unordered(AT_ONCE)
        .try_collect::<Vec<_>>()
        .await?;
    wait_until("fake nodes to be ready", READY, || async {
        let listed = all.list(&ListParams::default().labels(LABEL)).await;
        let listed = listed.map_err(|e| Failed::at("nodes", e))?;
        let ready = listed
            .iter()
            .filter(|node| ready_node(Some(node)).is_ok())
            .count();
        Ok(if ready == count {
            Ok(())
        } else {
            Err(format!("{ready} of {count} are"))
        })
    })
    .await
}

/// The program, and its configuration in a file.
fn prepare(dir: &Path) -> Result<(String, String)> {
    let built = Tool::Kwok.built()?;
    let program = built
        .get("kwok")
        .ok_or_else(|| Failed::at("kwok", "was not built"))?;
    let stages = downloaded("sigs.k8s.io/kwok", GO_MOD, GO_SUM)?.join("kustomize/stage");
    let mut text = String::new();
    for name in STAGES {
        let path = stages.join(name);
        let stage = std::fs::read_to_string(&path).map_err(|e| Failed::at(path.display(), e))?;
        text.push_str(&stage);
        text.push_str("\n---\n");
    }
    let config = dir.join("kwok.yaml");
    std::fs::write(&config, text).map_err(|e| Failed::at(config.display(), e))?;
    Ok((program.display().to_string(), config.display().to_string()))
}

fn node(n: usize) -> Result<Node> {
    let name = format!("fake-{n}");
    let room = json!({"cpu": "8", "memory": "32Gi", "pods": "110", "ephemeral-storage": "100Gi"});
    let object = json!({
        "metadata": {
            "name": name,
            "labels": {"type": "kwok", "kubernetes.io/hostname": name, "kubernetes.io/os": "linux"},
        },
        "status": {"allocatable": room, "capacity": room},
    });
    serde_json::from_value(object).map_err(|e| Failed::at(name, e))
}
