//! The event loop: nodes, links and a clock.
//!
//! Lean on purpose: messages with the common latency wait in a queue, not in the heap; a node has
//! one timer; a block costs two heap events.

use super::scenario::{Outcome, Regime, Scenario};
use crate::engine::{
    Action, Control, Disposition, Engine, NeighbourId, NeighbourInfo, Stripe, Wanted,
};
use crate::membership::{Command, Introduction, LeastConnected, MemberInfo, Refill, Swarm, ZoneId};
use core::cmp::Reverse;
use core::time::Duration;
use std::collections::{BinaryHeap, HashMap, VecDeque};

type Nanos = u64;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Join(u32),
    Connect { from: u32, to: u32 },
    Expect { node: u32, peer: u32 },
    UplinkFree { node: u32, to: u32, block: u32 },
    Arrive { node: u32, from: u32, block: u32 },
    Origin { node: u32, block: u32 },
    Part { node: u32, from: u32 },
    Close { node: u32, from: u32 },
    Grant { node: u32 },
    Timer(u32),
    Die(u32),
    Seen(u32),
    Report(u32),
    Mail(u32),
}

struct Mail {
    at: Nanos,
    from: u32,
    to: u32,
    message: Control,
}

struct Node {
    engine: Engine,
    zone: ZoneId,
    seed: bool,
    up: f64,
    alive: bool,
    joined: Nanos,
    done: Option<Nanos>,
    first: Option<Nanos>,
    sending_until: Nanos,
    busy: bool,
    down_free: Nanos,
    /// Neighbours with something to send, in turn.
    ready: VecDeque<u32>,
    timer: Nanos,
    fetching: Vec<u32>,
    granted: Option<(Stripe, Duration)>,
    leased: bool,
    /// What the scheduler said of neighbours.
    told: HashMap<u32, Introduction<u32>>,
}

/// Runs a scenario to its end: all living peers hold everything, or the horizon.
#[must_use]
pub fn simulate(scenario: &Scenario) -> Outcome {
    let mut world = World::new(scenario);
    world.run();
    world.outcome()
}

struct World<'a> {
    scenario: &'a Scenario,
    rng: fastrand::Rng,
    now: Nanos,
    nodes: Vec<Node>,
    swarm: Swarm<u32>,
    heap: BinaryHeap<Reverse<(Nanos, u64, Event)>>,
    sequence: u64,
    mail: VecDeque<Mail>,
    /// Mail that may not keep the queue's order, by place.
    held_mail: Vec<Option<Mail>>,
    free_mail: Vec<u32>,
    zone_free: Nanos,
    waiting: u32,
    limit: Nanos,
    latency: Nanos,
    first_blocks: u32,
    out: Outcome,
    seed_blocks: u64,
    origin_blocks: u64,
    cross_blocks: u64,
    scheduler_messages: u64,
    control_messages: u64,
}

impl<'a> World<'a> {
    fn new(scenario: &'a Scenario) -> Self {
        let mut rng = fastrand::Rng::with_seed(scenario.seed);
        let b = scenario.rate / 8.0;
        let seeds = scenario.seeds();
        let total = seeds + scenario.peers;
        let mut nodes = Vec::with_capacity(total as usize);
        for index in 0..total {
            let seed = index < seeds;
            let up = match (scenario.regime, seed) {
                (Regime::Fast, true) => 10.0 * b,
                (Regime::Hetero, false) => b * (0.5 * (0.8 * normal(&mut rng)).exp()).min(1.0),
                (Regime::Uneven, false) => b / f64::from(1 << ((index - seeds) / 2 % 3)),
                _ => b,
            };
            let far = scenario.regime == Regime::Zones && !seed && (index - seeds) % 2 == 1;
            let blocks = Some(scenario.blocks());
            nodes.push(Node {
                engine: Engine::new(scenario.config.clone(), rng.u64(..), blocks),
                zone: ZoneId(u32::from(far)),
                seed,
                up,
                alive: true,
                joined: 0,
                done: None,
                first: None,
                sending_until: 0,
                busy: false,
                down_free: 0,
                ready: VecDeque::new(),
                timer: Nanos::MAX,
                fetching: Vec::new(),
                granted: None,
                leased: false,
                told: HashMap::new(),
            });
        }
        let strategy = Box::new(LeastConnected);
        let swarm = Swarm::new(scenario.settings.clone(), strategy, rng.u64(..));
        let mut world = Self {
            scenario,
            now: 0,
            limit: 0,
            swarm,
            heap: BinaryHeap::new(),
            sequence: 0,
            mail: VecDeque::new(),
            held_mail: Vec::new(),
            free_mail: Vec::new(),
            zone_free: 0,
            waiting: scenario.peers,
            latency: scenario.rtt.as_nanos() as Nanos / 2,
            first_blocks: ((4 << 20) / scenario.block.max(1)).min(scenario.blocks()),
            out: Outcome::default(),
            seed_blocks: 0,
            origin_blocks: 0,
            cross_blocks: 0,
            scheduler_messages: 0,
            control_messages: 0,
            rng,
            nodes,
        };
        world.limit = world.lower_bound();
        world.schedule_lives();
        world
    }

