//! What a swarm's members are told: each other, whom to part from, and who was lost.

use std::time::Duration;

use dragonfly_proto::id::{ContentKey, NodeId};
use dragonfly_proto::rpc::{self, to_node};
use dragonfly_swarm::engine::Stripe;
use dragonfly_swarm::membership::{Command, Introduction, Refill};

use crate::core::Core;

impl Core {
    pub(crate) fn member(&self, i: &Introduction<NodeId>) -> Option<rpc::Member> {
        let entry = self.nodes.get(&i.node)?;
        Some(rpc::Member {
            node: i.node.0.to_vec(),
            addresses: entry.hello.addresses.clone(),
            zone: entry.hello.zone.clone(),
            emitter: i.emitter,
            seed: entry.is_seed(),
            share: i
                .may_ask
                .filter(|s| *s != Stripe::WHOLE)
                .map(|s| rpc::Share {
                    index: s.index,
                    of: s.of,
                    run: s.run,
                }),
            only_serve: i.may_ask.is_none(),
        })
    }

    pub(crate) fn on_need_neighbours(&mut self, from: NodeId, m: &rpc::NeedNeighbours) {
        let Some(content) = ContentKey::from_slice(&m.content) else {
            return;
        };
        let now = self.now;
        let Some(task) = self.tasks.get_mut(&content) else {
            return;
        };
        task.used = now;
        let refill = task.swarm.refill(now, from);
        self.drain(content);
        let mut reply = rpc::Neighbours {
            content: content.0.to_vec(),
            ..Default::default()
        };
        match refill {
            Refill::More(i) => reply.members.extend(self.member(&i)),
            Refill::Exhausted => reply.exhausted = true,
            Refill::TooSoon => return,
        }
        self.send(from, to_node::Message::Neighbours(reply));
    }

    pub(crate) fn on_lost(&mut self, from: NodeId, m: &rpc::LostNode) {
        let Some(content) = ContentKey::from_slice(&m.content) else {
            return;
        };
        let Some(whom) = NodeId::from_slice(&m.node) else {
            return;
        };
        tracing::debug!(%from, %whom, reason = m.reason, banned = m.banned, "lost");
        let dead = self.nodes.get(&whom).is_none_or(|e| e.gone.is_some());
        if dead {
            // Two say so: it has no session, and a neighbour lost it.
            self.node_gone(whom);
            return;
        }
        let Some(task) = self.tasks.get_mut(&content) else {
            return;
        };
        let members = task.swarm.contains(from) && task.swarm.contains(whom);
        if m.banned {
            task.swarm.accuse(from, whom);
        } else {
            task.swarm.disconnected(from, whom);
        }
        self.drain(content);
        if m.banned && members {
            // It may be honest, and its disk not.
            let check = rpc::Check {
                content: content.0.to_vec(),
            };
            self.send(whom, to_node::Message::Check(check));
        }
    }

    fn say(&mut self, content: ContentKey, to: NodeId, said: rpc::Neighbours) {
        let content = content.0.to_vec();
        let said = rpc::Neighbours { content, ..said };
        self.send(to, to_node::Message::Neighbours(said));
    }

    /// Whether [`Self::flush`] is to be called after [`GATHER`](crate::core::GATHER).
    pub(crate) fn is_gathering(&self) -> bool {
        !self.gathering.is_empty()
    }

    /// Tells members what was gathered for them: that nodes which came in the last moments take the
    /// places of others.
    pub fn flush(&mut self, now: Duration) {
        self.now = now;
        for content in std::mem::take(&mut self.gathering) {
            if let Some(task) = self.tasks.get_mut(&content) {
                task.swarm.flush();
                self.drain(content);
            }
        }
    }

    /// Carries out what a swarm decided.
    pub(crate) fn drain(&mut self, content: ContentKey) {
        loop {
            let Some(task) = self.tasks.get_mut(&content) else {
                return;
            };
            let Some(command) = task.swarm.poll() else {
                if task.swarm.has_news() {
                    self.gathering.insert(content);
                }
                return;
            };
            match command {
                Command::Tell { node, news } => {
                    let members = |list: &[Introduction<NodeId>]| {
                        list.iter().filter_map(|i| self.member(i)).collect()
                    };
                    let said = rpc::Neighbours {
                        members: members(&news.connect),
                        expected: members(&news.expect),
                        part: news.part.iter().map(|from| from.0.to_vec()).collect(),
                        ..rpc::Neighbours::default()
                    };
                    self.say(content, node, said);
                }
                Command::Disconnect { a, b } => {
                    let said = rpc::Neighbours {
                        banned: vec![b.0.to_vec()],
                        ..rpc::Neighbours::default()
                    };
                    self.say(content, a, said);
                }
                Command::Grant(lease) => self.grant(content, &lease),
                Command::Revoke(_) | Command::NoSource => {}
            }
        }
    }
}
