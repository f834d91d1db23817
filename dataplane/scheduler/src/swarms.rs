//! The members of each content and their neighbours.

use std::collections::HashSet;
use std::time::Duration;

use dragonfly_proto::geometry::Geometry;
use dragonfly_proto::id::{ContentKey, NodeId, RequestKey};
use dragonfly_proto::rpc::{self, failure::Code, to_node};
use dragonfly_proto::ticket::Ticket;
use dragonfly_proto::trust::{EmitterClaim, EpochCert, MAX_EPOCHS};
use dragonfly_swarm::membership::{Introduction, LeastConnected, MemberInfo, Refused, Swarm};

use crate::core::Core;

/// One content.
pub(crate) struct TaskEntry {
    pub(crate) geometry: Option<Geometry>,
    pub(crate) origin: rpc::OriginInfo,
    /// As a client's node sent it, what may be secret sealed for seeds, while members want the content.
    pub(crate) source: Option<rpc::Source>,
    /// Without secrets.
    pub(crate) url: String,
    /// Of a content that is known by its digest: the request whose source it is read from, and who has
    /// compared the whole with the digest. See [`crate::digests`].
    pub(crate) reads: Option<RequestKey>,
    pub(crate) compared: HashSet<NodeId>,
    pub(crate) swarm: Swarm<NodeId>,
    pub(crate) epochs: Vec<EpochCert>,
    pub(crate) complete: HashSet<NodeId>,
    pub(crate) wanting: HashSet<NodeId>,
    /// Seeds that had the lease and failed.
    pub(crate) unfit: HashSet<NodeId>,
    /// Who waits for the lease-holder to be ready.
    pub(crate) waiting: Vec<(NodeId, u64)>,
    pub(crate) ready: bool,
    /// When the lease-holder was last told, and how often since it last answered.
    pub(crate) told: (Duration, u32),
    /// How often members found no source since the lease was given.
    pub(crate) doubts: u32,
    /// The node that a client brings the content to: there is no origin to go to meanwhile.
    pub(crate) importer: Option<NodeId>,
    pub(crate) used: Duration,
}

impl TaskEntry {
    pub(crate) fn set_complete(&mut self, node: NodeId, complete: bool) {
        if complete && self.swarm.contains(node) {
            self.importer.take_if(|importer| *importer == node);
            self.complete.insert(node);
            self.wanting.remove(&node);
        }
    }

    /// A client's headers are kept only while somebody wants the content.
    pub(crate) fn settle(&mut self) {
        if self.wanting.is_empty() && self.waiting.is_empty() {
            self.source = None;
        }
    }

    /// Whether it keeps what a client may have sent as its credentials.
    pub(crate) const fn keeps_source(&self) -> bool {
        self.source.is_some()
    }

    pub(crate) fn complete_members(&self) -> usize {
        self.complete.len()
    }

    /// Where neither the origin nor a digest tells versions apart, one node alone may read it.
    fn tell_readers(&mut self, source: &rpc::Source) {
        if self.origin.validator.is_empty() && source.digest.is_empty() {
            self.swarm.one_reader();
        }
    }

    pub(crate) fn last_epoch(&self) -> u32 {
        self.epochs.last().map_or(0, |e| e.epoch)
    }

    pub(crate) fn emitter_name(&self, core: &Core) -> String {
        let holder = self
            .swarm
            .leases()
            .first()
            .and_then(|l| core.nodes.get(&l.node));
        holder.map(|e| e.hello.name.clone()).unwrap_or_default()
    }
}

impl Core {
    pub(crate) fn entry(&mut self, content: ContentKey) -> &mut TaskEntry {
        let settings = self.settings.swarm.clone();
        let now = self.now;
        self.tasks.entry(content).or_insert_with(|| TaskEntry {
            geometry: None,
            origin: rpc::OriginInfo::default(),
            source: None,
            url: String::new(),
            reads: None,
            compared: HashSet::new(),
            swarm: Swarm::new(settings, Box::new(LeastConnected), fastrand::u64(..)),
            epochs: Vec::new(),
            complete: HashSet::new(),
            wanting: HashSet::new(),
            unfit: HashSet::new(),
            waiting: Vec::new(),
            ready: false,
            told: (now, 0),
            doubts: 0,
            importer: None,
            used: now,
        })
    }

