//! A scheduler, seeds and peers as processes, from manifests.

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::get::Get;
use crate::links::Place;
use crate::process::{Process, log, tail};
use crate::{Failed, Result, binary, http, manifests, watchdog};

/// How long a part may take to be ready.
const READY: Duration = Duration::from_secs(30);

/// What to start.
#[derive(Debug, Clone)]
pub struct Options {
    /// Seeds.
    pub seeds: usize,
    /// Peers.
    pub peers: usize,
    /// The transport of the samples, which is mutual TLS, or plaintext.
    pub plaintext: bool,
    /// Lines for the Distribution's `spec`, indented by two.
    pub spec: String,
    /// Where the temporary directory is made; the system's place if none.
    pub within: Option<PathBuf>,
    /// Leave the directory behind.
    pub keep: bool,
    /// Where scheduler, seeds and peers run, in this order; whoever has no place is on loopback.
    pub places: Vec<Place>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            seeds: 1,
            peers: 2,
            plaintext: false,
            spec: String::new(),
            within: None,
            keep: false,
            places: vec![],
        }
    }
}

/// Which part of a mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// `dragonfly scheduler`.
    Scheduler,
    /// `dragonfly seed`.
    Seed,
    /// `dragonfly peer`.
    Peer,
}

/// One process of a mesh, that may be away for a while.
#[derive(Debug)]
pub struct Member {
    /// Its name, in the mesh too.
    pub name: String,
    /// Its log; restarts go on with it.
    pub log: PathBuf,
    /// Where its clients ask, if it has any.
    pub socket: PathBuf,
    /// Where it listens for the mesh.
    pub listen: SocketAddr,
    /// Where it listens for `/readyz` and `/metrics`.
    pub admin: SocketAddr,
    /// What it keeps.
    pub state: PathBuf,
    /// Variables for its process, beside those that it has from this one.
    pub environment: Vec<(String, String)>,
    line: Vec<String>,
    args: Vec<String>,
    process: Option<Process>,
}

