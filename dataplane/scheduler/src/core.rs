//! The scheduler's decisions: messages in, messages out, time passed in.
//!
//! Split by subject: `lookups` (what does a source hold, asked at the origin once), `swarms` (the
//! members of a content), `leases` (who may go to its origin), `imports` (what clients bring), `telling`
//! (what members hear of each other), `preheats` and `tending` (what people ask of all nodes),
//! [`crate::sketch`] (what is counted). What is to be sent piles up in `Core::out`.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use dragonfly_proto::id::{ContentKey, NodeId, RequestKey};
use dragonfly_proto::rpc::{self, Role, from_node, to_node};
use dragonfly_proto::sign::{PublicKey, SigningKey};
use dragonfly_swarm::membership::{Settings, ZoneId};

use crate::lookups::{Lookup, Waiter};
use crate::preheats::Preheats;
use crate::sketch::{Counts, bounded, known};
use crate::swarms::TaskEntry;
use crate::tending::Tending;

/// A node whose session ended is taken for dead after this, unless it comes back.
const SESSION_GRACE: Duration = Duration::from_millis(1500);
/// After its start a scheduler gives no leases for this long: nodes tell it first what they hold.
const RECOVERY: Duration = Duration::from_secs(2);
/// A task without members is forgotten after this.
const TASK_IDLE: Duration = Duration::from_secs(600);
/// Contents one node may take part in at once; a full store of many small ones has fewer.
const MAX_TASKS: usize = 65_536;
/// Questions of one node that may wait for an answer at once.
const MAX_PENDING: usize = 4096;
/// What can wait is gathered for this long, so that many joins cost a member one message.
pub(crate) const GATHER: Duration = Duration::from_millis(50);
/// Zones told apart; nodes of further ones count as of the first.
const MAX_ZONES: usize = 4096;

/// What policy says to schedulers.
#[derive(Debug, Clone)]
pub struct CoreSettings {
    /// For each task's swarm.
    pub swarm: Settings,
    /// How long a ticket admits.
    pub ticket_ttl: Duration,
}

impl Default for CoreSettings {
    fn default() -> Self {
        Self {
            swarm: Settings::default(),
            ticket_ttl: Duration::from_secs(24 * 3600),
        }
    }
}

/// A node with a session, or one whose session ended a moment ago.
#[derive(Debug)]
pub(crate) struct NodeEntry {
    pub(crate) hello: rpc::NodeHello,
    pub(crate) key: PublicKey,
    pub(crate) zone: ZoneId,
    pub(crate) gone: Option<Duration>,
    /// Contents it takes part in.
    pub(crate) tasks: usize,
    /// Its questions that wait for an answer.
    pending: usize,
    pub(crate) totals: rpc::Report,
    pub(crate) rate_in: u64,
    pub(crate) rate_out: u64,
    pub(crate) reported: Duration,
    /// This replica counts it.
    pub(crate) home: bool,
}

impl NodeEntry {
    pub(crate) fn is_seed(&self) -> bool {
        self.hello.role() == Role::Seed
    }
}

/// The scheduler. See the module's header.
pub struct Core {
    pub(crate) name: String,
    pub(crate) replicas: Vec<rpc::Replica>,
    pub(crate) mesh: [u8; 16],
    pub(crate) authority: Arc<SigningKey>,
    pub(crate) settings: CoreSettings,
    pub(crate) policy: Option<rpc::PolicyUpdate>,
    pub(crate) nodes: HashMap<NodeId, NodeEntry>,
    zones: HashMap<String, ZoneId>,
    pub(crate) lookups: HashMap<RequestKey, Lookup>,
    /// Questions from before any seed had a session.
    pub(crate) early: Vec<(RequestKey, rpc::Source, Waiter)>,
    pub(crate) asked: HashMap<u64, RequestKey>,
    pub(crate) next_ask: u64,
    pub(crate) tasks: HashMap<ContentKey, TaskEntry>,
    pub(crate) out: Vec<(NodeId, to_node::Message)>,
    /// Contents whose members are to be told something soon.
    pub(crate) gathering: HashSet<ContentKey>,
    pub(crate) now: Duration,
    /// Seconds since 1970 at `now` 0.
    epoch: u64,
    last_sweep: Duration,
    pub(crate) counts: Counts,
    pub(crate) preheats: Preheats,
    pub(crate) tending: Tending,
    /// The mesh was deleted.
    retired: bool,
}

