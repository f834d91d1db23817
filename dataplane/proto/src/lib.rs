//! What the parts of a mesh say to each other, and the identities and proofs that they say it with.
//!
//! Everything here is pure: bytes in, values or errors out. No socket, no clock, no task. Parsers
//! check every length, count and index before they allocate or slice, and each has a property test.
//!
//! * [`id`]: node, request and content keys (what a task *is*).

pub mod id;
