//! One task at one node: what to request of whom, what to push, what to announce.
//!
//! Peer and seed are the same type; a seed that holds the origin's lease has called
//! [`Engine::start_emitting`], that is all. The caller owns sockets, disk and clock and tells the
//! engine what happened; after every call it takes what is to be done from [`Engine::poll`].
//!
//! Invariants:
//! - `need` = wanted and neither held nor requested; a block in `requested` is in the list of one
//!   neighbour, or of two at the end or near a reader.
//! - `useful` of a neighbour = blocks that it announced, that may be asked of it and are in `need`, so a
//!   neighbour that has nothing for us costs nothing.
//! - `holders[b]` = number of neighbours that announced `b` and may be asked for it.
//! - Blocks in `hidden` are held but announced to nobody: an emitter's, until it passes.
//! - Every index from a neighbour is checked before use, so memory is at most three bits a block and
//!   neighbour, a few bytes a block and bounded lists, whatever neighbours send.
//!
//! Files: `choice` (what to request), `inbound` (what neighbours say and send), `outbound` (what
//! we send), `emission` (the lease-holder's part), `neighbours` (who comes and goes), `timers`.

mod choice;
mod emission;
mod inbound;
mod neighbour;
mod neighbours;
mod outbound;
mod timers;
mod types;

pub use types::{
    Action, Config, Control, Disposition, NeighbourId, NeighbourInfo, Objective, ReaderId, Receipt,
    Stats, Stripe, Violation, Wanted,
};

use crate::bitmap::BlockSet;
use core::ops::Range;
use core::time::Duration;
use emission::Emission;
use neighbour::Neighbour;
use std::collections::VecDeque;

/// Requests of one neighbour that may wait here; an honest one's window is far smaller.
const MAX_QUEUE: usize = 256;
/// Credit one neighbour may give.
const MAX_CREDIT: u32 = 64;
/// Readers of one task at one node whose position is followed.
const MAX_READERS: usize = 1024;

/// One task at one node. See the module's header.
#[derive(Debug)]
pub struct Engine {
    config: Config,
    rng: fastrand::Rng,
    total: Option<u32>,
    /// Blocks below this are known to exist: `total`, or what was heard of so far.
    known: u32,
    held: BlockSet,
    hidden: BlockSet,
    wanted: Wanted,
    need: BlockSet,
    requested: BlockSet,
    /// Of those, the few that two neighbours owe.
    twice: Vec<u32>,
    holders: Vec<u16>,
    /// Wanted blocks not held, among the known ones.
    remaining: u32,
    /// No block below is in `need`.
    need_from: u32,
    /// Ids of `neighbours`, beside them because a search should not walk the large structs.
    ids: Vec<NeighbourId>,
    neighbours: Vec<Neighbour>,
    readers: Vec<(ReaderId, u32)>,
    share: f32,
    emission: Option<Emission>,
    /// Blocks to announce, and when.
    news: Vec<u32>,
    news_due: Option<Duration>,
    actions: VecDeque<Action>,
    completed: bool,
    stats: Stats,
    timers: timers::Timers,
}

impl Engine {
    /// An engine that holds nothing and wants nothing. `seed` makes its choices; `total_blocks` is
    /// `None` while the content's length is not known.
    #[must_use]
    pub fn new(config: Config, seed: u64, total_blocks: Option<u32>) -> Self {
        let mut engine = Self {
            config,
            rng: fastrand::Rng::with_seed(seed),
            total: total_blocks,
            known: 0,
            held: BlockSet::new(),
            hidden: BlockSet::new(),
            wanted: Wanted::Nothing,
            need: BlockSet::new(),
            requested: BlockSet::new(),
            twice: Vec::new(),
            holders: Vec::new(),
            remaining: 0,
            need_from: 0,
            ids: Vec::new(),
            neighbours: Vec::new(),
            readers: Vec::new(),
            share: 1.0,
            emission: None,
            news: Vec::new(),
            news_due: None,
            actions: VecDeque::new(),
            completed: false,
            stats: Stats::default(),
            timers: timers::Timers::default(),
        };
        engine.learn_of(total_blocks.unwrap_or(0));
        engine
    }

