//! Content past the mesh: from upstream, resumed here where it breaks off.
//!
//! Invariants: a body that began is gone on with at the byte where it broke, never begun anew for the
//! client; what is sent from its first byte on is checked like what comes through the mesh.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{Context, SHA256};
use bytes::Bytes;
use dragonfly_node::download::Download;
use dragonfly_source::http::{Answer as Said, Redirects};
use dragonfly_source::range::ContentRange;
use dragonfly_source::source::Body;
use dragonfly_source::{ByteRange, Error, Request};
use hyper::Method;
use hyper::body::Frame;
use hyper::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, RETRY_AFTER};

use crate::access::Granted;
use crate::answer::{self, Answer, Out};
use crate::ask::Digest;
use crate::content;
use crate::range::Asked;
use crate::server::Call;
use crate::upstream;

/// Tries in a row that bring no byte.
const TRIES: u32 = 5;
/// Between tries, at most.
const PAUSE: Duration = Duration::from_secs(4);
/// How long a held block may take to be read again.
const READ: Duration = Duration::from_secs(2);

/// The hash of bytes from the first on, and where they end.
pub(crate) type Hash = Option<Context>;

/// Answers with content from upstream; with upstream's refusal where it refuses.
pub(crate) async fn answer(call: &Call, digest: &Digest, granted: &Granted) -> Answer {
    let request = match upstream::request(call, &call.wanted) {
        Ok(request) => request,
        Err(refusal) => return refusal.answer(),
    };
    // By what was said of its length before; what comes now says it better.
    let from = match (call.asked, granted.len) {
        (asked, Some(total)) => asked.of(total).map_or(0, |(start, _)| start),
        (Asked::From(start) | Asked::Between(start, _), None) => start,
        (Asked::Whole | Asked::Last(_), None) => 0,
    };
    let mut found = first(call, &request, from).await;
    if matches!(&found, Ok(First { total: None, begins, .. }) if *begins > 0) {
        // Which part it is could not be said: all of it is sound.
        found = first(call, &request, 0).await;
    }
    let First {
        said,
        begins,
        total,
    } = match found {
        Ok(first) => first,
        Err(answer) => return *answer,
    };
    let (start, end) = match total {
        None => (0, None),
        Some(0) => (0, Some(0)),
        Some(total) => match call.asked.of(total) {
            Some((start, end)) => (start, Some(end)),
            None => return content::beyond(total),
        },
    };
    let Some(skip) = start.checked_sub(begins) else {
        return other_bytes();
    };
    let kind = answer::text(&said.headers, CONTENT_TYPE).map(str::to_owned);
    let (answer, out) = content::head(call, digest, kind, (start, end), total);
    let whole = start == 0 && end == total;
    let flow = Flow {
        call: call.clone(),
        digest: digest.clone(),
        request,
        at: start,
        end,
        skip,
        body: Some(said.body),
        hash: whole.then(|| Context::new(&SHA256)),
        held_back: None,
        out,
    };
    tokio::spawn(flow.run());
    answer
}

/// Goes on with a body that broke off elsewhere; `before` is the hash of what was sent of it, where
/// that is known.
pub(crate) async fn go_on(
    call: Call,
    digest: Digest,
    (at, end): (u64, Option<u64>),
    before: Hash,
    out: Out,
) {
    let Ok(request) = upstream::request(&call, &call.wanted) else {
        return;
    };
    let flow = Flow {
        call,
        digest,
        request,
        at,
        end,
        skip: 0,
        body: None,
        hash: before,
        held_back: None,
        out,
    };
    flow.run().await;
}

/// The hash of a content's first bytes as they are held, where they are.
pub(crate) async fn hash_of(whole: &Arc<Download>, end: u64) -> Hash {
    let mut hash = Context::new(&SHA256);
    let mut at = 0;
    while at < end {
        let held = tokio::time::timeout(READ, whole.chunk_at(at)).await;
        let mut bytes = held.ok()?.ok()??;
        bytes.truncate(usize::try_from(end - at).unwrap_or(usize::MAX));
        hash.update(&bytes);
        at += bytes.len() as u64;
        tokio::task::consume_budget().await;
    }
    Some(hash)
}

async fn ask(call: &Call, request: &Request, from: u64) -> Result<Said, Error> {
    call.shared.metrics.upstream_requests.inc();
    let http = call.shared.http();
    let range = Some(from).filter(|from| *from > 0);
    let range = range.and_then(|from| ByteRange::new(from, ByteRange::OPEN));
    http.ask(request, Method::GET, range, Redirects::Follow)
        .await
}

/// A first answer with content.
struct First {
    said: Said,
    /// Where its body begins in the content.
    begins: u64,
    /// The whole's length.
    total: Option<u64>,
}

/// Asks for the bytes from `from` on; else what the client is told.
async fn first(call: &Call, request: &Request, from: u64) -> Result<First, Box<Answer>> {
    let said = match ask(call, request, from).await {
        Ok(said) if said.status < 300 => said,
        Ok(said) => return Err(Box::new(upstream::pass_on(call, said))),
        Err(error) => return Err(Box::new(upstream::no_answer(call, &error))),
    };
    let (begins, total) = place(&said, from).ok_or_else(|| Box::new(other_bytes()))?;
    Ok(First {
        said,
        begins,
        total,
    })
}

fn other_bytes() -> Answer {
    let text = "the registry answers with other bytes than were asked for";
    answer::Refusal::unavailable(text).answer()
}

