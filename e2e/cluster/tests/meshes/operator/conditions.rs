//! What is wrong ends in a condition that a person understands, and stops nobody else.

use dragonfly_cluster::operator::read;
use dragonfly_cluster::place::{SOON, condition};
use dragonfly_cluster::{Operator, Place, apply, argocd};
use dragonfly_crds::{Distribution, SchedulerPool};
use dragonfly_e2e::clock::Clocks;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::ResourceExt;
use kube::api::{DeleteParams, ListParams};
use serde_json::json;

use super::bed::{own, place, shared};

#[tokio::test]
async fn a_wrong_spec_stalls_and_the_last_good_policy_stays_in_force() {
    let place = place().await;
    place.mesh("m", "{storage: {quota: 1Gi}}").await;
    let good = place.applied("m").await.status.unwrap().policy;
    place.mesh("m", "{storage: {quota: 1Mi}}").await;
    let said = place.stalled("m", "InvalidSpec").await;
    let object = format!("Distribution {}/m", place.namespace);
    for wanted in [object.as_str(), "spec.storage.quota", "at least 64Mi"] {
        assert!(said.contains(wanted), "{said}");
    }
    let mesh = place.get("m").await;
    assert_eq!(condition(&mesh, "Ready").unwrap().status, "False");
    assert_eq!(mesh.status.unwrap().policy, good);
    place.mesh("m", "{storage: {quota: 2Gi}}").await;
    let mesh = place.applied("m").await;
    let policy = mesh.status.unwrap().policy().unwrap().unwrap();
    assert_eq!(
        (policy.revision, policy.node.storage.quota_bytes),
        (2, 2 << 30)
    );
    // A person who looks at events sees it too.
    let events = place.api::<k8s_openapi::api::events::v1::Event>();
    let all = events.list(&ListParams::default()).await.unwrap();
    let told = all.iter().any(|event| {
        event.reason.as_deref() == Some("InvalidSpec")
            && event
                .note
                .as_ref()
                .is_some_and(|n| n.contains("at least 64Mi"))
    });
    assert!(told, "{:?}", all.items);
}

#[tokio::test]
async fn a_pool_of_another_namespace_is_none() {
    let (place, other) = (place().await, place().await);
    let pool =
        "{apiVersion: d7y.io/v1alpha1, kind: SchedulerPool, metadata: {name: theirs}, spec: {}}";
    other.apply(pool).await;
    place.mesh("m", "{schedulerPoolRef: {name: theirs}}").await;
    let said = place.stalled("m", "InvalidSpec").await;
    assert!(
        said.contains("spec.schedulerPoolRef.name") && said.contains("theirs"),
        "{said}"
    );
    let pool = other.pool("theirs").await;
    let served = pool.status.and_then(|status| status.distributions);
    assert!(matches!(served, None | Some(0)), "{served:?}");
}

