//! Policy from `status.policy` of one Distribution.
//!
//! The object is watched as it is, without its type: a spec that this release does not understand must
//! not hide a policy that it does. What is passed on are the policy's own bytes, so that fields which
//! only a newer release knows reach the nodes that do.

use std::pin::pin;

use dragonfly_crds::{Distribution, Policy};
use futures::StreamExt;
use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch};
use serde_json::Value;

use crate::Target;

/// What the watch sees.
#[derive(Debug, PartialEq)]
pub enum Seen {
    /// A policy that differs from the last one.
    Policy {
        /// Decoded and checked.
        policy: Box<Policy>,
        /// As it stands in the object.
        json: Vec<u8>,
    },
    /// A policy that this release cannot run.
    Refused {
        /// The one it says it is.
        revision: u64,
        /// Why.
        why: String,
    },
    /// The object is there and has no policy: the operator has not resolved it yet, or cannot.
    NoPolicy,
    /// There is no such object.
    NoObject,
    /// The object was deleted, and its parts go with it.
    Deleted,
}

/// Follows the object for as long as it is polled, and tells of each change of its policy once.
pub async fn follow(client: Client, target: Target, mut tell: impl FnMut(Seen)) {
    let kind = ApiResource::erase::<Distribution>(&());
    let api: Api<DynamicObject> = Api::namespaced_with(client, &target.namespace, &kind);
    let only = watcher::Config::default().fields(&format!("metadata.name={}", target.name));
    let mut events = pin!(watch(api, only).default_backoff());
    let mut last = None;
    let mut listed = false;
    let mut complaint = String::new();
    let mut orphaned = false;
    loop {
        let event = events.next().await;
        if let Some(Ok(Event::InitApply(object) | Event::Apply(object))) = &event {
            orphaned = leaves_its_parts(object);
        }
        let seen = match event {
            None => return,
            Some(Ok(Event::Init)) => {
                listed = false;
                continue;
            }
            Some(Ok(Event::InitApply(object) | Event::Apply(object))) => {
                listed = true;
                complaint.clear();
                Looked::at(&object)
            }
            Some(Ok(Event::InitDone)) if listed => continue,
            // Seen to go: one that is merely not there may be a cluster's that is being restored.
            Some(Ok(Event::Delete(_))) if !orphaned => Looked::Deleted,
            Some(Ok(Event::InitDone | Event::Delete(_))) => Looked::NoObject,
            Some(Err(error)) => {
                // The watch tries again by itself, with pauses; saying so once is enough.
                let error = error.to_string();
                if error != complaint {
                    tracing::warn!(%target, error, "the Distribution cannot be watched; trying on");
                    complaint = error;
                }
                continue;
            }
        };
        if last.as_ref() != Some(&seen) {
            tell(seen.judged());
            last = Some(seen);
        }
    }
}

/// What an object says, undecoded, so that equal ones are told from others cheaply and surely.
#[derive(Debug, PartialEq)]
enum Looked {
    Policy(Value),
    NoPolicy,
    NoObject,
    Deleted,
}

/// Deleted with `--cascade=orphan`: what runs goes on.
fn leaves_its_parts(object: &DynamicObject) -> bool {
    let mut finalizers = object.metadata.finalizers.iter().flatten();
    finalizers.any(|finalizer| finalizer == "orphan")
}

impl Looked {
    fn at(object: &DynamicObject) -> Self {
        if object.metadata.deletion_timestamp.is_some() && !leaves_its_parts(object) {
            // In the foreground: its parts go first.
            return Self::Deleted;
        }
        match object.data.pointer("/status/policy") {
            None | Some(Value::Null) => Self::NoPolicy,
            Some(policy) => Self::Policy(policy.clone()),
        }
    }

    fn judged(&self) -> Seen {
        let policy = match self {
            Self::Policy(policy) => policy,
            Self::NoPolicy => return Seen::NoPolicy,
            Self::NoObject => return Seen::NoObject,
            Self::Deleted => return Seen::Deleted,
        };
        let json = policy.to_string().into_bytes();
        match Policy::decode(&json) {
            Ok(policy) => Seen::Policy {
                policy: Box::new(policy),
                json,
            },
            Err(error) => Seen::Refused {
                revision: policy
                    .get("revision")
                    .and_then(Value::as_u64)
                    .unwrap_or_default(),
                why: error.to_string(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use dragonfly_crds::policy::content_hash;
    use serde_json::json;

    use super::*;

    fn object(status: &Value) -> DynamicObject {
        serde_json::from_value(json!({
            "apiVersion": "d7y.io/v1alpha1",
            "kind": "Distribution",
            "metadata": {"name": "d"},
            // Nothing that this release knows.
            "spec": {"profile": "Enormous"},
            "status": status,
        }))
        .unwrap()
    }

    fn sealed(mut policy: Value) -> Value {
        policy["hash"] = content_hash(&policy).into();
        policy
    }

    fn good() -> Value {
        let policy = Policy {
            uid: "u".to_owned(),
            revision: 3,
            ..Policy::default()
        };
        serde_json::to_value(policy).unwrap()
    }

    #[test]
    fn a_policy_keeps_what_only_a_newer_release_knows() {
        let mut newer = good();
        newer["node"]["teleport"] = json!({"speed": 9});
        let seen = Looked::at(&object(&json!({"policy": sealed(newer.clone())}))).judged();
        let Seen::Policy { policy, json } = seen else {
            panic!("{seen:?}")
        };
        assert_eq!(policy.revision, 3);
        let kept: Value = serde_json::from_slice(&json).unwrap();
        assert_eq!(kept["node"]["teleport"]["speed"], 9);
        // And whoever gets these bytes can check them.
        assert!(Policy::decode(&json).unwrap().same_as(&policy));
    }

    #[test]
    fn a_policy_that_cannot_be_run_is_refused_with_its_revision_and_the_reason() {
        let mut unknown = good();
        unknown["requiredFeatures"] = 1.into();
        let mut zero = good();
        zero["scheduler"]["degree"] = 0.into();
        for (what, policy, says) in [
            ("a feature", sealed(unknown), "upgrade"),
            ("a number", sealed(zero), "scheduler.degree"),
            ("a hash", good(), "hash"),
            ("a list", json!([1, 2]), "policy"),
        ] {
            let seen = Looked::at(&object(&json!({"policy": policy}))).judged();
            let Seen::Refused { revision, why } = seen else {
                panic!("{what}: {seen:?}")
            };
            assert!(why.contains(says), "{what}: {why}");
            assert_eq!(revision, if what == "a list" { 0 } else { 3 }, "{what}");
        }
    }

    #[test]
    fn an_object_that_goes_with_its_parts_is_told_from_one_that_leaves_them() {
        let mut going = object(&json!({"policy": good()}));
        going.metadata.deletion_timestamp =
            Some(serde_json::from_value(json!("2026-11-26T10:00:00Z")).unwrap());
        assert_eq!(Looked::at(&going).judged(), Seen::Deleted);
        going.metadata.finalizers = Some(vec!["orphan".to_owned()]);
        assert_ne!(Looked::at(&going).judged(), Seen::Deleted);
    }

    #[test]
    fn an_object_without_a_policy_is_no_error() {
        for status in [
            json!(null),
            json!({}),
            json!({"policy": null}),
            json!({"conditions": []}),
        ] {
            assert_eq!(Looked::at(&object(&status)).judged(), Seen::NoPolicy);
        }
    }
}
