//! Getting the bytes of a content from its origin: what a seed runs.
//!
//! # Two modes
//! * **Ranges**: the origin does ranges, the length is known, and a validator (or a digest that the
//!   caller checks at the end) guards against a change. Several connections ask the [`Plan`] for
//!   what is wanted next.
//! * **Sequential**: anything else. One GET from the first byte to the last; every byte is
//!   delivered in order and the plan is not asked. The length may be known only at the end.
//!
//! # After a cut
//! With ranges, from the byte where it stopped, under `If-Range`. Without, again from the first byte,
//! skipping what was delivered: where the validator is not strong, the skipped bytes are hashed and
//! must equal those delivered before, else it is another content.
//!
//! # Invariants
//! Chunks of one range come in order; each byte is delivered once; bytes of two versions are never
//! mixed (the fetch ends with [`Kind::ContentChanged`] and the caller begins again under a new
//! content key). All tasks end when the [`Fetch`] is dropped. At most [`FetchOptions::buffered`]
//! chunks wait for the consumer: a slow one slows the origin down.

use crate::error::{Error, Fault, Kind, Result};
use crate::metadata::Metadata;
use crate::plan::Plan;
use crate::range::ByteRange;
use crate::retry::{RetryPolicy, Tries};
use crate::source::{Body, Opened, Request, Source};
use bytes::Bytes;
use std::sync::Arc;
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;

/// How to fetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FetchOptions {
    /// Range requests at once for one content; the limit of the origin holds as well.
    pub parallel: usize,
    /// Longest range of one request in bytes; also what the first request asks for.
    pub range_len: u64,
    /// An open body is read on over a gap of at most this many unwanted bytes rather than a new
    /// request made.
    pub skip_len: u64,
    /// Chunks that wait for the consumer.
    pub buffered: usize,
    /// When to try again.
    pub retry: RetryPolicy,
}

impl Default for FetchOptions {
    fn default() -> Self {
        Self {
            parallel: 4,
            range_len: 16 << 20,
            skip_len: 256 << 10,
            buffered: 32,
            retry: RetryPolicy::default(),
        }
    }
}

/// Bytes and where they belong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Offset in the content.
    pub offset: u64,
    /// Never empty.
    pub data: Bytes,
}

/// How a fetch goes about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The plan decides which bytes come and in which order.
    Ranges,
    /// All bytes come from the first to the last.
    Sequential,
}

/// Fetches from one source.
#[derive(Clone)]
pub struct Fetcher {
    source: Arc<dyn Source>,
    options: FetchOptions,
}

impl Fetcher {
    /// A fetcher; cheap to clone.
    pub fn new(source: Arc<dyn Source>, options: FetchOptions) -> Self {
        Self { source, options }
    }

    /// Asks the origin what the content is and for its first bytes, in one request. `first` is what
    /// will be wanted first (default: the start); the answer's body is kept open for the plan.
    ///
    /// # Errors
    /// Permanent ones at once, temporary ones when the attempts are used up.
    pub async fn begin(&self, request: Request, first: Option<ByteRange>) -> Result<Begun> {
        let first = match first {
            Some(first) => first.split(self.options.range_len).0,
            None => ByteRange::new(0, self.options.range_len.max(1)),
        };
        let mut range = first;
        let mut refuses_ranges = false;
        let mut tries = Tries::new(self.options.retry);
        loop {
            match self.source.open(&request, range, None).await {
                Ok(mut opened) => {
                    // It may claim ranges and refuse them all the same.
                    opened.metadata.accepts_ranges &= !refuses_ranges;
                    let whole = opened.start == 0
                        && (opened.end.is_none() || opened.end == opened.metadata.total_len);
                    let mode = mode(&request, &opened.metadata);
                    if mode == Mode::Sequential && !whole && range.is_some() {
                        // A part that cannot be joined safely with the rest: ask for everything.
                        range = None;
                        continue;
                    }
                    let metadata = opened.metadata.clone();
                    let fetcher = self.clone();
                    return Ok(Begun {
                        fetcher,
                        request,
                        metadata,
                        mode,
                        opened: Some(opened),
                    });
                }
                // Some origins refuse any range, or one of a content that they make up as they go.
                Err(error)
                    if range.is_some_and(|range| range.start() == 0)
                        && matches!(error.status(), Some(400 | 416 | 501)) =>
                {
                    range = None;
                    refuses_ranges = true;
                }
                Err(error) => tries.pause(error, 0).await?,
            }
        }
    }

