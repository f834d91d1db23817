//! Identities: which content a task stands for, and which node speaks.
//!
//! A task has two keys. The [`RequestKey`] names what a client asked for (a source, before anyone
//! has looked at the origin); the [`ContentKey`] names the bytes it resolved to. Two requests whose
//! bytes are known to be equal (same digest) share one content key, so an image layer that two
//! registries hold is one task.
//!
//! Of a source there are two request keys. The *lookup* key is of exactly what was asked, signatures
//! included: what an origin said to one question answers no other. The *identity* is of what stays the
//! same when signatures change: content keys are made of it, so that all whom the origin lets in share.
//!
//! Both are BLAKE3 hashes over length-prefixed fields, so that no choice of field contents can make
//! two different field lists hash alike, and each has its own derivation context.

use std::fmt;
use std::str::FromStr;

/// Why a textual identity could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// The text is not lower-case hexadecimal of the right length.
    #[error("`{0}` is not {1} hexadecimal digits")]
    NotHex(String, usize),
}

macro_rules! hex_id {
    ($(#[$doc:meta])* $name:ident, $len:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $len]);

        impl $name {
            /// Length in bytes.
            pub const LEN: usize = $len;

            /// Reads the identity from a slice of exactly [`Self::LEN`] bytes.
            #[must_use]
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(Self)
            }

            /// The bytes.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }

            /// The first eight hexadecimal digits, for logs that people read.
            #[must_use]
            pub fn short(&self) -> String {
                self.to_string()[..8].to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(s: &str) -> Result<Self, IdError> {
                parse_hex(s).map(Self).ok_or_else(|| IdError::NotHex(s.chars().take(80).collect(), $len * 2))
            }
        }
    };
}

hex_id!(
    /// A node of the mesh (scheduler, seed or peer), stable over restarts.
    NodeId, 16
);
hex_id!(
    /// What a client asked for: a canonical source inside an isolation domain.
    RequestKey, 32
);
hex_id!(
    /// The bytes of a task inside an isolation domain.
    ContentKey, 32
);

fn parse_hex<const N: usize>(s: &str) -> Option<[u8; N]> {
    let s = s.as_bytes();
    if s.len() != N * 2 {
        return None;
    }
    let nibble = |c: u8| match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        _ => None,
    };
    let mut out = [0; N];
    for (o, pair) in out.iter_mut().zip(s.chunks_exact(2)) {
        *o = nibble(pair[0])? << 4 | nibble(pair[1])?;
    }
    Some(out)
}

/// Hashes a list of fields, each prefixed with its length as a little-endian `u64`.
struct FieldHasher(blake3::Hasher);

impl FieldHasher {
    fn new(context: &str) -> Self {
        Self(blake3::Hasher::new_derive_key(context))
    }