/// Of an answer to a question for the bytes from `from` on: where its body begins, and the whole's
/// length. `None`: it is about other bytes.
pub(crate) fn place(said: &Said, from: u64) -> Option<(u64, Option<u64>)> {
    let header = |name| answer::text(&said.headers, name);
    if said.status == 206 {
        let range = header(CONTENT_RANGE).and_then(ContentRange::parse)?;
        return match range {
            ContentRange::Part { range, total } if range.start() == from => Some((from, total)),
            _ => None,
        };
    }
    // The registry knows no ranges.
    Some((0, header(CONTENT_LENGTH).and_then(|len| len.parse().ok())))
}

/// A body on its way from upstream to a client.
struct Flow {
    call: Call,
    digest: Digest,
    request: Request,
    /// The next byte to be sent.
    at: u64,
    end: Option<u64>,
    /// Bytes of the body that are left out before.
    skip: u64,
    body: Option<Body>,
    hash: Hash,
    held_back: Option<Bytes>,
    out: Out,
}

/// What comes next of a body.
enum Next {
    Bytes(Bytes),
    End,
    /// It may go on with another request.
    Broke(String, Option<Duration>),
    Failed(String),
}

impl Flow {
    async fn run(mut self) {
        let mut tries = 0;
        while self.end.is_none_or(|end| self.at < end) {
            match self.next().await {
                // Bytes that were left out are no progress.
                Next::Bytes(bytes) if bytes.is_empty() => {}
                Next::Bytes(bytes) => {
                    tries = 0;
                    if !self.take(bytes).await {
                        return;
                    }
                }
                Next::End if self.end.is_none() => break,
                Next::End => self.body = None,
                Next::Broke(why, after) => {
                    tries += 1;
                    self.body = None;
                    if tries > TRIES {
                        return self.give_up(&why).await;
                    }
                    self.call.shared.metrics.resumed.inc();
                    tracing::debug!(why, at = self.at, "a body broke off: going on");
                    let pause = Duration::from_millis(100) * 2u32.pow(tries);
                    tokio::time::sleep(after.unwrap_or(pause).min(PAUSE)).await;
                }
                Next::Failed(why) => return self.give_up(&why).await,
            }
        }
        if let Some(hash) = self.hash.take() {
            let sum = hash.finish();
            let hex: String = sum.as_ref().iter().map(|b| format!("{b:02x}")).collect();
            if format!("sha256:{hex}") != self.digest.as_str() {
                self.call.shared.metrics.wrong_digests.inc();
                let why = format!("it hashes to sha256:{hex}: the registry holds something else");
                return self.give_up(&why).await;
            }
        }
        if let Some(bytes) = self.held_back.take() {
            self.send(bytes).await;
        }
    }

    async fn next(&mut self) -> Next {
        if self.body.is_none() {
            match ask(&self.call, &self.request, self.at).await {
                Ok(said) if said.status < 300 => match place(&said, self.at) {
                    Some((begins, _)) => {
                        self.skip = self.at - begins;
                        self.body = Some(said.body);
                    }
                    None => return Next::Failed("the registry sends other bytes".to_owned()),
                },
                Ok(said) => {
                    let why = format!("the registry answers {}", said.status);
                    let after = answer::text(&said.headers, RETRY_AFTER);
                    let after = after.and_then(|s| s.parse().ok()).map(Duration::from_secs);
                    return match said.status {
                        408 | 429 | 500.. => Next::Broke(why, after),
                        _ => Next::Failed(why),
                    };
                }
                Err(error) if error.is_temporary() => {
                    return Next::Broke(error.to_string(), error.retry_after());
                }
                Err(error) => return Next::Failed(error.to_string()),
            }
        }
        let Some(body) = &mut self.body else {
            return Next::End;
        };
        match body.next_chunk().await {
            Ok(Some(mut bytes)) => {
                let skipped = self.skip.min(bytes.len() as u64);
                self.skip -= skipped;
                Next::Bytes(bytes.split_off(usize::try_from(skipped).unwrap_or_default()))
            }
            Ok(None) if self.end.is_some() => {
                Next::Broke("the body ended before its time".to_owned(), None)
            }
            Ok(None) => Next::End,
            Err(error) if error.is_temporary() => Next::Broke(error.to_string(), None),
            Err(error) => Next::Failed(error.to_string()),
        }
    }

    /// False: the client is gone.
    async fn take(&mut self, mut bytes: Bytes) -> bool {
        if let Some(end) = self.end {
            let left = usize::try_from(end - self.at).unwrap_or(usize::MAX);
            bytes.truncate(left);
        }
        self.at += bytes.len() as u64;
        let may_be_last = self.end.is_none_or(|end| self.at >= end);
        match &mut self.hash {
            None => self.send(bytes).await,
            Some(hash) => {
                hash.update(&bytes);
                let ready = if may_be_last {
                    self.held_back.replace(bytes)
                } else {
                    Some(bytes)
                };
                match ready {
                    Some(bytes) => self.send(bytes).await,
                    None => true,
                }
            }
        }
    }

    async fn send(&mut self, bytes: Bytes) -> bool {
        let metrics = &self.call.shared.metrics;
        metrics.direct_bytes.inc_by(bytes.len() as u64);
        self.out.send(Ok(Frame::data(bytes))).await.is_ok()
    }

    async fn give_up(&mut self, why: &str) {
        let registry = &self.call.wanted.registry;
        tracing::error!(why, registry, digest = %self.digest, "content is cut off before its end");
        let _ = self.out.send(upstream::cut(why)).await;
    }
}
