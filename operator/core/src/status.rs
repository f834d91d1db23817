//! What is said of a mesh or a pool: counts and conditions.
//!
//! Invariants: the operator's three conditions are always there, each with a reason;
//! `lastTransitionTime` changes only with the condition's status; two statuses that differ in nothing
//! else are the same, so that nothing is written; no list here grows with the number of nodes.

use dragonfly_crds::conditions::{READY, RECONCILING, STALLED, reason};
use dragonfly_crds::field::Invalid;
use dragonfly_crds::placement::{Components, Ready};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use serde_json::Value;

use crate::names::{self, Component};
use crate::wanted::Kind;

/// Longest message: the rest of a list of mistakes helps nobody.
const MAX_MESSAGE: usize = 1024;

/// Why there is no progress until somebody does something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stalled {
    /// For machines.
    pub reason: &'static str,
    /// For people: object, field, what to do.
    pub message: String,
}

impl Stalled {
    /// With a message of a bounded length.
    pub fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: cut(message.into()),
        }
    }

    /// Of mistakes in objects.
    pub fn invalid(mistakes: &[Invalid]) -> Self {
        let all: Vec<_> = mistakes.iter().map(ToString::to_string).collect();
        Self::new(reason::INVALID_SPEC, all.join("; "))
    }
}

/// How a reconciliation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All was applied; whether it is ready is in the counts. With what there is to say of parts that
    /// are not as they should be.
    Applied(Vec<String>),
    /// The same, and what else there is to say, by which the mesh does no less.
    Noted(Vec<String>, String),
    /// Somebody else has to do his part first, and may: the reason, and for whom it waits.
    Waiting(&'static str, String),
    /// It cannot be as the spec says until somebody does something.
    Stalled(Stalled),
    /// It will be tried again.
    Failed(String),
}

/// Counts of a mesh's parts from its live objects.
pub fn components<'a>(live: impl IntoIterator<Item = (Kind, &'a Value)>) -> Components {
    let mut found = Components::default();
    for (kind, object) in live {
        let component = object
            .pointer("/metadata/labels")
            .and_then(|labels| labels.get(names::COMPONENT))
            .and_then(Value::as_str);
        let into = match component {
            Some(part) if part == Component::Scheduler.as_str() => &mut found.schedulers,
            Some(part) if part == Component::Seed.as_str() => &mut found.seeds,
            Some(part) if part == Component::Peer.as_str() => &mut found.peers,
            _ => continue,
        };
        let counted = match kind {
            Kind::DEPLOYMENT => {
                counts(object, "/spec/replicas", "readyReplicas", "updatedReplicas")
            }
            Kind::DAEMON_SET => counts(
                object,
                "/status/desiredNumberScheduled",
                "numberReady",
                "updatedNumberScheduled",
            ),
            _ => continue,
        };
        into.desired = into.desired.saturating_add(counted.desired);
        into.ready = into.ready.saturating_add(counted.ready);
        into.updated = into.updated.saturating_add(counted.updated);
    }
    found
}

fn counts(object: &Value, desired: &str, ready: &str, updated: &str) -> Ready {
    let number = |path: &str| {
        let found = object.pointer(path).and_then(Value::as_i64);
        i32::try_from(found.unwrap_or_default()).unwrap_or(i32::MAX)
    };
    let status = |field: &str| number(&format!("/status/{field}"));
    Ready {
        desired: number(desired),
        ready: status(ready),
        // What the controller says of an older generation is not about the newest pods.
        updated: if is_observed(object) {
            status(updated)
        } else {
            0
        },
    }
}

/// Whether a workload's controller has seen its newest generation.
fn is_observed(object: &Value) -> bool {
    let number = |path: &str| object.pointer(path).and_then(Value::as_i64);
    number("/status/observedGeneration").unwrap_or_default()
        >= number("/metadata/generation").unwrap_or_default()
}

/// What there is to say of a workload that is not as it should be: Kubernetes has not looked at it, its
/// pods may not be made, they make no progress.
pub fn trouble(object: &Value) -> Option<String> {
    let name = object.pointer("/metadata/name").and_then(Value::as_str);
    let name = name.unwrap_or_default();
    if !is_observed(object) {
        return Some(format!("{name}: just changed"));
    }
    let number = |field: &str| object.pointer(field).and_then(Value::as_i64);
    // A DaemonSet says nothing of why its pods may not be made.
    if number("/status/desiredNumberScheduled").is_some_and(|wanted| wanted > 0)
        && number("/status/currentNumberScheduled") == Some(0)
    {
        return Some(format!(
            "{name}: no pod was made yet; if that stays so, kubectl describe daemonset {name} says why \
             (peers need Pod Security level privileged)"
        ));
    }
    let conditions = object.pointer("/status/conditions")?.as_array()?;
    let text = |condition: &Value, field: &str| {
        let found = condition.get(field).and_then(Value::as_str);
        found.unwrap_or_default().to_owned()
    };
    let found = conditions.iter().find(|condition| {
        matches!(
            (
                text(condition, "type").as_str(),
                text(condition, "status").as_str()
            ),
            ("ReplicaFailure", "True") | ("Progressing", "False")
        )
    })?;
    Some(format!("{name}: {}", text(found, "message")))
}

