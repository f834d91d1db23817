//! Contents that a person has all nodes delete or keep: asked of every node with a session, answers
//! summed.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use dragonfly_proto::id::NodeId;
use dragonfly_proto::rpc::{self, to_node};

use crate::core::Core;
use crate::service::Service;

/// How long nodes are waited for: they read a file for each content that they hold.
const ANSWER: Duration = Duration::from_secs(20);
/// Requests at once.
const MAX: usize = 32;
/// Failures that are told.
const MAX_FAILURES: usize = 10;

/// What came of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Done {
    /// Nodes that were asked.
    pub asked: usize,
    /// Nodes that answered.
    pub answered: usize,
    /// Contents, each counted on each node.
    pub contents: u64,
    /// Their bytes on disk.
    pub bytes: u64,
    /// Contents that were not deleted, for somebody uses them.
    pub in_use: u64,
    /// What went wrong: node and why, the first ten.
    pub failures: Vec<(String, String)>,
}

/// Requests that wait for answers.
#[derive(Debug, Default)]
pub(crate) struct Tending {
    next: u64,
    open: HashMap<u64, Open>,
}

#[derive(Debug, Default)]
struct Open {
    /// With their names.
    waits: HashMap<NodeId, String>,
    done: Done,
}

impl Tending {
    pub(crate) fn on_tended(&mut self, from: NodeId, m: &rpc::Tended) {
        let Some(open) = self.open.get_mut(&m.id) else {
            return;
        };
        let Some(name) = open.waits.remove(&from) else {
            return;
        };
        let done = &mut open.done;
        done.answered += 1;
        done.contents += u64::from(m.contents);
        done.bytes = done.bytes.saturating_add(m.bytes);
        done.in_use += u64::from(m.in_use);
        if let Some(failure) = &m.failure
            && done.failures.len() < MAX_FAILURES
        {
            let text: String = failure.message.chars().take(200).collect();
            done.failures.push((name, text));
        }
    }
}

impl Core {
    /// Asks every node with a session; the number of the request, `None` when too many wait.
    pub fn tend(&mut self, tend: rpc::Tend) -> Option<u64> {
        if self.tending.open.len() >= MAX {
            return None;
        }
        self.tending.next += 1;
        let id = self.tending.next;
        let nodes = self.nodes.iter().filter(|(_, e)| e.gone.is_none());
        let waits: HashMap<_, _> = nodes.map(|(id, e)| (*id, e.hello.name.clone())).collect();
        let all: BTreeSet<_> = waits.keys().copied().collect();
        let done = Done {
            asked: all.len(),
            ..Done::default()
        };
        self.tending.open.insert(id, Open { waits, done });
        for node in all {
            let message = rpc::Tend { id, ..tend.clone() };
            self.send(node, to_node::Message::Tend(message));
        }
        Some(id)
    }

    /// What came of a request by now; `None` while nodes are to answer, unless it is not waited for any
    /// longer.
    pub fn tended(&mut self, id: u64, wait: bool) -> Option<Done> {
        let open = self.tending.open.get(&id)?;
        if wait && !open.waits.is_empty() {
            return None;
        }
        self.tending.open.remove(&id).map(|open| open.done)
    }
}

impl Service {
    /// Asks every node, and waits for answers.
    ///
    /// # Errors
    /// Too many such requests are under way.
    pub async fn tend(&self, tend: rpc::Tend) -> Result<Done, String> {
        let id = self.with(|core, _| core.tend(tend));
        let id = id.ok_or("too many such requests are under way: ask again later")?;
        let until = tokio::time::Instant::now() + ANSWER;
        while tokio::time::Instant::now() < until {
            if let Some(done) = self.with(|core, _| core.tended(id, true)) {
                return Ok(done);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let done = self.with(|core, _| core.tended(id, false));
        Ok(done.unwrap_or_default())
    }
}
