//! Preheats on real nodes, and the plugin beside them.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use dragonfly_cluster::wait::{ready_pod, wait_for, wait_until};
use dragonfly_cluster::{Cluster, Failed, Place, argocd, mesh, pod};
use dragonfly_crds::preheat::PreheatStatus;
use dragonfly_crds::{Distribution, Preheat};
use dragonfly_e2e::origin::Origin;
use dragonfly_e2e::sample;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams};
use serde_json::{Value, json};

use dragonfly_cluster::place::READY;

use super::life::revision;
use super::nodes::origin_sent;
use crate::installed::ways_in::kubectl;

/// The plugin on a cluster: what it wrote to stdout and stderr, and how it ended.
pub(crate) fn plugin(cluster: &Cluster, namespace: &str, line: &[&str]) -> (String, String, bool) {
    plugin_by(cluster.kubeconfig(), namespace, line)
}

/// The same by whoever that kubeconfig says.
fn plugin_by(kubeconfig: &Path, namespace: &str, line: &[&str]) -> (String, String, bool) {
    let out = Command::new(dragonfly_e2e::binary::plugin().unwrap())
        .arg("--kubeconfig")
        .arg(kubeconfig)
        .args(["-n", namespace])
        .args(line)
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&out.stdout), text(&out.stderr), out.status.success())
}

fn object(name: &str, url: &str, more: &Value) -> String {
    let mut spec = json!({"distributionRef": {"name": "default"}, "files": [{"url": url}]});
    for (field, value) in more.as_object().unwrap() {
        spec[field] = value.clone();
    }
    json!({
        "apiVersion": "d7y.io/v1alpha1", "kind": "Preheat", "metadata": {"name": name},
        "spec": spec,
    })
    .to_string()
}

/// Until its Ready condition says this reason.
async fn until(place: &Place, name: &str, reason: &str) -> PreheatStatus {
    let api: Api<Preheat> = place.api();
    let waited = wait_for(&api, name, READY, |preheat| {
        let preheat = preheat.ok_or("not there")?;
        let status = preheat.status.clone().unwrap_or_default();
        let ready = status.conditions.iter().find(|c| c.type_ == "Ready");
        let ready = ready.ok_or("nothing is said yet")?;
        if status.observed_generation == preheat.metadata.generation && ready.reason == reason {
            Ok((preheat.clone(), status))
        } else {
            Err(format!("{}: {}", ready.reason, ready.message))
        }
    });
    let (preheat, status) = waited.await.unwrap();
    let health = match reason {
        "Succeeded" => "Healthy",
        "Suspended" => "Suspended",
        // A run that ended so.
        _ => "Degraded",
    };
    assert_eq!(argocd::health(&preheat).unwrap().0, health, "{reason}");
    status
}

/// Kills the pods of a part: their names.
async fn kill(place: &Place, part: &str) -> Vec<String> {
    let label = format!("app.kubernetes.io/component={part}");
    let found = pod::with_labels(&place.client, &place.namespace, &label).await;
    let pods: Api<Pod> = place.api();
    let names: Vec<_> = found.unwrap().iter().map(ResourceExt::name_any).collect();
    for name in &names {
        let now = DeleteParams::default().grace_period(0);
        pods.delete(name, &now).await.unwrap();
    }
    names
}

