//! What goes wrong: faults that begin at random moments, last a while and pass. One task has the mesh
//! and does all of it, so that what it chooses depends on nothing but its seed.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dragonfly_client::Client;
use dragonfly_e2e::clock::Clocks;
use dragonfly_e2e::links::Links;
use dragonfly_e2e::mesh::{Member, Mesh};
use dragonfly_e2e::{Failed, Result, disk, usage};
use rustix::process::{Pid, Signal, kill_process};

use crate::catalogue::Catalogue;

/// Faults at once, at most.
const AT_ONCE: usize = 3;
/// Pauses between the beginnings of faults, milliseconds.
const PAUSE: std::ops::Range<u64> = 100..2500;
const TICK: Duration = Duration::from_millis(20);
/// How often memory and files are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How long a member may take to end when asked to.
const ENDS: Duration = Duration::from_secs(15);
/// The disk of the last peer, MiB, where there is root.
const DISK: u64 = 320;
/// Connections of one flood, and bytes on each.
const FLOOD: (usize, usize) = (40, 64 << 10);
const DAY: i64 = 24 * 3600;

/// Gives the last peer of a mesh that does not run yet a small disk of its own.
pub(crate) fn small_disk(mesh: &Mesh) -> Result<()> {
    let last = mesh.peers.last();
    last.map_or(Ok(()), |peer| disk::small(&peer.state, DISK))
}

/// What can go wrong. The names are those of the summary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Kill,
    KillAll,
    Terminate,
    Pause,
    Crawl,
    CutLink,
    DeafLink,
    SlowLink,
    SetClock,
    FullDisk,
    Flood,
    Forget,
    EditPolicy,
    OriginRefuses,
    OriginCrawls,
    ContentChanges,
}

/// Each with its weight.
const ALL: [(Fault, &str, u32); 16] = [
    (Fault::Kill, "kill -9 of one", 6),
    (Fault::KillAll, "kill -9 of all at once", 1),
    (Fault::Terminate, "orderly restart of one", 3),
    (Fault::Pause, "one stops for seconds", 4),
    (Fault::Crawl, "one at 1 % of its speed", 2),
    (Fault::CutLink, "cut link", 4),
    (Fault::DeafLink, "half-open link", 3),
    (Fault::SlowLink, "link at 1 % of its speed", 2),
    (Fault::SetClock, "clock set", 3),
    (Fault::FullDisk, "full disk", 2),
    (Fault::Flood, "flood of garbage", 3),
    (Fault::Forget, "content deleted at a node", 3),
    (Fault::EditPolicy, "policy edited", 2),
    (Fault::OriginRefuses, "origin refuses", 3),
    (Fault::OriginCrawls, "origin slow", 2),
    (Fault::ContentChanges, "content changes", 5),
];

/// What ends a fault.
enum Mend {
    Start(usize),
    StartAll,
    Go(usize),
    Slowed(usize, tokio::task::JoinHandle<()>),
    Link(usize),
    Hears(usize),
    Fast(usize),
    Clock(usize),
    Disk(PathBuf),
    Policy(String),
    Origin,
    Rate,
}

/// What was seen of the mesh.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) faults: BTreeMap<&'static str, u64>,
    /// Most resident memory of each member, MiB, in each tenth of the time.
    pub(crate) memory: BTreeMap<String, Vec<f64>>,
    /// Most open files of each member.
    pub(crate) files: BTreeMap<String, usize>,
    /// Members that ended and were not told to.
    pub(crate) ended: Vec<String>,
}

pub(crate) struct Faults {
    mesh: Mesh,
    links: Option<Links>,
    clocks: Option<Clocks>,
    catalogue: Arc<Catalogue>,
    rng: fastrand::Rng,
    verbose: bool,
    began: Instant,
    mends: Vec<(Instant, &'static str, Mend)>,
    seen: Seen,
    looked: Instant,
}

impl Faults {
    pub(crate) fn new(
        mesh: Mesh,
        links: Option<Links>,
        clocks: Option<Clocks>,
        catalogue: Arc<Catalogue>,
        seed: u64,
        verbose: bool,
    ) -> Self {
        Self {
            mesh,
            links,
            clocks,
            catalogue,
            rng: fastrand::Rng::with_seed(seed),
            verbose,
            began: Instant::now(),
            mends: vec![],
            seen: Seen::default(),
            looked: Instant::now(),
        }
    }

