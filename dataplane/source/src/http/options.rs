//! Options of the HTTP adapter. Secrets in them never reach Debug.

use crate::address::AddressPolicy;
use crate::limits::OriginLimits;
use reqwest::Url;
use std::fmt;
use std::time::Duration;
use zeroize::Zeroizing;

/// How to speak to HTTP origins. One set for each source of a Distribution.
#[derive(Clone)]
pub struct HttpOptions {
    /// PEM certificates of further authorities that origins' certificates may come from.
    pub ca_bundle: Option<String>,
    /// Trust only `ca_bundle`, not the system's authorities.
    pub ca_bundle_only: bool,
    /// `http://[user:password@]host:port` of a proxy. The environment is never asked.
    pub proxy: Option<Zeroizing<String>>,
    /// Hosts, domains and networks reached without the proxy, as in `NO_PROXY`, comma-separated.
    pub no_proxy: String,
    /// Headers that go with every request to a host, credentials mostly.
    pub host_headers: Vec<HostHeaders>,
    /// Hosts that may be contacted, redirects included: `host`, `host:port` or `*.domain`. Empty:
    /// any.
    pub allowed_hosts: Vec<String>,
    /// Addresses that may be contacted.
    pub addresses: AddressPolicy,
    /// Follow a redirect from https to http.
    pub allow_downgrade: bool,
    /// Redirects followed for one request.
    pub max_redirects: usize,
    /// To make a connection, TLS included.
    pub connect_timeout: Duration,
    /// Without an answer, or with (nearly) no byte of one, for this long: the request has failed.
    pub stall_timeout: Duration,
    /// Limits for each origin.
    pub limits: OriginLimits,
    /// Offer HTTP/2. Off by default: its requests share one TCP connection, and what parallel
    /// ranges are for is several.
    pub http2: bool,
}

impl Default for HttpOptions {
    fn default() -> Self {
        Self {
            ca_bundle: None,
            ca_bundle_only: false,
            proxy: None,
            no_proxy: String::new(),
            host_headers: Vec::new(),
            allowed_hosts: Vec::new(),
            addresses: AddressPolicy::default(),
            allow_downgrade: false,
            max_redirects: 10,
            connect_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(30),
            limits: OriginLimits::default(),
            http2: false,
        }
    }
}

impl fmt::Debug for HttpOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpOptions")
            .field("ca_bundle", &self.ca_bundle.as_ref().map(String::len))
            .field("proxy", &self.proxy.as_ref().map(|_| "***"))
            .field("host_headers", &self.host_headers)
            .field("allowed_hosts", &self.allowed_hosts)
            .field("addresses", &self.addresses)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

/// Headers for one host.
#[derive(Clone)]
pub struct HostHeaders {
    /// `host` or `host:port`; no wildcard, since these are credentials. Over plain http they go only to
    /// a port that is named here.
    pub host: String,
    /// Names and values. They replace a client's header of the same name.
    pub headers: Vec<(String, Zeroizing<String>)>,
}

impl HostHeaders {
    /// Whether they go with a request to this URL.
    pub(super) fn are_for(&self, url: &Url) -> bool {
        let in_the_clear = url.scheme() != "https";
        if self.host.starts_with("*.") || in_the_clear && split_port(&self.host).1.is_none() {
            return false;
        }
        let host = url.host_str().unwrap_or("");
        host_matches(&self.host, host, url.port_or_known_default())
    }
}

impl fmt::Debug for HostHeaders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.headers.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("HostHeaders")
            .field("host", &self.host)
            .field("headers", &names)
            .finish()
    }
}

/// Name and port of a pattern: `[::1]:80` has its port after the bracket, `[::1]` none.
fn split_port(pattern: &str) -> (&str, Option<&str>) {
    match pattern.rsplit_once(':') {
        Some((name, digits)) if !digits.contains(']') => (name, Some(digits)),
        _ => (pattern, None),
    }
}

/// Whether `pattern` (`host`, `host:port`, `*.domain`) means this host and port.
pub(crate) fn host_matches(pattern: &str, host: &str, port: Option<u16>) -> bool {
    let pattern = pattern.trim().to_ascii_lowercase();
    let host = host.trim_end_matches('.');
    let (name, digits) = split_port(&pattern);
    // What is no port is none that there is.
    if digits.is_some_and(|digits| digits.parse().ok() != port || port.is_none()) {
        return false;
    }
    match name.strip_prefix("*.") {
        Some(domain) => host
            .strip_suffix(domain)
            .is_some_and(|rest| rest.ends_with('.')),
        None => name == host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_patterns_match_what_they_say() {
        let rows = [
            ("a.example", "a.example", 443, true),
            ("A.Example", "a.example", 443, true),
            ("a.example", "b.a.example", 443, false),
            ("*.example", "a.example", 443, true),
            ("*.example", "x.a.example", 443, true),
            ("*.example", "example", 443, false),
            ("*.example", "badexample", 443, false),
            ("a.example:8443", "a.example", 8443, true),
            ("a.example:8443", "a.example", 443, false),
            ("a.example:x", "a.example", 443, false),
            ("[::1]", "[::1]", 80, true),
            ("[::1]:80", "[::1]", 80, true),
            ("[::1]:81", "[::1]", 80, false),
        ];
        for (pattern, host, port, wanted) in rows {
            assert_eq!(
                host_matches(pattern, host, Some(port)),
                wanted,
                "{pattern} {host}:{port}"
            );
        }
    }

    #[test]
    fn what_is_for_a_host_goes_over_plain_http_only_to_a_port_that_is_named() {
        let rows = [
            ("a.example", "https://a.example/x", true),
            ("a.example", "http://a.example/x", false),
            ("a.example", "http://a.example:443/x", false),
            ("a.example:80", "http://a.example/x", true),
            ("[::1]", "http://[::1]/x", false),
            ("[::1]:80", "http://[::1]/x", true),
            ("*.example", "https://a.example/x", false),
        ];
        for (host, url, wanted) in rows {
            let headers = HostHeaders {
                host: host.to_owned(),
                headers: vec![],
            };
            assert_eq!(
                headers.are_for(&Url::parse(url).unwrap()),
                wanted,
                "{host} {url}"
            );
        }
    }

    #[test]
    fn debug_shows_no_secret() {
        let options = HttpOptions {
            proxy: Some(Zeroizing::new("http://u:hunter2@proxy:3128".into())),
            host_headers: vec![HostHeaders {
                host: "a.example".into(),
                headers: vec![(
                    "authorization".into(),
                    Zeroizing::new("Bearer hunter2".into()),
                )],
            }],
            ..HttpOptions::default()
        };
        assert!(!format!("{options:?}").contains("hunter2"));
    }
}
