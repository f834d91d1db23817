//! `Distribution`: a mesh into its parts.
//!
//! Steps: get (the object as it is now) → validate (pure) → keys → Services → the rest, for it names
//! the Services' addresses → prune → status. Whatever a step says, the status says; the policy in
//! force is left alone until a new one is good.

use std::sync::Arc;
use std::time::Duration;

use dragonfly_crds::conditions::reason;
use dragonfly_crds::placement::Components;
use dragonfly_crds::policy::Policy;
use dragonfly_crds::{Distribution, SchedulerPool};
use dragonfly_operator_core::build::{objects, services};
use dragonfly_operator_core::claims::{Claim, taken};
use dragonfly_operator_core::status::{self, Outcome, Stalled};
use dragonfly_operator_core::validate::{Mesh, validate};
use dragonfly_operator_core::{Addresses, Kind, Objects};
use futures::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::{Api, DynamicObject};
use kube::core::{ApiResource, DeserializeGuard};
use kube::runtime::controller::{Action, Config, Controller};
use kube::runtime::reflector::ObjectRef;
use kube::{Resource, ResourceExt};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::apply::ApplyError;
use crate::authority::{Held, KeysError};
use crate::cache::{Streams, pool_of};
use crate::context::said;
use crate::visit::{Error, again, visited};
use crate::{AT_ONCE, Context};

type Guarded = DeserializeGuard<Distribution>;

const KIND: &str = "Distribution";

/// Changes of many children at once are one visit.
const TOGETHER: Duration = Duration::from_millis(250);
/// How often what is well is looked at all the same: Secrets are not watched.
const RESYNC: Duration = Duration::from_secs(300);
/// How often it is looked whether what stalls a mesh is gone, where no watch tells.
const LOOK_AGAIN: Duration = Duration::from_secs(15);

/// Why a mesh is not as its spec says.
enum Stop {
    Stalled(Stalled),
    /// For an issuer: what is said of it, and when to look again.
    Waits(String, Duration),
    Failed(String),
}

impl From<ApplyError> for Stop {
    fn from(error: ApplyError) -> Self {
        let text = error.to_string();
        match error {
            ApplyError::Taken { .. } => Self::Stalled(Stalled::new(reason::NAME_TAKEN, text)),
            ApplyError::Refused { .. } => Self::Stalled(Stalled::new(reason::REFUSED, text)),
            ApplyError::Leaving(_) | ApplyError::Other { .. } => Self::Failed(text),
        }
    }
}

impl From<KeysError> for Stop {
    fn from(error: KeysError) -> Self {
        match error {
            KeysError::Stalled(stalled) => Self::Stalled(stalled),
            KeysError::Waits { message, wait } => Self::Waits(message, wait),
            KeysError::Other(text) => Self::Failed(text),
        }
    }
}

impl From<kube::Error> for Stop {
    fn from(error: kube::Error) -> Self {
        Self::Failed(said(&error))
    }
}

/// Reconciles Distributions until stopped.
pub(crate) async fn run(context: Arc<Context>, streams: Streams, stop: CancellationToken) {
    let all = context.cache.distributions.clone();
    let of_pool = context.cache.distributions.clone();
    let mut controller = Controller::for_stream(streams.distributions, all).watches_stream(
        streams.pools,
        move |pool: DeserializeGuard<SchedulerPool>| {
            let (namespace, name) = (pool.namespace(), pool.name_any());
            let refers = move |mesh: &Guarded| {
                let reference = mesh.0.as_ref().ok();
                let reference = reference.and_then(|mesh| mesh.spec.scheduler_pool_ref.as_ref());
                mesh.namespace() == namespace && reference.is_some_and(|r| r.name == name)
            };
            let found = of_pool.state_filter(refers);
            found.into_iter().map(|mesh| ObjectRef::from_obj(&*mesh))
        },
    );
    for (resource, changes) in streams.children {
        controller = controller.owns_stream_with(changes, resource);
    }
    // Every bootstrap names the operator's own address.
    let moves = futures::stream::unfold((context.clone(), None), |(context, last)| async move {
        let now = context.moved(last).await;
        Some(((), (context, Some(now))))
    });
    controller
        .reconcile_all_on(moves)
        .with_config(Config::default().debounce(TOGETHER).concurrency(AT_ONCE))
        .graceful_shutdown_on(stop.cancelled_owned())
        .run(reconcile, failed, context)
        .for_each(|done| {
            match done {
                Ok((object, _)) => tracing::debug!(%object, "reconciled"),
                // Deleted meanwhile: what it owned goes with it.
                Err(error) => tracing::debug!(%error, "not reconciled"),
            }
            std::future::ready(())
        })
        .await;
}

