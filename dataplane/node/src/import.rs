//! Content that a client brings: it becomes a task that others get from this node.
//!
//! The client says the digest first (its library hashes the file before it sends it). What comes is
//! staged under a key of its own and hashed; only bytes that are the digest's become the task, so
//! that no client can put others' bytes in its place. The node asks a scheduler for a lease to sign
//! under: without any configured, the content serves this node's clients only; where none answers it is
//! refused.
//!
//! A digest speaks for itself; a URL of somebody's origin does not: only a seed may import under one.

use std::sync::Arc;
use std::time::Duration;

use dragonfly_proto::geometry::Geometry;
use dragonfly_proto::id::{ContentKey, RequestKey};
use dragonfly_proto::rpc::{self, failure::Code, from_node, import_chunk};
use dragonfly_proto::trust::MAX_RUN;
use tokio::sync::oneshot;
use tonic::{Status, Streaming};

use crate::api::{Shared, checked_source, invalid};
use crate::find::is_sha256;
use crate::meta::Meta;
use crate::node::{Node, Role, unix_now_ms};
use crate::origin::meta;
use crate::task::{Task, lock};
use crate::tasks::storage_failure;

/// A client that sends nothing for this long has gone.
const PATIENCE: Duration = Duration::from_secs(60);
/// A scheduler answers at once or not at all.
const LEASE: Duration = Duration::from_secs(5);

/// What is to come.
struct Coming {
    content: ContentKey,
    lookup: RequestKey,
    source: rpc::Source,
    origin: rpc::OriginInfo,
    geometry: Geometry,
    len: u64,
}

impl Shared {
    pub(crate) async fn import(
        &self,
        mut chunks: Streaming<rpc::ImportChunk>,
    ) -> Result<rpc::ImportReply, Status> {
        let first = next(&mut chunks).await?;
        let Some(import_chunk::Chunk::Header(header)) = first else {
            return Ok(failed(invalid("an import begins with its header")));
        };
        let coming = match Coming::check(&self.node, header) {
            Ok(coming) => coming,
            Err(failure) => return Ok(failed(failure)),
        };
        match self.take(&coming, &mut chunks).await? {
            Ok(()) => Ok(rpc::ImportReply {
                failure: None,
                task: coming.content.to_string(),
                digest: coming.source.digest,
                bytes: coming.len,
            }),
            Err(failure) => Ok(failed(failure)),
        }
    }

    async fn take(
        &self,
        coming: &Coming,
        chunks: &mut Streaming<rpc::ImportChunk>,
    ) -> Result<Result<(), rpc::Failure>, Status> {
        let node = &self.node;
        if node.has_imported(coming) {
            return Ok(Ok(()));
        }
        if node.holds(&coming.content) {
            let _ = self.drop_unproven(&coming.content);
        }
        let staged = match Staged::receive(node, coming, chunks).await? {
            Ok(staged) => staged,
            Err(failure) => return Ok(Err(failure)),
        };
        Ok(node.adopt(coming, &staged).await)
    }

    fn drop_unproven(&self, content: &ContentKey) -> dragonfly_storage::Result<bool> {
        self.node.forget_task(content);
        let deleted = self.node.store.delete(content);
        self.node.forget(content);
        deleted
    }
}

fn failed(failure: rpc::Failure) -> rpc::ImportReply {
    rpc::ImportReply {
        failure: Some(failure),
        ..rpc::ImportReply::default()
    }
}

async fn next(
    chunks: &mut Streaming<rpc::ImportChunk>,
) -> Result<Option<import_chunk::Chunk>, Status> {
    let chunk = tokio::time::timeout(PATIENCE, chunks.message()).await;
    let chunk = chunk.map_err(|_| Status::deadline_exceeded("the import sends nothing"))??;
    Ok(chunk.and_then(|c| c.chunk))
}

