//! What the API server told last, of the kinds that the operator watches.
//!
//! Every stream handles its own errors: one that may not be watched, such as a namespace without the
//! operator's Role, is tried again with backoff and holds up nobody else.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use dragonfly_crds::{Distribution, SchedulerPool};
use dragonfly_operator_core::Kind;
use dragonfly_operator_core::names::OURS;
use futures::StreamExt;
use futures::stream::BoxStream;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::core::{ApiResource, DeserializeGuard, DynamicObject};
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::{WatchStreamExt, predicates, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;

use crate::Namespaces;

/// How long a reconciliation waits for a cache that is still being filled.
const FILLED: Duration = Duration::from_secs(15);

/// Objects that changed. Never an error: those are handled where they arise.
pub type Changes<K> = BoxStream<'static, Result<K, watcher::Error>>;

/// A kind as kube names it.
pub fn resource(kind: Kind) -> ApiResource {
    ApiResource {
        group: kind.group.to_owned(),
        version: kind.version.to_owned(),
        api_version: kind.api_version(),
        kind: kind.kind.to_owned(),
        plural: kind.plural.to_owned(),
    }
}

/// Stores that the streams fill.
pub struct Cache {
    /// All meshes, of all namespaces.
    pub distributions: Store<DeserializeGuard<Distribution>>,
    /// All pools, of all namespaces.
    pub pools: Store<DeserializeGuard<SchedulerPool>>,
    /// What the operator made: by kind and, where not all namespaces are watched, namespace.
    children: HashMap<(Kind, Option<String>), (Store<DynamicObject>, Filled)>,
    /// Whether all meshes are known.
    pub(crate) distributions_filled: Filled,
    pools_filled: Filled,
}

/// What fills the cache, and tells of changes.
pub struct Streams {
    pub(crate) distributions: Changes<DeserializeGuard<Distribution>>,
    pub(crate) pools: Changes<DeserializeGuard<SchedulerPool>>,
    pub(crate) children: Vec<(ApiResource, Changes<DynamicObject>)>,
}

/// What the controller of pools sees. A store of its own for each stream: what a stream tells of is in
/// the store that it fills, not yet in another.
pub(crate) struct Pools {
    pub(crate) pools: Store<DeserializeGuard<SchedulerPool>>,
    pub(crate) pool_changes: Changes<DeserializeGuard<SchedulerPool>>,
    pub(crate) distributions: Store<DeserializeGuard<Distribution>>,
    pub(crate) distributions_known: Filled,
    pub(crate) distribution_changes: Changes<DeserializeGuard<Distribution>>,
}

impl Pools {
    pub(crate) fn new(client: &Client) -> Self {
        let config = watcher::Config::default;
        let (pools, _, pool_changes) = watch(Api::all(client.clone()), (), config());
        let (distributions, distributions_known, changes) =
            watch(Api::all(client.clone()), (), config());
        Self {
            pools,
            pool_changes: sound(
                pool_changes.predicate_filter(predicates::generation, Default::default()),
            ),
            distributions,
            distributions_known,
            // How many schedulers are ready is in the status, so every change counts.
            distribution_changes: sound(changes),
        }
    }
}

/// The pool that a mesh names, if it is there.
pub(crate) fn pool_of(
    pools: &Store<DeserializeGuard<SchedulerPool>>,
    mesh: &Distribution,
) -> Option<Arc<DeserializeGuard<SchedulerPool>>> {
    let reference = mesh.spec.scheduler_pool_ref.as_ref()?;
    let namespace = mesh.namespace().unwrap_or_default();
    pools.get(&ObjectRef::new(&reference.name).within(&namespace))
}

/// Meshes and their pools, for who needs nothing else of the cluster.
pub(crate) struct Meshes {
    pub(crate) distributions: Store<DeserializeGuard<Distribution>>,
    pub(crate) pools: Store<DeserializeGuard<SchedulerPool>>,
    pub(crate) known: Known,
    /// That a spec changed; has to be polled, as it fills the stores.
    pub(crate) changes: BoxStream<'static, ()>,
}

/// Whether both kinds are known.
#[derive(Clone)]
pub(crate) struct Known([Filled; 2]);

impl Known {
    /// Waits until they are.
    pub(crate) async fn all(mut self) {
        for filled in &mut self.0 {
            if filled.wait_for(|filled| *filled).await.is_err() {
                // Nobody fills them any more.
                std::future::pending::<()>().await;
            }
        }
    }
}

impl Meshes {
    pub(crate) fn new(client: &Client) -> Self {
        let config = watcher::Config::default;
        let (distributions, first, of_meshes) = watch(Api::all(client.clone()), (), config());
        let (pools, second, of_pools) = watch(Api::all(client.clone()), (), config());
        let of_meshes = of_meshes.predicate_filter(predicates::generation, Default::default());
        let of_pools = of_pools.predicate_filter(predicates::generation, Default::default());
        let changes =
            futures::stream::select(sound(of_meshes).map(|_| ()), sound(of_pools).map(|_| ()));
        Self {
            distributions,
            pools,
            known: Known([first, second]),
            changes: changes.boxed(),
        }
    }
}

/// Whether a store has been filled. Any number may wait: of those that wait for a `Store` of kube-runtime
/// 5.0 only the last is woken.
pub(crate) type Filled = tokio::sync::watch::Receiver<bool>;

/// A kind's changes, its store filled on the way.
fn watch<K>(
    api: Api<K>,
    resource: K::DynamicType,
    config: watcher::Config,
) -> (
    Store<K>,
    Filled,
    impl futures::Stream<Item = watcher::Result<K>>,
)
where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug + Send + Sync + 'static,
    K::DynamicType: Clone + Eq + std::hash::Hash,
{
    let writer = reflector::store::Writer::new(resource.clone());
    let what = K::plural(&resource).into_owned();
    let at = api.namespace().unwrap_or("all namespaces").to_owned();
    let stream = watcher(api, config)
        .modify(|object: &mut K| object.managed_fields_mut().clear())
        .default_backoff()
        .map(|event| event.map(deleted_for_all_to_see));
    let store = writer.as_reader();
    let logged = stream.inspect(move |event| {
        if let Err(error) = event {
            tracing::warn!(%error, what, at, "cannot be watched; tried again");
        }
    });
    let (filled, is_filled) = tokio::sync::watch::channel(false);
    let reflected = logged.reflect(writer).inspect(move |event| {
        if matches!(event, Ok(watcher::Event::InitDone)) {
            filled.send_replace(true);
        }
    });
    (store, is_filled, reflected.touched_objects())
}

/// A kind of all namespaces, with those of its changes that change what `hash` says.
pub(crate) fn watched<K>(
    api: Api<K>,
    hash: impl Fn(&K) -> Option<u64> + Send + 'static,
) -> (Store<K>, Filled, Changes<K>)
where
    K: Resource<DynamicType = ()>
        + Clone
        + DeserializeOwned
        + std::fmt::Debug
        + Send
        + Sync
        + 'static,
{
    let (store, filled, changes) = watch(api, (), watcher::Config::default());
    let changes = changes.predicate_filter(hash, Default::default());
    (store, filled, sound(changes))
}

/// An object that is gone says so: a filter of changes would take its last state for no change.
fn deleted_for_all_to_see<K: Resource>(event: watcher::Event<K>) -> watcher::Event<K> {
    match event {
        watcher::Event::Delete(mut object) => {
            let gone = Time(Timestamp::UNIX_EPOCH);
            object.meta_mut().deletion_timestamp.get_or_insert(gone);
            watcher::Event::Delete(object)
        }
        other => other,
    }
}

/// Only what went well: errors were logged, and the watch goes on by itself.
fn sound<K: Send + 'static>(
    stream: impl futures::Stream<Item = watcher::Result<K>> + Send + 'static,
) -> Changes<K> {
    stream
        .filter_map(|item| std::future::ready(item.ok().map(Ok)))
        .boxed()
}

