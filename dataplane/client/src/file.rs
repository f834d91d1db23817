//! Content into a file, by whoever runs this: the node never writes for a client.
//!
//! The node gives a read-only descriptor of what it holds, from which the file is copied while the
//! rest comes, or cloned at the end where the file system can. Where there is none to be had (a part of a content of which the node holds no
//! more, a socket of another machine), the bytes come as a stream.

use std::io::{Seek, SeekFrom};
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use dragonfly_proto::rpc;
use futures::StreamExt;
use tokio::io::AsyncWriteExt;

use crate::client::{Client, Event};
use crate::error::{Error, Result};
use crate::follow::{Copied, Follower};
use crate::hash::digest_of;
use crate::output::{Filling, Output};
use crate::reader::Reader;
use crate::request::{Range, Request};

/// Content that changed while its file was written is begun again this often.
const RESTARTS: usize = 3;
/// How often somebody who waits for a file to be written hears how far it is.
const TELL: Duration = Duration::from_millis(200);

/// How a file is written.
#[derive(Debug, Clone, Default)]
pub struct FileOptions {
    /// Create the directories above it that are missing.
    pub make_directories: bool,
    /// Never use a descriptor, always the stream.
    pub stream_only: bool,
    /// End only when the file would survive a power loss. Without this it is whole under its name for
    /// every process at once, and on the disk when the system writes it there.
    pub fsync: bool,
    /// Share the node's copy instead of copying it, where it is this user's own and on the same mount:
    /// no space, no time. The file is read-only then; who writes to it all the same, as root can, spoils
    /// the node's copy. Where the file system can clone, that is done instead.
    pub hard_link: bool,
}

/// How the bytes came into the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// Shared with the node's cache: took no space.
    Cloned,
    /// Another name of the file in the node's cache: read-only, takes no space.
    Linked,
    /// Copied from the node's cache.
    Copied,
    /// Streamed.
    Streamed,
}

/// A file that was written.
#[derive(Debug, Clone)]
pub struct Fetched {
    /// What it is.
    pub started: rpc::Started,
    /// How it came.
    pub done: rpc::Done,
    /// How it was written.
    pub how: How,
    /// Its bytes.
    pub len: u64,
}

impl Client {
    /// Gets content into a file, which appears when it is whole and right, and not otherwise; a
    /// device or a pipe is written to as bytes come. Dropping the future leaves nothing behind.
    ///
    /// # Errors
    /// The node's, the origin's or the output's: see [`Error::kind`].
    pub async fn fetch_to_file(
        &self,
        request: &Request,
        path: impl AsRef<Path>,
        options: &FileOptions,
        mut on_event: impl FnMut(Event),
    ) -> Result<Fetched> {
        let mut output = Output::create(path.as_ref(), options.make_directories)?;
        output.may_link = options.hard_link;
        let mut tries = 0;
        loop {
            let got = self
                .fetch_once(request, output, options, &mut on_event)
                .await;
            match got {
                Ok(fetched) => return Ok(fetched),
                // Nothing of the old version is to be in the new one.
                Err((Some(mut same), Error::Changed(_)))
                    if tries < RESTARTS && same.is_regular() =>
                {
                    tries += 1;
                    same.restart()
                        .map_err(|e| Error::output(same.target(), e))?;
                    output = same;
                }
                Err((_, error)) => return Err(error),
            }
        }
    }

