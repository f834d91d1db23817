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
    children: HashMap<(Kind, Option<String>), Store<DynamicObject>>,
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
    pub(crate) distribution_changes: Changes<DeserializeGuard<Distribution>>,
}

impl Pools {
    pub(crate) fn new(client: &Client) -> Self {
        let config = watcher::Config::default;
        let (pools, pool_changes) = watch(Api::all(client.clone()), (), config());
        let (distributions, changes) = watch(Api::all(client.clone()), (), config());
        Self {
            pools,
            pool_changes: sound(
                pool_changes.predicate_filter(predicates::generation, Default::default()),
            ),
            distributions,
            // How many schedulers are ready is in the status, so every change counts.
            distribution_changes: sound(changes),
        }
    }
}

/// A kind's changes, its store filled on the way.
fn watch<K>(
    api: Api<K>,
    resource: K::DynamicType,
    config: watcher::Config,
) -> (Store<K>, impl futures::Stream<Item = watcher::Result<K>>)
where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug + Send + Sync + 'static,
    K::DynamicType: Clone + Eq + std::hash::Hash,
{
    let writer = reflector::store::Writer::new(resource.clone());
    let what = K::plural(&resource).into_owned();
    let at = api.namespace().unwrap_or("all namespaces").to_owned();
    let stream = watcher(api, config)
        .modify(|object: &mut K| object.managed_fields_mut().clear())
        .default_backoff();
    let store = writer.as_reader();
    let logged = stream.inspect(move |event| {
        if let Err(error) = event {
            tracing::warn!(%error, what, at, "cannot be watched; tried again");
        }
    });
    (store, logged.reflect(writer).touched_objects())
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
        let (distributions, distribution_changes) = watch(Api::all(client.clone()), (), config());
        let (pools, pool_changes) = watch(Api::all(client.clone()), (), config());
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
                let (store, changes) = watch(api, resource.clone(), config().labels(OURS));
                // By resource version: the final state of a deleted object is a change as well.
                let changes =
                    changes.predicate_filter(predicates::resource_version, Default::default());
                children.insert((kind, scope.clone()), store);
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
        };
        (cache, streams)
    }

    fn store(&self, kind: Kind, namespace: &str) -> Option<&Store<DynamicObject>> {
        let everywhere = self.children.get(&(kind, None));
        everywhere.or_else(|| self.children.get(&(kind, Some(namespace.to_owned()))))
    }

    /// Waits until all of a namespace is known.
    ///
    /// # Errors
    /// What is not known in time.
    pub async fn filled(&self, namespace: &str) -> Result<(), String> {
        let until = tokio::time::Instant::now() + FILLED;
        for kind in Kind::WATCHED {
            let Some(store) = self.store(kind, namespace) else {
                return Err(format!("{} in {namespace} are not watched", kind.plural));
            };
            let ready = tokio::time::timeout_at(until, store.wait_until_ready()).await;
            if !matches!(ready, Ok(Ok(()))) {
                return Err(format!(
                    "the operator cannot list {} in namespace {namespace} yet; has it a Role there?",
                    kind.plural
                ));
            }
        }
        Ok(())
    }

    /// An object that the operator made. `None` also for one without its label.
    pub fn get(&self, kind: Kind, namespace: &str, name: &str) -> Option<Arc<DynamicObject>> {
        let key = ObjectRef::new_with(name, resource(kind)).within(namespace);
        self.store(kind, namespace)?.get(&key)
    }

    /// All objects of a kind that a mesh owns.
    pub fn owned(&self, kind: Kind, namespace: &str, uid: &str) -> Vec<Arc<DynamicObject>> {
        let Some(store) = self.store(kind, namespace) else {
            return vec![];
        };
        store.state_filter(|object| {
            object.metadata.namespace.as_deref() == Some(namespace)
                && object.owner_references().iter().any(|o| o.uid == uid)
        })
    }
}
