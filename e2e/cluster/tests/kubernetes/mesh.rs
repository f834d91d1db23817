//! The data plane in pods: what the operator will make is here made by hand.

use std::time::Duration;

use dragonfly_cluster::operator::load;
use dragonfly_cluster::wait::{ready_daemon_set, ready_deployment, wait_for};
use dragonfly_cluster::{Failed, Result, apply, mesh, pod, pods_possible};
use dragonfly_e2e::sample;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::Service;
use kube::ResourceExt;
use kube::api::Api;

use crate::shared;

const READY: Duration = Duration::from_secs(90);

#[tokio::test]
async fn every_node_gets_a_file_and_the_origin_sends_it_once() {
    let cluster = shared().await;
    load(&cluster, "dragonfly").await.unwrap();
    load(&cluster, "test-origin").await.unwrap();
    let nodes = cluster.nodes().count();
    let tested = cluster.with_temp_ns(|client, namespace| async move {
        pods_possible(&client, &namespace).await?;
        apply::yaml(&client, &namespace, &mesh::manifest()?).await?;
        apply::yaml(&client, &namespace, mesh::ORIGIN).await?;
        let deployments: Api<Deployment> = Api::namespaced(client.clone(), &namespace);
        for name in ["origin", "scheduler", "seed"] {
            wait_for(&deployments, name, READY, ready_deployment).await?;
        }
        let sets: Api<DaemonSet> = Api::namespaced(client.clone(), &namespace);
        wait_for(&sets, "peer", READY, ready_daemon_set).await?;

        let services: Api<Service> = Api::namespaced(client.clone(), &namespace);
        let origin = services
            .get("origin")
            .await
            .map_err(|e| Failed::at("origin", e))?;
        let address = origin.spec.and_then(|s| s.cluster_ip);
        let address = address.ok_or_else(|| Failed("origin has no address".to_owned()))?;
        let (name, len) = mesh::CONTENT;
        let url = format!("http://{address}/{name}");
        let digest = digest(len)?;
        let peers = pod::with_labels(&client, &namespace, "app=peer").await?;
        assert_eq!(peers.len(), nodes);
        for peer in &peers {
            let line = [
                "dragonfly",
                "get",
                &url,
                "-O",
                "/downloads/out",
                "--digest",
                &digest,
                "-q",
            ];
            pod::exec(&client, &namespace, &peer.name_any(), &line)
                .await?
                .success()?;
        }

        let origins = pod::with_labels(&client, &namespace, "app=origin").await?;
        let origin = origins
            .first()
            .ok_or_else(|| Failed("no origin".to_owned()))?;
        let log = pod::log(&client, &namespace, &origin.name_any()).await?;
        let last = log.lines().rfind(|line| line.contains(" sent "));
        let sent = last
            .and_then(|line| line.rsplit(' ').next())
            .and_then(|n| n.parse().ok());
        assert_eq!(sent, Some(len), "{log}");
        Ok::<_, Failed>(())
    });
    tested.await.unwrap();
}

/// What the origin's file hashes to.
fn digest(len: u64) -> Result<String> {
    let dir = tempfile::tempdir().map_err(|e| Failed::at("a temporary directory", e))?;
    Ok(sample::random(&dir.path().join("content"), len, len)?.digest)
}
