//! The soak: a mesh of real processes under load while everything goes wrong, for as long as is asked.
//!
//! Clients get contents all the time, and compare what they get with what the origin has; faults come
//! at random and pass. At the end all is mended: then everything has to work, and nothing may be left.
//! One seed of randomness decides who gets what when and what fails when; how that falls together is
//! the machine's business. Exit codes: 0 all is as it should be, 1 not so, 2 wrong usage.
//!
//! As root it runs in namespaces of its own, where links are cut and a disk is full; without, the other
//! faults remain, and the summary says which did not come.

mod catalogue;
mod faults;
mod load;
mod report;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use dragonfly_e2e::clock::Clocks;
use dragonfly_e2e::links::{self, Links};
use dragonfly_e2e::mesh::{Mesh, Options};
use dragonfly_e2e::origin::Origin;
use dragonfly_e2e::{Failed, Result, binary};

use crate::catalogue::Catalogue;
use crate::faults::Faults;
use crate::load::{Load, Results};
use crate::report::Report;

/// How fast the origin is at most, bytes a second: downloads are to last until something happens.
const RATE: u64 = 48 << 20;
/// The link of each machine, Mbit/s.
const LINK: u64 = 400;
/// After the last fault was mended, before everything has to work.
const REST: Duration = Duration::from_secs(8);
/// What each node may keep, so that it has to let go of some.
const SPEC: &str = "  sources: {http: {stallTimeout: 2s, freshness: 1s}}\n  storage: {quota: 192Mi, reserveFreePercent: 0}\n";

/// Load and random faults over a mesh of real processes
#[derive(Debug, Clone, Parser)]
#[command(name = "soak")]
struct Args {
    /// How long load and faults go on
    #[arg(long, default_value_t = 5.0)]
    minutes: f64,
    /// Repeats the choices of an earlier soak [default: random, and shown]
    #[arg(long)]
    seed: Option<u64>,
    /// Peers
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(2..=32))]
    peers: u16,
    /// Downloads at once
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u16).range(1..=256))]
    clients: u16,
    /// Say each fault when it begins
    #[arg(long)]
    verbose: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if !(args.minutes > 0.0 && args.minutes <= 7.0 * 24.0 * 60.0) {
        eprintln!(
            "soak: --minutes {}: more than 0, and a week at most",
            args.minutes
        );
        return ExitCode::from(2);
    }
    match run(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(wrong) => {
            eprintln!("soak: {wrong}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<bool> {
    let root = rustix::process::geteuid().is_root();
    if root {
        let again: Vec<String> = std::env::args().skip(1).collect();
        let again: Vec<&str> = again.iter().map(String::as_str).collect();
        if !links::alone(&again)? {
            return Ok(true);
        }
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(|e| Failed::at("a runtime", e))?;
    let good = runtime.block_on(soak(args, root));
    runtime.shutdown_timeout(Duration::from_secs(5));
    good
}

async fn soak(args: &Args, root: bool) -> Result<bool> {
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    let peers = usize::from(args.peers);
    let links = if root {
        Some(Links::new(1 + 2 + peers)?)
    } else {
        None
    };
    let options = Options {
        seeds: 2,
        peers,
        spec: SPEC.to_owned(),
        within: Some(binary::build_directory()?),
        places: links.as_ref().map(Links::places).unwrap_or_default(),
        ..Options::default()
    };
    let mut mesh = Mesh::prepare(&options)?;
    let dir = mesh.dir().to_owned();
    let mut absent = vec![];
    let clocks = match Clocks::new(&dir.join("clocks")) {
        Ok(clocks) => Some(clocks),
        Err(_) => {
            absent.push("clocks that are set: there is no C compiler");
            None
        }
    };
    if let Some(clocks) = &clocks {
        clocks.give_all(&mut mesh);
    }
    if let Some(links) = &links {
        for machine in 0..1 + 2 + peers {
            links.slow(machine, LINK)?;
        }
        faults::small_disk(&mesh)?;
    } else {
        absent.push("cut and slow links, full disks: they need root");
    }
    mesh.begin().await?;
    let at = links
        .as_ref()
        .map_or("127.0.0.1".to_owned(), |_| Links::here().to_string());
    let origin = Arc::new(Origin::start_on(&format!("{at}:0"), RATE).await?);
    let catalogue = Arc::new(Catalogue::new(&dir.join("source"), origin.clone(), seed)?);
    let minutes = Duration::from_secs_f64(args.minutes * 60.0);
    println!(
        "soak of {} s, seed {seed}: a scheduler, 2 seeds, {peers} peers, {} downloads at once",
        minutes.as_secs(),
        args.clients
    );

    let began = Instant::now();
    let results = Arc::new(Results::default());
    let load = Load::start(&mesh, &catalogue, &results, seed, args.clients.into())?;
    let mut faults = Faults::new(mesh, links, clocks, catalogue.clone(), seed, args.verbose);
    let went = async {
        faults.go_on(began + minutes).await?;
        faults.mend_all().await
    };
    if let Err(e) = went.await {
        println!("{}", faults.logs(40));
        return Err(e);
    }
    load.stop().await?;
    tokio::time::sleep(REST).await;
    let (mut mesh, seen) = faults.done().await?;

    println!("all is mended: everything has to work now");
    let calm = load::everything(&mesh, &catalogue).await?;
    let report = Report {
        seed,
        took: began.elapsed(),
        seen,
        results: results.take(),
        calm,
        ends: report::ends(&mut mesh).await,
        sent: origin.sent(),
        absent,
    };
    let logs = mesh.logs(15);
    drop(mesh);
    let good = report.print(&dir);
    if !good {
        println!("\n{logs}");
        println!(
            "the same again: make soak MINUTES={} SEED={seed}",
            args.minutes
        );
    }
    Ok(good)
}
