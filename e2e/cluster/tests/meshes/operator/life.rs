//! The operator in a pod, and the mesh that it runs on real nodes.

use std::time::{Duration, Instant};

use dragonfly_cluster::downloads::Client as Downloader;
use dragonfly_cluster::place::{READY, condition};
use dragonfly_cluster::wait::{ready_deployment, wait_for, wait_until};
use dragonfly_cluster::{Cluster, ClusterOptions, Failed, Place, mesh, pod};
use dragonfly_crds::Distribution;
use dragonfly_e2e::manifests;
use dragonfly_e2e::mesh::Options;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, Service};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams};
use serde_json::json;

use super::nodes::{every_node_gets, origin_url, with_operator};

/// One test, for meshes on the same nodes exclude each other: from the first object to the last trace.
#[tokio::test]
async fn two_objects_make_a_mesh_that_serves_every_node_and_goes_without_a_trace() {
    let (cluster, place) = with_operator(&ClusterOptions::nodes(2)).await;
    // As a person does: the samples.
    let samples = tempfile::tempdir().unwrap();
    manifests::write(samples.path(), &Options::default()).unwrap();
    for file in ["schedulerpool.yaml", "distribution.yaml"] {
        let text = std::fs::read_to_string(samples.path().join(file)).unwrap();
        place.apply(&text).await;
    }
    let mesh = place.ready("default").await;
    let parts = mesh.status.as_ref().unwrap().components.unwrap();
    assert_eq!(
        (parts.schedulers.ready, parts.seeds.ready, parts.peers.ready),
        (1, 1, 2)
    );

    let url = origin_url(&place).await;
    super::preheat::content_is_there_before_anybody_asks(&cluster, &place, &url).await;
    super::preheat::a_run_goes_on_when_its_pace_is_changed_and_when_its_seed_dies(&cluster, &place)
        .await;
    let sent = every_node_gets(&cluster, &place).await;
    // What was preheated was purged.
    assert_eq!(sent, mesh::CONTENT.1, "each byte once");

    super::preheat::nodes_without_room_are_left_out(&cluster, &place, &url).await;
    policy_reaches_peers(&place).await;
    super::writes::writes_are_few(&cluster, &place, &url).await;
    a_scheduler_that_moves_is_found_by_what_the_kubelet_mounts(&place).await;
    without_operator(&place).await;
    leaves_no_trace(&cluster, &place).await;
    cluster.stop().await.unwrap();
}

/// A change by `kubectl apply` is run by every node, without a restart.
async fn policy_reaches_peers(place: &Place) {
    let restarts = restarts(place).await;
    let next = revision(&place.get("default").await) + 1;
    let spec = "{profile: Light, schedulerPoolRef: {name: default}, limits: {upload: 200Mi}, storage: {reserveFreePercent: 0}}";
    let object = json!({
        "apiVersion": "d7y.io/v1alpha1", "kind": "Distribution", "metadata": {"name": "default"},
        "spec": serde_saphyr::from_str::<serde_json::Value>(spec).unwrap(),
    });
    place.apply(&object.to_string()).await;
    let api: Api<Distribution> = place.api();
    let acknowledged = wait_for(&api, "default", READY, |mesh| {
        let status = mesh.and_then(|m| m.status.as_ref()).ok_or("no status")?;
        let revision = status.policy.as_ref().and_then(|p| p["revision"].as_i64());
        // By the status alone, as a person sees it.
        let rollout = serde_json::to_value(&status.rollout).unwrap_or_default();
        let current = rollout["revisions"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|row| row["revision"] == next)
            .filter_map(|row| row["nodes"].as_i64())
            .sum::<i64>();
        if revision == Some(next) && current == 3 {
            Ok(())
        } else {
            Err(format!("revision {revision:?}, {rollout}"))
        }
    });
    acknowledged.await.unwrap();
    assert_eq!(self::restarts(place).await, restarts);
}

