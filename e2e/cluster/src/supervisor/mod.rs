//! The process that holds a cluster: it starts everything, and takes everything down when whoever
//! asked for the cluster is gone, however that happened.
//!
//! It is a program of its own in a session of its own, tied to the harness by two pipes. The harness's
//! end of the first closes when the harness ends, a kill -9 included. Every process of the cluster is
//! in the cluster's cgroup and every namespace belongs to one of those processes, so nothing is left
//! once they are gone; no mount and no named namespace is made on the machine itself. Where even the
//! supervisor was killed, its guard sweeps, and where that was killed too, the next supervisor to start.

mod claim;
mod control_plane;
mod guard;
mod machines;
mod node;
mod processes;

pub(crate) use control_plane::AUDIT;

use std::collections::BTreeMap;
use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

pub(crate) use claim::{HOME, Held, held, sweep_all};
use dragonfly_e2e::{Failed, Result};
pub use guard::guard;
pub(crate) use machines::enter;
pub(crate) use processes::joining;

use crate::options::{ClusterOptions, Containerd};
use crate::plan::{API_PORT, Machine, Plan, REGISTRY_PORT, in_url};
use crate::tools::Programs;
use claim::Claim;
use machines::Machines;
use processes::Processes;

/// Where Debian's CNI plugins are.
pub(crate) const CNI: &str = "/usr/lib/cni";
/// How long the API server may take to listen.
const LISTENS: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What the harness tells a supervisor first.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Request {
    pub(crate) options: ClusterOptions,
    pub(crate) programs: Programs,
    /// containerd 2's own.
    pub(crate) containerd: Programs,
}

/// What the harness tells it later.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Order {
    /// Outlive the harness.
    Keep,
    /// End a daemon by SIGKILL and start it again.
    Restart(String),
    /// End a daemon by SIGKILL.
    Kill(String),
    /// Start one more daemon, on the control plane's machine: its name and its command line.
    Start(String, Vec<String>),
}

/// What a supervisor tells the harness.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Said {
    /// All daemons are started.
    Up(Box<Info>),
    /// A daemon ended that was not told to: how, and its last words.
    Ended(String),
    /// An order was carried out.
    Done,
    /// It cannot go on and takes down what there is.
    Failed(String),
}

/// A cluster that runs, as its supervisor knows it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Info {
    /// Which of the clusters of this machine it is.
    pub number: u8,
    /// All its state and its logs.
    pub dir: PathBuf,
    /// The administrator's kubeconfig.
    pub kubeconfig: PathBuf,
    /// The API server's URL.
    pub server: String,
    /// The registry's `host:port`, plain HTTP.
    pub registry: String,
    /// What nodes and pods reach the machine at that runs it all, which is outside of the cluster.
    pub outside: String,
    /// Nodes, in order.
    pub nodes: Vec<NodeInfo>,
    /// Where Kubernetes' programs are, kubectl among them.
    pub programs: BTreeMap<String, PathBuf>,
}

/// A node that runs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodeInfo {
    /// As Kubernetes calls it.
    pub name: String,
    /// Its preferred address.
    pub address: String,
    /// The process that holds its namespaces.
    pub holder: i32,
    /// What it runs.
    pub containerd: Containerd,
    /// The file that a process on it writes itself into, so that it goes with the cluster.
    pub procs: PathBuf,
    /// Its own `/run`, `/var`, `/tmp` and more are in here.
    pub dir: PathBuf,
}

/// Runs a cluster until it is not wanted any more: what a [`guard()`] starts.
///
/// # Errors
/// What could not be started, or not be taken down.
pub async fn run() -> Result<()> {
    let wrong = |e| Failed::at("supervisor", e);
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(|e| wrong(e.into()))?;
    let mut terminate = signal(SignalKind::terminate()).map_err(wrong)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(wrong)?;
    let mut lines = lines();
    let first = lines.recv().await.unwrap_or_default();
    let request: Request =
        serde_json::from_str(&first).map_err(|e| Failed::at("what the harness asks for", e))?;

    let claim = Claim::new(request.options.family)?;
    let mut cluster = Running::new(&claim, request)?;
    let started = tokio::select! {
        // An order before the start is over: the harness is gone, and the cluster with it.
        _ = lines.recv() => Err(Failed("the harness ended while the cluster started".to_owned())),
        _ = terminate.recv() => Err(Failed("terminated".to_owned())),
        _ = interrupt.recv() => Err(Failed("interrupted".to_owned())),
        started = cluster.start() => started,
    };
    let outcome = match started {
        Ok(info) => {
            tell(&Said::Up(Box::new(info)));
            let mut kept = false;
            let mut look = tokio::time::interval(LOOK_EVERY);
            loop {
                tokio::select! {
                    line = lines.recv(), if !kept => match line.map(|line| cluster.obey(&line)) {
                        Some(Ok(keep)) => kept = keep,
                        Some(Err(wrong)) => break Err(wrong),
                        None => break Ok(()),
                    },
                    _ = terminate.recv() => break Ok(()),
                    _ = interrupt.recv() => break Ok(()),
                    _ = look.tick() => cluster.look(),
                }
            }
        }
        Err(wrong) => {
            tell(&Said::Failed(wrong.to_string()));
            Err(wrong)
        }
    };
    claim.release(|| cluster.processes.reap())?;
    outcome
}

