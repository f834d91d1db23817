//! Scenarios of the design's tables, small enough for every run, with bounds on what comes out.
//! `cargo test --release -- --ignored --nocapture` prints the large ones.

#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a wrong setting on the command line fails loudly"
)]

use core::time::Duration;
use dragonfly_swarm::engine::Objective;
use dragonfly_swarm::sim::{Outcome, Regime, Scenario, simulate};

fn run(peers: u32, regime: Regime) -> Outcome {
    simulate(&Scenario::new(peers, regime))
}

/// Changes settings of a scenario, `window=2,degree=12`: how the figures of `docs/performance.md`
/// were made.
fn adjust(scenario: &mut Scenario, changes: &str) {
    for change in changes.split(',').filter(|change| !change.is_empty()) {
        let (name, value) = change.split_once('=').expect("name=value");
        let value: f64 = value.parse().expect("a number");
        let (config, settings) = (&mut scenario.config, &mut scenario.settings);
        match name {
            "window" => (config.window, config.window_few) = (value as u32, value as u32),
            "window-few" => config.window_few = value as u32,
            "credit" => config.credit = value as u32,
            "degree" => (config.degree, settings.degree) = (value as usize, value as usize),
            "mesh" => settings.mesh = value as usize,
            "first-level" => settings.first_level = value as usize,
            "in-order" => config.in_order_probability = value as f32,
            "sample" => config.sample = value as u32,
            "have-batch" => config.have_batch = value as usize,
            "rate-from-ms" => config.rate_from = Duration::from_secs_f64(value / 1e3),
            "have-ms" => config.have_delay = Duration::from_secs_f64(value / 1e3),
            "endgame-ms" => config.endgame_after = Duration::from_secs_f64(value / 1e3),
            "unique" => config.seed_unique = value != 0.0,
            "even-out" if value != 0.0 => config.objective = Objective::Slowest,
            "even-out" => config.objective = Objective::Average,
            "rtt-ms" => scenario.rtt = Duration::from_secs_f64(value / 1e3),
            "size-mib" => scenario.size = (value * f64::from(1 << 20)) as u64,
            "block-kib" => scenario.block = (value * 1024.0) as u32,
            "rate-mbit" => scenario.rate = value * 1e6,
            "seed" => scenario.seed = value as u64,
            other => panic!("no setting {other}"),
        }
    }
}

#[test]
#[ignore = "prints a table; minutes of work"]
fn table() {
    let sizes = std::env::var("SIM_PEERS").unwrap_or_else(|_| "6,20,100".to_owned());
    let only = std::env::var("SIM_REGIMES").ok();
    for size in sizes.split(',') {
        for (name, regime) in Regime::NAMES {
            if only
                .as_ref()
                .is_some_and(|only| !only.split(',').any(|o| o == name))
            {
                continue;
            }
            let began = std::time::Instant::now();
            let mut scenario = Scenario::new(size.parse().unwrap(), regime);
            adjust(&mut scenario, &std::env::var("SIM_SET").unwrap_or_default());
            let o = simulate(&scenario);
            println!(
                "{size:>5} {name:<10} {:.3}/{:.3}/{:.3} s{:.2} o{:.3} z{:.2} first {:.2}s dup {:.4} \
                 sched {:.2} {:?} ctl {:.0} viol {} done {}/{} wall {:.1}s",
                o.slowest,
                o.p50,
                o.p99,
                o.seed,
                o.origin,
                o.cross,
                o.first.as_secs_f64(),
                o.duplicates,
                o.scheduler,
                o.messages,
                o.control,
                o.violations,
                o.finished,
                o.alive,
                began.elapsed().as_secs_f64()
            );
        }
    }
}

/// Runs a scenario and holds it to bounds that leave room for other seeds of the same dice.
fn hold(peers: u32, regime: Regime, slowest: f64, origin: f64) -> Outcome {
    let scenario = Scenario::new(peers, regime);
    hold_scenario(&scenario, regime, slowest, origin)
}

fn hold_scenario(scenario: &Scenario, regime: Regime, slowest: f64, origin: f64) -> Outcome {
    let outcome = simulate(scenario);
    let name = format!("{} {regime}: {outcome}", scenario.peers);
    assert_eq!(outcome.finished, outcome.alive, "{name}");
    assert_eq!(outcome.violations, 0, "{name}");
    assert!(outcome.slowest <= slowest, "{name}");
    assert!(outcome.origin <= origin, "{name}");
    assert!(outcome.duplicates < 0.02, "{name}");
    // None a block: two to join, what neighbours come and go, one when it is done.
    if !matches!(regime, Regime::Fast | Regime::Zones) {
        assert!(outcome.scheduler < 1.0, "{name}");
    }
    outcome
}

#[test]
fn equal_peers_finish_near_the_limit() {
    hold(6, Regime::Equal, 1.03, 1.0);
    hold(20, Regime::Equal, 1.06, 1.0);
    let o = hold(100, Regime::Equal, 1.15, 1.0);
    assert!(o.seed < 1.12, "{o}");
}

#[test]
fn peers_that_come_late_or_all_at_once_finish_near_their_own_limit() {
    hold(20, Regime::Poisson, 1.10, 1.0);
    hold(20, Regime::Flash, 1.15, 1.0);
    hold(100, Regime::Flash, 1.25, 1.0);
}

#[test]
fn deaths_cost_little_and_the_origin_nothing() {
    hold(20, Regime::Die10, 1.10, 1.0);
    hold(100, Regime::Die10, 1.20, 1.0);
}

#[test]
fn a_second_seed_goes_on_where_the_first_died() {
    // One second until it is seen, half a second for bitmaps, and what nobody announced.
    hold(20, Regime::SeedDies, 1.45, 1.52);
}

#[test]
fn the_link_into_a_zone_is_crossed_once() {
    let o = hold(20, Regime::Zones, 1.02, 1.0);
    assert!(o.cross < 1.02, "{o}");
}

#[test]
fn faster_seeds_and_two_seeds_leave_only_the_downlinks() {
    hold(20, Regime::Fast, 1.03, 1.0);
    hold(20, Regime::TwoSeeds, 1.04, 1.0);
}

#[test]
fn the_slowest_of_uneven_uplinks_is_near_the_common_limit() {
    hold(6, Regime::Uneven, 1.12, 1.0);
}

#[test]
fn the_same_dice_give_the_same_outcome() {
    assert_eq!(run(20, Regime::Die10), run(20, Regime::Die10));
}

/// Windows of a block or three carry 5 to 16 Mbit/s over a round trip of 100 ms; here they have to grow
/// to what a way of 100 Mbit/s holds, from nothing, within a content that takes five seconds.
#[test]
fn windows_grow_with_the_length_of_the_way() {
    for (peers, slowest) in [(1, 1.25), (6, 1.25), (20, 1.30)] {
        let mut scenario = Scenario::new(peers, Regime::Equal);
        scenario.rtt = Duration::from_millis(100);
        hold_scenario(&scenario, Regime::Equal, slowest, 1.0);
    }
}
