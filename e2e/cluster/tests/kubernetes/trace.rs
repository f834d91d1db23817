//! What there is of a cluster on this machine, and what is left of it afterwards.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a cluster may take to go once nobody wants it.
const LIMIT: Duration = Duration::from_secs(60);
const KINDS: [&str; 7] = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"];

/// A process, told apart from a later one with the same id.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Process {
    id: i32,
    /// In ticks since the machine's start.
    began: u64,
}

/// A cluster, and what was seen of it while it ran.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) number: u8,
    dir: PathBuf,
    /// Who holds it: another cluster may have its number a moment later.
    pub(crate) supervisor: i32,
    /// When it began, as processes' beginnings are counted.
    began: Option<u64>,
    processes: BTreeSet<Process>,
    /// As links to them read: `net:[4026532008]`.
    namespaces: BTreeSet<String>,
    /// Words of command lines that nothing else has.
    pub(crate) marks: Vec<String>,
}

impl Seen {
    /// The cluster of a directory, as it is now.
    pub(crate) fn at(dir: &Path) -> Self {
        let number = dir.file_name().and_then(|n| n.to_str()).unwrap();
        let mut seen = Self {
            number: number.parse().unwrap(),
            dir: dir.to_owned(),
            supervisor: holder(dir).unwrap(),
            began: began(holder(dir).unwrap()),
            processes: BTreeSet::new(),
            namespaces: BTreeSet::new(),
            marks: vec![],
        };
        seen.look();
        seen
    }

