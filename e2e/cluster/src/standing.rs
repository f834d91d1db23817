//! Clusters of this machine, whoever started them.

use std::fmt;

use dragonfly_e2e::{Failed, Result};

use crate::Cluster;
use crate::supervisor::{Held, held, sweep_all};

/// A cluster that runs or starts.
#[derive(Debug)]
pub struct Standing(Held);

/// All of them.
pub fn all() -> Vec<Standing> {
    held().into_iter().map(Standing).collect()
}

/// The one of a number, to be used.
///
/// # Errors
/// There is none, or it still starts.
pub fn find(number: u8) -> Result<Cluster> {
    let found = held()
        .into_iter()
        .find(|c| c.number == number)
        .and_then(|c| c.info);
    found
        .map(Cluster::of)
        .ok_or_else(|| Failed(format!("no cluster {number} is up")))
}

/// Removes what was left of clusters whose supervisor was killed.
///
/// # Errors
/// Something does not go away.
pub fn sweep() -> Result<()> {
    sweep_all(|| ())
}

impl Standing {
    /// Which of the clusters of this machine it is.
    pub const fn number(&self) -> u8 {
        self.0.number
    }

    /// Whether it outlives who started it.
    pub const fn kept(&self) -> bool {
        self.0.kept
    }

    /// Takes it down, and waits until it is gone.
    ///
    /// # Errors
    /// Its supervisor does not end.
    pub fn down(&self) -> Result<()> {
        self.0.end()
    }
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whose = if self.kept() {
            "stays"
        } else {
            "ends with its test"
        };
        match &self.0.info {
            Some(info) => write!(
                f,
                "cluster {} with {} nodes, {whose}: KUBECONFIG={}",
                self.0.number,
                info.nodes.len(),
                info.kubeconfig.display()
            ),
            None => write!(f, "cluster {} starts", self.0.number),
        }
    }
}
