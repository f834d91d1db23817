//! From what replicas counted to what status says. Pure: time is passed in.
//!
//! Invariants: sums only grow; what is kept is bounded whatever sketches say; equal input gives equal
//! status, so that whoever compares writes only changes.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use dragonfly_crds::conditions::MIRROR_USABLE;
use dragonfly_crds::policy::Policy;
use dragonfly_crds::reports::{
    Failure, MAX_FAILURES, MAX_REVISIONS, MIRROR_UNUSED, RevisionCount, Rollout, Traffic,
};
use dragonfly_proto::rpc::{FailureCount, PolicyCount, Sketch, Sums};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::explain;
use crate::notices::{Notice, Notices};
use crate::runtimes::{Found, Runtimes};

/// Bandwidth is the mean over so long.
const WINDOW: Duration = Duration::from_secs(30);
/// Between two points of it.
const POINT: Duration = Duration::from_secs(5);
/// What a replica that is not heard of said is forgotten after this.
const SILENT: Duration = Duration::from_secs(30);
/// How long one who takes over says of nodes what it found: they and other replicas turn to it first.
const LISTEN: Duration = Duration::from_secs(15);
/// Failures not seen for so long are forgotten.
const OLD: SignedDuration = SignedDuration::from_hours(24);
/// No seed for so long is worth telling.
const SEEDLESS: Duration = Duration::from_secs(60);
/// Replicas that there can be.
const MAX_REPLICAS: usize = 64;

/// What this writes of a Distribution's status.
#[derive(Serialize, Deserialize, Debug, Clone, Default, PartialEq)]
#[serde(default)]
pub struct Status {
    /// `status.traffic`.
    pub traffic: Traffic,
    /// `status.rollout`.
    pub rollout: Rollout,
    /// `status.failures`.
    pub failures: Vec<Failure>,
    /// Of `status.conditions` the one that is this writer's: `MirrorUsable`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

impl Status {
    /// What an earlier writer left in an object's status; a part that is not as expected counts as
    /// absent.
    #[must_use]
    pub fn left_in(status: Option<&Value>) -> Option<Self> {
        let status = status?;
        status.get("traffic").or(status.get("rollout"))?;
        Some(Self {
            traffic: part(status, "traffic"),
            rollout: part(status, "rollout"),
            failures: part(status, "failures"),
            conditions: own(status).into_iter().collect(),
        })
    }
}

fn own(status: &Value) -> Option<Condition> {
    let mut all = status.get("conditions")?.as_array()?.iter();
    let own = all.find(|c| c.get("type").is_some_and(|type_| type_ == MIRROR_USABLE))?;
    serde_json::from_value(own.clone()).ok()
}

fn part<T: DeserializeOwned + Default>(status: &Value, name: &str) -> T {
    let value = status.get(name).cloned();
    value
        .and_then(|v| serde_json::from_value(v).ok())
        .unwrap_or_default()
}

/// Which policy is in force.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InForce {
    uid: String,
    revision: u64,
    hash: String,
    /// It asks for a mirror on each node.
    mirror: bool,
}

impl From<&Policy> for InForce {
    fn from(p: &Policy) -> Self {
        Self {
            uid: p.uid.clone(),
            revision: p.revision,
            hash: p.hash.clone(),
            mirror: p.mirror.is_some(),
        }
    }
}

impl InForce {
    fn is(&self, count: &PolicyCount) -> bool {
        (&self.uid, self.revision, &self.hash) == (&count.uid, count.revision, &count.hash)
    }
}

/// What one replica said last.
#[derive(Debug, Default)]
struct Replica {
    boot: u64,
    number: u64,
    heard: Duration,
    seeds: u32,
    peers: u32,
    active: u32,
    policies: Vec<PolicyCount>,
    found: Found,
}

/// The sums of a mesh, and what its replicas say of now.
#[derive(Debug)]
pub struct Reports {
    sums: Sums,
    replicas: HashMap<String, Replica>,
    failures: Vec<Failure>,
    points: VecDeque<(Duration, [u64; 3])>,
    /// What was found of nodes holds until then.
    inherited: Option<(Rollout, Duration)>,
    seedless_since: Option<Duration>,
    refused: (InForce, i64),
    runtimes: Runtimes,
    notices: Notices,
}

