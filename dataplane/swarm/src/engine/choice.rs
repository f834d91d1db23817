//! Which block to ask of which parent, and how many at once.
//!
//! With probability one half the lowest block that the parent has (after a reader's cursor, where
//! there is a reader), else the rarest of a sample. Windows are short: deep queues are the main
//! loss of a swarm, since a block asked for early is a block that another neighbour cannot bring.

use super::neighbour::{IN_HAND, Outstanding};
use super::{Action, Control, Engine, MAX_CREDIT, NeighbourId};
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
        if neighbour.parting.is_some() {
            return;
        }
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
        if !self.requested.insert(index) && !self.twice.contains(&index) {
            self.twice.push(index);
        }
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
        self.twice.retain(|twice| *twice != index);
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
        self.shared(self.whole_window(at))
    }

    /// The same if this were the node's only task.
    pub(super) fn whole_window(&self, at: usize) -> u32 {
        let config = &self.config;
        let base = if self.neighbours.len() <= config.few_parents {
            config.window_few
        } else {
            config.window
        };
        let shifted = (base as i32 + self.timers.window_shift).max(1) as u32;
        let window = shifted.max(self.in_flight(at));
        window.min(config.window_max.max(1))
    }

    /// This task's part of a window.
    pub(super) fn shared(&self, window: u32) -> u32 {
        if self.share >= 1.0 {
            return window;
        }
        ((window as f32 * self.share) as u32).max(1)
    }

    /// Pushes that may be on their way from this emitter, if this were the node's only task.
    pub(super) fn whole_credit(&self, at: usize) -> u32 {
        let credit = self.config.credit.max(self.in_flight(at));
        credit.min(self.config.window_max.min(MAX_CREDIT))
    }

    /// Blocks the path to this neighbour holds, with some room to find out that it holds more;
    /// zero while rate or round trip are not known.
    fn in_flight(&self, at: usize) -> u32 {
        let neighbour = &self.neighbours[at];
        // Who gets less than a block in that time is not kept waiting by it: the shortest windows stay possible.
        let is_quick = neighbour.rate * IN_HAND.as_secs_f32() >= 1.0;
        let at_least = if is_quick { IN_HAND } else { Duration::ZERO };
        let trip = neighbour.trip().map_or(Duration::ZERO, |t| t.max(at_least));
        let blocks = neighbour.rate * trip.as_secs_f32();
        if blocks < 0.1 {
            return neighbour.reach;
        }
        ((blocks * 1.25).ceil() as u32 + 1).max(neighbour.reach)
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
        let useful = self.neighbours[at].useful;
        let sample = self.config.sample.max(1);
        let first = self.need_from as usize / 64;
        let words = has.words().min(self.need.words());
        let mut best = Rarest::default();
        // Every `step`th candidate from a random one on, so that the sample is spread over all of
        // them: a run of neighbours would be all old or all new blocks.
        let step = (f64::from(useful) / f64::from(sample)).max(1.0);
        let mut next = self.rng.f64() * step;
        let mut seen = 0.0;
        for word in first..words {
            let mut bits = has.word(word) & self.need.word(word);
            if bits == 0 {
                continue;
            }
            let base = word as u32 * 64;
            seen += f64::from(bits.count_ones());
            if step == 1.0 {
                while bits != 0 {
                    best.offer(&mut self.rng, base + bits.trailing_zeros(), &self.holders);
                    bits &= bits - 1;
                }
            }
            while step > 1.0 && next < seen {
                let turn = self.rng.u32(..64);
                let bit = (bits.rotate_right(turn).trailing_zeros() + turn) % 64;
                best.offer(&mut self.rng, base + bit, &self.holders);
                next += step;
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
