//! The definitions (CRDs) of neighbours' kinds, from the very modules that their projects publish.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::Api;
use kube::{Client, ResourceExt};
use serde_json::Value;

use dragonfly_e2e::{Failed, Result};

use crate::wait::wait_for;

const GO_MOD: &str = include_str!("../go/crds/go.mod");
const GO_SUM: &str = include_str!("../go/crds/go.sum");
const ESTABLISHED: Duration = Duration::from_secs(30);

/// A neighbour whose kinds objects of ours may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Neighbour {
    /// `cert-manager.io`: Certificate, Issuer and the like.
    CertManager,
    /// `monitoring.coreos.com`: PodMonitor, ServiceMonitor, PrometheusRule and the like.
    PrometheusOperator,
}

impl Neighbour {
    /// Its module, and where in it the definitions are.
    const fn module(self) -> (&'static str, &'static str) {
        match self {
            Self::CertManager => ("github.com/cert-manager/cert-manager", "deploy/crds"),
            Self::PrometheusOperator => (
                "github.com/prometheus-operator/prometheus-operator",
                "example/prometheus-operator-crd",
            ),
        }
    }

    /// The files with its definitions: downloaded once, into Go's own cache of modules.
    ///
    /// # Errors
    /// Go is not there, or the module cannot be had.
    pub fn files(self) -> Result<Vec<PathBuf>> {
        let (module, below) = self.module();
        let dir = downloaded(module, GO_MOD, GO_SUM)?.join(below);
        let listed = std::fs::read_dir(&dir).map_err(|e| Failed::at(dir.display(), e))?;
        let mut files: Vec<_> = listed.flatten().map(|e| e.path()).collect();
        files.retain(|path| path.extension().is_some_and(|e| e == "yaml"));
        files.sort();
        Ok(files)
    }

    /// Applies its definitions and waits until the API server serves their kinds.
    ///
    /// # Errors
    /// As [`Neighbour::files`], or the API server's.
    pub async fn install(self, client: &Client) -> Result<()> {
        let files = tokio::task::spawn_blocking(move || self.files());
        let files = files.await.map_err(|e| Failed::at("definitions", e))??;
        for file in files {
            let text = std::fs::read_to_string(&file).map_err(|e| Failed::at(file.display(), e))?;
            install(client, &text).await?;
        }
        Ok(())
    }
}

/// Applies definitions and waits until the API server serves their kinds.
///
/// # Errors
/// No YAML, the API server's refusal, or names that are taken.
pub async fn install(client: &Client, text: &str) -> Result<()> {
    let all: Api<CustomResourceDefinition> = Api::all(client.clone());
    for object in crate::apply::yaml(client, "default", text).await? {
        wait_for(&all, &object.name_any(), ESTABLISHED, |found| {
            let status = found
                .and_then(|d| d.status.as_ref())
                .ok_or("no status yet")?;
            let is = |kind: &str| {
                let mut all = status.conditions.iter().flatten();
                all.any(|c| c.type_ == kind && c.status == "True")
            };
            if is("Established") {
                Ok(())
            } else {
                Err(format!("{:?}", status.conditions))
            }
        })
        .await?;
    }
    Ok(())
}

/// Where Go keeps a module that a `go.mod` of ours requires: downloaded where it is not there yet.
pub(crate) fn downloaded(module: &str, go_mod: &str, go_sum: &str) -> Result<PathBuf> {
    let dir = tempfile::tempdir().map_err(|e| Failed::at("a temporary directory", e))?;
    for (name, text) in [("go.mod", go_mod), ("go.sum", go_sum)] {
        let path = dir.path().join(name);
        std::fs::write(&path, text).map_err(|e| Failed::at(path.display(), e))?;
    }
    let out = Command::new("go")
        .args(["mod", "download", "-json", module])
        .current_dir(dir.path())
        .env("GOFLAGS", "-mod=mod")
        .env("GOWORK", "off")
        .stdin(Stdio::null())
        .output()
        .map_err(|e| Failed(format!("go: {e}: it downloads {module}")))?;
    if !out.status.success() {
        let said = String::from_utf8_lossy(&out.stderr);
        return Err(Failed(format!(
            "downloading {module}: {}: {}",
            out.status,
            said.trim()
        )));
    }
    let answer: Value = serde_json::from_slice(&out.stdout).map_err(|e| Failed::at(module, e))?;
    let dir = answer.get("Dir").and_then(Value::as_str).map(Path::new);
    Ok(dir
        .ok_or_else(|| Failed::at(module, "go does not say where it is"))?
        .to_owned())
}
