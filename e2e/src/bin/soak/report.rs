//! What a soak saw, as a table, and whether that is good.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use dragonfly_e2e::mesh::Mesh;
use indicatif::HumanBytes;

use crate::faults::Seen;
use crate::load::Tally;

/// No node has more resident memory, MiB: the aim for one with 200 tasks.
const MEMORY: f64 = 256.0;
/// Memory at the end may be so much more than in the middle, and a node counts as flat.
const GROWTH: (f64, f64) = (1.5, 24.0);
/// No member has more files open at once.
const FILES: usize = 2000;
const ENDS: Duration = Duration::from_secs(15);

pub(crate) struct Report {
    pub(crate) seed: u64,
    pub(crate) took: Duration,
    pub(crate) seen: Seen,
    pub(crate) results: Tally,
    /// What came when everything had to come.
    pub(crate) calm: Tally,
    /// What was wrong when all were asked to end.
    pub(crate) ends: Vec<String>,
    /// Bytes the origin sent.
    pub(crate) sent: u64,
    /// Faults that could not come here, and why.
    pub(crate) absent: Vec<&'static str>,
}

/// Asks all members to end in good order, and looks at what they leave.
pub(crate) async fn ends(mesh: &mut Mesh) -> Vec<String> {
    let mut wrong = vec![];
    let members = mesh.peers.iter_mut().chain(&mut mesh.seeds);
    for member in members.chain(std::iter::once(&mut mesh.scheduler)) {
        if let Err(e) = member.terminate(ENDS).await {
            wrong.push(e.to_string());
        }
        let said = member.said();
        wrong.extend(
            said.lines()
                .filter(|line| line.contains("panicked at"))
                .map(|line| format!("{}: {line}", member.name)),
        );
    }
    let left = std::fs::read_dir(&mesh.work)
        .into_iter()
        .flatten()
        .flatten();
    let left = left.map(|e| e.file_name().to_string_lossy().into_owned());
    // A client that was killed leaves its unfinished file for the next; anything else is litter.
    wrong.extend(
        left.filter(|name| !name.ends_with(".part"))
            .map(|name| format!("{name} is left where clients write")),
    );
    wrong
}

impl Report {
    /// Prints all; whether it is good. The mesh is gone by now.
    pub(crate) fn print(&self, dir: &Path) -> bool {
        let mut wrong: Vec<String> = self.results.wrong.clone();
        wrong.extend(self.calm.wrong.iter().map(|w| format!("at the end: {w}")));
        wrong.extend(
            self.seen
                .ended
                .iter()
                .map(|e| format!("ended by itself: {e}")),
        );
        wrong.extend(self.ends.iter().cloned());
        wrong.extend(self.memory());
        if dir.exists() {
            wrong.push(format!("{} is left", dir.display()));
        }
        wrong.extend(left_over(dir));

        let faults: u64 = self.seen.faults.values().sum();
        println!(
            "\nsoak: {:.0} s, seed {}\n",
            self.took.as_secs_f64(),
            self.seed
        );
        table("fault", &self.seen.faults);
        println!("{:>40}  {faults}", "all faults");
        for absent in &self.absent {
            println!("{:>40}  not here", absent);
        }
        let r = &self.results;
        let errors: u64 = r.errors.values().sum();
        println!();
        println!("{:>40}  {}", "downloads with the right bytes", r.right);
        println!("{:>40}  {}", "bytes to clients", HumanBytes(r.bytes));
        println!("{:>40}  {}", "bytes from the origin", HumanBytes(self.sent));
        println!("{:>40}  {}", "clients killed", r.killed);
        println!("{:>40}  {errors}", "downloads with an error that says why");
        println!("{:>40}  {:.1} s", "the slowest", r.slowest.as_secs_f64());
        println!(
            "{:>40}  {}",
            "right at the end, when all has to be", self.calm.right
        );
        if errors > 0 {
            println!();
            table("errors said", &r.errors);
        }
        println!(
            "\n{:>40}  most MiB resident, by tenths of the time",
            "member"
        );
        for (name, most) in &self.seen.memory {
            let most: Vec<_> = most.iter().map(|m| format!("{m:.0}")).collect();
            let files = self.seen.files.get(name).copied().unwrap_or_default();
            println!("{name:>40}  {}; {files} files", most.join(" "));
        }
        println!("\n{:>40}  {}", "WRONG", wrong.len());
        wrong.iter().take(50).for_each(|w| println!("  {w}"));
        let nothing_done = r.right == 0 || faults == 0;
        if nothing_done {
            println!("  nothing was shown: no download or no fault");
        }
        wrong.is_empty() && !nothing_done
    }

    fn memory(&self) -> Vec<String> {
        let mut wrong = vec![];
        for (name, most) in &self.seen.memory {
            let peak = most.iter().copied().fold(0.0, f64::max);
            if peak > MEMORY {
                wrong.push(format!("{name} had {peak:.0} MiB"));
            }
            let half = most.len() / 2;
            let (first, last) = most.split_at(half.min(most.len()));
            let of = |part: &[f64]| part.iter().copied().fold(0.0, f64::max);
            let bound = of(first) * GROWTH.0 + GROWTH.1;
            if half > 0 && of(last) > bound {
                let (first, last) = (of(first), of(last));
                wrong.push(format!(
                    "{name} grew: {first:.0} MiB in the first half, then {last:.0}"
                ));
            }
        }
        for (name, most) in &self.seen.files {
            if *most > FILES {
                wrong.push(format!("{name} had {most} files open"));
            }
        }
        wrong
    }
}

/// Processes that still name the mesh's directory.
fn left_over(dir: &Path) -> Vec<String> {
    let own = std::process::id().to_string();
    let named = dir.display().to_string();
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = all.map(|e| e.file_name().to_string_lossy().into_owned());
    let others = ids.filter(|id| *id != own && id.bytes().all(|b| b.is_ascii_digit()));
    others
        .filter_map(|id| {
            let line = std::fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            line.contains(&named)
                .then(|| format!("process {id} is left: {line}"))
        })
        .collect()
}

fn table<K: std::fmt::Display>(title: &str, rows: &BTreeMap<K, u64>) {
    println!("{title:>40}  times");
    for (name, times) in rows {
        println!("{name:>40}  {times}");
    }
}
