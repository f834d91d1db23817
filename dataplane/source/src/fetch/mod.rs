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

mod job;

use crate::error::{Error, Fault, Kind, Result};
use crate::metadata::Metadata;
use crate::plan::Plan;
use crate::range::ByteRange;
use crate::retry::{RetryPolicy, Tries};
use crate::source::{Opened, Place, Request, Source};
use bytes::Bytes;
use job::{Job, Order, Stream};
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
            buffered: 8,
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

    /// What the origin says, without the bytes: for who has them, and asks whether they are current.
    /// One attempt.
    ///
    /// # Errors
    /// The source's.
    pub async fn stat(&self, request: &Request) -> Result<Metadata> {
        self.source.stat(request).await
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

    /// The place at the origin that the open body occupies: who keeps this waiting should drop it when
    /// that is wanted.
    pub fn place(&self) -> Option<Arc<dyn Place>> {
        self.opened.as_ref().and_then(|opened| opened.body.place())
    }

    /// Starts the connections. In [`Mode::Sequential`] the plan is dropped unasked.
    pub fn run(self, plan: impl Plan + 'static) -> Fetch {
        let options = self.fetcher.options;
        let (chunks, receiver) = mpsc::channel(options.buffered.max(1));
        let mut tasks = JoinSet::new();
        let Fetcher { source, .. } = self.fetcher;
        let job = Arc::new(Job::new(
            source,
            options,
            self.request,
            self.metadata,
            chunks,
        ));
        let total = job.total_len();
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
                let total = total.unwrap_or(u64::MAX);
                let useful = total.div_ceil(options.range_len.max(1)).max(1);
                let parallel = options
                    .parallel
                    .max(1)
                    .min(usize::try_from(useful).unwrap_or(usize::MAX));
                let opened = self.opened.map(Stream::new);
                let plan: Box<dyn Plan> = Box::new(plan);
                let order = Arc::new(Mutex::new(Order { plan, opened }));
                for _ in 0..parallel {
                    let (job, order) = (job.clone(), order.clone());
                    tasks.spawn(async move {
                        if let Err(error) = job.ranges(&order).await {
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