#[tokio::test]
async fn an_operator_whose_clock_is_days_ahead_does_its_work() {
    let (cluster, installed, place) = own().await;
    let dir = tempfile::tempdir().unwrap();
    let clocks = Clocks::new(dir.path()).unwrap();
    clocks.set("operator", 3 * 86_400).unwrap();
    let environment = clocks.environment("operator");
    let operator = Operator::start_with(&cluster, &installed, |command| {
        let split = environment.iter().filter_map(|v| v.split_once('='));
        command.envs(split);
    });
    let operator = operator.await.unwrap();
    place.mesh("m", "{}").await;
    place.applied("m").await;
    place.mesh("m", "{storage: {quota: 1Mi}}").await;
    let said = place.stalled("m", "InvalidSpec").await;
    assert!(said.contains("spec.storage.quota"), "{said}");
    // No CA is taken for an old one.
    let ca = place.api::<Secret>().get("m-ca").await.unwrap();
    assert!(!ca.data.unwrap().contains_key("previous.pem"));
    drop(operator);
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn a_mesh_waits_for_its_pool_and_the_pool_tells_of_its_meshes() {
    let place = place().await;
    place.mesh("m", "{schedulerPoolRef: {name: later}}").await;
    let said = place.stalled("m", "InvalidSpec").await;
    assert!(said.contains("spec.schedulerPoolRef.name"), "{said}");
    let pool = "{apiVersion: d7y.io/v1alpha1, kind: SchedulerPool, metadata: {name: later}, spec: {replicas: 2}}";
    place.apply(pool).await;
    place.applied("m").await;
    place
        .until("later", |pool: &SchedulerPool| {
            let status = pool.status.clone().unwrap_or_default();
            let desired = status.schedulers.map(|s| s.desired);
            if (status.distributions, desired) == (Some(1), Some(2)) {
                Ok(())
            } else {
                Err(format!("{status:?}"))
            }
        })
        .await;
    let pool = place.pool("later").await;
    // Its schedulers do not get ready where nothing runs them.
    assert_eq!(argocd::health(&pool).unwrap().0, "Progressing");
    assert_eq!(pool.status.unwrap().observed_generation, Some(1));
}

#[tokio::test]
async fn an_object_of_somebody_else_is_not_taken_over() {
    let place = place().await;
    let theirs = "{apiVersion: v1, kind: ConfigMap, metadata: {name: m-bootstrap}, data: {a: b}}";
    place.apply(theirs).await;
    place.mesh("m", "{}").await;
    let said = place.stalled("m", "NameTaken").await;
    let taken = format!("ConfigMap {}/m-bootstrap", place.namespace);
    assert!(said.contains(&taken), "{said}");
    let maps = place.api::<ConfigMap>();
    let kept = maps.get("m-bootstrap").await.unwrap();
    assert_eq!(kept.data.unwrap()["a"], "b");
    maps.delete("m-bootstrap", &DeleteParams::default())
        .await
        .unwrap();
    place.applied("m").await;
}

#[tokio::test]
async fn keys_that_cannot_be_used_or_are_gone_are_said() {
    let place = place().await;
    let wrong = "{apiVersion: v1, kind: Secret, metadata: {name: m-authority}, stringData: {x: x}}";
    place.apply(wrong).await;
    place.mesh("m", "{}").await;
    let said = place.stalled("m", "InvalidSecret").await;
    let wrong = format!(
        "Secret {}/m-authority has no key authority.key",
        place.namespace
    );
    assert!(said.contains(&wrong), "{said}");
    let secrets = place.api::<Secret>();
    secrets
        .delete("m-authority", &DeleteParams::default())
        .await
        .unwrap();
    place.applied("m").await;
    let kept = secrets.get("m-authority").await.unwrap();

    // Nobody makes new keys for nodes that hold what the old ones signed.
    secrets
        .delete("m-authority", &DeleteParams::default())
        .await
        .unwrap();
    place.mesh("m", "{storage: {quota: 3Gi}}").await;
    let said = place.stalled("m", "AuthorityMissing").await;
    assert!(
        said.contains("restore it") && said.contains("m-bootstrap"),
        "{said}"
    );
    let restored = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "m-authority"},
        "data": kept.data,
    });
    place.apply(&restored.to_string()).await;
    place.applied("m").await;
}

#[tokio::test]
async fn a_ca_that_somebody_else_put_there_is_not_used() {
    let place = place().await;
    let theirs = "{apiVersion: v1, kind: Secret, metadata: {name: m-ca}, \
                  stringData: {ca.pem: theirs, ca.key: theirs}}";
    place.apply(theirs).await;
    place.mesh("m", "{}").await;
    let said = place.stalled("m", "NameTaken").await;
    let taken = format!("Secret {}/m-ca exists", place.namespace);
    assert!(said.contains(&taken), "{said}");
    let secrets = place.api::<Secret>();
    let gone = DeleteParams::default();
    secrets.delete("m-ca", &gone).await.unwrap();
    place.applied("m").await;

    // One that is lost is made anew: parts get new certificates by themselves.
    let before = secrets.get("m-ca").await.unwrap().data;
    secrets.delete("m-ca", &gone).await.unwrap();
    place.mesh("m", "{storage: {quota: 3Gi}}").await;
    place.applied("m").await;
    let after = secrets.get("m-ca").await.unwrap().data.unwrap();
    assert_ne!(before.as_ref(), Some(&after));
    let map = place.api::<ConfigMap>().get("m-bootstrap").await.unwrap();
    let bootstrap = &map.data.unwrap()["bootstrap.json"];
    let bootstrap: serde_json::Value = serde_json::from_str(bootstrap).unwrap();
    assert_eq!(
        bootstrap["ca"].as_str().unwrap().as_bytes(),
        after["ca.pem"].0
    );
}

