//! What happens because time passed: batched announcements, the endgame, late blocks of readers,
//! silence, the rate rule, and calls for help.

use super::neighbour::Neighbour;
use super::{Action, Control, Engine, NeighbourId, Objective};
use core::ops::Range;
use core::time::Duration;

/// How long a neighbour to part from may take to send what it owes.
const PATIENCE: Duration = Duration::from_secs(2);

/// A tick that is this late tells that this node, not its neighbours, stood still.
const LATE: Duration = Duration::from_millis(250);

/// Clocks and the little state that only timers need.
#[derive(Debug, Default)]
pub(super) struct Timers {
    /// When the periodic work is due; zero before the first tick.
    next: Duration,
    /// When this node began to download, and what it held then.
    started: Option<Duration>,
    pub(super) held_at_start: u32,
    last_progress: Duration,
    last_refill: Option<Duration>,
    last_source_call: Option<Duration>,
    /// Mean time from request to DATA.
    mean_block: Duration,
    /// What the rate rule adds to every window.
    pub(super) window_shift: i32,
    /// The scheduler has no more neighbours.
    pub(super) exhausted: bool,
    pub(super) heard_of_blocks: bool,
    pub(super) pass_due: bool,
}

impl Timers {
    pub(super) fn start_download(&mut self, now: Duration) {
        self.started.get_or_insert(now);
        self.last_progress = now;
    }

    pub(super) fn progress(&mut self, now: Duration) {
        self.last_progress = now;
    }

    pub(super) fn block_took(&mut self, took: Duration) {
        self.mean_block = if self.mean_block.is_zero() {
            took
        } else {
            (self.mean_block * 15 + took) / 16
        };
    }
}

impl Engine {
    /// Does what is due. Call it at [`Engine::next_timeout`] or later; earlier calls do nothing.
    pub fn tick(&mut self, now: Duration) {
        let periodic = now >= self.timers.next;
        // What is told of rates goes out with the news: one message wakes a neighbour, not two.
        if periodic || self.news_due.is_some_and(|due| now >= due) {
            self.flush_news(now);
        }
        if !periodic {
            return;
        }
        self.forgive_own_lateness(now);
        self.timers.next = now + self.config.tick;
        self.drop_silent(now);
        self.end_partings(now);
        self.emission_tick(now);
        self.tell_rates(now);
        if self.remaining > 0 || self.total.is_none() {
            // Windows may have moved, and blocks that were lost on the way to the disk are asked for
            // here, and credit for them given: while there is no space each would be lost at once.
            self.fill_all(now);
            for id in self.emitters() {
                self.give_credit(now, id);
            }
            self.help_readers(now);
            self.endgame(now);
            self.call_for_help(now);
        }
    }

