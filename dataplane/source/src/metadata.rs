//! What an origin says about a content, and whether two answers speak of the same bytes.
//!
//! Invariant: bytes of two answers may be put together only when [`Metadata::same_content`] holds
//! for them; a content encoding (gzip) makes another content out of the same URL.

use crate::secret::SecretUrl;
use std::time::Duration;

/// What tells one version of a content from the next (RFC 9110 section 8.8).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub enum Validator {
    /// A strong entity tag, quotes included: equal tags are equal bytes.
    Strong(String),
    /// A weak tag, a modification date, or both: with an equal length a fair guess, no proof.
    Weak {
        /// `W/"…"`, as sent.
        etag: Option<String>,
        /// `Last-Modified`, as sent.
        last_modified: Option<String>,
        /// The date is a strong validator by RFC 9110 section 8.8.2.2 (older than the answer by at
        /// least a minute), so `If-Range` may carry it.
        date_is_strong: bool,
    },
    /// Nothing: two answers can only be compared byte by byte or by a digest.
    #[default]
    None,
}

impl Validator {
    /// The value for an `If-Range` header; weak tags must not be sent (RFC 9110 section 13.1.5).
    pub fn if_range(&self) -> Option<&str> {
        match self {
            Self::Strong(etag) => Some(etag),
            Self::Weak {
                last_modified: Some(date),
                date_is_strong: true,
                ..
            } => Some(date),
            Self::Weak { .. } | Self::None => None,
        }
    }

    /// True when equality proves equal bytes.
    pub fn is_strong(&self) -> bool {
        matches!(self, Self::Strong(_))
    }

    /// True when there is nothing to compare.
    pub fn is_none(&self) -> bool {
        matches!(self, Self::None)
    }
}

/// How long the origin lets its answer be taken for current (RFC 9111 section 5.2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Freshness {
    /// From `s-maxage`, `max-age` or `Expires`, less `Age`; `None` when it says nothing.
    pub max_age: Option<Duration>,
    /// `no-store`: the origin wants no copy kept, so each who asks has it asked.
    pub no_store: bool,
    /// `private`: said to this client only, so each who asks has it asked.
    pub private: bool,
}

/// What one answer said.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Metadata {
    /// Length of the whole content in bytes *as sent* (encoded, when there is an encoding).
    /// `None` for a chunked body: known only at its end.
    pub total_len: Option<u64>,
    /// Tells this version from the next.
    pub validator: Validator,
    /// Ranges work: seen (206), or claimed with `Accept-Ranges: bytes`.
    pub accepts_ranges: bool,
    /// `Content-Type`, as sent.
    pub content_type: Option<String>,
    /// `Content-Encoding` other than `identity`: the bytes are stored as sent and whoever serves
    /// them must send this header too.
    pub content_encoding: Option<String>,
    /// `sha256:<hex>` that the origin *claims* (`Repr-Digest`, `Docker-Content-Digest`): good for
    /// finding a task, to be checked at the end like any digest.
    pub digest: Option<String>,
    /// Where redirects led, when not to the URL asked for. May hold a signature that expires: for
    /// the ranges of this fetch, never for a key or a disk.
    pub final_url: Option<SecretUrl>,
    /// For how long the answer is current.
    pub freshness: Freshness,
}

impl Metadata {
    /// The version of the content for a content key when no digest is known: `None`
    /// when the origin gives no validator, and then nothing may be shared with another fetch.
    pub fn version(&self) -> Option<String> {
        let encoding = self.content_encoding.as_deref().unwrap_or("identity");
        let len = self
            .total_len
            .map_or_else(|| "*".to_owned(), |len| len.to_string());
        match &self.validator {
            Validator::Strong(etag) => Some(format!("etag={etag};encoding={encoding}")),
            Validator::Weak {
                etag,
                last_modified,
                ..
            } => Some(format!(
                "weak={};modified={};len={len};encoding={encoding}",
                etag.as_deref().unwrap_or(""),
                last_modified.as_deref().unwrap_or(""),
            )),
            Validator::None => None,
        }
    }

