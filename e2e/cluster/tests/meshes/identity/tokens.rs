//! Tokens, clocks and machines that get nothing.

use std::time::{Duration, Instant};

use dragonfly_cluster::wait::wait_until;
use dragonfly_e2e::clock::Clocks;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams};
use serde_json::json;

use dragonfly_cluster::place::READY;

use super::mesh::{NAME, Standing, distribution, operator_log};

pub(crate) async fn tokens_of_others_are_refused_with_the_reason(standing: &Standing) {
    let node = standing.cluster.nodes().next().unwrap();
    let audience = standing.audience().await;
    let (peer, seed) = (format!("{NAME}-peer"), format!("{NAME}-seed"));
    let own = standing.pod_on("peer", node.name()).await;
    let seeds = standing.pods("seed").await;
    let gone = pod_that_is_gone(standing, &peer, &audience).await;
    let api = "https://kubernetes.default.svc";
    let foreign = "dragonfly.d7y.io/00000000-0000-0000-0000-000000000000";
    let rows = [
        (
            "for the API server",
            "peer",
            standing.token(&peer, api, Some(&own)).await,
            "takes tokens for dragonfly.d7y.io/",
        ),
        (
            "for another mesh",
            "peer",
            standing.token(&peer, foreign, Some(&own)).await,
            "takes tokens for dragonfly.d7y.io/",
        ),
        (
            "bound to no pod",
            "peer",
            standing.token(&peer, &audience, None).await,
            "is bound to no pod",
        ),
        (
            "of a peer that wants to be a seed",
            "seed",
            standing.token(&peer, &audience, Some(&own)).await,
            "makes a peer",
        ),
        (
            "of a seed that wants to be a peer",
            "peer",
            standing.token(&seed, &audience, seeds.first()).await,
            "makes a seed",
        ),
        (
            "of a pod that is gone",
            "peer",
            gone,
            "the API server does not take the token",
        ),
        (
            "made up",
            "peer",
            "a.b.c".to_owned(),
            "neither a projected token",
        ),
        (
            "guessed",
            "peer",
            "0".repeat(64),
            "join token is not this mesh's",
        ),
    ];
    for (what, role, token, says) in rows {
        let said = standing.intrude(&node, role, &token, &[]).await;
        assert!(said.contains(says), "{what}: {said}");
        assert!(!said.contains("node is up"), "{what}: {said}");
        // Neither here nor there is a token in a log.
        let part = token.rsplit('.').next().unwrap();
        assert!(part.len() < 20 || !said.contains(part), "{what}");
        eprintln!("a token {what}: {}", last_line(&said));
    }
    // The same, with nothing wrong: it is the token that was refused.
    let good = standing.token(&peer, &audience, Some(&own)).await;
    let said = standing.intrude(&node, "peer", &good, &[]).await;
    assert!(said.contains("node is up"), "{said}");
    let log = operator_log(standing).await;
    assert!(log.contains("no certificate"), "{log}");
}

fn last_line(text: &str) -> &str {
    text.lines().rfind(|l| !l.is_empty()).unwrap_or_default()
}

/// A token of a pod that ran as a peer does and was deleted since.
async fn pod_that_is_gone(standing: &Standing, account: &str, audience: &str) -> String {
    let pods: Api<Pod> = standing.place.api();
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "gone"},
        "spec": {
            "serviceAccountName": account,
            "containers": [{"name": "c", "image": "registry.test/dragonfly:dev", "args": ["top"]}],
        },
    });
    standing.place.apply(&pod.to_string()).await;
    wait_until("the pod to be on a node", READY, || async {
        let pod = pods.get("gone").await.unwrap();
        let node = pod.spec.and_then(|s| s.node_name);
        Ok(node.map(|_| ()).ok_or_else(|| "is not".to_owned()))
    })
    .await
    .unwrap();
    let pod = pods.get("gone").await.unwrap();
    let token = standing.token(account, audience, Some(&pod)).await;
    pods.delete("gone", &DeleteParams::default().grace_period(0))
        .await
        .unwrap();
    standing.place.gone::<Pod>("gone").await;
    // The API server remembers for ten seconds that a token was good; this one it never saw.
    token
}

