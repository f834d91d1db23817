use dragonfly_crds::distribution::LocalRef;
use dragonfly_crds::preheat::{Cron, File, Targeted, When};

use super::*;

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

const NOON: &str = "2026-11-26T12:00:00Z";

fn spec() -> PreheatSpec {
    PreheatSpec {
        distribution_ref: LocalRef {
            name: "mesh".to_owned(),
        },
        files: vec![File {
            url: "http://origin/file".to_owned(),
            digest: None,
        }],
        ..PreheatSpec::default()
    }
}

fn cron(expression: &str, policy: ConcurrencyPolicy, window: Option<&str>) -> PreheatSpec {
    let cron = Cron {
        expression: expression.to_owned(),
        time_zone: "UTC".to_owned(),
        concurrency_policy: policy,
        window: window.map(ToOwned::to_owned),
    };
    PreheatSpec {
        when: When {
            type_: WhenType::Cron,
            at: None,
            cron: Some(cron),
        },
        ..spec()
    }
}

/// An object over its life: what is decided is what it says next.
struct Life {
    spec: PreheatSpec,
    status: PreheatStatus,
    mesh: Mesh,
    of_plugin: bool,
    generation: i64,
}

impl Life {
    fn new(spec: PreheatSpec) -> Self {
        Self {
            spec,
            status: PreheatStatus::default(),
            mesh: Mesh::There,
            of_plugin: false,
            generation: 1,
        }
    }

    /// Somebody applies another spec.
    fn apply(&mut self, spec: PreheatSpec) {
        self.spec = spec;
        self.generation += 1;
    }

    fn look(&mut self, now: &str) -> Decision {
        let seen = Seen {
            spec: &self.spec,
            status: &self.status,
            generation: Some(self.generation),
            created: at(NOON),
            of_plugin: self.of_plugin,
            mesh: &self.mesh,
        };
        let decision = decide(seen, at(now));
        // Whoever dies before it writes decides the same when it is back.
        assert_eq!(decision, decide(seen, at(now)));
        self.status = decision.status.clone();
        decision
    }

    fn run(&self) -> i64 {
        self.status.plan.as_ref().map_or(0, |plan| plan.run)
    }

    fn said(&self) -> (String, String) {
        let ready = &self.status.conditions[0];
        (ready.status.clone(), ready.reason.clone())
    }

    fn progress(&mut self, state: State, targets: Targeted, end: &str) {
        self.status.progress = Some(Progress {
            run: self.run(),
            state,
            message: "so and so".to_owned(),
            targets,
            end_time: (state != State::Running).then(|| Time(at(end))),
            ..Progress::default()
        });
    }
}

fn yes(reason: &str) -> (String, String) {
    ("True".to_owned(), reason.to_owned())
}

fn no(reason: &str) -> (String, String) {
    ("False".to_owned(), reason.to_owned())
}

#[test]
fn what_is_wanted_now_runs_once_and_again_when_it_is_something_else() {
    let mut life = Life::new(spec());
    life.look("2026-11-26T12:00:01Z");
    assert_eq!((life.run(), life.said()), (1, no("Progressing")));
    life.progress(
        State::Succeeded,
        Targeted::default(),
        "2026-11-26T12:00:05Z",
    );
    for second in 6..9 {
        life.look(&format!("2026-11-26T12:00:0{second}Z"));
        assert_eq!((life.run(), life.said()), (1, yes("Succeeded")));
        assert_eq!(life.status.history.len(), 1);
    }
    life.spec.files.push(File {
        url: "http://origin/another".to_owned(),
        digest: None,
    });
    life.look("2026-11-26T12:01:00Z");
    assert_eq!((life.run(), life.said()), (2, no("Progressing")));
    assert_eq!(life.status.plan.as_ref().unwrap().files.len(), 2);
}

#[test]
fn a_run_that_failed_says_whose_fault_it_is() {
    let targets = |desired, failed, skipped| Targeted {
        desired,
        failed,
        skipped,
        ..Targeted::default()
    };
    for (targets, reason) in [
        (targets(0, 0, 0), "NoNodes"),
        (targets(3, 0, 3), "NoRoom"),
        (targets(3, 1, 2), "NodesFailed"),
    ] {
        let mut life = Life::new(spec());
        life.look(NOON);
        life.progress(State::Failed, targets, NOON);
        life.look(NOON);
        assert_eq!(life.said(), no(reason));
        assert_eq!(life.status.conditions[2].status, "True", "{reason}");
    }
}

