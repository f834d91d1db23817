//! From nothing to a file on every node: the charts by helm, the samples by kubectl, a pod on each node
//! that gets a file through its node's peer. Then a second operator, and the end of the first; what is
//! installed is uninstalled.

use std::time::Duration;

use dragonfly_cluster::helm::helm;
use dragonfly_cluster::operator::load;
use dragonfly_cluster::wait::{ready_deployment, wait_for, wait_until};
use dragonfly_cluster::{Cluster, ClusterOptions, Failed, apply, mesh, pod};
use dragonfly_crds::Distribution;
use dragonfly_e2e::manifests;
use dragonfly_e2e::mesh::Options;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::ResourceExt;
use kube::api::Api;

use super::leaders;
use super::ways_in::{at, kubectl};

const NAMESPACE: &str = "dragonfly-system";
const READY: Duration = Duration::from_secs(180);

/// A client of the node's peer. NODE and URL are filled in.
const CLIENT: &str = "
apiVersion: v1
kind: Pod
metadata: {name: client-NODE}
spec:
  nodeName: NODE
  restartPolicy: Never
  automountServiceAccountToken: false
  # The socket is for root and its group.
  securityContext: {runAsUser: 0, runAsGroup: 0, seccompProfile: {type: RuntimeDefault}}
  containers:
    - name: get
      image: registry.test/dragonfly:dev
      args: [get, URL, -O, /downloads/content.bin]
      volumeMounts:
        - {name: socket, mountPath: /run/dragonfly}
        - {name: downloads, mountPath: /downloads}
  volumes:
    - name: socket
      hostPath: {path: /run/dragonfly, type: Directory}
    - name: downloads
      emptyDir: {}
";

#[tokio::test]
async fn helm_install_and_the_samples_make_a_mesh_that_reads_the_origin_once_and_outlives_its_operator()
 {
    let cluster = Cluster::start(&ClusterOptions::nodes(2)).await.unwrap();
    for name in ["dragonfly", "dragonfly-operator", "test-origin"] {
        load(&cluster, name).await.unwrap();
    }
    let shown = run(&cluster).await;
    if shown.is_err() {
        let client = cluster.client().await.unwrap();
        let what = dragonfly_cluster::diagnostics::of_namespace(&client, NAMESPACE).await;
        eprintln!("{what}\n{}", cluster.logs());
    }
    shown.unwrap();
    cluster.stop().await.unwrap();
}

