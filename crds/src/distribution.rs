//! `Distribution`: one mesh, and what every node in it does.
//!
//! Invariants: every list and string is bounded; what may be left out has a default, either in the
//! schema or, where it depends on `profile`, in [`crate::profile`]; no credentials; only fields that
//! the data plane obeys.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::mirror::Mirror;
use crate::placement::{
    Components, ExternalSchedulers, Location, Monitoring, NetworkPolicies, Peers, Pods, SeedStorage,
};
use crate::policy::{DecodeError, Policy};
use crate::reports::{Failure, Rollout, Traffic};
use crate::sources::Sources;

/// Pattern of sizes: what [`crate::quantity`] reads.
macro_rules! quantity_pattern {
    () => {
        r"^[0-9]{1,18}([.][0-9]{1,9})?(k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$"
    };
}
pub(crate) use quantity_pattern;

/// Pattern of lengths of time: what [`crate::duration`] reads.
macro_rules! duration_pattern {
    () => {
        r"^([0-9]{1,9}(h|ms|m|s))+$"
    };
}
pub(crate) use duration_pattern;

/// One mesh: its seeds and peers, where content comes from, how much of each node it may use.
#[derive(CustomResource, JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "d7y.io",
    version = "v1alpha1",
    kind = "Distribution",
    plural = "distributions",
    shortname = "dist",
    category = "dragonfly",
    namespaced,
    status = "DistributionStatus",
    derive = "PartialEq",
    doc = "One mesh that distributes images and files among nodes: its seeds and peers, where content comes from, and how much of each node it may use.",
    validation = Rule::new("size(self.metadata.name) <= 45").message("metadata.name must be at most 45 characters: names of other objects are made from it"),
    validation = Rule::new("self.metadata.name >= 'a' && !self.metadata.name.contains('.')").message("metadata.name must begin with a letter and hold no dot: Services are named after it"),
    printcolumn(name = "Ready", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].status"#, description = "Whether the mesh does what its spec says."),
    printcolumn(name = "Profile", type_ = "string", json_path = ".spec.profile", description = "The preset of defaults."),
    printcolumn(name = "Policy", type_ = "integer", json_path = ".status.policy.revision", description = "Revision of the policy in force."),
    printcolumn(name = "Peers", type_ = "integer", json_path = ".status.components.peers.ready", description = "Peers that are ready."),
    printcolumn(name = "Mirror", type_ = "string", priority = 1, json_path = r#".status.conditions[?(@.type=="MirrorUsable")].status"#, description = "Whether container runtimes can use the mirror."),
    printcolumn(name = "Message", type_ = "string", priority = 1, json_path = r#".status.conditions[?(@.type=="Ready")].message"#, description = "Why."),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "self.seeds.emitters <= (has(self.seeds.replicas) ? self.seeds.replicas : (self.profile == 'Heavy' ? 3 : 1))",
        "message": "must be no more than spec.seeds.replicas",
        "fieldPath": ".seeds.emitters"
    },
    {
        "rule": "!has(self.mirror) || (self.mirror.port != self.peers.port && self.mirror.port != self.peers.adminPort)",
        "message": "must differ from spec.peers.port and spec.peers.adminPort",
        "fieldPath": ".mirror.port"
    },
    {
        "rule": "!(has(self.schedulerPoolRef) && has(self.externalSchedulers))",
        "message": "schedulerPoolRef and externalSchedulers exclude each other"
    },
    {
        "rule": "!has(self.externalSchedulers) || self.security.transport == 'Plaintext' || has(self.externalSchedulers.joinTokenSecretRef)",
        "message": "needs joinTokenSecretRef with transport MutualTLS",
        "fieldPath": ".externalSchedulers"
    },
    {
        "rule": "!has(self.security.issuerRef) || self.security.transport != 'Plaintext'",
        "message": "has no effect with transport Plaintext, which has no certificates",
        "fieldPath": ".security.issuerRef"
    },
    {
        "rule": "!has(self.security.issuerRef) || !has(self.externalSchedulers)",
        "message": "has no effect with externalSchedulers, whose mesh has the CA",
        "fieldPath": ".security.issuerRef"
    }
]))]
#[serde(default, rename_all = "camelCase")]
pub struct DistributionSpec {
    /// Preset for fields that are left out. Light, for one machine or a try: 1 seed, storage quota
    /// 10Gi, maxAge 24h, reserveFreePercent 5, 8 requests at once to an origin, loopback origins
    /// allowed. Standard: 1 seed, 100Gi, 168h, 20 percent, 32 requests. Heavy, for thousands of
    /// nodes: 3 seeds, 1Ti, 720h, 20 percent, 128 requests, 8 parallel ranges instead of 4.
    pub profile: Profile,
    /// The SchedulerPool in this namespace whose schedulers serve this mesh. Without it the mesh
    /// has a pool of its own with the defaults of every field.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheduler_pool_ref: Option<LocalRef>,
    /// Schedulers that run elsewhere, instead of a pool: this cluster's nodes join their mesh.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub external_schedulers: Option<ExternalSchedulers>,
    /// How the parts of the mesh talk to each other.
    pub security: Security,
    /// The nodes that fetch from origins on behalf of all others.
    pub seeds: Seeds,
    /// The peers: one on every node that they select.
    pub peers: Peers,
    /// NetworkPolicies for schedulers and seeds; none when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_policies: Option<NetworkPolicies>,
    /// What is made for the cluster's monitoring.
    pub monitoring: Monitoring,
    /// What a node may use of its network for the mesh.
    pub limits: Limits,
    /// Where a node keeps content and how much of it.
    pub storage: Storage,
    /// Whether a peer may go to the origin when no seed can: Allowed or Never.
    pub back_to_source: Permission,
    /// What is made fast where nodes' links differ: the Slowest node (all finish early) or the
    /// Average.
    pub objective: Objective,
    /// Where content comes from.
    pub sources: Sources,
    /// The registry mirror of every peer: container runtimes pull images through the mesh. None when
    /// absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mirror: Option<Mirror>,
}

