//! What is simulated, and what came of it.

use crate::engine::{Config, Objective};
use crate::membership::Settings;
use core::fmt;
use core::str::FromStr;
use core::time::Duration;

/// The shape of a scenario: how links differ and who comes and goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Regime {
    /// All links equal, all peers at once.
    Equal,
    /// The seed's uplink ten times as fast.
    Fast,
    /// Peers' uplinks 0.5 B x lognormal(0.8), at most B.
    Hetero,
    /// Joins over one F/B, at random.
    Poisson,
    /// A tenth at once, the others at 0.5 F/B.
    Flash,
    /// A tenth dies at half time, which is seen 1 s later.
    Die10,
    /// Half of the peers behind a link of B/10.
    Zones,
    /// Two seeds.
    TwoSeeds,
    /// Uplinks B, B, B/2, B/2, B/4, B/4, and so on again; control messages wait for data.
    Uneven,
    /// The seed dies at half time, another takes over.
    SeedDies,
}

/// No such regime.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no regime {0:?}; there are {names}", names = Regime::NAMES.map(|(name, _)| name).join(", "))]
pub struct UnknownRegime(String);

impl Regime {
    /// Every regime with its name on the command line.
    pub const NAMES: [(&'static str, Self); 10] = [
        ("equal", Self::Equal),
        ("fast", Self::Fast),
        ("hetero", Self::Hetero),
        ("poisson", Self::Poisson),
        ("flash", Self::Flash),
        ("die10", Self::Die10),
        ("zones", Self::Zones),
        ("2seeds", Self::TwoSeeds),
        ("uneven", Self::Uneven),
        ("seed-dies", Self::SeedDies),
    ];
}

impl FromStr for Regime {
    type Err = UnknownRegime;

    fn from_str(name: &str) -> Result<Self, UnknownRegime> {
        let found = Self::NAMES.iter().find(|(known, _)| *known == name);
        found
            .map(|(_, regime)| *regime)
            .ok_or_else(|| UnknownRegime(name.to_owned()))
    }
}

impl fmt::Display for Regime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::NAMES.iter().find(|(_, regime)| regime == self);
        f.write_str(name.map_or("?", |(name, _)| name))
    }
}

/// One simulation.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// Number of peers, seeds apart.
    pub peers: u32,
    /// Bytes to distribute.
    pub size: u64,
    /// Bytes of a block.
    pub block: u32,
    /// A link's rate B each way, bits a second.
    pub rate: f64,
    /// Round-trip time between any two nodes.
    pub rtt: Duration,
    /// The origin's rate to one seed, bits a second.
    pub origin_rate: f64,
    /// Links and churn.
    pub regime: Regime,
    /// Settings of every node's engine.
    pub config: Config,
    /// Settings of the scheduler's swarm.
    pub settings: Settings,
    /// Makes all choices: the same number, the same outcome.
    pub seed: u64,
    /// Give up after this much virtual time.
    pub horizon: Duration,
}

impl Scenario {
    /// The scenario of the design's tables: 64 MiB in blocks of 64 KiB at 100 Mbit/s, RTT 0.6 ms.
    /// The engine as in production but for some settings: a window of one and announcements at
    /// once, since in this model neither costs anything; the rate rule only where uplinks are
    /// uneven; and degree 8, which here is as good as 12 and moves a third fewer messages.
    #[must_use]
    pub fn new(peers: u32, regime: Regime) -> Self {
        let objective = match regime {
            Regime::Uneven => Objective::Slowest,
            _ => Objective::Average,
        };
        Self {
            peers,
            size: 64 << 20,
            block: 64 << 10,
            rate: 100e6,
            rtt: Duration::from_micros(600),
            origin_rate: 10e9,
            regime,
            config: Config {
                objective,
                window: 1,
                window_few: if regime == Regime::Uneven { 3 } else { 1 },
                // Batches, where messages would take most of the simulator's time.
                have_delay: Duration::from_millis(if peers > 2000 { 10 } else { 0 }),
                degree: 8,
                ..Config::default()
            },
            settings: Settings {
                degree: 8,
                emitters: if regime == Regime::TwoSeeds { 2 } else { 1 },
                ..Settings::default()
            },
            seed: 1,
            horizon: Duration::from_secs(600),
        }
    }

