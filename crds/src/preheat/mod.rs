//! `Preheat`: content that nodes get before anybody asks for it.
//!
//! The spec is a wish. The operator turns it into a [`Plan`], one run at a time; the mesh's schedulers
//! carry the plan out and say how far it is in [`Progress`]. Each writes its own part of the status and
//! reads the other's, so either may die at any moment.
//!
//! Invariants: every list and string is bounded; nothing here grows with nodes; only fields that the
//! operator and the data plane obey.

mod plan;

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use plan::{FileProgress, MAX_FAILED_NODES, NodeFailure, Plan, Progress, Run, State, Targeted};

use crate::distribution::{LocalRef, duration_pattern};
use crate::placement::labels_schema;

/// Label of objects that the plugin made: only of these `ttl` takes any away.
pub const CREATED_BY: &str = "d7y.io/created-by";
/// The label's value.
pub const PLUGIN: &str = "kubectl-dragonfly";
/// Most runs of which the outcome is kept.
pub const MAX_RUNS: usize = 5;

/// Reasons of a Preheat's conditions beyond [`crate::conditions::reason`].
pub mod reason {
    /// All nodes of the last run hold everything.
    pub const SUCCEEDED: &str = "Succeeded";
    /// The next run has its time.
    pub const SCHEDULED: &str = "Scheduled";
    /// The spec says to wait.
    pub const SUSPENDED: &str = "Suspended";
    /// Some node did not get everything.
    pub const NODES_FAILED: &str = "NodesFailed";
    /// Time was up before all nodes had everything.
    pub const DEADLINE_EXCEEDED: &str = "DeadlineExceeded";
    /// No node had room.
    pub const NO_ROOM: &str = "NoRoom";
    /// No node fits what the spec selects.
    pub const NO_NODES: &str = "NoNodes";
    /// There is no such Distribution.
    pub const DISTRIBUTION_MISSING: &str = "DistributionMissing";
    /// The Distribution's schedulers run elsewhere, where nobody reads this object.
    pub const EXTERNAL_SCHEDULERS: &str = "ExternalSchedulers";
    /// Nobody of the mesh carries the plan out.
    pub const NOT_STARTED: &str = "NotStarted";
}

/// Content that nodes get before anybody asks for it: what, where, when.
#[derive(CustomResource, JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[allow(
    clippy::duplicated_attributes,
    reason = "two columns may be of one type"
)]
#[kube(
    group = "d7y.io",
    version = "v1alpha1",
    kind = "Preheat",
    plural = "preheats",
    shortname = "ph",
    category = "dragonfly",
    namespaced,
    status = "PreheatStatus",
    derive = "PartialEq",
    doc = "Content that nodes of a mesh get before anybody asks for it: what, on which nodes, and when.",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].status"#,
        description = "Whether the nodes hold what the spec says."
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].reason"#,
        description = "Why, in one word."
    ),
    printcolumn(
        name = "Nodes",
        type_ = "integer",
        json_path = ".status.progress.targets.desired",
        description = "Nodes of the last run."
    ),
    printcolumn(
        name = "Succeeded",
        type_ = "integer",
        json_path = ".status.progress.targets.succeeded",
        description = "Nodes that hold everything."
    ),
    printcolumn(
        name = "Next",
        type_ = "string",
        json_path = ".status.nextRunTime",
        description = "When it runs next."
    ),
    printcolumn(
        name = "Message",
        type_ = "string",
        priority = 1,
        json_path = r#".status.conditions[?(@.type=="Ready")].message"#,
        description = "Why."
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "size(self.files) > 0",
    "message": "must hold at least one file",
    "fieldPath": ".files"
}]))]
#[serde(default, rename_all = "camelCase")]
pub struct PreheatSpec {
    /// The Distribution of this namespace whose nodes get the content.
    pub distribution_ref: LocalRef,
    /// What nodes get: at least one file, one after the other.
    #[schemars(length(max = 64))]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub files: Vec<File>,
    /// Which nodes get it.
    pub targets: Targets,
    /// When they get it. Now, once, when left out.
    pub when: When,
    /// How many nodes get it at the same time; others wait for their turn. Within a mesh nodes get it
    /// from each other, so that more at once is faster for all.
    #[schemars(range(min = 1, max = 10000))]
    pub parallelism: i32,
    /// What is done when a node fails.
    pub retry: Retry,
    /// How long a run may take; what is not there by then is given up. No limit when left out.
    #[schemars(length(min = 2, max = 32), regex(pattern = duration_pattern!()))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deadline: Option<String>,
    /// Active, or Suspended: what is under way stops, keeps what it has, and goes on from there when
    /// it is Active again; nothing begins meanwhile.
    pub activity: Activity,
    /// How long this object stays after its last run. Only objects that kubectl-dragonfly created
    /// (label d7y.io/created-by: kubectl-dragonfly) go away by themselves; others stay as they are.
    #[schemars(length(min = 2, max = 32), regex(pattern = duration_pattern!()))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl: Option<String>,
}

impl Default for PreheatSpec {
    fn default() -> Self {
        Self {
            distribution_ref: LocalRef {
                name: "default".to_owned(),
            },
            files: vec![],
            targets: Targets::default(),
            when: When::default(),
            parallelism: 100,
            retry: Retry::default(),
            deadline: None,
            activity: Activity::Active,
            ttl: None,
        }
    }
}

