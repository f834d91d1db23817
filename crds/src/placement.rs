//! Where the parts of a mesh run on Kubernetes, and with what: the operator's share of the spec.
//! Without Kubernetes nobody looks at it.
//!
//! Invariants: as in [`crate::distribution`]; what may be left out has a default that is said in the
//! field's description and stands in this module.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::distribution::quantity_pattern;

/// Where a peer keeps content on its node.
pub const PEER_DIRECTORY: &str = "/var/lib/dragonfly/peer";
/// Where a peer's socket is on its node.
pub const SOCKET_DIRECTORY: &str = "/run/dragonfly";

/// Pattern of directories on nodes: absolute, no `..`, not the root itself.
macro_rules! directory_pattern {
    () => {
        r"^(/[A-Za-z0-9_][-A-Za-z0-9_.]*)+$"
    };
}
pub(crate) use directory_pattern;

/// Pattern of amounts of processor time.
macro_rules! cpu_pattern {
    () => {
        r"^([0-9]{1,9}([.][0-9]{1,3})?|[0-9]{1,12}m)$"
    };
}

/// Which nodes the pods of a part run on, and what they get there.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[schemars(inline)]
#[serde(default, rename_all = "camelCase")]
pub struct Pods {
    /// Labels that a node must have. Any node when empty.
    #[schemars(schema_with = "labels_schema")]
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Taints of nodes that the pods put up with.
    #[schemars(length(max = 32))]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tolerations: Vec<Toleration>,
    /// Name of a PriorityClass.
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority_class_name: Option<String>,
    /// Processor time and memory. Requests that are left out: scheduler 100m and 128Mi, seed 250m
    /// and 512Mi, peer 100m and 256Mi; with storage.media Memory a node asks for its quota on top. No
    /// limits unless said.
    pub resources: Resources,
}

/// A taint that pods put up with.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "has(self.key) || self.operator == 'Exists'",
        "message": "must be Exists where no key is given",
        "fieldPath": ".operator"
    },
    {
        "rule": "!has(self.value) || self.operator == 'Equal'",
        "message": "must be left out with operator Exists",
        "fieldPath": ".value"
    },
    {
        "rule": "!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
        "message": "needs effect NoExecute",
        "fieldPath": ".tolerationSeconds"
    }
]))]
#[schemars(inline)]
#[serde(default, rename_all = "camelCase")]
pub struct Toleration {
    /// The taint's key; all with operator Exists when left out.
    #[schemars(length(min = 1, max = 316))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Equal: the taint has this value. Exists: any value.
    pub operator: TolerationOperator,
    /// The taint's value.
    #[schemars(length(max = 63))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// NoSchedule, PreferNoSchedule or NoExecute; all when left out.
    // Of an optional enum the enum's description would be shown.
    #[schemars(with = "TaintEffect")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub effect: Option<TaintEffect>,
    /// How long a pod stays on a node that got the taint; for ever when left out.
    #[schemars(range(min = 0))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub toleration_seconds: Option<i64>,
}

/// How a taint's value is looked at.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[schemars(inline)]
pub enum TolerationOperator {
    /// It is the one given.
    #[default]
    Equal,
    /// It does not matter.
    Exists,
}

/// What a taint does to pods.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[schemars(inline)]
pub enum TaintEffect {
    /// New ones are kept away.
    NoSchedule,
    /// New ones are kept away where possible.
    PreferNoSchedule,
    /// All are kept away.
    NoExecute,
}

impl TaintEffect {
    /// As Kubernetes says it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoSchedule => "NoSchedule",
            Self::PreferNoSchedule => "PreferNoSchedule",
            Self::NoExecute => "NoExecute",
        }
    }
}

/// What the container of a pod gets.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[schemars(inline)]
#[serde(default, rename_all = "camelCase")]
pub struct Resources {
    /// What the node must have free.
    pub requests: Amounts,
    /// What it may use at most. A limit on memory counts the page cache that content is read and
    /// written through, so leave room.
    pub limits: Amounts,
}