/// Whether all parts are there and of the newest kind.
pub fn is_ready(components: &Components) -> bool {
    parts(components)
        .iter()
        .all(|(_, part)| part.ready >= part.desired && part.updated >= part.desired)
}

fn parts(components: &Components) -> [(&'static str, Ready); 3] {
    [
        ("schedulers", components.schedulers),
        ("seeds", components.seeds),
        ("peers", components.peers),
    ]
}

/// What a mesh's parts are like, in a line: `1 of 1 schedulers, 0 of 1 seeds, 2 of 2 peers are ready`.
fn summary(components: &Components) -> String {
    let all: Vec<_> = parts(components)
        .iter()
        .map(|(name, part)| format!("{} of {} {name}", part.ready, part.desired))
        .collect();
    let mut text = format!("{} are ready", all.join(", "));
    let old: i32 = parts(components)
        .iter()
        .map(|(_, part)| (part.desired - part.updated).max(0))
        .sum();
    if old > 0 && is_there(components) {
        text.push_str(&format!(", {old} still to be replaced"));
    }
    text
}

fn is_there(components: &Components) -> bool {
    parts(components).iter().any(|(_, part)| part.ready > 0)
}

/// The conditions of a mesh. `generation` is that of the spec that was looked at.
pub fn of_mesh(
    previous: &[Condition],
    generation: Option<i64>,
    outcome: &Outcome,
    components: &Components,
    now: &Time,
) -> Vec<Condition> {
    let rows = match outcome {
        Outcome::Applied(troubles) => applied(components, troubles, None),
        Outcome::Noted(troubles, note) => applied(components, troubles, Some(note)),
        Outcome::Waiting(why, message) => progressing(why, cut(message.clone())),
        Outcome::Failed(why) => progressing(reason::FAILED, cut(why.clone())),
        Outcome::Stalled(stalled) => stopped(stalled),
    };
    conditions(previous, generation, rows, now)
}

/// What is said of a mesh whose objects are all as they should be.
fn applied(components: &Components, troubles: &[String], note: Option<&String>) -> [Row; 3] {
    let is_done = troubles.is_empty() && is_ready(components);
    let mut message = summary(components);
    if is_done && components.peers.desired == 0 {
        message.push_str("; no node is selected by spec.peers.pods");
    }
    for more in troubles.iter().chain(note) {
        message.push_str("; ");
        message.push_str(more);
    }
    if is_done {
        done(cut(message))
    } else {
        progressing(reason::PROGRESSING, cut(message))
    }
}

/// The conditions of a pool that serves so many meshes with so many schedulers.
pub fn of_pool(
    previous: &[Condition],
    generation: Option<i64>,
    mistakes: &[Invalid],
    (distributions, schedulers): (i32, Ready),
    now: &Time,
) -> Vec<Condition> {
    let rows = if !mistakes.is_empty() {
        stopped(&Stalled::invalid(mistakes))
    } else if distributions == 0 {
        done("no Distribution refers to this pool".to_owned())
    } else {
        let message = format!(
            "{} of {} schedulers of {distributions} Distributions are ready",
            schedulers.ready, schedulers.desired
        );
        if schedulers.ready >= schedulers.desired && schedulers.updated >= schedulers.desired {
            done(message)
        } else {
            progressing(reason::PROGRESSING, message)
        }
    };
    conditions(previous, generation, rows, now)
}

/// Type, status, reason, message.
pub(crate) type Row = (&'static str, &'static str, &'static str, String);

fn done(message: String) -> [Row; 3] {
    [
        (READY, "True", reason::READY, message.clone()),
        (RECONCILING, "False", reason::READY, message),
        (STALLED, "False", reason::NOT_STALLED, String::new()),
    ]
}

fn progressing(why: &'static str, message: String) -> [Row; 3] {
    [
        (READY, "False", why, message.clone()),
        (RECONCILING, "True", why, message),
        (STALLED, "False", reason::NOT_STALLED, String::new()),
    ]
}

fn stopped(stalled: &Stalled) -> [Row; 3] {
    let message = || stalled.message.clone();
    [
        (READY, "False", stalled.reason, message()),
        (RECONCILING, "False", stalled.reason, message()),
        (STALLED, "True", stalled.reason, message()),
    ]
}

/// What an outcome says where there is nothing to count.
pub(crate) fn rows_of(outcome: &Outcome) -> [Row; 3] {
    match outcome {
        Outcome::Applied(said) => done(cut(said.join("; "))),
        Outcome::Noted(said, note) => done(cut([said.join("; "), note.clone()].join("; "))),
        Outcome::Waiting(why, message) => progressing(why, cut(message.clone())),
        Outcome::Failed(why) => progressing(reason::FAILED, cut(why.clone())),
        Outcome::Stalled(stalled) => stopped(stalled),
    }
}

/// The conditions of an object of which nothing is counted.
pub fn of_nothing(
    previous: &[Condition],
    generation: Option<i64>,
    outcome: &Outcome,
    now: &Time,
) -> Vec<Condition> {
    conditions(previous, generation, rows_of(outcome), now)
}

pub(crate) fn conditions(
    previous: &[Condition],
    generation: Option<i64>,
    rows: [Row; 3],
    now: &Time,
) -> Vec<Condition> {
    rows.into_iter()
        .map(|(type_, status, reason, message)| {
            let before = previous
                .iter()
                .find(|before| before.type_ == type_ && before.status == status);
            Condition {
                type_: type_.to_owned(),
                status: status.to_owned(),
                reason: reason.to_owned(),
                message,
                observed_generation: generation,
                last_transition_time: before
                    .map_or_else(|| now.clone(), |before| before.last_transition_time.clone()),
            }
        })
        .collect()
}

pub(crate) fn cut(mut text: String) -> String {
    if text.len() > MAX_MESSAGE {
        let end = (0..=MAX_MESSAGE)
            .rev()
            .find(|at| text.is_char_boundary(*at));
        text.truncate(end.unwrap_or_default());
        text.push_str("...");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::jiff::Timestamp;
    use serde_json::json;

    fn at(second: i64) -> Time {
        Time(Timestamp::from_second(second).unwrap())
    }

    fn row<'a>(all: &'a [Condition], type_: &str) -> &'a Condition {
        all.iter().find(|c| c.type_ == type_).unwrap()
    }

    #[test]
    fn a_condition_keeps_its_time_until_its_status_changes() {
        let counts = Components::default();
        let applied = Outcome::Applied(vec![]);
        let first = of_mesh(&[], Some(1), &applied, &counts, &at(1));
        let again = of_mesh(&first, Some(2), &applied, &counts, &at(2));
        assert_eq!(row(&again, READY).last_transition_time, at(1));
        let stalled = Outcome::Stalled(Stalled::new(reason::INVALID_SPEC, "x"));
        let after = of_mesh(&again, Some(3), &stalled, &counts, &at(3));
        assert_eq!(row(&after, STALLED).last_transition_time, at(3));
        assert_eq!(row(&after, RECONCILING).last_transition_time, at(1));
        assert!(after.iter().all(|c| !c.reason.is_empty()));
    }

    #[test]
    fn a_note_makes_a_mesh_no_less_ready_and_waiting_is_no_stall() {
        let counts = Components::default();
        let said = |outcome: &Outcome| of_mesh(&[], Some(1), outcome, &counts, &at(1));
        let noted = said(&Outcome::Noted(vec![], "its next CA waits".to_owned()));
        let ready = row(&noted, READY);
        assert!(ready.status == "True" && ready.message.ends_with("; its next CA waits"));
        let troubled = said(&Outcome::Noted(vec!["a: b".to_owned()], "c".to_owned()));
        let ready = row(&troubled, READY);
        assert!(ready.status == "False" && ready.message.ends_with("; a: b; c"));
        let waits = said(&Outcome::Waiting(
            reason::WAITING_FOR_ISSUER,
            "for x".to_owned(),
        ));
        let status = |type_| {
            (
                row(&waits, type_).status.as_str(),
                row(&waits, type_).reason.as_str(),
            )
        };
        assert_eq!(status(RECONCILING), ("True", "WaitingForIssuer"));
        assert_eq!(status(READY), ("False", "WaitingForIssuer"));
        assert_eq!(status(STALLED).0, "False");
    }

    #[test]
    fn a_deployment_whose_controller_is_behind_is_not_up_to_date() {
        let labels = json!({names::COMPONENT: "seed"});
        let mut object = json!({
            "metadata": {"generation": 2, "labels": labels},
            "spec": {"replicas": 1},
            "status": {"observedGeneration": 1, "readyReplicas": 1, "updatedReplicas": 1},
        });
        let counted = components([(Kind::DEPLOYMENT, &object)]);
        assert!(!is_ready(&counted), "{counted:?}");
        object["status"]["observedGeneration"] = json!(2);
        assert!(is_ready(&components([(Kind::DEPLOYMENT, &object)])));
    }

    #[test]
    fn why_pods_are_not_made_is_said() {
        let object = json!({
            "metadata": {"name": "m-seed", "generation": 1},
            "status": {"observedGeneration": 1, "conditions": [
                {"type": "Available", "status": "False", "message": "no"},
                {"type": "ReplicaFailure", "status": "True", "message": "pods is forbidden"},
            ]},
        });
        assert_eq!(trouble(&object).unwrap(), "m-seed: pods is forbidden");
        let mut peers = json!({
            "metadata": {"name": "m-peer", "generation": 1},
            "status": {
                "observedGeneration": 1,
                "desiredNumberScheduled": 2,
                "currentNumberScheduled": 0,
            },
        });
        assert!(trouble(&peers).unwrap().contains("Pod Security"));
        peers["status"]["currentNumberScheduled"] = json!(2);
        assert_eq!(trouble(&peers), None);
    }

    #[test]
    fn long_messages_are_cut_between_characters() {
        let stalled = Stalled::new(reason::INVALID_SPEC, "é".repeat(2000));
        assert!(stalled.message.len() <= MAX_MESSAGE + 3);
    }
}
