//! The control plane at scale: policies to thousands of streams of one scheduler, and an operator that
//! runs a mesh on a thousand nodes.
//!
//! The scheduler is the real process on one processor; streams are kept with the real gRPC client, as
//! those of nodes, and acknowledge what they are sent. The operator, its API server and controllers are
//! real too, the nodes are kwok's (`cluster control`).

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use dragonfly_e2e::mesh::{Mesh, Options};
use dragonfly_e2e::{Failed, Result, usage};
use serde_json::{Value, json};

use crate::report::medians;
use crate::scheduler::crowd::Crowd;
use crate::scheduler::{Cpus, REST, connections, on_one_thread};

/// How long the last acknowledgement may take.
const LIMIT: Duration = Duration::from_secs(120);
/// How often the scheduler is asked how many acknowledged.
const LOOK: Duration = Duration::from_millis(50);

/// What to run.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ControlArgs {
    /// Streams of policy; 0: no scheduler
    #[arg(long, default_value_t = 5000)]
    streams: usize,
    /// Changes of the policy, one after the other
    #[arg(long, default_value_t = 10)]
    changes: usize,
    /// Fake nodes of the operator's mesh; 0: no operator
    #[arg(long, default_value_t = 1000)]
    nodes: usize,
    /// Preheats that are created at once
    #[arg(long, default_value_t = 200)]
    preheats: usize,
    /// Runs of each
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Mutual TLS, with a certificate for each stream, instead of plaintext
    #[arg(long)]
    tls: bool,
}

/// All runs, as cases of the report.
pub(crate) fn run(args: &ControlArgs) -> Result<Vec<Value>> {
    let ControlArgs {
        streams,
        changes,
        nodes,
        preheats,
        ..
    } = *args;
    if streams > 100_000 || !(1..=1000).contains(&changes) || nodes > 5000 || preheats == 0 {
        let what = format!(
            "--streams {streams} --changes {changes} --nodes {nodes} --preheats {preheats}"
        );
        let most =
            "at most 100000 streams, 1 to 1000 changes, at most 5000 nodes, 1 preheat or more";
        return Err(Failed::at(what, most));
    }
    let runs = args.runs.clamp(1, 100);
    let mut cases = vec![];
    if streams > 0 {
        let connections = connections(streams)?;
        let rows = repeated("streams", runs, || policies(args, connections))?;
        let system = if args.tls {
            "dragonfly-tls"
        } else {
            "dragonfly-plaintext"
        };
        let about = format!(
            "{streams} streams of policy ({connections} connections) at one scheduler, which has one \
             processor; {changes} edits of its manifest, which it looks at twice a second, each until \
             the last stream has acknowledged it"
        );
        cases.push(case("A policy to all", &about, streams, system, &rows));
    }
    if nodes > 0 {
        let rows = repeated("operator", runs, || operator(nodes, preheats))?;
        let about = format!(
            "a mesh on {nodes} fake nodes (kwok) at a real API server, then {preheats} Preheats at \
             once; what its account asked of the API server is from the API server's own record"
        );
        cases.push(case(
            "An operator",
            &about,
            nodes,
            "dragonfly-operator",
            &rows,
        ));
    }
    Ok(cases)
}

fn repeated(what: &str, runs: usize, one: impl Fn() -> Result<Value>) -> Result<Vec<Value>> {
    let mut rows = vec![];
    for number in 0..runs {
        let row = one()?;
        eprintln!("{what} run {number}: {row}");
        rows.push(row);
    }
    Ok(rows)
}

fn case(name: &str, about: &str, peers: usize, system: &str, rows: &[Value]) -> Value {
    json!({
        "case": name,
        "about": about,
        "peers": peers,
        "rate_mbit": 0,
        "size_bytes": 0,
        "systems": [{"system": system, "median": medians(rows), "runs": rows}],
    })
}

fn policies(args: &ControlArgs, connections: usize) -> Result<Value> {
    let cpus = Cpus::split()?;
    on_one_thread(measure(args, connections, &cpus))
}

