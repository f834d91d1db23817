//! `dragonfly seed` and `dragonfly peer`: one engine, told which it is.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dragonfly_crds::Policy;
use dragonfly_crds::policy::{Media, Transport};
use dragonfly_identity::{Credentials, JoinToken};
use dragonfly_node::api::{Api, ApiOptions};
use dragonfly_node::node::{Identity, Node, Parts, Role};
use dragonfly_node::session::Bootstrap;
use dragonfly_proto::id::NodeId;
use dragonfly_proto::rpc;
use dragonfly_storage::{DiskMedia, MemoryMedia, Store};
use dragonfly_transport::{Mesh, Security};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::identity::{self, Proof};
use super::mirrored::Mirrored;
use super::shown::ShownNode;
use super::{
    LogArgs, MeshArgs, RoleError, bootstrap, manifests, mesh_id, policy, unruled, write_atomically,
};

/// Between schedulers and nodes, so that either notices when the other is gone.
pub(crate) const KEEPALIVE: Duration = Duration::from_secs(5);

/// Seeds and peers are started alike.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    mesh: MeshArgs,
    /// Where other nodes connect
    #[arg(long, default_value = "0.0.0.0:4000", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// What other nodes are told to connect to; repeatable [default: this machine's address towards
    /// the scheduler]
    #[arg(long, value_name = "ADDRESS")]
    advertise: Vec<SocketAddr>,
    /// This node's name, the same after every restart [default: the host's name]
    #[arg(long, env = "DRAGONFLY_NODE_NAME")]
    name: Option<String>,
    /// Which part of the network this node is in; bytes cross zones once
    #[arg(long, env = "DRAGONFLY_ZONE", default_value = "", value_name = "NAME")]
    zone: String,
    /// Where content, identity and the last good policy are kept
    #[arg(long, default_value = "/var/lib/dragonfly/node", value_name = "DIR")]
    state: PathBuf,
    /// Where this machine's clients ask
    #[arg(
        long,
        env = "DRAGONFLY_SOCKET",
        default_value = "/run/dragonfly/node.sock",
        value_name = "PATH"
    )]
    socket: PathBuf,
    /// Let every user of this machine ask, not only the socket's group
    #[arg(long)]
    socket_for_all: bool,
    /// Where /healthz, /readyz and /metrics are
    #[arg(long, value_name = "ADDRESS")]
    admin: Option<SocketAddr>,
    #[command(flatten)]
    log: LogArgs,
}

/// What a peer is started with beyond that: seeds are no mirrors.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct PeerArgs {
    #[command(flatten)]
    node: Args,
    /// Where this machine's container runtimes pull images through this peer, on loopback [default:
    /// as the mesh's policy says]
    #[arg(long, env = "DRAGONFLY_MIRROR", value_name = "ADDRESS")]
    mirror: Option<SocketAddr>,
    /// Logins that the mirror shows to the registries that policy names, for clients that show none:
    /// DIR/NAME/.dockerconfigjson, or config.json; as many as there are
    #[arg(long, value_name = "DIR")]
    pull_secrets: Option<PathBuf>,
}

/// What a node is started with.
#[derive(Clone)]
pub(crate) struct Config {
    pub(crate) role: Role,
    pub(crate) name: String,
    pub(crate) zone: String,
    pub(crate) mesh: String,
    pub(crate) state: PathBuf,
    pub(crate) listen: SocketAddr,
    pub(crate) advertise: Vec<SocketAddr>,
    /// `host:port`; may change while the node runs.
    pub(crate) schedulers: watch::Receiver<Vec<String>>,
    /// None in a plaintext mesh.
    pub(crate) proof: Option<Proof>,
    /// In force until a scheduler sends one, where none is on disk.
    pub(crate) policy: Option<Policy>,
    /// Cancelled once a policy is in force and clients are served by it; none is before.
    pub(crate) ruled: CancellationToken,
    pub(crate) socket: Option<(PathBuf, u32)>,
    /// `None`: this node is no mirror, whatever policy says.
    pub(crate) mirrored: Option<Arc<Mirrored>>,
}

/// Runs a seed.
pub(crate) async fn seed(args: Args) -> ExitCode {
    args.log.start();
    super::until_signalled(|stop| serve(args, Role::Seed, None, stop)).await
}

