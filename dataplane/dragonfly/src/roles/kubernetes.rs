//! A scheduler in a pod: policy from its Distribution, reports to it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use dragonfly_crds::{Distribution, Policy};
use dragonfly_kubernetes::policy::{Seen, follow};
use dragonfly_kubernetes::preheats::carry_out;
use dragonfly_kubernetes::reporter::{self, Reporter};
use dragonfly_kubernetes::{Target, connect};
use dragonfly_proto::rpc;
use dragonfly_scheduler::replicas;
use dragonfly_scheduler::service::Service;
use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::policy::{self, Given};
use super::preheats::ThisScheduler;
use super::scheduler::{Running, ShownScheduler, ToReplicas};
use super::{RoleError, write_atomically};

/// How long the API server is waited for before a scheduler that was started again runs what it ran.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the last reports may take.
const LAST: Duration = Duration::from_secs(8);
/// How long it takes at most until nodes have heard that the mesh was deleted.
const HEARD: Duration = Duration::from_secs(1);

/// The object that `--distribution` names: its namespace is the pod's, where none is said.
pub(crate) fn target(distribution: Option<&str>) -> Result<Target, RoleError> {
    let text = distribution.unwrap_or_default();
    let own = || std::env::var("POD_NAMESPACE").ok();
    let (namespace, name) = match text.split_once('/') {
        Some((namespace, name)) => (Some(namespace.to_owned()), name),
        None => (own(), text),
    };
    match namespace.filter(|n| !n.is_empty() && !name.is_empty()) {
        Some(namespace) => Ok(Target {
            namespace,
            name: name.to_owned(),
        }),
        None => Err(RoleError(format!(
            "--distribution {text}: write namespace/name, or set POD_NAMESPACE"
        ))),
    }
}

/// A cluster, and one object in it that is watched.
pub(crate) struct Connected {
    client: Client,
    target: Target,
    given: watch::Receiver<Option<Given>>,
    kept: PathBuf,
    pub(crate) reporter: Reporter,
}

impl Connected {
    /// Begins to watch.
    pub(crate) async fn new(
        target: Target,
        state: &Path,
        shown: &Arc<ShownScheduler>,
    ) -> Result<Self, RoleError> {
        let client = connect().await.map_err(|e| RoleError(e.to_string()))?;
        let reporter = Reporter::default();
        shown.reports(reporter.clone());
        shown.waits(format!("asks the API server for distribution {target}"));
        let (give, given) = watch::channel(None);
        let kept = state.join("policy.json");
        let taker = Taker {
            target: target.clone(),
            reporter: reporter.clone(),
            shown: shown.clone(),
            kept: kept.clone(),
            give,
        };
        let seen = move |seen| taker.take(seen);
        // As long as this process lives, also while it ends: see `last_look`.
        tokio::spawn(follow(client.clone(), target.clone(), seen));
        Ok(Self {
            client,
            target,
            given,
            kept,
            reporter,
        })
    }

    /// Policies from the first one on; `None` when stopped before there is one.
    pub(crate) async fn policies(
        &self,
        shown: &ShownScheduler,
        stop: &CancellationToken,
    ) -> Option<watch::Receiver<Given>> {
        let mut given = self.given.clone();
        let first = async { given.wait_for(Option::is_some).await.ok()?.clone() };
        let first = tokio::select! {
            first = first => first?,
            kept = self.what_it_ran() => kept,
            () = stop.cancelled() => return None,
        };
        shown.waits("starts to serve".to_owned());
        self.reporter.in_force(&first.policy);
        let policies = watch::Sender::new(first);
        let all = policies.subscribe();
        let mut given = self.given.clone();
        tokio::spawn(async move {
            loop {
                let next = given.borrow_and_update().clone();
                if let Some(next) = next {
                    policies.send_if_modified(|now| {
                        let differs = !now.policy.same_as(&next.policy);
                        if differs {
                            *now = next;
                        }
                        differs
                    });
                }
                if given.changed().await.is_err() {
                    return;
                }
            }
        });
        Some(all)
    }

    /// The policy that this scheduler ran before it was started again, when nothing else is to be had
    /// for a while; never where there is none.
    async fn what_it_ran(&self) -> Given {
        tokio::time::sleep(PATIENCE).await;
        let kept = std::fs::read(&self.kept).ok();
        let kept = kept.and_then(|json| Some((Policy::decode(&json).ok()?, json)));
        match kept {
            Some((policy, json)) => {
                let revision = policy.revision;
                tracing::warn!(revision, "no policy from the API server: the last good one");
                Given::received(policy, json)
            }
            None => std::future::pending().await,
        }
    }

