//! What a node counts. Names and meanings: `docs/metrics.md`.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use dragonfly_proto::rpc;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;

use crate::failures::Failures;
use crate::task::lock;

/// What was said of this machine's container runtimes holds for so long: who says it does so all the time.
const SAID: Duration = Duration::from_secs(30);

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
    /// Contents that were damaged on disk and deleted.
    pub contents_damaged: Counter,
    /// Downloads that ended well.
    pub downloads_done: Counter,
    /// Downloads that ended with an error.
    pub downloads_failed: Counter,
    /// Bytes that clients asked for and the node already held.
    pub from_cache: Counter,
    failures: Failures,
    /// What keeps this machine's container runtimes from using the mirror, as it was last said.
    runtimes: Mutex<Option<(Instant, rpc::RuntimeSettings)>>,
    /// Of [`Metrics::sums`], what schedulers heard.
    reported: Mutex<[u64; 7]>,
}

impl Metrics {
    /// Sums since what was last [`Metrics::reported`], for the schedulers.
    pub(crate) fn since_last_report(&self) -> rpc::Report {
        let before = *lock(&self.reported);
        let mut since = self.sums();
        for (now, before) in since.iter_mut().zip(before) {
            *now -= before;
        }
        let [
            from_origin,
            from_seeds,
            from_peers,
            from_cache,
            uploaded,
            tasks_done,
            tasks_failed,
        ] = since;
        rpc::Report {
            from_origin,
            from_seeds,
            from_peers,
            from_cache,
            uploaded,
            tasks_done,
            tasks_failed,
            failures: self.failures.counted(),
            runtimes: self.runtimes(),
            ..rpc::Report::default()
        }
    }

    /// A report was sent to whoever counts it: the next one goes on from there.
    pub(crate) fn reported(&self, report: &rpc::Report) {
        let sent = [
            report.from_origin,
            report.from_seeds,
            report.from_peers,
            report.from_cache,
            report.uploaded,
            report.tasks_done,
            report.tasks_failed,
        ];
        for (sum, sent) in lock(&self.reported).iter_mut().zip(sent) {
            *sum += sent;
        }
        self.failures.take(&report.failures);
    }

    fn sums(&self) -> [u64; 7] {
        [
            &self.from_origin,
            &self.from_seeds,
            &self.from_peers,
            &self.from_cache,
            &self.uploaded,
            &self.downloads_done,
            &self.downloads_failed,
        ]
        .map(Counter::get)
    }

    /// A client's download ended with an error.
    pub(crate) fn failed(&self, failure: &rpc::Failure, url: &str) {
        self.downloads_failed.inc();
        self.failures.add(failure, url);
    }

    /// A setting of this machine keeps its container runtime from using the mesh: told to schedulers
    /// with the next report.
    pub fn found(&self, finding: rpc::Finding) {
        self.failures.found(finding);
    }

    /// What keeps this machine's container runtimes from using the mirror is this, now: told to schedulers
    /// with each report until nobody has said so for half a minute.
    pub fn looked_at(&self, found: impl IntoIterator<Item = rpc::Finding>) {
        let findings = found.into_iter().map(Into::into).collect();
        let said = rpc::RuntimeSettings { findings };
        *lock(&self.runtimes) = Some((Instant::now(), said));
    }

    fn runtimes(&self) -> Option<rpc::RuntimeSettings> {
        let said = lock(&self.runtimes).clone();
        said.filter(|(at, _)| at.elapsed() < SAID)
            .map(|(_, said)| said)
    }

    /// Enters the counters in a registry.
    pub fn register(&self, registry: &mut Registry) {
        let node = registry.sub_registry_with_prefix("dragonfly_node");
        let rows: [(&str, &str, &Counter); 10] = [
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
                "damaged_contents",
                "Contents that were damaged on disk and deleted",
                &self.contents_damaged,
            ),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_runtimes_goes_with_every_report_as_it_was_said_last() {
        let metrics = Metrics::default();
        let told = || metrics.since_last_report().runtimes;
        assert_eq!(told(), None, "nobody looks");
        metrics.looked_at([rpc::Finding::ConfigPathList]);
        for _ in 0..2 {
            let report = metrics.since_last_report();
            let findings = report.runtimes.clone().unwrap().findings;
            assert_eq!(findings, [i32::from(rpc::Finding::ConfigPathList)]);
            metrics.reported(&report);
        }
        metrics.looked_at([]);
        assert_eq!(told(), Some(rpc::RuntimeSettings::default()));
    }
}
