//! Real processes that are left to themselves for long: origins that misbehave, clocks that are set, policies
//! that are edited, preheats that have their time. One binary, for most of its time is waiting.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

#[path = "../common/mod.rs"]
mod common;

mod bad_origin;
mod clock;
mod policy;
mod preheat;
