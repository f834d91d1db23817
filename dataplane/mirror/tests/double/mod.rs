//! A registry that speaks the distribution protocol, counts what it is asked, and fails as told.
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic
)]

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

pub fn digest(bytes: &[u8]) -> String {
    let sum = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    let hex: String = sum.as_ref().iter().map(|b| format!("{b:02x}")).collect();
    format!("sha256:{hex}")
}

/// How a registry fails.
#[derive(Debug, Clone, Default)]
pub struct Fault {
    /// Every answer has this status.
    pub status: Option<u16>,
    /// Bodies of blobs break off after so many bytes.
    pub cut_after: Option<usize>,
    /// Bytes a second of each blob; 0 for as fast as can be.
    pub rate: usize,
    /// Blobs are not what they are called.
    pub corrupt: bool,
    /// Ranges are not known.
    pub no_ranges: bool,
    /// How long blobs are is not said.
    pub no_length: bool,
    /// This is said at a HEAD to be the length of every blob.
    pub head_length: Option<usize>,
    /// Nothing is answered.
    pub silent: bool,
}

#[derive(Debug, Clone)]
pub struct Seen {
    pub method: String,
    pub path: String,
    pub authorization: String,
}

#[derive(Default)]
struct State {
    /// By repository and digest.
    blobs: Mutex<HashMap<(String, String), Bytes>>,
    manifests: Mutex<HashMap<(String, String), Bytes>>,
    tags: Mutex<HashMap<(String, String), String>>,
    /// What each repository is read with; public without.
    secrets: Mutex<HashMap<String, String>>,
    /// What those who show nothing are told.
    challenge: Mutex<Option<String>>,
    fault: Mutex<Fault>,
    seen: Mutex<Vec<Seen>>,
    sent: Mutex<HashMap<String, u64>>,
}