impl Reports {
    /// Goes on from the status that an earlier one left; `None` where there is none.
    #[must_use]
    pub fn new(now: Duration, found: Option<&Status>) -> Self {
        let traffic = found.map(|f| f.traffic.clone()).unwrap_or_default();
        let sum = |n: i64| u64::try_from(n).unwrap_or_default();
        Self {
            sums: Sums {
                from_origin: sum(traffic.origin_bytes),
                from_seeds: sum(traffic.seed_bytes),
                from_peers: sum(traffic.peer_bytes),
                from_cache: sum(traffic.cache_bytes),
                delivered: sum(traffic.delivered_bytes),
                tasks_done: sum(traffic.finished),
                tasks_failed: sum(traffic.failed),
            },
            replicas: HashMap::new(),
            failures: found.map(|f| f.failures.clone()).unwrap_or_default(),
            points: VecDeque::new(),
            inherited: found.map(|f| (f.rollout.clone(), now + LISTEN)),
            seedless_since: None,
            refused: (InForce::default(), 0),
            runtimes: Runtimes::new(now, found.and_then(|f| f.conditions.first().cloned())),
            notices: Notices::default(),
        }
    }

    /// Takes what a replica counted; once, however often it is sent.
    pub fn take(&mut self, now: Duration, clock: Timestamp, sketch: &Sketch) {
        let known = self.replicas.contains_key(&sketch.replica);
        if !known && self.replicas.len() >= MAX_REPLICAS {
            return;
        }
        let replica = self.replicas.entry(sketch.replica.clone()).or_default();
        replica.heard = now;
        replica.seeds = sketch.seeds;
        replica.peers = sketch.peers;
        replica.active = sketch.active_tasks;
        replica.policies.clone_from(&sketch.policies);
        replica.policies.truncate(16);
        replica.found = Found::of(sketch);
        if known && replica.boot == sketch.boot && sketch.number <= replica.number {
            return;
        }
        (replica.boot, replica.number) = (sketch.boot, sketch.number);
        if let Some(more) = &sketch.sums {
            self.sums.add(more);
        }
        for failure in sketch.failures.iter().take(128) {
            self.failed(now, clock, failure);
        }
    }

    fn failed(&mut self, now: Duration, clock: Timestamp, f: &FailureCount) {
        let (reason, message) = explain::failure(f);
        let origin = explain::short(&f.origin);
        if reason == explain::DENIED {
            let of = if origin.is_empty() {
                "origins"
            } else {
                origin.as_str()
            };
            let action: String = format!("FetchFrom {of}").chars().take(128).collect();
            let note = explain::short(&format!("{of}: {message}"));
            self.notices.add(
                now,
                Notice {
                    reason,
                    action,
                    note,
                },
            );
        }
        if reason == MIRROR_UNUSED {
            let notice = Notice {
                reason,
                action: format!("UseMirror {}", f.finding().as_str_name()),
                note: explain::short(&message),
            };
            self.notices.add(now, notice);
        }
        let count = i64::try_from(f.count).unwrap_or(i64::MAX);
        self.note(
            clock,
            reason,
            Some(origin).filter(|o| !o.is_empty()),
            message,
            count,
        );
    }

    /// Something that went wrong.
    fn note(
        &mut self,
        clock: Timestamp,
        reason: &str,
        origin: Option<String>,
        message: String,
        count: i64,
    ) {
        let clock = seconds(clock);
        let known = self
            .failures
            .iter_mut()
            .find(|f| f.reason == reason && f.origin == origin && f.message == message);
        if let Some(known) = known {
            known.count = known.count.saturating_add(count);
            known.last_time = Time(clock);
            return;
        }
        self.failures.push(Failure {
            reason: reason.to_owned(),
            origin,
            message,
            count,
            first_time: Time(clock),
            last_time: Time(clock),
        });
        if self.failures.len() > MAX_FAILURES {
            let oldest = (0..self.failures.len()).min_by_key(|i| self.failures[*i].last_time.0);
            self.failures.remove(oldest.unwrap_or_default());
        }
    }