    /// No scheme is faster.
    fn lower_bound(&self) -> Nanos {
        let b = self.scenario.rate / 8.0;
        let size = self.scenario.size as f64;
        let peers = f64::from(self.scenario.peers);
        let up = |seed| -> f64 {
            self.nodes
                .iter()
                .filter(|n| n.seed == seed)
                .map(|n| n.up)
                .sum()
        };
        // A standby seed adds nothing before the other dies.
        let standby = self.scenario.regime == Regime::SeedDies;
        let seeds = if standby { up(true) / 2.0 } else { up(true) };
        let mut limit = (size / seeds).max(size / b);
        limit = limit.max(peers * size / (seeds + up(false)));
        if self.scenario.regime == Regime::Zones {
            limit = limit.max(size / (b / 10.0));
        }
        (limit * 1e9) as Nanos
    }

    fn schedule_lives(&mut self) {
        let seeds = self.scenario.seeds();
        let one = self.scenario.one_link().as_nanos() as Nanos;
        let peers = self.scenario.peers;
        for seed in 0..seeds {
            self.join_seed(seed);
        }
        self.swarm.assign_leases();
        self.drain_commands();
        for peer in 0..peers {
            let at = match self.scenario.regime {
                Regime::Poisson => self.rng.u64(..one.max(1)),
                Regime::Flash if peer >= peers.div_ceil(10) => one / 2,
                _ => 0,
            };
            self.schedule(at, Event::Join(seeds + peer));
            // Reports come every 10 s, not all at once.
            let first = self.rng.u64(..10_000_000_000);
            self.schedule(at + first, Event::Report(seeds + peer));
        }
        if self.scenario.regime == Regime::Die10 {
            let mut victims: Vec<u32> = (seeds..seeds + peers).collect();
            self.rng.shuffle(&mut victims);
            for &victim in victims.iter().take(peers as usize / 10) {
                self.schedule(one / 2, Event::Die(victim));
            }
        }
        if self.scenario.regime == Regime::SeedDies {
            self.schedule(one / 2, Event::Die(0));
        }
    }

    fn join_seed(&mut self, seed: u32) {
        let info = MemberInfo {
            seed: true,
            ..MemberInfo::default()
        };
        // A swarm that refuses its first members is not worth a simulation.
        let _ = self.swarm.join(seed, info);
    }

    fn schedule(&mut self, at: Nanos, event: Event) {
        self.sequence += 1;
        self.heap.push(Reverse((at, self.sequence, event)));
    }

    fn time(&self) -> Duration {
        Duration::from_nanos(self.now)
    }

    fn run(&mut self) {
        let horizon = self.scenario.horizon.as_nanos() as Nanos;
        while self.waiting > 0 {
            let mail = self.mail.front().map_or(Nanos::MAX, |mail| mail.at);
            let heap = self.heap.peek().map_or(Nanos::MAX, |Reverse(next)| next.0);
            if mail.min(heap) > horizon {
                return;
            }
            if mail <= heap {
                if let Some(mail) = self.mail.pop_front() {
                    self.now = mail.at;
                    self.deliver(mail);
                }
            } else if let Some(Reverse((at, _, event))) = self.heap.pop() {
                self.now = at;
                self.happen(event);
            }
        }
    }

