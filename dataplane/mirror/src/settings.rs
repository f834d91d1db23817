//! Which registries are mirrored, and how.

use std::time::Duration;

use dragonfly_proto::rpc;
use hyper::HeaderMap;

use crate::ask::{Kind, Wanted};
use crate::upstream;

/// What policy says to a mirror; may change while it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Registries that are named. They are trusted to say truly who may read what: what one of them
    /// brought is not fetched again from another.
    pub registries: Vec<Registry>,
    /// Whether registries that are not named are mirrored too, each for itself: whoever runs one of
    /// those could say that anybody may read anything.
    pub others: bool,
    /// What becomes of tags while a registry does not answer.
    pub tags: Tags,
    /// Whether this node goes to registries itself when the mesh fails. If not, its container runtime
    /// is told to.
    pub direct: bool,
    /// How long a registry's word that somebody may read something counts.
    pub access_for: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            registries: vec![],
            others: true,
            tags: Tags::Revalidate,
            direct: true,
            access_for: Duration::from_secs(60),
        }
    }
}

/// A registry by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registry {
    /// `host` or `host:port` as images are named by it, in lower case.
    pub host: String,
    /// Where it is: `http://…` or `https://…` without a path. `None`: `https://HOST`.
    pub url: Option<String>,
}

/// What becomes of tags while a registry does not answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Tags {
    /// The registry is asked each time; without its answer there is none here.
    #[default]
    Revalidate,
    /// The registry is asked each time; while it cannot be reached a tag means what it last meant, to
    /// whoever was let in with the same credentials before.
    LastKnown,
}

/// Where Docker Hub's registry really is.
const DOCKER_HUB: &str = "https://registry-1.docker.io";

/// Where a registry is and which content it shares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Upstream {
    /// Without a slash at the end.
    pub(crate) url: String,
    /// Isolation domain of what it brings. Never empty: what is pulled is given out by the mirror
    /// alone, which asks the registry first, and not by the node's other ways to content.
    pub(crate) domain: String,
    /// Policy names it.
    pub(crate) named: bool,
}

impl Settings {
    /// Where a registry of this name (in lower case) is; `None` where it is not mirrored.
    pub(crate) fn upstream(&self, registry: &str) -> Option<Upstream> {
        let named = self.registries.iter().find(|r| r.host == registry);
        let url = match named.and_then(|r| r.url.as_deref()) {
            Some(url) => url.trim_end_matches('/').to_owned(),
            None if matches!(registry, "docker.io" | "index.docker.io") => DOCKER_HUB.to_owned(),
            None => format!("https://{registry}"),
        };
        let domain = match named {
            Some(_) => dragonfly_node::IMAGES.to_owned(),
            None if self.others => format!("{} {registry}", dragonfly_node::IMAGES),
            None => return None,
        };
        Some(Upstream {
            url,
            domain,
            named: named.is_some(),
        })
    }

    /// What a URL names as pulls through mirrors ask for it, where that is a manifest or a layer of a
    /// listed registry and `digest` its own: whoever fetches it so fetches what they find. Without
    /// credentials.
    #[must_use]
    pub fn image_source(&self, url: &str, digest: &str) -> Option<rpc::Source> {
        self.registries.iter().find_map(|registry| {
            let upstream = self.upstream(&registry.host)?;
            let path = url.strip_prefix(&upstream.url)?;
            let ns = format!("ns={}", registry.host);
            let wanted = Wanted::read(path, Some(&ns)).ok()?;
            let own = match &wanted.kind {
                Kind::Manifest(own) | Kind::Blob(own) => own.clone(),
                _ => return None,
            };
            let nobodys = HeaderMap::new();
            (own.as_str() == digest).then(|| upstream::source(&upstream, &wanted, &own, &nobodys))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn named_registries_share_what_they_bring_and_others_are_each_for_itself() {
        let named = |host: &str, url: Option<&str>| Registry {
            host: host.to_owned(),
            url: url.map(str::to_owned),
        };
        let mut settings = Settings {
            registries: vec![
                named("docker.io", None),
                named("a.test", Some("http://a:5/")),
            ],
            ..Settings::default()
        };
        let of = |s: &Settings, host: &str| s.upstream(host).map(|u| (u.url, u.domain));
        let shared = dragonfly_node::IMAGES.to_owned();
        assert_eq!(
            of(&settings, "docker.io"),
            Some((DOCKER_HUB.to_owned(), shared.clone()))
        );
        assert_eq!(
            of(&settings, "a.test"),
            Some(("http://a:5".to_owned(), shared))
        );
        let other = of(&settings, "b.test:5000").unwrap();
        assert_eq!(other.0, "https://b.test:5000");
        assert_ne!(other.1, of(&settings, "c.test").unwrap().1);
        settings.others = false;
        assert_eq!(of(&settings, "b.test:5000"), None);
    }
    #[test]
    fn what_is_an_images_is_known_by_its_url_and_digest() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let other = format!("sha256:{}", "b".repeat(64));
        let settings = Settings {
            registries: vec![
                Registry {
                    host: "a.test:5000".to_owned(),
                    url: Some("http://10.0.0.1:5000".to_owned()),
                },
                Registry {
                    host: "docker.io".to_owned(),
                    url: None,
                },
            ],
            ..Settings::default()
        };
        let rows = [
            (format!("http://10.0.0.1:5000/v2/x/y/blobs/{digest}"), true),
            (
                format!("http://10.0.0.1:5000/v2/x/manifests/{digest}"),
                true,
            ),
            (format!("{DOCKER_HUB}/v2/library/x/blobs/{digest}"), true),
            // Another's digest, another registry, another port, a tag, no path of a registry.
            (format!("http://10.0.0.1:5000/v2/x/blobs/{other}"), false),
            (format!("https://b.test/v2/x/blobs/{digest}"), false),
            (format!("http://10.0.0.1:50001/v2/x/blobs/{digest}"), false),
            (
                "http://10.0.0.1:5000/v2/x/manifests/latest".to_owned(),
                false,
            ),
            (format!("http://10.0.0.1:5000/x/blobs/{digest}"), false),
            (
                format!("http://10.0.0.1:5000/v2/x/../y/blobs/{digest}"),
                false,
            ),
        ];
        for (url, is) in rows {
            let source = settings.image_source(&url, &digest);
            assert_eq!(source.is_some(), is, "{url}");
            if let Some(source) = source {
                let said = (source.url, source.digest, source.domain);
                let shared = dragonfly_node::IMAGES.to_owned();
                assert_eq!(said, (url, digest.clone(), shared));
            }
        }
        let nothing = settings.image_source(&format!("{DOCKER_HUB}/v2/x/blobs/"), "");
        assert!(nothing.is_none());
    }
}
