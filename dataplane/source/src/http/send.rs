//! One request, with the redirects that follow from it.
//!
//! Invariants: every hop is checked (scheme, allowed hosts, literal addresses) before a connection is
//! made; a client's headers go on only while the origin stays the same, and once dropped they do not
//! come back even if a later hop returns.

use super::HttpSource;
use super::options::host_matches;
use crate::address::{RefusedAddress, ResolveError};
use crate::error::{Error, Fault, Kind, Result};
use crate::limits::{self, Origin};
use crate::range::ByteRange;
use crate::secret::{SecretUrl, redact};
use crate::source::Request;
use http::header::{ACCEPT_ENCODING, CONTENT_TYPE, IF_RANGE, LOCATION, RANGE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use reqwest::{Response, Url};
use std::net::IpAddr;
use std::sync::Arc;
use tokio::sync::OwnedSemaphorePermit;

/// A client's headers that are no credentials and may follow to another origin.
const HARMLESS: &[&str] = &["accept", "accept-language", "user-agent"];

/// What to ask for, at each hop.
pub(super) struct Wanted<'a> {
    pub(super) method: Method,
    pub(super) range: Option<ByteRange>,
    pub(super) if_range: Option<&'a str>,
    /// Whether redirects are followed.
    pub(super) follow: bool,
    /// A form that is sent along.
    pub(super) form: Option<&'a str>,
}

/// An answer that is no redirect, and the place at the origin that it occupies.
pub(super) struct Sent {
    pub(super) response: Response,
    pub(super) url: Url,
    /// The client's headers went there.
    pub(super) trusted: bool,
    pub(super) origin: Arc<Origin>,
    pub(super) permit: OwnedSemaphorePermit,
}

impl HttpSource {
    /// Sends to `url` (the request's own, or where an earlier one was led) and follows redirects.
    pub(super) async fn send(
        &self,
        request: &Request,
        mut url: Url,
        wanted: &Wanted<'_>,
    ) -> Result<Sent> {
        let mut trusted = same_origin(request.url(), &url);
        let mut hops = 0;
        loop {
            self.check_target(&url)?;
            let origin = self.origins.of(&url);
            let Some(permit) = origin.enter().await else {
                return Err(Error::temporary(
                    Kind::Cancelled,
                    Fault::Here,
                    "the source is shutting down",
                ));
            };
            let headers = self.headers(request, &url, trusted, wanted);
            let mut asked = self
                .client
                .request(wanted.method.clone(), url.clone())
                .headers(headers);
            if let Some(form) = wanted.form {
                asked = asked
                    .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                    .body(form.to_owned());
            }
            let send = asked.send();
            let limit = self
                .options
                .connect_timeout
                .saturating_add(self.options.stall_timeout);
            let response = match tokio::time::timeout(limit, send).await {
                Ok(Ok(response)) => response,
                Ok(Err(error)) => return Err(failed(&redact(&url), error)),
                Err(_) => {
                    return Err(Error::temporary(
                        Kind::Stalled,
                        Fault::Origin,
                        format!(
                            "{} gave no answer for {} s",
                            redact(&url),
                            limit.as_secs_f32()
                        ),
                    ));
                }
            };
            let next = if wanted.follow {
                self.redirect(&url, &response)?
            } else {
                None
            };
            let Some(next) = next else {
                return Ok(Sent {
                    response,
                    url,
                    trusted,
                    origin,
                    permit,
                });
            };
            hops += 1;
            if hops > self.options.max_redirects {
                return Err(Error::permanent(
                    Kind::Redirect,
                    Fault::Origin,
                    format!(
                        "{} led on more than {} times: a loop at the origin?",
                        request.display(),
                        self.options.max_redirects
                    ),
                ));
            }
            trusted = trusted && same_origin(&url, &next);
            url = next;
        }
    }

    /// Where the answer leads, if it is a redirect.
    fn redirect(&self, url: &Url, response: &Response) -> Result<Option<Url>> {
        if !matches!(
            response.status(),
            StatusCode::MOVED_PERMANENTLY
                | StatusCode::FOUND
                | StatusCode::SEE_OTHER
                | StatusCode::TEMPORARY_REDIRECT
                | StatusCode::PERMANENT_REDIRECT
        ) {
            return Ok(None);
        }
        let nowhere = || {
            Error::permanent(
                Kind::Redirect,
                Fault::Origin,
                format!("{} redirects without a usable Location", redact(url)),
            )
            .with_status(response.status().as_u16())
        };
        let location = response.headers().get(LOCATION).ok_or_else(nowhere)?;
        let location = std::str::from_utf8(location.as_bytes()).map_err(|_| nowhere())?;
        let mut next = url.join(location).map_err(|_| nowhere())?;
        if !next.username().is_empty() || next.password().is_some() {
            // Credentials chosen by the origin are not sent on its behalf.
            let _ = next.set_username("");
            let _ = next.set_password(None);
        }
        next.set_fragment(None);
        if url.scheme() == "https" && next.scheme() == "http" && !self.options.allow_downgrade {
            return Err(Error::permanent(
                Kind::Refused,
                Fault::Policy,
                format!(
                    "{} redirects from https to {}: allow the downgrade for this source if plain \
                     http is wanted",
                    redact(url),
                    redact(&next)
                ),
            ));
        }
        Ok(Some(next))
    }

