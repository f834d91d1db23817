//! A mesh's CA, signed by an issuer of cert-manager: asked for by a CertificateRequest.
//!
//! There is one of it at a time, `NAME-ca`, owned by the mesh. It carries a signing request for the key in
//! the CA's Secret and what it was made for, so whoever takes over finds it and goes on; one that was made
//! for something else, or that failed a while ago, is deleted and made anew. It is gone once it is answered
//! and the answer stands in the Secret.
//!
//! Invariants: what an issuer answers is tried before it is believed; a request that is not answered costs
//! one read now and then, and no write.

use std::time::{Duration, SystemTime};

use dragonfly_crds::conditions::reason;
use dragonfly_crds::distribution::IssuerRef;
use dragonfly_crds::duration::format_ms;
use dragonfly_identity::{Holds, ca_request, signed_ca};
use dragonfly_operator_core::status::Stalled;
use dragonfly_operator_core::{Mesh, names};
use k8s_openapi::ByteString;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, DynamicObject, PostParams, Preconditions};
use kube::core::ApiResource;
use serde_json::{Value, json};

use super::{Ages, LIFETIME, owned};
use crate::Context;
use crate::authority::KeysError;
use crate::context::said;

const FIELD: &str = "spec.security.issuerRef";
const KIND: &str = "CertificateRequest";
/// Annotation: the issuer and the key that it was made for.
const MADE_FOR: &str = "d7y.io/ca-made-for";
/// Annotation: since when, in seconds since 1970 by the operator's clock.
const SINCE: &str = "d7y.io/ca-asked-since";
/// Annotation: how often it was asked in vain before.
const FAILED: &str = "d7y.io/ca-asked-in-vain";
/// How long an issuer that refused is left alone the first time, and at most.
const AGAIN: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(3600));
/// When it is looked again: where somebody may have answered in a moment, where he has not for a while, and
/// where he will take his time.
const SOON: Duration = Duration::from_secs(2);
pub(super) const LOOK: Duration = Duration::from_secs(15);
const LATER: Duration = Duration::from_secs(60);

/// Which issuer, as the CA's Secret says it.
pub(super) fn id(issuer: &IssuerRef) -> String {
    format!("{}.{}/{}", issuer.kind, issuer.group, issuer.name)
}

/// What was asked for, and of whom, without telling the key.
fn made_for(issuer: &IssuerRef, key: &str) -> String {
    let mut hasher = blake3::Hasher::new_derive_key("dragonfly 2026-11 request for a CA v1");
    for part in [id(issuer).as_str(), key] {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    hasher.finalize().to_hex()[..16].to_owned()
}

/// What a CertificateRequest says.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// The chain, PEM.
    Signed(String),
    /// In its own words.
    Refused(String),
    Pending(String),
}

fn answer(request: &DynamicObject) -> Answer {
    let status = request.data.get("status").unwrap_or(&Value::Null);
    let text = |value: &Value, field: &str| {
        let found = value.get(field).and_then(Value::as_str);
        found.unwrap_or_default().to_owned()
    };
    let conditions = status.get("conditions").and_then(Value::as_array);
    let conditions = conditions.map_or(&[][..], Vec::as_slice);
    let condition = |type_: &str, status: &str| {
        let is = |c: &&Value| text(c, "type") == type_ && text(c, "status") == status;
        conditions.iter().find(is)
    };
    let words = |found: &Value| match text(found, "message") {
        none if none.is_empty() => text(found, "reason"),
        message => message,
    };
    if let Some(denied) = condition("Denied", "True") {
        return Answer::Refused(format!("it was denied: {}", words(denied)));
    }
    if let Some(invalid) = condition("InvalidRequest", "True") {
        return Answer::Refused(format!(
            "the request is taken for invalid: {}",
            words(invalid)
        ));
    }
    let refused = condition("Ready", "False").filter(|ready| text(ready, "reason") == "Failed");
    if let Some(failed) = refused {
        return Answer::Refused(words(failed));
    }
    let chain: Option<ByteString> = status
        .get("certificate")
        .and_then(|chain| serde_json::from_value(chain.clone()).ok());
    if let (Some(_), Some(chain)) = (condition("Ready", "True"), chain) {
        return Answer::Signed(String::from_utf8_lossy(&chain.0).into_owned());
    }
    Answer::Pending(match condition("Ready", "False") {
        Some(pending) => words(pending),
        None if condition("Approved", "True").is_some() => {
            "it is approved, and the issuer has not answered yet".to_owned()
        }
        None => {
            "nobody has approved it yet (cert-manager does, where no policy is installed; does \
                 it run?)"
                .to_owned()
        }
    })
}

