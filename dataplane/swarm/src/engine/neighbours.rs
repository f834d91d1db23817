//! Neighbours come, change and go.

use super::emission::Emission;
use super::neighbour::Neighbour;
use super::{Control, Engine, NeighbourId, NeighbourInfo, Stripe};
use crate::bitmap::BlockSet;
use core::time::Duration;

impl Engine {
    /// A connection is up. Whatever was known under this id is forgotten.
    pub fn join(&mut self, now: Duration, id: NeighbourId, info: NeighbourInfo) {
        self.leave(now, id);
        self.ids.push(id);
        self.neighbours.push(Neighbour::new(id, info, now));
        let mut visible = self.held.clone();
        visible.subtract(&self.hidden);
        self.say(now, id, Control::Bitmap(visible));
        if self.emission.as_ref().is_some_and(Emission::passed) {
            self.say(now, id, Control::Pass);
        }
        if info.emitter {
            self.greet_emitter(now, id);
        }
    }

    /// A connection is down: its requests and what was emitted to it go to others.
    pub fn leave(&mut self, now: Duration, id: NeighbourId) {
        let Some(at) = self.slot(id) else { return };
        self.ids.swap_remove(at);
        let gone = self.neighbours.swap_remove(at);
        for index in gone.offers().iter() {
            self.holders[index as usize] -= 1;
        }
        for outstanding in &gone.outstanding {
            self.release(outstanding.block);
        }
        self.emission_lost_owner(id);
        self.timers.exhausted = false;
        self.fill_all(now);
    }

    /// The scheduler gave this neighbour's place to another: nothing more is asked of it, and when
    /// what was asked has come, [`super::Action::Part`] follows. So no byte under way is lost.
    pub fn part(&mut self, now: Duration, id: NeighbourId) {
        if let Some(at) = self.slot(id) {
            self.neighbours[at].parting.get_or_insert(now);
            self.end_partings(now);
        }
    }

    /// The scheduler told what may be asked of this neighbour, see [`NeighbourInfo::may_ask`]. What
    /// was asked before still comes.
    pub fn set_may_ask(&mut self, now: Duration, id: NeighbourId, may_ask: Option<Stripe>) {
        let Some(at) = self.slot(id) else { return };
        let neighbour = &mut self.neighbours[at];
        if neighbour.may_ask == may_ask {
            return;
        }
        for index in neighbour.offers().iter() {
            self.holders[index as usize] -= 1;
        }
        neighbour.may_ask = may_ask;
        let allowed = |index: &u32| may_ask.is_some_and(|stripe| stripe.contains(*index));
        neighbour.offers = match may_ask {
            Some(Stripe::WHOLE) => BlockSet::new(),
            _ => neighbour.has.iter().filter(allowed).collect(),
        };
        for index in neighbour.offers().iter() {
            self.holders[index as usize] += 1;
        }
        neighbour.useful = neighbour.offers().common(&self.need);
        self.fill(now, at);
    }

    /// The scheduler wants this neighbour kept after all.
    pub fn keep(&mut self, now: Duration, id: NeighbourId) {
        if let Some(at) = self.slot(id) {
            self.neighbours[at].parting = None;
            self.fill(now, at);
        }
    }

    /// The scheduler told that this neighbour holds a lease now, or no longer does.
    pub fn set_emitter(&mut self, now: Duration, id: NeighbourId, emitter: bool) {
        let Some(at) = self.slot(id) else { return };
        let neighbour = &mut self.neighbours[at];
        if neighbour.emitter == emitter {
            return;
        }
        neighbour.emitter = emitter;
        neighbour.passed = false;
        // What was asked of it before it announced anything will not come.
        let (has, outstanding) = (&neighbour.has, &mut neighbour.outstanding);
        let mut lost = Vec::new();
        outstanding.retain(|o| {
            lost.extend((!has.contains(o.block)).then_some(o.block));
            has.contains(o.block)
        });
        neighbour.stale += lost.len() as u32;
        for block in lost {
            self.release(block);
        }
        self.fill_all(now);
        if emitter {
            self.greet_emitter(now, id);
        }
    }

    /// This task's share of what the node takes in, above 0 and at most 1: windows and credit shrink
    /// with it, to one block at the least.
    pub fn set_share(&mut self, share: f32) {
        self.share = share;
    }

    /// Whether there is a block for this neighbour that no other has got of this emitter.
    #[must_use]
    pub fn emits_to(&self, id: NeighbourId) -> bool {
        self.slot(id).is_some_and(|at| self.has_emission(at))
    }

    /// The connection's smallest round-trip time, measured anew.
    pub fn set_rtt(&mut self, id: NeighbourId, rtt: Duration) {
        if let Some(at) = self.slot(id) {
            self.neighbours[at].rtt = rtt;
        }
    }

    /// The scheduler has no more neighbours to give: none are asked for until one leaves.
    pub fn neighbours_exhausted(&mut self) {
        self.timers.exhausted = true;
    }
}
