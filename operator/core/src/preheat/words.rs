//! What is said of a Preheat in its conditions.

use dragonfly_crds::conditions::{self, READY, RECONCILING, STALLED};
use dragonfly_crds::preheat::{PreheatStatus, Progress, Run, State, WhenType, reason};
use k8s_openapi::jiff::Timestamp;

use super::{SILENT, before};
use crate::status::{Outcome, Row, rows_of};

/// What is said.
pub(super) enum Said {
    /// As of other kinds.
    Outcome(Outcome),
    /// Ready, for a reason.
    Ready(&'static str, String),
    /// Something is being done.
    Progressing(&'static str, String),
    /// Not ready, and nothing is being done for now.
    Waiting(&'static str, String),
    /// Not ready, and nothing more is done.
    Stalled(&'static str, String),
}

impl Said {
    pub(super) fn rows(self) -> [Row; 3] {
        let not_stalled = conditions::reason::NOT_STALLED;
        let (ready, reconciling, stalled, why, message) = match self {
            Self::Outcome(outcome) => return rows_of(&outcome),
            Self::Ready(why, message) => ("True", "False", "False", why, message),
            Self::Progressing(why, message) => ("False", "True", "False", why, message),
            Self::Waiting(why, message) => ("False", "False", "False", why, message),
            Self::Stalled(why, message) => ("False", "False", "True", why, message),
        };
        let message = crate::status::cut(message);
        let (reason_of_stalled, text) = if stalled == "True" {
            (why, message.clone())
        } else {
            (not_stalled, String::new())
        };
        [
            (READY, ready, why, message.clone()),
            (RECONCILING, reconciling, why, message),
            (STALLED, stalled, reason_of_stalled, text),
        ]
    }

    pub(super) fn waits(name: &str, why: &str) -> Self {
        let text = format!("waits for Distribution {name}: {why}");
        Self::Progressing(conditions::reason::PENDING, text)
    }

    pub(super) fn suspended(status: &PreheatStatus, over: Option<&Run>) -> Self {
        let how = match (over, &status.progress) {
            (Some(run), _) => format!("; the last run: {}", run.message),
            (None, Some(progress)) if status.plan.is_some() => {
                format!("; the run under way stops at: {}", progress.message)
            }
            _ => String::new(),
        };
        Self::Waiting(
            reason::SUSPENDED,
            format!("spec.activity is Suspended{how}"),
        )
    }

    pub(super) fn of_run(
        status: &PreheatStatus,
        over: Option<&Run>,
        when: WhenType,
        now: Timestamp,
    ) -> Self {
        let next = status.next_run_time.as_ref();
        let next = next.map(|at| format!("next run at {}", at.0));
        let with_next = |text: &str| match &next {
            Some(next) if text.is_empty() => next.clone(),
            Some(next) => format!("{text}; {next}"),
            None => text.to_owned(),
        };
        let Some(plan) = &status.plan else {
            return Self::Ready(reason::SCHEDULED, with_next(""));
        };
        let progress = status.progress.as_ref().filter(|p| p.run == plan.run);
        if let Some(run) = over {
            let message = with_next(&run.message);
            let why = why(run.state, progress);
            return match run.state {
                State::Succeeded => Self::Ready(why, message),
                // Another attempt comes by itself.
                _ if when == WhenType::Cron => Self::Waiting(why, message),
                _ => Self::Stalled(why, message),
            };
        }
        match progress {
            None if now > before(plan.start_time.0, SILENT) => Self::Progressing(
                reason::NOT_STARTED,
                format!(
                    "no scheduler of Distribution {} has begun yet: see whether they run",
                    plan.distribution
                ),
            ),
            None => Self::Progressing(
                conditions::reason::PROGRESSING,
                with_next("schedulers are told"),
            ),
            Some(p) if when == WhenType::Continuous && is_even(p) => {
                Self::Ready(reason::SUCCEEDED, p.message.clone())
            }
            Some(p) if when == WhenType::Continuous && p.targets.failed > 0 => {
                Self::Progressing(reason::NODES_FAILED, p.message.clone())
            }
            Some(p) => Self::Progressing(conditions::reason::PROGRESSING, with_next(&p.message)),
        }
    }
}

/// Every node that there is has it, or has no room.
fn is_even(p: &Progress) -> bool {
    let t = p.targets;
    t.failed == 0 && t.succeeded + t.skipped >= t.desired
}

fn why(state: State, progress: Option<&Progress>) -> &'static str {
    let targets = progress.map(|p| p.targets).unwrap_or_default();
    match state {
        State::Succeeded => reason::SUCCEEDED,
        State::DeadlineExceeded => reason::DEADLINE_EXCEEDED,
        _ if targets.desired == 0 => reason::NO_NODES,
        _ if targets.skipped == targets.desired => reason::NO_ROOM,
        _ => reason::NODES_FAILED,
    }
}
