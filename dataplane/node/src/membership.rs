//! What schedulers say to this node, and what it says to them of its tasks.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use dragonfly_proto::id::{ContentKey, NodeId};
use dragonfly_proto::rpc::{self, FromNode, failure::Code, from_node, to_node};
use dragonfly_proto::ticket::Ticket;
use dragonfly_proto::trust::EpochCert;
use dragonfly_swarm::engine::Stripe;
use tokio::sync::mpsc;

use crate::meta::Meta;
use crate::node::{Node, Role};
use crate::task::{Task, Told, lock};

/// Neighbours of other zones remembered; a gateway has a handful.
const MAX_TOLD: usize = 1024;

/// Tasks for which neighbours are kept until they are open, and messages of each.
const MAX_EARLY: usize = 64;

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
            to_node::Message::Retire(_) => {
                tracing::info!("the mesh was deleted");
                self.retired.store(true, Ordering::Relaxed);
            }
            to_node::Message::Policy(policy) => {
                self.retired.store(false, Ordering::Relaxed);
                self.policies.send_replace(Some(policy));
            }
            to_node::Message::Joined(joined) => self.on_joined(&joined),
            to_node::Message::Neighbours(n) => {
                let Some(content) = ContentKey::from_slice(&n.content) else {
                    return;
                };
                let mut early = lock(&self.early);
                match self
                    .find(&content)
                    .filter(|task| task.state().ticket.is_some())
                {
                    Some(task) => {
                        drop(early);
                        self.on_neighbours(&task, &n);
                    }
                    // The answer that opens the task was sent before this and is being read.
                    None => {
                        if early.len() >= MAX_EARLY && !early.contains_key(&content) {
                            early.clear();
                        }
                        let waiting = early.entry(content).or_default();
                        if waiting.len() < MAX_EARLY {
                            waiting.push(n);
                        }
                    }
                }
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
            to_node::Message::ShowSource(ask) => {
                if let Some(task) = self.task_of(&ask.content) {
                    self.show_source(&task);
                }
            }
            to_node::Message::Check(check) => {
                if let Some(content) = ContentKey::from_slice(&check.content) {
                    self.check_held(content);
                }
            }
            to_node::Message::Warm(warm) => self.on_warm(from, warm),
            to_node::Message::Tend(tend) => {
                tokio::spawn(self.clone().on_tend(from, tend));
            }
            to_node::Message::StopWarming(stop) => self.on_stop_warming(&stop.job),
            to_node::Message::Resolved(late) => self.on_late_answer(&late),
            to_node::Message::Welcome(_) => {}
        }
    }

    fn on_neighbours(self: &Arc<Self>, task: &Arc<Task>, n: &rpc::Neighbours) {
        if n.exhausted {
            let ((), effects) = task.drive(|s, _| s.engine.neighbours_exhausted());
            self.apply(task, effects);
        }
        self.part(task, n);
        self.remember_members(task, n.members.clone());
        self.heed(task, n.members.iter().chain(&n.expected));
        self.connect_members(task, &n.members);
    }

    /// Takes note of what may be asked of neighbours, those that are connected already too.
    fn heed<'a>(
        self: &Arc<Self>,
        task: &Arc<Task>,
        members: impl IntoIterator<Item = &'a rpc::Member>,
    ) {
        let ((), effects) = task.drive(|s, now| {
            for m in members {
                let Some(id) = NodeId::from_slice(&m.node) else {
                    continue;
                };
                let share = m.share.as_ref().map_or(Stripe::WHOLE, |share| Stripe {
                    index: share.index,
                    of: share.of,
                    run: share.run,
                });
                let told = Told {
                    emitter: m.emitter,
                    may_ask: (!m.only_serve).then_some(share),
                };
                // Of neighbours in this node's own zone their HELLO says enough.
                if m.zone != self.identity.zone {
                    if s.told.len() >= MAX_TOLD {
                        s.told.clear();
                    }
                    s.told.insert(id, told);
                }
                let links = s.links.iter().filter(|(_, l)| l.conn.peer() == id);
                for neighbour in links.map(|(n, _)| *n).collect::<Vec<_>>() {
                    s.engine.keep(now, neighbour);
                    s.engine.set_may_ask(now, neighbour, told.may_ask);
                    if m.zone != self.identity.zone {
                        s.engine.set_emitter(now, neighbour, told.emitter);
                    }
                }
            }
        });
        self.apply(task, effects);
    }

    /// Lets go of neighbours: at their leisure of those whose place another took, at once of the
    /// banned.
    fn part(self: &Arc<Self>, task: &Arc<Task>, n: &rpc::Neighbours) {
        let of = |list: &[Vec<u8>]| -> Vec<NodeId> {
            list.iter()
                .filter_map(|id| NodeId::from_slice(id))
                .collect()
        };
        let (part, banned) = (of(&n.part), of(&n.banned));
        if part.is_empty() && banned.is_empty() {
            return;
        }
        let (gone, effects) = task.drive(|s, now| {
            let mut gone = vec![];
            for (neighbour, link) in &s.links {
                if part.contains(&link.conn.peer()) {
                    s.engine.part(now, *neighbour);
                } else if banned.contains(&link.conn.peer()) {
                    gone.push(link.conn.clone());
                }
            }
            gone
        });
        self.apply(task, effects);
        gone.iter().for_each(|conn| self.close_stream(task, conn));
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
            match failure.code() {
                // The others have it cut in another way: it is begun anew in theirs.
                Code::Changed if !task.is_complete() => task.fail(failure.clone()),
                Code::Digest => self.parted(&task),
                _ => {}
            }
            return;
        }
        // Before anything is dialled: what may be asked of whom.
        self.heed(&task, &joined.members);
        {
            let mut state = task.state();
            state.ticket = ticket.or(state.ticket);
            state.joined = true;
        }
        self.note_reads(&task, &joined.request_key);
        self.take_epochs(&task, &joined.epochs);
        self.remember_members(&task, joined.members.clone());
        self.connect_members(&task, &joined.members);
        if joined.exhausted {
            let ((), effects) = task.drive(|s, _| s.engine.neighbours_exhausted());
            self.apply(&task, effects);
        }
        self.hear_early(&task);
    }

    /// Takes what a scheduler said before the task was open here.
    pub(crate) fn hear_early(self: &Arc<Self>, task: &Arc<Task>) {
        let early = lock(&self.early).remove(&task.key()).unwrap_or_default();
        early.iter().for_each(|n| self.on_neighbours(task, n));
    }

    /// What this node says of a task when it joins, first or again. `source`: what a client shows that
    /// is about to want it; else what those show that do.
    pub(crate) fn join_message(&self, task: &Arc<Task>, source: Option<rpc::Source>) -> rpc::Join {
        let epochs: Vec<_> = task
            .verifier()
            .epochs()
            .map(|e| e.encode().to_vec())
            .collect();
        let lease = task.state().lease.clone();
        let claim = lease.and_then(|signer| self.claim(task, &signer));
        let meta = task.meta();
        let (request_key, compared) = (meta.reads(&task.key()), meta.compared(&task.store));
        let state = task.state();
        rpc::Join {
            id: 0,
            content: task.key().0.to_vec(),
            geometry: Some((&state.geometry).into()),
            source: source.or_else(|| task.wanted_source(&state)),
            held: task.store.held_count(),
            complete: task.store.is_complete(),
            wants: !state.wants.is_empty(),
            epochs,
            emitter: claim.map_or_else(Vec::new, |c| c.encode().to_vec()),
            neighbours: state
                .links
                .values()
                .map(|l| l.conn.peer().0.to_vec())
                .collect(),
            resolver: vec![],
            request_key,
            compared,
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
            if out.send(self.sessions.message(join)).await.is_err() {
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
            let message = self.sessions.message(from_node::Message::Join(join));
            if out.send(message).await.is_err() {
                return;
            }
        }
    }

    /// What this node says of a task that is on disk and not in use, if it can be offered.
    fn offer(&self, held: &dragonfly_storage::Snapshot) -> Option<rpc::Join> {
        let kept = self.store.peek_meta(&held.key).ok().flatten()?;
        let meta: Meta = serde_json::from_slice(&kept).ok()?;
        let g = held.geometry;
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
            request_key: meta.reads(&held.key),
            compared: held.verified.as_ref() == Some(&meta.digest),
            ..rpc::Join::default()
        })
    }
}
