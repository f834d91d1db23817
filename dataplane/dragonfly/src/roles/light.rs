//! Preheats of a directory of manifests, carried out without Kubernetes: the operator's decisions and
//! the scheduler's work in one process.
//!
//! Each object is kept as a file, `STATE/status/preheats/NAMESPACE/NAME.json`, as `kubectl get -o json`
//! would show it: it is what is known of earlier runs after a restart, so that none is begun twice.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dragonfly_crds::Preheat;
use dragonfly_crds::conditions::reason;
use dragonfly_crds::preheat::{Activity, Plan, PreheatStatus, Role, State, Targets};
use dragonfly_kubernetes::preheats::{Job, Warmer, told};
use dragonfly_operator_core::preheat::{Mesh, Seen, decide};
use dragonfly_operator_core::status::{Outcome, Stalled, of_nothing};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{RoleError, write_atomically};

/// How often it is looked what is due, and how far it is.
const STEP: Duration = Duration::from_secs(1);

/// Carries out what the manifests say, for the Distribution that this process runs, until stopped.
pub(crate) async fn carry_out(
    mut wanted: watch::Receiver<Vec<Preheat>>,
    mesh: OwnMesh,
    state: &Path,
    warmer: impl Warmer,
    stop: CancellationToken,
) {
    let mut light = Light {
        dir: state.join("status/preheats"),
        mesh,
        warmer,
        known: BTreeMap::new(),
    };
    wanted.mark_changed();
    while !stop.is_cancelled() {
        if wanted.has_changed().unwrap_or(false) {
            light.see(wanted.borrow_and_update().clone());
        }
        light.step(Timestamp::now());
        tokio::select! {
            () = tokio::time::sleep(STEP) => {}
            () = stop.cancelled() => {}
        }
    }
}

/// The mesh of this process.
pub(crate) struct OwnMesh {
    /// Namespace and name of its Distribution.
    pub(crate) distribution: (String, String),
    pub(crate) seeds: usize,
    pub(crate) peers: usize,
}

impl OwnMesh {
    /// How many of its own nodes a plan is about: those it waits for at the start.
    fn targeted(&self, targets: &Targets) -> usize {
        let all = match targets.role {
            Role::Seeds => self.seeds,
            Role::Peers => self.peers,
        };
        // Own nodes are in no zone.
        let all = if targets.zones.is_empty() { all } else { 0 };
        let unsigned = |n: i32| usize::try_from(n).unwrap_or_default();
        match (targets.count, targets.percent) {
            (Some(count), _) => all.min(unsigned(count)),
            (None, Some(percent)) => (all * unsigned(percent)).div_ceil(100),
            (None, None) => all,
        }
    }
}

/// One object.
struct Known {
    object: Preheat,
    /// The job that was begun, and its run.
    job: Option<(String, i64)>,
    /// What was complained of last.
    complaint: String,
    /// As the file has it.
    written: String,
}

struct Light<W> {
    dir: PathBuf,
    mesh: OwnMesh,
    warmer: W,
    /// By their files.
    known: BTreeMap<PathBuf, Known>,
}

impl<W: Warmer> Light<W> {
    /// The manifests as they are now.
    fn see(&mut self, wanted: Vec<Preheat>) {
        let mut before = std::mem::take(&mut self.known);
        for object in wanted {
            let namespace = object.namespace().unwrap_or_default();
            let path = self
                .dir
                .join(namespace)
                .join(format!("{}.json", object.name_any()));
            let known = before.remove(&path).unwrap_or_else(|| Known {
                object: kept(&path, &object),
                job: None,
                complaint: String::new(),
                written: String::new(),
            });
            let known = Known {
                object: edited(known.object, object),
                ..known
            };
            self.known.insert(path, known);
        }
        for known in before.into_values() {
            if let Some((job, _)) = known.job {
                self.warmer.end(&job, true);
            }
        }
        self.sweep();
    }

    /// What no manifest is about any more goes, as a deleted object does.
    fn sweep(&self) {
        let below = |dir: &Path| -> Vec<PathBuf> {
            let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
            entries.map(|entry| entry.path()).collect()
        };
        let files = below(&self.dir).into_iter().flat_map(|dir| below(&dir));
        for path in files.filter(|path| !self.known.contains_key(path)) {
            if let Err(error) = std::fs::remove_file(&path) {
                tracing::warn!(path = %path.display(), %error, "stays");
            }
        }
    }

    fn step(&mut self, now: Timestamp) {
        let Self {
            mesh,
            warmer,
            known,
            ..
        } = self;
        for (path, known) in known {
            if let Err(error) = known.step(mesh, warmer, now) {
                known.complain(&error);
            }
            if let Err(error) = known.write(path) {
                known.complain(&error.to_string());
            }
        }
    }
}

impl Known {
    /// Decides what is due, and does it.
    fn step(&mut self, mesh: &OwnMesh, warmer: &impl Warmer, now: Timestamp) -> Result<(), String> {
        let before = self.object.status.take().unwrap_or_default();
        let mut status = decided(&self.object, &before, &mesh.distribution, now);
        let changed = before.plan != status.plan;
        if let Some(why) = news(&before, &status) {
            tracing::info!(preheat = self.object.name_any(), "{why}");
        }
        let done = self.advance(&mut status, changed, mesh, warmer, now);
        self.object.status = Some(status);
        done
    }

