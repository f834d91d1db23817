//! One warm parent to one child far away: what a long round trip leaves of the speed.

use std::path::Path;
use std::time::Duration;

use dragonfly_e2e::{Failed, Result};
use serde_json::{Value, json};

use crate::bed::{Bed, Others};
use crate::case::Case;
use crate::io::{HTTP, Rows, compare, curl, get};
use crate::net::{Link, Net};
use crate::systems::System;

/// Round trips, milliseconds.
const TRIPS: [u64; 2] = [20, 100];

/// A case for each round trip; `runs` of each system in turn.
pub(crate) fn run(bin: &Path, size: u64, runs: usize) -> Result<Vec<Value>> {
    TRIPS
        .map(|trip| at(bin, size, runs, trip))
        .into_iter()
        .collect()
}

fn at(bin: &Path, size: u64, runs: usize, trip: u64) -> Result<Value> {
    let case = Case {
        links: vec![Link::UNSHAPED; 2],
        ..Case::equal(1, 0, size)
    };
    let dir = tempfile::tempdir().map_err(|e| Failed::at("a temporary directory", e))?;
    let mut net = Net::new(&case.links)?;
    net.far(1, Duration::from_millis(trip) / 2)?;
    let ours = [System::DragonflyPlaintext, System::DragonflyTls];
    let others = Others::default();
    let bed = Bed::new(&net, &case, dir.path(), bin, &others, &ours)?;
    let out = bed.dir.join("out");
    let mut rows = Rows::default();
    let mut done = |name: &str, seconds: f64| {
        compare(&bed.digest, &out)?;
        let mbit = size as f64 * 8.0 / seconds / 1e6;
        rows.push(name, json!({"mbit_s": mbit, "wall_s": seconds}));
        Ok(())
    };
    for run in 0..runs.max(1) {
        for mesh in &bed.meshes {
            let name = mesh.system().name();
            let path = format!("run-far-{name}-{run}");
            get(&bed, mesh, 0, &path, &out)?;
            let _ = std::fs::remove_file(&out);
            done(name, get(&bed, mesh, 1, &path, &out)?)?;
            mesh.forget(&bed.bin)?;
        }
        done(HTTP, curl(&bed, "content", &out)?)?;
    }
    Ok(json!({
        "case": format!("A child far away, {trip} ms"), "peers": 1, "rate_mbit": 0, "size_bytes": size,
        "about": format!(
            "one warm parent, a round trip of {trip} ms and {} MiB; nothing is shaped, the way itself carries \
             what a program that forwards each packet can",
            size >> 20
        ),
        "systems": rows.systems(),
    }))
}
