//! Content by digest: manifests, layers, configurations.
//!
//! 1. Upstream is asked whether this client may read it, unless it said so a moment ago.
//! 2. The node's task engine gets it, as a task whose key is the digest; bytes go out as they come.
//! 3. Where the mesh fails, before or within the body, the rest comes from upstream (`direct`).
//!
//! Invariants: of a content that is sent whole the last block goes out once the digest is right; where
//! it is wrong the body is cut, and for a while the mesh is not asked for that content again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use dragonfly_node::download::{Download, Wish};
use dragonfly_proto::rpc::{self, failure::Code as Failed};
use dragonfly_source::http::{Answer as Said, Redirects};
use dragonfly_source::{ByteRange, Error, Request};
use hyper::Method;
use hyper::body::Frame;
use hyper::header::{ACCEPT_RANGES, CONTENT_RANGE, CONTENT_TYPE, HeaderValue};
use tokio_util::task::AbortOnDropHandle;

use crate::access::{Granted, Who};
use crate::answer::{self, Answer, Code, DIGEST, Out, Refusal, set, set_length};
use crate::ask::{Digest, Kind};
use crate::direct;
use crate::range::Asked;
use crate::server::Call;
use crate::settings::Tags;
use crate::tags::is_silent;
use crate::upstream;

/// How long the mesh may take to say what a content is: a runtime waits 30 s for a header.
const BEGIN: Duration = Duration::from_secs(15);
/// How long a body may stand still before the rest is asked for upstream.
const STALL: Duration = Duration::from_secs(20);
/// How long content that the mesh got wrong comes from upstream only.
const AVOIDED: Duration = Duration::from_secs(60);

/// What is answered for a digest.
pub(crate) async fn answer(call: &Call, digest: &Digest) -> Answer {
    if !digest.is_sha256() {
        // The mesh cannot check it: it is passed on, and the client checks.
        return upstream::pass(call).await;
    }
    let granted = match may_read(call, digest).await {
        Ok(granted) => granted,
        Err(answer) => return *answer,
    };
    if call.method == Method::HEAD {
        return match granted.len {
            Some(len) => {
                let mut answer = answer::whole(200, "");
                describe(call, &mut answer, digest, granted.kind.as_deref());
                set_length(answer.headers_mut(), len);
                answer
            }
            // Who let the client read did not say how long it is.
            None => upstream::pass(call).await,
        };
    }
    if let Some(total) = granted.len
        && total > 0
        && call.asked.of(total).is_none()
    {
        return beyond(total);
    }
    if avoided(call, digest) {
        if call.settings.direct {
            return direct::answer(call, digest, &granted).await;
        }
        let text = format!("the mesh got something else for {digest} a moment ago");
        return Refusal::unavailable(text).answer();
    }
    let begun = tokio::time::timeout(BEGIN, begin(call, digest)).await;
    let failure = match begun {
        Ok(Ok(begun)) => return flow(call, digest, &granted, begun),
        Ok(Err(failure)) => failure,
        Err(_) => rpc::Failure::new(
            Failed::Deadline,
            format!("the mesh did not say within {BEGIN:?} what the content is"),
        ),
    };
    let (mesh, registry) = (failure.message.as_str(), &call.wanted.registry);
    if !call.settings.direct {
        tracing::warn!(mesh, registry, %digest, "the mesh fails");
        return Refusal::unavailable(failure.message).answer();
    }
    tracing::warn!(mesh, registry, %digest, "the mesh fails: going upstream");
    call.shared.metrics.fallbacks.inc();
    direct::answer(call, digest, &granted).await
}

/// Whether the client may read it, by upstream's word; else what upstream answers.
async fn may_read(call: &Call, digest: &Digest) -> Result<Granted, Box<Answer>> {
    let access = &call.shared.access;
    let known = access.granted(call.who, &call.wanted, digest);
    if let Some(granted) = &known
        && granted.is_fresh(call.settings.access_for)
    {
        return Ok(granted.clone());
    }
    let request = upstream::request(call, &call.wanted).map_err(|r| Box::new(r.answer()))?;
    let said = word(call, &request).await;
    let stale = known.filter(|_| call.settings.tags == Tags::LastKnown && is_silent(&said));
    if let Some(granted) = stale {
        return Ok(granted);
    }
    match said {
        Ok(said) if matches!(said.status, 200 | 206) => {
            let kind = answer::text(&said.headers, CONTENT_TYPE).map(str::to_owned);
            let len = direct::place(&said, 0).and_then(|(_, total)| total);
            let granted = Granted::new(len, kind);
            access.grant(call.who, &call.wanted, digest, granted.clone());
            Ok(granted)
        }
        Ok(said) if call.method == Method::HEAD => Err(Box::new(upstream::pass_on(call, said))),
        // A refusal has a body that a HEAD does not show; and a registry may know no HEAD.
        Ok(_) => Err(Box::new(upstream::pass(call).await)),
        Err(error) => Err(Box::new(upstream::no_answer(call, &error))),
    }
}