    fn field(mut self, bytes: &[u8]) -> Self {
        self.0.update(&(bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
        self
    }

    fn finish(self) -> [u8; 32] {
        *self.0.finalize().as_bytes()
    }
}

impl RequestKey {
    /// The key of a request.
    ///
    /// `domain` is the isolation domain (empty: shared public content), `source` the canonical
    /// source (see the source crate; selected query parts only where it is for an identity), `headers`
    /// the selected request headers that change what the origin answers, lower-case names, sorted by
    /// name, and whatever else the request depends on.
    #[must_use]
    pub fn derive(domain: &str, source: &str, headers: &[(String, String)]) -> Self {
        let mut h = FieldHasher::new("dragonfly 2026-11 request key v1")
            .field(domain.as_bytes())
            .field(source.as_bytes())
            .field(&(headers.len() as u64).to_le_bytes());
        for (name, value) in headers {
            h = h.field(name.as_bytes()).field(value.as_bytes());
        }
        Self(h.finish())
    }
}

impl ContentKey {
    /// The key of content whose digest is known (`algorithm:hex`, lower case).
    #[must_use]
    pub fn from_digest(domain: &str, digest: &str) -> Self {
        Self(
            FieldHasher::new("dragonfly 2026-11 content key by digest v1")
                .field(domain.as_bytes())
                .field(digest.as_bytes())
                .finish(),
        )
    }

    /// The key of content known only by where it came from (`identity`: the source's) and the origin's
    /// validator for it (strong `ETag`, object generation, or last-modified and length).
    #[must_use]
    pub fn from_validator(domain: &str, identity: &RequestKey, validator: &str) -> Self {
        Self(
            FieldHasher::new("dragonfly 2026-11 content key by validator v1")
                .field(domain.as_bytes())
                .field(&identity.0)
                .field(validator.as_bytes())
                .finish(),
        )
    }
}

/// Headers that say nothing of who asks. Any other may be a credential: origins choose their names.
/// `Referer` and `Origin` are not among these, for some origins go by them.
const HARMLESS: [&str; 21] = [
    "accept",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "b3",
    "baggage",
    "cache-control",
    "dnt",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "pragma",
    "priority",
    "range",
    "traceparent",
    "tracestate",
    "user-agent",
    "x-correlation-id",
    "x-request-id",
];

/// Headers by which an origin chooses what it gives.
const NEGOTIATING: [&str; 3] = ["accept", "accept-charset", "accept-language"];

/// Those of a request's headers (names in lower case) that change what the origin answers, sorted by
/// name. To take anything is to say nothing.
#[must_use]
pub fn negotiated<'a>(
    headers: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Vec<(String, String)> {
    let says = |(n, v): &(&str, &str)| NEGOTIATING.contains(n) && !(*n == "accept" && *v == "*/*");
    let said = headers.into_iter().filter(says);
    let mut said: Vec<_> = said.map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
    // Stable: of two of one name the order may count.
    said.sort_by(|a, b| a.0.cmp(&b.0));
    said
}

/// Begins the isolation domains of content that was named by a digest and opened by a URL.
const OPENED: &str = "opened:";

/// The isolation domain of content that a client names by its digest and by a URL with something in it
/// that may open it, a signature say: `place` is where it is, whatever the signature. In it a digest alone opens nothing.
#[must_use]
pub fn opened_domain(place: &RequestKey) -> String {
    format!("{OPENED}{place}")
}

/// Whether what is in this isolation domain is given for a URL only after its origin was asked for that
/// very URL, digest or not.
#[must_use]
pub fn is_opened_domain(domain: &str) -> bool {
    domain.starts_with(OPENED)
}

/// The isolation domain of what was got with these headers (names in lower case): what one client may
/// read by its credentials another may not, so such content is shared only among those who show the
/// same. `None` where none of them may be a credential.
#[must_use]
pub fn credential_domain<'a>(
    headers: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Option<String> {
    let headers = headers.into_iter();
    let mut secrets: Vec<_> = headers.filter(|(n, _)| !HARMLESS.contains(n)).collect();
    if secrets.is_empty() {
        return None;
    }
    secrets.sort_unstable();
    let mut h = blake3::Hasher::new_derive_key("dragonfly 2026-11 credential domain v1");
    for (name, value) in secrets {
        h.update(&(value.len() as u64).to_le_bytes());
        h.update(name.as_bytes());
        h.update(value.as_bytes());
    }
    Some(format!("credential:{}", h.finalize().to_hex()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_a_domain_of_their_own_whatever_else_is_said_and_in_what_order() {
        let all = [("authorization", "a"), ("cookie", "b"), ("accept", "*/*")];
        let domain = credential_domain(all);
        assert!(domain.as_ref().unwrap().starts_with("credential:"));
        assert_eq!(domain, credential_domain([all[1], all[0]]));
        assert_ne!(domain, credential_domain([all[0]]));
        assert_ne!(
            domain,
            credential_domain([("authorization", "b"), ("cookie", "a")])
        );
        assert_eq!(credential_domain([all[2]]), None);
    }

    #[test]
    fn any_header_but_harmless_ones_may_be_a_credential() {
        for name in [
            "private-token",
            "x-jfrog-art-api",
            "x-auth-token",
            "referer",
        ] {
            assert!(credential_domain([(name, "a")]).is_some(), "{name}");
        }
        for name in HARMLESS {
            assert_eq!(credential_domain([(name, "a")]), None, "{name}");
        }
        assert!(NEGOTIATING.iter().all(|name| HARMLESS.contains(name)));
    }

    #[test]
    fn what_is_negotiated_is_told_in_one_order_and_taking_anything_is_saying_nothing() {
        let (json, german) = (("accept", "application/json"), ("accept-language", "de"));
        let said = negotiated([german, ("user-agent", "x"), json]);
        assert_eq!(said, negotiated([json, german]));
        assert_eq!(said.len(), 2);
        assert!(negotiated([("accept", "*/*")]).is_empty());
    }

    #[test]
    fn fields_cannot_run_into_each_other() {
        let h = |a: &str, b: &str| vec![(a.to_owned(), b.to_owned())];
        let all = [
            RequestKey::derive("a", "bc", &[]),
            RequestKey::derive("ab", "c", &[]),
            RequestKey::derive("", "abc", &[]),
            RequestKey::derive("", "a", &h("b", "c")),
            RequestKey::derive("", "a", &h("bc", "")),
        ];
        for (i, a) in all.iter().enumerate() {
            for b in &all[i + 1..] {
                assert_ne!(a, b);
            }
        }
    }

    #[test]
    fn the_same_digest_is_one_task_and_domains_keep_apart() {
        let digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let a = ContentKey::from_digest("", digest);
        assert_eq!(a, ContentKey::from_digest("", digest));
        assert_ne!(a, ContentKey::from_digest("tenant-a", digest));
    }

    #[test]
    fn keys_are_pinned_since_they_are_on_disk_and_on_the_wire() {
        let k = RequestKey::derive("", "https://example.com/a", &[]);
        assert_eq!(k.to_string(), PINNED);
        assert_eq!(k.to_string().parse::<RequestKey>(), Ok(k));
        assert!("zz".parse::<RequestKey>().is_err());
    }

    const PINNED: &str = "f2256d21cdce4e52fde22f2ed56905fea1bfb28a9a5a1deb5ca9771d2e52b323";
}
