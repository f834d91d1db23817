//! Plans of Preheats, carried out by the replica that writes the mesh's status.
//!
//! ```text
//!  Preheat.status.plan ──watch──► all replicas ── the writer ──► [`Warmer`] ──► nodes
//!  Preheat.status.progress ◄──── one patch in 5 s, only of changes ◄──┘
//! ```
//! Nothing is kept here: a replica that takes over begins every plan that is not over anew, and nodes
//! that have everything say so at once. One loop; it owns every request.

use std::collections::{HashMap, HashSet};
use std::pin::pin;
use std::time::{Duration, Instant};

use dragonfly_crds::Preheat;
use dragonfly_crds::preheat::{Activity, Plan, Progress, Role, State, WhenType};
use dragonfly_crds::reports::{MANAGER, MAX_TEXT};
use futures::StreamExt;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ApiResource, DynamicObject, ListParams, Patch, PatchParams};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch};
use kube::{Client, ResourceExt};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::reporter::Reporter;
use crate::{Error, Target, asked};

const STEP: Duration = Duration::from_secs(1);
/// At most one patch of an object in so long, its last one apart.
const WRITE: Duration = Duration::from_secs(5);
/// How often it is looked which nodes have labels, for plans that do not end.
const LABELS: Duration = Duration::from_secs(30);
/// Before a plan that could not be begun is tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// What a plan is begun with.
#[derive(Debug, Clone, PartialEq)]
pub struct Job<'a> {
    /// Names it to nodes.
    pub name: &'a str,
    /// The object's UID.
    pub uid: &'a str,
    /// The plan.
    pub plan: &'a Plan,
    /// The nodes with the labels that the plan asks for; all when absent.
    pub nodes: Option<HashSet<String>>,
    /// Until its time is up.
    pub ends_in: Option<Duration>,
    /// Nodes that it had when it was last told of.
    pub expect: usize,
}

/// This replica, as it carries plans out.
pub trait Warmer: Send + Sync {
    /// Begins, or goes on under what changed.
    ///
    /// # Errors
    /// It has to wait: with what to log.
    fn begin(&self, job: &Job<'_>) -> Result<(), String>;
    /// How far it is, but for number, message and time; `None` when it is not known.
    fn progress(&self, job: &str, plan: &Plan) -> Option<Progress>;
    /// It is not to go on here; `stop`: nowhere.
    fn end(&self, job: &str, stop: bool);
}

/// Carries plans of one mesh out until stopped.
pub async fn carry_out(
    client: Client,
    target: Target,
    reporter: Reporter,
    warmer: impl Warmer,
    stop: CancellationToken,
) {
    let kind = ApiResource::erase::<Preheat>(&());
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &target.namespace, &kind);
    let mut round = Round {
        api: api.clone(),
        nodes: Api::all(client),
        target,
        reporter,
        warmer,
        started: Instant::now(),
        known: HashMap::new(),
        complaint: String::new(),
    };
    let mut events = pin!(watch(api, watcher::Config::default()).default_backoff());
    let mut every = tokio::time::interval(STEP);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut listed = HashSet::new();
    loop {
        tokio::select! {
            event = events.next() => match event {
                None => return,
                Some(Ok(Event::Init)) => listed.clear(),
                Some(Ok(Event::InitApply(object))) => {
                    listed.extend(object.uid());
                    round.see(&object);
                }
                Some(Ok(Event::InitDone)) => round.keep_only(&listed),
                Some(Ok(Event::Apply(object))) => round.see(&object),
                Some(Ok(Event::Delete(object))) => {
                    round.forget(&object.uid().unwrap_or_default());
                }
                Some(Err(error)) => round.complain(&format!("preheats cannot be watched: {error}")),
            },
            _ = every.tick() => round.step().await,
            () = stop.cancelled() => return,
        }
    }
}

/// One object, as far as it matters here.
struct Known {
    name: String,
    plan: Plan,
    /// As the object says it.
    progress: Option<Progress>,
    /// The job that was begun here.
    job: Option<String>,
    /// The plan is not as the job was begun.
    changed: bool,
    /// Until then it is not tried again, or not written.
    due: Duration,
    labels_due: Duration,
}

impl Known {
    fn is_over(&self) -> bool {
        let of_run = |p: &&Progress| p.run == self.plan.run;
        let progress = self.progress.as_ref().filter(of_run);
        progress.is_some_and(|p| p.state != State::Running)
    }
}

struct Round<W> {
    api: Api<DynamicObject>,
    nodes: Api<Node>,
    target: Target,
    reporter: Reporter,
    warmer: W,
    started: Instant,
    /// By UID.
    known: HashMap<String, Known>,
    complaint: String,
}

