//! All connections of a node: dialling, accepting, one for each other node.

mod error;
mod lanes;

pub use error::ConnectError;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use dragonfly_proto::frame::Greeting;
use dragonfly_proto::id::NodeId;
use rustls::pki_types::CertificateDer;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::aside::{self, Aside};
use crate::conn::{CloseReason, Conn};
use crate::lane::{self, Lane};
use crate::reader::{self, Input};
use crate::refusal::explain;
use crate::security::{Security, SecurityError, is_node, server_name};
use crate::socket::{self, Shared};
use crate::tls::{self, Tls};
use crate::uplink::Uplink;
use crate::who::Who;
use crate::writer::{self, Output};
use crate::{Handler, watch};

/// Callers that may be in the middle of TLS and greeting at once; further ones wait in the kernel's
/// queue, so that a crowd of silent callers costs a bounded number of descriptors.
const MAX_GREETING: usize = 1024;
/// How often a refused connection is logged at most.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// Who this node is to others.
#[derive(Debug, Clone, Copy)]
pub struct Local {
    /// Its identity.
    pub node: NodeId,
    /// The mesh it belongs to.
    pub mesh: [u8; 16],
}

/// How long to wait for others.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// For a TCP connection.
    pub connect: Duration,
    /// For TLS and greeting.
    pub greet: Duration,
    /// For any byte on a connection that is up; the other side says something every second.
    pub silence: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(2),
            greet: Duration::from_secs(5),
            silence: Duration::from_secs(5),
        }
    }
}

/// Who was dialled, and what for.
enum Dialled {
    /// A node.
    Node(NodeId),
    /// A lane of this connection.
    Lane(Arc<Conn>, lane::Held),
}

impl Dialled {
    fn node(&self) -> NodeId {
        match self {
            Self::Node(node) => *node,
            Self::Lane(conn, _) => conn.peer(),
        }
    }
}

/// The two halves of a connection, and what is beneath them.
struct Link<R, W> {
    reader: R,
    writer: W,
    socket: Arc<TcpStream>,
    addr: SocketAddr,
}

/// The node's connections.
#[derive(Debug)]
pub struct Mesh<H> {
    local: Local,
    security: Security,
    timeouts: Timeouts,
    handler: Arc<H>,
    conns: Mutex<HashMap<NodeId, Arc<Conn>>>,
    dialling: Mutex<HashMap<NodeId, Arc<tokio::sync::Mutex<()>>>>,
    greeting: Arc<Semaphore>,
    asides: Arc<Semaphore>,
    lanes: Arc<Semaphore>,
    uplink: Uplink,
    told: Mutex<Option<Instant>>,
    next_id: AtomicU64,
}

impl<H: Handler> Mesh<H> {
    /// No connections yet.
    pub fn new(local: Local, security: Security, timeouts: Timeouts, handler: Arc<H>) -> Arc<Self> {
        Arc::new(Self {
            local,
            security,
            timeouts,
            handler,
            conns: Mutex::default(),
            dialling: Mutex::default(),
            greeting: Arc::new(Semaphore::new(MAX_GREETING)),
            asides: aside::turns(),
            lanes: aside::turns(),
            uplink: Uplink::new(),
            told: Mutex::default(),
            next_id: AtomicU64::new(1),
        })
    }

