//! A digest that clients demand from several places: the first place is read for all, until somebody has
//! compared the whole with the digest. Who names another place meanwhile gets the content apart, from there,
//! under a key of its own; so does for a while who was given something else. (The scheduler's part is in its
//! `digests`.)

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dragonfly_proto::id::{ContentKey, RequestKey};
use dragonfly_proto::rpc::{self, failure::Code, from_node};

use crate::find::Meant;
use crate::inventory::kept_meta;
use crate::meta::to_hex;
use crate::node::{Node, unix_now_ms};
use crate::task::{Task, lock};

/// For so long a digest that was something else is had apart.
const APART: Duration = Duration::from_secs(600);
/// Digests of which that is remembered.
const MAX_APART: usize = 1024;

/// Contents known by their digest that were something else when they were had with others.
#[derive(Default)]
pub(crate) struct Parted(Mutex<HashMap<ContentKey, Instant>>);

impl Parted {
    fn add(&self, content: ContentKey) {
        let mut all = lock(&self.0);
        all.retain(|_, since| since.elapsed() < APART);
        if all.len() >= MAX_APART {
            all.clear();
        }
        all.insert(content, Instant::now());
    }

    fn has(&self, content: &ContentKey) -> bool {
        let since = lock(&self.0).get(content).copied();
        since.is_some_and(|since| since.elapsed() < APART)
    }
}

fn elsewhere() -> rpc::Failure {
    let text = "this digest is being read from where somebody else said: it is to be had apart";
    rpc::Failure::new(Code::Digest, text)
}

impl Node {
    /// What a client means, and the task of it: with others who demand the same digest, or apart.
    pub(crate) async fn task_for(
        self: &Arc<Self>,
        source: rpc::Source,
    ) -> Result<(Meant, Arc<Task>), rpc::Failure> {
        let meant = self.identify(source)?;
        let shared = meant.source.shared();
        let parted = shared.is_some_and(|content| self.parted.has(&content));
        let found = if parted && self.held_by_digest(&meant.lookup, &meant.source).is_none() {
            Err(elsewhere())
        } else {
            self.find_task(&meant).await
        };
        match found {
            Err(f) if f.code() == Code::Digest && shared.is_some() => {
                let apart = self.identify(rpc::Source {
                    apart: true,
                    ..meant.source
                })?;
                let task = self.find_task(&apart).await?;
                Ok((apart, task))
            }
            found => found.map(|task| (meant, task)),
        }
    }

    /// The request by which a digest is asked for that others may ask for too; empty for all else.
    pub(crate) fn asked_by(&self, source: &rpc::Source) -> Vec<u8> {
        let shared = source.shared();
        let meant = shared.and_then(|_| self.identify(source.clone()).ok());
        meant.map_or(vec![], |meant| meant.lookup.0.to_vec())
    }

    /// What this node holds whole of a digest: compared with it, or read for the same request.
    pub(crate) fn held_by_digest(
        &self,
        key: &RequestKey,
        source: &rpc::Source,
    ) -> Option<ContentKey> {
        let content = source.content(key, "");
        if self.is_compared(&content, &source.digest) {
            return Some(content);
        }
        let apart = source.shared().and_then(|shared| self.had_apart(&shared));
        if let Some(apart) = apart.filter(|apart| self.is_compared(apart, &source.digest)) {
            return Some(apart);
        }
        let whole = self.store.stat(&content).is_some_and(|held| held.complete);
        let request = self.read_for(&content);
        let own = request.is_empty() || request == to_hex(&key.0);
        (whole && (own || source.apart)).then_some(content)
    }

    /// The content that a client means by a digest: the one that was compared with it, where there is one.
    pub(crate) fn content_of_digest(&self, source: &rpc::Source) -> ContentKey {
        let shared = ContentKey::from_digest(&source.domain, &source.digest);
        let apart = self.had_apart(&shared);
        let apart = apart.filter(|apart| self.is_compared(apart, &source.digest));
        match apart {
            Some(apart) if !self.is_compared(&shared, &source.digest) => apart,
            _ => shared,
        }
    }

    pub(crate) fn is_compared(&self, content: &ContentKey, digest: &str) -> bool {
        let held = self.store.stat(content).filter(|held| held.complete);
        held.is_some_and(|held| held.verified.as_deref() == Some(digest))
    }

    /// What was had apart and compared, of a digest that goes by this key.
    fn had_apart(&self, shared: &ContentKey) -> Option<ContentKey> {
        let remembered = self.store.lookup_request(&RequestKey(shared.0));
        remembered.map(|(content, _)| content)
    }

