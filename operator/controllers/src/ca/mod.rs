//! The CA of a mesh, in a Secret that only the operator reads, and its replacement with overlap.
//!
//! A new CA is *prepared*: trusted, and signs nothing yet. When everybody has had time to learn of it,
//! it is *promoted*: it signs, and the one before is trusted for as long as certificates by it are good.
//! Then that one is *forgotten*. So at every moment each part trusts whatever another may show.
//!
//! Where `spec.security.issuerRef` names an issuer of cert-manager, that one signs each new CA
//! (`request`). Its key is made here and stays in the Secret; while it is asked for, the CA before stays in
//! use, and where that is the first, the mesh waits.
//!
//! Invariants: the decision (`steps`) knows no clock and no cluster; a step is one write of the Secret
//! in the state in which it was read, so that of two operators one does it; a Secret that is lost is
//! made anew, for parts that hold a certificate of a CA that is trusted no more get another at once.

mod request;
mod steps;

use std::time::{Duration, SystemTime};

use dragonfly_crds::conditions::reason;
use dragonfly_identity::{Ca, Holds, OpeningKey, ca_key};
use dragonfly_operator_core::status::Stalled;
use dragonfly_operator_core::{Mesh, names};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;
use kube::api::{Api, ObjectMeta, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::Context;
use crate::authority::KeysError;
use crate::context::said;

pub use steps::Ages;
use steps::{Step, Times, step};

const CERT: &str = "ca.pem";
const KEY: &str = "ca.key";
const NEXT_CERT: &str = "next.pem";
const NEXT_KEY: &str = "next.key";
const PREVIOUS: &str = "previous.pem";
/// What was sealed while those gave certificates is opened by these: their secrets, in the same order.
const PREVIOUS_OPENING: &str = "previous.opening";
/// The key of a CA that an issuer was asked to sign: whoever takes over goes on with the same request.
const ASKED: &str = "asked.key";
/// Annotation: since when there is a next one, in seconds since 1970.
const NEXT_SINCE: &str = "d7y.io/ca-next-since";
/// How long a CA is good, and for how long an issuer is asked.
const LIFETIME: Duration = Duration::from_secs(365 * 86_400);
/// Former ones that are trusted at once, at most: somebody replaces CAs as fast as he can.
const FORMER: usize = 4;

/// The CAs of a mesh, as they are in use.
pub(crate) struct InUse {
    /// Signs.
    pub(crate) ca: Ca,
    /// All that are trusted, PEM, first the one that signs.
    pub(crate) bundle: String,
    /// What seeds open by what is sealed; first the one that it is sealed for.
    pub(crate) opening: Vec<OpeningKey>,
    /// When to look again.
    pub(crate) wait: Duration,
    /// Why it is not the one that is wanted.
    pub(crate) trouble: Option<KeysError>,
}

/// What came of preparing a CA.
enum Made {
    /// A certificate and its key.
    Ca(String, String),
    /// A key to ask an issuer with.
    Key(String),
}

impl Context {
    /// The CAs of a mesh, after whatever step is due.
    ///
    /// # Errors
    /// Why there are none.
    pub(crate) async fn ca(&self, mesh: &Mesh) -> Result<InUse, KeysError> {
        let name = names::ca(&mesh.name);
        let what = format!("Secret {}/{name}", mesh.namespace);
        let wanted = i64::from(mesh.spec.security.ca_generation);
        let issuer = mesh.spec.security.issuer_ref.as_ref().map(request::id);
        let mut secret = match self.secret(mesh, &name).await? {
            Some(secret) => secret,
            None => self.create_ca(mesh, &name, wanted).await?,
        };
        owned(mesh, &secret, &what)?;
        let ages = &self.options.ages;
        // Each step is followed by waiting, by which the next look comes.
        for _ in 0..6 {
            let now = crate::unix();
            let times = times(&secret, issuer.as_deref());
            let todo = step(times, wanted, now, ages);
            let patch = match todo {
                // It was signed, or nobody wants it any more.
                Step::Wait(_) if text(&secret, ASKED).is_some() => {
                    match self.withdraw(mesh).await {
                        Ok(()) => json!({"data": {ASKED: null}}),
                        Err(trouble) => return meanwhile(usable(&secret, &what)?, trouble),
                    }
                }
                Step::Wait(seconds) => {
                    let wait = Duration::from_secs(seconds);
                    let in_use = usable(&secret, &what)?;
                    return Ok(InUse { wait, ..in_use });
                }
                Step::Prepare => match self.make_ca(mesh, &secret).await {
                    Ok(Made::Key(key)) => json!({"data": {ASKED: data(&key)}}),
                    Ok(Made::Ca(cert, key)) => {
                        let generation = wanted.max(times.generation);
                        let issuer = issuer.as_deref();
                        if times.is_none {
                            first(&cert, &key, generation, issuer, now)
                        } else {
                            prepared(&cert, &key, generation, issuer, now)
                        }
                    }
                    Err(trouble) if times.is_none => return Err(trouble),
                    Err(trouble) => return meanwhile(usable(&secret, &what)?, trouble),
                },
                Step::Promote => promoted(&secret, now),
                Step::Forget => forgotten(),
            };
            secret = self.write_ca(mesh, &secret, &what, patch).await?;
            tracing::info!(what, step = ?todo, "the mesh's CA");
        }
        Err(KeysError::Other(format!(
            "{what}: its CA is not settled yet"
        )))
    }

    /// A CA that signs itself, or what an issuer says to one.
    async fn make_ca(&self, mesh: &Mesh, secret: &Secret) -> Result<Made, KeysError> {
        let Some(issuer) = &mesh.spec.security.issuer_ref else {
            let (cert, key) = self.generate_ca(mesh).await?;
            return Ok(Made::Ca(cert, key));
        };
        // A key that is in use already is asked for no second time.
        let used = [KEY, NEXT_KEY].map(|key| text(secret, key));
        let asked = text(secret, ASKED).filter(|key| !used.contains(&Some(*key)));
        match asked {
            Some(key) => {
                let cert = self.ask(mesh, issuer, key).await?;
                Ok(Made::Ca(cert, key.to_owned()))
            }
            None => new_key().map(Made::Key),
        }
    }

    async fn generate_ca(&self, mesh: &Mesh) -> Result<(String, String), KeysError> {
        let uid = mesh.uid.clone();
        let made = tokio::task::spawn_blocking(move || Ca::generate(&uid, LIFETIME)).await;
        let made = made.map_err(|error| error.to_string());
        let made = made.and_then(|made| made.map_err(|error| error.to_string()));
        made.map_err(|error| KeysError::Other(format!("a CA for the mesh: {error}")))
    }

    async fn create_ca(
        &self,
        mesh: &Mesh,
        name: &str,
        generation: i64,
    ) -> Result<Secret, KeysError> {
        let what = format!("Secret {}/{name}", mesh.namespace);
        let patch = if mesh.spec.security.issuer_ref.is_some() {
            json!({"data": {ASKED: data(&new_key()?)}})
        } else {
            let (cert, key) = self.generate_ca(mesh).await?;
            first(&cert, &key, generation, None, crate::unix())
        };
        let made: Secret = serde_json::from_value(patch)
            .map_err(|error| KeysError::Other(format!("{what}: {error}")))?;
        let secret = Secret {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                namespace: Some(mesh.namespace.clone()),
                labels: Some(names::labels(&mesh.name, None)),
                annotations: made.metadata.annotations,
                owner_references: Some(vec![mesh.owner()]),
                ..ObjectMeta::default()
            },
            data: made.data,
            ..Secret::default()
        };
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &mesh.namespace);
        let created = secrets.create(&PostParams::default(), &secret).await;
        let created =
            created.map_err(|error| KeysError::Other(format!("{what}: {}", said(&error))))?;
        self.metrics.wrote("Secret", "create");
        tracing::info!(what, "made the Secret of the mesh's CA");
        Ok(created)
    }

    /// Changes the Secret, if it is still as it was read.
    async fn write_ca(
        &self,
        mesh: &Mesh,
        read: &Secret,
        what: &str,
        mut patch: Value,
    ) -> Result<Secret, KeysError> {
        patch["metadata"]["resourceVersion"] = json!(read.resource_version());
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &mesh.namespace);
        let params = PatchParams::default();
        let name = names::ca(&mesh.name);
        let written = secrets.patch(&name, &params, &Patch::Merge(&patch)).await;
        let written =
            written.map_err(|error| KeysError::Other(format!("{what}: {}", said(&error))))?;
        self.metrics.wrote("Secret", "patch");
        Ok(written)
    }
}

