//! YAML as `kubectl apply --server-side` takes it: any kinds, in the order of the text.

use std::time::Duration;

use kube::api::{Api, DynamicObject, Patch, PatchParams};
use kube::discovery::{ApiCapabilities, ApiResource, Scope, pinned_kind};
use kube::{Client, ResourceExt};

use dragonfly_e2e::{Failed, Result};

use crate::wait::wait_until;

/// Who these objects' fields belong to.
const MANAGER: &str = "dragonfly-e2e";
/// How long the API server may take to know a kind whose definition was just applied.
const KNOWN: Duration = Duration::from_secs(20);
/// Documents of a text: test manifests have a handful.
const BOUNDS: usize = 64 << 20;

/// Applies every object of a text; namespaced ones without a namespace go to `namespace`.
///
/// # Errors
/// No YAML, a kind that the server does not know, or its refusal.
pub async fn yaml(client: &Client, namespace: &str, text: &str) -> Result<Vec<DynamicObject>> {
    let mut applied = vec![];
    for object in parse(text)? {
        applied.push(apply(client, namespace, object).await?);
    }
    Ok(applied)
}

/// The objects of a text.
///
/// # Errors
/// No YAML, or no objects of Kubernetes.
pub fn parse(text: &str) -> Result<Vec<DynamicObject>> {
    if text.len() > BOUNDS {
        return Err(Failed("a manifest of over 64 MiB".to_owned()));
    }
    let all: Vec<Option<DynamicObject>> =
        serde_saphyr::from_multiple(text).map_err(|e| Failed::at("a manifest", e))?;
    Ok(all.into_iter().flatten().collect())
}

async fn apply(client: &Client, namespace: &str, object: DynamicObject) -> Result<DynamicObject> {
    let name = object.name_any();
    let kind = object
        .types
        .clone()
        .ok_or_else(|| Failed::at(&name, "has no kind"))?;
    let what = format!("{} {name}", kind.kind);
    let gvk = kube::core::GroupVersionKind::try_from(&kind).map_err(|e| Failed::at(&what, e))?;
    let known = wait_until(&what, KNOWN, || async {
        Ok(pinned_kind(client, &gvk).await.map_err(|e| e.to_string()))
    });
    let api = api(client, namespace, &object, &known.await?);
    let params = PatchParams::apply(MANAGER).force();
    let patched = api.patch(&name, &params, &Patch::Apply(&object)).await;
    patched.map_err(|e| Failed::at(&what, e))
}

fn api(
    client: &Client,
    namespace: &str,
    object: &DynamicObject,
    (resource, capabilities): &(ApiResource, ApiCapabilities),
) -> Api<DynamicObject> {
    if capabilities.scope == Scope::Cluster {
        return Api::all_with(client.clone(), resource);
    }
    let own = object.namespace();
    Api::namespaced_with(
        client.clone(),
        own.as_deref().unwrap_or(namespace),
        resource,
    )
}
