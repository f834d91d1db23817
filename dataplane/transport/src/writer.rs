//! The writing half: control frames first, then one block at a time, bound as late as possible.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use dragonfly_proto::frame::{DataHeader, Frame};
use rustix::io::Errno;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};

use crate::conn::{CloseReason, Conn};
use crate::lane;
use crate::pace::Pace;
use crate::socket::{Shared, bindable, send_more};
use crate::uplink::{Place, Uplink};
use crate::{Handler, Next, Outgoing, Payload};

/// What a connection that says nothing for this long holds is given back.
const IDLE_BUFFER: Duration = Duration::from_secs(5);

/// What failed is the file of a block, and not the connection that it goes out on.
#[derive(Debug, thiserror::Error)]
#[error("a block cannot be read: {0}")]
struct Unreadable(#[source] io::Error);

/// That a block's file cannot be read, as an error of its connection.
pub(crate) fn unreadable(why: io::Error) -> io::Error {
    io::Error::other(Unreadable(why))
}

fn is_unreadable(e: &io::Error) -> bool {
    e.get_ref().is_some_and(|e| e.is::<Unreadable>())
}

/// How bytes leave: as they are, or encrypted.
pub(crate) trait Output: Send {
    /// Sends bytes.
    fn say(&mut self, bytes: &[u8]) -> impl Future<Output = io::Result<()>> + Send;

    /// Sends a block behind its header.
    fn block(
        &mut self,
        header: &[u8],
        payload: &Payload,
    ) -> impl Future<Output = io::Result<()>> + Send;

    /// Nothing will be sent for a while.
    fn rest(&mut self) {}

    /// The same over another descriptor of its socket.
    fn moved(self, to: &Arc<TcpStream>) -> Self;
}

pub(crate) async fn run<H: Handler, W: Output>(
    conn: &Arc<Conn>,
    handler: &H,
    out: W,
    socket: &Arc<TcpStream>,
    uplink: &Uplink,
) -> CloseReason {
    let mut writer = Writer::new(conn, handler, out, socket, Some(uplink));
    loop {
        if let Err(e) = writer.turn().await {
            return CloseReason::Lost(e.to_string());
        }
    }
}

/// The same for a connection's lane. Ends well when there was no block for a while, which the other side is told.
pub(crate) async fn run_lane<H: Handler, W: Output>(
    conn: &Arc<Conn>,
    handler: &H,
    out: W,
    socket: &Arc<TcpStream>,
) -> io::Result<()> {
    // A way that is worth a lane has no queue to keep short.
    let mut writer = Writer::new(conn, handler, out, socket, None);
    while writer.lane_turn().await? {}
    // What was left for the lane meanwhile.
    conn.wake_first();
    let mut last = Vec::new();
    Frame::Close.encode(0, &mut last);
    writer.out.say(&last).await
}

struct Writer<'a, H, W> {
    conn: &'a Arc<Conn>,
    handler: &'a H,
    out: W,
    socket: &'a Arc<TcpStream>,
    /// None for a lane.
    uplink: Option<&'a Uplink>,
    buf: Vec<u8>,
    /// Whether the kernel may be out of room: something was written since it was asked.
    full: bool,
    /// Where it stands in the line of all connections with a block to send.
    place: Option<Place>,
    pace: Pace,
    /// When the last block was bound.
    last: Instant,
}

impl<H, W> Drop for Writer<'_, H, W> {
    fn drop(&mut self) {
        if let Some(uplink) = self.uplink {
            uplink.forget(self.socket);
        }
    }
}

impl<'a, H: Handler, W: Output> Writer<'a, H, W> {
    fn new(
        conn: &'a Arc<Conn>,
        handler: &'a H,
        out: W,
        socket: &'a Arc<TcpStream>,
        uplink: Option<&'a Uplink>,
    ) -> Self {
        Self {
            conn,
            handler,
            out,
            socket,
            uplink,
            buf: Vec::new(),
            full: true,
            place: None,
            pace: Pace::new(),
            last: Instant::now(),
        }
    }

    /// Sends what is queued, then at most one block; waits when there is neither.
    async fn turn(&mut self) -> io::Result<()> {
        self.buf.clear();
        self.conn.take_queue(&mut self.buf);
        if !self.buf.is_empty() {
            self.conn.said.store(true, Ordering::Relaxed);
            self.full = true;
            self.out.say(&self.buf).await?;
            if self.buf.capacity() > 256 << 10 {
                self.buf = Vec::new();
            }
            return Ok(());
        }
        if !self.handler.has_next(self.conn) || self.is_lanes_turn() {
            self.place = None;
            self.idle().await;
            return Ok(());
        }
        if self.full {
            bindable(self.socket).await?;
            self.full = false;
            if self.conn.has_queued() {
                return Ok(());
            }
        }
        if !self.may_bind().await {
            return Ok(());
        }
        let lane = &self.conn.lane;
        // Whichever ends the wait, the next turn finds out what there is to say.
        match self.handler.next(self.conn) {
            Next::Send(block) => {
                if lane.is_up() {
                    lane.shares.takes(false);
                    if self.handler.has_next(self.conn) {
                        lane.wake();
                    }
                }
                self.send(&block).await?;
            }
            Next::Idle => {
                self.place = None;
                self.idle().await;
            }
            Next::Later(pause) => {
                self.place = None;
                let _ = timeout(pause, self.conn.wake.notified()).await;
            }
        }
        Ok(())
    }

