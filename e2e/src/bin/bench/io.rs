//! One warm parent to one child with nothing in the way: throughput, small files, memory.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use dragonfly_e2e::process::Process;
use dragonfly_e2e::{Failed, Result, sample};
use serde_json::{Value, json};

use crate::bed::{Bed, prime};
use crate::case::Case;
use crate::net::{Link, Net};
use crate::report::medians;
use crate::systems::{Mesh, System, wait_for};
use crate::usage;

/// Files of each small size.
const SMALL: usize = 20;
/// What others would use, in reports.
pub(crate) const HTTP: &str = "http (nginx, curl)";
/// Tasks open at once when memory is read.
const TASKS: usize = 200;
const SIZES: [(&str, u64); 2] = [("16 KiB", 16 << 10), ("1 MiB", 1 << 20)];

/// All cases; `runs` of each system in turn.
pub(crate) fn run(bin: &Path, size: u64, runs: usize) -> Result<Vec<Value>> {
    let case = Case {
        links: vec![Link::UNSHAPED; 2],
        ..Case::equal(1, 0, size)
    };
    let dir = tempfile::tempdir().map_err(|e| Failed::at("a temporary directory", e))?;
    let net = Net::new(&case.links)?;
    let ours = [System::DragonflyPlaintext, System::DragonflyTls];
    let bed = Bed::new(&net, &case, dir.path(), bin, Path::new("python3"), &ours)?;
    for (name, bytes) in SIZES {
        for n in 0..SMALL.max(if bytes == SIZES[0].1 { TASKS } else { 0 }) {
            let path = bed.dir.join("www").join(small(name, n));
            sample::random(&path, bytes, fastrand::u64(..))?;
        }
    }
    // Idle is idle only once start-up is over.
    std::thread::sleep(Duration::from_secs(3));
    let idle: Vec<f64> = bed.meshes.iter().map(|m| resident(m, "VmRSS")).collect();
    let throughput = throughput(&bed, size, runs)?;
    let transfer: Vec<f64> = bed.meshes.iter().map(|m| resident(m, "VmHWM")).collect();
    let small = small_files(&bed)?;
    let memory = bed.meshes.iter().enumerate().map(|(n, mesh)| {
        many_tasks(&bed, mesh)?;
        let row = json!({
            "idle_mib": idle[n],
            "peak_after_transfer_mib": transfer[n],
            "with_200_tasks_mib": resident(mesh, "VmRSS"),
        });
        Ok(json!({"system": mesh.system().name(), "runs": [row], "median": row}))
    });
    let memory: Vec<Value> = memory.collect::<Result<_>>()?;
    Ok(vec![
        json!({
            "case": "One warm parent to one child", "peers": 1, "rate_mbit": 0, "size_bytes": size,
            "about": "no shaping, every block checked (BLAKE3), written to a file (its client's own copy, or by `--hard-link` the node's); files lie on a disk that nobody else writes to; CPU is of both ends",
            "systems": throughput,
        }),
        json!({
            "case": "Small files", "peers": 1, "rate_mbit": 0, "size_bytes": SIZES[1].1,
            "about": "`get` from a node that fetches from a warm peer, beside curl from the origin; milliseconds",
            "systems": small,
        }),
        json!({
            "case": "Memory of a node", "peers": 1, "rate_mbit": 0, "size_bytes": size,
            "about": "resident, of the node that receives",
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

/// Runs a client to its end: seconds.
pub(crate) fn get(bed: &Bed<'_>, mesh: &Mesh, node: usize, path: &str, out: &Path) -> Result<f64> {
    get_as(bed, mesh, (node, path, out), &[])
}

fn get_as(
    bed: &Bed<'_>,
    mesh: &Mesh,
    (node, path, out): (usize, &str, &Path),
    options: &[&str],
) -> Result<f64> {
    let mut c = bed.net.command(node, &bed.bin);
    c.args(["get", "--quiet"]).args(options);
    c.arg("--socket").arg(&mesh.sockets[node]);
    c.arg("-O").arg(out);
    c.arg(format!("http://{}:8080/{path}", bed.net.ip(0)));
    timed(&mut c)
}

pub(crate) fn curl(bed: &Bed<'_>, path: &str, out: &Path) -> Result<f64> {
    let mut c = bed.net.command(1, Path::new("curl"));
    c.arg("-sfo").arg(out);
    c.arg(format!("http://{}:8080/{path}", bed.net.ip(0)));
    timed(&mut c)
}

fn timed(command: &mut std::process::Command) -> Result<f64> {
    let started = Instant::now();
    let status = command.status().map_err(|e| Failed::at("a client", e))?;
    if !status.success() {
        return Err(Failed::at(format!("{command:?}"), status));
    }
    Ok(started.elapsed().as_secs_f64())
}

fn throughput(bed: &Bed<'_>, size: u64, runs: usize) -> Result<Vec<Value>> {
    let gib = size as f64 / f64::from(1 << 30);
    let out = bed.dir.join("out");
    let mut rows = Rows::default();
    let outputs: [(&str, &[&str]); 2] = [("", &[]), (", hard link", &["--hard-link"])];
    let ways = bed.meshes.iter();
    let ways: Vec<_> = ways
        .flat_map(|m| outputs.map(|(output, options)| (m, output, options)))
        .collect();
    for run in 0..runs.max(1) {
        for &(mesh, output, options) in &ways {
            let name = format!("{}{output}", mesh.system().name());
            let path = format!("run-io-{}-{run}", name.replace([',', ' '], ""));
            get(bed, mesh, 0, &path, &out)?;
            let _ = fs::remove_file(&out);
            quiet(bed, size)?;
            let spent = || -> f64 {
                mesh.nodes.iter().map(|n| usage::cpu(n.id())).sum::<f64>() + usage::ended_children()
            };
            let before = spent();
            let seconds = get_as(bed, mesh, (1, &path, &out), options)?;
            let cpu = spent() - before;
            compare(&bed.digest, &out)?;
            mesh.forget(&bed.bin)?;
            rows.push(&name, row(seconds, cpu / gib, size));
        }
        quiet(bed, size)?;
        let nginx = || bed.origin_cpu() + usage::ended_children();
        let before = nginx();
        let seconds = curl(bed, "content", &out)?;
        let cpu = nginx() - before;
        compare(&bed.digest, &out)?;
        rows.push(HTTP, row(seconds, cpu / gib, size));
    }
    Ok(rows.systems())
}

/// The disk has nothing left to write, and memory is there: touched last, for a virtual machine's host may
/// take back within seconds what lies free.
fn quiet(bed: &Bed<'_>, size: u64) -> Result<()> {
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

fn small_files(bed: &Bed<'_>) -> Result<Vec<Value>> {
    let out = bed.dir.join("out");
    let mut systems = vec![];
    for mesh in &bed.meshes {
        let mut rows = vec![];
        for n in 0..SMALL {
            let mut row = serde_json::Map::new();
            for (size, _) in SIZES {
                let path = small(size, n);
                get(bed, mesh, 0, &path, &out)?;
                let ours = get(bed, mesh, 1, &path, &out)? * 1e3;
                let plain = curl(bed, &path, &out)? * 1e3;
                row.insert(format!("{size}_ms"), json!(ours));
                row.insert(format!("{size}_over_curl_ms"), json!(ours - plain));
            }
            rows.push(Value::Object(row));
        }
        mesh.forget(&bed.bin)?;
        systems.push(json!({
            "system": mesh.system().name(), "median": medians(&rows), "runs": rows,
        }));
    }
    Ok(systems)
}

/// Leaves the child with many tasks in use.
fn many_tasks(bed: &Bed<'_>, mesh: &Mesh) -> Result<()> {
    for batch in 0..TASKS / 20 {
        let mut clients = vec![];
        for n in batch * 20..(batch + 1) * 20 {
            let mut c = bed.net.command(1, &bed.bin);
            c.args(["get", "--quiet", "--socket"]).arg(&mesh.sockets[1]);
            c.arg("-O").arg(bed.dir.join(format!("out-{n}")));
            let path = small(SIZES[0].0, n);
            c.arg(format!("http://{}:8080/{path}", bed.net.ip(0)));
            // Quiet but for the reason of a failure.
            c.stderr(std::process::Stdio::inherit());
            clients.push(std::cell::RefCell::new(Process::spawn("get", &mut c)?));
        }
        wait_for("a batch of small files", || {
            clients.iter().all(|c| c.borrow_mut().ended().is_some())
        })?;
        for client in clients {
            if let Some(status) = client.into_inner().ended().filter(|s| !s.success()) {
                return Err(Failed::at("a small file", status));
            }
        }
    }
    Ok(())
}