async fn run(cluster: &Cluster) -> Result<(), Failed> {
    let client = cluster.client().await?;
    let nodes: Vec<_> = cluster.nodes().map(|n| n.name().to_owned()).collect();
    helm(
        cluster,
        &["install", "dragonfly-crds", &at("charts/dragonfly-crds")],
    )
    .await?;
    let images = "image.repository=registry.test/dragonfly-operator,image.tag=dev,\
                  dataPlane.image.repository=registry.test/dragonfly,dataPlane.image.tag=dev";
    let chart = at("charts/dragonfly");
    let install = [
        "install",
        "dragonfly",
        &chart,
        "--namespace",
        NAMESPACE,
        "--create-namespace",
        "--set",
        images,
    ];
    helm(cluster, &install).await?;
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), NAMESPACE);
    wait_for(&deployments, "dragonfly", READY, ready_deployment).await?;

    let samples = tempfile::tempdir().map_err(|e| Failed::at("a temporary directory", e))?;
    manifests::write(samples.path(), &Options::default())?;
    let files = samples.path().display().to_string();
    kubectl(cluster, &["apply", "-n", NAMESPACE, "-f", &files]).await?;
    let ready = [
        "wait",
        "--for=condition=Ready",
        "--timeout=180s",
        "distribution/default",
    ];
    let mut line = vec!["-n", NAMESPACE];
    line.extend(ready);
    kubectl(cluster, &line).await?;

    apply::yaml(&client, NAMESPACE, mesh::ORIGIN).await?;
    wait_for(&deployments, "origin", READY, ready_deployment).await?;
    let services: Api<Service> = Api::namespaced(client.clone(), NAMESPACE);
    let origin = services.get("origin").await;
    let origin = origin.map_err(|e| Failed::at("origin", e))?;
    let address = origin.spec.and_then(|s| s.cluster_ip).unwrap_or_default();
    let (name, len) = mesh::CONTENT;
    let url = format!("http://{address}/{name}");
    for node in &nodes {
        let text = CLIENT.replace("NODE", node).replace("URL", &url);
        apply::yaml(&client, NAMESPACE, &text).await?;
    }
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    for node in &nodes {
        wait_for(&pods, &format!("client-{node}"), READY, |pod| {
            let phase = pod.and_then(|p| p.status.as_ref()?.phase.clone());
            match phase.as_deref() {
                Some("Succeeded") => Ok(()),
                other => Err(format!("is {other:?}")),
            }
        })
        .await?;
    }
    let origins = pod::with_labels(&client, NAMESPACE, "app=origin").await?;
    let log = pod::log(&client, NAMESPACE, &origins[0].name_any()).await?;
    let last = log.lines().rfind(|line| line.contains(" sent "));
    let sent = last.and_then(|line| line.rsplit(' ').next()?.parse().ok());
    assert_eq!(sent, Some(len), "the origin was read more than once: {log}");

    // And the object says so.
    let distributions: Api<Distribution> = Api::namespaced(client, NAMESPACE);
    let peers = i64::try_from(nodes.len()).unwrap_or_default();
    wait_until("the reports", READY, || async {
        let found = distributions.get("default").await;
        let status = found.map_err(|e| Failed::at("default", e))?.status;
        let status = status.unwrap_or_default();
        let (traffic, rollout) = (
            status.traffic.unwrap_or_default(),
            status.rollout.unwrap_or_default(),
        );
        let shown = format!("{traffic:?} {rollout:?}");
        let bytes = i64::try_from(len).unwrap_or_default();
        let told = traffic.origin_bytes == bytes
            && traffic.delivered_bytes == bytes * peers
            && traffic.finished == peers;
        let all = rollout.peers == peers && rollout.seeds == 1 && rollout.acknowledged == peers + 1;
        Ok(if told && all { Ok(()) } else { Err(shown) })
    })
    .await?;
    leaders::one_of_two_operators_leads(cluster, NAMESPACE).await?;
    uninstall(cluster, &files).await
}

/// The chart first, the mesh after it, the kinds last: nothing waits for an operator that is gone.
async fn uninstall(cluster: &Cluster, samples: &str) -> Result<(), Failed> {
    let client = cluster.client().await?;
    let of_mesh = || pod::with_labels(&client, NAMESPACE, "app.kubernetes.io/instance=default");
    let before = of_mesh().await?.len();
    helm(
        cluster,
        &["uninstall", "dragonfly", "-n", NAMESPACE, "--wait"],
    )
    .await?;
    assert_eq!(of_mesh().await?.len(), before, "the mesh serves on");
    let line = ["delete", "-n", NAMESPACE, "--timeout=60s", "-f", samples];
    kubectl(cluster, &line).await?;
    wait_until("the mesh's pods to be gone", READY, || async {
        let left = of_mesh().await?;
        let names: Vec<_> = left.iter().map(ResourceExt::name_any).collect();
        Ok(if names.is_empty() {
            Ok(())
        } else {
            Err(names.join(", "))
        })
    })
    .await?;
    // The kinds stay until a person deletes them, and all objects with them.
    helm(cluster, &["uninstall", "dragonfly-crds", "--wait"]).await?;
    let kinds = kubectl(cluster, &["get", "crds", "-o", "name"]).await?;
    let kinds: Vec<_> = kinds.lines().filter(|k| k.contains("d7y.io")).collect();
    assert!(!kinds.is_empty());
    let mut line = vec!["delete", "--timeout=60s"];
    line.extend(kinds);
    kubectl(cluster, &line).await?;
    Ok(())
}