    /// The cluster that a process started by way of its child, once it has a number.
    pub(crate) fn started_by(harness: u32) -> Self {
        let until = Instant::now() + LIMIT;
        loop {
            let held = fs::read_dir("/var/lib/dragonfly-e2e").into_iter().flatten();
            for dir in held.flatten().map(|e| e.path()) {
                let guard = holder(&dir).map_or(0, parent);
                if guard != 0 && u32::try_from(parent(guard)).is_ok_and(|id| id == harness) {
                    return Self::at(&dir);
                }
            }
            assert!(Instant::now() < until, "{harness} starts no cluster");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// The process that guards its supervisor.
    pub(crate) fn guard(&self) -> i32 {
        parent(self.supervisor)
    }

    /// Takes in what there is of it now.
    pub(crate) fn look(&mut self) {
        let here = std::process::id().try_into().unwrap();
        let ours: BTreeSet<_> = KINDS.iter().map(|kind| namespace(here, kind)).collect();
        for id in self.members(false) {
            let own = KINDS.iter().map(|kind| namespace(id, kind));
            self.namespaces
                .extend(own.filter(|own| !own.is_empty() && !ours.contains(own)));
            self.processes
                .extend(began(id).map(|began| Process { id, began }));
        }
    }

    /// Processes in its cgroups; those of its daemons alone, or of its containers too.
    pub(crate) fn members(&self, daemons_alone: bool) -> Vec<i32> {
        let daemons = format!("/dragonfly-e2e/{}/daemons", self.number);
        let wanted = |id: &i32| {
            if daemons_alone {
                groups(*id).iter().any(|(_, group)| *group == daemons)
            } else {
                self.is_member(*id)
            }
        };
        processes().filter(wanted).collect()
    }

    fn is_member(&self, id: i32) -> bool {
        let own = format!("/dragonfly-e2e/{}", self.number);
        let below = format!("{own}/");
        let inside = |group: &String| *group == own || group.starts_with(&below);
        groups(id).iter().any(|(_, group)| inside(group))
    }

    /// What there still is: processes, namespaces that something holds, mounts, cgroups, interfaces,
    /// routes, files.
    pub(crate) fn left(&self) -> BTreeSet<String> {
        let mut left = BTreeSet::new();
        let its_own = !self.dir.exists() || holder(&self.dir) == Some(self.supervisor);
        for id in processes() {
            for why in self.traces_of(id, its_own) {
                left.insert(format!("process {id} {}: {why}", command_line(id)));
            }
        }
        if !its_own {
            // Its number is another's by now, and so is what has that number in its name.
            return left;
        }
        for hierarchy in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
            let path = hierarchy
                .path()
                .join(format!("dragonfly-e2e/{}", self.number));
            if path.exists() {
                left.insert(path.display().to_string());
            }
        }
        for path in [
            self.dir.clone(),
            format!("/sys/class/net/dfe2e{}", self.number).into(),
        ] {
            if path.exists() {
                left.insert(path.display().to_string());
            }
        }
        let prefix = format!("10.{}.", 160 + u16::from(self.number));
        let routes = std::process::Command::new("ip")
            .args(["route", "show", "table", "all"])
            .output();
        let routes = String::from_utf8(routes.unwrap().stdout).unwrap();
        let into = routes.lines().filter(|line| line.contains(&prefix));
        left.extend(into.map(|line| format!("route {line}")));
        left
    }

    fn traces_of(&self, id: i32, its_own: bool) -> Vec<String> {
        let mut why = vec![];
        if began(id) < self.began {
            // It was there before the cluster.
            return why;
        }
        let line = command_line(id);
        if began(id).is_some_and(|began| self.processes.contains(&Process { id, began })) {
            why.push("was one of the cluster's".to_owned());
        }
        // This test's own process names the marks nowhere, nor does its cluster's harness.
        why.extend(self.marks.iter().filter(|m| line.contains(*m)).cloned());
        if its_own {
            if self.is_member(id) {
                why.push("is in its cgroup".to_owned());
            }
            for what in ["root", "cwd", "exe"] {
                let to = fs::read_link(format!("/proc/{id}/{what}")).unwrap_or_default();
                if to.starts_with(&self.dir) {
                    why.push(format!("its {what} is {}", to.display()));
                }
            }
            if line.contains(&format!("{}/", self.dir.display())) {
                why.push("names the cluster's directory".to_owned());
            }
        }
        // The kernel gives numbers of namespaces again: what another cluster has now is that one's.
        if groups(id)
            .iter()
            .any(|(_, g)| g.starts_with("/dragonfly-e2e/"))
            && !(its_own && self.is_member(id))
        {
            return why;
        }
        let own = KINDS.iter().map(|kind| namespace(id, kind));
        why.extend(own.filter(|own| self.namespaces.contains(own)));
        let files = fs::read_dir(format!("/proc/{id}/fd")).into_iter().flatten();
        let links = files.flatten().filter_map(|f| fs::read_link(f.path()).ok());
        let held = links.map(|to| to.display().to_string());
        why.extend(
            held.filter(|to| self.namespaces.contains(to))
                .map(|to| format!("has {to} open")),
        );
        let mounts = fs::read_to_string(format!("/proc/{id}/mountinfo")).unwrap_or_default();
        let dir = format!("{}/", self.dir.display());
        let names = |line: &&str| {
            its_own && line.contains(&dir)
                || line
                    .split_whitespace()
                    .any(|word| self.namespaces.contains(word))
        };
        why.extend(
            mounts
                .lines()
                .find(names)
                .map(|line| format!("mount {line}")),
        );
        why
    }

    /// Waits until nothing is left.
    ///
    /// # Panics
    /// Something stays.
    pub(crate) fn is_gone(&self) {
        let until = Instant::now() + LIMIT;
        loop {
            let left = self.left();
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < until, "left behind: {left:#?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// All processes of this machine.
pub(crate) fn processes() -> impl Iterator<Item = i32> {
    let all = fs::read_dir("/proc").unwrap().flatten();
    all.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// A process's command line, words apart by spaces; empty for a zombie.
pub(crate) fn command_line(id: i32) -> String {
    let line = fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&line).replace('\0', " ")
}

/// The cgroups that a process is in: hierarchy and group.
pub(crate) fn groups(id: i32) -> Vec<(String, String)> {
    let text = fs::read_to_string(format!("/proc/{id}/cgroup")).unwrap_or_default();
    let parts = |line: &str| {
        let mut parts = line.splitn(3, ':').skip(1).map(str::to_owned);
        Some((parts.next()?, parts.next()?))
    };
    text.lines().filter_map(parts).collect()
}

fn namespace(id: i32, kind: &str) -> String {
    let link = fs::read_link(format!("/proc/{id}/ns/{kind}")).unwrap_or_default();
    link.display().to_string()
}

/// The words of a process's `stat` after its name, which may have spaces and brackets itself.
fn stat(id: i32) -> Vec<String> {
    let text = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    let rest = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    rest.split_whitespace().map(str::to_owned).collect()
}

fn began(id: i32) -> Option<u64> {
    stat(id).get(19)?.parse().ok()
}

fn parent(id: i32) -> i32 {
    let parent = stat(id).get(1).and_then(|id| id.parse().ok());
    parent.unwrap_or_default()
}

fn holder(dir: &Path) -> Option<i32> {
    let file = fs::read_to_string(dir.join("supervisor")).ok()?;
    file.trim().parse().ok()
}
