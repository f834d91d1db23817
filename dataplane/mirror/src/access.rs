//! Who may read what, by a registry's own word, remembered for a short time.
//!
//! Invariants: bounded, whatever clients ask for; credentials are kept as a hash that is keyed by a
//! secret of this process; only what a registry granted is remembered, a refusal never: who was let in
//! a moment later is not kept out.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use dragonfly_node::limits::Recent;
use hyper::header::{AUTHORIZATION, HeaderMap};

use crate::ask::{Digest, Kind, Wanted};

/// Grants kept: about 200 bytes each.
const MOST: usize = 16_384;

/// One who asks, by credentials; nobody's for all without.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Who([u8; 32]);

impl Who {
    /// Nobody in particular: for what is the same for all.
    pub(crate) const ANYBODY: Self = Self([0; 32]);
}

/// What a registry let somebody read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Granted {
    at: Instant,
    /// Its length, where it was said.
    pub(crate) len: Option<u64>,
    /// Its media type, where it was said.
    pub(crate) kind: Option<String>,
}

impl Granted {
    pub(crate) fn new(len: Option<u64>, kind: Option<String>) -> Self {
        Self {
            at: Instant::now(),
            len,
            kind,
        }
    }

    /// Whether the registry's word still counts.
    pub(crate) fn is_fresh(&self, counts_for: Duration) -> bool {
        self.at.elapsed() < counts_for
    }
}

/// All that was granted.
pub(crate) struct Access {
    secret: [u8; 32],
    granted: Mutex<Recent<[u8; 32], Granted>>,
}

impl Access {
    pub(crate) fn new() -> Result<Self, aws_lc_rs::error::Unspecified> {
        let mut secret = [0; 32];
        aws_lc_rs::rand::fill(&mut secret)?;
        Ok(Self {
            secret,
            granted: Mutex::new(Recent::new(MOST)),
        })
    }

    /// Who asks.
    pub(crate) fn who(&self, headers: &HeaderMap) -> Who {
        let shown = headers
            .get_all(AUTHORIZATION)
            .iter()
            .map(|value| value.as_bytes());
        Who(self.hash(shown))
    }

    /// Who asks by a pull secret.
    pub(crate) fn by_secret(&self, identity: &str) -> Who {
        Who(self.hash([b"pull secret".as_slice(), identity.as_bytes()].into_iter()))
    }

    /// A key for what concerns one who asks alone.
    pub(crate) fn key(&self, who: Who, wanted: &Wanted, what: &str) -> [u8; 32] {
        let (registry, name) = (wanted.registry.as_bytes(), wanted.repository.as_bytes());
        self.hash([&who.0[..], registry, name, what.as_bytes()].into_iter())
    }

    fn hash<'a>(&self, fields: impl Iterator<Item = &'a [u8]>) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_keyed(&self.secret);
        for field in fields {
            hasher.update(&(field.len() as u64).to_le_bytes());
            hasher.update(field);
        }
        *hasher.finalize().as_bytes()
    }

    /// What the registry said last, however long ago.
    pub(crate) fn granted(&self, who: Who, wanted: &Wanted, digest: &Digest) -> Option<Granted> {
        let key = self.key(who, wanted, &what(wanted, digest));
        let all = self.granted.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(&key).cloned()
    }

    /// The registry let somebody read something.
    pub(crate) fn grant(&self, who: Who, wanted: &Wanted, digest: &Digest, granted: Granted) {
        let key = self.key(who, wanted, &what(wanted, digest));
        let mut all = self.granted.lock().unwrap_or_else(PoisonError::into_inner);
        all.put(key, granted);
    }
}

/// A digest as what it was asked for: registries answer for blobs and for manifests apart, with another
/// media type, or with a refusal of one.
fn what(wanted: &Wanted, digest: &Digest) -> String {
    let part = match wanted.kind {
        Kind::Blob(_) => "blob",
        _ => "manifest",
    };
    format!("{part} {digest}")
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Access")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(authorization: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if !authorization.is_empty() {
            headers.insert(AUTHORIZATION, authorization.parse().unwrap());
        }
        headers
    }

    #[test]
    fn what_one_may_read_says_nothing_of_another_repository_or_digest() {
        let access = Access::new().unwrap();
        let wanted = |repository: &str| {
            Wanted::read(
                &format!("/v2/{repository}/manifests/x"),
                Some("ns=registry.test"),
            )
            .unwrap()
        };
        let digest = |n: u8| Digest::read(&format!("sha256:{}", format!("{n:02x}").repeat(32)));
        let (one, other) = (digest(1).unwrap(), digest(2).unwrap());
        let anna = access.who(&headers("Basic YW5uYQ=="));
        access.grant(anna, &wanted("a"), &one, Granted::new(Some(7), None));
        let may = |who, repository: &str, digest| {
            access
                .granted(who, &wanted(repository), digest)
                .is_some_and(|g| g.is_fresh(Duration::from_secs(60)))
        };
        assert!(may(anna, "a", &one));
        assert!(!may(anna, "a", &other) && !may(anna, "b", &one));
        for someone in ["", "Basic YW5uYg==", "Bearer YW5uYQ=="] {
            assert!(!may(access.who(&headers(someone)), "a", &one), "{someone}");
        }
        let path = format!("/v2/a/blobs/{one}");
        let blob = Wanted::read(&path, Some("ns=registry.test")).unwrap();
        assert!(access.granted(anna, &blob, &one).is_none());
        let old = access.granted(anna, &wanted("a"), &one).unwrap();
        assert!(!old.is_fresh(Duration::ZERO));
        assert_ne!(
            Access::new().unwrap().who(&headers("x")),
            access.who(&headers("x")),
            "hashes of two processes cannot be compared"
        );
    }
}
