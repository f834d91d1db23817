//! Other nodes: who they are, where, and who is not spoken to.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dragonfly_proto::id::NodeId;
use dragonfly_proto::rpc::{self, from_node};

use crate::links::ConnState;
use crate::node::Node;
use crate::task::{Task, lock};

/// A node that misbehaved is not spoken to for this long.
const BAN: Duration = Duration::from_secs(600);
/// Bans remembered.
const MAX_BANS: usize = 1024;
/// Members of a task remembered, for when no scheduler can be asked.
const MAX_MEMBERS: usize = 64;

impl Node {
    pub(crate) fn ban(&self, node: NodeId, why: &str) {
        tracing::warn!(%node, why, "banned");
        self.metrics.bans.inc();
        let mut bans = lock(&self.bans);
        let now = Instant::now();
        if bans.len() >= MAX_BANS {
            bans.retain(|_, until| *until > now);
        }
        if bans.len() < MAX_BANS {
            bans.insert(node, now + BAN);
        }
    }

    pub(crate) fn is_banned(&self, node: &NodeId) -> bool {
        lock(&self.bans)
            .get(node)
            .is_some_and(|until| *until > Instant::now())
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
