//! The connections of one fetch: what each does with the ranges it is given, and what after a cut.
//!
//! Invariant: a byte is handed to the consumer only after the answer it came in was found to be of the
//! version that the fetch began with.

use super::{Chunk, FetchOptions};
use crate::error::{Error, Fault, Kind, Result};
use crate::metadata::Metadata;
use crate::plan::Plan;
use crate::range::ByteRange;
use crate::retry::Tries;
use crate::source::{Body, Opened, Place, Request, Source};
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{Mutex, mpsc};

/// A body that nothing was wanted of for this long is not worth a place that another request waits for.
const IDLE: Duration = Duration::from_millis(500);

/// What the connections of one fetch share: whose turn it is to fetch what.
pub(super) struct Order {
    pub(super) plan: Box<dyn Plan>,
    /// The body that came with the first answer.
    pub(super) opened: Option<Stream>,
}

/// An open body and where it stands.
pub(super) struct Stream {
    body: Body,
    pos: u64,
    end: Option<u64>,
    /// The origin ignored the range and sends everything: reading on is never dearer than asking
    /// again, since that would begin at the first byte too.
    ignored_range: bool,
    /// Read but beyond the range that was being filled.
    rest: Option<Bytes>,
}

impl Stream {
    pub(super) fn new(opened: Opened) -> Self {
        Self {
            body: opened.body,
            pos: opened.start,
            end: opened.end,
            ignored_range: false,
            rest: None,
        }
    }

    /// True when `pos` can be reached by reading on over at most `skip` bytes.
    fn reaches(&self, pos: u64, skip: u64) -> bool {
        self.pos <= pos
            && (self.ignored_range || pos - self.pos <= skip)
            && self.end.is_none_or(|end| pos < end)
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

async fn wanted_while_idle(place: &dyn Place) {
    tokio::time::sleep(IDLE).await;
    place.wanted().await;
}

/// Splits off the first `at` bytes; all of them when there are fewer.
fn split(chunk: &mut Bytes, at: u64) -> Bytes {
    let at = usize::try_from(at).unwrap_or(usize::MAX).min(chunk.len());
    chunk.split_to(at)
}

/// What the tasks of one fetch share.
pub(super) struct Job {
    source: Arc<dyn Source>,
    options: FetchOptions,
    request: Request,
    metadata: Metadata,
    chunks: mpsc::Sender<Result<Chunk>>,
    /// Set once an answer ignored a range in [`super::Mode::Ranges`]: from then on the connection
    /// that saw it first reads on alone, or each would read all that comes before its own range.
    alone: AtomicBool,
}

impl Job {
    pub(super) fn new(
        source: Arc<dyn Source>,
        options: FetchOptions,
        request: Request,
        metadata: Metadata,
        chunks: mpsc::Sender<Result<Chunk>>,
    ) -> Self {
        Self {
            source,
            options,
            request,
            metadata,
            chunks,
            alone: AtomicBool::new(false),
        }
    }

    pub(super) fn total_len(&self) -> Option<u64> {
        self.metadata.total_len
    }

    pub(super) async fn fail(&self, error: Error) {
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

    /// One connection of [`super::Mode::Ranges`].
    pub(super) async fn ranges(&self, order: &Mutex<Order>) -> Result<()> {
        let mut stream: Option<Stream> = None;
        let mut stays = false;
        loop {
            // A body at its end is dropped before the wait: its place at the origin is for others.
            stream = stream.filter(|stream| stream.end.is_none_or(|end| stream.pos < end));
            if self.alone.load(Ordering::Relaxed) && !stays {
                return Ok(());
            }
            let Some(range) = self.next_range(order, &mut stream).await else {
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
            if stream.as_ref().is_some_and(|stream| stream.ignored_range) {
                stays = stays || !self.alone.swap(true, Ordering::Relaxed);
            }
        }
    }

    /// What the plan wants next. An open body that is not needed for a while goes when another
    /// request waits for its place at the origin.
    async fn next_range(
        &self,
        order: &Mutex<Order>,
        stream: &mut Option<Stream>,
    ) -> Option<ByteRange> {
        let next = async {
            let mut order = order.lock().await;
            let range = order.plan.next(self.options.range_len.max(1)).await;
            // The first range is what the open body was asked for, whoever gets it.
            range.map(|range| (range, order.opened.take()))
        };
        tokio::pin!(next);
        // What would have to be read from its first byte again stays.
        let yields = |stream: &Stream| !stream.ignored_range;
        let place = stream.as_ref().filter(|s| yields(s));
        let place = place.and_then(|stream| stream.body.place());
        let soon = match place {
            None => None,
            Some(place) => tokio::select! {
                biased;
                range = &mut next => Some(range),
                () = wanted_while_idle(&*place) => None,
            },
        };
        let range = match soon {
            Some(range) => range,
            None => {
                stream.take_if(|stream| yields(stream));
                next.await
            }
        };
        let (range, opened) = range?;
        *stream = opened.or(stream.take());
        Some(range)
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
                let mut opened = self.open(ByteRange::new(*pos, range.end())).await?;
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
                opened.ignored_range = opened.pos < *pos;
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

    /// All of [`super::Mode::Sequential`].
    pub(super) async fn sequential(&self, mut stream: Option<Stream>) -> Result<()> {
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