    /// Begins and mends faults until a moment.
    pub(crate) async fn go_on(&mut self, until: Instant) -> Result<()> {
        let mut next = Instant::now() + Duration::from_secs(2);
        while Instant::now() < until {
            self.mend_due(Instant::now()).await?;
            if Instant::now() >= next {
                if self.mends.len() < AT_ONCE {
                    self.begin().await?;
                }
                next = Instant::now() + Duration::from_millis(self.rng.u64(PAUSE));
            }
            if self.looked.elapsed() >= LOOK {
                let whole = until.saturating_duration_since(self.began).as_secs_f64();
                self.look((self.began.elapsed().as_secs_f64() / whole * 10.0) as usize)?;
            }
            tokio::time::sleep(TICK).await;
        }
        Ok(())
    }

    /// Ends all faults.
    pub(crate) async fn mend_all(&mut self) -> Result<()> {
        while let Some((_, name, mend)) = self.mends.pop() {
            self.mend(name, mend).await?;
        }
        for n in 0..self.members() {
            self.member(n)?.ready().await?;
        }
        Ok(())
    }

    /// The mesh, and what was seen of it.
    pub(crate) async fn done(mut self) -> Result<(Mesh, Seen)> {
        self.look(10)?;
        // Links and clocks go with the mesh: members still run on them.
        std::mem::forget(self.links.take());
        Ok((self.mesh, self.seen))
    }

    fn members(&self) -> usize {
        1 + self.mesh.seeds.len() + self.mesh.peers.len()
    }

    /// The scheduler, then seeds, then peers: as their machines are.
    fn member(&mut self, n: usize) -> Result<&mut Member> {
        let (seeds, all) = (self.mesh.seeds.len(), self.members());
        let found = match n {
            0 => Some(&mut self.mesh.scheduler),
            n if n <= seeds => self.mesh.seeds.get_mut(n - 1),
            n => self.mesh.peers.get_mut(n - 1 - seeds),
        };
        found.ok_or_else(|| Failed(format!("no member {n} of {all}")))
    }

    /// Members that a fault has in its hands.
    fn taken(&self) -> BTreeSet<usize> {
        let whose = |mend: &Mend| match mend {
            Mend::Start(n) | Mend::Go(n) | Mend::Slowed(n, _) => vec![*n],
            Mend::Link(n) | Mend::Hears(n) | Mend::Fast(n) | Mend::Clock(n) => vec![*n],
            Mend::StartAll => (0..self.members()).collect(),
            Mend::Disk(_) => vec![self.members() - 1],
            _ => vec![],
        };
        self.mends
            .iter()
            .flat_map(|(_, _, mend)| whose(mend))
            .collect()
    }

    fn is_on(&self, mend: fn(&Mend) -> bool) -> bool {
        self.mends.iter().any(|(_, _, on)| mend(on))
    }

