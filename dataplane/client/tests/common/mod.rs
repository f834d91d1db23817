//! A node without schedulers on a socket in a temporary directory, and an origin for it.
#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    reason = "each test binary uses its part"
)]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use dragonfly_client::Client;
use dragonfly_node::api::{Api, ApiOptions};
use dragonfly_node::node::{Identity, Node, Parts, Role, Settings};
use dragonfly_node::session::Bootstrap;
use dragonfly_source::{
    AddressPolicy, FetchOptions, Fetcher, HttpOptions, HttpSource, RetryPolicy,
};
use dragonfly_storage::{DiskMedia, Options, Store};
use dragonfly_transport::Security;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// Bytes that repeat nowhere near.
pub fn content(len: usize) -> Vec<u8> {
    let mut x = 0x9e37_79b9_7f4a_7c15_u64;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        out.extend_from_slice(&x.to_le_bytes());
    }
    out.truncate(len);
    out
}

/// `sha256:<hex>` of these bytes.
pub fn digest(bytes: &[u8]) -> String {
    let mut file = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut file, bytes).unwrap();
    std::io::Seek::rewind(&mut file).unwrap();
    dragonfly_client::digest_of(&mut file).unwrap().0
}

/// An HTTP server with one content: ranges, an ETag, a speed.
pub struct Origin {
    pub addr: SocketAddr,
    /// Bytes of bodies sent.
    pub sent: Arc<AtomicU64>,
    pub requests: Arc<AtomicUsize>,
    accepting: tokio::task::JoinHandle<()>,
}

impl Origin {
    /// `rate`: bytes a second for each connection, 0 for as fast as can be.
    pub async fn start(body: Vec<u8>, rate: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (body, sent) = (Arc::new(body), Arc::<AtomicU64>::default());
        let requests = Arc::<AtomicUsize>::default();
        let (counted, asked) = (sent.clone(), requests.clone());
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (body, sent, asked) = (body.clone(), counted.clone(), asked.clone());
                tokio::spawn(async move { serve(stream, &body, rate, &sent, &asked).await });
            }
        });
        Self {
            addr,
            sent,
            requests,
            accepting,
        }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr)
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn serve(
    mut stream: TcpStream,
    body: &[u8],
    rate: u64,
    sent: &AtomicU64,
    asked: &AtomicUsize,
) -> Option<()> {
    let mut head = Vec::new();
    loop {
        head.clear();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.ok()?);
        }
        asked.fetch_add(1, Ordering::Relaxed);
        let text = String::from_utf8_lossy(&head).to_ascii_lowercase();
        if text.starts_with("get /missing") {
            let answer = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n";
            stream.write_all(answer).await.ok()?;
            continue;
        }
        let range = text.lines().find_map(|l| l.strip_prefix("range: bytes="));
        let range = range.and_then(|r| r.trim().split_once('-'));
        let (start, end) = match range {
            Some((first, last)) => {
                let last = last.parse().map_or(body.len(), |l: usize| l + 1);
                (first.parse().unwrap(), last.min(body.len()))
            }
            None => (0, body.len()),
        };
        if range.is_some() && start >= body.len() {
            let answer = format!(
                "HTTP/1.1 416 Range Not Satisfiable\r\ncontent-range: bytes */{}\r\n\
                 content-length: 0\r\netag: \"v1\"\r\n\r\n",
                body.len()
            );
            stream.write_all(answer.as_bytes()).await.ok()?;
            continue;
        }
        let status = match range {
            Some(_) => format!(
                "206 Partial Content\r\ncontent-range: bytes {start}-{}/{}",
                end - 1,
                body.len()
            ),
            None => "200 OK".to_owned(),
        };
        let head = format!(
            "HTTP/1.1 {status}\r\ncontent-length: {}\r\naccept-ranges: bytes\r\netag: \"v1\"\r\n\r\n",
            end - start
        );
        stream.write_all(head.as_bytes()).await.ok()?;
        if text.starts_with("head ") {
            continue;
        }
        for part in body[start..end].chunks(16 << 10) {
            stream.write_all(part).await.ok()?;
            sent.fetch_add(part.len() as u64, Ordering::Relaxed);
            if rate > 0 {
                let pause = Duration::from_secs_f64(part.len() as f64 / rate as f64);
                tokio::time::sleep(pause).await;
            }
        }
    }
}

