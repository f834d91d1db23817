//! Contents that nodes get before anybody asks for them: who is told to, and how far they are.
//!
//! A [`Plan`] is carried out by one replica, as a `job`. Nothing of it is kept: a replica that takes
//! over asks the nodes again, and those that have everything say so at once. So no work is lost with a
//! scheduler, nor done twice.

mod job;

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use dragonfly_proto::id::NodeId;
use dragonfly_proto::rpc::{self, Role, to_node};

use crate::core::Core;
use crate::service::Service;
use job::Job;

/// Jobs at once: more than anybody has, few enough to be looked at twice a second.
const MAX_JOBS: usize = 1024;
/// After its start a scheduler tells nobody to get anything: nodes come back one after the other.
const SETTLE: Duration = Duration::from_secs(6);

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Names the job to nodes: another one for other contents.
    pub job: String,
    /// Decides which nodes are chosen where not all are; the same for all jobs of one object.
    pub key: String,
    /// The contents, one after the other.
    pub sources: Vec<rpc::Source>,
    /// Seeds or peers.
    pub role: Role,
    /// Only nodes of these names; all when absent.
    pub names: Option<HashSet<String>>,
    /// Only nodes of these zones; all when empty.
    pub zones: Vec<String>,
    /// How many of them.
    pub amount: Amount,
    /// Nodes at once, at least one.
    pub parallelism: usize,
    /// How often a node that failed is asked again.
    pub retries: u32,
    /// Before the first of these; doubles each time.
    pub backoff: Duration,
    /// What is not there after so long is given up.
    pub ends_in: Option<Duration>,
    /// Nodes that join get it too, and the job does not end.
    pub continuous: bool,
    /// So many nodes were chosen when another replica carried it out: they are waited for.
    pub expect: usize,
}

/// How many of the nodes that fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Amount {
    /// All.
    All,
    /// So many.
    Count(usize),
    /// This share, rounded up.
    Percent(usize),
}

impl Amount {
    pub(crate) fn of(self, all: usize) -> usize {
        match self {
            Self::All => all,
            Self::Count(n) => n.min(all),
            Self::Percent(p) => (all * p.min(100)).div_ceil(100),
        }
    }
}

/// Whether a job is over, and how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum State {
    /// It is not.
    #[default]
    Running,
    /// Every node has everything, those without room apart.
    Succeeded,
    /// Some node does not, or there is none.
    Failed,
    /// Its time was up.
    TimeUp,
}

/// How far a job is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// Whether it is over.
    pub state: State,
    /// Nodes that were chosen.
    pub desired: usize,
    /// Nodes that are at it.
    pub active: usize,
    /// Nodes that have everything.
    pub succeeded: usize,
    /// Nodes that failed and are not asked again.
    pub failed: usize,
    /// Nodes without room.
    pub no_room: usize,
    /// By content, in the plan's order.
    pub contents: Vec<Content>,
    /// Nodes that failed, by name: the first ten.
    pub failures: Vec<NodeFailure>,
}

/// One content on all nodes of a job.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Content {
    /// Once a node knows it.
    pub length: Option<u64>,
    /// Bytes that nodes have.
    pub held: u64,
    /// Nodes that have all of it.
    pub nodes: usize,
}

/// A node that failed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeFailure {
    /// Its name.
    pub node: String,
    /// What went wrong the last time.
    pub message: String,
    /// How often it was asked.
    pub attempts: u32,
}

/// The jobs of this replica.
#[derive(Debug, Default)]
pub(crate) struct Preheats {
    jobs: BTreeMap<String, Job>,
}

impl Preheats {
    pub(crate) fn on_warmed(&mut self, now: Duration, from: NodeId, m: &rpc::Warmed) {
        if let Some(job) = self.jobs.get_mut(&m.job) {
            job.warmed(now, from, m);
        }
    }

    /// A node's session began: what it was told before may have been lost.
    pub(crate) fn came(&mut self, now: Duration, node: NodeId) {
        self.jobs.values_mut().for_each(|job| job.came(now, node));
    }
}

impl Core {
    /// Begins a job, or goes on with it under a changed plan.
    ///
    /// # Errors
    /// There are too many.
    pub fn preheat(&mut self, now: Duration, plan: Plan) -> Result<(), String> {
        let jobs = &mut self.preheats.jobs;
        if let Some(job) = jobs.get_mut(&plan.job) {
            job.change(now, plan);
        } else if jobs.len() >= MAX_JOBS {
            return Err(format!("{MAX_JOBS} are under way: it has to wait"));
        } else {
            jobs.insert(plan.job.clone(), Job::new(now, plan));
        }
        Ok(())
    }

    /// How far a job is; `None` when there is none of this name.
    #[must_use]
    pub fn preheated(&self, job: &str) -> Option<Progress> {
        self.preheats.jobs.get(job).map(Job::progress)
    }

    /// Ends a job. `stop`: nodes give it up too; otherwise another replica goes on with it, or it is
    /// over.
    pub fn end_preheat(&mut self, job: &str, stop: bool) {
        let Some(job) = self.preheats.jobs.remove(job) else {
            return;
        };
        for node in job.active().filter(|_| stop) {
            self.send(node, job.stop());
        }
    }

    pub(crate) fn tick_preheats(&mut self) {
        if self.now < SETTLE || self.preheats.jobs.is_empty() {
            return;
        }
        let mut jobs = std::mem::take(&mut self.preheats.jobs);
        let mut out = vec![];
        for job in jobs.values_mut() {
            job.step(self.now, &self.nodes, &mut out);
        }
        self.preheats.jobs = jobs;
        for (node, message) in out {
            self.send(node, message);
        }
    }
}

impl Service {
    /// Begins a job, or goes on with it under a changed plan.
    ///
    /// # Errors
    /// There are too many.
    pub fn preheat(&self, plan: Plan) -> Result<(), String> {
        self.with(|core, now| core.preheat(now, plan))
    }

    /// How far a job is; `None` when there is none of this name.
    #[must_use]
    pub fn preheated(&self, job: &str) -> Option<Progress> {
        self.with(|core, _| core.preheated(job))
    }

    /// Ends a job; see [`Core::end_preheat`].
    pub fn end_preheat(&self, job: &str, stop: bool) {
        self.with(|core, _| core.end_preheat(job, stop));
    }
}

/// What a node is sent.
pub(crate) type Message = (NodeId, to_node::Message);