/// The certificate, if it is one that the mesh can use, for long enough.
fn usable(mesh: &str, key: &str, chain: &str, ages: &Ages) -> Result<String, String> {
    let cert = signed_ca(mesh, key, chain).map_err(|error| error.to_string())?;
    let holds = Holds::of(&cert).map_err(|error| error.to_string())?;
    let left = holds.left(SystemTime::now()).unwrap_or_default();
    let least = ages.least();
    if left < least {
        let end = i64::try_from(holds.until).unwrap_or(i64::MAX);
        let end = Timestamp::from_second(end).map_or_else(|e| e.to_string(), |t| t.to_string());
        return Err(format!(
            "the certificate that was signed holds until {end}, and a mesh needs one for {} at least \
             (six times the operator's --ca-overlap): have the issuer give it for longer",
            shown(least)
        ));
    }
    Ok(cert)
}

/// A length of time for people.
fn shown(time: Duration) -> String {
    format_ms(time.as_secs().saturating_mul(1000))
}

/// How long after the last time it is asked again that was refused so often before.
fn pause(failed: u32) -> Duration {
    AGAIN.0.saturating_mul(1 << failed.min(16)).min(AGAIN.1)
}

/// Number in an annotation.
fn number(request: &DynamicObject, name: &str) -> Option<u64> {
    request.annotations().get(name)?.parse().ok()
}

impl Context {
    /// A CA's certificate for this key, by this issuer.
    ///
    /// # Errors
    /// Nobody signed it; the API server's.
    pub(super) async fn ask(
        &self,
        mesh: &Mesh,
        issuer: &IssuerRef,
        key: &str,
    ) -> Result<String, KeysError> {
        let (name, now) = (names::ca(&mesh.name), crate::unix());
        let what = format!("{KIND} {}/{name}", mesh.namespace);
        let wrong = |error: kube::Error| KeysError::Other(format!("{what}: {}", said(&error)));
        let found = self.request_of(mesh).await.map_err(wrong)?;
        let (mut failed, mut last) = (0, None);
        if let Some(found) = found {
            owned(mesh, &found, &what)?;
            let same = made_for(issuer, key);
            let is_same = found.annotations().get(MADE_FOR) == Some(&same);
            if is_same && found.metadata.deletion_timestamp.is_none() {
                let age = now.saturating_sub(number(&found, SINCE).unwrap_or_default());
                let why = match answer(&found) {
                    Answer::Pending(words) => {
                        return Err(waits(issuer, &what, &words, Duration::from_secs(age)));
                    }
                    Answer::Refused(words) => words,
                    Answer::Signed(chain) => {
                        match usable(&mesh.uid, key, &chain, &self.options.ages) {
                            Ok(cert) => return Ok(cert),
                            Err(why) => why,
                        }
                    }
                };
                let before = number(&found, FAILED).unwrap_or_default();
                let before = u32::try_from(before).unwrap_or(u32::MAX);
                if age < pause(before).as_secs() {
                    return Err(refused(issuer, &what, &why, before));
                }
                failed = before.saturating_add(1);
                last = Some(why);
            }
            self.delete_request(mesh, &found).await?;
        }
        let request = self.new_request(mesh, issuer, key, failed)?;
        let requests = self.requests(mesh);
        let status = match requests.create(&PostParams::default(), &request).await {
            Ok(_) => {
                self.metrics.wrote(KIND, "create");
                tracing::info!(what, %issuer, failed, "asked for a CA of the mesh");
                return Err(match last {
                    // Said until there is another answer.
                    Some(why) => refused(issuer, &what, &why, failed),
                    None => waits(issuer, &what, "it was just asked", Duration::ZERO),
                });
            }
            Err(kube::Error::Api(status)) => status,
            Err(error) => return Err(wrong(error)),
        };
        let stalled = |reason, text| Err(KeysError::Stalled(Stalled::new(reason, text)));
        match status.code {
            404 => stalled(
                reason::CERT_MANAGER_MISSING,
                format!(
                    "{FIELD} names {issuer}, and this cluster knows no {KIND} (cert-manager.io/v1): \
                     install cert-manager, or take {FIELD} away"
                ),
            ),
            400 | 403 | 422 => stalled(
                reason::REFUSED,
                format!("{what}, by which {FIELD} is asked: {}", status.message),
            ),
            // The one before is going.
            409 => Err(waits(issuer, &what, "the one before goes", Duration::ZERO)),
            _ => Err(KeysError::Other(format!("{what}: {}", status.message))),
        }
    }