    /// A node looked at the origin: the content exists, and that node is its first lease-holder.
    pub(crate) fn found(
        &mut self,
        content: ContentKey,
        geometry: Geometry,
        origin: &rpc::OriginInfo,
        (key, source): (&RequestKey, &rpc::Source),
        by: NodeId,
    ) {
        let task = self.entry(content);
        task.geometry.get_or_insert(geometry);
        task.origin = origin.clone();
        task.tell_readers(source);
        task.read_by(key, source);
        task.remember_source(source, Some(key));
        if task.swarm.leases().is_empty() {
            task.unfit.remove(&by);
            self.lease_to(content, by);
        }
    }

    pub(crate) fn member_info(&self, node: NodeId, held: u32) -> Option<MemberInfo> {
        let entry = self.nodes.get(&node)?;
        let load = entry.totals.load.min(1000) as f32 / 1000.0;
        Some(MemberInfo {
            seed: entry.is_seed(),
            zone: entry.zone,
            held,
            load,
        })
    }

    /// Answers a resolve, and joins the node, as soon as there is somebody to get bytes from.
    pub(crate) fn resolved(
        &mut self,
        node: NodeId,
        id: u64,
        content: ContentKey,
        origin: rpc::OriginInfo,
        (key, source): (&RequestKey, &rpc::Source),
    ) {
        let now = self.now;
        let task = self.entry(content);
        task.used = now;
        task.read_by(key, source);
        let news = task.remember_source(source, Some(key));
        if !origin.validator.is_empty() {
            task.origin = origin;
        }
        task.tell_readers(source);
        task.wanting.insert(node);
        if news {
            // Who holds the lease since nobody wanted the content does not know where it comes from.
            self.remind(content);
        }
        self.ensure_lease(content, false);
        let Some(task) = self.tasks.get_mut(&content) else {
            return;
        };
        let leased = !task.swarm.leases().is_empty();
        if leased && !task.ready && !task.swarm.holds_lease(node) {
            task.waiting.push((node, id));
            return;
        }
        self.answer(node, id, content);
    }

    fn answer(&mut self, node: NodeId, id: u64, content: ContentKey) {
        let joined = self.join_member(content, node, 0);
        let Some(task) = self.tasks.get(&content) else {
            return;
        };
        let resolved = rpc::Resolved {
            id,
            failure: joined.failure.clone(),
            content: content.0.to_vec(),
            geometry: task.geometry.as_ref().map(Into::into),
            origin: Some(task.origin.clone()),
            joined: Some(joined),
            resolver: vec![],
        };
        self.send(node, to_node::Message::Resolved(resolved));
    }

    /// Enters a node in a swarm: ticket, certificates, neighbours.
    pub(crate) fn join_member(
        &mut self,
        content: ContentKey,
        node: NodeId,
        held: u32,
    ) -> rpc::Joined {
        let mut joined = rpc::Joined {
            content: content.0.to_vec(),
            ..rpc::Joined::default()
        };
        let now = self.now;
        let Some(info) = self.member_info(node, held) else {
            return joined;
        };
        if !self.may_join(node, &content) {
            let text = "this node takes part in too many contents: have it let go of some";
            joined.failure = Some(rpc::Failure::new(Code::Denied, text));
            return joined;
        }
        let Some(task) = self.tasks.get_mut(&content) else {
            return joined;
        };
        task.used = now;
        let met = match self.enter(content, node, info) {
            Ok(met) => met,
            Err(refused) => {
                joined.failure = Some(rpc::Failure::new(Code::Denied, refused.to_string()));
                return joined;
            }
        };
        let Some(task) = self.tasks.get(&content) else {
            return joined;
        };
        joined.geometry = task.geometry.as_ref().map(Into::into);
        joined.epochs = task.epochs.iter().map(|e| e.encode().to_vec()).collect();
        joined.exhausted = task.swarm.len() <= met.len() + 1;
        joined.members = met.iter().filter_map(|i| self.member(i)).collect();
        joined.ticket = self.ticket(content, node);
        joined.request_key = task.request_key();
        self.drain(content);
        joined
    }

