//! How many bytes may be on their way: what the uplink carries in the time that its queue may take.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::way::MOST;

/// The queue to aim at, as the time that it takes to drain. Less, and uplinks stand idle in a mesh whose
/// members all wait for each other's acknowledgements; more, and nothing is gained (docs/performance.md).
const QUEUE: Duration = Duration::from_millis(75);
/// Where others' downlinks are slow, acknowledgements wait behind blocks there, and the queue is to be longer by as
/// much: as long as a downlink needs for this many bytes, 12 blocks of 64 KiB.
const DOWNLINK: f64 = 12.0 * 65_536.0;
/// What is left of the best rate at which was received, a thought later: a third after 10 s.
const FADES: f64 = 0.98;
/// The longest queue to let it grow to where a short one costs throughput.
const LONGEST: Duration = Duration::from_millis(1000);
/// What the queue to aim at grows by where holding back costs throughput, and shrinks by where it does not.
const UP: f64 = 1.5;
const DOWN: f64 = 0.9;
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
/// For so long nobody is held back at first, to find out what the uplink carries.
const OPEN: Duration = Duration::from_millis(100);
/// What was known of an uplink that no block left for this long is old.
const OLD: Duration = Duration::from_secs(10);
/// Somebody hears this node this soon after what the way itself takes: its uplink is not what keeps the
/// others waiting, so more may leave.
const NEAR: Duration = Duration::from_millis(20);
/// As what part of the known rate.
const MORE: f64 = 2.0;
/// After a block of 64 KiB the next leaves this soon whatever is on its way, and after a larger one as much
/// later: nobody's silence stops all uploads.
const AT_LEAST_EVERY: Duration = Duration::from_millis(50);
const AT_LEAST: f64 = 65_536.0;
/// The same for the largest.
const AT_LAST: Duration = Duration::from_millis(800);

/// Decides from what was acknowledged; no IO.
#[derive(Debug)]
pub(super) struct Budget {
    /// Bytes a second, smoothed.
    rate: f64,
    /// What it was at the last thoughts.
    rates: VecDeque<f64>,
    queue: Duration,
    /// Bytes a second that arrived from others in the best of the last windows: what the downlink carries.
    most_arrived: f64,
    came: u64,
    /// How late the first to hear this node does so; unknown while nobody acknowledges.
    delay: Option<Duration>,
    measured: Instant,
    acked: u64,
    thought: Instant,
    /// Looks since, and those that found somebody held back.
    looks: u32,
    held_back: u32,
    /// Somebody was, since the rate was measured.
    was_held_back: bool,
    began: Instant,
    /// When a block left last, and its size, bytes.
    left: Option<Instant>,
    last: f64,
    /// Until when somebody near was let more through for.
    more: Instant,
}

