//! A mesh in one process, over real sockets and a real HTTP origin, for tests.
#![allow(
    dead_code,
    unused,
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::too_many_arguments
)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dragonfly_node::node::{Identity, Node, Parts, Role, Settings};
use dragonfly_node::session::Bootstrap;
use dragonfly_proto::id::NodeId;
use dragonfly_proto::rpc;
use dragonfly_proto::sign::SigningKey;
use dragonfly_scheduler::core::{Core, CoreSettings};
use dragonfly_scheduler::service::Service;
use dragonfly_source::http::HttpSource;
use dragonfly_source::{FetchOptions, Fetcher};
use dragonfly_storage::{DiskMedia, Options, Store};
use dragonfly_transport::{Mesh as Connections, Security};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub mod says;
pub mod scripted;

pub const MESH: [u8; 16] = [7; 16];

/// An origin that counts what it sends.
pub struct Origin {
    pub addr: SocketAddr,
    pub body: Arc<Vec<u8>>,
    pub sent: Arc<AtomicU64>,
    pub requests: Arc<AtomicU64>,
}

impl Origin {
    pub async fn start(body: Vec<u8>) -> Self {
        Self::with(body, true, 0).await
    }

    /// `rate`: bytes a second for each connection, 0 for as fast as can be.
    pub async fn with(body: Vec<u8>, ranges: bool, rate: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let origin = Self {
            addr: listener.local_addr().unwrap(),
            body: Arc::new(body),
            sent: Arc::default(),
            requests: Arc::default(),
        };
        let (body, sent, requests) = (
            origin.body.clone(),
            origin.sent.clone(),
            origin.requests.clone(),
        );
        tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else {
                    return;
                };
                let (body, sent, requests) = (body.clone(), sent.clone(), requests.clone());
                tokio::spawn(async move {
                    let _ = serve(stream, body, sent, requests, ranges, rate).await;
                });
            }
        });
        origin
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.addr)
    }
}

async fn serve(
    mut stream: tokio::net::TcpStream,
    body: Arc<Vec<u8>>,
    sent: Arc<AtomicU64>,
    requests: Arc<AtomicU64>,
    ranges: bool,
    rate: u64,
) -> std::io::Result<()> {
    let (r, mut w) = stream.split();
    let mut lines = BufReader::new(r);
    loop {
        let mut head = String::new();
        loop {
            let mut line = String::new();
            if lines.read_line(&mut line).await? == 0 {
                return Ok(());
            }
            if line == "\r\n" {
                break;
            }
            head.push_str(&line.to_ascii_lowercase());
        }
        requests.fetch_add(1, Ordering::Relaxed);
        let total = body.len();
        let range = head
            .lines()
            .find_map(|l| l.strip_prefix("range: bytes="))
            .filter(|_| ranges);
        let (from, to, status) = match range.and_then(|r| r.split_once('-')) {
            Some((a, b)) => {
                let a: usize = a.trim().parse().unwrap_or(0);
                let b = b
                    .trim()
                    .parse::<usize>()
                    .map_or(total, |b| (b + 1).min(total));
                (a.min(total), b, "206 Partial Content")
            }
            None => (0, total, "200 OK"),
        };
        if range.is_some() && from >= total {
            let answer = format!(
                "HTTP/1.1 416 Range Not Satisfiable\r\ncontent-range: bytes */{total}\r\ncontent-length: 0\r\n\r\n"
            );
            w.write_all(answer.as_bytes()).await?;
            continue;
        }
        if std::env::var_os("KIT_TRACE").is_some() {
            eprintln!(
                "origin: {from}..{to}: {}",
                head.lines().next().unwrap_or_default()
            );
        }
        let mut answer = format!("HTTP/1.1 {status}\r\n");
        if ranges {
            answer += "etag: \"v1\"\r\naccept-ranges: bytes\r\n";
            answer += &format!("content-length: {}\r\n", to - from);
        } else {
            answer += "transfer-encoding: chunked\r\n";
        }
        if range.is_some() {
            answer += &format!("content-range: bytes {from}-{}/{total}\r\n", to - 1);
        }
        w.write_all((answer + "\r\n").as_bytes()).await?;
        if head.starts_with("head ") {
            continue;
        }
        for part in body[from..to].chunks(64 << 10) {
            if !ranges {
                w.write_all(format!("{:x}\r\n", part.len()).as_bytes())
                    .await?;
            }
            w.write_all(part).await?;
            if !ranges {
                w.write_all(b"\r\n").await?;
            }
            sent.fetch_add(part.len() as u64, Ordering::Relaxed);
            if rate > 0 {
                tokio::time::sleep(Duration::from_secs_f64(part.len() as f64 / rate as f64)).await;
            }
        }
        if !ranges {
            w.write_all(b"0\r\n\r\n").await?;
        }
    }
}

/// A scheduler on a runtime of its own, so that it can be killed with all its connections.
pub struct SchedulerProcess {
    pub addr: SocketAddr,
    pub service: Service,
    runtime: Option<tokio::runtime::Runtime>,
}