    async fn fetch_once(
        &self,
        request: &Request,
        output: Output,
        options: &FileOptions,
        on_event: &mut impl FnMut(Event),
    ) -> std::result::Result<Fetched, (Option<Output>, Error)> {
        if !output.is_regular() || options.stream_only {
            return self.stream_into(request, output, options, on_event).await;
        }
        let cancel = Cancel(Arc::default());
        let waited = self.wait_done(request, &output, &cancel.0, on_event).await;
        let (started, done, follower) = match waited {
            Ok(got) => got,
            Err(e) => return Err((None, e)),
        };
        let (file, copied) = match self.source_of(follower, &done, on_event, &cancel).await {
            Ok(Some(got)) => got,
            Ok(None) => return self.stream_into(request, output, options, on_event).await,
            Err(e) => return Err((None, Error::output(output.target(), e))),
        };
        let start = started.range.unwrap_or_default().start;
        // Not where it was to end when it began: the length may have been learnt under way.
        let length = done.progress.and_then(|p| p.total);
        let end = length.map(|length| start.saturating_add(length));
        let filling = cancel.0.clone();
        let durable = options.fsync;
        let total = done.progress.map_or(0, |p| p.have);
        let unchecked = request.checkable_digest().filter(|d| *d != done.digest);
        let url = request.url.clone();
        let written = tokio::task::spawn_blocking(move || {
            let mut output = output;
            let target = output.target().to_owned();
            let fail = |e| Error::output(&target, e);
            let end = match end {
                Some(end) => end,
                None => file.metadata().map_err(fail)?.len(),
            };
            let how = output
                .fill(&file, (start, end), &copied, &filling)
                .map_err(fail)?;
            if let Some(wanted) = unchecked {
                output.file.seek(SeekFrom::Start(0)).map_err(fail)?;
                let (found, _) = digest_of(&mut output.file).map_err(fail)?;
                if found != wanted {
                    return Err(Error::Digest { url, wanted, found });
                }
            }
            output.commit(durable)?;
            Ok((how, end.saturating_sub(start)))
        });
        let written = telling(written, total, on_event, &cancel);
        let broke = |e: tokio::task::JoinError| Error::Protocol(e.to_string());
        let (how, len) = written
            .await
            .map_err(broke)
            .flatten()
            .map_err(|e| (None, e))?;
        on_event(Event::Done(done.clone()));
        Ok(Fetched {
            started,
            done,
            how,
            len,
        })
    }

    /// Where the file is filled from, and what of it is there already; `None`: from the stream.
    async fn source_of(
        &self,
        follower: Option<Follower>,
        done: &rpc::Done,
        on_event: &mut impl FnMut(Event),
        cancel: &Cancel,
    ) -> std::io::Result<Option<Copied>> {
        if let Some(follower) = follower {
            let total = done.progress.map_or(0, |p| p.have);
            return telling(follower.end(), total, on_event, cancel)
                .await
                .map(Some);
        }
        if done.descriptor_ticket.is_empty() {
            return Ok(None);
        }
        match self.descriptor(&done.descriptor_ticket).await {
            Ok(file) => Ok(Some((file, vec![]))),
            Err(error) => {
                tracing::debug!(%error, "no descriptor; reading the stream");
                Ok(None)
            }
        }
    }

    /// Until the node has all, copying meanwhile where it lets.
    async fn wait_done(
        &self,
        request: &Request,
        output: &Output,
        filling: &Arc<Filling>,
        on_event: &mut impl FnMut(Event),
    ) -> Result<(rpc::Started, rpc::Done, Option<Follower>)> {
        let mut started: Option<rpc::Started> = None;
        let mut follower = None;
        let message = rpc::DownloadRequest {
            while_it_comes: true,
            ..request.message(request.range, true)
        };
        let mut events = pin!(self.downloading(message));
        while let Some(event) = events.next().await {
            match event? {
                Event::Done(done) => {
                    let begun = || Error::Protocol("done before it began".to_owned());
                    return Ok((started.ok_or_else(begun)?, done, follower));
                }
                Event::Started(s) => {
                    // What was copied may be of another version.
                    let_go(follower.take(), filling).await;
                    started = Some(s.clone());
                    on_event(Event::Started(s));
                }
                Event::Held(held) => {
                    if !held.descriptor_ticket.is_empty()
                        && let Ok(from) = self.descriptor(&held.descriptor_ticket).await
                        && let Ok(to) = output.file.try_clone()
                    {
                        let range = started.as_ref().and_then(|s| s.range).unwrap_or_default();
                        let whole = request.range == Range::Whole && output.can_link(&from);
                        let copying =
                            Follower::start(from, to, range.start, whole, filling.clone());
                        follower = Some(copying);
                    }
                    if let Some(follower) = &follower {
                        follower.held(&held.ranges);
                    }
                }
                Event::Reconnecting => {
                    let_go(follower.take(), filling).await;
                    on_event(Event::Reconnecting);
                }
                event => on_event(event),
            }
        }
        Err(Error::Protocol(
            "the download ended without an end".to_owned(),
        ))
    }

