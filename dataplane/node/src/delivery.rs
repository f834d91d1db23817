//! One client's download or stream: what it asked for, at which pace, told how far it is.

use std::sync::Arc;
use std::time::{Duration, Instant};

use dragonfly_proto::rpc::{
    self, DownloadEvent, ReadChunk, download_event, failure::Code, read_chunk,
};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use tonic::Status;

use crate::api::{Shared, checked_source, invalid};
use crate::download::{Download, RESTARTS, Wish};
use crate::held::Told;
use crate::limits::RateLimit;

/// How often a client hears how far it is.
const EVERY: Duration = Duration::from_millis(200);
/// Bytes of a message with content, at most.
const CHUNK: usize = 256 << 10;

/// A request for content, checked.
pub(crate) struct Ask {
    source: rpc::Source,
    wish: Wish,
    want_descriptor: bool,
    while_it_comes: bool,
    rate: u64,
    priority: u32,
}

impl Ask {
    pub(crate) fn check(ask: rpc::DownloadRequest) -> Result<Self, rpc::Failure> {
        let source = checked_source(ask.source)?;
        let wish = match (ask.range, ask.last_bytes) {
            (None, 0) => Wish::Whole,
            (None, n) => Wish::Last(n),
            (Some(r), 0) if r.end == 0 => Wish::Range(r.start, None),
            (Some(r), 0) if r.start < r.end => Wish::Range(r.start, Some(r.end)),
            (Some(_), 0) => return Err(invalid("the range ends before it begins")),
            (Some(_), _) => return Err(invalid("a range and last bytes exclude each other")),
        };
        Ok(Self {
            source,
            wish,
            want_descriptor: ask.want_descriptor,
            while_it_comes: ask.want_descriptor && ask.while_it_comes,
            rate: ask.rate_limit,
            priority: ask.priority,
        })
    }

    /// Bytes that may be fetched ahead of what the limit allows by now.
    const fn ahead(&self) -> u64 {
        if self.rate == 0 {
            u64::MAX
        } else {
            self.rate / 2 + 1
        }
    }

    /// A digest is of the whole content, so that only then it is checked.
    fn checked_digest(&self) -> String {
        if self.wish == Wish::Whole {
            self.source.digest.clone()
        } else {
            String::new()
        }
    }
}

fn started(download: &Download) -> rpc::Started {
    let (start, end) = download.range();
    let meta = download.task().meta();
    rpc::Started {
        task: download.task().key().to_string(),
        total_len: download.task().geometry().total_len(),
        content_type: meta.content_type,
        content_encoding: meta.content_encoding,
        range: Some(rpc::ByteRange {
            start,
            end: end.unwrap_or(0),
        }),
    }
}

/// Waits for the end, and checks the digest meanwhile, in a task of its own: hashing what is held
/// would keep this one from telling how it goes.
fn finish(download: &Arc<Download>) -> AbortOnDropHandle<Result<(), rpc::Failure>> {
    let download = download.clone();
    AbortOnDropHandle::new(tokio::spawn(async move { download.finish().await }))
}

fn broke(e: &tokio::task::JoinError) -> rpc::Failure {
    rpc::Failure::new(Code::Internal, format!("the download broke off: {e}"))
}

/// How far a client with a limit may be by now.
struct Pace {
    rate: u64,
    ahead: u64,
    start: u64,
    since: Instant,
}

impl Pace {
    fn new(ask: &Ask, download: &Download) -> Self {
        let start = download.range().0;
        Self {
            rate: ask.rate,
            ahead: ask.ahead(),
            start,
            since: Instant::now(),
        }
    }

    fn go_on(&self, download: &Download) {
        if self.rate > 0 {
            let by_now = (self.rate as f64 * self.since.elapsed().as_secs_f64()) as u64;
            download.want_until(self.start.saturating_add(by_now).saturating_add(self.ahead));
        }
    }
}

/// The content comes to this node; a client hears how far it is.
pub(crate) async fn download(
    shared: &Shared,
    ask: &Ask,
    uid: Option<u32>,
    out: &mpsc::Sender<Result<DownloadEvent, Status>>,
) -> Result<rpc::Done, rpc::Failure> {
    let since = Instant::now();
    let mut tries = 0;
    let (download, early) = loop {
        match download_once(shared, ask, uid, out).await {
            Err(f) if f.code() == Code::Changed && tries < RESTARTS => tries += 1,
            other => break other?,
        }
    };
    let complete = download.task().is_complete();
    // Who took a descriptor early has what it wants; a second ticket would hold the content for nobody.
    let has_one = early.is_some_and(|early| !shared.tickets.withdraw(&early));
    let ticket = (ask.want_descriptor && complete && !has_one)
        .then(|| {
            shared
                .tickets
                .issue(download.task().clone(), uid, Instant::now())
        })
        .flatten();
    Ok(rpc::Done {
        progress: Some(download.progress()),
        digest: ask.checked_digest(),
        descriptor_ticket: ticket.unwrap_or_default(),
        elapsed_ms: since.elapsed().as_millis() as u64,
    })
}