    /// Makes a node a member; every member is counted by this and by [`Self::leave`].
    pub(crate) fn enter(
        &mut self,
        content: ContentKey,
        node: NodeId,
        info: MemberInfo,
    ) -> Result<Vec<Introduction<NodeId>>, Refused> {
        let Some(task) = self.tasks.get_mut(&content) else {
            return Ok(vec![]);
        };
        let new = !task.swarm.contains(node);
        let met = task.swarm.join(node, info)?;
        if let Some(entry) = self.nodes.get_mut(&node).filter(|_| new) {
            entry.tasks += 1;
        }
        Ok(met)
    }

    pub(crate) fn ticket(&self, content: ContentKey, node: NodeId) -> Vec<u8> {
        let expires = self.unix() + self.settings.ticket_ttl.as_secs();
        Ticket::issue(&self.authority, content, node, expires)
            .encode()
            .to_vec()
    }

    pub(crate) fn on_join(&mut self, from: NodeId, m: rpc::Join) {
        let Some(content) = ContentKey::from_slice(&m.content) else {
            return;
        };
        let geometry = m.geometry.as_ref().and_then(|g| Geometry::try_from(g).ok());
        let certs = m
            .epochs
            .iter()
            .take(MAX_EPOCHS)
            .filter_map(|e| EpochCert::decode(e).ok());
        if !self.may_join(from, &content) {
            let joined = rpc::Joined {
                id: m.id,
                ..self.join_member(content, from, m.held)
            };
            return self.send(from, to_node::Message::Joined(joined));
        }
        let authority = [*self.authority.public()];
        // Who is believed gets the lease if nobody has it: only with the key that once had it.
        let emits = EmitterClaim::decode(&m.emitter).is_ok_and(|claim| {
            let EmitterClaim { cert, .. } = claim;
            cert.content == content && cert.is_from(&authority) && claim.check(&from).is_ok()
        });
        let certs: Vec<_> = certs
            .filter(|c| c.content == content && c.is_from(&authority))
            .collect();
        let key = RequestKey::from_slice(&m.request_key);
        let known = self.tasks.get(&content).zip(key.as_ref());
        if known.is_some_and(|(task, key)| task.gives_way_to(key, &m)) {
            let text = "somebody has compared this content: it is begun anew";
            self.fail_task(content, &rpc::Failure::new(Code::Changed, text));
        }
        let task = self.entry(content);
        if let Some(failure) = task.refuses(geometry.as_ref(), key.as_ref(), &m) {
            let joined = rpc::Joined {
                id: m.id,
                content: m.content,
                failure: Some(failure),
                ..rpc::Joined::default()
            };
            self.send(from, to_node::Message::Joined(joined));
            return self.forget_if_void(content);
        }
        task.reads = task.reads.or(key);
        match (task.geometry, geometry) {
            (None, Some(g)) => task.geometry = Some(g),
            (Some(known), Some(g)) if known.total_len().is_none() && g.total_len().is_some() => {
                task.geometry = Some(g);
            }
            _ => {}
        }
        for cert in certs {
            if !task.epochs.iter().any(|e| e.epoch == cert.epoch) {
                task.epochs.push(cert);
                task.epochs.sort_by_key(|e| e.epoch);
            }
        }
        let source = m.source.as_ref();
        let news = source.is_some_and(|s| task.remember_source(s, key.as_ref()));
        let mut joined = self.join_member(content, from, m.held);
        joined.id = m.id;
        let refused = joined.failure.is_some();
        self.send(from, to_node::Message::Joined(joined));
        let Some(task) = self.tasks.get_mut(&content) else {
            return;
        };
        if refused {
            task.settle();
            return self.forget_if_void(content);
        }
        task.set_complete(from, m.complete);
        if m.complete && m.compared {
            task.compared.insert(from);
        }
        if m.wants && !m.complete {
            task.wanting.insert(from);
        } else {
            task.wanting.remove(&from);
        }
        if emits {
            // This scheduler restarted, or lost the word that the holder began: the lease is held.
            task.unfit.remove(&from);
            if task.swarm.leases().is_empty() {
                self.lease_to(content, from);
            }
            self.lease_began(content);
        } else if task.swarm.holds_lease(from) {
            // It does not know of it, or no more.
            self.remind(content);
        }
        if m.wants {
            if news {
                self.remind(content);
            }
            self.prefer_resolver(content, &m.resolver);
            self.ensure_lease(content, false);
        }
        if let Some(task) = self.tasks.get_mut(&content) {
            task.settle();
        }
    }

