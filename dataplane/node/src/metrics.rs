//! What a node counts. Names and meanings: `docs/metrics.md`.

use std::sync::Mutex;

use dragonfly_proto::rpc;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;

use crate::task::lock;

/// Counters since the node started.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Bytes read from origins.
    pub from_origin: Counter,
    /// Bytes taken from seeds.
    pub from_seeds: Counter,
    /// Bytes taken from peers.
    pub from_peers: Counter,
    /// Bytes sent to other nodes.
    pub uploaded: Counter,
    /// Blocks that failed their check.
    pub blocks_rejected: Counter,
    /// Nodes banned.
    pub bans: Counter,
    /// Downloads that ended well.
    pub downloads_done: Counter,
    /// Downloads that ended with an error.
    pub downloads_failed: Counter,
    /// Bytes that clients asked for and the node already held.
    pub from_cache: Counter,
    reported: Mutex<rpc::Report>,
}

impl Metrics {
    /// Sums since the last call, for the schedulers.
    pub(crate) fn since_last_report(&self) -> rpc::Report {
        let now = rpc::Report {
            from_origin: self.from_origin.get(),
            from_seeds: self.from_seeds.get(),
            from_peers: self.from_peers.get(),
            uploaded: self.uploaded.get(),
            tasks_done: self.downloads_done.get(),
            tasks_failed: self.downloads_failed.get(),
            ..rpc::Report::default()
        };
        let before = std::mem::replace(&mut *lock(&self.reported), now.clone());
        rpc::Report {
            from_origin: now.from_origin - before.from_origin,
            from_seeds: now.from_seeds - before.from_seeds,
            from_peers: now.from_peers - before.from_peers,
            uploaded: now.uploaded - before.uploaded,
            tasks_done: now.tasks_done - before.tasks_done,
            tasks_failed: now.tasks_failed - before.tasks_failed,
            ..rpc::Report::default()
        }
    }

    /// Enters the counters in a registry.
    pub fn register(&self, registry: &mut Registry) {
        let node = registry.sub_registry_with_prefix("dragonfly_node");
        let rows: [(&str, &str, &Counter); 9] = [
            (
                "origin_read_bytes",
                "Bytes read from origins",
                &self.from_origin,
            ),
            (
                "seed_received_bytes",
                "Bytes taken from seeds",
                &self.from_seeds,
            ),
            (
                "peer_received_bytes",
                "Bytes taken from peers",
                &self.from_peers,
            ),
            (
                "cache_served_bytes",
                "Bytes that clients asked for and the node held",
                &self.from_cache,
            ),
            ("sent_bytes", "Bytes sent to other nodes", &self.uploaded),
            (
                "rejected_blocks",
                "Blocks that failed their check",
                &self.blocks_rejected,
            ),
            ("bans", "Nodes banned", &self.bans),
            (
                "downloads_done",
                "Downloads that ended well",
                &self.downloads_done,
            ),
            (
                "downloads_failed",
                "Downloads that ended with an error",
                &self.downloads_failed,
            ),
        ];
        for (name, help, counter) in rows {
            node.register(name, help, counter.clone());
        }
    }
}