    /// Leaves the next block to the lane, where that waits for it.
    fn is_lanes_turn(&self) -> bool {
        let lane = &self.conn.lane;
        let is_its = lane.is_up() && lane.shares.is_others(false);
        if is_its {
            lane.wake();
        }
        is_its
    }

    /// Sends a block, or waits for one; false when there was none for a while.
    async fn lane_turn(&mut self) -> io::Result<bool> {
        let shares = &self.conn.lane.shares;
        if !self.handler.has_next(self.conn) {
            return Ok(self.lane_idle().await);
        }
        if shares.is_others(true) {
            self.conn.wake_first();
            return Ok(self.lane_idle().await);
        }
        if self.full {
            tokio::select! {
                biased;
                room = bindable(self.socket) => room?,
                () = std::future::ready(()) => {
                    // The first one may have left its turn to this one.
                    self.conn.wake_first();
                    bindable(self.socket).await?;
                }
            }
            self.full = false;
        }
        match self.handler.next_unordered(self.conn) {
            Next::Send(block) => {
                shares.takes(true);
                self.last = Instant::now();
                if self.handler.has_next(self.conn) {
                    self.conn.wake_first();
                }
                self.send(&block).await?;
            }
            Next::Idle => {
                shares.not_for_lanes();
                self.conn.wake_first();
                return Ok(self.lane_idle().await);
            }
            Next::Later(pause) => {
                let pause = pause.min(lane::IDLE);
                let _ = timeout(pause, self.conn.lane.wake.notified()).await;
                return Ok(self.last.elapsed() < lane::IDLE);
            }
        }
        Ok(true)
    }

    /// Waits for a block for the lane; false when there was none for a while, however often it was woken: the other
    /// side gives up a lane that carries nothing.
    async fn lane_idle(&self) -> bool {
        let lane = &self.conn.lane;
        let _resting = lane.shares.rest(true);
        let woken = timeout_at(self.last + lane::IDLE, lane.wake.notified()).await;
        woken.is_ok() && self.last.elapsed() < lane::IDLE
    }

    /// Waits until the node's uplink takes a block of this connection; false when there is something to
    /// say first.
    async fn may_bind(&mut self) -> bool {
        if self.place.is_none() {
            self.place = self.uplink.and_then(Uplink::enter);
        }
        let Some(place) = &self.place else {
            return true;
        };
        tokio::select! {
            biased;
            () = place.turn() => !self.conn.has_queued(),
            () = self.conn.wake.notified() => false,
        }
    }

    async fn send(&mut self, block: &Outgoing) -> io::Result<()> {
        self.conn.said.store(true, Ordering::Relaxed);
        self.full = true;
        let len = block.payload.len();
        if let Some(uplink) = self.uplink {
            uplink.bound(self.socket, len);
        }
        self.place = None;
        self.buf.clear();
        block.header(&mut self.buf);
        if let Err(e) = self.out.block(&self.buf, &block.payload).await {
            if is_unreadable(&e) {
                self.handler
                    .unreadable(self.conn, block.stream, block.index, &e);
            }
            return Err(e);
        }
        if let Some(uplink) = self.uplink {
            uplink.written(self.socket);
        }
        self.pace.sent(len, self.conn, self.socket);
        self.conn.sent.fetch_add(u64::from(len), Ordering::Relaxed);
        self.handler.sent(self.conn, block.stream, block.index, len);
        Ok(())
    }

    async fn idle(&mut self) {
        let wake = &self.conn.wake;
        let _resting = self.conn.lane.shares.rest(false);
        if timeout(IDLE_BUFFER, wake.notified()).await.is_err() {
            self.out.rest();
            wake.notified().await;
        }
    }
}

impl Outgoing {
    fn header(&self, buf: &mut Vec<u8>) {
        let header = DataHeader {
            index: self.index,
            data_len: self.payload.len(),
            proof_len: self.proof.len() as u16,
        };
        header.encode(self.stream, &self.proof, buf);
    }
}

impl Output for Shared {
    fn moved(self, to: &Arc<TcpStream>) -> Self {
        Self(to.clone())
    }

    async fn say(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes).await
    }

    async fn block(&mut self, header: &[u8], payload: &Payload) -> io::Result<()> {
        send_more(&self.0, header).await?;
        match payload {
            Payload::Bytes(bytes) => self.write_all(bytes).await,
            Payload::File { file, offset, len } => send_file(&self.0, file, *offset, *len).await,
        }
    }
}

/// From the page cache to the socket. A page that has to come from the disk blocks this thread for
/// that long; the kernel's readahead keeps that rare for blocks sent in order.
async fn send_file(
    socket: &TcpStream,
    file: &std::fs::File,
    offset: u64,
    len: u32,
) -> io::Result<()> {
    let (mut at, end) = (offset, offset + u64::from(len));
    while at < end {
        socket.writable().await?;
        let sent = socket.try_io(Interest::WRITABLE, || {
            let count = (end - at) as usize;
            rustix::fs::sendfile(socket, file, Some(&mut at), count).map_err(io::Error::from)
        });
        match sent {
            Ok(0) => return Err(unreadable(io::ErrorKind::UnexpectedEof.into())),
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            // What a disk says that fails; no socket does.
            Err(e) if e.raw_os_error() == Some(Errno::IO.raw_os_error()) => {
                return Err(unreadable(e));
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
