//! The trait that every kind of origin implements, and what goes in and out of it.
//!
//! Invariants: one [`Source::open`] is one request at the origin that answers both "what is it?" and
//! "give me the bytes"; a [`Body`] yields exactly what was announced or ends in an error; nothing
//! here prints a credential.

use crate::error::{Error, Fault, Kind, Result};
use crate::metadata::Metadata;
use crate::range::ByteRange;
use crate::secret::redact;
use base64::Engine as _;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{BoxStream, StreamExt as _};
use reqwest::Url;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use zeroize::Zeroizing;

/// Headers that belong to the fetch or the connection: a client's own are dropped, for they would
/// ask for other bytes than the task's.
const NOT_FORWARDED: &[&str] = &[
    "range",
    "if-range",
    "if-match",
    "if-none-match",
    "if-modified-since",
    "if-unmodified-since",
    "accept-encoding",
    "connection",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "content-length",
    "host",
    "proxy-authorization",
    "proxy-connection",
    "expect",
];

/// What to fetch and the client's own headers for it. All headers are taken for secrets.
#[derive(Clone)]
pub struct Request {
    url: Url,
    headers: Vec<(String, Zeroizing<String>)>,
    checked_at_end: bool,
}

impl Request {
    /// Parses `url`. Userinfo in it becomes an `Authorization: Basic` header and leaves the URL.
    ///
    /// # Errors
    /// [`Kind::InvalidRequest`] when it is no absolute URL with a host.
    pub fn new(url: &str) -> Result<Self> {
        let mut parsed = Url::parse(url).map_err(|error| {
            // The text is not repeated: a URL that does not parse cannot be redacted.
            Error::permanent(
                Kind::InvalidRequest,
                Fault::Caller,
                format!("the source is not a URL ({error}): write it as https://host/path"),
            )
        })?;
        parsed.set_fragment(None);
        let mut headers = Vec::new();
        if !parsed.username().is_empty() || parsed.password().is_some() {
            let plain = Zeroizing::new(format!(
                "{}:{}",
                crate::secret::decode_strict(parsed.username()),
                crate::secret::decode_strict(parsed.password().unwrap_or(""))
            ));
            let basic = base64::engine::general_purpose::STANDARD.encode(plain.as_bytes());
            headers.push((
                "authorization".to_owned(),
                Zeroizing::new(format!("Basic {basic}")),
            ));
            // Cannot fail for a URL that had userinfo.
            let _ = parsed.set_username("");
            let _ = parsed.set_password(None);
        }
        Ok(Self {
            url: parsed,
            headers,
            checked_at_end: false,
        })
    }

    /// Adds a header of the client. Headers that belong to the fetch itself (`Range`, `If-…`,
    /// `Accept-Encoding`, `Host` and those of the connection) are left out; `Authorization`
    /// replaces userinfo of the URL.
    ///
    /// # Errors
    /// [`Kind::InvalidRequest`] for a name or value that HTTP does not allow.
    pub fn with_header(mut self, name: &str, value: &str) -> Result<Self> {
        let name = name.trim().to_ascii_lowercase();
        if ::http::HeaderName::try_from(name.as_str()).is_err() {
            return Err(Error::permanent(
                Kind::InvalidRequest,
                Fault::Caller,
                format!("`{}` is not a header name", name.escape_debug()),
            ));
        }
        if ::http::HeaderValue::try_from(value).is_err() {
            return Err(Error::permanent(
                Kind::InvalidRequest,
                Fault::Caller,
                format!("the value of header `{name}` holds characters that HTTP forbids"),
            ));
        }
        if NOT_FORWARDED.contains(&name.as_str()) {
            return Ok(self);
        }
        if name == "authorization" {
            self.headers.retain(|(held, _)| held != "authorization");
        }
        self.headers.push((name, Zeroizing::new(value.to_owned())));
        Ok(self)
    }

    /// The caller knows the digest of the whole content and checks it at the end: then ranges of an
    /// origin without validators may be fetched in parallel too.
    #[must_use]
    pub fn checked_at_end(mut self) -> Self {
        self.checked_at_end = true;
        self
    }

    /// See [`Request::checked_at_end`].
    pub fn is_checked_at_end(&self) -> bool {
        self.checked_at_end
    }

