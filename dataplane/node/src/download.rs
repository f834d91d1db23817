//! A client's request from beginning to end: what is it, who has it, here it comes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use dragonfly_proto::geometry::Geometry;
use dragonfly_proto::id::RequestKey;
use dragonfly_proto::rpc::{self, failure::Code};
use dragonfly_swarm::engine::ReaderId;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::held::{held_of, part_of};
use crate::node::Node;
use crate::task::{Task, lock, most_blocks};

/// Content that changes while it is distributed is asked for anew this often.
pub(crate) const RESTARTS: usize = 3;
static NEXT_READER: AtomicU64 = AtomicU64::new(1);

/// Which bytes a client wants.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Wish {
    /// All.
    #[default]
    Whole,
    /// From `start` to before `end`; `None`: to the end.
    Range(u64, Option<u64>),
    /// The last so many.
    Last(u64),
}

/// A download under way; dropping it ends this client's interest.
pub struct Download {
    node: Arc<Node>,
    task: Arc<Task>,
    user: u64,
    reader: ReaderId,
    start: u64,
    /// Where it ends, when the wish or the content's length says so.
    end: Option<u64>,
    request: RequestKey,
    digest: String,
    cursor: u64,
}

impl std::fmt::Debug for Download {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Download({:?}, {}..{:?})",
            self.task, self.start, self.end
        )
    }
}

impl Download {
    /// How important this download is beside others of this node: 0 (as it begins) to 7; what is
    /// above counts as 7. Each step halves its share where several contend for a link or for this
    /// node's own.
    pub fn prioritise(&self, priority: u32) {
        let priority = u8::try_from(priority).unwrap_or(u8::MAX);
        self.task.prioritise(self.user, priority);
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        let effects = self.task.remove_user(self.user);
        self.node.apply(&self.task, effects);
        let ((), effects) = self.task.drive(|s, _| s.engine.remove_reader(self.reader));
        self.node.apply(&self.task, effects);
        let over = {
            let state = self.task.state();
            state.failure.is_some() && state.wants.is_empty()
        };
        self.node.nobody_wants(&self.task);
        if over && self.node.is_current(&self.task) {
            // Nobody is left to hear why: what is held stays on disk for another attempt, and may be
            // evicted where it is in the way.
            self.node.forget_task(&self.task.key());
        }
    }
}

impl Node {
    /// Finds out what a source is and begins to get it.
    pub async fn download(
        self: &Arc<Self>,
        source: rpc::Source,
        wish: Wish,
    ) -> Result<Download, rpc::Failure> {
        self.download_ahead(source, wish, u64::MAX).await
    }

    /// Like [`Node::download`], for a client that is served slowly: of what it wants, only the first
    /// `ahead` bytes are fetched until [`Download::want_until`] says more.
    pub async fn download_ahead(
        self: &Arc<Self>,
        source: rpc::Source,
        wish: Wish,
        ahead: u64,
    ) -> Result<Download, rpc::Failure> {
        let url = source.url.clone();
        // What looking and fetching leaves running is the mesh's part, whoever asks.
        let node = self.clone();
        let begin = self
            .threads
            .spawn(async move { node.begin(source, wish, ahead).await });
        let result = AbortOnDropHandle::new(begin)
            .await
            .unwrap_or_else(|e| Err(rpc::Failure::new(Code::Internal, e.to_string())));
        if let Err(failure) = &result {
            self.metrics.failed(failure, &url);
        }
        result
    }

    async fn begin(
        self: &Arc<Self>,
        source: rpc::Source,
        wish: Wish,
        ahead: u64,
    ) -> Result<Download, rpc::Failure> {
        let (meant, task) = self.task_for(source).await?;
        let source = meant.source;
        let download = self
            .follow(task.clone(), meant.lookup, &source.digest, wish, ahead)
            .inspect_err(|_| self.let_go(&task, true))?;
        let was_let_go = !task.is_complete() && task.state().joined && lock(&task.source).is_none();
        if was_let_go {
            // Its last reader went just before this one came.
            *lock(&task.source) = Some(source);
            self.tell_held(&task);
        }
        Ok(download)
    }