    /// The request whose source the blocks here are of; empty where that is not known.
    fn read_for(&self, content: &ContentKey) -> String {
        let task = self.find(content).map(|task| task.meta());
        let meta = task.or_else(|| kept_meta(self, content));
        meta.map(|meta| meta.request).unwrap_or_default()
    }

    /// Whether what is here of a content may be something else than what a request brings.
    fn is_of_others(&self, content: &ContentKey, request: &str) -> bool {
        let Some(held) = self
            .store
            .stat(content)
            .filter(|held| held.verified.is_none())
        else {
            return false;
        };
        let read = self
            .find(content)
            .is_some_and(|task| !task.state().wants.is_empty());
        let of = self.read_for(content);
        (held.held_blocks > 0 || read) && !of.is_empty() && of != request
    }

    /// The request that a digest is read by, to be kept with it. An error of code digest: what is here of
    /// it was read for others, and may be something else.
    pub(crate) fn apart_from_others(
        &self,
        key: &RequestKey,
        source: &rpc::Source,
        joined: Option<&rpc::Joined>,
    ) -> Result<Vec<u8>, rpc::Failure> {
        let Some(content) = source.shared() else {
            return Ok(vec![]);
        };
        let told = joined.map(|j| &*j.request_key).filter(|k| !k.is_empty());
        let reads = told.unwrap_or(&key.0);
        if self.is_of_others(&content, &to_hex(reads)) {
            return Err(elsewhere());
        }
        Ok(reads.to_vec())
    }

    /// Another source of a digest is to be read than what is here was read from, or a client brings it: what
    /// is here may be something else, and goes, unless somebody here reads it.
    pub(crate) fn discard_others(
        &self,
        content: &ContentKey,
        request: &[u8],
    ) -> Result<(), rpc::Failure> {
        let brought = lock(&self.origins.importing).contains_key(content);
        let others = !request.is_empty() && self.is_of_others(content, &to_hex(request));
        let partial = self
            .store
            .stat(content)
            .is_some_and(|held| held.verified.is_none());
        let may_stay = !(brought && partial || others);
        if may_stay {
            return Ok(());
        }
        if self
            .find(content)
            .is_some_and(|task| !task.state().wants.is_empty())
        {
            let text =
                "a client here reads this digest from elsewhere: ask again when it has ended";
            return Err(rpc::Failure::new(Code::Internal, text));
        }
        self.forget_task(content);
        let deleted = self.store.delete(content);
        deleted
            .map(|_| ())
            .map_err(|e| crate::tasks::storage_failure(&e))
    }

    /// Takes note of the request that the others read a digest by, before anything of it is here.
    pub(crate) fn note_reads(&self, task: &Task, request: &[u8]) {
        let reads = to_hex(request);
        if !request.is_empty() && task.store.held_count() == 0 && task.meta().request != reads {
            task.update_meta(|meta| meta.request = reads);
        }
    }

    /// The whole of a task is what its digest says: from now on it is for all who demand that.
    pub(crate) fn compared(&self, task: &Task, digest: &str) {
        if let Err(error) = task.store.set_verified(digest) {
            tracing::warn!(%error, "cannot keep that the content was checked");
        }
        let shared = ContentKey::from_digest(&task.meta().domain, digest);
        if task.key() == shared {
            let compared = rpc::Compared {
                content: shared.0.to_vec(),
            };
            self.sessions
                .tell(&shared, from_node::Message::Compared(compared));
            return;
        }
        let kept = self
            .store
            .remember_request(RequestKey(shared.0), task.key(), unix_now_ms());
        if let Err(error) = kept {
            tracing::debug!(%error, "cannot remember a request");
        }
    }

    /// A scheduler that restarted has others read a digest from elsewhere: who waits here begins anew, apart.
    pub(crate) fn parted(&self, task: &Task) {
        if !task.is_complete() && !task.state().wants.is_empty() {
            self.parted.add(task.key());
            task.fail(rpc::Failure::new(Code::Changed, elsewhere().message));
        }
    }

    /// A task is not what its digest says: where it was read for another's request, that is no fault of this
    /// one's source, which is read apart from now on.
    pub(crate) fn part_from(
        &self,
        task: &Task,
        request: &RequestKey,
        failure: rpc::Failure,
    ) -> rpc::Failure {
        let of = task.meta().reads(&task.key());
        if of.is_empty() || of == request.0 {
            return failure;
        }
        self.parted.add(task.key());
        let text = "what others have for this digest, from where somebody else said, is something else: it \
                    is asked for anew, where this client says";
        rpc::Failure::new(Code::Changed, text)
    }
}