pub(crate) async fn a_clock_a_day_behind_is_told_so(standing: &Standing) {
    let node = standing.cluster.nodes().next().unwrap();
    let dir = tempfile::tempdir_in(node.path(std::path::Path::new("/run"))).unwrap();
    let clocks = Clocks::new(dir.path()).unwrap();
    clocks.set("intruder", -86_400).unwrap();
    let environment = clocks.environment("intruder");
    let peer = format!("{NAME}-peer");
    let own = standing.pod_on("peer", node.name()).await;
    let token = standing
        .token(&peer, &standing.audience().await, Some(&own))
        .await;
    let said = standing.intrude(&node, "peer", &token, &environment).await;
    assert!(
        said.contains("this machine's clock says") && said.contains("set the clock"),
        "{said}"
    );
    assert!(!said.contains("node is up"), "{said}");
    eprintln!("a clock a day behind: {}", last_line(&said));
}

pub(crate) async fn a_revoked_node_is_out_within_a_minute_and_back_when_it_is_let_in(
    standing: &Standing,
) {
    let nodes: Vec<_> = standing.cluster.nodes().collect();
    let seed_on = standing.pods("seed").await[0]
        .spec
        .as_ref()
        .unwrap()
        .node_name
        .clone();
    let scheduler_on = standing.pods("scheduler").await[0]
        .spec
        .as_ref()
        .unwrap()
        .node_name
        .clone();
    // One whose loss takes nobody else's.
    let out = nodes
        .iter()
        .find(|n| Some(n.name()) != seed_on.as_deref())
        .unwrap_or(&nodes[1]);
    eprintln!(
        "seed on {seed_on:?}, scheduler on {scheduler_on:?}, revoked {}",
        out.name()
    );
    let list = json!({"revokedNodes": [out.name()]});
    standing.place.apply(&distribution(&list)).await;
    let began = Instant::now();
    let pods: Api<Pod> = standing.place.api();
    let peer = standing.pod_on("peer", out.name()).await.name_any();
    let ready = |pod: Pod| {
        let conditions = pod.status.and_then(|s| s.conditions).unwrap_or_default();
        conditions
            .iter()
            .any(|c| c.type_ == "Ready" && c.status == "True")
    };
    wait_until(
        "the revoked node to be out",
        Duration::from_secs(60),
        || async {
            let is_ready = ready(pods.get(&peer).await.unwrap());
            Ok(if is_ready {
                Err("is in".to_owned())
            } else {
                Ok(())
            })
        },
    )
    .await
    .unwrap();
    eprintln!("revoked and out after {:?}", began.elapsed());
    let got = standing.get(out, "revoked", &["--timeout", "10s"]).await;
    assert!(
        !got.status.success(),
        "a revoked node got content of others"
    );
    // Nor does it get another certificate.
    let account = format!("{NAME}-peer");
    let own = standing.pod_on("peer", out.name()).await;
    let token = standing
        .token(&account, &standing.audience().await, Some(&own))
        .await;
    let said = standing.intrude(out, "peer", &token, &[]).await;
    assert!(said.contains("is revoked"), "{said}");
    // The others go on.
    let other = nodes.iter().find(|n| n.name() != out.name()).unwrap();
    let got = standing.get(other, "others", &[]).await;
    assert!(
        got.status.success(),
        "{}",
        String::from_utf8_lossy(&got.stderr)
    );

    standing.place.apply(&distribution(&json!({}))).await;
    let began = Instant::now();
    wait_until("the node to be back", READY, || async {
        let own = pods.get(&peer).await.unwrap();
        Ok(if ready(own) {
            Ok(())
        } else {
            Err("is out".to_owned())
        })
    })
    .await
    .unwrap();
    eprintln!("back after {:?}", began.elapsed());
    let got = standing.get(out, "back", &[]).await;
    assert!(
        got.status.success(),
        "{}",
        String::from_utf8_lossy(&got.stderr)
    );
}
