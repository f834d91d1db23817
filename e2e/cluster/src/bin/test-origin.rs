//! An origin for tests inside a cluster: serves made-up files and logs how much of them it sent.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use dragonfly_e2e::origin::Origin;
use dragonfly_e2e::{Failed, Result, sample};

/// An HTTP server of made-up files; its log says how many requests came and what was sent.
#[derive(Debug, Parser)]
#[command(name = "test-origin")]
struct Args {
    /// Where it listens.
    #[arg(long, default_value = "[::]:8080")]
    listen: String,
    /// A file to make and serve: `name=bytes`; repeatable. The same each time.
    #[arg(long = "file", value_name = "NAME=BYTES")]
    files: Vec<String>,
    /// Where files are made.
    #[arg(long, default_value = "/tmp")]
    dir: PathBuf,
    /// Bytes a second of all connections together; 0: as fast as can be.
    #[arg(long, default_value_t = 0)]
    rate: u64,
    /// Go on when asked to end by SIGTERM.
    #[arg(long)]
    stubborn: bool,
}

#[tokio::main]
async fn main() -> std::process::ExitCode {
    match run(Args::parse()).await {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(wrong) => {
            eprintln!("test-origin: {wrong}");
            std::process::ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> Result<()> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
        .map_err(|e| Failed::at("signals", e))?;
    let origin = Origin::start_on(&args.listen, args.rate).await?;
    for file in &args.files {
        let parsed = file
            .split_once('=')
            .and_then(|(n, len)| Some((n, len.parse::<u64>().ok()?)));
        let (name, len) = parsed.ok_or_else(|| Failed::at(file, "is not NAME=BYTES"))?;
        let made = sample::random(&args.dir.join(name), len, len)?;
        origin.serve(name, &made.path)?;
        println!("serving /{name} {len} {}", made.digest);
    }
    println!("listening on {}", origin.addr);
    let mut last = (0, 0);
    let mut look = tokio::time::interval(Duration::from_millis(100));
    loop {
        tokio::select! {
            _ = terminate.recv(), if !args.stubborn => return Ok(()),
            _ = look.tick() => {}
        }
        let now = (origin.requests(), origin.sent());
        if now != last {
            println!("requests {} sent {}", now.0, now.1);
            last = now;
        }
    }
}
