//! `support-dump`: what somebody needs who is to help, and no secret.
//!
//! Secrets are not read at all. Of pods, what they run as and how they do; their logs, in which the parts
//! write no credentials. URLs lose user, password and query.

use std::process::ExitCode;

use dragonfly_crds::{Preheat, SchedulerPool};
use dragonfly_operator_core::names::{self, Component};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, PodCondition, Service};
use k8s_openapi::api::events::v1::Event;
use kube::ResourceExt;
use kube::api::{Api, ListParams, LogParams};
use kube::core::NamespaceResourceScope;
use serde_json::{Map, Value, json};

use super::{MeshArgs, full_name};
use crate::Failed;
use crate::cluster::{Cluster, Where};
use crate::output::{Format, say};
use crate::schedulers::Schedulers;

/// Lines of each log.
const LINES: i64 = 500;
/// Pods whose logs are taken, and contents and nodes that are listed.
const MAX_PODS: usize = 50;
const MAX_LISTED: usize = 500;

/// Write everything that somebody needs who is to help, without secrets: YAML on stdout
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    mesh: MeshArgs,
    /// No logs
    #[arg(long)]
    without_logs: bool,
}

/// Runs it.
///
/// # Errors
/// The mesh cannot be found; what else cannot be had is said in its place.
pub async fn run(at: &Where, args: &Args) -> Result<ExitCode, Failed> {
    let cluster = at.connect().await?;
    let mesh = args.mesh.find(&cluster).await?;
    let namespace = mesh.namespace().unwrap_or_default();
    let own = format!("{}={}", names::INSTANCE, mesh.name_any());
    let mut dump = Map::new();
    let mut put = |name: &str, found: Result<Value, Failed>| {
        let value = found.unwrap_or_else(|e| json!({"error": e.to_string()}));
        dump.insert(name.to_owned(), value);
    };
    put("plugin", Ok(json!(env!("CARGO_PKG_VERSION"))));
    let version = cluster.client.apiserver_version().await;
    put(
        "kubernetes",
        version.map(|v| json!(v.git_version)).map_err(Failed::from),
    );
    put("distribution", value(&mesh));
    put(
        "pools",
        objects::<SchedulerPool>(&cluster, &namespace, "").await,
    );
    put(
        "preheats",
        objects::<Preheat>(&cluster, &namespace, "").await,
    );
    put(
        "deployments",
        objects::<Deployment>(&cluster, &namespace, &own).await,
    );
    put(
        "daemonSets",
        objects::<DaemonSet>(&cluster, &namespace, &own).await,
    );
    put(
        "services",
        objects::<Service>(&cluster, &namespace, &own).await,
    );
    put(
        "configMaps",
        objects::<ConfigMap>(&cluster, &namespace, &own).await,
    );
    put("pods", objects::<Pod>(&cluster, &namespace, &own).await);
    put("events", objects::<Event>(&cluster, &namespace, "").await);
    let live = async {
        let mut found = Schedulers::of(&cluster, &mesh).await?.inspect().await?;
        let counted = json!({"nodes": found.nodes.len(), "tasks": found.tasks.len()});
        found.nodes.truncate(MAX_LISTED);
        found.tasks.truncate(MAX_LISTED);
        Ok(json!({"counted": counted, "nodes": found.nodes, "tasks": found.tasks}))
    };
    put("schedulers", live.await);
    if !args.without_logs {
        put("logs", logs(&cluster, &namespace, &own).await);
    }
    let mut dump = Value::Object(dump);
    redact(&mut dump);
    let text = match at.output {
        Format::Json => format!("{dump:#}\n"),
        _ => serde_saphyr::to_string(&dump).map_err(|e| Failed::at("YAML", e))?,
    };
    say(&text)?;
    eprintln!("{}: look it over before you give it away", full_name(&mesh));
    Ok(ExitCode::SUCCESS)
}

fn value(object: &impl serde::Serialize) -> Result<Value, Failed> {
    serde_json::to_value(object).map_err(|e| Failed::at("JSON", e))
}

async fn objects<K>(cluster: &Cluster, namespace: &str, labels: &str) -> Result<Value, Failed>
where
    K: kube::Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + serde::de::DeserializeOwned
        + serde::Serialize
        + std::fmt::Debug,
{
    let api: Api<K> = cluster.within(namespace);
    let found = api
        .list(&ListParams::default().labels(labels).limit(500))
        .await?;
    value(&found.items)
}

async fn logs(cluster: &Cluster, namespace: &str, labels: &str) -> Result<Value, Failed> {
    let pods: Api<Pod> = cluster.within(namespace);
    let mut found = pods
        .list(&ListParams::default().labels(labels))
        .await?
        .items;
    found.sort_by_key(rank);
    let mut all = Map::new();
    for pod in found.iter().take(MAX_PODS) {
        let name = pod.name_any();
        for previous in [false, true] {
            let params = LogParams {
                previous,
                tail_lines: Some(LINES),
                ..LogParams::default()
            };
            match pods.logs(&name, &params).await {
                Ok(log) if previous => {
                    all.insert(format!("{name} before"), json!(log));
                }
                Ok(log) => {
                    all.insert(name.clone(), json!(log));
                }
                // There was none before.
                Err(_) if previous => {}
                Err(error) => {
                    all.insert(name.clone(), json!(format!("no log: {error}")));
                }
            }
        }
    }
    Ok(Value::Object(all))
}

