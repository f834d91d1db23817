//! The Prometheus operator's kind, of which this project has no types.

use dragonfly_crds::placement::PodMonitors;
use serde_json::{Value, json};

use super::meta;
use super::pods::ADMIN;
use crate::names;
use crate::validate::Mesh;

/// All parts' metrics; `None` where they are not wanted so.
pub(super) fn pod_monitor(mesh: &Mesh) -> Option<Value> {
    let wanted = &mesh.spec.monitoring;
    if wanted.pod_monitor == PodMonitors::Never {
        return None;
    }
    let mut metadata = meta(mesh, names::monitor(&mesh.name), None);
    let labels = metadata.labels.get_or_insert_default();
    for (label, value) in &wanted.labels {
        // What the operator finds its objects by is not to be changed.
        labels.entry(label.clone()).or_insert_with(|| value.clone());
    }
    Some(json!({
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PodMonitor",
        "metadata": metadata,
        "spec": {
            "selector": {"matchLabels": {
                names::INSTANCE: mesh.name,
                names::MANAGED_BY: names::MANAGER,
            }},
            "podMetricsEndpoints": [{"port": ADMIN, "path": "/metrics"}],
        },
    }))
}