    /// The URL, without userinfo and fragment. May hold a signature: show it with
    /// [`redact`].
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// The client's headers, names in lower case. Secret.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &str)> {
        self.headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// The URL as it may be shown.
    pub fn display(&self) -> String {
        redact(&self.url)
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.headers.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("Request")
            .field("url", &self.display())
            .field("headers", &names)
            .finish()
    }
}

/// The answer to [`Source::open`].
#[derive(Debug)]
pub struct Opened {
    /// What the origin said, about the *whole* content.
    pub metadata: Metadata,
    /// Offset in the content of the body's first byte. 0 although a later start was asked for
    /// means that the origin ignores ranges: skip or use what comes before.
    pub start: u64,
    /// Where the body ends (excluded); `None` when only its end will tell. May be before the end
    /// of the range asked for: ask again for the rest.
    pub end: Option<u64>,
    /// The bytes.
    pub body: Body,
}

/// One kind of origin. Implementations are shared by all tasks and must not keep a request's
/// credentials beyond the call and the body it returned.
pub trait Source: Send + Sync {
    /// Asks once for `range` (or everything) and returns what the origin said and its bytes.
    ///
    /// With `expect`, the caller holds bytes of that version: an answer about another version is
    /// [`Kind::ContentChanged`] and none of its bytes are returned. No retries are made here.
    ///
    /// # Errors
    /// Any [`Kind`]; whether to try again is in [`Error::retry`].
    fn open<'a>(
        &'a self,
        request: &'a Request,
        range: Option<ByteRange>,
        expect: Option<&'a Metadata>,
    ) -> BoxFuture<'a, Result<Opened>>;

    /// What the origin says, without the bytes. Prefer [`Source::open`]: it costs the same request.
    ///
    /// # Errors
    /// As [`Source::open`].
    fn stat<'a>(&'a self, request: &'a Request) -> BoxFuture<'a, Result<Metadata>>;
}

/// Adapters by URL scheme.
#[derive(Clone, Default)]
pub struct Sources {
    by_scheme: HashMap<String, Arc<dyn Source>>,
}

impl Sources {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Registers `source` for a scheme in lower case (`https`), replacing an earlier one.
    #[must_use]
    pub fn with(mut self, scheme: &str, source: Arc<dyn Source>) -> Self {
        self.by_scheme.insert(scheme.to_owned(), source);
        self
    }

    /// The adapter for this request.
    ///
    /// # Errors
    /// [`Kind::Unsupported`], naming the schemes there are.
    pub fn get(&self, request: &Request) -> Result<Arc<dyn Source>> {
        let scheme = request.url().scheme();
        self.by_scheme.get(scheme).cloned().ok_or_else(|| {
            let mut known: Vec<&str> = self.by_scheme.keys().map(String::as_str).collect();
            known.sort_unstable();
            Error::permanent(
                Kind::Unsupported,
                Fault::Caller,
                format!(
                    "no source for `{scheme}://`: this mesh has {}",
                    known.join(", ")
                ),
            )
        })
    }
}

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.by_scheme.keys()).finish()
    }
}

/// Bytes that must come within a stall timeout for a body to count as alive (unless it ends). One
/// byte every ten seconds is not a download.
const ALIVE_BYTES: u64 = 1024;

/// The bytes of one answer. Dropping it before its end closes the connection.
pub struct Body {
    stream: BoxStream<'static, Result<Bytes>>,
    /// Redacted URL for errors.
    from: String,
    expected: Option<u64>,
    received: u64,
    stall: Option<Duration>,
    waited: Duration,
    since_alive: u64,
    meter: Option<Arc<dyn Meter>>,
    place: Option<Arc<dyn Place>>,
    not_before: Option<Instant>,
    done: bool,
}

/// Slows a body down to a rate shared with others.
pub trait Meter: Send + Sync {
    /// Counts `bytes` that came and says when the next may be read. Never blocks, so that a body
    /// loses nothing when its reader is dropped.
    fn take(&self, bytes: u64) -> Option<Instant>;
}

/// What an open body occupies while others may wait for it.
pub trait Place: Send + Sync {
    /// Ends when somebody waits for a place and could have this one.
    fn wanted(&self) -> BoxFuture<'_, ()>;
}