#[tokio::test]
async fn the_younger_of_two_meshes_on_the_same_nodes_waits() {
    let place = place().await;
    place.mesh("old", "{}").await;
    place.applied("old").await;
    // The age of objects has seconds.
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    place.mesh("a-new", "{}").await;
    let said = place.stalled("a-new", "NodesClaimed").await;
    let older = format!("Distribution {}/old", place.namespace);
    assert!(said.contains(&older) && said.contains("4000"), "{said}");
    assert!(
        place
            .api::<DaemonSet>()
            .get_opt("a-new-peer")
            .await
            .unwrap()
            .is_none()
    );
    // Other ports and directories, and both run.
    place
        .mesh("a-new", "{peers: {port: 5000, adminPort: 5001, socketDirectory: /run/dragonfly-b, storage: {hostPath: {path: /var/lib/dragonfly-b}}}}")
        .await;
    place.applied("a-new").await;
    place.mesh("third", "{}").await;
    place.stalled("third", "NodesClaimed").await;
    let meshes = place.api::<Distribution>();
    meshes
        .delete("old", &DeleteParams::default())
        .await
        .unwrap();
    place.applied("third").await;
}

#[tokio::test]
async fn external_schedulers_are_joined_by_the_token_that_is_named() {
    let place = place().await;
    let spec = "{seeds: {location: External}, externalSchedulers: {addresses: ['10.9.9.9:8002'], \
                mesh: theirs, joinTokenSecretRef: {name: theirs}}}";
    place.mesh("m", spec).await;
    let said = place.stalled("m", "InvalidSecret").await;
    let missing = format!("Secret {}/theirs does not exist", place.namespace);
    assert!(said.contains(&missing), "{said}");
    let secret = |token: &str| {
        let object = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "theirs"},
            "stringData": {"join-token": token},
        });
        object.to_string()
    };
    place.apply(&secret("nonsense")).await;
    place
        .until("m", |mesh: &Distribution| {
            let said = &condition(mesh, "Stalled").unwrap().message;
            let wrong = said.contains("wrong join-token");
            wrong.then_some(()).ok_or_else(|| said.clone())
        })
        .await;
    let dir = tempfile::tempdir().unwrap();
    let theirs = dragonfly_identity::Authority::load_or_create(dir.path(), "theirs").unwrap();
    place.apply(&secret(&theirs.token().reveal())).await;
    let mesh = place.applied("m").await;
    assert_eq!(
        mesh.status.unwrap().policy,
        None,
        "their schedulers say what is done"
    );
    let map = place.api::<ConfigMap>().get("m-bootstrap").await.unwrap();
    let text = &map.data.unwrap()["bootstrap.json"];
    assert!(
        text.contains("10.9.9.9:8002") && text.contains("theirs"),
        "{text}"
    );
    let peers = place.api::<DaemonSet>().get("m-peer").await.unwrap();
    let volumes = peers.spec.unwrap().template.spec.unwrap().volumes.unwrap();
    let mounted = volumes
        .iter()
        .filter_map(|v| v.secret.as_ref()?.secret_name.as_deref());
    assert_eq!(mounted.collect::<Vec<_>>(), ["theirs"]);
    let deployments = place.api::<k8s_openapi::api::apps::v1::Deployment>();
    assert!(
        deployments
            .list(&ListParams::default())
            .await
            .unwrap()
            .items
            .is_empty()
    );
}

#[tokio::test]
async fn what_the_api_server_refuses_is_said_in_its_words() {
    let place = place().await;
    place
        .mesh(
            "m",
            "{seeds: {pods: {resources: {requests: {cpu: '2'}, limits: {cpu: '1'}}}}}",
        )
        .await;
    let said = place.stalled("m", "Refused").await;
    let refused = format!("Deployment {}/m-seed", place.namespace);
    assert!(said.contains(&refused) && said.contains("cpu"), "{said}");
    place.mesh("m", "{}").await;
    place.applied("m").await;
}

