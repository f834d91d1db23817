//! One spelling for each source: the part of a request key that says *where from*.
//!
//! Equal canonical keys mean the same resource at the origin; what the filter drops (signatures by
//! default) must not select content. Who may have it is another question: that of [`canonical_whole`],
//! which drops nothing. Normalisation is that of RFC 3986 section 6.2.2 (case, percent
//! encoding, dot segments) and of 6.2.3 for the default port, and nothing that could change the
//! meaning: an empty path segment or a trailing slash stays, and so does the order of parameters of
//! the same name.
//!
//! Invariants: canonicalisation is idempotent; a [`Canonical`] never holds userinfo, a fragment or a secret
//! value in the clear. A kept parameter whose *name* says that it is secret (`token=…`) enters as a
//! hash of its value, so two tokens are two keys but neither can be read.

use crate::error::{Error, Fault, Kind, Result};
use crate::secret;
use reqwest::Url;
use std::fmt;
use zeroize::Zeroizing;

/// Which query parameters are part of the identity. Patterns match decoded names without regard to
/// case and may end in `*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueryFilter {
    /// When not empty: only these are kept (and signatures only if named here).
    pub include: Vec<String>,
    /// Never kept, whatever `include` says.
    pub exclude: Vec<String>,
    /// Drop the parameters of well-known URL signatures (S3, GCS, Azure SAS, CloudFront, OSS, COS,
    /// Akamai). Names that are common words (`se`, `expires`) count only beside their signature.
    pub drop_signatures: bool,
}

impl Default for QueryFilter {
    fn default() -> Self {
        Self {
            include: Vec::new(),
            exclude: Vec::new(),
            drop_signatures: true,
        }
    }
}

impl QueryFilter {
    fn keeps(&self, name: &str, signs: bool) -> bool {
        let listed = |patterns: &[String]| patterns.iter().any(|p| matches(p, name));
        if listed(&self.exclude) {
            return false;
        }
        if !self.include.is_empty() {
            return listed(&self.include);
        }
        !(signs && self.drop_signatures)
    }
}

fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.to_ascii_lowercase(), name.to_ascii_lowercase());
    match pattern.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => name == pattern,
    }
}

/// A source as it enters a request key. Safe to print and to store.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Canonical {
    key: String,
}

impl Canonical {
    /// The key.
    pub fn key(&self) -> &str {
        &self.key
    }
}

impl fmt::Display for Canonical {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.key)
    }
}

impl fmt::Debug for Canonical {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Canonical({})", self.key)
    }
}

/// The canonical form of `url`.
///
/// # Errors
/// [`Kind::InvalidRequest`] when the URL has no host and is no `file:` URL.
pub fn canonical(url: &Url, filter: &QueryFilter) -> Result<Canonical> {
    let key = spelled(url, Some(filter))?;
    Ok(Canonical { key })
}

/// The whole of a URL in its one spelling: all that it shows the origin, and nothing hidden. To be hashed
/// and never shown.
///
/// # Errors
/// As [`canonical`].
pub fn canonical_whole(url: &Url) -> Result<Zeroizing<String>> {
    spelled(url, None).map(Zeroizing::new)
}

/// Without a filter nothing is dropped or hidden.
fn spelled(url: &Url, filter: Option<&QueryFilter>) -> Result<String> {
    // The parser has already lowered scheme and host, dropped a default port and removed dot
    // segments (for `http`, `https`, `file`); for other schemes the case of the host is ours to do.
    let host = match url.host_str() {
        Some(host) => host.trim_end_matches('.').to_ascii_lowercase(),
        None if url.scheme() == "file" => String::new(),
        None => {
            return Err(Error::permanent(
                Kind::InvalidRequest,
                Fault::Caller,
                format!(
                    "a `{}:` source needs a host: write it as {0}://host/path",
                    url.scheme()
                ),
            ));
        }
    };
    let mut key = format!("{}://{host}", url.scheme());
    if let Some(port) = url.port() {
        key.push_str(&format!(":{port}"));
    }
    let path = url.path();
    if !path.starts_with('/') {
        key.push('/');
    }
    key.push_str(&normalise(path));
    let query = canonical_query(url.query().unwrap_or(""), filter);
    if !query.is_empty() {
        key.push('?');
        key.push_str(&query);
    }
    Ok(key)
}

fn canonical_query(query: &str, filter: Option<&QueryFilter>) -> String {
    let pairs: Vec<&str> = query.split('&').filter(|pair| !pair.is_empty()).collect();
    let names: Vec<String> = pairs
        .iter()
        .map(|pair| secret::decode(pair.split_once('=').map_or(*pair, |(name, _)| name)))
        .collect();
    let signs = secret::signature_params(&names);
    let mut kept: Vec<(String, String)> = pairs
        .iter()
        .zip(&names)
        .zip(signs)
        .filter(|((_, name), signs)| filter.is_none_or(|f| f.keeps(name, *signs)))
        .map(|((pair, name), _)| canonical_pair(pair, name, filter.is_some()))
        .collect();
    // By name only, and stable: `a=1&a=2` and `a=2&a=1` may differ at the origin.
    kept.sort_by(|a, b| a.0.cmp(&b.0));
    kept.into_iter()
        .map(|(_, pair)| pair)
        .collect::<Vec<_>>()
        .join("&")
}

/// Name to sort by, and the pair as it enters the key.
fn canonical_pair(pair: &str, decoded_name: &str, hide: bool) -> (String, String) {
    let Some((name, value)) = pair.split_once('=') else {
        let name = normalise(pair);
        return (name.clone(), name);
    };
    let name = normalise(name);
    let value = normalise(value);
    let hide = hide && secret::is_secret_param(decoded_name);
    let shown = if hide && !is_hashed(&value) && !value.is_empty() {
        hashed(&value)
    } else {
        value
    };
    (name.clone(), format!("{name}={shown}"))
}

/// Marks a value that is already a hash, so that canonicalising twice changes nothing.
const HASH_MARK: &str = "~b3~";

fn hashed(value: &str) -> String {
    let hash = blake3::hash(value.as_bytes()).to_hex();
    format!("{HASH_MARK}{}", &hash.as_str()[..32])
}

fn is_hashed(value: &str) -> bool {
    value.strip_prefix(HASH_MARK).is_some_and(|rest| {
        rest.len() == 32 && rest.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    })
}

/// RFC 3986 sections 6.2.2.1 and 6.2.2.2: upper-case hex digits; unreserved characters bare.
fn normalise(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < bytes.len() {
        let byte = bytes[at];
        if byte == b'%'
            && let Some(value) = secret::hex_pair(bytes, at + 1)
        {
            if value.is_ascii_alphanumeric() || b"-._~".contains(&value) {
                out.push(char::from(value));
            } else {
                out.push_str(&format!("%{value:02X}"));
            }
            at += 3;
            continue;
        }
        if byte.is_ascii() {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
        at += 1;
    }
    out
}
