//! Zones: edges stay inside one, except those of its elected gateways.
//!
//! A zone other than the source zone (that of the first lease's holder) has gateways: they are
//! joined to the emitters and to some members of the source zone, and they alone ask across the
//! link, each for its share of the blocks. When a gateway leaves, the most complete member follows.

use super::{Introduction, NodeKey, Swarm, ZoneId};
use crate::engine::Stripe;

impl<K: NodeKey> Swarm<K> {
    /// How `node` relates to `other`.
    pub(super) fn introduce(&self, node: K, other: K) -> Introduction<K> {
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

    /// The neighbours in the source zone of a joiner that becomes a gateway.
    pub(super) fn elect_if_needed(&mut self, zone: ZoneId, node: K) -> Vec<K> {
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
    pub(super) fn elect(&mut self, zone: ZoneId) {
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
                self.connect_now(next, other);
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
            self.bridge(node, emitter);
        }
        let source = self.source_zone.and_then(|zone| self.zones.get(&zone));
        let Some(source) = source else { return given };
        // Not members that serve many already.
        let most = self.settings.degree * 2;
        let edges = |key: K| self.members.get(&key).map(|m| &m.edges);
        // Chosen before any is linked: the list is borrowed, and so small that it is looked at whole
        // or so large that a second look finds another.
        let mut rng = self.rng.clone();
        let mut peers: Vec<K> = Vec::new();
        for _ in 0..self.settings.gateway_degree * 4 {
            let found = self.best_where(&mut rng, &source.members, |key| {
                key != node
                    && !self.holds_lease(key)
                    && edges(key).is_some_and(|e| e.len() < most && !e.contains(&node))
                    && !peers.contains(&key)
            });
            peers.extend(found);
        }
        peers.truncate(self.settings.gateway_degree);
        self.rng = rng;
        for peer in peers {
            self.bridge(node, peer);
            given.push(peer);
        }
        given
    }

    /// Joins a gateway to a member of another zone, which is told whom it will serve.
    pub(super) fn bridge(&mut self, gateway: K, member: K) {
        self.link(gateway, member);
        self.expect_now(member, gateway);
    }

    /// The source zone is another: the gateways of the new one are ordinary members, and both ends
    /// of every edge between zones learn what holds now.
    pub(super) fn source_moved(&mut self, to: ZoneId) {
        let gateways = self
            .zones
            .get_mut(&to)
            .map(|z| core::mem::take(&mut z.gateways));
        for node in gateways.unwrap_or_default() {
            if let Some(member) = self.members.get_mut(&node) {
                member.gateway = None;
            }
            for other in self.neighbours(node).to_vec() {
                if self.zone_of(other) != Some(to) {
                    self.tell_both(node, other);
                }
            }
        }
    }

    /// Emitters push to gateways while they have no neighbour in their own zone. Now they have.
    pub(super) fn source_populated(&mut self) {
        let zones = self.zones.values().flat_map(|zone| zone.gateways.clone());
        for gateway in zones.collect::<Vec<K>>() {
            let emitters: Vec<K> = self.leases.iter().map(|lease| lease.node).collect();
            for emitter in emitters {
                if self.neighbours(gateway).contains(&emitter) {
                    self.connect_now(gateway, emitter);
                }
            }
        }
    }

    fn tell_both(&mut self, a: K, b: K) {
        for (node, other) in [(a, b), (b, a)] {
            self.expect_now(node, other);
        }
    }

    pub(super) fn zone_of(&self, node: K) -> Option<ZoneId> {
        self.members.get(&node).map(|m| m.info.zone)
    }
}
