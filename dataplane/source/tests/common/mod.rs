//! An HTTP origin on a raw socket that behaves as a test says: honest by default, with faults where
//! a real server library would refuse to lie.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]

use dragonfly_source::{
    ByteRange, Chunk, Error, Fetch, FetchOptions, Fetcher, HttpOptions, HttpSource, Queue, Request,
    RetryPolicy, Source,
};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;

/// What a client sent.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: String,
    pub path: String,
    pub headers: Vec<(String, String)>,
    /// How many requests came before this one.
    pub nth: usize,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(held, _)| held == name)
            .map(|(_, value)| value.as_str())
    }

    /// Start and (excluded) end of the `Range` header.
    pub fn range(&self, total: usize) -> Option<(usize, usize)> {
        let (first, last) = self
            .header("range")?
            .strip_prefix("bytes=")?
            .split_once('-')?;
        let last: usize = last.parse().map_or(total, |last: usize| last + 1);
        Some((first.parse().unwrap(), last.min(total)))
    }
}

/// What to do on the wire.
#[derive(Clone, Debug)]
pub enum Act {
    Write(Vec<u8>),
    Sleep(Duration),
    /// Ends the connection after the writes so far.
    Close,
}

/// An answer, byte for byte.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    pub acts: Vec<Act>,
}

impl Reply {
    pub fn new(status: &str, headers: &[(&str, &str)], body: &[u8]) -> Self {
        let mut head = format!("HTTP/1.1 {status}\r\n");
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        Self {
            acts: vec![Act::Write(head.into_bytes()), Act::Write(body.to_vec())],
        }
    }

    /// With the right `Content-Length`.
    pub fn sized(status: &str, headers: &[(&str, &str)], body: &[u8]) -> Self {
        let len = body.len().to_string();
        let mut all = headers.to_vec();
        all.push(("content-length", &len));
        Self::new(status, &all, body)
    }

    pub fn status(status: &str) -> Self {
        Self::sized(status, &[], b"")
    }

    /// A chunked body in pieces of 1000 bytes; without the last chunk when not `finished`.
    pub fn chunked(headers: &[(&str, &str)], body: &[u8], finished: bool) -> Self {
        let mut all = headers.to_vec();
        all.push(("transfer-encoding", "chunked"));
        let mut wire = Vec::new();
        for part in body.chunks(1000) {
            wire.extend(format!("{:x}\r\n", part.len()).into_bytes());
            wire.extend(part);
            wire.extend(b"\r\n");
        }
        if finished {
            wire.extend(b"0\r\n\r\n");
        }
        let reply = Self::new("200 OK", &all, &wire);
        if finished { reply } else { reply.close() }
    }

    pub fn close(mut self) -> Self {
        self.acts.push(Act::Close);
        self
    }

    pub fn sleep(mut self, duration: Duration) -> Self {
        self.acts.push(Act::Sleep(duration));
        self
    }

    /// Only the first `len` bytes of the body, then the connection ends.
    pub fn cut_body(mut self, len: usize) -> Self {
        if let Some(Act::Write(body)) = self.acts.get_mut(1) {
            body.truncate(len);
        }
        self.close()
    }

    /// Only the first `len` bytes of the body, then silence.
    pub fn stall_body(mut self, len: usize) -> Self {
        if let Some(Act::Write(body)) = self.acts.get_mut(1) {
            body.truncate(len);
        }
        self.sleep(Duration::from_secs(30)).close()
    }
}

/// The origin that every fault deviates from.
#[derive(Clone)]
pub struct Honest {
    pub body: Arc<Vec<u8>>,
    pub headers: Vec<(String, String)>,
    pub ranges: bool,
}

impl Honest {
    pub fn new(len: usize) -> Self {
        Self {
            body: Arc::new(content(len)),
            headers: vec![("etag".into(), "\"v1\"".into())],
            ranges: true,
        }
    }

    pub fn reply(&self, seen: &Seen) -> Reply {
        let mut headers: Vec<(&str, &str)> = self
            .headers
            .iter()
            .map(|(n, v)| (n.as_str(), v.as_str()))
            .collect();
        if self.ranges {
            headers.push(("accept-ranges", "bytes"));
        }
        let total = self.body.len();
        if seen.method == "HEAD" {
            let len = total.to_string();
            headers.push(("content-length", &len));
            return Reply::new("200 OK", &headers, b"");
        }
        let tag = self
            .headers
            .iter()
            .find(|(name, _)| name == "etag")
            .map(|(_, v)| v.as_str());
        let fits = seen
            .header("if-range")
            .is_none_or(|wanted| Some(wanted) == tag);
        match seen.range(total).filter(|_| self.ranges && fits) {
            Some((start, end)) if start < end => {
                let range = format!("bytes {start}-{}/{total}", end - 1);
                headers.push(("content-range", &range));
                Reply::sized("206 Partial Content", &headers, &self.body[start..end])
            }
            Some(_) => {
                let range = format!("bytes */{total}");
                Reply::sized(
                    "416 Range Not Satisfiable",
                    &[("content-range", &range)],
                    b"",
                )
            }
            None => Reply::sized("200 OK", &headers, &self.body),
        }
    }
}

