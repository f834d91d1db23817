//! The lease-holder's part: every block leaves the emitter once before any leaves it twice.
//!
//! `ready` = blocks that are held and to be emitted: those that no neighbour announced, and all that
//! arrive while the swarm stands still. A neighbour with credit gets the lowest of them that it wants; readers' blocks go
//! first. Whoever returns credit faster owns more. A block whose owner does not announce it in
//! time, or leaves, is ready again for another neighbour. When nothing that a neighbour wants is
//! ready or still to come from the origin, the emitter passes: it announces all that it holds and
//! is an ordinary parent.
//!
//! `reading`: what is fetched of the origin. The caller goes on asking for `origin_wanted` after the
//! pass, as long as it holds the lease.
//!
//! Bounds: `outstanding` has at most [`MAX_UNACKED`] entries a neighbour.

mod reading;

use super::neighbour::Neighbour;
use super::{Action, Control, Engine, NeighbourId, Stripe, Wanted};
use crate::bitmap::BlockSet;
use crate::runs::Runs;
use core::ops::Range;
use core::time::Duration;

/// Blocks emitted to one neighbour that it has not announced; an honest one has a few.
const MAX_UNACKED: u32 = 96;

/// That many of a pass leave in order, before it is said to be over: what came out of order is there by then. If it
/// were not, its receiver would ask for it once more.
const LAST: u32 = 16;

/// Blocks of one range that can be hurried by one message.
const MAX_HURRY: usize = 1024;

#[derive(Debug, Clone, Copy)]
struct Emitted {
    block: u32,
    owner: NeighbourId,
    at: Duration,
    timed_out: bool,
}

/// State of an emitter. Made by `start_emitting`.
#[derive(Debug)]
pub(super) struct Emission {
    stripe: Stripe,
    ready: BlockSet,
    urgent: BlockSet,
    /// Emitted once or more.
    emitted: BlockSet,
    outstanding: Vec<Emitted>,
    /// Mean time from sending a block to hearing that its owner has it.
    mean_ack: Duration,
    /// Neighbours' bitmaps are being collected at least until then,
    collect_until: Duration,
    /// and until then unless `heard_all` comes first. Nothing is fetched or emitted meanwhile.
    collect_named_until: Duration,
    collected: bool,
    passed: bool,
    /// When a neighbour last announced or sent anything new. Long ago: some of what was announced may be a
    /// lie that keeps blocks from being fetched, so it is not believed that neighbours will give each other
    /// what they hold.
    last_news: Duration,
    distrust: bool,
}

impl Emission {
    pub(super) fn passed(&self) -> bool {
        self.passed
    }

    pub(super) fn memory(&self) -> usize {
        (self.ready.words() + self.urgent.words() + self.emitted.words()) * 8
            + self.outstanding.capacity() * size_of::<Emitted>()
    }
}

impl Engine {
    /// This node holds the lease for a stripe now: it fetches `origin_wanted` and emits.
    ///
    /// `collect` is zero for a task's first emitter. A successor waits that long for neighbours'
    /// bitmaps, or longer by [`Self::collect_named`], before it fetches or emits anything, so that
    /// only what nobody announces leaves the origin again.
    pub fn start_emitting(&mut self, now: Duration, stripe: Stripe, collect: Duration) {
        let mut emission = Emission {
            stripe,
            ready: BlockSet::new(),
            urgent: BlockSet::new(),
            emitted: BlockSet::new(),
            outstanding: Vec::new(),
            mean_ack: Duration::ZERO,
            collect_until: now + collect,
            collect_named_until: now + collect,
            collected: collect.is_zero(),
            passed: false,
            last_news: now + collect,
            distrust: false,
        };
        for neighbour in &mut self.neighbours {
            neighbour.unacked = 0;
            neighbour.checked = false;
        }
        if self.neighbours.is_empty() && self.config.seed_unique {
            // Announced to nobody yet, so the first pass covers what is held.
            self.hidden = self.held.clone();
            let held = self.held.iter().filter(|index| stripe.contains(*index));
            emission.ready = held.filter(|i| self.holders[*i as usize] == 0).collect();
        }
        self.emission = Some(emission);
        self.wake_emission();
    }

    /// The lease is for other blocks from now on: another emitter's share came to this node, or went.
    /// What is under way goes on.
    pub fn set_stripe(&mut self, now: Duration, stripe: Stripe) {
        let Some(emission) = &mut self.emission else {
            return;
        };
        emission.stripe = stripe;
        self.pass_if_done(now);
        self.wake_emission();
    }

    /// The lease is another's: what is held is announced, nothing is fetched or pushed any more.
    pub fn stop_emitting(&mut self, now: Duration) {
        self.emission = None;
        self.reveal(now);
    }

    /// Whether this node emits and has not passed.
    #[must_use]
    pub fn is_emitting(&self) -> bool {
        self.emission.as_ref().is_some_and(|e| !e.passed)
    }

