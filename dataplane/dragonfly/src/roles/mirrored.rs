//! A peer's registry mirror as policy has it: there, elsewhere or not.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use dragonfly_crds::Policy;
use dragonfly_crds::policy::MirrorPolicy;
use dragonfly_mirror::{Mirror, More, PullSecrets};
use dragonfly_node::node::Node;
use prometheus_client::registry::Registry;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{RoleError, policy};

/// The mirror of one peer.
pub(crate) struct Mirrored {
    /// Where it listens whatever policy says.
    given: Option<SocketAddr>,
    /// Where pull secrets are.
    secrets: Option<PathBuf>,
    stop: CancellationToken,
    running: Mutex<Option<Running>>,
    /// The same, for who only reads its counters.
    shown: std::sync::Mutex<Option<Mirror>>,
}

struct Running {
    /// What was asked for, before the system chose a port.
    at: SocketAddr,
    mirror: Mirror,
    stop: CancellationToken,
    serving: JoinHandle<()>,
}

impl Mirrored {
    /// None yet.
    pub(crate) fn new(
        given: Option<SocketAddr>,
        secrets: Option<PathBuf>,
        stop: CancellationToken,
    ) -> Self {
        Self {
            given,
            secrets,
            stop,
            running: Mutex::default(),
            shown: std::sync::Mutex::default(),
        }
    }

    /// Does as a policy says.
    pub(crate) async fn follow(&self, node: &Arc<Node>, p: &Policy) -> Result<(), RoleError> {
        let mut running = self.running.lock().await;
        let default = MirrorPolicy {
            others: true,
            ..MirrorPolicy::default()
        };
        let said = p.mirror.as_ref();
        let by_policy = said.map(|m| SocketAddr::from((Ipv4Addr::LOCALHOST, m.port)));
        let Some(at) = self.given.or(by_policy) else {
            if let Some(running) = running.take() {
                running.stop.cancel();
                tracing::info!("no registry mirror any more");
            }
            self.show(None);
            return Ok(());
        };
        let settings = policy::mirror(p, said.unwrap_or(&default));
        let http = Arc::new(policy::http(&p.source_http)?);
        if let Some(running) = running.as_ref().filter(|r| r.at == at) {
            running.mirror.apply(http, settings);
            return Ok(());
        }
        let more = More {
            secrets: self.secrets.clone().map(PullSecrets::below),
        };
        let mirror = Mirror::bind(at, node.clone(), http, settings, more)
            .await
            .map_err(|e| RoleError::at("spec.mirror.port", e))?;
        let stop = self.stop.child_token();
        let (serving, until) = (mirror.clone(), stop.clone());
        let serving = tokio::spawn(async move {
            if let Err(error) = serving.run(until).await {
                tracing::error!(%error, "the registry mirror ended");
            }
        });
        self.show(Some(mirror.clone()));
        if let Some(before) = running.replace(Running {
            at,
            mirror,
            stop,
            serving,
        }) {
            before.stop.cancel();
        }
        Ok(())
    }

    /// Waits until what was under way when it was stopped has been served.
    pub(crate) async fn drained(&self) {
        if let Some(running) = self.running.lock().await.take() {
            running.stop.cancel();
            let _ = running.serving.await;
        }
    }

    fn show(&self, mirror: Option<Mirror>) {
        let shown = self.shown.lock();
        *shown.unwrap_or_else(std::sync::PoisonError::into_inner) = mirror;
    }

    /// Enters the mirror's counters.
    pub(crate) fn register(&self, registry: &mut Registry) {
        let shown = self.shown.lock();
        let shown = shown.unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(mirror) = &*shown {
            mirror.metrics().register(registry);
        }
    }
}
