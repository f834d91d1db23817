//! Who goes to the origin: seeds when there are any, peers only where policy says so.
//!
//! Every grant has a new epoch. When a holder is lost, the stripes are dealt anew among those left;
//! a holder whose stripe does not change keeps its lease.

use super::{Command, Lease, NodeKey, Swarm};
use crate::engine::Stripe;
use core::time::Duration;

impl<K: NodeKey> Swarm<K> {
    /// Starts the task: gives the first leases to the seeds present. Does nothing while there are
    /// leases. With no seed, see [`Swarm::request_lease`].
    pub fn assign_leases(&mut self) {
        if self.leases.is_empty() {
            self.deal(Duration::ZERO);
        }
    }

    /// Like [`Swarm::assign_leases`], but this member is the first holder: it looked at the origin, it
    /// is the content's home, or it held the lease before the scheduler restarted.
    pub fn assign_leases_to(&mut self, node: K) {
        if !self.leases.is_empty() || !self.members.contains_key(&node) {
            return;
        }
        let mut holders = vec![node];
        let seeds = self.members.iter().filter(|(_, m)| m.info.seed);
        for (seed, _) in seeds {
            if holders.len() < self.emitters() as usize && !holders.contains(seed) {
                holders.push(*seed);
            }
        }
        self.grant_all(&holders, 1, Duration::ZERO);
    }

    /// A member knows no holder of a block it needs and asks to go to the origin itself. Granted
    /// when policy allows it, no seed holds a lease, and fewer than two peers do.
    pub fn request_lease(&mut self, node: K) {
        if !self.members.contains_key(&node) || self.leases.iter().any(|l| l.node == node) {
            return;
        }
        let seeds = |key: &K| self.members.get(key).is_some_and(|m| m.info.seed);
        if self.leases.iter().any(|lease| seeds(&lease.node)) {
            return;
        }
        if self.leases.is_empty() && self.members.values().any(|m| m.info.seed) {
            self.deal(self.settings.collect);
            return;
        }
        if !self.settings.peers_may_fetch {
            self.commands.push_back(Command::NoSource);
            return;
        }
        let mut holders: Vec<K> = self.leases.iter().map(|lease| lease.node).collect();
        if holders.len() < 2 {
            holders.push(node);
            let run = self.settings.peer_run;
            self.grant_all(&holders, run, self.settings.collect);
        }
    }

    /// Whether this node holds a lease.
    #[must_use]
    pub fn holds_lease(&self, node: K) -> bool {
        self.leases.iter().any(|lease| lease.node == node)
    }

    pub(super) fn lost_holder(&mut self, node: K) {
        let gone = self.leases.iter().filter(|l| l.node == node);
        self.commands.extend(gone.map(|l| Command::Revoke(*l)));
        self.deal(self.settings.collect);
    }

    /// Deals the stripes among seeds, present holders first; with no seed, to the most complete
    /// peer.
    fn deal(&mut self, collect: Duration) {
        let is_seed = |key: &K| self.members.get(key).is_some_and(|m| m.info.seed);
        let mut holders: Vec<K> = self.leases.iter().map(|l| l.node).filter(is_seed).collect();
        let seeds = self.members.iter().filter(|(_, m)| m.info.seed);
        for (seed, _) in seeds {
            if holders.len() < self.emitters() as usize && !holders.contains(seed) {
                holders.push(*seed);
            }
        }
        if holders.is_empty() {
            let first = collect.is_zero();
            let best = self.members.iter().max_by_key(|(_, m)| m.info.held);
            match best {
                Some((peer, _)) if self.settings.peers_may_fetch && !first => holders.push(*peer),
                _ => self.commands.push_back(Command::NoSource),
            }
        }
        self.grant_all(&holders, 1, collect);
    }

    fn grant_all(&mut self, holders: &[K], run: u32, collect: Duration) {
        let of = holders.len() as u32;
        let old = core::mem::take(&mut self.leases);
        for (index, &node) in holders.iter().enumerate() {
            let stripe = Stripe {
                index: index as u32,
                of,
                run: if of == 1 { 1 } else { run },
            };
            if let Some(kept) = old.iter().find(|l| l.node == node && l.stripe == stripe) {
                self.leases.push(*kept);
                continue;
            }
            self.epoch += 1;
            let lease = Lease {
                epoch: self.epoch,
                node,
                stripe,
                collect,
            };
            self.leases.push(lease);
            self.commands.push_back(Command::Grant(lease));
        }
        // Edges to a holder are not counted while it is one.
        let changed = old.iter().map(|lease| lease.node).chain(holders.to_vec());
        for holder in changed.collect::<Vec<K>>() {
            let around = self.neighbours(holder).to_vec();
            around.into_iter().for_each(|node| self.reopen(node));
            self.reopen(holder);
        }
        if let Some(first) = holders.first().and_then(|key| self.members.get(key)) {
            let zone = first.info.zone;
            let moved = self
                .source_zone
                .replace(zone)
                .is_some_and(|old| old != zone);
            if moved {
                self.source_moved(zone);
            }
        }
        for &emitter in holders {
            self.surround(emitter);
        }
        let source = self.source_zone;
        let zones: Vec<_> = self
            .zones
            .keys()
            .copied()
            .filter(|z| Some(*z) != source)
            .collect();
        for zone in zones {
            self.elect(zone);
            self.link_gateways(zone);
        }
    }

    /// Gives a new emitter its first level: the members of its zone, up to the bound.
    fn surround(&mut self, emitter: K) {
        let Some(zone) = self.members.get(&emitter).map(|m| m.info.zone) else {
            return;
        };
        let room = self
            .settings
            .first_level
            .saturating_sub(self.neighbours(emitter).len());
        let Some(members) = self.zones.get(&zone).map(|zone| &zone.members) else {
            return;
        };
        let start = match members.len() {
            0 => 0,
            count => self.rng.usize(..count),
        };
        let known = self.neighbours(emitter);
        let around = members[start..].iter().chain(&members[..start]);
        let new: Vec<K> = around
            .filter(|key| **key != emitter && !known.contains(key))
            .take(room)
            .copied()
            .collect();
        for node in new {
            self.link(node, emitter);
            self.connect_now(node, emitter);
        }
    }

    /// Makes a zone's gateways neighbours of the present emitters.
    fn link_gateways(&mut self, zone: super::ZoneId) {
        let gateways = self.zones.get(&zone).map(|z| z.gateways.clone());
        let emitters: Vec<K> = self.leases.iter().map(|lease| lease.node).collect();
        for node in gateways.unwrap_or_default() {
            for &emitter in &emitters {
                if node != emitter && !self.neighbours(node).contains(&emitter) {
                    self.bridge(node, emitter);
                    self.connect_now(node, emitter);
                }
            }
        }
    }
}
