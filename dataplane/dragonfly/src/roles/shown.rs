//! What a node shows on its admin port.

use std::sync::Arc;

use dragonfly_admin::{Shown, encode};
use dragonfly_node::node::Node;
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

use super::mirrored::Mirrored;

/// A node on its admin port.
pub(crate) struct ShownNode {
    pub(crate) node: Arc<Node>,
    pub(crate) mirrored: Option<Arc<Mirrored>>,
    /// Cancelled once any policy is in force.
    pub(crate) ruled: CancellationToken,
}

impl Shown for ShownNode {
    fn ready(&self) -> Result<(), String> {
        if self.node.schedulers().is_empty() {
            return Err("no session with a scheduler".to_owned());
        }
        if !self.ruled.is_cancelled() {
            return Err("no policy of the mesh is in force yet".to_owned());
        }
        Ok(())
    }

    fn metrics(&self) -> String {
        let mut registry = Registry::default();
        self.node.metrics.register(&mut registry);
        if let Some(mirrored) = &self.mirrored {
            mirrored.register(&mut registry);
        }
        let usage = self.node.store().usage();
        let r = registry.sub_registry_with_prefix("dragonfly_node");
        let gauge = |n: u64| prometheus_client::metrics::gauge::ConstGauge::new(n as i64);
        r.register("stored_bytes", "Bytes of content held", gauge(usage.bytes));
        r.register(
            "stored_tasks",
            "Contents held, whole or in part",
            gauge(usage.tasks as u64),
        );
        r.register(
            "quota_bytes",
            "Bytes of content that may be held",
            gauge(usage.quota),
        );
        r.register(
            "active_tasks",
            "Contents in use",
            gauge(self.node.tasks().len() as u64),
        );
        let sessions = self.node.schedulers().len() as u64;
        r.register(
            "scheduler_sessions",
            "Schedulers with a session",
            gauge(sessions),
        );
        encode(&registry)
    }
}
