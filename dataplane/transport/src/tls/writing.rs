//! From blocks and frames to the socket's records.

use std::fs::File;
use std::io;
use std::sync::Arc;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::Keys;
use super::records::{Content, Direction, HEADER, MAX_PLAIN, TRAILER};
use crate::Payload;
use crate::socket::Shared;
use crate::writer::{Output, unreadable};

const FRAME: usize = HEADER + MAX_PLAIN + TRAILER;
/// Records made before they are written, in one go: a block of the smallest size and its header.
const AT_ONCE: usize = 5;
/// A key update that asks for none in return (RFC 8446, section 4.6.3).
const KEY_UPDATE: [u8; 5] = [24, 0, 0, 1, 0];

/// The writing half of a TLS connection.
pub(crate) struct TlsWriter {
    socket: Shared,
    pub(super) keys: Arc<Keys>,
    sending: Direction,
    /// Room for records; given back when the connection says nothing but small things.
    buf: Vec<u8>,
}

impl TlsWriter {
    pub(super) const fn new(socket: Shared, sending: Direction, keys: Arc<Keys>) -> Self {
        Self {
            socket,
            keys,
            sending,
            buf: Vec::new(),
        }
    }

    /// Sends `len` bytes that `fill` has in order.
    async fn send(
        &mut self,
        mut len: usize,
        mut fill: impl FnMut(&mut [u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        while len > 0 {
            let mut end = self.renew()?;
            for _ in 0..AT_ONCE {
                let part = len.min(MAX_PLAIN);
                if part == 0 {
                    break;
                }
                let to = end + HEADER + part + TRAILER;
                if self.buf.len() < to {
                    self.buf.resize(to, 0);
                }
                let record = &mut self.buf[end..to];
                fill(&mut record[HEADER..HEADER + part])?;
                self.sending.seal(Content::Data, record)?;
                (end, len) = (to, len - part);
            }
            self.socket.write_all(&self.buf[..end]).await?;
        }
        Ok(())
    }

    /// Takes new keys where those in use are used up or the other side asked; bytes of the buffer that
    /// say so.
    fn renew(&mut self) -> io::Result<usize> {
        if !self.sending.is_used_up() && !self.keys.take_update() {
            return Ok(0);
        }
        let end = HEADER + KEY_UPDATE.len() + TRAILER;
        if self.buf.len() < end {
            self.buf.resize(end, 0);
        }
        let record = &mut self.buf[..end];
        record[HEADER..HEADER + KEY_UPDATE.len()].copy_from_slice(&KEY_UPDATE);
        self.sending.seal(Content::Handshake, record)?;
        self.sending = self.keys.next_sending()?;
        Ok(end)
    }
}

/// All of `out` from a place in a file.
fn read_exactly(file: &File, mut out: &mut [u8], mut at: u64) -> io::Result<()> {
    while !out.is_empty() {
        match rustix::io::pread(file, &mut *out, at)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => {
                out = &mut out[n..];
                at += n as u64;
            }
        }
    }
    Ok(())
}

impl Output for TlsWriter {
    async fn say(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        self.send(bytes.len(), |out| {
            let (now, later) = bytes.split_at(out.len());
            out.copy_from_slice(now);
            bytes = later;
            Ok(())
        })
        .await
    }

    fn moved(mut self, to: &Arc<TcpStream>) -> Self {
        self.socket = Shared(to.clone());
        self
    }

    fn rest(&mut self) {
        self.buf = Vec::new();
    }

    async fn block(&mut self, mut header: &[u8], payload: &Payload) -> io::Result<()> {
        let len = header.len() + payload.len() as usize;
        let mut done = 0;
        self.send(len, |out| {
            let (now, later) = header.split_at(header.len().min(out.len()));
            let (first, rest) = out.split_at_mut(now.len());
            first.copy_from_slice(now);
            header = later;
            match payload {
                Payload::Bytes(bytes) => rest.copy_from_slice(&bytes[done..done + rest.len()]),
                Payload::File { file, offset, .. } => {
                    read_exactly(file, rest, offset + done as u64).map_err(unreadable)?;
                }
            }
            done += rest.len();
            Ok(())
        })
        .await
    }
}

const _: () = assert!(FRAME * AT_ONCE > (64 << 10) + FRAME / 2);