/// Preset of defaults; see [`crate::profile`] for the values.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[schemars(inline)]
pub enum Profile {
    /// One machine, or a try.
    Light,
    /// A cluster.
    #[default]
    Standard,
    /// Thousands of nodes.
    Heavy,
}

/// Whether something is done.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[schemars(inline)]
pub enum Permission {
    /// It may be done.
    #[default]
    Allowed,
    /// It is never done.
    Never,
}

/// What a swarm is made fast for.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[schemars(inline)]
pub enum Objective {
    /// The time until the last node has everything.
    #[default]
    Slowest,
    /// The mean time until a node has everything.
    Average,
}

/// How bytes and messages between parts are protected.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[schemars(inline)]
pub enum Transport {
    /// Encrypted, and both ends prove who they are.
    #[default]
    MutualTLS,
    /// Neither encrypted nor authenticated; blocks are still verified.
    Plaintext,
}

/// What content is kept on.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[schemars(inline)]
pub enum Media {
    /// Files; content survives a restart.
    #[default]
    Disk,
    /// Memory of the process; gone after a restart.
    Memory,
}

/// An object in the same namespace.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[schemars(inline)]
pub struct LocalRef {
    /// Name of the object.
    #[schemars(
        length(min = 1, max = 45),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    )]
    pub name: String,
}

