//! What a mesh becomes, and that it stays so.

use std::sync::Arc;
use std::time::Duration;

use dragonfly_crds::{Distribution, SchedulerPool};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{
    ConfigMap, PersistentVolumeClaim, Secret, Service, ServiceAccount,
};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::Role;
use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::json;

use dragonfly_cluster::operator::{config, read};
use dragonfly_cluster::place::{SOON, condition};
use dragonfly_cluster::{Operator, Place, apply};
use dragonfly_controllers::At;
use tokio_util::sync::CancellationToken;

use super::bed::{options, own, place};
use super::crash::faulty::Faults;

#[tokio::test]
async fn one_object_becomes_a_mesh() {
    let place = place().await;
    place.mesh("one", "{profile: Light}").await;
    let mesh = place.applied("one").await;
    let policy = mesh.status.as_ref().unwrap().policy().unwrap().unwrap();
    assert_eq!(policy.revision, 1);
    assert_eq!(Some(policy.uid), mesh.metadata.uid);

    let service: Service = place.api().get("one-scheduler-0").await.unwrap();
    let address = service.spec.unwrap().cluster_ip.unwrap();
    let map: ConfigMap = place.api().get("one-bootstrap").await.unwrap();
    let bootstrap: serde_json::Value =
        serde_json::from_str(&map.data.unwrap()["bootstrap.json"]).unwrap();
    assert_eq!(bootstrap["schedulers"], json!([format!("{address}:8002")]));
    assert_eq!(bootstrap["mesh"], json!(mesh.metadata.uid));

    let scheduler: Deployment = place.api().get("one-scheduler-0").await.unwrap();
    let pod = scheduler.spec.unwrap().template.spec.unwrap();
    let args = pod.containers[0].args.clone().unwrap();
    for wanted in [
        "--kubernetes".to_owned(),
        format!("--distribution={}/one", place.namespace),
        format!("--advertise={address}:8002"),
        "--name=scheduler-0".to_owned(),
    ] {
        assert!(args.contains(&wanted), "{wanted} is not in {args:?}");
    }
    let seed: Deployment = place.api().get("one-seed").await.unwrap();
    assert_eq!(seed.spec.unwrap().replicas, Some(1));
    let peers: DaemonSet = place.api().get("one-peer").await.unwrap();
    let pod = peers.spec.unwrap().template.spec.unwrap();
    assert_eq!(pod.host_network, Some(true));

    assert_eq!(bootstrap["issuer"], "127.0.0.1:1");
    let join: Secret = place.api().get("one-join").await.unwrap();
    let ca: Secret = place.api().get("one-ca").await.unwrap();
    let ca = String::from_utf8(ca.data.unwrap()["ca.pem"].0.clone()).unwrap();
    assert_eq!(bootstrap["ca"], ca);
    let token = String::from_utf8(join.data.unwrap()["join-token"].0.clone()).unwrap();
    let token: dragonfly_identity::JoinToken = token.parse().unwrap();
    assert_eq!(token.ca, ca);
    let role: Role = place.api().get("one-scheduler").await.unwrap();
    for rule in role.rules.unwrap() {
        let named = rule.resource_names.is_some();
        // Preheats are the namespace's, for whichever mesh.
        let preheats = rule.resources.iter().flatten().all(|r| r == "preheats");
        let making = rule.verbs.iter().all(|v| v == "create" || v == "patch");
        assert!(named || preheats || making, "{rule:?}");
    }
    // Everything goes with the mesh, and nothing keeps it.
    let account: ServiceAccount = place.api().get("one-peer").await.unwrap();
    for owner in [
        account.owner_references(),
        map.metadata.owner_references.as_deref().unwrap(),
    ] {
        assert_eq!(Some(&owner[0].uid), mesh.metadata.uid.as_ref());
        assert_eq!(owner[0].block_owner_deletion, None);
    }
    assert!(mesh.metadata.finalizers.is_none());
}