/// Why a session is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused(pub String);

impl Core {
    /// A scheduler that knows nobody. `unix` is the time, in seconds since 1970, at `now` zero.
    #[must_use]
    pub fn new(
        name: String,
        replicas: Vec<rpc::Replica>,
        mesh: [u8; 16],
        authority: Arc<SigningKey>,
        settings: CoreSettings,
        unix: u64,
    ) -> Self {
        Self {
            name,
            replicas,
            mesh,
            authority,
            settings,
            policy: None,
            nodes: HashMap::new(),
            zones: HashMap::new(),
            lookups: HashMap::new(),
            early: vec![],
            asked: HashMap::new(),
            next_ask: 1,
            tasks: HashMap::new(),
            out: Vec::new(),
            gathering: HashSet::new(),
            now: Duration::ZERO,
            epoch: unix,
            last_sweep: Duration::ZERO,
            counts: Counts::default(),
            preheats: Preheats::default(),
            tending: Tending::default(),
            retired: false,
        }
    }

    /// What is to be sent now, in order.
    pub fn take_out(&mut self) -> Vec<(NodeId, to_node::Message)> {
        std::mem::take(&mut self.out)
    }

    /// Seconds since 1970.
    pub(crate) fn unix(&self) -> u64 {
        self.epoch + self.now.as_secs()
    }

    pub(crate) fn recovering(&self) -> bool {
        self.now < RECOVERY
    }

    pub(crate) fn send(&mut self, to: NodeId, message: to_node::Message) {
        if let (to_node::Message::Resolved(_), Some(entry)) = (&message, self.nodes.get_mut(&to)) {
            entry.pending = entry.pending.saturating_sub(1);
        }
        self.out.push((to, message));
    }

    /// A node's session begins.
    pub fn connect(&mut self, now: Duration, mut hello: rpc::NodeHello) -> Result<NodeId, Refused> {
        self.now = now;
        hello.policy = hello.policy.map(bounded);
        let node = NodeId::from_slice(&hello.node)
            .ok_or_else(|| Refused("the node's identity is not 16 bytes".to_owned()))?;
        let key = hello
            .signing_key
            .as_slice()
            .try_into()
            .map_err(|_| Refused("the node's signing key is not 32 bytes".to_owned()))?;
        let long = |text: &String| text.len() > 256;
        if hello.addresses.len() > 16
            || hello.addresses.iter().any(long)
            || [&hello.name, &hello.zone, &hello.version]
                .into_iter()
                .any(long)
        {
            return Err(Refused("name, zone or addresses are too long".to_owned()));
        }
        let zone = self.zone(&hello.zone);
        self.send(
            node,
            to_node::Message::Welcome(rpc::Welcome {
                scheduler: self.name.clone(),
                replicas: self.replicas.clone(),
                authorities: vec![self.authority.public().to_vec()],
                mesh: self.mesh.to_vec(),
                unix: self.unix(),
            }),
        );
        if let Some(policy) = &self.policy {
            let runs = hello.policy.as_ref();
            // The revision too: what a restored cluster counts anew is acknowledged anew.
            let same = |r: &rpc::PolicyAck| {
                (&r.uid, r.revision, &r.hash) == (&policy.uid, policy.revision, &policy.hash)
            };
            if !runs.is_some_and(same) {
                self.send(node, to_node::Message::Policy(policy.clone()));
            }
        }
        let old = self.nodes.get(&node);
        let restarted = old.is_some_and(|old| old.key != key);
        let again = old.is_some();
        let entry = NodeEntry {
            hello,
            key,
            zone,
            gone: None,
            tasks: old.map_or(0, |old| old.tasks),
            pending: 0,
            totals: rpc::Report {
                // True still, as that it is counted here is.
                runtimes: old.and_then(|old| old.totals.runtimes.clone()),
                ..rpc::Report::default()
            },
            rate_in: 0,
            rate_out: 0,
            reported: now,
            home: old.is_some_and(|old| old.home),
        };
        let is_seed = entry.is_seed();
        self.nodes.insert(node, entry);
        if restarted {
            // Another process: what the old one held leases for, this one cannot sign. Only now that
            // its new key is known: a lease that finds no better holder comes back to it.
            self.node_gone(node);
        }
        if again {
            // What it asked in its old session it asks anew.
            self.forget_waiter(node);
            // What it was asked may have been lost with its old session.
            self.ask_again(node);
        }
        if is_seed {
            self.ask_early();
        }
        self.preheats.came(self.now, node);
        if self.retired {
            self.send(node, to_node::Message::Retire(rpc::Retire {}));
        }
        Ok(node)
    }

