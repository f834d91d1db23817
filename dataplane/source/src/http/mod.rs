//! The adapter for `http` and `https` (RFC 9110).
//!
//! * One GET answers "what is it?" and brings the bytes; HEAD only where somebody only asks.
//! * `Accept-Encoding: identity`, nothing is decompressed: bytes are stored as sent and an encoding
//!   that comes nevertheless is reported in the metadata.
//! * Redirects are followed here, for three reasons: each target passes host and address policy,
//!   credentials do not follow to another origin (RFC 9110 section 15.4), https stays https.
//! * Ranges of a fetch go straight to where the first request was led, and back to the first URL
//!   when that no longer works (a signature has expired): no storm of redirects at a registry.
//!
//! Invariants: a place at the origin ([`crate::limits`]) is held for as long as its body; no error
//! shows a URL unredacted.

mod answer;
mod ask;
pub mod headers;
pub mod options;
mod send;
mod tls;

pub use ask::{Answer, Redirects};
pub use options::{HostHeaders, HttpOptions};

use crate::address::{self, Lookup, PolicyResolver};
use crate::error::{Error, Fault, Kind, Result};
use crate::limits::{Origin, Origins};
use crate::metadata::Metadata;
use crate::range::ByteRange;
use crate::secret::redact;
use crate::source::{Body, Opened, Request, Source};
use answer::{Question, read, read_head};
use futures::StreamExt as _;
use futures::future::BoxFuture;
use http::Method;
use reqwest::{Client, NoProxy, Proxy, Url};
use send::{Sent, Wanted, led_to};
use std::sync::Arc;

/// HTTP and HTTPS origins. One for each set of options; cheap to share, not to create.
pub struct HttpSource {
    client: Client,
    options: HttpOptions,
    origins: Origins,
}

impl HttpSource {
    /// Sets up TLS, proxy and limits. Makes no connection.
    ///
    /// # Errors
    /// [`Kind::InvalidOptions`] for a CA bundle or a proxy that cannot be used.
    pub fn new(options: HttpOptions) -> Result<Self> {
        Self::with_lookup(options, address::system())
    }

