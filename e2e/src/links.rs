//! Machines that can be cut off: network namespaces on one bridge, each with a link that a test cuts,
//! makes deaf, slows down, or makes long.
//!
//! The bridge is in the namespace of whoever makes it, which is one of its own: see [`alone`]. A
//! machine is the namespace of a sleeping process; nothing names it, so it goes with that process, and
//! that goes with this one.

use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::far::Far;
use crate::process::Process;
use crate::{Failed, Result};

/// Set in a process that has namespaces of its own.
const ALONE: &str = "DRAGONFLY_E2E_ALONE";
const LIMIT: Duration = Duration::from_secs(10);

/// Whether this process runs in namespaces (network and mounts) of its own. If it does not, it is
/// started again with these arguments in such, and waited for: then there is nothing more to do.
///
/// # Errors
/// It cannot be started so, as without root; or it failed in there.
pub fn alone(args: &[&str]) -> Result<bool> {
    if std::env::var_os(ALONE).is_some() {
        sh("ip", &["link", "set", "lo", "up"])?;
        return Ok(true);
    }
    if !rustix::process::geteuid().is_root() {
        return Err(Failed(
            "links are cut and disks are made in namespaces, which only root makes: run this as root"
                .to_owned(),
        ));
    }
    let own = std::env::current_exe().map_err(|e| Failed::at("this program's own path", e))?;
    let status = Command::new("unshare")
        .args(["--net", "--mount", "--"])
        .arg(own)
        .args(args)
        .env(ALONE, "1")
        .status();
    let status = status.map_err(|e| Failed::at("unshare", e))?;
    if status.success() {
        return Ok(false);
    }
    Err(Failed(format!("in namespaces of its own: {status}")))
}

/// A place for a process of a mesh.
#[derive(Debug, Clone)]
pub struct Place {
    /// What comes before a command line to run it there.
    pub enter: Vec<String>,
    /// Its address.
    pub ip: IpAddr,
}

/// Machines on one bridge.
#[derive(Debug)]
pub struct Links {
    machines: Vec<Process>,
    ways: Vec<Far>,
}

impl Links {
    /// Makes so many machines, each with a whole link.
    ///
    /// # Errors
    /// The kernel or `ip` refuses.
    pub fn new(machines: usize) -> Result<Self> {
        sh("ip", &["link", "add", "br0", "type", "bridge"])?;
        let here = format!("{}/24", Self::here());
        sh("ip", &["addr", "add", &here, "dev", "br0"])?;
        sh("ip", &["link", "set", "br0", "up"])?;
        let mut links = Self {
            machines: vec![],
            ways: vec![],
        };
        for n in 0..machines {
            let mut hold = Command::new("unshare");
            hold.args(["--net", "--", "sleep", "infinity"]);
            let machine = Process::spawn(&format!("machine {n}"), &mut hold)?;
            let id = machine.id();
            links.machines.push(machine);
            has_its_own(id)?;
            let (id, port) = (id.to_string(), port(n));
            let add = [
                "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &id,
            ];
            sh("ip", &add)?;
            links.run(n, "ip", &["link", "set", "lo", "up"])?;
            links.up(n)?;
        }
        Ok(links)
    }

    /// Gives a machine's link its address.
    fn up(&self, n: usize) -> Result<()> {
        sh("ip", &["link", "set", &port(n), "master", "br0", "up"])?;
        let address = format!("{}/24", ip(n));
        self.run(n, "ip", &["addr", "add", &address, "dev", "eth0"])?;
        self.run(n, "ip", &["link", "set", "eth0", "up"])
    }

