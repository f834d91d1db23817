//! helm on a cluster.

use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use dragonfly_e2e::{Failed, Result};

use crate::Cluster;
use crate::tools::Tool;

/// No command of a test takes longer.
const LIMIT: Duration = Duration::from_secs(180);

/// Runs helm as the cluster's administrator, building it first where the cache has none; what it wrote.
///
/// # Errors
/// It cannot be built or started, takes minutes, or fails: with what it said.
pub async fn helm(cluster: &Cluster, line: &[&str]) -> Result<String> {
    let built = tokio::task::spawn_blocking(|| Tool::Helm.built());
    let built = built.await.map_err(|e| Failed::at("helm", e))??;
    let program = built
        .get("helm")
        .ok_or_else(|| Failed::at("helm", "was not built"))?;
    // Its caches and settings are nobody else's.
    let home = tempfile::tempdir().map_err(|e| Failed::at("a temporary directory", e))?;
    let mut command = Command::new(program);
    command
        .args(line)
        .env("KUBECONFIG", cluster.kubeconfig())
        .stdin(Stdio::null());
    for name in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
        command.env(name, home.path().join(name));
    }
    let what = format!("helm {}", line.join(" "));
    let ended = tokio::time::timeout(LIMIT, command.kill_on_drop(true).output()).await;
    let ended = ended.map_err(|_| Failed::at(&what, format!("still runs after {LIMIT:?}")))?;
    let out = ended.map_err(|e| Failed::at(&what, e))?;
    if out.status.success() {
        return Ok(String::from_utf8_lossy(&out.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    Err(Failed(format!("{what}: {}: {}", out.status, said.trim())))
}
