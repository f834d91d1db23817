//! What one connection has in the uplink's queue.

use std::time::{Duration, Instant};

use crate::socket::Info;

/// What a receiver acknowledged in about this time bounds what its connection counts for. What it holds
/// beyond that waits for the receiver, not for this node's uplink.
const PACE: Duration = Duration::from_millis(200);
/// What a connection counts for at most, and so a block, bytes: as much as its socket takes unsent, and a block
/// of 64 KiB. What is on its way beyond that the kernel's congestion control governs, and of a larger block
/// the kernel has no more yet.
pub(super) const MOST: u64 = 128 << 10;
/// Who acknowledged nothing for this long says nothing about the uplink.
const FRESH: Duration = Duration::from_millis(100);

/// A connection with bytes on their way; no IO.
#[derive(Debug)]
pub(super) struct Way {
    /// What the kernel said last.
    seen: Info,
    /// Bytes of the block that is being written.
    writing: u64,
    /// Bytes acknowledged within about [`PACE`].
    recent: f64,
    looked: Instant,
    /// When anything was acknowledged last, since it is watched.
    moved: Option<Instant>,
}

impl Way {
    /// A connection that is about to send its first block for a while.
    pub(super) const fn new(now: Instant, seen: Info) -> Self {
        Self {
            seen,
            writing: 0,
            recent: MOST as f64,
            looked: now,
            moved: None,
        }
    }

    /// A block is being written; none any more when there are no bytes.
    pub(super) const fn writes(&mut self, bytes: u64) {
        self.writing = bytes;
    }

    /// What the kernel says now. Returns the bytes that were acknowledged since it was asked last, and those
    /// that were received.
    pub(super) fn look(&mut self, now: Instant, seen: Info) -> (u64, u64) {
        let gone = seen.acked.saturating_sub(self.seen.acked);
        let passed = now.duration_since(self.looked).as_secs_f64() / PACE.as_secs_f64();
        // Of what was acknowledged over long only that of the last of it.
        self.recent = self.recent * (-passed).exp() + gone as f64 / passed.max(1.0);
        if gone > 0 {
            self.moved = Some(now);
        }
        let came = seen.received.saturating_sub(self.seen.received);
        (self.seen, self.looked) = (seen, now);
        (gone, came)
    }

    /// Bytes that stand in the uplink's queue, at most: not those that are under way on a long way, and none
    /// that a slow receiver leaves standing.
    pub(super) fn counts(&self) -> u64 {
        let under_way = self.recent * self.trip().as_secs_f64() / PACE.as_secs_f64();
        let bound = self.seen.left.max(self.writing) as f64;
        let waits = (bound - under_way).min(self.recent).max(0.0);
        (waits as u64).min(MOST)
    }

    fn trip(&self) -> Duration {
        self.seen.min_round_trip.unwrap_or_default()
    }

    /// How much later the other side hears this node than the way takes; nothing while it is silent.
    pub(super) fn delay(&self, now: Instant) -> Option<Duration> {
        let is_fresh = |moved| now.duration_since(moved) < FRESH;
        self.moved
            .is_some_and(is_fresh)
            .then(|| self.seen.round_trip.saturating_sub(self.trip()))
    }

    /// It has nothing on its way, and says nothing about the uplink.
    pub(super) fn is_done(&self, now: Instant) -> bool {
        self.seen.left == 0 && self.writing == 0 && self.delay(now).is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(acked: u64, left: u64, trip_ms: u64) -> Info {
        Info {
            acked,
            received: acked / 2,
            left,
            round_trip: Duration::from_millis(trip_ms + 5),
            min_round_trip: Some(Duration::from_millis(trip_ms)),
        }
    }

    /// After two seconds in which this much was acknowledged every 10 ms.
    fn at_pace(every: u64, left: u64, trip_ms: u64) -> Way {
        let start = Instant::now();
        let mut way = Way::new(start, info(0, left, trip_ms));
        for n in 1..=200 {
            let now = start + Duration::from_millis(10) * n as u32;
            assert_eq!(way.look(now, info(n * every, left, trip_ms)).0, every);
        }
        way
    }

    #[test]
    fn who_takes_what_is_sent_counts_for_all_of_it() {
        let way = at_pace(20_000, 100_000, 0);
        assert_eq!(way.counts(), 100_000);
        assert_eq!(way.delay(way.looked), Some(Duration::from_millis(5)));
    }

    #[test]
    fn who_takes_a_byte_now_and_then_counts_for_next_to_nothing() {
        for left in [64 << 10, 4 << 20] {
            assert!(at_pace(1, left, 0).counts() < 50);
        }
    }

    #[test]
    fn what_was_acknowledged_before_counts_no_more() {
        let start = Instant::now();
        let mut way = Way::new(start, info(0, 0, 20));
        // A minute at 20 MB/s: 400 kB are under way.
        let now = start + Duration::from_secs(60);
        way.look(now, info(1_200_000_000, 500_000, 20));
        assert_eq!(way.counts(), 100_000);
    }

    #[test]
    fn what_a_long_way_holds_does_not_count() {
        // 2 MB/s over 100 ms hold 200 kB.
        assert_eq!(at_pace(20_000, 200_000, 100).counts(), 0);
        let waits = at_pace(20_000, 260_000, 100).counts();
        assert!((50_000..70_000).contains(&waits), "{waits}");
    }

    #[test]
    fn nobody_counts_for_more_than_is_bound_here() {
        assert_eq!(at_pace(1_000_000, 64 << 20, 0).counts(), MOST);
        let mut way = Way::new(Instant::now(), info(0, 0, 0));
        way.writes(16 << 20);
        assert_eq!(way.counts(), MOST);
        assert!(!way.is_done(way.looked));
        way.writes(0);
        assert!(way.is_done(way.looked));
    }

    #[test]
    fn silence_says_nothing_about_the_uplink() {
        let way = at_pace(20_000, 100_000, 0);
        assert_eq!(way.delay(way.looked + FRESH), None);
    }
}
