//! The CRDs as files: `config/crd` with a kustomization of them, and the templates of the chart
//! `charts/dragonfly-crds`.
//!
//! Invariant: the text depends on the types only, so a test can hold the committed files to it.

use std::io;
use std::path::Path;

use kube::CustomResourceExt;
use serde_json::{Value, json};

use crate::{Distribution, Preheat, SchedulerPool};

/// Largest CRD: client-side `kubectl apply` keeps a copy in an annotation of at most 256 KiB.
pub const MAX_CRD: usize = 200 * 1024;

/// The CRDs as JSON, by the plural of their kind: what is published, and what light mode enforces.
///
/// # Errors
/// When a type has no JSON.
pub fn crds() -> Result<Vec<(&'static str, Value)>, serde_json::Error> {
    let mut crds = vec![
        ("distributions", serde_json::to_value(Distribution::crd())?),
        (
            "schedulerpools",
            serde_json::to_value(SchedulerPool::crd())?,
        ),
        ("preheats", serde_json::to_value(Preheat::crd())?),
    ];
    for (_, crd) in &mut crds {
        if let Value::Object(fields) = crd {
            fields.remove("status");
        }
        forbid_null(crd);
    }
    Ok(crds)
}

/// Optional fields come out as nullable. We want null to mean "left out" everywhere, so that a
/// default applies and rules see no null; that is what an apiserver does with fields that are not.
fn forbid_null(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            // A field of that name would hold a schema, not a flag.
            if fields.get("nullable") == Some(&Value::Bool(true)) {
                fields.remove("nullable");
            }
            fields.values_mut().for_each(forbid_null);
        }
        Value::Array(items) => items.iter_mut().for_each(forbid_null),
        _ => {}
    }
}

const HEAD: &str = "# Written by crdgen from the types in crds/; do not edit.\n";

/// File names and texts for `config/crd`.
///
/// # Errors
/// When a type has no JSON or YAML.
pub fn render() -> io::Result<Vec<(String, String)>> {
    let mut files = Vec::new();
    let mut kustomization = format!(
        "{HEAD}apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources:\n"
    );
    for (plural, crd) in crds()? {
        let name = format!("d7y.io_{plural}.yaml");
        kustomization.push_str(&format!("  - {name}\n"));
        files.push((name, text(&crd)?));
    }
    files.push(("kustomization.yaml".to_owned(), kustomization));
    Ok(files)
}

/// File names and texts for the chart's templates: the same, kept when the chart is uninstalled.
///
/// # Errors
/// When a type has no JSON or YAML, or a text that helm would take for a template.
pub fn render_chart() -> io::Result<Vec<(String, String)>> {
    let mut files = Vec::new();
    for (plural, mut crd) in crds()? {
        crd["metadata"]["annotations"] = json!({"helm.sh/resource-policy": "keep"});
        let text = text(&crd)?;
        if text.contains("{{") {
            return Err(io::Error::other(format!(
                "{plural}: a description with {{{{"
            )));
        }
        files.push((format!("{plural}.yaml"), text));
    }
    Ok(files)
}

fn text(crd: &Value) -> io::Result<String> {
    let body = serde_saphyr::to_string(crd).map_err(io::Error::other)?;
    Ok(format!("{HEAD}---\n{body}"))
}

/// Writes files.
///
/// # Errors
/// When they cannot be written.
pub fn write(directory: &Path, files: &[(String, String)]) -> io::Result<()> {
    std::fs::create_dir_all(directory)?;
    for (name, text) in files {
        std::fs::write(directory.join(name), text)?;
    }
    Ok(())
}
