//! Neighbours tell each other of neighbours, so that a node finds new ones while no scheduler
//! answers.
//!
//! Told: when a stream is bound, this node's own address, and the addresses of its neighbours in its
//! own zone, as the scheduler or they themselves told them or as this node dialled them; later, who
//! came. Believed: a hint, no more. Only a neighbour
//! whose ticket was good is listened to; each has [`PER_TELLER`] places in a list of its own, so that
//! it cannot push out what others told; an address is tried once, [`AT_ONCE`] at a time, after all
//! that the scheduler told, and the connection must then show the identity and a ticket as any other.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use dragonfly_proto::frame::{Frame, MAX_PEX};
use dragonfly_proto::id::NodeId;
use dragonfly_proto::rpc;
use dragonfly_transport::Conn;

use crate::node::Node;
use crate::task::{State, Task};

/// Addresses kept of one neighbour's telling; the latest count.
const PER_TELLER: usize = 16;
/// Neighbours whose telling is kept.
const TELLERS: usize = 32;
/// Nodes dialled for one call for neighbours.
const AT_ONCE: usize = 4;

/// What neighbours told of others, by teller.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    told: Vec<(NodeId, Vec<(NodeId, SocketAddr)>)>,
    /// Where neighbours say that they are reached themselves.
    own: Vec<(NodeId, SocketAddr)>,
}

impl Heard {
    /// Takes note of what a neighbour tells; whether its own address is new.
    fn hear(&mut self, teller: &Conn, peers: Vec<(NodeId, SocketAddr)>) -> bool {
        let from = teller.addr().ip();
        let own = peers.iter().find(|(node, _)| *node == teller.peer());
        // The first word counts: what is new is passed on, and nobody can make this node chatter.
        let known = self.own.iter().any(|(node, _)| *node == teller.peer());
        let own = own.filter(|own| !known && self.own.len() < TELLERS && dialable(own.1, from));
        self.own.extend(own);
        let new = own.is_some();
        let at = match self
            .told
            .iter()
            .position(|(node, _)| *node == teller.peer())
        {
            Some(at) => at,
            None if self.told.len() >= TELLERS => return new,
            None => {
                self.told.push((teller.peer(), vec![]));
                self.told.len() - 1
            }
        };
        let list = &mut self.told[at].1;
        for (node, addr) in peers {
            let other = node != teller.peer();
            if other && dialable(addr, from) && !list.contains(&(node, addr)) {
                list.push((node, addr));
            }
        }
        let over = list.len().saturating_sub(PER_TELLER);
        list.drain(..over);
        new
    }

    /// Takes up to `count` nodes out that `fits`, from different tellers where it can.
    fn take(&mut self, count: usize, fits: impl Fn(&NodeId) -> bool) -> Vec<(NodeId, SocketAddr)> {
        let mut taken: Vec<(NodeId, SocketAddr)> = vec![];
        let mut progress = true;
        while progress && taken.len() < count {
            progress = false;
            for (_, list) in &mut self.told {
                if taken.len() >= count {
                    break;
                }
                // What does not fit now may later: its connection may be lost.
                let found = list
                    .iter()
                    .rposition(|(n, _)| fits(n) && !taken.iter().any(|(t, _)| t == n));
                if let Some(at) = found {
                    taken.push(list.remove(at));
                    progress = true;
                }
            }
        }
        taken
    }
}

/// Whether a neighbour at `teller` may send this node to `addr`: an address of a machine, and this
/// machine's own only where the neighbour is on it too.
fn dialable(addr: SocketAddr, teller: IpAddr) -> bool {
    let ip = addr.ip().to_canonical();
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    addr.port() != 0
        && !ip.is_unspecified()
        && !ip.is_multicast()
        && !link_local
        && (!ip.is_loopback() || teller.to_canonical().is_loopback())
}

impl Node {
    pub(crate) fn on_pex(&self, task: &Arc<Task>, conn: &Conn, peers: Vec<(NodeId, SocketAddr)>) {
        let members = self.members_of(task);
        let mut state = task.state();
        if !state.heard.hear(conn, peers) || state.told.contains_key(&conn.peer()) {
            return;
        }
        let Some(addr) = address(&members, &state, conn) else {
            return;
        };
        for link in state.links.values() {
            let peer = link.conn.peer();
            if peer != conn.peer() && !state.told.contains_key(&peer) {
                link.conn
                    .send(link.ours, &Frame::Pex(vec![(conn.peer(), addr)]));
            }
        }
    }

