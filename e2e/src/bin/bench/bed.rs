//! The place of all runs of one case: the net, the origin, the content, our meshes; and one run.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use aws_lc_rs::digest::{Context, SHA256};
use dragonfly_e2e::process::Process;
use dragonfly_e2e::{Failed, Result, sample};

use crate::case::{Case, Fault};
use crate::dragonfly2::{self, Programs};
use crate::net::Net;
use crate::systems::{Client, Mesh, System, clients};
use crate::usage;

/// No run takes longer.
const TOO_LONG: Duration = Duration::from_secs(600);
/// What a reader that starts to play or unpack waits for, bytes.
const FIRST: usize = 4 << 20;
/// Pieces in which memory is touched, bytes: as large as any that the kernel gives a file.
const LARGE: usize = 4 << 20;

/// What one run came to.
#[derive(Clone, Default)]
pub(crate) struct Run {
    /// Seconds of each client from its own start, ascending.
    pub(crate) times: Vec<f64>,
    /// Seconds to the first 4 MiB in order at the slowest client, where that was asked.
    pub(crate) first: Option<f64>,
    /// Seconds of the last client with a quick uplink, where uplinks differ.
    pub(crate) quick: Option<f64>,
    pub(crate) seed_bytes: f64,
    pub(crate) origin_bytes: f64,
    pub(crate) cpu: f64,
    pub(crate) rss_mib: f64,
}

/// Programs of other systems.
#[derive(Default)]
pub(crate) struct Others {
    /// A python that has libtorrent.
    pub(crate) python: PathBuf,
    pub(crate) dragonfly_client: Option<Programs>,
}

pub(crate) struct Bed<'a> {
    pub(crate) net: &'a Net,
    pub(crate) case: &'a Case,
    pub(crate) dir: PathBuf,
    pub(crate) bin: PathBuf,
    pub(crate) others: &'a Others,
    pub(crate) content: PathBuf,
    pub(crate) meshes: Vec<Mesh>,
    /// Of the content, `sha256:<hex>`.
    pub(crate) digest: String,
    origin: Process,
}

impl<'a> Bed<'a> {
    pub(crate) fn new(
        net: &'a Net,
        case: &'a Case,
        dir: &Path,
        bin: &Path,
        others: &'a Others,
        systems: &[System],
    ) -> Result<Self> {
        let www = dir.join("www");
        fs::create_dir_all(&www).map_err(|e| Failed::at(www.display(), e))?;
        let content = www.join("content");
        let sample = sample::random(&content, case.size, fastrand::u64(..))?;
        let conf = dir.join("nginx.conf");
        // Each run has a path of its own, so that no cache answers it, and one file on disk.
        let text = format!(
            "daemon off; master_process off; pid {0}/nginx.pid; error_log {0}/nginx.log; worker_processes 1;\n\
             events {{ worker_connections 1024; }}\n\
             http {{ log_format sent '$body_bytes_sent'; access_log {0}/sent.log sent; sendfile on;\n\
             server {{ listen 8080; root {0}/www;\n\
             location ~ ^/run {{ rewrite ^ /content break; }} }} }}\n",
            dir.display()
        );
        fs::write(&conf, text).map_err(|e| Failed::at(conf.display(), e))?;
        let mut nginx = net.command(0, Path::new("nginx"));
        let origin = Process::spawn("nginx", nginx.arg("-c").arg(&conf))?;
        let mut bed = Self {
            net,
            case,
            dir: dir.to_owned(),
            bin: bin.to_owned(),
            others,
            digest: sample.digest,
            content,
            meshes: vec![],
            origin,
        };
        for system in systems.iter().filter(|s| s.is_ours()) {
            let mesh = Mesh::start(&bed, *system)?;
            bed.meshes.push(mesh);
        }
        Ok(bed)
    }