    /// Whether a node may put one more question.
    pub(crate) fn may_ask(&mut self, node: NodeId) -> bool {
        let Some(entry) = self.nodes.get_mut(&node) else {
            return false;
        };
        entry.pending += 1;
        entry.pending <= MAX_PENDING
    }

    /// Whether a node is in a content's swarm, or may be in one more.
    pub(crate) fn may_join(&self, node: NodeId, content: &ContentKey) -> bool {
        let is_in = |t: &TaskEntry| t.swarm.contains(node);
        self.tasks.get(content).is_some_and(is_in)
            || self.nodes.get(&node).is_some_and(|e| e.tasks < MAX_TASKS)
    }

    fn zone(&mut self, name: &str) -> ZoneId {
        if let Some(zone) = self.zones.get(name) {
            return *zone;
        }
        if self.zones.len() >= MAX_ZONES {
            return ZoneId(0);
        }
        let zone = ZoneId(self.zones.len() as u32);
        self.zones.insert(name.to_owned(), zone);
        zone
    }

    /// A node's session ended.
    pub fn disconnect(&mut self, now: Duration, node: NodeId) {
        self.now = now;
        if let Some(entry) = self.nodes.get_mut(&node) {
            entry.gone = Some(now);
        }
        self.ask_others_for(node);
    }

    /// A message from a node with a session. False where it has none (any more): what it had was given to
    /// others, and nothing that it says is heard before it has said hello again.
    pub fn handle(&mut self, now: Duration, from: NodeId, message: from_node::Message) -> bool {
        self.now = now;
        if !self.nodes.contains_key(&from) {
            return false;
        }
        self.counts.totals.messages += 1;
        match message {
            from_node::Message::Hello(_) => {}
            from_node::Message::Resolve(m) => self.on_resolve(from, m),
            from_node::Message::ResolveResult(m) => self.on_resolve_result(from, m),
            from_node::Message::Join(m) => self.on_join(from, m),
            from_node::Message::Compared(m) => self.on_compared(from, &m),
            from_node::Message::Leave(m) => self.on_leave(from, &m),
            from_node::Message::NeedNeighbours(m) => self.on_need_neighbours(from, &m),
            from_node::Message::NeedSource(m) => self.on_need_source(from, &m),
            from_node::Message::LostNode(m) => self.on_lost(from, &m),
            from_node::Message::LeaseResult(m) => self.on_lease_result(from, m),
            from_node::Message::Report(m) => self.on_report(from, m),
            from_node::Message::Import(m) => self.on_import(from, m),
            from_node::Message::Warmed(m) => self.preheats.on_warmed(now, from, &m),
            from_node::Message::Tended(m) => self.tending.on_tended(from, &m),
            from_node::Message::PolicyAck(m) => {
                if let Some(entry) = self.nodes.get_mut(&from) {
                    entry.hello.policy = Some(bounded(m));
                }
            }
        }
        true
    }

    fn on_report(&mut self, from: NodeId, report: rpc::Report) {
        let now = self.now;
        let load = report.load.min(1000) as f32 / 1000.0;
        for t in report.tasks.iter().take(256) {
            if let Some(task) =
                ContentKey::from_slice(&t.content).and_then(|k| self.tasks.get_mut(&k))
            {
                task.swarm.report(from, t.held, load);
                task.set_complete(from, t.complete);
                task.settle();
            }
        }
        let Some(entry) = self.nodes.get_mut(&from) else {
            return;
        };
        entry.home = report.home;
        if entry.home {
            self.counts.add(&report, entry.is_seed());
        }
        let seconds = now.saturating_sub(entry.reported).as_secs_f64().max(1.0);
        let received = report
            .from_origin
            .saturating_add(report.from_seeds)
            .saturating_add(report.from_peers);
        entry.rate_in = (received as f64 / seconds) as u64;
        entry.rate_out = (report.uploaded as f64 / seconds) as u64;
        entry.reported = now;
        let t = &mut entry.totals;
        // Whatever a node says, no sum overflows.
        let add = |sum: &mut u64, n: u64| *sum = sum.saturating_add(n);
        add(&mut t.from_origin, report.from_origin);
        add(&mut t.from_seeds, report.from_seeds);
        add(&mut t.from_peers, report.from_peers);
        add(&mut t.uploaded, report.uploaded);
        add(&mut t.tasks_done, report.tasks_done);
        add(&mut t.tasks_failed, report.tasks_failed);
        t.active_tasks = report.active_tasks;
        t.connections = report.connections;
        t.stored_bytes = report.stored_bytes;
        t.load = report.load;
        t.runtimes = report.runtimes.map(known);
    }

