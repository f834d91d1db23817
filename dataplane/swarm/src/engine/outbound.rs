//! What we send: DATA, one block bound at a time, and the announcements of what we hold.

use super::{Action, Control, Engine, MAX_QUEUE, NeighbourId, Violation};
use crate::runs::Runs;
use core::time::Duration;

impl Engine {
    /// Binds the next block to send to this neighbour, when its socket is writable: the block is
    /// the caller's then and no CANCEL takes it back. An emitter's first pass goes before second
    /// copies. `None`: wait for the next `Wake`.
    pub fn next_data(&mut self, now: Duration, id: NeighbourId) -> Option<u32> {
        let at = self.slot(id)?;
        let bound = self
            .next_emission(now, at)
            .or_else(|| self.next_requested(at));
        if bound.is_none() {
            self.neighbours[at].woken = false;
        }
        bound
    }

    /// As [`Engine::next_data`], but only what may overtake what was said before and be overtaken by what is said
    /// after: the neighbour knows all that it takes to check it, and no [`super::Control::Pass`] is about to follow.
    pub fn next_unordered(&mut self, now: Duration, id: NeighbourId) -> Option<u32> {
        // That of a task of one block is asked for before anything is known of it.
        let at = self.slot(id).filter(|_| self.total != Some(1))?;
        self.next_emission_unordered(now, at)
            .or_else(|| self.next_requested(at))
    }

    /// Whether `next_data` would give a block.
    #[must_use]
    pub fn has_data_for(&self, id: NeighbourId) -> bool {
        self.slot(id)
            .is_some_and(|at| self.has_emission(at) || self.has_requested(at))
    }

    /// A bound block left for the socket whole.
    pub fn data_sent(&mut self, now: Duration, id: NeighbourId, index: u32) {
        self.stats.sent += 1;
        if let Some(at) = self.slot(id) {
            self.neighbours[at].last_said = now;
        }
        self.emission_sent(now, id, index);
    }

    fn has_requested(&self, at: usize) -> bool {
        let held = |index: &u32| self.held.contains(*index);
        self.neighbours[at].queue.iter().any(held)
    }

    fn next_requested(&mut self, at: usize) -> Option<u32> {
        let queue = &mut self.neighbours[at].queue;
        // Requests for what the origin has not delivered yet wait; there is at most one of them.
        let first = queue.iter().position(|index| self.held.contains(*index))?;
        queue.remove(first)
    }

    pub(super) fn enqueue(&mut self, at: usize, index: u32) -> Result<(), Violation> {
        if !self.held.contains(index) {
            // The block of a single-block task is asked of the emitter before it is announced, and
            // the lease may have gone to another meanwhile: the asker will learn of that.
            return match (self.total, self.is_emitting()) {
                (Some(1), true) => self.queue_up(at, index),
                (Some(1), false) => Ok(()),
                _ => Err(Violation::NotAnnounced { index }),
            };
        }
        self.queue_up(at, index)
    }

    fn queue_up(&mut self, at: usize, index: u32) -> Result<(), Violation> {
        let queue = &mut self.neighbours[at].queue;
        if queue.contains(&index) {
            return Ok(());
        }
        if queue.len() >= MAX_QUEUE {
            let limit = MAX_QUEUE;
            return Err(Violation::TooManyRequests { limit });
        }
        queue.push_back(index);
        self.wake(at);
        Ok(())
    }

    /// Tells the caller, once, that there is something to send.
    pub(super) fn wake(&mut self, at: usize) {
        if !self.neighbours[at].woken && (self.has_emission(at) || self.has_requested(at)) {
            self.neighbours[at].woken = true;
            let id = self.neighbours[at].id;
            self.actions.push_back(Action::Wake(id));
        }
    }

    /// Remembers to announce a block.
    pub(super) fn announce(&mut self, now: Duration, index: u32) {
        if self.neighbours.is_empty() {
            return;
        }
        self.news.push(index);
        if self.news_due.is_none() {
            self.news_due = Some(now + self.config.have_delay);
        }
        // Every announcement wakes every neighbour: what few blocks are worth it wait for more, but
        // nobody waits for what has no more to come.
        let all = self.remaining == 0 || self.news.len() >= self.config.have_batch;
        if all || self.config.have_delay.is_zero() {
            self.flush_news(now);
        }
    }

    /// Announces what is new to whoever has not announced it itself. Joins send the whole bitmap,
    /// so some of it may be no news to a neighbour that just came; that is harmless.
    pub(super) fn flush_news(&mut self, now: Duration) {
        self.news_due = None;
        let mut news = core::mem::take(&mut self.news);
        if news.is_empty() {
            return;
        }
        news.sort_unstable();
        for neighbour in &mut self.neighbours {
            let mut runs = Runs::new();
            for &index in &news {
                // Who pushes waits for the word that a block arrived.
                if neighbour.pushing() || !neighbour.has.contains(index) {
                    runs.push_block(index);
                }
            }
            if !runs.is_empty() {
                neighbour.last_said = now;
                let have = Control::Have(runs);
                self.actions.push_back(Action::Send(neighbour.id, have));
            }
        }
        news.clear();
        self.news = news;
    }
}