    /// The origin delivered a block and it is on disk.
    pub fn origin_block_ready(&mut self, now: Duration, index: u32) {
        if index >= self.limit() || self.held.contains(index) {
            return;
        }
        self.stats.from_origin += 1;
        self.store(now, index);
        self.check_complete();
        if let Some(emission) = &mut self.emission
            && !emission.passed
            && self.config.seed_unique
            && (emission.distrust || self.holders[index as usize] == 0)
        {
            emission.ready.insert(index);
        }
        self.wake_emission();
        if self.total == Some(1) {
            for at in 0..self.neighbours.len() {
                self.wake(at);
            }
        }
    }

    /// Whether there are blocks that no neighbour has got of this emitter yet.
    #[must_use]
    pub fn has_first_copies(&self) -> bool {
        let emission = self.emission.as_ref().filter(|e| !e.passed && e.collected);
        emission.is_some_and(|e| !e.ready.is_empty())
    }

    /// Whether a block just stored is kept from neighbours until the first pass is over.
    pub(super) fn hides(&self) -> bool {
        self.config.seed_unique && self.is_emitting()
    }

    /// Readers of a neighbour wait for these.
    pub(super) fn hurry(&mut self, ranges: &[Range<u32>]) {
        let held = &self.held;
        if let Some(emission) = self.emission.as_mut().filter(|e| !e.passed) {
            for range in ranges {
                for index in range.clone().take(MAX_HURRY) {
                    // What is held and not ready has been emitted; hurrying changes nothing.
                    if emission.ready.contains(index) || !held.contains(index) {
                        emission.urgent.insert(index);
                    }
                }
            }
        }
    }

    pub(super) fn has_emission(&self, at: usize) -> bool {
        self.emission_for(at).is_some()
    }

    /// The block to push to this neighbour next.
    fn emission_for(&self, at: usize) -> Option<u32> {
        let emission = self.emission.as_ref()?;
        let neighbour = &self.neighbours[at];
        if emission.passed
            || !emission.collected
            || neighbour.credit == 0
            || neighbour.unacked >= MAX_UNACKED
            || emission.ready.is_empty()
        {
            return None;
        }
        let urgent = self.first_for(emission, neighbour, |from| {
            emission.ready.next_in_both(&emission.urgent, from)
        });
        urgent.or_else(|| self.first_for(emission, neighbour, |from| emission.ready.next(from)))
    }

    fn first_for(
        &self,
        emission: &Emission,
        neighbour: &Neighbour,
        next: impl Fn(u32) -> Option<u32>,
    ) -> Option<u32> {
        let mut from = 0;
        while let Some(index) = next(from) {
            let had = || {
                let to_it = |e: &Emitted| e.block == index && e.owner == neighbour.id;
                emission.emitted.contains(index) && emission.outstanding.iter().any(to_it)
            };
            if neighbour.lacks(index) && !had() {
                return Some(index);
            }
            from = index + 1;
        }
        None
    }

    pub(super) fn next_emission(&mut self, now: Duration, at: usize) -> Option<u32> {
        let index = self.emission_for(at)?;
        let emission = self.emission.as_mut()?;
        let neighbour = &mut self.neighbours[at];
        emission.ready.remove(index);
        emission.urgent.remove(index);
        self.stats.emitted += 1;
        if !emission.emitted.insert(index) {
            self.stats.reemitted += 1;
        }
        emission.outstanding.push(Emitted {
            block: index,
            owner: neighbour.id,
            at: now,
            timed_out: false,
        });
        neighbour.credit -= 1;
        neighbour.unacked += 1;
        self.timers.pass_due = true;
        Some(index)
    }

    /// The same where it may come out of order, see [`Engine::next_unordered`].
    pub(super) fn next_emission_unordered(&mut self, now: Duration, at: usize) -> Option<u32> {
        let neighbour = &self.neighbours[at];
        let is_last = {
            let ready = &self.emission.as_ref()?.ready;
            let mut lacked = ready.iter().filter(|index| neighbour.lacks(*index));
            lacked.nth(LAST as usize).is_none()
        };
        // How long the last block is may be said just before it.
        let is_end = |index: u32| self.total == Some(index + 1);
        if !neighbour.checked || is_last || self.emission_for(at).is_none_or(is_end) {
            return None;
        }
        self.next_emission(now, at)
    }

    /// The clock of an acknowledgement runs from the moment the block has left.
    pub(super) fn emission_sent(&mut self, now: Duration, id: NeighbourId, index: u32) {
        if let Some(emission) = &mut self.emission {
            for emitted in &mut emission.outstanding {
                if emitted.block == index && emitted.owner == id {
                    emitted.at = now;
                }
            }
        }
        if core::mem::take(&mut self.timers.pass_due) {
            self.pass_if_done(now);
        }
    }