#[tokio::test]
async fn a_mesh_in_a_namespace_that_is_not_allowed_is_told_so() {
    let place = Place::new(&shared().await.cluster).await.unwrap();
    place.mesh("m", "{}").await;
    let said = place.stalled("m", "NamespaceNotAllowed").await;
    let not = format!("not in namespace {}", place.namespace);
    assert!(said.contains(&not), "{said}");
    let sets = place.api::<DaemonSet>().list(&ListParams::default()).await;
    assert!(sets.unwrap().items.is_empty());
}

/// A schema of yesterday that takes anything.
fn loose(crd: &str) -> String {
    let mut crd: serde_json::Value = serde_saphyr::from_str(crd).unwrap();
    let version = &mut crd["spec"]["versions"][0];
    let schema = json!({
        "type": "object",
        "properties": {
            "spec": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
            "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
        },
    });
    version["schema"]["openAPIV3Schema"] = schema;
    crd.to_string()
}

#[tokio::test]
async fn objects_of_an_older_schema_stop_nobody_else() {
    let (cluster, installed, place) = own().await;
    let (client, namespace) = (place.client.clone(), place.namespace.as_str());
    for plural in ["distributions", "schedulerpools"] {
        let crd = loose(&read(&format!("config/crd/d7y.io_{plural}.yaml")).unwrap());
        apply::yaml(&client, "default", &crd).await.unwrap();
    }
    // The server takes a schema into use a moment later.
    let object = |name: &str, spec: serde_json::Value| {
        json!({"apiVersion": "d7y.io/v1alpha1", "kind": "Distribution",
            "metadata": {"name": name, "namespace": namespace}, "spec": spec})
        .to_string()
    };
    let broken = object("broken", json!({"seeds": "three", "profile": 7}));
    dragonfly_cluster::wait::wait_until("the loose schema", SOON, || async {
        let taken = apply::yaml(&client, namespace, &broken).await;
        Ok(taken.map(|_| ()).map_err(|e| e.to_string()))
    })
    .await
    .unwrap();
    let odd = [
        (
            "ports",
            json!({"peers": {"port": 80, "adminPort": 80}}),
            "spec.peers.adminPort",
        ),
        (
            "path",
            json!({"peers": {"socketDirectory": "/run/../etc"}}),
            "spec.peers.socketDirectory",
        ),
        (
            "network",
            json!({"networkPolicies": {"nodeCIDRs": ["10.0.0.0/33"]}}),
            "nodeCIDRs[0]",
        ),
        (
            "replicas",
            json!({"seeds": {"replicas": -1}}),
            "spec.seeds.replicas",
        ),
        ("9.dot", json!({}), "metadata.name"),
    ];
    for (name, spec, _) in &odd {
        apply::yaml(&client, namespace, &object(name, spec.clone()))
            .await
            .unwrap();
    }
    // As large as it may be.
    let hosts: Vec<_> = (0..20_000).map(|n| format!("host-{n}.example")).collect();
    let huge = object(
        "huge",
        json!({"sources": {"http": {"allowedHosts": hosts}}}),
    );
    apply::yaml(&client, namespace, &huge).await.unwrap();
    let operator = Operator::start(&cluster, &installed).await.unwrap();
    place.mesh("good", "{}").await;
    place.applied("good").await;
    for (name, wanted) in [("huge", "caBundle or lists")]
        .into_iter()
        .chain(odd.iter().map(|(name, _, wanted)| (*name, *wanted)))
    {
        let said = place.stalled(name, "InvalidSpec").await;
        assert!(said.contains(wanted), "{name}: {said}");
        assert!(said.len() < 2000);
    }
    // It cannot be read as what it is.
    let all: kube::Api<kube::core::DynamicObject> = kube::Api::namespaced_with(
        client,
        namespace,
        &kube::core::ApiResource::erase::<Distribution>(&()),
    );
    let found = dragonfly_cluster::wait::wait_until("broken", SOON, || async {
        let found = all.get("broken").await;
        let found = found.map_err(|e| dragonfly_cluster::Failed::at("broken", e))?;
        let said = found.data["status"]["conditions"].to_string();
        let there = said.contains("InvalidSpec")
            && said.contains(&format!("Distribution {namespace}/broken"));
        Ok(if there {
            Ok(found)
        } else {
            Err(operator.said())
        })
    });
    assert_eq!(found.await.unwrap().name_any(), "broken");
    drop(operator);
    cluster.stop().await.unwrap();
}
