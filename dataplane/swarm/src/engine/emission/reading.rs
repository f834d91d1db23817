//! What the lease-holder reads of the origin: what somebody lacks and nobody is known to hold.
//!
//! A successor first collects what neighbours hold, so that only what nobody announces leaves the origin
//! again. What they say they hold is not read again, unless the swarm stands still: then a claim was
//! false, or the claimant serves nobody.

use super::Engine;
use core::ops::Range;
use core::time::Duration;

impl Engine {
    /// Members are known by name that have not told yet what they hold: bitmaps are collected until
    /// [`Self::heard_all`], for this long from now at most.
    pub fn collect_named(&mut self, now: Duration, at_most: Duration) {
        if let Some(emission) = &mut self.emission {
            emission.collect_named_until = emission.collect_until.max(now + at_most);
        }
    }

    /// No member known by name is waited for any more. Others may still tell what they hold, so bitmaps are
    /// collected for as long as `start_emitting` was told.
    pub fn heard_all(&mut self, now: Duration) {
        if let Some(emission) = &mut self.emission {
            emission.collect_named_until = emission.collect_until;
            self.end_collecting(now);
        }
    }

    /// Whether bitmaps are being collected.
    #[must_use]
    pub fn is_collecting(&self) -> bool {
        self.emission.as_ref().is_some_and(|e| !e.collected)
    }

    pub(super) fn end_collecting(&mut self, now: Duration) {
        let Some(emission) = &mut self.emission else {
            return;
        };
        if !emission.collected && now >= emission.collect_named_until {
            emission.collected = true;
            emission.last_news = now;
            self.timers.pass_due = true;
            self.wake_emission();
        }
    }

    /// Runs of at most `blocks` blocks to fetch from the origin next, in the order to fetch them:
    /// blocks that readers wait for, then ascending. Blocks that this node or a neighbour wants and
    /// that nobody is known to hold; they stay in the list until `origin_block_ready`, so the
    /// caller leaves out those under way. Empty while bitmaps are being collected.
    #[must_use]
    pub fn origin_wanted(&self, blocks: u32) -> Vec<Range<u32>> {
        let mut runs: Vec<Range<u32>> = Vec::new();
        let mut left = blocks;
        let Some(emission) = self.emission.as_ref().filter(|e| e.collected) else {
            return runs;
        };
        let mut take = |index: u32| {
            match runs.last_mut() {
                Some(last) if last.end == index => last.end += 1,
                _ => runs.push(index..index + 1),
            }
            left -= 1;
            left > 0
        };
        let nobody =
            self.wanted.is_nothing() && self.neighbours.iter().all(|n| n.want.is_nothing());
        if blocks == 0 || nobody {
            return runs;
        }
        let urgent = emission.urgent.iter().filter(|i| self.fetches(*i));
        for index in urgent {
            if !take(index) {
                return runs;
            }
        }
        let mut index = 0;
        loop {
            index = self.held.next_missing(index);
            if index >= self.limit() {
                return runs;
            }
            if !emission.urgent.contains(index) && self.fetches(index) && !take(index) {
                return runs;
            }
            index += 1;
        }
    }

    /// Whether time alone can make this node emit or fetch something.
    pub(in crate::engine) fn may_have_to_fetch(&self) -> bool {
        let complete = self.total == Some(self.held.count());
        self.is_emitting() || (self.emission.is_some() && !complete)
    }

    /// Whether the origin is to be asked for this block.
    pub(super) fn fetches(&self, index: u32) -> bool {
        let Some(emission) = &self.emission else {
            return false;
        };
        emission.stripe.contains(index)
            && !self.held.contains(index)
            && (emission.distrust || self.holders.get(index as usize).is_none_or(|n| *n == 0))
            && (self.wanted.contains(index) || self.neighbours.iter().any(|n| n.lacks(index)))
    }

    /// A neighbour sent a block that was missing: the swarm does not stand still.
    pub(in crate::engine) fn emission_news(&mut self, now: Duration) {
        if let Some(emission) = &mut self.emission {
            emission.last_news = now;
            emission.distrust = false;
        }
    }
}
