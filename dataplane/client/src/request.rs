//! What a program asks its node for.

use std::fmt;

use dragonfly_proto::rpc;

/// Which bytes of a content.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Range {
    /// All.
    #[default]
    Whole,
    /// From the first number to before the second; `None`: to the end.
    Part(u64, Option<u64>),
    /// The last so many.
    Last(u64),
}

/// Content to get, and how.
#[derive(Clone, Default)]
pub struct Request {
    /// Where it comes from.
    pub url: String,
    /// `sha256:<hex>` that the whole content must hash to; empty when not known.
    pub digest: String,
    /// Sent to the origin. Values may be secrets: they are not shown by `Debug`.
    pub headers: Vec<(String, String)>,
    /// Query parameters that do not tell contents apart.
    pub filtered_query: Vec<String>,
    /// Which bytes.
    pub range: Range,
    /// 0 is served first.
    pub priority: u32,
    /// Bytes a second that the node fetches for this request and sends; 0 for no limit. What the node
    /// holds already, and what others make it fetch, comes faster into a file.
    pub rate_limit: u64,
}

impl Request {
    /// The whole content of a source.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            ..Self::default()
        }
    }

    /// As it goes over the wire.
    #[must_use]
    pub fn source(&self) -> rpc::Source {
        let header = |(name, value): &(String, String)| rpc::Header {
            name: name.clone(),
            value: value.clone(),
        };
        rpc::Source {
            url: self.url.clone(),
            headers: self.headers.iter().map(header).collect(),
            digest: self.digest.clone(),
            filtered_query: self.filtered_query.clone(),
            ..rpc::Source::default()
        }
    }

    pub(crate) fn message(&self, range: Range, want_descriptor: bool) -> rpc::DownloadRequest {
        let (range, last_bytes) = match range {
            Range::Whole => (None, 0),
            Range::Part(start, end) => (
                Some(rpc::ByteRange {
                    start,
                    end: end.unwrap_or(0),
                }),
                0,
            ),
            Range::Last(n) => (None, n),
        };
        rpc::DownloadRequest {
            source: Some(self.source()),
            range,
            want_descriptor,
            while_it_comes: false,
            priority: self.priority,
            rate_limit: self.rate_limit,
            last_bytes,
        }
    }

    /// The digest that the bytes asked for can be compared with.
    pub(crate) fn checkable_digest(&self) -> Option<String> {
        let whole = self.range == Range::Whole && !self.digest.is_empty();
        whole.then(|| self.digest.to_ascii_lowercase())
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.headers.iter().map(|(name, _)| name).collect();
        f.debug_struct("Request")
            .field("url", &self.url.split(['?', '#']).next())
            .field("digest", &self.digest)
            .field("headers", &names)
            .field("range", &self.range)
            .finish_non_exhaustive()
    }
}