#[test]
fn a_run_waits_for_its_mesh_and_says_so() {
    let mut life = Life::new(spec());
    life.mesh = Mesh::Missing;
    life.look(NOON);
    assert_eq!((life.run(), life.said()), (0, no("DistributionMissing")));
    life.mesh = Mesh::External;
    life.look(NOON);
    assert_eq!((life.run(), life.said()), (0, no("ExternalSchedulers")));
    life.mesh = Mesh::Waiting("it has no policy yet".to_owned());
    life.look(NOON);
    assert_eq!((life.run(), life.said()), (0, no("Pending")));
    life.mesh = Mesh::There;
    life.look(NOON);
    assert_eq!(life.run(), 1);
    life.look("2026-11-26T12:02:00Z");
    assert_eq!(life.said(), no("NotStarted"));
}

#[test]
fn what_is_wanted_at_a_time_waits_for_it_and_looks_again_then() {
    let mut life = Life::new(PreheatSpec {
        when: When {
            type_: WhenType::At,
            at: Some(Time(at("2026-11-26T12:05:00Z"))),
            cron: None,
        },
        ..spec()
    });
    let decision = life.look("2026-11-26T12:00:00Z");
    assert_eq!((life.run(), life.said()), (0, yes("Scheduled")));
    assert_eq!(decision.again.as_secs(), 300);
    life.look("2026-11-26T12:05:00Z");
    assert_eq!(life.run(), 1);
    assert_eq!(life.status.next_run_time, None);
}

#[test]
fn cron_runs_at_its_times_and_counts_a_missed_one_once() {
    let mut life = Life::new(cron("*/10 * * * *", ConcurrencyPolicy::Forbid, None));
    life.look("2026-11-26T12:03:00Z");
    assert_eq!((life.run(), life.said()), (0, yes("Scheduled")));
    life.look("2026-11-26T12:10:00Z");
    assert_eq!(life.run(), 1);
    life.progress(
        State::Succeeded,
        Targeted::default(),
        "2026-11-26T12:10:30Z",
    );
    life.look("2026-11-26T12:10:31Z");
    assert_eq!(life.said(), yes("Succeeded"));
    // The operator was away: the one missed last is made up for, the others are not.
    life.look("2026-11-26T12:55:00Z");
    assert_eq!(life.run(), 2);
    assert_eq!(
        life.status.last_run_time,
        Some(Time(at("2026-11-26T12:50:00Z")))
    );
    life.look("2026-11-26T12:55:01Z");
    assert_eq!(life.run(), 2);
}

#[test]
fn times_that_a_changed_schedule_would_have_had_are_not_made_up_for() {
    let daily = |hour: u8| cron(&format!("0 {hour} * * *"), ConcurrencyPolicy::Forbid, None);
    let done = |life: &mut Life, end: &str| {
        life.progress(State::Succeeded, Targeted::default(), end);
        life.look(end);
    };
    // One that ran at three, one that ran once, and one that has not run yet.
    let mut ran = Life::new(daily(3));
    ran.look("2026-11-27T03:00:00Z");
    done(&mut ran, "2026-11-27T03:10:00Z");
    let mut once = Life::new(spec());
    once.look("2026-11-26T12:00:00Z");
    done(&mut once, "2026-11-26T12:10:00Z");
    let mut fresh = Life::new(daily(3));
    fresh.look("2026-11-26T12:00:00Z");
    for (mut life, run, day) in [(ran, 1, 27), (once, 1, 27), (fresh, 0, 26)] {
        life.apply(daily(13));
        life.look(&format!("2026-11-{day}T15:00:00Z"));
        let next = format!("2026-11-{}T13:00:00Z", day + 1);
        let said = (life.run(), life.status.next_run_time.clone());
        assert_eq!(said, (run, Some(Time(at(&next)))));
        life.look(&format!("2026-11-{day}T15:00:01Z"));
        assert_eq!(life.run(), run);
        life.look(&next);
        assert_eq!(life.run(), run + 1);
    }
    // What was due is due, whatever else is changed meanwhile: an operator that was away sees both at once.
    let mut away = Life::new(daily(3));
    away.look("2026-11-26T12:00:00Z");
    let mut changed = daily(3);
    changed.files.push(File {
        url: "http://origin/another".to_owned(),
        digest: None,
    });
    away.apply(changed.clone());
    away.look("2026-11-27T04:00:00Z");
    assert_eq!(away.run(), 1);
    // And a run that waits for its mesh still begins.
    let mut waits = Life::new(daily(3));
    waits.mesh = Mesh::Waiting("it has no policy yet".to_owned());
    waits.look("2026-11-27T03:00:00Z");
    waits.apply(changed);
    waits.look("2026-11-27T03:05:00Z");
    waits.mesh = Mesh::There;
    waits.look("2026-11-27T03:06:00Z");
    assert_eq!(waits.run(), 1);
}