    /// Tells a new neighbour of this node and the others. They hear of it when it says where it is.
    pub(crate) fn introduce(&self, task: &Arc<Task>, new: &Arc<Conn>, ours: u32) {
        let members = self.members_of(task);
        let state = task.state();
        // Another zone's gateway is no neighbour for anybody else.
        if state.told.contains_key(&new.peer()) {
            return;
        }
        let own = self.identity.addresses.iter().take(1);
        let mut others: Vec<_> = own.map(|addr| (self.identity.node, *addr)).collect();
        for link in state.links.values() {
            let peer = link.conn.peer();
            if peer == new.peer() || state.told.contains_key(&peer) {
                continue;
            }
            if let Some(addr) = address(&members, &state, &link.conn)
                && others.len() < MAX_PEX.min(PER_TELLER)
            {
                others.push((peer, addr));
            }
        }
        if !others.is_empty() {
            new.send(ours, &Frame::Pex(others));
        }
    }

    /// Looks for neighbours without a scheduler: those it told of, then those that others told of.
    pub(crate) fn find_neighbours(self: &Arc<Self>, task: &Arc<Task>, count: usize) {
        let count = count.min(AT_ONCE);
        let mut state = task.state();
        let linked = |s: &State, node: &NodeId| s.links.values().any(|l| l.conn.peer() == *node);
        let mut members = self.members_of(task);
        members.retain(|m| {
            NodeId::from_slice(&m.node).is_some_and(|id| {
                !linked(&state, &id) && !state.told.contains_key(&id) && !self.is_banned(&id)
            })
        });
        fastrand::shuffle(&mut members);
        members.truncate(count);
        // Some of each: those that the scheduler told of may all be gone.
        let more = count.saturating_sub(members.len() / 2);
        let known: Vec<NodeId> = state.links.values().map(|l| l.conn.peer()).collect();
        let heard = state.heard.take(more, |id| {
            *id != self.identity.node && !known.contains(id) && !self.is_banned(id)
        });
        drop(state);
        members.extend(heard.into_iter().map(|(node, addr)| rpc::Member {
            node: node.0.to_vec(),
            addresses: vec![addr.to_string()],
            ..rpc::Member::default()
        }));
        self.connect_members(task, &members);
    }
}

/// Where others reach a neighbour: as the scheduler told, as this node dialled it, or as it says.
fn address(members: &[rpc::Member], state: &State, conn: &Conn) -> Option<SocketAddr> {
    let peer = conn.peer();
    let told = members.iter().find(|m| m.node == peer.0);
    let says = || state.heard.own.iter().find(|(node, _)| *node == peer);
    told.and_then(|m| m.addresses.first())
        .and_then(|a| a.parse().ok())
        .or_else(|| conn.dialled().then(|| conn.addr()))
        .or_else(|| says().map(|(_, addr)| *addr))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn nobody_is_sent_to_addresses_that_are_no_machines() {
        let far: IpAddr = "10.0.0.7".parse().unwrap();
        let here: IpAddr = "127.0.0.1".parse().unwrap();
        for bad in [
            "127.0.0.1:80",
            "[::ffff:127.0.0.1]:80",
            "0.0.0.0:80",
            "10.0.0.1:0",
            "169.254.169.254:80",
            "224.0.0.1:80",
            "255.255.255.255:80",
            "[::1]:80",
            "[fe80::1]:80",
        ] {
            assert!(!dialable(addr(bad), far), "{bad}");
        }
        assert!(dialable(addr("10.0.0.1:8003"), far));
        assert!(dialable(addr("127.0.0.1:8003"), here));
    }

    #[test]
    fn an_address_is_tried_once_and_tellers_take_turns() {
        let node = |n: u8| NodeId([n; 16]);
        let at = addr("10.0.0.1:1");
        let mut heard = Heard {
            told: vec![
                (node(1), (10..26).map(|n| (node(n), at)).collect()),
                (node(2), vec![(node(30), at)]),
            ],
            own: vec![],
        };
        let taken = heard.take(2, |_| true);
        assert_eq!(
            taken.iter().map(|t| t.0).collect::<Vec<_>>(),
            [node(25), node(30)]
        );
        assert_eq!(heard.take(100, |n| *n != node(10)).len(), 14);
        assert_eq!(heard.take(100, |_| true).len(), 1);
        assert!(heard.take(100, |_| true).is_empty());
    }
}
