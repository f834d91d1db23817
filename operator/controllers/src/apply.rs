//! Objects to the API server: server-side apply under one field manager, with an owner.
//!
//! Invariants: an object that somebody else made is never taken over; one that is as wanted is not
//! written; nothing is deleted but what this mesh owns, in the state in which it was seen.

use std::collections::HashSet;

use dragonfly_operator_core::names::MANAGER;
use dragonfly_operator_core::{Kind, Mesh, Wanted};
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use kube::core::DynamicObject;
use kube::{Client, ResourceExt};
use serde_json::Value;

use crate::Context;
use crate::cache::resource;
use crate::context::said;

/// Why an object is not as wanted.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// Somebody else's has this name.
    #[error("{what} exists and is not of this mesh ({whose}); delete or rename it")]
    Taken {
        /// `Service a/b`.
        what: String,
        /// Its owner, or that it has none.
        whose: String,
    },
    /// It belongs to a mesh of the same name that was deleted, and goes with it soon.
    #[error("{0} of a deleted mesh of this name is still there")]
    Leaving(String),
    /// The API server does not take it, and will not the next time.
    #[error("{what}: the API server refuses it: {message}")]
    Refused {
        /// `Service a/b`.
        what: String,
        /// Its words.
        message: String,
    },
    /// It may work the next time.
    #[error("{what}: {message}")]
    Other {
        /// `Service a/b`.
        what: String,
        /// What went wrong.
        message: String,
    },
}

pub(crate) fn api(client: &Client, kind: Kind, namespace: &str) -> Api<DynamicObject> {
    Api::namespaced_with(client.clone(), namespace, &resource(kind))
}

fn value(object: &DynamicObject) -> Value {
    serde_json::to_value(object).unwrap_or_default()
}

fn other(what: &str, error: &kube::Error) -> ApplyError {
    let (what, message) = (what.to_owned(), said(error));
    match error {
        kube::Error::Api(status) if matches!(status.code, 400 | 422) => {
            ApplyError::Refused { what, message }
        }
        _ => ApplyError::Other { what, message },
    }
}

impl Context {
    /// Makes an object as wanted and returns it as it is then.
    ///
    /// # Errors
    /// Why it is not.
    pub(crate) async fn apply(&self, mesh: &Mesh, wanted: &Wanted) -> Result<Value, ApplyError> {
        let what = format!("{} {}/{}", wanted.kind.kind, wanted.namespace, wanted.name);
        let api = api(&self.client, wanted.kind, &wanted.namespace);
        let known = self
            .cache
            .get(wanted.kind, &wanted.namespace, &wanted.name)
            .map(|object| (*object).clone());
        let live = match known {
            Some(live) => Some(live),
            // Not of ours, or not watched: before anything is made its name has to be free.
            None => api
                .get_opt(&wanted.name)
                .await
                .map_err(|error| other(&what, &error))?,
        };
        if let Some(live) = &live {
            belongs(mesh, live, &what)?;
            let live = value(live);
            if wanted.is_met_by(&live) {
                return Ok(live);
            }
        }
        let params = PatchParams::apply(MANAGER).force();
        let patched = api
            .patch(&wanted.name, &params, &Patch::Apply(&wanted.body))
            .await
            .map_err(|error| other(&what, &error))?;
        self.metrics.wrote(wanted.kind.kind, "apply");
        tracing::info!(what, "applied");
        Ok(value(&patched))
    }

    /// Deletes what a mesh owns and no longer wants.
    ///
    /// # Errors
    /// What could not be deleted.
    pub(crate) async fn prune(&self, mesh: &Mesh, wanted: &[Wanted]) -> Result<(), ApplyError> {
        let names: HashSet<_> = wanted.iter().map(|w| (w.kind, w.name.as_str())).collect();
        let is_wanted = |kind, name: &str| names.contains(&(kind, name));
        for kind in Kind::WATCHED {
            for object in self.cache.owned(kind, &mesh.namespace, &mesh.uid) {
                if !is_wanted(kind, &object.name_any()) {
                    self.delete(kind, &mesh.namespace, &object).await?;
                }
            }
        }
        // Those that are not watched have one name each.
        let join = dragonfly_operator_core::names::join(&mesh.name);
        let monitor = dragonfly_operator_core::names::monitor(&mesh.name);
        let mut unwatched = vec![(Kind::SECRET, join)];
        let knows = self.pod_monitors().await;
        if knows.map_err(|error| other("the kind PodMonitor", &error))? {
            unwatched.push((Kind::POD_MONITOR, monitor));
        }
        for (kind, name) in unwatched {
            if is_wanted(kind, &name) {
                continue;
            }
            let api = api(&self.client, kind, &mesh.namespace);
            let what = format!("{} {}/{name}", kind.kind, mesh.namespace);
            let found = api.get_opt(&name).await;
            let found = found.map_err(|error| other(&what, &error))?;
            if let Some(object) = found
                && belongs(mesh, &object, &what).is_ok()
            {
                self.delete(kind, &mesh.namespace, &object).await?;
            }
        }
        Ok(())
    }

    async fn delete(
        &self,
        kind: Kind,
        namespace: &str,
        object: &DynamicObject,
    ) -> Result<(), ApplyError> {
        if object.metadata.deletion_timestamp.is_some() {
            return Ok(());
        }
        let name = object.name_any();
        let what = format!("{} {namespace}/{name}", kind.kind);
        // Of this very object: one that was made anew in between is another's.
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: object.metadata.uid.clone(),
                resource_version: None,
            }),
            ..DeleteParams::background()
        };
        match api(&self.client, kind, namespace)
            .delete(&name, &params)
            .await
        {
            Ok(_) => {
                self.metrics.wrote(kind.kind, "delete");
                tracing::info!(what, "deleted: the mesh no longer asks for it");
                Ok(())
            }
            Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => {
                Ok(())
            }
            Err(error) => Err(other(&what, &error)),
        }
    }
}

/// Whether an object is of this mesh.
fn belongs(mesh: &Mesh, object: &DynamicObject, what: &str) -> Result<(), ApplyError> {
    let owners = object.owner_references();
    if owners.iter().any(|owner| owner.uid == mesh.uid) {
        return Ok(());
    }
    let before = owners
        .iter()
        .any(|owner| owner.kind == "Distribution" && owner.name == mesh.name);
    if before {
        return Err(ApplyError::Leaving(what.to_owned()));
    }
    let whose = owners.first().map_or_else(
        || "it has no owner".to_owned(),
        |owner| format!("it belongs to {} {}", owner.kind, owner.name),
    );
    Err(ApplyError::Taken {
        what: what.to_owned(),
        whose,
    })
}
