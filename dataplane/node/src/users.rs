//! Who at this node wants what of a task, and how much: readers and downloads.

use std::sync::atomic::Ordering;
use std::time::Instant;

use dragonfly_proto::frame::Frame;
use dragonfly_swarm::engine::Wanted;

use crate::task::{Effects, State, Task, most_blocks};
use crate::turns::LOWEST;

impl Task {
    /// Somebody wants bytes `start..end`; the engine asks for what any user wants.
    pub(crate) fn add_user(&self, start: u64, end: u64) -> (u64, Effects) {
        let user = self.next_user.fetch_add(1, Ordering::Relaxed);
        let ((), effects) = self.drive(|s, now| {
            s.wants.insert(user, (start, end));
            s.used = Instant::now();
            let wanted = wanted(s);
            s.engine.set_wanted(now, wanted);
        });
        (user, effects)
    }

    /// A user wants other bytes than before.
    pub(crate) fn change_user(&self, user: u64, start: u64, end: u64) -> Effects {
        let ((), effects) = self.drive(|s, now| {
            s.wants.insert(user, (start, end));
            s.used = Instant::now();
            let wanted = wanted(s);
            if wanted != *s.engine.wanted() {
                s.engine.set_wanted(now, wanted);
            }
        });
        effects
    }

    /// How important a user says the task is; the most important of them counts. Neighbours learn
    /// it: they serve streams of lower numbers first.
    pub(crate) fn prioritise(&self, user: u64, priority: u8) {
        let mut s = self.state();
        let before = priority_of(&s);
        s.priorities.insert(user, priority.min(LOWEST));
        tell_priority(&s, before);
    }

    /// The task's priority here, 0 to 7; 0 is the highest.
    pub(crate) fn priority(&self) -> u8 {
        priority_of(&self.state())
    }

    pub(crate) fn remove_user(&self, user: u64) -> Effects {
        let ((), effects) = self.drive(|s, now| {
            s.wants.remove(&user);
            let before = priority_of(s);
            s.priorities.remove(&user);
            tell_priority(s, before);
            s.used = Instant::now();
            let wanted = wanted(s);
            if wanted != *s.engine.wanted() {
                s.engine.set_wanted(now, wanted);
            }
        });
        effects
    }
}

/// The most important of what users said; who says nothing is as important as can be.
fn priority_of(s: &State) -> u8 {
    let of = |user| s.priorities.get(user).copied().unwrap_or(0);
    s.wants.keys().map(of).min().unwrap_or(0)
}

fn tell_priority(s: &State, before: u8) {
    let now = priority_of(s);
    // Who wants nothing any more is not asked how much.
    if now != before && !s.wants.is_empty() {
        for link in s.links.values() {
            link.conn.send(link.ours, &Frame::Priority(now));
        }
    }
}

/// The union of what the task's users want, in blocks.
pub(crate) fn wanted(s: &State) -> Wanted {
    if s.wants.is_empty() || s.failure.is_some() {
        return Wanted::Nothing;
    }
    let total = s.geometry.total_len().unwrap_or(u64::MAX);
    // Of an open wish where the length is unknown: neighbours keep no more than could be here.
    let most = most_blocks(&s.geometry);
    let mut set = dragonfly_swarm::bitmap::BlockSet::new();
    for &(start, end) in s.wants.values() {
        if start == 0 && end >= total {
            return Wanted::Whole;
        }
        let blocks = s.geometry.blocks_of(start, end);
        set.insert_range(blocks.start.min(most)..blocks.end.min(most));
    }
    Wanted::Some(set)
}
