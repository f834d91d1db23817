//! One process: signals, its end, its log.

use std::fs::{File, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::{Failed, Result, watchdog};

const LOOK_EVERY: Duration = Duration::from_millis(10);

/// A process of ours, in a process group of its own so that no terminal interrupts it. Killed when
/// dropped.
#[derive(Debug)]
pub struct Process {
    /// What it is called in messages.
    pub name: String,
    child: Child,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts it; its standard streams are as the command says.
    pub fn spawn(name: &str, command: &mut Command) -> Result<Self> {
        command.stdin(Stdio::null()).process_group(0);
        let child = command.spawn().map_err(|e| Failed::at(name, e))?;
        watchdog::started(child.id());
        Ok(Self {
            name: name.to_owned(),
            child,
            ended: None,
        })
    }

    /// Its id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The process as the standard library has it, for its pipes.
    pub const fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Sends a signal, unless it has ended.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if self.ended().is_some() {
            return Err(Failed::at(&self.name, "has ended already"));
        }
        let sent = kill_process(Pid::from_child(&self.child), signal);
        sent.map_err(|e| Failed::at(&self.name, e))
    }

    /// SIGKILL, and until it is gone.
    pub fn kill(&mut self) {
        if self.ended.is_none() {
            let _ = self.child.kill();
            self.ended = self.child.wait().ok();
            watchdog::ended(self.child.id());
        }
    }

    /// How it ended, if it did.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().ok().flatten();
            if self.ended.is_some() {
                watchdog::ended(self.child.id());
            }
        }
        self.ended
    }

    /// Until it ends by itself.
    pub async fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let until = Instant::now() + limit;
        loop {
            if let Some(status) = self.ended() {
                return Ok(status);
            }
            if Instant::now() > until {
                let doing = threads(self.child.id()).join(", ");
                return Err(Failed(format!(
                    "{} did not end within {limit:?}: {doing}",
                    self.name
                )));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What each thread of a process is called, its state and what it waits for in the kernel (proc(5)).
fn threads(id: u32) -> Vec<String> {
    let read = |path: &Path, name: &str| {
        let text = std::fs::read_to_string(path.join(name)).unwrap_or_default();
        text.trim().to_owned()
    };
    let listed = std::fs::read_dir(format!("/proc/{id}/task"));
    let tasks = listed.into_iter().flatten().flatten().map(|e| e.path());
    tasks
        .map(|path| {
            let stat = read(&path, "stat");
            let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.get(..1));
            let (name, waits) = (read(&path, "comm"), read(&path, "wchan"));
            format!("{name} {} {waits}", state.unwrap_or("gone"))
        })
        .collect()
}

/// A log that restarts of a process go on with.
pub fn log(path: &Path) -> Result<File> {
    let opened = OpenOptions::new().create(true).append(true).open(path);
    opened.map_err(|e| Failed::at(path.display(), e))
}

/// The last lines of logs, for who looks into a failure.
pub fn tail(logs: &[PathBuf], lines: usize) -> String {
    let mut out = String::new();
    for path in logs {
        let text = std::fs::read(path).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let all: Vec<_> = text.lines().collect();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        out.push_str(&format!("--- {name}\n"));
        for line in &all[all.len().saturating_sub(lines)..] {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}
