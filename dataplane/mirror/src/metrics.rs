//! What a mirror counts. Names and meanings: `docs/metrics.md`.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;

/// Counters since the mirror started.
#[derive(Debug, Default)]
#[allow(missing_docs, reason = "what each counts stands below")]
pub struct Metrics {
    pub requests: Counter,
    pub upstream_requests: Counter,
    pub refused_upstream: Counter,
    pub mesh_bytes: Counter,
    pub direct_bytes: Counter,
    pub fallbacks: Counter,
    pub resumed: Counter,
    pub wrong_digests: Counter,
    pub stale_tags: Counter,
}

impl Metrics {
    /// Enters the counters in a registry.
    pub fn register(&self, registry: &mut Registry) {
        let mirror = registry.sub_registry_with_prefix("dragonfly_mirror");
        let rows: [(&str, &str, &Counter); 9] = [
            ("requests", "Requests of container runtimes", &self.requests),
            (
                "upstream_requests",
                "Questions that the mirror itself asked registries: tags, access, content past the mesh",
                &self.upstream_requests,
            ),
            (
                "refused_upstream",
                "Requests that a registry refused, passed on with its answer",
                &self.refused_upstream,
            ),
            (
                "mesh_bytes",
                "Bytes sent to container runtimes that came through the mesh or were held",
                &self.mesh_bytes,
            ),
            (
                "direct_bytes",
                "Bytes sent to container runtimes that the mirror fetched past the mesh",
                &self.direct_bytes,
            ),
            (
                "fallbacks",
                "Contents that were fetched past the mesh since the mesh failed",
                &self.fallbacks,
            ),
            (
                "resumed",
                "Bodies that broke off and were gone on with here",
                &self.resumed,
            ),
            (
                "wrong_digests",
                "Contents that hash to something else than they were asked for by",
                &self.wrong_digests,
            ),
            (
                "stale_tags",
                "Tags that were answered with what they last meant",
                &self.stale_tags,
            ),
        ];
        for (name, help, counter) in rows {
            mirror.register(name, help, counter.clone());
        }
    }
}
