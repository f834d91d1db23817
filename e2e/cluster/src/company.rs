//! A company's CA, the requests by which it is asked for the CA of mesh `default`, and what becomes of that.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "what a test expects and does not find ends the test"
)]

use std::time::{Duration, SystemTime};

use dragonfly_crds::Distribution;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams};
use kube::core::ApiResource;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
    SubjectPublicKeyInfo,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};
use serde_json::{Value, json};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::place::{Place, SOON, condition};
use crate::wait::wait_until;
use dragonfly_e2e::Failed;

/// A day.
pub const DAY: Duration = Duration::from_secs(86_400);

/// A company's CA.
pub struct Company(CertifiedIssuer<'static, KeyPair>);

impl Company {
    /// A new one of this name.
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().unwrap();
        Self(CertifiedIssuer::self_signed(params, key).unwrap())
    }

    /// Its certificate, PEM.
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// The same, DER.
    pub fn der(&self) -> CertificateDer<'static> {
        self.0.der().clone()
    }

    /// As an issuer of type CA wants it.
    pub fn secret(&self, name: &str) -> String {
        let data = json!({"tls.crt": self.pem(), "tls.key": self.0.key().serialize_pem()});
        json!({
            "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
            "metadata": {"name": name}, "stringData": data,
        })
        .to_string()
    }

    /// A CA of this key for a day, but for a change; PEM, with the company's own behind it.
    pub fn signs(&self, key: &[u8], change: impl FnOnce(&mut CertificateParams)) -> String {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "a mesh");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.not_before = SystemTime::now().into();
        params.not_after = (SystemTime::now() + DAY).into();
        change(&mut params);
        let key = SubjectPublicKeyInfo::from_der(key).unwrap();
        let cert = params.signed_by(&key, &self.0).unwrap();
        cert.pem() + &self.pem()
    }
}

/// Whose name is on a certificate (PEM): subject, and who signed it.
pub fn names(pem: &str) -> (String, String) {
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    let (_, read) = X509Certificate::from_der(&der).unwrap();
    (read.subject().to_string(), read.issuer().to_string())
}

/// The kind of requests.
pub fn request_kind() -> ApiResource {
    ApiResource {
        group: "cert-manager.io".to_owned(),
        version: "v1".to_owned(),
        api_version: "cert-manager.io/v1".to_owned(),
        kind: "CertificateRequest".to_owned(),
        plural: "certificaterequests".to_owned(),
    }
}

/// Requests in a place.
pub fn requests(place: &Place) -> Api<DynamicObject> {
    Api::namespaced_with(place.client.clone(), &place.namespace, &request_kind())
}

/// The request of mesh `default`, once there is one that is not the given (a UID).
pub async fn asked(place: &Place, but: Option<&str>) -> DynamicObject {
    let all = requests(place);
    wait_until("a request for a CA", SOON, || async {
        let found = all.get_opt("default-ca").await;
        let found = found.map_err(|e| Failed::at("default-ca", e))?;
        let found = found.filter(|found| found.uid().as_deref() != but);
        Ok(found.ok_or_else(|| "none".to_owned()))
    })
    .await
    .unwrap()
}

/// The key of who made a request, as certificates say it.
pub fn key_of(request: &DynamicObject) -> Vec<u8> {
    let text: ByteString = serde_json::from_value(request.data["spec"]["request"].clone()).unwrap();
    let der = CertificateSigningRequestDer::from_pem_slice(&text.0).unwrap();
    let (_, read) = X509CertificationRequest::from_der(&der).unwrap();
    read.certification_request_info.subject_pki.raw.to_vec()
}

