//! What encryption costs between two nodes: the transport itself with mutual TLS and without, both ends
//! in this process, on the loopback.
//!
//! Every block is hashed as it is in a node; nothing is written to a disk. Figures a connection and a
//! byte are of both ends together.

use std::collections::HashMap;
use std::fs::File;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use dragonfly_e2e::{Failed, Result, sample};
use dragonfly_identity::{Ca, Role, Who, node_name};
use dragonfly_proto::frame::{DataHeader, Frame};
use dragonfly_proto::id::NodeId;
use dragonfly_transport::{
    Block, CloseReason, Conn, Handler, Local, Mesh, Next, Outgoing, Payload, Security, Timeouts,
    TlsConfig, Violation, Welcome,
};
use rustls::pki_types::PrivateKeyDer;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::report::medians;
use crate::usage;

const MESH: [u8; 16] = [7; 16];
const BLOCK: u32 = 1 << 20;
/// How long handshakes are made for.
const WHILE: Duration = Duration::from_secs(4);
/// Nodes that dial at once.
const DIALLERS: usize = 8;
const LIMIT: Duration = Duration::from_secs(120);

/// All cases; `runs` of each in turn.
pub(crate) fn run(size: u64, connections: usize, runs: usize) -> Result<Vec<Value>> {
    let runtime = Runtime::new().map_err(|e| Failed::at("a runtime", e))?;
    let dir = tempfile::tempdir().map_err(|e| Failed::at("a temporary directory", e))?;
    let content = dir.path().join("content");
    sample::random(&content, size, 1)?;
    let file = Arc::new(File::open(&content).map_err(|e| Failed::at(content.display(), e))?);
    let ways = [
        ("plaintext", None),
        ("mutual TLS 1.3", Some(Arc::new(Certifier::new()?))),
    ];
    let mut rows: HashMap<(&str, &str), Vec<Value>> = HashMap::new();
    for _ in 0..runs.max(1) {
        for (name, ca) in &ways {
            let ca = ca.as_deref();
            let bytes = runtime.block_on(throughput(ca, &file, size))?;
            let hands = runtime.block_on(handshakes(ca))?;
            let memory = runtime.block_on(memory(ca, connections))?;
            eprintln!("{name}: {bytes} {hands} {memory}");
            for (case, row) in [("bytes", bytes), ("connections", hands), ("memory", memory)] {
                rows.entry((case, name)).or_default().push(row);
            }
        }
    }
    let case = |key: &'static str, title: &str, about: &str| {
        let systems: Vec<Value> = ways
            .iter()
            .map(|(name, _)| {
                let rows = rows.get(&(key, *name)).cloned().unwrap_or_default();
                json!({"system": name, "median": medians(&rows), "runs": rows})
            })
            .collect();
        json!({
            "case": title, "about": about, "peers": 1, "rate_mbit": 0, "size_bytes": size,
            "systems": systems,
        })
    };
    Ok(vec![
        case(
            "bytes",
            "Encryption, a byte",
            "one connection of the transport on the loopback, blocks of 1 MiB from a cached file, each hashed by who gets it; CPU is of both ends, and some of it is the hash",
        ),
        case(
            "connections",
            "Encryption, a connection",
            "connections made one after the other by each of eight nodes to one, certificates checked at both ends; CPU is of both ends",
        ),
        case(
            "memory",
            "Encryption, a connection that is kept",
            "resident memory that idle connections take, KiB for each end of one",
        ),
    ])
}

/// Gives nodes certificates.
struct Certifier(Ca);

impl Certifier {
    fn new() -> Result<Self> {
        let made = Ca::generate("bench", Duration::from_secs(86_400));
        let (cert, key) = made.map_err(|e| Failed::at("a CA", e))?;
        Ok(Self(
            Ca::read(&cert, &key).map_err(|e| Failed::at("a CA", e))?,
        ))
    }

