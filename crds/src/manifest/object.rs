//! One document: whose it is, and whether it is sound.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::yaml::Document;
use super::{Loaded, ManifestError, Manifests, Skipped};
use crate::field::{Reason, quoted};
use crate::schema::{self, Mistake};
use crate::{API_VERSION, GROUP};

/// Namespace of an object that names none, as with kubectl.
const DEFAULT_NAMESPACE: &str = "default";
/// What an object's metadata may hold.
const METADATA: &[&str] = &[
    "annotations",
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "finalizers",
    "generateName",
    "generation",
    "labels",
    "managedFields",
    "name",
    "namespace",
    "ownerReferences",
    "resourceVersion",
    "selfLink",
    "uid",
];

/// The UID of an object without a cluster: stable over restarts, different for each name, in the
/// form of any UID (RFC 9562, version 8).
pub fn light_uid(kind: &str, namespace: &str, name: &str) -> String {
    let mut hasher = blake3::Hasher::new();
    // Names hold no slash.
    hasher.update(format!("{GROUP}/{kind}/{namespace}/{name}").as_bytes());
    let mut id = [0u8; 16];
    hasher.finalize_xof().fill(&mut id);
    id[6] = 0x80 | (id[6] & 0x0f);
    id[8] = 0x80 | (id[8] & 0x3f);
    let hex: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
    format!(
        "{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    )
}

pub(super) fn label(kind: &str, metadata: &ObjectMeta) -> String {
    let namespace = metadata.namespace.as_deref().unwrap_or_default();
    format!(
        "{kind} {namespace}/{}",
        metadata.name.as_deref().unwrap_or_default()
    )
}

/// Adds one document to what was found so far.
pub(super) fn add(
    file: &str,
    document: Document,
    into: &mut Manifests,
    errors: &mut Vec<ManifestError>,
) {
    let Document { mut value, places } = document;
    let mut object = String::new();
    let mut fail = |object: &str, mistake: Mistake| {
        errors.push(ManifestError {
            file: file.to_owned(),
            position: places.find(&mistake.field),
            object: object.to_owned(),
            field: mistake.field,
            reason: mistake.reason,
            message: mistake.message,
        });
    };
    let Some(fields) = value.as_object_mut() else {
        return fail(
            &object,
            mistake("", Reason::Malformed, "a document must be an object"),
        );
    };
    let text = |name: &str| fields.get(name).and_then(Value::as_str).map(str::to_owned);
    let (Some(api_version), Some(kind)) = (text("apiVersion"), text("kind")) else {
        let missing = if text("kind").is_none() {
            "kind"
        } else {
            "apiVersion"
        };
        return fail(
            &object,
            mistake(missing, Reason::Required, "must be given as text"),
        );
    };
    if api_version != API_VERSION {
        let group = api_version.split_once('/').map(|(group, _)| group);
        if group == Some(GROUP) {
            let message = format!(
                "{}: supported values: \"{API_VERSION}\"",
                quoted(&api_version)
            );
            return fail(
                &object,
                mistake("apiVersion", Reason::Unsupported, &message),
            );
        }
        if kind != "List" && is_of_kubernetes(group) {
            let name = value
                .pointer("/metadata/name")
                .and_then(Value::as_str)
                .unwrap_or_default();
            let what = format!("{kind} {name}");
            into.skipped.push(Skipped {
                file: file.to_owned(),
                what,
            });
            return;
        }
    }
    let known = schema::kinds()
        .ok()
        .and_then(|kinds| kinds.iter().find(|known| known.name == kind));
    let known = known.filter(|_| api_version == API_VERSION);
    let Some(known) = known else {
        let message = match schema::kinds() {
            Ok(_) => format!("{kind} of {api_version} is no kind that this release knows"),
            Err(error) => error.to_string(),
        };
        return fail(&object, mistake("kind", Reason::UnknownKind, &message));
    };

    // Only the status subresource writes status; an apiserver drops it here too.
    fields.remove("status");
    let mut mistakes = metadata(fields);
    let (namespace, name) = match fields.get_mut("metadata").and_then(Value::as_object_mut) {
        Some(metadata) => {
            metadata
                .entry("namespace")
                .or_insert_with(|| DEFAULT_NAMESPACE.into());
            let text = |name: &str| {
                metadata
                    .get(name)
                    .and_then(Value::as_str)
                    .unwrap_or_default()
            };
            let (namespace, name) = (text("namespace").to_owned(), text("name").to_owned());
            metadata.insert("uid".to_owned(), light_uid(&kind, &namespace, &name).into());
            (namespace, name)
        }
        None => (String::new(), String::new()),
    };
    object = format!("{kind} {namespace}/{name}");
    mistakes.extend(known.admit(&mut value, mistakes.is_empty()));
    if mistakes.is_empty() {
        let file = file.to_owned();
        let loaded = match kind.as_str() {
            "Distribution" => typed(value).map(|object| {
                into.distributions.push(Loaded {
                    object,
                    file,
                    places: places.clone(),
                });
            }),
            "SchedulerPool" => typed(value).map(|object| {
                into.pools.push(Loaded {
                    object,
                    file,
                    places: places.clone(),
                });
            }),
            "Preheat" => typed(value).map(|object| {
                into.preheats.push(Loaded {
                    object,
                    file,
                    places: places.clone(),
                });
            }),
            _ => Err(mistake(
                "kind",
                Reason::UnknownKind,
                "a kind without a type",
            )),
        };
        mistakes.extend(loaded.err());
    }
    for mistake in mistakes {
        fail(&object, mistake);
    }
}

fn typed<K: DeserializeOwned>(value: Value) -> Result<K, Mistake> {
    serde_json::from_value(value)
        .map_err(|error| mistake("", Reason::Malformed, &error.to_string()))
}

fn mistake(field: &str, reason: Reason, message: &str) -> Mistake {
    Mistake {
        field: field.to_owned(),
        reason,
        message: message.to_owned(),
    }
}

/// Groups that Kubernetes itself serves; theirs are the manifests that usually stand beside ours.
fn is_of_kubernetes(group: Option<&str>) -> bool {
    group.is_none_or(|group| {
        matches!(
            group,
            "apps" | "batch" | "policy" | "autoscaling" | "extensions"
        ) || group.ends_with(".k8s.io")
    })
}

/// What an apiserver checks of every object's metadata.
fn metadata(fields: &mut Map<String, Value>) -> Vec<Mistake> {
    let mut mistakes = Vec::new();
    let Some(Value::Object(metadata)) = fields.get_mut("metadata") else {
        mistakes.push(mistake("metadata.name", Reason::Required, "must be given"));
        return mistakes;
    };
    metadata.retain(|_, value| !value.is_null());
    for name in metadata
        .keys()
        .filter(|name| !METADATA.contains(&name.as_str()))
    {
        let field = format!("metadata.{name}");
        mistakes.push(mistake(
            &field,
            Reason::UnknownField,
            "metadata has no such field",
        ));
    }
    match metadata.get("name") {
        Some(Value::String(name)) if is_subdomain(name) => {}
        Some(Value::String(name)) => mistakes.push(mistake(
            "metadata.name",
            Reason::InvalidValue,
            &format!("{}: a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character", quoted(name)),
        )),
        Some(_) => mistakes.push(mistake("metadata.name", Reason::InvalidValue, "must be of type string")),
        None => mistakes.push(mistake("metadata.name", Reason::Required, "must be given")),
    }
    match metadata.get("namespace") {
        Some(Value::String(namespace)) if is_label(namespace) => {}
        Some(Value::String(namespace)) => mistakes.push(mistake(
            "metadata.namespace",
            Reason::InvalidValue,
            &format!("{}: a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character", quoted(namespace)),
        )),
        Some(_) => mistakes.push(mistake("metadata.namespace", Reason::InvalidValue, "must be of type string")),
        None => {}
    }
    for map in ["labels", "annotations"] {
        match metadata.get(map) {
            None => {}
            Some(Value::Object(entries)) => {
                for (key, _) in entries.iter().filter(|(_, value)| !value.is_string()) {
                    let field = format!("metadata.{map}.{key}");
                    mistakes.push(mistake(
                        &field,
                        Reason::InvalidValue,
                        "must be of type string",
                    ));
                }
            }
            Some(_) => {
                let field = format!("metadata.{map}");
                mistakes.push(mistake(
                    &field,
                    Reason::InvalidValue,
                    "must be of type object",
                ));
            }
        }
    }
    mistakes
}

/// RFC 1123 label.
fn is_label(text: &str) -> bool {
    text.len() <= 63 && is_name(text)
}

/// RFC 1123 subdomain; the parts between its dots have no bound of their own in Kubernetes.
fn is_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_name)
}

fn is_name(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    !text.is_empty() && !text.starts_with('-') && !text.ends_with('-') && text.bytes().all(inner)
}