    /// The next thing to do, or `None`. Call until `None` after every other call.
    pub fn poll(&mut self) -> Option<Action> {
        let next = self.actions.pop_front();
        if next.is_none() {
            // Begins at the front again, which is in the cache.
            self.actions.clear();
        }
        next
    }

    // ---- own state -------------------------------------------------------------------------

    /// Blocks that are on disk from earlier. Before the first neighbour joins; later they count as
    /// blocks that just arrived from elsewhere and are announced.
    pub fn add_held(&mut self, now: Duration, ranges: impl IntoIterator<Item = Range<u32>>) {
        for range in ranges {
            let end = range.end.min(self.limit());
            self.learn_of(end);
            for index in range.start..end {
                if !self.held.contains(index) {
                    self.store(now, index);
                }
            }
        }
        self.timers.held_at_start = self.timers.held_at_start.max(self.held.count());
        self.check_complete();
    }

    /// The number of blocks became known. Neighbours that announced blocks after the end are
    /// banned.
    ///
    /// # Errors
    /// When another number is known, or blocks after the end are held; nothing changes then.
    pub fn set_total(&mut self, now: Duration, total_blocks: u32) -> Result<(), Violation> {
        let said = total_blocks;
        if let Some(known) = self.total {
            return if known == said {
                Ok(())
            } else {
                Err(Violation::TotalContradicts { said, known })
            };
        }
        if self.held.end() > said {
            let known = self.held.end();
            return Err(Violation::TotalContradicts { said, known });
        }
        self.total = Some(said);
        let liars: Vec<NeighbourId> = self
            .neighbours
            .iter()
            .filter(|n| n.has.end() > said)
            .map(|n| n.id)
            .collect();
        for id in liars {
            let limit = said;
            self.ban(now, id, Violation::OutOfRange { index: said, limit });
        }
        self.known = self.known.min(said);
        self.learn_of(said);
        self.holders.truncate(said as usize);
        self.recount_need();
        self.check_complete();
        self.wake_emission();
        self.fill_all(now);
        Ok(())
    }

    /// Which blocks this node's readers and downloads want: only these are requested.
    pub fn set_wanted(&mut self, now: Duration, wanted: Wanted) {
        if let Wanted::Some(set) = &wanted {
            self.learn_of(set.end().min(self.limit()));
        }
        self.wanted = wanted;
        self.completed = false;
        self.timers.start_download(now);
        self.recount_need();
        // Those that passed too: they hold the lease, and what nobody wanted then is still to be
        // fetched.
        let emitters: Vec<NeighbourId> = self
            .neighbours
            .iter()
            .filter(|n| n.emitter)
            .map(|n| n.id)
            .collect();
        for id in emitters {
            self.say(now, id, Control::Want(self.wanted.clone()));
            self.give_credit(now, id);
        }
        self.check_complete();
        self.fill_all(now);
    }

    /// A reader streams from block `cursor` on. Readers beyond a bound are not followed.
    pub fn add_reader(&mut self, reader: ReaderId, cursor: u32) {
        if self.readers.len() < MAX_READERS {
            self.readers.push((reader, cursor));
        }
    }

    /// A reader went on to block `cursor`.
    pub fn move_reader(&mut self, reader: ReaderId, cursor: u32) {
        for (id, at) in &mut self.readers {
            if *id == reader {
                *at = cursor;
            }
        }
    }

    /// A reader is gone.
    pub fn remove_reader(&mut self, reader: ReaderId) {
        self.readers.retain(|(id, _)| *id != reader);
    }

    // ---- questions -------------------------------------------------------------------------

