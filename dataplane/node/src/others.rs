//! Other nodes: who they are, where, and who is not spoken to.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dragonfly_proto::id::NodeId;
use dragonfly_proto::rpc::{self, from_node};

use crate::links::ConnState;
use crate::node::Node;
use crate::task::{Task, lock};

/// A node that misbehaved is not spoken to for this long: an honest one whose disk was damaged has found out
/// by then.
const BAN: Duration = Duration::from_secs(10);
/// Twice as long each time that it does it again, up to this.
const LONGEST_BAN: Duration = Duration::from_secs(600);
/// One that kept the rules for this long since begins anew.
const BAN_FORGOTTEN: Duration = Duration::from_secs(3600);
/// Bans remembered.
const MAX_BANS: usize = 1024;
/// Members of a task remembered, for when no scheduler can be asked.
const MAX_MEMBERS: usize = 64;

/// Who is not spoken to, and for how long.
#[derive(Debug, Default)]
pub(crate) struct Bans(HashMap<NodeId, Ban>);

#[derive(Debug, Clone, Copy)]
struct Ban {
    until: Instant,
    length: Duration,
}

impl Bans {
    /// For how long a node that misbehaved now is not spoken to; nothing when that was known.
    fn add(&mut self, node: NodeId, now: Instant) -> Option<Duration> {
        if self.holds(&node, now) {
            return None;
        }
        if self.0.len() >= MAX_BANS {
            self.0.retain(|_, ban| ban.until > now);
        }
        let before = self.0.get(&node).copied();
        let lately = before.filter(|ban| now < ban.until + BAN_FORGOTTEN);
        let length = lately.map_or(BAN, |ban| (ban.length * 2).min(LONGEST_BAN));
        if before.is_some() || self.0.len() < MAX_BANS {
            let until = now + length;
            self.0.insert(node, Ban { until, length });
        }
        Some(length)
    }

    fn holds(&self, node: &NodeId, now: Instant) -> bool {
        self.0.get(node).is_some_and(|ban| ban.until > now)
    }
}

impl Node {
    pub(crate) fn ban(&self, node: NodeId, why: &str) {
        if let Some(length) = lock(&self.bans).add(node, Instant::now()) {
            tracing::warn!(%node, why, ?length, "banned");
            self.metrics.bans.inc();
        }
    }

    pub(crate) fn is_banned(&self, node: &NodeId) -> bool {
        lock(&self.bans).holds(node, Instant::now())
    }

    /// Keeps members for when no scheduler can be asked.
    pub(crate) fn remember_members(&self, task: &Arc<Task>, members: Vec<rpc::Member>) {
        {
            let mut state = task.state();
            for m in members.iter().filter(|m| m.seed) {
                if let Some(id) = NodeId::from_slice(&m.node)
                    && !state.seeds.contains(&id)
                    && state.seeds.len() < MAX_MEMBERS
                {
                    state.seeds.push(id);
                }
            }
        }
        let mut all = lock(&self.members);
        let mut known = all.remove(&task.key()).unwrap_or_default();
        for m in members {
            known.retain(|k| k.node != m.node);
            known.push(m);
        }
        let over = known.len().saturating_sub(MAX_MEMBERS);
        known.drain(..over);
        all.put(task.key(), known);
    }

    pub(crate) fn members_of(&self, task: &Task) -> Vec<rpc::Member> {
        let all = lock(&self.members);
        all.get(&task.key()).cloned().unwrap_or_default()
    }

    /// Those of these members that are other nodes and may be spoken to.
    pub(crate) fn others<'a>(
        &'a self,
        members: &'a [rpc::Member],
    ) -> impl Iterator<Item = (NodeId, &'a rpc::Member)> {
        let known = members
            .iter()
            .filter_map(|m| Some((NodeId::from_slice(&m.node)?, m)));
        known.filter(|(id, _)| *id != self.identity.node && !self.is_banned(id))
    }

    /// Opens a stream for the task with each of these nodes, dialling where there is no connection.
    pub(crate) fn connect_members(self: &Arc<Self>, task: &Arc<Task>, members: &[rpc::Member]) {
        for (id, member) in self.others(members) {
            let addrs: Vec<SocketAddr> = member
                .addresses
                .iter()
                .take(8)
                .filter_map(|a| a.parse().ok())
                .collect();
            let (node, task) = (self.clone(), task.clone());
            self.threads.spawn(async move {
                let Some(mesh) = node.mesh() else { return };
                match mesh.connect(id, &addrs).await {
                    Ok(conn) => {
                        if let Some(links) = conn.state::<ConnState>() {
                            node.say_hello(&conn, links, &task);
                        }
                    }
                    Err(error) => {
                        tracing::debug!(task = %task.key().short(), %error, "no connection");
                        node.lost(&task, id, &error.to_string(), false);
                    }
                }
            });
        }
    }

    /// A holder of the lease waits no longer for what this node holds.
    pub(crate) fn tells_nothing(&self, task: &Arc<Task>, node: NodeId) {
        let ((), effects) = task.drive(|s, now| s.hear(now, Some(node)));
        self.apply(task, effects);
        task.notify_emission();
    }

    /// Tells a task's scheduler that a node cannot be reached, or broke the rules.
    pub(crate) fn lost(&self, task: &Arc<Task>, node: NodeId, reason: &str, banned: bool) {
        self.tells_nothing(task, node);
        let lost = rpc::LostNode {
            content: task.key().0.to_vec(),
            node: node.0.to_vec(),
            reason: reason.to_owned(),
            banned,
        };
        self.sessions
            .tell(&task.key(), from_node::Message::LostNode(lost));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bans_grow_with_every_time_and_begin_anew_after_an_hour() {
        let (mut bans, node, now) = (Bans::default(), NodeId([1; 16]), Instant::now());
        assert_eq!(bans.add(node, now), Some(BAN));
        assert_eq!(bans.add(node, now + BAN / 2), None, "it is banned");
        assert!(bans.holds(&node, now + BAN / 2) && !bans.holds(&node, now + BAN));
        let mut at = now + BAN;
        for times in 1..20 {
            let length = bans.add(node, at).unwrap();
            assert_eq!(length, (BAN * 2_u32.pow(times.min(10))).min(LONGEST_BAN));
            at += length;
        }
        assert_eq!(bans.add(node, at + BAN_FORGOTTEN), Some(BAN));
    }

    #[test]
    fn of_more_nodes_than_can_be_remembered_those_are_that_are_banned() {
        let (mut bans, now) = (Bans::default(), Instant::now());
        let node = |n: u32| {
            let mut id = [0; 16];
            id[..4].copy_from_slice(&n.to_le_bytes());
            NodeId(id)
        };
        for n in 0..MAX_BANS as u32 + 5 {
            assert_eq!(bans.add(node(n), now), Some(BAN));
        }
        assert_eq!(bans.0.len(), MAX_BANS);
        assert_eq!(bans.add(node(5000), now + BAN), Some(BAN));
        assert_eq!(bans.0.len(), 1);
    }
}
