//! A real Kubernetes for tests: etcd, API server, controllers, scheduler and kubelets of a release,
//! nodes with containerd 1.6 and 2.x, a registry that images are pulled from. No mock of any of it.
//!
//! ```no_run
//! use dragonfly_cluster::{Cluster, ClusterOptions, Failed};
//!
//! # async fn test() -> Result<(), Failed> {
//! let cluster = Cluster::shared(&ClusterOptions::nodes(2)).await?;
//! cluster
//!     .with_temp_ns(|client, namespace| async move {
//!         // typed objects, `wait_for`, `pod::exec`, …
//!         Ok::<_, Failed>(())
//!     })
//!     .await
//! # }
//! ```
//!
//! - [`Cluster`]: starts one, alone or shared by all tests of a binary, and hands out all below
//! - [`ClusterOptions`]: nodes and their containerd, IP family; or an API server alone
//! - [`Node`]: commands and files on a node
//! - [`Registry`], [`image`]: images made here, pushed, pulled by nodes
//! - [`wait`]: waiting with a reason; [`pod`]: exec and logs; [`diagnostics`]: what is shown on failure
//! - [`apply`]: YAML as it stands; [`definitions`]: neighbours' kinds; [`mesh`]: the data plane's parts
//! - [`argocd`]: what ArgoCD would say of an object
//! - [`audit`]: what was asked of the API server
//! - [`control`]: what an operator costs with many nodes
//! - [`downloads`]: clients of nodes while something happens
//! - [`earlier`]: this project as it was
//! - [`operator`]: the operator, as a process or in a pod; [`Place`]: a namespace of a test of meshes
//! - [`fake`]: nodes by the thousand that only exist as objects; [`helm`]
//! - [`tools`]: what is built from Go modules, once, into a cache
//!
//! Invariants: everything of a cluster runs in its cgroup, and all its namespaces belong to processes
//! there, so ending those leaves no trace; a supervisor of its own session does that when the harness
//! is gone; numbers, networks and directories are claimed by a lock, so clusters side by side never
//! meet; processes are ended by descriptor, never by name.

pub mod apply;
pub mod argocd;
pub mod audit;
mod cgroup;
mod cluster;
pub mod company;
pub mod control;
pub mod definitions;
pub mod diagnostics;
pub mod downloads;
pub mod earlier;
pub mod fake;
pub mod helm;
pub mod http;
pub mod image;
pub mod mesh;
mod node;
pub mod operator;
mod options;
mod pki;
pub mod place;
mod plan;
pub mod pod;
mod preflight;
mod registry;
pub mod standing;
pub mod supervisor;
mod tied;
pub mod tools;
pub mod wait;

pub use cluster::{Cluster, pods_possible};
pub use dragonfly_e2e::{Failed, Result};
pub use node::Node;
pub use operator::{Installed, Operator};
pub use options::{ClusterOptions, Containerd, IpFamily};
pub use place::Place;
pub use registry::Registry;

/// Bytes as two lower-case digits each.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Eight letters and digits, as in names that Kubernetes makes.
fn random_name() -> String {
    std::iter::repeat_with(fastrand::lowercase)
        .take(8)
        .collect()
}