impl Body {
    /// Wraps a stream. `expected` is how many bytes the origin announced: both fewer and more are
    /// errors. `from` is the redacted URL. What the stream must keep alive (a permit), it owns.
    pub fn new(
        stream: BoxStream<'static, Result<Bytes>>,
        expected: Option<u64>,
        from: String,
    ) -> Self {
        Self {
            stream,
            from,
            expected,
            received: 0,
            stall: None,
            waited: Duration::ZERO,
            since_alive: 0,
            meter: None,
            place: None,
            not_before: None,
            done: false,
        }
    }

    /// A body of no bytes.
    pub fn empty(from: String) -> Self {
        Self::new(futures::stream::empty().boxed(), Some(0), from)
    }

    /// Fails with [`Kind::Stalled`] when (nearly) nothing comes for this long. Only time spent
    /// waiting for the origin counts, not the consumer's.
    #[must_use]
    pub fn with_stall_timeout(mut self, stall: Duration) -> Self {
        self.stall = Some(stall);
        self
    }

    /// Slows it down to a shared rate.
    #[must_use]
    pub fn with_meter(mut self, meter: Arc<dyn Meter>) -> Self {
        self.meter = Some(meter);
        self
    }

    /// Occupies a place that others may want.
    #[must_use]
    pub fn with_place(mut self, place: Arc<dyn Place>) -> Self {
        self.place = Some(place);
        self
    }

    /// The place it occupies: who does not read it for now should drop it when that is wanted.
    pub fn place(&self) -> Option<Arc<dyn Place>> {
        self.place.clone()
    }

    /// Bytes returned so far.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// The next bytes (never empty), `None` at an end that is as announced. Safe to cancel: no
    /// byte is lost when the future is dropped while it waits for the origin.
    ///
    /// # Errors
    /// [`Kind::Interrupted`], [`Kind::Stalled`], [`Kind::LengthMismatch`]; all but the last are
    /// temporary. After an error or the end only `None` comes.
    pub async fn next_chunk(&mut self) -> Result<Option<Bytes>> {
        loop {
            if self.done {
                return Ok(None);
            }
            if let Some(not_before) = self.not_before {
                tokio::time::sleep_until(not_before).await;
                self.not_before = None;
            }
            let item = match self.wait().await {
                Ok(item) => item,
                Err(error) => {
                    self.done = true;
                    return Err(error);
                }
            };
            let Some(chunk) = item else {
                self.done = true;
                return match self.expected {
                    Some(expected) if self.received < expected => Err(Error::temporary(
                        Kind::Interrupted,
                        Fault::Origin,
                        format!(
                            "{} ended after {} of {expected} bytes",
                            self.from, self.received
                        ),
                    )),
                    _ => Ok(None),
                };
            };
            if chunk.is_empty() {
                continue;
            }
            let len = u64::try_from(chunk.len()).unwrap_or(u64::MAX);
            self.received = self.received.saturating_add(len);
            if let Some(expected) = self.expected
                && self.received > expected
            {
                self.done = true;
                return Err(Error::permanent(
                    Kind::LengthMismatch,
                    Fault::Origin,
                    format!(
                        "{} sent more than the {expected} bytes it announced",
                        self.from
                    ),
                ));
            }
            self.not_before = self.meter.as_ref().and_then(|meter| meter.take(len));
            return Ok(Some(chunk));
        }
    }

    async fn wait(&mut self) -> Result<Option<Bytes>> {
        let Some(stall) = self.stall else {
            return self.stream.next().await.transpose();
        };
        let began = Instant::now();
        let left = stall.saturating_sub(self.waited);
        let item = tokio::time::timeout(left, self.stream.next()).await;
        self.waited = self.waited.saturating_add(began.elapsed());
        let Ok(item) = item else {
            return Err(Error::temporary(
                Kind::Stalled,
                Fault::Origin,
                format!(
                    "{} sent (nearly) nothing for {} s",
                    self.from,
                    stall.as_secs_f32()
                ),
            ));
        };
        if let Some(Ok(chunk)) = &item {
            self.since_alive += u64::try_from(chunk.len()).unwrap_or(u64::MAX);
            if self.since_alive >= ALIVE_BYTES {
                self.since_alive = 0;
                self.waited = Duration::ZERO;
            }
        }
        item.transpose()
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body")
            .field("from", &self.from)
            .field("expected", &self.expected)
            .field("received", &self.received)
            .finish_non_exhaustive()
    }
}