    /// Begins what is not begun, and asks how far it is.
    fn advance(
        &mut self,
        status: &mut PreheatStatus,
        changed: bool,
        mesh: &OwnMesh,
        warmer: &impl Warmer,
        now: Timestamp,
    ) -> Result<(), String> {
        let plan = status.plan.as_ref();
        let is_new = |run: i64| plan.is_none_or(|plan| plan.run != run);
        let suspended = plan.is_some_and(|plan| plan.activity == Activity::Suspended);
        if let Some((job, _)) = self.job.take_if(|(_, run)| suspended || is_new(*run)) {
            warmer.end(&job, true);
        }
        let Some(plan) = plan.filter(|_| !suspended) else {
            return Ok(());
        };
        let of_run = status.progress.as_ref().filter(|p| p.run == plan.run);
        if of_run.is_some_and(|p| p.state != State::Running) {
            if let Some((job, _)) = self.job.take() {
                warmer.end(&job, false);
            }
            return Ok(());
        }
        let job = self.job.as_ref();
        match job.and_then(|(job, _)| warmer.progress(job, plan)) {
            Some(progress) if !changed => status.progress = Some(told(progress, plan, now)),
            _ => {
                let before = of_run.map(|p| usize::try_from(p.targets.desired).unwrap_or(0));
                let expect = before.unwrap_or_else(|| mesh.targeted(&plan.targets));
                self.job = Some(begin(&self.object, plan, expect, warmer, now)?);
            }
        }
        Ok(())
    }

    fn complain(&mut self, text: &str) {
        if text != self.complaint {
            tracing::warn!(preheat = self.object.name_any(), "{text}; trying on");
            text.clone_into(&mut self.complaint);
        }
    }

    fn write(&mut self, path: &Path) -> Result<(), RoleError> {
        let wrong = |e: &dyn std::fmt::Display| RoleError::at(path.display(), e);
        let text = serde_json::to_string_pretty(&self.object).map_err(|e| wrong(&e))?;
        if text == self.written {
            return Ok(());
        }
        let dir = path.parent().unwrap_or(path);
        std::fs::create_dir_all(dir).map_err(|e| wrong(&e))?;
        write_atomically(path, text.as_bytes())?;
        self.written = text;
        Ok(())
    }
}

fn begin(
    object: &Preheat,
    plan: &Plan,
    expect: usize,
    warmer: &impl Warmer,
    now: Timestamp,
) -> Result<(String, i64), String> {
    let uid = object.uid().unwrap_or_default();
    let name = format!("{uid}/{}", plan.run);
    let ends_in = plan.end_time.as_ref().map(|end| {
        let left = end.0.duration_since(now);
        Duration::try_from(left).unwrap_or_default()
    });
    warmer.begin(&Job {
        name: &name,
        uid: &uid,
        plan,
        nodes: None,
        ends_in,
        expect,
    })?;
    Ok((name, plan.run))
}

/// What an earlier process knew of an object, or nothing.
fn kept(path: &Path, object: &Preheat) -> Preheat {
    let fresh = || {
        let mut object = object.clone();
        object.metadata.creation_timestamp = Some(Time(Timestamp::now()));
        object.metadata.generation = Some(1);
        object.status = None;
        object
    };
    let Ok(bytes) = std::fs::read(path) else {
        return fresh();
    };
    match serde_json::from_slice::<Preheat>(&bytes) {
        Ok(kept) => kept,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "earlier runs are not known");
            fresh()
        }
    }
}

/// An object with the spec of its manifest, another generation of it where that changed.
fn edited(mut known: Preheat, manifest: Preheat) -> Preheat {
    if known.spec != manifest.spec {
        known.metadata.generation = known.metadata.generation.map(|n| n.saturating_add(1));
        known.spec = manifest.spec;
    }
    known
}

/// The operator's decision, but for what needs Kubernetes.
fn decided(
    object: &Preheat,
    status: &PreheatStatus,
    (namespace, name): &(String, String),
    now: Timestamp,
) -> PreheatStatus {
    let generation = object.metadata.generation;
    if !object.spec.targets.node_selector.is_empty() {
        let text = "spec.targets.nodeSelector: labels of nodes are Kubernetes'; without it select by \
                    zones, count or percent, or leave it out for all peers";
        let outcome = Outcome::Stalled(Stalled::new(reason::INVALID_SPEC, text.to_owned()));
        return PreheatStatus {
            observed_generation: generation,
            conditions: of_nothing(&status.conditions, generation, &outcome, &Time(now)),
            plan: None,
            ..status.clone()
        };
    }
    let runs_here = object.namespace().as_ref() == Some(namespace)
        && object.spec.distribution_ref.name == *name;
    let created = object.metadata.creation_timestamp.as_ref();
    let seen = Seen {
        spec: &object.spec,
        status,
        generation,
        created: created.map_or(now, |time| time.0),
        // A manifest is deleted by who wrote it.
        of_plugin: false,
        mesh: if runs_here {
            &Mesh::There
        } else {
            &Mesh::Missing
        },
    };
    decide(seen, now).status
}

/// What is worth a line of log: that it is another, or for another reason.
fn news(before: &PreheatStatus, after: &PreheatStatus) -> Option<String> {
    let ready = |status: &PreheatStatus| {
        let all = status.conditions.iter();
        all.clone()
            .find(|c| c.type_ == dragonfly_crds::conditions::READY)
            .cloned()
    };
    let (was, is) = (ready(before), ready(after)?);
    let same = was.is_some_and(|was| was.reason == is.reason);
    (!same).then(|| format!("{}: {}", is.reason, is.message))
}
