//! The graph inside a zone: random and regular, which matters more than its degree.
//!
//! Up to `mesh` members everybody knows everybody. Beyond that a joiner is put into edges: of some
//! random edges one is cut and its two ends become the joiner's neighbours, so that nobody's degree
//! changes but the joiner's, and members that came together do not stay together. When a member
//! leaves, its neighbours are joined in pairs. Least-connected choices instead made a long chain of
//! neighbours in time, since those with few edges are those that came last.
//!
//! Edges to lease-holders and to other zones come on top and are not counted.

use super::{Candidate, NodeKey, Refill, Swarm};
use core::time::Duration;

impl<K: NodeKey> Swarm<K> {
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
        if let Some(emitter) = self.emitter_for(node) {
            self.link(node, emitter);
            return Refill::More(self.introduce(node, emitter));
        }
        if self.degree(node) >= self.settings.degree {
            return Refill::Exhausted;
        }
        let given = self.more_for(node, true);
        let Some((&first, rest)) = given.split_first() else {
            return Refill::Exhausted;
        };
        rest.iter()
            .for_each(|other| self.connect_soon(node, *other));
        Refill::More(self.introduce(node, first))
    }

    /// A joiner's neighbours: the emitters that have room, and as many members as the degree says.
    pub(super) fn first_neighbours(&mut self, node: K) -> Vec<K> {
        let mut given = Vec::new();
        // With several emitters, each owns a share: know as many as have room.
        while let Some(emitter) = self.emitter_for(node) {
            self.link(node, emitter);
            given.push(emitter);
        }
        let zone = self.members.get(&node).map(|m| m.info.zone);
        let zone = zone.and_then(|zone| self.zones.get(&zone));
        if let Some(zone) = zone.filter(|zone| zone.members.len() <= self.settings.mesh) {
            for other in zone.members.clone() {
                if self.fits(node, other) {
                    self.link(node, other);
                    given.push(other);
                }
            }
            return given;
        }
        while self.degree(node) < self.settings.degree {
            let more = self.more_for(node, false);
            if more.is_empty() {
                break;
            }
            given.extend(more);
        }
        given
    }

    /// One neighbour more, or two: a member that has too few, else the ends of an edge. `single`: a
    /// member that would then have one too many will do.
    fn more_for(&mut self, node: K, single: bool) -> Vec<K> {
        let Some(zone) = self.members.get(&node).map(|m| m.info.zone) else {
            return Vec::new();
        };
        let mut rng = self.rng.clone();
        let open = self.zones.get(&zone).map_or(&[][..], |zone| &zone.open);
        let open = self.best_of(&mut rng, open, node);
        let edge = match open {
            None => self.edge_for(&mut rng, node),
            Some(_) => None,
        };
        let members = self.zones.get(&zone).map_or(&[][..], |zone| &zone.members);
        let any = match (open, edge) {
            (None, None) if single => self.best_of(&mut rng, members, node),
            _ => None,
        };
        self.rng = rng;
        if let Some(other) = open.or(any) {
            self.link(node, other);
            return vec![other];
        }
        let Some((a, b)) = edge else {
            return Vec::new();
        };
        let wanted = self.settings.degree;
        let over = self.degree(a) > wanted && self.degree(b) > wanted;
        let room = wanted.saturating_sub(self.degree(node));
        if !over && room < 2 {
            if !single {
                return Vec::new();
            }
            // One too few here or one too few there is the same.
            self.link(node, a);
            return vec![a];
        }
        self.unlink(a, b);
        self.part_soon(a, b);
        self.link(node, a);
        if over {
            return vec![a];
        }
        self.link(node, b);
        vec![a, b]
    }

    /// Joins the former neighbours of a member that left in pairs.
    pub(super) fn pair_up(&mut self, mut left: Vec<K>) {
        left.retain(|key| self.lacks_edges(*key));
        self.rng.shuffle(&mut left);
        while let Some(node) = left.pop() {
            let other = left.iter().rposition(|other| self.fits(node, *other));
            if let Some(at) = other {
                let other = left.swap_remove(at);
                self.link(node, other);
                self.connect_soon(node, other);
            }
        }
    }

    /// Neighbours in its own zone, emitters apart.
    pub(super) fn degree(&self, node: K) -> usize {
        let Some(member) = self.members.get(&node) else {
            return 0;
        };
        let counts = |other: &&K| {
            !self.holds_lease(**other)
                && self
                    .members
                    .get(other)
                    .is_some_and(|m| m.info.zone == member.info.zone)
        };
        member.edges.iter().filter(counts).count()
    }

    fn lacks_edges(&self, node: K) -> bool {
        !self.holds_lease(node) && self.degree(node) < self.settings.degree
    }

    /// Whether the two may become neighbours inside a zone.
    fn fits(&self, node: K, other: K) -> bool {
        let (Some(me), Some(it)) = (self.members.get(&node), self.members.get(&other)) else {
            return false;
        };
        node != other
            && me.info.zone == it.info.zone
            && !me.edges.contains(&other)
            && !me.accusers.contains(&other)
            && !it.accusers.contains(&node)
            && !self.holds_lease(other)
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

    /// Of some random edges between others the one whose ends are the best neighbours; of those
    /// between members that have too many, one of them.
    fn edge_for(&self, rng: &mut fastrand::Rng, node: K) -> Option<(K, K)> {
        let zone = self.zones.get(&self.members.get(&node)?.info.zone)?;
        let mut best: Option<((bool, f64), (K, K))> = None;
        for _ in 0..self.settings.candidates {
            let a = zone.members[rng.usize(..zone.members.len())];
            let Some(edges) = self.members.get(&a).map(|m| &m.edges) else {
                continue;
            };
            if edges.is_empty() || !self.fits(node, a) {
                continue;
            }
            let b = edges[rng.usize(..edges.len())];
            if !self.fits(node, b) {
                continue;
            }
            let most = self.settings.degree;
            let even = self.degree(a) <= most || self.degree(b) <= most;
            let rank = (even, self.score(a) + self.score(b));
            if best.is_none_or(|(least, _)| rank < least) {
                best = Some((rank, (a, b)));
            }
        }
        best.map(|(_, edge)| edge)
    }

    /// The best of some random members of a list that have no more neighbours than they should.
    fn best_of(&self, rng: &mut fastrand::Rng, from: &[K], node: K) -> Option<K> {
        let most = self.settings.degree;
        self.best_where(rng, from, |other| {
            self.fits(node, other) && self.degree(other) <= most
        })
    }

    /// The best of some random members of a list. Short lists are looked at whole.
    pub(super) fn best_where(
        &self,
        rng: &mut fastrand::Rng,
        from: &[K],
        fits: impl Fn(K) -> bool,
    ) -> Option<K> {
        let count = from.len();
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
            if !fits(other) {
                continue;
            }
            let score = self.score(other);
            if best.is_none_or(|(least, _)| score < least) {
                best = Some((score, other));
            }
        }
        best.map(|(_, other)| other)
    }

    fn score(&self, node: K) -> f64 {
        let Some(member) = self.members.get(&node) else {
            return f64::MAX;
        };
        let score = self.strategy.score(&Candidate {
            degree: self.degree(node),
            degree_wanted: self.settings.degree,
            load: member.info.load,
            held: member.info.held,
            seed: member.info.seed,
        });
        if score.is_nan() { f64::MAX } else { score }
    }

    pub(super) fn link(&mut self, a: K, b: K) {
        for (one, other) in [(a, b), (b, a)] {
            if let Some(member) = self.members.get_mut(&one)
                && !member.edges.contains(&other)
            {
                // Most have as many as they should, twelve; doubling would leave room for four more.
                if member.edges.len() == member.edges.capacity() {
                    member.edges.reserve_exact(4);
                }
                member.edges.push(other);
            }
        }
        self.reopen(a);
        self.reopen(b);
    }

    pub(super) fn unlink(&mut self, a: K, b: K) {
        for (one, other) in [(a, b), (b, a)] {
            if let Some(member) = self.members.get_mut(&one) {
                member.edges.retain(|edge| *edge != other);
            }
        }
        self.reopen(a);
        self.reopen(b);
    }

    /// Puts a member into its zone's list of those below their degree, or takes it out.
    pub(super) fn reopen(&mut self, node: K) {
        let lacks = self.lacks_edges(node);
        let Some(member) = self.members.get_mut(&node) else {
            return;
        };
        match (lacks, member.open_at) {
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

    pub(super) fn close(&mut self, node: K) {
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

    pub(super) fn unlist(&mut self, node: K) {
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
}
