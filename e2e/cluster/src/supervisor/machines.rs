//! Machines: namespaces, and the network between them.
//!
//! A machine is the namespaces of one sleeping process. Nothing else names them, so they are gone when
//! the processes are. The bridge is in the control plane's namespace; the host has one end of a veth
//! pair and routes, so that tests and kubectl reach every machine, pod and service directly.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use dragonfly_e2e::{Failed, Result};

use super::HOME;
use super::processes::{Processes, run};
use crate::plan::{Machine, Plan, on_link};
use crate::registry::NAME;

/// How long making namespaces may take.
const LIMIT: Duration = Duration::from_secs(10);

/// What of the machine's tree each node has for itself; all of it is on a Debian with containerd.
/// Whatever pods mount from the node's disk is below one of these.
const OWN: [&str; 4] = ["/run", "/var", "/tmp", "/etc/containerd"];

/// What kubelet wants of the kernel, and would set.
const SETTINGS: [(&str, &str); 6] = [
    ("vm.overcommit_memory", "1"),
    ("vm.panic_on_oom", "0"),
    ("kernel.panic", "10"),
    ("kernel.panic_on_oops", "1"),
    ("kernel.keys.root_maxkeys", "1000000"),
    ("kernel.keys.root_maxbytes", "25000000"),
];

/// Makes a node's mounts in a new mount namespace: `$1` is the node's directory, `$2` its name, `$3`
/// what is written when all is done, and the rest what stays visible where it is.
const NODE: &str = r#"set -eu
node=$1 name=$2 done=$3
shift 3
mount --make-rprivate /
hostname "$name"
for keep; do
    mkdir -p "$node/root$keep"
    mount --bind "$keep" "$node/root$keep"
done
for own in OWN; do
    mount --rbind "$node/root$own" "$own"
done
mount --bind "$node/root/etc/hosts" /etc/hosts
# What kubelet would set is the whole machine's: here it reads that it is set already.
for setting in "$node"/settings/*; do
    path=${setting##*/}
    mount --bind "$setting" "/proc/sys/$(echo "$path" | tr . /)"
done
# Pods with mountPropagation need a shared tree; nothing of it reaches the host's.
mount --make-rshared /
ip link set lo up
echo >"$done"
exec sleep infinity
"#;

/// One machine that is up.
#[derive(Debug, Clone)]
pub(crate) struct Up {
    /// The process that holds its namespaces.
    pub(crate) holder: i32,
    pub(crate) dir: PathBuf,
    mounts: bool,
}

impl Up {
    /// What comes before a program to run it on this machine.
    pub(crate) fn enter(&self) -> Vec<String> {
        enter(self.holder, self.mounts)
    }
}

/// What comes before a program to run it in the namespaces of a process.
pub(crate) fn enter(holder: i32, mounts: bool) -> Vec<String> {
    let holder = holder.to_string();
    let mut line = vec!["nsenter", "--target", &holder, "--net", "--uts"];
    if mounts {
        line.push("--mount");
    }
    line.push("--");
    line.into_iter().map(str::to_owned).collect()
}

/// The host's end of a cluster's network.
pub(crate) fn host_interface(number: u8) -> String {
    format!("dfe2e{number}")
}

pub(crate) struct Machines {
    pub(crate) control_plane: Up,
    pub(crate) nodes: Vec<Up>,
}

impl Machines {
    pub(crate) async fn start(
        processes: &mut Processes,
        plan: Plan,
        dir: &Path,
        nodes: usize,
    ) -> Result<Self> {
        let control_plane = hold(processes, &dir.join("control-plane"), "control-plane", None)?;
        let hosts = hosts(plan, nodes);
        let names = (0..nodes).map(|n| format!("node-{n}"));
        let nodes = names.map(|name| hold(processes, &dir.join(&name), &name, Some(&hosts)));
        let nodes = nodes.collect::<Result<Vec<_>>>()?;
        for machine in std::iter::once(&control_plane).chain(&nodes) {
            ready(processes, machine).await?;
        }
        let machines = Self {
            control_plane,
            nodes,
        };
        machines.connect(plan)?;
        Ok(machines)
    }

