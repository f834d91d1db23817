//! The vocabulary of the engine: what goes in, what comes out, what can be wrong.

use crate::bitmap::BlockSet;
use crate::runs::Runs;
use core::ops::Range;
use core::time::Duration;

/// A connection's handle. The caller chooses it and does not use it for another connection while
/// the engine knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NeighbourId(pub u32);

/// A streaming reader's handle, chosen by the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReaderId(pub u64);

/// What the swarm is made fast for when uplinks differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Objective {
    /// The last node to finish: nodes ahead of their neighbours leave room to those behind.
    Slowest,
    /// The mean: nodes with fast uplinks finish first.
    Average,
}

/// Which blocks a node wants.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Wanted {
    /// None: the node only serves.
    #[default]
    Nothing,
    /// The whole content, also what is not known yet of a content of unknown length.
    Whole,
    /// Some of it.
    Some(BlockSet),
}

impl Wanted {
    /// Whether block `index` is wanted.
    #[must_use]
    pub fn contains(&self, index: u32) -> bool {
        match self {
            Self::Nothing => false,
            Self::Whole => true,
            Self::Some(set) => set.contains(index),
        }
    }

    /// Whether nothing is wanted.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        match self {
            Self::Nothing => true,
            Self::Whole => false,
            Self::Some(set) => set.is_empty(),
        }
    }
}

/// What two engines say to each other about one task, DATA apart. Messages of one connection
/// arrive in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Control {
    /// The sender holds and serves these blocks; sent once, right after the connection is up, also
    /// when empty.
    Bitmap(BlockSet),
    /// The sender holds and serves these blocks too.
    Have(Runs),
    /// All the blocks that the sender wants, instead of what it said before. Only emitters need it.
    Want(Wanted),
    /// Blocks the sender's readers wait for and nobody announces: next in the emission, please.
    Hurry(Vec<Range<u32>>),
    /// The emitter may push this many blocks more.
    Credit(u32),
    /// Send this block.
    Request(u32),
    /// Do not send this block if it is not on its way yet.
    Cancel(u32),
    /// The first pass is over: the emitter is an ordinary parent from now on.
    Pass,
    /// The sender's average rate in blocks per 1000 seconds; also a sign of life.
    Rate(u64),
}

/// What a neighbour did against the protocol. The caller bans it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A block that the task does not have.
    #[error("block {index} is not below {limit}, the number of blocks")]
    OutOfRange {
        /// The index named.
        index: u32,
        /// The first index that is too large.
        limit: u32,
    },
    /// A range that ends where or before it begins.
    #[error("an empty range of blocks, {start}..{end}")]
    EmptyRange {
        /// Its start.
        start: u32,
        /// Its end.
        end: u32,
    },
    /// DATA that nobody asked for.
    #[error("block {index} was neither requested nor covered by credit")]
    Unrequested {
        /// The block sent.
        index: u32,
    },
    /// DATA that failed its check.
    #[error("block {index} failed its check")]
    BadBlock {
        /// The block sent.
        index: u32,
    },
    /// A request for a block that this node never announced.
    #[error("block {index} was requested but never announced")]
    NotAnnounced {
        /// The block requested.
        index: u32,
    },
    /// More requests outstanding than any honest neighbour has.
    #[error("more than {limit} requests outstanding")]
    TooManyRequests {
        /// The most that are accepted.
        limit: usize,
    },
    /// The number of blocks contradicts what is known or held.
    #[error("the content was said to have {said} blocks, but {known} are known")]
    TotalContradicts {
        /// The number told now.
        said: u32,
        /// The number known, or the end of what is held.
        known: u32,
    },
    /// No such neighbour joined.
    #[error("no such neighbour")]
    UnknownNeighbour,
}

/// What the engine wants done. Taken with `poll` until it gives nothing, after every call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Send this message; waiting messages go before DATA.
    Send(NeighbourId, Control),
    /// There is DATA for this neighbour: call `next_data` when its socket is writable.
    Wake(NeighbourId),
    /// Close this connection and do not take the node back as a neighbour. It has left already.
    Ban(NeighbourId, Violation),
    /// Close this connection, it is silent or stalled; the node itself may come back. It has left
    /// already.
    Drop(NeighbourId),
    /// Close the stream to this neighbour, see [`Engine::part`](super::Engine::part). It has left
    /// already.
    Part(NeighbourId),
    /// Ask the scheduler (or the addresses heard of) for more neighbours.
    NeedNeighbours {
        /// Neighbours there are.
        have: usize,
        /// Neighbours there should be.
        want: usize,
    },
    /// Some wanted block has had no known holder for the time configured: ask for a lease of the
    /// origin.
    NeedSource,
    /// Every wanted block is held and the number of blocks is known.
    Complete,
    /// This emitter's first pass is over.
    Passed,
}

