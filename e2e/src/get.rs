//! A `dragonfly get` and what it says of itself.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{ChildStderr, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::process::Process;
use crate::{Failed, Result};

/// Where the bytes of a download came from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// From the origin, by this node.
    pub origin: u64,
    /// From seeds.
    pub seeds: u64,
    /// From peers.
    pub peers: u64,
    /// Held by the node before this download.
    pub cache: u64,
}

/// How far a download is.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// Bytes there are of the output.
    pub have: u64,
    /// Bytes there will be, once known.
    pub total: Option<u64>,
    /// Where they came from.
    pub traffic: Traffic,
    /// How often the node was away.
    pub reconnects: u32,
    /// What the node still had of this download when it was back.
    pub kept: u64,
    /// The last word: done.
    pub done: bool,
    /// Lines that are no events: errors for people.
    pub other: Vec<String>,
    /// All events.
    pub events: Vec<Value>,
    /// What a node that went away had fetched for it.
    before: Traffic,
}

impl State {
    fn line(&mut self, line: &str) {
        let Ok(event) = serde_json::from_str::<Value>(line) else {
            self.other.push(line.to_owned());
            return;
        };
        let number = |name: &str| event[name].as_u64();
        match event["event"].as_str() {
            Some("started") => self.total = number("end").or(self.total),
            Some(kind @ ("progress" | "done")) => {
                self.done = kind == "done";
                self.have = number("have").unwrap_or(self.have);
                self.total = number("total").or(self.total);
                let of = |name: &str| number(name).unwrap_or(0);
                self.traffic = Traffic {
                    origin: self.before.origin + of("fromOrigin"),
                    seeds: self.before.seeds + of("fromSeeds"),
                    peers: self.before.peers + of("fromPeers"),
                    cache: if self.reconnects == 0 {
                        of("fromCache")
                    } else {
                        self.before.cache
                    },
                };
                if self.reconnects > 0 {
                    self.kept = of("fromCache");
                }
            }
            Some("reconnecting") => {
                self.reconnects += 1;
                // The node counts anew; what it held is in its cache now.
                self.before = self.traffic;
            }
            _ => {}
        }
        self.events.push(event);
    }
}

/// How a download ended.
#[derive(Debug)]
pub struct Ended {
    /// The exit code; none after a signal.
    pub code: Option<i32>,
    /// All it said.
    pub state: State,
    /// From its start to its end.
    pub took: Duration,
}

impl Ended {
    /// What it complained of.
    pub fn complaint(&self) -> String {
        let failed = self
            .state
            .events
            .iter()
            .rev()
            .find(|e| e["event"] == "failed");
        let failed = failed
            .and_then(|e| e["message"].as_str())
            .map(str::to_owned);
        failed.unwrap_or_else(|| self.state.other.join("\n"))
    }
}

/// A `dragonfly get` that runs. Killed when dropped.
#[derive(Debug)]
pub struct Get {
    /// Where its content goes.
    pub output: PathBuf,
    process: Process,
    begun: Instant,
    took: Option<Duration>,
    state: Arc<Mutex<State>>,
    reader: Option<JoinHandle<()>>,
}

impl Get {
    /// Starts it with `--output json`, for the node at `socket`.
    pub fn start(
        dragonfly: &Path,
        socket: &Path,
        url: &str,
        output: &Path,
        more: &[&str],
    ) -> Result<Self> {
        let mut command = Command::new(dragonfly);
        command
            .args(["get", url, "--output", "json", "-O"])
            .arg(output);
        command.arg("--socket").arg(socket).args(more);
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let name = format!("get -O {}", output.display());
        let begun = Instant::now();
        let mut process = Process::spawn(&name, &mut command)?;
        let state = Arc::<Mutex<State>>::default();
        let reader = process
            .child()
            .stderr
            .take()
            .map(|errors| read(errors, state.clone()));
        Ok(Self {
            output: output.to_owned(),
            process,
            begun,
            took: None,
            state,
            reader,
        })
    }

    /// How far it is.
    pub fn state(&self) -> State {
        self.state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        let ended = self.process.ended().is_some();
        if ended && self.took.is_none() {
            self.took = Some(self.begun.elapsed());
        }
        ended
    }

    /// How long it has been running, or ran.
    pub fn took(&self) -> Duration {
        self.took.unwrap_or_else(|| self.begun.elapsed())
    }

    /// The process, for signals.
    pub const fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Until it has so much of the output.
    pub async fn until(&mut self, have: u64, limit: Duration) -> Result<()> {
        let until = Instant::now() + limit;
        while self.state().have < have {
            if self.has_ended() {
                let said = self.state().other.join("\n");
                let text = format!("ended before it had {have} bytes: {said}");
                return Err(Failed::at(&self.process.name, text));
            }
            if Instant::now() > until {
                let text = format!(
                    "has {} bytes after {limit:?}, not {have}",
                    self.state().have
                );
                return Err(Failed::at(&self.process.name, text));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Until it ends.
    pub async fn wait(mut self, limit: Duration) -> Result<Ended> {
        let until = Instant::now() + limit;
        while !self.has_ended() {
            if Instant::now() > until {
                let state = self.state();
                let text = format!(
                    "not done after {limit:?}: {} of {:?} bytes, {} reconnects, {:?}",
                    state.have,
                    state.total,
                    state.reconnects,
                    state.events.last()
                );
                return Err(Failed::at(&self.process.name, text));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let status = self.process.wait(Duration::from_secs(1)).await?;
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        Ok(Ended {
            code: status.code(),
            state: self.state(),
            took: self.took(),
        })
    }
}

fn read(errors: ChildStderr, state: Arc<Mutex<State>>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        for line in BufReader::new(errors.take(64 << 20)).lines() {
            let Ok(line) = line else { return };
            state
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .line(&line);
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_lost_node_had_fetched_counts_on() {
        let mut state = State::default();
        for line in [
            r#"{"event":"started","end":100}"#,
            r#"{"event":"progress","have":40,"total":100,"fromSeeds":30,"fromPeers":10}"#,
            r#"{"event":"reconnecting"}"#,
            r#"{"event":"done","have":100,"total":100,"fromCache":40,"fromPeers":60}"#,
            "no event",
        ] {
            state.line(line);
        }
        let traffic = Traffic {
            origin: 0,
            seeds: 30,
            peers: 70,
            cache: 0,
        };
        assert_eq!(
            (state.traffic, state.total, state.done),
            (traffic, Some(100), true)
        );
        assert_eq!(
            (state.reconnects, state.other),
            (1, vec!["no event".to_owned()])
        );
    }
}