fn failed(object: Arc<Guarded>, error: &Error, context: Arc<Context>) -> Action {
    again(&context, KIND, &*object, error)
}

async fn reconcile(object: Arc<Guarded>, context: Arc<Context>) -> Result<Action, Error> {
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    let visit = visit(&context, &namespace, &name);
    visited(&context, KIND, &*object, visit).await
}

/// One look at one object.
async fn visit(context: &Context, namespace: &str, name: &str) -> Result<Action, Error> {
    let resource = ApiResource::erase::<Distribution>(&());
    let api: Api<DynamicObject> =
        Api::namespaced_with(context.client.clone(), namespace, &resource);
    // As it is now, not as a watch told it: the next revision counts from the policy in force.
    let found = api.get_opt(name).await;
    let Some(live) = found.map_err(|error| Error(said(&error)))? else {
        return Ok(Action::await_change());
    };
    if live.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    let before = live.data.get("status").cloned().unwrap_or_default();
    let seen = Seen {
        policy: before.get("policy").cloned(),
        distribution: live.clone().try_parse().map_err(|error| error.to_string()),
        live: &live,
    };
    let allowed = context.options.namespaces.allow(namespace);
    let mut again = RESYNC;
    let outcome = if allowed {
        match steps(context, &seen).await {
            Ok(done) => {
                again = again.min(done.wait.unwrap_or(again));
                Ok(done)
            }
            Err(stop) => {
                if let Stop::Waits(_, wait) = &stop {
                    again = again.min(*wait);
                }
                Err(stop)
            }
        }
    } else {
        Err(Stop::Stalled(Stalled::new(
            reason::NAMESPACE_NOT_ALLOWED,
            format!(
                "the operator runs meshes in {}, not in namespace {namespace}: whoever may create a \
                 Distribution has the nodes that it selects; add the namespace to the operator's \
                 (--namespace, in the chart: namespaces)",
                context.options.namespaces
            ),
        )))
    };
    let mut policy = seen.policy.clone();
    let (outcome, components) = match outcome {
        Ok(done) => {
            policy = seen.in_force(&done.mesh);
            let workloads = done
                .applied
                .iter()
                .filter(|(kind, _)| matches!(*kind, Kind::DEPLOYMENT | Kind::DAEMON_SET));
            let troubles = workloads.filter_map(|(_, object)| status::trouble(object));
            let troubles = troubles.collect();
            let live = done.applied.iter().map(|(kind, value)| (*kind, value));
            let counted = status::components(live);
            let outcome = match done.trouble {
                None => Outcome::Applied(troubles),
                Some(KeysError::Stalled(stalled)) => Outcome::Stalled(stalled),
                Some(KeysError::Waits { message, .. } | KeysError::Other(message)) => {
                    Outcome::Noted(troubles, message)
                }
            };
            (outcome, counted)
        }
        Err(stop) => {
            let uid = live.metadata.uid.clone().unwrap_or_default();
            let counted = if allowed {
                context.running(namespace, &uid)
            } else {
                Components::default()
            };
            let outcome = match stop {
                Stop::Stalled(stalled) => Outcome::Stalled(stalled),
                Stop::Waits(message, _) => Outcome::Waiting(reason::WAITING_FOR_ISSUER, message),
                Stop::Failed(why) => Outcome::Failed(why),
            };
            (outcome, counted)
        }
    };
    let told = crate::status::conditions(&before);
    let generation = live.metadata.generation;
    let conditions = status::of_mesh(
        &told,
        generation,
        &outcome,
        &components,
        &crate::status::now(),
    );
    let was = part(
        before.get("observedGeneration").and_then(Value::as_i64),
        &json!(told),
        before.get("policy"),
        before.get("components"),
    );
    let is = part(
        generation,
        &json!(conditions),
        policy.as_ref(),
        Some(&json!(components)),
    );
    let uid = live.metadata.uid.clone().unwrap_or_default();
    let news = is_news(&told, &conditions)
        || ["observedGeneration", "policy"]
            .into_iter()
            .any(|field| was.get(field) != is.get(field));
    match context.counted.wait(&uid).filter(|_| !news && was != is) {
        // Of a thousand pods that get ready one after the other, every few are worth a word.
        Some(rest) => again = again.min(rest),
        None => {
            let written = context.tell(&resource, (namespace, name), &was, &is).await;
            let written = written.map_err(|error| Error(format!("status: {}", said(&error))))?;
            if written {
                context.counted.said(&uid);
                context.announce(&resource, &live, &told, &conditions).await;
            }
        }
    }
    match outcome {
        Outcome::Failed(why) => Err(Error(why)),
        Outcome::Applied(_) | Outcome::Noted(..) | Outcome::Waiting(..) => {
            Ok(Action::requeue(later(again)))
        }
        Outcome::Stalled(stalled) => Ok(match stalled.reason {
            // Nothing but a change of objects that are watched helps.
            reason::INVALID_SPEC | reason::NAMESPACE_NOT_ALLOWED => Action::await_change(),
            _ => Action::requeue(later(LOOK_AGAIN)),
        }),
    }
}