/// Of the policy in force.
pub(crate) fn revision(mesh: &Distribution) -> i64 {
    let policy = mesh.status.as_ref().and_then(|s| s.policy.as_ref());
    policy
        .and_then(|p| p["revision"].as_i64())
        .unwrap_or_default()
}

/// Pods of the mesh, and how often they were started.
pub(crate) async fn restarts(place: &Place) -> Vec<(String, i32)> {
    let all = pod::with_labels(
        &place.client,
        &place.namespace,
        "app.kubernetes.io/instance=default",
    );
    let all = all.await.unwrap();
    all.iter()
        .map(|pod| {
            let status = pod
                .status
                .as_ref()
                .and_then(|s| s.container_statuses.as_ref());
            let count = status.into_iter().flatten().map(|c| c.restart_count).sum();
            (pod.name_any(), count)
        })
        .collect()
}

/// The scheduler's Service is made anew and has another address, which nodes learn from their bootstrap's
/// ConfigMap alone, and without a restart.
async fn a_scheduler_that_moves_is_found_by_what_the_kubelet_mounts(place: &Place) {
    const NAME: &str = "default-scheduler-0";
    let began = Instant::now();
    let services: Api<Service> = place.api();
    let before = services.get(NAME).await.unwrap();
    services
        .delete(NAME, &DeleteParams::default())
        .await
        .unwrap();
    let address = place
        .until(NAME, |found: &Service| {
            if found.uid() == before.uid() {
                return Err("the old one is still there".to_owned());
            }
            let address = found.spec.as_ref().and_then(|s| s.cluster_ip.clone());
            address.ok_or_else(|| "no address".to_owned())
        })
        .await;
    let peers = || {
        let labels = "app.kubernetes.io/component=peer";
        pod::with_labels(&place.client, &place.namespace, labels)
    };
    let names: Vec<_> = peers()
        .await
        .unwrap()
        .iter()
        .map(|p| p.name_any())
        .collect();
    for name in &names {
        // The kubelet's own time, of a minute or so.
        wait_until("a session at the new address", READY, || async {
            let log = pod::log(&place.client, &place.namespace, name).await?;
            let up = log
                .lines()
                .any(|l| l.contains(&address) && l.contains("session with the scheduler is up"));
            Ok(if up { Ok(()) } else { Err(log) })
        })
        .await
        .unwrap();
    }
    println!("{} nodes found it after {:?}", names.len(), began.elapsed());
    place.ready("default").await;
    let now = peers().await.unwrap();
    assert_eq!(now.iter().map(|p| p.name_any()).collect::<Vec<_>>(), names);
    let statuses = now.iter().filter_map(|p| p.status.as_ref());
    let mut containers = statuses.flat_map(|s| s.container_statuses.iter().flatten());
    assert!(containers.all(|c| c.restart_count == 0), "{now:?}");
}

/// The mesh goes on while the operator is away, and what was changed meanwhile is done when it is back.
async fn without_operator(place: &Place) {
    let deployments: Api<Deployment> = place.api();
    let scale = |replicas: i32| {
        let change = json!({"spec": {"replicas": replicas}});
        let params = kube::api::PatchParams::default();
        let deployments = deployments.clone();
        async move {
            deployments
                .patch(
                    "dragonfly-operator",
                    &params,
                    &kube::api::Patch::Merge(&change),
                )
                .await
                .unwrap();
        }
    };
    scale(0).await;
    let pods = || {
        pod::with_labels(
            &place.client,
            &place.namespace,
            "app.kubernetes.io/name=dragonfly-operator",
        )
    };
    wait_until("the operator to be away", READY, || async {
        let left = pods().await?.len();
        Ok(if left == 0 {
            Ok(())
        } else {
            Err(format!("{left} left"))
        })
    })
    .await
    .unwrap();
    deployments
        .delete("default-seed", &DeleteParams::default())
        .await
        .unwrap();
    let mesh = place.get("default").await;
    assert_eq!(condition(&mesh, "Ready").unwrap().status, "True");
    scale(1).await;
    let seeds = wait_for(&deployments, "default-seed", READY, ready_deployment);
    seeds.await.unwrap();
    place.ready("default").await;
}

