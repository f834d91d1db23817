//! A scheduler's side of Kubernetes: where its policy comes from, and where its mesh's reports go.
//!
//! ```text
//!  Distribution ──[policy]: one watch──► the scheduler ──► nodes
//!   status.policy
//!                                        the scheduler ──sketch──► [reporter] ──► the holder's
//!  Distribution ◄──one patch in 10 s──── [reports] of the one that holds the Lease
//!   status.traffic, .rollout, .failures, a condition; Events
//! ```
//! * [`policy`]: watches one object; what does not decode is told of and changes nothing.
//! * [`election`], [`lease`]: which replica writes, of schedulers and of operators. Decisions pure, requests apart.
//! * [`reports`], `runtimes`, `explain`, [`notices`]: from sketches to status and events, pure. Light mode uses the
//!   same.
//! * [`preheats`]: plans of Preheats, carried out by the one that holds the Lease.
//! * [`reporter`]: the loop that does what those decide.
//!
//! Who holds the counters: the object itself. A holder starts from the sums that it finds in
//! `status.traffic` and adds what nodes report from then on; nodes and replicas repeat what they could
//! not tell. So sums never go back, whoever restarts. What a holder had taken and not yet written when
//! it was killed, ten seconds of traffic at most, is missing; one that is told to stop writes first.
//!
//! A dead API server stops reports and changes of policy, and nothing else.

pub mod election;
mod explain;
pub mod lease;
pub mod notices;
pub mod policy;
pub mod preheats;
pub mod reporter;
pub mod reports;
mod runtimes;

use std::time::Duration;

/// No request to the API server takes longer, watches apart.
const ANSWER: Duration = Duration::from_secs(10);

/// The Distribution of a mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What went wrong with the API server, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no cluster to be had.
    #[error("no Kubernetes: {0}; --kubernetes is for pods, or with KUBECONFIG set")]
    NoCluster(String),
    /// A request failed.
    #[error("{what}: {source}{}", hint(.source))]
    Request {
        /// Which.
        what: String,
        /// Why.
        source: Box<kube::Error>,
    },
    /// No answer in time.
    #[error("{0}: the API server does not answer")]
    Silent(String),
}

fn hint(error: &kube::Error) -> &'static str {
    match error {
        kube::Error::Api(status) if status.code == 403 => {
            "; the scheduler's Role must allow it (docs/operating.md)"
        }
        _ => "",
    }
}

/// A client for the cluster that this pod is in, or that `KUBECONFIG` names.
///
/// # Errors
/// There is none, or its files cannot be used.
pub async fn connect() -> Result<kube::Client, Error> {
    let config = kube::Config::infer()
        .await
        .map_err(|e| Error::NoCluster(e.to_string()))?;
    kube::Client::try_from(config).map_err(|e| Error::NoCluster(e.to_string()))
}

/// Asks with a limit.
async fn asked<T>(
    what: &str,
    request: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, Error> {
    match tokio::time::timeout(ANSWER, request).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(source)) => Err(Error::Request {
            what: what.to_owned(),
            source: Box::new(source),
        }),
        Err(_) => Err(Error::Silent(what.to_owned())),
    }
}
