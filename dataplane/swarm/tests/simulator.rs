//! Scenarios of the design's tables, small enough for every run, with bounds on what comes out.
//! `cargo test --release -- --ignored --nocapture` prints the large ones.

use dragonfly_swarm::sim::{Outcome, Regime, Scenario, simulate};

fn run(peers: u32, regime: Regime) -> Outcome {
    simulate(&Scenario::new(peers, regime))
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
            let o = run(size.parse().unwrap(), regime);
            println!(
                "{size:>5} {name:<10} {:.3}/{:.3}/{:.3} s{:.2} o{:.3} z{:.2} first {:.2}s dup {:.4} \
                 sched {:.2} ctl {:.0} viol {} done {}/{} wall {:.1}s",
                o.slowest,
                o.p50,
                o.p99,
                o.seed,
                o.origin,
                o.cross,
                o.first.as_secs_f64(),
                o.duplicates,
                o.scheduler,
                o.control,
                o.violations,
                o.finished,
                o.alive,
                began.elapsed().as_secs_f64()
            );
        }
    }
}
