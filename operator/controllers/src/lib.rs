//! The operator's controllers: one module a kind.
//!
//! ```text
//!  Distribution ─┐                       ┌► get, validate, build ─► apply, prune ─► status, event
//!  SchedulerPool ┼─ watches ─► queue ─► reconcile
//!  what we made ─┘   (cache)             └── (core decides, this crate asks and tells the API server)
//! ```
//! - [`distribution`]: a mesh into its parts; [`scheduler_pool`]: what a pool serves;
//!   [`preheat`]: which run of it is due
//! - [`cache`]: what the operator made, as the API server last told it
//! - [`apply`]: server-side apply with an owner, pruning
//! - [`authority`]: the mesh's keys, made once; [`ca`]: its CA, replaced now and then
//! - [`issuer`]: certificates for who shows a token of the mesh
//! - [`leader`]: which of several operators does all this; `standby`: what the others do
//!
//! Invariants: one object that is wrong never keeps another from being reconciled (an object that does
//! not decode is one object's condition; each watch has its own backoff; each reconciliation ends in
//! time); nothing is written that is so already; the operator may end at any moment, and what it did
//! not finish is done when it is back; nothing waits for it to be deleted (no finalizer).

pub mod apply;
pub mod authority;
pub mod backoff;
pub mod ca;
pub mod cache;
mod context;
pub mod distribution;
pub mod issuer;
pub mod leader;
pub mod metrics;
pub mod preheat;
pub mod scheduler_pool;
mod standby;
mod status;
mod tokens;
mod visit;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dragonfly_operator_core::Settings;
use issuer::Issuer;
use kube::Client;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use ca::Ages;
pub use context::Context;
pub use metrics::Metrics;

/// Where meshes may run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Namespaces {
    /// Everywhere: whoever may create a Distribution anywhere has the nodes.
    All,
    /// In these.
    Listed(BTreeSet<String>),
}

impl Namespaces {
    /// Whether meshes of a namespace are run.
    pub fn allow(&self, namespace: &str) -> bool {
        match self {
            Self::All => true,
            Self::Listed(names) => names.contains(namespace),
        }
    }
}

impl std::fmt::Display for Namespaces {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::All => f.write_str("all namespaces"),
            Self::Listed(names) => {
                let names: Vec<_> = names.iter().map(String::as_str).collect();
                f.write_str(&names.join(", "))
            }
        }
    }
}

/// What the operator is started with.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where meshes may run.
    pub namespaces: Namespaces,
    /// What shows in objects.
    pub settings: Settings,
    /// This process, in events.
    pub instance: Option<String>,
    /// Where parts get their certificates.
    pub issuer: At,
    /// How CAs and certificates age.
    pub ages: Ages,
}

/// Where this operator is reached.
#[derive(Clone, Debug)]
pub enum At {
    /// At a Service of its own.
    Service {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// `host:port`.
    Address(String),
}

/// Seconds since 1970.
pub(crate) fn unix() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

/// Longest reconciliation: the API server does not answer.
const LIMIT: Duration = Duration::from_secs(60);
/// How many objects of a kind are worked on at once.
const AT_ONCE: u16 = 8;

/// One operator of a cluster, which may have several: one leads, and all give certificates.
pub struct Operator {
    client: Client,
    options: Options,
    metrics: Arc<Metrics>,
    issuer: Arc<Issuer>,
}

impl Operator {
    /// One that does nothing yet.
    pub fn new(client: Client, options: Options, metrics: Arc<Metrics>) -> Self {
        let issuer = Issuer::new(client.clone(), options.ages.certificate, metrics.clone());
        Self {
            client,
            options,
            metrics,
            issuer,
        }
    }

    /// Gives certificates to who calls, until stopped: of the meshes that [`Self::stand_by`] and
    /// [`Self::lead`] learnt of.
    pub async fn give_certificates(&self, callers: TcpListener, stop: CancellationToken) {
        self.issuer.clone().run(callers, stop).await;
    }

    /// Reads and writes nothing until stopped. `ready` is set once certificates can be given.
    pub async fn stand_by(&self, ready: &AtomicBool, stop: CancellationToken) {
        standby::run(self, ready, stop).await;
    }

    /// Reconciles until stopped; what is under way then is finished. `ready` is set once the cluster's
    /// Distributions are known.
    pub async fn lead(&self, ready: Arc<AtomicBool>, stop: CancellationToken) {
        let (context, streams) = Context::new(self);
        let pools = cache::Pools::new(&context.client);
        let preheats = preheat::Preheats::new(&context.client);
        let context = Arc::new(context);
        let mut known = context.cache.distributions_filled.clone();
        tokio::spawn(async move {
            if known.wait_for(|known| *known).await.is_ok() {
                ready.store(true, Ordering::Relaxed);
            }
        });
        futures::join!(
            distribution::run(context.clone(), streams, stop.clone()),
            scheduler_pool::run(context.clone(), pools, stop.clone()),
            preheat::run(context, preheats, stop),
        );
    }
}
