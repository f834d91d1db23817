//! The systems compared, and how each is set up as well as its own documents allow.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dragonfly_e2e::process::Process;
use dragonfly_e2e::{Failed, Result};

use crate::bed::Bed;
use crate::dragonfly2::scheduler::Parents;
use crate::dragonfly2::{self, Daemons};
use crate::net::sh;

#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(crate) enum System {
    DragonflyTls,
    DragonflyPlaintext,
    Libtorrent,
    Aria2,
    Http,
    /// dragonfly-client with random parents.
    DragonflyClient,
    /// The same, each peer behind another.
    DragonflyClientChain,
}

impl System {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::DragonflyTls => "dragonfly-tls",
            Self::DragonflyPlaintext => "dragonfly-plaintext",
            Self::Libtorrent => "libtorrent",
            Self::Aria2 => "aria2",
            Self::Http => "http",
            Self::DragonflyClient => dragonfly2::NAME,
            Self::DragonflyClientChain => "dragonfly-client-chain",
        }
    }

    pub(crate) const fn is_ours(self) -> bool {
        matches!(self, Self::DragonflyTls | Self::DragonflyPlaintext)
    }

    /// Whether its seed reads the content from the origin: the others start with it.
    pub(crate) const fn has_origin(self) -> bool {
        !matches!(self, Self::Libtorrent | Self::Aria2)
    }

    /// How the stand-in for its scheduler chooses parents, if it needs that.
    pub(crate) const fn parents(self) -> Option<Parents> {
        match self {
            Self::DragonflyClient => Some(Parents::Random),
            Self::DragonflyClientChain => Some(Parents::Chain),
            _ => None,
        }
    }

    /// Whether one run says enough, for it takes several times the limit.
    pub(crate) const fn is_slow(self) -> bool {
        matches!(self, Self::Http | Self::DragonflyClient)
    }
}

/// One mesh of ours: a scheduler and a seed at node 0, a peer at each other.
pub(crate) struct Mesh {
    pub(crate) scheduler: Process,
    /// The seed first.
    pub(crate) nodes: Vec<Process>,
    pub(crate) sockets: Vec<PathBuf>,
    dir: PathBuf,
    system: System,
}

impl Mesh {
    pub(crate) fn start(bed: &Bed<'_>, system: System) -> Result<Self> {
        let dir = bed.dir.join(system.name());
        let manifests = dir.join("manifests");
        let made = |e| Failed::at(dir.display(), e);
        fs::create_dir_all(&manifests).map_err(made)?;
        let transport = match system {
            System::DragonflyTls => "MutualTLS",
            _ => "Plaintext",
        };
        let text = format!(
            "apiVersion: d7y.io/v1alpha1\nkind: Distribution\nmetadata: {{name: bench}}\n\
             spec: {{profile: Light, storage: {{reserveFreePercent: 0}}, \
             security: {{transport: {transport}}}}}\n"
        );
        fs::write(manifests.join("mesh.yaml"), text).map_err(made)?;
        let mut scheduler = start_scheduler(bed, system, &dir)?;
        let token = dir.join("scheduler/mesh/join-token");
        let log = dir.join("scheduler.log");
        comes_up("the scheduler", &mut scheduler, &log, || token.exists())?;
        let mut mesh = Self {
            scheduler,
            nodes: vec![],
            sockets: vec![],
            dir,
            system,
        };
        for n in 0..=bed.case.peers() {
            let node = mesh.start_node(bed, n)?;
            mesh.nodes.push(node);
            mesh.sockets.push(mesh.home(n).join("node.sock"));
        }
        Ok(mesh)
    }

    fn home(&self, n: usize) -> PathBuf {
        self.dir.join(format!("node-{n}"))
    }

    fn start_node(&self, bed: &Bed<'_>, n: usize) -> Result<Process> {
        let role = if n == 0 { "seed" } else { "peer" };
        let (home, name) = (self.home(n), format!("n{n}"));
        let mut c = bed.net.command(n, &bed.bin);
        c.args([role, "--scheduler", &scheduler_address(bed, self.system)])
            .args([
                "--listen",
                &format!("{}:{}", bed.net.ip(n), port(self.system, 4000)),
            ])
            .args(["--name", &name, "--state"])
            .arg(&home)
            .arg("--socket")
            .arg(home.join("node.sock"));
        if self.system == System::DragonflyTls {
            let token = self.dir.join("scheduler/mesh/join-token");
            c.arg("--join-token-file").arg(token);
        }
        let log = fs::File::create(self.dir.join(format!("{name}.log")));
        c.stderr(log.map_err(|e| Failed::at(&name, e))?);
        Process::spawn(&name, &mut c)
    }

    /// Starts anew what a fault ended, for the next run.
    pub(crate) fn revive(&mut self, bed: &Bed<'_>) -> Result<()> {
        if self.scheduler.ended().is_some() {
            self.scheduler = start_scheduler(bed, self.system, &self.dir)?;
        }
        for n in 0..self.nodes.len() {
            if self.nodes[n].ended().is_some() {
                self.nodes[n] = self.start_node(bed, n)?;
            }
        }
        Ok(())
    }