impl Cache {
    /// The stores, and the streams that have to be polled to fill them.
    pub fn new(client: &Client, namespaces: &Namespaces) -> (Self, Streams) {
        let config = watcher::Config::default;
        let (distributions, distributions_filled, distribution_changes) =
            watch(Api::all(client.clone()), (), config());
        let (pools, pools_filled, pool_changes) = watch(Api::all(client.clone()), (), config());
        let scopes: Vec<_> = match namespaces {
            Namespaces::All => vec![None],
            Namespaces::Listed(names) => names.iter().cloned().map(Some).collect(),
        };
        let mut children = HashMap::new();
        let mut child_changes = vec![];
        for kind in Kind::WATCHED {
            for scope in &scopes {
                let resource = resource(kind);
                let api: Api<DynamicObject> = match scope {
                    None => Api::all_with(client.clone(), &resource),
                    Some(name) => Api::namespaced_with(client.clone(), name, &resource),
                };
                let (store, filled, changes) = watch(api, resource.clone(), config().labels(OURS));
                // By resource version: the final state of a deleted object is a change as well.
                let changes =
                    changes.predicate_filter(predicates::resource_version, Default::default());
                children.insert((kind, scope.clone()), (store, filled));
                child_changes.push((resource, sound(changes)));
            }
        }
        // The reports of schedulers and our own conditions change no generation.
        let distribution_changes =
            distribution_changes.predicate_filter(predicates::generation, Default::default());
        let streams = Streams {
            distributions: sound(distribution_changes),
            pools: sound(pool_changes),
            children: child_changes,
        };
        let cache = Self {
            distributions,
            pools,
            children,
            distributions_filled,
            pools_filled,
        };
        (cache, streams)
    }