/// Deleting the mesh takes all of it, whether the operator is there or not, and whoever downloads.
async fn leaves_no_trace(cluster: &Cluster, place: &Place) {
    let operators: Api<Deployment> = place.api();
    operators
        .delete("dragonfly-operator", &DeleteParams::background())
        .await
        .unwrap();
    let meshes: Api<Distribution> = place.api();
    let url = origin_url(place).await;
    let clients: Vec<_> = cluster
        .nodes()
        .map(|node| Downloader {
            node,
            program: dragonfly_e2e::binary::dragonfly().unwrap(),
            name: format!("last-{}", node.name()),
            // Half a minute for all of it.
            rate: "2M",
        })
        .collect();
    let downloads = futures::future::try_join_all(clients.iter().map(|c| c.get(&url, 0)));
    let deletion = async {
        for client in &clients {
            wait_until("a download's first bytes", READY, || async {
                let begun = client.has_begun(0).await?;
                Ok::<_, Failed>(begun.then_some(()).ok_or_else(|| client.name.clone()))
            })
            .await
            .unwrap();
        }
        // Well under way, by its own words.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let begun = Instant::now();
        let now = DeleteParams::default();
        meshes.delete("default", &now).await.unwrap();
        begun
    };
    let (ended, begun) = futures::join!(downloads, deletion);
    for ended in ended.unwrap() {
        let last = ended.last();
        eprintln!(
            "a download when its mesh was deleted: {:?} after {:?}: {last}",
            ended.code, ended.took
        );
        assert!(
            ended.said.contains("\"event\":\"progress\""),
            "{}",
            ended.said
        );
        assert_eq!(
            (ended.code, ended.digest.as_ref()),
            (Some(5), None),
            "{}",
            ended.said
        );
        assert!(
            last.contains("the mesh") && last.contains("was deleted"),
            "{last}"
        );
    }
    let gone = wait_until("everything of the mesh to be gone", READY, || async {
        let labels = ListParams::default().labels("app.kubernetes.io/instance=default");
        let wrong = |e: kube::Error| Failed::at("what is left", e);
        let pods: Api<Pod> = place.api();
        let mut left: Vec<String> = vec![];
        left.extend(names(&pods, &labels).await.map_err(wrong)?);
        left.extend(
            names::<Deployment>(&place.api(), &labels)
                .await
                .map_err(wrong)?,
        );
        left.extend(
            names::<DaemonSet>(&place.api(), &labels)
                .await
                .map_err(wrong)?,
        );
        left.extend(
            names::<ConfigMap>(&place.api(), &labels)
                .await
                .map_err(wrong)?,
        );
        left.extend(
            names::<Secret>(&place.api(), &labels)
                .await
                .map_err(wrong)?,
        );
        left.extend(
            names::<Service>(&place.api(), &labels)
                .await
                .map_err(wrong)?,
        );
        Ok(if left.is_empty() {
            Ok(())
        } else {
            Err(left.join(", "))
        })
    });
    gone.await.unwrap();
    eprintln!(
        "the mesh was gone {:?} after it was deleted",
        begun.elapsed()
    );
    assert!(meshes.get_opt("default").await.unwrap().is_none());
    for node in cluster.nodes() {
        // What is said in docs/kubernetes.md: of what peers held nothing stays.
        let left = node.run(&["ls", "-A", "/var/lib/dragonfly/peer"]).await;
        assert_eq!(left.unwrap(), "", "{}", node.name());
        let left = node.run(&["ls", "-A", "/run/dragonfly"]).await.unwrap();
        assert_eq!(left, "", "a socket that nobody serves");
    }
}

async fn names<K>(api: &Api<K>, labels: &ListParams) -> Result<Vec<String>, kube::Error>
where
    K: kube::Resource<DynamicType = ()> + Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    let listed = api.list(labels).await?;
    let kind = K::kind(&());
    Ok(listed
        .items
        .iter()
        .map(|o| format!("{kind} {}", o.name_any()))
        .collect())
}