    /// Removes what the nodes keep, as the files of the other systems are removed.
    pub(crate) fn forget(&self, bin: &Path) -> Result<()> {
        let bin = bin.display().to_string();
        for socket in &self.sockets {
            let socket = socket.display().to_string();
            let list = sh(&bin, &["ls", "--socket", &socket, "-o", "json"])?;
            for line in list.lines() {
                let task: serde_json::Value =
                    serde_json::from_str(line).map_err(|e| Failed::at("ls", e))?;
                let id = task["task"].as_str().unwrap_or_default();
                sh(&bin, &["rm", "--socket", &socket, id])?;
            }
        }
        Ok(())
    }

    pub(crate) const fn system(&self) -> System {
        self.system
    }

    pub(crate) fn pids(&self) -> impl Iterator<Item = u32> + '_ {
        self.nodes.iter().chain([&self.scheduler]).map(Process::id)
    }
}

/// Both meshes of ours are up at once: each has ports of its own.
const fn port(system: System, base: u16) -> u16 {
    match system {
        System::DragonflyTls => base,
        _ => base + 10,
    }
}

fn scheduler_address(bed: &Bed<'_>, system: System) -> String {
    format!("{}:{}", bed.net.ip(0), port(system, 8002))
}

fn start_scheduler(bed: &Bed<'_>, system: System, dir: &Path) -> Result<Process> {
    let mut c = bed.net.command(0, &bed.bin);
    c.args(["scheduler", "--listen", &scheduler_address(bed, system)])
        .arg("--state")
        .arg(dir.join("scheduler"))
        .arg("-f")
        .arg(dir.join("manifests"));
    let log = fs::File::create(dir.join("scheduler.log"));
    c.stderr(log.map_err(|e| Failed::at("scheduler", e))?);
    Process::spawn("scheduler", &mut c)
}

/// A client of one run.
pub(crate) struct Client {
    pub(crate) node: usize,
    pub(crate) command: std::process::Command,
    pub(crate) output: PathBuf,
    /// It goes on serving others when it is done, and says so by a file.
    pub(crate) mark: Option<PathBuf>,
}

/// Makes the command of the client at a node, which writes to a path.
type MakeClient<'a> = Box<dyn Fn(usize, &Path) -> Result<std::process::Command> + 'a>;

/// The clients of one run, and what has to be up beside them.
pub(crate) fn clients(
    bed: &Bed<'_>,
    system: System,
    run: usize,
) -> Result<(Vec<Client>, Vec<Process>)> {
    let mut helpers = vec![];
    let make: MakeClient<'_> = match system {
        System::DragonflyTls | System::DragonflyPlaintext => {
            let mesh = bed.meshes.iter().find(|m| m.system == system);
            let mesh = mesh.ok_or(Failed("no mesh".to_owned()))?;
            let url = bed.url(&format!("run-{}-{run}", system.name()));
            Box::new(move |n, out| {
                let mut c = bed.net.command(n, &bed.bin);
                // Quiet but for the reason of a failure.
                c.stderr(std::process::Stdio::inherit());
                c.args(["get", "--quiet", "--socket"]).arg(&mesh.sockets[n]);
                let out = if bed.case.stream { Path::new("-") } else { out };
                c.arg("-O").arg(out).arg(&url);
                Ok(c)
            })
        }
        System::Http => Box::new(|n, out| {
            let mut c = bed.net.command(n, Path::new("curl"));
            let url = bed.url("content");
            c.arg("-sfo").arg(out).arg(url);
            Ok(c)
        }),
        System::DragonflyClient | System::DragonflyClientChain => {
            let parents = system.parents().unwrap_or(Parents::Random);
            let start = 2 * run + usize::from(parents == Parents::Chain);
            let mut daemons = Daemons::start(bed, parents, start)?;
            helpers.append(&mut daemons.processes);
            let url = bed.url(&format!("run-{}-{run}", system.name()));
            Box::new(move |n, out| Ok(daemons.get(bed, n, &url, out)))
        }
        System::Libtorrent => {
            let script = torrent(bed, "")?;
            helpers.push(torrent_seed(bed, &script)?);
            let all: Vec<String> = (0..=bed.case.peers()).map(|n| bed.net.ip(n)).collect();
            Box::new(move |n, out| {
                let mut c = bed.net.command(n, &bed.others.python);
                c.arg(&script)
                    .arg("leech")
                    .arg(bed.dir.join("content.torrent"));
                c.arg(out).arg("-").args(&all);
                Ok(c)
            })
        }
        System::Aria2 => {
            let tracker = format!("{}:6969", bed.net.ip(0));
            let script = torrent(bed, &format!("http://{tracker}/announce"))?;
            let made = sh(
                &bed.others.python.display().to_string(),
                &[
                    &script.display().to_string(),
                    "make",
                    &bed.dir.join("content.torrent").display().to_string(),
                    &bed.content.display().to_string(),
                    "-",
                ],
            );
            made?;
            let this = std::env::current_exe().map_err(|e| Failed::at("bench", e))?;
            let mut c = bed.net.command(0, &this);
            c.args(["tracker", &tracker]);
            helpers.push(Process::spawn("tracker", &mut c)?);
            let mut seed = aria2(bed, 0, &bed.dir.join("www"))?;
            seed.arg("--bt-seed-unverified=true");
            seed.arg(bed.dir.join("content.torrent"));
            helpers.push(Process::spawn("aria2", &mut seed)?);
            // Until it has told the tracker.
            std::thread::sleep(Duration::from_secs(2));
            Box::new(move |n, out| {
                let dir = out.with_extension("dir");
                fs::create_dir_all(&dir).map_err(|e| Failed::at(dir.display(), e))?;
                let hook = out.with_extension("hook");
                let (file, done) = (dir.join("content"), out.with_extension("done"));
                let text = format!(
                    "#!/bin/sh\nln {} {}\n: > {}\n",
                    file.display(),
                    out.display(),
                    done.display()
                );
                script_file(&hook, &text)?;
                let mut c = aria2(bed, n, &dir)?;
                c.arg(format!("--on-bt-download-complete={}", hook.display()));
                c.arg(bed.dir.join("content.torrent"));
                Ok(c)
            })
        }
    };
    let stays = matches!(system, System::Libtorrent | System::Aria2);
    let mut clients = vec![];
    for node in 1..=bed.case.peers() {
        let output = bed.output(node);
        clients.push(Client {
            node,
            command: make(node, &output)?,
            mark: stays.then(|| output.with_extension("done")),
            output,
        });
    }
    Ok((clients, helpers))
}

