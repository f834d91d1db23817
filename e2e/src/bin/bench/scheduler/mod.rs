//! One scheduler and a crowd: thousands of nodes, each with a session of its own, all join within
//! seconds.
//!
//! The scheduler is the real process on one processor; the nodes are sessions that this process keeps
//! with the real gRPC client, and say what nodes say: hello, the policy they run, one question, a
//! report every ten seconds. They move no bytes. For what a member of a content costs, all join another
//! one in the end.

pub(crate) mod crowd;

use std::time::{Duration, Instant};

use dragonfly_e2e::mesh::{Mesh, Options};
use dragonfly_e2e::{Failed, Result};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};

use crate::report::medians;
use crate::usage;
use crowd::{Counted, Crowd};

/// A content has at least one member; the seeds are two.
const SEEDS: usize = 2;
/// File descriptors beside those of sessions.
const SPARE: u64 = 256;
/// How long what was started may take to come to rest before memory is read.
pub(crate) const REST: Duration = Duration::from_secs(2);
/// Leases are given only so long after a scheduler's start.
const RECOVERY: Duration = Duration::from_secs(3);

/// What to run.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct SchedulerArgs {
    /// Nodes
    #[arg(long, default_value_t = 10_000)]
    peers: usize,
    /// Contents; each node wants one, and at the end another
    #[arg(long, default_value_t = 100)]
    tasks: usize,
    /// Seconds within which all join
    #[arg(long, default_value_t = 10)]
    within: u64,
    /// Runs, each with a new scheduler
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Mutual TLS, with a certificate for each node, instead of plaintext
    #[arg(long)]
    tls: bool,
}

/// All runs, as a case of the report.
pub(crate) fn run(args: &SchedulerArgs) -> Result<Vec<Value>> {
    let SchedulerArgs {
        peers,
        tasks,
        within,
        ..
    } = *args;
    if !(1..=1_000_000).contains(&peers) || !(1..=peers).contains(&tasks) || within == 0 {
        let what = format!("--peers {peers} --tasks {tasks} --within {within}");
        return Err(Failed::at(
            what,
            "1 to 1000000 peers, at most as many tasks, 1 s or more",
        ));
    }
    let connections = connections(peers)?;
    let mut rows = vec![];
    for number in 0..args.runs.clamp(1, 100) {
        let row = one(args, connections)?;
        eprintln!("scheduler run {number}: {row}");
        rows.push(row);
    }
    let how = if connections == peers {
        "a connection each".to_owned()
    } else {
        format!("{connections} connections, as many as this machine's limit of open files allows")
    };
    let system = if args.tls {
        "dragonfly-tls"
    } else {
        "dragonfly-plaintext"
    };
    Ok(vec![json!({
        "case": "A crowd at the scheduler",
        "about": format!(
            "{peers} nodes with a session each ({how}) join {tasks} contents within {within} s; \
             the scheduler runs on one processor, the nodes' sessions on the others"
        ),
        "peers": peers,
        "rate_mbit": 0,
        "size_bytes": 0,
        "systems": [{"system": system, "median": medians(&rows), "runs": rows}],
    })])
}

/// How many connections there can be: one a node where the limit of open files allows.
pub(crate) fn connections(peers: usize) -> Result<usize> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let most = maximum.unwrap_or(u64::MAX);
    // Inherited by the scheduler, which has as many.
    let limit = Rlimit {
        current: Some(most),
        maximum,
    };
    setrlimit(Resource::Nofile, limit).map_err(|e| Failed::at("the limit of open files", e))?;
    let room = usize::try_from(most.saturating_sub(SPARE)).unwrap_or(usize::MAX);
    Ok(peers.min(room).max(1))
}

fn one(args: &SchedulerArgs, connections: usize) -> Result<Value> {
    let cpus = Cpus::split()?;
    on_one_thread(measure(args, connections, &cpus))
}

/// Runs what holds thousands of sessions beside a scheduler that has a processor of its own.
pub(crate) fn on_one_thread<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build();
    let runtime = runtime.map_err(|e| Failed::at("a runtime", e))?;
    let done = runtime.block_on(work);
    // They are not waited for one by one.
    runtime.shutdown_background();
    done
}

