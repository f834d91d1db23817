//! One job: its nodes, each on its way from waiting to having everything.
//!
//! Invariants: at most `parallelism` nodes are at it; what is kept of a node that is done is its state
//! alone; a node that goes away keeps its place for a while, for it may come back with what it has.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use dragonfly_proto::id::{ContentKey, NodeId};
use dragonfly_proto::rpc::{self, to_node, warmed::Outcome};
use dragonfly_swarm::membership::rendezvous;

use super::{Content, Message, NodeFailure, Plan, Progress, State};
use crate::core::NodeEntry;

/// How long nodes are waited for that another replica had chosen, or any node at all.
const GATHER: Duration = Duration::from_secs(30);
/// Sessions that may end while a node is at it and are no failure: schedulers and nodes are restarted.
const FORGIVEN: u32 = 3;
/// A node that is gone for so long gives its place to another one.
const GONE: Duration = Duration::from_secs(60);
/// One that is gone for so long has failed.
const LOST: Duration = Duration::from_secs(120);
/// One that is at it says so at least as often.
const SILENT: Duration = Duration::from_secs(120);
/// Longest pause before a node is asked again.
const MOST_BACKOFF: Duration = Duration::from_secs(300);
/// Continuous: how often it is looked who joined, and when a node that failed or had no room is asked
/// again.
const LOOK: Duration = Duration::from_secs(3);
const AGAIN: Duration = Duration::from_secs(600);
/// Longest text of a node that is kept.
const MAX_TEXT: usize = 400;
const MAX_FAILURES: usize = 10;

#[derive(Debug, PartialEq)]
enum Stage {
    /// It is told after that time.
    Waiting(Duration),
    /// It was told, and heard of then.
    Active(Duration),
    Done,
    Failed(Duration),
    NoRoom(Duration),
}

#[derive(Debug)]
struct Member {
    name: String,
    stage: Stage,
    attempts: u32,
    /// Sessions of it that ended while it was at it.
    ended: u32,
    gone: Option<Duration>,
    /// While it is at it.
    contents: Vec<rpc::WarmedContent>,
    failure: String,
}

#[derive(Debug)]
pub(super) struct Job {
    plan: Plan,
    began: Duration,
    /// Nodes were chosen.
    chosen: bool,
    looked: Duration,
    members: BTreeMap<NodeId, Member>,
    lengths: Vec<Option<u64>>,
    /// Of those that are done.
    done: usize,
    over: State,
}

impl Job {
    pub(super) fn new(now: Duration, plan: Plan) -> Self {
        Self {
            lengths: vec![None; plan.sources.len()],
            plan,
            began: now,
            chosen: false,
            looked: Duration::ZERO,
            members: BTreeMap::new(),
            done: 0,
            over: State::Running,
        }
    }

    /// The same contents; who is to get them, and until when, may differ.
    pub(super) fn change(&mut self, now: Duration, plan: Plan) {
        let ends = plan.ends_in.map(|length| now + length);
        // Counted from the beginning.
        let ends_in = ends.map(|at| at.saturating_sub(self.began));
        self.plan = Plan {
            ends_in,
            sources: std::mem::take(&mut self.plan.sources),
            ..plan
        };
    }