impl Member {
    /// Starts it, again with what it kept; `ready` tells when it serves.
    pub fn start(&mut self) -> Result<()> {
        let wrong = |e| Failed::at(&self.name, e);
        let errors = log(&self.log)?;
        let output = errors.try_clone().map_err(wrong)?;
        let mut command = Command::new(self.line.first().map_or("", String::as_str));
        command.args(self.line.iter().skip(1)).args(&self.args);
        command.stdout(output).stderr(errors);
        // Its arguments say all there is to know.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("DRAGONFLY_") && name != "DRAGONFLY_LOG" {
                command.env_remove(name);
            }
        }
        command.envs(self.environment.iter().map(|(k, v)| (k, v)));
        self.process = Some(Process::spawn(&self.name, &mut command)?);
        Ok(())
    }

    /// Until it says that it is ready.
    pub async fn ready(&mut self) -> Result<()> {
        let until = Instant::now() + READY;
        loop {
            let answer = http::get(self.admin, "/readyz").await;
            if matches!(answer, Ok((200, _))) {
                return Ok(());
            }
            if let Some(status) = self.process.as_mut().and_then(Process::ended) {
                let said = tail(std::slice::from_ref(&self.log), 5);
                return Err(Failed(format!("{} ended: {status}\n{said}", self.name)));
            }
            if Instant::now() > until {
                let why = answer.map_or_else(|e| e.to_string(), |(_, body)| body);
                return Err(Failed(format!(
                    "{} is not ready after {READY:?}: {why}",
                    self.name
                )));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Has it run by another program from its next start on, which gets its command line.
    pub fn run_by(&mut self, line: &[&str]) {
        self.line
            .splice(0..0, line.iter().map(|&word| word.to_owned()));
    }

    /// How it ended, if it did and was not told to.
    pub fn has_ended(&mut self) -> Option<std::process::ExitStatus> {
        self.process.as_mut().and_then(Process::ended)
    }

    /// The id of its process.
    pub fn id(&mut self) -> Result<u32> {
        self.running().map(|process| process.id())
    }

    /// kill -9.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Sends a signal.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        self.running()?.signal(signal)
    }

    /// SIGTERM, and until it has ended in good order.
    pub async fn terminate(&mut self, limit: Duration) -> Result<()> {
        let process = self.running()?;
        process.signal(Signal::TERM)?;
        let status = process.wait(limit).await?;
        self.process = None;
        if status.success() {
            Ok(())
        } else {
            let said = tail(std::slice::from_ref(&self.log), 5);
            Err(Failed(format!(
                "{} did not end in good order: {status}\n{said}",
                self.name
            )))
        }
    }

    /// Until it ends by itself; its exit code.
    pub async fn ended(&mut self, limit: Duration) -> Result<Option<i32>> {
        Ok(self.running()?.wait(limit).await?.code())
    }

    /// A number of its `/metrics`, summed over labels.
    pub async fn metric(&self, name: &str) -> Result<f64> {
        let (_, text) = http::get(self.admin, "/metrics").await?;
        let mut sum = None;
        for line in text.lines() {
            let Some(rest) = line.strip_prefix(name) else {
                continue;
            };
            if !rest.starts_with([' ', '{']) {
                continue;
            }
            let value = rest.rsplit(' ').next().and_then(|v| v.parse::<f64>().ok());
            sum = Some(sum.unwrap_or(0.0) + value.unwrap_or(0.0));
        }
        sum.ok_or_else(|| Failed(format!("{} has no metric {name}:\n{text}", self.name)))
    }

    /// What it wrote to its log.
    pub fn said(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    fn running(&mut self) -> Result<&mut Process> {
        self.process
            .as_mut()
            .ok_or_else(|| Failed::at(&self.name, "does not run"))
    }
}

/// A mesh of processes. Ended and removed when dropped.
#[derive(Debug)]
pub struct Mesh {
    /// The scheduler.
    pub scheduler: Member,
    /// Seeds.
    pub seeds: Vec<Member>,
    /// Peers.
    pub peers: Vec<Member>,
    /// The manifests, to be edited.
    pub manifests: PathBuf,
    /// For outputs and whatever else a test writes.
    pub work: PathBuf,
    /// The binary.
    pub dragonfly: PathBuf,
    token: Option<PathBuf>,
    places: Vec<Place>,
    // Last: removed after the processes have ended.
    dir: TempDir,
}

impl Mesh {
    /// Starts all and waits until each is ready.
    pub async fn start(options: &Options) -> Result<Self> {
        let mut mesh = Self::prepare(options)?;
        mesh.begin().await?;
        Ok(mesh)
    }

    /// Starts all of a prepared mesh and waits until each is ready.
    pub async fn begin(&mut self) -> Result<()> {
        self.scheduler.start()?;
        self.scheduler.ready().await?;
        let nodes = self.seeds.iter_mut().chain(&mut self.peers);
        nodes.into_iter().try_for_each(Member::start)?;
        for node in self.seeds.iter_mut().chain(&mut self.peers) {
            node.ready().await?;
        }
        Ok(())
    }

    /// A directory, manifests, ports: nothing runs yet.
    pub fn prepare(options: &Options) -> Result<Self> {
        let dragonfly = binary::dragonfly()?;
        let mut builder = tempfile::Builder::new();
        builder
            .prefix("dragonfly-mesh-")
            .disable_cleanup(options.keep);
        let dir = match &options.within {
            Some(within) => builder.tempdir_in(within),
            None => builder.tempdir(),
        };
        let dir = dir.map_err(|e| Failed::at("a temporary directory", e))?;
        if !options.keep {
            watchdog::made(dir.path());
        }
        let made = |name: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir_all(&path).map_err(|e| Failed::at(path.display(), e))?;
            Ok(path)
        };
        let (manifests, work) = (made("manifests")?, made("work")?);
        made("logs")?;
        manifests::write(&manifests, options)?;
        let manifests_arg = manifests.display().to_string();
        let mut places = options.places.clone();
        places.reverse();
        let place = places.pop();
        let mut scheduler = member(&dragonfly, dir.path(), "scheduler", Part::Scheduler, place)?;
        scheduler.args.extend(["-f".to_owned(), manifests_arg]);
        let token = (!options.plaintext).then(|| scheduler.state.join("mesh/join-token"));
        let mut mesh = Self {
            scheduler,
            seeds: vec![],
            peers: vec![],
            manifests,
            work,
            dragonfly,
            token,
            places,
            dir,
        };
        for n in 0..options.seeds {
            let place = mesh.places.pop();
            let seed = mesh.placed(
                &format!("seed-{n}"),
                Part::Seed,
                mesh.token.as_deref(),
                place,
            )?;
            mesh.seeds.push(seed);
        }
        for n in 0..options.peers {
            let place = mesh.places.pop();
            let peer = mesh.placed(
                &format!("peer-{n}"),
                Part::Peer,
                mesh.token.as_deref(),
                place,
            )?;
            mesh.peers.push(peer);
        }
        Ok(mesh)
    }

    /// One more node, not started; not one of `seeds` or `peers`.
    pub fn another(&self, name: &str, part: Part) -> Result<Member> {
        self.another_with(name, part, self.token.as_deref())
    }

    /// One more node with some other token, or none.
    pub fn another_with(&self, name: &str, part: Part, token: Option<&Path>) -> Result<Member> {
        self.placed(name, part, token, None)
    }

    fn placed(
        &self,
        name: &str,
        part: Part,
        token: Option<&Path>,
        place: Option<Place>,
    ) -> Result<Member> {
        let scheduler = self.scheduler.listen.to_string();
        self.joining(name, part, token, place, ["--scheduler", &scheduler])
    }

    /// One more node, that is told its mesh and its schedulers by a file.
    pub fn another_by(&self, name: &str, part: Part, bootstrap: &Path) -> Result<Member> {
        let file = bootstrap.display().to_string();
        let token = self.token.as_deref();
        self.joining(name, part, token, None, ["--bootstrap", &file])
    }

    /// One more scheduler of the same keys, not started.
    pub fn another_scheduler(&self, name: &str) -> Result<Member> {
        let mut other = member(
            &self.dragonfly,
            self.dir.path(),
            name,
            Part::Scheduler,
            None,
        )?;
        let to = other.state.join("mesh");
        let wrong = |e| Failed::at(to.display(), e);
        std::fs::create_dir_all(&to).map_err(wrong)?;
        let keys = std::fs::read_dir(self.scheduler.state.join("mesh")).map_err(wrong)?;
        for key in keys.flatten() {
            std::fs::copy(key.path(), to.join(key.file_name())).map_err(wrong)?;
        }
        let manifests = self.manifests.display().to_string();
        let args = ["-f", &manifests, "--name", name];
        other.args.extend(args.map(str::to_owned));
        Ok(other)
    }

    fn joining(
        &self,
        name: &str,
        part: Part,
        token: Option<&Path>,
        place: Option<Place>,
        mesh: [&str; 2],
    ) -> Result<Member> {
        let mut member = member(&self.dragonfly, self.dir.path(), name, part, place)?;
        let socket = member.socket.display().to_string();
        let [how, whom] = mesh;
        let args = ["--name", name, how, whom, "--socket", &socket];
        member.args.extend(args.map(str::to_owned));
        if let Some(token) = token {
            member
                .args
                .extend(["--join-token-file".to_owned(), token.display().to_string()]);
        }
        Ok(member)
    }

    /// Starts a `get` at a peer, into a file of the peer's name.
    pub fn get(&self, peer: usize, url: &str, more: &[&str]) -> Result<Get> {
        let peer = self
            .peers
            .get(peer)
            .ok_or_else(|| Failed("no such peer".to_owned()))?;
        let output = self.work.join(format!("{}.out", peer.name));
        Get::start(&self.dragonfly, &peer.socket, url, &output, more)
    }

    /// All parts.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        std::iter::once(&self.scheduler)
            .chain(&self.seeds)
            .chain(&self.peers)
    }

    /// The last lines that each part logged.
    pub fn logs(&self, lines: usize) -> String {
        let logs: Vec<_> = self.members().map(|m| m.log.clone()).collect();
        tail(&logs, lines)
    }

    /// The directory of all.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs(25));
        }
        self.scheduler.kill();
        self.seeds
            .iter_mut()
            .chain(&mut self.peers)
            .for_each(Member::kill);
    }
}