    /// Scheme, host list and literal address. Names are judged when they are resolved.
    fn check_target(&self, url: &Url) -> Result<()> {
        let refused = |why: String| {
            Err(Error::permanent(
                Kind::Refused,
                Fault::Policy,
                format!("{}: {why}", redact(url)),
            ))
        };
        if !matches!(url.scheme(), "http" | "https") {
            return refused(format!("`{}` is not http or https", url.scheme()));
        }
        let host = url.host_str().unwrap_or("");
        let port = url.port_or_known_default();
        let allowed = &self.options.allowed_hosts;
        if !allowed.is_empty()
            && !allowed
                .iter()
                .any(|pattern| host_matches(pattern, host, port))
        {
            return refused(format!(
                "add `{host}` to the allowed hosts of this source to reach it"
            ));
        }
        if self.options.addresses.refuses_name(host) {
            return refused("metadata services are refused as sources".to_owned());
        }
        if let Ok(address) = host.trim_matches(['[', ']']).parse::<IpAddr>()
            && let Err(reason) = self.options.addresses.check(address)
        {
            return refused(reason.to_string());
        }
        Ok(())
    }

    fn headers(
        &self,
        request: &Request,
        url: &Url,
        trusted: bool,
        wanted: &Wanted<'_>,
    ) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in request.headers() {
            if trusted || HARMLESS.contains(&name) {
                put(&mut map, name, value, true);
            }
        }
        for entry in &self.options.host_headers {
            if entry.are_for(url) {
                for (name, _) in &entry.headers {
                    map.remove(name.as_str());
                }
                for (name, value) in &entry.headers {
                    put(&mut map, name, value, true);
                }
            }
        }
        map.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if let Some(range) = wanted.range {
            put(&mut map, RANGE.as_str(), &range.header(), false);
            if let Some(if_range) = wanted.if_range {
                put(&mut map, IF_RANGE.as_str(), if_range, false);
            }
        }
        map
    }
}

/// Adds a header; one that HTTP forbids was refused earlier, or comes from options and is left out.
fn put(map: &mut HeaderMap, name: &str, value: &str, secret: bool) {
    if let (Ok(name), Ok(mut value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
        // Keeps it out of HTTP/2's compression tables and of Debug.
        value.set_sensitive(secret);
        map.append(name, value);
    }
}

/// Where redirects led, when elsewhere. Not where they came back to the request's origin by way of
/// another: asked there at once it would be shown what that other is not let choose a use for.
pub(super) fn led_to(request: &Request, sent: &Sent) -> Option<SecretUrl> {
    let (asked, url) = (request.url(), &sent.url);
    let leads = url != asked && (sent.trusted || !same_origin(asked, url));
    leads.then(|| SecretUrl::new(url.clone()))
}

/// Whether a client's headers may go on: same scheme, host and port, or the upgrade of a host to
/// https on the default ports.
fn same_origin(from: &Url, to: &Url) -> bool {
    limits::key(from) == limits::key(to)
        || (from.host_str() == to.host_str()
            && from.scheme() == "http"
            && to.scheme() == "https"
            && from.port().is_none()
            && to.port().is_none())
}

/// What a failed request means. The library's error is searched for the causes that count.
fn failed(shown: &str, error: reqwest::Error) -> Error {
    let is_connect = error.is_connect();
    let is_timeout = error.is_timeout();
    let error = error.without_url();
    if let Some(refused) = find::<RefusedAddress>(&error) {
        return Error::permanent(Kind::Refused, Fault::Policy, format!("{shown}: {refused}"));
    }
    if let Some(cause) = find::<ResolveError>(&error) {
        let text = format!("{shown}: {cause}; check the host name and this node's DNS");
        return Error::temporary(Kind::Resolve, Fault::Network, text);
    }
    if let Some(cause) = find::<rustls::Error>(&error) {
        return tls_failed(shown, cause);
    }
    let cause = root_cause(&error);
    if is_connect && is_timeout {
        let text = format!("{shown}: no connection in time; check address, firewall and proxy");
        return Error::temporary(Kind::Connect, Fault::Network, text).with_source(error);
    }
    if is_connect {
        let text = format!("{shown}: no connection ({cause}); check address, port and proxy");
        return Error::temporary(Kind::Connect, Fault::Network, text).with_source(error);
    }
    let text = format!("{shown}: the connection ended before an answer ({cause})");
    Error::temporary(Kind::Interrupted, Fault::Origin, text).with_source(error)
}

fn tls_failed(shown: &str, cause: &rustls::Error) -> Error {
    match cause {
        rustls::Error::InvalidCertificate(reason) => Error::permanent(
            Kind::Tls,
            Fault::Origin,
            format!(
                "{shown}: its certificate is not accepted ({reason}); if its authority is your \
                 own, put the authority's certificate into this source's CA bundle"
            ),
        ),
        other => Error::temporary(
            Kind::Tls,
            Fault::Origin,
            format!("{shown}: the TLS handshake failed ({other}); does it speak TLS on this port?"),
        ),
    }
}

/// A body that ended before its time.
pub(super) fn cut(shown: &str, error: reqwest::Error) -> Error {
    let error = error.without_url();
    let cause = root_cause(&error);
    Error::temporary(
        Kind::Interrupted,
        Fault::Origin,
        format!("{shown}: the connection was cut in the middle of the body ({cause})"),
    )
    .with_source(error)
}

/// The first error of this type in the chain. `io::Error` hides what it wraps from `source()`, so it
/// is looked into as well.
fn find<'a, E: std::error::Error + 'static>(
    error: &'a (dyn std::error::Error + 'static),
) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(current) = next {
        if let Some(found) = current.downcast_ref::<E>() {
            return Some(found);
        }
        if let Some(io) = current.downcast_ref::<std::io::Error>()
            && let Some(inner) = io.get_ref()
            && let Some(found) = find::<E>(inner)
        {
            return Some(found);
        }
        next = current.source();
    }
    None
}

fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut current = error;
    while let Some(source) = current.source() {
        current = source;
    }
    current.to_string()
}