/// Whether conditions say something else, not only with other numbers.
fn is_news(before: &[Condition], after: &[Condition]) -> bool {
    let said = |all: &[Condition]| -> Vec<(String, String, String)> {
        let row = |c: &Condition| (c.type_.clone(), c.status.clone(), c.reason.clone());
        all.iter().map(row).collect()
    };
    said(before) != said(after)
}

/// Not all at once.
fn later(wait: Duration) -> Duration {
    wait.mul_f64(1.0 + 0.2 * fastrand::f64())
}

/// The operator's part of a status: all of it, or it would take away what it leaves out.
fn part(
    generation: Option<i64>,
    conditions: &Value,
    policy: Option<&Value>,
    components: Option<&Value>,
) -> Value {
    let mut part = json!({"conditions": conditions});
    if let Some(generation) = generation {
        part["observedGeneration"] = json!(generation);
    }
    if let Some(policy) = policy {
        part["policy"] = policy.clone();
    }
    if let Some(components) = components {
        part["components"] = components.clone();
    }
    part
}

/// An object as it was got.
struct Seen<'a> {
    live: &'a DynamicObject,
    distribution: Result<Distribution, String>,
    policy: Option<Value>,
}

impl Seen<'_> {
    /// The policy in force, if it can be read.
    fn previous(&self) -> Option<Policy> {
        Policy::from_value(self.policy.clone()?).ok()
    }

    /// What is published of a mesh: as it is where it says the same, with what a newer operator may
    /// have put in.
    fn in_force(&self, mesh: &Mesh) -> Option<Value> {
        let policy = mesh.published()?;
        match self.previous() {
            Some(before) if before.same_as(policy) => self.policy.clone(),
            _ => serde_json::to_value(policy).ok(),
        }
    }
}

/// What was done.
struct Done {
    mesh: Mesh,
    /// Its live objects.
    applied: Vec<(Kind, Value)>,
    /// When to look again although nothing changes.
    wait: Option<Duration>,
    /// What keeps it from being wholly as its spec says.
    trouble: Option<KeysError>,
}

