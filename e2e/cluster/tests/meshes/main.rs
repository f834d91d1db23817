//! Meshes on real clusters, as an operator makes them. One binary, for most of these wait for a kubelet
//! or a lease most of the time: the tests of one part run beside those of another.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "tests"
)]

mod identity;
mod installed;
mod mirror;
mod operator;
