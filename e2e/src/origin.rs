//! An HTTP server of files on loopback: ranges, ETags, a speed, faults, and a count of what it sent.

use std::collections::HashMap;
use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{
    ACCEPT_RANGES, AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap, IF_RANGE,
    LOCATION, RANGE,
};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::{Failed, Result, tls};

/// How much is read and sent at once.
const BLOCK: u64 = 256 << 10;

/// A server of files. Stops when dropped.
#[derive(Debug)]
pub struct Origin {
    /// Where it listens.
    pub addr: SocketAddr,
    scheme: &'static str,
    shared: Arc<Shared>,
    accepting: tokio::task::JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Shared {
    files: Mutex<HashMap<String, Arc<Served>>>,
    sent: AtomicU64,
    requests: AtomicU64,
    /// Bytes a second of all connections together; 0: as fast as can be.
    rate: AtomicU64,
    /// When the next byte may go.
    due: Mutex<Option<Instant>>,
    /// What every request is answered with, if not 0.
    status: AtomicU64,
    /// The `Authorization` that every request has to show, if there is one.
    wanted: Mutex<Option<String>>,
    /// Where names have moved to.
    moved: Mutex<HashMap<String, String>>,
}

#[derive(Debug)]
struct Served {
    file: File,
    len: u64,
    etag: String,
    /// Ranges as they went out.
    gone: Mutex<Vec<(u64, u64)>>,
}

type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, std::io::Error>;

impl Origin {
    /// Listens on a free port of loopback. `rate` is in bytes a second, 0 for as fast as can be.
    pub async fn start(rate: u64) -> Result<Self> {
        Self::start_on("127.0.0.1:0", rate).await
    }

    /// Listens where it is told to: `address:port`.
    pub async fn start_on(address: &str, rate: u64) -> Result<Self> {
        Self::listen(address, rate, None).await
    }

    /// One for `https`, and the certificate (PEM) of the authority of its own that vouches for it.
    pub async fn start_tls() -> Result<(Self, String)> {
        let (acceptor, authority) = tls::acceptor("127.0.0.1")?;
        Ok((
            Self::listen("127.0.0.1:0", 0, Some(acceptor)).await?,
            authority,
        ))
    }

    async fn listen(address: &str, rate: u64, tls: Option<TlsAcceptor>) -> Result<Self> {
        let listener = TcpListener::bind(address).await;
        let listener = listener.map_err(|e| Failed::at("origin", e))?;
        let addr = listener.local_addr().map_err(|e| Failed::at("origin", e))?;
        let shared = Arc::new(Shared {
            rate: AtomicU64::new(rate),
            ..Shared::default()
        });
        let served = shared.clone();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let accepting = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let Ok((stream, _)) = listener.accept().await else {
                    continue;
                };
                let (shared, tls) = (served.clone(), tls.clone());
                connections.spawn(async move {
                    match tls {
                        None => serve(stream, shared).await,
                        Some(tls) => {
                            // Who does not believe the certificate goes away.
                            if let Ok(stream) = tls.accept(stream).await {
                                serve(stream, shared).await;
                            }
                        }
                    }
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self {
            addr,
            scheme,
            shared,
            accepting,
        })
    }

    /// Serves a file as `/name`; its URL.
    pub fn serve(&self, name: &str, path: &Path) -> Result<String> {
        let wrong = |e| Failed::at(path.display(), e);
        let file = File::open(path).map_err(wrong)?;
        let len = file.metadata().map_err(wrong)?.len();
        let served = Served {
            file,
            len,
            etag: format!("\"{:016x}\"", fastrand::u64(..)),
            gone: Mutex::default(),
        };
        let mut files = self
            .shared
            .files
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        files.insert(format!("/{name}"), Arc::new(served));
        Ok(self.url(name))
    }

    /// Answers for `/name` that it has moved to a URL; the URL of the name.
    pub fn redirect(&self, name: &str, to: &str) -> String {
        let mut moved = self
            .shared
            .moved
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        moved.insert(format!("/{name}"), to.to_owned());
        self.url(name)
    }

    /// What a name would be served as.
    pub fn url(&self, name: &str) -> String {
        format!("{}://{}/{name}", self.scheme, self.addr)
    }

    /// Bytes of bodies that went out, blocks that a closing connection lost included.
    pub fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::Relaxed)
    }