    fn happen(&mut self, event: Event) {
        let now = self.time();
        match event {
            Event::Join(node) => self.join(node),
            Event::Part { node, from } => {
                self.nodes[node as usize]
                    .engine
                    .part(now, NeighbourId(from));
                self.drain(node);
            }
            Event::Close { node, from } => {
                self.nodes[node as usize]
                    .engine
                    .leave(now, NeighbourId(from));
                self.drain(node);
            }
            Event::Connect { from, to } => self.connect(from, to),
            Event::Expect { node, peer } => self.told(node, peer),
            Event::UplinkFree { node, to, block } => {
                let sender = &mut self.nodes[node as usize];
                sender.busy = false;
                if sender.alive {
                    sender.engine.data_sent(now, NeighbourId(to), block);
                    self.carry(node, to, block);
                    self.drain(node);
                    self.pump(node);
                }
            }
            Event::Arrive { node, from, block } => self.arrive(node, from, block),
            Event::Origin { node, block } => {
                let seed = &mut self.nodes[node as usize];
                if seed.alive {
                    self.origin_blocks += 1;
                    seed.fetching.retain(|fetched| *fetched != block);
                    seed.engine.origin_block_ready(now, block);
                    self.drain(node);
                    self.fetch(node);
                }
            }
            Event::Grant { node } => {
                let holder = &mut self.nodes[node as usize];
                if let Some((stripe, collect)) = holder.granted.take() {
                    holder.leased = true;
                    holder.engine.start_emitting(now, stripe, collect);
                    self.drain(node);
                    self.fetch(node);
                }
            }
            Event::Timer(node) => {
                let timed = &mut self.nodes[node as usize];
                if timed.alive && timed.timer == self.now {
                    timed.timer = Nanos::MAX;
                    timed.engine.tick(now);
                    self.drain(node);
                    self.fetch(node);
                }
            }
            Event::Die(node) => {
                let dead = &mut self.nodes[node as usize];
                dead.alive = false;
                if !dead.seed && dead.done.is_none() {
                    self.waiting -= 1;
                }
                self.schedule(self.now + 1_000_000_000, Event::Seen(node));
            }
            Event::Seen(node) => {
                for other in 0..self.nodes.len() as u32 {
                    self.nodes[other as usize]
                        .engine
                        .leave(now, NeighbourId(node));
                    self.drain(other);
                }
                self.scheduler_messages += 1;
                self.swarm.leave(node);
                self.drain_commands();
            }
            Event::Report(node) => {
                let reporter = &self.nodes[node as usize];
                if reporter.alive && reporter.done.is_none() {
                    self.scheduler_messages += 1;
                    let held = reporter.engine.held().count();
                    self.swarm.report(node, held, 0.5);
                    self.schedule(self.now + 10_000_000_000, Event::Report(node));
                }
            }
            Event::Mail(place) => {
                self.free_mail.push(place);
                if let Some(mail) = self.held_mail[place as usize].take() {
                    self.deliver(mail);
                }
            }
        }
    }

    // ---- membership ------------------------------------------------------------------------

    fn join(&mut self, node: u32) {
        let now = self.time();
        let peer = &mut self.nodes[node as usize];
        peer.joined = self.now;
        peer.engine.set_wanted(now, Wanted::Whole);
        let info = MemberInfo {
            zone: peer.zone,
            ..MemberInfo::default()
        };
        self.scheduler_messages += 2;
        for introduction in self.swarm.join(node, info).unwrap_or_default() {
            self.introduce(node, introduction);
        }
        self.drain_commands();
        self.drain(node);
    }

    /// The scheduler's answer and the connection take a round trip each.
    fn introduce(&mut self, from: u32, introduction: Introduction<u32>) {
        let to = introduction.node;
        self.nodes[from as usize].told.insert(to, introduction);
        self.schedule(self.now + 4 * self.latency, Event::Connect { from, to });
    }

