//! The keys of a mesh: made once, kept in a Secret, never made anew.
//!
//! Invariants: keys are created, not applied, so two operators cannot overwrite each other's; a mesh
//! that ran with keys that are gone is stopped and its person told, for new keys would make every node
//! a stranger; what is in the Secret is checked before anything is started with it.

use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::time::Duration;

use dragonfly_crds::conditions::reason;
use dragonfly_crds::placement::SecretRef;
use dragonfly_identity::{Authority, JoinToken, signing_key};
use dragonfly_operator_core::build::Keys;
use dragonfly_operator_core::names;
use dragonfly_operator_core::status::Stalled;
use dragonfly_operator_core::{Kind, Mesh, Schedulers};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, ObjectMeta, PostParams};
use kube::{Client, Resource, ResourceExt};

use crate::Context;
use crate::context::said;

/// What a mesh has for ever: what tickets are signed with, and what nodes of elsewhere join by. Its CA
/// is another Secret, since it is replaced now and then.
const FILES: [&str; 2] = ["authority.key", "join.secret"];
/// The key of a join token in a Secret.
const TOKEN: &str = "join-token";

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// Somebody has to do something.
    #[error("{}", .0.message)]
    Stalled(Stalled),
    /// Somebody else has to do his part first, and may.
    #[error("{message}")]
    Waits {
        /// For whom, and what is said of it.
        message: String,
        /// When to look again.
        wait: Duration,
    },
    /// It may work the next time.
    #[error("{0}")]
    Other(String),
}

fn stalled(reason: &'static str, message: String) -> KeysError {
    KeysError::Stalled(Stalled::new(reason, message))
}

/// Keys, and when to look at them again.
pub(crate) struct Held {
    pub(crate) keys: Keys,
    pub(crate) wait: Option<Duration>,
    /// Why the CA is not the one that is wanted.
    pub(crate) trouble: Option<KeysError>,
}

impl Held {
    fn for_good(keys: Keys) -> Self {
        Self {
            keys,
            wait: None,
            trouble: None,
        }
    }
}

/// What is in the Secret of a mesh's own keys, as far as the operator uses it.
#[derive(Clone)]
pub(crate) struct Own {
    fingerprint: String,
    pub(crate) join_secret: String,
}

/// A Secret, if it is there.
///
/// # Errors
/// The API server's.
pub(crate) async fn secret(
    client: &Client,
    namespace: &str,
    name: &str,
) -> Result<Option<Secret>, KeysError> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let found = secrets.get_opt(name).await;
    found.map_err(|error| KeysError::Other(format!("Secret {namespace}/{name}: {}", said(&error))))
}

impl Context {
    /// The keys of a mesh, made where it never had any.
    ///
    /// # Errors
    /// Why there are none.
    pub(crate) async fn keys(&self, mesh: &Mesh) -> Result<Held, KeysError> {
        let keys = match &mesh.schedulers {
            Schedulers::Slots { .. } => return self.own_with_ca(mesh).await,
            Schedulers::External(external) => match &external.join_token_secret_ref {
                Some(secret) if mesh.secure() => self.given(mesh, secret).await?,
                _ => Keys::default(),
            },
        };
        // It may have had a CA of its own before.
        self.issuer.forget(&mesh.uid);
        Ok(Held::for_good(keys))
    }

    /// The mesh's own, with its CA, which from here on gives certificates.
    async fn own_with_ca(&self, mesh: &Mesh) -> Result<Held, KeysError> {
        let Own {
            fingerprint,
            join_secret,
        } = self.own(mesh).await?;
        let keys = Keys {
            fingerprint,
            ..Keys::default()
        };
        if !mesh.issues() {
            self.issuer.forget(&mesh.uid);
            return Ok(Held::for_good(keys));
        }
        let mut in_use = self.ca(mesh).await?;
        let token = JoinToken {
            ca: in_use.bundle.clone(),
            secret: join_secret.clone(),
        };
        let keys = Keys {
            join_token: Some(token.reveal()),
            ca: Some(in_use.bundle.clone()),
            ..keys
        };
        let wait = Some(in_use.wait);
        let trouble = in_use.trouble.take();
        let known = self.cache.distributions.state();
        let is_there = |uid: &str| known.iter().any(|d| d.meta().uid.as_deref() == Some(uid));
        self.issuer.retain(is_there);
        self.issuer
            .serve(mesh, in_use, join_secret)
            .map_err(|error| KeysError::Other(format!("the issuer's certificate: {error}")))?;
        Ok(Held {
            keys,
            wait,
            trouble,
        })
    }

