//! `SchedulerPool`: whether it can be used, and what uses it. Its schedulers are made for each mesh
//! that refers to it, by the mesh's own reconciliation.

use std::sync::Arc;

use dragonfly_crds::placement::Ready;
use dragonfly_crds::{Distribution, SchedulerPool};
use dragonfly_operator_core::status::of_pool;
use dragonfly_operator_core::validate::pool_mistakes;
use futures::StreamExt;
use kube::ResourceExt;
use kube::core::{ApiResource, DeserializeGuard, DynamicObject};
use kube::runtime::controller::{Action, Config, Controller};
use kube::runtime::reflector::{ObjectRef, Store};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::cache::{Filled, Pools};
use crate::context::said;
use crate::visit::{Error, again, key, visited};
use crate::{AT_ONCE, Context};

type Guarded = DeserializeGuard<SchedulerPool>;

const KIND: &str = "SchedulerPool";

struct Shared {
    context: Arc<Context>,
    distributions: Store<DeserializeGuard<Distribution>>,
    distributions_known: Filled,
}

/// Reconciles pools until stopped.
pub(crate) async fn run(context: Arc<Context>, pools: Pools, stop: CancellationToken) {
    let shared = Shared {
        context,
        distributions: pools.distributions,
        distributions_known: pools.distributions_known,
    };
    Controller::for_stream(pools.pool_changes, pools.pools)
        .watches_stream(
            pools.distribution_changes,
            |mesh: DeserializeGuard<Distribution>| {
                let spec = mesh.0.as_ref().ok().map(|mesh| &mesh.spec);
                let reference = spec.and_then(|spec| spec.scheduler_pool_ref.as_ref());
                let namespace = mesh.namespace().unwrap_or_default();
                reference.map(|reference| ObjectRef::new(&reference.name).within(&namespace))
            },
        )
        .with_config(Config::default().concurrency(AT_ONCE))
        .graceful_shutdown_on(stop.cancelled_owned())
        .run(reconcile, failed, Arc::new(shared))
        .for_each(|done| {
            if let Err(error) = done {
                // A mesh may refer to a pool that is not there; the mesh says so.
                tracing::debug!(%error, "not reconciled");
            }
            std::future::ready(())
        })
        .await;
}

fn failed(pool: Arc<Guarded>, error: &Error, shared: Arc<Shared>) -> Action {
    again(&shared.context, KIND, &*pool, error)
}

async fn reconcile(pool: Arc<Guarded>, shared: Arc<Shared>) -> Result<Action, Error> {
    let visit = async {
        visit(&pool, &shared).await?;
        Ok(Action::await_change())
    };
    visited(&shared.context, KIND, &*pool, visit).await
}

async fn visit(pool: &Guarded, shared: &Shared) -> Result<(), Error> {
    // Before meshes are known a pool seems to serve none, and its status would say so for a moment.
    let mut known = shared.distributions_known.clone();
    if known.wait_for(|known| *known).await.is_err() {
        return Ok(());
    }
    let (namespace, name) = (pool.namespace().unwrap_or_default(), pool.name_any());
    let resource = ApiResource::erase::<SchedulerPool>(&());
    let api: kube::Api<DynamicObject> =
        kube::Api::namespaced_with(shared.context.client.clone(), &namespace, &resource);
    let found = api.get_opt(&name).await;
    let Some(live) = found.map_err(|error| Error(said(&error)))? else {
        return Ok(());
    };
    let mistakes = match live.clone().try_parse::<SchedulerPool>() {
        Ok(pool) => pool_mistakes(&pool),
        Err(error) => vec![dragonfly_crds::Invalid {
            object: key(KIND, pool),
            field: "spec".to_owned(),
            reason: dragonfly_crds::Reason::Malformed,
            message: error.to_string(),
        }],
    };
    let (count, schedulers) = serves(&shared.distributions, &namespace, &name);
    let before = live.data.get("status").cloned().unwrap_or_default();
    let told = crate::status::conditions(&before);
    let generation = live.metadata.generation;
    let now = crate::status::now();
    let conditions = of_pool(&told, generation, &mistakes, (count, schedulers), &now);
    let was = part(
        before.get("observedGeneration"),
        json!(told),
        before.get("distributions"),
        before.get("schedulers"),
    );
    let is = part(
        generation.map(Value::from).as_ref(),
        json!(conditions),
        Some(&json!(count)),
        Some(&json!(schedulers)),
    );
    let written = shared
        .context
        .tell(&resource, (&namespace, &name), &was, &is)
        .await
        .map_err(|error| Error(format!("status: {}", said(&error))))?;
    if written {
        shared
            .context
            .announce(&resource, &live, &told, &conditions)
            .await;
    }
    Ok(())
}

fn part(
    generation: Option<&Value>,
    conditions: Value,
    distributions: Option<&Value>,
    schedulers: Option<&Value>,
) -> Value {
    let mut part = json!({"conditions": conditions});
    let rows = [
        ("observedGeneration", generation),
        ("distributions", distributions),
        ("schedulers", schedulers),
    ];
    for (field, value) in rows {
        if let Some(value) = value {
            part[field] = value.clone();
        }
    }
    part
}

/// How many meshes refer to a pool, and their schedulers.
fn serves(
    distributions: &Store<DeserializeGuard<Distribution>>,
    namespace: &str,
    name: &str,
) -> (i32, Ready) {
    let mut count = 0;
    let mut schedulers = Ready::default();
    for mesh in distributions.state() {
        let Ok(mesh) = &mesh.0 else { continue };
        let reference = mesh.spec.scheduler_pool_ref.as_ref();
        if mesh.metadata.namespace.as_deref() != Some(namespace)
            || reference.is_none_or(|reference| reference.name != name)
        {
            continue;
        }
        count += 1;
        let status = mesh.status.as_ref();
        if let Some(counted) = status.and_then(|status| status.components) {
            schedulers.desired += counted.schedulers.desired;
            schedulers.ready += counted.schedulers.ready;
            schedulers.updated += counted.schedulers.updated;
        }
    }
    (count, schedulers)
}
