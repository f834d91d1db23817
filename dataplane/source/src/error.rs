//! What can go wrong at an origin: the kind, whose fault it is, and whether another try can help.
//!
//! Invariant: no text and no source in an [`Error`] carries a credential. URLs are redacted before
//! they get here (see [`crate::secret`]) and errors of the HTTP library are stripped of theirs.

use std::time::Duration;

/// What happened, for code that branches on it; the text is for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// The URL or a header of the request cannot be used.
    InvalidRequest,
    /// Options contradict each other or a file in them cannot be read (CA bundle, proxy URL).
    InvalidOptions,
    /// Policy forbids this host, address, scheme or redirect.
    Refused,
    /// The host name did not resolve.
    Resolve,
    /// No connection could be made.
    Connect,
    /// The TLS handshake failed; most often an unknown certificate authority.
    Tls,
    /// 401 or 407; [`Error::challenge`] holds what the origin asks for.
    Unauthorized,
    /// 403 or 451.
    Forbidden,
    /// 404 or 410.
    NotFound,
    /// 416: the content is shorter than the range asked for.
    RangeNotSatisfiable,
    /// 429 or 503 with a wish to be left alone.
    Throttled,
    /// Any other 5xx, or 408, 421, 425.
    Unavailable,
    /// A status that none of the others covers.
    Status,
    /// More redirects than allowed, or one that leads nowhere.
    Redirect,
    /// The content is no longer what it was when the fetch began: start again under a new key.
    ContentChanged,
    /// The origin broke HTTP: a wrong `Content-Range`, a 206 that nobody asked for.
    Protocol,
    /// More or fewer bytes came than the origin had announced.
    LengthMismatch,
    /// The connection ended in the middle of a body.
    Interrupted,
    /// No answer or (nearly) no byte for longer than the stall timeout.
    Stalled,
    /// No adapter for this URL's scheme, or the adapter cannot do this.
    Unsupported,
    /// The fetch was dropped or its task died.
    Cancelled,
}

/// Whose move it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// Who asked: a wrong URL, missing rights, a range past the end.
    Caller,
    /// The origin.
    Origin,
    /// What lies between: DNS, routes, proxies.
    Network,
    /// The mesh's own policy or options.
    Policy,
    /// This process.
    Here,
}

/// Whether another try can help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// The same request will fail again until somebody changes something.
    Permanent,
    /// May pass; `after` is the origin's own wish (`Retry-After`), not yet capped.
    Temporary {
        /// How long the origin asked to be left alone.
        after: Option<Duration>,
    },
}

/// A failure at or on the way to an origin.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub struct Error {
    kind: Kind,
    fault: Fault,
    retry: Retry,
    text: String,
    status: Option<u16>,
    challenge: Option<String>,
    #[source]
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A failure that only a change by `fault` can cure. `text` names the culprit and the next step.
    pub fn permanent(kind: Kind, fault: Fault, text: impl Into<String>) -> Self {
        Self::new(kind, fault, Retry::Permanent, text)
    }

    /// A failure that may pass by itself.
    pub fn temporary(kind: Kind, fault: Fault, text: impl Into<String>) -> Self {
        Self::new(kind, fault, Retry::Temporary { after: None }, text)
    }

    fn new(kind: Kind, fault: Fault, retry: Retry, text: impl Into<String>) -> Self {
        Self {
            kind,
            fault,
            retry,
            text: text.into(),
            status: None,
            challenge: None,
            source: None,
        }
    }

    /// Adds the HTTP status.
    #[must_use]
    pub fn with_status(mut self, status: u16) -> Self {
        self.status = Some(status);
        self
    }

    /// Adds the origin's `WWW-Authenticate` (it holds no secret: realm, service, scope).
    #[must_use]
    pub fn with_challenge(mut self, challenge: Option<String>) -> Self {
        self.challenge = challenge;
        self
    }

    /// Adds how long the origin wants to be left alone; no effect on a permanent error.
    #[must_use]
    pub fn with_retry_after(mut self, wish: Option<Duration>) -> Self {
        if let Retry::Temporary { after } = &mut self.retry {
            *after = wish;
        }
        self
    }

    /// Keeps what caused it. The cause must already be free of URLs and headers.
    #[must_use]
    pub fn with_source(
        mut self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Makes it permanent (attempts used up) and says so in front of the text.
    #[must_use]
    pub(crate) fn given_up(mut self, attempts: u32) -> Self {
        self.text = format!(
            "gave up after {attempts} attempts without progress: {}",
            self.text
        );
        self.retry = Retry::Permanent;
        self
    }

    /// What happened.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Whose fault it is.
    pub fn fault(&self) -> Fault {
        self.fault
    }

    /// Whether another try can help.
    pub fn retry(&self) -> Retry {
        self.retry
    }

    /// True when the same request may work later.
    pub fn is_temporary(&self) -> bool {
        matches!(self.retry, Retry::Temporary { .. })
    }

    /// The origin's own wish for a pause, not capped.
    pub fn retry_after(&self) -> Option<Duration> {
        match self.retry {
            Retry::Temporary { after } => after,
            Retry::Permanent => None,
        }
    }

    /// The HTTP status, where there was one.
    pub fn status(&self) -> Option<u16> {
        self.status
    }

    /// `WWW-Authenticate` of a 401, joined by commas: what to log in to.
    pub fn challenge(&self) -> Option<&str> {
        self.challenge.as_deref()
    }
}