/// From what was seen to what is wanted, applied.
async fn steps(context: &Context, seen: &Seen<'_>) -> Result<Done, Stop> {
    let namespace = seen.live.namespace().unwrap_or_default();
    let filled = context.cache.filled(&namespace).await;
    filled.map_err(Stop::Failed)?;
    let mesh = validated(context, seen)?;
    if let Some(why) = claimed(context, seen) {
        return Err(Stop::Stalled(Stalled::new(reason::NODES_CLAIMED, why)));
    }
    let Held {
        keys,
        wait,
        trouble,
    } = context.keys(&mesh).await?;

    let first = Objects {
        services: services(&mesh),
        ..Objects::default()
    };
    let mut got = vec![];
    for wanted in first.wanted().map_err(unwritable)? {
        let live = context.apply(&mesh, &wanted).await?;
        got.push(serde_json::from_value(live).map_err(unwritable)?);
    }
    let mut addresses = match &mesh.schedulers {
        dragonfly_operator_core::Schedulers::Slots { .. } => Addresses::of_services(&got)
            .ok_or_else(|| Stop::Failed("a Service has no address yet".to_owned()))?,
        // There is no Service of schedulers that would say it.
        dragonfly_operator_core::Schedulers::External(external) => Addresses {
            ipv6: external.addresses.iter().any(|a| a.starts_with('['))
                || context.reached().await.map_err(Stop::Failed)?.ipv6,
            ..Addresses::default()
        },
    };
    if mesh.issues() {
        let reached = context.reached().await.map_err(Stop::Failed)?;
        addresses.issuer = Some(reached.address);
    }
    let monitors = context.pod_monitors().await?;
    let settings = &context.options.settings;
    let all = objects(&mesh, &addresses, &keys, settings, monitors);
    let all = all.wanted().map_err(unwritable)?;
    let mut applied = vec![];
    for wanted in &all {
        applied.push((wanted.kind, context.apply(&mesh, wanted).await?));
    }
    context.prune(&mesh, &all).await?;
    Ok(Done {
        mesh,
        applied,
        wait,
        trouble,
    })
}

fn unwritable(error: serde_json::Error) -> Stop {
    Stop::Failed(format!("an object has no JSON: {error}"))
}

fn validated(context: &Context, seen: &Seen<'_>) -> Result<Mesh, Stop> {
    let invalid = |message: String| Stop::Stalled(Stalled::new(reason::INVALID_SPEC, message));
    let distribution = seen.distribution.as_ref().map_err(|error| {
        invalid(format!(
            "Distribution {}/{}: {error}",
            seen.live.namespace().unwrap_or_default(),
            seen.live.name_any()
        ))
    })?;
    let pool = pool_of(&context.cache.pools, distribution);
    let pool = match pool.as_deref() {
        Some(DeserializeGuard(Ok(pool))) => Some(pool),
        Some(DeserializeGuard(Err(error))) => {
            let (namespace, name) = (&error.metadata.namespace, &error.metadata.name);
            return Err(invalid(format!(
                "SchedulerPool {}/{}: {error}",
                namespace.as_deref().unwrap_or_default(),
                name.as_deref().unwrap_or_default()
            )));
        }
        None => None,
    };
    validate(distribution, pool, seen.previous().as_ref())
        .map_err(|mistakes| Stop::Stalled(Stalled::invalid(&mistakes)))
}

/// Who else has the same ports or directories of the same nodes, if that one goes first.
fn claimed(context: &Context, seen: &Seen<'_>) -> Option<String> {
    let own = Claim::of(seen.distribution.as_ref().ok()?);
    let others: Vec<_> = context
        .cache
        .distributions
        .state()
        .iter()
        .filter_map(|other| other.0.as_ref().ok())
        .filter(|other| context.has_nodes(other))
        .map(Claim::of)
        .collect();
    taken(&own, &others)
}

impl Context {
    /// Whether a mesh runs or will: one that is wrong and never ran keeps no nodes from others.
    fn has_nodes(&self, mesh: &Distribution) -> bool {
        let namespace = mesh.namespace().unwrap_or_default();
        if !self.options.namespaces.allow(&namespace) || mesh.meta().deletion_timestamp.is_some() {
            return false;
        }
        let status = mesh.status.as_ref();
        let has_run = status.is_some_and(|status| {
            let peers = status.components.map(|components| components.peers.desired);
            status.policy.is_some() || peers.is_some_and(|desired| desired > 0)
        });
        let pool = pool_of(&self.cache.pools, mesh);
        let pool = pool.as_deref().and_then(|pool| pool.0.as_ref().ok());
        has_run || validate(mesh, pool, None).is_ok()
    }
}

impl Context {
    /// Counts of what runs of a mesh, whatever its spec says now.
    fn running(&self, namespace: &str, uid: &str) -> Components {
        let mut found = vec![];
        for kind in [Kind::DEPLOYMENT, Kind::DAEMON_SET] {
            for object in self.cache.owned(kind, namespace, uid) {
                found.push((kind, serde_json::to_value(&*object).unwrap_or_default()));
            }
        }
        status::components(found.iter().map(|(kind, value)| (*kind, value)))
    }
}