/// Runs a peer.
pub(crate) async fn peer(args: PeerArgs) -> ExitCode {
    args.node.log.start();
    super::until_signalled(|stop| {
        let mirrored = Mirrored::new(args.mirror, args.pull_secrets, stop.clone());
        serve(args.node, Role::Peer, Some(Arc::new(mirrored)), stop)
    })
    .await
}

async fn serve(
    args: Args,
    role: Role,
    mirrored: Option<Arc<Mirrored>>,
    stop: CancellationToken,
) -> Result<(), RoleError> {
    if args.mesh.schedulers.is_empty() && args.mesh.bootstrap.is_none() {
        let text = "which mesh? Name a scheduler: --scheduler host:port (DRAGONFLY_SCHEDULERS), or a \
                    file: --bootstrap FILE";
        return Err(RoleError(text.to_owned()));
    }
    let known = bootstrap::of(&args.mesh, &stop)?;
    let proof = Proof::of(&args.mesh, &known)?;
    let mode = if args.socket_for_all { 0o666 } else { 0o660 };
    let config = Config {
        role,
        name: args.name.unwrap_or_else(host_name),
        zone: args.zone,
        mesh: known.mesh,
        state: args.state,
        listen: args.listen,
        advertise: args.advertise,
        schedulers: known.schedulers,
        proof,
        policy: None,
        ruled: CancellationToken::new(),
        socket: Some((args.socket, mode)),
        mirrored: mirrored.clone(),
    };
    let (state, ruled) = (config.state.clone(), config.ruled.clone());
    let node = start(config, stop.clone()).await?;
    if let Some(addr) = args.admin {
        let shown = ShownNode {
            node: node.clone(),
            mirrored: mirrored.clone(),
            ruled,
        };
        super::show(addr, Arc::new(shown), &stop).await?;
    }
    stop.cancelled().await;
    node.last_word().await;
    if let Some(mirrored) = mirrored {
        mirrored.drained().await;
    }
    node.shutdown().await;
    if node.is_retired() {
        super::leave::leave(&state);
    }
    Ok(())
}

fn host_name() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}

/// Reads a join token from its file.
pub(crate) fn read_token(path: &Path) -> Result<JoinToken, RoleError> {
    let text = std::fs::read_to_string(path).map_err(|e| RoleError::at(path.display(), e))?;
    text.parse().map_err(|e| RoleError::at(path.display(), e))
}

/// Starts a node in this process.
pub(crate) async fn start(config: Config, stop: CancellationToken) -> Result<Arc<Node>, RoleError> {
    let dir = |name: &str| config.state.join(name);
    std::fs::create_dir_all(&config.state).map_err(|e| RoleError::at(config.state.display(), e))?;
    let role = match config.role {
        Role::Seed => rpc::Role::Seed,
        Role::Peer => rpc::Role::Peer,
    };
    let id_file = dir("node-id");
    let (id, obtained) = match &config.proof {
        // Who gives certificates says who this is.
        Some(proof) if proof.is_projected() => {
            let obtained = identity::obtain(proof, &config.schedulers, None, role, &stop).await?;
            let given = obtained.credentials.borrow().node;
            let id = given.ok_or_else(|| {
                RoleError("the issuer gave a certificate without an identity".to_owned())
            })?;
            write_atomically(&id_file, id.to_string().as_bytes())?;
            (id, Some(obtained))
        }
        Some(proof) => {
            let id = node_id(&id_file)?;
            let own = Some(id);
            let obtained = identity::obtain(proof, &config.schedulers, own, role, &stop).await?;
            (id, Some(obtained))
        }
        None => (node_id(&id_file)?, None),
    };
    let kept = policy::last_good(&dir("policy.json"));
    let given = kept.or(config.policy.clone());
    let is_given = given.is_some();
    let first = match given {
        Some(policy) => policy,
        None => manifests::default_policy()?,
    };
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_millis() as u64;
    let options = policy::storage(&first.node.storage);
    let store = match first.node.storage.media {
        Media::Disk => {
            let media = DiskMedia::new(dir("store")).map_err(|e| RoleError(e.to_string()))?;
            Store::open(media, options, now)
        }
        Media::Memory => Store::open(MemoryMedia::new(), options, now),
    };
    let store = store.map_err(|e| RoleError(e.to_string()))?;
    let listener = Mesh::<Node>::listen(config.listen)
        .map_err(|e| RoleError::at(format!("node port {}", config.listen), e))?;
    let bound = listener
        .local_addr()
        .map_err(|e| RoleError::at("node port", e))?;
    let addresses = if config.advertise.is_empty() {
        let first = config.schedulers.borrow().first().cloned();
        super::reachable(bound, first.as_deref())
    } else {
        config.advertise.clone()
    };
    let first_shown = obtained.as_ref().map(|o| o.credentials.borrow().clone());
    let security = match &first_shown {
        Some(c) => Security::tls(c.tls.clone()),
        None => Security::plaintext(),
    };
    let (settings, fetcher, later) = if is_given {
        let fetcher = policy::fetcher(&first.source_http)?;
        (policy::settings(&first), fetcher, None)
    } else {
        let (fetcher, later) = unruled::fetcher();
        (unruled::settings(&first), fetcher, Some(later))
    };
    let parts = Parts {
        identity: Identity {
            node: id,
            name: config.name.clone(),
            zone: config.zone.clone(),
            role: config.role,
            mesh: mesh_id(&config.mesh),
            addresses,
        },
        store,
        fetcher,
        security: security.clone(),
        settings,
        schedulers: Bootstrap {
            addresses: config.schedulers.borrow().clone(),
            tls: first_shown.as_ref().map(Credentials::client),
        },
    };
    let node = Node::start(parts, listener).map_err(|e| RoleError(e.to_string()))?;
    if is_given {
        node.acknowledge(ack(&first, None));
        serve_clients(&node, &config, &stop).await?;
        config.ruled.cancel();
    }
    let mirror = mirror(&node, &first, &config).await;
    let no_mirror = mirror
        .inspect_err(|error| tracing::error!(%error, "no registry mirror"))
        .is_err();
    tokio::spawn(follow_policy(
        node.clone(),
        first,
        config.clone(),
        no_mirror,
        later,
        stop.clone(),
    ));
    tokio::spawn(follow_schedulers(node.clone(), config.schedulers.clone()));
    if let Some(obtained) = obtained {
        tokio::spawn(identity::follow(node.clone(), obtained, security));
    }
    tracing::info!(node = %id, name = config.name, role = ?config.role, address = %bound,
        encrypted = config.proof.is_some(), "node is up");
    if !is_given {
        tracing::info!("clients are served once a scheduler has told the mesh's policy");
    }
    Ok(node)
}

