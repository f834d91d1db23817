//! Reports from this replica to the status of the mesh's Distribution: by its own hand while it holds
//! the Lease, by the holder's otherwise.
//!
//! One loop, a step a second. It owns every request; what it decides by is in [`crate::election`] and
//! [`crate::reports`]. Its end is an error of the process, for a scheduler that serves and reports
//! nothing looks healthy.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dragonfly_crds::reports::MANAGER;
use dragonfly_crds::{Distribution, Policy};
use dragonfly_proto::rpc::Sketch;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams};
use kube::runtime::events::{Event, EventType, Recorder, Reporter as Publisher};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::election::{Election, REPORTS, Step};
use crate::lease::{HeldLease, record};
use crate::reports::{InForce, Reports, Status};
use crate::{Error, Target, asked};

const STEP: Duration = Duration::from_secs(1);
/// How often a replica tells what it counted.
const SKETCH: Duration = Duration::from_secs(5);
/// At most one patch in so long.
const WRITE: Duration = Duration::from_secs(10);
/// After another was faster with the Lease.
const AGAIN: Duration = Duration::from_secs(2);
/// What there is time for when the process is told to stop.
const FAREWELL: Duration = Duration::from_secs(5);

/// This replica, as the reporter sees it.
pub trait Replica: Send + Sync {
    /// What was counted since the last call, and what is true now.
    fn sketch(&self) -> Sketch;
    /// Tells another replica.
    ///
    /// # Errors
    /// It did not take it: with what to log.
    fn tell(
        &self,
        address: &str,
        sketch: Sketch,
    ) -> impl Future<Output = Result<(), String>> + Send;
}

/// Whose reports these are.
#[derive(Debug, Clone)]
pub struct Config {
    /// The mesh's Distribution.
    pub target: Target,
    /// Its UID: an object of the same name that is another one is never written to.
    pub uid: String,
    /// This replica's name.
    pub name: String,
    /// Another number for each process.
    pub boot: u64,
    /// The other replicas: names and `host:port`.
    pub replicas: Vec<(String, String)>,
    /// What events say they come from.
    pub pod: Option<String>,
}

/// For metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counted {
    /// This replica writes the mesh's status.
    pub holder: bool,
    /// Patches of the status.
    pub patches: u64,
    /// Requests to the API server that failed, watches apart.
    pub failed_requests: u64,
    /// Policies that could not be run.
    pub refused_policies: u64,
}

/// Clones share it.
#[derive(Clone)]
pub struct Reporter {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Reporter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Reporter({:?})", self.counted())
    }
}

struct Shared {
    started: Instant,
    known: Mutex<Known>,
    holder: AtomicBool,
    patches: AtomicU64,
    failed_requests: AtomicU64,
    refused_policies: AtomicU64,
}

#[derive(Default)]
struct Known {
    /// While this replica is the one that writes.
    reports: Option<Reports>,
    /// Who is, for those who ask the wrong one.
    writer: Option<String>,
    in_force: Option<InForce>,
    /// A policy that could not be run and that status has not told of.
    unreadable: Option<(u64, String)>,
}

impl Default for Reporter {
    fn default() -> Self {
        let shared = Shared {
            started: Instant::now(),
            known: Mutex::default(),
            holder: AtomicBool::new(false),
            patches: AtomicU64::new(0),
            failed_requests: AtomicU64::new(0),
            refused_policies: AtomicU64::new(0),
        };
        Self {
            shared: Arc::new(shared),
        }
    }
}

impl Shared {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, sketch: &Sketch) -> Result<(), String> {
        let now = self.started.elapsed();
        let mut known = self.known();
        match &mut known.reports {
            Some(reports) => {
                reports.take(now, Timestamp::now(), sketch);
                Ok(())
            }
            None => Err(match &known.writer {
                Some(writer) => format!("{writer} writes the mesh's status"),
                None => "nobody writes the mesh's status yet".to_owned(),
            }),
        }
    }
}

impl Reporter {
    /// Takes what other replicas counted, while this one writes.
    #[must_use]
    pub fn sink(&self) -> Arc<dyn Fn(Sketch) -> Result<(), String> + Send + Sync> {
        let shared = self.shared.clone();
        Arc::new(move |sketch| shared.take(&sketch))
    }

    /// Nodes are sent this policy from now on.
    pub fn in_force(&self, policy: &Policy) {
        let mut known = self.shared.known();
        known.in_force = Some(policy.into());
        known.unreadable = None;
    }

    /// A policy came that cannot be run.
    pub fn refused(&self, revision: u64, why: &str) {
        self.shared.refused_policies.fetch_add(1, Ordering::Relaxed);
        self.shared.known().unreadable = Some((revision, why.to_owned()));
    }

