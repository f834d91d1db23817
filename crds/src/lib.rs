//! The kinds of `d7y.io/v1alpha1`, and everything that is said about them without a cluster.
//!
//! ```text
//!  YAML ──manifest──► Distribution, SchedulerPool ──resolve──► Policy ──encode──► every node
//!           (schema: what an apiserver checks)       (pure)     (decode: what a node checks)
//! ```
//! The operator and light mode use the same types, the same [`resolve`](resolve::resolve) and the
//! same [`Policy`]; only where objects come from differs.
//!
//! Invariants: nothing here does IO but [`manifest::load_dir`] and the generator; nothing knows a
//! clock or a client of Kubernetes; equal input gives equal output; bytes from outside are bounded
//! before they are parsed and never cause a panic.

pub mod conditions;
pub mod crdgen;
pub mod distribution;
pub mod duration;
pub mod field;
pub mod manifest;
pub mod mirror;
pub mod placement;
pub mod policy;
pub mod preheat;
pub mod profile;
pub mod quantity;
pub mod reference;
pub mod reports;
pub mod resolve;
pub mod scheduler_pool;
pub mod schema;
pub mod sources;

pub use distribution::{Distribution, DistributionSpec, DistributionStatus};
pub use field::{Invalid, Reason};
pub use policy::Policy;
pub use preheat::{Preheat, PreheatSpec, PreheatStatus};
pub use resolve::resolve;
pub use scheduler_pool::{SchedulerPool, SchedulerPoolSpec, SchedulerPoolStatus};

/// The API group of every kind.
pub const GROUP: &str = "d7y.io";
/// The version of every kind.
pub const VERSION: &str = "v1alpha1";
/// `apiVersion` of every kind.
pub const API_VERSION: &str = "d7y.io/v1alpha1";
