//! CAs of meshes that an issuer of cert-manager signs. Here the test is the issuer: it answers requests as
//! cert-manager would, or as it should not. `cert_manager.rs` has cert-manager's own controllers.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use dragonfly_cluster::definitions::Neighbour;
use dragonfly_cluster::place::condition;
use dragonfly_cluster::{Cluster, ClusterOptions, Installed, Operator, Place};
use dragonfly_crds::Distribution;
use k8s_openapi::api::apps::v1::Deployment;
use kube::ResourceExt;
use kube::api::{Api, DynamicObject, ListParams};
use rcgen::{CertificateParams, IsCa, KeyPair, PublicKeyData};
use serde_json::json;
use tokio::sync::OnceCell;

use super::bed;
use super::several::Part;
use dragonfly_cluster::company::{
    APPROVED, Company, DAY, Kept, READY, answers, asked, deletes, key_of, mesh, names, none_asked,
    requests, says, signs, told,
};

const ISSUER: &str = "{issuerRef: {name: company}}";
/// A new CA signs after three seconds; so one is taken for good that holds for eighteen.
const OVERLAP: &str = "--ca-overlap=0.05";

/// An API server with cert-manager's kinds, and an operator that soon lets new CAs sign.
struct Issuers {
    cluster: Arc<Cluster>,
    free: Mutex<Vec<String>>,
    operator: Operator,
}

async fn place() -> (Place, &'static Operator) {
    static BED: OnceCell<Issuers> = OnceCell::const_new();
    let bed = BED.get_or_init(|| async {
        let cluster = Cluster::start(&ClusterOptions::api_server()).await.unwrap();
        let mut free = vec![];
        for _ in 0..4 {
            free.push(Place::new(&cluster).await.unwrap().namespace.clone());
        }
        let client = cluster.client().await.unwrap();
        Neighbour::CertManager.install(&client).await.unwrap();
        let names: Vec<_> = free.iter().map(String::as_str).collect();
        let installed = Installed::on(&cluster, &names).await.unwrap();
        let operator = Operator::start_with(&cluster, &installed, |command| {
            command.arg(OVERLAP);
        });
        let operator = operator.await.unwrap();
        Issuers {
            cluster: Arc::new(cluster),
            free: Mutex::new(free),
            operator,
        }
    });
    let bed = bed.await;
    let name = bed.free.lock().unwrap().pop().expect("more namespaces");
    let place = Place::of(&bed.cluster, name).await.unwrap();
    (place.with_log(bed.operator.log().to_owned()), &bed.operator)
}

/// Until the mesh waits for its issuer: what it says.
async fn waits(place: &Place) -> String {
    place
        .until("default", |mesh: &Distribution| {
            let said = condition(mesh, "Reconciling").ok_or("nothing is said yet")?;
            if said.status == "True" && said.reason == "WaitingForIssuer" {
                Ok(said.message.clone())
            } else {
                Err(format!("{said:?}"))
            }
        })
        .await
}

/// Deletes the request, and has the operator look at once: the one that it asks then.
async fn asked_anew(place: &Place, last: &DynamicObject) -> DynamicObject {
    deletes(place).await;
    let rate = fastrand::u32(1..1_000_000);
    let spec = format!("{{security: {ISSUER}, limits: {{upload: {rate}Mi}}}}");
    place.mesh("default", &spec).await;
    asked(place, last.uid().as_deref()).await
}

#[tokio::test]
async fn an_issuer_signs_the_ca_of_a_mesh_and_the_operator_gives_certificates_with_it() {
    let (place, operator) = place().await;
    mesh(&place, ISSUER).await;
    let request = asked(&place, None).await;
    let spec = &request.data["spec"];
    assert_eq!(spec["isCA"], json!(true));
    assert_eq!(spec["duration"], json!("8760h"));
    let issuer = json!({"name": "company", "kind": "Issuer", "group": "cert-manager.io"});
    assert_eq!(spec["issuerRef"], issuer);
    let uid = place.get("default").await.metadata.uid.unwrap();
    assert_eq!(request.owner_references()[0].uid, uid);
    let said = waits(&place).await;
    let named = format!("CertificateRequest {}/default-ca", place.namespace);
    for wanted in ["spec.security.issuerRef: Issuer company", &named] {
        assert!(said.contains(wanted), "{wanted}: {said}");
    }
    says(&place, "nobody has approved it yet").await;
    // In the issuer's own words.
    let pending = ("Ready", "False", "Pending", "the boss is at lunch");
    answers(&place, &[APPROVED, pending], None).await;
    says(&place, "the boss is at lunch").await;
    // Nothing runs that could not prove who it is.
    let deployments: Api<Deployment> = place.api();
    let listed = deployments.list(&ListParams::default()).await.unwrap();
    assert!(listed.items.is_empty());
    let kept = Kept::of(&place).await;
    assert!(kept.ca.is_none() && kept.asked.is_some(), "{kept:?}");

    signs(&place, &Company::new("the company"), &request).await;
    place.applied("default").await;
    none_asked(&place).await;
    let kept = Kept::once(&place, |kept| kept.asked.is_none()).await;
    let issuer = kept.issuer.as_deref();
    assert_eq!(issuer, Some("Issuer.cert-manager.io/company"));
    let ca = kept.ca.unwrap();
    assert_eq!(
        names(&ca),
        ("CN=a mesh".to_owned(), "CN=the company".to_owned())
    );
    // That alone is trusted, and not the company.
    assert_eq!(told(&place).await, ca);
    let part = Part::of(&place).await;
    part.gets_a_certificate(&operator.address("issuer").unwrap())
        .await;
}