#[tokio::test]
async fn what_somebody_changed_or_deleted_comes_back() {
    let place = place().await;
    place.mesh("drift", "{profile: Light}").await;
    place.applied("drift").await;

    let deployments = place.api::<Deployment>();
    let change = json!({"spec": {"replicas": 5}, "metadata": {"labels": {"app.kubernetes.io/component": "x"}}});
    let params = PatchParams::default();
    deployments
        .patch("drift-seed", &params, &Patch::Merge(&change))
        .await
        .unwrap();
    place
        .until("drift-seed", |found: &Deployment| {
            let component = &found.labels()["app.kubernetes.io/component"];
            let replicas = found.spec.as_ref().and_then(|s| s.replicas);
            if replicas == Some(1) && component == "seed" {
                Ok(())
            } else {
                Err(format!("{replicas:?} {component}"))
            }
        })
        .await;

    let maps = place.api::<ConfigMap>();
    let before = maps.get("drift-bootstrap").await.unwrap();
    maps.delete("drift-bootstrap", &DeleteParams::default())
        .await
        .unwrap();
    place
        .until("drift-bootstrap", |found: &ConfigMap| {
            if found.uid() == before.uid() {
                return Err("the old one is still there".to_owned());
            }
            assert_eq!(found.data, before.data);
            Ok(())
        })
        .await;

    // A Service that is made anew has another address: all who name it are told.
    let services = place.api::<Service>();
    services
        .delete("drift-scheduler-0", &DeleteParams::default())
        .await
        .unwrap();
    let address = place
        .until("drift-scheduler-0", |found: &Service| {
            let address = found.spec.as_ref().and_then(|s| s.cluster_ip.clone());
            address.ok_or_else(|| "no address".to_owned())
        })
        .await;
    place
        .until("drift-bootstrap", |found: &ConfigMap| {
            let text = &found.data.as_ref().unwrap()["bootstrap.json"];
            if text.contains(&address) {
                Ok(())
            } else {
                Err(text.clone())
            }
        })
        .await;
}

#[tokio::test]
async fn what_the_spec_no_longer_asks_for_goes() {
    let place = place().await;
    place
        .apply("{apiVersion: d7y.io/v1alpha1, kind: SchedulerPool, metadata: {name: p}, spec: {replicas: 3}}")
        .await;
    let wide = "{schedulerPoolRef: {name: p}, seeds: {replicas: 2, storage: {volumeClaim: {size: 1Gi}}}, \
                networkPolicies: {nodeCIDRs: [10.0.0.0/8]}}";
    place.mesh("m", wide).await;
    place.applied("m").await;
    for index in 0..2 {
        let name = format!("m-seed-{index}");
        place
            .api::<PersistentVolumeClaim>()
            .get(&name)
            .await
            .unwrap();
        place.api::<Deployment>().get(&name).await.unwrap();
    }
    let scheduler = place
        .api::<Deployment>()
        .get("m-scheduler-2")
        .await
        .unwrap();
    let args = scheduler.spec.unwrap().template.spec.unwrap().containers[0]
        .args
        .clone()
        .unwrap();
    let replicas = args
        .iter()
        .filter(|a| a.starts_with("--replica=scheduler-"));
    assert_eq!(replicas.count(), 2);
    place
        .api::<PodDisruptionBudget>()
        .get("m-seed")
        .await
        .unwrap();
    place
        .api::<PodDisruptionBudget>()
        .get("m-scheduler")
        .await
        .unwrap();
    place.api::<NetworkPolicy>().get("m-seed").await.unwrap();

    // Fewer schedulers by the pool alone, the rest by the mesh.
    place
        .apply("{apiVersion: d7y.io/v1alpha1, kind: SchedulerPool, metadata: {name: p}, spec: {replicas: 1}}")
        .await;
    place.gone::<Deployment>("m-scheduler-2").await;
    place.gone::<Service>("m-scheduler-1").await;
    place.gone::<PodDisruptionBudget>("m-scheduler").await;
    place
        .mesh(
            "m",
            "{schedulerPoolRef: {name: p}, security: {transport: Plaintext}}",
        )
        .await;
    place.gone::<Deployment>("m-seed-0").await;
    // Nobody confirms that no pod uses them: marked is as far as it goes without controllers.
    place
        .until("m-seed-1", |claim: &PersistentVolumeClaim| {
            let marked = claim.metadata.deletion_timestamp.is_some();
            marked.then_some(()).ok_or_else(|| "not deleted".to_owned())
        })
        .await;
    place.gone::<NetworkPolicy>("m-seed").await;
    place.gone::<Secret>("m-join").await;
    let seeds = place.api::<Deployment>().get("m-seed").await.unwrap();
    let pod = seeds.spec.unwrap().template.spec.unwrap();
    let args = pod.containers[0].args.clone().unwrap();
    assert!(!args.iter().any(|a| a.contains("join-token")), "{args:?}");
    // Schedulers sign with them whatever the transport is.
    place.api::<Secret>().get("m-authority").await.unwrap();
}