/// A CA that somebody else put there would be trusted by all.
pub(crate) fn owned(mesh: &Mesh, object: &impl ResourceExt, what: &str) -> Result<(), KeysError> {
    let owners = object.owner_references();
    if owners.iter().any(|owner| owner.uid == mesh.uid) {
        return Ok(());
    }
    if owners
        .iter()
        .any(|o| o.kind == "Distribution" && o.name == mesh.name)
    {
        let text = format!("{what} of a deleted mesh of this name is still there");
        return Err(KeysError::Other(text));
    }
    let text = format!("{what} exists and is not of this mesh; delete or rename it");
    Err(KeysError::Stalled(Stalled::new(reason::NAME_TAKEN, text)))
}

fn text<'a>(secret: &'a Secret, key: &str) -> Option<&'a str> {
    let bytes = secret.data.as_ref()?.get(key)?;
    std::str::from_utf8(&bytes.0).ok()
}

fn bytes<'a>(secret: &'a Secret, key: &str) -> &'a [u8] {
    let bytes = secret.data.as_ref().and_then(|data| data.get(key));
    bytes.map_or(&[], |bytes| &bytes.0)
}

fn data(text: &str) -> ByteString {
    ByteString(text.as_bytes().to_vec())
}

fn new_key() -> Result<String, KeysError> {
    ca_key().map_err(|error| KeysError::Other(format!("a key for the mesh's CA: {error}")))
}

