//! A network of engines whose every step is chosen by the test: messages of one connection stay in
//! order, connections break at any moment, nodes die, an emitter is replaced.

#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    reason = "each test file uses its part"
)]

use core::time::Duration;
use dragonfly_swarm::engine::{
    Action, Config, Control, Engine, NeighbourId, NeighbourInfo, Stripe, Wanted,
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

pub enum Packet {
    Control(Control),
    Data(u32),
}

pub struct Net {
    pub nodes: Vec<Option<Engine>>,
    pub now: Duration,
    pub rng: fastrand::Rng,
    /// One queue for each direction of each connection.
    pub wires: BTreeMap<(u32, u32), VecDeque<Packet>>,
    awake: BTreeSet<(u32, u32)>,
    /// Who holds leases, and which blocks are on their way from the origin to it.
    pub emitters: BTreeMap<u32, BTreeSet<u32>>,
    /// How often the origin sent each block.
    pub origin: Vec<u32>,
    /// The same for each node that it was sent to.
    pub origin_to: BTreeMap<(u32, u32), u32>,
    pub total: u32,
    pub complete: BTreeSet<u32>,
    /// Nodes that may break the protocol.
    pub hostile: BTreeSet<u32>,
    pub lonely: u32,
}

impl Net {
    pub fn new(total: u32, seed: u64) -> Self {
        Self {
            nodes: Vec::new(),
            now: Duration::from_secs(1),
            rng: fastrand::Rng::with_seed(seed),
            wires: BTreeMap::new(),
            awake: BTreeSet::new(),
            emitters: BTreeMap::new(),
            origin_to: BTreeMap::new(),
            origin: vec![0; total as usize],
            total,
            complete: BTreeSet::new(),
            hostile: BTreeSet::new(),
            lonely: 0,
        }
    }

    pub fn add(&mut self, config: Config, wanted: Wanted) -> u32 {
        let id = self.nodes.len() as u32;
        let mut engine = Engine::new(config, self.rng.u64(..), Some(self.total));
        engine.set_wanted(self.now, wanted);
        self.nodes.push(Some(engine));
        self.settle(id);
        id
    }

    pub fn connect(&mut self, a: u32, b: u32) {
        if a == b || self.wires.contains_key(&(a, b)) {
            return;
        }
        if self.nodes[a as usize].is_none() || self.nodes[b as usize].is_none() {
            return;
        }
        self.wires.insert((a, b), VecDeque::new());
        self.wires.insert((b, a), VecDeque::new());
        for (one, other) in [(a, b), (b, a)] {
            let info = NeighbourInfo {
                emitter: self.emitters.contains_key(&other),
                ..NeighbourInfo::default()
            };
            if let Some(engine) = &mut self.nodes[one as usize] {
                engine.join(self.now, NeighbourId(other), info);
            }
            self.settle(one);
        }
    }

    /// Resets a connection: what is on the wire is lost.
    pub fn reset(&mut self, a: u32, b: u32) {
        for (one, other) in [(a, b), (b, a)] {
            self.wires.remove(&(one, other));
            self.awake.remove(&(one, other));
        }
        for (one, other) in [(a, b), (b, a)] {
            if let Some(engine) = &mut self.nodes[one as usize] {
                engine.leave(self.now, NeighbourId(other));
            }
            self.settle(one);
        }
    }

    pub fn kill(&mut self, node: u32) {
        self.nodes[node as usize] = None;
        self.complete.remove(&node);
        self.emitters.remove(&node);
        for other in 0..self.nodes.len() as u32 {
            self.reset(node, other);
        }
    }

    /// This node holds the only lease.
    pub fn emit(&mut self, node: u32, collect: Duration) {
        self.emit_all(&[node], collect);
    }

    /// These nodes hold leases, each for its stripe. Who held one already keeps on emitting.
    pub fn emit_all(&mut self, nodes: &[u32], collect: Duration) {
        let old = core::mem::take(&mut self.emitters);
        for node in old.keys().filter(|node| !nodes.contains(node)) {
            if let Some(engine) = &mut self.nodes[*node as usize] {
                engine.stop_emitting(self.now);
            }
            self.settle(*node);
        }
        for (index, &node) in nodes.iter().enumerate() {
            let stripe = Stripe {
                index: index as u32,
                of: nodes.len() as u32,
                run: 1,
            };
            let fetching = old.get(&node).cloned();
            if let Some(engine) = &mut self.nodes[node as usize] {
                match fetching {
                    Some(_) => engine.set_stripe(self.now, stripe),
                    None => engine.start_emitting(self.now, stripe, collect),
                }
            }
            self.emitters.insert(node, fetching.unwrap_or_default());
            self.settle(node);
        }
        for other in 0..self.nodes.len() as u32 {
            for known in 0..self.nodes.len() as u32 {
                if let Some(engine) = &mut self.nodes[other as usize] {
                    let emits = self.emitters.contains_key(&known);
                    engine.set_emitter(self.now, NeighbourId(known), emits);
                }
            }
            self.settle(other);
        }
    }

    /// Does what an engine wants done.
    pub fn settle(&mut self, node: u32) {
        while let Some(action) = self.nodes[node as usize].as_mut().and_then(Engine::poll) {
            match action {
                Action::Send(to, message) => {
                    if let Some(wire) = self.wires.get_mut(&(node, to.0)) {
                        wire.push_back(Packet::Control(message));
                    }
                }
                Action::Wake(to) => {
                    self.awake.insert((node, to.0));
                }
                Action::Ban(who, why) => {
                    assert!(
                        self.hostile.contains(&who.0),
                        "{node} banned {}: {why}",
                        who.0
                    );
                    self.reset(node, who.0);
                }
                Action::Drop(who) | Action::Part(who) => self.reset(node, who.0),
                Action::Complete => {
                    self.complete.insert(node);
                }
                Action::NeedSource => self.lonely += 1,
                Action::NeedNeighbours { .. } | Action::Passed => {}
            }
        }
    }

    /// Delivers the first packet of one wire, sends a block on another, or lets the origin deliver.
    pub fn step(&mut self) {
        match self.rng.u32(..8) {
            0 => self.origin_step(),
            1..=3 => {
                let count = self.awake.len();
                if count > 0
                    && let Some(&(from, to)) = self.awake.iter().nth(self.rng.usize(..count))
                {
                    self.send(from, to);
                }
            }
            _ => {
                let full: Vec<(u32, u32)> = self
                    .wires
                    .iter()
                    .filter(|(_, wire)| !wire.is_empty())
                    .map(|(ends, _)| *ends)
                    .collect();
                if let Some(&(from, to)) = full.get(self.rng.usize(..full.len().max(1))) {
                    self.deliver(from, to);
                }
            }
        }
    }

    /// The origin goes on for one of the emitters.
    pub fn origin_step(&mut self) {
        let Some(at) = self.emitters.len().checked_sub(1) else {
            return;
        };
        // The same steps as ever where there is one.
        let at = if at > 0 { self.rng.usize(..=at) } else { 0 };
        let Some((&node, fetching)) = self.emitters.iter_mut().nth(at) else {
            return;
        };
        let Some(engine) = &mut self.nodes[node as usize] else {
            return;
        };
        if !engine.is_emitting() && engine.is_complete() {
            return;
        }
        // Four blocks in flight at most.
        for block in engine.origin_wanted(8).into_iter().flatten() {
            if fetching.len() < 4 && fetching.insert(block) {
                self.origin[block as usize] += 1;
                *self.origin_to.entry((node, block)).or_default() += 1;
            }
        }
        if fetching.len() > 3 || self.rng.bool() {
            if let Some(block) = fetching.pop_first() {
                engine.origin_block_ready(self.now, block);
            }
            self.settle(node);
        }
    }

    fn send(&mut self, from: u32, to: u32) {
        let Some(engine) = &mut self.nodes[from as usize] else {
            return;
        };
        match engine.next_data(self.now, NeighbourId(to)) {
            Some(block) => {
                engine.data_sent(self.now, NeighbourId(to), block);
                if let Some(wire) = self.wires.get_mut(&(from, to)) {
                    wire.push_back(Packet::Data(block));
                }
            }
            None => {
                self.awake.remove(&(from, to));
            }
        }
        self.settle(from);
    }

    fn deliver(&mut self, from: u32, to: u32) {
        let packet = self
            .wires
            .get_mut(&(from, to))
            .and_then(VecDeque::pop_front);
        let (Some(packet), Some(engine)) = (packet, &mut self.nodes[to as usize]) else {
            return;
        };
        let id = NeighbourId(from);
        let result = match packet {
            Packet::Control(message) => engine.handle(self.now, id, message),
            Packet::Data(block) => engine.block_received(self.now, id, block).map(|_| ()),
        };
        self.settle(to);
        if let Err(why) = result {
            let guilty = self.hostile.contains(&from) || self.hostile.contains(&to);
            assert!(guilty, "{to} accuses {from}: {why}");
            self.reset(from, to);
        }
    }

    pub fn pass_time(&mut self, by: Duration) {
        self.now += by;
        for node in 0..self.nodes.len() as u32 {
            if let Some(engine) = &mut self.nodes[node as usize] {
                engine.tick(self.now);
            }
            self.settle(node);
        }
    }

    /// Runs until all living nodes that want something have it; whether they do.
    pub fn run(&mut self, seconds: u64) -> bool {
        let end = self.now + Duration::from_secs(seconds);
        while self.now < end {
            for _ in 0..200 {
                self.step();
            }
            self.pass_time(Duration::from_millis(10));
            if self.unfinished().is_empty() {
                return true;
            }
        }
        false
    }

    pub fn unfinished(&self) -> Vec<u32> {
        (0..self.nodes.len() as u32)
            .filter(|node| !self.hostile.contains(node))
            .filter(|node| {
                self.nodes[*node as usize]
                    .as_ref()
                    .is_some_and(|e| !e.wanted().is_nothing() && !e.is_complete())
            })
            .collect()
    }
}