    /// True when nothing in `later` (another answer for the same request) speaks against the same
    /// bytes. What one of the two leaves out does not count: a 206 may be sparse.
    pub fn same_content(&self, later: &Self) -> bool {
        let differ =
            |a: &Option<String>, b: &Option<String>| matches!((a, b), (Some(a), Some(b)) if a != b);
        if matches!((self.total_len, later.total_len), (Some(a), Some(b)) if a != b)
            || self.content_encoding != later.content_encoding
            || differ(&self.digest, &later.digest)
        {
            return false;
        }
        match (&self.validator, &later.validator) {
            (Validator::None, _) | (_, Validator::None) => true,
            (Validator::Strong(a), Validator::Strong(b)) => a == b,
            (
                Validator::Weak {
                    etag: e1,
                    last_modified: m1,
                    ..
                },
                Validator::Weak {
                    etag: e2,
                    last_modified: m2,
                    ..
                },
            ) => !differ(e1, e2) && !differ(m1, m2),
            // One answer has a strong tag and the other only a weak one (a proxy that compresses
            // weakens tags): equal when the opaque parts are.
            (Validator::Strong(strong), Validator::Weak { etag, .. })
            | (Validator::Weak { etag, .. }, Validator::Strong(strong)) => etag
                .as_deref()
                .is_none_or(|weak| weak.trim_start_matches("W/") == strong),
        }
    }

    /// True when separate range requests may be put together: ranges work, the length is known and
    /// there is a validator to notice a change.
    pub fn can_split(&self) -> bool {
        self.accepts_ranges && self.total_len.is_some() && !self.validator.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strong(tag: &str) -> Metadata {
        Metadata {
            validator: Validator::Strong(tag.into()),
            ..Metadata::default()
        }
    }

    fn weak(etag: Option<&str>, modified: Option<&str>) -> Metadata {
        Metadata {
            validator: Validator::Weak {
                etag: etag.map(Into::into),
                last_modified: modified.map(Into::into),
                date_is_strong: false,
            },
            ..Metadata::default()
        }
    }

    #[test]
    fn answers_are_of_one_content_unless_something_speaks_against_it() {
        let long = Metadata {
            total_len: Some(10),
            ..strong("\"a\"")
        };
        let rows = [
            ("equal tags", strong("\"a\""), strong("\"a\""), true),
            ("other tags", strong("\"a\""), strong("\"b\""), false),
            ("length left out", long.clone(), strong("\"a\""), true),
            (
                "other length",
                long,
                Metadata {
                    total_len: Some(11),
                    ..strong("\"a\"")
                },
                false,
            ),
            (
                "weakened by a proxy",
                strong("\"a\""),
                weak(Some("W/\"a\""), None),
                true,
            ),
            (
                "weakened, other",
                strong("\"a\""),
                weak(Some("W/\"b\""), None),
                false,
            ),
            (
                "other date",
                weak(None, Some("x")),
                weak(None, Some("y")),
                false,
            ),
            (
                "encoded",
                strong("\"a\""),
                Metadata {
                    content_encoding: Some("gzip".into()),
                    ..strong("\"a\"")
                },
                false,
            ),
        ];
        for (name, first, later, same) in rows {
            assert_eq!(first.same_content(&later), same, "{name}");
            assert_eq!(
                later.same_content(&first),
                same,
                "{name}, the other way round"
            );
        }
    }

    #[test]
    fn versions_differ_where_contents_may() {
        let zipped = Metadata {
            content_encoding: Some("gzip".into()),
            ..strong("\"a\"")
        };
        let versions = [
            strong("\"a\""),
            strong("\"b\""),
            zipped,
            weak(Some("\"a\""), None),
        ]
        .map(|metadata| metadata.version().unwrap());
        for (n, version) in versions.iter().enumerate() {
            assert!(!versions[..n].contains(version), "{version}");
        }
        assert_eq!(Metadata::default().version(), None);
    }
}
