//! Tests on real clusters. Most share one of two nodes, which goes when this binary ends.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod ends;
mod harness;
mod installed;
mod lifecycle;
mod mesh;
mod neighbours;
mod reports;
mod trace;
mod ways_in;

use std::sync::Arc;

use dragonfly_cluster::image::{Architecture, component};
use dragonfly_cluster::{Cluster, ClusterOptions, Result};

/// The cluster that tests share: containerd 1.6 on its first node, 2.x on its second.
async fn shared() -> Arc<Cluster> {
    Cluster::shared(&ClusterOptions::nodes(2)).await.unwrap()
}

/// Pushes an image of this project, from the program that was built beside this test.
async fn load(cluster: &Cluster, name: &str) -> Result<String> {
    let program = match name {
        "dragonfly" => dragonfly_e2e::binary::dragonfly()?,
        "dragonfly-operator" => dragonfly_e2e::binary::operator()?,
        _ => env!("CARGO_BIN_EXE_test-origin").into(),
    };
    let image = component(name)?.image(Architecture::HERE, &program)?;
    cluster.load_image(&image, &format!("{name}:dev")).await
}
