//! What a replica counts of its nodes: sums and counts, never a list of them.
//!
//! Every node has sessions with all replicas and names one its home; only that one counts it, so that
//! replicas' sketches add up to the mesh. A node repeats what it could not tell, and whoever sends a
//! sketch sends it until it was taken: a sum is lost only with the process that counted it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use dragonfly_proto::rpc;

use crate::core::Core;

/// Kinds of failures kept apart between two sketches; further ones lose their origin.
const MAX_FAILURES: usize = 64;
/// Kinds taken from one report.
const MAX_REPORTED: usize = 32;
/// Policies told apart in a sketch.
const MAX_POLICIES: usize = 16;
/// Longest text of a node that is kept, bytes.
const MAX_TEXT: usize = 512;

/// Sum of what the nodes whose home this is reported since this scheduler started.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Totals {
    /// What they moved.
    pub sums: rpc::Sums,
    /// Failed downloads by `Failure.Code`.
    pub failed_by_code: BTreeMap<i32, u64>,
    /// Messages from all nodes.
    pub messages: u64,
}

/// What is counted.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) totals: Totals,
    /// Since the last sketch.
    sums: rpc::Sums,
    failures: Vec<rpc::FailureCount>,
}

impl Counts {
    pub(crate) fn add(&mut self, report: &rpc::Report, seed: bool) {
        let received = report
            .from_origin
            .saturating_add(report.from_seeds)
            .saturating_add(report.from_peers)
            .saturating_add(report.from_cache);
        let sums = rpc::Sums {
            from_origin: report.from_origin,
            from_seeds: report.from_seeds,
            from_peers: report.from_peers,
            from_cache: report.from_cache,
            // What a seed gets is for others.
            delivered: if seed { 0 } else { received },
            tasks_done: report.tasks_done,
            tasks_failed: report.tasks_failed,
        };
        self.totals.sums.add(&sums);
        self.sums.add(&sums);
        for failure in report.failures.iter().take(MAX_REPORTED) {
            // A release that knows more codes must not make this map grow.
            let code = rpc::failure::Code::try_from(failure.code).unwrap_or_default();
            let by_code = self.totals.failed_by_code.entry(code.into()).or_default();
            *by_code = by_code.saturating_add(failure.count);
            add_failure(&mut self.failures, failure);
        }
    }
}

fn add_failure(to: &mut Vec<rpc::FailureCount>, more: &rpc::FailureCount) {
    let mut more = more.clone();
    if more.origin.len() > MAX_TEXT {
        more.origin.clear();
    }
    let code = rpc::failure::Code::try_from(more.code).unwrap_or_default();
    more.code = code.into();
    more.finding = rpc::Finding::try_from(more.finding)
        .unwrap_or_default()
        .into();
    let same = |a: &rpc::FailureCount, b: &rpc::FailureCount| {
        let kind = |f: &rpc::FailureCount| (f.code, f.http_status, f.finding);
        kind(a) == kind(b) && a.origin == b.origin
    };
    if to.len() >= MAX_FAILURES && !to.iter().any(|known| same(known, &more)) {
        more.origin.clear();
        more.http_status = 0;
    }
    match to.iter_mut().find(|known| same(known, &more)) {
        Some(known) => known.count = known.count.saturating_add(more.count),
        None => to.push(more),
    }
}

/// What a node says of its policy, of a length that may be kept for every node.
pub(crate) fn bounded(mut ack: rpc::PolicyAck) -> rpc::PolicyAck {
    for text in [&mut ack.uid, &mut ack.hash, &mut ack.error] {
        let mut end = text.len().min(MAX_TEXT);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
    }
    ack
}

/// What a node found of its container runtimes: each once, and of a release that knows more kinds all
/// others as one.
pub(crate) fn known(said: rpc::RuntimeSettings) -> rpc::RuntimeSettings {
    let finding = |f: &i32| rpc::Finding::try_from(*f).unwrap_or_default().into();
    let findings: BTreeSet<i32> = said.findings.iter().map(finding).collect();
    rpc::RuntimeSettings {
        findings: findings.into_iter().collect(),
    }
}

impl Core {
    /// What was counted since the last call, and what is true now.
    pub fn sketch(&mut self) -> rpc::Sketch {
        let mut policies: HashMap<(&str, u64, &str, bool), (u32, &str)> = HashMap::new();
        let (mut seeds, mut peers, mut looked_at) = (0, 0, 0);
        let mut findings: BTreeMap<i32, u32> = BTreeMap::new();
        let nodes = self.nodes.values().filter(|n| n.home && n.gone.is_none());
        for node in nodes {
            *(if node.is_seed() {
                &mut seeds
            } else {
                &mut peers
            }) += 1;
            if let Some(said) = &node.totals.runtimes {
                looked_at += 1;
                for finding in &said.findings {
                    *findings.entry(*finding).or_default() += 1;
                }
            }
            let Some(ack) = &node.hello.policy else {
                continue;
            };
            let refused = !ack.error.is_empty();
            let key = (ack.uid.as_str(), ack.revision, ack.hash.as_str(), refused);
            let count = policies.entry(key).or_insert((0, ack.error.as_str()));
            count.0 += 1;
            // The same of all reasons each time, so that nothing flaps.
            count.1 = count.1.min(ack.error.as_str());
        }
        let policies = policies
            .into_iter()
            .map(
                |((uid, revision, hash, _), (nodes, error))| rpc::PolicyCount {
                    uid: uid.to_owned(),
                    revision,
                    hash: hash.to_owned(),
                    nodes,
                    error: error.to_owned(),
                },
            );
        let mut policies: Vec<_> = policies.collect();
        policies.sort_by(|a, b| {
            let order =
                |p: &rpc::PolicyCount| (std::cmp::Reverse(p.nodes), std::cmp::Reverse(p.revision));
            order(a).cmp(&order(b)).then_with(|| a.hash.cmp(&b.hash))
        });
        policies.truncate(MAX_POLICIES);
        let active = self.tasks.values().filter(|t| !t.wanting.is_empty());
        rpc::Sketch {
            replica: self.name.clone(),
            active_tasks: u32::try_from(active.count()).unwrap_or(u32::MAX),
            seeds,
            peers,
            policies,
            looked_at,
            findings: findings
                .into_iter()
                .map(|(finding, nodes)| rpc::FindingCount { finding, nodes })
                .collect(),
            sums: Some(std::mem::take(&mut self.counts.sums)),
            failures: std::mem::take(&mut self.counts.failures),
            ..rpc::Sketch::default()
        }
    }

    /// What nodes reported since this scheduler started.
    #[must_use]
    pub const fn totals(&self) -> &Totals {
        &self.counts.totals
    }
}