    /// The ranges of a file that went out again, in the order of the file: at least twice.
    pub fn sent_again(&self, name: &str) -> Vec<(u64, u64)> {
        let files = self.shared.files.lock();
        let files = files.unwrap_or_else(PoisonError::into_inner);
        let Some(served) = files.get(&format!("/{name}")) else {
            return vec![];
        };
        let gone = served.gone.lock().unwrap_or_else(PoisonError::into_inner);
        let mut edges: Vec<(u64, i32)> =
            gone.iter().flat_map(|(s, e)| [(*s, 1), (*e, -1)]).collect();
        edges.sort_unstable();
        let (mut depth, mut from, mut again) = (0, 0, vec![]);
        for (at, step) in edges {
            if depth == 1 && step == 1 {
                from = at;
            } else if depth == 2 && step == -1 && at > from {
                again.push((from, at));
            }
            depth += step;
        }
        again
    }

    /// Requests that came.
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::Relaxed)
    }

    /// From now on: bytes a second, 0 for as fast as can be. What was put off at the rate before counts no more: a
    /// crowd that asked while it was slow would else keep it silent for a minute after that.
    pub fn set_rate(&self, rate: u64) {
        self.shared.rate.store(rate, Ordering::Relaxed);
        *self
            .shared
            .due
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// From now on who shows another `Authorization` than this, or none, is answered with 401.
    pub fn set_wanted(&self, authorization: &str) {
        let wanted = self.shared.wanted.lock();
        *wanted.unwrap_or_else(PoisonError::into_inner) = Some(authorization.to_owned());
    }

    /// From now on every request is answered with this status; 0 ends that.
    pub fn set_status(&self, status: u16) {
        self.shared.status.store(status.into(), Ordering::Relaxed);
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin, shared: Arc<Shared>) {
    let service = service_fn(move |request| {
        let shared = shared.clone();
        async move { answer(&request, &shared) }
    });
    // A client that goes away is its own affair.
    let _ = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

fn answer(request: &Request<Incoming>, shared: &Arc<Shared>) -> Result<Response<Body>> {
    shared.requests.fetch_add(1, Ordering::Relaxed);
    let forced = u16::try_from(shared.status.load(Ordering::Relaxed)).unwrap_or_default();
    if let Ok(status) = StatusCode::from_u16(forced) {
        return short(status);
    }
    let wanted = {
        let wanted = shared.wanted.lock();
        wanted.unwrap_or_else(PoisonError::into_inner).clone()
    };
    let shown = request.headers().get(AUTHORIZATION);
    if wanted.is_some_and(|wanted| shown.is_none_or(|shown| shown != wanted.as_str())) {
        return short(StatusCode::UNAUTHORIZED);
    }
    let to = {
        let moved = shared.moved.lock().unwrap_or_else(PoisonError::into_inner);
        moved.get(request.uri().path()).cloned()
    };
    if let Some(to) = to {
        let moved = Response::builder()
            .status(StatusCode::FOUND)
            .header(LOCATION, to);
        let moved = moved.header(CONTENT_LENGTH, 0);
        return moved.body(empty()).map_err(|e| Failed::at("answer", e));
    }
    let found = {
        let files = shared.files.lock().unwrap_or_else(PoisonError::into_inner);
        files.get(request.uri().path()).cloned()
    };
    let Some(served) = found else {
        return short(StatusCode::NOT_FOUND);
    };
    let mut response = Response::builder()
        .header(ACCEPT_RANGES, "bytes")
        .header(ETAG, served.etag.clone());
    let (start, end) = match range(request.headers(), &served) {
        Asked::Whole => (0, served.len),
        Asked::Part(start, end) => {
            let value = format!("bytes {start}-{}/{}", end - 1, served.len);
            response = response
                .status(StatusCode::PARTIAL_CONTENT)
                .header(CONTENT_RANGE, value);
            (start, end)
        }
        Asked::Beyond => {
            let value = format!("bytes */{}", served.len);
            let response = response.status(StatusCode::RANGE_NOT_SATISFIABLE);
            let response = response
                .header(CONTENT_RANGE, value)
                .header(CONTENT_LENGTH, 0);
            return response.body(empty()).map_err(|e| Failed::at("answer", e));
        }
    };
    let response = response.header(CONTENT_LENGTH, end - start);
    let body = match *request.method() {
        Method::HEAD => empty(),
        _ => StreamBody::new(blocks(served, start, end, shared.clone())).boxed_unsync(),
    };
    response.body(body).map_err(|e| Failed::at("answer", e))
}

fn short(status: StatusCode) -> Result<Response<Body>> {
    let response = Response::builder().status(status).header(CONTENT_LENGTH, 0);
    response.body(empty()).map_err(|e| Failed::at("answer", e))
}

fn empty() -> Body {
    http_body_util::Empty::new()
        .map_err(|never| match never {})
        .boxed_unsync()
}

enum Asked {
    Whole,
    Part(u64, u64),
    Beyond,
}

fn range(headers: &HeaderMap, served: &Served) -> Asked {
    let text = |name| {
        headers
            .get(name)
            .and_then(|v: &hyper::header::HeaderValue| v.to_str().ok())
    };
    let Some(range) = text(RANGE).and_then(|r| r.strip_prefix("bytes=")) else {
        return Asked::Whole;
    };
    if text(IF_RANGE).is_some_and(|etag| etag != served.etag) {
        return Asked::Whole;
    }
    let part = match range.trim().split_once('-') {
        Some(("", last)) => last
            .parse()
            .ok()
            .map(|n| (served.len.saturating_sub(n), served.len)),
        Some((first, "")) => first.parse().ok().map(|first| (first, served.len)),
        Some((first, last)) => match (first.parse(), last.parse::<u64>()) {
            (Ok(first), Ok(last)) => Some((first, last.saturating_add(1).min(served.len))),
            _ => None,
        },
        None => None,
    };
    match part {
        Some((start, end)) if start < end => Asked::Part(start, end),
        Some(_) => Asked::Beyond,
        None => Asked::Whole,
    }
}

/// Blocks of a file, at the server's speed, counted as they go.
fn blocks(
    served: Arc<Served>,
    start: u64,
    end: u64,
    shared: Arc<Shared>,
) -> BoxStream<'static, std::io::Result<Frame<Bytes>>> {
    let read = move |at: u64| {
        let (served, shared) = (served.clone(), shared.clone());
        async move {
            let len = BLOCK.min(end - at);
            pace(&shared, len).await;
            {
                let mut gone = served.gone.lock().unwrap_or_else(PoisonError::into_inner);
                // One range a connection grows; few of them are open at once.
                match gone.iter_mut().rev().take(64).find(|(_, end)| *end == at) {
                    Some((_, end)) => *end = at + len,
                    None => gone.push((at, at + len)),
                }
            }
            let block = tokio::task::spawn_blocking(move || {
                let mut block = vec![0; usize::try_from(len).unwrap_or_default()];
                served
                    .file
                    .read_exact_at(&mut block, at)
                    .map(|()| Bytes::from(block))
            });
            let block = block.await.map_err(std::io::Error::other)??;
            shared.sent.fetch_add(len, Ordering::Relaxed);
            Ok(Frame::data(block))
        }
    };
    let starts = stream::iter((start..end).step_by(BLOCK as usize));
    starts.then(read).boxed()
}

async fn pace(shared: &Shared, len: u64) {
    let rate = shared.rate.load(Ordering::Relaxed);
    if rate == 0 {
        return;
    }
    let wait = {
        let now = Instant::now();
        let mut due = shared.due.lock().unwrap_or_else(PoisonError::into_inner);
        let from = due.map_or(now, |at| at.max(now));
        *due = Some(from + Duration::from_secs_f64(len as f64 / rate as f64));
        from - now
    };
    tokio::time::sleep(wait).await;
}
