//! Every address of a cluster, derived from its number: pure.
//!
//! A cluster has `10.(160 + number).0.0/16` and `fd64:7967:(number)::/48` for itself, so clusters side
//! by side never meet. Inside: the network between machines, pods of each node, services.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::options::IpFamily;

/// How many clusters there can be at once.
pub(crate) const MOST_CLUSTERS: u8 = 32;

/// Where the API server listens, in the control plane's namespace.
pub(crate) const API_PORT: u16 = 6443;
/// Where the registry listens there.
pub(crate) const REGISTRY_PORT: u16 = 5000;

/// The addresses of one cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) number: u8,
    pub(crate) family: IpFamily,
}

/// A machine on the network between machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Machine {
    /// API server, etcd, registry.
    ControlPlane,
    /// The machine that all of it runs on.
    Host,
    /// A node, by its index.
    Node(usize),
}

impl Plan {
    fn v4(self, third: u8, last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 160 + self.number, third, last)
    }

    fn v6(self, subnet: u16, last: u16) -> Ipv6Addr {
        Ipv6Addr::new(
            0xfd64,
            0x7967,
            u16::from(self.number),
            subnet,
            0,
            0,
            0,
            last,
        )
    }

    /// What the host must have no route into before the cluster starts.
    pub(crate) fn prefix(self) -> String {
        format!("10.{}.", 160 + self.number)
    }

    fn pick(self, v4: IpAddr, v6: IpAddr) -> Vec<IpAddr> {
        let mut all = vec![];
        if self.family.has_v4() {
            all.push(v4);
        }
        if self.family.has_v6() {
            all.push(v6);
        }
        all
    }

    /// A machine's addresses, the preferred one first. There is at least one.
    pub(crate) fn addresses(self, machine: Machine) -> Vec<IpAddr> {
        let last = match machine {
            Machine::ControlPlane => 1,
            Machine::Host => 254,
            Machine::Node(n) => 10 + small(n),
        };
        self.pick(self.v4(0, last).into(), self.v6(0, last.into()).into())
    }

    /// A machine's preferred address.
    pub(crate) fn address(self, machine: Machine) -> IpAddr {
        let first = self.addresses(machine).into_iter().next();
        first.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED))
    }

    /// The network of a node's pods, one a family.
    pub(crate) fn pods_of(self, node: usize) -> Vec<Cidr> {
        let n = small(node);
        self.cidrs(
            (self.v4(64 + n, 0), 24),
            (self.v6(0x100 + u16::from(n), 0), 64),
        )
    }

    /// The network of all pods, one a family.
    pub(crate) fn pods(self) -> Vec<Cidr> {
        self.cidrs((self.v4(64, 0), 18), (self.v6(0x100, 0), 56))
    }

    /// The network of services, one a family.
    pub(crate) fn services(self) -> Vec<Cidr> {
        self.cidrs((self.v4(192, 0), 20), (self.v6(0xffff, 0), 112))
    }

    /// The addresses of the service `kubernetes`: the first of their networks.
    pub(crate) fn api_services(self) -> Vec<IpAddr> {
        self.pick(self.v4(192, 1).into(), self.v6(0xffff, 1).into())
    }

    fn cidrs(self, v4: (Ipv4Addr, u8), v6: (Ipv6Addr, u8)) -> Vec<Cidr> {
        let bits = |address: &IpAddr| if address.is_ipv4() { v4.1 } else { v6.1 };
        let all = self.pick(v4.0.into(), v6.0.into());
        let with_bits = all.into_iter().map(|base| Cidr {
            bits: bits(&base),
            base,
        });
        with_bits.collect()
    }
}

/// A network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cidr {
    pub(crate) base: IpAddr,
    pub(crate) bits: u8,
}

impl std::fmt::Display for Cidr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.base, self.bits)
    }
}

/// Several networks or addresses as Kubernetes' options take them.
pub(crate) fn joined<T: ToString>(all: &[T]) -> String {
    let all: Vec<_> = all.iter().map(ToString::to_string).collect();
    all.join(",")
}

/// `address/bits` on the network between machines.
pub(crate) fn on_link(address: IpAddr) -> String {
    format!("{address}/{}", if address.is_ipv4() { 24 } else { 64 })
}

/// An address as it stands in a URL or before a port.
pub(crate) fn in_url(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => format!("[{v6}]"),
    }
}

fn small(node: usize) -> u8 {
    u8::try_from(node).unwrap_or(u8::MAX).min(63)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_two_clusters_or_machines_share_an_address() {
        let mut seen = HashSet::new();
        for number in 0..MOST_CLUSTERS {
            let plan = Plan {
                number,
                family: IpFamily::Dual,
            };
            let nodes = (0..32).map(Machine::Node);
            for machine in [Machine::ControlPlane, Machine::Host]
                .into_iter()
                .chain(nodes)
            {
                for address in plan.addresses(machine) {
                    assert!(seen.insert(address), "{address} twice");
                }
            }
            for node in 0..32 {
                for pods in plan.pods_of(node) {
                    assert!(seen.insert(pods.base), "{pods} twice");
                }
            }
        }
    }

    #[test]
    fn a_family_that_was_not_asked_for_has_no_address() {
        let plan = Plan {
            number: 3,
            family: IpFamily::V6,
        };
        assert!(plan.addresses(Machine::Node(0)).iter().all(IpAddr::is_ipv6));
        assert_eq!(joined(&plan.services()), "fd64:7967:3:ffff::/112");
        let plan = Plan {
            number: 3,
            family: IpFamily::Dual,
        };
        assert_eq!(joined(&plan.pods()), "10.163.64.0/18,fd64:7967:3:100::/56");
    }
}