    /// What a node was told of a neighbour holds for the connection that is up.
    fn told(&mut self, node: u32, peer: u32) {
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

    fn connect(&mut self, from: u32, to: u32) {
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

    fn drain_commands(&mut self) {
        while let Some(command) = self.swarm.poll() {
            match command {
                Command::Connect { node, to } => {
                    self.scheduler_messages += 1;
                    self.introduce(node, to);
                }
                Command::Expect { node, peer } => {
                    self.scheduler_messages += 1;
                    self.nodes[node as usize].told.insert(peer.node, peer);
                    let at = self.now + self.latency;
                    self.schedule(
                        at,
                        Event::Expect {
                            node,
                            peer: peer.node,
                        },
                    );
                }
                Command::Part { node, from } => {
                    self.scheduler_messages += 1;
                    let at = self.now + 4 * self.latency;
                    self.schedule(at, Event::Part { node, from });
                }
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
    }

    fn disconnect(&mut self, a: u32, b: u32) {
        let now = self.time();
        for (one, other) in [(a, b), (b, a)] {
            self.nodes[one as usize]
                .engine
                .leave(now, NeighbourId(other));
            self.drain(one);
        }
    }

    // ---- nodes -----------------------------------------------------------------------------

    /// Does what a node's engine wants done.
    fn drain(&mut self, node: u32) {
        while let Some(action) = self.nodes[node as usize].engine.poll() {
            match action {
                Action::Send(to, message) => self.post(node, to.0, message),
                Action::Wake(to) => {
                    self.nodes[node as usize].ready.push_back(to.0);
                    self.pump(node);
                }
                Action::Ban(other, _) => {
                    self.out.violations += 1;
                    self.swarm.accuse(node, other.0);
                    self.disconnect(node, other.0);
                }
                Action::Part(other) => {
                    // Behind what is on its way to the other side.
                    let sent = self.nodes[node as usize].sending_until.max(self.now);
                    let queued = self.nodes[other.0 as usize].down_free;
                    let at = (sent + self.latency).max(queued) + 1;
                    self.schedule(
                        at,
                        Event::Close {
                            node: other.0,
                            from: node,
                        },
                    );
                }
                Action::Drop(other) => {
                    self.swarm.disconnected(node, other.0);
                    self.disconnect(node, other.0);
                }
                Action::NeedNeighbours { .. } => {
                    self.scheduler_messages += 1;
                    match self.swarm.refill(self.time(), node) {
                        Refill::More(introduction) => self.introduce(node, introduction),
                        Refill::Exhausted => {
                            self.nodes[node as usize].engine.neighbours_exhausted();
                        }
                        Refill::TooSoon => {}
                    }
                }
                Action::NeedSource => {
                    self.scheduler_messages += 1;
                    self.swarm.request_lease(node);
                    self.drain_commands();
                }
                Action::Complete => self.finish(node),
                Action::Passed => {}
            }
        }
        let target = &mut self.nodes[node as usize];
        if let Some(timeout) = target.engine.next_timeout() {
            let at = (timeout.as_nanos() as Nanos).max(self.now + 1);
            if at < target.timer {
                target.timer = at;
                self.schedule(at, Event::Timer(node));
            }
        }
    }

    fn finish(&mut self, node: u32) {
        let finished = &mut self.nodes[node as usize];
        if finished.alive && !finished.seed && finished.done.is_none() {
            finished.done = Some(self.now);
            self.waiting -= 1;
            self.scheduler_messages += 1;
        }
    }

    fn post(&mut self, from: u32, to: u32, message: Control) {
        self.control_messages += 1;
        let mut at = self.now + self.latency;
        if self.scenario.regime == Regime::Uneven {
            at = at.max(self.nodes[from as usize].sending_until + self.latency);
        }
        let mail = Mail {
            at,
            from,
            to,
            message,
        };
        if self.mail.back().is_none_or(|last| last.at <= at) && at == self.now + self.latency {
            self.mail.push_back(mail);
            return;
        }
        let place = self.free_mail.pop().unwrap_or_else(|| {
            self.held_mail.push(None);
            self.held_mail.len() as u32 - 1
        });
        self.held_mail[place as usize] = Some(mail);
        self.schedule(at, Event::Mail(place));
    }

    fn deliver(&mut self, mail: Mail) {
        let now = self.time();
        let node = &mut self.nodes[mail.to as usize];
        if !node.alive {
            return;
        }
        let from = NeighbourId(mail.from);
        // A message may arrive after its connection is gone.
        let result = node.engine.handle(now, from, mail.message);
        if result.is_err()
            && self.nodes[mail.to as usize]
                .engine
                .neighbours()
                .any(|n| n == from)
        {
            self.out.violations += 1;
            self.disconnect(mail.to, mail.from);
        }
        self.drain(mail.to);
        self.fetch(mail.to);
    }

    /// Starts the next block on an idle uplink.
    fn pump(&mut self, node: u32) {
        let now = self.time();
        let sender = &mut self.nodes[node as usize];
        while !sender.busy && sender.alive {
            let Some(to) = sender.ready.pop_front() else {
                return;
            };
            let Some(block) = sender.engine.next_data(now, NeighbourId(to)) else {
                continue;
            };
            sender.ready.push_back(to);
            sender.busy = true;
            let takes = f64::from(self.scenario.block) / sender.up * 1e9;
            sender.sending_until = self.now + takes as Nanos;
            let at = sender.sending_until;
            self.schedule(at, Event::UplinkFree { node, to, block });
            return;
        }
    }

    /// A block left its uplink: when is it whole at the other end?
    fn carry(&mut self, from: u32, to: u32, block: u32) {
        let bytes = f64::from(self.scenario.block);
        let down = bytes / (self.scenario.rate / 8.0) * 1e9;
        let mut at = self.now + self.latency;
        if self.nodes[from as usize].seed {
            self.seed_blocks += 1;
        }
        if self.nodes[from as usize].zone != self.nodes[to as usize].zone {
            self.cross_blocks += 1;
            at = at.max(self.zone_free + (down * 10.0) as Nanos);
            self.zone_free = at;
        }
        let receiver = &mut self.nodes[to as usize];
        at = at.max(receiver.down_free + down as Nanos);
        receiver.down_free = at;
        let node = to;
        self.schedule(at, Event::Arrive { node, from, block });
    }

    fn arrive(&mut self, node: u32, from: u32, block: u32) {
        let now = self.time();
        let receiver = &mut self.nodes[node as usize];
        if !receiver.alive {
            return;
        }
        let from = NeighbourId(from);
        match receiver.engine.accepts(from, block) {
            Ok(disposition) => {
                self.out.blocks += 1;
                let skipped = disposition == Disposition::Skip;
                self.out.duplicates += f64::from(u8::from(skipped));
                // `accepts` said so; there is nothing else to learn from the result.
                let _ = receiver.engine.block_received(now, from, block);
                let first = self.first_blocks;
                if receiver.first.is_none() && receiver.engine.held().contains_range(0..first) {
                    receiver.first = Some(self.now);
                }
            }
            Err(_) if receiver.engine.neighbours().any(|n| n == from) => self.out.violations += 1,
            Err(_) => {}
        }
        self.drain(node);
    }

    /// Keeps a few blocks on their way from the origin.
    fn fetch(&mut self, node: u32) {
        let seed = &self.nodes[node as usize];
        if !seed.leased || !seed.alive || !seed.engine.is_emitting() || seed.fetching.len() >= 4 {
            return;
        }
        let wanted = seed.engine.origin_wanted(8);
        let mut at = self.now + 2 * self.latency;
        for block in wanted.into_iter().flatten() {
            let seed = &mut self.nodes[node as usize];
            if seed.fetching.len() >= 4 || seed.fetching.contains(&block) {
                continue;
            }
            at += (f64::from(self.scenario.block) * 8.0 / self.scenario.origin_rate * 1e9) as Nanos;
            seed.fetching.push(block);
            self.schedule(at, Event::Origin { node, block });
        }
    }

    fn outcome(mut self) -> Outcome {
        let blocks = f64::from(self.scenario.blocks());
        let limit = self.limit as f64;
        let peers: Vec<&Node> = self.nodes.iter().filter(|n| !n.seed && n.alive).collect();
        let times = peers
            .iter()
            .filter_map(|n| Some((n.done? - n.joined) as f64 / limit));
        let mut times: Vec<f64> = times.collect();
        times.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let place = (share * times.len() as f64).ceil() as usize;
            times.get(place.saturating_sub(1)).copied().unwrap_or(0.0)
        };
        let first = peers.iter().filter_map(|n| Some(n.first? - n.joined)).max();
        let count = f64::from(self.scenario.peers);
        let seconds = (self.now as f64 / 1e9).max(1e-9);
        self.out.alive = peers.len() as u32;
        self.out.finished = times.len() as u32;
        self.out.limit = Duration::from_nanos(self.limit);
        self.out.slowest = times.last().copied().unwrap_or(0.0);
        self.out.p50 = at(0.5);
        self.out.p99 = at(0.99);
        self.out.first = Duration::from_nanos(first.unwrap_or(0));
        self.out.seed = self.seed_blocks as f64 / blocks;
        self.out.origin = self.origin_blocks as f64 / blocks;
        self.out.cross = self.cross_blocks as f64 / blocks;
        self.out.duplicates /= blocks * count;
        self.out.scheduler = self.scheduler_messages as f64 / count / seconds;
        self.out.control = self.control_messages as f64 / count / seconds;
        self.out
    }
}

/// A standard normal number (Box and Muller's way).
fn normal(rng: &mut fastrand::Rng) -> f64 {
    let (u, v) = (1.0 - rng.f64(), rng.f64());
    (-2.0 * u.ln()).sqrt() * (core::f64::consts::TAU * v).cos()
}
