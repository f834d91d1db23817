//! `dragonfly simulate`: the swarm's code on virtual time.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use dragonfly_swarm::sim::{Regime, Scenario, simulate};

use crate::commands::{Exit, complain, say};

/// Simulate a download by many peers: the same code as in production, on virtual time
///
/// Prints slowest, p50 and p99 over the time that no system could beat, bytes that the seed and the
/// origin sent and that crossed zones (in sizes of the content), and messages at the scheduler.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Peers, seeds apart
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    peers: u32,
    /// equal, fast, hetero, poisson, flash, die10, zones, 2seeds, uneven or seed-dies
    #[arg(long, default_value = "equal")]
    scenario: Regime,
    /// MiB to distribute
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=65_536))]
    size: u64,
    /// KiB of a block
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(64..=1024))]
    block: u32,
    /// Mbit/s of a link each way
    #[arg(long, default_value_t = 100.0)]
    rate: f64,
    /// Microseconds between two nodes and back
    #[arg(long, default_value_t = 600)]
    rtt: u64,
    /// Makes all choices: the same number gives the same outcome
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> ExitCode {
    if !(args.rate > 0.0 && args.rate <= 1e6) {
        complain("--rate is more than 0 and at most 1000000");
        return Exit::Usage.into();
    }
    let mut scenario = Scenario::new(args.peers, args.scenario);
    scenario.size = args.size << 20;
    scenario.block = args.block << 10;
    scenario.rate = args.rate * 1e6;
    scenario.rtt = Duration::from_micros(args.rtt);
    scenario.seed = args.seed;
    let started = Instant::now();
    let outcome = simulate(&scenario);
    let text = format!(
        "{outcome}\nsimulated in {:.1} s\n",
        started.elapsed().as_secs_f64()
    );
    match say(&text) {
        Ok(()) => Exit::Ok.into(),
        Err(failed) => failed.exit.into(),
    }
}