#[test]
fn a_run_that_is_not_done_keeps_the_next_one_out_or_ends_as_the_policy_says() {
    for (policy, run) in [
        (ConcurrencyPolicy::Forbid, 1),
        (ConcurrencyPolicy::Replace, 2),
    ] {
        let mut life = Life::new(cron("*/10 * * * *", policy, None));
        life.look("2026-11-26T12:10:00Z");
        life.progress(State::Running, Targeted::default(), "");
        life.look("2026-11-26T12:20:00Z");
        assert_eq!(life.run(), run, "{policy:?}");
        // And what was left out is not made up for.
        life.progress(
            State::Succeeded,
            Targeted::default(),
            "2026-11-26T12:21:00Z",
        );
        life.look("2026-11-26T12:22:00Z");
        assert_eq!(life.run(), run, "{policy:?}");
    }
}

#[test]
fn a_window_ends_what_began_in_it_and_nothing_begins_after_it() {
    let spec = cron("0 13 * * *", ConcurrencyPolicy::Forbid, Some("30m"));
    let mut life = Life::new(spec.clone());
    life.look("2026-11-26T13:10:00Z");
    let plan = life.status.plan.clone().unwrap();
    assert_eq!(plan.end_time, Some(Time(at("2026-11-26T13:30:00Z"))));
    let mut late = Life::new(spec);
    late.look("2026-11-26T13:31:00Z");
    assert_eq!((late.run(), late.said()), (0, yes("Scheduled")));
    late.look("2026-11-26T13:32:00Z");
    assert_eq!(late.run(), 0);
}

#[test]
fn a_deadline_ends_a_run_although_no_scheduler_says_so() {
    let mut life = Life::new(PreheatSpec {
        deadline: Some("5m".to_owned()),
        ..spec()
    });
    life.look(NOON);
    life.progress(State::Running, Targeted::default(), "");
    life.look("2026-11-26T12:05:30Z");
    assert_eq!(life.said(), no("Progressing"), "schedulers may still say");
    life.look("2026-11-26T12:06:01Z");
    assert_eq!(life.said(), no("DeadlineExceeded"));
}

#[test]
fn what_is_suspended_stops_and_goes_on_as_the_same_run() {
    let mut life = Life::new(PreheatSpec {
        deadline: Some("5m".to_owned()),
        ..spec()
    });
    life.look(NOON);
    life.progress(State::Running, Targeted::default(), "");
    life.spec.activity = Activity::Suspended;
    life.look("2026-11-26T12:01:00Z");
    assert_eq!(life.said(), no("Suspended"));
    let plan = life.status.plan.clone().unwrap();
    assert_eq!((plan.run, plan.activity), (1, Activity::Suspended));
    life.look("2026-11-26T18:00:00Z");
    life.spec.activity = Activity::Active;
    life.look("2026-11-26T18:00:01Z");
    let plan = life.status.plan.clone().unwrap();
    assert_eq!((plan.run, plan.activity), (1, Activity::Active));
    assert_eq!(plan.end_time, Some(Time(at("2026-11-26T18:05:01Z"))));
    assert_eq!(life.said(), no("Progressing"));
}

