//! From an origin's bytes to blocks that are signed, stored and offered.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use dragonfly_proto::geometry::Geometry;
use dragonfly_proto::rpc::{self, failure::Code};
use dragonfly_proto::trust::{Leaf, MAX_RUN};
use dragonfly_source::{Begun, ByteRange, Chunk, Mode, Plan};
use dragonfly_swarm::bitmap::BlockSet;
use futures::FutureExt;
use futures::future::BoxFuture;

use crate::node::Node;
use crate::origin::source_failure;
use crate::task::{Task, lock};
use crate::tasks::{SPACE_COMES_BACK, storage_failure};

/// A lease under which nothing was wanted for this long stops reading; it is taken up again when
/// something is.
const EMIT_IDLE: Duration = Duration::from_secs(30);
/// Bytes that one request to the origin covers at most.
pub(crate) const RANGE: u64 = 16 << 20;

/// The bytes of some blocks.
pub(crate) fn bytes_of(g: &Geometry, blocks: &Range<u32>) -> Option<ByteRange> {
    let to = g.total_len().unwrap_or(u64::MAX).min(g.offset(blocks.end));
    ByteRange::new(g.offset(blocks.start), to)
}

impl Node {
    pub(crate) async fn read_origin(
        self: &Arc<Self>,
        task: &Arc<Task>,
        begun: Begun,
    ) -> Result<(), rpc::Failure> {
        let sequential = begun.mode() == Mode::Sequential;
        let plan = EnginePlan {
            task: task.clone(),
            handed_out: Vec::new(),
        };
        // Read from the start again: only the bytes tell whether it is the same.
        let compare = sequential && begun.metadata().version().is_none();
        let mut fetch = begun.run(plan);
        let mut blocks = Assembler::new(task.clone(), compare);
        let mut ready = Vec::new();
        loop {
            // Sign what is there as soon as the origin pauses; under load, sixteen at once.
            let chunk = match fetch.next().now_or_never() {
                Some(chunk) => chunk,
                None => {
                    self.publish_soon(task, &mut ready).await?;
                    fetch.next().await
                }
            };
            let Some(chunk) = chunk else { break };
            let chunk = chunk.map_err(|e| source_failure(&e))?;
            self.metrics.from_origin.inc_by(chunk.data.len() as u64);
            task.traffic
                .origin
                .fetch_add(chunk.data.len() as u64, Ordering::Relaxed);
            blocks.add(chunk, &mut ready)?;
            if ready.len() >= MAX_RUN {
                self.publish_soon(task, &mut ready).await?;
            }
            if task.failure().is_some() || self.stop.is_cancelled() || !may_read(task) {
                return Ok(());
            }
        }
        if sequential && task.geometry().total_len().is_none() {
            self.publish_soon(task, &mut ready).await?;
            let effects = {
                let _same_word = lock(&task.signing);
                let Some(signer) = task.state().lease.clone() else {
                    return Ok(());
                };
                let size = signer.sign_size(fetch.delivered_end());
                let internal = |e| rpc::Failure::new(Code::Internal, e);
                task.take_size(&size).map_err(internal)?
            };
            self.apply(task, effects);
            blocks.finish(&mut ready);
        }
        self.publish_soon(task, &mut ready).await
    }

    /// Signs, stores and offers blocks that the origin delivered, while this node may.
    pub(crate) fn publish(
        &self,
        task: &Arc<Task>,
        ready: &mut Vec<(u32, Vec<u8>)>,
    ) -> Result<(), rpc::Failure> {
        if ready.is_empty() {
            return Ok(());
        }
        let leaves: Vec<Leaf> = ready
            .iter()
            .map(|(index, data)| Leaf {
                index: *index,
                len: data.len() as u32,
                hash: *blake3::hash(data).as_bytes(),
            })
            .collect();
        let (mut stored, mut outcome) = (0, Ok(()));
        {
            let _same_word = lock(&task.signing);
            let Some(signer) = task.state().lease.clone() else {
                ready.clear();
                return Ok(());
            };
            let proofs = signer.sign(&leaves);
            let mut bytes = Vec::new();
            for ((leaf, proof), (_, data)) in leaves.iter().zip(proofs).zip(ready.iter()) {
                bytes.clear();
                proof.encode(&mut bytes);
                if let Err(error) = self.write_block(task, leaf, data, &bytes) {
                    outcome = Err(storage_failure(&error));
                    break;
                }
                stored += 1;
            }
            // What was not stored stays, for who tries again.
            ready.drain(..stored);
        }
        let ((), effects) = task.drive(|s, now| {
            s.used = Instant::now();
            leaves
                .iter()
                .take(stored)
                .for_each(|l| s.engine.origin_block_ready(now, l.index));
        });
        self.apply(task, effects);
        task.notify();
        outcome
    }

