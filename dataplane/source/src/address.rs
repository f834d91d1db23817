//! Which addresses an origin may have, judged on what a name *resolves to*.
//!
//! Invariant: every connection goes to an address that [`AddressPolicy`] allows: names pass
//! through `PolicyResolver` at connect time (so a name that changes its mind between check and use
//! gains nothing), literal addresses are checked before each request and each redirect. The one
//! exception is the configured proxy: the operator chose it, and the names behind it are resolved by
//! the proxy, which has to judge them itself.

use futures::future::BoxFuture;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

/// What is allowed beyond public addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressPolicy {
    /// 127.0.0.0/8, ::1.
    pub loopback: bool,
    /// RFC 1918, RFC 6598 (shared), RFC 4193 (unique local): a mesh's origins are often in its
    /// cluster.
    pub private: bool,
    /// Link-local and the metadata services of clouds: they hand out credentials.
    pub link_local: bool,
}

impl Default for AddressPolicy {
    fn default() -> Self {
        Self {
            loopback: true,
            private: true,
            link_local: false,
        }
    }
}

/// Metadata services that are not in a link-local network.
const METADATA_V4: &[Ipv4Addr] = &[
    Ipv4Addr::new(100, 100, 100, 200), // Alibaba Cloud
    Ipv4Addr::new(168, 63, 129, 16),   // Azure
    Ipv4Addr::new(192, 0, 0, 192),     // Oracle Cloud
];
/// `fd00:ec2::254` (AWS) and `fd20:ce::254` (Google Cloud).
const METADATA_V6: &[Ipv6Addr] = &[
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
];
/// Names of metadata services, for requests whose name a proxy will resolve.
const METADATA_NAMES: &[&str] = &[
    "metadata",
    "metadata.google.internal",
    "metadata.goog",
    "instance-data",
];

impl AddressPolicy {
    /// Whether a connection may go there; the error says what kind of address it is.
    pub(crate) fn check(self, address: IpAddr) -> Result<(), RefusedAddress> {
        let refused = |what| Err(RefusedAddress { address, what });
        let v4 = match address {
            IpAddr::V4(v4) => v4,
            IpAddr::V6(v6) => match embedded_v4(v6) {
                Some(v4) => v4,
                None => return self.check_v6(v6),
            },
        };
        if v4.is_unspecified() || v4.octets()[0] == 0 {
            return refused("unspecified");
        }
        if v4.is_multicast() || v4.is_broadcast() {
            return refused("multicast or broadcast");
        }
        if (v4.is_link_local() || METADATA_V4.contains(&v4)) && !self.link_local {
            return refused("link-local or metadata");
        }
        if v4.is_loopback() && !self.loopback {
            return refused("loopback");
        }
        let shared = v4.octets()[0] == 100 && (64..128).contains(&v4.octets()[1]);
        if (v4.is_private() || shared) && !self.private {
            return refused("private");
        }
        Ok(())
    }

    fn check_v6(self, v6: Ipv6Addr) -> Result<(), RefusedAddress> {
        let refused = |what| {
            Err(RefusedAddress {
                address: IpAddr::V6(v6),
                what,
            })
        };
        if v6.is_unspecified() {
            return refused("unspecified");
        }
        if v6.is_multicast() {
            return refused("multicast or broadcast");
        }
        if (v6.is_unicast_link_local() || METADATA_V6.contains(&v6)) && !self.link_local {
            return refused("link-local or metadata");
        }
        if v6.is_loopback() && !self.loopback {
            return refused("loopback");
        }
        if v6.is_unique_local() && !self.private {
            return refused("private");
        }
        Ok(())
    }

    /// Names that only ever mean a metadata service.
    pub(crate) fn refuses_name(self, host: &str) -> bool {
        !self.link_local && METADATA_NAMES.contains(&host.trim_end_matches('.'))
    }
}

/// The IPv4 address that an IPv6 address is another spelling of: mapped, compatible, NAT64
/// (RFC 6052, RFC 8215), 6to4 (RFC 3056), Teredo (RFC 4380), ISATAP (RFC 5214). Without this, `::ffff:169.254.169.254` would pass.
fn embedded_v4(v6: Ipv6Addr) -> Option<Ipv4Addr> {
    let s = v6.segments();
    let join = |high: u16, low: u16| {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        Ipv4Addr::new(a, b, c, d)
    };
    match s {
        [0, 0, 0, 0, 0, 0xffff, high, low] => Some(join(high, low)),
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Some(join(high, low)),
        [0x64, 0xff9b, 1, .., high, low] => Some(join(high, low)),
        [0x2001, 0, .., high, low] => Some(join(!high, !low)),
        [.., 0 | 0x200, 0x5efe, high, low] => Some(join(high, low)),
        [0x2002, high, low, ..] => Some(join(high, low)),
        // `::` and `::1` are addresses of their own.
        [0, 0, 0, 0, 0, 0, high, low] if high != 0 => Some(join(high, low)),
        _ => None,
    }
}