pub struct Double {
    pub addr: SocketAddr,
    state: Arc<State>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Double {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// An image as it was pushed.
#[derive(Debug, Clone)]
pub struct Image {
    pub repository: String,
    pub manifest: String,
    pub blobs: Vec<String>,
}

type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, std::io::Error>;

impl Double {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let state = Arc::new(State::default());
        let shared = state.clone();
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let shared = shared.clone();
                connections.spawn(async move {
                    let service = service_fn(move |r| answer(shared.clone(), r));
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Self { addr, state, task }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Puts an image of these layers under a tag.
    pub fn push(&self, repository: &str, tag: &str, layers: &[Vec<u8>]) -> Image {
        let config = format!("{{\"architecture\":\"amd64\",\"of\":\"{repository}:{tag}\"}}");
        let mut blobs = vec![];
        for bytes in layers.iter().chain([&config.into_bytes()]) {
            let name = digest(bytes);
            let key = (repository.to_owned(), name.clone());
            let bytes = Bytes::from(bytes.clone());
            self.state.blobs.lock().unwrap().insert(key, bytes);
            blobs.push(name);
        }
        let listed: Vec<_> = blobs
            .iter()
            .map(|b| format!("{{\"digest\":\"{b}\"}}"))
            .collect();
        let manifest = format!("{{\"schemaVersion\":2,\"layers\":[{}]}}", listed.join(","));
        let name = digest(manifest.as_bytes());
        let key = |what: &str| (repository.to_owned(), what.to_owned());
        let mut manifests = self.state.manifests.lock().unwrap();
        manifests.insert(key(&name), manifest.into());
        let mut tags = self.state.tags.lock().unwrap();
        tags.insert(key(tag), name.clone());
        Image {
            repository: repository.to_owned(),
            manifest: name,
            blobs,
        }
    }

    /// From now on a repository is read with this `Authorization` only.
    pub fn protect(&self, repository: &str, authorization: &str) {
        let mut secrets = self.state.secrets.lock().unwrap();
        secrets.insert(repository.to_owned(), authorization.to_owned());
    }

    /// From now on who shows nothing is told this, at `/v2/` too.
    pub fn challenge(&self, challenge: &str) {
        *self.state.challenge.lock().unwrap() = Some(challenge.to_owned());
    }

    pub fn fail(&self, fault: Fault) {
        *self.state.fault.lock().unwrap() = fault;
    }

    /// Bytes sent of a content, by all bodies together.
    pub fn sent(&self, digest: &str) -> u64 {
        let sent = self.state.sent.lock().unwrap();
        sent.get(digest).copied().unwrap_or(0)
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.state.seen.lock().unwrap().clone()
    }

    /// Questions of a kind so far.
    pub fn count(&self, method: &str, part: &str) -> usize {
        let seen = self.state.seen.lock().unwrap();
        seen.iter()
            .filter(|s| s.method == method && s.path.contains(part))
            .count()
    }
}

fn reply(status: u16, body: &str) -> hyper::http::response::Builder {
    Response::builder()
        .status(status)
        .header("content-length", body.len())
}

fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

fn error(status: u16, code: &str) -> Response<Body> {
    let body =
        format!("{{\"errors\":[{{\"code\":\"{code}\",\"message\":\"said the registry\"}}]}}");
    reply(status, &body)
        .header("content-type", "application/json")
        .body(full(body))
        .unwrap()
}

async fn answer(
    state: Arc<State>,
    request: Request<Incoming>,
) -> Result<Response<Body>, std::io::Error> {
    let (method, path) = (
        request.method().to_string(),
        request.uri().path().to_owned(),
    );
    let (head, _) = request.into_parts();
    let header = |name: &str| {
        let value = head.headers.get(name).and_then(|v| v.to_str().ok());
        value.unwrap_or_default().to_owned()
    };
    let authorization = header("authorization");
    state.seen.lock().unwrap().push(Seen {
        method: method.clone(),
        path: head.uri.to_string(),
        authorization: authorization.clone(),
    });
    let fault = state.fault.lock().unwrap().clone();
    if fault.silent {
        return std::future::pending().await;
    }
    if let Some(status) = fault.status {
        let mut answer = error(status, "TOLD");
        if status == 429 {
            answer.headers_mut().insert("retry-after", 7.into());
        }
        return Ok(answer);
    }
    let challenge = state.challenge.lock().unwrap().clone();
    if let Some(challenge) = &challenge
        && path == "/v2/"
        && authorization.is_empty()
    {
        let mut answer = error(401, "UNAUTHORIZED");
        let value = challenge.parse().unwrap();
        answer.headers_mut().insert("www-authenticate", value);
        return Ok(answer);
    }
    let rest = path.strip_prefix("/v2/").unwrap_or_default();
    let parts: Vec<&str> = rest.split('/').collect();
    let (repository, kind, what) = match parts.as_slice() {
        [name @ .., kind, what] if !name.is_empty() => (name.join("/"), *kind, *what),
        _ => return Ok(error(404, "NAME_UNKNOWN")),
    };
    let secret = state.secrets.lock().unwrap().get(&repository).cloned();
    if secret.is_some_and(|secret| secret != authorization) {
        let mut answer = error(401, "UNAUTHORIZED");
        let usual = "Bearer realm=\"https://auth.test/token\",service=\"registry.test\"";
        let challenge = challenge.as_deref().unwrap_or(usual).parse().unwrap();
        answer.headers_mut().insert("www-authenticate", challenge);
        return Ok(answer);
    }
    let key = |what: &str| (repository.clone(), what.to_owned());
    match kind {
        "manifests" => {
            let tagged = state.tags.lock().unwrap().get(&key(what)).cloned();
            let name = tagged.unwrap_or_else(|| what.to_owned());
            let found = state.manifests.lock().unwrap().get(&key(&name)).cloned();
            let Some(bytes) = found else {
                return Ok(error(404, "MANIFEST_UNKNOWN"));
            };
            if !header("accept").contains(MANIFEST) {
                return Ok(error(404, "MANIFEST_UNKNOWN"));
            }
            if method == "GET" {
                *state.sent.lock().unwrap().entry(name.clone()).or_default() += bytes.len() as u64;
            }
            Ok(Response::builder()
                .header("content-type", MANIFEST)
                .header("docker-content-digest", name)
                .header("content-length", bytes.len())
                .body(full(bytes))
                .unwrap())
        }
        "blobs" => {
            let found = state.blobs.lock().unwrap().get(&key(what)).cloned();
            let Some(bytes) = found else {
                return Ok(error(404, "BLOB_UNKNOWN"));
            };
            Ok(blob(&state, &fault, &method, what, bytes, &header("range")))
        }
        "tags" => {
            let next = format!("</v2/{repository}/tags/list?n=1&last=a>; rel=\"next\"");
            let body = format!("{{\"name\":\"{repository}\",\"tags\":[\"a\"]}}");
            Ok(reply(200, &body)
                .header("link", next)
                .body(full(body))
                .unwrap())
        }
        "referrers" => {
            let body = format!("{{\"schemaVersion\":2,\"subject\":\"{what}\",\"manifests\":[]}}");
            Ok(reply(200, &body)
                .header("content-type", "application/vnd.oci.image.index.v1+json")
                .header("oci-filters-applied", "artifactType")
                .body(full(body))
                .unwrap())
        }
        _ => Ok(error(404, "UNSUPPORTED")),
    }
}

fn blob(
    state: &Arc<State>,
    fault: &Fault,
    method: &str,
    name: &str,
    mut bytes: Bytes,
    range: &str,
) -> Response<Body> {
    let total = bytes.len();
    if fault.corrupt {
        let mut wrong = bytes.to_vec();
        if let Some(byte) = wrong.get_mut(total / 2) {
            *byte ^= 1;
        }
        bytes = wrong.into();
    }
    let mut response = Response::builder().header("content-type", "application/octet-stream");
    let asked = range.strip_prefix("bytes=").filter(|_| !fault.no_ranges);
    if let Some((first, last)) = asked.and_then(|r| r.split_once('-')) {
        let first: usize = first.parse().unwrap();
        let last = last
            .parse()
            .map_or(total, |last: usize| (last + 1).min(total));
        if first >= last {
            return error(416, "RANGE");
        }
        bytes = bytes.slice(first..last);
        response = response.status(206);
        let all = (!fault.no_length).then(|| total.to_string());
        let all = all.as_deref().unwrap_or("*");
        let value = format!("bytes {first}-{}/{all}", last - 1);
        response = response.header("content-range", value);
    }
    if !fault.no_length {
        let len = fault.head_length.filter(|_| method == "HEAD");
        response = response.header("content-length", len.unwrap_or(bytes.len()));
    }
    if method == "HEAD" {
        return response.body(full("")).unwrap();
    }
    let limit = fault.cut_after.unwrap_or(usize::MAX);
    let (name, state, rate) = (name.to_owned(), state.clone(), fault.rate);
    let chunks = (0..bytes.len()).step_by(32 << 10).map(move |at| {
        let end = (at + (32 << 10)).min(bytes.len());
        (at, bytes.slice(at..end))
    });
    let body = futures::stream::iter(chunks).then(move |(at, chunk)| {
        let (name, state) = (name.clone(), state.clone());
        async move {
            if at >= limit {
                return Err(std::io::Error::other("cut"));
            }
            if rate > 0 {
                let time = chunk.len() as f64 / rate as f64;
                tokio::time::sleep(Duration::from_secs_f64(time)).await;
            }
            *state.sent.lock().unwrap().entry(name).or_default() += chunk.len() as u64;
            Ok(Frame::data(chunk))
        }
    });
    response.body(StreamBody::new(body).boxed_unsync()).unwrap()
}

/// What a mirror answered.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: hyper::HeaderMap,
    /// What came of the body.
    pub body: Vec<u8>,
    /// The body broke off.
    pub cut: bool,
    /// Until its first byte came.
    pub first: Duration,
}

impl Answer {
    pub fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name).map(|v| v.to_str().unwrap());
        value.unwrap_or_default()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Asks as a container runtime does.
pub async fn ask(at: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
    ask_part(at, method, path, headers, usize::MAX).await
}

/// The same, but goes away after so many bytes.
pub async fn ask_part(
    at: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    most: usize,
) -> Answer {
    let since = std::time::Instant::now();
    let stream = tokio::net::TcpStream::connect(at).await.unwrap();
    let io = TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    tokio::spawn(connection);
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", at.to_string());
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::<Bytes>::default()).unwrap();
    let (parts, mut incoming) = sender.send_request(request).await.unwrap().into_parts();
    let (mut body, mut cut, mut first) = (vec![], false, Duration::ZERO);
    while body.len() < most {
        match incoming.frame().await {
            Some(Ok(frame)) => {
                if body.is_empty() {
                    first = since.elapsed();
                }
                body.extend_from_slice(&frame.into_data().unwrap_or_default());
            }
            Some(Err(_)) => {
                cut = true;
                break;
            }
            None => break,
        }
    }
    Answer {
        status: parts.status.as_u16(),
        headers: parts.headers,
        body,
        cut,
        first,
    }
}
