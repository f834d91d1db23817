//! Who may go to a content's origin: giving leases, reminding of them, taking them to others.

use std::time::Duration;

use dragonfly_proto::id::{ContentKey, NodeId, RequestKey};
use dragonfly_proto::rpc::{self, failure::Code, to_node};
use dragonfly_proto::trust::{EpochCert, MAX_EPOCHS};
use dragonfly_swarm::engine::Stripe;
use dragonfly_swarm::membership::{Introduction, Lease};

use crate::core::Core;

/// Seconds since 1970 at 2026-01-01: epochs count from there, so that a scheduler that forgot all
/// never gives a number twice.
const EPOCH_ZERO: u64 = 1_767_225_600;

/// A lease-holder that has not said that it began is told again after this.
const LEASE_AGAIN: Duration = Duration::from_secs(10);
/// Told so often in vain, it is taken for unfit.
const LEASE_TRIES: u32 = 3;
/// So often members may find no source before another seed gets the lease.
const MAX_DOUBTS: u32 = 3;
/// Members that find no source are believed, but the lease-holder is reminded at most so often.
const REMIND: Duration = Duration::from_secs(2);
/// So many members at once are asked to show the source of a content.
const SHOWN: usize = 4;

impl Core {
    /// The node that looked at the origin for another replica has its answer open: the first lease is
    /// best with it.
    pub(crate) fn prefer_resolver(&mut self, content: ContentKey, resolver: &[u8]) {
        let Some(by) = NodeId::from_slice(resolver) else {
            return;
        };
        let Some(task) = self.tasks.get(&content) else {
            return;
        };
        let free = task.swarm.leases().is_empty() && task.complete.is_empty();
        let fit = !task.unfit.contains(&by) && task.geometry.is_some();
        let may = self.nodes.get(&by).is_some_and(|e| {
            e.gone.is_none() && (e.is_seed() || self.settings.swarm.peers_may_fetch)
        });
        if free && fit && may && !self.recovering() {
            self.lease_to(content, by);
        }
    }

    /// Makes a node a member and gives it the lease.
    pub(crate) fn lease_to(&mut self, content: ContentKey, node: NodeId) {
        let Some(info) = self.member_info(node, 0) else {
            return;
        };
        // Refused only when banned: then there is no lease, and members are told so.
        let _ = self.enter(content, node, info);
        // Where several seeds emit, the next in the content's order take their shares.
        let emitters = self.tasks.get(&content).map_or(1, |t| t.swarm.emitters());
        for _ in 1..emitters {
            let Some(task) = self.tasks.get(&content) else {
                return;
            };
            let new = |id: &NodeId| !task.swarm.contains(*id) && !task.unfit.contains(id);
            let Some(next) = self.home_seed(&content.0, new) else {
                break;
            };
            if let Some(info) = self.member_info(next, 0) {
                let _ = self.enter(content, next, info);
            }
        }
        let Some(task) = self.tasks.get_mut(&content) else {
            return;
        };
        task.swarm.assign_leases_to(node);
        self.drain(content);
    }

    /// The lease-holder began: who waited for it may come.
    pub(crate) fn lease_began(&mut self, content: ContentKey) {
        let Some(task) = self.tasks.get_mut(&content) else {
            return;
        };
        task.ready = true;
        task.told.1 = 0;
        self.answer_waiting(content);
    }

    pub(crate) fn on_need_source(&mut self, from: NodeId, m: &rpc::NeedSource) {
        let Some(content) = ContentKey::from_slice(&m.content) else {
            return;
        };
        let Some(task) = self.tasks.get_mut(&content) else {
            return;
        };
        if !task.swarm.contains(from) {
            return;
        }
        if m.source.is_none() && task.swarm.holds_lease(from) {
            return self.find_source(content);
        }
        task.wanting.insert(from);
        let (source, key) = (m.source.as_ref(), RequestKey::from_slice(&m.request_key));
        let news = source.is_some_and(|s| task.remember_source(s, key.as_ref()));
        let leased = !task.swarm.leases().is_empty();
        let importing = task.importer.is_some();
        let recovering = self.recovering();
        if news && leased && !importing && !recovering {
            // Its holder may be waiting for just that, and is not to blame.
            return self.remind(content);
        }
        // Whoever says that it has all may lie, or be cut off from this member: believe who misses.
        self.ensure_lease(content, true);
        let may_fetch = self.settings.swarm.peers_may_fetch;
        let now = self.now;
        let Some(task) = self.tasks.get_mut(&content) else {
            return;
        };
        if recovering || importing {
            return;
        }
        if !task.swarm.leases().is_empty() {
            if now.saturating_sub(task.told.0) < REMIND {
                return;
            }
            task.doubts += 1;
            let holders: Vec<_> = task.swarm.leases().iter().map(|l| l.node).collect();
            let other = self.home_seed(&content.0, |id| !holders.contains(id));
            let Some(task) = self.tasks.get_mut(&content) else {
                return;
            };
            if task.doubts > MAX_DOUBTS && other.is_some_and(|o| !task.unfit.contains(&o)) {
                // It has its session and reads, perhaps, but members cannot reach it.
                task.unfit.extend(&holders);
                return holders
                    .into_iter()
                    .for_each(|node| self.leave(content, node));
            }
            return self.remind(content);
        }
        if may_fetch && !task.unfit.contains(&from) {
            self.lease_to(content, from);
        } else if task.complete.is_empty() {
            let why = "nobody holds a part of it, no seed is there, and policy keeps peers from \
                       the origin (spec.backToSource)";
            self.fail_task(content, &rpc::Failure::new(Code::NoSource, why));
        }
    }

