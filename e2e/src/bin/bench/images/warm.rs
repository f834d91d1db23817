//! One node whose peer holds the image, nothing shaped: what the mirror costs beside the registry.

use std::process::Stdio;
use std::time::Instant;

use dragonfly_e2e::process::Process;
use dragonfly_e2e::{Failed, Result, usage};
use serde_json::{Value, json};

use super::{Bed, MIRROR, REGISTRY, Way};
use crate::bed::prime;
use crate::report::medians;

const NODE: usize = 1;
/// The layer that first bytes are asked of, MiB.
const SMALL: u64 = 1;
/// Requests for first bytes, of each kind.
const FIRST_BYTES: u64 = 2000;
/// Manifests: so many a second, for so many seconds, on so many connections.
const RATE: u64 = 2000;
const SECONDS: u64 = 5;
const CONNECTIONS: [usize; 2] = [1, 64];
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// All three comparisons, of a bed with one peer.
pub(super) fn run(bed: &Bed<'_>, layers: &[u64], runs: usize) -> Result<Vec<Value>> {
    let size = layers.iter().sum::<u64>() << 20;
    let case = |title: &str, about: &str, systems: Vec<Value>| {
        json!({
            "case": title, "about": about, "peers": 1, "rate_mbit": 0, "size_bytes": size,
            "systems": systems,
        })
    };
    let pulls = pulls(bed, layers, runs)?;
    let (first_bytes, manifests) = requests(bed, runs)?;
    Ok(vec![
        case(
            "An image from a warm node",
            "containerd pulls what its node's peer holds, and the same from the registry; nothing is shaped; CPU is of all processes that have a part in it",
            pulls,
        ),
        case(
            "Time to first byte",
            "of a layer of 1 MiB, from a warm mirror and from the registry, by a client on the node that reads each to its end",
            first_bytes,
        ),
        case(
            "Manifests, 2000 asked a second",
            "by digest, on 64 connections for five seconds; times from when each was due",
            manifests,
        ),
    ])
}