/// `issuer`: who is to sign CAs; `None` where they sign themselves.
fn times(secret: &Secret, issuer: Option<&str>) -> Times {
    let number = |name: &str| secret.annotations().get(name)?.parse::<u64>().ok();
    let since = number(names::CA_SINCE).unwrap_or_default();
    let holds = |key: &str| Holds::of(text(secret, key)?).ok();
    let own = holds(CERT);
    let newest = secret.annotations().get(names::CA_ISSUER);
    Times {
        is_none: text(secret, CERT).is_none() && text(secret, ASKED).is_some(),
        generation: number(names::CA_GENERATION)
            .and_then(|n| i64::try_from(n).ok())
            .unwrap_or_default(),
        is_anothers: newest.map(String::as_str) != issuer,
        since,
        // What cannot be read is not replaced, but said.
        old: own.map_or(u64::MAX, |holds| steps::old(holds, since)),
        until: own.map_or(u64::MAX, |holds| holds.until),
        next: text(secret, NEXT_CERT).map(|_| {
            let until = holds(NEXT_CERT).map_or(u64::MAX, |holds| holds.until);
            (number(NEXT_SINCE).unwrap_or_default(), until)
        }),
        has_previous: text(secret, PREVIOUS).is_some(),
    }
}

fn first(cert: &str, key: &str, generation: i64, issuer: Option<&str>, now: u64) -> Value {
    let mut annotations = json!({
        names::CA_GENERATION: generation.to_string(),
        names::CA_SINCE: now.to_string(),
    });
    if let Some(issuer) = issuer {
        annotations[names::CA_ISSUER] = json!(issuer);
    }
    json!({
        "metadata": {"annotations": annotations},
        "data": {CERT: data(cert), KEY: data(key)},
    })
}

fn prepared(cert: &str, key: &str, generation: i64, issuer: Option<&str>, now: u64) -> Value {
    json!({
        "metadata": {"annotations": {
            names::CA_GENERATION: generation.to_string(),
            NEXT_SINCE: now.to_string(),
            names::CA_ISSUER: issuer,
        }},
        "data": {NEXT_CERT: data(cert), NEXT_KEY: data(key)},
    })
}

fn promoted(secret: &Secret, now: u64) -> Value {
    let data = secret.data.clone().unwrap_or_default();
    let current = text(secret, CERT).unwrap_or_default();
    let former = text(secret, PREVIOUS).unwrap_or_default();
    let all = former.split_inclusive("-----END CERTIFICATE-----\n");
    let kept: Vec<_> = std::iter::once(current).chain(all).take(FORMER).collect();
    let opening = text(secret, KEY).and_then(|key| Ca::read(current, key).ok());
    let mut opening = opening.map_or_else(Vec::new, |ca| ca.opening().secret().to_vec());
    opening.extend_from_slice(bytes(secret, PREVIOUS_OPENING));
    opening.truncate(FORMER * OpeningKey::LEN);
    json!({
        "metadata": {"annotations": {names::CA_SINCE: now.to_string(), NEXT_SINCE: null}},
        "data": {
            CERT: data.get(NEXT_CERT),
            KEY: data.get(NEXT_KEY),
            NEXT_CERT: null,
            NEXT_KEY: null,
            PREVIOUS: ByteString(kept.concat().into_bytes()),
            PREVIOUS_OPENING: ByteString(opening),
        },
    })
}

fn forgotten() -> Value {
    json!({"data": {PREVIOUS: null, PREVIOUS_OPENING: null}})
}