    /// A holder of a content's lease has nothing to ask the origin with: what is kept is told to it, and
    /// some who want the content are asked to show theirs. None of this is the holder's fault.
    fn find_source(&mut self, content: ContentKey) {
        let (now, recovering) = (self.now, self.recovering());
        let Some(task) = self.tasks.get_mut(&content) else {
            return;
        };
        if recovering || task.importer.is_some() || now.saturating_sub(task.told.0) < REMIND {
            return;
        }
        let wanting: Vec<NodeId> = task
            .wanting
            .iter()
            .copied()
            .filter(|node| !task.swarm.holds_lease(*node))
            .collect();
        let kept = task.source.is_some();
        // Others the next time: not everybody's client shows something that is good.
        for node in fastrand::choose_multiple(wanting, SHOWN) {
            let ask = rpc::ShowSource {
                content: content.0.to_vec(),
            };
            self.send(node, to_node::Message::ShowSource(ask));
        }
        if kept {
            self.remind(content);
        } else if let Some(task) = self.tasks.get_mut(&content) {
            task.told.0 = now;
        }
    }

    /// Tells the holders of a content's leases again what they hold: their answer, or the message,
    /// may be lost, or they may have put the content away.
    pub(crate) fn remind(&mut self, content: ContentKey) {
        let now = self.now;
        let Some(task) = self.tasks.get_mut(&content) else {
            return;
        };
        task.told = (now, task.told.1 + 1);
        let leases = task.swarm.leases().to_vec();
        for lease in leases {
            let Some(key) = self.nodes.get(&lease.node).map(|e| e.key) else {
                continue;
            };
            let Some(task) = self.tasks.get(&content) else {
                return;
            };
            let cert = task.epochs.iter().rev().find(|c| c.key == key).copied();
            if let Some(cert) = cert {
                self.send_lease(content, &lease, cert);
            }
        }
    }

    /// Leases that nobody was there to take, or whose holder does not answer. With every tick.
    pub(crate) fn renew_leases(&mut self) {
        if self.recovering() {
            return;
        }
        let now = self.now;
        let (mut without, mut late) = (vec![], vec![]);
        for (key, task) in &self.tasks {
            if task.swarm.leases().is_empty() {
                if !task.wanting.is_empty() && task.complete.is_empty() {
                    without.push(*key);
                }
            } else if !task.ready && now.saturating_sub(task.told.0) > LEASE_AGAIN {
                late.push(*key);
            }
        }
        for content in without {
            self.ensure_lease(content, false);
        }
        for content in late {
            let Some(task) = self.tasks.get_mut(&content) else {
                continue;
            };
            if task.told.1 < LEASE_TRIES {
                self.remind(content);
                continue;
            }
            let holders: Vec<_> = task.swarm.leases().iter().map(|l| l.node).collect();
            task.unfit.extend(&holders);
            holders
                .into_iter()
                .for_each(|node| self.leave(content, node));
        }
    }

    pub(crate) fn on_lease_result(&mut self, from: NodeId, m: rpc::LeaseResult) {
        let Some(content) = ContentKey::from_slice(&m.content) else {
            return;
        };
        let Some(task) = self.tasks.get_mut(&content) else {
            return;
        };
        if !task.swarm.holds_lease(from) {
            return;
        }
        let Some(failure) = m.failure else {
            return self.lease_began(content);
        };
        tracing::warn!(task = %content.short(), node = %from, failure.message, "lease failed");
        task.unfit.insert(from);
        task.ready = false;
        let elsewhere = matches!(
            failure.code(),
            Code::OriginUnavailable | Code::NoSpace | Code::Internal
        );
        let held_by_others = task.complete.iter().any(|n| *n != from);
        if held_by_others || elsewhere && self.fit_seed(&content).is_some() {
            self.leave(content, from);
        } else {
            self.fail_task(content, &failure);
        }
    }