/// How the parts of the mesh talk to each other.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[schemars(inline)]
#[serde(default, rename_all = "camelCase")]
pub struct Security {
    /// MutualTLS: encrypted, both ends prove who they are. Plaintext: neither, and faster on old
    /// processors; only for networks where every machine is trusted.
    pub transport: Transport,
    /// Machines that are let in no more, although their certificates are good: by Kubernetes' name of
    /// the node, or by the identity of a node that joined by token. In force within seconds. An entry
    /// may go once the machine is clean, or three days after it is gone.
    #[schemars(
        length(max = 128),
        inner(
            length(min = 1, max = 253),
            regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
        )
    )]
    #[schemars(extend("x-kubernetes-list-type" = "set"))]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub revoked_nodes: Vec<String>,
    /// Raise it to have the mesh's CA replaced, such as after somebody may have seen its key: the new
    /// one is trusted from then on, signs ten minutes later, and the old one is trusted for as long as
    /// certificates by it are good. It is replaced by itself when two thirds of its year are over.
    #[schemars(range(min = 0, max = 1_000_000))]
    #[serde(skip_serializing_if = "is_zero")]
    pub ca_generation: i32,
    /// The issuer of cert-manager that signs the mesh's CA. The CA's key stays with the operator, which
    /// goes on giving parts their certificates; nodes trust the signed CA and not who signed it. None
    /// when absent: the CA signs itself. Adding, changing or removing it replaces the CA, with overlap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub issuer_ref: Option<IssuerRef>,
}

/// An issuer of cert-manager.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "self.group != 'cert-manager.io' || self.kind in ['Issuer', 'ClusterIssuer']",
    "message": "of group cert-manager.io must be Issuer or ClusterIssuer",
    "fieldPath": ".kind"
}]))]
#[schemars(inline)]
#[serde(rename_all = "camelCase")]
pub struct IssuerRef {
    /// Name of the issuer: in this namespace, or of the cluster's.
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
    )]
    pub name: String,
    /// Issuer, ClusterIssuer, or what the group calls its own.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[A-Z][A-Za-z0-9]*$"))]
    #[serde(default = "issuer_kind")]
    pub kind: String,
    /// Whose kind it is: cert-manager's, or that of an issuer that is installed beside it.
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
    )]
    #[serde(default = "issuer_group")]
    pub group: String,
}

/// cert-manager's own group of kinds.
pub const CERT_MANAGER: &str = "cert-manager.io";

fn issuer_kind() -> String {
    "Issuer".to_owned()
}

fn issuer_group() -> String {
    CERT_MANAGER.to_owned()
}

impl IssuerRef {
    /// Whether cert-manager's own group has such a kind; of other groups nothing is known.
    pub fn is_known(&self) -> bool {
        self.group != CERT_MANAGER || ["Issuer", "ClusterIssuer"].contains(&self.kind.as_str())
    }
}

/// `Issuer company`, with its group where that is not cert-manager's.
impl std::fmt::Display for IssuerRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.group.as_str() {
            CERT_MANAGER => write!(f, "{} {}", self.kind, self.name),
            group => write!(f, "{}.{group} {}", self.kind, self.name),
        }
    }
}

/// For what is left out of objects at its default.
#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
const fn is_zero(n: &i32) -> bool {
    *n == 0
}

/// The nodes that fetch from origins.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[schemars(inline)]
#[serde(default, rename_all = "camelCase")]
pub struct Seeds {
    /// How many seeds there are. Default by profile: Light and Standard 1, Heavy 3.
    #[schemars(range(min = 1, max = 64))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i32>,
    /// How many seeds fetch one content at once, each its share of the blocks. More than one helps
    /// where a seed's link is the bottleneck. At most replicas.
    #[schemars(range(min = 1, max = 16))]
    pub emitters: i32,
    /// Internal: the operator runs them. External: they run elsewhere and join by the mesh's token;
    /// replicas says how many there are. They have to reach the schedulers' addresses.
    pub location: Location,
    /// Which nodes seeds run on, and what they get there.
    pub pods: Pods,
    /// Where a seed keeps content.
    pub storage: SeedStorage,
}

impl Default for Seeds {
    fn default() -> Self {
        Self {
            replicas: None,
            emitters: 1,
            location: Location::default(),
            pods: Pods::default(),
            storage: SeedStorage::default(),
        }
    }
}

