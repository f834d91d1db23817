//! What the scheduler says, and the connections that come of it.

use super::{Event, Nanos, World};
use crate::engine::{NeighbourId, NeighbourInfo, Stripe, Wanted};
use crate::membership::{Command, Introduction, MemberInfo, News};

/// The scheduler gathers news for this long, in production too.
const GATHER: Nanos = 50_000_000;

impl World<'_> {
    pub(super) fn join(&mut self, node: u32) {
        let now = self.time();
        let peer = &mut self.nodes[node as usize];
        peer.joined = self.now;
        peer.engine.set_wanted(now, Wanted::Whole);
        let info = MemberInfo {
            zone: peer.zone,
            ..MemberInfo::default()
        };
        self.out.messages.joins += 2;
        let given = self.swarm.join(node, info).unwrap_or_default();
        if self.swarm.len() <= given.len() + 1 {
            self.nodes[node as usize].engine.neighbours_exhausted();
        }
        for introduction in given {
            self.introduce(node, introduction);
        }
        self.drain_commands();
        self.drain(node);
    }

    /// The scheduler's answer and the connection take a round trip each.
    pub(super) fn introduce(&mut self, from: u32, introduction: Introduction<u32>) {
        let to = introduction.node;
        self.nodes[from as usize].told.insert(to, introduction);
        self.schedule(self.now + 4 * self.latency, Event::Connect { from, to });
    }

    /// What a node was told of a neighbour holds for the connection that is up.
    pub(super) fn told(&mut self, node: u32, peer: u32) {
        let now = self.time();
        let it = &mut self.nodes[node as usize];
        let Some(told) = it.told.get(&peer) else {
            return;
        };
        let id = NeighbourId(peer);
        it.engine.keep(now, id);
        it.engine.set_may_ask(now, id, told.may_ask);
        it.engine.set_emitter(now, id, told.emitter);
        self.drain(node);
    }

    pub(super) fn connect(&mut self, from: u32, to: u32) {
        let (a, b) = (&self.nodes[from as usize], &self.nodes[to as usize]);
        if !a.alive || !b.alive {
            return;
        }
        if a.engine.neighbours().any(|n| n.0 == to) {
            self.told(from, to);
            let now = self.time();
            let engine = &mut self.nodes[to as usize].engine;
            engine.keep(now, NeighbourId(from));
            return self.drain(to);
        }
        let now = self.time();
        for (one, other) in [(from, to), (to, from)] {
            let node = &mut self.nodes[one as usize];
            let told = node.told.get(&other);
            let info = NeighbourInfo {
                emitter: told.is_some_and(|told| told.emitter),
                rtt: self.scenario.rtt,
                may_ask: told.map_or(Some(Stripe::WHOLE), |told| told.may_ask),
            };
            node.engine.join(now, NeighbourId(other), info);
            self.drain(one);
        }
    }

    pub(super) fn drain_commands(&mut self) {
        while let Some(command) = self.swarm.poll() {
            match command {
                Command::Tell { node, news } => self.tell(node, news),
                Command::Disconnect { a, b } => self.disconnect(a, b),
                Command::Grant(lease) => {
                    let holder = &mut self.nodes[lease.node as usize];
                    holder.granted = Some((lease.stripe, lease.collect));
                    let at = self.now + self.latency;
                    self.schedule(at, Event::Grant { node: lease.node });
                    let now = self.time();
                    for node in self.swarm.neighbours(lease.node).to_vec() {
                        let same =
                            self.nodes[node as usize].zone == self.nodes[lease.node as usize].zone;
                        let engine = &mut self.nodes[node as usize].engine;
                        engine.set_emitter(now, NeighbourId(lease.node), same);
                        self.drain(node);
                    }
                }
                Command::Revoke(_) | Command::NoSource => {}
            }
        }
        if self.swarm.has_news() && !self.flushing {
            self.flushing = true;
            self.schedule(self.now + GATHER, Event::Flush);
        }
    }

    pub(super) fn flush(&mut self) {
        self.flushing = false;
        self.swarm.flush();
        self.drain_commands();
    }

    /// One message of the scheduler.
    fn tell(&mut self, node: u32, news: News<u32>) {
        self.out.messages.told += 1;
        for to in news.connect {
            self.introduce(node, to);
        }
        for introduction in news.expect {
            let peer = introduction.node;
            self.nodes[node as usize].told.insert(peer, introduction);
            self.schedule(self.now + self.latency, Event::Expect { node, peer });
        }
        for from in news.part {
            // Not before the connection is up, of which the node may have been told just now.
            let at = self.now + 4 * self.latency;
            self.schedule(at, Event::Part { node, from });
        }
    }

    pub(super) fn disconnect(&mut self, a: u32, b: u32) {
        let now = self.time();
        for (one, other) in [(a, b), (b, a)] {
            self.nodes[one as usize]
                .engine
                .leave(now, NeighbourId(other));
            self.drain(one);
        }
    }
}
