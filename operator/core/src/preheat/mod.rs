//! `Preheat`: what is to run when, and what is said of it.
//!
//! [`decide`] is a function of the object, the time and what is known of its mesh; what it decides is one
//! write of the status. An operator that dies before that write decides the same when it is back, one
//! that dies after it finds its decision. Runs are numbered, so that none begins twice.

mod cron;
mod words;

use std::time::Duration;

use dragonfly_crds::preheat::{
    Activity, ConcurrencyPolicy, MAX_RUNS, Plan, PreheatSpec, PreheatStatus, Progress, Run, State,
    WhenType, reason,
};
use dragonfly_crds::{conditions, duration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::tz::TimeZone;
use k8s_openapi::jiff::{SignedDuration, Timestamp};

pub use cron::Schedule;

use crate::status::{Outcome, Stalled};

/// Schedulers say how a run ended; this long after its end the operator does not wait for them.
const SILENT: SignedDuration = SignedDuration::from_secs(60);
/// Longest wait before a look at the object, so that no arithmetic of times has to be trusted.
const RESYNC: Duration = Duration::from_secs(600);

/// What is known of the mesh that the object refers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mesh {
    /// There is no such Distribution.
    Missing,
    /// Its schedulers are not this cluster's.
    External,
    /// It has no policy yet.
    Waiting(String),
    /// Schedulers can carry plans out.
    There,
}

/// An object as it was read.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// What is wanted.
    pub spec: &'a PreheatSpec,
    /// What is known of it.
    pub status: &'a PreheatStatus,
    /// Generation of the spec.
    pub generation: Option<i64>,
    /// When the object was made.
    pub created: Timestamp,
    /// The plugin made it: `ttl` is obeyed.
    pub of_plugin: bool,
    /// Its mesh.
    pub mesh: &'a Mesh,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// The operator's part of the status; `progress` is as it was.
    pub status: PreheatStatus,
    /// When to look again, though nothing changes.
    pub again: Duration,
    /// Its time is over: it goes away.
    pub delete: bool,
}

/// The spec, read.
struct Parsed {
    deadline: Option<SignedDuration>,
    ttl: Option<SignedDuration>,
    backoff_milliseconds: i64,
    cron: Option<(Schedule, Option<SignedDuration>)>,
}

fn length(text: &str, field: &str) -> Result<i64, String> {
    let ms = duration::parse_ms(text).map_err(|error| format!("{field}: {text}: {error}"))?;
    i64::try_from(ms).map_err(|_| format!("{field}: {text}: too long"))
}

impl Parsed {
    fn of(spec: &PreheatSpec) -> Result<Self, String> {
        let optional = |text: Option<&String>, field| {
            let read = text.map(|text| length(text, field)).transpose()?;
            Ok::<_, String>(read.map(SignedDuration::from_millis))
        };
        let cron = spec.when.cron.as_ref();
        let cron = cron.filter(|_| spec.when.type_ == WhenType::Cron);
        let cron = cron.map(|cron| {
            let zone = TimeZone::get(&cron.time_zone).map_err(|_| {
                format!(
                    "spec.when.cron.timeZone: {}: no such time zone (names are like Europe/Berlin)",
                    cron.time_zone
                )
            })?;
            let schedule = Schedule::parse(&cron.expression, zone)
                .map_err(|error| format!("spec.when.cron.expression: {error}"))?;
            let window = optional(cron.window.as_ref(), "spec.when.cron.window")?;
            Ok::<_, String>((schedule, window))
        });
        Ok(Self {
            deadline: optional(spec.deadline.as_ref(), "spec.deadline")?,
            ttl: optional(spec.ttl.as_ref(), "spec.ttl")?,
            backoff_milliseconds: length(&spec.retry.backoff, "spec.retry.backoff")?,
            cron: cron.transpose()?,
        })
    }
}

/// Changes with what makes another run of it.
fn spec_hash(spec: &PreheatSpec) -> String {
    let said = serde_json::json!([spec.distribution_ref, spec.files, spec.targets, spec.when]);
    blake3::hash(said.to_string().as_bytes()).to_hex()[..32].to_owned()
}

fn before(at: Timestamp, more: SignedDuration) -> Timestamp {
    at.checked_add(more).unwrap_or(Timestamp::MAX)
}

/// Decides.
pub fn decide(seen: Seen<'_>, now: Timestamp) -> Decision {
    let mut status = seen.status.clone();
    status.observed_generation = seen.generation;
    let (outcome, again, delete) = match steps(seen, now, &mut status) {
        Ok(found) => found,
        Err(stalled) => (Said::Outcome(Outcome::Stalled(stalled)), RESYNC, false),
    };
    let rows = outcome.rows();
    let second = Timestamp::from_second(now.as_second()).unwrap_or(now);
    status.conditions = crate::status::conditions(
        &ours(&seen.status.conditions),
        seen.generation,
        rows,
        &Time(second),
    );
    Decision {
        status,
        again: again.min(RESYNC),
        delete,
    }
}

