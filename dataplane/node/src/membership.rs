//! What schedulers say to this node, and what it says to them of its tasks.

use std::sync::Arc;

use dragonfly_proto::geometry::Geometry;
use dragonfly_proto::id::ContentKey;
use dragonfly_proto::rpc::{self, FromNode, from_node, to_node};
use dragonfly_proto::ticket::Ticket;
use dragonfly_proto::trust::EpochCert;
use tokio::sync::mpsc;

use crate::node::{Node, Role};
use crate::task::{Meta, Task, lock};

impl Node {
    pub(crate) fn hello(&self) -> rpc::NodeHello {
        let id = &self.identity;
        let role = match id.role {
            Role::Seed => rpc::Role::Seed,
            Role::Peer => rpc::Role::Peer,
        };
        rpc::NodeHello {
            node: id.node.0.to_vec(),
            role: role.into(),
            name: id.name.clone(),
            zone: id.zone.clone(),
            addresses: id.addresses.iter().map(ToString::to_string).collect(),
            signing_key: self.signing.public().to_vec(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            policy: Some(lock(&self.policy).clone()),
        }
    }

    pub(crate) fn on_scheduler(self: &Arc<Self>, from: String, message: to_node::Message) {
        match message {
            to_node::Message::Policy(policy) => {
                self.policies.send_replace(Some(policy));
            }
            to_node::Message::Joined(joined) => self.on_joined(&joined),
            to_node::Message::Neighbours(n) => {
                let Some(task) = self.task_of(&n.content) else {
                    return;
                };
                if n.exhausted {
                    let ((), effects) = task.drive(|s, _| s.engine.neighbours_exhausted());
                    self.apply(&task, effects);
                }
                self.remember_members(&task, n.members.clone());
                self.connect_members(&task, &n.members);
            }
            to_node::Message::Epochs(e) => {
                let Some(task) = self.task_of(&e.content) else {
                    return;
                };
                self.take_epochs(&task, &e.epochs);
                if let Some(failure) = e.failure {
                    task.fail(failure);
                }
            }
            to_node::Message::ResolveAt(ask) => {
                tokio::spawn(self.clone().resolve_at(from, ask));
            }
            to_node::Message::Lease(lease) => {
                tokio::spawn(self.clone().hold_lease(from, lease));
            }
            to_node::Message::Welcome(_) | to_node::Message::Resolved(_) => {}
        }
    }

    fn task_of(&self, content: &[u8]) -> Option<Arc<Task>> {
        self.find(&ContentKey::from_slice(content)?)
    }

    pub(crate) fn take_epochs(&self, task: &Arc<Task>, epochs: &[Vec<u8>]) {
        for cert in epochs.iter().filter_map(|e| EpochCert::decode(e).ok()) {
            if let Err(error) = task.add_epoch(&cert) {
                tracing::warn!(task = %task.key().short(), %error, "from a scheduler");
            }
        }
    }

    /// Takes ticket, certificates and neighbours of a task.
    pub(crate) fn on_joined(self: &Arc<Self>, joined: &rpc::Joined) {
        let Some(content) = ContentKey::from_slice(&joined.content) else {
            return;
        };
        let ticket = Ticket::decode(&joined.ticket).ok();
        if let Some(ticket) = ticket {
            self.keep_ticket(ticket);
        }
        let Some(task) = self.find(&content) else {
            return;
        };
        if let Some(failure) = &joined.failure {
            tracing::debug!(task = %content.short(), failure.message, "not joined");
            return;
        }
        {
            let mut state = task.state();
            state.ticket = ticket.or(state.ticket);
            state.joined = true;
        }
        self.take_epochs(&task, &joined.epochs);
        self.remember_members(&task, joined.members.clone());
        self.connect_members(&task, &joined.members);
        if joined.exhausted {
            let ((), effects) = task.drive(|s, _| s.engine.neighbours_exhausted());
            self.apply(&task, effects);
        }
    }

    /// What this node says of a task when it joins, first or again.
    pub(crate) fn join_message(&self, task: &Arc<Task>, source: Option<rpc::Source>) -> rpc::Join {
        let epochs: Vec<_> = task
            .verifier()
            .epochs()
            .map(|e| e.encode().to_vec())
            .collect();
        let state = task.state();
        rpc::Join {
            id: 0,
            content: task.key().0.to_vec(),
            geometry: Some((&state.geometry).into()),
            source: source
                .or_else(|| lock(&task.source).clone())
                .filter(|_| !state.wants.is_empty() || state.lease.is_some()),
            held: task.store.held_count(),
            complete: task.store.is_complete(),
            wants: !state.wants.is_empty(),
            epochs,
            emitter: state.lease.is_some(),
            neighbours: state
                .links
                .values()
                .map(|l| l.conn.peer().0.to_vec())
                .collect(),
            resolver: vec![],
        }
    }

    /// Tells a replica what this node holds and takes part in: its tables are rebuilt from that.
    pub(crate) async fn rejoin(self: Arc<Self>, scheduler: String, out: mpsc::Sender<FromNode>) {
        let mine = |key: &ContentKey| self.sessions.owner(&key.0).as_deref() == Some(&*scheduler);
        let active = self.tasks();
        for task in active.iter().filter(|t| mine(&t.key())) {
            if task.is_unproven() {
                self.ask_to_sign(&task.key(), &task.meta(), &task.geometry());
                continue;
            }
            let join = from_node::Message::Join(self.join_message(task, None));
            if out
                .send(FromNode {
                    message: Some(join),
                })
                .await
                .is_err()
            {
                return;
            }
        }
        for held in self.store.list() {
            let known = active.iter().any(|t| t.key() == held.key);
            if known || held.held_blocks == 0 || !mine(&held.key) {
                continue;
            }
            let Some(join) = self.offer(&held) else {
                continue;
            };
            let message = Some(from_node::Message::Join(join));
            if out.send(FromNode { message }).await.is_err() {
                return;
            }
        }
    }

    /// What this node says of a task that is on disk and not in use, if it can be offered.
    fn offer(&self, held: &dragonfly_storage::Snapshot) -> Option<rpc::Join> {
        let kept = self.store.peek_meta(&held.key).ok().flatten()?;
        let meta: Meta = serde_json::from_slice(&kept).ok()?;
        let g = Geometry::new(held.geometry.block_size, held.geometry.total_len).ok()?;
        if meta.unproven {
            self.ask_to_sign(&held.key, &meta, &g);
            return None;
        }
        Some(rpc::Join {
            content: held.key.0.to_vec(),
            geometry: Some((&g).into()),
            held: held.held_blocks,
            complete: held.complete,
            epochs: meta.epoch_bytes(),
            ..rpc::Join::default()
        })
    }
}
