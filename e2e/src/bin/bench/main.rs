//! `make bench`: this system beside others, in one run, system after system in turn.
//!
//! Writes `target/bench/*.json` and from them `docs/benchmarks.md`. Namespaces, processes and files
//! are gone at the end, also after a failure.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod bed;
mod case;
mod control;
mod dragonfly2;
mod far;
mod growth;
mod images;
mod io;
mod load;
mod net;
mod report;
mod scheduler;
mod systems;
mod tls;
mod tracker;

use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum as _};
use dragonfly_e2e::{Failed, Result, usage};

use crate::bed::{Bed, Others};
use crate::case::Case;
use crate::dragonfly2::Place;
use crate::dragonfly2::scheduler::Parents;
use crate::net::Net;
use crate::systems::System;

/// Compare this system with others.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// One content to many nodes on shaped links (needs root)
    Swarm(SwarmArgs),
    /// One warm parent to one child, unshaped; small files; memory
    Io(io::IoArgs),
    /// Mutual TLS beside plaintext: a byte, a handshake, a connection
    Tls {
        /// MiB that are sent
        #[arg(long, default_value_t = 1024)]
        size: u64,
        /// Connections whose memory is measured
        #[arg(long, default_value_t = 1000)]
        connections: usize,
        /// Runs of each
        #[arg(long, default_value_t = 5)]
        runs: usize,
    },
    /// A real image to many nodes' containerd at once, on shaped links (needs root)
    Images(images::ImagesArgs),
    /// One scheduler, thousands of nodes that join at once
    Scheduler(scheduler::SchedulerArgs),
    /// Requests from within a node, for the bench of images
    #[command(hide = true)]
    Load(load::LoadArgs),
    /// Policies to thousands of streams; an operator with a thousand nodes (needs root)
    Control(control::ControlArgs),
    /// What a content costs by its size, and by how many there are (needs root)
    Growth {
        /// Runs of each size
        #[arg(long, default_value_t = 3)]
        runs: usize,
    },
    /// A BitTorrent tracker, for the systems that need one
    #[command(hide = true)]
    Tracker { listen: String },
    /// A scheduler for dragonfly-client
    #[command(hide = true)]
    Dragonfly2Scheduler { listen: String, parents: Parents },
}

#[derive(Args)]
struct SwarmArgs {
    /// Numbers of peers
    #[arg(long, value_delimiter = ',', default_value = "6,12,20")]
    peers: Vec<usize>,
    /// Mbit/s of a link each way
    #[arg(long, default_value_t = 100)]
    rate: u64,
    /// MiB of the content
    #[arg(long, default_value_t = 64)]
    size: u64,
    /// Runs of each system; plain HTTP runs once
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Which systems; all that are there when none is named
    #[arg(long, value_delimiter = ',')]
    systems: Vec<System>,
    /// All regimes, not equal links alone
    #[arg(long)]
    full: bool,
    /// Only the regimes of these names
    #[arg(long, value_delimiter = ',')]
    cases: Vec<String>,
    /// A python that has libtorrent
    #[arg(long, env = "BENCH_PYTHON", default_value = "python3")]
    python: PathBuf,
    #[command(flatten)]
    other: Place,
}

fn main() {
    let done = match Cli::parse().what {
        What::Swarm(args) => swarm(&args),
        What::Io(args) => io(&args),
        What::Tls {
            size,
            connections,
            runs,
        } => tls::run(size << 20, connections.clamp(1, 5000), runs.clamp(1, 100))
            .and_then(|c| report::write("tls", c)),
        What::Images(args) => binary().and_then(|bin| images::run(&args, &bin)),
        What::Scheduler(args) => scheduler::run(&args).and_then(|c| report::write("scheduler", c)),
        What::Load(args) => load::run(args),
        What::Control(args) => control::run(&args).and_then(|c| report::write("control", c)),
        What::Growth { runs } => binary()
            .and_then(|bin| growth::run(&bin, runs.clamp(1, 100)))
            .and_then(|c| report::write("growth", c)),
        What::Tracker { listen } => tracker::serve(&listen),
        What::Dragonfly2Scheduler { listen, parents } => {
            dragonfly2::scheduler::serve(&listen, parents)
        }
    };
    if let Err(e) = done {
        eprintln!("bench: {e}");
        std::process::exit(1);
    }
}