fn ours(all: &[Condition]) -> Vec<Condition> {
    let known = [
        conditions::READY,
        conditions::RECONCILING,
        conditions::STALLED,
    ];
    let of = |type_: &&str| all.iter().find(|c| c.type_ == **type_).cloned();
    known.iter().filter_map(of).collect()
}

use words::Said;

fn steps(
    seen: Seen<'_>,
    now: Timestamp,
    status: &mut PreheatStatus,
) -> Result<(Said, Duration, bool), Stalled> {
    let spec = seen.spec;
    let parsed =
        Parsed::of(spec).map_err(|error| Stalled::new(conditions::reason::INVALID_SPEC, error))?;
    let never = || {
        let text = "spec.when.cron.expression: there is no such day".to_owned();
        Stalled::new(conditions::reason::INVALID_SPEC, text)
    };
    if let Some((schedule, _)) = &parsed.cron {
        schedule.next(now).ok_or_else(never)?;
    }
    let name = &spec.distribution_ref.name;
    match seen.mesh {
        Mesh::Missing => {
            status.plan = None;
            let text = format!("there is no Distribution {name} in this namespace");
            return Err(Stalled::new(reason::DISTRIBUTION_MISSING, text));
        }
        Mesh::External => {
            status.plan = None;
            let text = format!(
                "the schedulers of Distribution {name} run elsewhere: preheat their mesh there"
            );
            return Err(Stalled::new(reason::EXTERNAL_SCHEDULERS, text));
        }
        Mesh::Waiting(_) | Mesh::There => {}
    }
    let mut over = ended(status, now);
    remember(status, over.as_ref());
    status.next_run_time = None;
    if spec.activity == Activity::Suspended {
        if let Some(plan) = status.plan.as_mut().filter(|_| over.is_none()) {
            plan.activity = Activity::Suspended;
        }
        return Ok((Said::suspended(status, over.as_ref()), RESYNC, false));
    }
    if let Some(plan) = status.plan.as_mut()
        && plan.activity == Activity::Suspended
    {
        plan.activity = Activity::Active;
        // The time that it was to have begins anew.
        plan.end_time = end(&parsed, due_of(seen, status.last_run_time.as_ref()), now).map(Time);
    }
    // What makes no other run holds for the one that is under way.
    if let Some(plan) = status.plan.as_mut().filter(|_| over.is_none()) {
        Pace::of(spec, &parsed).set(plan);
    }
    let due = due(seen, &parsed, status, over.is_some(), now);
    if let Some(at) = due.begin {
        if let Mesh::Waiting(why) = seen.mesh {
            return Ok((Said::waits(name, why), Duration::from_secs(30), false));
        }
        status.last_run_time = Some(Time(at));
        status.runs += 1;
        status.plan = Some(plan(spec, &parsed, status.runs, at, now));
        over = None;
    }
    status.next_run_time = due.next.map(Time);
    let plan = status.plan.as_ref();
    let ends = over.as_ref().map(|run| run.end_time.0);
    let once = matches!(spec.when.type_, WhenType::Now | WhenType::At);
    let dies = ends
        .filter(|_| once && seen.of_plugin)
        .and_then(|at| Some(before(at, parsed.ttl?)));
    let gives_up = plan.filter(|_| over.is_none()).and_then(|plan| {
        let end = plan.end_time.as_ref()?;
        Some(before(end.0, SILENT))
    });
    let unbegun = plan.map(|plan| before(plan.start_time.0, SILENT));
    let times = [due.next, dies, gives_up, unbegun];
    let later = times.into_iter().flatten().filter(|at| *at > now).min();
    let again = later.map_or(RESYNC, |at| {
        let wait = at.duration_since(now);
        Duration::try_from(wait).unwrap_or(RESYNC) + Duration::from_millis(20)
    });
    let said = Said::of_run(status, over.as_ref(), spec.when.type_, now);
    Ok((said, again, dies.is_some_and(|at| at <= now)))
}

/// How the run of the plan ended, if it did.
fn ended(status: &PreheatStatus, now: Timestamp) -> Option<Run> {
    let plan = status.plan.as_ref()?;
    let known = status.history.first().filter(|run| run.run == plan.run);
    if let Some(run) = known {
        return Some(run.clone());
    }
    let progress = status.progress.as_ref().filter(|p| p.run == plan.run);
    let run = |state, message, end_time| Run {
        run: plan.run,
        state,
        message,
        start_time: plan.start_time.clone(),
        end_time,
    };
    match progress {
        Some(Progress {
            state: State::Running,
            ..
        })
        | None => {
            let end = plan.end_time.as_ref()?.0;
            if plan.activity == Activity::Suspended || now < before(end, SILENT) {
                return None;
            }
            let message = progress.map(|p| p.message.clone()).unwrap_or_default();
            Some(run(State::DeadlineExceeded, message, Time(end)))
        }
        Some(p) => {
            let end = p.end_time.clone().unwrap_or(Time(now));
            Some(run(p.state, p.message.clone(), end))
        }
    }
}