/// A node that can be stopped and started again on the same store.
pub struct Served {
    pub dir: PathBuf,
    pub node: Arc<Node>,
    stop: CancellationToken,
    serving: tokio::task::JoinHandle<()>,
}

impl Served {
    pub async fn start(dir: &Path) -> Self {
        Self::start_in(dir, 7, vec![]).await
    }

    /// One of several nodes of a mesh.
    pub async fn start_in(dir: &Path, id: u8, schedulers: Vec<String>) -> Self {
        let options = ApiOptions::new(dir.join("node.sock"));
        Self::start_with(dir, id, schedulers, &options).await
    }

    pub async fn start_with(
        dir: &Path,
        id: u8,
        schedulers: Vec<String>,
        options: &ApiOptions,
    ) -> Self {
        let store = open_store(&dir.join("store")).await;
        let http = HttpOptions {
            addresses: AddressPolicy {
                loopback: true,
                ..AddressPolicy::default()
            },
            ..HttpOptions::default()
        };
        let http = Arc::new(HttpSource::new(http).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let parts = Parts {
            identity: Identity {
                node: dragonfly_proto::id::NodeId([id; 16]),
                name: format!("test-{id}"),
                zone: String::new(),
                role: Role::Peer,
                mesh: [1; 16],
                addresses: vec![listener.local_addr().unwrap()],
            },
            store,
            fetcher: Fetcher::new(
                http,
                FetchOptions {
                    retry: RetryPolicy::default(),
                    ..FetchOptions::default()
                },
            ),
            security: Security::plaintext(),
            settings: Settings::default(),
            schedulers: Bootstrap {
                addresses: schedulers,
                tls: None,
            },
        };
        let node = Node::start(parts, listener).unwrap();
        let api = Api::bind(node.clone(), options).await.unwrap();
        let stop = CancellationToken::new();
        let end = stop.clone();
        let serving = tokio::spawn(async move { api.run(end).await.unwrap() });
        Self {
            dir: dir.to_owned(),
            node,
            stop,
            serving,
        }
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.join("node.sock")
    }

    pub async fn client(&self) -> Client {
        Client::connect(self.socket()).await.unwrap()
    }

    pub async fn stop(self) {
        self.stop.cancel();
        self.serving.await.unwrap();
        self.node.shutdown().await;
    }
}

/// A scheduler; the address it listens on.
pub async fn scheduler() -> String {
    use dragonfly_scheduler::core::{Core, CoreSettings};
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (authority, _) = dragonfly_proto::sign::SigningKey::generate().unwrap();
    let replica = dragonfly_client::rpc::Replica {
        name: "s".into(),
        address: address.clone(),
    };
    let unix = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    let settings = CoreSettings::default();
    let core = Core::new(
        "s".into(),
        vec![replica],
        [1; 16],
        authority.into(),
        settings,
        unix.as_secs(),
    );
    let service = dragonfly_scheduler::service::Service::new(core, None);
    let server = service.server();
    tokio::spawn(async move { service.run(CancellationToken::new()).await });
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let serving = tonic::transport::Server::builder().add_service(server);
    tokio::spawn(serving.serve_with_incoming(incoming));
    address
}

/// The store; waits until the node before has let go of it.
async fn open_store(dir: &Path) -> Store {
    std::fs::create_dir_all(dir).unwrap();
    for _ in 0..200 {
        let media = DiskMedia::new(dir).unwrap();
        match Store::open(
            media,
            Options {
                reserve_free_percent: 0,
                ..Options::default()
            },
            0,
        ) {
            Ok(store) => return store,
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
    panic!("the store stays locked");
}