/// Where the binary under test is: beside this one.
fn binary() -> Result<PathBuf> {
    if !rustix::process::geteuid().is_root() {
        return Err(Failed("network namespaces need root".to_owned()));
    }
    let this = std::env::current_exe().map_err(|e| Failed::at("bench", e))?;
    Ok(this.with_file_name("dragonfly"))
}

fn io(args: &io::IoArgs) -> Result<()> {
    let bin = binary()?;
    let mut cases = io::run(&bin, args)?;
    if !args.is_whole() {
        // A report of a part would take the place of the whole one.
        println!("{}", serde_json::Value::from(cases));
        return Ok(());
    }
    let size = args.size << 20;
    cases.extend(far::run(&bin, size / 8, args.runs.clamp(1, 100))?);
    report::write("io", cases)
}

fn swarm(args: &SwarmArgs) -> Result<()> {
    let bin = binary()?;
    let others = Others {
        python: args.python.clone(),
        dragonfly_client: args.other.programs(),
    };
    let mut systems = args.systems.clone();
    if systems.is_empty() {
        systems.extend(System::value_variants());
        systems.retain(|s| s.parents().is_none() || others.dragonfly_client.is_some());
    }
    for &peers in &args.peers {
        if !(1..=200).contains(&peers) {
            return Err(Failed::at(format!("--peers {peers}"), "1 to 200"));
        }
        let size = args.size << 20;
        let mut cases = vec![Case::equal(peers, args.rate, size)];
        if args.full || !args.cases.is_empty() {
            cases.extend(Case::regimes(peers, args.rate, size));
        }
        cases.retain(|c| args.cases.is_empty() || args.cases.iter().any(|n| n == c.name));
        for case in cases {
            let results = one(args.runs, &systems, &case, &bin, &others)?;
            report::write("swarm", vec![results])?;
        }
    }
    Ok(())
}

fn one(
    runs: usize,
    systems: &[System],
    case: &Case,
    bin: &Path,
    others: &Others,
) -> Result<serde_json::Value> {
    // What others cannot do is not asked of them: they read no stream and have no scheduler.
    let comparable =
        case.name == "equal" || case.name == "fast-seed" || case.name == "mixed-uplinks";
    let systems: Vec<System> = systems
        .iter()
        .copied()
        .filter(|s| s.is_ours() || comparable && (!s.is_slow() || case.name == "equal"))
        .collect();
    let dir = place(case).map_err(|e| Failed::at("a temporary directory", e))?;
    let net = Net::new(&case.links)?;
    let mut bed = Bed::new(&net, case, dir.path(), bin, others, &systems)?;
    let mut results: Vec<(System, Vec<bed::Run>)> = systems.iter().map(|s| (*s, vec![])).collect();
    for number in 0..runs.clamp(1, 100) {
        for (system, done) in &mut results {
            if system.is_slow() && number > 0 {
                continue;
            }
            let run = bed.run(*system, number)?;
            eprintln!("{}", report::line(case, system.name(), number, &run));
            done.push(run);
        }
    }
    let named: Vec<(&str, Vec<bed::Run>)> = results
        .into_iter()
        .map(|(system, done)| (system.name(), done))
        .collect();
    Ok(report::rows(case, &named))
}

/// Where the nodes' files lie: in memory, where that has room. In the world each node has a disk of its
/// own; here they share one, whose write-back sets in at the end of a run, when their pages together are
/// a tenth of the memory.
fn place(case: &Case) -> std::io::Result<tempfile::TempDir> {
    let memory = Path::new("/dev/shm");
    // What a node keeps and what its client writes, and as much again to be left.
    let needed = case.size * (case.peers() as u64 + 1) * 4;
    let room = rustix::fs::statvfs(memory).map_or(0, |s| s.f_bavail * s.f_frsize);
    if room > needed {
        tempfile::tempdir_in(memory)
    } else {
        tempfile::tempdir()
    }
}
