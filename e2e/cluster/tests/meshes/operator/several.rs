//! Several operators: one leads, all give certificates, and who takes over does nothing twice.

use std::time::{Duration, Instant};

use dragonfly_cluster::audit::Asked;
use dragonfly_cluster::place::SOON;
use dragonfly_cluster::wait::wait_until;
use dragonfly_cluster::{Cluster, ClusterOptions, Installed, Operator, Place};
use dragonfly_identity::{IdentityError, Projected, enroll_projected};
use dragonfly_proto::rpc::Role;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, ServiceAccount};
use kube::ResourceExt;
use kube::api::{Api, DynamicObject, ListParams, PostParams};
use serde_json::json;

use super::bed::{planned, reports};

/// How long a Lease holds that nobody renews, and how often others look.
const HOLDS: Duration = Duration::from_secs(15);
const LOOKS: Duration = Duration::from_secs(2);

#[tokio::test]
async fn another_operator_leads_within_the_leases_time_and_does_nothing_twice() {
    let cluster = Cluster::start(&ClusterOptions::api_server()).await.unwrap();
    a_check_before_installing_says_what_is_missing(&cluster);
    let place = Place::new(&cluster).await.unwrap();
    let installed = &Installed::on(&cluster, &[&place.namespace]).await.unwrap();
    let mut first = Operator::start_as(&cluster, installed, "first")
        .await
        .unwrap();
    said(&first, "this operator leads").await;
    let second = Operator::start_as(&cluster, installed, "second")
        .await
        .unwrap();
    said(&second, "standing by").await;

    place.mesh("default", "{}").await;
    place.applied("default").await;
    let run = planned(&place).await;
    // Of one that no scheduler begins something else is said a minute later, whoever leads.
    reports(&place, run, "Running").await;
    // Which the operator passes on within ten seconds.
    let passed_on = |preheat: &dragonfly_crds::Preheat| {
        let all = preheat.status.iter().flat_map(|s| &s.conditions);
        let mut ready = all.filter(|c| c.type_ == "Ready");
        match ready.find(|c| c.message == "Running") {
            Some(_) => Ok(()),
            None => Err(format!("{:?}", preheat.status)),
        }
    };
    place.until("once", passed_on).await;
    let part = Part::of(&place).await;
    for operator in [&first, &second] {
        part.gets_a_certificate(&operator.address("issuer").unwrap())
            .await;
    }

    // What was told once may be told again for ten seconds: numbers of components.
    let writes = settled(&cluster, installed).await.len();
    assert!(writes > 10, "the first one wrote: {writes}");
    let before = versions(&place).await;
    let asked = cluster.asked(&installed.system).unwrap().len();
    first.kill();
    let killed = Instant::now();
    // Nobody leads: the Lease is the dead one's.
    part.gets_a_certificate(&second.address("issuer").unwrap())
        .await;
    let (certificate, holder) = (killed.elapsed(), holder(&place, installed).await);
    assert!(holder.starts_with("first_"), "{holder}");
    assert!(!second.said().contains("this operator leads"));

    said(&second, "this operator leads").await;
    let led = killed.elapsed();
    eprintln!(
        "the leader was killed: a certificate after {certificate:?}, another led after {led:?}"
    );
    // From its last renewal, by the clock of who waits; with time for a machine that does other things.
    assert!(
        led >= HOLDS - LOOKS - LOOKS,
        "{led:?}: while the other may have lived"
    );
    for kind in ["Distribution", "Preheat"] {
        wait_until("a first visit", SOON, || async {
            let row = format!(
                "dragonfly_operator_reconciliations_total{{kind=\"{kind}\",outcome=\"done\"}}"
            );
            let metrics = second.metrics().await?;
            Ok(if metrics.contains(&row) {
                Ok(())
            } else {
                Err(metrics)
            })
        })
        .await
        .unwrap();
    }
    let again = settled(&cluster, installed).await.split_off(writes);
    assert!(again.is_empty(), "done twice: {again:#?}");
    let since = cluster.asked(&installed.system).unwrap().split_off(asked);
    assert!(since.iter().any(|a| a.resource() == "leases" && a.writes()));
    assert_eq!(versions(&place).await, before, "something was written");
    assert_eq!(second.writes().await.unwrap(), 0);

    // It works, and counts: a spec that changes is written once.
    place.mesh("default", "{limits: {upload: 100Mi}}").await;
    place.applied("default").await;
    assert!(second.writes().await.unwrap() > 0);

    // One that ends in order gives the Lease back.
    settled(&cluster, installed).await;
    let third = Operator::start_as(&cluster, installed, "third")
        .await
        .unwrap();
    said(&third, "standing by").await;
    let before = versions(&place).await;
    let stopped = Instant::now();
    assert!(second.stop().await.unwrap().success());
    said(&third, "this operator leads").await;
    eprintln!(
        "the leader ended in order: another led after {:?}",
        stopped.elapsed()
    );
    settled(&cluster, installed).await;
    assert_eq!(versions(&place).await, before);
    third.stop().await.unwrap();
    cluster.stop().await.unwrap();
}

