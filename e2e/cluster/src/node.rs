//! A node as tests see it: commands in its namespaces, files on its disk.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use tokio::process::Command;

use dragonfly_e2e::{Failed, Result};

use crate::options::Containerd;
use crate::supervisor::NodeInfo;

/// No command on a node takes longer.
const LIMIT: Duration = Duration::from_secs(120);

/// One node.
#[derive(Debug, Clone, Copy)]
pub struct Node<'a> {
    info: &'a NodeInfo,
}

impl<'a> Node<'a> {
    pub(crate) const fn new(info: &'a NodeInfo) -> Self {
        Self { info }
    }

    /// As Kubernetes calls it.
    pub fn name(&self) -> &'a str {
        &self.info.name
    }

    /// Its preferred address.
    pub fn address(&self) -> &'a str {
        &self.info.address
    }

    /// What it runs.
    pub const fn containerd(&self) -> Containerd {
        self.info.containerd
    }

    /// Where the machine that runs it all has a file of the node, if the node has its own of it.
    pub fn path(&self, on_node: &Path) -> PathBuf {
        let below = on_node.strip_prefix("/").unwrap_or(on_node);
        self.info.dir.join(below)
    }

    /// Runs a command as the node's root, in its network, mounts and name.
    ///
    /// # Errors
    /// It cannot be started, or it takes minutes. How it ends is in the output.
    pub async fn exec(&self, line: &[&str]) -> Result<Output> {
        let what = format!("{} on {}", line.join(" "), self.info.name);
        let enter = crate::supervisor::enter(self.info.holder, true);
        // In the cluster's cgroup: whatever comes of it goes with the cluster, not with this program.
        let mut command = Command::from(crate::supervisor::joining(&self.info.procs));
        command.args(enter).args(line).current_dir("/");
        command.stdin(Stdio::null()).kill_on_drop(true);
        let ended = tokio::time::timeout(LIMIT, command.output()).await;
        let ended = ended.map_err(|_| Failed::at(&what, format!("still runs after {LIMIT:?}")))?;
        ended.map_err(|e| Failed::at(&what, e))
    }

    /// The same, and it has to succeed: what it wrote.
    ///
    /// # Errors
    /// It ends with anything but 0: with what it said.
    pub async fn run(&self, line: &[&str]) -> Result<String> {
        let out = self.exec(line).await?;
        if out.status.success() {
            return Ok(String::from_utf8_lossy(&out.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        Err(Failed(format!(
            "{} on {}: {}: {said}",
            line.join(" "),
            self.info.name,
            out.status
        )))
    }
}