    /// A policy came that this release cannot run.
    pub fn unreadable(&mut self, now: Duration, clock: Timestamp, revision: u64, why: &str) {
        let message = explain::short(&format!(
            "schedulers keep the policy before revision {revision}: {why}"
        ));
        let notice = Notice {
            reason: explain::POLICY_UNREADABLE,
            action: format!("TakePolicy {revision}"),
            note: message.clone(),
        };
        self.notices.add(now, notice);
        self.note(clock, explain::POLICY_UNREADABLE, None, message, 1);
    }

    /// What status is to say.
    pub fn status(
        &mut self,
        now: Duration,
        clock: Timestamp,
        in_force: Option<&InForce>,
    ) -> Status {
        self.replicas
            .retain(|_, r| now.saturating_sub(r.heard) < SILENT);
        self.failures
            .retain(|f| clock.duration_since(f.last_time.0) < OLD);
        self.point(now);
        self.inherited.take_if(|(_, until)| now >= *until);
        let rollout = match &self.inherited {
            Some((found, _)) => found.clone(),
            None => {
                let rollout = self.rollout(in_force.unwrap_or(&InForce::default()));
                self.watch_rollout(now, clock, in_force, &rollout);
                rollout
            }
        };
        // Seen last first; those of one second by name.
        self.failures.sort_by(|a, b| {
            let by = |f: &Failure| std::cmp::Reverse(f.last_time.0);
            by(a)
                .cmp(&by(b))
                .then_with(|| (&a.reason, &a.origin).cmp(&(&b.reason, &b.origin)))
        });
        Status {
            traffic: self.traffic(now),
            rollout,
            failures: self.failures.clone(),
            conditions: self.mirror(now, clock, in_force).into_iter().collect(),
        }
    }

    /// Whether container runtimes can use the mirror, where policy asks for one.
    fn mirror(
        &mut self,
        now: Duration,
        clock: Timestamp,
        in_force: Option<&InForce>,
    ) -> Option<Condition> {
        let Some(in_force) = in_force else {
            return self.runtimes.said();
        };
        let mut found = Found::default();
        for replica in self.replicas.values() {
            found.add(&replica.found);
        }
        let asked = in_force.mirror.then_some(&found);
        self.runtimes.condition(now, seconds(clock), asked)
    }

    /// What a person should notice, since the last call.
    pub fn notices(&mut self) -> Vec<Notice> {
        self.notices.take()
    }

    fn point(&mut self, now: Duration) {
        let due = |last: &(Duration, _)| now.saturating_sub(last.0) >= POINT;
        if self.points.back().is_none_or(due) {
            let s = &self.sums;
            self.points
                .push_back((now, [s.from_origin, s.from_seeds, s.from_peers]));
        }
        // The first one is at least as old as the window, once there is such a one.
        let old = |at: &(Duration, _)| now.saturating_sub(at.0) >= WINDOW;
        while self.points.get(1).is_some_and(old) {
            self.points.pop_front();
        }
    }

    fn traffic(&self, now: Duration) -> Traffic {
        let s = &self.sums;
        let sum = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let (since, before) = self
            .points
            .front()
            .map_or((now, [0; 3]), |(at, sums)| (now.saturating_sub(*at), *sums));
        let rate = |now: u64, before: u64| {
            // Too short a time says nothing: nodes report every ten seconds.
            if since < WINDOW / 3 {
                return 0;
            }
            sum((now.saturating_sub(before)) / since.as_secs().max(1))
        };
        let saved = |origin: u64, delivered: u64| {
            let share = u128::from(delivered.saturating_sub(origin)) * 100 / u128::from(delivered);
            i32::try_from(share).unwrap_or(100)
        };
        Traffic {
            origin_bytes: sum(s.from_origin),
            seed_bytes: sum(s.from_seeds),
            peer_bytes: sum(s.from_peers),
            cache_bytes: sum(s.from_cache),
            delivered_bytes: sum(s.delivered),
            saved_percent: (s.delivered > 0).then(|| saved(s.from_origin, s.delivered)),
            origin_bytes_per_second: rate(s.from_origin, before[0]),
            seed_bytes_per_second: rate(s.from_seeds, before[1]),
            peer_bytes_per_second: rate(s.from_peers, before[2]),
            active_tasks: self.replicas.values().map(|r| i64::from(r.active)).sum(),
            finished: sum(s.tasks_done),
            failed: sum(s.tasks_failed),
        }
    }

