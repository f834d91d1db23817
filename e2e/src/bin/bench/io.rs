//! One warm parent to one child with nothing in the way: throughput, small files, memory.

use std::cell::RefCell;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use dragonfly_e2e::process::Process;
use dragonfly_e2e::{Failed, Result, sample};
use serde_json::{Value, json};

use crate::bed::{Bed, Others, prime};
use crate::case::Case;
use crate::dragonfly2::scheduler::Parents;
use crate::dragonfly2::{self, Daemons, Place};
use crate::net::{Link, Net};
use crate::report::medians;
use crate::systems::{Mesh, REST, System, wait_for};
use crate::usage;

/// Files of each small size.
const SMALL: usize = 20;
/// What others would use, in reports.
pub(crate) const HTTP: &str = "http (nginx, curl)";
/// Clients of many small files at once.
pub(crate) const AT_ONCE: usize = 20;
/// Tasks open at once when memory is read.
const TASKS: usize = 200;
const SIZES: [(&str, u64); 2] = [("16 KiB", 16 << 10), ("1 MiB", 1 << 20)];

/// What to run.
#[derive(clap::Args)]
pub(crate) struct IoArgs {
    /// MiB of the content
    #[arg(long, default_value_t = 1024)]
    pub(crate) size: u64,
    /// Runs of each system
    #[arg(long, default_value_t = 5)]
    pub(crate) runs: usize,
    /// Nothing but the throughput of one parent to one child
    #[arg(long)]
    pair_only: bool,
    /// Which systems: dragonfly-plaintext, dragonfly-tls, dragonfly-client, http; all that are there when none
    /// is named. A part of them is printed and not written to the report
    #[arg(long, value_delimiter = ',')]
    systems: Vec<System>,
    #[command(flatten)]
    other: Place,
}

impl IoArgs {
    /// Whether it is all that a report has.
    pub(crate) const fn is_whole(&self) -> bool {
        self.systems.is_empty() && !self.pair_only
    }

    fn wants(&self, system: System) -> bool {
        self.systems.is_empty() || self.systems.contains(&system)
    }
}

/// All cases; `runs` of each system in turn.
pub(crate) fn run(bin: &Path, args: &IoArgs) -> Result<Vec<Value>> {
    let (size, runs) = (args.size << 20, args.runs.clamp(1, 100));
    let case = Case {
        links: vec![Link::UNSHAPED; 2],
        ..Case::equal(1, 0, size)
    };
    let dir = tempfile::tempdir().map_err(|e| Failed::at("a temporary directory", e))?;
    let net = Net::new(&case.links)?;
    let mut ours = vec![System::DragonflyPlaintext, System::DragonflyTls];
    ours.retain(|s| args.wants(*s));
    let theirs = args.wants(System::DragonflyClient);
    let others = Others {
        dragonfly_client: theirs.then(|| args.other.programs()).flatten(),
        ..Others::default()
    };
    let bed = Bed::new(&net, &case, dir.path(), bin, &others, &ours)?;
    for (name, bytes) in SIZES {
        for n in 0..SMALL.max(if bytes == SIZES[0].1 { TASKS } else { 0 }) {
            let path = bed.dir.join("www").join(small(name, n));
            sample::random(&path, bytes, fastrand::u64(..))?;
        }
    }
    // Idle is idle only once start-up is over.
    std::thread::sleep(REST);
    let idle: Vec<f64> = bed.meshes.iter().map(|m| resident(m, "VmRSS")).collect();
    let (throughput, theirs) = throughput(&bed, args)?;
    let pair = json!({
        "case": "One warm parent to one child", "peers": 1, "rate_mbit": 0, "size_bytes": size,
        "about": "no shaping, every block checked (BLAKE3), written to a file (its client's own copy, or by `--hard-link` the node's; dragonfly-client writes a link wherever it can, and checks CRC-32); files lie on a disk that nobody else writes to; CPU is of both ends",
        "systems": throughput,
    });
    if args.pair_only {
        return Ok(vec![pair]);
    }
    let transfer: Vec<f64> = bed.meshes.iter().map(|m| resident(m, "VmHWM")).collect();
    let small = small_files(&bed, runs)?;
    let memory = bed.meshes.iter().enumerate().map(|(n, mesh)| {
        many_tasks(&bed, mesh)?;
        let row = json!({
            "idle_mib": idle[n],
            "peak_after_transfer_mib": transfer[n],
            "with_200_tasks_mib": resident(mesh, "VmRSS"),
        });
        Ok(json!({"system": mesh.system().name(), "runs": [row], "median": row}))
    });
    let mut memory: Vec<Value> = memory.collect::<Result<_>>()?;
    if !theirs.is_empty() {
        memory
            .push(json!({"system": dragonfly2::NAME, "median": medians(&theirs), "runs": theirs}));
    }
    Ok(vec![
        pair,
        json!({
            "case": "Small files", "peers": 1, "rate_mbit": 0, "size_bytes": SIZES[1].1,
            "about": "`get` from a node that fetches from a warm peer, beside curl from the origin; milliseconds; dragonfly-client by its scheduler, for which a stand-in answers at once",
            "systems": small,
        }),
        json!({
            "case": "Memory of a node", "peers": 1, "rate_mbit": 0, "size_bytes": size,
            "about": "resident, of the node that receives; ours after all transfers, dragonfly-client's each started anew for one",
            "systems": memory,
        }),
    ])
}