    fn follow(
        self: &Arc<Self>,
        task: Arc<Task>,
        request: RequestKey,
        digest: &str,
        wish: Wish,
        ahead: u64,
    ) -> Result<Download, rpc::Failure> {
        let (start, end) = span(wish, &task.geometry())?;
        let (user, effects) = task.add_user(
            start,
            end.unwrap_or(u64::MAX).min(start.saturating_add(ahead)),
        );
        self.apply(&task, effects);
        task.notify_emission();
        let reader = ReaderId(NEXT_READER.fetch_add(1, Ordering::Relaxed));
        Ok(Download {
            node: self.clone(),
            task,
            user,
            reader,
            start,
            end,
            request,
            digest: digest.to_owned(),
            cursor: start,
        })
    }
}

/// The bytes a wish means in a content that is cut like this.
fn span(wish: Wish, g: &Geometry) -> Result<(u64, Option<u64>), rpc::Failure> {
    match (wish, g.total_len()) {
        (Wish::Whole, total) => Ok((0, total)),
        (Wish::Range(start, end), total) => {
            begins_within(start, g)?;
            let cut = |total| end.map_or(total, |e| e.min(total));
            Ok((start, total.map(cut).or(end)))
        }
        (Wish::Last(n), Some(total)) => Ok((total.saturating_sub(n), Some(total))),
        (Wish::Last(_), None) => Err(rpc::Failure::new(
            Code::Invalid,
            "the content's length is not known, so its last bytes are not either",
        )),
    }
}

/// Whether there is a byte at `start`, as far as is known by now. The empty content begins at 0 too.
fn begins_within(start: u64, g: &Geometry) -> Result<(), rpc::Failure> {
    let text = match g.total_len() {
        Some(total) if start >= total && (start, total) != (0, 0) => {
            format!("the range begins at byte {start}, the content has {total}")
        }
        None if g.block_at(start) >= most_blocks(g) => {
            let most = g.offset(most_blocks(g));
            format!(
                "the range begins at byte {start}, content of unknown length has at most {most}"
            )
        }
        _ => return Ok(()),
    };
    Err(rpc::Failure::new(Code::Invalid, text))
}

impl Download {
    /// The task.
    #[must_use]
    pub const fn task(&self) -> &Arc<Task> {
        &self.task
    }

    /// The bytes asked for; the end is unknown while the content's length is. None where they turned out
    /// to begin behind it.
    #[must_use]
    pub fn range(&self) -> (u64, Option<u64>) {
        let total = self.task.geometry().total_len();
        let end = match (self.end, total) {
            (Some(end), Some(total)) => Some(end.min(total)),
            (None, total) => total,
            (end, None) => end,
        };
        (self.start, end.map(|e| e.max(self.start)))
    }

    /// How far it is.
    #[must_use]
    pub fn progress(&self) -> rpc::Progress {
        let (start, end) = self.range();
        let t = &self.task.traffic;
        let whole = start == 0 && end == self.task.geometry().total_len();
        let have = if whole {
            self.task.held_bytes()
        } else {
            self.have_of(start, end)
        };
        rpc::Progress {
            have,
            total: end.map(|e| e - start),
            from_cache: t.cache.load(Ordering::Relaxed),
            from_origin: t.origin.load(Ordering::Relaxed),
            from_seeds: t.seeds.load(Ordering::Relaxed),
            from_peers: t.peers.load(Ordering::Relaxed),
            neighbours: self.task.neighbours() as u32,
        }
    }

    fn have_of(&self, start: u64, end: Option<u64>) -> u64 {
        let (g, range) = (self.task.geometry(), start..end.unwrap_or(u64::MAX));
        let held = held_of(&self.task, &g, &range);
        let parts = held.iter().map(|run| part_of(&g, run, &range));
        parts.map(|part| part.end.saturating_sub(part.start)).sum()
    }

