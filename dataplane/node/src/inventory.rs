//! What a node holds, for its clients: stat, list, delete, status.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use dragonfly_proto::id::ContentKey;
use dragonfly_proto::rpc::{self, failure::Code};
use dragonfly_storage::Snapshot;

use crate::api::{Shared, checked_source, invalid};
use crate::meta::Meta;
use crate::node::{Node, unix_now_ms};
use crate::origin::meta;
use crate::task::lock;

/// Contents to delete when their last reader is done; kept with them, for a node that stops before.
pub(crate) struct Inventory {
    doomed: Mutex<HashSet<ContentKey>>,
}

impl Inventory {
    /// With what was to be deleted when the node stopped. Reads a file for each content.
    pub(crate) fn new(node: &Node) -> Self {
        let doomed = node.store.list().into_iter().map(|held| held.key);
        let doomed = doomed.filter(|key| kept_meta(node, key).is_some_and(|meta| meta.doomed));
        Self {
            doomed: Mutex::new(doomed.collect()),
        }
    }

    /// Deletes what was in use when a client asked, and is no more.
    pub(crate) fn delete_deferred(&self, node: &Node) {
        // Asked once for each: one that is let go of meanwhile is for the next time.
        let free: Vec<_> = lock(&self.doomed)
            .extract_if(|key| !in_use(node, key))
            .collect();
        for key in free {
            if let Err(error) = delete_now(node, &key) {
                tracing::warn!(task = %key.short(), %error, "cannot delete");
            }
        }
    }
}

pub(crate) fn in_use(node: &Node, key: &ContentKey) -> bool {
    node.find(key)
        .is_some_and(|task| !task.state().wants.is_empty())
}

pub(crate) fn delete_now(node: &Node, key: &ContentKey) -> dragonfly_storage::Result<bool> {
    node.forget_task(key);
    let was_there = node.store.delete(key)?;
    node.forget(key);
    Ok(was_there)
}

impl Shared {
    /// The content a client means: by its id, or by its source as last resolved, or else what came
    /// from that URL.
    async fn meant(
        &self,
        task: &str,
        source: Option<rpc::Source>,
    ) -> Result<ContentKey, rpc::Failure> {
        if !task.is_empty() {
            return task
                .parse()
                .map_err(|e| invalid(format!("{e}: a task id is 64 digits")));
        }
        let meant = self.node.identify(checked_source(source)?)?;
        let source = meant.source;
        if !source.digest.is_empty() {
            return Ok(self.node.content_of_digest(&source));
        }
        if let Some((content, _)) = self.node.store.lookup_request(&meant.lookup) {
            return Ok(content);
        }
        // Got with a digest, which makes another request of it.
        let url = meta(&source, &rpc::OriginInfo::default()).url;
        let node = self.node.clone();
        let came = tokio::task::spawn_blocking(move || came_from(&node, &url));
        let came = came.await.unwrap_or_default();
        match came.as_slice() {
            [] => Err(nothing()),
            [only] => Ok(*only),
            several => Err(invalid(format!(
                "{} contents came from there: say which by its id (`dragonfly ls`)",
                several.len()
            ))),
        }
    }

    pub(crate) async fn stat(&self, ask: rpc::StatRequest) -> rpc::StatReply {
        let found = self.meant(&ask.task, ask.source).await.and_then(|key| {
            let held = self.node.store.stat(&key).ok_or_else(nothing)?;
            Ok(describe(&self.node, &held))
        });
        match found {
            Ok(task) => rpc::StatReply {
                task: Some(task),
                failure: None,
            },
            Err(failure) => rpc::StatReply {
                task: None,
                failure: Some(failure),
            },
        }
    }

    pub(crate) async fn list(&self) -> rpc::ListReply {
        let node = self.node.clone();
        // Reads a file for each task that is not in use.
        let listed = tokio::task::spawn_blocking(move || {
            let mut tasks: Vec<_> = node
                .store
                .list()
                .iter()
                .map(|t| describe(&node, t))
                .collect();
            tasks.sort_by_key(|t| std::cmp::Reverse(t.last_used_unix_ms));
            tasks
        });
        rpc::ListReply {
            tasks: listed.await.unwrap_or_default(),
        }
    }