#[tokio::test]
async fn an_issuer_that_is_added_changed_or_removed_replaces_the_ca_with_overlap() {
    let (place, operator) = place().await;
    mesh(&place, "{}").await;
    place.applied("default").await;
    let own = Kept::of(&place).await.ca.unwrap();
    assert_eq!(names(&own).0, names(&own).1);

    // What runs goes on with the CA that is there.
    mesh(&place, ISSUER).await;
    let request = asked(&place, None).await;
    let said = says(&place, "has not signed the mesh's CA yet").await;
    assert!(said.contains("Issuer company"), "{said}");
    place.applied("default").await;
    assert_eq!(told(&place).await, own);
    let (one, other) = (Company::new("one"), Company::new("other"));
    signs(&place, &one, &request).await;
    let kept = Kept::once(&place, |kept| kept.next.is_some() && kept.asked.is_none()).await;
    assert_eq!(kept.ca.as_ref(), Some(&own), "it signs before it is known");
    let signed = kept.next.unwrap();
    assert_eq!(names(&signed).1, "CN=one");
    none_asked(&place).await;
    let kept = Kept::once(&place, |kept| kept.previous.is_some()).await;
    assert_eq!((kept.ca.as_ref(), kept.next), (Some(&signed), None));
    assert_eq!(kept.previous.as_ref(), Some(&own));
    let all = told(&place).await;
    assert!(all.contains(signed.trim()) && all.contains(own.trim()));
    let part = Part::of(&place).await;
    part.gets_a_certificate(&operator.address("issuer").unwrap())
        .await;

    // Another one, and before that has answered another one again.
    mesh(&place, "{issuerRef: {name: slow, kind: ClusterIssuer}}").await;
    let slow = asked(&place, request.uid().as_deref()).await;
    mesh(&place, "{issuerRef: {name: other}}").await;
    let request = asked(&place, slow.uid().as_deref()).await;
    assert_eq!(request.data["spec"]["issuerRef"]["name"], json!("other"));
    signs(&place, &other, &request).await;
    let is_other = |kept: &Kept| kept.ca.as_ref().is_some_and(|ca| names(ca).1 == "CN=other");
    let kept = Kept::once(&place, is_other).await;
    assert!(kept.previous.unwrap().contains(signed.trim()));

    // And none; what was asked of one meanwhile is asked no more.
    mesh(&place, "{caGeneration: 1, issuerRef: {name: other}}").await;
    asked(&place, request.uid().as_deref()).await;
    mesh(&place, "{caGeneration: 1}").await;
    none_asked(&place).await;
    let is_own = |kept: &Kept| {
        kept.ca
            .as_ref()
            .is_some_and(|ca| names(ca).0 == names(ca).1)
    };
    let kept = Kept::once(&place, is_own).await;
    assert_eq!((kept.issuer, kept.asked), (None, None));
}

