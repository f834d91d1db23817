//! The scheduler: who is in which swarm, who is whose neighbour, who may go to the origin.
//!
//! No byte of content passes here. State is in memory only: after a restart nodes say again what
//! they hold and take part in, and downloads go on meanwhile.
//!
//! * [`core`]: the decisions, without IO or clock. [`sketch`]: what is counted of its nodes.
//! * [`preheats`]: contents that nodes get before anybody asks.
//! * [`tending`]: contents that a person has all nodes delete or keep.
//! * [`service`]: gRPC around them. [`replicas`]: between schedulers of one mesh.

pub mod core;
mod digests;
mod imports;
mod leases;
mod lookups;
pub mod preheats;
pub mod replicas;
pub mod service;
pub mod sketch;
mod swarms;
mod telling;
pub mod tending;
