//! The vocabulary of membership.

use super::news::News;
use crate::engine::Stripe;
use core::fmt::Debug;
use core::hash::Hash;
use core::time::Duration;

/// What names a node to the scheduler; small and copied freely.
pub trait NodeKey: Copy + Ord + Hash + Debug {}

impl<T: Copy + Ord + Hash + Debug> NodeKey for T {}

/// A zone's number; the caller keeps the names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ZoneId(pub u32);

/// What a node says of itself when it joins a task, also after a scheduler's restart.
#[derive(Debug, Clone, Copy, Default)]
pub struct MemberInfo {
    /// It may go to the origin for others.
    pub seed: bool,
    /// Where it is.
    pub zone: ZoneId,
    /// Blocks it holds.
    pub held: u32,
    /// Measured load of its uplink, 0 (idle) to 1 (full).
    pub load: f32,
}

/// What a strategy judges a candidate by.
#[derive(Debug, Clone, Copy)]
pub struct Candidate {
    /// Neighbours it has.
    pub degree: usize,
    /// Neighbours it should have.
    pub degree_wanted: usize,
    /// Measured load of its uplink, 0 to 1.
    pub load: f32,
    /// Blocks it holds.
    pub held: u32,
    /// Whether it is a seed.
    pub seed: bool,
}

/// Which of some candidates becomes a neighbour: the one with the lowest score.
pub trait Strategy: Send {
    /// Lower is better; NaN is worst.
    fn score(&self, candidate: &Candidate) -> f64;
}

/// The default: fewest neighbours, a full uplink counting as much as four of them.
#[derive(Debug, Clone, Copy, Default)]
pub struct LeastConnected;

impl Strategy for LeastConnected {
    fn score(&self, candidate: &Candidate) -> f64 {
        candidate.degree as f64 + 4.0 * f64::from(candidate.load.clamp(0.0, 1.0))
    }
}

/// Settings of one task's swarm.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Neighbours a member should have in its zone, emitters apart; best even.
    pub degree: usize,
    /// Up to this many members in a zone everybody knows everybody.
    pub mesh: usize,
    /// Random candidates looked at for each choice.
    pub candidates: usize,
    /// Neighbours of an emitter in its zone.
    pub first_level: usize,
    /// Seeds that emit at once.
    pub emitters: u32,
    /// Whether peers may go to the origin when there is no seed.
    pub peers_may_fetch: bool,
    /// Blocks of a run when two peers share the origin.
    pub peer_run: u32,
    /// A member gets one more neighbour at most this often.
    pub refill_interval: Duration,
    /// Gateways of each remote zone: links wider than one node need more than one.
    pub gateways: u32,
    /// Neighbours of a gateway in the source zone, emitters apart.
    pub gateway_degree: usize,
    /// Members that must have accused a node before all are rid of it.
    pub accusers: usize,
    /// Most members; more are refused.
    pub max_members: usize,
    /// Most bans remembered; the oldest goes first.
    pub max_bans: usize,
    /// How long a successor collects bitmaps.
    pub collect: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            degree: 12,
            mesh: 13,
            candidates: 8,
            first_level: 32,
            emitters: 1,
            peers_may_fetch: true,
            peer_run: 64,
            refill_interval: Duration::from_millis(250),
            gateways: 1,
            gateway_degree: 4,
            accusers: 2,
            max_members: 200_000,
            max_bans: 1024,
            collect: Duration::from_millis(500),
        }
    }
}

/// The right to fetch a stripe of the origin and to sign what it gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease<K> {
    /// Grows with every lease of the task.
    pub epoch: u64,
    /// Who holds it.
    pub node: K,
    /// Which blocks.
    pub stripe: Stripe,
    /// How long to collect bitmaps before fetching; zero for the first.
    pub collect: Duration,
}

/// How a member relates to one neighbour. It is told so of those it is to connect to, and of those
/// of another zone that will connect to it: nobody asks across zones but a gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Introduction<K> {
    /// The neighbour.
    pub node: K,
    /// It holds a lease and may push to this member.
    pub emitter: bool,
    /// The blocks this member may request there; `None`: it only serves.
    pub may_ask: Option<Stripe>,
}

/// What the scheduler tells its members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command<K> {
    /// Tell `node` what changes among its neighbours.
    Tell {
        /// Whom to tell.
        node: K,
        /// What changes.
        news: News<K>,
    },
    /// Tell `a` and `b` to part at once.
    Disconnect {
        /// One end.
        a: K,
        /// The other.
        b: K,
    },
    /// All members: this lease is valid from now on. Its holder starts to emit.
    Grant(Lease<K>),
    /// This lease is over.
    Revoke(Lease<K>),
    /// There is nobody who may go to the origin.
    NoSource,
}

/// Why a node was not taken in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It was banned from this task.
    #[error("the node is banned from this task")]
    Banned,
    /// The task has as many members as it may.
    #[error("the task has {0} members, as many as it may")]
    Full(usize),
}

/// Answer to a request for one more neighbour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refill<K> {
    /// Connect to this one.
    More(Introduction<K>),
    /// There is nobody else; do not ask until a neighbour leaves.
    Exhausted,
    /// Asked too early, or not a member.
    TooSoon,
}
