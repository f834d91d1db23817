//! The CA of a mesh, in a Secret that only the operator reads, and its replacement with overlap.
//!
//! A new CA is *prepared*: trusted, and signs nothing yet. When everybody has had time to learn of it,
//! it is *promoted*: it signs, and the one before is trusted for as long as certificates by it are good.
//! Then that one is *forgotten*. So at every moment each part trusts whatever another may show.
//!
//! Invariants: the decision (`step`) knows no clock and no cluster; a step is one write of the Secret
//! in the state in which it was read, so that of two operators one does it; a Secret that is lost is
//! made anew, for parts that hold a certificate of a CA that is trusted no more get another at once.

use std::time::Duration;

use dragonfly_crds::conditions::reason;
use dragonfly_identity::{Ca, OpeningKey};
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

const CERT: &str = "ca.pem";
const KEY: &str = "ca.key";
const NEXT_CERT: &str = "next.pem";
const NEXT_KEY: &str = "next.key";
const PREVIOUS: &str = "previous.pem";
/// What was sealed while those gave certificates is opened by these: their secrets, in the same order.
const PREVIOUS_OPENING: &str = "previous.opening";
/// Annotation: since when there is a next one, in seconds since 1970.
const NEXT_SINCE: &str = "d7y.io/ca-next-since";
/// How long a CA is good.
const LIFETIME: Duration = Duration::from_secs(365 * 86_400);
/// Certificates hold from a little before they are made, by clocks that differ.
const SKEW: u64 = 600;
/// Former ones that are trusted at once, at most: somebody replaces CAs as fast as he can.
const FORMER: usize = 4;

/// How CAs and certificates age.
#[derive(Clone, Copy, Debug)]
pub struct Ages {
    /// How long parts have to learn of a new CA before it signs. The kubelet brings a changed ConfigMap
    /// within about 90 s.
    pub overlap: Duration,
    /// How long the certificates of parts are good.
    pub certificate: Duration,
}

impl Default for Ages {
    fn default() -> Self {
        Self {
            overlap: Duration::from_secs(600),
            certificate: Duration::from_secs(72 * 3600),
        }
    }
}

/// What is known of a mesh's CAs; times in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Times {
    /// What the newest one answers.
    generation: i64,
    /// Since when the one that signs does so.
    since: u64,
    /// Since when there is a next one.
    next: Option<u64>,
    has_previous: bool,
}

/// What is to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Prepare,
    Promote,
    Forget,
    /// Nothing for so many seconds.
    Wait(u64),
}

