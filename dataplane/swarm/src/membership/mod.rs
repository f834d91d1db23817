//! The scheduler's side of one task: who is in, who is whose neighbour, who goes to the origin.
//!
//! Files: `graph` (who is whose neighbour inside a zone), `zones` (gateways between them), `leases`
//! (who goes to the origin), `news` (what is gathered before members are told of it).
//!
//! Invariants:
//! - edges are symmetric, between members, and never to oneself;
//! - `open` of a zone holds exactly the members below their degree;
//! - a lease's holder is a member; epochs only grow;
//! - a member costs its degree and a few words; bans, accusers and degrees are bounded.
//!
//! Commands pile up until taken: call [`Swarm::poll`] until `None` after every call, and
//! [`Swarm::flush`] soon when there are [news](Swarm::has_news).

mod graph;
mod leases;
mod news;
mod rendezvous;
mod types;
mod zones;

pub use news::News;
pub use rendezvous::rendezvous;
pub use types::{
    Candidate, Command, Introduction, Lease, LeastConnected, MemberInfo, NodeKey, Refill, Refused,
    Settings, Strategy, ZoneId,
};

use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Accusers remembered of one member.
const MAX_ACCUSERS: usize = 16;

#[derive(Debug)]
struct Member<K> {
    info: MemberInfo,
    edges: Vec<K>,
    accusers: Vec<K>,
    last_refill: Option<Duration>,
    /// Places in the zone's lists.
    at: usize,
    open_at: Option<usize>,
    /// Its place among its zone's gateways.
    gateway: Option<u32>,
}

#[derive(Debug)]
struct Zone<K> {
    members: Vec<K>,
    open: Vec<K>,
    gateways: Vec<K>,
}

impl<K> Default for Zone<K> {
    fn default() -> Self {
        let (members, open, gateways) = (Vec::new(), Vec::new(), Vec::new());
        Self {
            members,
            open,
            gateways,
        }
    }
}

/// One task's members. See the module's header.
pub struct Swarm<K> {
    settings: Settings,
    strategy: Box<dyn Strategy>,
    rng: fastrand::Rng,
    members: BTreeMap<K, Member<K>>,
    zones: BTreeMap<ZoneId, Zone<K>>,
    leases: Vec<Lease<K>>,
    epoch: u64,
    source_zone: Option<ZoneId>,
    banned: BTreeSet<K>,
    pardoned: BTreeSet<K>,
    ban_order: VecDeque<K>,
    commands: VecDeque<Command<K>>,
    /// What members are to be told, and those of them that are to hear it now.
    news: BTreeMap<K, News<K>>,
    urgent: BTreeSet<K>,
}

impl<K: NodeKey> Swarm<K> {
    /// An empty swarm; `seed` makes its random choices.
    #[must_use]
    pub fn new(settings: Settings, strategy: Box<dyn Strategy>, seed: u64) -> Self {
        Self {
            settings,
            strategy,
            rng: fastrand::Rng::with_seed(seed),
            members: BTreeMap::new(),
            zones: BTreeMap::new(),
            leases: Vec::new(),
            epoch: 0,
            source_zone: None,
            banned: BTreeSet::new(),
            pardoned: BTreeSet::new(),
            ban_order: VecDeque::new(),
            commands: VecDeque::new(),
            news: BTreeMap::new(),
            urgent: BTreeSet::new(),
        }
    }

    /// At most one seed reads the origin, whatever the settings say: where answers of the origin cannot be
    /// told apart, two might read two versions.
    pub const fn one_reader(&mut self) {
        self.settings.emitters = 1;
    }

    /// How many seeds read the origin, each its share.
    #[must_use]
    pub const fn emitters(&self) -> u32 {
        if self.settings.emitters == 0 {
            1
        } else {
            self.settings.emitters
        }
    }

    /// The next thing to tell members.
    pub fn poll(&mut self) -> Option<Command<K>> {
        self.commands.pop_front().or_else(|| self.next_told())
    }

    /// Number of members.
    #[must_use]
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether nobody is in.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Whether a node is in.
    #[must_use]
    pub fn contains(&self, node: K) -> bool {
        self.members.contains_key(&node)
    }

    /// The members and how many blocks each said that it holds.
    pub fn held(&self) -> impl Iterator<Item = (K, u32)> {
        self.members.iter().map(|(node, m)| (*node, m.info.held))
    }

    /// The valid leases.
    #[must_use]
    pub fn leases(&self) -> &[Lease<K>] {
        &self.leases
    }