    pub(crate) async fn secret(
        &self,
        mesh: &Mesh,
        name: &str,
    ) -> Result<Option<Secret>, KeysError> {
        secret(&self.client, &mesh.namespace, name).await
    }

    /// Somebody else's token, in a Secret that is named.
    async fn given(&self, mesh: &Mesh, secret: &SecretRef) -> Result<Keys, KeysError> {
        const FIELD: &str = "spec.externalSchedulers.joinTokenSecretRef";
        let what = format!("{FIELD}: Secret {}/{}", mesh.namespace, secret.name);
        let wrong = |message: &str| stalled(reason::INVALID_SECRET, format!("{what} {message}"));
        let found = self.secret(mesh, &secret.name).await?;
        let found = found.ok_or_else(|| wrong("does not exist"))?;
        let token = found.data.as_ref().and_then(|data| data.get(TOKEN));
        let token = token.ok_or_else(|| wrong("has no key join-token"))?;
        let text = String::from_utf8_lossy(&token.0);
        if let Err(error) = text.parse::<JoinToken>() {
            return Err(wrong(&format!("has a wrong join-token: {error}")));
        }
        Ok(Keys {
            fingerprint: fingerprint(&[&token.0]),
            ..Keys::default()
        })
    }

    /// The mesh's own.
    async fn own(&self, mesh: &Mesh) -> Result<Own, KeysError> {
        let name = names::authority(&mesh.name);
        let found = match self.secret(mesh, &name).await? {
            Some(found) => found,
            None => self.create(mesh, &name).await?,
        };
        let version = found.resource_version().unwrap_or_default();
        let lock = || self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((checked, keys)) = lock().get(&mesh.uid)
            && *checked == version
        {
            return Ok(keys.clone());
        }
        let what = format!("Secret {}/{name}", mesh.namespace);
        let data = found.data.unwrap_or_default();
        let checked = tokio::task::spawn_blocking(move || check(&data)).await;
        let checked = checked.map_err(|error| KeysError::Other(format!("{what}: {error}")))?;
        let keys = checked.map_err(|why| {
            let hint = "restore it from a backup, or delete it together with the ConfigMap";
            let map = names::bootstrap(&mesh.name);
            stalled(
                reason::INVALID_SECRET,
                format!("{what} {why}; {hint} {map} for new keys"),
            )
        })?;
        let mut all = lock();
        let known = self.cache.distributions.state();
        let is_there = |uid: &str| known.iter().any(|d| d.meta().uid.as_deref() == Some(uid));
        all.retain(|uid, _| is_there(uid));
        all.insert(mesh.uid.clone(), (version, keys.clone()));
        Ok(keys)
    }

    /// New keys, where the mesh never had any.
    async fn create(&self, mesh: &Mesh, name: &str) -> Result<Secret, KeysError> {
        let what = format!("Secret {}/{name}", mesh.namespace);
        let bootstrap = names::bootstrap(&mesh.name);
        let map = self
            .cache
            .get(Kind::CONFIG_MAP, &mesh.namespace, &bootstrap)
            .filter(|map| map.owner_references().iter().any(|o| o.uid == mesh.uid));
        if map.is_some() {
            let message = format!(
                "{what}, the mesh's keys, is gone; restore it from a backup, or delete the ConfigMap \
                 {bootstrap} for new keys: then every node joins anew and what nodes hold is fetched \
                 again"
            );
            return Err(stalled(reason::AUTHORITY_MISSING, message));
        }
        let made = tokio::task::spawn_blocking(make).await;
        let made = made
            .map_err(|error| error.to_string())
            .and_then(|made| made)
            .map_err(|error| KeysError::Other(format!("the mesh's keys: {error}")))?;
        let secret = Secret {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                namespace: Some(mesh.namespace.clone()),
                labels: Some(names::labels(&mesh.name, None)),
                owner_references: Some(vec![mesh.owner()]),
                ..ObjectMeta::default()
            },
            // Keys do not change: a mistake with kubectl edit would turn nodes away one by one.
            immutable: Some(true),
            data: Some(made),
            ..Secret::default()
        };
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &mesh.namespace);
        match secrets.create(&PostParams::default(), &secret).await {
            Ok(created) => {
                self.metrics.wrote("Secret", "create");
                tracing::info!(what, "made the keys of a new mesh");
                Ok(created)
            }
            Err(error) => Err(KeysError::Other(format!("{what}: {}", said(&error)))),
        }
    }
}

