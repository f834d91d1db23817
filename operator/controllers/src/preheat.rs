//! `Preheat`: its next run, planned.
//!
//! Steps: get (the object as it is now) → what is known of its mesh → decide (pure) → one write of the
//! status, or its end. The mesh's schedulers carry the plan out; what they report wakes this up.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use dragonfly_crds::conditions::reason;
use dragonfly_crds::preheat::{CREATED_BY, PLUGIN};
use dragonfly_crds::{Distribution, Preheat};
use dragonfly_operator_core::preheat::{Decision, Mesh, Seen, decide};
use dragonfly_operator_core::status::{Outcome, Stalled, of_nothing};
use futures::StreamExt;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, DynamicObject, Preconditions};
use kube::core::{ApiResource, DeserializeGuard};
use kube::runtime::controller::{Action, Config, Controller};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Client, Resource, ResourceExt};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::cache::{Changes, Filled, watched};
use crate::context::said;
use crate::visit::{Error, again, key, visited};
use crate::{AT_ONCE, Context};

type Guarded = DeserializeGuard<Preheat>;

const KIND: &str = "Preheat";

/// Fields of the status that are the operator's.
const OURS: [&str; 7] = [
    "observedGeneration",
    "conditions",
    "plan",
    "runs",
    "lastRunTime",
    "nextRunTime",
    "history",
];

/// What the controller of preheats sees.
pub(crate) struct Preheats {
    preheats: Store<Guarded>,
    changes: Changes<Guarded>,
    distributions: Store<DeserializeGuard<Distribution>>,
    distributions_known: Filled,
    distribution_changes: Changes<DeserializeGuard<Distribution>>,
}

impl Preheats {
    pub(crate) fn new(client: &Client) -> Self {
        let (preheats, _, changes) = watched(Api::all(client.clone()), changes_of);
        let (distributions, distributions_known, distribution_changes) =
            watched(Api::all(client.clone()), presence_of);
        Self {
            preheats,
            changes,
            distributions,
            distributions_known,
            distribution_changes,
        }
    }
}

/// Changes with what this controller acts on: the spec, and what schedulers report.
fn changes_of(object: &Guarded) -> Option<u64> {
    let mut hasher = DefaultHasher::new();
    let metadata = match &object.0 {
        Ok(preheat) => {
            let progress = preheat.status.as_ref().map(|status| &status.progress);
            // Times and counts of bytes included: they are in the message.
            serde_json::to_string(&progress)
                .unwrap_or_default()
                .hash(&mut hasher);
            &preheat.metadata
        }
        Err(error) => &error.metadata,
    };
    metadata.generation.hash(&mut hasher);
    metadata.labels.hash(&mut hasher);
    metadata.deletion_timestamp.is_some().hash(&mut hasher);
    Some(hasher.finish())
}

/// Changes when a mesh gets or loses what plans need.
fn presence_of(mesh: &DeserializeGuard<Distribution>) -> Option<u64> {
    let mut hasher = DefaultHasher::new();
    let gone = mesh.meta().deletion_timestamp.is_some();
    gone.hash(&mut hasher);
    if let Ok(mesh) = &mesh.0 {
        mesh.metadata.uid.hash(&mut hasher);
        mesh.spec.external_schedulers.is_some().hash(&mut hasher);
        let policy = mesh.status.as_ref().map(|s| s.policy.is_some());
        policy.hash(&mut hasher);
    }
    Some(hasher.finish())
}

struct Shared {
    context: Arc<Context>,
    distributions: Store<DeserializeGuard<Distribution>>,
    distributions_known: Filled,
}

/// Reconciles Preheats until stopped.
pub(crate) async fn run(context: Arc<Context>, seen: Preheats, stop: CancellationToken) {
    let all = seen.preheats.clone();
    let shared = Shared {
        context,
        distributions: seen.distributions,
        distributions_known: seen.distributions_known,
    };
    Controller::for_stream(seen.changes, seen.preheats)
        .watches_stream(
            seen.distribution_changes,
            move |mesh: DeserializeGuard<Distribution>| {
                let (namespace, name) = (mesh.namespace(), mesh.name_any());
                let refers = move |preheat: &Guarded| {
                    let spec = preheat.0.as_ref().ok().map(|preheat| &preheat.spec);
                    preheat.namespace() == namespace
                        && spec.is_some_and(|spec| spec.distribution_ref.name == name)
                };
                let found = all.state_filter(refers);
                found
                    .into_iter()
                    .map(|preheat| ObjectRef::from_obj(&*preheat))
            },
        )
        .with_config(Config::default().concurrency(AT_ONCE))
        .graceful_shutdown_on(stop.cancelled_owned())
        .run(reconcile, failed, Arc::new(shared))
        .for_each(|done| {
            if let Err(error) = done {
                tracing::debug!(%error, "not reconciled");
            }
            std::future::ready(())
        })
        .await;
}

fn failed(object: Arc<Guarded>, error: &Error, shared: Arc<Shared>) -> Action {
    again(&shared.context, KIND, &*object, error)
}

async fn reconcile(object: Arc<Guarded>, shared: Arc<Shared>) -> Result<Action, Error> {
    visited(&shared.context, KIND, &*object, visit(&object, &shared)).await
}