/// With a mesh `default` of two peers and a seed, and an origin that nobody asked yet.
pub(crate) async fn content_is_there_before_anybody_asks(
    cluster: &Cluster,
    place: &Place,
    url: &str,
) {
    let (client, len) = (&place.client, mesh::CONTENT.1);
    let bytes = i64::try_from(len).unwrap();
    // To all seeds.
    place.apply(&object("seeds", url, &json!({}))).await;
    let status = until(place, "seeds", "Succeeded").await;
    let progress = status.progress.unwrap();
    assert_eq!(progress.targets.succeeded, 1);
    assert_eq!(
        (progress.files[0].length, progress.files[0].bytes),
        (Some(bytes), bytes)
    );
    assert_eq!(status.history.len(), 1);
    // Looking at it first takes a byte, where that is not answered by who gets it already.
    let once = len..=len + 1;
    assert!(once.contains(&origin_sent(place).await));

    // To one of the two peers: from the seed, and a dead scheduler half way loses nothing.
    let one = json!({"targets": {"role": "Peers", "count": 1}});
    place.apply(&object("one", url, &one)).await;
    kill(place, "scheduler").await;
    let status = until(place, "one", "Succeeded").await;
    assert_eq!(status.runs, 1, "the same run");
    assert_eq!(status.progress.unwrap().targets.succeeded, 1);

    // To those with a label: none has it, then one has.
    let labelled = json!({
        "targets": {"role": "Peers", "nodeSelector": {"preheat": "yes"}},
        "when": {"type": "Continuous"},
    });
    place.apply(&object("labelled", url, &labelled)).await;
    let node = cluster.nodes().next().unwrap().name().to_owned();
    let nodes: Api<k8s_openapi::api::core::v1::Node> = Api::all(client.clone());
    let label = json!({"metadata": {"labels": {"preheat": "yes"}}});
    nodes
        .patch(&node, &Default::default(), &kube::api::Patch::Merge(&label))
        .await
        .unwrap();
    let api: Api<Preheat> = place.api();
    let joined = wait_for(&api, "labelled", READY, |preheat| {
        let status = preheat.and_then(|p| p.status.clone()).ok_or("no status")?;
        let targets = status.progress.unwrap_or_default().targets;
        if targets.succeeded == 1 && targets.desired == 1 {
            Ok(())
        } else {
            Err(format!("{targets:?}"))
        }
    });
    joined.await.unwrap();
    let sent = origin_sent(place).await;
    assert!(once.contains(&sent), "each byte once, still: {sent}");

    // What is not there is said, by node and reason.
    let missing = url.replace(mesh::CONTENT.0, "missing");
    let retry = json!({"retry": {"limit": 1, "backoff": "1s"}});
    place.apply(&object("missing", &missing, &retry)).await;
    let status = until(place, "missing", "NodesFailed").await;
    let failed = &status.progress.unwrap().failed_nodes[0];
    assert_eq!(failed.attempts, 2);
    assert!(failed.message.contains("404"), "{}", failed.message);

    suspended_and_deleted(place, url).await;
    said_by_the_plugin(cluster, place, url).await;
}

