//! Schedulers and seeds outside of the cluster: processes of this machine, which nodes reach at its end of
//! their network, started by the very lines of docs/kubernetes.md.

use std::path::Path;
use std::time::Duration;

use dragonfly_cluster::downloads::Client as Downloader;
use dragonfly_cluster::operator::read;
use dragonfly_cluster::place::{READY, condition};
use dragonfly_cluster::wait::{wait_for, wait_until};
use dragonfly_cluster::{Cluster, ClusterOptions, Node, Place, mesh, pod};
use dragonfly_crds::Distribution;
use dragonfly_e2e::binary;
use dragonfly_identity::Authority;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams};
use rustix::process::Signal;
use serde_json::json;

use super::elsewhere::{Content, MIB, Machine, documented};
use super::life::restarts;
use super::nodes::{every_node_gets, with_operator};

const MESH: &str = "app.kubernetes.io/instance=default";

/// A sample of `config/samples/external` with more in its spec.
fn sampled(name: &str, more: &str) -> String {
    let text = read(&format!("config/samples/external/{name}.yaml")).unwrap();
    text.replace("spec:\n", &format!("spec:\n{more}"))
}

/// One test, for meshes on the same nodes exclude each other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_join_schedulers_and_seeds_that_run_elsewhere() {
    let (cluster, place) = with_operator(&ClusterOptions::nodes(2)).await;
    schedulers_that_run_elsewhere_have_peers_and_seeds_here(&cluster, &place).await;
    seeds_that_run_elsewhere_serve_a_mesh_of_here(&cluster, &place).await;
    cluster.stop().await.unwrap();
}

async fn schedulers_that_run_elsewhere_have_peers_and_seeds_here(cluster: &Cluster, place: &Place) {
    let machine = Machine::new(cluster, place);
    let manifests = machine.dir.path().join("mesh");
    std::fs::create_dir(&manifests).unwrap();
    // Only seeds read origins; little of a disk that may be rather full.
    let policy = "
apiVersion: d7y.io/v1alpha1
kind: Distribution
metadata: {name: elsewhere, namespace: default}
spec: {profile: Light, backToSource: Never, storage: {quota: 1Gi, reserveFreePercent: 0}}
";
    std::fs::write(manifests.join("distribution.yaml"), policy).unwrap();
    let line = documented("dragonfly scheduler");
    let scheduler = machine.start("scheduler", &line, "scheduler is up").await;
    let line = documented("dragonfly seed --mesh");
    let up = "session with the scheduler is up";
    let seed = machine.start("seed", &line, up).await;
    let content = Content::served(cluster).await;

    machine.run(&documented("kubectl create secret"));
    let at = |text: &str| text.replace("192.0.2.10", &cluster.info().outside);
    let good = at(&sampled("schedulers", ""));
    place.apply(&good).await;
    let found = place.ready("default").await;
    let status = found.status.as_ref().unwrap();
    let parts = status.components.unwrap();
    assert_eq!(
        (
            parts.schedulers.desired,
            parts.seeds.desired,
            parts.peers.ready
        ),
        (0, 0, 2)
    );
    // Their schedulers say what is done, and hear what it comes to.
    assert!(status.policy.is_none() && status.rollout.is_none());
    let made = pod::with_labels(&place.client, &place.namespace, MESH).await;
    assert_eq!(made.unwrap().len(), 2, "peers alone");

    let sent = every_node_gets(cluster, place).await;
    assert_eq!(sent, mesh::CONTENT.1, "each byte once");

    // Another mesh's token: one node tries it, the others go on as they were.
    a_wrong_token_costs_one_node_and_is_said(cluster, place, &content, &good).await;
    place.apply(&good).await;
    place.ready("default").await;
    content.is_had(cluster, "token-is-back").await;

    // Seeds of this cluster are that mesh's as well.
    drop(seed);
    let inside = |text: &str| text.replace("location: External", "location: Internal");
    place.apply(&inside(&good)).await;
    let found = place.ready("default").await;
    assert_eq!(found.status.unwrap().components.unwrap().seeds.ready, 1);
    content.is_had(cluster, "by-a-seed-of-here").await;

    // The scheduler moves, and is found where it is without a restart.
    let before = restarts(place).await;
    place.apply(&inside(&good).replace(":8002", ":8012")).await;
    drop(scheduler);
    let line = documented("dragonfly scheduler").replace(":8002", ":8012");
    let _scheduler = machine.start("moved", &line, "scheduler is up").await;
    bootstrap_says(place, ":8012").await;
    for (name, _) in &before {
        said(place, name, &[":8012", "session with the scheduler is up"]).await;
    }
    place.ready("default").await;
    content.is_had(cluster, "after-the-move").await;
    assert_eq!(restarts(place).await, before);

    // Nobody tells nodes that this Distribution is gone.
    gone(place).await;
    for node in cluster.nodes() {
        let left = node.run(&["ls", "-A", "/run/dragonfly"]).await.unwrap();
        assert_eq!(left, "", "a socket that nobody serves");
        let left = node.run(&["ls", "-A", "/var/lib/dragonfly/peer"]).await;
        assert!(left.unwrap().contains("store"), "docs say that it stays");
        let clean = "rm -rf /var/lib/dragonfly/peer/*";
        node.run(&["sh", "-c", clean]).await.unwrap();
    }
}

