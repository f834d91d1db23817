//! Whether container runtimes can use their nodes' mirrors: from what nodes found to the condition
//! `MirrorUsable`. Pure: time is passed in.
//!
//! Invariants: what is found is said at once, and that it is gone only once nobody has found it for a
//! while, for a replica that restarts knows of no node until that has told it; no message grows with nodes.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

use dragonfly_crds::conditions::{MIRROR_USABLE, mirror};
use dragonfly_proto::rpc::{Finding, Sketch};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

use crate::explain::{WHERE, settings};

/// What is better than what was said is said after so long: nodes have told their homes, and those whoever
/// writes, by then.
const SETTLE: Duration = Duration::from_secs(20);

/// What nodes find now.
#[derive(Debug, Default)]
pub(crate) struct Found {
    looked_at: u64,
    by_kind: BTreeMap<Finding, u64>,
}

impl Found {
    /// Of one replica's nodes.
    pub(crate) fn of(sketch: &Sketch) -> Self {
        let mut found = Self {
            looked_at: sketch.looked_at.into(),
            ..Self::default()
        };
        // Kinds of a newer release are one.
        for count in sketch.findings.iter().filter(|count| count.nodes > 0) {
            *found.by_kind.entry(count.finding()).or_default() += u64::from(count.nodes);
        }
        found
    }

    pub(crate) fn add(&mut self, more: &Self) {
        self.looked_at += more.looked_at;
        for (kind, nodes) in &more.by_kind {
            *self.by_kind.entry(*kind).or_default() += nodes;
        }
    }

    /// Status, reason and message.
    fn row(&self) -> (&'static str, &'static str, String) {
        let looked_at = self.looked_at;
        let mut kinds: Vec<_> = self.by_kind.iter().collect();
        kinds.sort_by_key(|(kind, nodes)| (Reverse(**nodes), **kind));
        if let Some((worst, _)) = kinds.first() {
            let parts = kinds.iter().map(|(kind, nodes)| {
                format!("on {nodes} of {looked_at} nodes {}; ", settings(**kind))
            });
            let message = parts.collect::<String>() + WHERE;
            return ("False", reason(**worst), message);
        }
        if looked_at > 0 {
            let message = format!(
                "nothing keeps container runtimes from using the mirror on the {looked_at} nodes that were \
                 looked at"
            );
            return ("True", mirror::USABLE, message);
        }
        let message = "no node says how its container runtimes are set up: spec.mirror.nodeSelector and \
                       percent pick none, or the pods of the DaemonSet that tells them of the mirror do not \
                       run";
        ("Unknown", mirror::NOT_LOOKED_AT, message.to_owned())
    }
}

const fn reason(finding: Finding) -> &'static str {
    match finding {
        Finding::ConfigUnreadable => mirror::CONFIG_UNREADABLE,
        Finding::ConfigPathMissing => mirror::CONFIG_PATH_MISSING,
        Finding::ConfigPathList => mirror::CONFIG_PATH_LIST,
        Finding::ConfigPathElsewhere => mirror::CONFIG_PATH_ELSEWHERE,
        Finding::RegistryMirrors => mirror::REGISTRY_MIRRORS,
        Finding::FileLeftAlone => mirror::FILE_LEFT_ALONE,
        Finding::RegistryTaken => mirror::REGISTRY_TAKEN,
        Finding::Unspecified => mirror::OTHER,
    }
}

/// The condition, from one look to the next.
#[derive(Debug)]
pub(crate) struct Runtimes {
    said: Option<Condition>,
    /// When what is said was last so, or worse.
    confirmed: Duration,
}

impl Runtimes {
    /// Goes on from what an earlier writer left.
    pub(crate) const fn new(now: Duration, left: Option<Condition>) -> Self {
        Self {
            said: left,
            confirmed: now,
        }
    }

    /// What the condition is to be; of a mesh that asks for no mirror there is none.
    pub(crate) fn condition(
        &mut self,
        now: Duration,
        clock: Timestamp,
        found: Option<&Found>,
    ) -> Option<Condition> {
        let Some(found) = found else {
            self.said = None;
            return None;
        };
        let (status, reason, message) = found.row();
        let before = self.said.take();
        let worse = before
            .as_ref()
            .is_none_or(|before| badness(status) >= badness(&before.status));
        if !worse && now.saturating_sub(self.confirmed) < SETTLE {
            self.said = before;
            return self.said.clone();
        }
        self.confirmed = now;
        let since = before.filter(|before| before.status == status);
        self.said = Some(Condition {
            type_: MIRROR_USABLE.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message,
            last_transition_time: since.map_or(Time(clock), |before| before.last_transition_time),
            observed_generation: None,
        });
        self.said.clone()
    }

    /// What was said last.
    pub(crate) fn said(&self) -> Option<Condition> {
        self.said.clone()
    }
}

fn badness(status: &str) -> u8 {
    match status {
        "False" => 2,
        "True" => 1,
        _ => 0,
    }
}
