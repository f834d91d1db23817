//! How many bytes may be on their way: what the uplink carries in the time that its queue may take.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The queue to aim at, as the time that it takes to drain. Less, and uplinks stand idle in a mesh whose
/// members all wait for each other's acknowledgements (30 ms: equal links took 1.26 of the limit instead of
/// 1.12); more, and nothing is gained.
const QUEUE: Duration = Duration::from_millis(60);
/// The longest queue to let it grow to where a short one costs throughput.
const LONGEST: Duration = Duration::from_millis(1000);
/// What the queue to aim at grows by where holding back costs throughput, and shrinks by where it does not.
const UP: f64 = 1.5;
const DOWN: f64 = 0.97;
/// Costs throughput: less than this part of the best rate. Rates in a swarm vary by themselves: with 0.75 the
/// queue grew for that, and half of what it is for was lost.
const COSTS: f64 = 0.5;
/// Costs none: more than this.
const FREE: f64 = 0.8;
/// Never less than this, bytes: two of the smallest blocks and a half.
const LEAST: u64 = 160 << 10;
/// What a rate is measured over, and the part of it that counts beside what was known.
const WINDOW: Duration = Duration::from_millis(20);
const NEW: f64 = 0.2;
/// How often the queue to aim at is thought over.
const THINK: Duration = Duration::from_millis(200);
/// The best rate is that of the last so many thoughts: 10 s.
const THOUGHTS: usize = 50;
/// For so long nobody is held back, to find out what the uplink carries.
const OPEN: Duration = Duration::from_millis(100);
/// More is let through for a while by this factor every now and then, to find out if it carries more.
const PROBE_EVERY: Duration = Duration::from_secs(10);
const PROBE_FOR: Duration = Duration::from_millis(200);
const PROBE: f64 = 1.5;

/// Decides from what was acknowledged; no IO.
#[derive(Debug)]
pub(super) struct Budget {
    /// Bytes a second, smoothed.
    rate: f64,
    /// What it was at the last thoughts.
    rates: VecDeque<f64>,
    queue: Duration,
    measured: Instant,
    acked: u64,
    thought: Instant,
    /// Looks since, and those that found somebody held back.
    looks: u32,
    held_back: u32,
    began: Instant,
    probed: Instant,
    /// The longest round trip of a way without queues.
    trip: Duration,
}

