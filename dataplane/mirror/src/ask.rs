//! What a request means: which registry, which repository, what of it.
//!
//! Two ways to name the registry on one port: `?ns=registry` (containerd), or as the first part of the
//! path, `/v2/registry/repository/…` (CRI-O, podman). Where `ns` is given the path is the registry's
//! own. Where neither is given it is Docker Hub (Docker).
//!
//! Invariants: pure; any input gets an answer or a refusal that says what is wrong; what is returned
//! holds only characters that may stand in a URL's path as they are, and no `..`.

use std::fmt;

use crate::answer::{Code, Refusal};

/// Longest name of a repository, as registries have it.
const MAX_REPOSITORY: usize = 255;
/// Whose images have no registry in their names.
const DOCKER_HUB: &str = "docker.io";
const MAX_TAG: usize = 128;
/// A host's name has 253 characters at most, and a port six.
const MAX_REGISTRY: usize = 259;
const MAX_DIGEST: usize = 256;
/// Longest query that is passed on.
const MAX_QUERY: usize = 4096;

/// A request, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// `host` or `host:port`, in lower case.
    pub(crate) registry: String,
    /// The registry stood in the path.
    pub(crate) in_path: bool,
    pub(crate) repository: String,
    pub(crate) kind: Kind,
    /// The query without `ns`; empty for none.
    pub(crate) query: String,
}

/// What of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A manifest or index by what a tag means now.
    Tag(String),
    /// A manifest or index by digest.
    Manifest(Digest),
    /// A layer or configuration.
    Blob(Digest),
    /// The list of tags.
    Tags,
    /// What refers to a digest.
    Referrers(Digest),
}

/// `algorithm:hex`, in lower case.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Digest(String);

impl Digest {
    /// Reads one.
    pub(crate) fn read(text: &str) -> Option<Self> {
        let (algorithm, encoded) = text.split_once(':')?;
        let sound = text.len() <= MAX_DIGEST
            && !algorithm.is_empty()
            && algorithm
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+._-".contains(&b))
            && !encoded.is_empty()
            && encoded
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"=_-".contains(&b));
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        let exact = algorithm != "sha256" || (encoded.len() == 64 && encoded.bytes().all(hex));
        (sound && exact).then(|| Self(text.to_owned()))
    }

    /// The text.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the mesh can check it.
    pub(crate) fn is_sha256(&self) -> bool {
        self.0.starts_with("sha256:")
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Wanted {
    /// Reads a path below `/v2/` and a query.
    pub(crate) fn read(path: &str, query: Option<&str>) -> Result<Self, Refusal> {
        let query = query.unwrap_or_default();
        if query.len() > MAX_QUERY || query.bytes().any(|b| b.is_ascii_control() || b == b' ') {
            return Err(Refusal::new(
                400,
                Code::Unsupported,
                "the query is too long or holds blanks",
            ));
        }
        let (ns, query) = without_ns(query)?;
        let rest = path.strip_prefix("/v2/").ok_or_else(|| {
            Refusal::new(
                404,
                Code::NameUnknown,
                "paths of a registry begin with /v2/",
            )
        })?;
        let parts: Vec<&str> = rest.split('/').collect();
        let (name, kind) = match parts.as_slice() {
            [name @ .., "manifests", reference] => (name, manifest(reference)?),
            [name @ .., "blobs", digest] => (name, Kind::Blob(digest_of(digest)?)),
            [name @ .., "referrers", digest] => (name, Kind::Referrers(digest_of(digest)?)),
            [name @ .., "tags", "list"] => (name, Kind::Tags),
            _ => {
                let text = "the mirror serves manifests, blobs, tags/list and referrers";
                return Err(Refusal::new(404, Code::NameUnknown, text));
            }
        };
        let (registry, in_path, name) = match (ns, name) {
            (Some(ns), name) => (ns, false, name),
            (None, [first, name @ ..]) if is_registry(first) && !name.is_empty() => {
                (first.to_ascii_lowercase(), true, name)
            }
            (None, [only]) if is_registry(only) => {
                let text = format!("which repository of {}?", shown(only));
                return Err(Refusal::new(404, Code::NameUnknown, text));
            }
            // What names of images without a registry mean, and all that Docker asks mirrors for.
            (None, name) => (DOCKER_HUB.to_owned(), false, name),
        };
        let repository = name.join("/");
        if name.is_empty()
            || repository.len() > MAX_REPOSITORY
            || !name.iter().all(|part| is_name(part))
        {
            let text = format!("`{}` is no repository's name", shown(&repository));
            return Err(Refusal::new(400, Code::NameInvalid, text));
        }
        Ok(Self {
            registry,
            in_path,
            repository,
            kind,
            query,
        })
    }

    /// Path and query at the registry.
    pub(crate) fn upstream_path(&self) -> String {
        let name = &self.repository;
        let path = match &self.kind {
            Kind::Tag(tag) => format!("/v2/{name}/manifests/{tag}"),
            Kind::Manifest(digest) => format!("/v2/{name}/manifests/{digest}"),
            Kind::Blob(digest) => format!("/v2/{name}/blobs/{digest}"),
            Kind::Tags => format!("/v2/{name}/tags/list"),
            Kind::Referrers(digest) => format!("/v2/{name}/referrers/{digest}"),
        };
        if self.query.is_empty() {
            path
        } else {
            format!("{path}?{}", self.query)
        }
    }

    /// The same repository's manifest of a digest.
    pub(crate) fn manifest(&self, digest: Digest) -> Self {
        Self {
            kind: Kind::Manifest(digest),
            query: String::new(),
            ..self.clone()
        }
    }
}

fn manifest(reference: &str) -> Result<Kind, Refusal> {
    if reference.contains(':') {
        return Ok(Kind::Manifest(digest_of(reference)?));
    }
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let sound = reference.len() <= MAX_TAG
        && reference.bytes().next().is_some_and(word)
        && reference.bytes().all(|b| word(b) || b == b'.' || b == b'-');
    if sound {
        return Ok(Kind::Tag(reference.to_owned()));
    }
    let text = format!("`{}` is neither a tag nor a digest", shown(reference));
    Err(Refusal::new(400, Code::ManifestInvalid, text))
}

fn digest_of(text: &str) -> Result<Digest, Refusal> {
    // Clients may write the colon as %3A.
    let plain = text.replacen("%3A", ":", 1).replacen("%3a", ":", 1);
    Digest::read(&plain).ok_or_else(|| {
        let text = format!(
            "`{}` is not a digest: write sha256:<64 hex digits>",
            shown(text)
        );
        Refusal::new(400, Code::DigestInvalid, text)
    })
}

/// One part of a repository's name. (Registries differ in whether capitals may be in it.)
fn is_name(part: &str) -> bool {
    let ends = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
    ends(part.bytes().next())
        && ends(part.bytes().last())
        && part
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

/// Whether a path's first part names a registry, as references of images have it.
fn is_registry(part: &str) -> bool {
    (part.contains(['.', ':']) || part.eq_ignore_ascii_case("localhost")) && is_host(part)
}

/// `host`, `host:port`, `[address]:port`.
pub(crate) fn is_host(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, after)) if address.parse::<std::net::Ipv6Addr>().is_ok() => {
                match after.strip_prefix(':') {
                    Some(port) => ("v6", Some(port)),
                    None if after.is_empty() => ("v6", None),
                    None => return false,
                }
            }
            _ => return false,
        },
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let label = |l: &str| {
        let ends = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_');
        l.len() <= 63
            && ends(l.bytes().next())
            && ends(l.bytes().last())
            && l.bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    text.len() <= MAX_REGISTRY
        && host.split('.').all(label)
        && port.is_none_or(|p| {
            p.bytes().all(|b| b.is_ascii_digit()) && p.parse::<u16>().is_ok_and(|p| p > 0)
        })
}