    /// A neighbour announced a block: it need not be emitted (again).
    pub(super) fn emission_acknowledged(&mut self, at: usize, index: u32) {
        self.emission_news(self.neighbours[at].last_heard);
        let Some(emission) = &mut self.emission else {
            return;
        };
        emission.ready.remove(index);
        emission.urgent.remove(index);
        if !emission.emitted.contains(index) {
            return;
        }
        let now = self.neighbours[at].last_heard;
        let by = self.neighbours[at].id;
        let neighbours = &mut self.neighbours;
        let mean_ack = &mut emission.mean_ack;
        emission.outstanding.retain(|emitted| {
            if emitted.block != index {
                return true;
            }
            if emitted.owner == by {
                neighbours[at].checked = true;
                let took = now.saturating_sub(emitted.at);
                *mean_ack = if mean_ack.is_zero() {
                    took
                } else {
                    (*mean_ack * 7 + took) / 8
                };
            }
            if let Some(owner) = neighbours.iter_mut().find(|n| n.id == emitted.owner) {
                owner.unacked -= 1;
            }
            false
        });
    }

    /// An owner left: what it had not announced is emitted again.
    pub(super) fn emission_lost_owner(&mut self, id: NeighbourId) {
        let Some(emission) = &mut self.emission else {
            return;
        };
        let holders = &self.holders;
        let ready = &mut emission.ready;
        let passed = emission.passed;
        emission.outstanding.retain(|emitted| {
            if emitted.owner == id && !passed && holders[emitted.block as usize] == 0 {
                ready.insert(emitted.block);
            }
            emitted.owner != id
        });
        self.wake_emission();
    }

    /// Emitted blocks that their owners have not announced in time go to others, if any wants them.
    pub(super) fn emission_tick(&mut self, now: Duration) {
        let Some(emission) = &mut self.emission else {
            return;
        };
        let silent = now > emission.last_news + self.config.orphan_after;
        emission.distrust = emission.collected && silent;
        if !emission.collected {
            self.end_collecting(now);
        } else if !emission.passed {
            let patience = self.config.reemit_after.max(emission.mean_ack * 4);
            let mut again = false;
            for emitted in &mut emission.outstanding {
                let late = !emitted.timed_out && now >= emitted.at + patience;
                let other = |n: &Neighbour| n.id != emitted.owner && n.lacks(emitted.block);
                if late && self.neighbours.iter().any(other) {
                    // Once: TCP is reliable, an owner that lives will announce it.
                    emitted.timed_out = true;
                    emission.ready.insert(emitted.block);
                    again = true;
                }
            }
            if again {
                self.wake_emission();
            }
        }
        self.pass_if_done(now);
    }

    pub(super) fn wake_emission(&mut self) {
        if self.emission.as_ref().is_none_or(|e| e.passed) {
            return;
        }
        // Not always the same neighbour first.
        let count = self.neighbours.len();
        let first = if count > 1 {
            self.rng.usize(..count)
        } else {
            0
        };
        for step in 0..count {
            self.wake((first + step) % count);
        }
    }

    fn pass_if_done(&mut self, now: Duration) {
        let Some(emission) = &self.emission else {
            return;
        };
        let Some(total) = self.total else { return };
        if emission.passed || !emission.collected || !self.pass_is_due(emission, total) {
            return;
        }
        if let Some(emission) = &mut self.emission {
            emission.passed = true;
            emission.urgent.clear();
            emission.ready.clear();
        }
        self.reveal(now);
        for at in 0..self.neighbours.len() {
            let id = self.neighbours[at].id;
            self.say(now, id, Control::Pass);
        }
        self.actions.push_back(Action::Passed);
    }

    /// Whether nothing that a neighbour wants waits for its first emission.
    fn pass_is_due(&self, emission: &Emission, total: u32) -> bool {
        if self.neighbours.iter().all(|n| n.want.is_nothing()) {
            return false;
        }
        let whole = |n: &Neighbour| matches!(n.want, Wanted::Whole);
        let ready_wanted = if self.neighbours.iter().any(whole) {
            !emission.ready.is_empty()
        } else {
            let wants = |index| self.neighbours.iter().any(|n| n.want.contains(index));
            emission.ready.iter().any(wants)
        };
        if ready_wanted {
            return false;
        }
        let mut index = self.held.next_missing(0);
        while index < total {
            if self.fetches(index) {
                return false;
            }
            index = self.held.next_missing(index + 1);
        }
        true
    }

    /// Announces all that was hidden.
    fn reveal(&mut self, now: Duration) {
        self.flush_news(now);
        if self.hidden.is_empty() {
            return;
        }
        self.hidden.clear();
        let ranges: Runs = self.held.ranges().collect();
        for at in 0..self.neighbours.len() {
            let id = self.neighbours[at].id;
            self.say(now, id, Control::Have(ranges.clone()));
        }
    }
}