    /// The same, and where there is no space waits a moment for what was let go of to be free.
    async fn publish_soon(
        &self,
        task: &Arc<Task>,
        ready: &mut Vec<(u32, Vec<u8>)>,
    ) -> Result<(), rpc::Failure> {
        let since = Instant::now();
        loop {
            match self.publish(task, ready) {
                Err(failure)
                    if failure.code() == Code::NoSpace && since.elapsed() < SPACE_COMES_BACK =>
                {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                outcome => {
                    // A fast origin always has more: who sends what is there has a turn first.
                    tokio::task::yield_now().await;
                    return outcome;
                }
            }
        }
    }
}

/// Whether the lease is still this node's.
fn may_read(task: &Task) -> bool {
    task.state().lease.is_some()
}

/// Asks the engine what to read next, as late as possible.
struct EnginePlan {
    task: Arc<Task>,
    /// Blocks handed out and not delivered yet.
    handed_out: Vec<Range<u32>>,
}

impl Plan for EnginePlan {
    fn next(&mut self, max: u64) -> BoxFuture<'_, Option<ByteRange>> {
        async move {
            let since = Instant::now();
            loop {
                if let Some(range) = self.pick(max) {
                    return Some(range);
                }
                let over = {
                    let s = self.task.state();
                    s.lease.is_none() || s.failure.is_some()
                };
                if over || self.task.is_complete() || since.elapsed() > EMIT_IDLE {
                    return None;
                }
                // Notifications may be taken by somebody else who waits: look again soon anyway.
                let wake = self.task.emission.notified();
                let _ = tokio::time::timeout(Duration::from_millis(100), wake).await;
            }
        }
        .boxed()
    }
}

impl EnginePlan {
    fn pick(&mut self, max: u64) -> Option<ByteRange> {
        let state = self.task.state();
        let g = state.geometry;
        let held = state.engine.held();
        self.handed_out.retain(|r| !held.contains_range(r.clone()));
        let most = (max.min(RANGE) / u64::from(g.block_size())).max(1) as u32;
        // What is under way comes back again and again: ask for so much more.
        let under_way: u32 = self.handed_out.iter().map(|r| r.end - r.start).sum();
        let wanted = state.engine.origin_wanted(most + under_way);
        let first = wanted
            .iter()
            .flat_map(Clone::clone)
            .find(|b| !self.is_out(*b))?;
        // What a reader hurries for heads the list; the request goes on over what is wanted behind
        // it, for a request of one block would waste the body that is open.
        let set: BlockSet = wanted.into_iter().collect();
        let end = (first..first.saturating_add(most))
            .find(|b| !set.contains(*b) || self.is_out(*b))
            .unwrap_or(first.saturating_add(most));
        self.handed_out.push(first..end);
        bytes_of(&g, &(first..end))
    }

    fn is_out(&self, block: u32) -> bool {
        self.handed_out.iter().any(|r| r.contains(&block))
    }
}

/// Puts chunks together to blocks.
struct Assembler {
    task: Arc<Task>,
    partial: BTreeMap<u32, Vec<u8>>,
    /// Blocks that are held are compared with what comes now.
    compare: bool,
}

impl Assembler {
    const fn new(task: Arc<Task>, compare: bool) -> Self {
        Self {
            task,
            partial: BTreeMap::new(),
            compare,
        }
    }

    fn add(&mut self, chunk: Chunk, ready: &mut Vec<(u32, Vec<u8>)>) -> Result<(), rpc::Failure> {
        let g = self.task.geometry();
        let size = u64::from(g.block_size());
        let (mut at, mut data): (u64, Bytes) = (chunk.offset, chunk.data);
        while !data.is_empty() {
            let index = (at / size) as u32;
            let len = g.block_len(index).ok_or_else(|| {
                let text = "the origin sent more than its length".to_owned();
                rpc::Failure::new(Code::OriginUnavailable, text)
            })?;
            let within = (at % size) as usize;
            let take = data.len().min(len as usize - within);
            let part = data.split_to(take);
            at += take as u64;
            if !self.compare && self.task.store.is_held(index) {
                continue;
            }
            let block = self
                .partial
                .entry(index)
                .or_insert_with(|| Vec::with_capacity(len as usize));
            if block.len() != within {
                // Chunks of a block come in order; a block whose head was held came otherwise.
                self.partial.remove(&index);
                continue;
            }
            block.extend_from_slice(&part);
            if block.len() == len as usize
                && let Some(block) = self.partial.remove(&index)
                && self.is_new(index, &block)?
            {
                ready.push((index, block));
            }
        }
        Ok(())
    }

    /// Whether a block is still to be stored.
    ///
    /// # Errors
    /// [`Code::Changed`] when another one is held in its place.
    fn is_new(&self, index: u32, block: &[u8]) -> Result<bool, rpc::Failure> {
        let held = self
            .task
            .store
            .proof(index)
            .map_err(|e| storage_failure(&e))?;
        match held {
            None => Ok(true),
            Some(held) if held.hash == *blake3::hash(block).as_bytes() => Ok(false),
            Some(_) => {
                let text = format!("{} has other bytes than before", self.task.meta().url);
                Err(rpc::Failure::new(Code::Changed, text))
            }
        }
    }

    /// The last block of content whose length was not known.
    fn finish(&mut self, ready: &mut Vec<(u32, Vec<u8>)>) {
        let last = std::mem::take(&mut self.partial);
        ready.extend(last.into_iter().filter(|(_, block)| !block.is_empty()));
    }
}