/// What a caller knows of a neighbour when it joins.
#[derive(Debug, Clone, Copy)]
pub struct NeighbourInfo {
    /// It holds a lease of the origin and pushes what it fetches.
    pub emitter: bool,
    /// The connection's smallest round-trip time; zero when not known.
    pub rtt: Duration,
    /// The blocks that may be requested of it: those of one gateway when a zone has several;
    /// `None`: none at all, it is a gateway of another zone that is only served.
    pub may_ask: Option<Stripe>,
}

impl Default for NeighbourInfo {
    fn default() -> Self {
        Self {
            emitter: false,
            rtt: Duration::ZERO,
            may_ask: Some(Stripe::WHOLE),
        }
    }
}

/// The blocks one emitter fetches and emits: those with `(index / run) % of == index_of_stripe`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stripe {
    /// This emitter's place among them.
    pub index: u32,
    /// Number of emitters; zero counts as one.
    pub of: u32,
    /// Length of a run of blocks that stay together; zero counts as one.
    pub run: u32,
}

impl Stripe {
    /// The only emitter.
    pub const WHOLE: Self = Self {
        index: 0,
        of: 1,
        run: 1,
    };

    /// Whether `block` is this emitter's.
    #[must_use]
    pub fn contains(&self, block: u32) -> bool {
        (block / self.run.max(1)) % self.of.max(1) == self.index
    }
}

/// What to do with DATA that is about to arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    /// Check and store it, then call `block_received`.
    Store,
    /// The block is held already (a CANCEL crossed it): skip the bytes, then call `block_received`.
    Skip,
}

/// What became of a block that arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Receipt {
    /// It is new.
    New,
    /// It was held already.
    Duplicate,
}

/// Settings of an engine. The defaults are production's; docs/performance.md says what each is worth.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// What the swarm is made fast for.
    pub objective: Objective,
    /// Probability of asking for the lowest block instead of the rarest.
    pub in_order_probability: f32,
    /// Blocks looked at for the rarest.
    pub sample: u32,
    /// Emit every block once before any is sent twice. Off: an emitter announces what it holds
    /// (ablation only).
    pub seed_unique: bool,
    /// Requests outstanding at a parent.
    pub window: u32,
    /// The same with at most `few_parents` neighbours.
    pub window_few: u32,
    /// See `window_few`.
    pub few_parents: usize,
    /// No window grows above this, whatever rate and round trip say.
    pub window_max: u32,
    /// Blocks an emitter may have on their way to us.
    pub credit: u32,
    /// Neighbours to have.
    pub degree: usize,
    /// Blocks of a content of unknown length; more is a violation.
    pub max_blocks: u32,
    /// A block is announced at most this long after it arrived.
    pub have_delay: Duration,
    /// And at once when so many wait to be announced.
    pub have_batch: usize,
    /// Interval of `tick`'s periodic work.
    pub tick: Duration,
    /// A block must have been outstanding this long to be asked of a second holder at the end.
    pub endgame_after: Duration,
    /// The same, at least, just after a reader's cursor.
    pub late_after: Duration,
    /// Blocks after a reader's cursor that are watched.
    pub reader_span: u32,
    /// An emitted block that its owner has not announced for this long, or four mean times, goes
    /// to another neighbour.
    pub reemit_after: Duration,
    /// A neighbour that says nothing at all for this long while it owes blocks is dropped.
    pub silence: Duration,
    /// A neighbour that sends none of the blocks it owes for this long is dropped.
    pub stall: Duration,
    /// A wanted block without a holder for this long asks for a source.
    pub orphan_after: Duration,
    /// Interval at which neighbours are asked for.
    pub refill_interval: Duration,
    /// The rate rule is off before this, counted from the start of the download.
    pub rate_from: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            objective: Objective::Slowest,
            in_order_probability: 0.5,
            sample: 48,
            seed_unique: true,
            window: 2,
            window_few: 3,
            few_parents: 6,
            window_max: 64,
            credit: 2,
            degree: 12,
            max_blocks: 1 << 20,
            have_delay: Duration::from_millis(30),
            have_batch: 6,
            tick: Duration::from_millis(50),
            endgame_after: Duration::from_millis(150),
            late_after: Duration::from_millis(100),
            reader_span: 64,
            reemit_after: Duration::from_millis(400),
            silence: Duration::from_secs(3),
            stall: Duration::from_secs(10),
            orphan_after: Duration::from_secs(3),
            refill_interval: Duration::from_millis(250),
            rate_from: Duration::from_millis(300),
        }
    }
}

/// Counters of one engine, in blocks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Blocks that arrived from neighbours and were new.
    pub received: u64,
    /// Of those, pushed by an emitter.
    pub pushed_to_us: u64,
    /// Blocks that arrived though they were held.
    pub duplicates: u64,
    /// Blocks sent to neighbours.
    pub sent: u64,
    /// Of those, emitted.
    pub emitted: u64,
    /// Of those, emitted again because the owner did not announce them in time or left.
    pub reemitted: u64,
    /// Blocks the origin delivered.
    pub from_origin: u64,
    /// Requests made.
    pub requests: u64,
    /// Neighbours banned.
    pub bans: u64,
}
