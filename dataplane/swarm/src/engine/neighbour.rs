//! What an engine remembers of one neighbour: three bitmaps and small lists, each with a bound that
//! the neighbour cannot move.

use super::types::{NeighbourId, NeighbourInfo, Stripe, Wanted};
use crate::bitmap::BlockSet;
use core::time::Duration;
use std::collections::VecDeque;

/// What both ends need for a request and its block, be the way ever so short: four turns of a thread, each
/// of which may have to be woken first.
const AT_BOTH_ENDS: Duration = Duration::from_micros(500);
/// The same where blocks come one behind the other so fast that several are in the sockets' buffers, being checked
/// and being stored at any time: a pair at 12 Gbit/s moves six of 512 KiB meanwhile, and was kept waiting for
/// requests without this.
pub(super) const IN_HAND: Duration = Duration::from_millis(2);

/// A request that waits for its DATA.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outstanding {
    pub(super) block: u32,
    pub(super) since: Duration,
}

#[derive(Debug)]
pub(super) struct Neighbour {
    pub(super) id: NeighbourId,
    /// Holds a lease; it is pushing until it has passed.
    pub(super) emitter: bool,
    pub(super) passed: bool,
    pub(super) rtt: Duration,

    /// What may be requested of it.
    pub(super) may_ask: Option<Stripe>,

    /// Blocks it announced.
    pub(super) has: BlockSet,
    /// Whether it told what it holds, be it nothing.
    pub(super) told: bool,
    /// Of those, the ones that may be requested; unused when that is all of them.
    pub(super) offers: BlockSet,
    /// Of those, how many this node wants and has asked nobody for.
    pub(super) useful: u32,
    /// What it said it wants.
    pub(super) want: Wanted,

    /// Our requests it has not answered. At most the window.
    pub(super) outstanding: Vec<Outstanding>,
    /// When each push that it may still send was allowed, oldest first. Bounded by `MAX_CREDIT`.
    pub(super) credits: VecDeque<Duration>,
    /// Blocks that may be on their way at once since those before came without a queue; zero while
    /// that says nothing.
    pub(super) reach: u32,
    /// DATA that may still arrive for requests taken back.
    pub(super) stale: u32,

    /// Its requests we have not answered. Bounded by `MAX_QUEUE`.
    pub(super) queue: VecDeque<u32>,
    /// Pushes we may still send it. Bounded by `MAX_CREDIT`.
    pub(super) credit: u32,
    /// Blocks emitted to it that it has not announced.
    pub(super) unacked: u32,
    /// It announced a block that was emitted to it under the lease that there is: it can check them.
    pub(super) checked: bool,
    /// Since when it is being parted from: nothing more is asked of it.
    pub(super) parting: Option<Duration>,
    /// A `Wake` is on its way and `next_data` has not come back empty since.
    pub(super) woken: bool,

    pub(super) last_heard: Duration,
    pub(super) last_said: Duration,
    /// When it last sent DATA, or was first asked for some after a time of owing none.
    pub(super) last_data: Duration,
    /// Blocks a second, smoothed; zero when not known.
    pub(super) rate: f32,
    /// The rate it told, in blocks per 1000 s.
    pub(super) told_rate: Option<u64>,
}

impl Neighbour {
    pub(super) fn new(id: NeighbourId, info: NeighbourInfo, now: Duration) -> Self {
        Self {
            id,
            emitter: info.emitter,
            passed: false,
            rtt: info.rtt,
            may_ask: info.may_ask,
            has: BlockSet::new(),
            told: false,
            offers: BlockSet::new(),
            useful: 0,
            want: Wanted::Nothing,
            outstanding: Vec::new(),
            credits: VecDeque::new(),
            reach: 0,
            stale: 0,
            queue: VecDeque::new(),
            credit: 0,
            unacked: 0,
            checked: false,
            parting: None,
            woken: false,
            last_heard: now,
            last_said: now,
            last_data: now,
            rate: 0.0,
            told_rate: None,
        }
    }

    /// The blocks it announced that may be requested of it.
    pub(super) fn offers(&self) -> &BlockSet {
        if self.may_ask == Some(Stripe::WHOLE) {
            &self.has
        } else {
            &self.offers
        }
    }

    /// Takes note of a block it announced; whether it may be requested of it.
    pub(super) fn announced(&mut self, block: u32) -> bool {
        self.has.insert(block);
        match self.may_ask {
            Some(Stripe::WHOLE) => true,
            Some(stripe) => stripe.contains(block) && self.offers.insert(block),
            None => false,
        }
    }

    /// Whether it pushes and announces nothing.
    pub(super) fn pushing(&self) -> bool {
        self.emitter && !self.passed
    }

    /// Whether it still needs `block`, as far as it told.
    pub(super) fn lacks(&self, block: u32) -> bool {
        self.want.contains(block) && !self.has.contains(block)
    }

    /// Forgets that `block` was asked of it; whether it was.
    pub(super) fn forget(&mut self, block: u32) -> Option<Outstanding> {
        let at = self.outstanding.iter().position(|o| o.block == block)?;
        Some(self.outstanding.swap_remove(at))
    }

    /// How long a block takes that waits for no other; nothing while the round trip is not known.
    pub(super) fn trip(&self) -> Option<Duration> {
        (!self.rtt.is_zero()).then(|| self.rtt.max(AT_BOTH_ENDS))
    }

    /// A block came this long after it was asked for or allowed, of at most `window` on their way:
    /// whether the way holds more. Who starts at a block or three on a way of 100 ms would else need
    /// seconds to find out, as the rate is smoothed.
    pub(super) fn came(&mut self, waited: Duration, window: u32, at_most: bool) {
        let Some(trip) = self.trip() else { return };
        if waited * 4 <= trip * 5 {
            if at_most {
                self.reach = self.reach.max(window + 1);
            }
        } else if waited * 2 > trip * 3 {
            self.reach = self.reach.saturating_sub(1);
        }
    }

    /// A block arrived from it: smooths the rate. The first block after a pause says nothing.
    pub(super) fn delivered(&mut self, now: Duration) {
        let gap = now.saturating_sub(self.last_data).as_secs_f32().max(1e-6);
        let sample = 1.0 / gap;
        self.rate = if self.rate == 0.0 {
            sample.min(1000.0)
        } else {
            // A mean of intervals, not of rates: bursts would dominate the latter.
            1.0 / (0.9 / self.rate + 0.1 / sample)
        };
        self.last_data = now;
    }
}