    async fn begin(&mut self) -> Result<()> {
        let whole: u32 = ALL.iter().map(|(_, _, weight)| weight).sum();
        let mut at = self.rng.u32(..whole);
        let chosen = ALL.iter().find(|(_, _, weight)| {
            let here = at < *weight;
            at = at.saturating_sub(*weight);
            here
        });
        let Some(&(fault, name, _)) = chosen else {
            return Ok(());
        };
        let whom = self.rng.usize(..self.members());
        let long = Duration::from_millis(self.rng.u64(200..6000));
        let taken = self.taken();
        let free = !taken.contains(&whom);
        let mend = match fault {
            Fault::Kill if free => {
                self.member(whom)?.kill();
                Some(Mend::Start(whom))
            }
            Fault::KillAll if taken.is_empty() => {
                for n in 0..self.members() {
                    self.member(n)?.kill();
                }
                Some(Mend::StartAll)
            }
            Fault::Terminate if free => {
                self.member(whom)?.terminate(ENDS).await?;
                Some(Mend::Start(whom))
            }
            Fault::Pause if free => {
                self.member(whom)?.signal(Signal::STOP)?;
                Some(Mend::Go(whom))
            }
            Fault::Crawl if free => {
                let id = self.member(whom)?.id()?;
                Some(Mend::Slowed(whom, tokio::spawn(crawl(id))))
            }
            Fault::CutLink if free => self
                .linked(|l| l.cut(whom, true))?
                .then_some(Mend::Link(whom)),
            Fault::DeafLink if free => self
                .linked(|l| l.deafen(whom, true))?
                .then_some(Mend::Hears(whom)),
            Fault::SlowLink if free => self
                .linked(|l| l.slow(whom, crate::LINK / 100))?
                .then_some(Mend::Fast(whom)),
            Fault::SetClock if free && self.clocks.is_some() => {
                let offsets = [-2 * DAY, -3600, -60, 60, 3600, 2 * DAY];
                let offset = offsets[self.rng.usize(..offsets.len())];
                self.set_clock(whom, offset)?;
                Some(Mend::Clock(whom))
            }
            Fault::FullDisk if self.links.is_some() && !taken.contains(&(self.members() - 1)) => {
                self.fill_disk()?.map(Mend::Disk)
            }
            Fault::Flood if free => {
                let at = self.member(whom)?.listen;
                let seed = self.rng.u64(..);
                std::thread::spawn(move || flood(at, seed));
                return self.count(name, whom);
            }
            Fault::Forget => {
                let peer = self.rng.usize(..self.mesh.peers.len().max(1));
                let socket = self.mesh.peers.get(peer).map(|p| p.socket.clone());
                let seed = self.rng.u64(..);
                tokio::spawn(forget(socket, seed));
                return self.count(name, whom);
            }
            Fault::EditPolicy if !self.is_on(|m| matches!(m, Mend::Policy(_))) => {
                Some(Mend::Policy(self.edit_policy()?))
            }
            Fault::OriginRefuses if !self.is_on(|m| matches!(m, Mend::Origin)) => {
                let with = [403, 404, 416, 429, 500, 503];
                let status = with[self.rng.usize(..with.len())];
                self.catalogue.origin.set_status(status);
                Some(Mend::Origin)
            }
            Fault::OriginCrawls if !self.is_on(|m| matches!(m, Mend::Rate)) => {
                self.catalogue.origin.set_rate(64 << 10);
                Some(Mend::Rate)
            }
            Fault::ContentChanges => {
                let n = self.rng.usize(..self.catalogue.len());
                self.catalogue.change(n, self.rng.u64(..))?;
                return self.count(name, n);
            }
            // Not possible here or not now: then another time.
            _ => None,
        };
        let Some(mend) = mend else { return Ok(()) };
        self.mends.push((Instant::now() + long, name, mend));
        self.count(name, whom)
    }

    fn count(&mut self, name: &'static str, whom: usize) -> Result<()> {
        *self.seen.faults.entry(name).or_default() += 1;
        if self.verbose {
            let at = self.began.elapsed().as_secs_f64();
            println!("{at:7.2} s  {name} ({whom})");
        }
        Ok(())
    }

    fn linked(&self, change: impl FnOnce(&Links) -> Result<()>) -> Result<bool> {
        self.links
            .as_ref()
            .map_or(Ok(false), |links| change(links).map(|()| true))
    }

    fn set_clock(&mut self, whom: usize, offset: i64) -> Result<()> {
        let name = self.member(whom)?.name.clone();
        self.clocks
            .as_ref()
            .map_or(Ok(()), |clocks| clocks.set(&name, offset))
    }

    /// Takes what is left of the small disk.
    fn fill_disk(&self) -> Result<Option<PathBuf>> {
        let Some(peer) = self.mesh.peers.last() else {
            return Ok(None);
        };
        let path = peer.state.join("what-others-keep");
        let mut file = std::fs::File::create(&path).map_err(|e| Failed::at(path.display(), e))?;
        let block = vec![1; 1 << 20];
        while file.write_all(&block).is_ok() {}
        Ok(Some(path))
    }

    /// Changes a limit; what the manifest was.
    fn edit_policy(&mut self) -> Result<String> {
        let path = self.manifest();
        let before = std::fs::read_to_string(&path).map_err(|e| Failed::at(path.display(), e))?;
        let limit = self.rng.u32(8..64);
        // One of three is no policy at all: then the last good one stays.
        let line = match self.rng.u8(..3) {
            0 => "  limits: {upload: nonsense}\n".to_owned(),
            _ => format!("  limits: {{upload: {limit}Mi}}\n"),
        };
        std::fs::write(&path, before.clone() + &line).map_err(|e| Failed::at(path.display(), e))?;
        Ok(before)
    }

    fn manifest(&self) -> PathBuf {
        self.mesh.manifests.join("distribution.yaml")
    }

    async fn mend_due(&mut self, now: Instant) -> Result<()> {
        while let Some(at) = self.mends.iter().position(|(when, _, _)| *when <= now) {
            let (_, name, mend) = self.mends.swap_remove(at);
            self.mend(name, mend).await?;
        }
        Ok(())
    }

