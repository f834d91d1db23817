//! Which replica writes: the one that a Lease names, until it stops renewing it.
//!
//! Pure: the Lease as it was read goes in, what to do with it comes out. Clocks of other machines are
//! not believed: a Lease has run out when *this* replica saw it unchanged for as long as it holds.
//! Writes carry the version that was read, so of two that try at once one is refused.

use std::time::Duration;

/// How long what lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// How long a Lease holds that is not renewed.
    pub holds: Duration,
    /// How often its holder renews it, and the others look.
    pub every: Duration,
    /// A holder that could not renew stops writing so long before another may begin.
    pub margin: Duration,
}

/// Of schedulers, whose reports may be late.
pub const REPORTS: Timing = Timing {
    holds: Duration::from_secs(30),
    every: Duration::from_secs(10),
    margin: Duration::from_secs(8),
};
/// Of operators, which people wait for.
pub const OPERATOR: Timing = Timing {
    holds: Duration::from_secs(15),
    every: Duration::from_secs(2),
    margin: Duration::from_secs(5),
};

/// What matters of a Lease. Changes when it is renewed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Who holds it; empty when it was given back.
    pub holder: String,
    /// Its version: another one after each write.
    pub version: String,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// There is none: make it.
    Create,
    /// Nobody holds it any more: take it.
    Take,
    /// It is ours: renew it.
    Renew,
    /// Another holds it.
    Wait,
}

/// One replica's view.
#[derive(Debug)]
pub struct Election {
    me: String,
    timing: Timing,
    seen: Option<(Record, Duration)>,
    until: Duration,
}

impl Election {
    /// `me`: another name for each process, so that one that comes back does not think that it never
    /// went.
    #[must_use]
    pub const fn new(me: String, timing: Timing) -> Self {
        Self {
            me,
            timing,
            seen: None,
            until: Duration::ZERO,
        }
    }

    /// What to do with the Lease as it was read at `now`.
    pub fn decide(&mut self, now: Duration, lease: Option<&Record>) -> Step {
        let Some(lease) = lease else {
            self.seen = None;
            return Step::Create;
        };
        if self.seen.as_ref().is_none_or(|(seen, _)| seen != lease) {
            self.seen = Some((lease.clone(), now));
        }
        let unchanged = self
            .seen
            .as_ref()
            .map_or(Duration::ZERO, |(_, since)| now.saturating_sub(*since));
        if lease.holder == self.me {
            Step::Renew
        } else if lease.holder.is_empty() || unchanged >= self.timing.holds {
            Step::Take
        } else {
            Step::Wait
        }
    }

    /// A write that was begun at `begun` went through.
    pub fn won(&mut self, begun: Duration, record: Record) {
        self.until = begun + self.timing.holds.saturating_sub(self.timing.margin);
        self.seen = Some((record, begun));
    }

    /// It was given back.
    pub const fn gave_back(&mut self) {
        self.until = Duration::ZERO;
    }

    /// Whether this replica is the one that writes.
    #[must_use]
    pub fn holds(&self, now: Duration) -> bool {
        now < self.until
    }

    /// How long this replica may still write, at `now`.
    #[must_use]
    pub fn left(&self, now: Duration) -> Duration {
        self.until.saturating_sub(now)
    }

    /// Who held it when it was last read, this replica too.
    #[must_use]
    pub fn holder(&self) -> Option<&str> {
        let (record, _) = self.seen.as_ref()?;
        Some(record.holder.as_str()).filter(|h| !h.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn record(holder: &str, version: u32) -> Record {
        Record {
            holder: holder.to_owned(),
            version: version.to_string(),
        }
    }

    #[test]
    fn without_a_lease_one_is_made_and_a_released_one_is_taken_at_once() {
        let mut e = Election::new("me".to_owned(), REPORTS);
        assert_eq!(e.decide(SECOND, None), Step::Create);
        assert_eq!(e.decide(SECOND, Some(&record("", 4))), Step::Take);
        assert!(!e.holds(SECOND), "only a write that went through counts");
        e.won(SECOND, record("me", 5));
        assert!(e.holds(2 * SECOND));
        assert_eq!(e.holder(), Some("me"));
    }

    #[test]
    fn a_holder_that_renews_is_waited_for_and_one_that_does_not_is_followed() {
        let mut e = Election::new("me".to_owned(), REPORTS);
        for renewal in 0..10 {
            let now = SECOND * 10 * renewal;
            assert_eq!(e.decide(now, Some(&record("other", renewal))), Step::Wait);
        }
        let last = record("other", 9);
        assert_eq!(e.decide(119 * SECOND, Some(&last)), Step::Wait);
        assert_eq!(e.decide(120 * SECOND, Some(&last)), Step::Take);
        assert_eq!(e.holder(), Some("other"));
    }

    #[test]
    fn a_holder_that_cannot_renew_has_stopped_before_anybody_follows_it() {
        let mut holder = Election::new("a".to_owned(), REPORTS);
        let mut other = Election::new("b".to_owned(), REPORTS);
        let lease = record("a", 1);
        holder.won(Duration::ZERO, lease.clone());
        // The other saw it at the earliest moment that there is.
        assert_eq!(other.decide(Duration::ZERO, Some(&lease)), Step::Wait);
        for second in 0..60 {
            let now = SECOND * second;
            let follows = other.decide(now, Some(&lease)) == Step::Take;
            assert!(!(follows && holder.holds(now)), "two writers at {now:?}");
        }
        assert!(holder.holds(21 * SECOND) && !holder.holds(22 * SECOND));
    }

    #[test]
    fn one_that_comes_back_under_another_name_waits_for_its_own_old_lease() {
        let mut e = Election::new("scheduler-0_2".to_owned(), REPORTS);
        let old = record("scheduler-0_1", 1);
        assert_eq!(e.decide(SECOND, Some(&old)), Step::Wait);
        assert_eq!(e.decide(31 * SECOND, Some(&old)), Step::Take);
    }
}
