//! Whose a cluster's number, directory and network are. Whoever holds the lock on the directory owns
//! them; a directory that nobody has locked was left by a supervisor that was killed.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use dragonfly_e2e::{Failed, Result};

use super::Info;
use super::machines::host_interface;
use crate::cgroup::Cgroup;
use crate::options::IpFamily;
use crate::plan::{MOST_CLUSTERS, Plan};

/// The directories of all clusters. Not below `/run` or `/tmp`: images are unpacked here.
pub(crate) const HOME: &str = "/var/lib/dragonfly-e2e";
const INFO: &str = "info.json";
const SUPERVISOR: &str = "supervisor";
const KEPT: &str = "kept";
/// How long a supervisor may take to end.
const ENDS: Duration = Duration::from_secs(30);

/// A number of one's own.
pub(super) struct Claim {
    pub(super) plan: Plan,
    pub(super) dir: PathBuf,
    pub(super) cgroup: Cgroup,
    _lock: File,
}

impl Claim {
    /// Takes the first number that is free, after removing what killed supervisors left.
    pub(super) fn new(family: IpFamily) -> Result<Self> {
        sweep_all(|| ())?;
        let routes = routes()?;
        for number in 0..MOST_CLUSTERS {
            let plan = Plan { number, family };
            let dir = dir_of(number);
            fs::create_dir_all(HOME).map_err(|e| Failed::at(HOME, e))?;
            if routes.contains(&plan.prefix()) || fs::create_dir(&dir).is_err() {
                continue;
            }
            // Between the two a sweep may have had it: then it is not ours.
            let Some(lock) = lock(&dir) else { continue };
            let id = std::process::id().to_string();
            let file = dir.join(SUPERVISOR);
            fs::write(&file, id).map_err(|e| Failed::at(file.display(), e))?;
            return Ok(Self {
                plan,
                dir,
                cgroup: Cgroup::of(number)?,
                _lock: lock,
            });
        }
        Err(Failed(format!(
            "all {MOST_CLUSTERS} numbers of clusters are taken: `cluster status` lists them, \
             `cluster down` ends them"
        )))
    }

    /// Ends all and removes all.
    pub(super) fn release(self, reap: impl FnMut()) -> Result<()> {
        remove(self.plan.number, &self.cgroup, reap)
    }
}

/// A cluster of this machine.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) number: u8,
    /// None while it starts.
    pub(crate) info: Option<Info>,
    /// It outlives who started it.
    pub(crate) kept: bool,
}

impl Held {
    /// Has its supervisor take it down, and waits until it is gone.
    pub(crate) fn end(&self) -> Result<()> {
        let dir = dir_of(self.number);
        let file = dir.join(SUPERVISOR);
        let id = fs::read_to_string(&file)
            .ok()
            .and_then(|id| id.trim().parse().ok());
        let pid = id.and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| Failed::at(file.display(), "does not say who holds it"))?;
        if let Ok(process) = pidfd_open(pid, PidfdFlags::empty())
            && lock(&dir).is_none()
        {
            // Still locked after the descriptor was made: it is of the process that locked it.
            let _ = pidfd_send_signal(process, Signal::TERM);
        }
        let until = Instant::now() + ENDS;
        while dir.exists() {
            if lock(&dir).is_some() {
                sweep_all(|| ())?;
            }
            if Instant::now() > until {
                return Err(Failed::at(
                    dir.display(),
                    format!("process {pid} does not take it down; end it, and try again"),
                ));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

/// The clusters that run.
pub(crate) fn held() -> Vec<Held> {
    let taken = numbers().filter(|n| lock(&dir_of(*n)).is_none() && dir_of(*n).exists());
    let read = |number| fs::read(dir_of(number).join(INFO)).ok();
    taken
        .map(|number| Held {
            number,
            kept: dir_of(number).join(KEPT).exists(),
            info: read(number).and_then(|bytes| serde_json::from_slice(&bytes).ok()),
        })
        .collect()
}

/// Removes what supervisors left that were killed. `reap` is called between looks.
pub(crate) fn sweep_all(mut reap: impl FnMut()) -> Result<()> {
    // A directory may have been removed by hand, and what it stood for be there still.
    let groups = Cgroup::numbers().into_iter();
    for number in groups.filter(|number| !dir_of(*number).exists()) {
        let dir = dir_of(number);
        fs::create_dir_all(&dir).map_err(|e| Failed::at(dir.display(), e))?;
    }
    for number in numbers() {
        let dir = dir_of(number);
        let Some(_lock) = lock(&dir) else { continue };
        remove(number, &Cgroup::of(number)?, &mut reap)?;
    }
    Ok(())
}

pub(super) fn write_info(dir: &Path, info: &Info) -> Result<()> {
    let path = dir.join(INFO);
    let text = serde_json::to_vec_pretty(info).map_err(|e| Failed::at(path.display(), e))?;
    let making = dir.join("info.making");
    let written = fs::write(&making, text).and_then(|()| fs::rename(&making, &path));
    written.map_err(|e| Failed::at(path.display(), e))
}

/// Marks a cluster as one that outlives who started it.
pub(super) fn keep(dir: &Path) -> Result<()> {
    let path = dir.join(KEPT);
    fs::write(&path, "").map_err(|e| Failed::at(path.display(), e))
}

fn dir_of(number: u8) -> PathBuf {
    Path::new(HOME).join(number.to_string())
}

fn numbers() -> impl Iterator<Item = u8> {
    let listed = fs::read_dir(HOME).into_iter().flatten().flatten();
    listed.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The lock on a directory, if nobody else has it and the directory is still that one.
fn lock(dir: &Path) -> Option<File> {
    let file = File::open(dir).ok()?;
    flock(&file, FlockOperation::NonBlockingLockExclusive).ok()?;
    let (locked, there) = (file.metadata().ok()?, fs::metadata(dir).ok()?);
    (locked.ino() == there.ino()).then_some(file)
}

fn remove(number: u8, cgroup: &Cgroup, reap: impl FnMut()) -> Result<()> {
    cgroup.clear(reap)?;
    // It goes with the namespace of its other end, a moment later; the next cluster may be faster.
    let _ = Command::new("ip")
        .args(["link", "del", &host_interface(number)])
        .output();
    let dir = dir_of(number);
    fs::remove_dir_all(&dir).map_err(|e| Failed::at(dir.display(), e))?;
    // The last one takes the directory of all with it.
    let _ = fs::remove_dir(HOME);
    Ok(())
}

/// What this machine has routes to.
fn routes() -> Result<String> {
    let out = Command::new("ip")
        .args(["-4", "route", "show", "table", "all"])
        .output();
    let out = out.map_err(|e| Failed::at("ip", e))?;
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}