    /// For metrics.
    #[must_use]
    pub fn counted(&self) -> Counted {
        let n = |a: &AtomicU64| a.load(Ordering::Relaxed);
        Counted {
            holder: self.shared.holder.load(Ordering::Relaxed),
            patches: n(&self.shared.patches),
            failed_requests: n(&self.shared.failed_requests),
            refused_policies: n(&self.shared.refused_policies),
        }
    }

    /// Reports until stopped; then tells the rest, and gives the Lease back.
    pub async fn run(
        &self,
        client: Client,
        config: Config,
        replica: impl Replica,
        stop: CancellationToken,
    ) {
        let mut round = Round::new(self.shared.clone(), client, config, replica);
        while !stop.is_cancelled() {
            round.step().await;
            tokio::select! {
                () = tokio::time::sleep(STEP) => {}
                () = stop.cancelled() => {}
            }
        }
        if tokio::time::timeout(FAREWELL, round.farewell())
            .await
            .is_err()
        {
            tracing::warn!("stopped before the last reports were written");
        }
    }
}

struct Round<R> {
    shared: Arc<Shared>,
    config: Config,
    replica: R,
    election: Election,
    lease_api: HeldLease,
    /// As it was last written, while it is ours.
    lease: Option<Lease>,
    api: Api<DynamicObject>,
    events: Recorder,
    reference: ObjectReference,
    number: u64,
    /// A sketch that nobody took yet; sent as it is until somebody does.
    unsent: Option<Sketch>,
    written: Option<Status>,
    lease_due: Duration,
    sketch_due: Duration,
    write_due: Duration,
    complaint: String,
}

impl<R: Replica> Round<R> {
    fn new(shared: Arc<Shared>, client: Client, config: Config, replica: R) -> Self {
        let me = format!("{}_{:016x}", config.name, config.boot);
        let target = &config.target;
        let kind = ApiResource::erase::<Distribution>(&());
        let publisher = Publisher {
            controller: MANAGER.to_owned(),
            instance: config.pod.clone().or_else(|| Some(config.name.clone())),
        };
        let reference = ObjectReference {
            api_version: Some(dragonfly_crds::API_VERSION.to_owned()),
            kind: Some("Distribution".to_owned()),
            namespace: Some(target.namespace.clone()),
            name: Some(target.name.clone()),
            uid: Some(config.uid.clone()),
            ..ObjectReference::default()
        };
        Self {
            lease_api: HeldLease::of_reports(client.clone(), target, &config.uid, &me, REPORTS),
            election: Election::new(me, REPORTS),
            lease: None,
            api: Api::namespaced_with(client.clone(), &target.namespace, &kind),
            events: Recorder::new(client, publisher),
            reference,
            number: 0,
            unsent: None,
            written: None,
            lease_due: Duration::ZERO,
            sketch_due: Duration::ZERO,
            write_due: Duration::ZERO,
            complaint: String::new(),
            shared,
            config,
            replica,
        }
    }

    fn now(&self) -> Duration {
        self.shared.started.elapsed()
    }

    async fn step(&mut self) {
        let outcome = self.try_step().await;
        match outcome {
            Ok(()) => {}
            Err(error) => {
                self.shared.failed_requests.fetch_add(1, Ordering::Relaxed);
                let error = error.to_string();
                if error == self.complaint {
                    tracing::debug!(error, "reports wait still");
                } else {
                    tracing::warn!(error, "reports wait; trying on");
                    self.complaint = error;
                }
            }
        }
    }

    async fn try_step(&mut self) -> Result<(), Error> {
        if self.now() >= self.lease_due {
            self.lease_due = self.now() + REPORTS.every;
            self.elect().await?;
        }
        self.begin_or_end().await?;
        if self.now() >= self.sketch_due {
            self.sketch_due = self.now() + SKETCH;
            self.tell().await;
        }
        if self.now() >= self.write_due {
            self.write().await?;
        }
        self.publish().await
    }

    async fn elect(&mut self) -> Result<(), Error> {
        let now = self.now();
        let read = match self.lease.take() {
            Some(ours) => Some(ours),
            None => self.lease_api.read().await?,
        };
        let step = self
            .election
            .decide(now, read.as_ref().map(record).as_ref());
        if step != Step::Wait {
            match self.lease_api.write(step, read).await? {
                Some(lease) => {
                    self.election.won(now, record(&lease));
                    self.lease = Some(lease);
                }
                None => self.lease_due = now + AGAIN,
            }
        }
        self.shared.known().writer = self.writer().map(ToOwned::to_owned);
        Ok(())
    }

    /// The name of the replica that writes.
    fn writer(&self) -> Option<&str> {
        let holder = self.election.holder()?;
        Some(holder.rsplit_once('_').map_or(holder, |(name, _)| name))
    }

