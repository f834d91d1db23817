//! The event loop: nodes, links and a clock.
//!
//! Lean on purpose: messages with the common latency wait in a queue, not in the heap; a node has
//! one timer; a block costs two events.
//!
//! Files: `lives` (who there is, and what came of it), `members` (what the scheduler says), `queue`.

mod lives;
mod members;
mod queue;

use self::queue::Queue;
use super::scenario::{Outcome, Regime, Scenario};
use crate::engine::{Action, Control, Disposition, Engine, NeighbourId, Stripe};
use crate::membership::{Introduction, Refill, Swarm, ZoneId};
use core::time::Duration;
use std::collections::{HashMap, VecDeque};

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
    Flush,
    Timer(u32),
    Die(u32),
    Seen(u32),
    Report(u32),
    Mail(u32),
}

/// Messages looked at ahead of their delivery.
const AHEAD: usize = 16;

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
    events: Queue<Event>,
    mail: VecDeque<Mail>,
    /// How much of `mail` was looked at ahead of its delivery.
    read_ahead: usize,
    /// Lent to the engine that is at work.
    list: VecDeque<Action>,
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
    /// A flush of the scheduler's news is scheduled.
    flushing: bool,
    control_messages: u64,
}

impl World<'_> {
    fn schedule(&mut self, at: Nanos, event: Event) {
        self.events.push(at, event);
    }

    fn time(&self) -> Duration {
        Duration::from_nanos(self.now)
    }

    fn run(&mut self) {
        let horizon = self.scenario.horizon.as_nanos() as Nanos;
        while self.waiting > 0 {
            let mail = self.mail.front().map_or(Nanos::MAX, |mail| mail.at);
            let event = self.events.next().unwrap_or(Nanos::MAX);
            self.read_events();
            if mail.min(event) > horizon {
                return;
            }
            if mail <= event {
                self.read_ahead();
                if let Some(mail) = self.mail.pop_front() {
                    self.now = mail.at;
                    self.deliver(mail);
                }
            } else if let Some((at, event)) = self.events.pop() {
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
            Event::Flush => self.flush(),
            Event::Timer(node) => {
                let timed = &mut self.nodes[node as usize];
                if timed.alive && timed.timer == self.now {
                    timed.timer = Nanos::MAX;
                    timed.engine.exchange_list(&mut self.list);
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
                self.out.messages.other += 1;
                self.swarm.leave(node);
                self.drain_commands();
            }
            Event::Report(node) => {
                let reporter = &self.nodes[node as usize];
                if reporter.alive && reporter.done.is_none() {
                    self.out.messages.reports += 1;
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
                    self.out.messages.refills += 2;
                    match self.swarm.refill(self.time(), node) {
                        Refill::More(introduction) => self.introduce(node, introduction),
                        Refill::Exhausted => {
                            self.nodes[node as usize].engine.neighbours_exhausted();
                        }
                        Refill::TooSoon => {}
                    }
                }
                Action::NeedSource => {
                    self.out.messages.other += 1;
                    self.swarm.request_lease(node);
                    self.drain_commands();
                }
                Action::Complete => self.finish(node),
                Action::Passed => {}
            }
        }
        let target = &mut self.nodes[node as usize];
        if self.list.capacity() == 0 {
            target.engine.exchange_list(&mut self.list);
        }
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
            self.out.messages.done += 1;
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

    /// Brings what the next messages need near, all at once: each alone is a few waits for memory
    /// one after the other, and that is where the time goes.
    fn read_ahead(&mut self) {
        if let Some(left) = self.read_ahead.checked_sub(1) {
            self.read_ahead = left;
            return;
        }
        let mut read = 0;
        for mail in self.mail.iter().take(AHEAD) {
            let block = match &mail.message {
                Control::Have(runs) => runs.first().map_or(0, |run| run.start),
                Control::Request(block) => *block,
                _ => 0,
            };
            let engine = &self.nodes[mail.to as usize].engine;
            read ^= engine.touch(NeighbourId(mail.from), block);
            self.read_ahead += 1;
        }
        core::hint::black_box(read);
        self.read_ahead -= 1;
    }

    /// The same for the events of a span that begins.
    fn read_events(&mut self) {
        let mut read = 0;
        for event in self.events.begun() {
            let engine = |node: &u32| &self.nodes[*node as usize].engine;
            read ^= match event {
                Event::UplinkFree { node, to, block } => {
                    engine(node).touch(NeighbourId(*to), *block)
                }
                Event::Arrive { node, from, block } => {
                    let engine = engine(node);
                    engine.touch(NeighbourId(*from), *block) ^ engine.touch_all(Some(*block))
                }
                Event::Timer(node) => engine(node).touch_all(None),
                _ => 0,
            };
        }
        core::hint::black_box(read);
    }

    fn deliver(&mut self, mail: Mail) {
        let now = self.time();
        let node = &mut self.nodes[mail.to as usize];
        if !node.alive {
            return;
        }
        let from = NeighbourId(mail.from);
        node.engine.exchange_list(&mut self.list);
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
        receiver.engine.exchange_list(&mut self.list);
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

    /// Keeps a few blocks on their way from the origin, and as many more as seeds send within a round
    /// trip: a body that is open is read on without one.
    fn fetch(&mut self, node: u32) {
        let seed = &self.nodes[node as usize];
        let open = self.scenario.rtt.as_secs_f64() * seed.up / f64::from(self.scenario.block);
        let most = 4 + open.ceil() as usize;
        if !seed.leased || !seed.alive || !seed.engine.is_emitting() || seed.fetching.len() >= most
        {
            return;
        }
        let wanted = seed.engine.origin_wanted(2 * most as u32);
        let mut at = self.now + 2 * self.latency;
        for block in wanted.into_iter().flatten() {
            let seed = &mut self.nodes[node as usize];
            if seed.fetching.len() >= most || seed.fetching.contains(&block) {
                continue;
            }
            at += (f64::from(self.scenario.block) * 8.0 / self.scenario.origin_rate * 1e9) as Nanos;
            seed.fetching.push(block);
            self.schedule(at, Event::Origin { node, block });
        }
    }
}