    /// Number of seeds.
    #[must_use]
    pub fn seeds(&self) -> u32 {
        match self.regime {
            Regime::TwoSeeds | Regime::SeedDies => 2,
            _ => 1,
        }
    }

    /// Number of blocks.
    #[must_use]
    pub fn blocks(&self) -> u32 {
        let blocks = self.size.div_ceil(u64::from(self.block.max(1)));
        u32::try_from(blocks).unwrap_or(u32::MAX).max(1)
    }

    /// F/B: the time one link needs for the content.
    #[must_use]
    pub fn one_link(&self) -> Duration {
        Duration::from_secs_f64(self.size as f64 * 8.0 / self.rate)
    }
}

/// Messages that the scheduler got and sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SchedulerMessages {
    /// Joins and their answers.
    pub joins: u64,
    /// What members were told of their neighbours.
    pub told: u64,
    /// Requests for one more neighbour, and their answers.
    pub refills: u64,
    /// Periodic reports.
    pub reports: u64,
    /// Peers that have all.
    pub done: u64,
    /// Losses and calls for a source.
    pub other: u64,
}

impl SchedulerMessages {
    /// All of them.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.joins + self.told + self.refills + self.reports + self.done + self.other
    }
}

/// What came of a simulation. Times are over the limit, volumes in F.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outcome {
    /// Peers that live at the end, and those of them that hold everything.
    pub alive: u32,
    /// See `alive`.
    pub finished: u32,
    /// The limit.
    pub limit: Duration,
    /// The slowest peer.
    pub slowest: f64,
    /// The median peer.
    pub p50: f64,
    /// The 99th percentile.
    pub p99: f64,
    /// Sent by seeds.
    pub seed: f64,
    /// Sent by the origin.
    pub origin: f64,
    /// Sent from zone to zone.
    pub cross: f64,
    /// Arrived at peers that held them.
    pub duplicates: f64,
    /// First 4 MiB in order at the slowest peer.
    pub first: Duration,
    /// Messages at the scheduler per peer and second.
    pub scheduler: f64,
    /// Of what kind they were.
    pub messages: SchedulerMessages,
    /// Control messages between nodes, per peer and second.
    pub control: f64,
    /// Violations seen; honest nodes commit none.
    pub violations: u32,
    /// Blocks moved.
    pub blocks: u64,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let m = &self.messages;
        writeln!(
            f,
            "finished   {} of {} peers, {} blocks moved",
            self.finished, self.alive, self.blocks
        )?;
        writeln!(f, "limit      {:.2} s", self.limit.as_secs_f64())?;
        writeln!(f, "slowest    {:.3} x limit", self.slowest)?;
        writeln!(f, "p50        {:.3} x limit", self.p50)?;
        writeln!(f, "p99        {:.3} x limit", self.p99)?;
        writeln!(f, "first 4MiB {:.2} s", self.first.as_secs_f64())?;
        writeln!(f, "seed sent  {:.3} F", self.seed)?;
        writeln!(f, "origin     {:.3} F", self.origin)?;
        writeln!(f, "cross-zone {:.3} F", self.cross)?;
        writeln!(f, "duplicates {:.4} F a peer", self.duplicates)?;
        writeln!(
            f,
            "scheduler  {:.2} messages/s a peer: {} to join, {} told, {} to refill, {} reports, \
             {} done, {} others",
            self.scheduler, m.joins, m.told, m.refills, m.reports, m.done, m.other
        )?;
        write!(f, "control    {:.0} messages/s a peer", self.control)
    }
}