impl Coming {
    fn check(node: &Node, header: rpc::ImportHeader) -> Result<Self, rpc::Failure> {
        let mut source = checked_source(header.source)?;
        if !is_sha256(&source.digest) {
            let text = "an import names the digest of its bytes: sha256:<64 hex digits>";
            return Err(invalid(text));
        }
        if source.url.is_empty() {
            source.url = format!(
                "dragonfly://{}",
                source.digest.trim_start_matches("sha256:")
            );
        }
        if !source.headers.is_empty() {
            return Err(invalid("an import has no headers: nobody is asked for it"));
        }
        if !source.url.starts_with("dragonfly://") && node.identity.role != Role::Seed {
            let text = format!(
                "{} is for its origin to say what it holds: import to a seed, or as \
                 dragonfly://<name> or without a URL",
                meta(&source, &rpc::OriginInfo::default()).url
            );
            return Err(rpc::Failure::new(Code::Denied, text));
        }
        let geometry =
            Geometry::for_len(Some(header.total_len)).map_err(|e| invalid(e.to_string()))?;
        // It answers who asks for the name, without a digest.
        let digest = std::mem::take(&mut source.digest);
        let meant = node.identify(source)?;
        let mut source = meant.source;
        source.digest = digest;
        let content = ContentKey::from_digest(&source.domain, &source.digest);
        let origin = rpc::OriginInfo {
            validator: format!("imported {}", source.digest),
            content_type: header.content_type.chars().take(256).collect(),
            digest: source.digest.clone(),
            fresh_ms: node.settings().freshness.as_millis() as u64,
            ..rpc::OriginInfo::default()
        };
        Ok(Self {
            content,
            lookup: meant.lookup,
            source,
            origin,
            geometry,
            len: header.total_len,
        })
    }

    fn message(&self, held: bool) -> rpc::Import {
        rpc::Import {
            content: self.content.0.to_vec(),
            geometry: Some((&self.geometry).into()),
            source: Some(self.source.clone()),
            request_key: self.lookup.0.to_vec(),
            origin: Some(self.origin.clone()),
            held,
            alone: false,
            reading: false,
        }
    }

    fn remember(&self, node: &Node) {
        let now = unix_now_ms();
        if let Err(error) = node.store.remember_request(self.lookup, self.content, now) {
            tracing::debug!(%error, "cannot remember a request");
        }
    }
}

impl Node {
    fn holds(&self, content: &ContentKey) -> bool {
        self.store.stat(content).is_some_and(|s| s.complete)
    }

    /// Whether what is to come is here already, for whoever wants it; then its source is known by it.
    fn has_imported(self: &Arc<Self>, coming: &Coming) -> bool {
        // Held, but only proven content is for others.
        let proven = || {
            self.find_or_revive(&coming.content)
                .is_some_and(|t| !t.meta().unproven)
        };
        // What nobody compared may be something else.
        let held = self.is_compared(&coming.content, &coming.source.digest);
        let has = held && (proven() || !self.sessions.any_configured());
        if has {
            coming.remember(self);
            let named = from_node::Message::Import(coming.message(true));
            self.sessions.tell(&coming.content, named.clone());
            // The name's replica may be another than the content's.
            self.sessions.tell(&ContentKey(coming.lookup.0), named);
        }
        has
    }

    /// Makes the task of what was staged: signed, offered, known by its source. Another client may have
    /// brought the same meanwhile: the lease is for one of them, and who comes second waits.
    async fn adopt(self: &Arc<Self>, coming: &Coming, staged: &Staged) -> Result<(), rpc::Failure> {
        let gate = self.origins.adopting(coming.content);
        let _one_at_a_time = gate.lock().await;
        if self.has_imported(coming) {
            return Ok(());
        }
        let task = self.lease_for(coming).await?;
        let signed = self.sign_all(&task, staged).await;
        self.give_up_lease(&task);
        signed?;
        let verified = task.store.set_verified(&coming.source.digest);
        verified.map_err(|e| storage_failure(&e))?;
        coming.remember(self);
        if !task.is_unproven() {
            self.tell_held(&task);
        }
        Ok(())
    }

    async fn sign_all(&self, task: &Arc<Task>, staged: &Staged) -> Result<(), rpc::Failure> {
        let g = task.geometry();
        let mut ready = Vec::new();
        for index in (0..g.total_blocks().unwrap_or(0)).filter(|i| !task.store.is_held(*i)) {
            let mut block = vec![0; g.block_len(index).unwrap_or(0) as usize];
            staged
                .task
                .read_block(index, &mut block)
                .map_err(|e| storage_failure(&e))?;
            ready.push((index, block));
            if ready.len() >= MAX_RUN {
                self.publish(task, &mut ready)?;
                tokio::task::yield_now().await;
            }
        }
        self.publish(task, &mut ready)
    }

