//! A mesh's schedulers, asked live: by the API server's port-forward to a port that they have on their
//! pod's loopback. It needs `get` and `list` on pods, `get` and `create` on `pods/portforward`, in the mesh's
//! namespace, and nothing else: no certificate, no token of the mesh, no open port.

use std::time::Duration;

use dragonfly_crds::Distribution;
use dragonfly_operator_core::names::{self, Component};
use http_body_util::{BodyExt, Full, Limited};
use hyper::Request;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{Api, ListParams};
use serde::Deserialize;
use serde_json::Value;

use crate::Failed;
use crate::cluster::Cluster;

/// Longest answer: tens of thousands of contents.
const MAX_ANSWER: usize = 64 << 20;
/// A scheduler waits 20 s for its nodes.
const ANSWER: Duration = Duration::from_secs(30);

/// What a scheduler knows.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[allow(missing_docs, reason = "each is what the scheduler says")]
pub struct Inspected {
    pub scheduler: String,
    pub nodes: Vec<Node>,
    pub tasks: Vec<Task>,
    pub policy: Option<Policy>,
}

/// A node with a session.
#[derive(Debug, Clone, Default, Deserialize, serde::Serialize)]
#[serde(default, rename_all = "camelCase")]
#[allow(missing_docs, reason = "each is what the scheduler says")]
pub struct Node {
    pub name: String,
    pub id: Option<String>,
    pub role: String,
    pub zone: String,
    pub addresses: Vec<String>,
    pub bytes_per_second_in: u64,
    pub bytes_per_second_out: u64,
    pub stored_bytes: u64,
    pub active_tasks: u64,
    pub connections: u64,
    pub from_origin: u64,
    pub from_seeds: u64,
    pub from_peers: u64,
    pub uploaded: u64,
    pub finished: u64,
    pub failed: u64,
    pub policy: Policy,
}

/// A content that nodes take part in.
#[derive(Debug, Clone, Default, Deserialize, serde::Serialize)]
#[serde(default, rename_all = "camelCase")]
#[allow(missing_docs, reason = "each is what the scheduler says")]
pub struct Task {
    pub task: Option<String>,
    pub url: String,
    pub length: Option<u64>,
    pub nodes: u64,
    pub complete: u64,
    pub emitter: String,
}

/// Which policy.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, serde::Serialize)]
#[serde(default, rename_all = "camelCase")]
#[allow(missing_docs, reason = "each is what the scheduler says")]
pub struct Policy {
    pub revision: u64,
    pub hash: String,
    pub error: String,
}

/// The schedulers of one mesh.
pub struct Schedulers {
    pods: Api<Pod>,
    names: Vec<String>,
}

