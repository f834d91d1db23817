//! Nodes that only talk: a handler that notes everything and sends what it is given.
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic
)]

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dragonfly_proto::frame::{DataHeader, Frame, FrameHeader, Greeting, kind};
use dragonfly_proto::id::NodeId;
use dragonfly_transport::{
    Block, CloseReason, Conn, Handler, Local, Mesh, Next, Outgoing, Payload, Role, Security,
    Timeouts, TlsConfig, Violation, Welcome, Who, node_name,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

pub const MESH: [u8; 16] = [3; 16];

/// Short, so that silence is found out about within a test.
pub const QUICK: Timeouts = Timeouts {
    connect: Duration::from_secs(1),
    greet: Duration::from_millis(700),
    silence: Duration::from_millis(2500),
};

/// A block that arrived: index, proof, hash, whether the hash is that of the bytes, bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Got {
    pub from: NodeId,
    pub stream: u32,
    pub index: u32,
    pub proof: Vec<u8>,
    pub hash: [u8; 32],
    pub data: Vec<u8>,
}

#[derive(Default)]
pub struct Notes {
    pub opened: Mutex<HashMap<u64, u32>>,
    pub closed: Mutex<HashMap<u64, (u32, String)>>,
    pub frames: Mutex<Vec<(NodeId, u32, Frame)>>,
    pub blocks: Mutex<Vec<Got>>,
    /// The order in which frames (`f`) and blocks (`b`) came.
    pub order: Mutex<String>,
    pub to_send: Mutex<HashMap<NodeId, VecDeque<Outgoing>>>,
    pub sent: AtomicU64,
    pub skip: AtomicBool,
    pub refuse_blocks: AtomicBool,
    /// Read nothing more after a block: this node stands still.
    pub stall: AtomicBool,
    /// Blocks that could not be read.
    pub unreadable: Mutex<Vec<u32>>,
    /// Milliseconds that taking a block takes.
    pub slow: AtomicU64,
    /// From this block on all are lies; 0: none is.
    pub lies_from: AtomicU64,
    /// Blocks handed over, lies too.
    pub handed: AtomicU64,
    /// Blocks taken on the thread of a lane.
    pub on_lanes: AtomicU64,
    /// A block is being taken right now.
    pub taking: AtomicBool,
    /// Blocks announced while one was being taken.
    pub beside: AtomicU64,
    /// A frame, or the end, was told of while a block was being taken.
    pub out_of_turn: AtomicBool,
}

impl Handler for Notes {
    fn opened(&self, conn: &Arc<Conn>) {
        *self.opened.lock().unwrap().entry(conn.id()).or_default() += 1;
    }

    fn frame(&self, conn: &Arc<Conn>, stream: u32, frame: Frame) -> Result<(), Violation> {
        self.check_turn();
        if frame != Frame::Ping {
            self.order.lock().unwrap().push('f');
            self.frames
                .lock()
                .unwrap()
                .push((conn.peer(), stream, frame));
        }
        Ok(())
    }

    fn announced(&self, _: &Arc<Conn>, _: u32, _: &DataHeader) -> Result<Welcome, Violation> {
        if self.refuse_blocks.load(Ordering::Relaxed) {
            return Err(Violation("nobody asked".to_owned()));
        }
        if self.taking.load(Ordering::SeqCst) {
            self.beside.fetch_add(1, Ordering::SeqCst);
        }
        Ok(if self.skip.load(Ordering::Relaxed) {
            Welcome::Skip
        } else {
            Welcome::Take
        })
    }

    fn block(
        &self,
        conn: &Arc<Conn>,
        stream: u32,
        b: &Block<'_>,
    ) -> Result<Option<Duration>, Violation> {
        self.handed.fetch_add(1, Ordering::SeqCst);
        let is_lane = std::thread::current().name() == Some("lane");
        self.on_lanes.fetch_add(is_lane.into(), Ordering::SeqCst);
        self.taking.store(true, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(self.slow.load(Ordering::SeqCst)));
        self.taking.store(false, Ordering::SeqCst);
        let lies_from = self.lies_from.load(Ordering::SeqCst);
        if lies_from > 0 && u64::from(b.index) >= lies_from {
            return Err(Violation(format!("block {} is a lie", b.index)));
        }
        self.order.lock().unwrap().push('b');
        self.blocks.lock().unwrap().push(Got {
            from: conn.peer(),
            stream,
            index: b.index,
            proof: b.proof.to_vec(),
            hash: b.hash,
            data: b.data.to_vec(),
        });
        Ok(self
            .stall
            .load(Ordering::Relaxed)
            .then_some(Duration::from_secs(3600)))
    }