fn small(size: &str, n: usize) -> String {
    format!("small-{}-{n}", size.replace(' ', "").to_lowercase())
}

fn resident(mesh: &Mesh, which: &str) -> f64 {
    mesh.nodes
        .get(1)
        .map_or(0.0, |n| usage::memory(n.id(), which))
}

/// Makes the command of a client at a node: of which path, to which file.
type Get<'a> = Box<dyn Fn(usize, &str, &Path) -> Command + 'a>;

/// A parent at node 0 and a child at node 1.
struct Pair<'a> {
    name: String,
    /// The parent's process first.
    nodes: Vec<u32>,
    get: Get<'a>,
}

impl<'a> Pair<'a> {
    fn ours(bed: &'a Bed<'_>, mesh: &'a Mesh, options: &'a [&'a str]) -> Self {
        Self {
            name: mesh.system().name().to_owned(),
            nodes: mesh.nodes.iter().map(Process::id).collect(),
            get: Box::new(move |node, path, out| command(bed, mesh, (node, path, out), options)),
        }
    }

    fn theirs(bed: &'a Bed<'_>, daemons: &'a Daemons) -> Self {
        Self {
            name: dragonfly2::NAME.to_owned(),
            nodes: daemons.nodes(),
            get: Box::new(move |node, path, out| daemons.get(bed, node, &bed.url(path), out)),
        }
    }

    fn spent(&self) -> f64 {
        self.nodes.iter().map(|n| usage::cpu(*n)).sum::<f64>() + usage::ended_children()
    }

    /// The parent has the content when this begins to measure: what the child took.
    fn transfer(&self, bed: &Bed<'_>, path: &str, out: &Path) -> Result<Value> {
        let size = bed.case.size;
        timed(&mut (self.get)(0, path, out))?;
        let _ = fs::remove_file(out);
        quiet(bed, size)?;
        let before = self.spent();
        let seconds = timed(&mut (self.get)(1, path, out))?;
        let cpu = self.spent() - before;
        compare(&bed.digest, out)?;
        Ok(row(seconds, cpu / gib(size), size))
    }
}

fn gib(size: u64) -> f64 {
    size as f64 / f64::from(1 << 30)
}

/// Runs a client to its end: seconds.
pub(crate) fn get(bed: &Bed<'_>, mesh: &Mesh, node: usize, path: &str, out: &Path) -> Result<f64> {
    timed(&mut command(bed, mesh, (node, path, out), &[]))
}

pub(crate) fn command(
    bed: &Bed<'_>,
    mesh: &Mesh,
    (node, path, out): (usize, &str, &Path),
    options: &[&str],
) -> Command {
    let mut c = bed.net.command(node, &bed.bin);
    c.args(["get", "--quiet"]).args(options);
    c.arg("--socket").arg(&mesh.sockets[node]);
    c.arg("-O").arg(out);
    c.arg(bed.url(path));
    c
}

pub(crate) fn curl(bed: &Bed<'_>, path: &str, out: &Path) -> Result<f64> {
    let mut c = bed.net.command(1, Path::new("curl"));
    c.arg("-sfo").arg(out).arg(bed.url(path));
    timed(&mut c)
}

pub(crate) fn timed(command: &mut Command) -> Result<f64> {
    let started = Instant::now();
    let status = command.status().map_err(|e| Failed::at("a client", e))?;
    if !status.success() {
        return Err(Failed::at(format!("{command:?}"), status));
    }
    Ok(started.elapsed().as_secs_f64())
}

/// All systems in turn; and what the other's node needed of memory.
fn throughput(bed: &Bed<'_>, args: &IoArgs) -> Result<(Vec<Value>, Vec<Value>)> {
    let size = bed.case.size;
    let out = bed.dir.join("out");
    let (mut rows, mut memory) = (Rows::default(), vec![]);
    let outputs: [(&str, &[&str]); 2] = [("", &[]), (", hard link", &["--hard-link"])];
    for run in 0..args.runs.clamp(1, 100) {
        for mesh in &bed.meshes {
            for (output, options) in outputs {
                let mut pair = Pair::ours(bed, mesh, options);
                pair.name += output;
                let path = format!("run-io-{}-{run}", pair.name.replace([',', ' '], ""));
                rows.push(&pair.name, pair.transfer(bed, &path, &out)?);
                mesh.forget(&bed.bin)?;
            }
        }
        if bed.others.dragonfly_client.is_some() {
            let daemons = Daemons::start(bed, Parents::Random, run)?;
            let pair = Pair::theirs(bed, &daemons);
            let resident = |which| usage::memory(pair.nodes[1], which);
            let idle = resident("VmRSS");
            let path = format!("run-io-{}-{run}", pair.name);
            rows.push(&pair.name, pair.transfer(bed, &path, &out)?);
            memory.push(json!({
                "idle_mib": idle,
                "peak_after_transfer_mib": resident("VmHWM"),
            }));
        }
        bed.clean();
        if !args.wants(System::Http) {
            continue;
        }
        quiet(bed, size)?;
        let nginx = || bed.origin_cpu() + usage::ended_children();
        let before = nginx();
        let seconds = curl(bed, "content", &out)?;
        let cpu = nginx() - before;
        compare(&bed.digest, &out)?;
        rows.push(HTTP, row(seconds, cpu / gib(size), size));
    }
    Ok((rows.systems(), memory))
}

/// The disk has nothing left to write, and memory is there: touched last, for a virtual machine's host may
/// take back within seconds what lies free.
pub(crate) fn quiet(bed: &Bed<'_>, size: u64) -> Result<()> {
    rustix::fs::sync();
    prime(&bed.dir, 3 * size)
}

/// Runs of each system, by its name.
#[derive(Default)]
pub(crate) struct Rows(Vec<(String, Vec<Value>)>);

impl Rows {
    pub(crate) fn push(&mut self, name: &str, row: Value) {
        eprintln!("{name}: {row}");
        match self.0.iter_mut().find(|(n, _)| *n == name) {
            Some((_, all)) => all.push(row),
            None => self.0.push((name.to_owned(), vec![row])),
        }
    }