fn a_check_before_installing_says_what_is_missing(cluster: &Cluster) {
    let (said, _, well) = super::preheat::plugin(cluster, "default", &["check"]);
    assert!(!well, "{said}");
    for wanted in [
        "[!!]  there is no kind distributions.d7y.io",
        "install the chart dragonfly-crds",
    ] {
        assert!(said.contains(wanted), "{wanted}: {said}");
    }
    let (said, _, well) = super::preheat::plugin(cluster, "default", &["check", "--pre"]);
    assert!(
        well && said.contains("[ok]  you may create clusterroles"),
        "{said}"
    );
}

/// Until an operator logged this.
async fn said(operator: &Operator, text: &str) {
    wait_until(text, SOON, || async {
        let said = operator.said();
        Ok(if said.contains(text) {
            Ok(())
        } else {
            Err(said)
        })
    })
    .await
    .unwrap();
}

/// Until the operator has done what there was to do: all that it wrote.
async fn settled(cluster: &Cluster, installed: &Installed) -> Vec<Asked> {
    let settled = cluster.settled(&installed.system, "dragonfly-operator");
    settled.await.unwrap()
}

async fn holder(place: &Place, installed: &Installed) -> String {
    let leases: Api<Lease> = Api::namespaced(place.client.clone(), &installed.system);
    let lease = leases.get("dragonfly-operator").await.unwrap();
    lease.spec.unwrap().holder_identity.unwrap_or_default()
}

/// Every object of the mesh's namespace, with its version: another one after each write.
pub(crate) async fn versions(place: &Place) -> Vec<String> {
    let mut all = vec![];
    for (kind, objects) in everything(place).await {
        for object in objects {
            let version = object.resource_version().unwrap_or_default();
            all.push(format!("{kind} {} {version}", object.name_any()));
        }
    }
    all.sort();
    all
}

/// Every object of a namespace, by kind; Leases and events apart, which are of others' making too.
pub(crate) async fn everything(place: &Place) -> Vec<(String, Vec<DynamicObject>)> {
    let found = kube::discovery::Discovery::new(place.client.clone())
        .run()
        .await
        .unwrap();
    let mut all = vec![];
    for group in found.groups() {
        for (resource, can) in group.recommended_resources() {
            let lists = can.supports_operation(kube::discovery::verbs::LIST);
            let namespaced = can.scope == kube::discovery::Scope::Namespaced;
            let others = ["Lease", "Event"].contains(&resource.kind.as_str());
            if !lists || !namespaced || others {
                continue;
            }
            let api: Api<DynamicObject> =
                Api::namespaced_with(place.client.clone(), &place.namespace, &resource);
            let listed = api.list(&ListParams::default()).await.unwrap();
            all.push((resource.kind, listed.items));
        }
    }
    all
}

/// A peer's pod as the API server knows it, with the token that its kubelet would bring.
pub(crate) struct Part {
    mesh: String,
    token: tempfile::NamedTempFile,
    ca: String,
}

impl Part {
    /// Of the mesh `default`.
    pub(crate) async fn of(place: &Place) -> Self {
        let mesh = place.get("default").await.metadata.uid.unwrap();
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "machine"}});
        place.apply(&node.to_string()).await;
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "peer"},
            "spec": {
                "nodeName": "machine", "serviceAccountName": "default-peer",
                "containers": [{"name": "peer", "image": "peer"}],
            },
        });
        place.apply(&pod.to_string()).await;
        let pods: Api<Pod> = place.api();
        let wanted = TokenRequest {
            spec: TokenRequestSpec {
                audiences: vec![format!("dragonfly.d7y.io/{mesh}")],
                expiration_seconds: Some(3600),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Pod".to_owned()),
                    name: Some("peer".to_owned()),
                    uid: pods.get("peer").await.unwrap().uid(),
                }),
            },
            ..TokenRequest::default()
        };
        let accounts: Api<ServiceAccount> = place.api();
        let params = PostParams::default();
        let given = accounts
            .create_token_request("default-peer", &params, &wanted)
            .await;
        let token = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(token.path(), given.unwrap().status.unwrap().token).unwrap();
        let maps: Api<ConfigMap> = place.api();
        let map = maps.get("default-bootstrap").await.unwrap().data.unwrap();
        let ca = map.into_values().find_map(|text| {
            let text = text.replace("\\n", "\n");
            let begin = text.find("-----BEGIN CERTIFICATE-----")?;
            let end = text.rfind("-----END CERTIFICATE-----")?;
            Some(format!("{}-----END CERTIFICATE-----\n", &text[begin..end]))
        });
        Self {
            mesh,
            token,
            ca: ca.expect("no CA in the bootstrap"),
        }
    }

    /// As a peer does it; also of an operator that is about to learn of the mesh.
    pub(crate) async fn gets_a_certificate(&self, issuer: &str) {
        let at = Projected {
            mesh: self.mesh.clone(),
            token_file: self.token.path().to_owned(),
            issuer: issuer.to_owned(),
            ca: self.ca.clone(),
        };
        let got = wait_until("a certificate", SOON, || async {
            match enroll_projected(&at, Role::Peer).await {
                Ok(credentials) => Ok(Ok(credentials)),
                Err(error @ IdentityError::Unreachable(_)) => Ok(Err(error.to_string())),
                Err(error) => panic!("{issuer}: {error}"),
            }
        });
        assert!(got.await.unwrap().node.is_some());
    }
}
