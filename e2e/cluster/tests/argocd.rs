//! ArgoCD's health checks and actions over statuses of every state. What the operator itself writes is
//! judged by the same Lua wherever tests wait for a state (`Place`).
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use dragonfly_cluster::argocd::{customizations, health_of};
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
struct Actions {
    #[serde(rename = "discovery.lua")]
    discovery: String,
    definitions: Vec<Action>,
}

#[derive(Deserialize)]
struct Action {
    name: String,
    #[serde(rename = "action.lua")]
    lua: String,
}

fn run(script: &str, object: &Value, show: &str) -> String {
    dragonfly_cluster::argocd::run(script, object, show).unwrap()
}

fn condition(type_: &str, status: &str, reason: &str, message: &str) -> Value {
    json!({
        "type": type_, "status": status, "reason": reason, "message": message,
        "lastTransitionTime": "2026-11-26T10:00:00Z", "observedGeneration": 3,
    })
}

/// An object of generation 3 whose status is about `observed`.
fn object(observed: i64, conditions: &[Value]) -> Value {
    json!({
        "apiVersion": "d7y.io/v1alpha1",
        "kind": "Distribution",
        "metadata": {"name": "mesh", "generation": 3},
        "spec": {"profile": "Light"},
        "status": {"observedGeneration": observed, "conditions": conditions},
    })
}

#[test]
fn health_is_what_the_conditions_say() {
    let ready = |status| condition("Ready", status, "R", "ready says");
    let changing = |status| condition("Reconciling", status, "C", "changing says");
    let stalled = |status| condition("Stalled", status, "S", "stalled says");
    let mirror = |status| condition("MirrorUsable", status, "M", "mirror says");
    let rows: [(&str, Value, &str, &str); 13] = [
        (
            "just made",
            json!({"metadata": {"name": "mesh", "generation": 1}, "spec": {}}),
            "Progressing",
            "has not looked",
        ),
        (
            "reports before the operator",
            json!({"metadata": {"generation": 1}, "status": {"traffic": {"originBytes": 1}}}),
            "Progressing",
            "has not looked",
        ),
        (
            "first visit",
            object(
                3,
                &[ready("Unknown"), changing("Unknown"), stalled("Unknown")],
            ),
            "Progressing",
            "ready says",
        ),
        (
            "an older spec is ready",
            object(2, &[ready("True"), changing("False"), stalled("False")]),
            "Progressing",
            "this spec",
        ),
        (
            "being changed",
            object(3, &[ready("False"), changing("True"), stalled("False")]),
            "Progressing",
            "changing says",
        ),
        (
            "ready",
            object(3, &[ready("True"), changing("False"), stalled("False")]),
            "Healthy",
            "ready says",
        ),
        (
            "ready, and runtimes can use the mirror",
            object(3, &[ready("True"), mirror("True")]),
            "Healthy",
            "ready says",
        ),
        (
            "ready, and a machine's settings are in the mirror's way",
            object(3, &[mirror("False"), ready("True")]),
            "Healthy",
            "ready says; mirror says",
        ),
        (
            "stalled",
            object(3, &[ready("False"), changing("False"), stalled("True")]),
            "Degraded",
            "stalled says",
        ),
        (
            "stalled, with the last good policy in force",
            object(3, &[stalled("True"), ready("True")]),
            "Degraded",
            "stalled says",
        ),
        (
            "failed, tried again",
            object(3, &[ready("False"), changing("False"), stalled("False")]),
            "Progressing",
            "ready says",
        ),
        (
            "suspended",
            object(
                3,
                &[
                    condition("Ready", "False", "Suspended", "held up"),
                    changing("False"),
                    stalled("False"),
                ],
            ),
            "Suspended",
            "held up",
        ),
        (
            "without a message",
            object(3, &[condition("Ready", "True", "Ready", "")]),
            "Healthy",
            "Ready",
        ),
    ];
    for kind in ["Distribution", "SchedulerPool", "Preheat"] {
        for (what, object, status, message) in &rows {
            let (found, text) = health_of(kind, object).unwrap();
            assert_eq!(found, *status, "{kind}, {what}: {text}");
            assert!(text.contains(message), "{kind}, {what}: {text}");
        }
    }
}

#[test]
fn actions_change_what_they_say_and_are_offered_when_they_would() {
    let customizations = customizations().unwrap();
    let of = |kind: &str| -> Actions {
        let text = &customizations[&format!("resource.customizations.actions.d7y.io_{kind}")];
        serde_saphyr::from_str(text).unwrap()
    };
    let with = |spec: Value| json!({"metadata": {"name": "x"}, "spec": spec});
    let distribution = [
        (json!({}), "forbid-back-to-source", "backToSource", "Never"),
        (
            json!({"backToSource": "Allowed"}),
            "forbid-back-to-source",
            "backToSource",
            "Never",
        ),
        (
            json!({"backToSource": "Never"}),
            "allow-back-to-source",
            "backToSource",
            "Allowed",
        ),
    ];
    let pool = [
        (json!({}), "add-scheduler", "replicas", "2"),
        (
            json!({"replicas": 64}),
            "remove-scheduler",
            "replicas",
            "63",
        ),
        (json!({"replicas": 2}), "remove-scheduler", "replicas", "1"),
    ];
    let preheat = [
        (json!({}), "suspend", "activity", "Suspended"),
        (
            json!({"activity": "Active"}),
            "suspend",
            "activity",
            "Suspended",
        ),
        (
            json!({"activity": "Suspended"}),
            "resume",
            "activity",
            "Active",
        ),
    ];
    for (kind, rows) in [
        ("Distribution", &distribution),
        ("SchedulerPool", &pool),
        ("Preheat", &preheat),
    ] {
        let actions = of(kind);
        for (spec, name, field, after) in rows {
            let object = with(spec.clone());
            let offered = format!("print(result[{}].disabled)", Value::from(*name));
            let disabled = run(&actions.discovery, &object, &offered);
            assert_eq!(disabled, "false", "{kind} {spec}: {name}");
            let action = actions
                .definitions
                .iter()
                .find(|a| a.name == *name)
                .unwrap();
            let changed = run(&action.lua, &object, &format!("print(result.spec.{field})"));
            assert_eq!(changed, *after, "{kind} {spec}: {name}");
        }
        // Each that is offered exists.
        let names = "for name in pairs(result) do print(name) end";
        let offered = run(&actions.discovery, &with(json!({})), names);
        let mut offered: Vec<_> = offered.lines().map(str::to_owned).collect();
        let mut defined: Vec<_> = actions.definitions.iter().map(|a| a.name.clone()).collect();
        offered.sort();
        defined.sort();
        assert_eq!(offered, defined, "{kind}");
    }
    // Neither goes beyond what the field takes.
    let full = of("SchedulerPool");
    for (replicas, name) in [(64, "add-scheduler"), (1, "remove-scheduler")] {
        let object = with(json!({"replicas": replicas}));
        let show = format!("print(result[{}].disabled)", Value::from(name));
        assert_eq!(run(&full.discovery, &object, &show), "true", "{name}");
    }
}
