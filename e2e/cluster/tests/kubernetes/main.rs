//! Tests on real clusters. Most share one of two nodes, which goes when this binary ends.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod ends;
mod harness;
mod lifecycle;
mod mesh;
mod neighbours;
mod trace;

use std::sync::Arc;

use dragonfly_cluster::{Cluster, ClusterOptions};

/// The cluster that tests share: containerd 1.6 on its first node, 2.x on its second.
async fn shared() -> Arc<Cluster> {
    Cluster::shared(&ClusterOptions::nodes(2)).await.unwrap()
}
