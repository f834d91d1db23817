//! What the operator and the mesh's schedulers write to the API server, counted there.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use dragonfly_cluster::audit::Asked;
use dragonfly_cluster::{Cluster, ClusterOptions, Place, pod};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams};
use serde_json::json;

use super::nodes::{origin_url, with_operator};

/// Whatever one account writes of one object's status comes that far apart, at least. The API server's
/// clock says when an answer left, which is a little after it was asked.
const APART: Duration = Duration::from_millis(9_500);
/// Until what went before shows in no mean of a minute any more.
const SETTLED: Duration = Duration::from_secs(75);

/// Requests that changed something, since the record had this many.
fn writes(cluster: &Cluster, place: &Place, since: usize) -> Vec<Asked> {
    let all = cluster.asked(&place.namespace).unwrap();
    let new = all.into_iter().skip(since);
    new.filter(|asked| asked.writes() && !asked.resource().starts_with("leases"))
        .collect()
}

fn recorded(cluster: &Cluster, place: &Place) -> usize {
    cluster.asked(&place.namespace).unwrap().len()
}

/// By account, verb and kind.
fn counted(writes: &[Asked]) -> BTreeMap<String, usize> {
    let mut all = BTreeMap::new();
    for asked in writes {
        let what = format!("{} {} {}", asked.account(), asked.verb, asked.resource());
        *all.entry(what).or_default() += 1;
    }
    all
}

/// When somebody wrote the status of an object, by writer and object.
fn of_status(writes: &[Asked]) -> BTreeMap<String, Vec<Timestamp>> {
    let mut all: BTreeMap<String, Vec<Timestamp>> = BTreeMap::new();
    for asked in writes.iter().filter(|a| a.resource().ends_with("/status")) {
        let who = format!(
            "{}: {} {}",
            asked.account(),
            asked.resource(),
            asked.object()
        );
        let at = asked.stage_timestamp.parse().unwrap();
        all.entry(who).or_default().push(at);
    }
    all
}

/// A client on each node gets a content that nobody has yet.
async fn downloads(cluster: &Cluster, url: &str, which: &str) -> usize {
    let program = dragonfly_e2e::binary::dragonfly().unwrap();
    let mut well = 0;
    for node in cluster.nodes() {
        let url = format!("{url}?which={which}");
        let line = [
            "timeout",
            "60",
            program.to_str().unwrap(),
            "get",
            "-q",
            &url,
        ];
        let more = ["--socket", "/run/dragonfly/node.sock", "-O", "/run/got"];
        let got = node.exec(&[&line[..], &more[..]].concat()).await.unwrap();
        well += usize::from(got.status.success());
    }
    well
}