/// Takes `ns` out of a query.
fn without_ns(query: &str) -> Result<(Option<String>, String), Refusal> {
    let (mut ns, mut rest) = (None, vec![]);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.strip_prefix("ns=") {
            Some(value) if ns.is_none() => {
                let plain = decoded(value).map(|plain| plain.to_ascii_lowercase());
                ns = Some(plain.filter(|plain| is_host(plain)).ok_or_else(|| {
                    let text = format!("`{}` in ns is no registry's host[:port]", shown(value));
                    Refusal::new(400, Code::NameInvalid, text)
                })?);
            }
            // Which of two is meant nobody knows.
            Some(_) => {
                return Err(Refusal::new(
                    400,
                    Code::NameInvalid,
                    "ns is given twice".to_owned(),
                ));
            }
            None => rest.push(pair),
        }
    }
    Ok((ns, rest.join("&")))
}

/// Percent-decoded, where that is ASCII.
fn decoded(text: &str) -> Option<String> {
    let (mut out, mut bytes) = (String::new(), text.bytes());
    while let Some(byte) = bytes.next() {
        let plain = if byte == b'%' {
            let high = char::from(bytes.next()?).to_digit(16)?;
            let low = char::from(bytes.next()?).to_digit(16)?;
            u8::try_from(high * 16 + low).ok()?
        } else {
            byte
        };
        out.push(plain.is_ascii_graphic().then_some(char::from(plain))?);
    }
    Some(out)
}

