//! Certificates from an operator that does not lead: it reads what the one that leads wrote.
//!
//! A mesh's keys and its CA are got from their Secrets, again and again, for Secrets are not watched.
//! Invariant: nothing is written, so whoever leads is alone in what it does. What is signed with a CA
//! that was replaced meanwhile is good all the same: one is trusted before it signs and after.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dragonfly_crds::Distribution;
use dragonfly_crds::policy::Policy;
use dragonfly_operator_core::validate::{Mesh, validate};
use dragonfly_operator_core::{Schedulers, names};
use futures::{FutureExt, StreamExt};
use kube::core::DeserializeGuard;
use kube::{Resource, ResourceExt};
use tokio_util::sync::CancellationToken;

use crate::authority::{self, secret};
use crate::cache::{Meshes, pool_of};
use crate::{LIMIT, Operator, ca};

/// How often Secrets are looked at, at least: no later than a quarter of the time in which a new CA has
/// to be known.
const LOOK: Duration = Duration::from_secs(30);
/// Where a mesh is not as it has to be yet: it was just made, and its keys will be.
const SOON: Duration = Duration::from_secs(1);
/// Changes of several objects at once are one look.
const TOGETHER: Duration = Duration::from_millis(250);

/// Keeps the issuer as the cluster's Secrets are, until stopped.
pub(crate) async fn run(operator: &Operator, ready: &AtomicBool, stop: CancellationToken) {
    let mut meshes = Meshes::new(&operator.client);
    let every = (operator.options.ages.overlap / 4).clamp(SOON, LOOK);
    let mut wait = every;
    let mut known = false;
    loop {
        let mut is_change = false;
        tokio::select! {
            change = meshes.changes.next() => is_change = change.is_some(),
            () = meshes.known.clone().all(), if !known => {
                known = true;
                is_change = true;
            }
            () = tokio::time::sleep(wait), if known => {}
            () = stop.cancelled() => return,
        }
        if is_change {
            tokio::time::sleep(TOGETHER).await;
            while meshes.changes.next().now_or_never().flatten().is_some() {}
        }
        if !known {
            continue;
        }
        let missing = tokio::select! {
            missing = tokio::time::timeout(LIMIT, look(operator, &meshes)) => missing,
            () = stop.cancelled() => return,
        };
        ready.store(true, Ordering::Relaxed);
        let all_well = missing.unwrap_or(1) == 0;
        wait = match (all_well, is_change) {
            (true, _) => every,
            (false, true) => SOON,
            (false, false) => (wait * 2).min(every),
        };
    }
}

/// Looks at every mesh: how many are not as they have to be.
async fn look(operator: &Operator, meshes: &Meshes) -> usize {
    let all = meshes.distributions.state();
    let is_there = |uid: &str| all.iter().any(|d| d.meta().uid.as_deref() == Some(uid));
    operator.issuer.retain(is_there);
    let mut missing = 0;
    for mesh in &all {
        let DeserializeGuard(Ok(mesh)) = &**mesh else {
            continue;
        };
        let namespace = mesh.namespace().unwrap_or_default();
        if !operator.options.namespaces.allow(&namespace)
            || mesh.meta().deletion_timestamp.is_some()
        {
            continue;
        }
        if let Err(why) = learn(operator, meshes, mesh).await {
            let name = mesh.name_any();
            tracing::debug!(
                namespace,
                name,
                why,
                "gives no certificates of this mesh yet"
            );
            missing += 1;
        }
    }
    missing
}

/// What a mesh's certificates are made with, to the issuer.
async fn learn(operator: &Operator, meshes: &Meshes, mesh: &Distribution) -> Result<(), String> {
    let pool = pool_of(&meshes.pools, mesh);
    let pool = pool.as_deref().and_then(|pool| pool.0.as_ref().ok());
    let policy = mesh.status.as_ref().and_then(|s| s.policy.clone());
    let policy = policy.and_then(|policy| Policy::from_value(policy).ok());
    let mesh = validate(mesh, pool, policy.as_ref()).map_err(|_| "its spec is wrong".to_owned())?;
    if !mesh.issues() || matches!(mesh.schedulers, Schedulers::External(_)) {
        operator.issuer.forget(&mesh.uid);
        return Ok(());
    }
    let data = get(operator, &mesh, &names::authority(&mesh.name)).await?;
    let own = tokio::task::spawn_blocking(move || authority::check(&data.data.unwrap_or_default()));
    let own = own.await.map_err(|error| error.to_string())??;
    let secret = get(operator, &mesh, &names::ca(&mesh.name)).await?;
    let what = format!("Secret {}/{}", mesh.namespace, names::ca(&mesh.name));
    ca::owned(&mesh, &secret, &what).map_err(|error| error.to_string())?;
    let in_use = ca::read(&secret)?;
    operator.issuer.serve(&mesh, in_use, own.join_secret)
}

async fn get(
    operator: &Operator,
    mesh: &Mesh,
    name: &str,
) -> Result<k8s_openapi::api::core::v1::Secret, String> {
    let found = secret(&operator.client, &mesh.namespace, name).await;
    let found = found.map_err(|error| error.to_string())?;
    found.ok_or_else(|| format!("Secret {}/{name} is not there", mesh.namespace))
}
