//! Metrics on clusters that have the Prometheus operator.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use dragonfly_cluster::definitions::Neighbour;
use dragonfly_cluster::place::SOON;
use dragonfly_cluster::tools::Tool;
use dragonfly_cluster::wait::wait_until;
use dragonfly_cluster::{Cluster, Failed, Operator, Place};
use dragonfly_e2e::process::{self, Process};
use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;
use kube::api::Api;
use kube::core::{ApiResource, DynamicObject};
use serde_json::{Value, json};

use super::bed::own;

/// An API server that knows the Prometheus operator's kinds, with a mesh whose metrics are wanted.
struct Monitored {
    // Before the cluster, so that a failure can still be told.
    place: Place,
    operator: Operator,
    cluster: Cluster,
}

impl Monitored {
    async fn start() -> Self {
        let (cluster, installed, place) = own().await;
        Neighbour::PrometheusOperator
            .install(&place.client)
            .await
            .unwrap();
        let operator = Operator::start(&cluster, &installed).await.unwrap();
        place
            .mesh("m", "{monitoring: {labels: {release: prometheus}}}")
            .await;
        place.applied("m").await;
        Self {
            place,
            operator,
            cluster,
        }
    }

    async fn stop(self) {
        drop(self.operator);
        self.cluster.stop().await.unwrap();
    }
}

#[tokio::test]
async fn metrics_are_scraped_where_the_cluster_knows_how() {
    let monitored = Monitored::start().await;
    let place = &monitored.place;
    let resource = ApiResource {
        group: "monitoring.coreos.com".to_owned(),
        version: "v1".to_owned(),
        api_version: "monitoring.coreos.com/v1".to_owned(),
        kind: "PodMonitor".to_owned(),
        plural: "podmonitors".to_owned(),
    };
    let monitors: Api<DynamicObject> =
        Api::namespaced_with(place.client.clone(), &place.namespace, &resource);
    let found = monitors.get("m-mesh").await.unwrap();
    assert_eq!(found.labels()["release"], "prometheus");
    assert_eq!(
        found.data["spec"]["podMetricsEndpoints"][0]["port"],
        json!("admin")
    );
    place.mesh("m", "{monitoring: {podMonitor: Never}}").await;
    let gone = wait_until("the PodMonitor", SOON, || async {
        let found = monitors.get_opt("m-mesh").await;
        let found = found.map_err(|e| Failed::at("m-mesh", e))?;
        Ok(found.map_or(Ok(()), |_| Err(monitored.operator.said())))
    });
    gone.await.unwrap();
    monitored.stop().await;
}

/// A Prometheus that takes what has the label, in its namespace.
const PROMETHEUS: &str = r"
apiVersion: monitoring.coreos.com/v1
kind: Prometheus
metadata: {name: p}
spec:
  podMonitorSelector: {matchLabels: {release: prometheus}}
";

/// The Prometheus operator as a process, with an administrator's rights.
fn prometheus_operator(cluster: &Cluster, namespace: &str, log: &Path) -> Process {
    let program = Tool::PrometheusOperator.built().unwrap()["operator"].clone();
    let mut command = Command::new(program);
    command
        .arg(format!("--namespaces={namespace}"))
        .arg("--web.listen-address=127.0.0.1:0")
        .env("KUBECONFIG", cluster.kubeconfig())
        .stdout(process::log(log).unwrap())
        .stderr(process::log(log).unwrap());
    Process::spawn("prometheus-operator", &mut command).unwrap()
}

/// What a Prometheus is told to scrape: the Secret that its operator makes.
fn scraped(secret: &Secret) -> Option<Value> {
    let packed = &secret.data.as_ref()?.get("prometheus.yaml.gz")?.0;
    let mut gzip = Command::new("gzip")
        .arg("-dc")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    gzip.stdin.take().unwrap().write_all(packed).unwrap();
    let text = gzip.wait_with_output().unwrap().stdout;
    Some(serde_saphyr::from_str(&String::from_utf8(text).unwrap()).unwrap())
}

#[tokio::test]
#[ignore = "builds the Prometheus operator, which takes minutes: make test-full runs it"]
async fn the_prometheus_operator_has_a_mesh_scraped() {
    let monitored = Monitored::start().await;
    let place = &monitored.place;
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let theirs = prometheus_operator(&monitored.cluster, &place.namespace, &log);
    place.apply(PROMETHEUS).await;
    let secrets: Api<Secret> = place.api();
    let said = || std::fs::read_to_string(&log).unwrap_or_default();
    let job = wait_until("a scrape job for the mesh", SOON, || async {
        let found = secrets.get_opt("prometheus-p").await;
        let found = found.map_err(|e| Failed::at("prometheus-p", e))?;
        let config = found.as_ref().and_then(scraped);
        let jobs = config.as_ref().and_then(|c| c["scrape_configs"].as_array());
        let mut jobs = jobs.into_iter().flatten();
        let name = format!("podMonitor/{}/m-mesh/0", place.namespace);
        let job = jobs.find(|job| job["job_name"] == name.as_str());
        Ok(job.cloned().ok_or_else(said))
    });
    let job = job.await.unwrap();
    assert_eq!(
        job["kubernetes_sd_configs"][0]["namespaces"]["names"],
        json!([place.namespace])
    );
    // The pods are chosen by the labels that the mesh's pods have, and asked at the port that they name.
    let rules = job["relabel_configs"].as_array().unwrap().clone();
    let kept = |label: &str, value: &str| {
        rules.iter().any(|rule| {
            let sources = rule["source_labels"].as_array();
            let of = |name| sources.is_some_and(|s| s.iter().any(|s| s == name));
            rule["action"] == "keep" && of(label) && rule["regex"].as_str() == Some(value)
        })
    };
    assert!(
        kept("__meta_kubernetes_pod_container_port_name", "admin"),
        "{rules:?}"
    );
    drop(theirs);
    monitored.stop().await;
}
