//! `dragonfly up`: scheduler, seeds and peers in one process, from manifests, without Kubernetes.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dragonfly_crds::policy::Transport;
use dragonfly_identity::Authority;
use dragonfly_kubernetes::reports::{Reports, Status};
use dragonfly_node::node::Role;
use dragonfly_proto::rpc::Sketch;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::identity::Proof;
use super::mirrored::Mirrored;
use super::policy::{self, Given};
use super::preheats::ThisScheduler;
use super::scheduler::{self, ShownScheduler};
use super::{LogArgs, RoleError, bootstrap, light, manifests, node, write_atomically};

const STATUS_EVERY: Duration = Duration::from_secs(1);

/// Run a whole mesh in one process: scheduler, seeds and peers from manifests
///
/// The same manifests run on Kubernetes. Edits are picked up; status is written to STATE/status, of
/// Preheats to STATE/status/preheats/NAMESPACE/NAME.json.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Manifests: a Distribution; if it refers to one, a SchedulerPool; Preheats, which are carried
    /// out [default: built-in defaults]
    #[arg(short, long, value_name = "DIR")]
    file: Option<PathBuf>,
    /// Which Distribution, where there are several: `name` or `namespace/name`
    #[arg(long, value_name = "NAME")]
    distribution: Option<String>,
    /// Where keys, content and status are kept
    #[arg(long, default_value = "dragonfly-state", value_name = "DIR")]
    state: PathBuf,
    /// Peers
    #[arg(long, default_value_t = 1)]
    peers: u32,
    /// Where the scheduler listens; other machines' nodes may join there
    #[arg(long, default_value = "127.0.0.1:8002", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// The address seeds and peers listen on, each on a port of its own
    #[arg(long, default_value = "127.0.0.1", value_name = "IP")]
    node_address: std::net::IpAddr,
    /// The first peer's socket; the others' are STATE/peer-N/node.sock
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// The mesh's name
    #[arg(
        long,
        env = "DRAGONFLY_MESH",
        default_value = "default",
        value_name = "NAME"
    )]
    mesh: String,
    /// Where /healthz, /readyz and /metrics are
    #[arg(long, value_name = "ADDRESS")]
    admin: Option<SocketAddr>,
    #[command(flatten)]
    log: LogArgs,
}

/// Runs the command.
pub(crate) async fn run(args: Args) -> ExitCode {
    args.log.start();
    super::until_signalled(|stop| serve(args, stop)).await
}

async fn serve(args: Args, stop: CancellationToken) -> Result<(), RoleError> {
    let kept = policy::last_good(&args.state.join("policy.json"));
    let manifests::Read {
        policy: first,
        distribution,
        preheats,
    } = manifests::read(
        args.file.as_deref(),
        args.distribution.as_deref(),
        kept.as_ref(),
    )?;
    let authority = Authority::load_or_create(&args.state.join("mesh"), &args.mesh)
        .map_err(|e| RoleError(e.to_string()))?;
    let token = (first.node.transport == Transport::MutualTLS).then(|| authority.token());
    let given = Given::resolved(first.clone())?;
    let (policies, problems) = (watch::Sender::new(given), watch::Sender::new(None));
    let config = scheduler::Config {
        listen: args.listen,
        advertise: None,
        name: Some("scheduler-0".to_owned()),
        others: vec![],
        mesh: args.mesh.clone(),
        identity: scheduler::Own::Authority(Arc::new(authority)),
        sketches: None,
    };
    let scheduler = scheduler::start(config, policies.subscribe(), stop.clone()).await?;
    let mut nodes = vec![];
    // One a machine.
    let mirrored = Arc::new(Mirrored::new(None, None, stop.clone()));
    let seeds = (0..first.scheduler.seeds).map(|n| (Role::Seed, format!("seed-{n}")));
    let peers = (0..args.peers).map(|n| (Role::Peer, format!("peer-{n}")));
    for (role, name) in seeds.chain(peers) {
        let state = args.state.join(&name);
        let is_first = name == "peer-0";
        let own = args.socket.clone().filter(|_| is_first);
        let socket = own.unwrap_or_else(|| state.join("node.sock"));
        let config = node::Config {
            role,
            name,
            zone: String::new(),
            mesh: args.mesh.clone(),
            state,
            listen: SocketAddr::new(args.node_address, 0),
            advertise: vec![],
            schedulers: bootstrap::fixed(vec![scheduler.address.clone()]),
            proof: token.clone().map(Proof::Join),
            policy: Some(first.clone()),
            ruled: CancellationToken::new(),
            socket: Some((socket, 0o660)),
            mirrored: is_first.then(|| mirrored.clone()),
        };
        nodes.push(node::start(config, stop.clone()).await?);
    }
    if let Some(addr) = args.admin {
        let shown = Arc::new(ShownScheduler::of(scheduler.service.clone()));
        super::show(addr, shown, &stop).await?;
    }
    let preheats = watch::Sender::new(preheats);
    let warming = tokio::spawn({
        let (wanted, stop) = (preheats.subscribe(), stop.clone());
        let (state, given) = (args.state.clone(), policies.subscribe());
        let warmer = ThisScheduler {
            service: scheduler.service.clone(),
            mirrored: Box::new(move || policy::mirrored(&given.borrow().policy)),
        };
        let count = |n: u32| usize::try_from(n).unwrap_or(usize::MAX);
        let mesh = light::OwnMesh {
            distribution,
            seeds: count(first.scheduler.seeds),
            peers: count(args.peers),
        };
        async move { light::carry_out(wanted, mesh, &state, warmer, stop).await }
    });
    if let Some(dir) = args.file.clone() {
        let to = manifests::Followers {
            policies: policies.clone(),
            problems: problems.clone(),
            preheats,
        };
        tokio::spawn(manifests::follow(dir, args.distribution, to, stop.clone()));
    }
    let first_socket = args
        .socket
        .unwrap_or_else(|| args.state.join("peer-0/node.sock"));
    tracing::info!(
        scheduler = scheduler.address,
        join_token = %args.state.join("mesh/join-token").display(),
        "the mesh is up; try: dragonfly get --socket {} URL",
        first_socket.display()
    );
    let mut status = StatusFile::new(&args.state);
    while !stop.is_cancelled() {
        let given = policies.borrow().clone();
        let problem = problems.borrow().clone();
        status.write(&given, problem, scheduler.service.sketch(), nodes.len());
        tokio::select! {
            () = tokio::time::sleep(STATUS_EVERY) => {}
            () = stop.cancelled() => {}
        }
    }
    // What it knows is on disk before the process ends.
    let _ = warming.await;
    mirrored.drained().await;
    for node in nodes {
        node.shutdown().await;
    }
    Ok(())
}

