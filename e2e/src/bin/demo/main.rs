//! The demo: real files among real peers, from the sample manifests, with two deaths on the way.
//!
//! It starts a scheduler, a seed and peers as processes, lets all peers get the same content at once,
//! kills one peer and the scheduler half way and starts them again, and compares every output with the
//! source. Nothing it starts or writes outlives it. Exit codes: 0 all is as it should be, 1 not so,
//! 2 wrong usage, 130 interrupted.

mod report;
mod show;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use clap::Parser;
use dragonfly_e2e::get::{Ended, Get};
use dragonfly_e2e::mesh::{Mesh, Options};
use dragonfly_e2e::origin::Origin;
use dragonfly_e2e::process::Process;
use dragonfly_e2e::sample::{self, Sample};
use dragonfly_e2e::{Failed, Result, binary};
use tokio::signal::unix::{SignalKind, signal};

use crate::report::{Peer, Report};
use crate::show::Show;

/// How long what was killed stays away.
const AWAY: Duration = Duration::from_secs(1);
/// Room beside the content, and for what else goes on.
const SPARE: u64 = 1 << 30;

/// Distribute real files among real peers on this machine, and show what happens
#[derive(Debug, Clone, Parser)]
#[command(name = "demo")]
struct Args {
    /// Peers; each gets everything
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    peers: u32,
    /// How much to distribute, made of what is built in the directory of this program
    #[arg(long, default_value = "2G", value_parser = parse_size)]
    size: u64,
    /// Distribute this instead
    #[arg(long, conflicts_with = "size")]
    url: Option<String>,
    /// Kill nothing half way
    #[arg(long)]
    no_kill: bool,
    /// Plaintext between nodes, instead of the samples' mutual TLS
    #[arg(long)]
    plaintext: bool,
    /// Leave state, logs and outputs behind
    #[arg(long)]
    keep: bool,
    /// Where to put state and outputs while it runs [default: beside the directory of this program]
    #[arg(long, value_name = "DIR")]
    within: Option<PathBuf>,
    /// Give up after so many seconds
    #[arg(long, default_value_t = 900, value_name = "SECONDS")]
    timeout: u64,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let limit = Duration::from_secs(args.timeout);
    let run = tokio::time::timeout(limit, demo(&args));
    let (Ok(mut int), Ok(mut term)) = (
        signal(SignalKind::interrupt()),
        signal(SignalKind::terminate()),
    ) else {
        eprintln!("demo: signals cannot be handled here");
        return ExitCode::FAILURE;
    };
    let outcome = tokio::select! {
        outcome = run => outcome,
        _ = int.recv() => return ExitCode::from(130),
        _ = term.recv() => return ExitCode::from(130),
    };
    let late = || {
        Err(Failed(format!(
            "not done within {limit:?}; see --timeout and --size"
        )))
    };
    match outcome.unwrap_or_else(|_| late()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("demo: {e}");
            ExitCode::FAILURE
        }
    }
}

/// Whether all is as it should be.
async fn demo(args: &Args) -> Result<bool> {
    let within = match &args.within {
        Some(within) => within.clone(),
        None => beside()?,
    };
    let options = Options {
        peers: args.peers as usize,
        plaintext: args.plaintext,
        within: Some(within.clone()),
        keep: args.keep,
        ..Options::default()
    };
    if args.url.is_none() {
        enough_room(&within, args.size, args.peers)?;
    }
    println!(
        "starting a scheduler, a seed and {} peers from config/samples",
        args.peers
    );
    let mut mesh = Mesh::start(&options).await?;
    let done = distribute(args, &mut mesh).await;
    if done.is_err() {
        eprintln!("{}", mesh.logs(10));
    }
    if args.keep {
        println!(
            "state, logs and outputs are kept in {}",
            mesh.dir().display()
        );
    }
    done
}

