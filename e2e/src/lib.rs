//! Meshes of real processes, for the demo and for tests of faults.
//!
//! - [`binary`]: where the built `dragonfly` and the sample manifests are
//! - [`watchdog`]: nothing that was started outlives who started it
//! - [`process`]: one process: signals, its end, its log
//! - [`mesh`]: a scheduler, seeds and peers as processes
//! - [`manifests`]: what a mesh is started from: the samples, made fit for a test
//! - [`clock`]: wall clocks that can be set, one for each process
//! - [`links`]: machines whose links are cut, in namespaces
//! - [`far`]: a long way between two interfaces
//! - [`disk`]: disks of a size
//! - [`get`]: a `dragonfly get` and what it says of itself
//! - [`origin`]: an HTTP server of files, with a speed, and a count of what it sent
//! - [`usage`]: what processes cost
//! - [`sample`]: content to distribute, and digests of files
//!
//! Invariants: every process is ended by its id, in `Drop` or by the watchdog; no port is fixed; all
//! state is under one temporary directory that goes when its mesh does.

pub mod binary;
pub mod clock;
pub mod disk;
pub mod far;
pub mod get;
pub mod http;
pub mod links;
pub mod manifests;
pub mod mesh;
pub mod origin;
pub mod process;
pub mod sample;
mod tls;
pub mod usage;
pub mod watchdog;

/// Why the harness cannot go on, for people.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct Failed(pub String);

impl Failed {
    /// What was tried, and what came of it.
    pub fn at(what: impl std::fmt::Display, why: impl std::fmt::Display) -> Self {
        Self(format!("{what}: {why}"))
    }
}

/// The harness's results.
pub type Result<T, E = Failed> = std::result::Result<T, E>;
