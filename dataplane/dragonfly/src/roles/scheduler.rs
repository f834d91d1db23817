//! `dragonfly scheduler`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use dragonfly_crds::Policy;
use dragonfly_crds::policy::Transport;
use dragonfly_identity::Authority;
use dragonfly_proto::rpc;
use dragonfly_scheduler::core::Core;
use dragonfly_scheduler::service::Service;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};

use super::admin::{self, Shown};
use super::{LogArgs, RoleError, manifests, mesh_id, policy};

/// Run a scheduler: who is in which swarm, and the mesh's policy
///
/// Policy comes from manifests (-f DIR), the same as on Kubernetes; edits are picked up. The join
/// token that seeds and peers need is written to STATE/mesh/join-token.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Where nodes connect
    #[arg(long, default_value = "0.0.0.0:8002", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// What nodes are told to connect to [default: the listening address]
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Option<String>,
    /// This replica's name, the same after every restart [default: the advertised address]
    #[arg(long)]
    name: Option<String>,
    /// Another replica: `name=host:port`; repeatable
    #[arg(long, value_name = "NAME=ADDRESS")]
    replica: Vec<String>,
    /// Where keys are kept; replicas share STATE/mesh
    #[arg(
        long,
        default_value = "/var/lib/dragonfly/scheduler",
        value_name = "DIR"
    )]
    state: PathBuf,
    /// Manifests: a Distribution and, if it refers to one, a SchedulerPool
    #[arg(short, long, value_name = "DIR")]
    file: Option<PathBuf>,
    /// Which Distribution, where there are several: `name` or `namespace/name`
    #[arg(long, value_name = "NAME")]
    distribution: Option<String>,
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

/// What a scheduler is started with.
pub(crate) struct Config {
    pub(crate) listen: SocketAddr,
    pub(crate) advertise: Option<String>,
    pub(crate) name: Option<String>,
    pub(crate) others: Vec<rpc::Replica>,
    pub(crate) mesh: String,
    pub(crate) authority: Arc<Authority>,
}

/// A scheduler that serves.
pub(crate) struct Running {
    pub(crate) address: String,
    pub(crate) service: Service,
}

/// Runs the command.
pub(crate) async fn run(args: Args) -> ExitCode {
    args.log.start();
    super::until_signalled(|stop| serve(args, stop)).await
}

async fn serve(args: Args, stop: CancellationToken) -> Result<(), RoleError> {
    let authority = Authority::load_or_create(&args.state.join("mesh"), &args.mesh)
        .map_err(|e| RoleError(e.to_string()))?;
    let others = args.replica.iter().map(|r| match r.split_once('=') {
        Some((name, address)) => Ok(rpc::Replica {
            name: name.to_owned(),
            address: address.to_owned(),
        }),
        None => Err(RoleError(format!("--replica {r}: write name=host:port"))),
    });
    let first = manifests::read(args.file.as_deref(), args.distribution.as_deref(), None)?;
    let policies = watch::Sender::new(first);
    let problems = watch::Sender::new(None);
    let config = Config {
        listen: args.listen,
        advertise: args.advertise,
        name: args.name,
        others: others.collect::<Result<_, _>>()?,
        mesh: args.mesh,
        authority: Arc::new(authority),
    };
    if let Some(dir) = args.file {
        let (policies, problems) = (policies.clone(), problems.clone());
        tokio::spawn(manifests::follow(
            dir,
            args.distribution,
            policies,
            problems,
            stop.clone(),
        ));
    }
    let running = start(config, policies.subscribe(), stop.clone()).await?;
    if let Some(addr) = args.admin {
        let shown = Arc::new(ShownScheduler(running.service.clone()));
        let addr = admin::serve(addr, shown, stop.clone()).await?;
        tracing::info!(%addr, "health and metrics");
    }
    let token = args.state.join("mesh/join-token");
    tracing::info!(address = running.address, join_token = %token.display(), "scheduler is up");
    stop.cancelled().await;
    Ok(())
}