    pub(super) fn active(&self) -> impl Iterator<Item = NodeId> + '_ {
        let is = |(id, m): (&NodeId, &Member)| matches!(m.stage, Stage::Active(_)).then_some(*id);
        self.members.iter().filter_map(is)
    }

    pub(super) fn stop(&self) -> to_node::Message {
        to_node::Message::StopWarming(rpc::StopWarming {
            job: self.plan.job.clone(),
        })
    }

    /// A node's session began: it is told again. A few sessions may end for other reasons; whoever loses
    /// one each time that it is told fails by it.
    pub(super) fn came(&mut self, now: Duration, node: NodeId) {
        let Some(member) = self.members.get_mut(&node) else {
            return;
        };
        member.gone = None;
        if !matches!(member.stage, Stage::Active(_)) {
            return;
        }
        member.ended += 1;
        if member.ended > FORGIVEN {
            let why = format!(
                "its session ended {} times while it was at this",
                member.ended
            );
            member.fail(now, &why, &self.plan);
        } else {
            member.stage = Stage::Waiting(Duration::ZERO);
            member.attempts = member.attempts.saturating_sub(1);
        }
    }

    pub(super) fn warmed(&mut self, now: Duration, from: NodeId, m: &rpc::Warmed) {
        let Some(member) = self.members.get_mut(&from) else {
            return;
        };
        if !matches!(member.stage, Stage::Active(_)) {
            return;
        }
        member.stage = Stage::Active(now);
        let contents = m.contents.iter().take(self.lengths.len());
        member.contents = contents.copied().collect();
        for (length, content) in self.lengths.iter_mut().zip(&member.contents) {
            *length = content.total.or(*length);
        }
        match m.outcome() {
            Outcome::Unspecified => return,
            Outcome::Done => {
                member.stage = Stage::Done;
                self.done += 1;
            }
            Outcome::NoRoom => member.stage = Stage::NoRoom(now),
            Outcome::Failed => {
                let why = m.failure.as_ref().map_or("", |f| f.message.as_str());
                member.fail(now, why, &self.plan);
            }
        }
        member.contents = vec![];
    }

    /// Lets time pass.
    pub(super) fn step(
        &mut self,
        now: Duration,
        nodes: &HashMap<NodeId, NodeEntry>,
        out: &mut Vec<Message>,
    ) {
        if self.over != State::Running {
            return;
        }
        let since = now.saturating_sub(self.began);
        if self.plan.ends_in.is_some_and(|length| since >= length) {
            self.over = State::TimeUp;
            out.extend(self.active().map(|node| (node, self.stop())));
            return;
        }
        self.notice(now, nodes);
        if now.saturating_sub(self.looked) >= LOOK || !self.chosen {
            self.looked = now;
            self.choose(now, nodes);
        }
        if self.chosen {
            self.tell(now, out);
            self.end();
        }
    }

    /// Who is gone, silent, or may be asked once more.
    fn notice(&mut self, now: Duration, nodes: &HashMap<NodeId, NodeEntry>) {
        for (id, member) in &mut self.members {
            let there = nodes.get(id).is_some_and(|e| e.gone.is_none());
            if there {
                member.gone = None;
            } else {
                member.gone.get_or_insert(now);
            }
            match member.stage {
                Stage::Active(heard) if there && now.saturating_sub(heard) > SILENT => {
                    member.fail(now, "the node does not say how far it is", &self.plan);
                }
                Stage::Failed(at) | Stage::NoRoom(at)
                    if self.plan.continuous && now.saturating_sub(at) > AGAIN =>
                {
                    member.stage = Stage::Waiting(now);
                    member.attempts = 0;
                }
                _ => {}
            }
        }
    }

    fn choose(&mut self, now: Duration, nodes: &HashMap<NodeId, NodeEntry>) {
        let plan = &self.plan;
        let fits = |e: &NodeEntry| {
            e.gone.is_none()
                && e.hello.role() == plan.role
                && plan
                    .names
                    .as_ref()
                    .is_none_or(|n| n.contains(&e.hello.name))
                && (plan.zones.is_empty() || plan.zones.contains(&e.hello.zone))
        };
        let fit: BTreeMap<&str, NodeId> = nodes
            .iter()
            .filter(|(_, e)| fits(e))
            .map(|(id, e)| (e.hello.name.as_str(), *id))
            .collect();
        let waits = fit.is_empty() || fit.len() < plan.expect;
        if !self.chosen && waits && now.saturating_sub(self.began) < GATHER {
            return;
        }
        let continuous = plan.continuous;
        let is_lost = |m: &Member| m.is_lost(now, continuous);
        if self.chosen && !continuous && !self.members.values().any(is_lost) {
            return;
        }
        let wanted = plan.amount.of(fit.len());
        let key = ContentKey::from_digest("", &plan.key).0;
        let order = rendezvous(&key, fit.keys().copied());
        let mut free = order
            .into_iter()
            .filter_map(|name| Some((name.to_owned(), *fit.get(name)?)))
            .filter(|(_, id)| !self.members.contains_key(id))
            .collect::<Vec<_>>()
            .into_iter();
        if !self.chosen {
            self.chosen = true;
            let first = free.take(wanted);
            self.members
                .extend(first.map(|(name, id)| (id, Member::new(name, now))));
            return;
        }
        let lost: Vec<_> = self
            .members
            .iter()
            .filter(|(_, m)| is_lost(m))
            .map(|(id, _)| *id)
            .collect();
        if self.plan.continuous {
            for id in lost {
                let was = self.members.remove(&id);
                self.done -= usize::from(was.is_some_and(|m| m.stage == Stage::Done));
            }
            let more = wanted.saturating_sub(self.members.len());
            self.members.extend(
                free.take(more)
                    .map(|(name, id)| (id, Member::new(name, now))),
            );
            return;
        }
        for id in lost {
            if let Some((name, other)) = free.next() {
                self.members.remove(&id);
                self.members.insert(other, Member::new(name, now));
            } else if let Some(member) = self.members.get_mut(&id)
                && member.gone.is_some_and(|at| now.saturating_sub(at) > LOST)
            {
                member.stage = Stage::Failed(now);
                "the node went away and did not come back".clone_into(&mut member.failure);
            }
        }
    }

    /// Tells as many as may be at it.
    fn tell(&mut self, now: Duration, out: &mut Vec<Message>) {
        let active = self.active().count();
        let free = self.plan.parallelism.max(1).saturating_sub(active);
        let due = |m: &Member| matches!(m.stage, Stage::Waiting(from) if from <= now);
        let next = self.members.iter_mut();
        let next = next.filter(|(_, m)| m.gone.is_none() && due(m)).take(free);
        for (id, member) in next {
            member.stage = Stage::Active(now);
            member.attempts += 1;
            let warm = rpc::Warm {
                job: self.plan.job.clone(),
                sources: self.plan.sources.clone(),
            };
            out.push((*id, to_node::Message::Warm(warm)));
        }
    }

    fn end(&mut self) {
        let rests =
            |m: &Member| matches!(m.stage, Stage::Done | Stage::Failed(_) | Stage::NoRoom(_));
        if self.plan.continuous || !self.members.values().all(rests) {
            return;
        }
        let failed = |m: &Member| matches!(m.stage, Stage::Failed(_));
        let bad = self.done == 0 || self.members.values().any(failed);
        self.over = if bad { State::Failed } else { State::Succeeded };
    }

    pub(super) fn progress(&self) -> Progress {
        let mut p = Progress {
            state: self.over,
            desired: self.members.len(),
            succeeded: self.done,
            ..Progress::default()
        };
        let of = |length: &Option<u64>| Content {
            length: *length,
            held: length.unwrap_or(0).saturating_mul(self.done as u64),
            nodes: self.done,
        };
        p.contents = self.lengths.iter().map(of).collect();
        for member in self.members.values() {
            match member.stage {
                Stage::Waiting(_) | Stage::Done => {}
                Stage::Active(_) => p.active += 1,
                Stage::NoRoom(_) => p.no_room += 1,
                Stage::Failed(_) => {
                    p.failed += 1;
                    p.failures.push(NodeFailure {
                        node: member.name.clone(),
                        message: member.failure.clone(),
                        attempts: member.attempts,
                    });
                }
            }
            for (sum, content) in p.contents.iter_mut().zip(&member.contents) {
                sum.held = sum.held.saturating_add(content.held);
                sum.nodes += usize::from(content.complete);
            }
        }
        p.failures.sort_by(|a, b| a.node.cmp(&b.node));
        p.failures.truncate(MAX_FAILURES);
        p
    }
}

impl Member {
    const fn new(name: String, now: Duration) -> Self {
        Self {
            name,
            stage: Stage::Waiting(now),
            attempts: 0,
            ended: 0,
            gone: None,
            contents: vec![],
            failure: String::new(),
        }
    }

    /// Whether it is away for so long that its place is another's. In a job that ends, one that is done
    /// has done its part.
    fn is_lost(&self, now: Duration, continuous: bool) -> bool {
        self.gone.is_some_and(|at| now.saturating_sub(at) > GONE)
            && (continuous || matches!(self.stage, Stage::Waiting(_) | Stage::Active(_)))
    }

    fn fail(&mut self, now: Duration, why: &str, plan: &Plan) {
        let mut end = why.len().min(MAX_TEXT);
        while !why.is_char_boundary(end) {
            end -= 1;
        }
        why[..end].clone_into(&mut self.failure);
        self.contents = vec![];
        self.stage = if self.attempts > plan.retries {
            Stage::Failed(now)
        } else {
            let times = 1u32 << self.attempts.saturating_sub(1).min(16);
            let pause = plan.backoff.saturating_mul(times).min(MOST_BACKOFF);
            Stage::Waiting(now + pause)
        };
    }
}