impl SchedulerProcess {
    pub async fn start(
        addr: SocketAddr,
        authority: Arc<SigningKey>,
        settings: CoreSettings,
    ) -> Self {
        let listener = loop {
            match std::net::TcpListener::bind(addr) {
                Ok(l) => break l,
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        };
        listener.set_nonblocking(true).unwrap();
        let addr = listener.local_addr().unwrap();
        let name = format!("scheduler-{}", addr.port());
        let replicas = vec![rpc::Replica {
            name: name.clone(),
            address: addr.to_string(),
        }];
        let unix = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap();
        let core = Core::new(name, replicas, MESH, authority, settings, unix.as_secs());
        let service = Service::new(core, None);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (server, ticking) = (service.server(), service.clone());
        runtime.spawn(async move { ticking.run(CancellationToken::new()).await });
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
            let serving = tonic::transport::Server::builder().add_service(server);
            serving.serve_with_incoming(incoming).await.unwrap();
        });
        Self {
            addr,
            service,
            runtime: Some(runtime),
        }
    }

    /// As if by kill -9: every connection breaks at once.
    pub async fn kill(mut self) {
        let runtime = self.runtime.take().unwrap();
        runtime.shutdown_background();
    }
}

impl Drop for SchedulerProcess {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

pub struct TestNode {
    pub node: Arc<Node>,
    pub dir: tempfile::TempDir,
}

#[derive(Clone)]
pub struct TestMesh {
    pub authority: Arc<SigningKey>,
    pub schedulers: Vec<SocketAddr>,
}

impl TestMesh {
    pub fn new(schedulers: Vec<SocketAddr>, authority: Arc<SigningKey>) -> Self {
        Self {
            authority,
            schedulers,
        }
    }

    pub async fn node(&self, n: u8, role: Role) -> TestNode {
        self.node_with(n, role, Settings::default(), tempfile::tempdir().unwrap())
            .await
    }

    pub async fn node_with(
        &self,
        n: u8,
        role: Role,
        settings: Settings,
        dir: tempfile::TempDir,
    ) -> TestNode {
        self.node_of(n, fastrand::u8(..), role, settings, dir, 4 << 30)
            .await
    }

    /// A node of another part of the network.
    pub async fn node_in(&self, zone: &str, n: u8, role: Role) -> TestNode {
        let (settings, dir) = (Settings::default(), tempfile::tempdir().unwrap());
        self.node_made(zone, n, fastrand::u8(..), role, settings, dir, 4 << 30)
            .await
    }

    /// `n` and `salt` make the node's identity: the same ones are the same node, restarted.
    pub async fn node_of(
        &self,
        n: u8,
        salt: u8,
        role: Role,
        settings: Settings,
        dir: tempfile::TempDir,
        quota_bytes: u64,
    ) -> TestNode {
        self.node_made("", n, salt, role, settings, dir, quota_bytes)
            .await
    }

    async fn node_made(
        &self,
        zone: &str,
        n: u8,
        salt: u8,
        role: Role,
        settings: Settings,
        dir: tempfile::TempDir,
        quota_bytes: u64,
    ) -> TestNode {
        let options = Options {
            quota_bytes,
            reserve_free_percent: 0,
            ..Options::default()
        };
        // A node that was killed a moment ago may still hold the store.
        let store = loop {
            match Store::open(DiskMedia::new(dir.path()).unwrap(), options.clone(), 1) {
                Ok(store) => break store,
                Err(e) if e.to_string().contains("in use") || e.to_string().contains("lock") => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(e) => panic!("{e}"),
            }
        };
        let http = HttpSource::new(dragonfly_source::http::HttpOptions::default()).unwrap();
        let listener = Connections::<Node>::listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let addr = listener.local_addr().unwrap();
        let mut node = [n; 16];
        node[15] = salt;
        let parts = Parts {
            identity: Identity {
                node: NodeId(node),
                name: format!("node-{n}"),
                zone: zone.to_owned(),
                role,
                mesh: MESH,
                addresses: vec![addr],
            },
            store,
            fetcher: Fetcher::new(Arc::new(http), FetchOptions::default()),
            security: Security::plaintext(),
            settings,
            schedulers: Bootstrap {
                addresses: self.schedulers.iter().map(ToString::to_string).collect(),
                tls: None,
            },
        };
        let node = Node::start(parts, listener).unwrap();
        NODES.with(|nodes| nodes.borrow_mut().push(Arc::downgrade(&node)));
        TestNode { node, dir }
    }
}

thread_local! {
    static NODES: std::cell::RefCell<Vec<std::sync::Weak<Node>>> = const { std::cell::RefCell::new(Vec::new()) };
}

/// What every node of this test is at: for a test that found no end.
pub fn describe_all() {
    NODES.with(|nodes| {
        for node in nodes.borrow().iter().filter_map(std::sync::Weak::upgrade) {
            for task in node.tasks() {
                eprintln!("{:?} {task:?}: {}", *node, task.describe());
            }
        }
    });
}

pub fn authority() -> Arc<SigningKey> {
    Arc::new(SigningKey::generate().unwrap().0)
}

pub fn bytes(len: usize, seed: u64) -> Vec<u8> {
    let mut v = vec![0; len];
    fastrand::Rng::with_seed(seed).fill(&mut v);
    v
}

pub fn source(url: &str) -> rpc::Source {
    rpc::Source {
        url: url.to_owned(),
        ..rpc::Source::default()
    }
}

pub async fn read_all(node: &TestNode, url: &str) -> Result<Vec<u8>, rpc::Failure> {
    read(node, source(url)).await
}

pub async fn read(node: &TestNode, source: rpc::Source) -> Result<Vec<u8>, rpc::Failure> {
    let mut d = node
        .node
        .download(source, dragonfly_node::download::Wish::Whole)
        .await?;
    let mut out = vec![];
    while let Some(b) = d.next_chunk().await? {
        out.extend_from_slice(&b);
    }
    d.finish().await?;
    Ok(out)
}

pub fn log() {
    let filter = std::env::var("RUST_LOG").unwrap_or_else(|_| "warn".to_owned());
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_test_writer()
        .try_init();
}
