//! Image pulls through the mesh: real registries, real containerd of both kinds, real pods.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod faults;
mod gate;
mod nodes;
mod place;
mod plan;
mod pulls;
mod registries;