    /// Whether every byte asked for is held.
    #[must_use]
    pub fn is_done(&self) -> bool {
        let (start, end) = self.range();
        match end {
            Some(_) if self.task.is_complete() => true,
            Some(end) => {
                let blocks = self.task.geometry().blocks_of(start, end);
                self.task.store.is_held_all(blocks)
            }
            None => false,
        }
    }

    /// Waits until something changed, at most `limit`.
    pub async fn changed(&self, limit: Duration) {
        let _ = tokio::time::timeout(limit, self.task.changed.notified()).await;
    }

    /// Waits until every byte asked for is held, and right where a digest says what is right.
    pub async fn finish(&self) -> Result<(), rpc::Failure> {
        let outcome = self.wait_done().await.map_err(|f| self.of_elsewhere(f));
        match &outcome {
            Ok(()) => {
                self.node.metrics.downloads_done.inc();
            }
            Err(failure) => self.node.metrics.failed(failure, &self.task.meta().url),
        }
        outcome
    }

    async fn wait_done(&self) -> Result<(), rpc::Failure> {
        let total = self.task.geometry().total_len();
        let whole = self.start == 0 && self.end.is_none_or(|e| Some(e) == total);
        let check = async {
            if whole && !self.digest.is_empty() {
                self.check_digest().await
            } else {
                Ok(())
            }
        };
        let held = async {
            loop {
                let goes_on = if whole {
                    self.task.ended.notified()
                } else {
                    self.task.changed.notified()
                };
                tokio::pin!(goes_on);
                goes_on.as_mut().enable();
                if self.is_done() {
                    // Its length may have been learnt since this began.
                    return begins_within(self.start, &self.task.geometry());
                }
                if let Some(failure) = self.task.failure() {
                    return Err(failure);
                }
                let _ = tokio::time::timeout(Duration::from_secs(1), goes_on).await;
            }
        };
        tokio::try_join!(held, check).map(|_| ())
    }

    /// That what is kept is still what its digest was compared with, for who is given the file itself;
    /// once for all who ask at a time. Who reads bytes gets none that were not compared.
    pub(crate) async fn check_kept(&self) -> Result<(), rpc::Failure> {
        if self.digest.is_empty() || !self.task.is_complete() {
            return Ok(());
        }
        let _turn = self.task.comparing.lock().await;
        let wanted = CancellationToken::new();
        let (task, unwanted) = (self.task.clone(), wanted.clone());
        let stop = self.node.stop.clone();
        let go_on = move || !unwanted.is_cancelled() && !stop.is_cancelled();
        let _until_here = wanted.drop_guard();
        let checked = tokio::task::spawn_blocking(move || task.store.check_all(go_on)).await;
        match checked {
            Ok(Ok(())) => Ok(()),
            Ok(Err(e)) => Err(self.node.unreadable_here(&self.task, &e)),
            Err(e) => Err(rpc::Failure::new(Code::Internal, e.to_string())),
        }
    }

    /// Compares the whole content with the digest it was asked for by, while it comes in; once for
    /// all who ask.
    async fn check_digest(&self) -> Result<(), rpc::Failure> {
        if self.task.store.verified().as_deref() == Some(&*self.digest) {
            return Ok(());
        }
        let check = self.task.digest.get_or_init(|| async {
            let mut sha = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
            let mut at = 0;
            while let Some(bytes) = read_from(&self.node, &self.task, at, None).await? {
                at += bytes.len() as u64;
                sha.update(&bytes);
                // What is held comes without waiting: let others of this thread have their turn.
                tokio::task::consume_budget().await;
            }
            let sum = sha.finish();
            let hex: String = sum.as_ref().iter().map(|b| format!("{b:02x}")).collect();
            Ok(format!("sha256:{hex}"))
        });
        match check.await {
            Ok(sum) if *sum == self.digest => {
                self.node.compared(&self.task, sum);
                Ok(())
            }
            Ok(sum) => {
                let text = format!(
                    "{} hashes to {sum}, not to {}: the origin holds something else, or lied",
                    self.task.meta().url,
                    self.digest
                );
                let failure = rpc::Failure::new(Code::Digest, text);
                self.task.fail(failure.clone());
                self.node.forget_task(&self.task.key());
                let _ = self.node.store.delete(&self.task.key());
                self.node.forget(&self.task.key());
                Err(failure)
            }
            Err(failure) => Err(failure.clone()),
        }
    }

