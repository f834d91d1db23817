//! Disks of a size, for who runs in a mount namespace of its own (see [`crate::links::alone`]).
//!
//! They are mounted where every system has a directory, seen by nobody else, and gone with the
//! namespace: a directory that is mounted on could not be removed by who comes after a kill.

use std::path::Path;
use std::process::Command;

use crate::{Failed, Result};

const HOME: &str = "/mnt";
/// As the table of mounts calls them.
const NAME: &str = "dragonfly-e2e";

/// Has a path, at which nothing is yet, lead to a file system of its own of so many MiB.
///
/// # Errors
/// It cannot be mounted, as without root or outside a mount namespace of one's own.
pub fn small(at: &Path, mib: u64) -> Result<()> {
    let wrong = |e| Failed::at(at.display(), e);
    let name = at.file_name().unwrap_or_default();
    let home = Path::new(HOME);
    let disk = home.join(name);
    // The first one first hides what the machine has there.
    let ours = std::fs::read_to_string("/proc/self/mounts").map_err(wrong)?;
    if !ours.contains(&format!("{NAME} {HOME} ")) {
        mount(home, 1)?;
    }
    std::fs::create_dir(&disk).map_err(wrong)?;
    mount(&disk, mib)?;
    std::os::unix::fs::symlink(&disk, at).map_err(wrong)
}

fn mount(at: &Path, mib: u64) -> Result<()> {
    let size = format!("size={mib}m,mode=700");
    let mut command = Command::new("mount");
    command.args(["-t", "tmpfs", "-o", &size, NAME]).arg(at);
    let out = command.output().map_err(|e| Failed::at("mount", e))?;
    if out.status.success() {
        return Ok(());
    }
    Err(Failed::at(
        at.display(),
        String::from_utf8_lossy(&out.stderr),
    ))
}