    /// With the medians, as reports have it.
    pub(crate) fn systems(self) -> Vec<Value> {
        let system = |(name, rows): (String, Vec<Value>)| json!({"system": name, "median": medians(&rows), "runs": rows});
        self.0.into_iter().map(system).collect()
    }
}

fn row(seconds: f64, cpu: f64, size: u64) -> Value {
    let gbit = size as f64 * 8.0 / seconds / 1e9;
    json!({"gbit_s": gbit, "cpu_s_per_gib": cpu, "wall_s": seconds})
}

pub(crate) fn compare(expected: &str, out: &Path) -> Result<()> {
    if sample::digest(out)? != *expected {
        return Err(Failed::at(out.display(), "is not what was sent"));
    }
    fs::remove_file(out).map_err(|e| Failed::at(out.display(), e))
}

fn small_files(bed: &Bed<'_>, start: usize) -> Result<Vec<Value>> {
    let mut systems = vec![];
    for mesh in &bed.meshes {
        systems.push(small_files_of(bed, &Pair::ours(bed, mesh, &[]))?);
        mesh.forget(&bed.bin)?;
    }
    if bed.others.dragonfly_client.is_some() {
        let daemons = Daemons::start(bed, Parents::Random, start)?;
        systems.push(small_files_of(bed, &Pair::theirs(bed, &daemons))?);
    }
    bed.clean();
    Ok(systems)
}

fn small_files_of(bed: &Bed<'_>, pair: &Pair<'_>) -> Result<Value> {
    let out = bed.dir.join("out");
    let mut rows = vec![];
    for n in 0..SMALL {
        let mut row = serde_json::Map::new();
        for (size, _) in SIZES {
            let path = small(size, n);
            for node in [0, 1] {
                let _ = fs::remove_file(&out);
                let seconds = timed(&mut (pair.get)(node, &path, &out))?;
                row.insert(format!("{size}_ms"), json!(seconds * 1e3));
            }
            let plain = curl(bed, &path, &out)? * 1e3;
            let over = row[&format!("{size}_ms")].as_f64().unwrap_or(f64::NAN) - plain;
            row.insert(format!("{size}_over_curl_ms"), json!(over));
        }
        rows.push(Value::Object(row));
    }
    Ok(json!({"system": pair.name, "median": medians(&rows), "runs": rows}))
}

/// Leaves the child with many tasks in use.
fn many_tasks(bed: &Bed<'_>, mesh: &Mesh) -> Result<()> {
    let all: Vec<String> = (0..TASKS).map(|n| small(SIZES[0].0, n)).collect();
    all.chunks(AT_ONCE)
        .try_for_each(|batch| at_once(bed, mesh, batch))
}

/// A client of the child for each of these, all at the same time.
pub(crate) fn at_once(bed: &Bed<'_>, mesh: &Mesh, paths: &[String]) -> Result<()> {
    let mut clients = vec![];
    for (n, path) in paths.iter().enumerate() {
        let mut c = command(bed, mesh, (1, path, &bed.output(n)), &[]);
        // Quiet but for the reason of a failure.
        c.stderr(Stdio::inherit());
        clients.push(RefCell::new(Process::spawn("get", &mut c)?));
    }
    wait_for("a batch of small files", || {
        clients.iter().all(|c| c.borrow_mut().ended().is_some())
    })?;
    for client in clients {
        if let Some(status) = client.into_inner().ended().filter(|s| !s.success()) {
            return Err(Failed::at("a small file", status));
        }
    }
    Ok(())
}
