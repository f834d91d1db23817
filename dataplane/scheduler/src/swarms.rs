//! The members of each content, their neighbours, and who holds the lease on its origin.

use std::collections::HashSet;
use std::time::Duration;

use dragonfly_proto::geometry::Geometry;
use dragonfly_proto::id::{ContentKey, NodeId};
use dragonfly_proto::rpc::{self, failure::Code, to_node};
use dragonfly_proto::ticket::Ticket;
use dragonfly_proto::trust::{EpochCert, MAX_EPOCHS};
use dragonfly_swarm::membership::{
    Command, Introduction, Lease, LeastConnected, MemberInfo, Refill, Swarm, rendezvous,
};

use crate::core::Core;

/// Seconds since 1970 at 2026-01-01: epochs count from there, so that a scheduler that forgot all
/// never gives a number twice.
const EPOCH_ZERO: u64 = 1_767_225_600;

/// One content.
pub(crate) struct TaskEntry {
    pub(crate) geometry: Option<Geometry>,
    pub(crate) origin: rpc::OriginInfo,
    /// As a client gave it, headers included, while members want the content.
    source: Option<rpc::Source>,
    /// Without secrets.
    pub(crate) url: String,
    pub(crate) swarm: Swarm<NodeId>,
    epochs: Vec<EpochCert>,
    complete: HashSet<NodeId>,
    wanting: HashSet<NodeId>,
    /// Seeds that had the lease and failed.
    unfit: HashSet<NodeId>,
    /// Who waits for the lease-holder to be ready.
    waiting: Vec<(NodeId, u64)>,
    ready: bool,
    /// The node that a client brings the content to: there is no origin to go to meanwhile.
    pub(crate) importer: Option<NodeId>,
    pub(crate) used: Duration,
}

impl TaskEntry {
    pub(crate) fn set_complete(&mut self, node: NodeId, complete: bool) {
        if complete {
            self.importer.take_if(|importer| *importer == node);
            self.complete.insert(node);
            self.wanting.remove(&node);
        }
    }

    pub(crate) fn complete_members(&self) -> usize {
        self.complete.len()
    }

    pub(crate) fn last_epoch(&self) -> u32 {
        self.epochs.last().map_or(0, |e| e.epoch)
    }

    pub(crate) fn emitter_name(&self, core: &Core) -> String {
        let holder = self.swarm.leases().first().and_then(|l| core.nodes.get(&l.node));
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
            swarm: Swarm::new(settings, Box::new(LeastConnected), fastrand::u64(..)),
            epochs: Vec::new(),
            complete: HashSet::new(),
            wanting: HashSet::new(),
            unfit: HashSet::new(),
            waiting: Vec::new(),
            ready: false,
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
        source: &rpc::Source,
        by: NodeId,
    ) {
        let task = self.entry(content);
        task.geometry.get_or_insert(geometry);
        task.origin = origin.clone();
        task.remember_source(source);
        if task.swarm.leases().is_empty() {
            task.unfit.remove(&by);
            self.lease_to(content, by);
        }
    }

    /// Makes a node a member and gives it the lease.
    fn lease_to(&mut self, content: ContentKey, node: NodeId) {
        let Some(info) = self.member_info(node, 0) else { return };
        let Some(task) = self.tasks.get_mut(&content) else { return };
        // Refused only when banned: then there is no lease, and members are told so.
        let _ = task.swarm.join(node, info);
        if info.seed {
            task.swarm.assign_leases();
        } else {
            task.swarm.request_lease(node);
        }
        self.drain(content);
    }

    fn member_info(&self, node: NodeId, held: u32) -> Option<MemberInfo> {
        let entry = self.nodes.get(&node)?;
        let load = entry.totals.load.min(1000) as f32 / 1000.0;
        Some(MemberInfo { seed: entry.is_seed(), zone: entry.zone, held, load })
    }

    /// Answers a resolve, and joins the node, as soon as there is somebody to get bytes from.
    pub(crate) fn resolved(
        &mut self,
        node: NodeId,
        id: u64,
        content: ContentKey,
        origin: rpc::OriginInfo,
        source: &rpc::Source,
    ) {
        let task = self.entry(content);
        task.used = task.used.max(Duration::ZERO);
        task.remember_source(source);
        if !origin.validator.is_empty() {
            task.origin = origin;
        }
        task.wanting.insert(node);
        self.ensure_lease(content);
        let Some(task) = self.tasks.get_mut(&content) else { return };
        let leased = !task.swarm.leases().is_empty();
        if leased && !task.ready && !task.swarm.holds_lease(node) {
            task.waiting.push((node, id));
            return;
        }
        self.answer(node, id, content);
    }