    async fn mend(&mut self, name: &str, mend: Mend) -> Result<()> {
        if self.verbose {
            let at = self.began.elapsed().as_secs_f64();
            println!("{at:7.2} s  over: {name}");
        }
        match mend {
            Mend::Start(n) => self.member(n)?.start(),
            Mend::StartAll => (0..self.members()).try_for_each(|n| self.member(n)?.start()),
            Mend::Go(n) => self.member(n)?.signal(Signal::CONT),
            Mend::Slowed(n, slowing) => {
                slowing.abort();
                let _ = slowing.await;
                self.member(n)?.signal(Signal::CONT)
            }
            Mend::Link(n) => self.linked(|l| l.cut(n, false)).map(drop),
            Mend::Hears(n) => self.linked(|l| l.deafen(n, false)).map(drop),
            Mend::Fast(n) => self.linked(|l| l.slow(n, crate::LINK)).map(drop),
            Mend::Clock(n) => self.set_clock(n, 0),
            Mend::Disk(path) => {
                std::fs::remove_file(&path).map_err(|e| Failed::at(path.display(), e))
            }
            Mend::Policy(before) => {
                let path = self.manifest();
                std::fs::write(&path, before).map_err(|e| Failed::at(path.display(), e))
            }
            Mend::Origin => {
                self.catalogue.origin.set_status(0);
                Ok(())
            }
            Mend::Rate => {
                self.catalogue.origin.set_rate(crate::RATE);
                Ok(())
            }
        }
    }

    /// The last lines that each member logged.
    pub(crate) fn logs(&self, lines: usize) -> String {
        self.mesh.logs(lines)
    }

    /// Looks at members: which ended, what they cost.
    fn look(&mut self, tenth: usize) -> Result<()> {
        self.looked = Instant::now();
        let away: BTreeSet<usize> = self
            .mends
            .iter()
            .flat_map(|(_, _, mend)| match mend {
                Mend::Start(n) => vec![*n],
                Mend::StartAll => (0..self.members()).collect(),
                _ => vec![],
            })
            .collect();
        for n in (0..self.members()).filter(|n| !away.contains(n)) {
            let member = self.member(n)?;
            let (name, id) = (member.name.clone(), member.id()?);
            if let Some(status) = member.has_ended() {
                self.seen.ended.push(format!("{name}: {status}"));
                // It is started again, so that one death is told once.
                self.member(n)?.start()?;
                continue;
            }
            let resident = usage::memory(id, "VmRSS");
            let open = std::fs::read_dir(format!("/proc/{id}/fd")).map_or(0, Iterator::count);
            let all = self.seen.memory.entry(name.clone()).or_default();
            if all.len() <= tenth {
                all.resize(tenth + 1, 0.0);
            }
            if let Some(most) = all.get_mut(tenth) {
                *most = most.max(resident);
            }
            let most = self.seen.files.entry(name).or_default();
            *most = (*most).max(open);
        }
        Ok(())
    }
}

/// Lets a process run 5 of 500 milliseconds.
async fn crawl(id: u32) {
    let Some(pid) = i32::try_from(id).ok().and_then(Pid::from_raw) else {
        return;
    };
    loop {
        let _ = kill_process(pid, Signal::STOP);
        tokio::time::sleep(Duration::from_millis(495)).await;
        let _ = kill_process(pid, Signal::CONT);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Many connections that say nonsense, and one that says nothing for a while.
fn flood(at: std::net::SocketAddr, seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let open = || std::net::TcpStream::connect_timeout(&at, Duration::from_secs(1));
    let mut silent = vec![];
    for _ in 0..FLOOD.0 {
        let Ok(mut stream) = open() else { continue };
        let _ = stream.set_write_timeout(Some(Duration::from_secs(1)));
        if rng.u8(..4) == 0 {
            silent.push(stream);
            continue;
        }
        let mut garbage = vec![0; rng.usize(1..FLOOD.1)];
        rng.fill(&mut garbage);
        // It may be hung up on in the middle, and should be.
        let _ = stream.write_all(&garbage);
    }
    std::thread::sleep(Duration::from_secs(3));
}

/// Deletes some of what a node holds. It may be away, or in use: then it does not.
async fn forget(socket: Option<PathBuf>, seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let Some(socket) = socket else { return };
    let Ok(client) = Client::connect(Path::new(&socket)).await else {
        return;
    };
    let Ok(held) = client.list().await else {
        return;
    };
    for task in held.into_iter().filter(|_| rng.u8(..4) == 0) {
        let _ = client.delete_task(&task.task).await;
    }
}