type Rows = Vec<(&'static str, Vec<Value>)>;

fn push(rows: &mut Rows, name: &'static str, row: Value) {
    eprintln!("{name}: {row}");
    match rows.iter_mut().find(|(n, _)| *n == name) {
        Some((_, all)) => all.push(row),
        None => rows.push((name, vec![row])),
    }
}

fn systems(rows: Rows) -> Vec<Value> {
    rows.into_iter()
        .map(|(name, rows)| json!({"system": name, "median": medians(&rows), "runs": rows}))
        .collect()
}

fn pulls(bed: &Bed<'_>, layers: &[u64], runs: usize) -> Result<Vec<Value>> {
    let size = layers.iter().sum::<u64>() << 20;
    let gib = size as f64 / f64::from(1 << 30);
    bed.push("warm", layers)?;
    // The peer gets it; containerd does not keep it.
    pull(bed, Way::Mirror)?;
    let mut rows = vec![];
    for _ in 0..runs.clamp(1, 100) {
        for way in [Way::Mirror, Way::Direct] {
            prime(&bed.dir, 3 * size)?;
            let parts = || -> f64 {
                let node = bed.mesh.get(NODE + 1).filter(|_| way == Way::Mirror);
                let all = node
                    .into_iter()
                    .chain(&bed.containerds)
                    .chain([&bed.registry]);
                all.map(|p| usage::cpu(p.id())).sum::<f64>() + usage::ended_children()
            };
            let sent = bed.registry_sent("warm");
            let before = parts();
            let seconds = pull(bed, way)?;
            let cpu = parts() - before;
            let sent = bed.registry_sent("warm") - sent;
            if way == Way::Mirror && sent > size / 2 {
                return Err(Failed::at(
                    "a warm mirror",
                    format!("the registry sent {sent} bytes"),
                ));
            }
            let row = json!({
                "gbit_s": size as f64 * 8.0 / seconds / 1e9, "cpu_s_per_gib": cpu / gib,
                "wall_s": seconds,
            });
            push(&mut rows, way.name(), row);
        }
    }
    Ok(systems(rows))
}

/// Pulls, and has containerd forget it: seconds of the pull.
fn pull(bed: &Bed<'_>, way: Way) -> Result<f64> {
    let name = format!("{REGISTRY}/warm:v1");
    let hosts = bed.hosts(way).display().to_string();
    let began = Instant::now();
    ctr(bed, &["content", "fetch", "--hosts-dir", &hosts, &name])?;
    let seconds = began.elapsed().as_secs_f64();
    ctr(bed, &["images", "rm", "--sync", &name])?;
    Ok(seconds)
}

fn ctr(bed: &Bed<'_>, words: &[&str]) -> Result<()> {
    let mut command = bed.net.command(NODE, std::path::Path::new("ctr"));
    command.arg("-a").arg(bed.socket(NODE)).args(words);
    command.stderr(Stdio::piped());
    let out = command.output().map_err(|e| Failed::at("ctr", e))?;
    if out.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    Err(Failed::at(words.join(" "), said))
}

fn requests(bed: &Bed<'_>, runs: usize) -> Result<(Vec<Value>, Vec<Value>)> {
    let image = bed.push("small", &[SMALL])?;
    let host = bed.net.ip(0);
    let ways = [
        (
            Way::Mirror,
            format!("127.0.0.1:{MIRROR}"),
            format!("?ns={REGISTRY}"),
        ),
        (Way::Direct, format!("{host}:5000"), String::new()),
    ];
    let layer = format!(
        "/v2/small/blobs/{}",
        image.layers.first().cloned().unwrap_or_default()
    );
    let manifest = format!("/v2/small/manifests/{}", image.manifest);
    let (mut first_bytes, mut manifests): (Rows, Rows) = (vec![], vec![]);
    for _ in 0..runs.clamp(1, 100) {
        let mut firsts: Vec<serde_json::Map<String, Value>> = vec![];
        for (way, at, query) in &ways {
            let mut row = serde_json::Map::new();
            for connections in CONNECTIONS {
                let path = format!("{layer}{query}");
                let said = load(bed, at, &path, connections, FIRST_BYTES, 0)?;
                for figure in ["p50_ms", "p99_ms"] {
                    row.insert(
                        format!("{connections}_at_once_{figure}"),
                        said[figure].clone(),
                    );
                }
            }
            firsts.push(row.clone());
            push(&mut first_bytes, way.name(), Value::Object(row));
            let peer = bed.mesh.get(NODE + 1).map_or(0, Process::id);
            let before = usage::cpu(peer);
            let path = format!("{manifest}{query}");
            let mut said = load(bed, at, &path, 64, RATE * SECONDS, RATE)?;
            if *way == Way::Mirror {
                said["peer_cpu_percent"] =
                    json!((usage::cpu(peer) - before) * 1e2 / SECONDS as f64);
            }
            push(&mut manifests, way.name(), said);
        }
        // What the mirror adds.
        if let [mirror, direct] = firsts.as_slice() {
            let added = mirror.iter().map(|(key, ms)| {
                let of = |value: &Value| value.as_f64().unwrap_or(f64::NAN);
                let more = of(ms) - direct.get(key).map_or(f64::NAN, of);
                (key.clone(), json!(more))
            });
            push(&mut first_bytes, "added", Value::Object(added.collect()));
        }
    }
    Ok((systems(first_bytes), systems(manifests)))
}

fn load(
    bed: &Bed<'_>,
    at: &str,
    path: &str,
    connections: usize,
    requests: u64,
    rate: u64,
) -> Result<Value> {
    let this = std::env::current_exe().map_err(|e| Failed::at("bench", e))?;
    let mut command = bed.net.command(NODE, &this);
    command.args(["load", at, path, "--accept", MANIFEST]);
    command.arg("--connections").arg(connections.to_string());
    command.arg("--requests").arg(requests.to_string());
    command.arg("--rate").arg(rate.to_string());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let out = command.output().map_err(|e| Failed::at("load", e))?;
    if !out.status.success() {
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        return Err(Failed::at(path, said));
    }
    let said: Value = serde_json::from_slice(&out.stdout).map_err(|e| Failed::at("load", e))?;
    if said["failed"] != 0 {
        return Err(Failed::at(path, format!("requests failed: {said}")));
    }
    Ok(said)
}