    /// The mesh was deleted: every node hears of it, those that come later too.
    pub fn retire(&mut self) {
        self.retired = true;
        let nodes: Vec<_> = self.nodes.keys().copied().collect();
        for node in nodes {
            self.send(node, to_node::Message::Retire(rpc::Retire {}));
        }
    }

    /// Another policy: every node hears of it.
    pub fn set_policy(&mut self, policy: rpc::PolicyUpdate, settings: CoreSettings) {
        self.retired = false;
        self.settings = settings;
        let nodes: Vec<_> = self.nodes.keys().copied().collect();
        for node in nodes {
            self.send(node, to_node::Message::Policy(policy.clone()));
        }
        self.policy = Some(policy);
    }

    /// Time passes: dead nodes are let go, unanswered questions asked again. Every half second.
    pub fn tick(&mut self, now: Duration) {
        self.now = now;
        let dead: Vec<_> = self
            .nodes
            .iter()
            .filter(|(_, e)| {
                e.gone
                    .is_some_and(|at| now.saturating_sub(at) > SESSION_GRACE)
            })
            .map(|(id, _)| *id)
            .collect();
        for node in dead {
            self.node_gone(node);
            self.nodes.remove(&node);
        }
        self.flush(now);
        self.renew_lookups();
        self.renew_leases();
        self.tick_preheats();
        if now.saturating_sub(self.last_sweep) > Duration::from_secs(30) {
            self.last_sweep = now;
            self.forget_stale_lookups();
            self.tasks
                .retain(|_, t| !t.swarm.is_empty() || now.saturating_sub(t.used) < TASK_IDLE);
        }
    }

    /// Whether the source of a content, a client's credentials included, is in memory.
    #[must_use]
    pub fn keeps_source(&self, content: &ContentKey) -> bool {
        self.tasks.get(content).is_some_and(TaskEntry::keeps_source)
    }

    /// How many contents it keeps anything of.
    #[must_use]
    pub fn task_count(&self) -> usize {
        self.tasks.len()
    }

    /// What it knows, for people.
    #[must_use]
    pub fn inspect(&self) -> rpc::InspectReply {
        let nodes = self
            .nodes
            .iter()
            .filter(|(_, e)| e.gone.is_none())
            .map(|(id, e)| rpc::NodeInfo {
                node: id.0.to_vec(),
                name: e.hello.name.clone(),
                role: e.hello.role,
                zone: e.hello.zone.clone(),
                addresses: e.hello.addresses.clone(),
                totals: Some(e.totals.clone()),
                rate_in: e.rate_in,
                rate_out: e.rate_out,
                policy: e.hello.policy.clone(),
            });
        let tasks = self.tasks.iter().map(|(key, t)| rpc::TaskInfo {
            content: key.0.to_vec(),
            geometry: t.geometry.as_ref().map(Into::into),
            members: t.swarm.len() as u32,
            complete: t.complete_members() as u32,
            emitter: t.emitter_name(self),
            epoch: t.last_epoch(),
            url: t.url.clone(),
        });
        let mut reply = rpc::InspectReply {
            scheduler: self.name.clone(),
            nodes: nodes.collect(),
            tasks: tasks.take(10_000).collect(),
            policy: self.policy.clone(),
        };
        reply.nodes.sort_by(|a, b| a.name.cmp(&b.name));
        reply.tasks.sort_by(|a, b| a.url.cmp(&b.url));
        reply
    }
}