impl Schedulers {
    /// Finds those that are ready.
    ///
    /// # Errors
    /// There is none, with why; or pods may not be listed.
    pub async fn of(cluster: &Cluster, mesh: &Distribution) -> Result<Self, Failed> {
        let (namespace, name) = (mesh.namespace().unwrap_or_default(), mesh.name_any());
        if mesh.spec.external_schedulers.is_some() {
            return Err(Failed(format!(
                "the schedulers of {namespace}/{name} run elsewhere: ask there"
            )));
        }
        let pods: Api<Pod> = cluster.within(&namespace);
        let labels: Vec<_> = names::selector(&name, Component::Scheduler)
            .iter()
            .map(|(k, v)| format!("{k}={v}"))
            .collect();
        let found = pods
            .list(&ListParams::default().labels(&labels.join(",")))
            .await?;
        let ready = |pod: &&Pod| {
            let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_ref());
            let is_ready = |c: &k8s_openapi::api::core::v1::PodCondition| {
                c.type_ == "Ready" && c.status == "True"
            };
            pod.metadata.deletion_timestamp.is_none()
                && conditions.is_some_and(|all| all.iter().any(is_ready))
        };
        let names: Vec<_> = found
            .items
            .iter()
            .filter(ready)
            .map(ResourceExt::name_any)
            .collect();
        if names.is_empty() {
            return Err(Failed(format!(
                "no scheduler of {namespace}/{name} is ready ({} pods): kubectl -n {namespace} get pods \
                 -l {}",
                found.items.len(),
                labels.join(",")
            )));
        }
        Ok(Self { pods, names })
    }

    /// What all of them know: nodes as one of them sees them, contents of all, for each belongs to one.
    ///
    /// # Errors
    /// None answers; of some that do not it is said on stderr.
    pub async fn inspect(&self) -> Result<Inspected, Failed> {
        let mut all: Option<Inspected> = None;
        let mut last = None;
        for name in &self.names {
            match self
                .ask::<Inspected>(name, "GET", "/v1/inspect", None)
                .await
            {
                Ok(found) => match &mut all {
                    Some(all) => {
                        all.tasks.extend(found.tasks);
                        for node in found.nodes {
                            if !all.nodes.iter().any(|n| n.id == node.id) {
                                all.nodes.push(node);
                            }
                        }
                    }
                    None => all = Some(found),
                },
                Err(error) => {
                    eprintln!("warning: {error}");
                    last = Some(error);
                }
            }
        }
        match (all, last) {
            (Some(mut all), _) => {
                all.tasks
                    .sort_by(|a, b| (&a.url, &a.task).cmp(&(&b.url, &b.task)));
                all.tasks.dedup_by(|a, b| a.task == b.task);
                Ok(all)
            }
            (None, Some(error)) => Err(error),
            (None, None) => Err(Failed("no scheduler".to_owned())),
        }
    }

    /// Has all nodes purge, pin or unpin: by one scheduler, for each has sessions with all nodes.
    ///
    /// # Errors
    /// None answers, or the request is wrong.
    pub async fn tend(&self, wish: &Value) -> Result<Value, Failed> {
        let mut last = Failed("no scheduler".to_owned());
        for name in &self.names {
            match self.ask(name, "POST", "/v1/tend", Some(wish)).await {
                Ok(done) => return Ok(done),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn ask<T: for<'a> Deserialize<'a>>(
        &self,
        pod: &str,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<T, Failed> {
        let asked = self.asked(pod, method, path, body);
        match tokio::time::timeout(ANSWER, asked).await {
            Ok(answer) => {
                let answer =
                    answer.map_err(|error| Failed::at(format!("scheduler {pod}"), error))?;
                serde_json::from_slice(&answer)
                    .map_err(|e| Failed::at(format!("scheduler {pod}"), e))
            }
            Err(_) => Err(Failed(format!("scheduler {pod} does not answer"))),
        }
    }

    async fn asked(
        &self,
        pod: &str,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Bytes, Failed> {
        let port = names::SCHEDULER_LOCAL;
        let mut forwarded = self.pods.portforward(pod, &[port]).await.map_err(|error| {
            let text = error.to_string();
            Failed(format!(
                "{text}; it needs the rights to get and to create pods/portforward in this namespace"
            ))
        })?;
        let stream = forwarded
            .take_stream(port)
            .ok_or_else(|| Failed("no stream".to_owned()))?;
        let io = TokioIo::new(stream);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io)
            .await
            .map_err(|e| Failed(e.to_string()))?;
        let driven = tokio::spawn(connection);
        let body = body.map(ToString::to_string).unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(hyper::header::HOST, "localhost")
            .header(hyper::header::CONNECTION, "close")
            .body(Full::new(Bytes::from(body)))
            .map_err(|e| Failed(e.to_string()))?;
        let answer = sender
            .send_request(request)
            .await
            .map_err(|e| Failed(e.to_string()))?;
        let status = answer.status();
        let bytes = Limited::new(answer.into_body(), MAX_ANSWER)
            .collect()
            .await
            .map_err(|e| Failed(e.to_string()))?
            .to_bytes();
        driven.abort();
        forwarded.abort();
        if status.is_success() {
            return Ok(bytes);
        }
        let said: Option<Value> = serde_json::from_slice(&bytes).ok();
        let why = said.and_then(|v| v["error"].as_str().map(ToOwned::to_owned));
        Err(Failed(why.unwrap_or_else(|| status.to_string())))
    }
}
