//! Pods: commands in their containers, their logs.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use kube::ResourceExt;
use kube::api::{Api, AttachParams, ListParams, LogParams, Patch, PatchParams};
use tokio::io::AsyncReadExt;

use dragonfly_e2e::{Failed, Result};

/// No command in a pod takes longer.
const LIMIT: Duration = Duration::from_secs(120);

/// How a command in a container ended.
#[derive(Debug, Clone)]
pub struct Ended {
    /// Its exit code.
    pub code: i32,
    /// What it wrote to standard output.
    pub output: String,
    /// What it wrote to standard error.
    pub errors: String,
}

impl Ended {
    /// What it wrote, if it ended well.
    ///
    /// # Errors
    /// It did not: with what it said.
    pub fn success(self) -> Result<String> {
        if self.code == 0 {
            return Ok(self.output);
        }
        Err(Failed(format!(
            "ended with {}: {}{}",
            self.code, self.output, self.errors
        )))
    }
}

/// Runs a command in a pod's first container, as `kubectl exec` does.
///
/// # Errors
/// The API server or kubelet refuses, or it takes minutes.
pub async fn exec(client: &Client, namespace: &str, pod: &str, line: &[&str]) -> Result<Ended> {
    let what = format!("{} in {namespace}/{pod}", line.join(" "));
    let wrong = |e: &dyn std::fmt::Display| Failed::at(&what, e);
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let run = async {
        let wanted = AttachParams::default()
            .stdout(true)
            .stderr(true)
            .stdin(false);
        let words = line.iter().map(|word| (*word).to_owned());
        let mut attached = pods
            .exec(pod, words, &wanted)
            .await
            .map_err(|e| wrong(&e))?;
        let streams = attached
            .stdout()
            .zip(attached.stderr())
            .zip(attached.take_status());
        let ((mut stdout, mut stderr), status) = streams.ok_or_else(|| wrong(&"no streams"))?;
        let (mut output, mut errors) = (vec![], vec![]);
        let (read, read_errors, status) = tokio::join!(
            stdout.read_to_end(&mut output),
            stderr.read_to_end(&mut errors),
            status,
        );
        read.and(read_errors).map_err(|e| wrong(&e))?;
        attached.join().await.map_err(|e| wrong(&e))?;
        let status = status.ok_or_else(|| wrong(&"no word of how it ended"))?;
        let code = match status.status.as_deref() {
            Some("Success") => 0,
            _ => {
                let causes = status.details.as_ref().and_then(|d| d.causes.as_ref());
                let code = causes
                    .into_iter()
                    .flatten()
                    .find(|c| c.reason.as_deref() == Some("ExitCode"));
                let code = code
                    .and_then(|c| c.message.as_ref())
                    .and_then(|m| m.parse().ok());
                code.ok_or_else(|| wrong(&status.message.clone().unwrap_or_default()))?
            }
        };
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok(Ended {
            code,
            output: text(output),
            errors: text(errors),
        })
    };
    let limited = tokio::time::timeout(LIMIT, run).await;
    limited.map_err(|_| Failed::at(&what, format!("still runs after {LIMIT:?}")))?
}

/// All that a pod's first container logged.
///
/// # Errors
/// The API server's.
pub async fn log(client: &Client, namespace: &str, pod: &str) -> Result<String> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let wanted = LogParams::default();
    pods.logs(pod, &wanted)
        .await
        .map_err(|e| Failed::at(format!("log of {namespace}/{pod}"), e))
}

/// Pods with these labels (`app=x,tier=y`), by name.
///
/// # Errors
/// The API server's.
pub async fn with_labels(client: &Client, namespace: &str, labels: &str) -> Result<Vec<Pod>> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let listed = pods.list(&ListParams::default().labels(labels)).await;
    let mut all = listed.map_err(|e| Failed::at(labels, e))?.items;
    all.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    Ok(all)
}

/// Has kubelets look at these pods' ConfigMaps and Secrets now: they do at each change of a pod, and
/// else once a minute or so.
///
/// # Errors
/// The API server's.
pub async fn look_again(client: &Client, namespace: &str, labels: &str) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let now = crate::random_name();
    let change = serde_json::json!({"metadata": {"annotations": {"test/look-again": now}}});
    for pod in with_labels(client, namespace, labels).await? {
        let name = pod.name_any();
        pods.patch(&name, &PatchParams::default(), &Patch::Merge(&change))
            .await
            .map_err(|e| Failed::at(name, e))?;
    }
    Ok(())
}