/// The download, and the ticket that was given for a descriptor while it came.
async fn download_once(
    shared: &Shared,
    ask: &Ask,
    uid: Option<u32>,
    out: &mpsc::Sender<Result<DownloadEvent, Status>>,
) -> Result<(Arc<Download>, Option<Vec<u8>>), rpc::Failure> {
    let node = &shared.node;
    let download = node
        .download_ahead(ask.source.clone(), ask.wish, ask.ahead())
        .await?;
    download.prioritise(ask.priority);
    let download = Arc::new(download);
    let say = |event| Ok(DownloadEvent { event: Some(event) });
    // Who has gone is noticed by who runs this.
    let _ = out
        .send(say(download_event::Event::Started(started(&download))))
        .await;
    let (mut told, mut ticket) = (None, None);
    if ask.while_it_comes
        && let Some(descriptor_ticket) = early(shared, &download, uid)
    {
        ticket = Some(descriptor_ticket.clone());
        let held = rpc::Held {
            descriptor_ticket,
            ranges: vec![],
        };
        let _ = out.send(say(download_event::Event::Held(held))).await;
        told = Some(Told::default());
    }
    let pace = Pace::new(ask, &download);
    let mut finish = finish(&download);
    let mut every = tokio::time::interval(EVERY);
    loop {
        tokio::select! {
            ended = &mut finish => {
                ended.map_err(|e| broke(&e))??;
                if ask.want_descriptor {
                    download.check_kept().await?;
                }
                return Ok((download, ticket));
            }
            _ = every.tick() => {
                pace.go_on(&download);
                // A client that does not keep up misses some.
                let _ = out.try_send(say(download_event::Event::Progress(download.progress())));
                if let Some(told) = &mut told {
                    let (ranges, after) = told.news(&download);
                    let held = rpc::Held { descriptor_ticket: vec![], ranges };
                    let news = !held.ranges.is_empty();
                    if news && out.try_send(say(download_event::Event::Held(held))).is_ok() {
                        *told = after;
                    }
                }
            }
        }
    }
}

/// A ticket for the descriptor of content that still comes, where there can be one.
fn early(shared: &Shared, download: &Download, uid: Option<u32>) -> Option<Vec<u8>> {
    let task = download.task();
    let of_use = !task.is_complete() && task.geometry().total_len().is_some();
    // Asked here and not when the ticket is shown: a client without one does as ever.
    let possible = of_use && matches!(task.store.growing_file(), Ok(Some(_)));
    let issue = || shared.tickets.issue(task.clone(), uid, Instant::now());
    possible.then(issue).flatten()
}

/// The bytes, in order, while they come.
pub(crate) async fn read(
    shared: &Shared,
    ask: &Ask,
    out: &mpsc::Sender<Result<ReadChunk, Status>>,
) -> Result<rpc::Done, rpc::Failure> {
    let since = Instant::now();
    let mut tries = 0;
    let download = loop {
        let mut sent = 0;
        match read_once(shared, ask, out, &mut sent).await {
            // Bytes of two versions are never mixed: what was sent cannot be taken back.
            Err(f) if f.code() == Code::Changed && sent == 0 && tries < RESTARTS => tries += 1,
            other => break other?,
        }
    };
    Ok(rpc::Done {
        progress: Some(download.progress()),
        digest: ask.checked_digest(),
        descriptor_ticket: Vec::new(),
        elapsed_ms: since.elapsed().as_millis() as u64,
    })
}

async fn read_once(
    shared: &Shared,
    ask: &Ask,
    out: &mpsc::Sender<Result<ReadChunk, Status>>,
    sent: &mut u64,
) -> Result<Arc<Download>, rpc::Failure> {
    let node = &shared.node;
    let download = node
        .download_ahead(ask.source.clone(), ask.wish, ask.ahead())
        .await?;
    download.prioritise(ask.priority);
    let download = Arc::new(download);
    let say = |chunk| Ok(ReadChunk { chunk: Some(chunk) });
    let _ = out
        .send(say(read_chunk::Chunk::Started(started(&download))))
        .await;
    let pace = Pace::new(ask, &download);
    let limit = RateLimit::new(ask.rate);
    // Small enough that a slow client's stream does not stand still for long.
    let part = (ask.rate / 8).clamp(4096, CHUNK as u64) as usize;
    let part = if ask.rate == 0 { CHUNK } else { part };
    let mut finish = finish(&download);
    let mut finished = false;
    let mut every = tokio::time::interval(EVERY);
    let mut at = download.range().0;
    loop {
        let mut bytes = tokio::select! {
            bytes = download.chunk_at(at) => match bytes? {
                Some(bytes) => bytes,
                None => break,
            },
            ended = &mut finish, if !finished => {
                ended.map_err(|e| broke(&e))??;
                finished = true;
                continue;
            }
            _ = every.tick() => {
                pace.go_on(&download);
                let _ = out.try_send(say(read_chunk::Chunk::Progress(download.progress())));
                continue;
            }
        };
        at += bytes.len() as u64;
        while !bytes.is_empty() {
            let next = bytes.split_to(part.min(bytes.len()));
            let pause = limit.take(next.len() as u64);
            *sent += next.len() as u64;
            let _ = out.send(say(read_chunk::Chunk::Data(next))).await;
            if let Some(pause) = pause {
                pace.go_on(&download);
                tokio::time::sleep(pause).await;
            }
        }
    }
    if !finished {
        // The last word on the digest: without it there is no clean end.
        pace.go_on(&download);
        finish.await.map_err(|e| broke(&e))??;
    }
    Ok(download)
}
