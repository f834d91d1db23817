//! The writing half: control frames first, then one block at a time, bound as late as possible.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use dragonfly_proto::frame::DataHeader;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::conn::{CloseReason, Conn};
use crate::socket::{Shared, bindable, send_more};
use crate::{Handler, Next, Outgoing, Payload};

/// What a connection that says nothing for this long holds is given back.
const IDLE_BUFFER: Duration = Duration::from_secs(5);

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
}

pub(crate) async fn run<H: Handler, W: Output>(
    conn: &Arc<Conn>,
    handler: &H,
    mut out: W,
    socket: &TcpStream,
) -> CloseReason {
    let mut buf = Vec::new();
    // Whether the kernel may be out of room: something was written since it was asked.
    let mut full = true;
    loop {
        let done = turn(conn, handler, &mut out, socket, &mut buf, &mut full).await;
        if let Err(e) = done {
            return CloseReason::Lost(e.to_string());
        }
    }
}

/// Sends what is queued, then at most one block; waits when there is neither.
async fn turn<H: Handler, W: Output>(
    conn: &Arc<Conn>,
    handler: &H,
    out: &mut W,
    socket: &TcpStream,
    buf: &mut Vec<u8>,
    full: &mut bool,
) -> io::Result<()> {
    buf.clear();
    conn.take_queue(buf);
    if !buf.is_empty() {
        conn.said.store(true, Ordering::Relaxed);
        *full = true;
        out.say(buf).await?;
        if buf.capacity() > 256 << 10 {
            *buf = Vec::new();
        }
        return Ok(());
    }
    if !handler.has_next(conn) {
        idle(conn, out).await;
        return Ok(());
    }
    if *full {
        bindable(socket).await?;
        *full = false;
        if conn.has_queued() {
            return Ok(());
        }
    }
    // Whichever ends the wait, the next turn finds out what there is to say.
    match handler.next(conn) {
        Next::Send(block) => {
            conn.said.store(true, Ordering::Relaxed);
            *full = true;
            block.header(buf);
            out.block(buf, &block.payload).await?;
            let len = block.payload.len();
            conn.sent.fetch_add(u64::from(len), Ordering::Relaxed);
            handler.sent(conn, block.stream, block.index, len);
        }
        Next::Idle => idle(conn, out).await,
        Next::Later(pause) => {
            let _ = timeout(pause, conn.wake.notified()).await;
        }
    }
    Ok(())
}

async fn idle<W: Output>(conn: &Conn, out: &mut W) {
    if timeout(IDLE_BUFFER, conn.wake.notified()).await.is_err() {
        out.rest();
        conn.wake.notified().await;
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
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
