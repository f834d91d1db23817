//! dragonfly-client, the data plane of Dragonfly 2: its daemon at every node, and a stand-in for the
//! scheduler, which is not a program of that package.

mod api;
pub(crate) mod scheduler;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use dragonfly_e2e::process::Process;
use dragonfly_e2e::{Failed, Result};

use crate::bed::Bed;
use crate::systems::{REST, comes_up};
use scheduler::Parents;

/// What it is called in reports, with random parents.
pub(crate) const NAME: &str = "dragonfly-client";

/// Ports of one start of the daemons, from [`FIRST_PORT`] on.
const PORTS: u16 = 10;
/// Beyond those of our own meshes.
const FIRST_PORT: u16 = 4100;

/// Where to look for it.
#[derive(clap::Args)]
pub(crate) struct Place {
    /// Where dragonfly-client's programs are, if not in PATH
    #[arg(long, env = "BENCH_DRAGONFLY_CLIENT")]
    dragonfly_client: Option<PathBuf>,
}

impl Place {
    /// What is there; whoever misses it in the report is told why.
    pub(crate) fn programs(&self) -> Option<Programs> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut dirs: Vec<PathBuf> = self.dragonfly_client.iter().cloned().collect();
        dirs.extend(std::env::split_paths(&path));
        let found = dirs.into_iter().find(|d| {
            let there = |name| d.join(name).is_file();
            there("dfdaemon") && there("dfget")
        });
        if found.is_none() {
            eprintln!(
                "dragonfly-client is not here and left out: `make dragonfly-client` builds it"
            );
        }
        found.map(Programs)
    }
}

/// The directory of its programs.
#[derive(Clone)]
pub(crate) struct Programs(PathBuf);

/// A scheduler and a seed at node 0, a daemon at each other; gone when dropped.
pub(crate) struct Daemons {
    /// The scheduler first, then the nodes'.
    pub(crate) processes: Vec<Process>,
    programs: Programs,
    dir: PathBuf,
}

impl Daemons {
    /// `start` counts those of one bed: a daemon cannot listen where one ended a moment ago (it does
    /// not set `SO_REUSEADDR`), so that each start has ports of its own.
    pub(crate) fn start(bed: &Bed<'_>, parents: Parents, start: usize) -> Result<Self> {
        let programs = bed.others.dragonfly_client.clone();
        let programs = programs.ok_or(Failed("dragonfly-client is not here".to_owned()))?;
        let mut daemons = Self {
            processes: vec![],
            programs,
            dir: home(bed),
        };
        let made = |e| Failed::at(daemons.dir.display(), e);
        fs::create_dir_all(&daemons.dir).map_err(made)?;
        let ports = FIRST_PORT + PORTS * start as u16;
        let scheduler = format!("{}:{}", bed.net.ip(0), ports + PORTS - 1);
        let this = std::env::current_exe().map_err(|e| Failed::at("bench", e))?;
        let mut c = bed.net.command(0, &this);
        c.args(["dragonfly2-scheduler", &scheduler, parents.name()]);
        let log = daemons.dir.join("scheduler.log");
        c.stderr(fs::File::create(&log).map_err(|e| Failed::at(log.display(), e))?);
        let mut process = Process::spawn("the stand-in scheduler", &mut c)?;
        comes_up("the stand-in scheduler", &mut process, &log, || {
            fs::read_to_string(&log).is_ok_and(|l| l.contains(scheduler::LISTENS))
        })?;
        daemons.processes.push(process);
        for n in 0..=bed.case.peers() {
            let process = daemons.daemon(bed, n, ports, &scheduler, parents)?;
            daemons.processes.push(process);
        }
        for n in 0..=bed.case.peers() {
            let (socket, log) = (daemons.socket(n), daemons.dir.join(format!("n{n}.log")));
            let process = &mut daemons.processes[n + 1];
            comes_up("dfdaemon", process, &log, || socket.exists())?;
        }
        // What starting costs is not a download's.
        std::thread::sleep(REST);
        Ok(daemons)
    }

    fn daemon(
        &self,
        bed: &Bed<'_>,
        n: usize,
        ports: u16,
        scheduler: &str,
        parents: Parents,
    ) -> Result<Process> {
        let dir = self.dir.join(format!("n{n}"));
        fs::create_dir_all(&dir).map_err(|e| Failed::at(dir.display(), e))?;
        let at = |name: &str| dir.join(name).display().to_string();
        let port = |n: u16| serde_json::json!({"port": ports + n});
        // JSON is YAML. What is not said is as it is where nobody says anything, but for the limit that
        // refuses requests when processors are busy.
        let config = serde_json::json!({
            "host": {"hostname": format!("n{n}"), "ip": bed.net.ip(n)},
            "server": {"pluginDir": at("plugins"), "cacheDir": at("cache"), "adaptiveRateLimit": null},
            "download": {
                "server": {"socketPath": self.socket(n)},
                "concurrentPieceCount": parents.pieces_at_once(),
            },
            "upload": {"server": port(0)},
            "proxy": {"server": port(1)},
            "metrics": {"server": port(2)},
            "health": {"server": port(3)},
            "stats": {"server": port(4)},
            "storage": {
                "dir": at("storage"),
                "server": {"tcpPort": ports + 5, "quicPort": ports + 6},
            },
            "seedPeer": {"enable": n == 0, "type": if n == 0 { "super" } else { "normal" }},
        });
        let dynamic = serde_json::json!({"scheduler": {"addrs": [scheduler]}});
        for (name, text) in [("config.yaml", config), ("dynconfig.yaml", dynamic)] {
            let path = dir.join(name);
            fs::write(&path, text.to_string()).map_err(|e| Failed::at(path.display(), e))?;
        }
        let mut c = bed.net.command(n, &self.programs.0.join("dfdaemon"));
        c.args(["--console", "--log-level", "error", "--log-dir"])
            .arg(dir.join("logs"))
            .arg("--config")
            .arg(dir.join("config.yaml"))
            .arg("--dynconfig")
            .arg(dir.join("dynconfig.yaml"));
        let log = self.dir.join(format!("n{n}.log"));
        let log = fs::File::create(&log).map_err(|e| Failed::at(log.display(), e))?;
        c.stdout(log.try_clone().map_err(|e| Failed::at("a log", e))?);
        c.stderr(log);
        Process::spawn("dfdaemon", &mut c)
    }

    /// The processes of the nodes.
    pub(crate) fn nodes(&self) -> Vec<u32> {
        self.processes[1..].iter().map(Process::id).collect()
    }

    fn socket(&self, n: usize) -> PathBuf {
        self.dir.join(format!("n{n}.sock"))
    }

    /// The command of a client, which has its node's daemon write a file.
    pub(crate) fn get(&self, bed: &Bed<'_>, n: usize, url: &str, out: &Path) -> Command {
        let mut c = bed.net.command(n, &self.programs.0.join("dfget"));
        // Quiet but for the reason of a failure.
        c.stderr(std::process::Stdio::inherit());
        c.args(["--no-progress", "--scheduling-policy", "always"]);
        c.arg("--endpoint").arg(self.socket(n));
        c.arg("-O").arg(out).arg(url);
        c
    }
}

/// Where everything of theirs lies.
pub(crate) fn home(bed: &Bed<'_>) -> PathBuf {
    bed.dir.join("dragonfly2")
}
