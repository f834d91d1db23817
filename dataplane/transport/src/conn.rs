//! One connection's shared state: what its reader, its writer and the node all touch.

use std::any::Any;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use dragonfly_proto::frame::Frame;
use dragonfly_proto::id::NodeId;
use tokio::net::TcpStream;
use tokio::sync::Notify;

use crate::Violation;
use crate::lane::Lane;
use crate::socket::info;
use crate::who::Who;

/// Control bytes that may wait for a slow reader before the connection is given up: the frames of
/// one large block map and many announcements.
const MAX_QUEUED: usize = 8 << 20;

/// A round trip on a long way, which is no way between two machines of one place.
pub(crate) const FAR: Duration = Duration::from_millis(5);

/// Why a connection ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CloseReason {
    /// This side closed it.
    #[error("closed here: {0}")]
    Local(String),
    /// Another connection to the same node is kept in its place.
    #[error("another connection to the same node is kept")]
    Replaced,
    /// The other side closed it, or the network did.
    #[error("lost: {0}")]
    Lost(String),
    /// The other side said nothing for too long.
    #[error("silent for {0} ms")]
    Silent(u64),
    /// The other side did what no honest node does.
    #[error("violation: {0}")]
    Violation(#[from] Violation),
}

/// A live connection to another node.
#[derive(Debug)]
pub struct Conn {
    id: u64,
    peer: NodeId,
    addr: SocketAddr,
    dialled: bool,
    who: Option<Who>,
    queue: Mutex<Vec<u8>>,
    pub(crate) wake: Notify,
    pub(crate) stop: Notify,
    reason: Mutex<Option<CloseReason>>,
    closed: AtomicBool,
    pub(crate) received: AtomicU64,
    pub(crate) sent: AtomicU64,
    /// Microseconds; zero while not known.
    round_trip: AtomicU32,
    /// Something came in, something went out since the watch last looked.
    pub(crate) heard: AtomicBool,
    pub(crate) said: AtomicBool,
    /// How many of its readers wait for a reason of this side's own.
    pausing: AtomicU32,
    /// Its second socket.
    pub(crate) lane: Lane,
    attached: OnceLock<Box<dyn Any + Send + Sync>>,
}

impl Conn {
    pub(crate) fn new(
        id: u64,
        peer: NodeId,
        addr: SocketAddr,
        dialled: bool,
        who: Option<Who>,
        lane: Lane,
    ) -> Arc<Self> {
        Arc::new(Self {
            id,
            peer,
            addr,
            dialled,
            who,
            queue: Mutex::default(),
            wake: Notify::new(),
            stop: Notify::new(),
            reason: Mutex::default(),
            closed: AtomicBool::new(false),
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            round_trip: AtomicU32::new(0),
            heard: AtomicBool::new(true),
            said: AtomicBool::new(true),
            pausing: AtomicU32::new(0),
            lane,
            attached: OnceLock::new(),
        })
    }

    /// Unique in this process.
    #[must_use]
    pub const fn id(&self) -> u64 {
        self.id
    }

    /// Who is at the other end; under TLS its certificate says so.
    #[must_use]
    pub const fn peer(&self) -> NodeId {
        self.peer
    }

    /// What its certificate says that it is; nothing on a plaintext connection.
    #[must_use]
    pub const fn who(&self) -> Option<&Who> {
        self.who.as_ref()
    }

    /// Its address on this connection.
    #[must_use]
    pub const fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Whether this side dialled.
    #[must_use]
    pub const fn dialled(&self) -> bool {
        self.dialled
    }

    /// What the node keeps with this connection; made at the first call, so that no frame needs a
    /// look-up in a table of all connections. Every call names the same type.
    pub fn state<T: Default + Send + Sync + 'static>(&self) -> Option<&T> {
        self.attached
            .get_or_init(|| Box::new(T::default()))
            .downcast_ref()
    }

    /// Bytes of blocks received and sent.
    #[must_use]
    pub fn traffic(&self) -> (u64, u64) {
        (
            self.received.load(Ordering::Relaxed),
            self.sent.load(Ordering::Relaxed),
        )
    }

    /// The smallest round trip seen in the last minutes; zero while not known.
    #[must_use]
    pub fn round_trip(&self) -> Duration {
        Duration::from_micros(self.round_trip.load(Ordering::Relaxed).into())
    }

    /// Asks the kernel for the round trip.
    pub(crate) fn measure(&self, socket: &TcpStream) {
        if let Some(trip) = info(socket).and_then(|i| i.min_round_trip) {
            let micros = u32::try_from(trip.as_micros()).unwrap_or(u32::MAX);
            self.round_trip.store(micros, Ordering::Relaxed);
        }
    }

    /// Queues a frame; it goes out before any further block.
    pub fn send(&self, stream: u32, frame: &Frame) {
        let full = {
            let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
            frame.encode(stream, &mut queue);
            queue.len() > MAX_QUEUED
        };
        if full {
            self.close(CloseReason::Lost(
                "the other side reads too slowly".to_owned(),
            ));
        }
        self.wake.notify_one();
    }

    /// There may be a block to send.
    pub fn wake(&self) {
        self.wake.notify_one();
        self.lane.wake();
    }

    /// There may be one that goes over its first socket, and not over its lane.
    pub(crate) fn wake_first(&self) {
        self.wake.notify_one();
    }

    /// A reader reads nothing for a reason of this side's own until this is dropped: the other side's
    /// silence says nothing meanwhile.
    pub(crate) fn pause(&self) -> Pausing<'_> {
        self.pausing.fetch_add(1, Ordering::Relaxed);
        Pausing(self)
    }

    pub(crate) fn is_pausing(&self) -> bool {
        self.pausing.load(Ordering::Relaxed) > 0
    }

    /// Ends the connection; the first reason counts.
    pub fn close(&self, reason: CloseReason) {
        self.reason
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(reason);
        self.closed.store(true, Ordering::Release);
        self.stop.notify_one();
    }

    /// It takes and gives nothing any more; the reason follows. Waits until its lane has ended too.
    pub(crate) async fn end(&self) {
        self.closed.store(true, Ordering::Release);
        self.lane.end().await;
    }

    /// Whether it has been closed.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    pub(crate) fn reason(&self) -> CloseReason {
        let reason = self
            .reason
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        reason.unwrap_or_else(|| CloseReason::Lost("end of stream".to_owned()))
    }

    /// Moves the queued frames into an empty buffer, keeping both allocations in use.
    pub(crate) fn take_queue(&self, into: &mut Vec<u8>) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::swap(&mut *queue, into);
    }

    pub(crate) fn has_queued(&self) -> bool {
        !self
            .queue
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_empty()
    }
}

/// See [`Conn::pause`].
pub(crate) struct Pausing<'a>(&'a Conn);

impl Drop for Pausing<'_> {
    fn drop(&mut self) {
        self.0.pausing.fetch_sub(1, Ordering::Relaxed);
    }
}
