//! What a node holds may be damaged on its disk. Blocks go from there to others unread, so it learns of it
//! from those who are sent them: they ban it, and the scheduler passes that on. Then everything that is
//! held of the content is compared with what is known of it, and deleted where it differs. What its own
//! clients read is compared first where it was held before the node had the content open.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dragonfly_proto::id::ContentKey;
use dragonfly_proto::rpc::{self, failure::Code};
use dragonfly_storage::{ErrorKind, StorageError};
use tokio_util::sync::CancellationToken;

use crate::node::Node;
use crate::task::{Task, lock};
use crate::tasks::storage_failure;

/// A content is compared no more often than this: who says that its blocks are wrong may lie, and every
/// time all of it is read.
const AGAIN: Duration = Duration::from_secs(600);
/// Contents of which it is known when that was.
const MAX_CHECKED: usize = 1024;

/// When contents were compared last, and whose turn it is.
#[derive(Debug)]
pub(crate) struct Checks {
    last: Mutex<HashMap<ContentKey, Instant>>,
    turn: tokio::sync::Mutex<()>,
}

impl Checks {
    pub(crate) fn new() -> Self {
        Self {
            last: Mutex::default(),
            turn: tokio::sync::Mutex::new(()),
        }
    }

    /// Whether a content may be compared now; it counts as done then.
    fn begins(&self, content: ContentKey, now: Instant) -> bool {
        let mut last = lock(&self.last);
        if last.len() >= MAX_CHECKED {
            last.retain(|_, at| now.duration_since(*at) < AGAIN);
        }
        let lately = last.get(&content);
        if lately.is_some_and(|at| now.duration_since(*at) < AGAIN) || last.len() >= MAX_CHECKED {
            return false;
        }
        last.insert(content, now);
        true
    }
}

impl Node {
    /// Compares what is held of a content with what is known of it, one content after the other.
    pub(crate) fn check_held(self: &Arc<Self>, content: ContentKey) {
        if !self.checks.begins(content, Instant::now()) {
            return;
        }
        let node = self.clone();
        self.threads.spawn(async move {
            let _turn = node.checks.turn.lock().await;
            let Some(held) = node.store.open_task(&content).ok().flatten() else {
                return;
            };
            let (reader, stop) = (held.clone(), node.stop.clone());
            let found = tokio::task::spawn_blocking(move || damage(&reader, &stop)).await;
            if let Ok(Some(why)) = found {
                node.damaged(&held, &why);
            }
        });
    }

    /// A read for a client failed; what it is told, which asks anew where it can.
    pub(crate) fn unreadable_here(&self, task: &Task, e: &StorageError) -> rpc::Failure {
        if !matches!(e.kind(), ErrorKind::Corrupt | ErrorKind::Io) {
            return storage_failure(e);
        }
        self.damaged(&task.store, &e.to_string());
        task.failure()
            .unwrap_or_else(|| was_damaged(&e.to_string()))
    }

    /// Lets go of a content: whoever wants it asks anew. Once, whoever notices; what is there anew by
    /// then stays.
    fn damaged(&self, held: &dragonfly_storage::Task, why: &str) {
        let content = held.key();
        match self.store.delete_this(held) {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                tracing::error!(task = %content.short(), %error, "cannot delete what is damaged");
            }
        }
        tracing::error!(task = %content.short(), why,
            "what is held is damaged on this machine's disk: it is deleted, and fetched again when it is wanted");
        self.metrics.contents_damaged.inc();
        let task = self.find(&content).filter(|t| t.store.is_same(held));
        if let Some(task) = task {
            self.forget_task(&content);
            task.fail(was_damaged(why));
        }
        self.forget_damaged(&content);
    }
}

/// How it shows that a content is not what it was, by the first block that is not.
fn damage(held: &dragonfly_storage::Task, stop: &CancellationToken) -> Option<String> {
    for block in held.held().iter() {
        if stop.is_cancelled() || held.is_deleted() {
            return None;
        }
        match held.verify_block(block) {
            Ok(true) => {}
            Ok(false) => return Some(format!("block {block} holds other bytes than were stored")),
            Err(e) if matches!(e.kind(), ErrorKind::NotHeld | ErrorKind::Deleted) => {}
            Err(e) => return Some(e.to_string()),
        }
    }
    tracing::info!(task = %held.key().short(), "compared what is held: nothing is damaged");
    None
}

/// What who reads is told: who asks anew gets it.
fn was_damaged(why: &str) -> rpc::Failure {
    let text = format!(
        "what the node held was damaged on its disk and is deleted ({why}): ask for it again"
    );
    rpc::Failure::new(Code::Changed, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_content_is_compared_once_in_a_while_and_many_are_not_remembered_for_ever() {
        let checks = Checks::new();
        let key = |n: usize| ContentKey::from_digest("", &n.to_string());
        let now = Instant::now();
        assert!(checks.begins(key(0), now));
        assert!(!checks.begins(key(0), now + AGAIN / 2));
        for n in 1..MAX_CHECKED {
            assert!(checks.begins(key(n), now + AGAIN / 2), "{n}");
        }
        assert!(!checks.begins(key(MAX_CHECKED), now + AGAIN / 2), "full");
        assert!(checks.begins(key(0), now + AGAIN), "its time has come");
        assert!(checks.begins(key(MAX_CHECKED), now + AGAIN * 2));
        assert_eq!(lock(&checks.last).len(), 1, "the others' is over");
    }
}
