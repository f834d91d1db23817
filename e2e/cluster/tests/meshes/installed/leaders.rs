//! Two operators as the chart installs them: the pod of the one that leads is deleted by force, and the other
//! goes on where it was.

use std::time::{Duration, Instant};

use dragonfly_cluster::helm::helm;
use dragonfly_cluster::wait::{ready_pod, wait_for, wait_until};
use dragonfly_cluster::{Cluster, Failed, http, pod};
use dragonfly_crds::Distribution;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use serde_json::json;

use super::ways_in::at;

/// The release: what is named after it, and the operators' account.
const RELEASE: &str = "dragonfly";
const LEASE: &str = "dragonfly-operator";
/// How long a Lease holds that nobody renews.
const HOLDS: Duration = Duration::from_secs(15);
const READY: Duration = Duration::from_secs(180);

/// Of a release with one operator and the mesh `default`: with two there is always one that leads.
pub(crate) async fn one_of_two_operators_leads(
    cluster: &Cluster,
    namespace: &str,
) -> Result<(), Failed> {
    let client = cluster.client().await?;
    let chart = at("charts/dragonfly");
    let mut line = vec!["upgrade", RELEASE, &chart, "--namespace", namespace];
    line.extend(["--reuse-values", "--set", "replicas=2"]);
    helm(cluster, &line).await?;
    let two = both(cluster, namespace).await?;
    // Who led before gives its Lease back when it ends.
    let leases: Api<Lease> = Api::namespaced(client.clone(), namespace);
    let names: Vec<_> = two.iter().map(ResourceExt::name_any).collect();
    let first = leader(&leases, |holder| names.iter().any(|name| name == holder)).await?;
    for name in &names {
        let said = pod::log(&client, namespace, name).await?;
        let leads = said.contains("this operator leads");
        assert_eq!(leads, *name == first, "{first} leads; {name}: {said}");
        assert!(leads || said.contains("standing by"), "{name}: {said}");
    }
    one_may_go(cluster, namespace).await?;

    // By force: the pod is gone for the API server at once. Its kubelet still asks its process to end, which
    // may give the Lease back or not; one that can do neither is killed in `operator/several`.
    let before = cluster.settled(namespace, RELEASE).await?.len();
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let now = DeleteParams::default().grace_period(0);
    let deleted = pods.delete(&first, &now).await;
    deleted.map_err(|e| Failed::at(&first, e))?;
    let since = Instant::now();
    let second = leader(&leases, |holder| !holder.is_empty() && holder != first).await?;
    let led = since.elapsed();
    eprintln!("{first} was deleted by force: {second} led after {led:?}");
    // With time for a machine that does other things.
    assert!(led < HOLDS * 2, "{led:?}");

    // It has looked at everything, and found nothing to do.
    // Where the deleted one's successor was faster than who stood by, its address is not known at once.
    let ip = wait_until("its address", READY, || async {
        let found = pods.get(&second).await;
        let found = found.map_err(|e| Failed::at(&second, e))?;
        let ip = found.status.and_then(|s| s.pod_ip);
        Ok(ip.ok_or_else(|| format!("{second} has none")))
    })
    .await?;
    let row = "dragonfly_operator_reconciliations_total{kind=\"Distribution\",outcome=\"done\"}";
    wait_until("a first visit", READY, || async {
        let request = hyper::Request::get("/metrics").body(Default::default());
        let request = request.map_err(|e| Failed::at("/metrics", e))?;
        let answer = http::ask(&format!("{ip}:8080"), request).await?;
        let said = String::from_utf8_lossy(&answer.body).into_owned();
        Ok(if said.contains(row) {
            Ok(())
        } else {
            Err(said)
        })
    })
    .await?;
    let again = cluster.settled(namespace, RELEASE).await?.split_off(before);
    assert!(again.is_empty(), "done twice: {again:#?}");

    // It works: a spec that changes reaches every node, and is written once.
    let revision = changed(&client, namespace).await?;
    let written = cluster.settled(namespace, RELEASE).await?.split_off(before);
    let what: Vec<_> = written.iter().map(|a| (a.resource(), a.object())).collect();
    let status = (
        "distributions/status".to_owned(),
        format!("{namespace}/default"),
    );
    assert_eq!(what, [status], "revision {revision}");

    // Another pod took the deleted one's place, and stands by.
    let two = both(cluster, namespace).await?;
    let new = two
        .iter()
        .map(ResourceExt::name_any)
        .find(|name| *name != second);
    let new = new.ok_or_else(|| Failed(format!("{second} alone")))?;
    let said = pod::log(&client, namespace, &new).await?;
    assert!(
        new != first && said.contains("standing by"),
        "{new}: {said}"
    );
    assert_eq!(leader(&leases, |holder| !holder.is_empty()).await?, second);
    one_may_go(cluster, namespace).await
}