    /// A task to fill, with the right to sign its blocks.
    async fn lease_for(self: &Arc<Self>, coming: &Coming) -> Result<Arc<Task>, rpc::Failure> {
        if self
            .find(&coming.content)
            .is_some_and(|t| t.failure().is_some())
        {
            self.forget_task(&coming.content);
        }
        let (_waits, leased) = Waits::new(self, coming.content);
        if self.sessions.tell(
            &coming.content,
            from_node::Message::Import(coming.message(false)),
        ) {
            let leased = tokio::time::timeout(LEASE, leased).await;
            let named = from_node::Message::Import(coming.message(true));
            self.sessions.tell(&ContentKey(coming.lookup.0), named);
            return leased.ok().and_then(Result::ok).ok_or_else(|| {
                let text = "the scheduler gives no lease for the import: try again";
                rpc::Failure::new(Code::NoSource, text)
            });
        }
        if self.sessions.any_configured() {
            let text = "no scheduler answers, and without one nobody else could use the import";
            return Err(rpc::Failure::new(Code::NoSource, text));
        }
        let task = self.open(
            coming.content,
            coming.geometry,
            meta(&coming.source, &coming.origin),
        )?;
        // Where it is read alone meanwhile, that is by the same word.
        let _ = self.sign_alone(&task, &coming.source);
        Ok(task)
    }
}

/// An import that waits for its lease; one that gives up, or whose client goes, waits no longer.
struct Waits<'a> {
    node: &'a Node,
    content: ContentKey,
}

impl<'a> Waits<'a> {
    fn new(node: &'a Node, content: ContentKey) -> (Self, oneshot::Receiver<Arc<Task>>) {
        let (give, leased) = oneshot::channel();
        lock(&node.origins.importing).insert(content, give);
        (Self { node, content }, leased)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        lock(&self.node.origins.importing).remove(&self.content);
    }
}

/// Bytes of an import, out of everybody's sight; deleted with this.
struct Staged {
    node: Arc<Node>,
    key: ContentKey,
    task: dragonfly_storage::Task,
}

impl Drop for Staged {
    fn drop(&mut self) {
        if let Err(error) = self.node.store.delete(&self.key) {
            tracing::warn!(%error, "cannot delete what an import staged");
        }
    }
}

impl Staged {
    fn new(node: &Arc<Node>, coming: &Coming) -> Result<Self, rpc::Failure> {
        let key = ContentKey(std::array::from_fn(|_| fastrand::u8(..)));
        // Should this process die, the rest is nobody's and never offered, until it is evicted.
        let meta = Meta {
            unproven: true,
            ..Meta::default()
        };
        let meta = serde_json::to_vec(&meta).unwrap_or_default();
        let task = node.store.create_or_open(key, coming.geometry, &meta);
        Ok(Self {
            node: node.clone(),
            key,
            task: task.map_err(|e| storage_failure(&e))?,
        })
    }

    /// Takes all bytes; right only when the digest is.
    async fn receive(
        node: &Arc<Node>,
        coming: &Coming,
        chunks: &mut Streaming<rpc::ImportChunk>,
    ) -> Result<Result<Self, rpc::Failure>, Status> {
        let staged = match Self::new(node, coming) {
            Ok(staged) => staged,
            Err(failure) => return Ok(Err(failure)),
        };
        let wrong_len = |n: u64| {
            invalid(format!(
                "{n} bytes came instead of {}: did the file change?",
                coming.len
            ))
        };
        let mut sha = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
        let (mut index, mut block, mut got) = (0, Vec::new(), 0_u64);
        while let Some(chunk) = next(chunks).await? {
            let import_chunk::Chunk::Data(data) = chunk else {
                return Ok(Err(invalid("an import has one header")));
            };
            sha.update(&data);
            got += data.len() as u64;
            if got > coming.len {
                return Ok(Err(wrong_len(got)));
            }
            if let Err(e) = staged.cut(coming.geometry, &data, &mut index, &mut block) {
                return Ok(Err(storage_failure(&e)));
            }
        }
        if got != coming.len {
            return Ok(Err(wrong_len(got)));
        }
        let hex: String = sha
            .finish()
            .as_ref()
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        let found = format!("sha256:{hex}");
        if found != coming.source.digest {
            let text = format!("the bytes hash to {found}, not to {}", coming.source.digest);
            return Ok(Err(rpc::Failure::new(Code::Digest, text)));
        }
        Ok(Ok(staged))
    }

    /// Cuts what came into blocks and stores those that are whole.
    fn cut(
        &self,
        g: Geometry,
        mut data: &[u8],
        index: &mut u32,
        block: &mut Vec<u8>,
    ) -> dragonfly_storage::Result<()> {
        while let Some(len) = g.block_len(*index).filter(|_| !data.is_empty()) {
            let (part, rest) = data.split_at(data.len().min(len as usize - block.len()));
            block.extend_from_slice(part);
            data = rest;
            if block.len() < len as usize {
                break;
            }
            let hash = *blake3::hash(block).as_bytes();
            self.task.write_block(*index, block, hash, &[])?;
            block.clear();
            *index += 1;
        }
        Ok(())
    }
}