impl Budget {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            rate: 0.0,
            rates: VecDeque::new(),
            queue: QUEUE,
            measured: now,
            acked: 0,
            thought: now,
            looks: 0,
            held_back: 0,
            began: now,
            probed: now,
            trip: Duration::ZERO,
        }
    }

    /// Nothing was on its way: what was known of the uplink is old.
    pub(super) fn begin(&mut self, now: Instant) {
        if now.duration_since(self.measured) > PROBE_EVERY {
            *self = Self::new(now);
        }
    }

    /// Bytes that others acknowledged since the last call.
    pub(super) fn acked(&mut self, now: Instant, bytes: u64, trip: Duration) {
        self.acked += bytes;
        self.trip = trip;
        let took = now.duration_since(self.measured);
        if took < WINDOW {
            return;
        }
        let rate = self.acked as f64 / took.as_secs_f64();
        (self.measured, self.acked) = (now, 0);
        let new = (NEW * took.as_secs_f64() / WINDOW.as_secs_f64()).min(1.0);
        // Who had little to send for a while knows no less for that.
        let knows = took > THINK && rate < self.rate;
        if self.rate == 0.0 {
            self.rate = rate;
        } else if !knows {
            self.rate += (rate - self.rate) * new;
        }
        if now.duration_since(self.thought) >= THINK {
            self.think(now);
        }
    }

    fn think(&mut self, now: Instant) {
        let was_held_back = self.looks > 0 && self.held_back * 4 > self.looks * 3;
        if was_held_back && !self.is_probing(self.thought) {
            let part = self.rate / self.best();
            if part < COSTS {
                self.queue = self.queue.mul_f64(UP).min(LONGEST);
            } else if part > FREE {
                self.queue = self.queue.mul_f64(DOWN).max(QUEUE);
            }
        }
        if self.rates.len() == THOUGHTS {
            self.rates.pop_front();
        }
        self.rates.push_back(self.rate);
        (self.thought, self.looks, self.held_back) = (now, 0, 0);
        if now.duration_since(self.probed) > PROBE_EVERY {
            self.probed = now;
        }
    }

    /// Somebody with a block to send was looked at.
    pub(super) fn looked(&mut self, is_held_back: bool) {
        self.looks += 1;
        self.held_back += u32::from(is_held_back);
    }

    fn is_probing(&self, now: Instant) -> bool {
        now.duration_since(self.probed) < PROBE_FOR
    }

    fn best(&self) -> f64 {
        self.rates.iter().copied().fold(0.0, f64::max)
    }

    /// Bytes that may be on their way.
    pub(super) fn bytes(&self, now: Instant) -> u64 {
        if now.duration_since(self.began) < OPEN {
            return u64::MAX;
        }
        let bytes = self.rate * (self.queue + self.trip).as_secs_f64();
        let more = if self.is_probing(now) { PROBE } else { 1.0 };
        ((bytes * more) as u64).max(LEAST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An uplink with a queue, behind which others take `away` to acknowledge; blocks of 64 KiB are sent
    /// whenever there is room for more than 6 s. The rate and the uplink's mean queue of the last 3.
    fn runs(rate: f64, away: Duration) -> (f64, Duration) {
        const BLOCK: u64 = 64 << 10;
        let start = Instant::now();
        let mut budget = Budget::new(start);
        let step = Duration::from_millis(1);
        let (mut queued, mut on_the_way) = (0.0_f64, VecDeque::new());
        let (mut sent, mut queues) = (0.0, 0.0);
        for n in 0..6000_u32 {
            let now = start + step * n;
            let drained = queued.min(rate * step.as_secs_f64());
            queued -= drained;
            on_the_way.push_back((now + away, drained));
            let mut acked = 0.0;
            while on_the_way.front().is_some_and(|(at, _)| *at <= now) {
                acked += on_the_way.pop_front().map_or(0.0, |(_, bytes)| bytes);
            }
            budget.acked(now, acked as u64, Duration::from_millis(1));
            let flying: f64 = on_the_way.iter().map(|(_, bytes)| bytes).sum();
            let mut unacked = (queued + flying) as u64;
            // A receiver has asked for at most this much.
            let asked = 8 * BLOCK + (rate * (0.3 + away.as_secs_f64())) as u64;
            while unacked < budget.bytes(now).min(asked) {
                queued += BLOCK as f64;
                unacked += BLOCK;
            }
            budget.looked(unacked < asked);
            if n >= 3000 {
                sent += drained;
                queues += queued / rate;
            }
        }
        (sent / 3.0, Duration::from_secs_f64(queues / 3000.0))
    }

    #[test]
    fn a_slow_uplink_is_busy_and_its_queue_short() {
        for rate in [3e6, 12e6, 120e6] {
            let (got, queue) = runs(rate, Duration::from_millis(1));
            assert!(got > 0.99 * rate, "{got} of {rate}");
            // 300 ms of blocks were asked for.
            assert!(queue < Duration::from_millis(80), "{queue:?} at {rate}");
        }
    }

    #[test]
    fn what_others_take_to_answer_costs_little() {
        for (away, part) in [(40, 0.99), (100, 0.75), (200, 0.9), (400, 0.9)] {
            let rate = 12e6;
            let (got, _) = runs(rate, Duration::from_millis(away));
            assert!(got > part * rate, "{got} of {rate} over {away} ms");
        }
    }

    #[test]
    fn at_first_and_after_a_rest_nobody_is_held_back() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        assert_eq!(budget.bytes(start), u64::MAX);
        let mut now = start;
        for _ in 0..40 {
            now += Duration::from_millis(10);
            budget.acked(now, 10_000, Duration::ZERO);
        }
        assert_eq!(budget.bytes(now), LEAST, "a megabyte a second");
        now += Duration::from_secs(60);
        budget.begin(now);
        assert_eq!(budget.bytes(now), u64::MAX);
    }
}