    pub(crate) async fn delete(&self, ask: rpc::DeleteRequest) -> rpc::DeleteReply {
        let failed = |failure| rpc::DeleteReply {
            failure: Some(failure),
            deferred: false,
        };
        let key = match self.meant(&ask.task, ask.source).await {
            Ok(key) => key,
            Err(failure) => return failed(failure),
        };
        if in_use(&self.node, &key) {
            lock(&self.inventory.doomed).insert(key);
            if let Some(task) = self.node.find(&key) {
                task.update_meta(|m| m.doomed = true);
            }
            return rpc::DeleteReply {
                failure: None,
                deferred: true,
            };
        }
        match delete_now(&self.node, &key) {
            Ok(true) => rpc::DeleteReply {
                failure: None,
                deferred: false,
            },
            Ok(false) => failed(nothing()),
            Err(e) => failed(crate::tasks::storage_failure(&e)),
        }
    }

    pub(crate) fn status(&self) -> rpc::StatusReply {
        let node = &self.node;
        let m = &node.metrics;
        let usage = node.store.usage();
        let policy = lock(&node.policy).clone();
        let connections = node.mesh().map_or(0, |mesh| mesh.len());
        rpc::StatusReply {
            node: node.identity.node.0.to_vec(),
            name: node.identity.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            schedulers: node.sessions.connected(),
            policy_revision: policy.revision,
            policy_hash: policy.hash,
            stored_bytes: usage.bytes,
            quota_bytes: usage.quota,
            connections: connections as u32,
            totals: Some(rpc::Progress {
                from_cache: m.from_cache.get(),
                from_origin: m.from_origin.get(),
                from_seeds: m.from_seeds.get(),
                from_peers: m.from_peers.get(),
                ..rpc::Progress::default()
            }),
            uploaded: m.uploaded.get(),
            side_channel: self.side.display().to_string(),
        }
    }
}

/// The contents that came from a URL without its secrets.
fn came_from(node: &Node, url: &str) -> Vec<ContentKey> {
    let held = node.store.list().into_iter().map(|held| held.key);
    held.filter(|key| kept_meta(node, key).is_some_and(|meta| meta.url == url))
        .collect()
}

fn nothing() -> rpc::Failure {
    let text = "this node holds nothing of it: `dragonfly ls` shows what it does hold";
    rpc::Failure::new(Code::NotFound, text)
}

fn describe(node: &Arc<Node>, held: &Snapshot) -> rpc::TaskStat {
    let active = node.find(&held.key);
    let meta = match &active {
        Some(task) => task.meta(),
        None => kept_meta(node, &held.key).unwrap_or_default(),
    };
    let g = held.geometry;
    let blocks = u64::from(held.held_blocks) * u64::from(g.block_size());
    let held_bytes = match (&active, g.total_len()) {
        (Some(task), _) => task.held_bytes(),
        // Exact but for a task of which only the short last block counts.
        (None, Some(total)) => blocks.min(total),
        (None, None) => blocks,
    };
    rpc::TaskStat {
        task: held.key.to_string(),
        geometry: Some((&g).into()),
        held_bytes,
        complete: held.complete,
        url: meta.url,
        digest: held.verified.clone().unwrap_or(meta.digest),
        last_used_unix_ms: unix_now_ms().saturating_sub(held.idle.as_millis() as u64),
        in_use: in_use(node, &held.key),
        neighbours: active.map_or(0, |t| t.neighbours() as u32),
        pinned: held.pinned,
        content_type: meta.content_type,
    }
}

pub(crate) fn kept_meta(node: &Node, key: &ContentKey) -> Option<Meta> {
    let kept = node.store.peek_meta(key).ok().flatten()?;
    serde_json::from_slice(&kept).ok()
}