    fn store(&self, kind: Kind, namespace: &str) -> Option<&(Store<DynamicObject>, Filled)> {
        let everywhere = self.children.get(&(kind, None));
        everywhere.or_else(|| self.children.get(&(kind, Some(namespace.to_owned()))))
    }

    /// Waits until all of a namespace is known.
    ///
    /// # Errors
    /// What is not known in time.
    pub async fn filled(&self, namespace: &str) -> Result<(), String> {
        let until = tokio::time::Instant::now() + FILLED;
        let wait = |filled: &Filled, what: &'static str| {
            let mut filled = filled.clone();
            async move {
                let filled = filled.wait_for(|filled| *filled);
                match tokio::time::timeout_at(until, filled).await {
                    Ok(Ok(_)) => Ok(()),
                    _ => Err(what),
                }
            }
        };
        let unknown = |what: &str| {
            format!(
                "the operator cannot list {what} in namespace {namespace} yet; has it a Role there?"
            )
        };
        wait(&self.distributions_filled, "distributions")
            .await
            .map_err(unknown)?;
        wait(&self.pools_filled, "schedulerpools")
            .await
            .map_err(unknown)?;
        for kind in Kind::WATCHED {
            let Some((_, filled)) = self.store(kind, namespace) else {
                return Err(format!("{} in {namespace} are not watched", kind.plural));
            };
            wait(filled, kind.plural).await.map_err(unknown)?;
        }
        Ok(())
    }

    /// An object that the operator made. `None` also for one without its label.
    pub fn get(&self, kind: Kind, namespace: &str, name: &str) -> Option<Arc<DynamicObject>> {
        let key = ObjectRef::new_with(name, resource(kind)).within(namespace);
        self.store(kind, namespace)?.0.get(&key)
    }

    /// All objects of a kind that a mesh owns.
    pub fn owned(&self, kind: Kind, namespace: &str, uid: &str) -> Vec<Arc<DynamicObject>> {
        let Some((store, _)) = self.store(kind, namespace) else {
            return vec![];
        };
        store.state_filter(|object| {
            object.metadata.namespace.as_deref() == Some(namespace)
                && object.owner_references().iter().any(|o| o.uid == uid)
        })
    }
}