/// Processor time and memory.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[schemars(inline)]
#[serde(default, rename_all = "camelCase")]
pub struct Amounts {
    /// Processors, such as 2 or 250m.
    #[schemars(length(min = 1, max = 16), regex(pattern = cpu_pattern!()))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<String>,
    /// Memory, such as 512Mi.
    #[schemars(length(min = 1, max = 32), regex(pattern = quantity_pattern!()))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<String>,
}

/// Where seeds run.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[schemars(inline)]
pub enum Location {
    /// In this cluster: the operator makes them.
    #[default]
    Internal,
    /// Elsewhere: they join by token, and nothing is made for them.
    External,
}

/// Where a seed keeps content. A directory in the pod (emptyDir) when none is said.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "(has(self.emptyDir) ? 1 : 0) + (has(self.hostPath) ? 1 : 0) + (has(self.volumeClaim) ? 1 : 0) <= 1",
    "message": "at most one of emptyDir, hostPath and volumeClaim"
}]))]
#[schemars(inline)]
#[serde(default, rename_all = "camelCase")]
pub struct SeedStorage {
    /// A directory in the pod: gone with the pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub empty_dir: Option<EmptyDir>,
    /// A directory of the node: at most one seed a node, which then runs as root.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_path: Option<HostPath>,
    /// A volume of its own for each seed, kept over restarts. A seed that is no longer asked for
    /// takes its volume with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume_claim: Option<VolumeClaim>,
}

/// Where a peer keeps content. A directory of its node when none is said.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "!(has(self.emptyDir) && has(self.hostPath))",
    "message": "at most one of emptyDir and hostPath"
}]))]
#[schemars(inline)]
#[serde(default, rename_all = "camelCase")]
pub struct PeerStorage {
    /// A directory in the pod: gone with the pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub empty_dir: Option<EmptyDir>,
    /// A directory of the node, kept over restarts. Its path is /var/lib/dragonfly/peer unless said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_path: Option<HostPath>,
}

/// A directory in a pod.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[schemars(inline)]
#[serde(default, rename_all = "camelCase")]
pub struct EmptyDir {
    /// The pod is evicted above it, such as 120Gi; keep it above storage.quota. No limit when absent.
    #[schemars(length(min = 1, max = 32), regex(pattern = quantity_pattern!()))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_limit: Option<String>,
}

/// A directory of a node.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[schemars(inline)]
#[serde(rename_all = "camelCase")]
pub struct HostPath {
    /// Its path, made where it is not there.
    #[schemars(length(min = 2, max = 255), regex(pattern = directory_pattern!()))]
    pub path: String,
}

/// A volume for each seed.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[schemars(inline)]
#[serde(rename_all = "camelCase")]
pub struct VolumeClaim {
    /// How large, such as 200Gi; keep it above storage.quota. It can grow where the class allows it.
    #[schemars(length(min = 1, max = 32), regex(pattern = quantity_pattern!()))]
    pub size: String,
    /// The StorageClass; the cluster's default when absent.
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storage_class_name: Option<String>,
}

/// The peers: one on every node that `pods.nodeSelector` selects.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "self.port != self.adminPort",
    "message": "must differ from port",
    "fieldPath": ".adminPort"
}]))]
#[schemars(inline)]
#[serde(default, rename_all = "camelCase")]
pub struct Peers {
    /// Which nodes have a peer, and what it gets there.
    pub pods: Pods,
    /// Where a peer keeps content.
    pub storage: PeerStorage,
    /// The port on each node that other nodes of the mesh connect to.
    #[schemars(range(min = 1024, max = 65535))]
    pub port: i32,
    /// The port on each node with health and metrics.
    #[schemars(range(min = 1024, max = 65535))]
    pub admin_port: i32,
    /// The directory on each node with the socket that clients ask.
    #[schemars(length(min = 2, max = 255), regex(pattern = directory_pattern!()))]
    pub socket_directory: String,
    /// How many peers are replaced at once when they change, in percent of all.
    #[schemars(range(min = 1, max = 100))]
    pub max_unavailable_percent: i32,
}

