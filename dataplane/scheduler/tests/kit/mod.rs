//! A scheduler's core with scripted nodes around it, on virtual time.
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic
)]

use std::sync::Arc;
use std::time::Duration;

use dragonfly_proto::geometry::Geometry;
use dragonfly_proto::id::{ContentKey, NodeId};
use dragonfly_proto::rpc::{self, Role, failure::Code, from_node, to_node};
use dragonfly_proto::sign::SigningKey;
use dragonfly_proto::trust::EpochCert;
use dragonfly_scheduler::core::{Core, CoreSettings};

pub const MESH: [u8; 16] = [7; 16];
pub const URL: &str = "https://user:secret@origin.example/file?token=secret";

pub struct World {
    pub core: Core,
    pub now: Duration,
    pub authority: Arc<SigningKey>,
    pub said: Vec<(NodeId, to_node::Message)>,
    next_id: u64,
}

pub fn node(n: u8) -> NodeId {
    NodeId([n; 16])
}

pub fn content(n: u8) -> ContentKey {
    ContentKey([n; 32])
}

pub fn geometry() -> rpc::Geometry {
    (&Geometry::new(65536, Some(10 << 20)).unwrap()).into()
}

pub fn source() -> rpc::Source {
    rpc::Source {
        url: URL.to_owned(),
        ..rpc::Source::default()
    }
}

pub fn hello(n: u8, role: Role, name: &str, key: u8) -> rpc::NodeHello {
    rpc::NodeHello {
        node: node(n).0.to_vec(),
        role: role.into(),
        name: name.to_owned(),
        addresses: vec![format!("10.0.0.{n}:65000")],
        signing_key: vec![key; 32],
        ..rpc::NodeHello::default()
    }
}

impl World {
    pub fn new(peers_may_fetch: bool) -> Self {
        let authority = Arc::new(SigningKey::generate().unwrap().0);
        Self::again(authority, peers_may_fetch, Duration::ZERO)
    }

    /// A scheduler that has just started and knows nothing.
    pub fn again(authority: Arc<SigningKey>, peers_may_fetch: bool, unix: Duration) -> Self {
        let mut settings = CoreSettings::default();
        settings.swarm.peers_may_fetch = peers_may_fetch;
        let unix = 1_800_000_000 + unix.as_secs();
        let core = Core::new("s".into(), vec![], MESH, authority.clone(), settings, unix);
        Self {
            core,
            now: Duration::ZERO,
            authority,
            said: vec![],
            next_id: 1,
        }
    }

    /// One that runs for a while already.
    pub fn running(peers_may_fetch: bool) -> Self {
        let mut w = Self::new(peers_may_fetch);
        w.pass(5.0);
        w
    }

    pub fn pass(&mut self, seconds: f64) {
        let end = self.now + Duration::from_secs_f64(seconds);
        while self.now < end {
            self.now += Duration::from_millis(500);
            self.core.tick(self.now);
        }
        self.collect();
    }

    fn collect(&mut self) {
        let out = self.core.take_out();
        self.said.extend(out);
    }

    pub fn seed(&mut self, n: u8) {
        self.connect(hello(n, Role::Seed, &format!("seed-{n}"), n));
    }

    pub fn peer(&mut self, n: u8) {
        self.connect(hello(n, Role::Peer, &format!("peer-{n}"), n));
    }

    pub fn connect(&mut self, hello: rpc::NodeHello) {
        self.core.connect(self.now, hello).unwrap();
        self.collect();
    }

    pub fn disconnect(&mut self, n: u8) {
        self.core.disconnect(self.now, node(n));
        self.collect();
    }

    pub fn say(&mut self, n: u8, message: from_node::Message) {
        self.core.handle(self.now, node(n), message);
        self.collect();
    }

