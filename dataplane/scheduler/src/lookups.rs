//! What does a source hold? Each request key is looked up at the origin once in its freshness
//! window, by its home seed, for all who ask meanwhile.

use std::time::Duration;

use dragonfly_proto::geometry::Geometry;
use dragonfly_proto::id::{ContentKey, NodeId, RequestKey};
use dragonfly_proto::rpc::{self, failure::Code, to_node};
use dragonfly_swarm::membership::rendezvous;

use crate::core::Core;

/// A seed that has not answered for this long is given up; its own retries end before.
const ANSWER: Duration = Duration::from_secs(90);
/// Lookups remembered.
const MAX_LOOKUPS: usize = 200_000;

/// One request key.
#[derive(Debug)]
pub(crate) enum Lookup {
    /// Somebody looks.
    Asked {
        at: NodeId,
        ask: u64,
        since: Duration,
        source: Box<rpc::Source>,
        waiting: Vec<Waiter>,
        tried: Vec<NodeId>,
    },
    /// The answer and until when it holds.
    Known(Box<Known>),
}

/// What the origin said.
#[derive(Debug, Clone)]
pub(crate) struct Known {
    pub(crate) content: ContentKey,
    pub(crate) geometry: Geometry,
    pub(crate) origin: rpc::OriginInfo,
    pub(crate) until: Duration,
    /// Who looked.
    pub(crate) by: NodeId,
}

/// A node that waits for an answer.
#[derive(Debug, Clone)]
pub(crate) struct Waiter {
    node: NodeId,
    id: u64,
    /// The replicas it has sessions with.
    replicas: Vec<String>,
    /// It only looks: it is put into no swarm.
    only_look: bool,
}

/// The question to a seed what an origin holds.
fn look_at(id: u64, key: &RequestKey, source: &rpc::Source, waiting: &[Waiter]) -> rpc::ResolveAt {
    rpc::ResolveAt {
        id,
        request_key: key.0.to_vec(),
        source: Some(source.clone()),
        only_look: waiting.iter().all(|w| w.only_look),
    }
}

impl Core {
    pub(crate) fn on_resolve(&mut self, from: NodeId, m: rpc::Resolve) {
        let Some(key) = RequestKey::from_slice(&m.request_key) else {
            return self.fail(
                from,
                m.id,
                rpc::Failure::new(Code::Invalid, "no request key"),
            );
        };
        if !self.may_ask(from) {
            let text = "too many questions of this node wait for an answer: ask again later";
            return self.fail(from, m.id, rpc::Failure::new(Code::Denied, text));
        }
        let waiter = Waiter {
            node: from,
            id: m.id,
            replicas: m.replicas.into_iter().take(64).collect(),
            only_look: m.only_look,
        };
        let source = m.source.unwrap_or_default();
        // Known by its digest: no origin has to be asked what it is.
        match self.shared_by(&key, &source) {
            Ok(Some((content, geometry))) if m.only_look => {
                let (origin, resolver) = (rpc::OriginInfo::default(), vec![]);
                return self.looked(from, m.id, content, &geometry, origin, resolver);
            }
            Ok(Some((content, _))) => {
                let origin = rpc::OriginInfo::default();
                return self.resolved(from, m.id, content, origin, (&key, &source));
            }
            Err(elsewhere) if !m.only_look => return self.fail(from, m.id, elsewhere),
            _ => {}
        }
        self.look_up(key, source, waiter);
    }

    fn look_up(&mut self, key: RequestKey, source: rpc::Source, waiter: Waiter) {
        let too_early = self.may_miss_seeds();
        match self.lookups.get_mut(&key) {
            Some(Lookup::Known(known)) if known.until > self.now => {
                let known = known.clone();
                self.give(waiter, &known, (&key, &source));
            }
            Some(Lookup::Asked { waiting, .. }) => waiting.push(waiter),
            _ if too_early => self.early.push((key, source, waiter)),
            _ => self.ask(key, source, vec![waiter], vec![]),
        }
    }

    /// Whether seeds may be there whose sessions are not back yet. A peer that looked at the origin in
    /// their place would be sent the beginning of what a seed reads already.
    fn may_miss_seeds(&self) -> bool {
        self.recovering() && !self.others_left(&[])
    }

    /// Questions that came before any seed: now there is one, or none comes.
    pub(crate) fn ask_early(&mut self) {
        if self.early.is_empty() || self.may_miss_seeds() {
            return;
        }
        for (key, source, waiter) in std::mem::take(&mut self.early) {
            self.look_up(key, source, waiter);
        }
    }