/// Lets clients of this machine ask from now on.
async fn serve_clients(
    node: &Arc<Node>,
    config: &Config,
    stop: &CancellationToken,
) -> Result<(), RoleError> {
    let Some((socket, mode)) = &config.socket else {
        return Ok(());
    };
    if let Some(parent) = socket.parent() {
        std::fs::create_dir_all(parent).map_err(|e| RoleError::at(parent.display(), e))?;
    }
    let options = ApiOptions {
        mode: *mode,
        ..ApiOptions::new(socket)
    };
    let api = Api::bind(node.clone(), &options)
        .await
        .map_err(|e| RoleError(e.to_string()))?;
    let stop = stop.clone();
    tokio::spawn(async move {
        if let Err(error) = api.run(stop).await {
            tracing::error!(%error, "the clients' API ended");
        }
    });
    Ok(())
}

/// The node's identity, made once.
fn node_id(path: &Path) -> Result<NodeId, RoleError> {
    match std::fs::read_to_string(path) {
        Ok(text) => text
            .trim()
            .parse()
            .map_err(|e| RoleError::at(path.display(), e)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let mut id = [0; 16];
            aws_lc_rs::rand::fill(&mut id)
                .map_err(|_| RoleError("no randomness for a node identity".to_owned()))?;
            let id = NodeId(id);
            write_atomically(path, id.to_string().as_bytes())?;
            Ok(id)
        }
        Err(e) => Err(RoleError::at(path.display(), e)),
    }
}

async fn follow_schedulers(node: Arc<Node>, mut schedulers: watch::Receiver<Vec<String>>) {
    // Ends with whoever keeps the list.
    while schedulers.changed().await.is_ok() {
        let listed = schedulers.borrow_and_update().clone();
        node.set_schedulers(&listed);
    }
}

fn ack(policy: &Policy, error: Option<String>) -> rpc::PolicyAck {
    rpc::PolicyAck {
        uid: policy.uid.clone(),
        revision: policy.revision,
        hash: policy.hash.clone(),
        error: error.unwrap_or_default(),
    }
}

/// The registry mirror as a policy has it, where this node is to be one. Without it whoever pulls goes to
/// the registry, and the rest of the node does its work.
async fn mirror(node: &Arc<Node>, policy: &Policy, config: &Config) -> Result<(), RoleError> {
    match &config.mirrored {
        Some(mirrored) => mirrored.follow(node, policy).await,
        None => Ok(()),
    }
}