    /// Number of blocks of the content, when known.
    #[must_use]
    pub fn total(&self) -> Option<u32> {
        self.total
    }

    /// The blocks held.
    #[must_use]
    pub fn held(&self) -> &BlockSet {
        &self.held
    }

    /// What is wanted.
    #[must_use]
    pub fn wanted(&self) -> &Wanted {
        &self.wanted
    }

    /// Wanted blocks that are missing, as far as known.
    #[must_use]
    pub fn remaining(&self) -> u32 {
        self.remaining
    }

    /// Whether all that is wanted is held and the number of blocks is known.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.completed
    }

    /// The neighbours, in no order.
    pub fn neighbours(&self) -> impl Iterator<Item = NeighbourId> + '_ {
        self.ids.iter().copied()
    }

    /// Blocks a neighbour announced; zero for strangers.
    #[must_use]
    pub fn announced_by(&self, id: NeighbourId) -> u32 {
        self.slot(id)
            .map_or(0, |at| self.neighbours[at].has.count())
    }

    /// Whether a neighbour has told what it holds, be it nothing.
    #[must_use]
    pub fn has_told(&self, id: NeighbourId) -> bool {
        self.slot(id).is_some_and(|at| self.neighbours[at].told)
    }

    /// Counters since the engine was made.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// Bytes in memory for maps and lists, for tests of the bound.
    #[must_use]
    pub fn memory(&self) -> usize {
        let set = |set: &BlockSet| set.words() * 8;
        let want = |wanted: &Wanted| match wanted {
            Wanted::Some(blocks) => set(blocks),
            _ => 0,
        };
        let neighbours: usize = self
            .neighbours
            .iter()
            .map(|n| {
                set(&n.has)
                    + set(&n.offers)
                    + want(&n.want)
                    + n.outstanding.capacity() * 24
                    + n.queue.capacity() * 4
                    + size_of::<Neighbour>()
            })
            .sum();
        neighbours
            + set(&self.held)
            + set(&self.hidden)
            + set(&self.need)
            + set(&self.requested)
            + want(&self.wanted)
            + self.holders.len() * 2
            + self.news.capacity() * 4
            + self.twice.capacity() * 4
            + self.actions.capacity() * size_of::<Action>()
            + self.emission.as_ref().map_or(0, Emission::memory)
    }

    // ---- shared helpers --------------------------------------------------------------------

    fn slot(&self, id: NeighbourId) -> Option<usize> {
        // Without a branch: lists are short, and where it ends nothing can foretell.
        let places = self.ids.iter().enumerate();
        let found = places.fold(
            usize::MAX,
            |found, (at, known)| {
                if *known == id { at } else { found }
            },
        );
        (found != usize::MAX).then_some(found)
    }

    /// Reads what a message about `block` from this neighbour will need. The simulator does so for
    /// some messages ahead, so that it waits for memory once and not for each of them in turn.
    pub(crate) fn touch(&self, id: NeighbourId, block: u32) -> u64 {
        let word = block as usize / 64;
        let mut read = self.need.word(word) ^ self.held.word(word);
        read ^= u64::from(self.holders.get(block as usize).copied().unwrap_or(0));
        if let Some(neighbour) = self.slot(id).and_then(|at| self.neighbours.get(at)) {
            read ^= neighbour.has.word(word) ^ u64::from(neighbour.useful);
            read ^= neighbour
                .outstanding
                .first()
                .map_or(0, |o| u64::from(o.block));
            read ^= neighbour.queue.front().copied().map_or(0, u64::from);
        }
        read
    }

    /// Exchanges the memory for actions while there are none: thousands of engines that take turns
    /// with one list stay in the processor's cache.
    pub(crate) fn exchange_list(&mut self, list: &mut VecDeque<Action>) {
        if self.actions.is_empty() && list.is_empty() {
            core::mem::swap(&mut self.actions, list);
        }
    }

    /// Like [`Engine::touch`] for what storing and announcing a block needs; `None`: the block that
    /// is to be announced next.
    pub(crate) fn touch_all(&self, block: Option<u32>) -> u64 {
        let Some(block) = block.or_else(|| self.news.first().copied()) else {
            return 0;
        };
        let words = self
            .neighbours
            .iter()
            .map(|n| n.has.word(block as usize / 64));
        words.fold(0, |read, word| read ^ word)
    }

    /// The first index that cannot be a block.
    fn limit(&self) -> u32 {
        self.total.unwrap_or(self.config.max_blocks)
    }

    fn say(&mut self, now: Duration, id: NeighbourId, message: Control) {
        if let Some(at) = self.slot(id) {
            self.neighbours[at].last_said = now;
        }
        self.actions.push_back(Action::Send(id, message));
    }

    fn ban(&mut self, now: Duration, id: NeighbourId, why: Violation) {
        self.stats.bans += 1;
        self.leave(now, id);
        self.actions.push_back(Action::Ban(id, why));
    }

    /// Blocks below `end` exist.
    fn learn_of(&mut self, end: u32) {
        if end <= self.known {
            return;
        }
        self.holders.resize(end as usize, 0);
        let new = self.known..end;
        self.known = end;
        match &self.wanted {
            Wanted::Nothing => {}
            Wanted::Whole => {
                let mut add: BlockSet = core::iter::once(new).collect();
                add.subtract(&self.held);
                self.remaining += add.count();
                self.need.union(&add);
            }
            Wanted::Some(_) => self.recount_need(),
        }
    }

    /// Makes `need`, `remaining` and every `useful` anew. O(blocks), for rare events only.
    fn recount_need(&mut self) {
        let mut need = match &self.wanted {
            Wanted::Nothing => BlockSet::new(),
            Wanted::Whole => BlockSet::full(self.known),
            Wanted::Some(set) => {
                let mut set = set.clone();
                set.remove_range(self.known..u32::MAX);
                set
            }
        };
        need.subtract(&self.held);
        self.remaining = need.count();
        need.subtract(&self.requested);
        self.need = need;
        self.need_from = 0;
        for n in &mut self.neighbours {
            n.useful = n.offers().common(&self.need);
        }
    }

    /// A wanted block is asked for or held: no longer needed.
    fn unneed(&mut self, index: u32) {
        if self.need.remove(index) {
            for n in &mut self.neighbours {
                n.useful -= u32::from(n.offers().contains(index));
            }
        }
    }

    /// A request came to nothing: the block is needed again, unless another neighbour owes it.
    fn release(&mut self, index: u32) {
        let owed = |n: &Neighbour| n.outstanding.iter().any(|o| o.block == index);
        if self.neighbours.iter().any(owed) || !self.requested.remove(index) {
            return;
        }
        self.twice.retain(|twice| *twice != index);
        if self.wanted.contains(index) && !self.held.contains(index) && self.need.insert(index) {
            self.need_from = self.need_from.min(index);
            for n in &mut self.neighbours {
                n.useful += u32::from(n.offers().contains(index));
            }
        }
    }

    /// A block is on disk now, from wherever.
    fn store(&mut self, now: Duration, index: u32) {
        self.learn_of(index + 1);
        if !self.held.insert(index) {
            return;
        }
        if self.wanted.contains(index) {
            self.remaining -= 1;
        }
        self.unneed(index);
        if self.requested.contains(index) {
            self.cancel_everywhere(now, index);
        }
        if self.hides() {
            self.hidden.insert(index);
        } else {
            self.announce(now, index);
        }
        self.timers.progress(now);
    }

    fn check_complete(&mut self) {
        if !self.completed
            && self.remaining == 0
            && !self.wanted.is_nothing()
            && (self.total.is_some() || matches!(self.wanted, Wanted::Some(_)))
        {
            self.completed = true;
            self.actions.push_back(Action::Complete);
        }
    }
}
