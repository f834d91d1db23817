//! Answers as registries give them, errors included.

use std::io;

use bytes::Bytes;
use futures::StreamExt;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// A body: short and whole, or as it comes. An error in it ends the connection, so that nobody takes
/// what came for the whole.
pub(crate) type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, io::Error>;
pub(crate) type Answer = Response<Body>;
/// Where a body's bytes are put.
pub(crate) type Out = mpsc::Sender<io::Result<Frame<Bytes>>>;

/// Chunks that may wait for a client that reads slowly.
const QUEUE: usize = 4;

/// Header with the digest of what is answered.
pub(crate) const DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
/// Header that says which protocol this is.
pub(crate) const VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");

/// Codes of the registry API that the mirror itself gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    BlobUnknown,
    Denied,
    DigestInvalid,
    ManifestInvalid,
    NameInvalid,
    NameUnknown,
    Unavailable,
    Unsupported,
}

impl Code {
    const fn as_str(self) -> &'static str {
        match self {
            Self::BlobUnknown => "BLOB_UNKNOWN",
            Self::Denied => "DENIED",
            Self::DigestInvalid => "DIGEST_INVALID",
            Self::ManifestInvalid => "MANIFEST_INVALID",
            Self::NameInvalid => "NAME_INVALID",
            Self::NameUnknown => "NAME_UNKNOWN",
            Self::Unavailable => "UNAVAILABLE",
            Self::Unsupported => "UNSUPPORTED",
        }
    }
}

/// Why the mirror itself does not answer with what was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: u16,
    pub(crate) code: Code,
    pub(crate) text: String,
}

impl Refusal {
    pub(crate) fn new(status: u16, code: Code, text: impl Into<String>) -> Self {
        Self {
            status,
            code,
            text: text.into(),
        }
    }

    /// Nobody could be reached who has it: the runtime goes to its next host.
    pub(crate) fn unavailable(text: impl Into<String>) -> Self {
        Self::new(502, Code::Unavailable, text)
    }

    /// As the registry API has it.
    pub(crate) fn answer(&self) -> Answer {
        let said = serde_json::json!({
            "errors": [{"code": self.code.as_str(), "message": format!("dragonfly: {}", self.text)}],
        });
        let mut answer = whole(self.status, said.to_string());
        let json = HeaderValue::from_static("application/json");
        answer.headers_mut().insert(CONTENT_TYPE, json);
        answer
    }
}

/// A short answer.
pub(crate) fn whole(status: u16, body: impl Into<Bytes>) -> Answer {
    let body = Full::new(body.into());
    let mut answer = Response::new(body.map_err(|never| match never {}).boxed_unsync());
    *answer.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
    let version = HeaderValue::from_static("registry/2.0");
    answer.headers_mut().insert(VERSION, version);
    answer
}

/// An answer whose body comes by and by: who has what to say says it to [`Out`].
pub(crate) fn flowing(status: u16) -> (Answer, Out) {
    let (out, parts) = mpsc::channel(QUEUE);
    let body = StreamBody::new(ReceiverStream::new(parts).fuse()).boxed_unsync();
    let mut answer = whole(status, Bytes::new());
    *answer.body_mut() = body;
    (answer, out)
}

/// Enters a header whose value is made of numbers and plain words.
pub(crate) fn set(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

/// How long the body is, for answers without one too.
pub(crate) fn set_length(headers: &mut HeaderMap, len: u64) {
    headers.insert(CONTENT_LENGTH, HeaderValue::from(len));
}

/// The text of a header, where it is text.
pub(crate) fn text(headers: &HeaderMap, name: impl hyper::header::AsHeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}
