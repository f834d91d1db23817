//! What the operator decides, without a cluster: objects in, objects out.
//!
//! ```text
//!  Distribution, SchedulerPool ──validate──► Mesh ──build──► Objects ──► Wanted ──► (applied)
//!        others' Distributions ──claims────► who has which nodes            live ──► status
//! ```
//! - [`validate`]: an object that may come from an older schema becomes a [`Mesh`], or its mistakes
//! - [`claims`]: two meshes that want the same ports or directories of the same nodes
//! - [`build`]: everything that Kubernetes is asked for, typed; pure functions of a [`Mesh`]
//! - [`wanted`]: those objects as they are applied, and whether a live one is as wanted
//! - [`preheat`]: which run of a Preheat is due, and what is said of it
//! - [`status`]: what is said of all this in conditions
//!
//! Invariants: no IO, no clock, no randomness; equal input gives equal output, so that applying twice
//! changes nothing; no name or label depends on anything but the mesh and the part's number.

pub mod build;
pub mod claims;
pub mod names;
pub mod preheat;
pub mod status;
pub mod validate;
pub mod wanted;

pub use build::{Addresses, Objects};
pub use validate::{Mesh, Schedulers};
pub use wanted::{Kind, Wanted};

/// What the operator was started with, as far as it shows in objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// The data plane's image.
    pub image: String,
    /// `Always`, `IfNotPresent` or `Never`; Kubernetes' default when `None`.
    pub image_pull_policy: Option<String>,
    /// Secrets in each mesh's namespace that the image is pulled with.
    pub image_pull_secrets: Vec<String>,
}
