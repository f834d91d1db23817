//! `SchedulerPool`: the schedulers that serve one or more meshes of a namespace.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::placement::{Pods, Ready};

/// Schedulers, and how they choose who gets what from whom.
#[derive(CustomResource, JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "d7y.io",
    version = "v1alpha1",
    kind = "SchedulerPool",
    plural = "schedulerpools",
    shortname = "spool",
    category = "dragonfly",
    namespaced,
    status = "SchedulerPoolStatus",
    derive = "PartialEq",
    doc = "Schedulers that serve one or more meshes, and how they choose which nodes exchange content.",
    validation = Rule::new("size(self.metadata.name) <= 45").message("metadata.name must be at most 45 characters: names of other objects are made from it"),
    printcolumn(name = "Ready", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].status"#, description = "Whether the schedulers do what the spec says."),
    printcolumn(name = "Replicas", type_ = "integer", json_path = ".spec.replicas", description = "Schedulers wanted."),
    printcolumn(name = "Strategy", type_ = "string", json_path = ".spec.strategy.type", description = "How neighbours are chosen."),
    printcolumn(name = "Message", type_ = "string", priority = 1, json_path = r#".status.conditions[?(@.type=="Ready")].message"#, description = "Why."),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(default, rename_all = "camelCase")]
pub struct SchedulerPoolSpec {
    /// How many schedulers there are. Each content belongs to one of them; when it dies the next
    /// takes over.
    #[schemars(range(min = 1, max = 64))]
    pub replicas: i32,
    /// How the nodes that exchange a content are connected.
    pub strategy: Strategy,
    /// Nodes of each remote zone that fetch a content across zones; all others of that zone get it
    /// from them. More than one where links between zones are wider than a node's.
    #[schemars(range(min = 1, max = 16))]
    pub gateways: i32,
    /// Which nodes schedulers run on, and what they get there.
    pub pods: Pods,
}

impl Default for SchedulerPoolSpec {
    fn default() -> Self {
        Self {
            replicas: 1,
            strategy: Strategy::default(),
            gateways: 1,
            pods: Pods::default(),
        }
    }
}

/// How the nodes that exchange a content are connected.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[schemars(inline)]
#[serde(default, rename_all = "camelCase")]
pub struct Strategy {
    /// LeastConnected: a node that joins is put into the best of some random links between two others,
    /// by fewest neighbours and least load.
    #[serde(rename = "type")]
    pub type_: StrategyType,
    /// Neighbours that a node should have.
    #[schemars(range(min = 2, max = 64))]
    pub degree: i32,
    /// Random links, or nodes, looked at for each choice.
    #[schemars(range(min = 1, max = 64))]
    pub candidates: i32,
}

impl Default for Strategy {
    fn default() -> Self {
        Self {
            type_: StrategyType::LeastConnected,
            degree: 12,
            candidates: 8,
        }
    }
}

/// How a neighbour is chosen.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[schemars(inline)]
pub enum StrategyType {
    /// The fewest neighbours and the least load.
    #[default]
    LeastConnected,
}

/// What is known of a SchedulerPool.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(default, rename_all = "camelCase")]
pub struct SchedulerPoolStatus {
    /// The generation of the spec that the rest of this status is about.
    #[schemars(range(min = 0))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready, Reconciling and Stalled.
    #[schemars(length(max = 16))]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// Meshes that these schedulers serve; each has schedulers of its own.
    #[schemars(range(min = 0))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub distributions: Option<i32>,
    /// Schedulers of all these meshes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedulers: Option<Ready>,
}
