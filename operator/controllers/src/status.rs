//! Status to the API server: only what differs, only our own fields.

use dragonfly_crds::conditions::{READY, RECONCILING, STALLED};
use dragonfly_operator_core::names::MANAGER;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kube::Resource;
use kube::api::{Api, Patch, PatchParams};
use kube::core::{ApiResource, DynamicObject};
use kube::runtime::events::{Event, EventType};
use serde_json::{Value, json};

use crate::Context;
use crate::context::said;

/// A condition by its type.
pub(crate) fn condition<'a>(all: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    all.iter().find(|condition| condition.type_ == type_)
}

/// Our conditions as they are in an object's status; what cannot be read is as if it were not there.
pub(crate) fn conditions(status: &Value) -> Vec<Condition> {
    let listed = status.get("conditions").and_then(Value::as_array);
    let read = |value: &Value| serde_json::from_value::<Condition>(value.clone()).ok();
    let found: Vec<_> = listed.into_iter().flatten().filter_map(read).collect();
    // In our order, and without those of others.
    let ours = [READY, RECONCILING, STALLED].into_iter();
    ours.filter_map(|type_| condition(&found, type_).cloned())
        .collect()
}

/// Now, as precise as conditions are.
pub(crate) fn now() -> Time {
    let second = Timestamp::now().as_second();
    Time(Timestamp::from_second(second).unwrap_or(Timestamp::UNIX_EPOCH))
}

impl Context {
    /// Applies the operator's part of a status where it differs from that part as it was: what is left
    /// out of `wanted` goes away. Whether it was written.
    ///
    /// # Errors
    /// The API server's; that the object is gone is none.
    pub(crate) async fn tell(
        &self,
        resource: &ApiResource,
        (namespace, name): (&str, &str),
        before: &Value,
        wanted: &Value,
    ) -> Result<bool, kube::Error> {
        if before == wanted {
            return Ok(false);
        }
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), namespace, resource);
        let body = json!({
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": {"name": name, "namespace": namespace},
            "status": wanted,
        });
        let params = PatchParams::apply(MANAGER).force();
        match api.patch_status(name, &params, &Patch::Apply(&body)).await {
            Ok(_) => {
                self.metrics.wrote("status", "apply");
                Ok(true)
            }
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Tells people about a change of conditions that they should notice: stalled for a new reason,
    /// ready, no longer ready.
    pub(crate) async fn announce(
        &self,
        resource: &ApiResource,
        object: &DynamicObject,
        before: &[Condition],
        after: &[Condition],
    ) {
        let Some((told, type_)) = news(before, after) else {
            return;
        };
        let event = Event {
            type_,
            reason: told.reason.clone(),
            // Events hold 1024 bytes.
            note: Some(told.message.chars().take(250).collect()),
            action: "Reconcile".to_owned(),
            secondary: None,
        };
        let reference = object.object_ref(resource);
        match self.recorder.publish(&event, &reference).await {
            Ok(()) => self.metrics.wrote("Event", "publish"),
            Err(error) => tracing::warn!(error = said(&error), "an event could not be made"),
        }
    }
}

/// What of a change of conditions is news.
fn news<'a>(before: &[Condition], after: &'a [Condition]) -> Option<(&'a Condition, EventType)> {
    let is = |all: &[Condition], type_| condition(all, type_).is_some_and(|c| c.status == "True");
    let stalled = condition(after, STALLED)?;
    if stalled.status == "True" {
        let told = condition(before, STALLED)
            .is_some_and(|was| was.status == "True" && was.message == stalled.message);
        return (!told).then_some((stalled, EventType::Warning));
    }
    let ready = condition(after, READY)?;
    match (is(before, READY), ready.status == "True") {
        (false, true) => Some((ready, EventType::Normal)),
        (true, false) => Some((ready, EventType::Warning)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dragonfly_crds::placement::Components;
    use dragonfly_operator_core::status::{Outcome, Stalled, of_mesh};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    #[test]
    fn a_mistake_is_news_once_and_again_when_it_is_another() {
        let now = Time(k8s_openapi::jiff::Timestamp::from_second(1).unwrap());
        let said = |outcome: &Outcome, before: &[Condition]| {
            of_mesh(before, Some(1), outcome, &Components::default(), &now)
        };
        let wrong = |message: &str| Outcome::Stalled(Stalled::new("InvalidSpec", message));
        let ready = said(&Outcome::Applied(vec![]), &[]);
        assert_eq!(news(&[], &ready).unwrap().1, EventType::Normal);
        assert!(news(&ready, &ready).is_none());
        let a = said(&wrong("a"), &ready);
        assert_eq!(news(&ready, &a).unwrap().0.message, "a");
        assert!(news(&a, &a).is_none());
        let b = said(&wrong("b"), &a);
        assert_eq!(news(&a, &b).unwrap().0.message, "b");
        let failed = said(&Outcome::Failed("x".to_owned()), &ready);
        assert_eq!(news(&ready, &failed).unwrap().1, EventType::Warning);
    }
}