/// Upstream's word on it. That it leads on is none: some do so for whoever asks for whatever. What it
/// leads to has to give a byte, to a GET: the way there may be signed for that alone.
async fn word(call: &Call, request: &Request) -> Result<Said, Error> {
    let redirects = match call.wanted.kind {
        Kind::Blob(_) if call.method == Method::GET => Redirects::Show,
        _ => Redirects::Follow,
    };
    let said = upstream::ask(call, request, &Method::HEAD, None, redirects).await?;
    if redirects == Redirects::Follow || !(300..400).contains(&said.status) {
        return Ok(said);
    }
    // A body that is longer than that is not read.
    let first = ByteRange::new(0, 1);
    upstream::ask(call, request, &Method::GET, first, Redirects::Follow).await
}

fn avoided(call: &Call, digest: &Digest) -> bool {
    let key = call
        .shared
        .access
        .key(Who::ANYBODY, &call.wanted, digest.as_str());
    let mut avoided = call.shared.avoided();
    match avoided.get(&key) {
        Some(until) if *until > Instant::now() => true,
        Some(_) => {
            avoided.remove(&key);
            false
        }
        None => false,
    }
}

/// The mesh got it wrong.
fn avoid(call: &Call, digest: &Digest) {
    let key = call
        .shared
        .access
        .key(Who::ANYBODY, &call.wanted, digest.as_str());
    call.shared.avoided().put(key, Instant::now() + AVOIDED);
}

/// A download that began.
struct Begun {
    /// Who reads.
    reader: Arc<Download>,
    /// Who compares the whole with its digest; nobody where only a part was asked for.
    whole: Option<Arc<Download>>,
    start: u64,
    end: Option<u64>,
    total: Option<u64>,
}

async fn begin(call: &Call, digest: &Digest) -> Result<Begun, rpc::Failure> {
    let source = upstream::source(&call.upstream, &call.wanted, digest, &call.headers);
    let node = &call.shared.node;
    if let Asked::Between(start, end) = call.asked {
        // Part of it alone: whoever reads lazily does not want the rest.
        let wish = Wish::Range(start, Some(end));
        let reader = Arc::new(node.download(source.clone(), wish).await?);
        let total = reader.task().geometry().total_len();
        if total.is_some() {
            let end = reader.range().1;
            return Ok(Begun {
                reader,
                whole: None,
                start,
                end,
                total,
            });
        }
        // Which part it is could not be said: all of it, as where other parts are asked for.
    }
    let whole = Arc::new(node.download(source.clone(), Wish::Whole).await?);
    let total = whole.task().geometry().total_len();
    let (start, end) = match total {
        Some(total) => {
            let (start, end) = call.asked.of(total).unwrap_or((total, total));
            (start, Some(end))
        }
        // Without a length there is no range to answer with: all of it is sound.
        None => (0, None),
    };
    let goes_on = start > 0 && Some(start) != total;
    let reader = if goes_on {
        Arc::new(node.download(source, Wish::Range(start, None)).await?)
    } else {
        whole.clone()
    };
    Ok(Begun {
        reader,
        // Its digest is of no use to who gets less than its end.
        whole: (end == total).then_some(whole),
        start,
        end,
        total,
    })
}

/// The answer of a download that began; its bytes follow.
fn flow(call: &Call, digest: &Digest, granted: &Granted, begun: Begun) -> Answer {
    let Begun {
        start, end, total, ..
    } = begun;
    if let Some(total) = total.filter(|total| *total > 0 && call.asked.of(*total).is_none()) {
        return beyond(total);
    }
    // The registry's own word first: whoever brought it may have asked for it as a layer.
    let held = || Some(begun.reader.task().meta().content_type).filter(|kind| !kind.is_empty());
    let (answer, out) = head(
        call,
        digest,
        granted.kind.clone().or_else(held),
        (start, end),
        total,
    );
    let call = call.clone();
    let pouring = Pouring {
        call,
        digest: digest.clone(),
        at: start,
        end,
        held_back: None,
        out,
    };
    tokio::spawn(pouring.run(begun.reader, begun.whole));
    answer
}

/// The head of an answer with content.
pub(crate) fn head(
    call: &Call,
    digest: &Digest,
    kind: Option<String>,
    (start, end): (u64, Option<u64>),
    total: Option<u64>,
) -> (Answer, Out) {
    // Of nothing there is no part.
    let some = end.is_some_and(|end| end > start);
    let part = call.asked != Asked::Whole && total.is_some() && some;
    let (mut answer, out) = answer::flowing(if part { 206 } else { 200 });
    describe(call, &mut answer, digest, kind.as_deref());
    if let Some(end) = end {
        set_length(answer.headers_mut(), end.saturating_sub(start));
    }
    if let (true, Some(total), Some(end)) = (part, total, end) {
        let last = end.saturating_sub(1);
        let range = format!("bytes {start}-{last}/{total}");
        set(answer.headers_mut(), CONTENT_RANGE, &range);
    }
    (answer, out)
}

fn describe(call: &Call, answer: &mut Answer, digest: &Digest, kind: Option<&str>) {
    let headers = answer.headers_mut();
    set(headers, DIGEST, digest.as_str());
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    let kind = match call.wanted.kind {
        Kind::Blob(_) => "application/octet-stream",
        _ => kind.unwrap_or("application/octet-stream"),
    };
    set(headers, CONTENT_TYPE, kind);
}