    pub(crate) fn on_leave(&mut self, from: NodeId, m: &rpc::Leave) {
        let Some(content) = ContentKey::from_slice(&m.content) else {
            return;
        };
        self.leave(content, from);
        let task = self.tasks.get_mut(&content).filter(|_| m.damaged);
        if task.is_some_and(|task| task.swarm.pardon(from)) {
            tracing::info!(node = %from, content = %content.short(),
                "what it held was damaged; it may take part again");
        }
    }

    pub(crate) fn leave(&mut self, content: ContentKey, node: NodeId) {
        if let Some(task) = self.tasks.get_mut(&content) {
            // First of all: nobody gets the lease for the sake of who goes.
            task.wanting.remove(&node);
            task.waiting.retain(|(n, _)| *n != node);
        }
        let Some(task) = self.tasks.get(&content) else {
            return;
        };
        let held_lease = task.swarm.holds_lease(node);
        if held_lease {
            // Seeds go before peers, and a seed that is no member yet is still a seed.
            let next = self.home_seed(&content.0, |id| *id != node && !task.unfit.contains(id));
            if let Some(info) = next.and_then(|n| self.member_info(n, 0))
                && let Some(next) = next
                && !task.wanting.is_empty()
            {
                let _ = self.enter(content, next, info);
            }
        }
        let Some(task) = self.tasks.get_mut(&content) else {
            return;
        };
        if held_lease {
            task.ready = false;
        }
        if task.swarm.contains(node) {
            task.swarm.leave(node);
            if let Some(entry) = self.nodes.get_mut(&node) {
                entry.tasks = entry.tasks.saturating_sub(1);
            }
        }
        task.complete.remove(&node);
        task.compared.remove(&node);
        task.importer.take_if(|importer| *importer == node);
        task.settle();
        self.drain(content);
        self.forget_if_void(content);
        if held_lease {
            self.ensure_lease(content, false);
            let Some(task) = self.tasks.get(&content) else {
                return;
            };
            if task.swarm.leases().is_empty() {
                // Nobody may go to the origin now: who waits for that joins, and calls for a source
                // when the members have not all of it.
                self.answer_waiting(content);
            }
        }
    }

    /// Of a content that nobody has or wants and that nobody ever signed there is nothing to keep: a
    /// node that joins and leaves makes no entries pile up.
    fn forget_if_void(&mut self, content: ContentKey) {
        let void = |t: &TaskEntry| {
            t.swarm.is_empty()
                && t.epochs.is_empty()
                && t.wanting.is_empty()
                && t.waiting.is_empty()
        };
        if self.tasks.get(&content).is_some_and(void) {
            self.tasks.remove(&content);
        }
    }

    pub(crate) fn answer_waiting(&mut self, content: ContentKey) {
        let Some(task) = self.tasks.get_mut(&content) else {
            return;
        };
        let waiting = std::mem::take(&mut task.waiting);
        waiting
            .into_iter()
            .for_each(|(node, id)| self.answer(node, id, content));
    }

    /// A node is dead: its tasks go on without it, its leases go to others.
    pub(crate) fn node_gone(&mut self, node: NodeId) {
        let its: Vec<_> = self
            .tasks
            .iter()
            .filter(|(_, t)| {
                t.swarm.contains(node)
                    || t.complete.contains(&node)
                    || t.wanting.contains(&node)
                    || t.waiting.iter().any(|w| w.0 == node)
            })
            .map(|(key, _)| *key)
            .collect();
        its.into_iter()
            .for_each(|content| self.leave(content, node));
    }
}

impl TaskEntry {
    /// Keeps the source, as a client gave it, while somebody wants the content; whether none was kept. `key`
    /// is of the request that it is the source of, where that is known.
    pub(crate) fn remember_source(
        &mut self,
        source: &rpc::Source,
        key: Option<&RequestKey>,
    ) -> bool {
        let elsewhere = self.reads.as_ref().zip(key).is_some_and(|(r, k)| r != k);
        if source.url.is_empty() || elsewhere && source.shared().is_some() {
            return false;
        }
        self.url = source.public_url();
        self.source.replace(source.clone()).is_none()
    }
}
