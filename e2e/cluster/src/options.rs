//! What cluster is wanted.

use serde::{Deserialize, Serialize};

/// Which containerd a node runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Containerd {
    /// 1.6, the package of Debian 12.
    Debian,
    /// 2.x, built from its Go module.
    Two,
}

/// Which addresses nodes, pods and services have.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, clap::ValueEnum,
)]
pub enum IpFamily {
    /// IPv4 only.
    #[default]
    #[value(name = "ipv4")]
    V4,
    /// IPv6 only.
    #[value(name = "ipv6")]
    V6,
    /// Both, IPv4 first.
    Dual,
}

impl IpFamily {
    /// Whether there are IPv4 addresses.
    pub const fn has_v4(self) -> bool {
        matches!(self, Self::V4 | Self::Dual)
    }

    /// Whether there are IPv6 addresses.
    pub const fn has_v6(self) -> bool {
        matches!(self, Self::V6 | Self::Dual)
    }
}

/// What to start.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ClusterOptions {
    /// A node each, `node-0` first, with its containerd. None: an API server alone, where objects are
    /// kept and checked and nothing acts on them.
    pub nodes: Vec<Containerd>,
    /// Addresses.
    pub family: IpFamily,
}

impl ClusterOptions {
    /// The most nodes that a cluster's addresses and this machine's kind have room for.
    pub const MOST_NODES: usize = 32;

    /// So many nodes, with containerd 1.6 and 2.x by turns, so that two nodes try both.
    pub fn nodes(count: usize) -> Self {
        let turns = [Containerd::Debian, Containerd::Two];
        Self {
            nodes: turns.into_iter().cycle().take(count).collect(),
            family: IpFamily::V4,
        }
    }

    /// An API server (and etcd) alone: for tests of what is stored, checked and watched.
    pub fn api_server() -> Self {
        Self::nodes(0)
    }

    /// The same with other addresses.
    #[must_use]
    pub const fn family(mut self, family: IpFamily) -> Self {
        self.family = family;
        self
    }
}

impl Default for ClusterOptions {
    fn default() -> Self {
        Self::nodes(2)
    }
}
