//! `dragonfly scheduler`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use dragonfly_crds::policy::Transport;
use dragonfly_identity::{Authority, SCHEDULER_NAME};
use dragonfly_kubernetes::reporter::Reporter;
use dragonfly_proto::rpc;
use dragonfly_scheduler::core::Core;
use dragonfly_scheduler::replicas;
use dragonfly_scheduler::service::Service;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Certificate, ClientTlsConfig, Identity, Server, ServerTlsConfig};

use super::admin::{self, Shown};
use super::policy::{self, Given};
use super::{LogArgs, RoleError, figures, kubernetes, local, manifests, mesh_id};

/// Run a scheduler: who is in which swarm, and the mesh's policy
///
/// Policy comes from manifests (-f DIR) or, in a pod, from the Distribution that the operator resolved
/// (--kubernetes); edits are picked up. The join token that seeds and peers need is written to
/// STATE/mesh/join-token, unless it is there.
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
    /// Policy from a Distribution's status, and reports to it; a pod's own cluster, or KUBECONFIG's
    #[arg(long, conflicts_with = "file", requires = "distribution")]
    kubernetes: bool,
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
    /// Where people ask what it knows, and have contents purged or pinned: a loopback address, for it
    /// asks nobody who he is (`kubectl dragonfly` comes by port-forward)
    #[arg(long, value_name = "ADDRESS")]
    local: Option<SocketAddr>,
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
    /// Takes what other replicas counted, where one of them writes the mesh's status.
    pub(crate) sketches: Option<replicas::Sink>,
}

/// A scheduler that serves.
pub(crate) struct Running {
    pub(crate) name: String,
    pub(crate) address: String,
    pub(crate) service: Service,
    /// How to call other replicas; none in a plaintext mesh.
    pub(crate) to_replicas: Option<ClientTlsConfig>,
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
    let others: Vec<_> = others.collect::<Result<_, _>>()?;
    let shown = Arc::new(ShownScheduler::default());
    if let Some(addr) = args.admin {
        let addr = admin::serve(addr, shown.clone(), stop.clone()).await?;
        tracing::info!(%addr, "health and metrics");
    }
    let kubernetes = if args.kubernetes {
        let target = kubernetes::target(args.distribution.as_deref())?;
        let connected = kubernetes::Connected::new(target, &args.state, &shown, &stop).await?;
        Some(connected)
    } else {
        None
    };
    let policies = match &kubernetes {
        Some(kubernetes) => match kubernetes.policies(&shown, &stop).await {
            Some(policies) => policies,
            None => return Ok(()),
        },
        None => from_manifests(args.file, args.distribution, &stop)?,
    };
    let config = Config {
        listen: args.listen,
        advertise: args.advertise,
        name: args.name,
        others: others.clone(),
        mesh: args.mesh,
        authority: Arc::new(authority),
        sketches: kubernetes.as_ref().map(|k| k.reporter.sink()),
    };
    let first = policies.borrow().policy.clone();
    let running = start(config, policies, stop.clone()).await?;
    shown.serves(running.service.clone());
    if let Some(addr) = args.local {
        let addr = local::serve(addr, running.service.clone(), stop.clone()).await?;
        tracing::info!(%addr, "what people ask");
    }
    let token = args.state.join("mesh/join-token");
    tracing::info!(address = running.address, join_token = %token.display(), "scheduler is up");
    match kubernetes {
        Some(kubernetes) => kubernetes.report(running, &first, &others, stop).await,
        None => {
            stop.cancelled().await;
            Ok(())
        }
    }
}

fn from_manifests(
    file: Option<PathBuf>,
    distribution: Option<String>,
    stop: &CancellationToken,
) -> Result<watch::Receiver<Given>, RoleError> {
    let first = manifests::read(file.as_deref(), distribution.as_deref(), None)?;
    let policies = watch::Sender::new(Given::resolved(first)?);
    let given = policies.subscribe();
    if let Some(dir) = file {
        let problems = watch::Sender::new(None);
        let follow = manifests::follow(dir, distribution, policies, problems, stop.clone());
        tokio::spawn(follow);
    }
    Ok(given)
}

/// Starts a scheduler in this process.
pub(crate) async fn start(
    config: Config,
    mut policies: watch::Receiver<Given>,
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
    let secure = first.policy.node.transport == Transport::MutualTLS;
    let unix = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    let core = Core::new(
        name.clone(),
        replicas,
        mesh_id(&config.mesh),
        config.authority.signing.clone(),
        policy::scheduler(&first.policy),
        unix,
    );
    let service = Service::new(core, secure);
    service.set_policy(first.update, policy::scheduler(&first.policy));
    let mut server = Server::builder().http2_keepalive_interval(Some(super::node::KEEPALIVE));
    let mut to_replicas = None;
    if secure {
        let (cert, key) = config
            .authority
            .scheduler(&name)
            .map_err(|e| RoleError(e.to_string()))?;
        // Optional, since who enrolls has no certificate yet; a session needs one.
        let identity = Identity::from_pem(cert, key);
        let ca = Certificate::from_pem(config.authority.ca());
        let client = ClientTlsConfig::new()
            .ca_certificate(ca.clone())
            .identity(identity.clone());
        to_replicas = Some(client.domain_name(SCHEDULER_NAME));
        let tls = ServerTlsConfig::new()
            .identity(identity)
            .client_ca_root(ca)
            .client_auth_optional(true);
        server = server
            .tls_config(tls)
            .map_err(|e| RoleError::at("TLS", e))?;
    }
    let replicas = config
        .sketches
        .map(|s| replicas::Service::server(s, secure));
    let router = server
        .add_service(service.server())
        .add_service(config.authority.server())
        .add_optional_service(replicas);
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
            let given = policies.borrow_and_update().clone();
            told.set_policy(given.update, policy::scheduler(&given.policy));
        }
    });
    Ok(Running {
        name,
        address,
        service,
        to_replicas,
    })
}

/// A scheduler on its admin port: before it serves, too.
#[derive(Default)]
pub(crate) struct ShownScheduler {
    service: OnceLock<Service>,
    waits: Mutex<String>,
    reporter: OnceLock<Reporter>,
}

impl ShownScheduler {
    /// One that serves.
    pub(crate) fn of(service: Service) -> Self {
        let shown = Self::default();
        shown.serves(service);
        shown
    }

    fn serves(&self, service: Service) {
        // Once: a process has one.
        let _ = self.service.set(service);
    }

    /// What it waits for until it serves.
    pub(crate) fn waits(&self, what: String) {
        *self.waits.lock().unwrap_or_else(PoisonError::into_inner) = what;
    }

    /// The mesh was deleted: its nodes hear of it.
    pub(crate) fn retire(&self) {
        if let Some(service) = self.service.get() {
            service.retire();
        }
    }

    /// Whose figures are shown too.
    pub(crate) fn reports(&self, reporter: Reporter) {
        let _ = self.reporter.set(reporter);
    }
}

impl Shown for ShownScheduler {
    fn ready(&self) -> Result<(), String> {
        match self.service.get() {
            Some(_) => Ok(()),
            None => Err(self
                .waits
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone()),
        }
    }

    fn metrics(&self) -> String {
        let mut registry = Registry::default();
        let r = registry.sub_registry_with_prefix("dragonfly_scheduler");
        if let Some(service) = self.service.get() {
            figures::of_service(r, service);
        }
        if let Some(reporter) = self.reporter.get() {
            figures::of_reporter(r, reporter.counted());
        }
        admin::encode(&registry)
    }
}