#[tokio::test]
async fn nothing_is_written_when_nothing_changed_even_by_an_operator_that_starts() {
    let (cluster, installed, place) = own().await;
    let first = Operator::start(&cluster, &installed).await.unwrap();
    place
        .mesh(
            "m",
            "{seeds: {pods: {resources: {requests: {cpu: '0.5', memory: 1024Mi}}}}}",
        )
        .await;
    place.applied("m").await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let writes = first.writes().await.unwrap();
    assert!(writes > 10, "{writes}");
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(first.writes().await.unwrap(), writes, "{}", first.said());
    let status = first.stop().await.unwrap();
    assert!(status.success(), "{status}");

    let second = Operator::start(&cluster, &installed).await.unwrap();
    let looked = dragonfly_cluster::wait::wait_until("a first look", SOON, || async {
        let text = second.metrics().await.unwrap_or_default();
        let done = text.contains("kind=\"Distribution\",outcome=\"done\"");
        Ok(done.then_some(()).ok_or_else(|| second.said()))
    });
    looked.await.unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(second.writes().await.unwrap(), 0, "{}", second.said());
    // And a change is.
    place.mesh("m", "{seeds: {replicas: 2}}").await;
    place
        .until("m-seed", |found: &Deployment| {
            let replicas = found.spec.as_ref().and_then(|s| s.replicas);
            (replicas == Some(2))
                .then_some(())
                .ok_or_else(|| format!("{replicas:?}"))
        })
        .await;
    assert!(second.writes().await.unwrap() > 0);
    let mesh: Distribution = place.get("m").await;
    assert!(condition(&mesh, "Ready").is_some());
    drop(second);
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn an_operator_that_hears_of_meshes_late_does_not_say_that_a_pool_serves_none() {
    let (cluster, _, place) = own().await;
    let pool = |replicas: i32| {
        format!(
            "{{apiVersion: d7y.io/v1alpha1, kind: SchedulerPool, metadata: {{name: p}}, \
             spec: {{replicas: {replicas}}}}}"
        )
    };
    let serves = |desired: i32| {
        move |pool: &SchedulerPool| {
            let status = pool.status.clone().unwrap_or_default();
            let schedulers = status.schedulers.map(|s| s.desired);
            if (status.distributions, schedulers) == (Some(1), Some(desired)) {
                Ok(())
            } else {
                Err(format!("{status:?}"))
            }
        }
    };
    place.apply(&pool(1)).await;
    place.mesh("m", "{schedulerPoolRef: {name: p}}").await;
    let first = Faults::default();
    let operator = super::bed::operator(&cluster, &first).await;
    place.until("p", serves(1)).await;
    place.applied("m").await;
    let writes = quiet(&first, &place).await;
    assert!(writes > 10, "{writes}");
    drop(operator);

    let late = Faults {
        late: Duration::from_secs(2),
        ..Faults::default()
    };
    let operator = super::bed::operator(&cluster, &late).await;
    tokio::time::sleep(late.late * 3).await;
    assert_eq!(late.written(&place.namespace), 0);
    // It works.
    place.apply(&pool(2)).await;
    place.until("p", serves(2)).await;
    drop(operator);
    cluster.stop().await.unwrap();
}

/// Until an operator has written nothing for a while: how often it did.
async fn quiet(faults: &Faults, place: &Place) -> usize {
    loop {
        let before = faults.written(&place.namespace);
        tokio::time::sleep(Duration::from_secs(3)).await;
        if faults.written(&place.namespace) == before {
            return before;
        }
    }
}

/// Pods as the mesh's workloads make them, tried against a level of Pod Security.
async fn taken_at(place: &Place, level: &str) -> [bool; 3] {
    let namespaces: kube::Api<k8s_openapi::api::core::v1::Namespace> =
        kube::Api::all(place.client.clone());
    let label = json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": level}}});
    namespaces
        .patch(
            &place.namespace,
            &PatchParams::default(),
            &Patch::Merge(&label),
        )
        .await
        .unwrap();
    let deployments = place.api::<Deployment>();
    let scheduler = deployments
        .get("m-scheduler-0")
        .await
        .unwrap()
        .spec
        .unwrap();
    let seed = deployments.get("m-seed").await.unwrap().spec.unwrap();
    let peer = place
        .api::<DaemonSet>()
        .get("m-peer")
        .await
        .unwrap()
        .spec
        .unwrap();
    let mut taken = [false; 3];
    for (taken, template) in
        taken
            .iter_mut()
            .zip([scheduler.template, seed.template, peer.template])
    {
        let pod = k8s_openapi::api::core::v1::Pod {
            metadata: kube::api::ObjectMeta {
                name: Some("tried".to_owned()),
                ..Default::default()
            },
            spec: template.spec,
            ..Default::default()
        };
        let params = kube::api::PostParams {
            dry_run: true,
            ..Default::default()
        };
        let made = place.api().create(&params, &pod).await;
        *taken = match made {
            Ok(_) => true,
            Err(kube::Error::Api(status)) if status.message.contains("PodSecurity") => false,
            Err(other) => panic!("{other}"),
        };
    }
    taken
}

#[tokio::test]
async fn only_peers_need_a_privileged_namespace() {
    let place = place().await;
    place.mesh("m", "{}").await;
    place.applied("m").await;
    assert_eq!(taken_at(&place, "restricted").await, [true, true, false]);
    assert_eq!(taken_at(&place, "baseline").await, [true, true, false]);
    assert_eq!(taken_at(&place, "privileged").await, [true, true, true]);
}

#[tokio::test]
async fn an_operators_service_that_is_made_anew_is_in_the_bootstrap_within_seconds() {
    const NAME: &str = "dragonfly-operator";
    let (cluster, installed, place) = own().await;
    let system = place.beside(installed.system.clone());
    let issuer = At::Service {
        namespace: installed.system.clone(),
        name: NAME.to_owned(),
    };
    let options = options(issuer);
    let operator =
        dragonfly_controllers::Operator::new(place.client.clone(), options, Arc::default());
    let stop = CancellationToken::new();
    let leads = operator.lead(Arc::default(), stop.clone());
    let test = async {
        place.mesh("m", "{}").await;
        place.applied("m").await;
        let address = async || {
            let services = system.api::<Service>();
            let service = services.get(NAME).await.unwrap();
            format!("{}:8443", service.spec.unwrap().cluster_ip.unwrap())
        };
        let names = |wanted: String| {
            move |map: &ConfigMap| {
                let text = map.data.as_ref().unwrap()["bootstrap.json"].clone();
                if text.contains(&format!("\"issuer\":\"{wanted}\"")) {
                    Ok(())
                } else {
                    Err(text)
                }
            }
        };
        let before = address().await;
        place.until("m-bootstrap", names(before.clone())).await;
        let services = system.api::<Service>();
        services
            .delete(NAME, &DeleteParams::default())
            .await
            .unwrap();
        let text = config(&read, "operator/service.yaml", &installed.system).unwrap();
        apply::yaml(&system.client, &installed.system, &text)
            .await
            .unwrap();
        let after = address().await;
        assert_ne!(after, before);
        place.until("m-bootstrap", names(after)).await;
        stop.cancel();
    };
    futures::join!(leads, test);
    cluster.stop().await.unwrap();
}
