//! `spec.sources` of a Distribution: where content comes from, and which origins may be asked.
//!
//! Invariants: as those of [`crate::distribution`].

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::distribution::{Permission, duration_pattern, quantity_pattern};

/// Where content comes from.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[schemars(inline)]
#[serde(default, rename_all = "camelCase")]
pub struct Sources {
    /// Origins that speak HTTP or HTTPS.
    pub http: HttpSource,
}

/// Origins that speak HTTP or HTTPS.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "size(self.noProxy) == 0 || has(self.proxy)",
    "message": "has no effect without proxy",
    "fieldPath": ".noProxy"
}]))]
#[schemars(inline)]
#[serde(default, rename_all = "camelCase")]
pub struct HttpSource {
    /// How long an origin's answer is used without asking again whether it changed; 0s to ask
    /// for every download. At most 24h.
    #[schemars(length(min = 2, max = 32), regex(pattern = duration_pattern!()))]
    pub freshness: String,
    /// Which query parameters tell contents apart. Parameters of well-known URL signatures never
    /// do unless included by name.
    pub query: Query,
    /// Hosts that may be contacted, redirects included: host, host:port or *.domain. Any when
    /// empty.
    #[schemars(
        length(max = 256),
        inner(
            length(min = 1, max = 259),
            regex(
                pattern = r"^([*][.])?([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?$"
            )
        )
    )]
    #[schemars(extend("x-kubernetes-list-type" = "set"))]
    pub allowed_hosts: Vec<String>,
    /// PEM certificates of further authorities that origins' certificates may come from.
    #[schemars(length(min = 1, max = 32768))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_bundle: Option<String>,
    /// Proxy that origins are reached through, such as `http://proxy.example:3128`. The environment
    /// is never asked. Without user and password.
    #[schemars(
        length(min = 1, max = 512),
        regex(pattern = r"^https?://([-A-Za-z0-9_.]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?/?$")
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy: Option<String>,
    /// Hosts, domains (.example) and networks (10.0.0.0/8) reached without the proxy.
    #[schemars(
        length(max = 128),
        inner(length(min = 1, max = 253), regex(pattern = r"^[^\s,]+$"))
    )]
    #[schemars(extend("x-kubernetes-list-type" = "set"))]
    pub no_proxy: Vec<String>,
    /// Which addresses an origin may have, judged on what its name resolves to.
    pub addresses: Addresses,
    /// Requests at once to one origin, from one node. Default by profile: Light 8, Standard 32,
    /// Heavy 128.
    #[schemars(range(min = 1, max = 1024))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_concurrent_requests_per_origin: Option<i32>,
    /// Bytes a second that one node takes from one origin, such as 50Mi. No limit when absent or 0.
    #[schemars(length(min = 1, max = 32), regex(pattern = quantity_pattern!()))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_bytes_per_second_per_origin: Option<String>,
    /// Range requests at once for one content, where the origin does ranges. Default by profile:
    /// Light and Standard 4, Heavy 8.
    #[schemars(range(min = 1, max = 64))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parallel_ranges: Option<i32>,
    /// A request without an answer or a byte for this long has failed. From 1s to 1h.
    #[schemars(length(min = 2, max = 32), regex(pattern = duration_pattern!()))]
    pub stall_timeout: String,
    /// Time to make a connection, TLS included. From 100ms to 10m.
    #[schemars(length(min = 2, max = 32), regex(pattern = duration_pattern!()))]
    pub connect_timeout: String,
}

impl Default for HttpSource {
    fn default() -> Self {
        Self {
            freshness: "30s".to_owned(),
            query: Query::default(),
            allowed_hosts: Vec::new(),
            ca_bundle: None,
            proxy: None,
            no_proxy: Vec::new(),
            addresses: Addresses::default(),
            max_concurrent_requests_per_origin: None,
            max_bytes_per_second_per_origin: None,
            parallel_ranges: None,
            stall_timeout: "30s".to_owned(),
            connect_timeout: "10s".to_owned(),
        }
    }
}

/// Which query parameters tell contents apart.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[schemars(inline)]
#[serde(default, rename_all = "camelCase")]
pub struct Query {
    /// Only these count; a name may end in *. All when empty.
    #[schemars(length(max = 64), inner(length(min = 1, max = 128)))]
    #[schemars(extend("x-kubernetes-list-type" = "set"))]
    pub include: Vec<String>,
    /// These never count; a name may end in *.
    #[schemars(length(max = 64), inner(length(min = 1, max = 128)))]
    #[schemars(extend("x-kubernetes-list-type" = "set"))]
    pub exclude: Vec<String>,
}

/// Which addresses an origin may have beyond public ones.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[schemars(inline)]
#[serde(default, rename_all = "camelCase")]
pub struct Addresses {
    /// Private networks (RFC 1918, RFC 6598, RFC 4193): Allowed or Never.
    pub private: Permission,
    /// The node itself (127.0.0.0/8, ::1): Allowed or Never. Default by profile: Light Allowed,
    /// Standard and Heavy Never.
    // Of an optional enum the enum's description would be shown.
    #[schemars(with = "Permission")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loopback: Option<Permission>,
    /// Link-local addresses and clouds' metadata services, which hand out credentials: Allowed or
    /// Never.
    pub link_local: Permission,
}

impl Default for Addresses {
    fn default() -> Self {
        Self {
            private: Permission::Allowed,
            loopback: None,
            link_local: Permission::Never,
        }
    }
}
