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

/// The CRDs as JSON, by the plural of their kind.
pub(crate) fn crds() -> Result<Vec<(&'static str, Value)>, serde_json::Error> {
    Ok(vec![
        ("distributions", serde_json::to_value(Distribution::crd())?),
        ("schedulerpools", serde_json::to_value(SchedulerPool::crd())?),
    ])
}

/// File names and texts.
///
/// # Errors
/// When a type has no JSON or YAML.
pub fn render() -> io::Result<Vec<(String, String)>> {
    let mut files = Vec::new();
    for (plural, mut crd) in crds()? {
        if let Value::Object(fields) = &mut crd {
            fields.remove("status");
        }
        let body = serde_saphyr::to_string(&crd).map_err(io::Error::other)?;
        let text = format!("# Written by crdgen from the types in crds/; do not edit.\n---\n{body}");
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
