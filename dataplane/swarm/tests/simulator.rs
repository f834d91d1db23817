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

#[test]
#[ignore = "tuning"]
fn tune() {
    use std::time::Duration;
    let peers = 1000;
    let mut base = Scenario::new(peers, Regime::Equal);
    base.settings.degree = 12;
    base.config.have_delay = Duration::ZERO;
    base.config.window = 1;
    let show = |name: &str, f: &dyn Fn(&mut Scenario)| {
        let mut s = base.clone();
        f(&mut s);
        let o = simulate(&s);
        println!(
            "{peers} {name}: {:.3}/{:.3} s{:.2} first {:.2} dup {:.4} ctl {:.0}",
            o.slowest,
            o.p50,
            o.seed,
            o.first.as_secs_f64(),
            o.duplicates,
            o.control
        );
    };
    let ms = Duration::from_millis(1);
    show("refill 1ms", &|s| {
        s.config.refill_interval = ms;
        s.settings.refill_interval = ms
    });
    show("d8 f4 s4", &|s| {
        s.settings.degree = 8;
        s.settings.first = 4;
        s.settings.slack = 4
    });
    show("d8 f4 s4 refill 1ms", &|s| {
        s.settings.degree = 8;
        s.settings.first = 4;
        s.settings.slack = 4;
        s.config.refill_interval = ms;
        s.settings.refill_interval = ms
    });
    show("d12 f6 s1 order .25 sample all", &|s| {
        s.config.sample = 1000;
        s.config.in_order_probability = 0.25;
        s.settings.slack = 1
    });
}