    fn connect(&self, plan: Plan) -> Result<()> {
        let hub = self.control_plane.holder;
        let host = host_interface(plan.number);
        // A supervisor that was killed a moment ago may have left one that is about to go.
        let _ = Command::new("ip").args(["link", "del", &host]).output();
        let mut here = Batch::default();
        here.add(format!(
            "link add {host} type veth peer name host netns {hub}"
        ));
        here.addresses(plan, Machine::Host, &host);
        here.routes(plan, self.nodes.len(), None);
        here.run(
            "the host's end of the network",
            &self.control_plane.dir,
            None,
        )?;

        let mut there = Batch::default();
        there.add("link set lo up");
        there.add("link add br0 type bridge");
        there.add("link set host master br0 up");
        for (n, node) in self.nodes.iter().enumerate() {
            there.add(format!(
                "link add node-{n} type veth peer name eth0 netns {}",
                node.holder
            ));
            there.add(format!("link set node-{n} master br0 up"));
        }
        there.addresses(plan, Machine::ControlPlane, "br0");
        there.routes(plan, self.nodes.len(), None);
        let machine = &self.control_plane;
        there.run("the control plane's network", &machine.dir, Some(machine))?;

        for (n, node) in self.nodes.iter().enumerate() {
            let mut batch = Batch::default();
            batch.addresses(plan, Machine::Node(n), "eth0");
            for (host, any) in plan.addresses(Machine::Host).iter().map(|a| (a, any(*a))) {
                batch.add(format!("route add {any} via {host}"));
            }
            batch.routes(plan, self.nodes.len(), Some(n));
            batch.run("a node's network", &node.dir, Some(node))?;
            let forwarding = sysctl(node, plan.family.has_v6());
            run("forwarding", &mut command(&forwarding))?;
        }
        Ok(())
    }
}

/// Writes below /proc/sys, which is of the network namespace of who writes.
fn sysctl(node: &Up, v6: bool) -> Vec<String> {
    let mut script = "echo 1 >/proc/sys/net/ipv4/ip_forward".to_owned();
    if v6 {
        script.push_str(" && echo 1 >/proc/sys/net/ipv6/conf/all/forwarding");
    }
    let mut line = node.enter();
    line.extend(["sh".to_owned(), "-c".to_owned(), script]);
    line
}

const fn any(address: IpAddr) -> &'static str {
    if address.is_ipv4() {
        "0.0.0.0/0"
    } else {
        "::/0"
    }
}

/// Commands for `ip -batch`.
#[derive(Default)]
struct Batch(String);

impl Batch {
    fn add(&mut self, line: impl AsRef<str>) {
        self.0.push_str(line.as_ref());
        self.0.push('\n');
    }

    fn addresses(&mut self, plan: Plan, machine: Machine, interface: &str) {
        for address in plan.addresses(machine) {
            // Without `nodad` an IPv6 address cannot be bound for a second.
            let nodad = if address.is_ipv6() { " nodad" } else { "" };
            self.add(format!(
                "addr add {} dev {interface}{nodad}",
                on_link(address)
            ));
        }
        self.add(format!("link set {interface} up"));
    }

    /// To pods by their node, and to services by the first node, whose kube-proxy knows the rest.
    fn routes(&mut self, plan: Plan, nodes: usize, own: Option<usize>) {
        for n in (0..nodes).filter(|n| Some(*n) != own) {
            for pods in plan.pods_of(n) {
                self.via(plan, &pods, n);
            }
        }
        if own.is_none() && nodes > 0 {
            for services in plan.services() {
                self.via(plan, &services, 0);
            }
        }
    }

    fn via(&mut self, plan: Plan, to: &crate::plan::Cidr, node: usize) {
        let vias = plan.addresses(Machine::Node(node));
        for via in vias.iter().filter(|via| via.is_ipv4() == to.base.is_ipv4()) {
            self.add(format!("route add {to} via {via}"));
        }
    }

    /// `within` is a directory of the cluster, so that what is written goes with it.
    fn run(&self, what: &str, within: &Path, on: Option<&Up>) -> Result<()> {
        let mut line = on.map(Up::enter).unwrap_or_default();
        // A file, since standard input of helpers is closed.
        let file = within.join("network.batch");
        fs::write(&file, &self.0).map_err(|e| Failed::at(file.display(), e))?;
        let path = file.display().to_string();
        line.extend(["ip".to_owned(), "-batch".to_owned(), path]);
        run(what, &mut command(&line)).map_err(|e| Failed(format!("{e}\n{}", self.0)))
    }
}

fn command(line: &[String]) -> Command {
    let mut command = Command::new(line.first().map_or("", String::as_str));
    command.args(line.iter().skip(1));
    command
}