    /// Goes on with a content that is known already: no request is made until the plan wants bytes.
    /// An origin that has another version by now ends the fetch with [`Kind::ContentChanged`].
    pub fn resume(&self, request: Request, metadata: Metadata) -> Begun {
        let mode = mode(&request, &metadata);
        Begun {
            fetcher: self.clone(),
            request,
            metadata,
            mode,
            opened: None,
        }
    }
}

fn mode(request: &Request, metadata: &Metadata) -> Mode {
    let known = metadata.accepts_ranges && metadata.total_len.is_some();
    if metadata.can_split() || (known && request.is_checked_at_end()) {
        Mode::Ranges
    } else {
        Mode::Sequential
    }
}

/// A content whose metadata are known; no byte has been delivered yet.
pub struct Begun {
    fetcher: Fetcher,
    request: Request,
    metadata: Metadata,
    mode: Mode,
    opened: Option<Opened>,
}

impl Begun {
    /// What the origin said.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Whether the plan will be asked.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Starts the connections. In [`Mode::Sequential`] the plan is dropped unasked.
    pub fn run(self, plan: impl Plan + 'static) -> Fetch {
        let options = self.fetcher.options;
        let (chunks, receiver) = mpsc::channel(options.buffered.max(1));
        let mut tasks = JoinSet::new();
        let job = Arc::new(Job {
            source: self.fetcher.source,
            options,
            request: self.request,
            metadata: self.metadata,
            chunks,
        });
        match self.mode {
            Mode::Sequential => {
                let stream = self.opened.map(Stream::new);
                tasks.spawn(async move {
                    if let Err(error) = job.sequential(stream).await {
                        job.fail(error).await;
                    }
                });
            }
            Mode::Ranges => {
                let total = job.metadata.total_len.unwrap_or(u64::MAX);
                let useful = total.div_ceil(options.range_len.max(1)).max(1);
                let parallel = options
                    .parallel
                    .max(1)
                    .min(usize::try_from(useful).unwrap_or(usize::MAX));
                let plan: Arc<Mutex<Box<dyn Plan>>> = Arc::new(Mutex::new(Box::new(plan)));
                let mut stream = self.opened.map(Stream::new);
                for _ in 0..parallel {
                    let (job, plan, stream) = (job.clone(), plan.clone(), stream.take());
                    tasks.spawn(async move {
                        if let Err(error) = job.ranges(&plan, stream).await {
                            job.fail(error).await;
                        }
                    });
                }
            }
        }
        Fetch {
            chunks: receiver,
            tasks,
            delivered_end: 0,
            done: false,
        }
    }
}

/// A running fetch; dropping it stops it.
pub struct Fetch {
    chunks: mpsc::Receiver<Result<Chunk>>,
    tasks: JoinSet<()>,
    delivered_end: u64,
    done: bool,
}

impl Fetch {
    /// The next bytes; `None` when all that was wanted has come. After an error only `None` comes.
    /// Safe to cancel.
    ///
    /// # Errors
    /// [`Kind::ContentChanged`]: throw away what came and begin again. Others are final: temporary
    /// ones have been tried again already.
    pub async fn next(&mut self) -> Option<Result<Chunk>> {
        if self.done {
            return None;
        }
        match self.chunks.recv().await {
            Some(Ok(chunk)) => {
                let end = chunk.offset + u64::try_from(chunk.data.len()).unwrap_or(0);
                self.delivered_end = self.delivered_end.max(end);
                Some(Ok(chunk))
            }
            Some(Err(error)) => {
                self.done = true;
                self.tasks.abort_all();
                Some(Err(error))
            }
            None => {
                self.done = true;
                // All senders are gone: either every task ended well or one died unheard.
                while let Some(ended) = self.tasks.join_next().await {
                    if ended.is_err() {
                        return Some(Err(Error::temporary(
                            Kind::Cancelled,
                            Fault::Here,
                            "a task of the fetch died: try again",
                        )));
                    }
                }
                None
            }
        }
    }

    /// One past the last byte delivered so far: in [`Mode::Sequential`], once [`Fetch::next`] gave
    /// `None`, the length of the content.
    pub fn delivered_end(&self) -> u64 {
        self.delivered_end
    }
}

/// An open body and where it stands.
struct Stream {
    body: Body,
    pos: u64,
    end: Option<u64>,
    /// Read but beyond the range that was being filled.
    rest: Option<Bytes>,
}

impl Stream {
    fn new(opened: Opened) -> Self {
        Self {
            body: opened.body,
            pos: opened.start,
            end: opened.end,
            rest: None,
        }
    }