/// What a node may use of its network.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[schemars(inline)]
#[serde(default, rename_all = "camelCase")]
pub struct Limits {
    /// Bytes a second that a node sends to others, such as 100Mi. No limit when absent or 0.
    #[schemars(length(min = 1, max = 32), regex(pattern = quantity_pattern!()))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upload: Option<String>,
    /// Bytes a second that a node takes from others, such as 100Mi. No limit when absent or 0.
    #[schemars(length(min = 1, max = 32), regex(pattern = quantity_pattern!()))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub download: Option<String>,
}

/// Where a node keeps content.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "self.lowWatermarkPercent < self.highWatermarkPercent",
    "message": "must be less than highWatermarkPercent",
    "fieldPath": ".lowWatermarkPercent"
}]))]
#[schemars(inline)]
#[serde(default, rename_all = "camelCase")]
pub struct Storage {
    /// Disk: files, kept over restarts. Memory: faster, bounded by quota, gone after a restart.
    pub media: Media,
    /// Most bytes that content takes on a node, such as 100Gi. At least 64Mi. Default by profile:
    /// Light 10Gi, Standard 100Gi, Heavy 1Ti; with media Memory an eighth of that.
    #[schemars(length(min = 1, max = 32), regex(pattern = quantity_pattern!()))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quota: Option<String>,
    /// Eviction of the content used least recently starts above this share of the quota.
    #[schemars(range(min = 1, max = 100))]
    pub high_watermark_percent: i32,
    /// Eviction ends at this share of the quota. Less than highWatermarkPercent.
    #[schemars(range(min = 0, max = 99))]
    pub low_watermark_percent: i32,
    /// Content not used for this long is removed, such as 168h; 0s for never. Default by profile:
    /// Light 24h, Standard 168h, Heavy 720h.
    #[schemars(length(min = 2, max = 32), regex(pattern = duration_pattern!()))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_age: Option<String>,
    /// Share of the volume that is left free for others. Keep it above the kubelet's eviction
    /// threshold. Default by profile: Light 5, Standard and Heavy 20.
    #[schemars(range(min = 0, max = 90))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reserve_free_percent: Option<i32>,
}

impl Default for Storage {
    fn default() -> Self {
        Self {
            media: Media::Disk,
            quota: None,
            high_watermark_percent: 95,
            low_watermark_percent: 85,
            max_age: None,
            reserve_free_percent: None,
        }
    }
}

/// What is known of a Distribution.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(default, rename_all = "camelCase")]
pub struct DistributionStatus {
    /// The generation of the spec that the rest of this status is about.
    #[schemars(range(min = 0))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready, Reconciling and Stalled; where a mirror is asked for, MirrorUsable: whether container
    /// runtimes can use it.
    #[schemars(length(max = 16))]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// The resolved policy in force: what schedulers send to every node. No references, no secrets.
    // Raw: whoever passes it on must not lose what a newer operator put in. Read it with
    // `DistributionStatus::policy`.
    #[schemars(schema_with = "policy_schema")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<serde_json::Value>,
    /// How many pods of each part there are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub components: Option<Components>,
    /// Bytes by where they came from, since this object was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traffic: Option<Traffic>,
    /// Which nodes there are, and which revision of the policy they run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollout: Option<Rollout>,
    /// What went wrong lately, each kind once: the ten seen last. Gone a day after it was last seen.
    #[schemars(length(max = 10))]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<Failure>,
}

impl DistributionStatus {
    /// The policy in force, decoded and checked; `None` before the first.
    pub fn policy(&self) -> Option<Result<Policy, DecodeError>> {
        self.policy.clone().map(Policy::from_value)
    }
}

/// An atomic map without a fixed set of fields: an apiserver with an older CRD must not prune what a
/// newer operator resolved, or the hash no longer fits.
fn policy_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "object",
        "x-kubernetes-map-type": "atomic",
        "x-kubernetes-preserve-unknown-fields": true,
    })
}