async fn measure(args: &SchedulerArgs, connections: usize, cpus: &Cpus) -> Result<Value> {
    let options = Options {
        seeds: 0,
        peers: 0,
        plaintext: !args.tls,
        ..Options::default()
    };
    let mut mesh = Mesh::prepare(&options)?;
    mesh.scheduler.run_by(&["taskset", "-c", &cpus.scheduler]);
    mesh.scheduler.start()?;
    mesh.scheduler.ready().await?;
    let began = Instant::now();
    let id = mesh.scheduler.id()?;
    let address = mesh.scheduler.listen.to_string();
    let bare = usage::memory(id, "VmRSS");

    let authority = args.tls.then(|| mesh.scheduler.state.join("mesh"));
    let crowd = Crowd::new(
        &address,
        args.peers,
        args.tasks,
        connections,
        authority.as_deref(),
    )?;
    let connecting = (Instant::now(), usage::cpu(id));
    crowd.connect(SEEDS).await?;
    let connected = (connecting.0.elapsed(), usage::cpu(id) - connecting.1);
    tokio::time::sleep(RECOVERY.saturating_sub(began.elapsed()).max(REST)).await;

    let with_sessions = usage::memory(id, "VmRSS");
    let idle = (Instant::now(), usage::cpu(id));
    tokio::time::sleep(REST).await;
    let idle = (usage::cpu(id) - idle.1) / idle.0.elapsed().as_secs_f64();

    let before = crowd.counted();
    let joining = (Instant::now(), usage::cpu(id));
    let within = Duration::from_secs(args.within);
    crowd.join(0, within).await?;
    let took = joining.0.elapsed().as_secs_f64();
    let cpu = usage::cpu(id) - joining.1;
    let after = crowd.counted();
    tokio::time::sleep(REST).await;
    let with_members = usage::memory(id, "VmRSS");
    let replies = crowd.replies();
    // What a session costs that is used at all is paid by now: what another content adds is its own.
    crowd.join(1, within).await?;
    tokio::time::sleep(REST).await;
    let with_more = usage::memory(id, "VmRSS");

    let peers = args.peers as f64;
    let each = |of: fn(&Counted) -> u64| (of(&after) - of(&before)) as f64 / peers / took;
    let reply = |share: f64| {
        let at = (replies.len() as f64 * share) as usize;
        let reply = replies.get(at.min(replies.len().saturating_sub(1)));
        reply.map_or(f64::NAN, |r| r.as_secs_f64() * 1e3)
    };
    Ok(json!({
        "cores": cpu / took,
        "reply_p50_ms": reply(0.5),
        "reply_p99_ms": reply(0.99),
        "reply_max_ms": reply(1.0),
        "kib_per_member": (with_more - with_members) * 1024.0 / peers,
        "kib_per_first_member": (with_members - with_sessions) * 1024.0 / peers,
        "messages_per_s_and_peer": each(|c| c.said) + each(|c| c.heard),
        "said_per_s_and_peer": each(|c| c.said),
        "heard_per_s_and_peer": each(|c| c.heard),
        "kib_per_session": (with_sessions - bare) * 1024.0 / peers,
        "connect_s": connected.0.as_secs_f64(),
        "connect_cpu_s": connected.1,
        "idle_cores": idle,
        "fewest_neighbours": crowd.fewest_neighbours(),
    }))
}

/// Which processors are whose: what the aim says of one core is to be true of one.
pub(crate) struct Cpus {
    all: String,
    pub(crate) scheduler: String,
}

impl Cpus {
    /// The first for the scheduler; where there is one only, all share it. They are the machine's again
    /// when this is dropped.
    pub(crate) fn split() -> Result<Self> {
        let list = |text: &str| {
            text.rsplit(' ')
                .next()
                .unwrap_or_default()
                .trim()
                .to_owned()
        };
        let own = std::process::id().to_string();
        let all = list(&taskset(&["-cp", &own])?);
        let first = all.split([',', '-']).next().unwrap_or_default().to_owned();
        let last = all.rsplit([',', '-']).next().unwrap_or_default();
        // Of a list such as 0-3,8 all but the first, or it where it is the only one.
        let second = first.parse::<usize>().map_or(0, |n| n + 1).to_string();
        let others = match all.strip_prefix(&first) {
            Some(rest) if rest.starts_with('-') && second == last => second,
            Some(rest) if rest.starts_with('-') => format!("{second}{rest}"),
            Some(rest) if rest.starts_with(',') => rest.trim_start_matches(',').to_owned(),
            _ => first.clone(),
        };
        taskset(&["-acp", &others, &own])?;
        let scheduler = first;
        Ok(Self { all, scheduler })
    }
}

impl Drop for Cpus {
    fn drop(&mut self) {
        let own = std::process::id().to_string();
        let _ = taskset(&["-acp", &self.all, &own]);
    }
}

fn taskset(args: &[&str]) -> Result<String> {
    let out = std::process::Command::new("taskset").args(args).output();
    let out = out.map_err(|e| Failed::at("taskset", e))?;
    if !out.status.success() {
        return Err(Failed::at("taskset", String::from_utf8_lossy(&out.stderr)));
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}
