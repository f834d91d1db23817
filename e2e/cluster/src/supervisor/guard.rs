//! The guard of a supervisor: what the harness really starts. It has the supervisor as its child, with
//! its own two pipes, and does nothing but wait: when the supervisor was killed, it takes down what
//! that left. It knows nothing that could go wrong before.

use std::process::Command;

use rustix::process::{WaitOptions, wait};

use dragonfly_e2e::{Failed, Result};

use super::claim::sweep_all;

/// The whole of `cluster supervise`.
///
/// # Errors
/// The supervisor's own failure, or that it was killed.
pub fn guard() -> Result<()> {
    // Not the terminal's: an interrupt there is for the harness.
    let _ = rustix::process::setsid();
    let wrong = |e| Failed::at("supervisor", e);
    // What a killed supervisor's children leave is collected here.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(|e| wrong(e.into()))?;
    let program = std::env::current_exe().map_err(wrong)?;
    let mut supervisor = Command::new(program)
        .args(["supervise", "--unguarded"])
        .spawn()
        .map_err(wrong)?;
    let status = supervisor.wait().map_err(wrong)?;
    if status.success() {
        return Ok(());
    }
    if status.code().is_none() {
        sweep_all(|| while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {})?;
    }
    Err(Failed::at("supervisor", status))
}