/// Bytes that repeat nowhere.
pub fn content(len: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(7);
    (0..len).map(|_| random.u8(..)).collect()
}

pub struct Server {
    pub addr: SocketAddr,
    log: Arc<Mutex<Vec<Seen>>>,
    /// Most requests answered at one time.
    pub most: Arc<AtomicUsize>,
}

type Handler = dyn Fn(&Seen) -> Reply + Send + Sync;

impl Server {
    pub async fn start(handler: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self {
            addr: listener.local_addr().unwrap(),
            log: Arc::default(),
            most: Arc::default(),
        };
        let handler: Arc<Handler> = Arc::new(handler);
        let (log, most, now) = (server.log.clone(), server.most.clone(), Arc::default());
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(serve(
                    socket,
                    handler.clone(),
                    log.clone(),
                    most.clone(),
                    Arc::clone(&now),
                ));
            }
        });
        server
    }

    pub async fn honest(origin: Honest) -> Self {
        Self::start(move |seen| origin.reply(seen)).await
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr)
    }

    pub fn request(&self) -> Request {
        Request::new(&self.url("/file")).unwrap()
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.log.lock().unwrap().clone()
    }
}

/// Answers requests on one connection until an answer closes it.
pub async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    mut socket: S,
    handler: Arc<Handler>,
    log: Arc<Mutex<Vec<Seen>>>,
    most: Arc<AtomicUsize>,
    now: Arc<AtomicUsize>,
) {
    while let Some((method, path, headers)) = read_head(&mut socket).await {
        let seen = {
            let mut log = log.lock().unwrap();
            let seen = Seen {
                method,
                path,
                headers,
                nth: log.len(),
            };
            log.push(seen.clone());
            seen
        };
        most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        let mut open = true;
        for act in handler(&seen).acts {
            match act {
                Act::Write(bytes) => open = open && socket.write_all(&bytes).await.is_ok(),
                Act::Sleep(duration) => tokio::time::sleep(duration).await,
                Act::Close => open = false,
            }
            if !open {
                break;
            }
        }
        now.fetch_sub(1, Ordering::SeqCst);
        if !open {
            let _ = socket.shutdown().await;
            return;
        }
    }
}

async fn read_head<S: AsyncRead + Unpin>(
    socket: &mut S,
) -> Option<(String, String, Vec<(String, String)>)> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(socket.read_u8().await.ok()?);
    }
    let text = String::from_utf8(head).unwrap();
    let mut lines = text.lines();
    let mut first = lines.next()?.split(' ');
    let (method, path) = (first.next()?.to_owned(), first.next()?.to_owned());
    let headers = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    Some((method, path, headers))
}

/// Options with which a failure shows within milliseconds.
pub fn quick() -> HttpOptions {
    HttpOptions {
        stall_timeout: Duration::from_millis(300),
        connect_timeout: Duration::from_secs(2),
        ..HttpOptions::default()
    }
}

pub fn quick_fetch() -> FetchOptions {
    FetchOptions {
        parallel: 3,
        range_len: 40_000,
        skip_len: 1000,
        buffered: 8,
        retry: RetryPolicy {
            attempts: 4,
            base: Duration::from_millis(2),
            max_pause: Duration::from_millis(20),
            max_retry_after: Duration::from_millis(50),
            give_up_after: Duration::from_secs(10),
        },
    }
}

pub fn http(options: HttpOptions) -> Arc<dyn Source> {
    Arc::new(HttpSource::new(options).unwrap())
}

pub fn fetcher() -> Fetcher {
    let mut options = quick();
    options.limits.max_pause = Duration::from_millis(50);
    Fetcher::new(http(options), quick_fetch())
}

/// All that is wanted of `total` bytes.
pub fn everything(total: u64) -> Queue {
    Queue::of(ByteRange::new(0, total))
}

/// The chunks put together; panics on a byte that comes twice.
pub async fn collect(fetch: &mut Fetch) -> Result<Vec<u8>, Error> {
    let mut bytes: Vec<Option<u8>> = Vec::new();
    while let Some(chunk) = fetch.next().await {
        let Chunk { offset, data } = chunk?;
        let offset = usize::try_from(offset).unwrap();
        if bytes.len() < offset + data.len() {
            bytes.resize(offset + data.len(), None);
        }
        for (slot, byte) in bytes[offset..].iter_mut().zip(data) {
            assert!(slot.replace(byte).is_none(), "a byte was delivered twice");
        }
    }
    Ok(bytes
        .into_iter()
        .map(|byte| byte.expect("a hole in what was delivered"))
        .collect())
}

/// Begins and fetches everything.
pub async fn download(fetcher: &Fetcher, request: Request) -> Result<Vec<u8>, Error> {
    let begun = fetcher.begin(request, None).await?;
    let total = begun.metadata().total_len.unwrap_or(0);
    collect(&mut begun.run(everything(total))).await
}