    /// What becomes of this replica's reports after an election.
    async fn begin_or_end(&mut self) -> Result<(), Error> {
        let holds = self.election.holds(self.now());
        self.shared.holder.store(holds, Ordering::Relaxed);
        if !holds {
            if self.shared.known().reports.take().is_some() {
                tracing::warn!("another scheduler writes the mesh's status from now on");
            }
            return Ok(());
        }
        if self.shared.known().reports.is_some() {
            return Ok(());
        }
        let name = &self.config.target.name;
        let object = asked(&format!("get distribution {name}"), self.api.get(name)).await?;
        let found = Status::left_in(object.data.get("status"));
        let reports = Reports::new(self.now(), found.as_ref());
        self.written = found;
        self.shared.known().reports = Some(reports);
        self.sketch_due = Duration::ZERO;
        tracing::info!("this scheduler writes the mesh's status from now on");
        Ok(())
    }

    /// Tells whoever writes what was counted here.
    async fn tell(&mut self) {
        let sketch = self.unsent.take().unwrap_or_else(|| {
            self.number += 1;
            Sketch {
                boot: self.config.boot,
                number: self.number,
                replica: self.config.name.clone(),
                ..self.replica.sketch()
            }
        });
        let told = if self.shared.holder.load(Ordering::Relaxed) {
            self.shared.take(&sketch)
        } else {
            match self.address() {
                Some(address) => self.replica.tell(&address, sketch.clone()).await,
                None => Err("nobody writes the mesh's status yet".to_owned()),
            }
        };
        if let Err(error) = told {
            tracing::debug!(error, "what was counted is told later");
            self.unsent = Some(sketch);
        }
    }

    fn address(&self) -> Option<String> {
        let writer = self.writer()?;
        let mut others = self.config.replicas.iter();
        others
            .find(|(name, _)| name == writer)
            .map(|(_, address)| address.clone())
    }

    /// Writes what status is to say, when that differs from what it says.
    async fn write(&mut self) -> Result<(), Error> {
        let now = self.now();
        let status = {
            let mut known = self.shared.known();
            let Known {
                reports,
                in_force,
                unreadable,
                ..
            } = &mut *known;
            let Some(reports) = reports else {
                return Ok(());
            };
            let clock = Timestamp::now();
            if let Some((revision, why)) = unreadable.take() {
                reports.unreadable(now, clock, revision, &why);
            }
            reports.status(now, clock, in_force.as_ref())
        };
        if self.written.as_ref() == Some(&status) {
            return Ok(());
        }
        // Also when it fails: an API server in trouble is not helped by more.
        self.write_due = now + WRITE;
        let target = &self.config.target;
        let patch = json!({
            "apiVersion": dragonfly_crds::API_VERSION,
            "kind": "Distribution",
            "metadata": {"name": target.name, "uid": self.config.uid},
            "status": status,
        });
        let params = PatchParams::apply(MANAGER).force();
        let patch = Patch::Apply(&patch);
        let patched = self.api.patch_status(&target.name, &params, &patch);
        asked(
            &format!("patch the status of distribution {}", target.name),
            patched,
        )
        .await?;
        self.shared.patches.fetch_add(1, Ordering::Relaxed);
        self.written = Some(status);
        self.complaint.clear();
        Ok(())
    }

    async fn publish(&mut self) -> Result<(), Error> {
        let notices = match &mut self.shared.known().reports {
            Some(reports) => reports.notices(),
            None => return Ok(()),
        };
        for notice in notices {
            tracing::warn!(reason = notice.reason, "{}", notice.note);
            let event = Event {
                type_: EventType::Warning,
                reason: notice.reason.to_owned(),
                note: Some(notice.note),
                action: notice.action,
                secondary: None,
            };
            let published = self.events.publish(&event, &self.reference);
            asked("create an event", published).await?;
        }
        Ok(())
    }

    async fn farewell(&mut self) {
        // What was not taken before, and then what came since.
        for _ in 0..2 {
            self.tell().await;
        }
        if let Err(error) = self.write().await {
            tracing::warn!(%error, "the last reports were not written");
        }
        if self.election.holds(self.now())
            && let Some(lease) = self.lease.take()
        {
            self.election.gave_back();
            if let Err(error) = self.lease_api.give_back(lease).await {
                tracing::debug!(%error, "the lease runs out by itself");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_that_does_not_write_says_who_does() {
        let reporter = Reporter::default();
        let said = (reporter.sink())(Sketch::default()).unwrap_err();
        assert!(said.contains("nobody"), "{said}");
        reporter.shared.known().writer = Some("scheduler-1".to_owned());
        let said = (reporter.sink())(Sketch::default()).unwrap_err();
        assert!(said.contains("scheduler-1"), "{said}");
        reporter.shared.known().reports = Some(Reports::new(Duration::ZERO, None));
        (reporter.sink())(Sketch::default()).unwrap();
    }
}