/// The names that every node knows.
fn hosts(plan: Plan, nodes: usize) -> String {
    let mut text = "127.0.0.1 localhost\n::1 localhost\n".to_owned();
    for address in plan.addresses(Machine::ControlPlane) {
        text.push_str(&format!("{address} {NAME}\n"));
    }
    for n in 0..nodes {
        for address in plan.addresses(Machine::Node(n)) {
            text.push_str(&format!("{address} node-{n}\n"));
        }
    }
    text
}

/// Starts the process that holds a machine's namespaces; with mounts of its own where names are given.
fn hold(processes: &mut Processes, dir: &Path, name: &str, hosts: Option<&str>) -> Result<Up> {
    let mut line = vec!["unshare".to_owned(), "--net".to_owned(), "--uts".to_owned()];
    fs::create_dir_all(dir).map_err(|e| Failed::at(dir.display(), e))?;
    let done = done(dir);
    let words: Vec<String> = if let Some(hosts) = hosts {
        line.push("--mount".to_owned());
        tree(dir, hosts)?;
        let own: Vec<_> = OWN.iter().map(|own| format!("'{own}'")).collect();
        let script = NODE.replace("OWN", &own.join(" "));
        let mut words = vec!["sh".to_owned(), "-c".to_owned(), script, "sh".to_owned()];
        words.extend([
            dir.display().to_string(),
            name.to_owned(),
            done.display().to_string(),
        ]);
        words.extend(kept()?);
        words
    } else {
        let script = "hostname \"$1\" && echo >\"$2\" && exec sleep infinity".to_owned();
        let done = done.display().to_string();
        vec![
            "sh".to_owned(),
            "-c".to_owned(),
            script,
            "sh".to_owned(),
            name.to_owned(),
            done,
        ]
    };
    line.extend(words);
    let holder = processes.start(&format!("{name}-namespaces"), line)?;
    Ok(Up {
        holder,
        dir: dir.to_owned(),
        mounts: hosts.is_some(),
    })
}

/// A node's own tree.
fn tree(dir: &Path, hosts: &str) -> Result<()> {
    let root = dir.join("root");
    let below = [
        "run/lock",
        "var/lib",
        "var/log",
        "var/cache",
        "var/tmp",
        "tmp",
    ];
    let made = below
        .iter()
        .map(|d| root.join(d))
        .chain(OWN.iter().map(|own| below_root(&root, own)));
    for path in made {
        fs::create_dir_all(&path).map_err(|e| Failed::at(path.display(), e))?;
    }
    let names = root.join("etc/hosts");
    fs::write(&names, hosts).map_err(|e| Failed::at(names.display(), e))?;
    let settings = dir.join("settings");
    fs::create_dir_all(&settings).map_err(|e| Failed::at(settings.display(), e))?;
    for (name, value) in SETTINGS {
        let path = settings.join(name);
        fs::write(&path, format!("{value}\n")).map_err(|e| Failed::at(path.display(), e))?;
    }
    let link = |to: &str, at: &str| std::os::unix::fs::symlink(to, root.join(at));
    link("/run", "var/run")
        .and_then(|()| link("/run/lock", "var/lock"))
        .map_err(|e| Failed::at(root.display(), e))?;
    for dir in ["tmp", "var/tmp"] {
        let all = <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o1777);
        let path = root.join(dir);
        fs::set_permissions(&path, all).map_err(|e| Failed::at(path.display(), e))?;
    }
    Ok(())
}

fn below_root(root: &Path, own: &str) -> PathBuf {
    root.join(own.trim_start_matches('/'))
}

/// Directories that nodes see where the host has them, although what is above is their own.
fn kept() -> Result<Vec<String>> {
    let all = [PathBuf::from(HOME), crate::tools::cache()?];
    let hidden = |path: &PathBuf| OWN.iter().any(|own| path.starts_with(own));
    Ok(all
        .iter()
        .filter(|p| hidden(p) && p.is_dir())
        .map(|p| p.display().to_string())
        .collect())
}

fn done(dir: &Path) -> PathBuf {
    dir.join("namespaces-made")
}

async fn ready(processes: &mut Processes, machine: &Up) -> Result<()> {
    let until = Instant::now() + LIMIT;
    while !done(&machine.dir).exists() {
        if let Some(why) = processes.ended().into_iter().next() {
            return Err(Failed(why));
        }
        if Instant::now() > until {
            let at = machine.dir.display();
            return Err(Failed::at(
                at,
                format!("namespaces are not made after {LIMIT:?}"),
            ));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}