    pub fn resolve(&mut self, n: u8, key: u8) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        let ask = rpc::Resolve {
            id,
            request_key: vec![key; 32],
            source: Some(source()),
            replicas: vec![],
            only_look: false,
        };
        self.say(n, from_node::Message::Resolve(ask));
        id
    }

    /// Questions to look at the origin since the last call: to whom, number, key.
    pub fn asks(&mut self) -> Vec<(NodeId, u64, Vec<u8>)> {
        self.take(|to, m| match m {
            to_node::Message::ResolveAt(a) => Some((to, a.id, a.request_key)),
            _ => None,
        })
    }

    pub fn leases(&mut self) -> Vec<(NodeId, EpochCert)> {
        self.take(|to, m| match m {
            to_node::Message::Lease(l) => Some((to, EpochCert::decode(&l.epoch).unwrap())),
            _ => None,
        })
    }

    pub fn resolved(&mut self) -> Vec<(NodeId, u64, Option<rpc::Failure>)> {
        let mut all = self.take(|to, m| match m {
            to_node::Message::Resolved(r) => Some((to, r.id, r.failure)),
            _ => None,
        });
        all.sort_by_key(|r| r.1);
        all
    }

    pub fn failures(&mut self) -> Vec<(NodeId, rpc::Failure)> {
        self.take(|to, m| match m {
            to_node::Message::Epochs(rpc::Epochs {
                failure: Some(f), ..
            }) => Some((to, f)),
            _ => None,
        })
    }

    /// Takes what `f` picks; the rest stays.
    pub fn take<T>(&mut self, mut f: impl FnMut(NodeId, to_node::Message) -> Option<T>) -> Vec<T> {
        let mut picked = vec![];
        self.said.retain(|(to, m)| match f(*to, m.clone()) {
            Some(t) => {
                picked.push(t);
                false
            }
            None => true,
        });
        picked
    }

    /// A node answers what it was asked: it holds `key`'s content, number `what`.
    pub fn found(&mut self, n: NodeId, ask: u64, what: u8) {
        let result = rpc::ResolveResult {
            id: ask,
            failure: None,
            content: content(what).0.to_vec(),
            geometry: Some(geometry()),
            origin: Some(rpc::OriginInfo {
                validator: "v1".into(),
                fresh_ms: 30_000,
                ..rpc::OriginInfo::default()
            }),
        };
        self.say(n.0[0], from_node::Message::ResolveResult(result));
    }

    pub fn lease_result(&mut self, n: NodeId, what: u8, failure: Option<Code>) {
        let failure = failure.map(|c| rpc::Failure::new(c, "as the test says"));
        let m = rpc::LeaseResult {
            content: content(what).0.to_vec(),
            epoch: 0,
            failure,
        };
        self.say(n.0[0], from_node::Message::LeaseResult(m));
    }

    pub fn join(&mut self, n: u8, what: u8, change: impl FnOnce(&mut rpc::Join)) {
        let mut m = rpc::Join {
            content: content(what).0.to_vec(),
            geometry: Some(geometry()),
            ..rpc::Join::default()
        };
        change(&mut m);
        self.say(n, from_node::Message::Join(m));
    }

    pub fn need_source(&mut self, n: u8, what: u8) {
        self.need_source_of(n, what, None);
    }

    /// With what the node's client shows.
    pub fn need_source_of(&mut self, n: u8, what: u8, source: Option<rpc::Source>) {
        let m = rpc::NeedSource {
            content: content(what).0.to_vec(),
            ranges: vec![],
            request_key: vec![],
            source,
        };
        self.say(n, from_node::Message::NeedSource(m));
    }

    /// Seed `s` has the lease of content 1, and peer `p` is served.
    pub fn begun(&mut self, p: u8) -> NodeId {
        let id = self.resolve(p, 1);
        let (at, ask, _) = self.asks().remove(0);
        self.found(at, ask, 1);
        let (holder, _) = self.leases().remove(0);
        assert_eq!(holder, at);
        self.lease_result(holder, 1, None);
        let resolved = self.resolved();
        assert!(resolved.len() == 1 && resolved[0].1 == id && resolved[0].2.is_none());
        holder
    }
}