async fn a_wrong_token_costs_one_node_and_is_said(
    cluster: &Cluster,
    place: &Place,
    content: &Content,
    good: &str,
) {
    let dir = tempfile::tempdir().unwrap();
    let other = Authority::load_or_create(dir.path(), "elsewhere").unwrap();
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "of-another"},
        "stringData": {"join-token": other.token().reveal()},
    });
    place.apply(&secret.to_string()).await;
    let wrong = good.replace("      name: elsewhere", "      name: of-another");
    assert_ne!(wrong, good);
    place.apply(&wrong).await;
    // As `kubectl describe pod` shows it.
    let node = wait_until("a peer that says why it ends", READY, || async {
        let mut all = String::new();
        for peer in pod::with_labels(&place.client, &place.namespace, MESH).await? {
            let statuses = peer.status.and_then(|s| s.container_statuses);
            for status in statuses.into_iter().flatten() {
                let ends = [status.state, status.last_state].into_iter().flatten();
                let words = ends.filter_map(|state| state.terminated?.message);
                all.extend(words);
            }
            if all.contains("another mesh's than the join token") {
                return Ok(Ok(peer.spec.and_then(|s| s.node_name).unwrap()));
            }
        }
        Ok(Err(all))
    });
    let node = node.await.unwrap();
    let meshes = place.api();
    let told = wait_for(&meshes, "default", READY, |mesh: Option<&Distribution>| {
        let ready = mesh.and_then(|mesh| condition(mesh, "Ready"));
        let ready = ready.ok_or("nothing is said")?;
        if ready.status == "False" && ready.message.contains("1 of 2 peers are ready") {
            Ok(ready.message.clone())
        } else {
            Err(format!("{ready:?}"))
        }
    });
    let told = told.await.unwrap();
    eprintln!("of a wrong token it is said: {told}");
    let other = cluster.nodes().find(|n| n.name() != node).unwrap();
    let client = Downloader {
        node: other,
        program: binary::dragonfly().unwrap(),
        name: "beside-a-wrong-token".to_owned(),
        rate: "1G",
    };
    content.all_well(&[client.get(&content.url, 0).await.unwrap()]);
}

/// Until the bootstrap says this, and the kubelets were told to look: else they do within about a minute.
async fn bootstrap_says(place: &Place, words: &str) {
    place
        .until("default-bootstrap", |map: &ConfigMap| {
            let text = map.data.as_ref().map(|data| &data["bootstrap.json"]);
            let text = text.ok_or("is empty")?;
            if text.contains(words) {
                Ok(())
            } else {
                Err(text.clone())
            }
        })
        .await;
    pod::look_again(&place.client, &place.namespace, MESH)
        .await
        .unwrap();
}

/// Until a line of a pod's log has all of these.
async fn said(place: &Place, name: &str, words: &[&str]) {
    wait_until(name, READY, || async {
        let log = pod::log(&place.client, &place.namespace, name).await?;
        let mut lines = log.lines();
        let found = lines.any(|line| words.iter().all(|word| line.contains(word)));
        Ok(if found { Ok(()) } else { Err(log) })
    })
    .await
    .unwrap();
}

/// Deletes the mesh and waits until its pods are gone.
async fn gone(place: &Place) {
    let meshes: Api<Distribution> = place.api();
    let now = DeleteParams::default();
    meshes.delete("default", &now).await.unwrap();
    wait_until("the mesh's pods to be gone", READY, || async {
        let left = pod::with_labels(&place.client, &place.namespace, MESH).await?;
        let names: Vec<_> = left.iter().map(ResourceExt::name_any).collect();
        Ok(if names.is_empty() {
            Ok(())
        } else {
            Err(names.join(", "))
        })
    })
    .await
    .unwrap();
}