async fn measure(args: &ControlArgs, connections: usize, cpus: &Cpus) -> Result<Value> {
    let mut mesh = Mesh::prepare(&Options {
        seeds: 0,
        peers: 0,
        plaintext: !args.tls,
        ..Options::default()
    })?;
    mesh.scheduler.run_by(&["taskset", "-c", &cpus.scheduler]);
    mesh.scheduler.start()?;
    mesh.scheduler.ready().await?;
    let id = mesh.scheduler.id()?;
    let address = mesh.scheduler.listen.to_string();
    let bare = usage::memory(id, "VmRSS");
    let authority = args.tls.then(|| mesh.scheduler.state.join("mesh"));
    let crowd = Crowd::new(&address, args.streams, 1, connections, authority.as_deref())?;
    crowd.connect(0).await?;
    let mut revision = acknowledged(&mesh, 0.0, args.streams).await?;
    tokio::time::sleep(REST).await;
    let held = usage::memory(id, "VmRSS");

    let file = mesh.manifests.join("distribution.yaml");
    let wrong = |e| Failed::at(file.display(), e);
    let first = std::fs::read_to_string(&file).map_err(wrong)?;
    let (mut each, mut last, cpu) = (vec![], vec![], usage::cpu(id));
    for n in 0..args.changes {
        crowd.forget_acknowledged();
        let text = format!("{first}  limits:\n    upload: {}Mi\n", n + 1);
        let applied = Instant::now();
        std::fs::write(&file, text).map_err(wrong)?;
        revision = acknowledged(&mesh, revision, args.streams).await?;
        last.push(applied.elapsed().as_secs_f64() * 1e3);
        let times = crowd.acknowledged().into_iter();
        each.extend(times.map(|at| at.duration_since(applied).as_secs_f64() * 1e3));
    }
    let cpu = usage::cpu(id) - cpu;
    each.sort_by(f64::total_cmp);
    last.sort_by(f64::total_cmp);
    let share = |of: &[f64], q: f64| {
        let at = (of.len() as f64 * q) as usize;
        of.get(at.min(of.len().saturating_sub(1)))
            .copied()
            .unwrap_or(f64::NAN)
    };
    Ok(json!({
        "kib_per_stream": (held - bare) * 1024.0 / args.streams as f64,
        "ack_p50_ms": share(&each, 0.5),
        "ack_p99_ms": share(&each, 0.99),
        "last_ack_p50_ms": share(&last, 0.5),
        "last_ack_p99_ms": share(&last, 0.99),
        "cpu_ms_per_change": cpu * 1e3 / args.changes as f64,
    }))
}

/// Until all streams run a policy that is newer than this revision, by the scheduler's own count: its
/// revision.
async fn acknowledged(mesh: &Mesh, than: f64, streams: usize) -> Result<f64> {
    let began = Instant::now();
    loop {
        let revision = mesh
            .scheduler
            .metric("dragonfly_scheduler_policy_revision")
            .await?;
        let nodes = mesh
            .scheduler
            .metric("dragonfly_scheduler_policy_acknowledged_nodes")
            .await?;
        if revision > than && nodes as usize == streams {
            return Ok(revision);
        }
        if began.elapsed() > LIMIT {
            return Err(Failed(format!(
                "{nodes} of {streams} streams acknowledged revision {revision}"
            )));
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn operator(nodes: usize, preheats: usize) -> Result<Value> {
    let own = std::env::current_exe().map_err(|e| Failed::at("bench", e))?;
    let program = own.with_file_name("cluster");
    let wrong = |e: &dyn std::fmt::Display| Failed::at(program.display(), e);
    let out = Command::new(&program)
        .args([
            "control",
            "--nodes",
            &nodes.to_string(),
            "--preheats",
            &preheats.to_string(),
        ])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|e| wrong(&e))?;
    if !out.status.success() {
        return Err(wrong(&out.status));
    }
    serde_json::from_slice(&out.stdout).map_err(|e| wrong(&e))
}
