//! What the parts of a mesh say to each other, and the identities and proofs that they say it with.
//!
//! Everything here is pure: bytes in, values or errors out. No socket, no clock, no task. Parsers
//! check every length, count and index before they allocate or slice, and each has a property test.
//!
//! * [`id`]: node, request and content keys (what a task *is*).
//! * [`geometry`]: how content is cut into blocks.
//! * [`sign`], [`trust`]: signatures, epochs, Merkle proofs.
//! * [`ticket`]: leave to be served.
//! * [`frame`]: the wire between nodes.
//! * [`rpc`]: gRPC between roles, and between a node and its clients (feature `grpc`).

pub mod frame;
pub mod geometry;
pub mod id;
#[cfg(feature = "grpc")]
pub mod rpc;
pub mod sign;
pub mod ticket;
pub mod trust;