/// The beginning of a text, as it may be shown.
fn shown(text: &str) -> String {
    text.chars()
        .take(100)
        .flat_map(char::escape_debug)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn read(target: &str) -> Result<Wanted, Refusal> {
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (target, None),
        };
        Wanted::read(path, query)
    }

    #[test]
    fn both_ways_to_name_a_registry_mean_the_same() {
        let rows = [
            (
                "/v2/library/alpine/manifests/3?ns=docker.io",
                "docker.io",
                "/v2/library/alpine/manifests/3",
            ),
            (
                "/v2/docker.io/library/alpine/manifests/3",
                "docker.io",
                "/v2/library/alpine/manifests/3",
            ),
            (
                "/v2/a/tags/list?n=2&ns=Registry.Test%3A5000&last=x",
                "registry.test:5000",
                "/v2/a/tags/list?n=2&last=x",
            ),
            (
                "/v2/localhost:5000/a/tags/list",
                "localhost:5000",
                "/v2/a/tags/list",
            ),
            // Without either it is Docker's own.
            (
                "/v2/library/alpine/manifests/3",
                "docker.io",
                "/v2/library/alpine/manifests/3",
            ),
            // With `ns` the path is the registry's own.
            (
                "/v2/docker.io/a/manifests/x?ns=harbor.test",
                "harbor.test",
                "/v2/docker.io/a/manifests/x",
            ),
            // A repository may be named like what is in one.
            (
                "/v2/manifests/blobs/manifests/tags?ns=r.test",
                "r.test",
                "/v2/manifests/blobs/manifests/tags",
            ),
        ];
        for (target, registry, path) in rows {
            let wanted = read(target).unwrap();
            assert_eq!(
                (wanted.registry.as_str(), wanted.upstream_path().as_str()),
                (registry, path),
                "{target}"
            );
        }
        let digest = format!("/v2/a/blobs/sha256%3A{HEX}?ns=r.test");
        assert_eq!(
            read(&digest).unwrap().kind,
            Kind::Blob(Digest(format!("sha256:{HEX}")))
        );
    }

    #[test]
    fn what_is_no_request_of_a_registry_is_refused_by_name() {
        let rows = [
            ("/", 404, "/v2/"),
            ("/v2/docker.io/manifests/x", 404, "which repository"),
            ("/v2/a/blobs/uploads/?ns=r.test", 404, "the mirror serves"),
            ("/v2/a/blobs/uploads?ns=r.test", 400, "`uploads`"),
            ("/v2/a/blobs/sha256:00?ns=r.test", 400, "sha256:00"),
            ("/v2/../a/manifests/x?ns=r.test", 400, "../a"),
            ("/v2//a/manifests/x?ns=r.test", 400, "/a"),
            ("/v2/a%2f..%2fb/manifests/x?ns=r.test", 400, "%2f"),
            ("/v2/a/manifests/x%0a?ns=r.test", 400, "x%0a"),
            ("/v2/a/manifests/x?ns=evil.test/path", 400, "evil.test/path"),
            ("/v2/a/manifests/x?ns=user@evil.test", 400, "user@evil"),
            ("/v2/a/manifests/x?ns=a.test&ns=b.test", 400, "twice"),
            ("/v2/a/manifests/x?ns=a.test:70000", 400, "70000"),
            ("/v2/a/manifests/x?ns=", 400, "ns"),
        ];
        for (target, status, text) in rows {
            let refused = read(target).expect_err(target);
            assert_eq!(refused.status, status, "{target}");
            assert!(refused.text.contains(text), "{target}: {}", refused.text);
        }
    }

    proptest! {
        #[test]
        fn any_path_and_query_is_read_or_refused(path in ".{0,60}", query in ".{0,40}") {
            let _ = Wanted::read(&format!("/v2/{path}"), Some(&query));
        }

        #[test]
        fn what_is_read_goes_upstream_as_a_plain_path(
            registry in "[a-z]{1,8}\\.[a-z]{2,4}(:[1-9][0-9]{0,3})?",
            repository in "[a-z0-9]{1,5}(/[a-z0-9]([a-z0-9._-]{0,5}[a-z0-9])?){0,3}",
            tag in "[A-Za-z0-9_][A-Za-z0-9._-]{0,20}",
        ) {
            let by_query = Wanted::read(
                &format!("/v2/{repository}/manifests/{tag}"), Some(&format!("ns={registry}")),
            ).unwrap();
            let by_path = Wanted::read(
                &format!("/v2/{registry}/{repository}/manifests/{tag}"), None,
            ).unwrap();
            prop_assert_eq!(by_query.upstream_path(), format!("/v2/{repository}/manifests/{tag}"));
            prop_assert_eq!(by_path.upstream_path(), by_query.upstream_path());
            prop_assert_eq!(by_path.registry, by_query.registry);
        }

        #[test]
        fn a_path_that_was_read_never_leaves_its_repository(path in "[a-z0-9./%:_-]{0,60}") {
            if let Ok(wanted) = Wanted::read(&format!("/v2/{path}"), Some("ns=r.test")) {
                let upstream = wanted.upstream_path();
                prop_assert!(!upstream.split('/').any(|part| part == ".." || part == "."));
                prop_assert!(!upstream.contains('%'));
            }
        }
    }
}
