//! `dragonfly scheduler`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use dragonfly_admin::{Shown, encode};
use dragonfly_crds::policy::Transport;
use dragonfly_identity::{Authority, Credentials, Issuer, Relay, incoming, signing_key};
use dragonfly_kubernetes::reporter::Reporter;
use dragonfly_proto::rpc;
use dragonfly_proto::sign::SigningKey;
use dragonfly_scheduler::core::Core;
use dragonfly_scheduler::replicas;
use dragonfly_scheduler::service::Service;
use dragonfly_transport::Calls;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use super::bootstrap::Known;
use super::identity::{self, Proof};
use super::policy::{self, Given};
use super::{
    LogArgs, RoleError, bootstrap, figures, kubernetes, local, manifests, mesh_id, replica_args,
};

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
    /// What nodes and other replicas are told to connect to [default: the listening address;
    /// 127.0.0.1 where that is all addresses]
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Option<String>,
    /// This replica's name, the same after every restart [default: the advertised address]
    #[arg(long)]
    name: Option<String>,
    /// Another replica: `name=host:port`; repeatable
    #[arg(long, value_name = "NAME=ADDRESS")]
    replica: Vec<String>,
    /// Where keys and the last good policy are kept; replicas share STATE/mesh
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
    /// In a pod: the mounted file that says which mesh this is and who gives its certificates. The only
    /// key that is then read from STATE/mesh is authority.key
    #[arg(long, value_name = "FILE", conflicts_with = "mesh")]
    bootstrap: Option<PathBuf>,
    /// In a pod: the projected token by which that issuer gives a certificate
    #[arg(long, value_name = "FILE", requires = "bootstrap")]
    identity_token_file: Option<PathBuf>,
    /// A directory in memory where that certificate outlives a restart
    #[arg(long, value_name = "DIR", requires = "identity_token_file")]
    identity_dir: Option<PathBuf>,
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
    pub(crate) identity: Own,
    /// Takes what other replicas counted, where one of them writes the mesh's status.
    pub(crate) sketches: Option<replicas::Sink>,
}

/// What a scheduler is to others.
pub(crate) enum Own {
    /// Itself the mesh's authority.
    Authority(Arc<Authority>),
    /// One that the operator knows.
    Given {
        /// Signs tickets and epochs.
        signing: Arc<SigningKey>,
        /// None in a plaintext mesh.
        credentials: Option<watch::Receiver<Credentials>>,
        /// Who answers requests by join token.
        issuer: watch::Receiver<Option<Issuer>>,
    },
}

/// How to call other replicas; none in a plaintext mesh.
pub(crate) type ToReplicas = Arc<dyn Fn() -> Option<Calls> + Send + Sync>;

/// A scheduler that serves.
pub(crate) struct Running {
    pub(crate) name: String,
    pub(crate) address: String,
    pub(crate) service: Service,
    pub(crate) to_replicas: ToReplicas,
}

/// Runs the command.
pub(crate) async fn run(args: Args) -> ExitCode {
    args.log.start();
    super::until_signalled(|stop| serve(args, stop)).await
}

async fn serve(args: Args, stop: CancellationToken) -> Result<(), RoleError> {
    let known = args.bootstrap.as_deref();
    let known = known.map(|path| bootstrap::file(path, &stop)).transpose()?;
    let mesh = known.as_ref().map_or(args.mesh, |known| known.mesh.clone());
    let keys = args.state.join("mesh");
    let advertise = args.advertise.as_deref();
    let name = args.name.as_deref();
    let others = replica_args::others(&args.replica, args.listen, advertise, name)?;
    let shown = Arc::new(ShownScheduler::default());
    if let Some(addr) = args.admin {
        super::show(addr, shown.clone(), &stop).await?;
    }
    let kubernetes = if args.kubernetes {
        let target = kubernetes::target(args.distribution.as_deref())?;
        let connected = kubernetes::Connected::new(target, &args.state, &shown).await?;
        Some(connected)
    } else {
        None
    };
    let policies = match &kubernetes {
        Some(kubernetes) => match kubernetes.policies(&shown, &stop).await {
            Some(policies) => policies,
            None => return Ok(()),
        },
        None => manifests::policies(args.file, args.distribution, &args.state, &stop)?,
    };
    let identity = match known {
        Some(known) => {
            shown.waits("asks for its certificate".to_owned());
            given(
                &keys,
                args.identity_token_file,
                args.identity_dir,
                known,
                &stop,
            )
            .await?
        }
        None => {
            let authority = Authority::load_or_create(&keys, &mesh);
            Own::Authority(Arc::new(authority.map_err(|e| RoleError(e.to_string()))?))
        }
    };
    let config = Config {
        listen: args.listen,
        advertise: args.advertise,
        name: args.name,
        others: others.clone(),
        mesh,
        identity,
        sketches: kubernetes.as_ref().map(|k| k.reporter.sink()),
    };
    let first = policies.borrow().policy.clone();
    let running = start(config, policies, stop.clone()).await?;
    shown.serves(running.service.clone());
    if let Some(addr) = args.local {
        let addr = local::serve(addr, running.service.clone(), stop.clone()).await?;
        tracing::info!(%addr, "what people ask");
    }
    let token = keys.join("join-token");
    tracing::info!(address = running.address, join_token = %token.display(), "scheduler is up");
    match kubernetes {
        Some(kubernetes) => kubernetes.report(running, &first, &others, stop).await,
        None => {
            stop.cancelled().await;
            Ok(())
        }
    }
}

