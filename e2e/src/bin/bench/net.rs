//! Nodes as network namespaces on one bridge, every link shaped both ways.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use dragonfly_e2e::far::Far;
use dragonfly_e2e::{Failed, Result};

/// HTB counts Ethernet bytes: what is left for content at 1500 bytes a packet.
pub(crate) const GOODPUT: f64 = 0.956;

/// A node's link, Mbit/s; none for as fast as the machine goes.
#[derive(Clone, Copy, PartialEq)]
pub(crate) struct Link {
    pub(crate) up: Option<u64>,
    pub(crate) down: Option<u64>,
}

impl Link {
    pub(crate) const UNSHAPED: Self = Self {
        up: None,
        down: None,
    };

    pub(crate) const fn equal(rate: u64) -> Self {
        Self {
            up: Some(rate),
            down: Some(rate),
        }
    }
}

/// A bridge and nodes, each in a namespace of its own; gone when dropped.
pub(crate) struct Net {
    prefix: String,
    nodes: usize,
    ways: Vec<Far>,
}

impl Net {
    pub(crate) fn new(links: &[Link]) -> Result<Self> {
        sweep()?;
        let net = Self {
            prefix: format!("dfb{}", std::process::id()),
            nodes: links.len(),
            ways: vec![],
        };
        let bridge = net.bridge();
        ip(&["netns", "add", &bridge])?;
        ip(&["-n", &bridge, "link", "add", "br0", "type", "bridge"])?;
        ip(&["-n", &bridge, "link", "set", "br0", "up"])?;
        for (n, link) in links.iter().enumerate() {
            let (ns, port) = (net.ns(n), format!("p{n}"));
            ip(&["netns", "add", &ns])?;
            ip(&[
                "-n", &bridge, "link", "add", &port, "type", "veth", "peer", "name", "eth0",
                "netns", &ns,
            ])?;
            ip(&["-n", &ns, "link", "set", "lo", "up"])?;
            net.up(n)?;
            shape(&ns, "eth0", link.up)?;
            shape(&bridge, &port, link.down)?;
        }
        Ok(net)
    }

    /// Puts a node far away: whatever goes to it or comes from it takes so long each way. Its link is a new
    /// one, which nothing shapes: this comes before anything is sent on it.
    pub(crate) fn far(&mut self, n: usize, one_way: Duration) -> Result<()> {
        let (bridge, ns, port) = (self.bridge(), self.ns(n), format!("p{n}"));
        let [here, there] = ["a", "b"].map(|end| format!("{}{end}{n}", self.prefix));
        ip(&["-n", &bridge, "link", "del", &port])?;
        self.ways.push(Far::new([&here, &there], one_way)?);
        ip(&["link", "set", &here, "netns", &bridge, "name", &port])?;
        ip(&["link", "set", &there, "netns", &ns, "name", "eth0"])?;
        self.up(n)
    }

    /// Puts a node's link on the bridge and gives it its address.
    fn up(&self, n: usize) -> Result<()> {
        let (bridge, ns, port) = (self.bridge(), self.ns(n), format!("p{n}"));
        ip(&["-n", &bridge, "link", "set", &port, "master", "br0", "up"])?;
        let address = format!("{}/24", self.ip(n));
        ip(&["-n", &ns, "addr", "add", &address, "dev", "eth0"])?;
        ip(&["-n", &ns, "link", "set", "eth0", "up"]).map(drop)
    }

    fn bridge(&self) -> String {
        format!("{}-br", self.prefix)
    }

    fn ns(&self, n: usize) -> String {
        format!("{}-{n}", self.prefix)
    }

    pub(crate) fn ip(&self, n: usize) -> String {
        format!("10.77.0.{}", n + 1)
    }

    /// A command inside a node; what it says is thrown away. It has this process's mounts, not some of
    /// its own as with `ip netns exec`: files can be given other names only where mounts are the same.
    pub(crate) fn command(&self, n: usize, program: &Path) -> Command {
        let mut c = Command::new("nsenter");
        c.arg(format!("--net=/run/netns/{}", self.ns(n)))
            .arg(program);
        c.stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        c
    }

    /// Bytes that left a node. The kernel counts what TCP hands over in one piece with one header, so these
    /// are nearly the bytes of contents and of what is said about them.
    pub(crate) fn sent(&self, n: usize) -> Result<u64> {
        let path = "/sys/class/net/eth0/statistics/tx_bytes";
        let text = ip(&["netns", "exec", &self.ns(n), "cat", path])?;
        text.trim().parse().map_err(|e| Failed::at("tx_bytes", e))
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for n in 0..self.nodes {
            let _ = ip(&["netns", "del", &self.ns(n)]);
        }
        let _ = ip(&["netns", "del", &self.bridge()]);
    }
}

/// Removes what a bench left that was killed.
fn sweep() -> Result<()> {
    for line in ip(&["netns", "list"])?.lines() {
        let name = line.split(' ').next().unwrap_or_default();
        let owner = name.strip_prefix("dfb").and_then(|n| n.split('-').next());
        let owner = owner.and_then(|pid| pid.parse::<u32>().ok());
        if owner.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            ip(&["netns", "del", name])?;
        }
    }
    Ok(())
}

fn shape(ns: &str, dev: &str, rate: Option<u64>) -> Result<()> {
    let Some(rate) = rate else { return Ok(()) };
    let rate = format!("{rate}mbit");
    let tc = |args: &[&str]| sh("tc", &[&["-n", ns][..], args].concat());
    tc(&[
        "qdisc", "add", "dev", dev, "root", "handle", "1:", "htb", "default", "1",
    ])?;
    tc(&[
        "class", "add", "dev", dev, "parent", "1:", "classid", "1:1", "htb", "rate", &rate,
        "burst", "64k",
    ])?;
    tc(&[
        "qdisc", "add", "dev", dev, "parent", "1:1", "pfifo", "limit", "300",
    ])?;
    Ok(())
}

fn ip(args: &[&str]) -> Result<String> {
    sh("ip", args)
}

/// Runs a program to its end and gives back what it printed.
pub(crate) fn sh(program: &str, args: &[&str]) -> Result<String> {
    let out = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .map_err(|e| Failed::at(program, e))?;
    if !out.status.success() {
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        return Err(Failed::at(format!("{program} {}", args.join(" ")), said));
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}