/// Starts a scheduler in this process.
pub(crate) async fn start(
    config: Config,
    mut policies: watch::Receiver<Policy>,
    stop: CancellationToken,
) -> Result<Running, RoleError> {
    let listener = TcpListener::bind(config.listen)
        .await
        .map_err(|e| RoleError::at(format!("scheduler port {}", config.listen), e))?;
    let bound = listener
        .local_addr()
        .map_err(|e| RoleError::at("scheduler port", e))?;
    let reachable = || {
        super::reachable(bound, None)
            .first()
            .map(ToString::to_string)
    };
    let address = config
        .advertise
        .or_else(reachable)
        .unwrap_or_else(|| bound.to_string());
    let name = config.name.unwrap_or_else(|| address.clone());
    let mut replicas = config.others;
    replicas.push(rpc::Replica {
        name: name.clone(),
        address: address.clone(),
    });
    let first = policies.borrow_and_update().clone();
    let secure = first.node.transport == Transport::MutualTLS;
    let unix = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    let core = Core::new(
        name.clone(),
        replicas,
        mesh_id(&config.mesh),
        config.authority.signing.clone(),
        policy::scheduler(&first),
        unix,
    );
    let service = Service::new(core, secure);
    service.set_policy(policy::update(&first)?, policy::scheduler(&first));
    let mut server = Server::builder().http2_keepalive_interval(Some(super::node::KEEPALIVE));
    if secure {
        let (cert, key) = config
            .authority
            .scheduler(&name)
            .map_err(|e| RoleError(e.to_string()))?;
        // Optional, since who enrolls has no certificate yet; a session needs one.
        let tls = ServerTlsConfig::new()
            .identity(Identity::from_pem(cert, key))
            .client_ca_root(Certificate::from_pem(config.authority.ca()))
            .client_auth_optional(true);
        server = server
            .tls_config(tls)
            .map_err(|e| RoleError::at("TLS", e))?;
    }
    let router = server
        .add_service(service.server())
        .add_service(config.authority.server());
    let stopped = stop.clone();
    tokio::spawn(async move {
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        tokio::select! {
            served = router.serve_with_incoming(incoming) => {
                if let Err(error) = served {
                    tracing::error!(%error, "the scheduler's server ended");
                }
            }
            () = stopped.cancelled() => {}
        }
    });
    let (ticking, ticks) = (service.clone(), stop.clone());
    tokio::spawn(async move { ticking.run(ticks).await });
    let told = service.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                changed = policies.changed() => if changed.is_err() { return },
                () = stop.cancelled() => return,
            }
            let policy = policies.borrow_and_update().clone();
            match policy::update(&policy) {
                Ok(update) => told.set_policy(update, policy::scheduler(&policy)),
                Err(error) => tracing::error!(%error, "the policy cannot be sent"),
            }
        }
    });
    Ok(Running { address, service })
}

/// A scheduler on its admin port.
pub(crate) struct ShownScheduler(pub(crate) Service);

impl Shown for ShownScheduler {
    fn ready(&self) -> Result<(), String> {
        Ok(())
    }

    fn metrics(&self) -> String {
        let (seen, totals) = (self.0.inspect(), self.0.totals());
        let mut registry = Registry::default();
        let r = registry.sub_registry_with_prefix("dragonfly_scheduler");
        let gauge = |n: usize| ConstGauge::new(n as i64);
        r.register("nodes", "Nodes with a session", gauge(seen.nodes.len()));
        r.register("tasks", "Contents known", gauge(seen.tasks.len()));
        let members = seen.tasks.iter().map(|t| t.members as usize).sum();
        r.register("members", "Members of all contents", gauge(members));
        let rows = [
            (
                "origin_read_bytes",
                "Bytes nodes read from origins",
                totals.from_origin,
            ),
            (
                "seed_received_bytes",
                "Bytes nodes took from seeds",
                totals.from_seeds,
            ),
            (
                "peer_received_bytes",
                "Bytes nodes took from peers",
                totals.from_peers,
            ),
            ("messages", "Messages from nodes", totals.messages),
        ];
        for (name, help, n) in rows {
            r.register(name, help, ConstCounter::new(n));
        }
        admin::encode(&registry)
    }
}