#[test]
fn the_pace_of_a_run_follows_the_spec_until_it_ends() {
    let mut life = Life::new(spec());
    life.look(NOON);
    let of = |status: &PreheatStatus| {
        let plan = status.plan.as_ref().unwrap();
        (plan.parallelism, plan.retries, plan.backoff_milliseconds)
    };
    let mut changed = spec();
    changed.parallelism = 7;
    changed.retry.limit = 9;
    changed.retry.backoff = "2s".to_owned();
    life.apply(changed);
    life.look("2026-11-26T12:00:10Z");
    assert_eq!((life.run(), of(&life.status)), (1, (7, 9, 2000)));
    let all = Targeted {
        desired: 1,
        succeeded: 1,
        ..Targeted::default()
    };
    life.progress(State::Succeeded, all, "2026-11-26T12:00:20Z");
    life.apply(spec());
    life.look("2026-11-26T12:00:30Z");
    assert_eq!((life.run(), of(&life.status)), (1, (7, 9, 2000)));
}

#[test]
fn continuous_is_ready_while_every_node_has_it_and_never_ends() {
    let mut life = Life::new(PreheatSpec {
        when: When {
            type_: WhenType::Continuous,
            ..When::default()
        },
        ..spec()
    });
    life.look(NOON);
    let count = |succeeded, failed| Targeted {
        desired: 3,
        succeeded,
        failed,
        ..Targeted::default()
    };
    for (targets, said) in [
        (count(2, 0), no("Progressing")),
        (count(3, 0), yes("Succeeded")),
        (count(2, 1), no("NodesFailed")),
        (count(3, 0), yes("Succeeded")),
    ] {
        life.progress(State::Running, targets, "");
        life.look("2026-11-26T12:30:00Z");
        assert_eq!((life.run(), life.said()), (1, said));
    }
}

#[test]
fn only_what_the_plugin_made_goes_away_and_only_after_its_time() {
    for of_plugin in [true, false] {
        let mut life = Life::new(PreheatSpec {
            ttl: Some("1h".to_owned()),
            ..spec()
        });
        life.of_plugin = of_plugin;
        life.look(NOON);
        life.progress(State::Succeeded, Targeted::default(), NOON);
        assert!(!life.look("2026-11-26T12:59:00Z").delete);
        assert_eq!(life.look("2026-11-26T13:00:00Z").delete, of_plugin);
    }
}

#[test]
fn mistakes_name_their_field() {
    let zone = |zone: &str| {
        let mut spec = cron("0 0 * * *", ConcurrencyPolicy::Forbid, None);
        spec.when.cron.as_mut().unwrap().time_zone = zone.to_owned();
        spec
    };
    for (spec, field) in [
        (zone("Europe/Berln"), "spec.when.cron.timeZone"),
        (
            cron("0 0 * *", ConcurrencyPolicy::Forbid, None),
            "spec.when.cron.expression",
        ),
        (
            cron("0 0 31 2 *", ConcurrencyPolicy::Forbid, None),
            "spec.when.cron.expression",
        ),
        (
            PreheatSpec {
                deadline: Some("99999999h".to_owned()),
                ..spec()
            },
            "spec.deadline",
        ),
    ] {
        let mut life = Life::new(spec);
        life.look(NOON);
        assert_eq!(life.said(), no("InvalidSpec"));
        let message = &life.status.conditions[2].message;
        assert!(message.starts_with(field), "{message}");
        assert_eq!(life.run(), 0);
    }
}

#[test]
fn history_is_bounded() {
    let mut life = Life::new(cron("* * * * *", ConcurrencyPolicy::Forbid, None));
    for minute in 1..20 {
        life.look(&format!("2026-11-26T12:{minute:02}:00Z"));
        let end = format!("2026-11-26T12:{minute:02}:30Z");
        life.progress(State::Succeeded, Targeted::default(), &end);
        life.look(&end);
    }
    assert_eq!(life.run(), 19);
    let runs: Vec<_> = life.status.history.iter().map(|run| run.run).collect();
    assert_eq!(runs, [19, 18, 17, 16, 15]);
}