/// `parallelism` and `retry` hold for the run under way, which goes on, also when the only seed dies. The
/// origin is outside, and slow.
pub(crate) async fn a_run_goes_on_when_its_pace_is_changed_and_when_its_seed_dies(
    cluster: &Cluster,
    place: &Place,
) {
    let outside = format!("{}:0", cluster.info().outside);
    let origin = Origin::start_on(&outside, 1 << 20).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let content = sample::random(&dir.path().join("slow"), 48 << 20, 1).unwrap();
    let url = origin.serve("slow", &content.path).unwrap();
    let at_once = |nodes: i32| {
        let spec = json!({"targets": {"role": "Peers"}, "parallelism": nodes});
        object("paced", &url, &spec)
    };
    for nodes in [1, 2] {
        place.apply(&at_once(nodes)).await;
        place
            .until("paced", |preheat: &Preheat| {
                let progress = preheat.status.as_ref().and_then(|s| s.progress.as_ref());
                let progress = progress.ok_or("no progress")?;
                let targets = &progress.targets;
                if (progress.run, targets.desired, targets.active) == (1, 2, nodes) {
                    Ok(())
                } else {
                    Err(format!("{nodes} wanted: {progress:?}"))
                }
            })
            .await;
    }
    origin.set_rate(4 << 20);
    wait_until("a quarter", READY, || async {
        let sent = origin.sent();
        let quarter = sent > content.len / 4;
        Ok::<_, Failed>(if quarter {
            Ok(())
        } else {
            Err(format!("{sent} bytes"))
        })
    })
    .await
    .unwrap();
    // Slow until another seed is there: the dead one's process ends when its kubelet gets to it, and what it
    // still reads meanwhile is nobody's.
    origin.set_rate(1 << 20);
    let before = origin.sent();
    assert!(before < content.len, "it is under way");
    let dead = kill(place, "seed").await;
    wait_until("another seed", READY, || async {
        let label = "app.kubernetes.io/component=seed";
        let mut pods = pod::with_labels(&place.client, &place.namespace, label).await?;
        pods.retain(|pod| !dead.contains(&pod.name_any()));
        Ok(ready_pod(pods.first()))
    })
    .await
    .unwrap();
    let meanwhile = origin.sent();
    assert!(meanwhile < content.len, "it goes on with another");
    origin.set_rate(0);
    let status = until(place, "paced", "Succeeded").await;
    let targets = status.progress.unwrap().targets;
    assert_eq!((status.runs, targets.succeeded), (1, 2));
    let again = origin.sent() - content.len;
    eprintln!(
        "a seed died after {before} bytes of {}: another was ready after {meanwhile}, {again} were sent again",
        content.len
    );
    assert!(again < content.len / 8, "{again} bytes again");

    let tries = |limit: i32| {
        let retry = json!({"limit": limit, "backoff": "1s"});
        let spec = json!({"targets": {"role": "Peers"}, "retry": retry});
        object("tried", &origin.url("missing"), &spec)
    };
    place.apply(&tries(100)).await;
    let before = origin.requests();
    wait_until("the third try", READY, || async {
        let more = origin.requests() - before;
        Ok::<_, Failed>(if more > 2 {
            Ok(())
        } else {
            Err(format!("{more} requests"))
        })
    })
    .await
    .unwrap();
    place.apply(&tries(1)).await;
    let status = until(place, "tried", "NodesFailed").await;
    let failed = status.progress.unwrap().failed_nodes;
    assert_eq!((status.runs, failed.len()), (1, 2), "{failed:?}");
    assert!(failed.iter().any(|node| node.attempts > 1), "{failed:?}");
    for name in ["paced", "tried"] {
        let api: Api<Preheat> = place.api();
        api.delete(name, &DeleteParams::default()).await.unwrap();
    }
}

async fn suspended_and_deleted(place: &Place, url: &str) {
    let api: Api<Preheat> = place.api();
    let suspended = json!({"activity": "Suspended"});
    place.apply(&object("later", url, &suspended)).await;
    let status = until(place, "later", "Suspended").await;
    assert_eq!((status.runs, status.plan), (0, None));
    let active = json!({"activity": "Active"});
    place.apply(&object("later", url, &active)).await;
    until(place, "later", "Succeeded").await;
    api.delete("later", &DeleteParams::default()).await.unwrap();
    place.gone::<Preheat>("later").await;
}

/// A kubeconfig of somebody who may do what the roles in docs/kubectl.md say and nothing else.
async fn somebody(cluster: &Cluster, namespace: &str) -> tempfile::NamedTempFile {
    const USER: &str = "somebody";
    let said = include_str!("../../../../../docs/kubectl.md").replace("\\\n", " ");
    let roles = said
        .lines()
        .filter_map(|line| line.strip_prefix("    kubectl create role "));
    let mut given = 0;
    for line in roles {
        let line = line.replace("NAMESPACE", namespace);
        let words: Vec<&str> = line.split_whitespace().collect();
        let role = [&["create", "role"], &words[..]].concat();
        kubectl(cluster, &role).await.unwrap();
        let (role, user) = (format!("--role={}", words[0]), format!("--user={USER}"));
        let bind = [
            "create",
            "rolebinding",
            words[0],
            "-n",
            namespace,
            &role,
            &user,
        ];
        kubectl(cluster, &bind).await.unwrap();
        given += 1;
    }
    assert_eq!(given, 3, "roles in docs/kubectl.md");
    let mut config: Value =
        serde_json::from_slice(&std::fs::read(cluster.kubeconfig()).unwrap()).unwrap();
    config["users"][0]["user"]["as"] = USER.into();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), config.to_string()).unwrap();
    file
}