    /// True when `pos` can be reached by reading on over at most `skip` bytes.
    fn reaches(&self, pos: u64, skip: u64) -> bool {
        self.pos <= pos && pos - self.pos <= skip && self.end.is_none_or(|end| pos < end)
    }

    async fn next(&mut self) -> Result<Option<Bytes>> {
        let chunk = match self.rest.take() {
            Some(rest) => Some(rest),
            None => self.body.next_chunk().await?,
        };
        if let Some(chunk) = &chunk {
            self.pos += len(chunk);
        }
        Ok(chunk)
    }

    fn put_back(&mut self, rest: Bytes) {
        if !rest.is_empty() {
            self.pos -= len(&rest);
            self.rest = Some(rest);
        }
    }
}

fn len(chunk: &Bytes) -> u64 {
    u64::try_from(chunk.len()).unwrap_or(u64::MAX)
}

/// Splits off the first `at` bytes; all of them when there are fewer.
fn split(chunk: &mut Bytes, at: u64) -> Bytes {
    let at = usize::try_from(at).unwrap_or(usize::MAX).min(chunk.len());
    chunk.split_to(at)
}

/// What the tasks of one fetch share.
struct Job {
    source: Arc<dyn Source>,
    options: FetchOptions,
    request: Request,
    metadata: Metadata,
    chunks: mpsc::Sender<Result<Chunk>>,
}

impl Job {
    async fn fail(&self, error: Error) {
        let _ = self.chunks.send(Err(error)).await;
    }