fn script_file(path: &Path, text: &str) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let failed = |e| Failed::at(path.display(), e);
    fs::write(path, text).map_err(failed)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).map_err(failed)
}

/// aria2, tuned: plain TCP to all peers at once, no limits, no preallocation.
fn aria2(bed: &Bed<'_>, node: usize, dir: &Path) -> Result<std::process::Command> {
    let mut c = bed.net.command(node, Path::new("aria2c"));
    c.args([
        "--no-conf",
        "--quiet",
        "--enable-dht=false",
        "--enable-dht6=false",
        "--enable-peer-exchange=false",
        "--bt-enable-lpd=false",
        "--bt-max-peers=0",
        "--bt-request-peer-speed-limit=1000M",
        "--bt-tracker-interval=1",
        "--bt-require-crypto=false",
        "--seed-ratio=0.0",
        "--file-allocation=none",
        "--disk-cache=64M",
        "--allow-overwrite=true",
        "--listen-port=6881",
    ]);
    c.arg(format!("--bt-external-ip={}", bed.net.ip(node)));
    c.arg("--dir").arg(dir);
    Ok(c)
}

/// Writes the script of the BitTorrent nodes.
fn torrent(bed: &Bed<'_>, tracker: &str) -> Result<PathBuf> {
    let script = bed.dir.join("torrent.py");
    let text = include_str!("torrent.py").replace("@TRACKER@", tracker);
    fs::write(&script, text).map_err(|e| Failed::at(script.display(), e))?;
    Ok(script)
}

fn torrent_seed(bed: &Bed<'_>, script: &Path) -> Result<Process> {
    let ready = bed.dir.join("seeding");
    let _ = fs::remove_file(&ready);
    let mut c = bed.net.command(0, &bed.others.python);
    c.arg(script)
        .arg("seed")
        .arg(bed.dir.join("content.torrent"));
    c.arg(&bed.content).arg(&ready);
    let seed = Process::spawn("libtorrent", &mut c)?;
    wait_for("libtorrent's seed (has python its module?)", || {
        ready.exists()
    })?;
    Ok(seed)
}

/// How long a node that started may take to come to rest.
pub(crate) const REST: Duration = Duration::from_secs(3);

/// Waits for something to be there, at most half a minute.
pub(crate) fn wait_for(what: &str, mut there: impl FnMut() -> bool) -> Result<()> {
    let until = Instant::now() + Duration::from_secs(30);
    while !there() {
        if Instant::now() > until {
            return Err(Failed::at(what, "does not start"));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// The same for what a process makes: where it ends instead, the end of its log says why.
pub(crate) fn comes_up(
    what: &str,
    process: &mut Process,
    log: &Path,
    there: impl Fn() -> bool,
) -> Result<()> {
    wait_for(what, || there() || process.ended().is_some())?;
    match process.ended() {
        None => Ok(()),
        Some(status) => {
            let log = fs::read_to_string(log).unwrap_or_default();
            let last = log.lines().last().unwrap_or("it logged nothing");
            Err(Failed::at(what, format!("{status}: {last}")))
        }
    }
}