fn step(at: Times, wanted: i64, now: u64, ages: &Ages) -> Step {
    let overlap = ages.overlap.as_secs();
    if let Some(made) = at.next {
        let due = made.saturating_add(overlap);
        return if now >= due {
            Step::Promote
        } else {
            Step::Wait(due - now)
        };
    }
    if wanted > at.generation {
        return Step::Prepare;
    }
    // What was signed a moment before the promotion is good for this long.
    let forget = at
        .since
        .saturating_add(ages.certificate.as_secs())
        .saturating_add(SKEW);
    if at.has_previous && now >= forget {
        return Step::Forget;
    }
    let prepare = at.since.saturating_add(LIFETIME.as_secs() / 3 * 2);
    if now >= prepare {
        return Step::Prepare;
    }
    let due = if at.has_previous {
        forget.min(prepare)
    } else {
        prepare
    };
    Step::Wait(due - now)
}

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
        let mut secret = match self.secret(mesh, &name).await? {
            Some(secret) => secret,
            None => self.create_ca(mesh, &name, wanted).await?,
        };
        owned(mesh, &secret, &what)?;
        let ages = &self.options.ages;
        // Each step is followed by waiting, by which the next look comes.
        for _ in 0..3 {
            let now = crate::unix();
            let todo = step(times(&secret), wanted, now, ages);
            let patch = match todo {
                Step::Wait(seconds) => {
                    let in_use = read(&secret).map_err(|why| {
                        let hint =
                            "delete it for a new CA: parts get new certificates by themselves";
                        let text = format!("{what} {why}; {hint}");
                        KeysError::Stalled(Stalled::new(reason::INVALID_SECRET, text))
                    })?;
                    let wait = Duration::from_secs(seconds);
                    return Ok(InUse { wait, ..in_use });
                }
                Step::Prepare => {
                    let (cert, key) = self.generate_ca(mesh).await?;
                    prepared(&cert, &key, wanted.max(times(&secret).generation), now)
                }
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
        let (cert, key) = self.generate_ca(mesh).await?;
        let annotations = [
            (names::CA_GENERATION, generation.to_string()),
            (names::CA_SINCE, crate::unix().to_string()),
        ];
        let data = [(CERT, cert), (KEY, key)];
        let secret = Secret {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                namespace: Some(mesh.namespace.clone()),
                labels: Some(names::labels(&mesh.name, None)),
                annotations: Some(
                    annotations
                        .map(|(key, value)| (key.to_owned(), value))
                        .into(),
                ),
                owner_references: Some(vec![mesh.owner()]),
                ..ObjectMeta::default()
            },
            data: Some(
                data.map(|(key, value)| (key.to_owned(), ByteString(value.into_bytes())))
                    .into(),
            ),
            ..Secret::default()
        };
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &mesh.namespace);
        let created = secrets.create(&PostParams::default(), &secret).await;
        let created =
            created.map_err(|error| KeysError::Other(format!("{what}: {}", said(&error))))?;
        self.metrics.wrote("Secret", "create");
        tracing::info!(what, "made a CA for the mesh");
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
pub(crate) fn owned(mesh: &Mesh, secret: &Secret, what: &str) -> Result<(), KeysError> {
    let owners = secret.owner_references();
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

fn times(secret: &Secret) -> Times {
    let number = |name: &str| secret.annotations().get(name)?.parse::<u64>().ok();
    Times {
        generation: number(names::CA_GENERATION)
            .and_then(|n| i64::try_from(n).ok())
            .unwrap_or_default(),
        // Unknown counts as long ago: a new one is made, with overlap.
        since: number(names::CA_SINCE).unwrap_or_default(),
        next: text(secret, NEXT_CERT).map(|_| number(NEXT_SINCE).unwrap_or_default()),
        has_previous: text(secret, PREVIOUS).is_some(),
    }
}

fn prepared(cert: &str, key: &str, generation: i64, now: u64) -> Value {
    let bytes = |text: &str| ByteString(text.as_bytes().to_vec());
    json!({
        "metadata": {"annotations": {
            names::CA_GENERATION: generation.to_string(),
            NEXT_SINCE: now.to_string(),
        }},
        "data": {NEXT_CERT: bytes(cert), NEXT_KEY: bytes(key)},
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
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const AGES: Ages = Ages {
        overlap: Duration::from_secs(600),
        certificate: Duration::from_secs(1000),
    };

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
        let mut secret = secret();
        let mut trusted = vec![read(&secret).unwrap()];
        let mut now = 6000;
        let mut steps = vec![];
        loop {
            let todo = step(times(&secret), 1, now, &AGES);
            let patch = match todo {
                Step::Wait(seconds) if seconds > 100_000 => break,
                Step::Wait(seconds) => {
                    now += seconds;
                    continue;
                }
                Step::Prepare => {
                    let (cert, key) = Ca::generate("u", LIFETIME).unwrap();
                    prepared(&cert, &key, 1, now)
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
                (Step::Forget, 6600 + 1000 + SKEW)
            ]
        );
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
    fn a_ca_ages_is_replaced_when_asked_once_and_never_twice_at_once() {
        let at = |since, next, has_previous| Times {
            generation: 3,
            since,
            next,
            has_previous,
        };
        let year = LIFETIME.as_secs();
        let rows = [
            (
                "young",
                at(1000, None, false),
                3,
                1001,
                Step::Wait(year / 3 * 2 - 1),
            ),
            ("asked", at(1000, None, false), 4, 1001, Step::Prepare),
            (
                "asked for less",
                at(1000, None, false),
                2,
                1001,
                Step::Wait(year / 3 * 2 - 1),
            ),
            ("old", at(0, None, false), 3, year / 3 * 2, Step::Prepare),
            ("prepared", at(0, Some(100), false), 9, 150, Step::Wait(550)),
            (
                "known to all",
                at(0, Some(100), false),
                9,
                700,
                Step::Promote,
            ),
            (
                "both are trusted",
                at(700, None, true),
                3,
                701,
                Step::Wait(1000 + SKEW - 1),
            ),
            (
                "the old one is over",
                at(700, None, true),
                3,
                1700 + SKEW,
                Step::Forget,
            ),
            ("asked again", at(700, None, true), 4, 701, Step::Prepare),
        ];
        for (what, times, wanted, now, todo) in rows {
            assert_eq!(step(times, wanted, now, &AGES), todo, "{what}");
        }
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