/// There are no such bytes.
pub(crate) fn beyond(total: u64) -> Answer {
    let text = format!("the range begins behind the end: the content has {total} bytes");
    let mut answer = Refusal::new(416, Code::BlobUnknown, text).answer();
    set(
        answer.headers_mut(),
        CONTENT_RANGE,
        &format!("bytes */{total}"),
    );
    answer
}

/// A body on its way to a client.
struct Pouring {
    call: Call,
    digest: Digest,
    at: u64,
    end: Option<u64>,
    /// What may be the last block, until the digest is known to be right.
    held_back: Option<Bytes>,
    out: Out,
}

/// How a body ended.
enum End {
    /// All was sent, or the client is gone.
    Over,
    /// The content is not what its digest says.
    Wrong(String),
    /// The mesh does not go on.
    Broke(String),
}

impl Pouring {
    async fn run(mut self, reader: Arc<Download>, whole: Option<Arc<Download>>) {
        match self.pour(&reader, whole.as_ref()).await {
            End::Over => {}
            End::Wrong(why) => {
                tracing::error!(why, digest = %self.digest, "content is cut off before its end");
                self.call.shared.metrics.wrong_digests.inc();
                avoid(&self.call, &self.digest);
                let _ = self.out.send(upstream::cut(&why)).await;
            }
            End::Broke(why) if self.call.settings.direct => {
                let unsent = self.held_back.take().map_or(0, |b| b.len() as u64);
                let at = self.at - unsent;
                tracing::warn!(why, digest = %self.digest, at, "the mesh broke off: going on upstream");
                let metrics = &self.call.shared.metrics;
                metrics.fallbacks.inc();
                metrics.resumed.inc();
                let before = match &whole {
                    Some(whole) => direct::hash_of(whole, at).await,
                    None => None,
                };
                // The mesh does not fetch it any longer.
                drop((reader, whole));
                let Self {
                    call,
                    digest,
                    end,
                    out,
                    ..
                } = self;
                direct::go_on(call, digest, (at, end), before, out).await;
            }
            End::Broke(why) => {
                tracing::warn!(why, digest = %self.digest, "the mesh broke off");
                let _ = self.out.send(upstream::cut(&why)).await;
            }
        }
    }

    async fn pour(&mut self, reader: &Arc<Download>, whole: Option<&Arc<Download>>) -> End {
        let mut check = whole.map(|whole| {
            let whole = whole.clone();
            AbortOnDropHandle::new(tokio::spawn(async move { whole.finish().await }))
        });
        while self.end.is_none_or(|end| self.at < end) {
            let next = tokio::select! {
                next = tokio::time::timeout(STALL, reader.chunk_at(self.at)) => next,
                // The whole may be known to be right or wrong before it was sent.
                checked = ended(&mut check), if check.is_some() => {
                    check = None;
                    match checked {
                        Ok(()) => {
                            if let Some(bytes) = self.held_back.take()
                                && !self.send(bytes).await
                            {
                                return End::Over;
                            }
                        }
                        Err(failure) => return broken(failure),
                    }
                    continue;
                }
            };
            let bytes = match next {
                Ok(Ok(Some(bytes))) => bytes,
                Ok(Ok(None)) => break,
                Ok(Err(failure)) => return broken(failure),
                Err(_) => return End::Broke(format!("nothing came for {STALL:?}")),
            };
            self.at += bytes.len() as u64;
            // Which block is the last nobody knows where the length is not known.
            let may_be_last = self.end.is_none_or(|end| self.at >= end);
            let ready = if check.is_some() && may_be_last {
                self.held_back.replace(bytes)
            } else {
                Some(bytes)
            };
            if let Some(bytes) = ready
                && !self.send(bytes).await
            {
                return End::Over;
            }
        }
        if check.is_some() {
            match tokio::time::timeout(STALL, ended(&mut check)).await {
                Ok(Ok(())) => {}
                Ok(Err(failure)) => return broken(failure),
                Err(_) => return End::Broke(format!("no digest within {STALL:?}")),
            }
        }
        if let Some(bytes) = self.held_back.take() {
            self.send(bytes).await;
        }
        End::Over
    }

    /// False: the client is gone.
    async fn send(&self, bytes: Bytes) -> bool {
        let metrics = &self.call.shared.metrics;
        metrics.mesh_bytes.inc_by(bytes.len() as u64);
        self.out.send(Ok(Frame::data(bytes))).await.is_ok()
    }
}

fn broken(failure: rpc::Failure) -> End {
    match failure.code() {
        Failed::Digest => End::Wrong(failure.message),
        _ => End::Broke(failure.message),
    }
}

async fn ended(
    check: &mut Option<AbortOnDropHandle<Result<(), rpc::Failure>>>,
) -> Result<(), rpc::Failure> {
    match check {
        Some(check) => check
            .await
            .unwrap_or_else(|e| Err(rpc::Failure::new(Failed::Internal, e.to_string()))),
        None => futures::future::pending().await,
    }
}