type Data = BTreeMap<String, ByteString>;

/// Keys of a new mesh.
fn make() -> Result<Data, String> {
    let dir = tempfile::tempdir().map_err(|e| format!("a temporary directory: {e}"))?;
    Authority::load_or_create(dir.path(), "").map_err(|e| e.to_string())?;
    let mut data = Data::new();
    for name in FILES {
        let bytes = std::fs::read(dir.path().join(name)).map_err(|e| format!("{name}: {e}"))?;
        data.insert(name.to_owned(), ByteString(bytes));
    }
    Ok(data)
}

/// What is in a Secret, read as a scheduler will read it. `Err`: what is wrong, after its name.
pub(crate) fn check(data: &Data) -> Result<Own, String> {
    for name in FILES {
        if data.get(name).is_none_or(|bytes| bytes.0.is_empty()) {
            return Err(format!("has no key {name}"));
        }
    }
    let (signing, secret) = (&data[FILES[0]].0, &data[FILES[1]].0);
    let dir = tempfile::tempdir().map_err(|e| format!("cannot be checked: {e}"))?;
    std::fs::write(dir.path().join(FILES[0]), signing)
        .map_err(|e| format!("cannot be checked: {e}"))?;
    signing_key(dir.path()).map_err(|e| format!("holds keys that cannot be used: {e}"))?;
    let join_secret = String::from_utf8_lossy(secret).trim().to_owned();
    // A short one could be guessed by whoever reaches a scheduler.
    if join_secret.len() < 32 || !join_secret.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(format!(
            "holds a {} that is not 32 or more hexadecimal digits",
            FILES[1]
        ));
    }
    Ok(Own {
        fingerprint: fingerprint(&[join_secret.as_bytes(), signing]),
        join_secret,
    })
}

/// Tells keys apart without telling them.
fn fingerprint(parts: &[&[u8]]) -> String {
    let mut hasher = blake3::Hasher::new_derive_key("dragonfly 2026-11 fingerprint of keys v1");
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.finalize().to_hex()[..16].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_keys_pass_their_check_and_have_a_fingerprint_of_their_own() {
        let (a, b) = (make().unwrap(), make().unwrap());
        let (a, b) = (check(&a).unwrap(), check(&b).unwrap());
        assert_ne!(a.fingerprint, b.fingerprint);
        assert_ne!(a.join_secret, b.join_secret);
    }

    #[test]
    fn what_is_wrong_with_keys_is_said() {
        type Change = fn(&mut Data);
        let rows: [(Change, &str); 4] = [
            (
                |data| _ = data.remove("authority.key"),
                "has no key authority.key",
            ),
            (
                |data| _ = data.remove("join.secret"),
                "has no key join.secret",
            ),
            (
                |data| data.get_mut("authority.key").unwrap().0 = b"x".to_vec(),
                "cannot be used",
            ),
            (
                |data| data.get_mut("join.secret").unwrap().0 = b"hunter2".to_vec(),
                "hexadecimal",
            ),
        ];
        let good = make().unwrap();
        for (change, wanted) in rows {
            let mut data = good.clone();
            change(&mut data);
            let Err(said) = check(&data) else {
                panic!("{wanted}")
            };
            assert!(said.contains(wanted), "{said}");
        }
    }
}