    /// Where the origin has something.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}:8080/{path}", self.net.ip(0))
    }

    pub(crate) fn output(&self, node: usize) -> PathBuf {
        self.dir.join(format!("out-{node}"))
    }

    /// All copies are compared by SHA-256; a wrong one is an error.
    pub(crate) fn run(&mut self, system: System, number: usize) -> Result<Run> {
        self.clean();
        let mut meshes = std::mem::take(&mut self.meshes);
        meshes.iter_mut().try_for_each(|m| m.revive(self))?;
        self.meshes = meshes;
        std::thread::sleep(Duration::from_secs(1));
        prime(
            &self.dir,
            2 * (self.case.peers() as u64 + 1) * self.case.size,
        )?;
        let (clients, helpers) = clients(self, system, number)?;
        let mesh = self.meshes.iter().find(|m| m.system() == system);
        let mut pids: Vec<u32> = helpers.iter().map(Process::id).collect();
        pids.extend(mesh.iter().flat_map(|m| m.pids()));
        let (sent, origin) = (self.net.sent(0)?, self.origin_sent());
        let before = spent(&pids) + usage::ended_children();
        let mut done = self.attend(system, clients, &pids)?;
        let after = spent(&pids) + usage::ended_children();
        let peak = pids.iter().map(|p| usage::memory(*p, "VmHWM"));
        done.run.rss_mib = peak.fold(done.run.rss_mib, f64::max);
        done.run.cpu += after - before;
        drop(done.stay);
        done.run.seed_bytes = (self.net.sent(0)? - sent) as f64;
        done.run.origin_bytes = if system.has_origin() {
            (self.origin_sent() - origin) as f64
        } else {
            done.run.seed_bytes
        };
        for (what, digest) in done.digests {
            // Those that wrote a file are read now, when the clock has stopped.
            let digest = digest.map_or_else(|| sample::digest(Path::new(&what)), Ok)?;
            if digest != self.digest {
                let why = format!("{what} is not what was sent");
                return Err(Failed::at(system.name(), why));
            }
        }
        // After a fault some node is away: what it keeps goes with the bed.
        let mesh = self.meshes.iter().find(|m| m.system() == system);
        if let Some(mesh) = mesh.filter(|_| self.case.fault.is_none()) {
            mesh.forget(&self.bin)?;
        }
        done.run.times.sort_by(f64::total_cmp);
        Ok(done.run)
    }

    /// Starts the clients when it is their turn, makes the fault, waits for all.
    fn attend(&mut self, system: System, clients: Vec<Client>, pids: &[u32]) -> Result<Done> {
        let mut done = Done::default();
        let start = Instant::now();
        let victim = self.case.fault.filter(|_| system.is_ours());
        let fault_at = Duration::from_secs_f64(self.case.limit() / 2.0);
        let mut struck = false;
        let mut due: Vec<_> = clients.into_iter().rev().collect();
        let mut under_way: Vec<UnderWay> = vec![];
        let mut lost = 0;
        let mut from = 0.0_f64;
        while !(due.is_empty() && under_way.is_empty()) {
            let started = self.case.peers() - due.len();
            while let Some(client) =
                due.pop_if(|_| start.elapsed() >= self.case.apart * started as u32)
            {
                under_way.push(UnderWay::start(client, self.case.stream)?);
                if !self.case.apart.is_zero() {
                    break;
                }
            }
            if let Some(fault) = victim.filter(|_| !struck && start.elapsed() >= fault_at) {
                struck = true;
                let mesh = self.meshes.iter_mut().find(|m| m.system() == system);
                let mesh = mesh.ok_or(Failed("no mesh".to_owned()))?;
                let process = match fault {
                    Fault::Scheduler => &mut mesh.scheduler,
                    Fault::Peer => {
                        under_way.retain(|c| c.client.node != self.case.peers());
                        lost = 1;
                        mesh.nodes.last_mut().ok_or(Failed("no peer".to_owned()))?
                    }
                };
                // What it used until now counts.
                from += usage::cpu(process.id());
                process.kill();
            }
            for mut c in std::mem::take(&mut under_way) {
                done.run.rss_mib = done.run.rss_mib.max(usage::memory(c.process.id(), "VmHWM"));
                match c.look(system)? {
                    None => under_way.push(c),
                    Some(seconds) => {
                        done.run.times.push(seconds);
                        if self.case.is_quick(c.client.node) {
                            done.run.quick = Some(done.run.quick.unwrap_or(0.0).max(seconds));
                        }
                        c.finish(&mut done)?;
                    }
                }
            }
            if start.elapsed() > TOO_LONG {
                return Err(Failed::at(system.name(), "no end after ten minutes"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        done.run.cpu = from + spent(&done.stay.iter().map(Process::id).collect::<Vec<_>>());
        if done.run.times.len() + lost != self.case.peers() || pids.is_empty() && system.is_ours() {
            return Err(Failed::at(system.name(), "a client is missing"));
        }
        Ok(done)
    }

    pub(crate) fn clean(&self) {
        let _ = fs::remove_dir_all(dragonfly2::home(self));
        for out in (1..=self.case.peers()).map(|n| self.output(n)) {
            let _ = fs::remove_file(&out);
            for extension in ["done", "hook"] {
                let _ = fs::remove_file(out.with_extension(extension));
            }
            let _ = fs::remove_dir_all(out.with_extension("dir"));
        }
    }

    /// Bytes that the web server sent so far.
    fn origin_sent(&self) -> u64 {
        // It writes a line when a request has ended.
        let log = fs::read_to_string(self.dir.join("sent.log")).unwrap_or_default();
        log.lines().filter_map(|l| l.parse::<u64>().ok()).sum()
    }

    /// CPU seconds of the origin's processes.
    pub(crate) fn origin_cpu(&self) -> f64 {
        let master = self.origin.id();
        let children = format!("/proc/{master}/task/{master}/children");
        let children = fs::read_to_string(children).unwrap_or_default();
        let all = children.split_whitespace().filter_map(|p| p.parse().ok());
        all.chain([master]).map(usage::cpu).sum()
    }
}

/// Touches as much memory as a run fills with page cache. A virtual machine may get its memory from
/// the host page by page at first use, which costs several times the copy and would be charged to
/// whichever system comes first, or to whichever takes its memory in other pieces than what was touched.
/// So it is taken as the kernel gives it to all of them: page by page, which uses up the small pieces first, and then
/// in large ones, as a file.
pub(crate) fn prime(dir: &Path, bytes: u64) -> Result<()> {
    const PAGE: usize = 4096;
    let bytes = bytes.min(usage::available() / 2);
    let mut memory = vec![0_u8; bytes as usize];
    memory.iter_mut().step_by(PAGE).for_each(|page| *page = 1);
    drop(std::hint::black_box(memory));
    let path = dir.join("prime");
    let failed = |e| Failed::at(path.display(), e);
    let mut file = fs::File::create(&path).map_err(failed)?;
    let zeroes = vec![0u8; LARGE];
    // Not so much that the kernel begins to write it to the disk.
    for _ in 0..bytes.min(usage::available() / 12) / LARGE as u64 {
        file.write_all(&zeroes).map_err(failed)?;
    }
    fs::remove_file(&path).map_err(failed)
}

impl Drop for Bed<'_> {
    fn drop(&mut self) {
        self.clean();
    }
}

#[derive(Default)]
struct Done {
    run: Run,
    /// What each client wrote, and its digest where it wrote to a pipe.
    digests: Vec<(String, Option<String>)>,
    /// Clients that serve others until all are done.
    stay: Vec<Process>,
}

/// A client that runs.
struct UnderWay {
    client: Client,
    process: Process,
    started: Instant,
    reader: Option<JoinHandle<std::io::Result<(f64, String)>>>,
}

impl UnderWay {
    fn start(mut client: Client, stream: bool) -> Result<Self> {
        let stream = stream && client.mark.is_none();
        if stream {
            client.command.stdout(Stdio::piped());
        }
        let started = Instant::now();
        let mut process = Process::spawn(&format!("client {}", client.node), &mut client.command)?;
        let pipe = process.child().stdout.take();
        let reader = pipe.map(|pipe| std::thread::spawn(move || read(pipe, started)));
        Ok(Self {
            client,
            process,
            started,
            reader,
        })
    }

    /// Seconds it took, when it is done.
    fn look(&mut self, system: System) -> Result<Option<f64>> {
        let seconds = self.started.elapsed().as_secs_f64();
        if self.client.mark.as_ref().is_some_and(|m| m.exists()) {
            return Ok(Some(seconds));
        }
        match self.process.ended() {
            None => Ok(None),
            Some(status) if status.success() && self.client.mark.is_none() => Ok(Some(seconds)),
            Some(status) => {
                let what = format!("{}: client {}", system.name(), self.client.node);
                Err(Failed::at(what, status))
            }
        }
    }

    fn finish(self, done: &mut Done) -> Result<()> {
        let what = self.client.output.display().to_string();
        if let Some(reader) = self.reader {
            let read = reader.join().map_err(|_| Failed::at(&what, "reader"))?;
            let (first, digest) = read.map_err(|e| Failed::at(&what, e))?;
            done.run.first = Some(done.run.first.unwrap_or(0.0).max(first));
            done.digests.push((what, Some(digest)));
        } else {
            done.digests.push((what, None));
        }
        if self.client.mark.is_some() {
            done.stay.push(self.process);
        }
        Ok(())
    }
}

/// Reads a client's output to its end: when the first bytes were there, and the digest of all.
fn read(mut pipe: impl std::io::Read, started: Instant) -> std::io::Result<(f64, String)> {
    let mut sha = Context::new(&SHA256);
    let mut buf = vec![0; 256 << 10];
    let (mut got, mut first) = (0, f64::NAN);
    loop {
        let n = pipe.read(&mut buf)?;
        if n == 0 {
            return Ok((first, sample::hex(sha)));
        }
        sha.update(&buf[..n]);
        got += n;
        if first.is_nan() && got >= FIRST {
            first = started.elapsed().as_secs_f64();
        }
    }
}

fn spent(pids: &[u32]) -> f64 {
    pids.iter().map(|p| usage::cpu(*p)).sum()
}