async fn visit(object: &Guarded, shared: &Shared) -> Result<Action, Error> {
    let context = &shared.context;
    // Before meshes are known none is missing: its preheats would lose their plans, and begin anew.
    let mut known = shared.distributions_known.clone();
    if known.wait_for(|known| *known).await.is_err() {
        return Ok(Action::await_change());
    }
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    let resource = ApiResource::erase::<Preheat>(&());
    let api: Api<DynamicObject> =
        Api::namespaced_with(context.client.clone(), &namespace, &resource);
    // As it is now, not as a watch told it: the number of the next run counts from it.
    let found = api.get_opt(&name).await;
    let Some(live) = found.map_err(|error| Error(said(&error)))? else {
        return Ok(Action::await_change());
    };
    if live.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    let before = live.data.get("status").cloned().unwrap_or_default();
    let told = crate::status::conditions(&before);
    let (after, again, delete) = match decided(shared, &live, &namespace) {
        Ok(decision) => {
            let status = serde_json::to_value(&decision.status)
                .map_err(|error| Error(format!("a status has no JSON: {error}")))?;
            (status, decision.again, decision.delete)
        }
        Err(stalled) => {
            let now = crate::status::now();
            let generation = live.metadata.generation;
            let rows = of_nothing(&told, generation, &Outcome::Stalled(stalled), &now);
            let mut status = before.clone();
            status["conditions"] = json!(rows);
            status["observedGeneration"] = json!(generation);
            (status, Duration::from_secs(300), false)
        }
    };
    if delete {
        let exactly = Preconditions {
            uid: live.metadata.uid.clone(),
            resource_version: live.metadata.resource_version.clone(),
        };
        let params = DeleteParams {
            preconditions: Some(exactly),
            ..DeleteParams::default()
        };
        return match api.delete(&name, &params).await {
            Ok(_) => {
                context.metrics.wrote(KIND, "delete");
                tracing::info!(
                    object = key(KIND, object),
                    "its time after its last run is over"
                );
                Ok(Action::await_change())
            }
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(Action::await_change()),
            Err(error) => Err(Error(format!("delete: {}", said(&error)))),
        };
    }
    let (was, is) = (part(&before), part(&after));
    let is_news = OURS
        .iter()
        .any(|field| *field != "conditions" && was.get(field) != is.get(field))
        || said_of(&was) != said_of(&is);
    let uid = live.metadata.uid.clone().unwrap_or_default();
    if let Some(rest) = context.counted.wait(&uid).filter(|_| !is_news && was != is) {
        return Ok(Action::requeue(rest.min(again)));
    }
    let written = context
        .tell(&resource, (&namespace, &name), &was, &is)
        .await
        .map_err(|error| Error(format!("status: {}", said(&error))))?;
    if written {
        context.counted.said(&uid);
        let conditions = crate::status::conditions(&after);
        context.announce(&resource, &live, &told, &conditions).await;
    }
    Ok(Action::requeue(again))
}

fn decided(shared: &Shared, live: &DynamicObject, namespace: &str) -> Result<Decision, Stalled> {
    let namespaces = &shared.context.options.namespaces;
    if !namespaces.allow(namespace) {
        let text = format!("the operator runs meshes in {namespaces}, not in {namespace}");
        return Err(Stalled::new(reason::NAMESPACE_NOT_ALLOWED, text));
    }
    let preheat: Preheat = live
        .clone()
        .try_parse()
        .map_err(|error| Stalled::new(reason::INVALID_SPEC, error.to_string()))?;
    let status = preheat.status.clone().unwrap_or_default();
    let created = live.metadata.creation_timestamp.as_ref();
    let label = live.labels().get(CREATED_BY);
    let seen = Seen {
        spec: &preheat.spec,
        status: &status,
        generation: live.metadata.generation,
        created: created.map_or(Timestamp::UNIX_EPOCH, |time| time.0),
        of_plugin: label.is_some_and(|label| label == PLUGIN),
        mesh: &mesh_of(&shared.distributions, namespace, &preheat),
    };
    Ok(decide(seen, Timestamp::now()))
}

fn mesh_of(
    meshes: &Store<DeserializeGuard<Distribution>>,
    namespace: &str,
    preheat: &Preheat,
) -> Mesh {
    let name = &preheat.spec.distribution_ref.name;
    let Some(mesh) = meshes.get(&ObjectRef::new(name).within(namespace)) else {
        return Mesh::Missing;
    };
    let mesh = match &mesh.0 {
        Ok(mesh) => mesh,
        Err(error) => return Mesh::Waiting(error.to_string()),
    };
    if mesh.metadata.deletion_timestamp.is_some() {
        return Mesh::Missing;
    }
    if mesh.spec.external_schedulers.is_some() {
        return Mesh::External;
    }
    match mesh.status.as_ref().and_then(|s| s.policy.as_ref()) {
        Some(_) => Mesh::There,
        None => Mesh::Waiting("it has no policy yet; see its conditions".to_owned()),
    }
}

/// The operator's part of a status.
fn part(status: &Value) -> Value {
    let fields = OURS
        .iter()
        .filter_map(|field| Some(((*field).to_owned(), status.get(field)?.clone())));
    let mut part: serde_json::Map<_, _> = fields.collect();
    // As it is read: others' conditions and a different order do not count.
    part.insert(
        "conditions".to_owned(),
        json!(crate::status::conditions(status)),
    );
    Value::Object(part)
}

/// Types, statuses and reasons: what conditions say, numbers apart.
fn said_of(part: &Value) -> Vec<[Value; 3]> {
    let rows = part["conditions"].as_array();
    let row = |c: &Value| ["type", "status", "reason"].map(|field| c[field].clone());
    rows.into_iter().flatten().map(row).collect()
}
