//! What a mesh reports of itself in `Distribution.status`: written by its schedulers, one of them at
//! a time, under the field manager [`MANAGER`].
//!
//! Invariant: nothing here grows with nodes, contents or time. Sums are since the Distribution was
//! made; they never go back.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The field manager that owns `status.traffic`, `.rollout`, `.failures` and the condition
/// [`MIRROR_USABLE`](crate::conditions::MIRROR_USABLE), and nothing else.
pub const MANAGER: &str = "dragonfly-scheduler";
/// Most entries of `status.failures`.
pub const MAX_FAILURES: usize = 10;
/// Most entries of `status.rollout.revisions`.
pub const MAX_REVISIONS: usize = 5;
/// Longest text in an entry of `status.failures`, bytes.
pub const MAX_TEXT: usize = 512;

/// The reason of a failure: something keeps a container runtime from using its node's mirror.
pub const MIRROR_UNUSED: &str = "MirrorUnused";

/// Bytes that moved, and what that saved.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[schemars(inline)]
#[serde(default, rename_all = "camelCase")]
pub struct Traffic {
    /// Bytes that nodes read from origins.
    #[schemars(range(min = 0))]
    pub origin_bytes: i64,
    /// Bytes that nodes took from seeds.
    #[schemars(range(min = 0))]
    pub seed_bytes: i64,
    /// Bytes that nodes took from peers.
    #[schemars(range(min = 0))]
    pub peer_bytes: i64,
    /// Bytes that clients asked for and their node held already.
    #[schemars(range(min = 0))]
    pub cache_bytes: i64,
    /// Bytes that peers got from anywhere, their own cache included: what origins would have been
    /// asked for without the mesh.
    #[schemars(range(min = 0))]
    pub delivered_bytes: i64,
    /// Share of deliveredBytes that origins did not have to send, in percent. Absent before anything
    /// was delivered.
    #[schemars(range(min = 0, max = 100))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub saved_percent: Option<i32>,
    /// Bytes a second read from origins, mean of the last 30 seconds.
    #[schemars(range(min = 0))]
    pub origin_bytes_per_second: i64,
    /// Bytes a second taken from seeds, mean of the last 30 seconds.
    #[schemars(range(min = 0))]
    pub seed_bytes_per_second: i64,
    /// Bytes a second taken from peers, mean of the last 30 seconds.
    #[schemars(range(min = 0))]
    pub peer_bytes_per_second: i64,
    /// Contents that some node is getting now.
    #[schemars(range(min = 0))]
    pub active_tasks: i64,
    /// Downloads of clients that ended well.
    #[schemars(range(min = 0))]
    pub finished: i64,
    /// Downloads of clients that ended with an error.
    #[schemars(range(min = 0))]
    pub failed: i64,
}

/// Which nodes there are, and which policy they run.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[schemars(inline)]
#[serde(default, rename_all = "camelCase")]
pub struct Rollout {
    /// Revision of the policy that schedulers send.
    #[schemars(range(min = 0))]
    pub revision: i64,
    /// Nodes with a session at a scheduler.
    #[schemars(range(min = 0))]
    pub nodes: i64,
    /// Those of them that are seeds.
    #[schemars(range(min = 0))]
    pub seeds: i64,
    /// Those of them that are peers.
    #[schemars(range(min = 0))]
    pub peers: i64,
    /// Nodes that run that revision.
    #[schemars(range(min = 0))]
    pub acknowledged: i64,
    /// Nodes that refused that revision and run their last good one; `failures` says why.
    #[schemars(range(min = 0))]
    pub refused: i64,
    /// Nodes by the revision that they run, newest first: the five with the most nodes.
    #[schemars(length(max = 5))]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub revisions: Vec<RevisionCount>,
}

/// Nodes that run one revision.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[schemars(inline)]
#[serde(default, rename_all = "camelCase")]
pub struct RevisionCount {
    /// The revision.
    #[schemars(range(min = 0))]
    pub revision: i64,
    /// How many nodes run it.
    #[schemars(range(min = 0))]
    pub nodes: i64,
}

/// Something that went wrong, however often.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[schemars(inline)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// What kind of failure, in one word.
    #[schemars(length(min = 1, max = 64))]
    pub reason: String,
    /// The origin it is about: scheme, host and port.
    #[schemars(length(max = 512))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// What happened and what to do about it.
    #[schemars(length(max = 512))]
    pub message: String,
    /// How often it was seen.
    #[schemars(range(min = 0))]
    pub count: i64,
    /// When it was first seen.
    #[schemars(extend("maxLength" = 40))]
    pub first_time: Time,
    /// When it was last seen.
    #[schemars(extend("maxLength" = 40))]
    pub last_time: Time,
}
