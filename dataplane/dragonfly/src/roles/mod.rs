//! The parts of a mesh as processes: wiring only. What they do is in the crates.

mod bootstrap;
mod figures;
mod identity;
mod kubernetes;
mod leave;
mod light;
mod local;
pub(crate) mod manifests;
pub(crate) mod mirror;
pub(crate) mod mirrored;
pub(crate) mod node;
pub(crate) mod policy;
mod preheats;
mod replica_args;
pub(crate) mod scheduler;
mod shown;
pub(crate) mod simulate;
pub(crate) mod temporary;
mod unruled;
pub(crate) mod up;

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::commands::{Exit, complain};

/// Why a part does not start or go on, for people.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct RoleError(pub(crate) String);

const STOPPED: &str = "stopped before it served";

impl RoleError {
    /// It was told to stop before it served, which is an end in good order.
    pub(crate) fn stopped() -> Self {
        Self(STOPPED.to_owned())
    }

    pub(crate) fn at(what: impl std::fmt::Display, e: impl std::fmt::Display) -> Self {
        Self(format!("{what}: {e}"))
    }
}

/// Health and metrics of a part, until stopped.
async fn show(
    addr: SocketAddr,
    shown: Arc<dyn dragonfly_admin::Shown>,
    stop: &CancellationToken,
) -> Result<(), RoleError> {
    let served = dragonfly_admin::serve(addr, shown, stop.clone()).await;
    let addr = served.map_err(|e| RoleError::at(format!("admin port {addr}"), e))?;
    tracing::info!(%addr, "health and metrics");
    Ok(())
}

/// What every part is told about its logs.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct LogArgs {
    /// What to log: a level, or filters such as `info,dragonfly_node=debug`
    #[arg(
        long,
        env = "DRAGONFLY_LOG",
        default_value = "info",
        value_name = "FILTER"
    )]
    log: String,
    /// A line of JSON for each event
    #[arg(long)]
    log_json: bool,
}

impl LogArgs {
    /// Logs to the standard error stream from here on.
    pub(crate) fn start(&self) {
        let filter = tracing_subscriber::EnvFilter::new(&self.log);
        // No colours in files and journals.
        let colours = std::io::stderr().is_terminal();
        let logs = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_ansi(colours)
            .with_writer(std::io::stderr);
        // A second subscriber in one process: the first one stays.
        let _ = if self.log_json {
            logs.json().try_init()
        } else {
            logs.try_init()
        };
    }
}

/// Where schedulers are and how to become a member of their mesh.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct MeshArgs {
    /// A scheduler's `host:port`; repeatable. One is enough, it tells of the others
    #[arg(
        long = "scheduler",
        env = "DRAGONFLY_SCHEDULERS",
        value_delimiter = ',',
        value_name = "ADDRESS"
    )]
    pub(crate) schedulers: Vec<String>,
    /// The file with the mesh's join token; without it connections are plaintext, which the mesh's
    /// policy must allow
    #[arg(long, env = "DRAGONFLY_JOIN_TOKEN_FILE", value_name = "FILE")]
    pub(crate) join_token_file: Option<PathBuf>,
    /// In a pod: the projected token by which the issuer that the bootstrap file names gives a
    /// certificate
    #[arg(
        long,
        value_name = "FILE",
        requires = "bootstrap",
        conflicts_with = "join_token_file"
    )]
    pub(crate) identity_token_file: Option<PathBuf>,
    /// A directory in memory where that certificate outlives a restart
    #[arg(long, value_name = "DIR", requires = "identity_token_file")]
    pub(crate) identity_dir: Option<PathBuf>,
    /// The mesh's name: nodes of another one are turned away
    #[arg(
        long,
        env = "DRAGONFLY_MESH",
        default_value = "default",
        value_name = "NAME"
    )]
    pub(crate) mesh: String,
    /// A file that says both, such as a mounted ConfigMap: schedulers that are added to it are found
    /// without a restart
    #[arg(
        long,
        env = "DRAGONFLY_BOOTSTRAP",
        value_name = "FILE",
        conflicts_with_all = ["schedulers", "mesh"]
    )]
    pub(crate) bootstrap: Option<PathBuf>,
}

/// A mesh's name on the wire.
pub(crate) fn mesh_id(name: &str) -> [u8; 16] {
    let mut id = [0; 16];
    id.copy_from_slice(
        &blake3::derive_key("dragonfly 2026-11 mesh name v1", name.as_bytes())[..16],
    );
    id
}

/// Runs a part until SIGINT or SIGTERM.
pub(crate) async fn until_signalled<F>(part: impl FnOnce(CancellationToken) -> F) -> ExitCode
where
    F: Future<Output = Result<(), RoleError>>,
{
    raise_descriptor_limit();
    let stop = CancellationToken::new();
    let on_signal = stop.clone();
    tokio::spawn(async move {
        let (Ok(mut term), Ok(mut int)) = (
            signal(SignalKind::terminate()),
            signal(SignalKind::interrupt()),
        ) else {
            return;
        };
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        tracing::info!("stopping");
        on_signal.cancel();
    });
    match part(stop).await {
        Ok(()) => Exit::Ok.into(),
        Err(RoleError(why)) if why == STOPPED => Exit::Ok.into(),
        Err(e) => {
            complain(&e.to_string());
            Exit::Internal.into()
        }
    }
}

/// Two or three descriptors a task and one a connection: the soft limit of most systems is too low.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
}

/// Writes a file whole or not at all.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), RoleError> {
    let temp = path.with_extension("new");
    let written = std::fs::write(&temp, bytes).and_then(|()| std::fs::rename(&temp, path));
    written.map_err(|e| RoleError::at(path.display(), e))
}

/// Addresses other nodes can reach a listener at: its own, or where it listens on all, the one this
/// machine has towards `towards`.
pub(crate) fn reachable(listening: SocketAddr, towards: Option<&str>) -> Vec<SocketAddr> {
    use std::net::{ToSocketAddrs, UdpSocket};
    if !listening.ip().is_unspecified() {
        return vec![listening];
    }
    let target = towards
        .and_then(|t| t.to_socket_addrs().ok())
        .and_then(|mut a| a.next());
    let any = if target.is_some_and(|t| t.is_ipv6()) {
        "[::]:0"
    } else {
        "0.0.0.0:0"
    };
    // No packet is sent: connecting a datagram socket only asks the kernel for a route.
    let own = target.and_then(|t| {
        let socket = UdpSocket::bind(any).ok()?;
        socket.connect(t).ok()?;
        socket.local_addr().ok()
    });
    let ip = own.map_or(std::net::IpAddr::from([127, 0, 0, 1]), |a| a.ip());
    vec![SocketAddr::new(ip, listening.port())]
}