impl Default for Peers {
    fn default() -> Self {
        Self {
            pods: Pods::default(),
            storage: PeerStorage::default(),
            port: 4000,
            admin_port: 4001,
            socket_directory: SOCKET_DIRECTORY.to_owned(),
            max_unavailable_percent: 10,
        }
    }
}

/// Schedulers that run elsewhere. Nodes take their policy from them: what this object says of sources,
/// limits and storage is checked, and not in force.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[schemars(inline)]
#[serde(rename_all = "camelCase")]
pub struct ExternalSchedulers {
    /// Where nodes of this cluster reach them: host:port.
    #[schemars(
        length(max = 64),
        inner(
            length(min = 3, max = 259),
            regex(
                pattern = r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}$"
            )
        )
    )]
    #[schemars(extend("x-kubernetes-list-type" = "set"))]
    pub addresses: Vec<String>,
    /// The mesh's name, as the schedulers were given it (--mesh); a mesh of another cluster has the
    /// UID of its Distribution.
    #[schemars(length(min = 1, max = 128))]
    pub mesh: String,
    /// The Secret in this namespace that has the mesh's join token under the key join-token. Needed
    /// with transport MutualTLS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub join_token_secret_ref: Option<SecretRef>,
}

/// A Secret in the same namespace.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[schemars(inline)]
pub struct SecretRef {
    /// Name of the Secret.
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
    )]
    pub name: String,
}

/// NetworkPolicies for schedulers and seeds. (Peers have their node's network, which such policies do
/// not reach.)
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "size(self.nodeCIDRs) > 0",
    "message": "must name the networks of the nodes: peers come from nodes' addresses",
    "fieldPath": ".nodeCIDRs"
}]))]
#[schemars(inline)]
pub struct NetworkPolicies {
    /// The networks that nodes' addresses are in, such as 10.0.0.0/16.
    #[serde(rename = "nodeCIDRs")]
    #[schemars(
        length(max = 32),
        inner(
            length(min = 3, max = 49),
            regex(pattern = r"^[0-9A-Fa-f:.]+/[0-9]{1,3}$")
        )
    )]
    #[schemars(extend("x-kubernetes-list-type" = "set"))]
    pub node_cidrs: Vec<String>,
}

/// What is made for the cluster's monitoring.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[schemars(inline)]
#[serde(default, rename_all = "camelCase")]
pub struct Monitoring {
    /// Auto: a PodMonitor where the cluster knows that kind. Never: none.
    pub pod_monitor: PodMonitors,
    /// Labels of the PodMonitor, which a Prometheus may select by.
    #[schemars(schema_with = "labels_schema")]
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// Whether a PodMonitor is made.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[schemars(inline)]
pub enum PodMonitors {
    /// Where the cluster knows the kind.
    #[default]
    Auto,
    /// Nowhere.
    Never,
}

/// How many pods of each part there are and how many are ready.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[schemars(inline)]
#[serde(default, rename_all = "camelCase")]
pub struct Components {
    /// Schedulers.
    pub schedulers: Ready,
    /// Seeds.
    pub seeds: Ready,
    /// Peers.
    pub peers: Ready,
}

/// How many there are.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[schemars(inline)]
#[serde(default)]
pub struct Ready {
    /// How many there should be.
    #[schemars(range(min = 0))]
    pub desired: i32,
    /// How many are ready.
    #[schemars(range(min = 0))]
    pub ready: i32,
    /// How many are of the newest kind that was asked for.
    #[schemars(range(min = 0))]
    pub updated: i32,
}

/// Labels of Kubernetes. Names that are none are refused when objects are made of them.
pub(crate) fn labels_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "object",
        "maxProperties": 32,
        "additionalProperties": {
            "type": "string",
            "maxLength": 63,
            "pattern": "^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$",
        },
    })
}