fn member(
    dragonfly: &Path,
    dir: &Path,
    name: &str,
    part: Part,
    place: Option<Place>,
) -> Result<Member> {
    let state = dir.join(name);
    let (mut line, listen, admin) = match place {
        None => (vec![], port()?, port()?),
        // All ports of a machine of its own are free.
        Some(place) => (
            place.enter,
            (place.ip, 4000).into(),
            (place.ip, 4001).into(),
        ),
    };
    line.push(dragonfly.display().to_string());
    let command = match part {
        Part::Scheduler => "scheduler",
        Part::Seed => "seed",
        Part::Peer => "peer",
    };
    let state_arg = state.display().to_string();
    let (on, shown) = (listen.to_string(), admin.to_string());
    let args = [
        command, "--listen", &on, "--admin", &shown, "--state", &state_arg,
    ];
    Ok(Member {
        name: name.to_owned(),
        log: dir.join("logs").join(format!("{name}.log")),
        socket: state.join("node.sock"),
        listen,
        admin,
        environment: vec![],
        line,
        args: args.map(str::to_owned).to_vec(),
        state,
        process: None,
    })
}

/// A port that nobody listens on, and that nobody is given: it is below those that systems choose
/// from for connections, so that it is still free after its owner was killed.
pub fn port() -> Result<SocketAddr> {
    static GIVEN: Mutex<Option<HashSet<u16>>> = Mutex::new(None);
    for _ in 0..1000 {
        let port = fastrand::u16(15_000..32_000);
        let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
        let given = given.get_or_insert_default();
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if !given.contains(&port) && TcpListener::bind(addr).is_ok() {
            given.insert(port);
            return Ok(addr);
        }
    }
    Err(Failed("no free port on loopback".to_owned()))
}
