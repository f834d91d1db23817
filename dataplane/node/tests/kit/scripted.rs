//! Origins that do what a test says.
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic
)]

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// How an origin answers.
#[derive(Debug, Clone)]
pub struct Script {
    pub status: u16,
    pub etag: String,
    pub body: Arc<Vec<u8>>,
    /// Hang up after so many bytes of a body.
    pub cut_after: Option<usize>,
    /// Say nothing more after so many bytes of a body.
    pub stall_after: Option<usize>,
    /// Bytes a second a connection.
    pub rate: u64,
    /// Or the body ends where the connection does, and there are no ranges.
    pub says_length: bool,
    /// So many requests are treated badly (status, cut, stall, rate); those after them well.
    pub bad_requests: u64,
    /// Seconds, beside a status that is not 200.
    pub retry_after: Option<u64>,
    /// Before it answers.
    pub thinks: Duration,
}

impl Script {
    pub fn of(body: Vec<u8>) -> Self {
        Self {
            status: 200,
            etag: "\"v1\"".into(),
            body: Arc::new(body),
            cut_after: None,
            stall_after: None,
            rate: 0,
            says_length: true,
            bad_requests: u64::MAX,
            retry_after: None,
            thinks: Duration::ZERO,
        }
    }

    /// As it is once it is well again.
    fn well(self) -> Self {
        Self {
            status: 200,
            cut_after: None,
            stall_after: None,
            rate: 0,
            ..self
        }
    }
}

pub struct Scripted {
    pub addr: SocketAddr,
    pub script: Arc<Mutex<Script>>,
    pub sent: Arc<AtomicU64>,
    pub requests: Arc<AtomicU64>,
}

impl Scripted {
    pub async fn start(script: Script) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let origin = Self {
            addr: listener.local_addr().unwrap(),
            script: Arc::new(Mutex::new(script)),
            sent: Arc::default(),
            requests: Arc::default(),
        };
        let (script, sent, requests) = (
            origin.script.clone(),
            origin.sent.clone(),
            origin.requests.clone(),
        );
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (script, sent, requests) = (script.clone(), sent.clone(), requests.clone());
                tokio::spawn(async move {
                    let _ = serve(stream, script, sent, requests).await;
                });
            }
        });
        origin
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.addr)
    }

    pub fn change(&self, f: impl FnOnce(&mut Script)) {
        f(&mut self.script.lock().unwrap());
    }

    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

async fn serve(
    mut stream: TcpStream,
    script: Arc<Mutex<Script>>,
    sent: Arc<AtomicU64>,
    requests: Arc<AtomicU64>,
) -> std::io::Result<()> {
    let (r, mut w) = stream.split();
    let mut lines = BufReader::new(r).lines();
    loop {
        let mut head = Vec::new();
        loop {
            match lines.next_line().await? {
                None => return Ok(()),
                Some(l) if l.is_empty() => break,
                Some(l) => head.push(l.to_ascii_lowercase()),
            }
        }
        let number = requests.fetch_add(1, Ordering::Relaxed);
        let mut s = script.lock().unwrap().clone();
        if number >= s.bad_requests {
            s = s.well();
        }
        tokio::time::sleep(s.thinks).await;
        if s.status != 200 {
            let wait = s.retry_after.map(|s| format!("retry-after: {s}\r\n"));
            let answer = format!(
                "HTTP/1.1 {} No\r\n{}content-length: 0\r\n\r\n",
                s.status,
                wait.unwrap_or_default()
            );
            w.write_all(answer.as_bytes()).await?;
            continue;
        }
        let get = |name: &str| {
            head.iter()
                .find_map(|l| l.strip_prefix(name).map(str::to_owned))
        };
        let total = s.body.len();
        let same = get("if-range: ").is_none_or(|v| v == s.etag)
            && get("if-match: ").is_none_or(|v| v == s.etag);
        let range = get("range: bytes=")
            .filter(|_| same && s.says_length)
            .and_then(|r| {
                let (a, b) = r.split_once('-')?;
                let from: usize = a.trim().parse().ok()?;
                Some((
                    from,
                    b.trim()
                        .parse::<usize>()
                        .map_or(total, |b| (b + 1).min(total)),
                ))
            });
        let (from, to) = range.unwrap_or((0, total));
        if range.is_some() && from >= total {
            let answer = format!(
                "HTTP/1.1 416 No\r\ncontent-range: bytes */{total}\r\ncontent-length: 0\r\n\r\n"
            );
            w.write_all(answer.as_bytes()).await?;
            continue;
        }
        let mut answer = match range {
            Some(_) => format!(
                "HTTP/1.1 206 Part\r\ncontent-range: bytes {from}-{}/{total}\r\n",
                to.saturating_sub(1)
            ),
            None => "HTTP/1.1 200 OK\r\n".to_owned(),
        };
        answer += &format!("etag: {}\r\n", s.etag);
        answer += &if s.says_length {
            format!(
                "accept-ranges: bytes\r\ncontent-length: {}\r\n\r\n",
                to - from
            )
        } else {
            "connection: close\r\n\r\n".to_owned()
        };
        w.write_all(answer.as_bytes()).await?;
        if head.first().is_some_and(|line| line.starts_with("head ")) {
            if s.says_length {
                continue;
            }
            return w.shutdown().await;
        }
        let mut done = 0;
        for part in s.body[from..to].chunks(16 << 10) {
            if s.cut_after.is_some_and(|n| done >= n) {
                return Ok(());
            }
            if s.stall_after.is_some_and(|n| done >= n) {
                tokio::time::sleep(Duration::from_secs(600)).await;
            }
            w.write_all(part).await?;
            done += part.len();
            sent.fetch_add(part.len() as u64, Ordering::Relaxed);
            if s.rate > 0 {
                let pause = part.len() as f64 / s.rate as f64;
                tokio::time::sleep(Duration::from_secs_f64(pause)).await;
            }
        }
        if !s.says_length {
            return w.shutdown().await;
        }
    }
}
