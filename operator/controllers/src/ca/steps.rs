//! What is to be done with a mesh's CAs, and when: knows no clock and no cluster.

use std::time::Duration;

use dragonfly_identity::Holds;

/// Certificates hold from a little before they are made, by clocks that differ.
const SKEW: u64 = 600;
/// A CA that would hold for less than so many overlaps is taken from nobody: before it is over the next
/// one has to be asked for, signed and learnt of.
const LEAST: u32 = 6;

/// How CAs and certificates age.
#[derive(Clone, Copy, Debug)]
pub struct Ages {
    /// How long parts have to learn of a new CA before it signs. The kubelet brings a changed ConfigMap
    /// within about 90 s.
    pub overlap: Duration,
    /// How long the certificates of parts are good.
    pub certificate: Duration,
}

impl Default for Ages {
    fn default() -> Self {
        Self {
            overlap: Duration::from_secs(600),
            certificate: Duration::from_secs(72 * 3600),
        }
    }
}

impl Ages {
    /// For how long a CA that somebody signed has to hold at least.
    pub(super) fn least(&self) -> Duration {
        self.overlap.saturating_mul(LEAST)
    }
}

/// What is known of a mesh's CAs; times in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Times {
    /// There is none yet: an issuer was asked for the first.
    pub(super) is_none: bool,
    /// What the newest one answers.
    pub(super) generation: i64,
    /// Somebody else signed the newest one than is wanted.
    pub(super) is_anothers: bool,
    /// Since when the one that signs does so.
    pub(super) since: u64,
    /// When that one is old.
    pub(super) old: u64,
    /// When that one is over, and signs nothing any more.
    pub(super) until: u64,
    /// Since when there is a next one, and until when that holds.
    pub(super) next: Option<(u64, u64)>,
    pub(super) has_previous: bool,
}

/// When a CA that signs since then is old: two thirds of what it had left. Who signs CAs may give less
/// time than he was asked for.
pub(super) fn old(holds: Holds, since: u64) -> u64 {
    let begin = since.max(holds.from).min(holds.until);
    holds.until - (holds.until - begin) / 3
}

/// What is to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Prepare,
    Promote,
    Forget,
    /// Nothing for so many seconds.
    Wait(u64),
}

pub(super) fn step(at: Times, wanted: i64, now: u64, ages: &Ages) -> Step {
    if at.is_none {
        return Step::Prepare;
    }
    let overlap = ages.overlap.as_secs();
    // One that was over before anybody promoted it is replaced.
    if let Some((made, _)) = at.next.filter(|(_, until)| now < *until) {
        let due = made.saturating_add(overlap);
        // Where nothing is good any more there is nothing to overlap with.
        return if now >= due || now >= at.until {
            Step::Promote
        } else {
            Step::Wait(due - now)
        };
    }
    // What was signed a moment before the promotion is good for this long.
    let forget = at
        .since
        .saturating_add(ages.certificate.as_secs())
        .saturating_add(SKEW);
    // First: to prepare may take long, for somebody else may have to sign.
    if at.has_previous && now >= forget {
        return Step::Forget;
    }
    if wanted > at.generation || at.is_anothers || at.next.is_some() || now >= at.old {
        return Step::Prepare;
    }
    let due = if at.has_previous {
        forget.min(at.old)
    } else {
        at.old
    };
    Step::Wait(due - now)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::ca) const AGES: Ages = Ages {
        overlap: Duration::from_secs(600),
        certificate: Duration::from_secs(1000),
    };
    pub(in crate::ca) const FORGET: u64 = 1000 + SKEW;

    const OLD: u64 = 1_000_000;

    fn at(since: u64, next: Option<u64>, has_previous: bool) -> Times {
        Times {
            is_none: false,
            generation: 3,
            is_anothers: false,
            since,
            old: OLD,
            until: OLD + 500,
            next: next.map(|made| (made, OLD)),
            has_previous,
        }
    }

    #[test]
    fn a_ca_ages_is_replaced_when_asked_once_and_never_twice_at_once() {
        let both = at(700, None, true);
        let next = at(0, Some(100), false);
        let others = |at: Times| Times {
            is_anothers: true,
            ..at
        };
        let first = Times {
            is_none: true,
            ..at(0, None, false)
        };
        let late = Times {
            old: 1001,
            ..at(0, Some(100), false)
        };
        let lapsed = Times {
            next: Some((100, 900)),
            ..late
        };
        let over = Times { until: 120, ..next };
        let young = at(1000, None, false);
        let rows = [
            ("young", young, 3, 1001, Step::Wait(OLD - 1001)),
            ("asked", young, 4, 1001, Step::Prepare),
            ("asked for less", young, 2, 1001, Step::Wait(OLD - 1001)),
            ("of another issuer", others(young), 3, 1001, Step::Prepare),
            ("old", at(0, None, false), 3, OLD, Step::Prepare),
            ("prepared", next, 9, 150, Step::Wait(550)),
            (
                "of another issuer, too",
                others(next),
                3,
                150,
                Step::Wait(550),
            ),
            ("known to all", next, 9, 700, Step::Promote),
            ("known to all for long", late, 3, 1002, Step::Promote),
            ("the one before is over", over, 3, 121, Step::Promote),
            ("over before it signed", lapsed, 3, 901, Step::Prepare),
            ("both are trusted", both, 3, 701, Step::Wait(FORGET - 1)),
            ("the old one is over", both, 3, 700 + FORGET, Step::Forget),
            ("asked again", both, 4, 701, Step::Prepare),
            ("asked for long", both, 4, 700 + FORGET, Step::Forget),
            ("asked, and none is there", first, 0, 0, Step::Prepare),
        ];
        for (what, times, wanted, now, todo) in rows {
            assert_eq!(step(times, wanted, now, &AGES), todo, "{what}");
        }
    }

    #[test]
    fn a_ca_is_old_by_what_its_certificate_says() {
        let holds = |from, until| Holds { from, until };
        let rows = [
            ("as asked for", holds(1000, 4000), 1000, 3000),
            ("signs later", holds(1000, 4000), 1300, 3100),
            ("dated back", holds(0, 4000), 3400, 3800),
            ("unknown since when", holds(1000, 4000), 0, 3000),
            ("over", holds(1000, 4000), 9000, 4000),
            ("from the future", holds(1000, 4000), 500, 3000),
            ("never good", holds(4000, 1000), 500, 1000),
        ];
        for (what, holds, since, wanted) in rows {
            assert_eq!(old(holds, since), wanted, "{what}");
        }
    }
}
