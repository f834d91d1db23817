//! What somebody who looks into a failed test asks first: pods, events, logs.

use std::fmt::Write;
use std::path::Path;

use k8s_openapi::api::core::v1::{ContainerStatus, Event, Pod, PodStatus};
use kube::api::{Api, ListParams, LogParams};
use kube::{Client, ResourceExt};

/// Lines of each container's log.
const LINES: i64 = 30;

/// All of a namespace, as text. What cannot be had is said in its place.
pub async fn of_namespace(client: &Client, namespace: &str) -> String {
    let mut out = format!("=== namespace {namespace}\n");
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let listed = match pods.list(&ListParams::default()).await {
        Ok(listed) => listed.items,
        Err(e) => {
            let _ = writeln!(out, "pods: {e}");
            vec![]
        }
    };
    for pod in &listed {
        let state = pod.status.as_ref().map(pod_state).unwrap_or_default();
        let node = pod
            .spec
            .as_ref()
            .and_then(|s| s.node_name.as_deref())
            .unwrap_or("no node");
        let _ = writeln!(out, "pod {} on {node}: {state}", pod.name_any());
    }
    events(client, namespace, &mut out).await;
    for pod in &listed {
        for (container, restarted) in containers(pod) {
            log(&pods, pod, &container, false, &mut out).await;
            if restarted {
                log(&pods, pod, &container, true, &mut out).await;
            }
        }
    }
    out
}

/// The last lines of each log in a directory.
pub fn of_daemons(dir: &Path) -> String {
    let listed = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut logs: Vec<_> = listed.map(|e| e.path()).collect();
    logs.sort();
    dragonfly_e2e::process::tail(&logs, 5)
}

async fn events(client: &Client, namespace: &str, out: &mut String) {
    let events: Api<Event> = Api::namespaced(client.clone(), namespace);
    match events.list(&ListParams::default()).await {
        Ok(listed) => {
            for event in listed.items {
                let _ = writeln!(
                    out,
                    "event {} {}/{} x{}: {} {}",
                    event.type_.unwrap_or_default(),
                    event.involved_object.kind.unwrap_or_default(),
                    event.involved_object.name.unwrap_or_default(),
                    event.count.unwrap_or(1),
                    event.reason.unwrap_or_default(),
                    event.message.unwrap_or_default(),
                );
            }
        }
        Err(e) => {
            let _ = writeln!(out, "events: {e}");
        }
    }
}

async fn log(pods: &Api<Pod>, pod: &Pod, container: &str, previous: bool, out: &mut String) {
    let name = pod.name_any();
    let which = if previous {
        " (before its restart)"
    } else {
        ""
    };
    let wanted = LogParams {
        container: Some(container.to_owned()),
        tail_lines: Some(LINES),
        previous,
        ..LogParams::default()
    };
    match pods.logs(&name, &wanted).await {
        Ok(text) => {
            let _ = writeln!(
                out,
                "--- log of {name}/{container}{which}\n{}",
                text.trim_end()
            );
        }
        Err(e) => {
            let _ = writeln!(out, "--- log of {name}/{container}{which}: {e}");
        }
    }
}

fn containers(pod: &Pod) -> Vec<(String, bool)> {
    let Some(spec) = &pod.spec else { return vec![] };
    let status = pod.status.as_ref();
    let statuses = || {
        let init = status
            .and_then(|s| s.init_container_statuses.as_ref())
            .into_iter()
            .flatten();
        init.chain(
            status
                .and_then(|s| s.container_statuses.as_ref())
                .into_iter()
                .flatten(),
        )
    };
    let names = spec
        .init_containers
        .iter()
        .flatten()
        .chain(&spec.containers)
        .map(|c| &c.name);
    names
        .map(|name| {
            let restarted = statuses().any(|s| &s.name == name && s.restart_count > 0);
            (name.clone(), restarted)
        })
        .collect()
}

/// A pod's phase, and what its containers wait for or how they ended.
pub fn pod_state(status: &PodStatus) -> String {
    let mut out = status
        .phase
        .clone()
        .unwrap_or_else(|| "no phase".to_owned());
    let init = status.init_container_statuses.iter().flatten();
    for container in init.chain(status.container_statuses.iter().flatten()) {
        let _ = write!(out, "; {}", container_state(container));
    }
    for condition in status
        .conditions
        .iter()
        .flatten()
        .filter(|c| c.status != "True")
    {
        let message = condition.message.as_deref().unwrap_or_default();
        let _ = write!(out, "; not {}: {message}", condition.type_);
    }
    out
}

fn container_state(container: &ContainerStatus) -> String {
    let name = &container.name;
    let state = container.state.as_ref();
    if let Some(waiting) = state.and_then(|s| s.waiting.as_ref()) {
        let (reason, message) = (waiting.reason.as_deref(), waiting.message.as_deref());
        return format!(
            "{name} waits: {} {}",
            reason.unwrap_or_default(),
            message.unwrap_or_default()
        );
    }
    if let Some(ended) = state.and_then(|s| s.terminated.as_ref()) {
        let reason = ended.reason.as_deref().unwrap_or_default();
        return format!("{name} ended with {}: {reason}", ended.exit_code);
    }
    let ready = if container.ready {
        "ready"
    } else {
        "runs, not ready"
    };
    format!("{name} {ready}, {} restarts", container.restart_count)
}
