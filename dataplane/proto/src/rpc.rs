//! gRPC: generated from `proto/dragonfly/v1`, where each message is described.

#![allow(
    missing_docs,
    clippy::all,
    clippy::pedantic,
    unreachable_pub,
    unused_qualifications
)]

tonic::include_proto!("dragonfly.v1");

use crate::geometry::{Geometry as BlockGeometry, GeometryError};
use crate::id::{ContentKey, RequestKey, is_opened_domain};

/// Longest encoded gRPC message either side takes, bytes.
pub const MAX_MESSAGE: usize = 4 << 20;

impl Failure {
    /// A failure with a code and a message for people.
    pub fn new(code: failure::Code, message: impl Into<String>) -> Self {
        Self {
            code: code.into(),
            message: message.into(),
            http_status: 0,
        }
    }
}

impl Source {
    /// The URL as anybody may see it: without login, query and fragment, any of which may be a secret.
    pub fn public_url(&self) -> String {
        let public = self.url.split(['?', '#']).next().unwrap_or_default();
        let Some((scheme, rest)) = public.split_once("://") else {
            return public.to_owned();
        };
        let (authority, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        let host = authority.rsplit('@').next().unwrap_or_default();
        format!("{scheme}://{host}{path}")
    }

    /// Whether its digest says what may be given for it: no origin has to be asked first.
    #[must_use]
    pub fn is_given_by_digest(&self) -> bool {
        !self.digest.is_empty() && !is_opened_domain(&self.domain)
    }

    /// The key of what it holds: by the digest that the client demands, else by the source's identity and
    /// what the origin says of the version; what is wanted apart by the request for just that.
    #[must_use]
    pub fn content(&self, named_by: &RequestKey, validator: &str) -> ContentKey {
        if self.digest.is_empty() {
            ContentKey::from_validator(&self.domain, named_by, validator)
        } else if self.apart {
            ContentKey::from_validator(&self.domain, named_by, &self.digest)
        } else {
            ContentKey::from_digest(&self.domain, &self.digest)
        }
    }

    /// The key that all share who demand the digest, wherever they say it is; `None` where none is
    /// demanded, or it is wanted apart, or what opened it is of one place alone.
    #[must_use]
    pub fn shared(&self) -> Option<ContentKey> {
        let shared = self.is_given_by_digest() && !self.apart;
        shared.then(|| ContentKey::from_digest(&self.domain, &self.digest))
    }
}

impl Sums {
    /// Adds what was counted elsewhere or later. No sum overflows, whatever was said.
    pub fn add(&mut self, more: &Self) {
        for (sum, more) in [
            (&mut self.from_origin, more.from_origin),
            (&mut self.from_seeds, more.from_seeds),
            (&mut self.from_peers, more.from_peers),
            (&mut self.from_cache, more.from_cache),
            (&mut self.delivered, more.delivered),
            (&mut self.tasks_done, more.tasks_done),
            (&mut self.tasks_failed, more.tasks_failed),
        ] {
            *sum = sum.saturating_add(more);
        }
    }
}

impl From<&BlockGeometry> for Geometry {
    fn from(g: &BlockGeometry) -> Self {
        Self {
            block_size: g.block_size(),
            total_len: g.total_len(),
        }
    }
}

impl TryFrom<&Geometry> for BlockGeometry {
    type Error = GeometryError;

    fn try_from(g: &Geometry) -> Result<Self, GeometryError> {
        Self::new(g.block_size, g.total_len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::opened_domain;

    #[test]
    fn a_digest_is_shared_but_not_apart_nor_where_its_origin_has_to_be_asked() {
        let key = |url: &str| RequestKey::derive("", url, &[]);
        let (this, other) = (key("http://o/this"), key("http://o/other"));
        let source = Source {
            digest: format!("sha256:{}", "ab".repeat(32)),
            ..Source::default()
        };
        let shared = source.shared().expect("shared");
        assert_eq!(source.content(&this, "v1"), shared);
        assert_eq!(source.content(&other, ""), shared);
        let apart = Source {
            apart: true,
            ..source.clone()
        };
        assert_eq!(apart.shared(), None);
        assert_eq!(apart.content(&this, "v1"), apart.content(&this, "v2"));
        assert_ne!(apart.content(&this, ""), apart.content(&other, ""));
        assert_ne!(apart.content(&this, ""), shared);
        let opened = Source {
            domain: opened_domain(&this),
            ..source
        };
        assert_eq!(opened.shared(), None);
        assert!(!opened.is_given_by_digest());
        let none = Source::default();
        assert_eq!(none.shared(), None);
    }
}
