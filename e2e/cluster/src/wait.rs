//! Waiting for what a cluster does in its own time, with the reason when it does not.

use std::future::Future;
use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::Api;
use kube::{Resource, ResourceExt};
use serde::de::DeserializeOwned;

use dragonfly_e2e::{Failed, Result};

const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What a look at something gave: the value waited for, or why not yet.
pub type Look<T> = Result<T, String>;

/// Looks until it is so.
///
/// # Errors
/// The look's own errors at once; after `limit` what it said last.
pub async fn wait_until<T, F>(what: &str, limit: Duration, mut look: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<Look<T>>>,
{
    let until = Instant::now() + limit;
    loop {
        let why = match look().await? {
            Ok(value) => return Ok(value),
            Err(why) => why,
        };
        if Instant::now() > until {
            return Err(Failed(format!("waited {limit:?} for {what}: {why}")));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Looks at an object until it is so.
///
/// # Errors
/// The API server's, or what was said last.
pub async fn wait_for<K, T>(
    api: &Api<K>,
    name: &str,
    limit: Duration,
    look: impl Fn(Option<&K>) -> Look<T>,
) -> Result<T>
where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug,
{
    wait_until(name, limit, || async {
        let found = api.get_opt(name).await.map_err(|e| Failed::at(name, e))?;
        Ok(look(found.as_ref()))
    })
    .await
}

/// A node that is ready.
pub fn ready_node(node: Option<&Node>) -> Look<()> {
    let status = node
        .and_then(|n| n.status.as_ref())
        .ok_or("has not registered")?;
    let ready = status
        .conditions
        .iter()
        .flatten()
        .find(|c| c.type_ == "Ready");
    let ready = ready.ok_or("says nothing of itself")?;
    if ready.status == "True" {
        return Ok(());
    }
    Err(ready
        .message
        .clone()
        .unwrap_or_else(|| "not ready".to_owned()))
}

/// A pod whose containers are ready.
pub fn ready_pod(pod: Option<&Pod>) -> Look<()> {
    let status = pod.and_then(|p| p.status.as_ref()).ok_or("not there")?;
    let ready = status
        .conditions
        .iter()
        .flatten()
        .find(|c| c.type_ == "Ready");
    if ready.is_some_and(|c| c.status == "True") {
        return Ok(());
    }
    Err(crate::diagnostics::pod_state(status))
}

/// A DaemonSet of the current generation that is ready on every node that it is wanted on.
pub fn ready_daemon_set(set: Option<&DaemonSet>) -> Look<()> {
    let set = set.ok_or("not there")?;
    let status = set.status.as_ref().ok_or("no status yet")?;
    let current = status.observed_generation == set.meta().generation;
    let (wanted, ready) = (status.desired_number_scheduled, status.number_ready);
    let updated = status.updated_number_scheduled.unwrap_or_default();
    if current && wanted > 0 && ready == wanted && updated == wanted {
        return Ok(());
    }
    Err(format!(
        "{} of {wanted} pods of {} are ready",
        ready,
        set.name_any()
    ))
}

/// A Deployment of the current generation whose replicas are all ready.
pub fn ready_deployment(deployment: Option<&Deployment>) -> Look<()> {
    let deployment = deployment.ok_or("not there")?;
    let status = deployment.status.as_ref().ok_or("no status yet")?;
    let wanted = deployment
        .spec
        .as_ref()
        .and_then(|s| s.replicas)
        .unwrap_or(1);
    let (ready, updated) = (
        status.ready_replicas.unwrap_or(0),
        status.updated_replicas.unwrap_or(0),
    );
    let current = status.observed_generation == deployment.meta().generation;
    if current && ready == wanted && updated == wanted {
        return Ok(());
    }
    Err(format!(
        "{ready} of {wanted} replicas of {} are ready",
        deployment.name_any()
    ))
}