    async fn stream_into(
        &self,
        request: &Request,
        output: Output,
        options: &FileOptions,
        on_event: &mut impl FnMut(Event),
    ) -> std::result::Result<Fetched, (Option<Output>, Error)> {
        let mut reader = self.read(request);
        let begun = std::time::Instant::now();
        let file = match output.file.try_clone() {
            Ok(file) => file,
            Err(e) => return Err((None, Error::output(output.target(), e))),
        };
        let mut file = tokio::fs::File::from_std(file);
        match copy_stream(&mut reader, &mut file, on_event).await {
            Ok(()) => {}
            Err(Copy::Source(e)) => return Err((Some(output), e)),
            Err(Copy::Sink(e)) => return Err((None, Error::output(output.target(), e))),
        }
        drop(file);
        let progress = reader.progress();
        let durable = options.fsync;
        let committed = tokio::task::spawn_blocking(move || output.commit(durable)).await;
        let broke = |e: tokio::task::JoinError| Error::Protocol(e.to_string());
        committed.map_err(broke).flatten().map_err(|e| (None, e))?;
        let done = rpc::Done {
            progress: Some(progress),
            digest: request.checkable_digest().unwrap_or_default(),
            elapsed_ms: begun.elapsed().as_millis() as u64,
            ..rpc::Done::default()
        };
        on_event(Event::Done(done.clone()));
        let started = reader.started().cloned().unwrap_or_default();
        Ok(Fetched {
            started,
            done,
            how: How::Streamed,
            len: progress.have,
        })
    }

    /// Writes content to anything that bytes can be written to, in order, while it comes. What was
    /// written before an error cannot be taken back.
    ///
    /// # Errors
    /// As [`Client::fetch_to_file`].
    pub async fn fetch_to_writer(
        &self,
        request: &Request,
        writer: &mut (impl tokio::io::AsyncWrite + Unpin),
        mut on_event: impl FnMut(Event),
    ) -> Result<rpc::Progress> {
        let mut reader = self.read(request);
        match copy_stream(&mut reader, writer, &mut on_event).await {
            Ok(()) => Ok(reader.progress()),
            Err(Copy::Source(e)) => Err(e),
            Err(Copy::Sink(e)) => Err(Error::output("standard output", e)),
        }
    }
}

enum Copy {
    Source(Error),
    Sink(std::io::Error),
}

async fn copy_stream(
    reader: &mut Reader,
    to: &mut (impl tokio::io::AsyncWrite + Unpin),
    on_event: &mut impl FnMut(Event),
) -> std::result::Result<(), Copy> {
    let (mut announced, mut resumed) = (false, 0);
    while let Some(bytes) = reader.next().await.map_err(Copy::Source)? {
        if !announced && let Some(started) = reader.started() {
            announced = true;
            on_event(Event::Started(started.clone()));
        }
        if reader.resumed() > resumed {
            resumed = reader.resumed();
            on_event(Event::Reconnecting);
        }
        to.write_all(&bytes).await.map_err(Copy::Sink)?;
        on_event(Event::Progress(reader.progress()));
    }
    to.flush().await.map_err(Copy::Sink)
}

/// Ends a copy that is void, so that it writes nothing any more.
async fn let_go(follower: Option<Follower>, filling: &Filling) {
    if let Some(follower) = follower {
        filling.cancelled.store(true, Ordering::Relaxed);
        let _ = follower.end().await;
        filling.cancelled.store(false, Ordering::Relaxed);
        filling.written.store(0, Ordering::Relaxed);
    }
}

/// Waits for what fills a file, and says how far it is.
async fn telling<T>(
    written: impl Future<Output = T>,
    total: u64,
    on_event: &mut impl FnMut(Event),
    cancel: &Cancel,
) -> T {
    let mut written = pin!(written);
    loop {
        match tokio::time::timeout(TELL, written.as_mut()).await {
            Ok(ended) => return ended,
            Err(_) => on_event(Event::Writing {
                written: cancel.0.written.load(Ordering::Relaxed),
                total,
            }),
        }
    }
}

/// Tells the copying thread that nobody waits for it any more.
struct Cancel(Arc<Filling>);

impl Drop for Cancel {
    fn drop(&mut self) {
        self.0.cancelled.store(true, Ordering::Relaxed);
    }
}
