//! The CRDs as files: `config/crd/<plural>.yaml`.
//!
//! Invariant: the text depends on the types only, so a test can hold the committed files to it.

use std::io;
use std::path::Path;

use kube::CustomResourceExt;
use serde_json::Value;

use crate::{Distribution, SchedulerPool};

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

/// File names and texts.
///
/// # Errors
/// When a type has no JSON or YAML.
pub fn render() -> io::Result<Vec<(String, String)>> {
    let mut files = Vec::new();
    for (plural, crd) in crds()? {
        let body = serde_saphyr::to_string(&crd).map_err(io::Error::other)?;
        let text =
            format!("# Written by crdgen from the types in crds/; do not edit.\n---\n{body}");
        files.push((format!("d7y.io_{plural}.yaml"), text));
    }
    Ok(files)
}

/// Writes [`render`]'s files.
///
/// # Errors
/// When they cannot be made or written.
pub fn write(directory: &Path) -> io::Result<()> {
    std::fs::create_dir_all(directory)?;
    for (name, text) in render()? {
        std::fs::write(directory.join(name), text)?;
    }
    Ok(())
}