async fn seeds_that_run_elsewhere_serve_a_mesh_of_here(cluster: &Cluster, place: &Place) {
    let more =
        "  profile: Light\n  backToSource: Never\n  storage: {quota: 1Gi, reserveFreePercent: 0}\n";
    place.apply(&sampled("seeds", more)).await;
    place.ready("default").await;
    let machine = Machine::new(cluster, place);
    for beginning in ["kubectl get configmap", "(umask 077"] {
        machine.run(&documented(beginning));
    }
    let line = documented("dragonfly seed --bootstrap");
    let up = "session with the scheduler is up";
    let seed = machine.start("seed", &line, up).await;
    let meshes = place.api();
    let joined = wait_for(&meshes, "default", READY, |mesh: Option<&Distribution>| {
        let status = mesh.and_then(|mesh| mesh.status.as_ref());
        let rollout = status.and_then(|status| status.rollout.clone());
        let rollout = rollout.ok_or("no rollout")?;
        if (rollout.seeds, rollout.peers, rollout.acknowledged) == (1, 2, 3) {
            Ok(())
        } else {
            Err(format!("{rollout:?}"))
        }
    });
    joined.await.unwrap();
    let sent = every_node_gets(cluster, place).await;
    assert_eq!(sent, mesh::CONTENT.1, "each byte once");

    let content = Content::served(cluster).await;
    credentials_that_clients_show_are_opened_by_it(cluster, &content).await;
    what_was_got_by_credentials_is_purged_by_them(cluster, place).await;

    // kill -9 in the middle, and another one comes.
    let content = Content::served(cluster).await;
    content.origin.set_rate(8 * MIB);
    let second = Machine::new(cluster, place);
    for name in ["bootstrap.json", "join-token"] {
        let (from, to) = (machine.dir.path().join(name), second.dir.path().join(name));
        std::fs::copy(from, to).unwrap();
    }
    let replaced = async {
        wait_until("a part to be sent", READY, || async {
            let sent = content.origin.sent();
            Ok(if sent > 8 * MIB {
                Ok(())
            } else {
                Err(sent.to_string())
            })
        })
        .await
        .unwrap();
        drop(seed);
        let killed = (content.origin.sent(), content.origin.requests());
        (second.start("seed", &line, up).await, killed)
    };
    let (ended, (seed, killed)) =
        futures::join!(content.get(cluster, "a-seed-is-killed"), replaced);
    content.all_well(&ended);
    let (sent, requests) = (content.origin.sent(), content.origin.requests());
    eprintln!(
        "a seed was killed after {} of {} bytes; another read {} in {} requests; downloads took {:?}",
        killed.0,
        content.len,
        sent - killed.0,
        requests - killed.1,
        ended.iter().map(|e| e.took).collect::<Vec<_>>()
    );
    assert!(killed.0 < content.len / 2, "killed in the middle");
    assert!(requests > killed.1, "the other one read the rest");
    assert!(sent < 2 * content.len, "what nodes held was read again");

    // Of a mesh that is deleted it keeps nothing.
    gone(place).await;
    let mut seed = seed;
    seed.says("the mesh was deleted").await;
    seed.process.signal(Signal::TERM).unwrap();
    let ended = seed.process.wait(Duration::from_secs(30)).await.unwrap();
    assert!(ended.success());
    let left: Vec<_> = std::fs::read_dir(second.state("seed"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

async fn credentials_that_clients_show_are_opened_by_it(cluster: &Cluster, content: &Content) {
    content.origin.set_wanted("Bearer of-mine");
    let program = binary::dragonfly().unwrap().display().to_string();
    let get = async |node: Node<'_>, header: &str| {
        let file = node.path(Path::new("/run/header"));
        std::fs::write(file, format!("{header}\n")).unwrap();
        let script = format!(
            "{program} get -q --timeout 100s --socket /run/dragonfly/node.sock --header-file \
             /run/header -O /run/private {}; echo $?; sha256sum </run/private; rm -f /run/private",
            content.url
        );
        node.run(&["sh", "-c", &script]).await.unwrap()
    };
    let digest = content.digest.trim_start_matches("sha256:");
    for node in cluster.nodes() {
        let got = get(node, "Authorization: Bearer of-mine").await;
        assert!(got.starts_with("0\n") && got.contains(digest), "{got}");
    }
    assert_eq!(content.origin.sent(), content.len, "each byte once");
    // Nobody else's, and nobody's.
    for other in ["Authorization: Bearer of-others", "Accept: text/plain"] {
        let got = get(cluster.node(0).unwrap(), other).await;
        assert!(got.starts_with("3\n") && !got.contains(digest), "{got}");
    }
}

/// By the file that clients showed them with, on every node: the seed elsewhere too.
async fn what_was_got_by_credentials_is_purged_by_them(cluster: &Cluster, place: &Place) {
    let file = tempfile::NamedTempFile::new().unwrap();
    let purged = async |header: &str| {
        std::fs::write(file.path(), header).unwrap();
        let path = file.path().display().to_string();
        let line = ["purge", "--credentials", &path];
        let (said, err, _) = super::preheat::plugin(cluster, &place.namespace, &line);
        assert!(said.contains("on 3 of 3 nodes"), "{said}{err}");
        said
    };
    let others = purged("Authorization: Bearer of-others").await;
    assert!(others.contains(": 0 contents"), "{others}");
    // Nodes say for a while that somebody uses what was just got.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mine = purged("Authorization: Bearer of-mine\n").await;
    assert!(mine.contains(": 3 contents"), "{mine}");
}