/// One file.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[schemars(inline)]
#[serde(rename_all = "camelCase")]
pub struct File {
    /// Where it is: http or https, without user and password. Credentials in an object are read by
    /// everybody who may read the object.
    #[schemars(
        length(min = 8, max = 2048),
        regex(pattern = r"^https?://[^/@?#\s]+([/?][^\s]*)?$")
    )]
    pub url: String,
    /// What its bytes must hash to, when known: sha256 and 64 hexadecimal digits.
    #[schemars(length(max = 71), regex(pattern = r"^sha256:[0-9a-f]{64}$"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
}

/// Which nodes.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "!(has(self.count) && has(self.percent))",
        "message": "count and percent exclude each other"
    },
    {
        "rule": "!has(self.nodeSelector) || self.role == 'Peers'",
        "message": "needs role Peers: seeds are pods of no certain node",
        "fieldPath": ".nodeSelector"
    }
]))]
#[schemars(inline)]
#[serde(default, rename_all = "camelCase")]
pub struct Targets {
    /// Seeds: the mesh then gives it to peers without asking the origin. Peers: the nodes
    /// themselves, by way of the seeds.
    pub role: Role,
    /// Labels that a peer's node must have. Any node when left out.
    #[schemars(schema_with = "labels_schema")]
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Only nodes of these zones. All zones when left out.
    #[schemars(length(max = 64), inner(length(min = 1, max = 63)))]
    #[schemars(extend("x-kubernetes-list-type" = "set"))]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub zones: Vec<String>,
    /// So many of them, always the same ones for one object. All when both this and percent are left
    /// out.
    #[schemars(range(min = 1, max = 100_000))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<i32>,
    /// This share of them, rounded up.
    #[schemars(range(min = 1, max = 100))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub percent: Option<i32>,
}

/// Seeds or peers.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[schemars(inline)]
pub enum Role {
    /// Those that go to origins for others.
    #[default]
    Seeds,
    /// Those that serve a node's clients.
    Peers,
}

/// When.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "has(self.at) == (self.type == 'At')",
        "message": "goes with type At, and type At with it",
        "fieldPath": ".at"
    },
    {
        "rule": "has(self.cron) == (self.type == 'Cron')",
        "message": "goes with type Cron, and type Cron with it",
        "fieldPath": ".cron"
    }
]))]
#[schemars(inline)]
#[serde(default, rename_all = "camelCase")]
pub struct When {
    /// Now: once, as soon as the mesh is there. At: once, at a time. Cron: again and again.
    /// Continuous: at once, and from then on every node that joins.
    #[serde(rename = "type")]
    pub type_: WhenType,
    /// The time of type At.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<Time>,
    /// The times of type Cron.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cron: Option<Cron>,
}

/// What begins a run.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[schemars(inline)]
pub enum WhenType {
    /// The object itself.
    #[default]
    Now,
    /// A time.
    At,
    /// Times.
    Cron,
    /// The object, and nodes that join.
    Continuous,
}

/// Times.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[schemars(inline)]
#[serde(rename_all = "camelCase")]
pub struct Cron {
    /// Five fields: minute, hour, day of the month, month, day of the week. Each is `*`, numbers or
    /// (months, days of the week) names of three letters, ranges, lists, and steps with `/`. As cron
    /// has it, days that fit either of two restricted day fields count.
    #[schemars(length(min = 9, max = 128))]
    pub expression: String,
    /// Whose clock it means, such as Europe/Berlin. A time that a change of clocks leaves out runs
    /// when the clock goes on; one that comes twice runs the first time.
    #[schemars(
        length(min = 1, max = 64),
        regex(pattern = r"^[A-Za-z][-A-Za-z0-9_+/]*$")
    )]
    #[serde(default = "utc")]
    pub time_zone: String,
    /// When it is time for a run and the one before is not done. Forbid: the new one is left out.
    /// Replace: the old one ends.
    #[serde(default)]
    pub concurrency_policy: ConcurrencyPolicy,
    /// How long after its time a run may begin or go on: the end of the nightly window. No end when
    /// left out.
    #[schemars(length(min = 2, max = 32), regex(pattern = duration_pattern!()))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<String>,
}

fn utc() -> String {
    "UTC".to_owned()
}

/// What happens to two runs at once.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[schemars(inline)]
pub enum ConcurrencyPolicy {
    /// The new one is left out.
    #[default]
    Forbid,
    /// The old one ends.
    Replace,
}

/// What is done when a node fails.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[schemars(inline)]
#[serde(default, rename_all = "camelCase")]
pub struct Retry {
    /// How often a node tries again. What it has it keeps.
    #[schemars(range(min = 0, max = 100))]
    pub limit: i32,
    /// How long it waits before that; each time twice as long, five minutes at most.
    #[schemars(length(min = 2, max = 32), regex(pattern = duration_pattern!()))]
    pub backoff: String,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            limit: 3,
            backoff: "10s".to_owned(),
        }
    }
}

/// Whether anything happens.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[schemars(inline)]
pub enum Activity {
    /// It does.
    #[default]
    Active,
    /// Not for now.
    Suspended,
}

/// What is known of a Preheat.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(default, rename_all = "camelCase")]
pub struct PreheatStatus {
    /// The generation of the spec that the rest of this status is about.
    #[schemars(range(min = 0))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready, Reconciling and Stalled.
    #[schemars(length(max = 16))]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// The run that schedulers carry out, or carried out last: the spec resolved. Absent while there
    /// is nothing to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plan: Option<Plan>,
    /// Runs begun so far.
    #[schemars(range(min = 0))]
    pub runs: i64,
    /// The time that the last run was due at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_run_time: Option<Time>,
    /// The time that the next run is due at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_run_time: Option<Time>,
    /// How runs ended: the last five, newest first.
    #[schemars(length(max = 5))]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<Run>,
    /// How far the run is that the plan names: written by the mesh's schedulers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
}
