//! How cost grows: with the size of a content, and with the number of contents.

use std::fs;
use std::ops::Range;
use std::path::Path;

use dragonfly_e2e::{Failed, Result, sample};
use serde_json::{Value, json};

use crate::bed::{Bed, Others};
use crate::case::Case;
use crate::io::{AT_ONCE, Rows, at_once, command, compare, quiet, timed};
use crate::net::{Link, Net};
use crate::place;
use crate::systems::{Mesh, System};
use crate::usage;

/// MiB of one content.
const SIZES: [u64; 5] = [1, 16, 64, 256, 1024];
/// MiB of each size at least, in so many contents: processor time is counted in hundredths of a second.
const AT_LEAST: u64 = 256;
/// Contents that a node has got at the end of each step.
const CONTENTS: [usize; 4] = [10, 100, 1000, 4000];
/// Bytes of each of those.
const SMALL: u64 = 64 << 10;

/// Both cases, `runs` of each system and size in turn.
pub(crate) fn run(bin: &Path, runs: usize) -> Result<Vec<Value>> {
    let failed = |e| Failed::at("a temporary directory", e);
    let all = CONTENTS[CONTENTS.len() - 1] as u64 * SMALL;
    // In memory: an ext4 on which many files were deleted in the last minutes looks long for a free inode.
    let (memory, disk) = (place(&unshaped(all)).map_err(failed)?, tempfile::tempdir());
    Ok(vec![
        within(memory.path(), bin, by_number)?,
        within(disk.map_err(failed)?.path(), bin, |bed| by_size(bed, runs))?,
    ])
}

/// One parent and one child.
fn unshaped(size: u64) -> Case {
    Case {
        links: vec![Link::UNSHAPED; 2],
        ..Case::equal(1, 0, size)
    }
}

/// A case whose files lie in a directory.
fn within(
    dir: &Path,
    bin: &Path,
    measure: impl FnOnce(&Bed<'_>) -> Result<Value>,
) -> Result<Value> {
    let case = unshaped(SMALL);
    let net = Net::new(&case.links)?;
    let ours = [System::DragonflyPlaintext, System::DragonflyTls];
    let others = Others::default();
    measure(&Bed::new(&net, &case, dir, bin, &others, &ours)?)
}

/// Where the origin has the n-th content of a kind; all of them are one file on disk.
fn path(kind: &str, n: usize) -> String {
    format!("{kind}-{n}")
}

/// Makes `count` contents of one kind; their digest.
fn make(bed: &Bed<'_>, kind: &str, bytes: u64, count: usize) -> Result<String> {
    let at = |n| bed.dir.join("www").join(path(kind, n));
    let sample = sample::random(&at(0), bytes, fastrand::u64(..))?;
    for n in 1..count {
        fs::hard_link(at(0), at(n)).map_err(|e| Failed::at(at(n).display(), e))?;
    }
    Ok(sample.digest)
}

fn by_size(bed: &Bed<'_>, runs: usize) -> Result<Value> {
    let mut rows = Rows::default();
    for mib in SIZES {
        let (kind, count) = (format!("size-{mib}"), AT_LEAST.div_ceil(mib) as usize);
        let digest = make(bed, &kind, mib << 20, count)?;
        for _ in 0..runs {
            for mesh in &bed.meshes {
                let name = format!("{}, {mib} MiB", mesh.system().name());
                rows.push(&name, one_size(bed, mesh, (&kind, &digest), (mib, count))?);
                mesh.forget(&bed.bin)?;
            }
        }
    }
    Ok(json!({
        "case": "Cost by size", "peers": 1, "rate_mbit": 0, "size_bytes": SIZES[0] << 20,
        "about": format!(
            "one warm parent to one child, unshaped, by hard link, contents one after the other and at least {AT_LEAST} MiB of \
             each size; CPU is of both nodes and of the clients"
        ),
        "systems": rows.systems(),
    }))
}

fn one_size(
    bed: &Bed<'_>,
    mesh: &Mesh,
    (kind, digest): (&str, &str),
    (mib, count): (u64, usize),
) -> Result<Value> {
    let out = bed.dir.join("out");
    let get = |node: usize, n: usize| -> Result<f64> {
        let _ = fs::remove_file(&out);
        timed(&mut command(
            bed,
            mesh,
            (node, &path(kind, n), &out),
            &["--hard-link"],
        ))
    };
    for n in 0..count {
        get(0, n)?;
    }
    quiet(bed, (count as u64 * mib) << 20)?;
    let spent = || nodes(mesh) + usage::ended_children();
    let before = spent();
    let mut seconds = 0.0;
    for n in 0..count {
        seconds += get(1, n)?;
        compare(digest, &out)?;
    }
    let gib = (count as u64 * mib) as f64 / 1024.0;
    Ok(json!({
        "cpu_s_per_gib": (spent() - before) / gib,
        "gbit_s": gib * f64::from(1 << 30) * 8.0 / seconds / 1e9,
        "ms_each": seconds * 1e3 / count as f64,
    }))
}

fn by_number(bed: &Bed<'_>) -> Result<Value> {
    let digest = make(bed, "number", SMALL, CONTENTS[CONTENTS.len() - 1])?;
    let mut rows = Rows::default();
    for mesh in &bed.meshes {
        let mut from = 0;
        for to in CONTENTS {
            let name = format!("{}, {to} contents", mesh.system().name());
            rows.push(&name, some_more(bed, mesh, &digest, from..to)?);
            from = to;
        }
    }
    Ok(json!({
        "case": "Cost by number of contents", "peers": 1, "rate_mbit": 0, "size_bytes": SMALL,
        "about": format!(
            "a peer gets contents of {} KiB by its seed from the origin, {AT_ONCE} at once; what each took since the \
             row above, and what is resident then; CPU is without the clients'",
            SMALL >> 10
        ),
        "systems": rows.systems(),
    }))
}

fn some_more(bed: &Bed<'_>, mesh: &Mesh, digest: &str, contents: Range<usize>) -> Result<Value> {
    let scheduler = mesh.scheduler.id();
    let count = contents.len() as f64;
    let before = (nodes(mesh), usage::cpu(scheduler));
    let all: Vec<usize> = contents.collect();
    for batch in all.chunks(AT_ONCE) {
        let paths: Vec<String> = batch.iter().map(|n| path("number", *n)).collect();
        at_once(bed, mesh, &paths)?;
        for n in 0..batch.len() {
            compare(digest, &bed.output(n))?;
        }
    }
    let resident = |id| usage::memory(id, "VmRSS");
    Ok(json!({
        "nodes_cpu_ms_each": (nodes(mesh) - before.0) * 1e3 / count,
        "scheduler_cpu_ms_each": (usage::cpu(scheduler) - before.1) * 1e3 / count,
        "peer_mib": mesh.nodes.get(1).map_or(0.0, |n| resident(n.id())),
        "seed_mib": mesh.nodes.first().map_or(0.0, |n| resident(n.id())),
        "scheduler_mib": resident(scheduler),
    }))
}

/// CPU seconds of the seed and the peer.
fn nodes(mesh: &Mesh) -> f64 {
    mesh.nodes.iter().map(|n| usage::cpu(n.id())).sum()
}