    fn security(&self, node: &NodeId) -> Result<Security> {
        let wrong = |e: &dyn std::fmt::Display| Failed::at("a certificate", e);
        let key = rcgen::KeyPair::generate().map_err(|e| wrong(&e))?;
        let who = Who {
            mesh: "bench".to_owned(),
            role: Role::Peer,
            node: node.to_string(),
        };
        let hour = Duration::from_secs(3600);
        let cert = self.0.issue(&key, vec![node_name(node)], &who, hour);
        let cert = cert.map_err(|e| wrong(&e))?;
        let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(|e| wrong(&e))?;
        let roots = [self.0.der().clone()];
        let config = TlsConfig::new(vec![cert], &key, &roots).map_err(|e| wrong(&e))?;
        Ok(Security::tls(config))
    }
}

/// A node that sends what it is told to, and counts what it gets.
#[derive(Default)]
struct Node {
    /// The blocks still to be sent, and where they are.
    left: AtomicU32,
    file: Mutex<Option<Arc<File>>>,
    received: AtomicU64,
    open: AtomicU64,
}

impl Handler for Node {
    fn opened(&self, _: &Arc<Conn>) {
        self.open.fetch_add(1, Ordering::Relaxed);
    }

    fn frame(&self, _: &Arc<Conn>, _: u32, _: Frame) -> std::result::Result<(), Violation> {
        Ok(())
    }

    fn announced(
        &self,
        _: &Arc<Conn>,
        _: u32,
        _: &DataHeader,
    ) -> std::result::Result<Welcome, Violation> {
        Ok(Welcome::Take)
    }

    fn block(
        &self,
        _: &Arc<Conn>,
        _: u32,
        block: &Block<'_>,
    ) -> std::result::Result<Option<Duration>, Violation> {
        self.received
            .fetch_add(block.data.len() as u64, Ordering::Relaxed);
        Ok(None)
    }

    fn has_next(&self, _: &Arc<Conn>) -> bool {
        self.left.load(Ordering::Relaxed) > 0
    }

    fn next(&self, _: &Arc<Conn>) -> Next {
        let file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let left = self.left.load(Ordering::Relaxed);
        let Some(file) = file.clone().filter(|_| left > 0) else {
            return Next::Idle;
        };
        let index = left - 1;
        self.left.store(index, Ordering::Relaxed);
        Next::Send(Outgoing {
            stream: 1,
            index,
            proof: vec![0; 64],
            payload: Payload::File {
                file,
                offset: u64::from(index) * u64::from(BLOCK),
                len: BLOCK,
            },
        })
    }

    /// One socket is measured.
    fn next_unordered(&self, _: &Arc<Conn>) -> Next {
        Next::Idle
    }

    fn sent(&self, _: &Arc<Conn>, _: u32, _: u32, _: u32) {}

    fn unreadable(&self, _: &Arc<Conn>, _: u32, _: u32, _: &std::io::Error) {}

    fn closed(&self, _: &Arc<Conn>, _: &CloseReason) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A node and where it listens.
struct End {
    mesh: Arc<Mesh<Node>>,
    node: Arc<Node>,
    id: NodeId,
    addr: SocketAddr,
    accepting: tokio::task::JoinHandle<()>,
}

impl Drop for End {
    fn drop(&mut self) {
        self.accepting.abort();
        for conn in self.mesh.all() {
            conn.close(CloseReason::Local("done".to_owned()));
        }
    }
}

impl End {
    fn new(n: u64, ca: Option<&Certifier>) -> Result<Self> {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&n.to_be_bytes());
        let id = NodeId(id);
        let security = match ca {
            Some(ca) => ca.security(&id)?,
            None => Security::plaintext(),
        };
        let node = Arc::new(Node::default());
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let wrong = |e| Failed::at("a port", e);
        let listener = Mesh::<Node>::listen(any).map_err(wrong)?;
        let addr = listener.local_addr().map_err(wrong)?;
        let timeouts = Timeouts {
            connect: Duration::from_secs(20),
            greet: Duration::from_secs(20),
            silence: Duration::from_secs(60),
        };
        let local = Local {
            node: id,
            mesh: MESH,
        };
        let mesh = Mesh::new(local, security, timeouts, node.clone());
        let accepting = tokio::spawn(mesh.clone().accept(listener));
        Ok(Self {
            mesh,
            node,
            id,
            addr,
            accepting,
        })
    }