impl<W: Warmer> Round<W> {
    fn see(&mut self, object: &DynamicObject) {
        let uid = object.uid().unwrap_or_default();
        let part = |field: &str| {
            object
                .data
                .get("status")
                .and_then(|s| s.get(field))
                .cloned()
        };
        let plan = part("plan").and_then(|p| serde_json::from_value::<Plan>(p).ok());
        let plan = plan.filter(|plan| plan.distribution == self.target.name);
        let Some(plan) = plan.filter(|_| object.metadata.deletion_timestamp.is_none()) else {
            return self.forget(&uid);
        };
        let progress = part("progress").and_then(|p| serde_json::from_value(p).ok());
        match self.known.get_mut(&uid) {
            Some(known) => {
                if known.plan.run != plan.run
                    && let Some(job) = known.job.take()
                {
                    self.warmer.end(&job, true);
                }
                if known.plan != plan {
                    known.changed = true;
                    known.due = Duration::ZERO;
                    known.labels_due = Duration::ZERO;
                }
                known.plan = plan;
                known.progress = progress;
            }
            None => {
                let known = Known {
                    name: object.name_any(),
                    plan,
                    progress,
                    job: None,
                    changed: false,
                    due: Duration::ZERO,
                    labels_due: Duration::ZERO,
                };
                self.known.insert(uid, known);
            }
        }
    }

    fn forget(&mut self, uid: &str) {
        let known = self.known.remove(uid);
        if let Some(job) = known.and_then(|known| known.job) {
            self.warmer.end(&job, true);
        }
    }

    fn keep_only(&mut self, listed: &HashSet<String>) {
        let gone = self.known.keys().filter(|uid| !listed.contains(*uid));
        for uid in gone.cloned().collect::<Vec<_>>() {
            self.forget(&uid);
        }
    }

    fn complain(&mut self, text: &str) {
        if text != self.complaint {
            tracing::warn!("{text}; trying on");
            text.clone_into(&mut self.complaint);
        }
    }

    async fn step(&mut self) {
        let writes = self.reporter.counted().holder;
        let all: Vec<_> = self.known.keys().cloned().collect();
        for uid in all {
            let Some(mut known) = self.known.remove(&uid) else {
                continue;
            };
            if !writes || known.is_over() {
                if let Some(job) = known.job.take() {
                    self.warmer.end(&job, false);
                }
            } else if known.plan.activity == Activity::Suspended {
                if let Some(job) = known.job.take() {
                    self.warmer.end(&job, true);
                }
            } else if let Err(error) = self.advance(&uid, &mut known).await {
                known.due = self.started.elapsed() + AGAIN;
                self.complain(&format!("preheat {}: {error}", known.name));
            }
            self.known.insert(uid, known);
        }
    }

    /// Begins what is not begun, and tells how far it is.
    async fn advance(&mut self, uid: &str, known: &mut Known) -> Result<(), String> {
        let now = self.started.elapsed();
        let name = format!("{uid}/{}", known.plan.run);
        let progress = match &known.job {
            Some(job) => self.warmer.progress(job, &known.plan),
            None => None,
        };
        let selects = !known.plan.targets.node_selector.is_empty();
        let look = selects && known.plan.when == WhenType::Continuous && now >= known.labels_due;
        if progress.is_none() || look || known.changed {
            if now < known.due && progress.is_none() {
                return Ok(());
            }
            self.begin(uid, &name, known).await?;
        }
        let Some(progress) = progress else {
            return Ok(());
        };
        let progress = told(progress, &known.plan, Timestamp::now());
        let over = progress.state != State::Running;
        if known.progress.as_ref() == Some(&progress) || now < known.due && !over {
            return Ok(());
        }
        known.due = now + WRITE;
        let written = self.write(uid, &known.name, &progress).await;
        written.map_err(|error| error.to_string())?;
        known.progress = Some(progress);
        Ok(())
    }

    async fn begin(&mut self, uid: &str, name: &str, known: &mut Known) -> Result<(), String> {
        let selector = &known.plan.targets.node_selector;
        let nodes = if selector.is_empty() {
            None
        } else {
            let labels: Vec<_> = selector.iter().map(|(k, v)| format!("{k}={v}")).collect();
            let params = ListParams::default().labels(&labels.join(","));
            let found = asked("list nodes", self.nodes.list_metadata(&params)).await;
            let found = found.map_err(|error| error.to_string())?;
            known.labels_due = self.started.elapsed() + LABELS;
            Some(found.items.iter().map(ResourceExt::name_any).collect())
        };
        let ends_in = known.plan.end_time.as_ref().map(|end| {
            let left = end.0.duration_since(Timestamp::now());
            Duration::try_from(left).unwrap_or_default()
        });
        let before = known.progress.as_ref();
        let before = before.filter(|p| p.run == known.plan.run);
        let job = Job {
            name,
            uid,
            plan: &known.plan,
            nodes,
            ends_in,
            expect: before.map_or(0, |p| usize::try_from(p.targets.desired).unwrap_or(0)),
        };
        self.warmer.begin(&job)?;
        known.job = Some(name.to_owned());
        known.changed = false;
        Ok(())
    }

