//! `dragonfly up`: scheduler, seeds and peers in one process, from manifests, without Kubernetes.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use dragonfly_crds::Policy;
use dragonfly_crds::policy::Transport;
use dragonfly_identity::Authority;
use dragonfly_node::node::{Node, Role};
use dragonfly_scheduler::service::Service;
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::admin;
use super::scheduler::{self, ShownScheduler};
use super::{LogArgs, RoleError, manifests, node, write_atomically};

const STATUS_EVERY: Duration = Duration::from_secs(1);

/// Run a whole mesh in one process: scheduler, seeds and peers from manifests
///
/// The same manifests run on Kubernetes. Edits are picked up; status is written to STATE/status.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Manifests: a Distribution and, if it refers to one, a SchedulerPool [default: built-in
    /// defaults]
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
    let kept = std::fs::read(args.state.join("policy.json")).ok();
    let kept = kept.and_then(|bytes| Policy::decode(&bytes).ok());
    let first = manifests::read(
        args.file.as_deref(),
        args.distribution.as_deref(),
        kept.as_ref(),
    )?;
    let authority = Authority::load_or_create(&args.state.join("mesh"), &args.mesh)
        .map_err(|e| RoleError(e.to_string()))?;
    let token = (first.node.transport == Transport::MutualTLS).then(|| authority.token());
    let (policies, problems) = (watch::Sender::new(first.clone()), watch::Sender::new(None));
    let config = scheduler::Config {
        listen: args.listen,
        advertise: None,
        name: Some("scheduler-0".to_owned()),
        others: vec![],
        mesh: args.mesh.clone(),
        authority: Arc::new(authority),
    };
    let scheduler = scheduler::start(config, policies.subscribe(), stop.clone()).await?;
    let mut nodes = vec![];
    let seeds = (0..first.scheduler.seeds).map(|n| (Role::Seed, format!("seed-{n}")));
    let peers = (0..args.peers).map(|n| (Role::Peer, format!("peer-{n}")));
    for (role, name) in seeds.chain(peers) {
        let state = args.state.join(&name);
        let own = args.socket.clone().filter(|_| name == "peer-0");
        let socket = own.unwrap_or_else(|| state.join("node.sock"));
        let config = node::Config {
            role,
            name,
            zone: String::new(),
            mesh: args.mesh.clone(),
            state,
            listen: SocketAddr::new(args.node_address, 0),
            advertise: vec![],
            schedulers: vec![scheduler.address.clone()],
            token: token.clone(),
            policy: Some(first.clone()),
            socket: Some((socket, 0o660)),
        };
        nodes.push(node::start(config, stop.clone()).await?);
    }
    if let Some(addr) = args.admin {
        let shown = Arc::new(ShownScheduler(scheduler.service.clone()));
        let addr = admin::serve(addr, shown, stop.clone()).await?;
        tracing::info!(%addr, "health and metrics");
    }
    if let Some(dir) = args.file.clone() {
        let (to, problems) = (policies.clone(), problems.clone());
        tokio::spawn(manifests::follow(
            dir,
            args.distribution,
            to,
            problems,
            stop.clone(),
        ));
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
    let mut last = String::new();
    while !stop.is_cancelled() {
        let policy = policies.borrow().clone();
        let problem = problems.borrow().clone();
        report(
            &args.state,
            &policy,
            problem,
            &scheduler.service,
            &nodes,
            &mut last,
        );
        tokio::select! {
            () = tokio::time::sleep(STATUS_EVERY) => {}
            () = stop.cancelled() => {}
        }
    }
    for node in nodes {
        node.shutdown().await;
    }
    Ok(())
}

/// Writes policy and status beside the state, when they changed.
fn report(
    state: &Path,
    policy: &Policy,
    problem: Option<String>,
    service: &Service,
    nodes: &[Arc<Node>],
    last: &mut String,
) {
    let (seen, totals) = (service.inspect(), service.totals());
    let current = seen
        .nodes
        .iter()
        .filter(|n| {
            n.policy
                .as_ref()
                .is_some_and(|p| p.revision == policy.revision && p.error.is_empty())
        })
        .count();
    let ready = problem.is_none() && seen.nodes.len() >= nodes.len();
    let status = json!({
        "policy": { "uid": policy.uid, "revision": policy.revision, "hash": policy.hash },
        "conditions": [
            { "type": "Ready", "status": if ready { "True" } else { "False" } },
            { "type": "Stalled", "status": if problem.is_some() { "True" } else { "False" },
              "message": problem.unwrap_or_default() },
        ],
        "rollout": { "nodes": seen.nodes.len(), "current": current },
        "traffic": {
            "originBytes": totals.from_origin,
            "seedBytes": totals.from_seeds,
            "peerBytes": totals.from_peers,
        },
        "tasks": seen.tasks.len(),
    });
    let text = format!("{status:#}\n");
    if text == *last {
        return;
    }
    let dir = state.join("status");
    let written = std::fs::create_dir_all(&dir)
        .map_err(|e| RoleError::at(dir.display(), e))
        .and_then(|()| write_atomically(&dir.join("distribution.json"), text.as_bytes()))
        .and_then(|()| {
            let bytes = policy.encode().map_err(|e| RoleError::at("policy", e))?;
            write_atomically(&state.join("policy.json"), &bytes)
        });
    match written {
        Ok(()) => *last = text,
        Err(error) => tracing::warn!(%error, "status is not written"),
    }
}