    /// Puts a machine far away: whatever goes to it or comes from it takes so long each way. Its link is
    /// a new one, so this comes before anything is sent on it.
    ///
    /// # Errors
    /// There is no such machine, or no TAP devices.
    pub fn far(&mut self, n: usize, one_way: Duration) -> Result<()> {
        let machine = self.machines.get(n);
        let machine = machine.ok_or_else(|| Failed(format!("there is no machine {n}")))?;
        let (id, port, there) = (machine.id().to_string(), port(n), format!("far{n}"));
        sh("ip", &["link", "del", &port])?;
        self.ways.push(Far::new([&port, &there], one_way)?);
        sh("ip", &["link", "set", &there, "netns", &id, "name", "eth0"])?;
        self.up(n)
    }

    /// The address of this process, for what machines are to reach: an origin.
    pub const fn here() -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, 254)
    }

    /// Places for the members of a mesh, in order.
    pub fn places(&self) -> Vec<Place> {
        let place = |(n, machine): (usize, &Process)| Place {
            enter: enter(machine.id()),
            ip: ip(n).into(),
        };
        self.machines.iter().enumerate().map(place).collect()
    }

    /// Cuts a machine's link, or mends it. Nobody is told: no connection ends by it.
    ///
    /// # Errors
    /// There is no such machine.
    pub fn cut(&self, n: usize, cut: bool) -> Result<()> {
        let to = if cut { "down" } else { "up" };
        sh("ip", &["link", "set", &port(n), to]).map(drop)
    }

    /// From now on a machine hears nothing, while what it says is heard; or it hears again.
    ///
    /// # Errors
    /// There is no such machine, or no iptables.
    pub fn deafen(&self, n: usize, deaf: bool) -> Result<()> {
        let what = if deaf { "-A" } else { "-D" };
        self.run(n, "iptables", &[what, "INPUT", "-i", "eth0", "-j", "DROP"])
    }

    /// Slows a machine's link to so many Mbit/s each way.
    ///
    /// # Errors
    /// There is no such machine, or no tc.
    pub fn slow(&self, n: usize, mbit: u64) -> Result<()> {
        let rate = format!("{mbit}mbit");
        let shape = [
            "root", "tbf", "rate", &rate, "burst", "32k", "latency", "200ms",
        ];
        let port = port(n);
        let down = [&["qdisc", "replace", "dev", &port][..], &shape].concat();
        sh("tc", &down)?;
        let up = [&["qdisc", "replace", "dev", "eth0"][..], &shape].concat();
        self.run(n, "tc", &up)
    }

    fn run(&self, n: usize, program: &str, args: &[&str]) -> Result<()> {
        let machine = self.machines.get(n);
        let machine = machine.ok_or_else(|| Failed(format!("there is no machine {n}")))?;
        let enter = enter(machine.id());
        let line: Vec<&str> = enter.iter().skip(1).map(String::as_str).collect();
        let line = [&line[..], &[program], args].concat();
        sh("nsenter", &line).map(drop)
    }
}

fn enter(id: u32) -> Vec<String> {
    vec![
        "nsenter".to_owned(),
        format!("--net=/proc/{id}/ns/net"),
        "--".to_owned(),
    ]
}

fn port(n: usize) -> String {
    format!("p{n}")
}

fn ip(n: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, u8::try_from(n + 1).unwrap_or(253))
}

/// Until a process has left the network namespace of this one.
fn has_its_own(id: u32) -> Result<()> {
    let of = |who: &str| std::fs::read_link(format!("/proc/{who}/ns/net"));
    let here = of("self").map_err(|e| Failed::at("/proc/self/ns/net", e))?;
    let until = Instant::now() + LIMIT;
    while of(&id.to_string()).is_ok_and(|there| there == here) {
        if Instant::now() > until {
            return Err(Failed("a machine gets no network of its own".to_owned()));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// Runs a program to its end, which has to be a good one.
fn sh(program: &str, args: &[&str]) -> Result<String> {
    let out = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output();
    let out = out.map_err(|e| Failed::at(program, e))?;
    if !out.status.success() {
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        return Err(Failed::at(format!("{program} {}", args.join(" ")), said));
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}
