//! The scheduler's side of one task: who is in, who is whose neighbour, who goes to the origin.
//!
//! The graph is random and nearly regular, which matters more than its degree: a joiner is given
//! half its neighbours at once, each the best of some random members, and is chosen by those who
//! come later; members below their degree ask for more. With all of them at once the mean degree
//! would be twice as high (1.34 instead of 1.23 at 1000 nodes, simulated). Edges stay inside a zone; each other zone has elected gateways
//! that also have neighbours in the source zone, the zone of the first lease's holder.
//!
//! Invariants:
//! - edges are symmetric, between members, and never to oneself;
//! - `open` of a zone holds exactly the members below their degree;
//! - a lease's holder is a member; epochs only grow;
//! - a member costs its degree and a few words; bans, accusers and degrees are bounded.
//!
//! Commands pile up until taken: call [`Swarm::poll`] until `None` after every call.

mod leases;
mod rendezvous;
mod types;

pub use rendezvous::rendezvous;
pub use types::{
    Candidate, Command, Introduction, Lease, LeastConnected, MemberInfo, NodeKey, Refill, Refused,
    Settings, Strategy, ZoneId,
};

use crate::engine::Stripe;
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
    ban_order: VecDeque<K>,
    commands: VecDeque<Command<K>>,
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
            ban_order: VecDeque::new(),
            commands: VecDeque::new(),
        }
    }

    /// The next thing to tell members.
    pub fn poll(&mut self) -> Option<Command<K>> {
        self.commands.pop_front()
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
        for other in member.edges.clone() {
            self.unlink(node, other);
        }
        self.close(node);
        self.unlist(node);
        self.members.remove(&node);
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

    /// A member below its degree asks for one more neighbour.
    pub fn refill(&mut self, now: Duration, node: K) -> Refill<K> {
        let every = self.settings.refill_interval;
        let Some(member) = self.members.get_mut(&node) else {
            return Refill::TooSoon;
        };
        if member.last_refill.is_some_and(|last| now < last + every) {
            return Refill::TooSoon;
        }
        member.last_refill = Some(now);
        if member.edges.len() >= self.settings.degree {
            return Refill::Exhausted;
        }
        let emitter = self.emitter_for(node);
        match emitter.or_else(|| self.pick(node)) {
            Some(other) => {
                self.link(node, other);
                Refill::More(self.introduce(node, other))
            }
            None => Refill::Exhausted,
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

    // ---- the graph -------------------------------------------------------------------------

    fn first_neighbours(&mut self, node: K) -> Vec<K> {
        let mut given = Vec::new();
        if let Some(emitter) = self.emitter_for(node) {
            self.link(node, emitter);
            given.push(emitter);
            // With several emitters, each owns a share: know as many as have room.
            while let Some(more) = self.emitter_for(node) {
                self.link(node, more);
                given.push(more);
            }
        }
        let zone = self.members[&node].info.zone;
        let mesh = self.zones[&zone].members.len() <= self.settings.degree + 1;
        let degree = if mesh {
            self.settings.degree
        } else {
            self.settings.first
        };
        let degree = degree.max(given.len());
        while given.len() < degree {
            let Some(other) = self.pick(node) else {
                break;
            };
            self.link(node, other);
            given.push(other);
        }
        given
    }

    /// An emitter of the node's own zone that has room for one more, if the node does not know it.
    fn emitter_for(&self, node: K) -> Option<K> {
        let member = self.members.get(&node)?;
        self.leases.iter().map(|lease| lease.node).find(|emitter| {
            *emitter != node
                && self.members.get(emitter).is_some_and(|m| {
                    m.info.zone == member.info.zone
                        && m.edges.len() < self.settings.first_level
                        && !m.edges.contains(&node)
                        && !m.accusers.contains(&node)
                        && !member.accusers.contains(emitter)
                })
        })
    }

    /// One more neighbour in the node's zone: the best of some random members that are not far
    /// above their degree.
    fn pick(&mut self, node: K) -> Option<K> {
        let mut rng = self.rng.clone();
        let chosen = self.pick_with(&mut rng, node);
        self.rng = rng;
        chosen
    }

    fn pick_with(&self, rng: &mut fastrand::Rng, node: K) -> Option<K> {
        let zone = self.zones.get(&self.members.get(&node)?.info.zone)?;
        let most = self.settings.degree + self.settings.slack;
        // All members, not only those below their degree: these are the last that came, and a graph
        // of neighbours in time is a long chain (1.38 instead of 1.20 at 100 nodes).
        self.best_of(rng, &zone.members, node, most)
            .or_else(|| self.best_of(rng, &zone.open, node, self.settings.degree))
    }

    fn best_of(&self, rng: &mut fastrand::Rng, from: &[K], node: K, most: usize) -> Option<K> {
        let me = self.members.get(&node)?;
        let count = from.len();
        // Small lists are looked at whole, so that a full mesh is full.
        let all = count <= self.settings.candidates * 2;
        let looks = if all { count } else { self.settings.candidates };
        let start = if count > 0 { rng.usize(..count) } else { 0 };
        let mut best: Option<(f64, K)> = None;
        for look in 0..looks {
            let at = if all {
                (start + look) % count
            } else {
                rng.usize(..count)
            };
            let other = from[at];
            let Some(member) = self.members.get(&other) else {
                continue;
            };
            if other == node
                || member.edges.len() >= most
                || me.edges.contains(&other)
                || me.accusers.contains(&other)
                || member.accusers.contains(&node)
                || self.leases.iter().any(|lease| lease.node == other)
            {
                continue;
            }
            let score = self.strategy.score(&Candidate {
                degree: member.edges.len(),
                degree_wanted: self.settings.degree,
                load: member.info.load,
                held: member.info.held,
                seed: member.info.seed,
            });
            let score = if score.is_nan() { f64::MAX } else { score };
            if best.is_none_or(|(least, _)| score < least) {
                best = Some((score, other));
            }
        }
        best.map(|(_, other)| other)
    }

    fn link(&mut self, a: K, b: K) {
        for (one, other) in [(a, b), (b, a)] {
            if let Some(member) = self.members.get_mut(&one)
                && !member.edges.contains(&other)
            {
                member.edges.push(other);
            }
            self.reopen(one);
        }
    }

    fn unlink(&mut self, a: K, b: K) {
        for (one, other) in [(a, b), (b, a)] {
            if let Some(member) = self.members.get_mut(&one) {
                member.edges.retain(|edge| *edge != other);
            }
            self.reopen(one);
        }
    }

    /// Puts a member into its zone's list of those below their degree, or takes it out.
    fn reopen(&mut self, node: K) {
        let Some(member) = self.members.get_mut(&node) else {
            return;
        };
        let below = member.edges.len() < self.settings.degree;
        match (below, member.open_at) {
            (true, None) => {
                if let Some(zone) = self.zones.get_mut(&member.info.zone) {
                    member.open_at = Some(zone.open.len());
                    zone.open.push(node);
                }
            }
            (false, Some(_)) => self.close(node),
            _ => {}
        }
    }

    fn close(&mut self, node: K) {
        let Some(member) = self.members.get_mut(&node) else {
            return;
        };
        let (Some(at), Some(zone)) = (member.open_at.take(), self.zones.get_mut(&member.info.zone))
        else {
            return;
        };
        zone.open.swap_remove(at);
        if let Some(moved) = zone.open.get(at).and_then(|key| self.members.get_mut(key)) {
            moved.open_at = Some(at);
        }
    }

    fn unlist(&mut self, node: K) {
        let Some(member) = self.members.get(&node) else {
            return;
        };
        let at = member.at;
        let Some(zone) = self.zones.get_mut(&member.info.zone) else {
            return;
        };
        zone.members.swap_remove(at);
        if let Some(moved) = zone
            .members
            .get(at)
            .and_then(|key| self.members.get_mut(key))
        {
            moved.at = at;
        }
    }

    /// How `node` relates to `other`.
    fn introduce(&self, node: K, other: K) -> Introduction<K> {
        let leased = self.leases.iter().any(|lease| lease.node == other);
        let (Some(me), Some(it)) = (self.members.get(&node), self.members.get(&other)) else {
            return Introduction {
                node: other,
                emitter: leased,
                may_ask: Some(Stripe::WHOLE),
            };
        };
        if me.info.zone == it.info.zone {
            return Introduction {
                node: other,
                emitter: leased,
                may_ask: Some(Stripe::WHOLE),
            };
        }
        // A block pushed to a gateway would have to come back over the link, so an emitter pushes
        // there only when its own zone has nobody else.
        let alone = self
            .zones
            .get(&it.info.zone)
            .is_none_or(|zone| zone.members.len() <= self.leases.len());
        let may_ask = me.gateway.map(|index| Stripe {
            index,
            of: self.settings.gateways.max(1),
            run: 1,
        });
        Introduction {
            node: other,
            emitter: leased && alone,
            may_ask,
        }
    }

    // ---- zones -----------------------------------------------------------------------------

    /// The neighbours in the source zone of a joiner that becomes a gateway.
    fn elect_if_needed(&mut self, zone: ZoneId, node: K) -> Vec<K> {
        let wanted = self.settings.gateways as usize;
        if self.source_zone.is_none_or(|source| source == zone)
            || self
                .zones
                .get(&zone)
                .is_none_or(|z| z.gateways.len() >= wanted)
        {
            return Vec::new();
        }
        self.make_gateway(zone, node)
    }

    /// Gives a zone the gateways it lacks, the most complete members first.
    fn elect(&mut self, zone: ZoneId) {
        let wanted = self.settings.gateways as usize;
        while self.source_zone.is_some_and(|source| source != zone) {
            let Some(state) = self.zones.get(&zone) else {
                return;
            };
            if state.gateways.len() >= wanted {
                return;
            }
            let held = |key: &K| self.members.get(key).map_or(0, |m| m.info.held);
            let free = state
                .members
                .iter()
                .filter(|key| !state.gateways.contains(key));
            let Some(next) = free.copied().max_by_key(held) else {
                return;
            };
            for other in self.make_gateway(zone, next) {
                let to = self.introduce(next, other);
                self.commands.push_back(Command::Connect { node: next, to });
            }
        }
    }

    fn make_gateway(&mut self, zone: ZoneId, node: K) -> Vec<K> {
        let taken: Vec<u32> = self.zones.get(&zone).map_or_else(Vec::new, |z| {
            let index = |key: &K| self.members.get(key).and_then(|m| m.gateway);
            z.gateways.iter().filter_map(index).collect()
        });
        let index = (0..).find(|index| !taken.contains(index));
        if let Some(member) = self.members.get_mut(&node) {
            member.gateway = index;
        }
        if let Some(zone) = self.zones.get_mut(&zone) {
            zone.gateways.push(node);
        }
        let mut given: Vec<K> = self.leases.iter().map(|lease| lease.node).collect();
        given.retain(|emitter| *emitter != node);
        for emitter in given.clone() {
            self.link(node, emitter);
        }
        let source = self.source_zone.and_then(|zone| self.zones.get(&zone));
        let Some(source) = source else { return given };
        let most = self.settings.degree + self.settings.slack;
        // Chosen before any is linked: the list is borrowed, and so small that it is looked at whole
        // or so large that a second look finds another.
        let mut rng = self.rng.clone();
        let mut peers: Vec<K> = Vec::new();
        for _ in 0..self.settings.gateway_degree * 4 {
            let found = self.best_of(&mut rng, &source.members, node, most);
            peers.extend(found.filter(|key| !peers.contains(key)));
        }
        peers.truncate(self.settings.gateway_degree);
        self.rng = rng;
        for peer in peers {
            self.link(node, peer);
            given.push(peer);
        }
        given
    }
}
