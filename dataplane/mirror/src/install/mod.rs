//! The mirror's entries in container runtimes' settings: written, owned and withdrawn here.
//!
//! * [`hosts`]: what containerd's `hosts.toml` becomes, [`registries`]: a file of `registries.conf.d`
//!   (CRI-O, podman), [`docker`]: `daemon.json`; all without IO. [`containerd`]: what in containerd's own
//!   settings would silently disable the mirror.
//! * [`files`]: the files, with backups. [`watch`]: entries are there only while the mirror answers.
//!
//! Invariants: what others wrote in a file stays, byte for byte, with the entry and after it; a file
//! that cannot be read as what it should be is left alone and said so; every write is whole or not at
//! all. The registry itself stays behind the mirror in every file, so a node whose mirror is gone pulls
//! as before.

pub mod containerd;
pub mod docker;
pub mod files;
pub mod hosts;
pub mod registries;
pub mod watch;