    async fn write(&self, uid: &str, name: &str, progress: &Progress) -> Result<(), Error> {
        let patch = json!({
            "apiVersion": dragonfly_crds::API_VERSION,
            "kind": "Preheat",
            "metadata": {"name": name, "uid": uid},
            "status": {"progress": progress},
        });
        let params = PatchParams::apply(MANAGER).force();
        let patch = Patch::Apply(&patch);
        let patched = self.api.patch_status(name, &params, &patch);
        match asked(&format!("patch the status of preheat {name}"), patched).await {
            Ok(_) => Ok(()),
            // Another object of its name, or none any more: the watch tells.
            Err(Error::Request { source, .. }) if matches!(&*source, kube::Error::Api(s) if s.code == 409 || s.code == 404) => {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}

/// What a scheduler knows of a run, as the object says it.
#[must_use]
pub fn told(progress: Progress, plan: &Plan, now: Timestamp) -> Progress {
    let over = progress.state != State::Running;
    let second = Timestamp::from_second(now.as_second()).unwrap_or(Timestamp::UNIX_EPOCH);
    Progress {
        run: plan.run,
        message: message(&progress, plan),
        end_time: over.then_some(Time(second)),
        ..progress
    }
}

/// How a run stands, in a line.
fn message(p: &Progress, plan: &Plan) -> String {
    let t = p.targets;
    let what = match plan.targets.role {
        Role::Seeds => "seeds",
        Role::Peers => "peers",
    };
    if t.desired == 0 {
        return match plan.when {
            WhenType::Continuous => format!("no {what} fit spec.targets yet"),
            _ if p.state == State::Running => format!("looks which {what} fit spec.targets"),
            _ => format!("no {what} with a session at the scheduler fit spec.targets"),
        };
    }
    let sum = |of: fn(&dragonfly_crds::preheat::FileProgress) -> i64| -> i64 {
        p.files.iter().map(of).fold(0, i64::saturating_add)
    };
    let (held, total) = (sum(|f| f.bytes), sum(|f| f.total_bytes));
    let files = match plan.files.len() {
        1 => "1 file".to_owned(),
        n => format!("{n} files"),
    };
    let mut text = format!(
        "{} of {} {what} hold {files} ({} of {})",
        t.succeeded,
        t.desired,
        bytes(held),
        bytes(total)
    );
    let rows = [
        (t.active, "active"),
        (t.skipped, "skipped: disk"),
        (t.failed, "failed"),
    ];
    for (count, how) in rows.into_iter().filter(|(count, _)| *count > 0) {
        text.push_str(&format!("; {count} {how}"));
    }
    if let Some(first) = p.failed_nodes.first() {
        text.push_str(&format!(": {}: {}", first.node, first.message));
    }
    let mut end = text.len().min(MAX_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}

/// Bytes for people.
fn bytes(n: i64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut amount = n as f64;
    let mut unit = "B";
    for next in UNITS {
        if amount < 1024.0 {
            break;
        }
        amount /= 1024.0;
        unit = next;
    }
    if unit == "B" {
        format!("{n} B")
    } else {
        format!("{amount:.1} {unit}")
    }
}

#[cfg(test)]
mod tests {
    use dragonfly_crds::preheat::{File, FileProgress, NodeFailure, Targeted, Targets};

    use super::*;

    fn plan() -> Plan {
        Plan {
            run: 1,
            spec_hash: String::new(),
            distribution: "mesh".to_owned(),
            start_time: Time(Timestamp::UNIX_EPOCH),
            activity: Activity::Active,
            end_time: None,
            files: vec![File::default()],
            targets: Targets::default(),
            when: WhenType::Now,
            parallelism: 1,
            retries: 0,
            backoff_milliseconds: 0,
        }
    }

    #[test]
    fn a_line_says_who_has_it_who_was_left_out_and_why_one_failed() {
        let progress = Progress {
            targets: Targeted {
                desired: 6,
                active: 1,
                succeeded: 1,
                failed: 1,
                skipped: 3,
            },
            files: vec![FileProgress {
                bytes: 96 << 20,
                total_bytes: 192 << 20,
                ..FileProgress::default()
            }],
            failed_nodes: vec![NodeFailure {
                node: "node-1".to_owned(),
                message: "the origin answered 404".to_owned(),
                attempts: 4,
            }],
            ..Progress::default()
        };
        assert_eq!(
            message(&progress, &plan()),
            "1 of 6 seeds hold 1 file (96.0 MiB of 192.0 MiB); 1 active; 3 skipped: disk; 1 failed: \
             node-1: the origin answered 404"
        );
        let none = Progress {
            state: State::Failed,
            ..Progress::default()
        };
        assert!(message(&none, &plan()).contains("no seeds"));
    }

    #[test]
    fn a_long_reason_is_cut() {
        let progress = Progress {
            targets: Targeted {
                desired: 1,
                failed: 1,
                ..Targeted::default()
            },
            failed_nodes: vec![NodeFailure {
                message: "é".repeat(1000),
                ..NodeFailure::default()
            }],
            ..Progress::default()
        };
        assert!(message(&progress, &plan()).len() <= MAX_TEXT);
    }
}