    fn policies(&self) -> impl Iterator<Item = &PolicyCount> {
        self.replicas.values().flat_map(|r| &r.policies)
    }

    fn rollout(&self, in_force: &InForce) -> Rollout {
        let seeds = self.replicas.values().map(|r| i64::from(r.seeds)).sum();
        let peers = self.replicas.values().map(|r| i64::from(r.peers)).sum();
        let mut rollout = Rollout {
            revision: i64::try_from(in_force.revision).unwrap_or(i64::MAX),
            nodes: seeds + peers,
            seeds,
            peers,
            ..Rollout::default()
        };
        let mut revisions: BTreeMap<u64, i64> = BTreeMap::new();
        for count in self.policies().filter(|c| c.uid == in_force.uid) {
            let nodes = i64::from(count.nodes);
            match (count.error.is_empty(), in_force.is(count)) {
                (true, true) => rollout.acknowledged += nodes,
                (false, true) => rollout.refused += nodes,
                _ => {}
            }
            if count.error.is_empty() {
                *revisions.entry(count.revision).or_default() += nodes;
            }
        }
        let mut most: Vec<_> = revisions.into_iter().collect();
        most.sort_by_key(|(revision, nodes)| std::cmp::Reverse((*nodes, *revision)));
        most.truncate(MAX_REVISIONS);
        most.sort_by_key(|(revision, _)| std::cmp::Reverse(*revision));
        let listed = most.into_iter().map(|(revision, nodes)| RevisionCount {
            revision: i64::try_from(revision).unwrap_or(i64::MAX),
            nodes,
        });
        rollout.revisions = listed.collect();
        rollout
    }

    /// What in the rollout a person should notice.
    fn watch_rollout(
        &mut self,
        now: Duration,
        clock: Timestamp,
        in_force: Option<&InForce>,
        rollout: &Rollout,
    ) {
        let Some(in_force) = in_force else { return };
        if self.refused.0 != *in_force {
            self.refused = (in_force.clone(), 0);
        }
        let more = rollout.refused - self.refused.1;
        self.refused.1 = rollout.refused;
        if more > 0 {
            let why = self.policies().filter(|c| in_force.is(c)).map(|c| &c.error);
            let why = why
                .filter(|e| !e.is_empty())
                .min()
                .cloned()
                .unwrap_or_default();
            let message = explain::short(&format!("revision {}: {why}", in_force.revision));
            let note = format!(
                "{} of {} nodes refused {message}",
                rollout.refused, rollout.nodes
            );
            let notice = Notice {
                reason: explain::POLICY_REFUSED,
                action: format!("RollOut {}", in_force.revision),
                note: explain::short(&note),
            };
            self.notices.add(now, notice);
            self.note(clock, explain::POLICY_REFUSED, None, message, more);
        }
        if rollout.seeds > 0 || rollout.peers == 0 {
            self.seedless_since = None;
            return;
        }
        let since = *self.seedless_since.get_or_insert(now);
        if now.saturating_sub(since) >= SEEDLESS {
            // Told once while it lasts.
            self.seedless_since = Some(Duration::MAX);
            let note = "no seed has a session with a scheduler: content that nobody holds is not \
                        fetched through one; see the seeds' pods and their logs";
            let notice = Notice {
                reason: explain::NO_SEED,
                action: "FindSeed".to_owned(),
                note: note.to_owned(),
            };
            self.notices.add(now, notice);
        }
    }
}

/// Status keeps seconds: what is compared with it must be no finer.
fn seconds(clock: Timestamp) -> Timestamp {
    Timestamp::from_second(clock.as_second()).unwrap_or(clock)
}