    /// When `tick` has something to do next; `None`: not before something else happens.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Duration> {
        let owing =
            |n: &Neighbour| !n.queue.is_empty() || !n.outstanding.is_empty() || n.parting.is_some();
        let resting = (self.completed || self.wanted.is_nothing())
            && !self.may_have_to_fetch()
            && !self.neighbours.iter().any(owing);
        let periodic = (!resting).then_some(self.timers.next);
        match (self.news_due, periodic) {
            (Some(news), Some(periodic)) => Some(news.min(periodic)),
            (news, periodic) => news.or(periodic),
        }
    }

    /// What a node did not hear while it got no processor itself is nobody's silence.
    fn forgive_own_lateness(&mut self, now: Duration) {
        let late = now.saturating_sub(self.timers.next);
        if late < LATE {
            return;
        }
        for n in &mut self.neighbours {
            n.last_heard = (n.last_heard + late).min(now);
            n.last_data = (n.last_data + late).min(now);
        }
    }

    /// Connections on which blocks are owed and nothing comes.
    fn drop_silent(&mut self, now: Duration) {
        let stall = self.config.stall.max(self.timers.mean_block * 16);
        let dead = |n: &&Neighbour| {
            !n.outstanding.is_empty()
                && (now > n.last_heard + self.config.silence || now > n.last_data + stall)
        };
        let dead: Vec<NeighbourId> = self.neighbours.iter().filter(dead).map(|n| n.id).collect();
        for id in dead {
            self.leave(now, id);
            self.actions.push_back(Action::Drop(id));
        }
    }

    /// Neighbours to part from that owe nothing any more, or too long.
    pub(super) fn end_partings(&mut self, now: Duration) {
        let over = |n: &&Neighbour| {
            n.parting
                .is_some_and(|since| n.outstanding.is_empty() || now > since + PATIENCE)
        };
        let over: Vec<NeighbourId> = self.neighbours.iter().filter(over).map(|n| n.id).collect();
        for id in over {
            self.leave(now, id);
            self.actions.push_back(Action::Part(id));
        }
    }

    /// The rate rule, and a sign of life for those who wait for our blocks.
    fn tell_rates(&mut self, now: Duration) {
        let own = self.own_rate(now);
        let even_out =
            self.config.objective == Objective::Slowest && !self.completed && own.is_some();
        if even_out && let Some(own) = own {
            self.set_window_shift(now, own);
        }
        let alive = self.config.silence / 3;
        for n in &mut self.neighbours {
            let waits = !n.queue.is_empty() && now >= n.last_said + alive;
            if even_out || waits {
                n.last_said = now;
                let rate = Control::Rate(own.unwrap_or(0));
                self.actions.push_back(Action::Send(n.id, rate));
            }
        }
    }

    /// Blocks per 1000 s since the download began.
    fn own_rate(&self, now: Duration) -> Option<u64> {
        // The last block ends the download.
        let end = if self.completed {
            self.timers.last_progress
        } else {
            now
        };
        let took = end.saturating_sub(self.timers.started?).as_secs_f64();
        let got = self.held.count().saturating_sub(self.timers.held_at_start);
        (took > 0.0).then(|| (f64::from(got) * 1000.0 / took) as u64)
    }

    /// Nodes behind their neighbours ask for more at once, nodes ahead for less.
    fn set_window_shift(&mut self, now: Duration, own: u64) {
        let started = self.timers.started.unwrap_or(now);
        if now < started + self.config.rate_from {
            return;
        }
        // One neighbour's lie moves the mean by its share at most.
        let told = self.neighbours.iter().filter_map(|n| n.told_rate);
        let told = told.map(|rate| rate.min(own.saturating_mul(8)) as f64);
        let (sum, count) = told.fold((own as f64, 1.0), |(sum, n), rate| (sum + rate, n + 1.0));
        let mean = sum / count;
        if mean <= 0.0 {
            return;
        }
        let ahead = own as f64 / mean - 1.0;
        // How much sooner or later this node will be done, in parts of the whole. Nodes with equal
        // links lag by their distance from the seed, which does not grow: they keep short windows.
        let done = self.total.map_or(1.0, |all| {
            f64::from(self.held.count()) / f64::from(all.max(1))
        });
        // Where everybody is everybody's neighbour nobody is far from it: a slow link shows early, and
        // what it costs is lost early.
        let near_seed = self.timers.exhausted;
        let beyond =
            |ratio: f64, lag: f64| ahead.abs() > ratio && (near_seed || ahead.abs() * done > lag);
        let (far, near) = (beyond(0.03, 0.015), beyond(0.01, 0.008));
        self.timers.window_shift = match (ahead < 0.0, far, near) {
            (true, true, _) => 5,
            (true, false, true) => 2,
            (false, true, _) => -2,
            (false, false, true) => -1,
            _ => 0,
        };
    }

    /// Late blocks just after a cursor get a second holder, unknown ones go to the emitter.
    fn help_readers(&mut self, now: Duration) {
        let late = self.config.late_after.max(self.timers.mean_block * 4);
        let mut hurry: Vec<Range<u32>> = Vec::new();
        let mut cursors: Vec<u32> = self.readers.iter().map(|(_, cursor)| *cursor).collect();
        cursors.sort_unstable();
        cursors.dedup();
        // Readers far behind one another are few; the bound only meets abuse.
        cursors.truncate(64);
        for cursor in cursors {
            let end = cursor.saturating_add(self.config.reader_span);
            for index in cursor..end.min(self.limit()) {
                if self.held.contains(index) || !self.wanted.contains(index) {
                    continue;
                }
                if self.requested.contains(index) {
                    self.ask_second(now, index, late);
                } else if self.holders.get(index as usize).is_none_or(|n| *n == 0) {
                    match hurry.last_mut() {
                        Some(last) if last.end == index => last.end += 1,
                        Some(last) if last.contains(&index) => {}
                        _ => hurry.push(index..index + 1),
                    }
                }
            }
        }
        if hurry.is_empty() {
            return;
        }
        for id in self.emitters() {
            self.say(now, id, Control::Hurry(hurry.clone()));
        }
    }

    /// Neighbours that push.
    fn emitters(&self) -> Vec<NeighbourId> {
        let pushing = self.neighbours.iter().filter(|n| n.pushing());
        pushing.map(|n| n.id).collect()
    }

    /// All that is missing is requested: idle parents may be asked for what is late.
    fn endgame(&mut self, now: Duration) {
        if !self.need.is_empty() || self.requested.is_empty() {
            return;
        }
        let mut late: Vec<(Duration, u32)> = self
            .neighbours
            .iter()
            .flat_map(|n| &n.outstanding)
            .filter(|o| now > o.since + self.config.endgame_after)
            .map(|o| (o.since, o.block))
            .collect();
        late.sort_unstable();
        for (_, index) in late {
            self.ask_second(now, index, self.config.endgame_after);
        }
    }

    /// Asks an idle holder for a block that its only debtor has owed for longer than `late`.
    fn ask_second(&mut self, now: Duration, index: u32, late: Duration) {
        let mut owed = self
            .neighbours
            .iter()
            .flat_map(|n| &n.outstanding)
            .filter(|o| o.block == index);
        let (Some(first), None) = (owed.next(), owed.next()) else {
            return;
        };
        if now <= first.since + late {
            return;
        }
        let idle = |n: &Neighbour| {
            n.offers().contains(index)
                && n.parting.is_none()
                && n.outstanding.iter().all(|o| o.block != index)
        };
        let second = (0..self.neighbours.len())
            .filter(|at| idle(&self.neighbours[*at]))
            .min_by_key(|at| self.neighbours[*at].outstanding.len());
        if let Some(at) = second
            && self.neighbours[at].outstanding.len() < self.window(at) as usize
        {
            self.request(now, at, index);
        }
    }

    /// Too few neighbours, or blocks that nobody has.
    fn call_for_help(&mut self, now: Duration) {
        let due = |last: Option<Duration>, every| last.is_none_or(|last| now >= last + every);
        let (have, want) = (self.neighbours.len(), self.config.degree);
        let refill = self.config.refill_interval;
        // Not at once: the first neighbours were named a moment ago and are being connected to.
        let asked = self.timers.last_refill.or(self.timers.started);
        if have < want && !self.timers.exhausted && due(asked, refill) {
            self.timers.last_refill = Some(now);
            let action = Action::NeedNeighbours { have, want };
            self.actions.push_back(action);
        }
        let patience = self.config.orphan_after;
        if core::mem::take(&mut self.timers.heard_of_blocks) && self.has_source() {
            self.timers.last_progress = now;
        }
        if now > self.timers.last_progress + patience
            && due(self.timers.last_source_call, patience)
            && !self.has_source()
        {
            self.timers.last_source_call = Some(now);
            self.actions.push_back(Action::NeedSource);
        }
    }

    /// Whether every wanted block has a holder, or somebody (maybe this node) fetches for all.
    fn has_source(&self) -> bool {
        if self.is_emitting() || self.neighbours.iter().any(Neighbour::pushing) {
            return true;
        }
        let Some(total) = self.total else {
            return false;
        };
        let mut index = self.held.next_missing(0);
        while index < total {
            if self.wanted.contains(index) && self.holders[index as usize] == 0 {
                return false;
            }
            index = self.held.next_missing(index + 1);
        }
        true
    }
}