    /// The same with names that somebody else resolves. What he answers is judged all the same.
    ///
    /// # Errors
    /// Those of [`Self::new`].
    pub fn with_lookup(options: HttpOptions, lookup: Lookup) -> Result<Self> {
        let mut builder = Client::builder()
            .tls_backend_preconfigured(tls::config(&options)?)
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .user_agent(concat!("dragonfly/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(options.connect_timeout)
            .tcp_nodelay(true)
            .pool_max_idle_per_host(options.limits.requests)
            // The environment of a node is not the mesh's policy.
            .no_proxy();
        if !options.http2 {
            builder = builder.http1_only();
        }
        let mut exempt = None;
        if let Some(proxy) = &options.proxy {
            let (url, host) = parse_proxy(proxy)?;
            exempt = Some(host);
            let proxy = Proxy::all(url).map_err(|_| bad_proxy("it cannot be used as a proxy"))?;
            builder = builder.proxy(proxy.no_proxy(NoProxy::from_string(&options.no_proxy)));
        }
        let client = builder
            .dns_resolver(PolicyResolver::new(options.addresses, exempt, lookup))
            .build()
            .map_err(|error| {
                Error::permanent(
                    Kind::InvalidOptions,
                    Fault::Policy,
                    "the HTTP client cannot be set up with these options",
                )
                .with_source(error.without_url())
            })?;
        let origins = Origins::new(options.limits);
        Ok(Self {
            client,
            options,
            origins,
        })
    }

    async fn open_inner(
        &self,
        request: &Request,
        range: Option<ByteRange>,
        expect: Option<&Metadata>,
    ) -> Result<Opened> {
        let if_range = expect.and_then(|expect| expect.validator.if_range());
        let wanted = Wanted {
            method: Method::GET,
            range,
            if_range,
            follow: true,
            form: None,
        };
        if let Some(direct) = expect.and_then(|expect| expect.final_url.as_ref()) {
            let sent = self.send(request, direct.reveal().clone(), &wanted).await;
            match sent.and_then(|sent| self.opened(request, sent, range, expect)) {
                Err(error) if is_stale_redirect(&error) => {}
                answer => return answer,
            }
        }
        let sent = self.send(request, request.url().clone(), &wanted).await?;
        self.opened(request, sent, range, expect)
    }

    fn opened(
        &self,
        request: &Request,
        sent: Sent,
        range: Option<ByteRange>,
        expect: Option<&Metadata>,
    ) -> Result<Opened> {
        let shown = redact(&sent.url);
        let if_range =
            range.is_some() && expect.is_some_and(|expect| expect.validator.if_range().is_some());
        let question = Question {
            shown: &shown,
            range,
            expect,
            if_range,
        };
        let led = led_to(request, &sent);
        let response = sent.response;
        let answer =
            read(response.status(), response.headers(), question).inspect_err(|error| {
                if let Some(wish) = error.retry_after() {
                    sent.origin.pause_for(wish);
                }
            })?;
        let mut metadata = answer.metadata;
        metadata.final_url = led;
        let expected = answer.end.map(|end| end - answer.start);
        let body = if expected == Some(0) {
            Body::empty(shown)
        } else {
            self.body(response, sent.origin, sent.permit, expected, shown)
        };
        Ok(Opened {
            metadata,
            start: answer.start,
            end: answer.end,
            body,
        })
    }

    fn body(
        &self,
        response: reqwest::Response,
        origin: Arc<Origin>,
        permit: tokio::sync::OwnedSemaphorePermit,
        expected: Option<u64>,
        shown: String,
    ) -> Body {
        let from = shown.clone();
        let stream = response.bytes_stream().map(move |item| {
            // Held by the closure: the place is given back when the body is dropped.
            let _ = &permit;
            item.map_err(|error| send::cut(&from, error))
        });
        let body = Body::new(stream.boxed(), expected, shown)
            .with_stall_timeout(self.options.stall_timeout)
            .with_place(origin.clone());
        if origin.is_metered() {
            body.with_meter(origin)
        } else {
            body
        }
    }

    async fn stat_inner(&self, request: &Request) -> Result<Metadata> {
        let head = Wanted {
            method: Method::HEAD,
            range: None,
            if_range: None,
            follow: true,
            form: None,
        };
        let sent = self.send(request, request.url().clone(), &head).await?;
        let shown = redact(&sent.url);
        match read_head(sent.response.status(), sent.response.headers(), &shown) {
            Ok(mut metadata) => {
                metadata.final_url = led_to(request, &sent);
                Ok(metadata)
            }
            // Signed URLs are signed for one method, and some origins only know GET.
            Err(error) if matches!(error.status(), Some(400 | 403 | 405 | 501)) => {
                drop(sent);
                let first = ByteRange::new(0, 1);
                match self.open_inner(request, first, None).await {
                    Ok(opened) => Ok(opened.metadata),
                    Err(error) if matches!(error.status(), Some(400 | 416 | 501)) => {
                        Ok(self.open_inner(request, None, None).await?.metadata)
                    }
                    Err(error) => Err(error),
                }
            }
            Err(error) => {
                if let Some(wish) = error.retry_after() {
                    sent.origin.pause_for(wish);
                }
                Err(error)
            }
        }
    }
}

impl Source for HttpSource {
    fn open<'a>(
        &'a self,
        request: &'a Request,
        range: Option<ByteRange>,
        expect: Option<&'a Metadata>,
    ) -> BoxFuture<'a, Result<Opened>> {
        Box::pin(self.open_inner(request, range, expect))
    }

    fn stat<'a>(&'a self, request: &'a Request) -> BoxFuture<'a, Result<Metadata>> {
        Box::pin(self.stat_inner(request))
    }
}

impl std::fmt::Debug for HttpSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HttpSource")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

/// True for failures that a fresh redirect from the first URL may cure.
fn is_stale_redirect(error: &Error) -> bool {
    matches!(
        error.kind(),
        Kind::Unauthorized | Kind::Forbidden | Kind::NotFound | Kind::Connect | Kind::Resolve
    ) || error.status() == Some(400)
}

fn parse_proxy(proxy: &str) -> Result<(Url, String)> {
    let url = Url::parse(proxy).map_err(|_| bad_proxy("it is not a URL"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(bad_proxy("only http:// and https:// proxies are supported"));
    }
    let host = url
        .host_str()
        .ok_or_else(|| bad_proxy("it has no host"))?
        .to_ascii_lowercase();
    Ok((url, host))
}

fn bad_proxy(why: &str) -> Error {
    // Without the URL: it may hold a password.
    Error::permanent(
        Kind::InvalidOptions,
        Fault::Policy,
        format!("the proxy of this source: {why}; write http://host:port"),
    )
}
