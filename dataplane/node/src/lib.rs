//! A node of the mesh: seed and peer alike.
//!
//! ```text
//!  clients ──► download ──► task (engine + store) ◄── handler ◄── connections ◄── other nodes
//!                 │              ▲        ▲
//!              session        origin     tick
//!                 │         (lease held)
//!             schedulers
//! ```
//!
//! * [`node`]: what a node is made of. `tasks`: those in use. `others`: other nodes. `chores`: what time
//!   brings.
//! * [`task`]: one content at this node. [`meta`]: what it keeps on disk. `find`: from a source to it.
//!   [`download`]: one client's interest in it.
//! * `handler`, `hello`, `links`, `turns`, `wire`: between connections and engines. `pex`: neighbours through
//!   neighbours.
//! * [`session`], `membership`: what schedulers say and are told.
//! * `origin`, `lease`, `reading`: looking at origins; reading and signing under a lease. `alone`:
//!   without one.
//! * `damage`: what a disk changed.
//! * `tending`: contents that a person has all nodes delete or keep.
//! * `warming`: contents that a scheduler has the node get before anybody asks.
//! * [`limits`], [`metrics`], `failures`: what schedulers hear of how downloads end.

mod alone;
mod apart;
pub mod api;
mod callers;
mod chores;
mod clock;
mod damage;
mod delivery;
pub mod download;
mod failures;
mod find;
mod handler;
mod held;
mod hello;
mod import;
mod inventory;
mod lease;
pub mod limits;
mod links;
mod membership;
pub mod meta;
pub mod metrics;
pub mod node;
mod origin;
mod others;
mod pex;
mod reading;
mod sealed;
pub mod session;
pub mod side;
mod socket;
mod strangers;
pub mod task;
mod tasks;
mod tending;
mod turns;
mod users;
mod vouched;
mod warming;
mod wire;

/// Isolation domain of what images are made of, by whichever registry it came: manifests, layers and
/// configurations, named by their digests. A client's socket cannot name it, so that private layers go
/// out only by who asks the registry first (the registry mirror); whoever fetches images ahead of time
/// fetches them into it.
pub const IMAGES: &str = "images";

/// Threads for a node's part in the mesh, and as many for its clients: half of the processors, at
/// most 8, for a node's agent leaves room to what the node is there for. One thread moves about as
/// many bytes as two that hand them to each other on two processors, and its download ends a little
/// sooner (`docs/performance.md`).
#[must_use]
pub fn threads() -> usize {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    (processors / 2).clamp(1, 8)
}