/// Puts a run that ended into the history, once.
fn remember(status: &mut PreheatStatus, over: Option<&Run>) {
    let Some(run) = over else { return };
    if status
        .history
        .first()
        .is_none_or(|last| last.run != run.run)
    {
        status.history.insert(0, run.clone());
        status.history.truncate(MAX_RUNS);
    }
}

/// When the last run was due.
fn due_of(seen: Seen<'_>, last: Option<&Time>) -> Timestamp {
    last.map_or(seen.created, |last| last.0)
}

/// Whether the spec became another one since it was looked at, while no run was due: times that only this
/// one has had until now were not missed.
fn is_another(seen: Seen<'_>, now: Timestamp) -> bool {
    let was = seen.status;
    let looked_at = was.observed_generation.is_some() && was.observed_generation != seen.generation;
    let hash = spec_hash(seen.spec);
    let another = was.plan.as_ref().is_none_or(|plan| plan.spec_hash != hash);
    let was_due = was.next_run_time.as_ref().is_some_and(|at| at.0 <= now);
    // Of these nothing is said of when the next run is due.
    let held_up = [reason::SUSPENDED, conditions::reason::PENDING];
    let ready = was.conditions.iter().find(|c| c.type_ == conditions::READY);
    let was_held_up = ready.is_some_and(|c| held_up.contains(&c.reason.as_str()));
    looked_at && another && !was_due && !was_held_up
}

/// What is due.
struct Due {
    /// A run begins that was due then.
    begin: Option<Timestamp>,
    /// The next one is due then.
    next: Option<Timestamp>,
}

fn due(
    seen: Seen<'_>,
    parsed: &Parsed,
    status: &mut PreheatStatus,
    over: bool,
    now: Timestamp,
) -> Due {
    let spec = seen.spec;
    if let Some((schedule, window)) = &parsed.cron {
        let from = due_of(seen, status.last_run_time.as_ref());
        let missed = schedule.last(from, now);
        let next = schedule.next(now);
        let Some(at) = missed else {
            return Due { begin: None, next };
        };
        let late = window.is_some_and(|window| now > before(at, window));
        let late = late || is_another(seen, now);
        let policy = spec.when.cron.as_ref().map(|cron| cron.concurrency_policy);
        let runs = status.plan.is_some() && !over;
        let forbidden = runs && policy != Some(ConcurrencyPolicy::Replace);
        if late || forbidden {
            // Left out for good: it is not made up for later.
            status.last_run_time = Some(Time(at));
            return Due { begin: None, next };
        }
        return Due {
            begin: Some(at),
            next,
        };
    }
    let at = match (spec.when.type_, &spec.when.at) {
        (WhenType::At, Some(at)) => at.0,
        _ => now,
    };
    let hash = spec_hash(spec);
    let done = status.plan.as_ref();
    if done.is_some_and(|plan| plan.spec_hash == hash) {
        return Due {
            begin: None,
            next: None,
        };
    }
    Due {
        begin: (at <= now).then_some(at),
        next: (at > now).then_some(at),
    }
}

/// When a run that was due and begins now has to end.
fn end(parsed: &Parsed, due: Timestamp, now: Timestamp) -> Option<Timestamp> {
    let deadline = parsed.deadline.map(|length| before(now, length));
    let window = parsed.cron.as_ref().and_then(|(_, window)| *window);
    let window = window.map(|window| before(due, window));
    deadline.into_iter().chain(window).min()
}

fn plan(spec: &PreheatSpec, parsed: &Parsed, run: i64, due: Timestamp, now: Timestamp) -> Plan {
    let pace = Pace::of(spec, parsed);
    Plan {
        run,
        spec_hash: spec_hash(spec),
        distribution: spec.distribution_ref.name.clone(),
        start_time: Time(Timestamp::from_second(now.as_second()).unwrap_or(now)),
        activity: Activity::Active,
        end_time: end(parsed, due, now).map(Time),
        files: spec.files.clone(),
        targets: spec.targets.clone(),
        when: spec.when.type_,
        parallelism: pace.parallelism,
        retries: pace.retries,
        backoff_milliseconds: pace.backoff_milliseconds,
    }
}

/// How a run goes about it, which may change under way.
struct Pace {
    parallelism: i32,
    retries: i32,
    backoff_milliseconds: i64,
}

impl Pace {
    const fn of(spec: &PreheatSpec, parsed: &Parsed) -> Self {
        Self {
            parallelism: spec.parallelism,
            retries: spec.retry.limit,
            backoff_milliseconds: parsed.backoff_milliseconds,
        }
    }

    const fn set(self, plan: &mut Plan) {
        plan.parallelism = self.parallelism;
        plan.retries = self.retries;
        plan.backoff_milliseconds = self.backoff_milliseconds;
    }
}

#[cfg(test)]
mod tests;
