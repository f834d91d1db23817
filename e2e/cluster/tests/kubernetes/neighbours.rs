//! Neighbours: their kinds from their own modules, an API server alone.

use std::time::{Duration, Instant};

use dragonfly_cluster::definitions::Neighbour;
use dragonfly_cluster::helm::helm;
use dragonfly_cluster::wait::wait_for;
use dragonfly_cluster::{Cluster, ClusterOptions, Failed, apply, fake, pods_possible};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::Api;

#[tokio::test]
async fn an_api_server_alone_keeps_and_checks_objects() {
    let cluster = Cluster::start(&ClusterOptions::api_server()).await.unwrap();
    let tested = cluster.with_temp_ns(|client, namespace| async move {
        let right = r"{apiVersion: v1, kind: ConfigMap, metadata: {name: x}, data: {a: b}}";
        apply::yaml(&client, &namespace, right).await?;
        let wrong = r"{apiVersion: v1, kind: ConfigMap, metadata: {name: Not_A_Name}}";
        let refused = apply::yaml(&client, &namespace, wrong).await.unwrap_err();
        assert!(refused.to_string().contains("Not_A_Name"), "{refused}");
        Ok::<_, Failed>(())
    });
    tested.await.unwrap();
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn kinds_of_cert_manager_and_the_prometheus_operator_can_be_had() {
    let cluster = Cluster::start(&ClusterOptions::api_server()).await.unwrap();
    let tested = cluster.with_temp_ns(|client, namespace| async move {
        Neighbour::CertManager.install(&client).await?;
        Neighbour::PrometheusOperator.install(&client).await?;
        let objects = r"
apiVersion: monitoring.coreos.com/v1
kind: PodMonitor
metadata: {name: peers}
spec:
  selector: {matchLabels: {app: peer}}
  podMetricsEndpoints: [{port: admin}]
---
apiVersion: cert-manager.io/v1
kind: Certificate
metadata: {name: mesh}
spec:
  secretName: mesh
  dnsNames: [mesh.test]
  issuerRef: {name: mesh}
";
        apply::yaml(&client, &namespace, objects).await?;
        let wrong = objects.replace("secretName: mesh", "secretNames: mesh");
        assert!(
            apply::yaml(&client, &namespace, &wrong).await.is_err(),
            "their schemas are in force"
        );
        Ok::<_, Failed>(())
    });
    tested.await.unwrap();
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn helm_installs_and_removes_a_chart() {
    let cluster = Cluster::start(&ClusterOptions::api_server()).await.unwrap();
    let chart = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(chart.path().join(name), text).unwrap();
    std::fs::create_dir(chart.path().join("templates")).unwrap();
    write(
        "Chart.yaml",
        "{apiVersion: v2, name: tried, version: 0.1.0}",
    );
    write("values.yaml", "said: nothing");
    write(
        "templates/map.yaml",
        "{apiVersion: v1, kind: ConfigMap, metadata: {name: tried}, data: {said: {{ .Values.said }}}}",
    );
    let path = chart.path().display().to_string();
    let held = &cluster;
    let tested = cluster.with_temp_ns(|client, namespace| async move {
        let line = [
            "install",
            "tried",
            &path,
            "-n",
            &namespace,
            "--set",
            "said=hello",
            "--wait",
        ];
        helm(held, &line).await?;
        let maps: Api<ConfigMap> = Api::namespaced(client, &namespace);
        let map = maps
            .get("tried")
            .await
            .map_err(|e| Failed::at("tried", e))?;
        assert_eq!(map.data.unwrap()["said"], "hello");
        assert!(helm(held, &line).await.is_err(), "the name is taken");
        helm(held, &["uninstall", "tried", "-n", &namespace]).await?;
        assert!(
            maps.get_opt("tried")
                .await
                .map_err(|e| Failed::at("tried", e))?
                .is_none()
        );
        Ok::<_, Failed>(())
    });
    tested.await.unwrap();
    cluster.stop().await.unwrap();
}

/// A DaemonSet that fake nodes alone are wanted for.
const EVERYWHERE: &str = r"
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: everywhere}
spec:
  selector: {matchLabels: {app: everywhere}}
  template:
    metadata: {labels: {app: everywhere}}
    spec:
      nodeSelector: {type: kwok}
      containers: [{name: x, image: registry.test/none}]
";

async fn a_daemon_set_reaches_fake_nodes(count: i32) {
    let cluster = Cluster::start(&ClusterOptions::nodes(1)).await.unwrap();
    let begun = Instant::now();
    fake::nodes(&cluster, usize::try_from(count).unwrap())
        .await
        .unwrap();
    eprintln!("{count} fake nodes are ready after {:.1?}", begun.elapsed());
    let tested = cluster.with_temp_ns(|client, namespace| async move {
        pods_possible(&client, &namespace).await?;
        apply::yaml(&client, &namespace, EVERYWHERE).await?;
        let sets: Api<DaemonSet> = Api::namespaced(client, &namespace);
        let limit = Duration::from_secs(300);
        wait_for(&sets, "everywhere", limit, |set| {
            let status = set.and_then(|s| s.status.as_ref()).ok_or("no status yet")?;
            let ready = status.number_ready;
            if ready == count {
                Ok(())
            } else {
                Err(format!("{ready} of {count} are ready"))
            }
        })
        .await
    });
    tested.await.unwrap();
    eprintln!("and a DaemonSet runs on each after {:.1?}", begun.elapsed());
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn a_daemon_set_runs_on_fake_nodes() {
    a_daemon_set_reaches_fake_nodes(20).await;
}

#[tokio::test]
#[ignore = "takes minutes: make test-full runs it"]
async fn a_daemon_set_runs_on_a_thousand_fake_nodes() {
    a_daemon_set_reaches_fake_nodes(1000).await;
}