    async fn connect(&self, to: &Self) -> Result<Arc<Conn>> {
        let made = self.mesh.connect(to.id, &[to.addr]).await;
        made.map_err(|e| Failed::at("a connection", e))
    }
}

async fn until(what: &str, holds: impl Fn() -> bool) -> Result<()> {
    let began = Instant::now();
    while !holds() {
        if began.elapsed() > LIMIT {
            return Err(Failed::at(what, format!("not within {LIMIT:?}")));
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

fn cpu() -> f64 {
    usage::cpu(std::process::id())
}

async fn throughput(ca: Option<&Certifier>, file: &Arc<File>, size: u64) -> Result<Value> {
    let (from, to) = (End::new(1, ca)?, End::new(2, ca)?);
    let conn = to.connect(&from).await?;
    until("the connection", || {
        from.node.open.load(Ordering::Relaxed) == 1
    })
    .await?;
    let blocks = u32::try_from(size / u64::from(BLOCK)).unwrap_or(u32::MAX);
    let all = u64::from(blocks) * u64::from(BLOCK);
    *from
        .node
        .file
        .lock()
        .unwrap_or_else(PoisonError::into_inner) = Some(file.clone());
    let (before, began) = (cpu(), Instant::now());
    from.node.left.store(blocks, Ordering::Relaxed);
    from.mesh.all().iter().for_each(|conn| conn.wake());
    until("all blocks", || {
        to.node.received.load(Ordering::Relaxed) >= all
    })
    .await?;
    let seconds = began.elapsed().as_secs_f64();
    let spent = cpu() - before;
    drop(conn);
    Ok(json!({
        "gbit_s": all as f64 * 8.0 / seconds / 1e9,
        "cpu_s_per_gib": spent / (all as f64 / f64::from(1 << 30)),
    }))
}

async fn handshakes(ca: Option<&Certifier>) -> Result<Value> {
    let called = Arc::new(End::new(1, ca)?);
    let mut callers = vec![];
    for n in 0..DIALLERS as u64 {
        callers.push(End::new(n + 2, ca)?);
    }
    let (before, began) = (cpu(), Instant::now());
    let work = callers.into_iter().map(|caller| {
        let called = called.clone();
        tokio::spawn(async move {
            let mut made = 0u32;
            while began.elapsed() < WHILE {
                let conn = caller.connect(&called).await?;
                conn.close(CloseReason::Local("again".to_owned()));
                made += 1;
                let gone = || caller.mesh.is_empty() && called.mesh.get(&caller.id).is_none();
                while !gone() {
                    // Not by asking all the time: CPU is counted.
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    if began.elapsed() > LIMIT {
                        return Err(Failed("a closed connection stays".to_owned()));
                    }
                }
            }
            Ok(made)
        })
    });
    let mut made = 0;
    for each in work.collect::<Vec<_>>() {
        made += each.await.map_err(|e| Failed::at("a caller", e))??;
    }
    let (seconds, spent) = (began.elapsed().as_secs_f64(), cpu() - before);
    Ok(json!({
        "connections_s": f64::from(made) / seconds,
        "cpu_ms_each": spent * 1e3 / f64::from(made.max(1)),
    }))
}

async fn memory(ca: Option<&Certifier>, connections: usize) -> Result<Value> {
    let called = End::new(1, ca)?;
    let mut callers = vec![];
    for n in 0..connections as u64 {
        callers.push(End::new(n + 2, ca)?);
    }
    let resident = || usage::memory(std::process::id(), "VmRSS");
    let before = resident();
    let mut kept = vec![];
    for caller in &callers {
        kept.push(caller.connect(&called).await?);
    }
    until("all connections", || called.mesh.len() == connections).await?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let grown = resident() - before;
    let alive = kept.iter().filter(|conn| !conn.is_closed()).count();
    if alive != connections {
        return Err(Failed(format!("{alive} of {connections} connections live")));
    }
    Ok(json!({"kib_each_end": grown * 1024.0 / (2 * connections) as f64}))
}
