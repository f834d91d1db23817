//! CAs of meshes that cert-manager's own controllers sign.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use dragonfly_cluster::definitions::Neighbour;
use dragonfly_cluster::tools::Tool;
use dragonfly_cluster::{Cluster, Operator, Place};
use dragonfly_e2e::process::{self, Process};
use dragonfly_identity::{Ca, Role, Who};
use k8s_openapi::api::core::v1::Secret;
use kube::api::Api;
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::{ServerName, UnixTime};
use serde_json::json;

use super::bed::own;
use super::several::Part;
use dragonfly_cluster::company::{Company, Kept, mesh, names, none_asked, says};

/// cert-manager's controllers as a process, with an administrator's rights. Secrets of ClusterIssuers are in
/// this namespace.
fn cert_manager(cluster: &Cluster, namespace: &str, log: &Path) -> Process {
    let program = Tool::CertManager.built().unwrap()["cert-manager"].clone();
    let mut command = Command::new(program);
    command
        .env("KUBECONFIG", cluster.kubeconfig())
        .env("CLUSTER_RESOURCE_NAMESPACE", namespace)
        .stdout(process::log(log).unwrap())
        .stderr(process::log(log).unwrap());
    Process::spawn("cert-manager", &mut command).unwrap()
}

/// An issuer.
fn issuer(kind: &str, name: &str, spec: &serde_json::Value) -> String {
    json!({
        "apiVersion": "cert-manager.io/v1", "kind": kind, "metadata": {"name": name}, "spec": spec,
    })
    .to_string()
}

/// Whether who trusts a company takes a server of this name for genuine that shows a certificate by the
/// mesh's CA, and that CA's.
async fn is_believed(company: &Company, place: &Place, name: &str) -> Result<(), rustls::Error> {
    let secrets: Api<Secret> = place.api();
    let data = secrets.get("default-ca").await.unwrap().data.unwrap();
    let text = |key: &str| String::from_utf8(data[key].0.clone()).unwrap();
    let ca = Ca::read(&text("ca.pem"), &text("ca.key")).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let who = Who {
        mesh: "m".to_owned(),
        role: Role::Peer,
        node: "n".to_owned(),
    };
    let hour = Duration::from_secs(3600);
    let given = ca.issue(&key, vec![name.to_owned()], &who, hour).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(company.der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider);
    let server = ServerName::try_from(name).unwrap();
    let between = [ca.der().clone()];
    let verifier = verifier.build().unwrap();
    let now = UnixTime::now();
    let verified = verifier.verify_server_cert(&given, &between, &server, &[], now);
    verified.map(|_| ())
}

/// A name as parts of meshes have them.
const NODE: &str = "0123456789abcdef0123456789abcdef.node.d7y.internal";

#[tokio::test]
#[ignore = "builds cert-manager, which takes minutes: make test-full runs it"]
async fn cert_manager_signs_the_ca_of_a_mesh() {
    let (cluster, installed, place) = own().await;
    Neighbour::CertManager.install(&place.client).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let theirs = cert_manager(&cluster, &place.namespace, &log);
    let operator = Operator::start_with(&cluster, &installed, |command| {
        command.arg("--ca-overlap=0.05");
    });
    let operator = operator.await.unwrap();
    let place = place.with_log(operator.log().to_owned()).with_log(log);
    let (one, other) = (Company::new("one"), Company::new("other"));

    // An issuer that is not there yet.
    mesh(&place, "{issuerRef: {name: one}}").await;
    let said = says(&place, "not found").await;
    assert!(said.contains("Issuer one has not signed"), "{said}");
    place.apply(&one.secret("one")).await;
    place
        .apply(&issuer(
            "Issuer",
            "one",
            &json!({"ca": {"secretName": "one"}}),
        ))
        .await;
    place.applied("default").await;
    none_asked(&place).await;
    let kept = Kept::once(&place, |kept| kept.asked.is_none()).await;
    let first = kept.ca.unwrap();
    is_believed(&one, &place, NODE).await.unwrap();
    is_believed(&other, &place, NODE).await.unwrap_err();
    // cert-manager put into the certificate what was asked for: names of meshes, and no others.
    let refused = is_believed(&one, &place, "intranet.example").await;
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("NameConstraintViolation"), "{refused}");
    let uid = place.get("default").await.metadata.uid.unwrap();
    assert_eq!(names(&first).0, format!("CN=Dragonfly mesh {uid}"));
    Part::of(&place)
        .await
        .gets_a_certificate(&operator.address("issuer").unwrap())
        .await;

    // Another one, of the cluster: with overlap.
    place.apply(&other.secret("other")).await;
    let spec = json!({"ca": {"secretName": "other"}});
    place.apply(&issuer("ClusterIssuer", "other", &spec)).await;
    mesh(&place, "{issuerRef: {name: other, kind: ClusterIssuer}}").await;
    let kept = Kept::once(&place, |kept| kept.previous.is_some()).await;
    assert_eq!(kept.previous.as_deref().map(str::trim), Some(first.trim()));
    assert_eq!(
        kept.issuer.as_deref(),
        Some("ClusterIssuer.cert-manager.io/other")
    );
    is_believed(&other, &place, NODE).await.unwrap();
    Part::of(&place)
        .await
        .gets_a_certificate(&operator.address("issuer").unwrap())
        .await;

    // One that signs nothing that it is not given the key of.
    place
        .apply(&issuer("Issuer", "self", &json!({"selfSigned": {}})))
        .await;
    mesh(&place, "{issuerRef: {name: self}}").await;
    let said = place.stalled("default", "IssuerRefused").await;
    assert!(
        said.contains("Issuer self") && said.contains("private-key"),
        "{said}"
    );
    drop((theirs, operator));
    cluster.stop().await.unwrap();
}
