//! What neighbours say and send. Everything is checked here, before it touches any state.

use super::{Control, Disposition, Engine, MAX_CREDIT, NeighbourId, Receipt, Violation, Wanted};
use core::ops::Range;
use core::time::Duration;

impl Engine {
    /// A message arrived.
    ///
    /// # Errors
    /// When the message is against the protocol: the caller closes the connection, bans the node
    /// and calls [`Engine::leave`]. State has not changed, or only by what was right in it.
    pub fn handle(
        &mut self,
        now: Duration,
        id: NeighbourId,
        message: Control,
    ) -> Result<(), Violation> {
        let at = self.slot(id).ok_or(Violation::UnknownNeighbour)?;
        self.neighbours[at].last_heard = now;
        match message {
            Control::Bitmap(set) => {
                self.check_end(set.end())?;
                self.neighbours[at].told = true;
                self.learn_of(set.end());
                for range in set.ranges() {
                    self.note_held_by(at, range);
                }
                self.fill(now, at);
            }
            Control::Have(ranges) => {
                self.check_ranges(&ranges)?;
                for range in ranges.iter() {
                    self.learn_of(range.end);
                    self.note_held_by(at, range.clone());
                }
                self.fill(now, at);
            }
            // Who does not know the length yet may honestly wish for blocks behind the end.
            Control::Want(mut wanted) => {
                if let Wanted::Some(set) = &mut wanted {
                    set.remove_range(self.limit()..u32::MAX);
                }
                self.neighbours[at].want = wanted;
                self.wake(at);
            }
            Control::Hurry(mut ranges) => {
                let limit = self.limit();
                ranges.iter_mut().for_each(|r| r.end = r.end.min(limit));
                ranges.retain(|r| r.start < r.end);
                self.hurry(&ranges);
                self.wake(at);
            }
            Control::Credit(blocks) => {
                let credit = &mut self.neighbours[at].credit;
                *credit = credit.saturating_add(blocks).min(MAX_CREDIT);
                self.wake(at);
            }
            Control::Request(index) => {
                self.check_index(index)?;
                self.enqueue(at, index)?;
            }
            Control::Cancel(index) => {
                self.check_index(index)?;
                self.neighbours[at].queue.retain(|queued| *queued != index);
            }
            Control::Pass => {
                self.neighbours[at].passed = true;
                self.fill(now, at);
            }
            Control::Rate(rate) => self.neighbours[at].told_rate = Some(rate),
        }
        Ok(())
    }

    /// What to do with DATA whose header just arrived. Ask before anything is allocated.
    ///
    /// # Errors
    /// When the block was neither requested nor covered by credit, or does not exist.
    pub fn accepts(&self, id: NeighbourId, index: u32) -> Result<Disposition, Violation> {
        let at = self.slot(id).ok_or(Violation::UnknownNeighbour)?;
        self.check_index(index)?;
        let neighbour = &self.neighbours[at];
        let asked = neighbour.outstanding.iter().any(|o| o.block == index);
        if !asked && neighbour.credits.is_empty() && neighbour.stale == 0 {
            return Err(Violation::Unrequested { index });
        }
        Ok(if self.held.contains(index) {
            Disposition::Skip
        } else {
            Disposition::Store
        })
    }

    /// DATA arrived whole, passed its check and is stored (or was skipped, as `accepts` said).
    ///
    /// # Errors
    /// As for [`Engine::accepts`].
    pub fn block_received(
        &mut self,
        now: Duration,
        id: NeighbourId,
        index: u32,
    ) -> Result<Receipt, Violation> {
        self.accepts(id, index)?;
        let at = self.slot(id).ok_or(Violation::UnknownNeighbour)?;
        let (whole_asking, whole_pushing) = (self.whole_window(at), self.whole_credit(at));
        let (asking, pushing) = (self.shared(whole_asking), self.shared(whole_pushing));
        let neighbour = &mut self.neighbours[at];
        neighbour.last_heard = now;
        let mut pushed = false;
        if let Some(asked) = neighbour.forget(index) {
            let waited = now.saturating_sub(asked.since);
            let at_most = neighbour.outstanding.len() as u32 + 1 >= asking;
            neighbour.came(waited, whole_asking, at_most);
            self.timers.block_took(waited);
            if !self.twice.contains(&index) {
                // Nobody else owes it, so there is nothing to take back.
                self.requested.remove(index);
            }
        } else if let Some(allowed) = neighbour.credits.pop_front() {
            let at_most = neighbour.credits.len() as u32 + 1 >= pushing;
            neighbour.came(now.saturating_sub(allowed), whole_pushing, at_most);
            pushed = true;
        } else {
            neighbour.stale -= 1;
        }
        neighbour.delivered(now);
        let receipt = if self.held.contains(index) {
            self.stats.duplicates += 1;
            Receipt::Duplicate
        } else {
            self.stats.received += 1;
            self.stats.pushed_to_us += u64::from(pushed);
            self.emission_news(now);
            self.store(now, index);
            Receipt::New
        };
        if pushed {
            self.give_credit(now, id);
        }
        self.fill(now, at);
        self.check_complete();
        Ok(receipt)
    }