/// Until there are two operators, both ready.
async fn both(cluster: &Cluster, namespace: &str) -> Result<Vec<Pod>, Failed> {
    let client = cluster.client().await?;
    let labels = "app.kubernetes.io/name=dragonfly-operator";
    wait_until("two operators", READY, || async {
        let all = pod::with_labels(&client, namespace, labels).await?;
        let mut wrong = all.iter().filter_map(|pod| {
            let ends = pod
                .metadata
                .deletion_timestamp
                .as_ref()
                .map(|_| "ends".to_owned());
            let why = ends.or_else(|| ready_pod(Some(pod)).err())?;
            Some(format!("{}: {why}", pod.name_any()))
        });
        Ok(match (all.len(), wrong.next()) {
            (2, None) => Ok(all),
            (count, why) => Err(format!("{count} pods; {why:?}")),
        })
    })
    .await
}

/// Until a pod leads that is wanted: its name.
async fn leader(leases: &Api<Lease>, wanted: impl Fn(&str) -> bool) -> Result<String, Failed> {
    wait_for(leases, LEASE, READY, |lease| {
        let spec = lease
            .and_then(|lease| lease.spec.as_ref())
            .ok_or("no Lease")?;
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        // Each process of a pod has another identity.
        let pod = holder.rsplit_once('_').map_or("", |(pod, _)| pod);
        if wanted(pod) {
            Ok(pod.to_owned())
        } else {
            Err(format!("{holder:?} holds it"))
        }
    })
    .await
}

/// Until the budget lets one of both be drained.
async fn one_may_go(cluster: &Cluster, namespace: &str) -> Result<(), Failed> {
    let budgets: Api<PodDisruptionBudget> = Api::namespaced(cluster.client().await?, namespace);
    wait_for(&budgets, RELEASE, READY, |budget| {
        let status = budget
            .and_then(|b| b.status.as_ref())
            .ok_or("no status yet")?;
        let counts = (status.expected_pods, status.disruptions_allowed);
        if counts == (2, 1) {
            Ok(())
        } else {
            Err(format!("{counts:?} are expected and may go"))
        }
    })
    .await
}

/// Changes what nodes may send, until all run that: its revision.
async fn changed(client: &kube::Client, namespace: &str) -> Result<i64, Failed> {
    let meshes: Api<Distribution> = Api::namespaced(client.clone(), namespace);
    let wrong = |e: kube::Error| Failed::at("default", e);
    let revision = |mesh: &Distribution| {
        let status = mesh.status.clone().unwrap_or_default();
        let policy = status.policy.and_then(|p| p.get("revision")?.as_i64());
        (
            policy.unwrap_or_default(),
            status.rollout.unwrap_or_default(),
        )
    };
    let (before, _) = revision(&meshes.get("default").await.map_err(wrong)?);
    let patch = json!({"spec": {"limits": {"upload": "123Mi"}}});
    let params = PatchParams::default();
    let patched = meshes
        .patch("default", &params, &Patch::Merge(&patch))
        .await;
    patched.map_err(wrong)?;
    wait_for(&meshes, "default", READY, |mesh| {
        let (now, rollout) = revision(mesh.ok_or("not there")?);
        let everywhere = rollout.revision == now && rollout.acknowledged == rollout.nodes;
        if now > before && everywhere && rollout.nodes > 0 {
            Ok(now)
        } else {
            Err(format!("revision {now} after {before}: {rollout:?}"))
        }
    })
    .await
}
