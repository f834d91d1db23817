//! A cluster's processes, found by their cgroup: that is how they are all ended, those too that
//! containers made, by whoever comes after a killed harness.
//!
//! Where the system has cgroup v1 hierarchies, `pids` is the one that counts; containers get a
//! directory of the same name in each of the others, which is only removed.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use dragonfly_e2e::{Failed, Result};

/// The directory of all clusters, in each hierarchy.
const ALL: &str = "dragonfly-e2e";
const MOUNTS: &str = "/sys/fs/cgroup";
/// How long ending processes and removing their groups may take.
const LIMIT: Duration = Duration::from_secs(20);

/// The cgroups of one cluster.
#[derive(Debug, Clone)]
pub(crate) struct Cgroup {
    /// As the kernel names it: from a hierarchy's root.
    path: String,
    /// Where the counting hierarchy is mounted.
    counting: PathBuf,
    /// All hierarchies.
    mounts: Vec<PathBuf>,
}

impl Cgroup {
    /// The cgroups of the cluster of that number; nothing is made.
    pub(crate) fn of(number: u8) -> Result<Self> {
        let root = Path::new(MOUNTS);
        let (counting, mounts) = if root.join("cgroup.controllers").exists() {
            (root.to_owned(), vec![root.to_owned()])
        } else {
            let all = fs::read_dir(root).map_err(|e| Failed::at(MOUNTS, e))?;
            let dirs: Vec<_> = all
                .flatten()
                .map(|e| e.path())
                .filter(|p| p.is_dir())
                .collect();
            let counting = root.join("pids");
            if !counting.join("cgroup.procs").exists() {
                return Err(Failed::at(
                    counting.display(),
                    "is no cgroup hierarchy: mount cgroups before starting clusters",
                ));
            }
            (counting, dirs)
        };
        Ok(Self {
            path: format!("/{ALL}/{number}"),
            counting,
            mounts,
        })
    }

    /// Makes the groups that processes start in.
    pub(crate) fn make(&self) -> Result<()> {
        let dir = self.dir(&self.counting).join("daemons");
        fs::create_dir_all(&dir).map_err(|e| Failed::at(dir.display(), e))
    }

    /// The file that a daemon writes itself into.
    pub(crate) fn procs(&self) -> PathBuf {
        self.dir(&self.counting).join("daemons/cgroup.procs")
    }

    /// What containers of a node are put below, as the kernel names it.
    pub(crate) fn of_node(&self, node: usize) -> String {
        format!("{}/node-{node}", self.path)
    }

    /// Makes the groups of a node, in every hierarchy: kubelet wants to find its root.
    pub(crate) fn make_node(&self, node: usize) -> Result<()> {
        for mount in &self.mounts {
            let mut dir = mount.clone();
            for name in Path::new(self.of_node(node).trim_start_matches('/')) {
                let above = dir.clone();
                dir.push(name);
                fs::create_dir_all(&dir).map_err(|e| Failed::at(dir.display(), e))?;
                // Of v1's processors and memory a new group has none, and then takes no process.
                for file in ["cpuset.cpus", "cpuset.mems"] {
                    let given = fs::read_to_string(above.join(file)).unwrap_or_default();
                    if !given.trim().is_empty() {
                        let to = dir.join(file);
                        fs::write(&to, given).map_err(|e| Failed::at(to.display(), e))?;
                    }
                }
            }
        }
        Ok(())
    }

    fn dir(&self, mount: &Path) -> PathBuf {
        mount.join(self.path.trim_start_matches('/'))
    }

    /// Processes of the cluster that still run.
    pub(crate) fn processes(&self) -> Vec<i32> {
        let mut found = vec![];
        for dir in tree(&self.dir(&self.counting)) {
            let listed = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
            found.extend(listed.lines().filter_map(|l| l.trim().parse::<i32>().ok()));
        }
        found
    }

    /// The numbers of clusters that have a group here.
    pub(crate) fn numbers() -> Vec<u8> {
        let Ok(of_any) = Self::of(0) else {
            return vec![];
        };
        let all = fs::read_dir(of_any.counting.join(ALL));
        let names = all.into_iter().flatten().flatten().map(|e| e.file_name());
        names
            .filter_map(|name| name.to_str()?.parse().ok())
            .collect()
    }

    /// Ends every process of the cluster, and removes its groups. `reap` is called between looks.
    pub(crate) fn clear(&self, mut reap: impl FnMut()) -> Result<()> {
        let until = Instant::now() + LIMIT;
        loop {
            let left = self.processes();
            left.iter().for_each(|&id| self.kill(id));
            self.thaw();
            reap();
            if left.is_empty() && self.remove() {
                return Ok(());
            }
            if Instant::now() > until {
                return Err(Failed::at(
                    self.dir(&self.counting).display(),
                    format!("processes {left:?} or their cgroups do not go away"),
                ));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Ends a process, if it still is one of ours: ids are used again.
    fn kill(&self, id: i32) {
        let Some(pid) = Pid::from_raw(id) else { return };
        // The descriptor is of the process that has the id now; only then do we ask whose it is.
        let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else {
            return;
        };
        let groups = fs::read_to_string(format!("/proc/{id}/cgroup")).unwrap_or_default();
        let ours = groups.lines().any(|line| {
            let group = line.splitn(3, ':').nth(2).unwrap_or_default();
            group
                .strip_prefix(&self.path)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        });
        if ours {
            let _ = pidfd_send_signal(process, Signal::KILL);
        }
    }

    /// Lets what is frozen go on: a frozen process of a v1 hierarchy does not even die. Whoever freezes
    /// a container to end it, as runc does, may have been killed before it let go.
    fn thaw(&self) {
        for dir in tree(&self.dir(&Path::new(MOUNTS).join("freezer"))) {
            let _ = fs::write(dir.join("freezer.state"), "THAWED");
        }
    }

    /// Removes the groups; false while one is in use.
    fn remove(&self) -> bool {
        let mut gone = true;
        for mount in &self.mounts {
            let mut dirs = tree(&self.dir(mount));
            dirs.reverse();
            for dir in dirs {
                gone &= fs::remove_dir(&dir).is_ok() || !dir.exists();
            }
            // The last cluster takes the directory of all with it.
            let _ = fs::remove_dir(mount.join(ALL));
        }
        gone
    }
}

/// A directory and those below it, parents first; nothing where there is none.
fn tree(dir: &Path) -> Vec<PathBuf> {
    let mut all = vec![];
    let mut next = vec![dir.to_owned()];
    while let Some(dir) = next.pop() {
        if !dir.is_dir() {
            continue;
        }
        let below = fs::read_dir(&dir).into_iter().flatten().flatten();
        next.extend(below.map(|e| e.path()).filter(|p| p.is_dir()));
        all.push(dir);
    }
    all
}