    /// Has nobody asked any more.
    ///
    /// # Errors
    /// The API server's.
    pub(super) async fn withdraw(&self, mesh: &Mesh) -> Result<(), KeysError> {
        let name = names::ca(&mesh.name);
        let what = format!("{KIND} {}/{name}", mesh.namespace);
        let found = self.request_of(mesh).await;
        let found = found.map_err(|e| KeysError::Other(format!("{what}: {}", said(&e))))?;
        match found {
            Some(found) if owned(mesh, &found, &what).is_ok() => {
                self.delete_request(mesh, &found).await
            }
            _ => Ok(()),
        }
    }

    fn requests(&self, mesh: &Mesh) -> Api<DynamicObject> {
        let resource = ApiResource {
            group: "cert-manager.io".to_owned(),
            version: "v1".to_owned(),
            api_version: "cert-manager.io/v1".to_owned(),
            kind: KIND.to_owned(),
            plural: "certificaterequests".to_owned(),
        };
        Api::namespaced_with(self.client.clone(), &mesh.namespace, &resource)
    }

    /// None too where the cluster knows no such kind.
    async fn request_of(&self, mesh: &Mesh) -> Result<Option<DynamicObject>, kube::Error> {
        match self.requests(mesh).get(&names::ca(&mesh.name)).await {
            Ok(found) => Ok(Some(found)),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn delete_request(&self, mesh: &Mesh, found: &DynamicObject) -> Result<(), KeysError> {
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: found.uid(),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        let name = found.name_any();
        match self.requests(mesh).delete(&name, &params).await {
            Ok(_) => {
                self.metrics.wrote(KIND, "delete");
                Ok(())
            }
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
            Err(error) => {
                let text = format!("{KIND} {}/{name}: {}", mesh.namespace, said(&error));
                Err(KeysError::Other(text))
            }
        }
    }

    fn new_request(
        &self,
        mesh: &Mesh,
        issuer: &IssuerRef,
        key: &str,
        failed: u32,
    ) -> Result<DynamicObject, KeysError> {
        let wrong = |why: String| KeysError::Other(format!("the request for a CA: {why}"));
        let pem = ca_request(&mesh.uid, key).map_err(|error| wrong(error.to_string()))?;
        let object = json!({
            "apiVersion": "cert-manager.io/v1",
            "kind": KIND,
            "metadata": {
                "name": names::ca(&mesh.name),
                "namespace": mesh.namespace,
                "labels": names::labels(&mesh.name, None),
                "annotations": {
                    MADE_FOR: made_for(issuer, key),
                    SINCE: crate::unix().to_string(),
                    FAILED: failed.to_string(),
                },
                "ownerReferences": [mesh.owner()],
            },
            "spec": {
                "request": ByteString(pem.into_bytes()),
                "isCA": true,
                "usages": ["digital signature", "cert sign", "crl sign"],
                "duration": format!("{}h", LIFETIME.as_secs() / 3600),
                "issuerRef": issuer,
            },
        });
        serde_json::from_value(object).map_err(|error| wrong(error.to_string()))
    }
}

fn waits(issuer: &IssuerRef, what: &str, words: &str, age: Duration) -> KeysError {
    let wait = match age.as_secs() {
        0..30 => SOON,
        30..600 => LOOK,
        _ => LATER,
    };
    let message = format!("{FIELD}: {issuer} has not signed the mesh's CA yet; {what}: {words}");
    KeysError::Waits { message, wait }
}

fn refused(issuer: &IssuerRef, what: &str, why: &str, failed: u32) -> KeysError {
    let message = format!(
        "{FIELD}: {issuer} does not sign the mesh's CA; {what}: {why}. Put that right, or take {FIELD} \
         away. It is asked again {} after the last time, or as soon as the request is deleted",
        shown(pause(failed))
    );
    KeysError::Stalled(Stalled::new(reason::ISSUER_REFUSED, message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use dragonfly_identity::{Ca, ca_key};

    fn issuer(name: &str, kind: &str) -> IssuerRef {
        let issuer = json!({"name": name, "kind": kind});
        serde_json::from_value(issuer).unwrap()
    }

    fn says(status: &Value) -> Answer {
        let object = json!({
            "apiVersion": "cert-manager.io/v1", "kind": KIND, "metadata": {"name": "m-ca"},
            "status": status,
        });
        answer(&serde_json::from_value(object).unwrap())
    }

    #[test]
    fn what_a_request_says_is_told_in_its_own_words() {
        let condition = |type_: &str, status: &str, reason: &str, message: &str| json!({"type": type_, "status": status, "reason": reason, "message": message});
        let ready = condition("Ready", "True", "Issued", "done");
        let approved = condition("Approved", "True", "cert-manager.io", "fine");
        let chain = ByteString(b"PEM".to_vec());
        let signed = json!({"conditions": [approved, ready], "certificate": chain});
        assert_eq!(says(&signed), Answer::Signed("PEM".to_owned()));
        let refused = [
            (
                json!([
                    condition("Denied", "True", "policy", "not this CA"),
                    condition("Ready", "False", "Denied", "was denied"),
                ]),
                "it was denied: not this CA",
            ),
            (
                json!([
                    approved,
                    condition("Ready", "False", "Failed", "no such key")
                ]),
                "no such key",
            ),
            (
                json!([condition("InvalidRequest", "True", "BadRequest", "")]),
                "the request is taken for invalid: BadRequest",
            ),
        ];
        for (conditions, words) in refused {
            let wanted = Answer::Refused(words.to_owned());
            assert_eq!(says(&json!({"conditions": conditions})), wanted);
        }
        // What was signed although it was denied is not taken.
        let both = json!({
            "conditions": [condition("Denied", "True", "policy", "no"), ready],
            "certificate": chain,
        });
        assert!(matches!(says(&both), Answer::Refused(_)));
        let pending = [
            (json!(null), "nobody has approved it yet"),
            (json!({"conditions": []}), "nobody has approved it yet"),
            (json!({"conditions": [approved]}), "has not answered yet"),
            (json!({"conditions": [ready]}), "nobody has approved it yet"),
            (
                json!({"conditions": [approved, condition("Ready", "False", "Pending", "no issuer")]}),
                "no issuer",
            ),
        ];
        for (status, words) in pending {
            match says(&status) {
                Answer::Pending(said) => assert!(said.contains(words), "{said}"),
                other => panic!("{status}: {other:?}"),
            }
        }
    }

    #[test]
    fn another_issuer_or_another_key_is_another_request() {
        let key = ca_key().unwrap();
        let same = made_for(&issuer("a", "Issuer"), &key);
        assert_eq!(same, made_for(&issuer("a", "Issuer"), &key));
        for other in [issuer("b", "Issuer"), issuer("a", "ClusterIssuer")] {
            assert_ne!(same, made_for(&other, &key));
            assert_ne!(id(&other), id(&issuer("a", "Issuer")));
        }
        assert_ne!(same, made_for(&issuer("a", "Issuer"), &ca_key().unwrap()));
    }

    #[test]
    fn who_refuses_is_asked_less_and_less_often() {
        let pauses: Vec<_> = (0..8).map(|n| pause(n).as_secs() / 60).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(pause(u32::MAX), AGAIN.1);
        let looks = [0, 29, 30, 599, 600, 1_000_000].map(|age| {
            let age = Duration::from_secs(age);
            match waits(&issuer("a", "Issuer"), "x", "y", age) {
                KeysError::Waits { wait, .. } => wait,
                other => panic!("{other}"),
            }
        });
        assert_eq!(looks, [SOON, SOON, LOOK, LOOK, LATER, LATER]);
    }

    #[test]
    fn a_ca_for_too_short_a_time_is_refused_with_what_it_needs() {
        let ages = Ages::default();
        let made = |hours: u64| {
            let lifetime = Duration::from_secs(hours * 3600 + 60);
            let (cert, key) = Ca::generate("m", lifetime).unwrap();
            usable("m", &key, &cert, &ages)
        };
        let said = made(0).unwrap_err();
        assert!(said.contains("for 1h at least"), "{said}");
        made(1).unwrap();
    }
}
