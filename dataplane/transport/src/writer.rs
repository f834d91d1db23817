//! The writing half: control frames first, then one block at a time, bound as late as possible.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use dragonfly_proto::frame::DataHeader;
use tokio::io::{AsyncWrite, AsyncWriteExt, Interest};
use tokio::net::TcpStream;

use crate::conn::{CloseReason, Conn};
use crate::socket::{bindable, send_more};
use crate::{Handler, Next, Outgoing, Payload};

/// Bytes of a file read at once where they must pass through this process.
const COPY_STEP: usize = 128 << 10;

pub(crate) async fn run<H: Handler, W: AsyncWrite + Unpin>(
    conn: &Arc<Conn>,
    handler: &H,
    mut io: W,
    socket: &TcpStream,
    encrypted: bool,
) -> CloseReason {
    let mut buf = Vec::new();
    // Whether the kernel may be out of room: something was written since it was asked.
    let mut full = true;
    loop {
        let done = turn(
            conn, handler, &mut io, socket, encrypted, &mut buf, &mut full,
        )
        .await;
        if let Err(e) = done {
            return CloseReason::Lost(e.to_string());
        }
    }
}

/// Sends what is queued, then at most one block; waits when there is neither.
async fn turn<H: Handler, W: AsyncWrite + Unpin>(
    conn: &Arc<Conn>,
    handler: &H,
    io: &mut W,
    socket: &TcpStream,
    encrypted: bool,
    buf: &mut Vec<u8>,
    full: &mut bool,
) -> io::Result<()> {
    buf.clear();
    conn.take_queue(buf);
    if !buf.is_empty() {
        conn.said.store(true, Ordering::Relaxed);
        *full = true;
        io.write_all(buf).await?;
        io.flush().await?;
        if buf.capacity() > 256 << 10 {
            *buf = Vec::new();
        }
        return Ok(());
    }
    if !handler.has_next(conn) {
        conn.wake.notified().await;
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
            if encrypted {
                sealed(io, &block.payload, buf).await?;
            } else {
                send_more(socket, buf).await?;
                plain(io, socket, &block.payload).await?;
            }
            io.flush().await?;
            let len = block.payload.len();
            conn.sent.fetch_add(u64::from(len), Ordering::Relaxed);
            handler.sent(conn, block.stream, block.index, len);
        }
        Next::Idle => conn.wake.notified().await,
        Next::Later(pause) => {
            let _ = tokio::time::timeout(pause, conn.wake.notified()).await;
        }
    }
    Ok(())
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

async fn plain<W: AsyncWrite + Unpin>(
    io: &mut W,
    socket: &TcpStream,
    payload: &Payload,
) -> io::Result<()> {
    match payload {
        Payload::Bytes(bytes) => io.write_all(bytes).await,
        Payload::File { file, offset, len } => send_file(socket, file, *offset, *len).await,
    }
}

/// Through this process, since it has to be encrypted; what is in `buf` goes in the same records.
async fn sealed<W: AsyncWrite + Unpin>(
    io: &mut W,
    payload: &Payload,
    buf: &mut Vec<u8>,
) -> io::Result<()> {
    match payload {
        Payload::Bytes(bytes) => {
            io.write_all(buf).await?;
            io.write_all(bytes).await
        }
        Payload::File { file, offset, len } => {
            let (mut at, end) = (*offset, *offset + u64::from(*len));
            while at < end {
                let filled = buf.len();
                buf.resize(filled + COPY_STEP.min((end - at) as usize), 0);
                let n = rustix::io::pread(file, &mut buf[filled..], at)?;
                if n == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                io.write_all(&buf[..filled + n]).await?;
                buf.clear();
                at += n as u64;
            }
            Ok(())
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