/// What people see and do with the plugin.
async fn said_by_the_plugin(cluster: &Cluster, place: &Place, url: &str) {
    let somebody = somebody(cluster, &place.namespace).await;
    let by = |kubeconfig: &Path, line: &[&str]| {
        let (out, err, well) = plugin_by(kubeconfig, &place.namespace, line);
        assert!(well, "{line:?}: {out}{err}");
        out
    };
    let run = |line: &[&str]| by(somebody.path(), line);
    let status = run(&["status"]);
    assert!(
        status.contains("1 of 1 seeds, 2 of 2 peers ready"),
        "{status}"
    );
    assert!(status.contains("preheat  one: Succeeded"), "{status}");
    let peers: Value = serde_json::from_str(&run(&["peers", "-o", "json"])).unwrap();
    assert_eq!(peers["items"][0]["nodes"].as_array().unwrap().len(), 3);
    let tasks = run(&["tasks"]);
    assert!(tasks.contains(mesh::CONTENT.0), "{tasks}");
    assert!(run(&["top"]).contains("seed"));
    let node = cluster.nodes().next().unwrap().name().to_owned();
    let policy = run(&["explain-policy", &node]);
    assert!(policy.contains("default of profile Light"), "{policy}");
    let made = run(&["preheat", "create", url, "--peers", "--name", "by-plugin"]);
    assert!(made.contains("preheat.d7y.io/by-plugin"), "{made}");
    until(place, "by-plugin", "Succeeded").await;
    let pinned = run(&["pin", url]);
    assert!(pinned.contains("on 3 of 3 nodes"), "{pinned}");
    let prefix = url.trim_end_matches(mesh::CONTENT.0);
    let unpinned = run(&["unpin", "--prefix", prefix]);
    assert!(unpinned.contains("on 3 of 3 nodes"), "{unpinned}");
    let checked = by(cluster.kubeconfig(), &["check", "--url", url]);
    assert!(checked.contains("[ok]"), "{checked}");
    // Nodes say for a while that somebody uses what was just got.
    let api: Api<Preheat> = place.api();
    for name in ["labelled", "by-plugin"] {
        api.delete(name, &DeleteParams::default()).await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let purged = run(&["purge", url]);
    assert!(purged.contains("3 contents"), "{purged}");
    let dump = by(cluster.kubeconfig(), &["support-dump"]);
    assert!(dump.contains("distribution:"), "{dump}");
    for secret in ["BEGIN PRIVATE KEY", "BEGIN EC PRIVATE KEY", "join-token:"] {
        assert!(!dump.contains(secret), "{secret}");
    }
}

/// A quota that the content does not fit into.
pub(crate) async fn nodes_without_room_are_left_out(cluster: &Cluster, place: &Place, url: &str) {
    let (_, err, well) = plugin(cluster, &place.namespace, &["purge", url]);
    assert!(well, "{err}");
    let mesh = |quota: Option<&str>| {
        let mut spec = json!({
            "profile": "Light", "schedulerPoolRef": {"name": "default"},
            "storage": {"reserveFreePercent": 0},
        });
        if let Some(quota) = quota {
            spec["storage"]["quota"] = quota.into();
        }
        json!({
            "apiVersion": "d7y.io/v1alpha1", "kind": "Distribution",
            "metadata": {"name": "default"}, "spec": spec,
        })
        .to_string()
    };
    let next = revision(&place.get("default").await) + 1;
    place.apply(&mesh(Some("64Mi"))).await;
    let api: Api<Distribution> = place.api();
    let taken = wait_for(&api, "default", READY, |mesh| {
        let rollout = mesh.and_then(|m| m.status.as_ref()?.rollout.clone());
        let rollout = rollout.ok_or("no rollout")?;
        if rollout.revision == next && rollout.acknowledged == 3 {
            Ok(())
        } else {
            Err(format!("{rollout:?}"))
        }
    });
    taken.await.unwrap();
    let peers = json!({"targets": {"role": "Peers"}, "retry": {"limit": 0}});
    place.apply(&object("too-large", url, &peers)).await;
    let status = until(place, "too-large", "NoRoom").await;
    let progress = status.progress.unwrap();
    assert!(
        progress.message.contains("2 skipped: disk"),
        "{}",
        progress.message
    );
    assert_eq!((progress.targets.skipped, progress.files[0].bytes), (2, 0));
    place.apply(&mesh(None)).await;
}