    fn has_next(&self, conn: &Arc<Conn>) -> bool {
        let all = self.to_send.lock().unwrap();
        all.get(&conn.peer())
            .is_some_and(|blocks| !blocks.is_empty())
    }

    fn next(&self, conn: &Arc<Conn>) -> Next {
        let mut all = self.to_send.lock().unwrap();
        match all.get_mut(&conn.peer()).and_then(VecDeque::pop_front) {
            Some(block) => Next::Send(block),
            None => Next::Idle,
        }
    }

    fn next_unordered(&self, conn: &Arc<Conn>) -> Next {
        self.next(conn)
    }

    fn sent(&self, _: &Arc<Conn>, _: u32, _: u32, bytes: u32) {
        self.sent.fetch_add(u64::from(bytes), Ordering::Relaxed);
    }

    fn unreadable(&self, _: &Arc<Conn>, _: u32, index: u32, _: &std::io::Error) {
        self.unreadable.lock().unwrap().push(index);
    }

    fn closed(&self, conn: &Arc<Conn>, reason: &CloseReason) {
        self.check_turn();
        let mut all = self.closed.lock().unwrap();
        let entry = all.entry(conn.id()).or_insert((0, reason.to_string()));
        entry.0 += 1;
    }
}

impl Notes {
    fn check_turn(&self) {
        let taking = self.taking.load(Ordering::SeqCst);
        self.out_of_turn.fetch_or(taking, Ordering::SeqCst);
    }

    pub fn open_now(&self) -> usize {
        self.opened.lock().unwrap().len() - self.closed.lock().unwrap().len()
    }

    /// Every connection that was opened was closed or is up, each said once, in that order.
    pub fn check_pairs(&self) {
        let (opened, closed) = (self.opened.lock().unwrap(), self.closed.lock().unwrap());
        assert!(opened.values().all(|n| *n == 1), "opened twice: {opened:?}");
        assert!(
            closed.values().all(|n| n.0 == 1),
            "closed twice: {closed:?}"
        );
        assert!(
            closed.keys().all(|id| opened.contains_key(id)),
            "closed and never opened"
        );
    }

    pub fn reasons(&self) -> Vec<String> {
        self.closed
            .lock()
            .unwrap()
            .values()
            .map(|c| c.1.clone())
            .collect()
    }

    pub fn queue(&self, to: &NodeId, block: Outgoing) {
        self.to_send
            .lock()
            .unwrap()
            .entry(*to)
            .or_default()
            .push_back(block);
    }
}

pub struct Peer {
    pub mesh: Arc<Mesh<Notes>>,
    pub notes: Arc<Notes>,
    pub id: NodeId,
    pub addr: SocketAddr,
    accepting: tokio::task::JoinHandle<()>,
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.accepting.abort();
        for conn in self.mesh.all() {
            conn.close(CloseReason::Local("the test is over".to_owned()));
        }
    }
}

impl Peer {
    pub fn new(n: u8, security: Security, timeouts: Timeouts) -> Self {
        Self::of(NodeId([n; 16]), MESH, security, timeouts)
    }

    pub fn of(id: NodeId, mesh: [u8; 16], security: Security, timeouts: Timeouts) -> Self {
        let notes = Arc::new(Notes::default());
        let listener = Mesh::<Notes>::listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let addr = listener.local_addr().unwrap();
        let mesh = Mesh::new(Local { node: id, mesh }, security, timeouts, notes.clone());
        let accepting = tokio::spawn(mesh.clone().accept(listener));
        Self {
            mesh,
            notes,
            id,
            addr,
            accepting,
        }
    }

    pub fn plain(n: u8) -> Self {
        Self::new(n, Security::plaintext(), QUICK)
    }

    pub async fn connect(&self, to: &Self) -> Arc<Conn> {
        self.mesh.connect(to.id, &[to.addr]).await.unwrap()
    }
}