    /// A member's neighbours, as far as the scheduler knows.
    #[must_use]
    pub fn neighbours(&self, node: K) -> &[K] {
        self.members.get(&node).map_or(&[], |m| &m.edges)
    }

    /// A node joins, or registers again (its edges are kept then and only its report is taken).
    /// Returns its first neighbours.
    ///
    /// # Errors
    /// When it is banned or the task is full.
    pub fn join(&mut self, node: K, info: MemberInfo) -> Result<Vec<Introduction<K>>, Refused> {
        if self.banned.contains(&node) {
            return Err(Refused::Banned);
        }
        if let Some(member) = self.members.get_mut(&node) {
            member.info.held = info.held;
            member.info.load = info.load;
            let known = self.neighbours(node).to_vec();
            let again = known.into_iter().map(|other| self.introduce(node, other));
            return Ok(again.collect());
        }
        if self.members.len() >= self.settings.max_members {
            return Err(Refused::Full(self.settings.max_members));
        }
        let zone = self.zones.entry(info.zone).or_default();
        zone.members.push(node);
        let member = Member {
            info,
            edges: Vec::new(),
            accusers: Vec::new(),
            last_refill: None,
            at: zone.members.len() - 1,
            open_at: None,
            gateway: None,
        };
        self.members.insert(node, member);
        self.reopen(node);
        let here = self
            .zones
            .get(&info.zone)
            .map_or(0, |zone| zone.members.len());
        if self.source_zone == Some(info.zone) && here == self.leases.len() + 1 {
            self.source_populated();
        }
        let mut given = self.first_neighbours(node);
        given.extend(self.elect_if_needed(info.zone, node));
        Ok(given
            .into_iter()
            .map(|other| self.introduce(node, other))
            .collect())
    }

    /// A node is gone (it left, or its stream to the scheduler and its neighbours' connections
    /// broke). Leases and gateways it held go to others.
    pub fn leave(&mut self, node: K) {
        let Some(member) = self.members.get(&node) else {
            return;
        };
        let (zone, gateway) = (member.info.zone, member.gateway);
        let edges = member.edges.clone();
        for other in &edges {
            self.unlink(node, *other);
        }
        self.close(node);
        self.unlist(node);
        self.members.remove(&node);
        self.news.remove(&node);
        if !self.holds_lease(node) {
            self.pair_up(edges);
        }
        if let Some(zone) = self.zones.get_mut(&zone) {
            zone.gateways.retain(|other| *other != node);
        }
        if gateway.is_some() {
            self.elect(zone);
        }
        if self.leases.iter().any(|lease| lease.node == node) {
            self.lost_holder(node);
        }
        if self.zones.get(&zone).is_some_and(|z| z.members.is_empty()) {
            self.zones.remove(&zone);
        }
    }

    /// A member's periodic report.
    pub fn report(&mut self, node: K, held: u32, load: f32) {
        if let Some(member) = self.members.get_mut(&node) {
            member.info.held = held;
            member.info.load = load;
        }
    }

    /// A connection between two members broke or never came up, both being alive.
    pub fn disconnected(&mut self, a: K, b: K) {
        self.unlink(a, b);
    }

    /// `by` banned `whom`: the two are parted for good, and when enough members say the same the
    /// node is out. One liar can therefore expel nobody.
    pub fn accuse(&mut self, by: K, whom: K) {
        if !self.members.contains_key(&by) {
            return;
        }
        self.unlink(by, whom);
        let Some(member) = self.members.get_mut(&whom) else {
            return;
        };
        if member.accusers.len() < MAX_ACCUSERS && !member.accusers.contains(&by) {
            member.accusers.push(by);
        }
        if member.accusers.len() >= self.settings.accusers {
            self.ban(whom);
        }
    }

    /// A node that is out shows that it did not know better: it may join again. Once; whether that was now.
    pub fn pardon(&mut self, node: K) -> bool {
        let may = self.pardoned.len() < self.settings.max_bans && self.pardoned.insert(node);
        if may {
            self.banned.remove(&node);
            self.ban_order.retain(|banned| *banned != node);
        }
        may
    }

    /// A node is out of the task for good.
    pub fn ban(&mut self, node: K) {
        if self.banned.insert(node) {
            self.ban_order.push_back(node);
            if self.ban_order.len() > self.settings.max_bans
                && let Some(oldest) = self.ban_order.pop_front()
            {
                self.banned.remove(&oldest);
            }
        }
        for other in self.neighbours(node).to_vec() {
            self.commands
                .push_back(Command::Disconnect { a: other, b: node });
        }
        self.leave(node);
    }
}