    /// Asks the key's home seed, or the next when that one failed; with no seed, a node that waits.
    fn ask(
        &mut self,
        key: RequestKey,
        source: rpc::Source,
        waiting: Vec<Waiter>,
        mut tried: Vec<NodeId>,
    ) {
        let home = self.home_seed(&key.0, |id| !tried.contains(id));
        let may_fetch = self.settings.swarm.peers_may_fetch;
        let peer = waiting.iter().map(|w| w.node).find(|n| {
            may_fetch && !tried.contains(n) && self.nodes.get(n).is_some_and(|e| e.gone.is_none())
        });
        let Some(at) = home.or(peer) else {
            let why = if may_fetch {
                "no seed is there and nobody who asks is left to look at the origin"
            } else {
                "no seed is there, and policy keeps peers from the origin (spec.backToSource)"
            };
            for w in waiting {
                self.fail(w.node, w.id, rpc::Failure::new(Code::NoSource, why));
            }
            self.lookups.remove(&key);
            return;
        };
        let ask = self.next_ask;
        self.next_ask += 1;
        tried.push(at);
        let message = look_at(ask, &key, &source, &waiting);
        self.send(at, to_node::Message::ResolveAt(message));
        self.asked.insert(ask, key);
        if self.lookups.len() >= MAX_LOOKUPS {
            self.forget_stale_lookups();
        }
        if self.lookups.len() >= MAX_LOOKUPS {
            // All fresh: they only save questions.
            self.lookups
                .retain(|_, l| matches!(l, Lookup::Asked { .. }));
        }
        let since = self.now;
        self.lookups.insert(
            key,
            Lookup::Asked {
                at,
                ask,
                since,
                source: Box::new(source),
                waiting,
                tried,
            },
        );
    }

    pub(crate) fn on_resolve_result(&mut self, from: NodeId, m: rpc::ResolveResult) {
        let Some(key) = self.asked.get(&m.id).copied() else {
            return;
        };
        let Some(Lookup::Asked { ask, at, .. }) = self.lookups.get(&key) else {
            return;
        };
        // Nobody answers a question that was put to another: the answer says what everybody gets.
        if *ask != m.id || *at != from {
            return;
        }
        self.asked.remove(&m.id);
        let Some(Lookup::Asked {
            source,
            waiting,
            tried,
            ..
        }) = self.lookups.remove(&key)
        else {
            return;
        };
        if let Some(failure) = m.failure {
            // This seed cannot reach it; another may. What the origin itself refused is final.
            let elsewhere = matches!(failure.code(), Code::Internal | Code::NoSpace);
            if elsewhere && self.others_left(&tried) {
                return self.ask(key, *source, waiting, tried);
            }
            for w in waiting {
                self.fail(w.node, w.id, failure.clone());
            }
            return;
        }
        let content = ContentKey::from_slice(&m.content);
        let geometry = m.geometry.as_ref().and_then(|g| Geometry::try_from(g).ok());
        let (Some(content), Some(geometry)) = (content, geometry) else {
            let failure =
                rpc::Failure::new(Code::Internal, "a seed gave an answer without content");
            return waiting
                .into_iter()
                .for_each(|w| self.fail(w.node, w.id, failure.clone()));
        };
        let origin = m.origin.unwrap_or_default();
        let until = self.now + Duration::from_millis(origin.fresh_ms);
        let lasts = !origin.validator.is_empty() || !source.digest.is_empty();
        let known = Known {
            content,
            geometry,
            origin,
            until,
            by: from,
        };
        if lasts {
            self.lookups
                .insert(key, Lookup::Known(Box::new(known.clone())));
        }
        for waiter in waiting {
            if self
                .nodes
                .get(&waiter.node)
                .is_some_and(|e| e.gone.is_none())
            {
                self.give(waiter, &known, (&key, &source));
            }
        }
    }

    /// Tells a node what its source holds; where this replica is the content's too, it joins at once.
    fn give(&mut self, w: Waiter, known: &Known, asked: (&RequestKey, &rpc::Source)) {
        if let (false, Err(elsewhere)) = (w.only_look, self.shared_by(asked.0, asked.1)) {
            // Another's source began to be read meanwhile.
            return self.fail(w.node, w.id, elsewhere);
        }
        if !w.only_look && self.is_mine(&known.content, &w.replicas) {
            let begun = self
                .tasks
                .get(&known.content)
                .is_some_and(|t| t.geometry.is_some());
            if !begun {
                self.found(
                    known.content,
                    known.geometry,
                    &known.origin,
                    asked,
                    known.by,
                );
            }
            return self.resolved(w.node, w.id, known.content, known.origin.clone(), asked);
        }
        let (origin, resolver) = (known.origin.clone(), known.by.0.to_vec());
        let geometry = known.geometry;
        self.looked(w.node, w.id, known.content, &geometry, origin, resolver);
    }