/// A target that policy refuses.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("{address} is a {what} address, which policy refuses as a source")]
pub(crate) struct RefusedAddress {
    pub(crate) address: IpAddr,
    pub(crate) what: &'static str,
}

/// Addresses of a name, whatever their port.
pub type Lookup =
    Arc<dyn Fn(String) -> BoxFuture<'static, std::io::Result<Vec<SocketAddr>>> + Send + Sync>;

/// The system's resolver.
pub(crate) fn system() -> Lookup {
    Arc::new(|name| {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            Ok(found.collect())
        })
    })
}

/// Resolves, at the moment of connecting, and drops what policy refuses.
pub(crate) struct PolicyResolver {
    policy: AddressPolicy,
    /// Host of the configured proxy, in lower case.
    exempt: Option<String>,
    lookup: Lookup,
}

impl PolicyResolver {
    pub(crate) fn new(policy: AddressPolicy, exempt: Option<String>, lookup: Lookup) -> Self {
        Self {
            policy,
            exempt,
            lookup,
        }
    }
}

impl fmt::Debug for PolicyResolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PolicyResolver")
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}

impl Resolve for PolicyResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let policy = self.policy;
        let exempt = self.exempt.as_deref() == Some(name.as_str());
        let found = (self.lookup)(name.as_str().to_owned());
        Box::pin(async move {
            let found = found.await.map_err(ResolveError)?;
            let allowed = if exempt { found } else { judge(policy, found)? };
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}

/// The allowed ones of `found`; the reason when there were only refused ones.
fn judge(policy: AddressPolicy, found: Vec<SocketAddr>) -> Result<Vec<SocketAddr>, RefusedAddress> {
    let mut refused = None;
    let allowed: Vec<SocketAddr> = found
        .into_iter()
        .filter(|address| match policy.check(address.ip()) {
            Ok(()) => true,
            Err(reason) => {
                refused = Some(reason);
                false
            }
        })
        .collect();
    match refused {
        Some(reason) if allowed.is_empty() => Err(reason),
        _ => Ok(allowed),
    }
}

/// Marks a failure as one of the name service.
#[derive(Debug, thiserror::Error)]
#[error("name resolution failed: {0}")]
pub(crate) struct ResolveError(#[source] std::io::Error);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_judged_whatever_their_spelling() {
        let strict = AddressPolicy {
            loopback: false,
            private: false,
            link_local: false,
        };
        let rows = [
            // address, by default, strict
            ("93.184.216.34", true, true),
            ("127.0.0.1", true, false),
            ("10.1.2.3", true, false),
            ("100.64.0.1", true, false),
            ("100.100.100.200", false, false),
            ("169.254.169.254", false, false),
            ("168.63.129.16", false, false),
            ("0.0.0.0", false, false),
            ("0.1.2.3", false, false),
            ("224.0.0.1", false, false),
            ("255.255.255.255", false, false),
            ("::", false, false),
            ("::1", true, false),
            ("fe80::1", false, false),
            ("ff02::1", false, false),
            ("fd00:ec2::254", false, false),
            ("fd12::1", true, false),
            ("2001:db8::1", true, true),
            ("::ffff:169.254.169.254", false, false),
            ("::ffff:127.0.0.1", true, false),
            ("64:ff9b::a9fe:a9fe", false, false),
            ("2002:a9fe:a9fe::1", false, false),
            ("64:ff9b:1::a9fe:a9fe", false, false),
            ("2001::5601:5601", false, false),
            ("2001:db8::5efe:a9fe:a9fe", false, false),
            ("2001:db8::200:5efe:a9fe:a9fe", false, false),
            ("::169.254.169.254", false, false),
        ];
        for (address, by_default, under_strict) in rows {
            let ip: IpAddr = address.parse().unwrap();
            assert_eq!(
                AddressPolicy::default().check(ip).is_ok(),
                by_default,
                "{address}"
            );
            assert_eq!(strict.check(ip).is_ok(), under_strict, "{address} strict");
        }
    }

    #[test]
    fn link_local_can_be_allowed() {
        let open = AddressPolicy {
            link_local: true,
            ..AddressPolicy::default()
        };
        assert!(open.check("169.254.1.1".parse().unwrap()).is_ok());
        assert!(open.check("224.0.0.1".parse().unwrap()).is_err());
    }

    #[test]
    fn refused_answers_are_dropped_and_only_refused_ones_are_an_error() {
        let good: SocketAddr = "93.184.216.34:0".parse().unwrap();
        let bad: SocketAddr = "169.254.169.254:0".parse().unwrap();
        assert_eq!(
            judge(AddressPolicy::default(), vec![bad, good]).unwrap(),
            vec![good]
        );
        assert!(judge(AddressPolicy::default(), vec![bad]).is_err());
    }
}