/// How often a mirror is tried that there should be: who has its port now may let it go.
const MIRROR_AGAIN: Duration = Duration::from_secs(5);

/// Runs what schedulers send; what cannot be run is refused and the last good policy stays. `no_mirror`:
/// there should be one by now.
async fn follow_policy(
    node: Arc<Node>,
    mut now: Policy,
    config: Config,
    mut no_mirror: bool,
    mut later: Option<unruled::Later>,
    stop: CancellationToken,
) {
    let mut policies = node.policies();
    // One may have come before this was listening.
    policies.mark_changed();
    loop {
        tokio::select! {
            changed = policies.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(MIRROR_AGAIN), if no_mirror => {
                no_mirror = mirror(&node, &now, &config).await.is_err();
                if !no_mirror && config.ruled.is_cancelled() {
                    node.acknowledge(ack(&now, None));
                }
                continue;
            }
            () = stop.cancelled() => return,
        }
        let Some(update) = policies.borrow_and_update().clone() else {
            continue;
        };
        let decoded = Policy::decode(&update.json).map_err(|e| e.to_string());
        let taken = decoded.and_then(|policy| {
            let when = apply(&node, &now, &policy, &update.json, &config)?;
            Ok((policy, when))
        });
        match taken {
            Ok((policy, When::NextStart)) => {
                let why = "spec.storage.media: taken with the next start of this node";
                node.acknowledge(ack(&policy, Some(why.to_owned())));
                // Where all is one process its end would be everybody's.
                if config.policy.is_none() {
                    tracing::warn!(
                        "content is kept on another medium from now on: this node ends, to be started anew"
                    );
                    return stop.cancel();
                }
                tracing::warn!(why, "start anew");
            }
            Ok((policy, When::Now)) => {
                let failed = mirror(&node, &policy, &config).await.err();
                no_mirror = failed.is_some();
                let failed = failed.map(|e| format!("{e}; the rest of it is in force"));
                if let Some(error) = &failed {
                    tracing::error!(error, "no registry mirror");
                }
                if let Some(later) = later.take()
                    && let Ok(source) = policy::http(&policy.source_http)
                {
                    later.send_replace(Some(Arc::new(source)));
                }
                node.acknowledge(ack(&policy, failed));
                if !config.ruled.is_cancelled() {
                    if let Err(error) = serve_clients(&node, &config, &stop).await {
                        tracing::error!(%error, "this node ends: it cannot serve clients");
                        return stop.cancel();
                    }
                    config.ruled.cancel();
                }
                tracing::info!(revision = policy.revision, "running a new policy");
                now = policy;
            }
            Err(error) => {
                tracing::error!(
                    revision = update.revision,
                    error,
                    "refused a policy; the last good one stays in force"
                );
                node.acknowledge(rpc::PolicyAck {
                    uid: update.uid,
                    revision: update.revision,
                    hash: update.hash,
                    error,
                });
            }
        }
    }
}

/// From when on a policy is in force.
enum When {
    Now,
    /// It is kept for the next start: content cannot move while the node runs.
    NextStart,
}

/// `bytes` are the policy as it came: what this release does not know in it is kept for the next.
fn apply(
    node: &Arc<Node>,
    now: &Policy,
    policy: &Policy,
    bytes: &[u8],
    config: &Config,
) -> Result<When, String> {
    let encrypted = config.proof.is_some();
    if (policy.node.transport == Transport::MutualTLS) != encrypted {
        let hint = if encrypted { "without" } else { "with" };
        return Err(format!(
            "spec.security.transport is {:?}: restart this node {hint} --join-token-file",
            policy.node.transport
        ));
    }
    let fetcher = policy::fetcher(&policy.source_http).map_err(|e| e.to_string())?;
    let storage = policy::storage(&policy.node.storage);
    let keep = || write_atomically(&config.state.join("policy.json"), bytes);
    if policy.node.storage.media != now.node.storage.media {
        return keep().map(|()| When::NextStart).map_err(|e| e.to_string());
    }
    node.store()
        .set_options(storage)
        .map_err(|e| e.to_string())?;
    node.set_fetcher(fetcher);
    node.apply_settings(policy::settings(policy));
    keep().map(|()| When::Now).map_err(|e| e.to_string())
}