    /// Tells a node what its source holds, and nothing more.
    fn looked(
        &mut self,
        node: NodeId,
        id: u64,
        content: ContentKey,
        geometry: &Geometry,
        origin: rpc::OriginInfo,
        resolver: Vec<u8>,
    ) {
        let resolved = rpc::Resolved {
            id,
            content: content.0.to_vec(),
            geometry: Some(geometry.into()),
            origin: Some(origin),
            resolver,
            ..rpc::Resolved::default()
        };
        self.send(node, to_node::Message::Resolved(resolved));
    }

    /// Whether this replica is responsible for a content among those that the node has sessions with.
    fn is_mine(&self, content: &ContentKey, replicas: &[String]) -> bool {
        let known = replicas.iter().take(64).map(String::as_str);
        rendezvous(&content.0, known)
            .first()
            .is_none_or(|first| *first == self.name)
    }

    /// Nobody waits any more for what this node asked.
    pub(crate) fn forget_waiter(&mut self, node: NodeId) {
        self.early.retain(|(_, _, waiter)| waiter.node != node);
        for lookup in self.lookups.values_mut() {
            if let Lookup::Asked { waiting, .. } = lookup {
                waiting.retain(|w| w.node != node);
            }
        }
        for task in self.tasks.values_mut() {
            task.waiting.retain(|(n, _)| *n != node);
        }
    }

    /// A node's new session: what it is still to answer is put to it again.
    pub(crate) fn ask_again(&mut self, node: NodeId) {
        let open = self.lookups.iter().filter_map(|(key, l)| match l {
            Lookup::Asked {
                at,
                ask,
                source,
                waiting,
                ..
            } if *at == node => Some(look_at(*ask, key, source, waiting)),
            _ => None,
        });
        let open: Vec<_> = open.collect();
        open.into_iter()
            .for_each(|ask| self.send(node, to_node::Message::ResolveAt(ask)));
    }

    pub(crate) fn forget_stale_lookups(&mut self) {
        let now = self.now;
        self.lookups
            .retain(|_, l| !matches!(l, Lookup::Known(k) if k.until <= now));
    }

    /// The seed that a key belongs to, of those with a session that are `fit`. Of two that go by one
    /// name always the same.
    pub(crate) fn home_seed(
        &self,
        key: &[u8; 32],
        fit: impl Fn(&NodeId) -> bool,
    ) -> Option<NodeId> {
        let mut seeds: Vec<(&str, NodeId)> = self
            .nodes
            .iter()
            .filter(|(id, e)| e.is_seed() && e.gone.is_none() && fit(id))
            .map(|(id, e)| (e.hello.name.as_str(), *id))
            .collect();
        seeds.sort_unstable();
        let order = rendezvous(key, seeds.iter().map(|(name, _)| *name));
        let first = order.first()?;
        seeds
            .iter()
            .find(|(name, _)| name == first)
            .map(|(_, id)| *id)
    }

    fn others_left(&self, tried: &[NodeId]) -> bool {
        self.nodes
            .iter()
            .any(|(id, e)| e.is_seed() && e.gone.is_none() && !tried.contains(id))
    }

    /// Questions that wait for a node that went away go to the next.
    pub(crate) fn ask_others_for(&mut self, node: NodeId) {
        let orphaned: Vec<_> = self
            .lookups
            .iter()
            .filter(|(_, l)| matches!(l, Lookup::Asked { at, .. } if *at == node))
            .map(|(key, _)| *key)
            .collect();
        for key in orphaned {
            if let Some(Lookup::Asked {
                ask,
                source,
                waiting,
                tried,
                ..
            }) = self.lookups.remove(&key)
            {
                self.asked.remove(&ask);
                self.ask(key, *source, waiting, tried);
            }
        }
    }

    pub(crate) fn renew_lookups(&mut self) {
        self.ask_early();
        let now = self.now;
        let late: Vec<_> = self
            .lookups
            .values()
            .filter_map(|l| match l {
                Lookup::Asked { at, since, .. } if now.saturating_sub(*since) > ANSWER => Some(*at),
                _ => None,
            })
            .collect();
        late.into_iter().for_each(|at| self.ask_others_for(at));
    }

    pub(crate) fn fail(&mut self, node: NodeId, id: u64, failure: rpc::Failure) {
        let resolved = rpc::Resolved {
            id,
            failure: Some(failure),
            ..rpc::Resolved::default()
        };
        self.send(node, to_node::Message::Resolved(resolved));
    }

    /// The content turned out not to be what was said: ask again next time.
    pub(crate) fn forget_lookups_of(&mut self, content: &ContentKey) {
        self.lookups
            .retain(|_, l| !matches!(l, Lookup::Known(k) if k.content == *content));
    }
}
