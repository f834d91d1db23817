//! Who there is, when they come and go, and what came of it.

use super::queue::Queue;
use super::{Event, Nanos, Node, World};
use crate::engine::Engine;
use crate::membership::{LeastConnected, MemberInfo, Swarm, ZoneId};
use crate::sim::scenario::{Outcome, Regime, Scenario};
use core::time::Duration;
use std::collections::{HashMap, VecDeque};

impl<'a> World<'a> {
    pub(super) fn new(scenario: &'a Scenario) -> Self {
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
            events: Queue::new(),
            mail: VecDeque::new(),
            read_ahead: 0,
            list: VecDeque::new(),
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
            flushing: false,
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
    pub(super) fn outcome(mut self) -> Outcome {
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
        self.out.scheduler = self.out.messages.total() as f64 / count / seconds;
        self.out.control = self.control_messages as f64 / count / seconds;
        self.out
    }
}

/// A standard normal number (Box and Muller's way).
fn normal(rng: &mut fastrand::Rng) -> f64 {
    let (u, v) = (1.0 - rng.f64(), rng.f64());
    (-2.0 * u.ln()).sqrt() * (core::f64::consts::TAU * v).cos()
}