async fn distribute(args: &Args, mesh: &mut Mesh) -> Result<bool> {
    let origin = Origin::start(0).await?;
    let (url, source) = match &args.url {
        Some(url) => (url.clone(), None),
        None => {
            let source = real_files(&mesh.dir().join("source.bin"), args.size).await?;
            (origin.serve("source.bin", &source.path)?, Some(source))
        }
    };
    println!("{} peers get {url}\n", args.peers);
    let mut gets = (0..mesh.peers.len())
        .map(|n| mesh.get(n, &url, &[]))
        .collect::<Result<Vec<_>>>()?;
    let mut show = Show::new(
        &mesh
            .peers
            .iter()
            .map(|p| p.name.clone())
            .collect::<Vec<_>>(),
    );
    let mut killed = None;
    let mut came_back = args.no_kill;
    while gets.iter_mut().any(|get| !get.has_ended()) || !came_back {
        show.draw(&gets);
        match killed {
            _ if args.no_kill => {}
            None if half(&gets) && gets.iter_mut().all(|get| !get.has_ended()) => {
                show.say("killing the scheduler and peer-0 (SIGKILL)");
                mesh.scheduler.kill();
                mesh.peers.iter_mut().take(1).for_each(|peer| peer.kill());
                killed = Some(Instant::now());
            }
            // Faster than one can kill: then there is nothing to come back to.
            None if gets.iter_mut().all(Get::has_ended) => {
                show.say("done before anything could be killed: try a larger --size");
                came_back = true;
            }
            Some(at) if !came_back && at.elapsed() > AWAY => {
                show.say("starting both again, with what they kept");
                mesh.scheduler.start()?;
                mesh.peers
                    .iter_mut()
                    .take(1)
                    .try_for_each(|peer| peer.start())?;
                came_back = true;
            }
            _ => {}
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let wall = gets.iter().map(Get::took).max().unwrap_or_default();
    show.draw(&gets);
    show.end();
    let mut ended = vec![];
    for get in gets {
        ended.push(get.wait(Duration::from_secs(1)).await?);
    }
    let (source, sent) = match source {
        Some(source) => {
            if args.keep {
                for (from, to) in origin.sent_again("source.bin") {
                    println!("sent again: {from}..{to}");
                }
            }
            (source, Some(origin.sent()))
        }
        None => (own_download(args, mesh, &url).await?, None),
    };
    println!(
        "\ncomparing SHA-256 of {} outputs with the source",
        ended.len()
    );
    let report = Report {
        peers: compared(mesh, &ended, &source).await?,
        seed: report::held_by(mesh).await?,
        size: source.len,
        sent,
        wall,
        killed: killed.is_some(),
        transport: if args.plaintext {
            "plaintext"
        } else {
            "mutual TLS"
        },
    };
    print!("\n{report}");
    Ok(report.is_good())
}

/// Whether the peer that is to die is half way.
fn half(gets: &[Get]) -> bool {
    let first = gets.first().map(Get::state).unwrap_or_default();
    first
        .total
        .is_some_and(|total| total > 0 && first.have >= total / 2)
}

async fn compared(mesh: &Mesh, ended: &[Ended], source: &Sample) -> Result<Vec<Peer>> {
    let mut peers = vec![];
    for (member, ended) in mesh.peers.iter().zip(ended) {
        let output = mesh.work.join(format!("{}.out", member.name));
        let wrong = if ended.code == Some(0) {
            let found = blocking(move || sample::digest(&output)).await?;
            (found != source.digest).then(|| format!("{found} is not {}", source.digest))
        } else {
            Some(format!("exit code {:?}: {}", ended.code, ended.complaint()))
        };
        peers.push(Peer {
            name: member.name.clone(),
            took: ended.took,
            traffic: ended.state.traffic,
            kept: (ended.state.reconnects > 0).then_some(ended.state.kept),
            wrong,
        });
    }
    Ok(peers)
}

/// Another way to the same content than the mesh, to compare with.
async fn own_download(args: &Args, mesh: &Mesh, url: &str) -> Result<Sample> {
    println!("\nfetching it once more without the mesh, to compare");
    let path = mesh.dir().join("source.bin");
    let mut command = Command::new("curl");
    command
        .args(["-fsSL", "--retry", "3", "-o"])
        .arg(&path)
        .arg(url)
        .stdout(Stdio::null());
    let status = match Process::spawn("curl", &mut command) {
        Ok(mut curl) => curl.wait(Duration::from_secs(args.timeout)).await?,
        Err(_) => {
            // No curl here: a node that knows no mesh goes to the origin itself.
            let mut command = Command::new(&mesh.dragonfly);
            command
                .args(["get", "--no-node", "--quiet", url, "-O"])
                .arg(&path);
            let mut get = Process::spawn("get --no-node", &mut command)?;
            get.wait(Duration::from_secs(args.timeout)).await?
        }
    };
    if !status.success() {
        return Err(Failed(format!(
            "{url} cannot be fetched for comparison: {status}"
        )));
    }
    let len = std::fs::metadata(&path)
        .map_err(|e| Failed::at(path.display(), e))?
        .len();
    let digest = blocking({
        let path = path.clone();
        move || sample::digest(&path)
    });
    Ok(Sample {
        digest: digest.await?,
        path,
        len,
    })
}

/// Real files, made of what was just built.
async fn real_files(path: &Path, size: u64) -> Result<Sample> {
    let built = binary::build_directory()?;
    let to = path.to_owned();
    blocking(move || {
        let mut files = sample::files_below(&built.join("deps"));
        files.insert(0, binary::dragonfly()?);
        let sample = sample::concatenated(&to, &files, size)?;
        let count = files.len();
        let size = indicatif::HumanBytes(size);
        println!(
            "made {size} of {count} files that were just built: {}",
            sample.digest
        );
        Ok(sample)
    })
    .await
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|e| Failed(e.to_string()))?
}

/// The directory above the one of this program, `target`: on a disk, and ignored by git.
fn beside() -> Result<PathBuf> {
    let dir = binary::build_directory()?;
    Ok(dir.parent().map_or_else(|| dir.clone(), Path::to_owned))
}

/// The source, a copy at the seed, and at each peer one in its cache and one that it hands out.
fn enough_room(within: &Path, size: u64, peers: u32) -> Result<()> {
    let stat = rustix::fs::statvfs(within).map_err(|e| Failed::at(within.display(), e))?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let need = size
        .saturating_mul(2 + 2 * u64::from(peers))
        .saturating_add(SPARE);
    if free >= need {
        return Ok(());
    }
    let [free, need] = [free, need].map(indicatif::HumanBytes);
    Err(Failed(format!(
        "{}: {free} are free and {need} are needed: try a smaller --size, or another place with \
         --within",
        within.display()
    )))
}

fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is no size: write 512M or 2G");
    let (number, unit) =
        text.split_at(text.find(|c: char| c.is_alphabetic()).unwrap_or(text.len()));
    let shift = match unit.trim_end_matches("iB").trim_end_matches('B') {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number
        .checked_mul(1 << shift)
        .filter(|n| *n > 0)
        .ok_or_else(wrong)
}
