//! The swarm as pure code: who asks whom for which block, and who is whose neighbour.
//!
//! - [`bitmap`]: sets of block indices.
//! - [`runs`]: short lists of runs of them.
//! - [`engine`]: one task at one node, peer and seed alike: what to request, to push, to announce.
//! - [`membership`]: the scheduler's side of one task: neighbours, zones, leases of the origin.
//! - [`sim`]: both of them on virtual time, thousands of nodes in one thread.
//!
//! Nothing here knows a clock, a socket or a thread: time is a [`core::time::Duration`] since an
//! arbitrary start that the caller passes in, randomness comes from a seed that the caller passes
//! in. The code that runs in production is therefore the code that runs in the simulator and in
//! the property tests.

pub mod bitmap;
pub mod engine;
pub mod membership;
pub mod runs;
pub mod sim;