    /// Reports until stopped.
    pub(crate) async fn report(
        self,
        running: Running,
        first: &Policy,
        others: &[rpc::Replica],
        stop: CancellationToken,
    ) -> Result<(), RoleError> {
        let mut boot = [0; 8];
        aws_lc_rs::rand::fill(&mut boot).map_err(|_| RoleError("no randomness".to_owned()))?;
        let config = reporter::Config {
            target: self.target,
            uid: first.uid.clone(),
            name: running.name,
            boot: u64::from_le_bytes(boot),
            replicas: others
                .iter()
                .map(|r| (r.name.clone(), r.address.clone()))
                .collect(),
            pod: std::env::var("POD_NAME").ok(),
        };
        let (client, target) = (self.client.clone(), config.target.clone());
        let last_look = last_look(client, &target);
        let given = self.given.clone();
        let preheats = carry_out(
            self.client.clone(),
            config.target.clone(),
            self.reporter.clone(),
            ThisScheduler {
                service: running.service.clone(),
                mirrored: Box::new(move || {
                    let given = given.borrow();
                    given
                        .as_ref()
                        .map(|given| policy::mirrored(&given.policy))
                        .unwrap_or_default()
                }),
            },
            stop.clone(),
        );
        let mut preheats = tokio::spawn(preheats);
        let replica = ThisReplica {
            service: running.service,
            tls: running.to_replicas,
        };
        let (client, reporter, until) = (self.client, self.reporter, stop.clone());
        let mut task =
            tokio::spawn(async move { reporter.run(client, config, replica, until).await });
        tokio::select! {
            ended = &mut task => {
                let why = ended.err().map_or_else(|| "it ended".to_owned(), |e| e.to_string());
                return Err(RoleError::at("the reports", why));
            }
            ended = &mut preheats, if !stop.is_cancelled() => {
                if !stop.is_cancelled() {
                    let why = ended.err().map_or_else(|| "it ended".to_owned(), |e| e.to_string());
                    return Err(RoleError::at("preheats", why));
                }
            }
            () = stop.cancelled() => {}
        }
        let (reported, ()) = futures::join!(tokio::time::timeout(LAST, task), last_look);
        if reported.is_err() {
            tracing::warn!("the last reports took too long");
        }
        Ok(())
    }
}

/// A mesh that is deleted takes its scheduler with it, perhaps before the watch has told why: then it is
/// waited for, that nodes hear of it.
async fn last_look(client: Client, target: &Target) {
    let kind = ApiResource::erase::<Distribution>(&());
    let api: Api<DynamicObject> = Api::namespaced_with(client, &target.namespace, &kind);
    let looked = tokio::time::timeout(HEARD, api.get_opt(&target.name)).await;
    let goes = |object: DynamicObject| object.metadata.deletion_timestamp.is_some();
    if looked.is_ok_and(|found| found.is_ok_and(|found| found.is_none_or(goes))) {
        tokio::time::sleep(HEARD).await;
    }
}

/// What is done with what the watch sees.
struct Taker {
    target: Target,
    reporter: Reporter,
    shown: Arc<ShownScheduler>,
    kept: PathBuf,
    give: watch::Sender<Option<Given>>,
}

impl Taker {
    fn take(&self, seen: Seen) {
        let target = &self.target;
        match seen {
            Seen::Policy { policy, json } => {
                tracing::info!(%target, revision = policy.revision, "a policy from the Distribution");
                if let Err(error) = write_atomically(&self.kept, &json) {
                    tracing::debug!(%error, "the policy is not kept for the next start");
                }
                self.reporter.in_force(&policy);
                self.give.send_replace(Some(Given::received(*policy, json)));
            }
            Seen::Refused { revision, why } => {
                tracing::error!(
                    %target,
                    revision,
                    why,
                    "this policy cannot be run; the last good one stays in force"
                );
                self.shown.waits(format!(
                    "distribution {target}: status.policy, revision {revision}: {why}"
                ));
                self.reporter.refused(revision, &why);
            }
            Seen::NoPolicy => {
                tracing::info!(%target, "no policy yet; waiting for the operator");
                self.shown.waits(format!(
                    "distribution {target} has no status.policy yet: see its conditions, and that \
                     the operator runs"
                ));
            }
            Seen::Deleted => {
                tracing::info!(%target, "the Distribution was deleted");
                self.shown.retire();
            }
            Seen::NoObject => {
                tracing::warn!(%target, "there is no such Distribution");
                self.shown
                    .waits(format!("there is no distribution {target}"));
            }
        }
    }
}

struct ThisReplica {
    service: Service,
    tls: ToReplicas,
}

impl reporter::Replica for ThisReplica {
    fn sketch(&self) -> rpc::Sketch {
        self.service.sketch()
    }

    async fn tell(&self, address: &str, sketch: rpc::Sketch) -> Result<(), String> {
        replicas::tell(address, (self.tls)(), sketch).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_distribution_is_named_with_its_namespace() {
        let t = target(Some("ns/name")).unwrap();
        assert_eq!(t.to_string(), "ns/name");
        for bad in [None, Some("/x"), Some("x/"), Some("")] {
            let error = target(bad).unwrap_err().to_string();
            assert!(error.contains("--distribution"), "{bad:?}: {error}");
        }
    }
}