    /// DATA failed its check: its sender is banned and its requests go to others.
    pub fn block_rejected(&mut self, now: Duration, id: NeighbourId, index: u32) {
        if self.slot(id).is_some() {
            self.ban(now, id, Violation::BadBlock { index });
        }
    }

    /// A block that was requested and arrived could not be stored (disk full, say): it is needed
    /// again, and asked for at the next tick. The neighbour is not to blame.
    pub fn block_lost(&mut self, now: Duration, id: NeighbourId, index: u32) {
        let Some(at) = self.slot(id) else { return };
        let neighbour = &mut self.neighbours[at];
        neighbour.last_heard = now;
        let asked = neighbour.forget(index).is_some();
        if !asked && neighbour.credits.pop_front().is_some() {
            // An emitter pushes a block to a node once. It has it, so it can be asked for it, though it
            // announces nothing yet.
            self.note_held_by(at, index..index + 1);
        } else if !asked {
            neighbour.stale = neighbour.stale.saturating_sub(1);
        }
        self.release(index);
    }

    fn check_index(&self, index: u32) -> Result<(), Violation> {
        let limit = self.limit();
        if index >= limit {
            return Err(Violation::OutOfRange { index, limit });
        }
        Ok(())
    }

    fn check_end(&self, end: u32) -> Result<(), Violation> {
        match end.checked_sub(1) {
            Some(last) => self.check_index(last),
            None => Ok(()),
        }
    }

    fn check_ranges(&self, ranges: &[Range<u32>]) -> Result<(), Violation> {
        for range in ranges {
            let Range { start, end } = *range;
            if start >= end {
                return Err(Violation::EmptyRange { start, end });
            }
            self.check_end(end)?;
        }
        Ok(())
    }

    /// A neighbour announced a run of blocks.
    fn note_held_by(&mut self, at: usize, range: Range<u32>) {
        let mut index = self.neighbours[at].has.next_missing(range.start);
        while index < range.end {
            let neighbour = &mut self.neighbours[at];
            if neighbour.announced(index) {
                neighbour.useful += u32::from(self.need.contains(index));
                self.holders[index as usize] += 1;
            }
            self.emission_acknowledged(at, index);
            if index + 1 == range.end {
                break;
            }
            index = self.neighbours[at].has.next_missing(index + 1);
        }
        self.timers.heard_of_blocks = true;
        if self.emission.is_some() {
            // It may have been waiting with as many unannounced blocks as a neighbour may have.
            self.wake(at);
        }
    }

    /// Tells an emitter what is wanted and lets it push.
    pub(super) fn greet_emitter(&mut self, now: Duration, id: NeighbourId) {
        if !self.wanted.is_nothing() {
            self.say(now, id, Control::Want(self.wanted.clone()));
            self.give_credit(now, id);
        }
        if let Some(at) = self.slot(id) {
            self.fill(now, at);
        }
    }

    /// Tops up the credit of an emitter that still pushes. An emitter that pushes itself takes no
    /// pushes: it would sit on them until its own pass is over.
    pub(super) fn give_credit(&mut self, now: Duration, id: NeighbourId) {
        let Some(at) = self.slot(id) else { return };
        let busy_emitting = self.emission.as_ref().is_some_and(|e| !e.passed());
        let nothing_wanted = self.remaining == 0 && self.total.is_some();
        let single = self.total == Some(1);
        if !self.neighbours[at].pushing()
            || busy_emitting
            || nothing_wanted
            || single
            || self.wanted.is_nothing()
            || !self.config.seed_unique
        {
            return;
        }
        let window = self.shared(self.whole_credit(at));
        let neighbour = &mut self.neighbours[at];
        let more = window.saturating_sub(neighbour.credits.len() as u32);
        if more > 0 {
            neighbour.credits.extend((0..more).map(|_| now));
            self.say(now, id, Control::Credit(more));
        }
    }
}