/// Downloads for so long, and nothing else.
async fn steady(cluster: &Cluster, url: &str, name: &str, span: Duration) -> usize {
    let (began, mut well, mut round) = (Instant::now(), 0, 0);
    while began.elapsed() < span {
        well += downloads(cluster, url, &format!("{name}-{round}")).await;
        round += 1;
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    well
}

/// Another policy for the mesh `default`.
async fn change(place: &Place, round: usize) {
    let object = json!({
        "apiVersion": "d7y.io/v1alpha1", "kind": "Distribution", "metadata": {"name": "default"},
        "spec": {
            "profile": "Light",
            "schedulerPoolRef": {"name": "default"},
            "limits": {"upload": format!("{}Mi", 300 + round)},
            // Little of a machine that may be rather full: each download is a content of its own.
            "storage": {"quota": "1Gi", "reserveFreePercent": 0},
        },
    });
    place.apply(&object.to_string()).await;
}

/// Deletes the pod of a peer and waits for its successor.
async fn restart(place: &Place) {
    let peers = pod::with_labels(
        &place.client,
        &place.namespace,
        "app.kubernetes.io/component=peer",
    );
    let pods: Api<Pod> = place.api();
    let name = peers.await.unwrap()[0].name_any();
    pods.delete(&name, &DeleteParams::default()).await.unwrap();
    place.gone::<Pod>(&name).await;
    place.ready("default").await;
}

/// Steady traffic: no two writes of a status by the same hand within ten seconds, and none by the
/// operator, which has nothing to say.
fn assert_few(writes: &[Asked], span: Duration) {
    for (who, times) in of_status(writes) {
        assert!(!who.starts_with("dragonfly-operator"), "{who}: {times:?}");
        for two in times.windows(2) {
            let apart = Duration::try_from(two[1].duration_since(two[0])).unwrap();
            assert!(apart >= APART, "{who}: {apart:?} apart, {times:?}");
        }
        let most = span.as_secs() as usize / 10 + 1;
        assert!(times.len() <= most, "{who}: {times:?}");
    }
    let others = writes.iter().filter(|a| !a.resource().ends_with("/status"));
    let others: Vec<_> = others.cloned().collect();
    assert!(others.is_empty(), "{:?}", counted(&others));
}

/// With a mesh `default` that is ready: a busy minute, of which the second half is steady.
pub(crate) async fn writes_are_few(cluster: &Cluster, place: &Place, url: &str) {
    const CHANGES: usize = 2;
    let before = recorded(cluster, place);
    let began = Instant::now();
    for round in 0..CHANGES {
        change(place, round).await;
        place.ready("default").await;
        downloads(cluster, url, &format!("changing-{round}")).await;
    }
    restart(place).await;
    let changing = writes(cluster, place, before);
    let tens = began.elapsed().as_secs() as usize / 10 + 1;
    println!(
        "writes in {:?} of changes: {:?}",
        began.elapsed(),
        counted(&changing)
    );
    for (who, times) in of_status(&changing) {
        // What a change makes known is not held back: the policy, that it is under way, that it is done;
        // of a pod that goes, that it does and that another is there.
        let most = tens + 3 * CHANGES + 4;
        assert!(times.len() <= most, "{who}: more than {most}: {times:?}");
    }

    // What comes of the changes is told meanwhile.
    tokio::time::sleep(Duration::from_secs(12)).await;
    let before = recorded(cluster, place);
    let span = Duration::from_secs(35);
    let well = steady(cluster, url, "steady", span).await;
    assert!(well >= 4, "{well} downloads are no traffic");
    let writes = writes(cluster, place, before);
    println!(
        "writes in {span:?} of steady traffic, {well} downloads: {:?}",
        counted(&writes)
    );
    assert!(!writes.is_empty(), "nobody told of {well} downloads");
    assert_few(&writes, span + Duration::from_secs(10));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes half an hour: make test-full runs it"]
async fn writes_of_ten_idle_and_ten_busy_minutes_are_counted() {
    const SPAN: Duration = Duration::from_secs(600);
    let (cluster, place) = with_operator(&ClusterOptions::nodes(2)).await;
    let pool =
        "{apiVersion: d7y.io/v1alpha1, kind: SchedulerPool, metadata: {name: default}, spec: {}}";
    place.apply(pool).await;
    change(&place, 0).await;
    place.ready("default").await;
    let url = origin_url(&place).await;
    downloads(&cluster, &url, "first").await;
    tokio::time::sleep(SETTLED).await;

    let before = recorded(&cluster, &place);
    tokio::time::sleep(SPAN).await;
    let idle = writes(&cluster, &place, before);
    println!("writes in ten idle minutes: {:?}", counted(&idle));
    assert!(idle.is_empty(), "{:?}", counted(&idle));

    let before = recorded(&cluster, &place);
    let began = Instant::now();
    let (mut round, mut well) = (1, 0);
    while began.elapsed() < SPAN {
        change(&place, round).await;
        well += steady(
            &cluster,
            &url,
            &format!("busy-{round}"),
            Duration::from_secs(60),
        )
        .await;
        restart(&place).await;
        round += 1;
    }
    let busy = writes(&cluster, &place, before);
    println!(
        "writes in {:?} with {well} downloads, {round} policies and as many restarts: {:?}",
        began.elapsed(),
        counted(&busy)
    );
    let tens = began.elapsed().as_secs() as usize / 10 + 1;
    for (who, times) in of_status(&busy) {
        let most = tens + 7 * round;
        assert!(times.len() <= most, "{who}: more than {most}: {times:?}");
    }
    cluster.stop().await.unwrap();
}