    fn answer(&mut self, node: NodeId, id: u64, content: ContentKey) {
        let joined = self.join_member(content, node, 0);
        let Some(task) = self.tasks.get(&content) else { return };
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
    pub(crate) fn join_member(&mut self, content: ContentKey, node: NodeId, held: u32) -> rpc::Joined {
        let mut joined = rpc::Joined { content: content.0.to_vec(), ..rpc::Joined::default() };
        let now = self.now;
        let Some(info) = self.member_info(node, held) else { return joined };
        let Some(task) = self.tasks.get_mut(&content) else { return joined };
        task.used = now;
        let met = match task.swarm.join(node, info) {
            Ok(met) => met,
            Err(refused) => {
                joined.failure = Some(rpc::Failure::new(Code::Denied, refused.to_string()));
                return joined;
            }
        };
        joined.geometry = task.geometry.as_ref().map(Into::into);
        joined.epochs = task.epochs.iter().map(|e| e.encode().to_vec()).collect();
        joined.exhausted = task.swarm.len() <= met.len() + 1;
        joined.members = met.iter().filter_map(|i| self.member(i)).collect();
        joined.ticket = self.ticket(content, node);
        self.drain(content);
        joined
    }

    fn ticket(&self, content: ContentKey, node: NodeId) -> Vec<u8> {
        let expires = self.unix() + self.settings.ticket_ttl.as_secs();
        Ticket::issue(&self.authority, content, node, expires).encode().to_vec()
    }

    fn member(&self, i: &Introduction<NodeId>) -> Option<rpc::Member> {
        let entry = self.nodes.get(&i.node)?;
        Some(rpc::Member {
            node: i.node.0.to_vec(),
            addresses: entry.hello.addresses.clone(),
            zone: entry.hello.zone.clone(),
            emitter: i.emitter,
            seed: entry.is_seed(),
        })
    }

    pub(crate) fn on_join(&mut self, from: NodeId, m: rpc::Join) {
        let Some(content) = ContentKey::from_slice(&m.content) else { return };
        let geometry = m.geometry.as_ref().and_then(|g| Geometry::try_from(g).ok());
        let certs = m.epochs.iter().take(MAX_EPOCHS).filter_map(|e| EpochCert::decode(e).ok());
        let authority = [*self.authority.public()];
        let certs: Vec<_> =
            certs.filter(|c| c.content == content && c.is_from(&authority)).collect();
        let task = self.entry(content);
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
        if let Some(source) = &m.source {
            task.remember_source(source);
        }
        task.set_complete(from, m.complete);
        if m.wants {
            task.wanting.insert(from);
        }
        if m.emitter {
            // This scheduler restarted: the lease is still held.
            task.ready = true;
            task.unfit.remove(&from);
            if task.swarm.leases().is_empty() {
                self.lease_to(content, from);
            }
        }
        let mut joined = self.join_member(content, from, m.held);
        joined.id = m.id;
        self.send(from, to_node::Message::Joined(joined));
        if m.wants {
            self.prefer_resolver(content, &m.resolver);
            self.ensure_lease(content);
        }
    }

    /// The node that looked at the origin for another replica has its answer open: the first lease is
    /// best with it.
    fn prefer_resolver(&mut self, content: ContentKey, resolver: &[u8]) {
        let Some(by) = NodeId::from_slice(resolver) else { return };
        let Some(task) = self.tasks.get(&content) else { return };
        let free = task.swarm.leases().is_empty() && task.complete.is_empty();
        let fit = !task.unfit.contains(&by) && task.geometry.is_some();
        let may = self.nodes.get(&by).is_some_and(|e| {
            e.gone.is_none() && (e.is_seed() || self.settings.swarm.peers_may_fetch)
        });
        if free && fit && may && !self.recovering() {
            self.lease_to(content, by);
        }
    }

    pub(crate) fn on_leave(&mut self, from: NodeId, m: &rpc::Leave) {
        let Some(content) = ContentKey::from_slice(&m.content) else { return };
        self.leave(content, from);
    }

    fn leave(&mut self, content: ContentKey, node: NodeId) {
        let Some(task) = self.tasks.get_mut(&content) else { return };
        let held_lease = task.swarm.holds_lease(node);
        task.swarm.leave(node);
        task.complete.remove(&node);
        task.importer.take_if(|importer| *importer == node);
        task.wanting.remove(&node);
        task.waiting.retain(|(n, _)| *n != node);
        if held_lease {
            task.ready = false;
        }
        self.drain(content);
        if held_lease {
            self.ensure_lease(content);
        }
    }

    /// A node is dead: its tasks go on without it, its leases go to others.
    pub(crate) fn node_gone(&mut self, node: NodeId) {
        let its: Vec<_> = self
            .tasks
            .iter()
            .filter(|(_, t)| t.complete.contains(&node) || t.swarm.contains(node))
            .map(|(key, _)| *key)
            .collect();
        its.into_iter().for_each(|content| self.leave(content, node));
    }

    pub(crate) fn on_need_neighbours(&mut self, from: NodeId, m: &rpc::NeedNeighbours) {
        let Some(content) = ContentKey::from_slice(&m.content) else { return };
        let now = self.now;
        let Some(task) = self.tasks.get_mut(&content) else { return };
        task.used = now;
        let refill = task.swarm.refill(now, from);
        self.drain(content);
        let mut reply = rpc::Neighbours { content: content.0.to_vec(), ..Default::default() };
        match refill {
            Refill::More(i) => reply.members.extend(self.member(&i)),
            Refill::Exhausted => reply.exhausted = true,
            Refill::TooSoon => return,
        }
        self.send(from, to_node::Message::Neighbours(reply));
    }

    pub(crate) fn on_need_source(&mut self, from: NodeId, m: &rpc::NeedSource) {
        let Some(content) = ContentKey::from_slice(&m.content) else { return };
        let Some(task) = self.tasks.get_mut(&content) else { return };
        task.wanting.insert(from);
        self.ensure_lease(content);
        let may_fetch = self.settings.swarm.peers_may_fetch;
        let recovering = self.recovering();
        let Some(task) = self.tasks.get_mut(&content) else { return };
        if !task.swarm.leases().is_empty() || recovering || task.importer.is_some() {
            return;
        }
        if may_fetch && !task.unfit.contains(&from) {
            self.lease_to(content, from);
        } else if task.complete.is_empty() {
            let why = "nobody holds a part of it, no seed is there, and policy keeps peers from \
                       the origin (spec.backToSource)";
            self.fail_task(content, &rpc::Failure::new(Code::NoSource, why));
        }
    }

    pub(crate) fn on_lost(&mut self, from: NodeId, m: &rpc::LostNode) {
        let Some(content) = ContentKey::from_slice(&m.content) else { return };
        let Some(whom) = NodeId::from_slice(&m.node) else { return };
        tracing::debug!(%from, %whom, reason = m.reason, banned = m.banned, "lost");
        let dead = self.nodes.get(&whom).is_none_or(|e| e.gone.is_some());
        if dead {
            // Two say so: it has no session, and a neighbour lost it.
            self.node_gone(whom);
            return;
        }
        let Some(task) = self.tasks.get_mut(&content) else { return };
        if m.banned {
            task.swarm.accuse(from, whom);
        } else {
            task.swarm.disconnected(from, whom);
        }
        self.drain(content);
    }

    pub(crate) fn on_lease_result(&mut self, from: NodeId, m: rpc::LeaseResult) {
        let Some(content) = ContentKey::from_slice(&m.content) else { return };
        let Some(task) = self.tasks.get_mut(&content) else { return };
        if !task.swarm.holds_lease(from) {
            return;
        }
        let Some(failure) = m.failure else {
            task.ready = true;
            let waiting = std::mem::take(&mut task.waiting);
            return waiting.into_iter().for_each(|(node, id)| self.answer(node, id, content));
        };
        tracing::warn!(task = %content.short(), node = %from, failure.message, "lease failed");
        task.unfit.insert(from);
        task.ready = false;
        let elsewhere =
            matches!(failure.code(), Code::OriginUnavailable | Code::NoSpace | Code::Internal);
        if elsewhere && self.fit_seed(&content).is_some() {
            self.leave(content, from);
        } else {
            self.fail_task(content, &failure);
        }
    }

    /// Everybody who wants the content hears why there is no more of it.
    fn fail_task(&mut self, content: ContentKey, failure: &rpc::Failure) {
        self.forget_lookups_of(&content);
        let Some(task) = self.tasks.remove(&content) else { return };
        for (node, id) in task.waiting {
            self.fail(node, id, failure.clone());
        }
        let message = rpc::Epochs {
            content: content.0.to_vec(),
            epochs: vec![],
            failure: Some(failure.clone()),
        };
        for node in task.wanting {
            self.send(node, to_node::Message::Epochs(message.clone()));
        }
    }

    /// The seed that should hold a content's lease now.
    fn fit_seed(&self, content: &ContentKey) -> Option<NodeId> {
        let task = self.tasks.get(content)?;
        let seeds: Vec<(&str, NodeId)> = self
            .nodes
            .iter()
            .filter(|(id, e)| e.is_seed() && e.gone.is_none() && !task.unfit.contains(id))
            .map(|(id, e)| (e.hello.name.as_str(), *id))
            .collect();
        let order = rendezvous(&content.0, seeds.iter().map(|s| s.0));
        let first = order.first()?;
        seeds.iter().find(|s| s.0 == *first).map(|s| s.1)
    }

    /// Sees to it that somebody may go to the origin, unless the swarm has all there is.
    fn ensure_lease(&mut self, content: ContentKey) {
        let recovering = self.recovering();
        let Some(task) = self.tasks.get(&content) else { return };
        if !task.swarm.leases().is_empty() || !task.complete.is_empty() || recovering {
            return;
        }
        if task.wanting.is_empty() || task.geometry.is_none() || task.importer.is_some() {
            return;
        }
        if let Some(seed) = self.fit_seed(&content) {
            self.lease_to(content, seed);
        }
    }

    /// Carries out what a swarm decided.
    fn drain(&mut self, content: ContentKey) {
        loop {
            let Some(command) = self.tasks.get_mut(&content).and_then(|t| t.swarm.poll()) else {
                return;
            };
            match command {
                Command::Connect { node, to } => {
                    let members: Vec<_> = self.member(&to).into_iter().collect();
                    let message = rpc::Neighbours {
                        content: content.0.to_vec(),
                        members,
                        exhausted: false,
                    };
                    self.send(node, to_node::Message::Neighbours(message));
                }
                Command::Grant(lease) => self.grant(content, &lease),
                Command::Revoke(_) | Command::Disconnect { .. } | Command::NoSource => {}
            }
        }
    }

    pub(crate) fn grant(&mut self, content: ContentKey, lease: &Lease<NodeId>) {
        let second = self.unix().saturating_sub(EPOCH_ZERO).min(u64::from(u32::MAX)) as u32;
        let Some(key) = self.nodes.get(&lease.node).map(|e| e.key) else { return };
        let authority = self.authority.clone();
        let ticket = self.ticket(content, lease.node);
        let Some(task) = self.tasks.get_mut(&content) else { return };
        let before: Vec<_> = task.epochs.iter().map(|e| e.encode().to_vec()).collect();
        let epoch = second.max(task.last_epoch().saturating_add(1));
        let cert = EpochCert::issue(&authority, content, epoch, key);
        task.epochs.push(cert);
        if task.epochs.len() > MAX_EPOCHS {
            task.epochs.remove(0);
        }
        let others: Vec<NodeId> = task.swarm.neighbours(lease.node).to_vec();
        let message = rpc::Lease {
            content: content.0.to_vec(),
            epoch: cert.encode().to_vec(),
            geometry: task.geometry.as_ref().map(Into::into),
            source: task.source.clone(),
            origin: Some(task.origin.clone()),
            ticket,
            stripe_index: lease.stripe.index,
            stripe_of: lease.stripe.of,
            epochs: before,
            members: vec![],
        };
        let met = others.into_iter().filter_map(|node| {
            self.member(&Introduction { node, emitter: false, may_ask: None })
        });
        let message = rpc::Lease { members: met.collect(), ..message };
        self.send(lease.node, to_node::Message::Lease(message));
    }
}

impl TaskEntry {
    pub(crate) fn remember_source(&mut self, source: &rpc::Source) {
        if source.url.is_empty() {
            return;
        }
        let public = source.url.split(['?', '#']).next().unwrap_or_default();
        let public = match public.split_once("://") {
            Some((scheme, rest)) => {
                let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
                let host = authority.rsplit('@').next().unwrap_or_default();
                format!("{scheme}://{host}/{path}")
            }
            None => public.to_owned(),
        };
        self.url = public;
        self.source = Some(source.clone());
    }
}
