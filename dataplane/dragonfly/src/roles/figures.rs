//! A scheduler's numbers, for Prometheus. Names and meanings: `docs/metrics.md`.

use dragonfly_kubernetes::reporter::Counted;
use dragonfly_proto::rpc::failure::Code;
use dragonfly_scheduler::service::Service;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

/// As many values as there are codes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    code: &'static str,
}

pub(crate) fn of_service(r: &mut Registry, service: &Service) {
    let (seen, totals) = (service.inspect(), service.totals());
    let gauge = |n: usize| ConstGauge::new(n as i64);
    r.register("nodes", "Nodes with a session", gauge(seen.nodes.len()));
    r.register("tasks", "Contents known", gauge(seen.tasks.len()));
    let members = seen.tasks.iter().map(|t| t.members as usize).sum();
    r.register("members", "Members of all contents", gauge(members));
    if let Some(policy) = &seen.policy {
        let says = |refused: bool| {
            let acks = seen.nodes.iter().filter_map(|n| n.policy.as_ref());
            let of_it = acks.filter(|a| a.uid == policy.uid && a.hash == policy.hash);
            of_it.filter(|a| a.error.is_empty() != refused).count()
        };
        r.register(
            "policy_revision",
            "Revision of the policy that nodes are sent",
            ConstGauge::new(policy.revision as i64),
        );
        r.register(
            "policy_acknowledged_nodes",
            "Nodes that run that policy",
            gauge(says(false)),
        );
        r.register(
            "policy_refused_nodes",
            "Nodes that refused that policy",
            gauge(says(true)),
        );
    }
    let sums = &totals.sums;
    let rows = [
        (
            "origin_read_bytes",
            "Bytes nodes read from origins",
            sums.from_origin,
        ),
        (
            "seed_received_bytes",
            "Bytes nodes took from seeds",
            sums.from_seeds,
        ),
        (
            "peer_received_bytes",
            "Bytes nodes took from peers",
            sums.from_peers,
        ),
        (
            "cache_served_bytes",
            "Bytes asked for by nodes' clients and held already",
            sums.from_cache,
        ),
        (
            "delivered_bytes",
            "Bytes peers got from anywhere, their cache included",
            sums.delivered,
        ),
        (
            "downloads_done",
            "Downloads that ended well",
            sums.tasks_done,
        ),
        ("messages", "Messages from nodes", totals.messages),
    ];
    for (name, help, n) in rows {
        r.register(name, help, ConstCounter::new(n));
    }
    let failed: Family<Reason, Counter> = Family::default();
    for (code, count) in &totals.failed_by_code {
        let code = Code::try_from(*code).unwrap_or_default();
        let code = code.as_str_name().trim_start_matches("CODE_");
        failed.get_or_create(&Reason { code }).inc_by(*count);
    }
    r.register(
        "downloads_failed",
        "Downloads that ended with an error",
        failed,
    );
}

pub(crate) fn of_reporter(r: &mut Registry, counted: Counted) {
    r.register(
        "status_writer",
        "1 where this scheduler writes the mesh's status",
        ConstGauge::new(i64::from(counted.holder)),
    );
    let rows = [
        (
            "status_patches",
            "Patches of the mesh's status",
            counted.patches,
        ),
        (
            "api_failures",
            "Requests to the API server that failed",
            counted.failed_requests,
        ),
        (
            "policies_refused",
            "Policies that this release cannot run",
            counted.refused_policies,
        ),
    ];
    for (name, help, n) in rows {
        r.register(name, help, ConstCounter::new(n));
    }
}
