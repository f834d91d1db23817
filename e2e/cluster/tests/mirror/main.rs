//! Image pulls through the mesh: real registries, real containerd of both kinds, real pods.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    dead_code,
    reason = "tests; not all of the operator's bed is used here"
)]

#[path = "../operator/bed.rs"]
mod bed;
mod faults;
mod gate;
mod nodes;
mod place;
mod plan;
mod pulls;
mod registries;