/// Whose log tells most comes first, where there are more pods than logs are taken of: schedulers and seeds,
/// of which there are few; then pods that are not ready.
fn rank(pod: &Pod) -> (u8, bool, String) {
    let part = pod.labels().get(names::COMPONENT).map(String::as_str);
    let of = |component: Component| part == Some(component.as_str());
    let part = match () {
        () if of(Component::Scheduler) => 0,
        () if of(Component::Seed) => 1,
        () => 2,
    };
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_ref());
    let is_ready = |all: &Vec<PodCondition>| {
        let mut all = all.iter();
        all.any(|c| c.type_ == "Ready" && c.status == "True")
    };
    (part, conditions.is_some_and(is_ready), pod.name_any())
}

/// Takes away what no helper needs: managed fields, queries and passwords of URLs, what looks like a
/// credential.
fn redact(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.remove("managedFields");
            for (name, field) in fields.iter_mut() {
                let name = name.to_ascii_lowercase();
                let secret = [
                    "password",
                    "token",
                    "secretkey",
                    "authorization",
                    "last-applied",
                ];
                if field.is_string() && secret.iter().any(|word| name.contains(word)) {
                    *field = json!("(redacted)");
                } else {
                    redact(field);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(redact),
        Value::String(text) if text.contains("://") => *text = redacted(text),
        _ => {}
    }
}

/// A text whose URLs have neither user, password nor query.
fn redacted(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        out.push_str(before);
        // Commas, quotes and brackets may be in passwords and queries: they end no URL.
        let ends = |c: char| c.is_whitespace() || matches!(c, '"' | '<' | '>');
        let mut end = after.find(ends).unwrap_or(after.len());
        let query = after.find(['?', '#']).unwrap_or(end).min(end);
        // What comes next in a list.
        if let Some(next) = after[..query].find("://") {
            end = next;
        }
        let (url, then) = after.split_at(end);
        let authority = url.find(['/', '?', '#']).unwrap_or(url.len());
        let host = url[..authority].rfind('@').map_or(0, |at| at + 1);
        let query = query.min(url.len());
        out.push_str(&url[host..query.max(host)]);
        if query < url.len() {
            out.push_str("?(redacted)");
            let bare = url.trim_end_matches([',', ')', '\'']).len();
            out.push_str(&url[bare.max(query)..]);
        }
        rest = then;
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_lose_what_may_be_a_secret_and_nothing_else() {
        for (text, left) in [
            ("no url", "no url"),
            ("http://o/a", "http://o/a"),
            (
                "get https://user:pw@o:1/a?sig=s then ftp://x#f, end",
                "get https://o:1/a?(redacted) then ftp://x?(redacted), end",
            ),
            ("https://o/a@b", "https://o/a@b"),
            // What RFC 3986 lets stand in them as it is.
            (
                "(https://o/m?parts=a,b&token=hunter2), then",
                "(https://o/m?(redacted)), then",
            ),
            ("http://u:hunter2,hunter2)'@proxy:1/", "http://proxy:1/"),
            (
                "'https://u:hunter2@a/x,https://u:hunter2@b?t=hunter2'",
                "'https://a/x,https://b?(redacted)'",
            ),
            ("a://b://c?d", "a://b://c?(redacted)"),
            ("://", "://"),
        ] {
            assert_eq!(redacted(text), left);
        }
    }

    #[test]
    fn logs_of_schedulers_and_of_what_is_not_ready_come_first() {
        let pod = |name: &str, part: &str, ready: &str| -> Pod {
            serde_json::from_value(json!({
                "metadata": {"name": name, "labels": {names::COMPONENT: part}},
                "status": {"conditions": [{"type": "Ready", "status": ready}]},
            }))
            .unwrap()
        };
        // As the API server lists them.
        let mut all = [
            pod("m-mirror-1", "mirror", "True"),
            pod("m-peer-1", "peer", "True"),
            pod("m-peer-2", "peer", "False"),
            pod("m-scheduler-0", "scheduler", "True"),
            pod("m-seed-1", "seed", "True"),
            pod("m-seed-2", "seed", "False"),
        ];
        all.sort_by_key(rank);
        let names: Vec<_> = all.iter().map(ResourceExt::name_any).collect();
        let wanted = [
            "m-scheduler-0",
            "m-seed-2",
            "m-seed-1",
            "m-peer-2",
            "m-mirror-1",
            "m-peer-1",
        ];
        assert_eq!(names, wanted);
    }

    #[test]
    fn fields_that_sound_like_credentials_are_not_shown() {
        let mut value = json!({
            "joinToken": "x", "a": {"Password": "y", "tokens": 3},
            "metadata": {"managedFields": [1], "name": "n"},
        });
        redact(&mut value);
        let left = json!({
            "joinToken": "(redacted)", "a": {"Password": "(redacted)", "tokens": 3},
            "metadata": {"name": "n"},
        });
        assert_eq!(value, left);
    }
}
