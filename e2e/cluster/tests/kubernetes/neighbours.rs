//! Neighbours: their kinds from their own modules, an API server alone.

use dragonfly_cluster::definitions::Neighbour;
use dragonfly_cluster::{Cluster, ClusterOptions, Failed, apply};

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