/// Waits until it holds; says what did not when it never does.
pub async fn until(what: &str, limit: Duration, holds: impl Fn() -> bool) {
    let since = Instant::now();
    while !holds() {
        assert!(since.elapsed() < limit, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub const SOON: Duration = Duration::from_secs(8);

/// A certificate authority of one mesh.
pub struct Ca {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    der: rustls::pki_types::CertificateDer<'static>,
}

impl Ca {
    pub fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let cert = params.self_signed(&key).unwrap();
        Self {
            der: cert.der().clone(),
            issuer: rcgen::Issuer::new(params, key),
        }
    }

    /// A certificate for a node, used by whoever calls itself whatever it likes.
    pub fn tls(&self, node: &NodeId) -> TlsConfig {
        let key = rcgen::KeyPair::generate().unwrap();
        let who = Who {
            mesh: "m".to_owned(),
            role: Role::Peer,
            node: format!("machine-{node}"),
        };
        self.tls_as(node, &who, key, |_| {})
    }

    /// The CA's certificate.
    pub fn der(&self) -> rustls::pki_types::CertificateDer<'static> {
        self.der.clone()
    }

    /// A node's certificate for a key, and the CA's.
    pub fn cert(
        &self,
        node: &NodeId,
        key: &rcgen::KeyPair,
    ) -> (
        rustls::pki_types::CertificateDer<'static>,
        rustls::pki_types::CertificateDer<'static>,
    ) {
        let mut params = rcgen::CertificateParams::new(vec![node_name(node)]).unwrap();
        let uri = format!("spiffe://m/peer/machine-{node}");
        params
            .subject_alt_names
            .push(rcgen::SanType::URI(uri.try_into().unwrap()));
        let cert = params.signed_by(key, &self.issuer).unwrap();
        (cert.der().clone(), self.der.clone())
    }

    /// A certificate that says this, and what a test changes of it.
    pub fn tls_as(
        &self,
        node: &NodeId,
        who: &Who,
        key: rcgen::KeyPair,
        change: impl Fn(&mut rcgen::CertificateParams),
    ) -> TlsConfig {
        let mut params = rcgen::CertificateParams::new(vec![node_name(node)]).unwrap();
        let uri = rcgen::SanType::URI(who.uri().try_into().unwrap());
        params.subject_alt_names.push(uri);
        change(&mut params);
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        TlsConfig::new(
            vec![cert.der().clone()],
            &key,
            std::slice::from_ref(&self.der),
        )
        .unwrap()
    }

    pub fn security(&self, node: &NodeId) -> Security {
        Security::tls(self.tls(node))
    }

    pub fn peer(&self, n: u8) -> Peer {
        Peer::new(n, self.security(&NodeId([n; 16])), QUICK)
    }
}

pub fn bytes(len: usize, seed: u64) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
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

pub fn in_memory(stream: u32, index: u32, data: Vec<u8>) -> Outgoing {
    Outgoing {
        stream,
        index,
        proof: vec![index as u8; 70],
        payload: Payload::Bytes(data),
    }
}

/// Another implementation of the other side, which says whatever the test wants.
pub struct Raw {
    pub io: TcpStream,
}

impl Raw {
    /// Connects and greets as an honest node would.
    pub async fn greeted(to: &Peer, id: NodeId) -> Self {
        Self::greet(TcpStream::connect(to.addr).await.unwrap(), id).await
    }

    /// The same with next to no room for what it has not read yet.
    pub async fn narrow(to: &Peer, id: NodeId) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4 << 10).unwrap();
        Self::greet(socket.connect(to.addr).await.unwrap(), id).await
    }

    /// The other side's answer to this greeting; none when it hangs up.
    pub async fn answer(to: &Peer, greeting: Greeting) -> Option<(Self, Greeting)> {
        let mut io = TcpStream::connect(to.addr).await.unwrap();
        io.write_all(&greeting.encode()).await.unwrap();
        let mut theirs = [0; Greeting::LEN];
        io.read_exact(&mut theirs).await.ok()?;
        Some((Self { io }, Greeting::decode(&theirs).unwrap()))
    }

    async fn greet(mut io: TcpStream, id: NodeId) -> Self {
        io.write_all(&Greeting::new(id, MESH).encode())
            .await
            .unwrap();
        let mut theirs = [0; Greeting::LEN];
        io.read_exact(&mut theirs).await.unwrap();
        Self { io }
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        self.io.write_all(bytes).await.unwrap();
    }

    pub fn header(kind: u8, len: u32) -> [u8; FrameHeader::LEN] {
        FrameHeader {
            kind,
            stream: 1,
            len,
        }
        .encode()
    }

    /// A DATA frame's header with these numbers, right or wrong.
    pub fn data(index: u32, data_len: u32, proof_len: u16, frame_len: u32) -> Vec<u8> {
        let mut out = Self::header(kind::DATA, frame_len).to_vec();
        out.extend_from_slice(&index.to_le_bytes());
        out.extend_from_slice(&data_len.to_le_bytes());
        out.extend_from_slice(&proof_len.to_le_bytes());
        out.extend_from_slice(&[0; 2]);
        out
    }

    /// How long until the other side hangs up.
    pub async fn hung_up(&mut self) -> Duration {
        let since = Instant::now();
        let mut buf = [0; 4096];
        while !matches!(self.io.read(&mut buf).await, Ok(0) | Err(_)) {
            assert!(since.elapsed() < SOON, "it never hangs up");
        }
        since.elapsed()
    }
}