    /// Everybody who wants the content hears why there is no more of it. Who holds a part stays known,
    /// unless what it holds is what is wrong.
    pub(crate) fn fail_task(&mut self, content: ContentKey, failure: &rpc::Failure) {
        self.forget_lookups_of(&content);
        let Some(old) = self.tasks.remove(&content) else {
            return;
        };
        // Everything begins anew, but no epoch is ever given to a second key.
        let task = self.entry(content);
        task.epochs = old.epochs;
        task.url = old.url;
        if !matches!(failure.code(), Code::Changed | Code::Digest) {
            task.geometry = old.geometry;
            task.origin = old.origin;
            task.reads = old.reads;
        }
        let keeps = task.geometry.is_some();
        for (node, held) in old.swarm.held() {
            if let Some(entry) = self.nodes.get_mut(&node) {
                entry.tasks = entry.tasks.saturating_sub(1);
            }
            if keeps && held > 0 {
                self.join_member(content, node, held);
            }
        }
        for (node, id) in old.waiting {
            self.fail(node, id, failure.clone());
        }
        let message = rpc::Epochs {
            content: content.0.to_vec(),
            epochs: vec![],
            failure: Some(failure.clone()),
        };
        for node in old.wanting {
            self.send(node, to_node::Message::Epochs(message.clone()));
        }
    }

    /// The seed that should hold a content's lease now.
    fn fit_seed(&self, content: &ContentKey) -> Option<NodeId> {
        let task = self.tasks.get(content)?;
        self.home_seed(&content.0, |id| !task.unfit.contains(id))
    }

    /// Sees to it that somebody may go to the origin, unless the swarm has all there is, or says so
    /// and is believed.
    pub(crate) fn ensure_lease(&mut self, content: ContentKey, doubt: bool) {
        let recovering = self.recovering();
        let Some(task) = self.tasks.get(&content) else {
            return;
        };
        let has_all = !task.complete.is_empty() && !doubt;
        if !task.swarm.leases().is_empty() || has_all || recovering {
            return;
        }
        if task.wanting.is_empty() || task.geometry.is_none() || task.importer.is_some() {
            return;
        }
        if let Some(seed) = self.fit_seed(&content) {
            self.lease_to(content, seed);
        }
    }

    pub(crate) fn grant(&mut self, content: ContentKey, lease: &Lease<NodeId>) {
        let Some(cert) = self.certificate(content, lease.node) else {
            return;
        };
        let now = self.now;
        let Some(task) = self.tasks.get_mut(&content) else {
            return;
        };
        task.ready = false;
        task.told = (now, 0);
        task.doubts = 0;
        self.send_lease(content, lease, cert);
    }

    /// Certifies a node's key for an epoch of its own, without the lease on the origin.
    pub(crate) fn certify(&mut self, content: ContentKey, node: NodeId) {
        let Some(cert) = self.certificate(content, node) else {
            return;
        };
        let message = rpc::Lease {
            content: content.0.to_vec(),
            epoch: cert.encode().to_vec(),
            ticket: self.ticket(content, node),
            only_sign: true,
            ..rpc::Lease::default()
        };
        self.send(node, to_node::Message::Lease(message));
    }

    /// The next epoch of a content, for this node's key.
    fn certificate(&mut self, content: ContentKey, node: NodeId) -> Option<EpochCert> {
        let second = self
            .unix()
            .saturating_sub(EPOCH_ZERO)
            .min(u64::from(u32::MAX)) as u32;
        let key = self.nodes.get(&node)?.key;
        let authority = self.authority.clone();
        let task = self.tasks.get_mut(&content)?;
        let epoch = second.max(task.last_epoch().saturating_add(1));
        let cert = EpochCert::issue(&authority, content, epoch, key);
        task.epochs.push(cert);
        if task.epochs.len() > MAX_EPOCHS {
            task.epochs.remove(0);
        }
        Some(cert)
    }

    fn send_lease(&mut self, content: ContentKey, lease: &Lease<NodeId>, cert: EpochCert) {
        let ticket = self.ticket(content, lease.node);
        let Some(task) = self.tasks.get(&content) else {
            return;
        };
        let before = task.epochs.iter().filter(|e| e.epoch != cert.epoch);
        let epochs = before.map(|e| e.encode().to_vec()).collect();
        let met = task
            .swarm
            .neighbours(lease.node)
            .iter()
            .filter_map(|&node| {
                self.member(&Introduction {
                    node,
                    emitter: false,
                    may_ask: Some(Stripe::WHOLE),
                })
            });
        let message = rpc::Lease {
            content: content.0.to_vec(),
            epoch: cert.encode().to_vec(),
            geometry: task.geometry.as_ref().map(Into::into),
            source: task.source.clone(),
            origin: Some(task.origin.clone()),
            ticket,
            stripe_index: lease.stripe.index,
            stripe_of: lease.stripe.of,
            epochs,
            members: met.collect(),
            only_sign: false,
            request_key: task.request_key(),
        };
        self.send(lease.node, to_node::Message::Lease(message));
    }
}