    /// Binds the port that [`Self::accept`] serves.
    pub fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
        socket::listen(addr)
    }

    /// Accepts until the listener fails; an accept that fails for want of descriptors is retried.
    pub async fn accept(self: Arc<Self>, listener: TcpListener) {
        loop {
            // Never closed.
            let turn = self.greeting.clone().acquire_owned().await.ok();
            match listener.accept().await {
                Ok((stream, addr)) => {
                    let mesh = self.clone();
                    tokio::spawn(async move {
                        let _turn = turn;
                        match mesh.greet_and_run(stream, addr, None).await {
                            Ok(_) => {}
                            // Somebody with a wrong certificate, or none: worth a look.
                            Err(error @ ConnectError::Security(..)) if mesh.is_time_to_tell() => {
                                tracing::info!(%error, "refused a connection");
                            }
                            Err(error) => tracing::debug!(%addr, %error, "refused a connection"),
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept; trying again");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    /// The live connection to a node, if there is one.
    #[must_use]
    pub fn get(&self, node: &NodeId) -> Option<Arc<Conn>> {
        self.conns().get(node).filter(|c| !c.is_closed()).cloned()
    }

    /// How many connections are up.
    #[must_use]
    pub fn len(&self) -> usize {
        self.conns().len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All live connections.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Conn>> {
        self.conns().values().cloned().collect()
    }

    /// The connection to a node, dialling its addresses in turn where there is none. Calls for one
    /// node wait for each other, so that a pair has one connection.
    pub async fn connect(
        self: &Arc<Self>,
        node: NodeId,
        addrs: &[SocketAddr],
    ) -> Result<Arc<Conn>, ConnectError> {
        if let Some(conn) = self.get(&node) {
            return Ok(conn);
        }
        let gate = {
            let mut dialling = self.dialling.lock().unwrap_or_else(PoisonError::into_inner);
            dialling.entry(node).or_default().clone()
        };
        let result = {
            let _turn = gate.lock().await;
            match self.get(&node) {
                Some(conn) => Ok(conn),
                None => self.dial(node, addrs).await,
            }
        };
        let mut dialling = self.dialling.lock().unwrap_or_else(PoisonError::into_inner);
        // The map and this call hold one each: nobody else waits.
        if Arc::strong_count(&gate) <= 2 {
            dialling.remove(&node);
        }
        result
    }

    async fn dial(
        self: &Arc<Self>,
        node: NodeId,
        addrs: &[SocketAddr],
    ) -> Result<Arc<Conn>, ConnectError> {
        let mut last = ConnectError::NoAddress(node);
        for addr in addrs.iter().copied() {
            match self.dial_for(Dialled::Node(node), addr).await {
                Ok(conn) => return Ok(conn),
                Err(e) => last = e,
            }
        }
        Err(last)
    }

    async fn dial_for(
        self: &Arc<Self>,
        dialled: Dialled,
        addr: SocketAddr,
    ) -> Result<Arc<Conn>, ConnectError> {
        let stream = within(self.timeouts.connect, TcpStream::connect(addr)).await;
        let stream = stream.map_err(|e| unreachable(Some(dialled.node()), addr, e))?;
        self.greet_and_run(stream, addr, Some(dialled)).await
    }

    async fn greet_and_run(
        self: &Arc<Self>,
        stream: TcpStream,
        addr: SocketAddr,
        dialled: Option<Dialled>,
    ) -> Result<Arc<Conn>, ConnectError> {
        let node = dialled.as_ref().map(Dialled::node);
        socket::tune(&stream).map_err(|source| unreachable(node, addr, source))?;
        let socket = Arc::new(stream);
        let shared = Shared(socket.clone());
        let limit = self.timeouts.greet;
        let security = |e: io::Error| ConnectError::Security(addr, tls_error(&e));
        let (tls, own) = match (self.security.current(), node) {
            (None, _) => {
                let (reader, writer) = (shared.clone(), shared);
                let link = Link {
                    reader,
                    writer,
                    socket,
                    addr,
                };
                return self.settle(link, dialled, |_| Ok(None)).await;
            }
            (Some(ours), Some(node)) => {
                let name = server_name(&node).map_err(|e| ConnectError::Security(addr, e))?;
                let shaken = within(limit, tls::connect(ours.client, name, shared)).await;
                (shaken.map_err(security)?, ours.who.mesh)
            }
            (Some(ours), None) => {
                let shaken = within(limit, tls::accept(ours.server, shared)).await;
                (shaken.map_err(security)?, ours.who.mesh)
            }
        };
        let Tls {
            reader,
            writer,
            certificate,
        } = tls;
        let link = Link {
            reader,
            writer,
            socket,
            addr,
        };
        let judge = |peer: &NodeId| self.judge(addr, certificate.as_ref(), peer, &own).map(Some);
        self.settle(link, dialled, judge).await
    }

    /// Greets, and makes a connection of it, or a lane.
    async fn settle<R: Input + 'static, W: Output + 'static>(
        self: &Arc<Self>,
        mut link: Link<R, W>,
        dialled: Option<Dialled>,
        judge: impl Fn(&NodeId) -> Result<Option<Who>, ConnectError>,
    ) -> Result<Arc<Conn>, ConnectError> {
        let node = dialled.as_ref().map(Dialled::node);
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let ours = Greeting::new(self.local.node, self.local.mesh);
        let (ours, lane) = match dialled {
            Some(Dialled::Lane(conn, held)) => {
                (ours.of_lane(conn.lane.numbers.1), Some((conn, held)))
            }
            // Numbers wrap after four thousand million: none that is in use comes again.
            _ => (ours.numbered(id as u32), None),
        };
        if node.is_some() {
            self.say(&mut link, &ours, node).await?;
        }
        let theirs = self.hear(&mut link, node).await?;
        if node.is_none() && theirs.is_of_lane() {
            let (conn, held) = self.lane_for(&link, &theirs, &judge)?;
            let greeting = lane::First::Greeting(ours.encode().to_vec());
            return self.start_lane(conn, link, held, greeting);
        }
        if node.is_none() {
            self.say(&mut link, &ours, node).await?;
        }
        let meant = node.is_none_or(|n| n == theirs.node) && theirs.node != self.local.node;
        if theirs.mesh != self.local.mesh || !meant || theirs.is_of_lane() {
            return Err(ConnectError::Stranger(link.addr, theirs.node));
        }
        let who = judge(&theirs.node)?;
        if let Some((conn, held)) = lane {
            return self.start_lane(conn, link, held, lane::First::Ready);
        }
        let lane = Lane::new(&ours, &theirs, who.is_some());
        let conn = Conn::new(id, theirs.node, link.addr, node.is_some(), who, lane);
        self.spawn(conn, link)
    }

    /// Who an end is whose certificate rustls took, and whether it may be here.
    fn judge(
        &self,
        addr: SocketAddr,
        cert: Option<&CertificateDer<'_>>,
        node: &NodeId,
        mesh: &str,
    ) -> Result<Who, ConnectError> {
        let judged = match cert {
            Some(cert) => is_node(cert, node, mesh),
            None => Err(SecurityError::NoNode),
        };
        let judged = judged.and_then(|who| {
            if self.security.revoked().has(&who, Some(node)) {
                Err(SecurityError::Revoked(who.uri()))
            } else {
                Ok(who)
            }
        });
        judged.map_err(|e| ConnectError::Security(addr, e))
    }

    /// Whether a refusal is to be logged: strangers write no more into a log than this.
    fn is_time_to_tell(&self) -> bool {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let is_time = told.is_none_or(|last| last.elapsed() > TELL_EVERY);
        if is_time {
            *told = Some(Instant::now());
        }
        is_time
    }

    /// Lets these machines in no more, and ends the connections that they have. Has no effect in a
    /// plaintext mesh, where nobody can be told apart.
    pub fn revoke(&self, all: &[String]) {
        if !self.security.revoked().set(all) {
            return;
        }
        for conn in self.all() {
            let Some(who) = conn.who() else { continue };
            if self.security.revoked().has(who, Some(&conn.peer())) {
                tracing::warn!(%who, "revoked: its connection is ended");
                conn.close(CloseReason::Local("revoked".to_owned()));
            }
        }
    }

    async fn say<R, W: Output>(
        &self,
        link: &mut Link<R, W>,
        ours: &Greeting,
        expected: Option<NodeId>,
    ) -> Result<(), ConnectError> {
        let said = within(self.timeouts.greet, link.writer.say(&ours.encode())).await;
        said.map_err(|source| unreachable(expected, link.addr, source))
    }

    async fn hear<R: Input, W>(
        &self,
        link: &mut Link<R, W>,
        expected: Option<NodeId>,
    ) -> Result<Greeting, ConnectError> {
        let mut theirs = [0; Greeting::LEN];
        let read = within(self.timeouts.greet, link.reader.read_exact(&mut theirs)).await;
        read.map_err(|source| unreachable(expected, link.addr, source))?;
        Greeting::decode(&theirs).map_err(|e| ConnectError::Greeting(link.addr, e))
    }

    fn spawn<R: Input + 'static, W: Output + 'static>(
        self: &Arc<Self>,
        conn: Arc<Conn>,
        link: Link<R, W>,
    ) -> Result<Arc<Conn>, ConnectError> {
        let peer = conn.peer();
        conn.measure(&link.socket);
        if let Some(loser) = self.admit(&conn) {
            loser.close(CloseReason::Replaced);
            if Arc::ptr_eq(&loser, &conn) {
                // The one that stays is what the caller wants; this one was never opened, so what
                // is queued on it would never leave.
                return self.get(&peer).ok_or(ConnectError::Gone(peer));
            }
        }
        let (mesh, c, silence) = (self.clone(), conn.clone(), self.timeouts.silence);
        tokio::spawn(async move {
            mesh.handler.opened(&c);
            let handler = &mesh.handler;
            let mut aside = Aside::new(mesh.asides.clone());
            let (r, w, socket) = (link.reader, link.writer, link.socket);
            let reason = tokio::select! {
                reason = reader::run(&c, handler, r, &socket, &mut aside) => reason,
                reason = watch::run(&c, &socket, silence) => reason,
                reason = writer::run(&c, &**handler, w, &socket, &mesh.uplink) => reason,
                never = lane::keep(&mesh, &c) => match never {},
                () = c.stop.notified() => c.reason(),
            };
            // Nobody is to take it for one that lives, while what it took before its end is stored; a lie
            // told last counts.
            c.end().await;
            let reason = match aside.ended().await {
                Ok(_) => reason,
                Err(lie) => CloseReason::Violation(lie),
            };
            c.close(reason);
            {
                let mut conns = mesh.conns();
                if conns.get(&peer).is_some_and(|now| now.id() == c.id()) {
                    conns.remove(&peer);
                }
            }
            mesh.handler.closed(&c, &c.reason());
        });
        Ok(conn)
    }

    /// Enters a connection in the table; of two between the same nodes both sides keep the one
    /// that the node with the lower identity dialled. Returns the one to close.
    fn admit(&self, conn: &Arc<Conn>) -> Option<Arc<Conn>> {
        let mut conns = self.conns();
        let Some(old) = conns.get(&conn.peer()).filter(|c| !c.is_closed()).cloned() else {
            conns.insert(conn.peer(), conn.clone());
            return None;
        };
        let preferred = conn.dialled() == (self.local.node < conn.peer());
        // Dialled the same way twice: the other side lost the first one and this side has not
        // noticed yet.
        if preferred || old.dialled() == conn.dialled() {
            conns.insert(conn.peer(), conn.clone());
            return Some(old);
        }
        Some(conn.clone())
    }

    fn conns(&self) -> std::sync::MutexGuard<'_, HashMap<NodeId, Arc<Conn>>> {
        self.conns.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unreachable(node: Option<NodeId>, addr: SocketAddr, source: io::Error) -> ConnectError {
    ConnectError::Unreachable {
        node: node.unwrap_or(NodeId([0; 16])),
        addr,
        source,
    }
}

async fn within<T>(limit: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(limit, work)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

fn tls_error(e: &io::Error) -> SecurityError {
    match e.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>()) {
        Some(tls) => SecurityError::Handshake(explain(tls)),
        None => SecurityError::Handshake(e.to_string()),
    }
}