/// What an issuer may do wrong.
type Wrong = (fn(&mut CertificateParams), &'static str);

#[tokio::test]
async fn an_issuer_that_refuses_or_signs_something_else_is_said_and_asked_again() {
    let (place, _) = place().await;
    let company = Company::new("the company");
    mesh(&place, ISSUER).await;
    let mut request = asked(&place, None).await;
    let refusals = [
        (
            ("Denied", "True", "policy", "no CA for you"),
            "it was denied: no CA for you",
        ),
        (("Ready", "False", "Failed", "no such key"), "no such key"),
        (
            ("InvalidRequest", "True", "Bad", "too long"),
            "for invalid: too long",
        ),
    ];
    for (condition, words) in refusals {
        answers(&place, &[condition], None).await;
        says(&place, words).await;
        let said = place.stalled("default", "IssuerRefused").await;
        let issuer = "spec.security.issuerRef: Issuer company";
        for wanted in [words, issuer, "again 1m after"] {
            assert!(said.contains(wanted), "{wanted}: {said}");
        }
        // Somebody put it right, and does not want to wait.
        request = asked_anew(&place, &request).await;
    }
    let wrong: [Wrong; 4] = [
        (|params| params.is_ca = IsCa::ExplicitNoCa, "is no CA's"),
        (
            |params| params.not_after = SystemTime::now().into(),
            "is over already",
        ),
        (
            |params| params.not_before = (SystemTime::now() + DAY / 2).into(),
            "is not good yet",
        ),
        (
            |params| params.not_after = (SystemTime::now() + Duration::from_secs(15)).into(),
            "a mesh needs one for 18s at least",
        ),
    ];
    for (change, words) in wrong {
        let chain = company.signs(&key_of(&request), change);
        answers(&place, &[APPROVED, READY], Some(&chain)).await;
        says(&place, words).await;
        request = asked_anew(&place, &request).await;
    }
    let other = KeyPair::generate().unwrap().subject_public_key_info();
    let chain = company.signs(&other, |_| ());
    answers(&place, &[APPROVED, READY], Some(&chain)).await;
    says(&place, "another's").await;
    assert!(Kept::of(&place).await.ca.is_none());
    request = asked_anew(&place, &request).await;
    signs(&place, &company, &request).await;
    place.applied("default").await;
    none_asked(&place).await;

    // A mesh that has a CA keeps it, and what else its spec says comes into force.
    let before = Kept::of(&place).await.ca;
    mesh(&place, "{caGeneration: 1, issuerRef: {name: company}}").await;
    asked(&place, request.uid().as_deref()).await;
    let denied = ("Denied", "True", "policy", "once is enough");
    answers(&place, &[denied], None).await;
    place.stalled("default", "IssuerRefused").await;
    let policy = |mesh: &Distribution| {
        let policy = mesh.status.as_ref().and_then(|s| s.policy());
        policy.unwrap().unwrap()
    };
    let revision = policy(&place.get("default").await).revision;
    place
        .mesh(
            "default",
            "{security: {caGeneration: 1, issuerRef: {name: company}}, storage: {quota: 2Gi}}",
        )
        .await;
    place.stalled("default", "IssuerRefused").await;
    let now = policy(&place.get("default").await);
    assert_eq!(
        (now.revision, now.node.storage.quota_bytes),
        (revision + 1, 2 << 30)
    );
    assert_eq!(Kept::of(&place).await.ca, before);
}

#[tokio::test]
async fn a_request_of_somebody_else_is_left_alone() {
    let (place, _) = place().await;
    let theirs = json!({
        "apiVersion": "cert-manager.io/v1", "kind": "CertificateRequest",
        "metadata": {"name": "default-ca"},
        "spec": {"request": "eA==", "issuerRef": {"name": "theirs"}},
    });
    place.apply(&theirs.to_string()).await;
    mesh(&place, ISSUER).await;
    let said = place.stalled("default", "NameTaken").await;
    assert!(said.contains("CertificateRequest"), "{said}");
    let kept = requests(&place).get("default-ca").await.unwrap();
    assert_eq!(kept.data["spec"]["issuerRef"]["name"], json!("theirs"));
    asked_anew(&place, &kept).await;
}

#[tokio::test]
async fn who_takes_over_goes_on_with_the_same_request_and_waiting_writes_nothing() {
    let (cluster, installed, place) = bed::own().await;
    Neighbour::CertManager.install(&place.client).await.unwrap();
    let mut first = Operator::start(&cluster, &installed).await.unwrap();
    mesh(&place, ISSUER).await;
    let request = asked(&place, None).await;
    let said = waits(&place).await;
    let key = Kept::of(&place).await.asked;
    says(&place, "nobody has approved it yet").await;
    // From then on nothing, however often it looks.
    let before = (
        first.writes().await.unwrap(),
        super::several::versions(&place).await,
    );
    tokio::time::sleep(Duration::from_secs(6)).await;
    let after = (
        first.writes().await.unwrap(),
        super::several::versions(&place).await,
    );
    assert_eq!(before, after, "{said}");
    first.kill();
    let second = Operator::start(&cluster, &installed).await.unwrap();
    signs(&place, &Company::new("the company"), &request).await;
    place.applied("default").await;
    let kept = Kept::once(&place, |kept| kept.asked.is_none()).await;
    assert_eq!(names(&kept.ca.unwrap()).1, "CN=the company");
    let secret: k8s_openapi::api::core::v1::Secret = place.api().get("default-ca").await.unwrap();
    let used = secret.data.unwrap().remove("ca.key").unwrap().0;
    assert_eq!(key.unwrap().into_bytes(), used);
    second.stop().await.unwrap();
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn without_cert_manager_it_is_said_what_is_missing() {
    let place = bed::place().await;
    mesh(&place, ISSUER).await;
    let said = place.stalled("default", "CertManagerMissing").await;
    for wanted in [
        "Issuer company",
        "install cert-manager",
        "take spec.security.issuerRef away",
    ] {
        assert!(said.contains(wanted), "{wanted}: {said}");
    }
    mesh(&place, "{}").await;
    place.applied("default").await;
    let kept = Kept::once(&place, |kept| kept.asked.is_none()).await;
    assert!(kept.ca.is_some() && kept.issuer.is_none(), "{kept:?}");
}