/// What is in the Secret, or what to do about it.
fn usable(secret: &Secret, what: &str) -> Result<InUse, KeysError> {
    read(secret).map_err(|why| {
        let hint = "delete it for a new CA: parts get new certificates by themselves";
        let text = format!("{what} {why}; {hint}");
        KeysError::Stalled(Stalled::new(reason::INVALID_SECRET, text))
    })
}

/// The CA that stays in use while another one is wanted: as long as it holds.
fn meanwhile(in_use: InUse, trouble: KeysError) -> Result<InUse, KeysError> {
    if in_use.ca.holds().left(SystemTime::now()).is_none() {
        return Err(trouble);
    }
    let wait = match &trouble {
        KeysError::Waits { wait, .. } => *wait,
        KeysError::Stalled(_) | KeysError::Other(_) => request::LOOK,
    };
    Ok(InUse {
        wait,
        trouble: Some(trouble),
        ..in_use
    })
}

/// `Err`: what is wrong, after the Secret's name.
pub(crate) fn read(secret: &Secret) -> Result<InUse, String> {
    let part = |key: &str| text(secret, key).ok_or_else(|| format!("has no key {key}"));
    let (cert, key) = (part(CERT)?, part(KEY)?);
    let ca = Ca::read(cert, key).map_err(|e| format!("holds a CA that cannot be used: {e}"))?;
    let mut opening = vec![ca.opening().clone()];
    if let (Some(cert), Some(key)) = (text(secret, NEXT_CERT), text(secret, NEXT_KEY)) {
        let next = Ca::read(cert, key);
        let next = next.map_err(|e| format!("holds a next CA that cannot be used: {e}"))?;
        opening.push(next.opening().clone());
    }
    for former in bytes(secret, PREVIOUS_OPENING).chunks(OpeningKey::LEN) {
        let former = OpeningKey::new(former);
        opening.push(former.map_err(|e| format!("holds a wrong {PREVIOUS_OPENING}: {e}"))?);
    }
    let mut bundle = cert.to_owned();
    for other in [NEXT_CERT, PREVIOUS] {
        let Some(other) = text(secret, other) else {
            continue;
        };
        if !bundle.ends_with('\n') {
            bundle.push('\n');
        }
        bundle.push_str(other);
    }
    dragonfly_identity::bundle(&bundle).map_err(|e| format!("holds what is no CA: {e}"))?;
    Ok(InUse {
        ca,
        bundle,
        opening,
        wait: Duration::ZERO,
        trouble: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use steps::tests::{AGES, FORGET};

    fn secret() -> Secret {
        let (cert, key) = Ca::generate("u", LIFETIME).unwrap();
        let data = [(CERT, cert), (KEY, key)];
        let mut secret = Secret {
            data: Some(
                data.map(|(k, v)| (k.to_owned(), ByteString(v.into_bytes())))
                    .into(),
            ),
            ..Secret::default()
        };
        let annotations = secret.annotations_mut();
        annotations.insert(names::CA_GENERATION.to_owned(), "0".to_owned());
        annotations.insert(names::CA_SINCE.to_owned(), "5000".to_owned());
        secret
    }

    /// As the API server merges.
    fn merged(secret: &Secret, patch: &Value) -> Secret {
        fn merge(into: &mut Value, patch: &Value) {
            for (key, value) in patch.as_object().unwrap() {
                match value {
                    Value::Null => _ = into.as_object_mut().unwrap().remove(key),
                    Value::Object(_) => merge(&mut into[key], value),
                    other => into[key] = other.clone(),
                }
            }
        }
        let mut value = serde_json::to_value(secret).unwrap();
        merge(&mut value, patch);
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_ca_that_is_replaced_is_trusted_before_it_signs_and_after() {
        // Because somebody asked, and because another is to sign it.
        replaced(1, None);
        replaced(0, Some("Issuer.cert-manager.io/company"));
    }

    fn replaced(wanted: i64, issuer: Option<&str>) {
        let mut secret = secret();
        let mut trusted = vec![read(&secret).unwrap()];
        let mut now = 6000;
        let mut steps = vec![];
        loop {
            let todo = step(times(&secret, issuer), wanted, now, &AGES);
            let patch = match todo {
                Step::Wait(seconds) if seconds > 100_000 => break,
                Step::Wait(seconds) => {
                    now += seconds;
                    continue;
                }
                Step::Prepare => {
                    let (cert, key) = Ca::generate("u", LIFETIME).unwrap();
                    prepared(&cert, &key, wanted, issuer, now)
                }
                Step::Promote => promoted(&secret, now),
                Step::Forget => forgotten(),
            };
            steps.push((todo, now));
            secret = merged(&secret, &patch);
            trusted.push(read(&secret).unwrap());
        }
        assert_eq!(
            steps,
            [
                (Step::Prepare, 6000),
                (Step::Promote, 6600),
                (Step::Forget, 6600 + FORGET)
            ]
        );
        let signer = secret.annotations().get(names::CA_ISSUER);
        assert_eq!(signer.map(String::as_str), issuer);
        // What is sealed at one moment is opened at the moment before and after.
        for pair in trusted.windows(2) {
            for (seals, opens) in [(&pair[0], &pair[1]), (&pair[1], &pair[0])] {
                let is_forgotten = opens.opening.len() == 1;
                let key = seals.opening[0].public();
                let mut all = opens.opening.iter();
                assert!(all.any(|k| k.public() == key) || is_forgotten);
            }
        }
        // Whoever signs at one moment is trusted at the moment before and after.
        for pair in trusted.windows(2) {
            for (signs, trusts) in [(&pair[0], &pair[1]), (&pair[1], &pair[0])] {
                let all = dragonfly_identity::bundle(&trusts.bundle).unwrap();
                // But the one that is forgotten: nothing that it signed is good any more.
                let is_last = trusts.bundle.matches("BEGIN").count() == 1;
                assert!(all.contains(signs.ca.der()) || is_last);
            }
        }
        let [first, .., last] = &trusted[..] else {
            panic!()
        };
        assert_ne!(first.ca.der(), last.ca.der());
        assert_eq!(last.bundle.matches("BEGIN").count(), 1);
    }

    #[test]
    fn the_first_ca_of_an_issuer_is_none_until_it_is_signed() {
        let asked = Secret {
            data: Some([(ASKED.to_owned(), data("k"))].into()),
            ..Secret::default()
        };
        let issuer = Some("Issuer.cert-manager.io/company");
        assert!(times(&asked, issuer).is_none && read(&asked).is_err());
        let (cert, key) = Ca::generate("u", LIFETIME).unwrap();
        let now = crate::unix();
        let mut signed = merged(
            &serde_json::from_value(json!({"metadata": {"annotations": {}}, "data": asked.data}))
                .unwrap(),
            &first(&cert, &key, 2, issuer, now),
        );
        let known = times(&signed, issuer);
        assert!(!known.is_none && !known.is_anothers && known.generation == 2);
        assert!(read(&signed).unwrap().trouble.is_none());
        assert!(times(&signed, None).is_anothers);
        assert!(times(&signed, Some("ClusterIssuer.cert-manager.io/company")).is_anothers);
        // A CA that lost its certificate is no first one: somebody has to look.
        let data = signed.data.as_mut().unwrap();
        data.remove(CERT);
        data.remove(ASKED);
        assert!(!times(&signed, issuer).is_none);
    }

    #[test]
    fn a_ca_that_is_over_is_in_use_no_more() {
        let over = |lifetime| {
            let (cert, key) = Ca::generate("u", lifetime).unwrap();
            merged(&secret(), &first(&cert, &key, 0, None, 0))
        };
        let trouble = || KeysError::Stalled(Stalled::new(reason::ISSUER_REFUSED, "no"));
        let in_use = read(&over(LIFETIME)).unwrap();
        assert!(meanwhile(in_use, trouble()).unwrap().trouble.is_some());
        let in_use = read(&over(Duration::ZERO)).unwrap();
        assert!(matches!(
            meanwhile(in_use, trouble()),
            Err(KeysError::Stalled(_))
        ));
    }

    #[test]
    fn what_is_wrong_with_a_ca_is_said() {
        let mut no_key = secret();
        no_key.data.as_mut().unwrap().remove(KEY);
        let mut other = secret();
        let theirs = secret().data.unwrap().remove(KEY).unwrap();
        other.data.as_mut().unwrap().insert(KEY.to_owned(), theirs);
        let mut garbage = secret();
        let bytes = ByteString(b"x".to_vec());
        garbage
            .data
            .as_mut()
            .unwrap()
            .insert(PREVIOUS.to_owned(), bytes);
        for (secret, says) in [
            (no_key, "has no key ca.key"),
            (other, "another's"),
            (garbage, ""),
        ] {
            match read(&secret) {
                Err(why) => assert!(why.contains(says), "{why}"),
                // Text that holds no certificate adds none.
                Ok(in_use) => assert_eq!(in_use.bundle.matches("BEGIN").count(), 1),
            }
        }
    }
}