impl Budget {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            rate: 0.0,
            rates: VecDeque::new(),
            queue: QUEUE,
            most_arrived: 0.0,
            came: 0,
            delay: None,
            measured: now,
            acked: 0,
            thought: now,
            looks: 0,
            held_back: 0,
            was_held_back: false,
            began: now,
            left: None,
            last: 0.0,
            more: now,
        }
    }

    /// Somebody has a block to send. Forgets, and says so, what was known before a long rest.
    pub(super) fn begin(&mut self, now: Instant) -> bool {
        let rested = |left| now.duration_since(left) > OLD;
        let begins = self.left.is_none_or(rested);
        if begins {
            *self = Self::new(now);
        }
        begins
    }

    /// Nobody is held back: it has just begun, or nothing that was sent has been acknowledged yet.
    pub(super) fn is_open(&self, now: Instant) -> bool {
        self.rate == 0.0 || now.duration_since(self.began) < OPEN
    }

    /// Bytes that others acknowledged since the last call and that came from them, and how late the first of
    /// them hear this node.
    pub(super) fn acked(&mut self, now: Instant, bytes: u64, came: u64, delay: Option<Duration>) {
        self.acked += bytes;
        self.came += came;
        self.delay = delay;
        let took = now.duration_since(self.measured);
        if took < WINDOW {
            return;
        }
        let rate = self.acked as f64 / took.as_secs_f64();
        let arrives = self.came as f64 / took.as_secs_f64();
        (self.measured, self.acked, self.came) = (now, 0, 0);
        let new = (NEW * took.as_secs_f64() / WINDOW.as_secs_f64()).min(0.5);
        self.most_arrived = self.most_arrived.max(arrives);
        // Who had little to send knows no less for that.
        let knows = rate < self.rate && !self.was_held_back;
        self.was_held_back = false;
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
        let holds_back = self.looks > 0 && self.held_back * 4 > self.looks * 3;
        let part = self.rate / self.best();
        if holds_back && part < COSTS {
            self.queue = self.queue.mul_f64(UP).min(LONGEST);
        } else if !holds_back || part > FREE {
            self.queue = self.queue.mul_f64(DOWN).max(QUEUE);
        }
        self.most_arrived *= FADES;
        if self.rates.len() == THOUGHTS {
            self.rates.pop_front();
        }
        self.rates.push_back(self.rate);
        (self.thought, self.looks, self.held_back) = (now, 0, 0);
    }

    /// Somebody with a block to send was looked at.
    pub(super) fn looked(&mut self, is_held_back: bool) {
        self.looks += 1;
        self.held_back += u32::from(is_held_back);
        self.was_held_back |= is_held_back;
    }

    fn best(&self) -> f64 {
        self.rates.iter().copied().fold(0.0, f64::max)
    }

    /// The shortest queue to aim at. Others' downlinks are taken to be like this node's, of which what arrives
    /// tells; who receives nothing takes them to be like its uplink.
    fn shortest(&self) -> Duration {
        let downlink = self.most_arrived.max(self.best()).max(self.rate);
        let blocks = Duration::try_from_secs_f64(DOWNLINK / downlink).unwrap_or(LONGEST);
        blocks.clamp(QUEUE, LONGEST)
    }

    /// Bytes that may be on their way.
    fn bytes(&self) -> u64 {
        let queue = self.queue.max(self.shortest());
        ((self.rate * queue.as_secs_f64()) as u64).max(LEAST)
    }

    /// Bytes that may follow what is on its way, until it is asked again.
    pub(super) fn room(&mut self, now: Instant, on_the_way: u64) -> u64 {
        let room = self.bytes().saturating_sub(on_the_way);
        if room > 0 {
            self.more = now;
            return room;
        }
        if self.delay.is_some_and(|delay| delay < NEAR) {
            let more = MORE * self.rate * now.duration_since(self.more).as_secs_f64();
            let last = self.last.max(1.0);
            if more >= last {
                self.more = now;
                // As blocks are counted: a large one for less than it is.
                return (more * (MOST as f64 / last).min(1.0)) as u64;
            }
        } else {
            self.more = now;
        }
        let pause = AT_LEAST_EVERY.mul_f64((self.last / AT_LEAST).max(1.0));
        let left = self.left.map(|left| now.duration_since(left));
        u64::from(left.is_none_or(|since| since >= pause.min(AT_LAST)))
    }

    /// How long it takes until there is room, if the uplink carries what it did.
    pub(super) fn until_room(&self, on_the_way: u64) -> Duration {
        let too_many = on_the_way.saturating_sub(self.bytes());
        Duration::try_from_secs_f64(too_many as f64 / self.rate).unwrap_or_default()
    }

    /// A block of this size leaves.
    pub(super) fn leaves(&mut self, now: Instant, bytes: u64) {
        (self.left, self.last) = (Some(now), bytes as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: u64 = 64 << 10;
    /// A downlink of 104 Mbit/s, bytes each millisecond.
    const DOWN_MS: u64 = 13_000;

    /// An uplink with a queue, behind which others take `late` more to acknowledge than their way is long;
    /// blocks are sent whenever there is room for more than 6 s, which is looked at every 5 ms. `elsewhere` are
    /// bytes on their way that never were in the uplink's queue. The rate and the uplink's mean queue of the
    /// last 3 s.
    fn runs(rate: f64, late: Duration, elsewhere: u64, block: u64) -> (f64, Duration) {
        runs_beside(DOWN_MS, rate, late, elsewhere, block)
    }

    /// The same, and so much is received each millisecond.
    fn runs_beside(
        came: u64,
        rate: f64,
        late: Duration,
        elsewhere: u64,
        block: u64,
    ) -> (f64, Duration) {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        let step = Duration::from_millis(1);
        let (mut queued, mut on_the_way) = (0.0_f64, VecDeque::new());
        let (mut sent, mut queues) = (0.0, 0.0);
        for n in 0..6000_u32 {
            let now = start + step * n;
            let drained = queued.min(rate * step.as_secs_f64());
            queued -= drained;
            on_the_way.push_back((now + late, drained));
            let mut acked = 0.0;
            while on_the_way.front().is_some_and(|(at, _)| *at <= now) {
                acked += on_the_way.pop_front().map_or(0.0, |(_, bytes)| bytes);
            }
            let delay = late + Duration::from_secs_f64(queued / rate);
            budget.acked(now, acked as u64, came, Some(delay));
            let flying: f64 = on_the_way.iter().map(|(_, bytes)| bytes).sum();
            let mut unacked = (queued + flying) as u64 + elsewhere;
            // Receivers have asked for at most this much.
            let asked = elsewhere + 8 * block + (rate * (0.3 + late.as_secs_f64())) as u64;
            budget.begin(now);
            let mut room = match n % 5 {
                0 if budget.is_open(now) => u64::MAX,
                0 => budget.room(now, unacked),
                _ => 0,
            };
            while unacked < asked && room > 0 {
                queued += block as f64;
                unacked += block;
                room = room.saturating_sub(block);
                budget.leaves(now, block);
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
        for (rate, block) in [
            (3e6, BLOCK),
            (12e6, BLOCK),
            (12e6, 8 * BLOCK),
            (120e6, 16 * BLOCK),
        ] {
            let (got, queue) = runs(rate, Duration::from_millis(1), 0, block);
            assert!(got > 0.98 * rate, "{got} of {rate}");
            // More than 300 ms of blocks were asked for. The last one is whole.
            let one = Duration::from_secs_f64(block as f64 / rate);
            assert!(
                queue < QUEUE + one + Duration::from_millis(10),
                "{queue:?} at {rate}"
            );
        }
    }

    #[test]
    fn what_others_take_to_answer_costs_little() {
        for (late, part) in [(40, 0.99), (100, 0.6), (200, 0.5), (400, 0.5)] {
            let rate = 12e6;
            let (got, _) = runs(rate, Duration::from_millis(late), 0, BLOCK);
            assert!(got > part * rate, "{got} of {rate} over {late} ms");
        }
    }

    #[test]
    fn where_downlinks_are_slow_the_queue_is_longer() {
        // 50 Mbit/s each way, where acknowledgements wait behind eight blocks at the receivers.
        let (rate, late) = (6.25e6, Duration::from_millis(85));
        let (got, _) = runs_beside(6250, rate, late, 0, BLOCK);
        assert!(got > 0.98 * rate, "{got} of {rate}");
        // Who receives faster than it sends is told sooner.
        let (_, queue) = runs(rate, Duration::from_millis(1), 0, BLOCK);
        assert!(queue < QUEUE + Duration::from_millis(21), "{queue:?}");
    }

    #[test]
    fn what_waits_elsewhere_costs_little_while_somebody_hears_this_node() {
        for rate in [3e6, 12e6, 120e6] {
            let (got, queue) = runs(rate, Duration::from_millis(1), 20 << 20, BLOCK);
            assert!(got > 0.9 * rate, "{got} of {rate}");
            let aim = QUEUE + Duration::from_millis(25);
            assert!(queue < aim, "{queue:?} at {rate}");
        }
    }

    #[test]
    fn a_block_leaves_now_and_then_whatever_is_on_its_way() {
        for (block, expected) in [(1, 40), (BLOCK, 40), (4 * BLOCK, 10), (64 * BLOCK, 2)] {
            let start = Instant::now();
            let mut budget = Budget::new(start);
            budget.leaves(start, block);
            let mut blocks = 0;
            for n in 1..=2000 {
                let now = start + Duration::from_millis(n);
                budget.acked(now, 1, DOWN_MS, None);
                if budget.room(now, 1 << 30) > 0 {
                    budget.leaves(now, block);
                    blocks += 1;
                }
            }
            assert_eq!(blocks, expected, "of {block} bytes in 2 s");
        }
    }

    #[test]
    fn a_queue_that_grew_shrinks_when_the_uplink_carries_again_what_it_did() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        let mut queues = vec![];
        for n in 0..1400_u64 {
            let now = start + Duration::from_millis(10) * n as u32;
            let is_slow = (200..400).contains(&n);
            budget.looked(is_slow);
            budget.acked(
                now,
                if is_slow { 30_000 } else { 100_000 },
                10 * DOWN_MS,
                None,
            );
            queues.push(budget.queue);
        }
        assert_eq!(queues[199], QUEUE);
        assert!(queues[399] > QUEUE * 3, "{:?}", queues[399]);
        assert_eq!(queues[1399], QUEUE, "ten seconds later");
    }

    #[test]
    fn at_first_and_after_a_rest_nobody_is_held_back() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        // A node may have nothing to send for long.
        let mut now = start + Duration::from_secs(3600);
        for rest in [0, 60] {
            now += Duration::from_secs(rest);
            assert!(budget.begin(now));
            assert!(budget.is_open(now));
            for _ in 0..40 {
                budget.leaves(now, BLOCK);
                now += Duration::from_millis(10);
                assert!(!budget.begin(now));
                budget.acked(now, 10_000, 10 * DOWN_MS, None);
            }
            assert!(!budget.is_open(now));
            assert_eq!(budget.bytes(), LEAST, "a megabyte a second");
        }
    }

    #[test]
    fn who_hears_of_no_acknowledgement_holds_nobody_back() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        budget.begin(start);
        let now = start + Duration::from_secs(1);
        budget.leaves(now, BLOCK);
        budget.acked(now, 0, 0, None);
        assert!(budget.is_open(now));
    }
}