/// Writes what an issuer says: conditions as (type, status, reason, message), and a chain.
pub async fn answers(place: &Place, conditions: &[(&str, &str, &str, &str)], chain: Option<&str>) {
    let conditions: Vec<_> = conditions
        .iter()
        .map(|(type_, status, reason, message)| {
            json!({"type": type_, "status": status, "reason": reason, "message": message})
        })
        .collect();
    let mut status = json!({"conditions": conditions});
    if let Some(chain) = chain {
        status["certificate"] = json!(ByteString(chain.as_bytes().to_vec()));
    }
    let patch = Patch::Merge(json!({"status": status}));
    let params = PatchParams::default();
    let all = requests(place);
    let patched = all.patch_status("default-ca", &params, &patch).await;
    patched.unwrap();
}

/// What an approver says.
pub const APPROVED: (&str, &str, &str, &str) = ("Approved", "True", "test", "approved");
/// What an issuer says that has signed.
pub const READY: (&str, &str, &str, &str) = ("Ready", "True", "Issued", "signed");

/// Has the request signed.
pub async fn signs(place: &Place, company: &Company, request: &DynamicObject) {
    let chain = company.signs(&key_of(request), |_| ());
    answers(place, &[APPROVED, READY], Some(&chain)).await;
}

/// Deletes the request.
pub async fn deletes(place: &Place) {
    let params = DeleteParams::default();
    requests(place).delete("default-ca", &params).await.unwrap();
}

/// Until no request is there.
pub async fn none_asked(place: &Place) {
    let all = requests(place);
    wait_until("no request for a CA", SOON, || async {
        let found = all.get_opt("default-ca").await;
        let found = found.map_err(|e| Failed::at("default-ca", e))?;
        Ok(found.map_or(Ok(()), |found| Err(format!("{:?}", found.data))))
    })
    .await
    .unwrap();
}

/// What the Secret of the mesh's CA holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// Signs.
    pub ca: Option<String>,
    /// Will.
    pub next: Option<String>,
    /// Did.
    pub previous: Option<String>,
    /// The key of one that an issuer was asked for.
    pub asked: Option<String>,
    /// Who signed the newest.
    pub issuer: Option<String>,
}

impl Kept {
    fn read(secret: &Secret) -> Self {
        let text = |key: &str| {
            let found = secret.data.as_ref()?.get(key)?;
            Some(String::from_utf8(found.0.clone()).unwrap())
        };
        Self {
            ca: text("ca.pem"),
            next: text("next.pem"),
            previous: text("previous.pem"),
            asked: text("asked.key"),
            issuer: secret.annotations().get("d7y.io/ca-issuer").cloned(),
        }
    }

    /// What it holds now.
    pub async fn of(place: &Place) -> Self {
        let secrets: Api<Secret> = place.api();
        Self::read(&secrets.get("default-ca").await.unwrap())
    }

    /// Once it is as wanted.
    pub async fn once(place: &Place, wanted: impl Fn(&Self) -> bool) -> Self {
        let as_wanted = |secret: &Secret| {
            let kept = Self::read(secret);
            if wanted(&kept) {
                Ok(kept)
            } else {
                Err(format!("{kept:?}"))
            }
        };
        place.until("default-ca", as_wanted).await
    }
}

/// The CAs that parts are told to trust, PEM.
pub async fn told(place: &Place) -> String {
    let maps: Api<ConfigMap> = place.api();
    let map = maps.get("default-bootstrap").await.unwrap();
    let text = &map.data.unwrap()["bootstrap.json"];
    let bootstrap: Value = serde_json::from_str(text).unwrap();
    bootstrap["ca"].as_str().unwrap().to_owned()
}

/// The mesh with this in `spec.security`.
pub async fn mesh(place: &Place, security: &str) {
    place
        .mesh("default", &format!("{{security: {security}}}"))
        .await;
}

/// Until the newest spec of the mesh was looked at and Ready's message says this.
pub async fn says(place: &Place, text: &str) -> String {
    place
        .until("default", |mesh: &Distribution| {
            let ready = condition(mesh, "Ready").ok_or("nothing")?;
            let current = ready.observed_generation == mesh.metadata.generation;
            if current && ready.message.contains(text) {
                Ok(ready.message.clone())
            } else {
                Err(format!("{ready:?}"))
            }
        })
        .await
}