/// An identity that the operator gives.
async fn given(
    keys: &Path,
    token_file: Option<PathBuf>,
    dir: Option<PathBuf>,
    known: Known,
    stop: &CancellationToken,
) -> Result<Own, RoleError> {
    let signing = signing_key(keys).map_err(|e| RoleError(e.to_string()))?;
    let credentials = match token_file {
        Some(file) => {
            let proof = Proof::projected(file, dir.as_deref(), &known)?;
            let none = bootstrap::fixed(vec![]);
            let role = rpc::Role::Scheduler;
            Some(
                identity::obtain(&proof, &none, None, role, stop)
                    .await?
                    .credentials,
            )
        }
        None => None,
    };
    Ok(Own::Given {
        signing: Arc::new(signing),
        credentials,
        issuer: known.issuer,
    })
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
    let protected = protected(&config.identity, secure, &name)?;
    let core = Core::new(
        name.clone(),
        replicas,
        mesh_id(&config.mesh),
        config.identity.signing(),
        policy::scheduler(&first.policy),
        unix,
    );
    let identified = secure.then(|| config.mesh.clone());
    let service = Service::new(core, identified.clone());
    service.revoke(&first.policy.node.revoked);
    service.set_policy(first.update, policy::scheduler(&first.policy));
    let replicas = config
        .sketches
        .map(|s| replicas::Service::server(s, identified));
    let router = Server::builder()
        .http2_keepalive_interval(Some(super::node::KEEPALIVE))
        .add_service(service.server())
        .add_optional_service(replicas);
    let router = match config.identity {
        Own::Authority(authority) => router.add_service(authority.server()),
        Own::Given { issuer, .. } => router.add_service(Relay::server(config.mesh, issuer)),
    };
    let stopped = stop.clone();
    let to_replicas: ToReplicas = match &protected {
        Some(shown) => {
            let shown = shown.clone();
            Arc::new(move || Some(shown.client()))
        }
        None => Arc::new(|| None),
    };
    tokio::spawn(async move {
        let serve = async {
            match protected {
                Some(shown) => {
                    let told = Told::default();
                    let callers = incoming(
                        listener,
                        move || Some(shown.server()),
                        move |why| told.tell(why),
                    );
                    router.serve_with_incoming(callers).await
                }
                None => {
                    let callers = TcpIncoming::from(listener).with_nodelay(Some(true));
                    router.serve_with_incoming(callers).await
                }
            }
        };
        tokio::select! {
            served = serve => {
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
            told.revoke(&given.policy.node.revoked);
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

impl Own {
    fn signing(&self) -> Arc<SigningKey> {
        match self {
            Self::Authority(authority) => authority.signing.clone(),
            Self::Given { signing, .. } => signing.clone(),
        }
    }
}

/// A certificate in use; a followed one may be another later.
#[derive(Clone)]
struct InUse(watch::Receiver<Credentials>);

impl InUse {
    fn server(&self) -> Arc<rustls::ServerConfig> {
        self.0.borrow().tls.calls.clone()
    }

    fn client(&self) -> Calls {
        self.0.borrow().client()
    }
}

/// What a scheduler shows; nothing in a plaintext mesh.
fn protected(own: &Own, secure: bool, name: &str) -> Result<Option<InUse>, RoleError> {
    if !secure {
        return Ok(None);
    }
    match own {
        Own::Authority(authority) => {
            let credentials = authority.credentials(name);
            let credentials = credentials.map_err(|e| RoleError(e.to_string()))?;
            Ok(Some(InUse(watch::Sender::new(credentials).subscribe())))
        }
        Own::Given {
            credentials: Some(credentials),
            ..
        } => Ok(Some(InUse(credentials.clone()))),
        // Never plaintext because something is missing.
        Own::Given { .. } => Err(RoleError(
            "spec.security.transport is MutualTLS: start this scheduler with --identity-token-file"
                .to_owned(),
        )),
    }
}

/// Says now and then why callers were not let in: they may be many.
#[derive(Default)]
struct Told(Mutex<Option<Instant>>);

impl Told {
    fn tell(&self, why: &str) {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_none_or(|last| last.elapsed() > Duration::from_secs(5)) {
            *last = Some(Instant::now());
            tracing::info!(why, "refused a caller");
        }
    }
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
        encode(&registry)
    }
}
