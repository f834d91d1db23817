//! The daemons of a cluster: started in its cgroup, some of them in a machine's namespaces; watched;
//! started again when told to.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitOptions, kill_process, wait};

use dragonfly_e2e::process::{log, tail};
use dragonfly_e2e::{Failed, Result};

use crate::cgroup::Cgroup;

/// Joins the cgroup whose file is the first argument, and becomes the rest.
const JOIN: &str = r#"echo 0 >"$0" && exec "$@""#;
/// Lines of a log that are worth showing.
const LINES: usize = 20;
/// How often a daemon that ended by itself is started again, and how long after.
const AGAIN: u32 = 5;
const PAUSE: Duration = Duration::from_millis(500);
/// How long a killed process may take to be gone.
const GONE: Duration = Duration::from_secs(10);

pub(crate) struct Processes {
    pub(crate) cgroup: Cgroup,
    logs: PathBuf,
    daemons: Vec<Daemon>,
}

struct Daemon {
    name: String,
    line: Vec<String>,
    environment: Vec<(String, String)>,
    id: Option<i32>,
    /// How it ended, told once.
    ended: Option<String>,
    /// How often it is started again by itself, as service managers do.
    again: u32,
    /// When that is to be.
    due: Option<Instant>,
}

impl Processes {
    pub(crate) fn new(cgroup: Cgroup, logs: &Path) -> Result<Self> {
        fs::create_dir_all(logs).map_err(|e| Failed::at(logs.display(), e))?;
        Ok(Self {
            cgroup,
            logs: logs.to_owned(),
            daemons: vec![],
        })
    }

    /// Starts a daemon: a whole command line, with what comes before the program itself.
    pub(crate) fn start(&mut self, name: &str, line: Vec<String>) -> Result<i32> {
        self.begin(name, line, vec![], 0)
    }

    /// The same of a daemon that gives up when another is not there yet.
    pub(crate) fn start_again(
        &mut self,
        name: &str,
        line: Vec<String>,
        environment: Vec<(String, String)>,
    ) -> Result<i32> {
        self.begin(name, line, environment, AGAIN)
    }

    fn begin(
        &mut self,
        name: &str,
        line: Vec<String>,
        environment: Vec<(String, String)>,
        again: u32,
    ) -> Result<i32> {
        let mut daemon = Daemon {
            name: name.to_owned(),
            line,
            environment,
            id: None,
            ended: None,
            again,
            due: None,
        };
        let id = self.spawn(&mut daemon)?;
        self.daemons.push(daemon);
        Ok(id)
    }

    fn spawn(&self, daemon: &mut Daemon) -> Result<i32> {
        let wrong = |e| Failed::at(&daemon.name, e);
        let errors = log(&self.logs.join(format!("{}.log", daemon.name)))?;
        let output = errors.try_clone().map_err(wrong)?;
        let mut command = joining(&self.cgroup.procs());
        let child = command
            .args(&daemon.line)
            .envs(daemon.environment.iter().map(|(k, v)| (k, v)))
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn()
            .map_err(wrong)?;
        let id = i32::try_from(child.id()).map_err(|e| Failed::at(&daemon.name, e))?;
        // `child` is not waited for: `reap` is, for these and for orphans.
        daemon.id = Some(id);
        Ok(id)
    }

    /// Collects those that ended. Nothing else here may be waiting for a child meanwhile.
    pub(crate) fn reap(&mut self) {
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            let id = Some(pid.as_raw_nonzero().get());
            if let Some(daemon) = self.daemons.iter_mut().find(|d| d.id == id) {
                daemon.id = None;
                let how = status.exit_status().map_or_else(
                    || {
                        format!(
                            "by signal {}",
                            status.terminating_signal().unwrap_or_default()
                        )
                    },
                    |code| format!("with status {code}"),
                );
                daemon.ended = Some(how);
            }
        }
    }

    /// Those that ended without being told to and stay away, since the last call.
    pub(crate) fn ended(&mut self) -> Vec<String> {
        self.reap();
        let now = Instant::now();
        let mut all = vec![];
        let mut daemons = std::mem::take(&mut self.daemons);
        for daemon in &mut daemons {
            if daemon.ended.is_some() && daemon.again > 0 {
                daemon.ended = None;
                daemon.again -= 1;
                daemon.due = Some(now + PAUSE);
            }
            if daemon.due.is_some_and(|due| due <= now) {
                daemon.due = None;
                if let Err(wrong) = self.spawn(daemon) {
                    daemon.ended = Some(wrong.to_string());
                }
            }
            if let Some(how) = daemon.ended.take() {
                let name = &daemon.name;
                all.push(format!("{name} ended {how}\n{}", self.tail(name)));
            }
        }
        self.daemons = daemons;
        all
    }

    /// SIGKILL, and until it is gone.
    pub(crate) fn kill(&mut self, name: &str) -> Result<()> {
        let id = self.find(name)?.id;
        let pid = id.and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| Failed::at(name, "does not run"))?;
        // A child that was not waited for keeps its id.
        kill_process(pid, Signal::KILL).map_err(|e| Failed::at(name, e))?;
        let until = Instant::now() + GONE;
        while self.find(name)?.id.is_some() {
            self.reap();
            if Instant::now() > until {
                return Err(Failed::at(
                    name,
                    format!("is not gone {GONE:?} after SIGKILL"),
                ));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let daemon = self.find(name)?;
        (daemon.ended, daemon.due) = (None, None);
        Ok(())
    }

    /// Ends it if it runs, and starts it with the same words.
    pub(crate) fn restart(&mut self, name: &str) -> Result<()> {
        self.reap();
        if self.find(name)?.id.is_some() {
            self.kill(name)?;
        }
        let at = self.daemons.iter().position(|d| d.name == name);
        let at = at.ok_or_else(|| Failed::at(name, "is not started here"))?;
        let mut daemon = self.daemons.remove(at);
        (daemon.ended, daemon.due) = (None, None);
        let spawned = self.spawn(&mut daemon);
        self.daemons.push(daemon);
        spawned.map(|_| ())
    }

    fn find(&mut self, name: &str) -> Result<&mut Daemon> {
        let names: Vec<_> = self.daemons.iter().map(|d| d.name.clone()).collect();
        let found = self.daemons.iter_mut().find(|d| d.name == name);
        found.ok_or_else(|| Failed::at(name, format!("is none of {}", names.join(", "))))
    }

    /// The last lines that it logged.
    pub(crate) fn tail(&self, name: &str) -> String {
        tail(&[self.logs.join(format!("{name}.log"))], LINES)
    }
}

/// A command that puts itself into a cgroup, named by its file of processes, and then becomes what its
/// arguments say.
pub(crate) fn joining(procs: &Path) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", JOIN]).arg(procs);
    command
}

/// Runs a command to its end; it has to succeed.
pub(super) fn run(what: &str, command: &mut Command) -> Result<()> {
    let out = command
        .stdin(Stdio::null())
        .output()
        .map_err(|e| Failed::at(what, e))?;
    if out.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&out.stderr);
    Err(Failed(format!("{what}: {}: {}", out.status, said.trim())))
}