/// Lines of standard input, until it ends.
fn lines() -> mpsc::UnboundedReceiver<String> {
    let (to, from) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let Ok(line) = line else { break };
            if to.send(line).is_err() {
                break;
            }
        }
    });
    from
}

/// The harness may be gone: nobody minds then.
fn tell(said: &Said) {
    let Ok(mut line) = serde_json::to_string(said) else {
        return;
    };
    line.push('\n');
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(line.as_bytes()).and_then(|()| out.flush());
}

struct Running {
    plan: Plan,
    dir: PathBuf,
    request: Request,
    processes: Processes,
    /// Once it is started.
    control_plane: Option<machines::Up>,
}

impl Running {
    fn new(claim: &Claim, request: Request) -> Result<Self> {
        claim.cgroup.make()?;
        Ok(Self {
            plan: claim.plan,
            dir: claim.dir.clone(),
            request,
            processes: Processes::new(claim.cgroup.clone(), &claim.dir.join("logs"))?,
            control_plane: None,
        })
    }

    async fn start(&mut self) -> Result<Info> {
        let (plan, nodes) = (self.plan, self.request.options.nodes.clone());
        let server = format!(
            "https://{}:{API_PORT}",
            in_url(plan.address(Machine::ControlPlane))
        );
        let pki = crate::pki::Pki::new(&self.dir.join("pki"), &server)?;
        let kubeconfig = pki.kubeconfig("admin", "admin", Some("system:masters"))?;
        let machines = Machines::start(&mut self.processes, plan, &self.dir, nodes.len()).await?;
        self.control_plane = Some(machines.control_plane.clone());
        let control_plane = control_plane::ControlPlane {
            plan,
            dir: &self.dir,
            pki: &pki,
            programs: &self.request.programs,
            machine: &machines.control_plane,
        };
        control_plane.start_api_server(&mut self.processes)?;
        let with_nodes = !nodes.is_empty();
        if with_nodes {
            control_plane.start_registry(&mut self.processes)?;
        }
        let mut infos = vec![];
        for (index, (containerd, machine)) in nodes.iter().zip(&machines.nodes).enumerate() {
            self.processes.cgroup.make_node(index)?;
            let node = node::Node {
                index,
                plan,
                containerd: *containerd,
                pki: &pki,
                machine,
                programs: &self.request.programs,
                containerd_programs: &self.request.containerd,
                cgroup: self.processes.cgroup.of_node(index),
                procs: self.processes.cgroup.procs(),
            };
            node.start_containerd(&mut self.processes)?;
            infos.push((node.info(), node));
        }
        // What follows gives up when nobody listens yet.
        listens(plan, &server, &mut self.processes).await?;
        if with_nodes {
            control_plane.start_controllers(&mut self.processes)?;
        }
        for (_, node) in &infos {
            node.start_kubelet(&mut self.processes)?;
        }
        let info = Info {
            number: plan.number,
            dir: self.dir.clone(),
            kubeconfig,
            server,
            registry: format!(
                "{}:{REGISTRY_PORT}",
                in_url(plan.address(Machine::ControlPlane))
            ),
            outside: plan.address(Machine::Host).to_string(),
            nodes: infos.into_iter().map(|(info, _)| info).collect(),
            programs: self.request.programs.clone(),
        };
        claim::write_info(&self.dir, &info)?;
        Ok(info)
    }

    /// Carries an order out; true if the cluster is to be kept.
    fn obey(&mut self, line: &str) -> Result<bool> {
        let done = match serde_json::from_str(line) {
            Ok(Order::Keep) => return claim::keep(&self.dir).map(|()| true),
            Ok(Order::Restart(name)) => self.processes.restart(&name),
            Ok(Order::Kill(name)) => self.processes.kill(&name),
            Ok(Order::Start(name, line)) => self.start_one(&name, line),
            Err(e) => Err(Failed::at(line, e)),
        };
        tell(&match done {
            Ok(()) => Said::Done,
            Err(wrong) => Said::Failed(wrong.to_string()),
        });
        Ok(false)
    }

    fn start_one(&mut self, name: &str, line: Vec<String>) -> Result<()> {
        let machine = self.control_plane.as_ref();
        let machine = machine.ok_or_else(|| Failed::at(name, "there is no machine for it yet"))?;
        let mut whole = machine.enter();
        whole.extend(line);
        self.processes.start(name, whole).map(|_| ())
    }

    fn look(&mut self) {
        for why in self.processes.ended() {
            tell(&Said::Ended(why));
        }
    }
}

/// Until the API server takes connections.
async fn listens(plan: Plan, server: &str, processes: &mut Processes) -> Result<()> {
    let until = Instant::now() + LISTENS;
    let address = plan.address(Machine::ControlPlane);
    while tokio::net::TcpStream::connect((address, API_PORT))
        .await
        .is_err()
    {
        if let Some(why) = processes.ended().into_iter().next() {
            return Err(Failed(why));
        }
        if Instant::now() > until {
            let said = processes.tail("kube-apiserver");
            return Err(Failed::at(
                server,
                format!("nobody listens after {LISTENS:?}\n{said}"),
            ));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}
