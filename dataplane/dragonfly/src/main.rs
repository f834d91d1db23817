//! The `dragonfly` binary.
fn main() {}