    /// The next bytes in order, at most a block; `None` at the end.
    pub async fn next_chunk(&mut self) -> Result<Option<Bytes>, rpc::Failure> {
        let bytes = self.chunk_at(self.cursor).await?;
        self.cursor += bytes.as_ref().map_or(0, |b| b.len() as u64);
        Ok(bytes)
    }

    /// The bytes from `at`, at most a block; `None` at the end. Begin where [`Download::range`] does
    /// and go on in order: what is ahead of the reader is fetched first.
    pub async fn chunk_at(&self, at: u64) -> Result<Option<Bytes>, rpc::Failure> {
        let block = self.task.geometry().block_at(at);
        let ((), effects) = self.task.drive(|s, _| {
            if at == self.start {
                s.engine.add_reader(self.reader, block);
            } else {
                s.engine.move_reader(self.reader, block);
            }
        });
        self.node.apply(&self.task, effects);
        let read = read_from(&self.node, &self.task, at, self.end).await;
        let bytes = read.map_err(|f| self.of_elsewhere(f))?;
        if bytes.is_none() {
            begins_within(self.start, &self.task.geometry())?;
        }
        Ok(bytes)
    }

    /// What comes from where somebody else said, and is not what this client demands, is no fault of its
    /// own source: it begins anew, apart.
    fn of_elsewhere(&self, failure: rpc::Failure) -> rpc::Failure {
        if failure.code() == Code::Digest {
            self.node.part_from(&self.task, &self.request, failure)
        } else {
            failure
        }
    }

    /// Bytes before `end` may be fetched for this client by now.
    pub fn want_until(&self, end: u64) {
        let end = self.end.unwrap_or(u64::MAX).min(end);
        let effects = self.task.change_user(self.user, self.start, end);
        self.node.apply(&self.task, effects);
        self.task.notify_emission();
    }
}

/// Waits for the block at a byte and reads from there to its end; `None` at the end of the content
/// or at `end`. What the disk changed is let go of, and is had anew by who asks anew.
async fn read_from(
    node: &Node,
    task: &Arc<Task>,
    at: u64,
    end: Option<u64>,
) -> Result<Option<Bytes>, rpc::Failure> {
    loop {
        let changed = task.changed.notified();
        tokio::pin!(changed);
        changed.as_mut().enable();
        let g = task.geometry();
        let end = end
            .unwrap_or(u64::MAX)
            .min(g.total_len().unwrap_or(u64::MAX));
        if at >= end {
            return Ok(None);
        }
        let block = g.block_at(at);
        if task.store.is_held(block) {
            let len = u64::from(g.block_len(block).unwrap_or(0));
            let to = (g.offset(block) + len).min(end);
            let mut buf = vec![0; (to - at) as usize];
            if let Err(e) = task.store.read_checked(at, &mut buf) {
                return Err(node.unreadable_here(task, &e));
            }
            return Ok(Some(buf.into()));
        }
        if let Some(failure) = task.failure() {
            return Err(failure);
        }
        let _ = tokio::time::timeout(Duration::from_secs(1), changed).await;
    }
}

/// Downloads again what changed under way.
impl Node {
    /// Like [`Node::download`] and [`Download::finish`]; begins anew when the content changes at the
    /// origin meanwhile.
    pub async fn fetch(
        self: &Arc<Self>,
        source: &rpc::Source,
        wish: Wish,
    ) -> Result<Download, rpc::Failure> {
        let mut tries = 0;
        loop {
            let download = self.download(source.clone(), wish).await?;
            match download.finish().await {
                Ok(()) => return Ok(download),
                Err(f) if f.code() == Code::Changed && tries < RESTARTS => tries += 1,
                Err(f) => return Err(f),
            }
        }
    }
}
