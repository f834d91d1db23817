//! Names and labels of what a mesh is made of.
//!
//! Invariant: a name is at most 63 characters for a mesh's name of 45, and no two parts share one.

use std::collections::BTreeMap;

/// Who the fields that the operator writes belong to.
pub const MANAGER: &str = "dragonfly-operator";

/// Label: the mesh's name.
pub const INSTANCE: &str = "app.kubernetes.io/instance";
/// Label: which part it is.
pub const COMPONENT: &str = "app.kubernetes.io/component";
/// Label: who made it.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Label of what belongs to one slot alone.
pub const SLOT: &str = "d7y.io/slot";
/// Annotation: the hash of what was applied.
pub const APPLIED: &str = "d7y.io/applied";
/// Annotation: which keys the mesh has. Pods are replaced when it changes.
pub const AUTHORITY: &str = "d7y.io/authority";
/// Annotation of the CA's Secret: which `spec.security.caGeneration` its newest CA answers.
pub const CA_GENERATION: &str = "d7y.io/ca-generation";
/// Annotation of the CA's Secret: since when, in seconds since 1970, the CA that signs does so.
pub const CA_SINCE: &str = "d7y.io/ca-since";
/// Annotation of the CA's Secret: which issuer (`spec.security.issuerRef`) signed its newest CA; absent
/// where that signed itself.
pub const CA_ISSUER: &str = "d7y.io/ca-issuer";
/// Annotation of pods: what of the policy they cannot take without a restart.
pub const RESTART_FOR: &str = "d7y.io/restart-for";

/// Selects all that the operator made.
pub const OURS: &str = "app.kubernetes.io/managed-by=dragonfly-operator";

/// Port of a scheduler.
pub const SCHEDULER_PORT: u16 = 8002;
/// Port of a scheduler's health and metrics.
pub const SCHEDULER_ADMIN: u16 = 8003;
/// Port of a scheduler on its pod's loopback, where the plugin comes by port-forward.
pub const SCHEDULER_LOCAL: u16 = 8004;
/// Port of a seed.
pub const SEED_PORT: u16 = 4000;
/// Port of a seed's health and metrics.
pub const SEED_ADMIN: u16 = 4001;

/// A part that runs in pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Component {
    /// Who is in which swarm.
    Scheduler,
    /// Goes to origins for the others.
    Seed,
    /// One a node.
    Peer,
    /// One a node whose container runtime is told of its peer.
    Mirror,
}

impl Component {
    /// As names, labels and the data plane's command line say it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Scheduler => "scheduler",
            Self::Seed => "seed",
            Self::Peer => "peer",
            Self::Mirror => "mirror",
        }
    }
}

/// `NAME-scheduler`: what all schedulers of a mesh share, and the same of other parts.
pub fn of(mesh: &str, component: Component) -> String {
    format!("{mesh}-{}", component.as_str())
}

/// `NAME-scheduler-0`.
pub fn slot(mesh: &str, component: Component, index: u32) -> String {
    format!("{mesh}-{}-{index}", component.as_str())
}

/// `scheduler-0`: a slot's name within its mesh, which hashes are over.
pub fn within(component: Component, index: u32) -> String {
    format!("{}-{index}", component.as_str())
}

/// The Secret with the mesh's keys.
pub fn authority(mesh: &str) -> String {
    format!("{mesh}-authority")
}

/// The Secret with the mesh's CA, which only the operator reads.
pub fn ca(mesh: &str) -> String {
    format!("{mesh}-ca")
}

/// The audience of the tokens that pods of a mesh (its UID) prove themselves by: one for another mesh,
/// or for the API server, is refused.
pub fn audience(uid: &str) -> String {
    format!("dragonfly.d7y.io/{uid}")
}

/// The Secret with the join token.
pub fn join(mesh: &str) -> String {
    format!("{mesh}-join")
}

/// The ConfigMap that nodes find their schedulers by.
pub fn bootstrap(mesh: &str) -> String {
    format!("{mesh}-bootstrap")
}

/// The Lease of the scheduler that writes reports.
pub fn reports(mesh: &str) -> String {
    format!("{mesh}-reports")
}

/// The PodMonitor.
pub fn monitor(mesh: &str) -> String {
    format!("{mesh}-mesh")
}

/// Labels of everything of a mesh.
pub fn labels(mesh: &str, component: Option<Component>) -> BTreeMap<String, String> {
    let component = component.map_or("mesh", Component::as_str);
    [
        ("app.kubernetes.io/name", "dragonfly"),
        ("app.kubernetes.io/part-of", "dragonfly"),
        (INSTANCE, mesh),
        (COMPONENT, component),
        (MANAGED_BY, MANAGER),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .collect()
}

/// Labels that pods of a part are selected by.
pub fn selector(mesh: &str, component: Component) -> BTreeMap<String, String> {
    [(INSTANCE, mesh), (COMPONENT, component.as_str())]
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_names_are_names_of_kubernetes() {
        let mesh = "m".repeat(45);
        let longest = slot(&mesh, Component::Scheduler, 63);
        for name in [longest, authority(&mesh), bootstrap(&mesh), reports(&mesh)] {
            assert!(name.len() <= 63, "{name}");
        }
    }
}