/// `STATE/status/distribution.json`, and the policy that is gone on from at the next start.
struct StatusFile {
    path: PathBuf,
    policy: PathBuf,
    started: Instant,
    number: u64,
    reports: Reports,
    last: String,
}

impl StatusFile {
    fn new(state: &Path) -> Self {
        let path = state.join("status/distribution.json");
        let found = std::fs::read(&path).ok();
        let found: Option<Value> = found.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let found = Status::left_in(found.as_ref());
        Self {
            path,
            policy: state.join("policy.json"),
            started: Instant::now(),
            number: 0,
            reports: Reports::new(Duration::ZERO, found.as_ref()),
            last: String::new(),
        }
    }

    /// Writes both when they changed.
    fn write(&mut self, given: &Given, problem: Option<String>, sketch: Sketch, nodes: usize) {
        let (now, clock) = (self.started.elapsed(), jiff::Timestamp::now());
        self.number += 1;
        let number = self.number;
        self.reports.take(now, clock, &Sketch { number, ..sketch });
        let policy = &given.policy;
        let status = self.reports.status(now, clock, Some(&policy.into()));
        for notice in self.reports.notices() {
            tracing::warn!(reason = notice.reason, "{}", notice.note);
        }
        let all = i64::try_from(nodes).is_ok_and(|n| status.rollout.nodes >= n);
        let ready = problem.is_none() && all;
        let flag = |is: bool| if is { "True" } else { "False" };
        let mut conditions = vec![
            json!({ "type": "Ready", "status": flag(ready) }),
            json!({ "type": "Stalled", "status": flag(problem.is_some()),
                "message": problem.unwrap_or_default() }),
        ];
        conditions.extend(status.conditions.iter().map(|c| json!(c)));
        let status = json!({
            "policy": { "uid": policy.uid, "revision": policy.revision, "hash": policy.hash },
            "conditions": conditions,
            "rollout": status.rollout,
            "traffic": status.traffic,
            "failures": status.failures,
        });
        let text = format!("{status:#}\n");
        if text == self.last {
            return;
        }
        let dir = self.path.parent().unwrap_or(&self.path);
        let written = std::fs::create_dir_all(dir)
            .map_err(|e| RoleError::at(dir.display(), e))
            .and_then(|()| write_atomically(&self.path, text.as_bytes()))
            .and_then(|()| write_atomically(&self.policy, &given.update.json));
        match written {
            Ok(()) => self.last = text,
            Err(error) => tracing::warn!(%error, "status is not written"),
        }
    }
}
