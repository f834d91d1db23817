//! A supervisor as its harness has it: a child, and the two pipes that tie it.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::Mutex;

use dragonfly_e2e::{Failed, Result};

use crate::supervisor::{Info, Request, Said};

/// How long taking down may take.
const DOWN: Duration = Duration::from_secs(40);

/// The process that holds the cluster, and the two pipes.
#[derive(Debug)]
pub(crate) struct Supervisor {
    child: Child,
    pub(crate) pipes: Mutex<Pipes>,
}

#[derive(Debug)]
pub(crate) struct Pipes {
    // Dropped: the cluster goes.
    orders: ChildStdin,
    said: Lines<BufReader<ChildStdout>>,
}

/// Whether a child has ended, reaped or not.
fn gone(id: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    let state = stat
        .rsplit_once(')')
        .and_then(|(_, rest)| rest.trim_start().chars().next());
    matches!(state, None | Some('Z'))
}

impl Supervisor {
    /// Starts one; nothing of a cluster is there yet.
    pub(crate) fn start() -> Result<Self> {
        let program = program()?;
        let mut child = Command::new(&program)
            .arg("supervise")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| Failed::at(program.display(), e))?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        let (orders, said) =
            pipes.ok_or_else(|| Failed("a supervisor without pipes".to_owned()))?;
        let said = BufReader::new(said).lines();
        Ok(Self {
            child,
            pipes: Mutex::new(Pipes { orders, said }),
        })
    }

    /// Until all daemons are started.
    pub(crate) async fn up(&mut self, request: &Request) -> Result<Info> {
        let pipes = self.pipes.get_mut();
        pipes.tell(request).await?;
        loop {
            match pipes.next().await? {
                Said::Up(info) => return Ok(*info),
                Said::Failed(why) | Said::Ended(why) => return Err(Failed(why)),
                Said::Done => {}
            }
        }
    }

    /// Has it take the cluster down, and waits on this thread until it has.
    pub(crate) fn end_blocking(self) {
        drop(self.pipes);
        let until = std::time::Instant::now() + DOWN;
        while let Some(id) = self.child.id() {
            if gone(id) || std::time::Instant::now() > until {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Has it take the cluster down, and waits until it has.
    pub(crate) async fn end(self) -> Result<()> {
        drop(self.pipes);
        let mut child = self.child;
        let ended = tokio::time::timeout(DOWN, child.wait()).await;
        let ended = ended.map_err(|_| Failed(format!("the cluster is not down after {DOWN:?}")))?;
        match ended {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(Failed::at("the cluster's supervisor", status)),
            Err(e) => Err(Failed::at("the cluster's supervisor", e)),
        }
    }
}

impl Pipes {
    pub(crate) async fn tell(&mut self, what: &impl serde::Serialize) -> Result<()> {
        let wrong = |e: &dyn std::fmt::Display| Failed::at("the cluster's supervisor", e);
        let mut line = serde_json::to_string(what).map_err(|e| wrong(&e))?;
        line.push('\n');
        self.orders
            .write_all(line.as_bytes())
            .await
            .map_err(|e| wrong(&e))?;
        self.orders.flush().await.map_err(|e| wrong(&e))
    }

    /// What it says next. Cancelled, nothing is lost.
    pub(crate) async fn next(&mut self) -> Result<Said> {
        let wrong = |e: &dyn std::fmt::Display| Failed::at("the cluster's supervisor", e);
        let line = self.said.next_line().await.map_err(|e| wrong(&e))?;
        let line = line.ok_or_else(|| wrong(&"ended"))?;
        serde_json::from_str(&line).map_err(|e| wrong(&e))
    }
}

/// The program with the supervisor: this one, or the one beside this test.
fn program() -> Result<PathBuf> {
    let own = std::env::current_exe().map_err(|e| Failed::at("this program's own path", e))?;
    if own.file_name().is_some_and(|name| name == "cluster") {
        return Ok(own);
    }
    dragonfly_e2e::binary::program("cluster", "dragonfly-cluster", "DRAGONFLY_CLUSTER_BIN")
}
