//! Which block to ask of which parent, and how many at once.
//!
//! With probability one half the lowest block that the parent has (after a reader's cursor, where
//! there is a reader), else the rarest of a sample. Windows are short: deep queues are the main
//! loss of a swarm, since a block asked for early is a block that another neighbour cannot bring.

use super::neighbour::Outstanding;
use super::{Action, Control, Engine, NeighbourId};
use crate::bitmap::BlockSet;
use core::time::Duration;

impl Engine {
    /// Asks every parent for what fits its window.
    pub(super) fn fill_all(&mut self, now: Duration) {
        for at in 0..self.neighbours.len() {
            self.fill(now, at);
        }
    }

    /// Asks one parent for what fits its window.
    pub(super) fn fill(&mut self, now: Duration, at: usize) {
        let neighbour = &self.neighbours[at];
        if neighbour.useful == 0 {
            if self.total == Some(1) && neighbour.pushing() {
                self.ask_emitter_for_single(now, at);
            }
            return;
        }
        let window = self.window(at) as usize;
        while self.neighbours[at].outstanding.len() < window {
            let Some(index) = self.choose(at) else { break };
            self.request(now, at, index);
        }
    }

    /// A task of one block has no first pass worth the name.
    fn ask_emitter_for_single(&mut self, now: Duration, at: usize) {
        if self.need.contains(0) {
            self.request(now, at, 0);
        }
    }

    pub(super) fn request(&mut self, now: Duration, at: usize, index: u32) {
        self.unneed(index);
        self.requested.insert(index);
        let neighbour = &mut self.neighbours[at];
        if neighbour.outstanding.is_empty() {
            neighbour.last_data = now;
            neighbour.last_heard = now;
        }
        neighbour.outstanding.push(Outstanding {
            block: index,
            since: now,
        });
        neighbour.last_said = now;
        self.stats.requests += 1;
        let request = Control::Request(index);
        self.actions.push_back(Action::Send(neighbour.id, request));
    }

    /// The block arrived: nobody else needs to send it.
    pub(super) fn cancel_everywhere(&mut self, now: Duration, index: u32) {
        self.requested.remove(index);
        for at in 0..self.neighbours.len() {
            if self.neighbours[at].forget(index).is_some() {
                self.neighbours[at].stale += 1;
                let id: NeighbourId = self.neighbours[at].id;
                self.say(now, id, Control::Cancel(index));
            }
        }
    }

    /// Requests that may be outstanding at this parent.
    pub(super) fn window(&self, at: usize) -> u32 {
        let config = &self.config;
        let base = if self.neighbours.len() <= config.few_parents {
            config.window_few
        } else {
            config.window
        };
        let shifted = (base as i32 + self.timers.window_shift).max(1) as u32;
        shifted
            .max(self.in_flight(at))
            .min(config.window_max.max(1))
    }

    /// Blocks the path to this neighbour holds, with some room to find out that it holds more;
    /// zero while rate or round trip are not known.
    pub(super) fn in_flight(&self, at: usize) -> u32 {
        let neighbour = &self.neighbours[at];
        let blocks = neighbour.rate * neighbour.rtt.as_secs_f32();
        if blocks < 0.1 {
            return 0;
        }
        (blocks * 1.25).ceil() as u32 + 1
    }

    fn choose(&mut self, at: usize) -> Option<u32> {
        let has = self.neighbours[at].offers();
        if self.neighbours[at].useful == 0 {
            return None;
        }
        if self.rng.f32() < self.config.in_order_probability {
            let start = match self.readers.len() {
                0 => 0,
                n => self.readers[self.rng.usize(..n)].1,
            };
            if start > self.need_from
                && let Some(index) = self.need.next_in_both(has, start)
            {
                return Some(index);
            }
            self.need_from = self.need.next(self.need_from)?;
            return self.need.next_in_both(has, self.need_from);
        }
        let few = self.neighbours[at].useful <= self.config.sample;
        let mut best = Rarest::default();
        if few {
            let from = self.need_from as usize / 64;
            scan(has, &self.need, from, usize::MAX, |index| {
                best.offer(&mut self.rng, index, &self.holders);
                true
            });
            return best.index;
        }
        // Probes at random places: a run of eight each, so that the sample is spread and a probe's
        // walk is short.
        let words = has.words().min(self.need.words());
        for _ in 0..self.config.sample.div_ceil(8) {
            let mut left = 8;
            let start = self.rng.usize(..words);
            let mut offer = |index| {
                best.offer(&mut self.rng, index, &self.holders);
                left -= 1;
                left > 0
            };
            if scan(has, &self.need, start, usize::MAX, &mut offer) {
                scan(has, &self.need, 0, start, &mut offer);
            }
        }
        best.index
    }
}

/// The block with the fewest holders seen so far, ties random.
#[derive(Default)]
struct Rarest {
    index: Option<u32>,
    holders: u16,
    ties: u32,
}

impl Rarest {
    fn offer(&mut self, rng: &mut fastrand::Rng, index: u32, holders: &[u16]) {
        let count = holders[index as usize];
        if self.index.is_none() || count < self.holders {
            (self.index, self.holders, self.ties) = (Some(index), count, 1);
        } else if count == self.holders {
            self.ties += 1;
            if rng.u32(..self.ties) == 0 {
                self.index = Some(index);
            }
        }
    }
}

/// Gives `visit` the blocks in both sets, in the words `from..to`, until it returns false; whether
/// it never did.
fn scan(
    a: &BlockSet,
    b: &BlockSet,
    from: usize,
    to: usize,
    mut visit: impl FnMut(u32) -> bool,
) -> bool {
    for at in from..a.words().min(b.words()).min(to) {
        let mut bits = a.word(at) & b.word(at);
        while bits != 0 {
            if !visit(at as u32 * 64 + bits.trailing_zeros()) {
                return false;
            }
            bits &= bits - 1;
        }
    }
    true
}
