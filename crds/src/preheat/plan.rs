//! What the operator asks of schedulers, and what they answer.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Activity, File, Targets, WhenType};

/// Most entries of `status.progress.failedNodes`.
pub const MAX_FAILED_NODES: usize = 10;

/// One run, resolved: schedulers read nothing else of the object.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[schemars(inline)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// Its number: grows with each run of the object.
    #[schemars(range(min = 1))]
    pub run: i64,
    /// Hash of the part of the spec that it was made from.
    #[schemars(length(max = 64))]
    pub spec_hash: String,
    /// The Distribution whose schedulers carry it out.
    #[schemars(length(max = 63))]
    pub distribution: String,
    /// When it was begun.
    pub start_time: Time,
    /// Suspended: nobody works on it for now.
    #[serde(default)]
    pub activity: Activity,
    /// When it ends, done or not. Never when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_time: Option<Time>,
    /// What nodes get.
    #[schemars(length(max = 64))]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub files: Vec<File>,
    /// Which nodes.
    pub targets: Targets,
    /// Continuous: nodes that join get it too, and it does not end.
    pub when: WhenType,
    /// Nodes at once.
    #[schemars(range(min = 1))]
    pub parallelism: i32,
    /// How often a node is asked again after it failed.
    #[schemars(range(min = 0))]
    pub retries: i32,
    /// Before the first time, milliseconds; then twice as long each time.
    #[schemars(range(min = 0))]
    pub backoff_milliseconds: i64,
}

/// How far a run is.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[schemars(inline)]
#[serde(default, rename_all = "camelCase")]
pub struct Progress {
    /// Number of the run.
    #[schemars(range(min = 0))]
    pub run: i64,
    /// Running, Succeeded, Failed, DeadlineExceeded.
    pub state: State,
    /// How it stands, in a line.
    #[schemars(length(max = 512))]
    pub message: String,
    /// Nodes by how they do.
    pub targets: Targeted,
    /// Bytes by file, in the spec's order.
    #[schemars(length(max = 64))]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<FileProgress>,
    /// Nodes that failed, the first ten.
    #[schemars(length(max = 10))]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub failed_nodes: Vec<NodeFailure>,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_time: Option<Time>,
}

/// Whether a run is over, and how.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[schemars(inline)]
pub enum State {
    /// It is not.
    #[default]
    Running,
    /// Every node holds everything, those apart that have no room.
    Succeeded,
    /// Some node does not, and was asked often enough.
    Failed,
    /// Its time was up.
    DeadlineExceeded,
}

/// Nodes by how they do.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[schemars(inline)]
#[serde(default, rename_all = "camelCase")]
pub struct Targeted {
    /// Nodes that are to hold it.
    #[schemars(range(min = 0))]
    pub desired: i32,
    /// Nodes that are getting it.
    #[schemars(range(min = 0))]
    pub active: i32,
    /// Nodes that hold everything.
    #[schemars(range(min = 0))]
    pub succeeded: i32,
    /// Nodes that failed and are not asked again.
    #[schemars(range(min = 0))]
    pub failed: i32,
    /// Nodes without room, of which nothing was asked.
    #[schemars(range(min = 0))]
    pub skipped: i32,
}

/// One file on all nodes of a run.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[schemars(inline)]
#[serde(default, rename_all = "camelCase")]
pub struct FileProgress {
    /// Its length, once it is known.
    #[schemars(range(min = 0))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub length: Option<i64>,
    /// Bytes of it that nodes hold, all nodes together.
    #[schemars(range(min = 0))]
    pub bytes: i64,
    /// Bytes of it that nodes are to hold, as far as lengths are known.
    #[schemars(range(min = 0))]
    pub total_bytes: i64,
    /// Nodes that hold all of it.
    #[schemars(range(min = 0))]
    pub nodes: i32,
}

/// A node that failed.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[schemars(inline)]
#[serde(default, rename_all = "camelCase")]
pub struct NodeFailure {
    /// Its name.
    #[schemars(length(max = 256))]
    pub node: String,
    /// What went wrong the last time.
    #[schemars(length(max = 512))]
    pub message: String,
    /// How often it was asked.
    #[schemars(range(min = 0))]
    pub attempts: i32,
}

/// How a run ended.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[schemars(inline)]
#[serde(rename_all = "camelCase")]
pub struct Run {
    /// Its number.
    #[schemars(range(min = 1))]
    pub run: i64,
    /// How it ended.
    pub state: State,
    /// How it stood then.
    #[schemars(length(max = 512))]
    pub message: String,
    /// When it was begun.
    pub start_time: Time,
    /// When it ended.
    pub end_time: Time,
}