    /// Hands a chunk to the consumer; an error when it is gone.
    async fn deliver(&self, offset: u64, data: Bytes) -> Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        self.chunks
            .send(Ok(Chunk { offset, data }))
            .await
            .map_err(|_| {
                Error::permanent(
                    Kind::Cancelled,
                    Fault::Here,
                    "the consumer of the fetch is gone",
                )
            })
    }

    async fn open(&self, range: Option<ByteRange>) -> Result<Stream> {
        let opened = self
            .source
            .open(&self.request, range, Some(&self.metadata))
            .await?;
        // Every adapter should have done this; a mixed content is too dear to rely on it.
        if !self.metadata.same_content(&opened.metadata) {
            return Err(Error::permanent(
                Kind::ContentChanged,
                Fault::Origin,
                format!("{} changed under way: start again", self.request.display()),
            ));
        }
        Ok(Stream::new(opened))
    }

    /// One connection of [`Mode::Ranges`].
    async fn ranges(&self, plan: &Mutex<Box<dyn Plan>>, mut stream: Option<Stream>) -> Result<()> {
        loop {
            // A body at its end is dropped before the wait: its place at the origin is for others.
            stream = stream.filter(|stream| stream.end.is_none_or(|end| stream.pos < end));
            let next = plan.lock().await.next(self.options.range_len.max(1)).await;
            let Some(range) = next else {
                return Ok(());
            };
            if let Some(total) = self.metadata.total_len
                && range.end() > total
            {
                return Err(Error::permanent(
                    Kind::RangeNotSatisfiable,
                    Fault::Caller,
                    format!(
                        "bytes {range} of {} do not exist: it has {total}",
                        self.request.display()
                    ),
                ));
            }
            self.fill(range, &mut stream).await?;
        }
    }

    /// Delivers all of `range`, from the open stream if it fits, with as many requests as it takes.
    async fn fill(&self, range: ByteRange, stream: &mut Option<Stream>) -> Result<()> {
        let mut tries = Tries::new(self.options.retry);
        let mut pos = range.start();
        let mut before = pos;
        while pos < range.end() {
            if let Err(error) = self.advance(&mut pos, range, stream).await {
                *stream = None;
                tries.pause(error, pos - before).await?;
                before = pos;
            }
        }
        // Reading up to the end shows an origin that sends more than it announced, and lets the
        // connection be used again. A cut at this point does no harm any more.
        if let Some(mut finished) = stream.take_if(|stream| stream.end == Some(stream.pos))
            && let Err(error) = finished.body.next_chunk().await
            && error.kind() == Kind::LengthMismatch
        {
            return Err(error);
        }
        Ok(())
    }

    /// Delivers at least one byte of `range` from `pos` on, or skips some before it.
    async fn advance(
        &self,
        pos: &mut u64,
        range: ByteRange,
        stream: &mut Option<Stream>,
    ) -> Result<()> {
        let current = match stream
            .take()
            .filter(|s| s.reaches(*pos, self.options.skip_len))
        {
            Some(open) => stream.insert(open),
            None => {
                let opened = self.open(ByteRange::new(*pos, range.end())).await?;
                if opened.pos > *pos || opened.end.is_some_and(|end| end <= *pos) {
                    return Err(Error::permanent(
                        Kind::Protocol,
                        Fault::Origin,
                        format!(
                            "{} sent another range than asked for",
                            self.request.display()
                        ),
                    ));
                }
                stream.insert(opened)
            }
        };
        // An origin that ignored the range sends everything: what comes before is not kept.
        while current.pos < *pos {
            let missing = *pos - current.pos;
            let Some(mut chunk) = current.next().await? else {
                return Err(self.short(current.pos));
            };
            drop(split(&mut chunk, missing));
            current.put_back(chunk);
        }
        let Some(mut chunk) = current.next().await? else {
            return Err(self.short(current.pos));
        };
        let wanted = split(&mut chunk, range.end() - *pos);
        current.put_back(chunk);
        let count = len(&wanted);
        self.deliver(*pos, wanted).await?;
        *pos += count;
        Ok(())
    }

    fn short(&self, at: u64) -> Error {
        Error::temporary(
            Kind::LengthMismatch,
            Fault::Origin,
            format!(
                "{} ended at byte {at}, before the length it stated",
                self.request.display()
            ),
        )
    }

    /// [`Mode::Sequential`].
    async fn sequential(&self, mut stream: Option<Stream>) -> Result<()> {
        let mut tries = Tries::new(self.options.retry);
        // Without a strong validator only the bytes themselves tell whether a second answer is
        // the same content, so those delivered are hashed.
        let mut held = (!self.metadata.validator.is_strong()).then(blake3::Hasher::new);
        let (mut pos, mut before) = (0, 0);
        loop {
            match self.sequential_step(&mut stream, &mut pos, &mut held).await {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) => {
                    stream = None;
                    tries.pause(error, pos - before).await?;
                    before = pos;
                }
            }
        }
    }

    /// Delivers the next chunk; `true` at the end.
    async fn sequential_step(
        &self,
        stream: &mut Option<Stream>,
        pos: &mut u64,
        held: &mut Option<blake3::Hasher>,
    ) -> Result<bool> {
        let current = match stream {
            Some(open) => open,
            None => stream.insert(self.reopen(*pos, held.as_ref()).await?),
        };
        match current.next().await? {
            Some(chunk) => {
                if self
                    .metadata
                    .total_len
                    .is_some_and(|total| current.pos > total)
                {
                    return Err(Error::permanent(
                        Kind::LengthMismatch,
                        Fault::Origin,
                        format!("{} sent more bytes than it stated", self.request.display()),
                    ));
                }
                if let Some(held) = held {
                    held.update(&chunk);
                }
                let count = len(&chunk);
                self.deliver(*pos, chunk).await?;
                *pos += count;
                Ok(false)
            }
            None if self.metadata.total_len.is_some_and(|total| *pos < total) => {
                Err(self.short(*pos))
            }
            None => Ok(true),
        }
    }

    /// A stream that stands at `pos`: by an open range where that is safe, else from the start.
    async fn reopen(&self, pos: u64, held: Option<&blake3::Hasher>) -> Result<Stream> {
        let by_range =
            pos > 0 && self.metadata.accepts_ranges && self.metadata.validator.if_range().is_some();
        let range = if by_range {
            ByteRange::new(pos, ByteRange::OPEN)
        } else {
            None
        };
        let mut stream = self.open(range).await?;
        if stream.pos == pos {
            return Ok(stream);
        }
        if stream.pos != 0 {
            return Err(Error::permanent(
                Kind::Protocol,
                Fault::Origin,
                format!(
                    "{} sent another range than asked for",
                    self.request.display()
                ),
            ));
        }
        let mut again = held.map(|_| blake3::Hasher::new());
        while stream.pos < pos {
            let missing = pos - stream.pos;
            let Some(mut chunk) = stream.next().await? else {
                return Err(self.changed("is shorter than before"));
            };
            let old = split(&mut chunk, missing);
            if let Some(again) = &mut again {
                again.update(&old);
            }
            stream.put_back(chunk);
        }
        match (held, again) {
            (Some(held), Some(again)) if held.finalize() != again.finalize() => {
                Err(self.changed("has other bytes than before"))
            }
            _ => Ok(stream),
        }
    }

    fn changed(&self, how: &str) -> Error {
        Error::permanent(
            Kind::ContentChanged,
            Fault::Origin,
            format!(
                "{} {how}: it changed under way, start again",
                self.request.display()
            ),
        )
    }
}
