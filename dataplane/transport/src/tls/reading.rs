//! From the socket's records to the reader's buffer.

use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;

use super::Keys;
use super::records::{Content, Direction, HEADER, MAX_PLAIN, TRAILER, bad, body_len};
use crate::reader::Input;
use crate::socket::Shared;

/// Bytes taken from the socket at once, at most: a block of the smallest size and its records' frames.
const AHEAD: usize = 68 << 10;
/// What has to have room behind the first byte that is not used yet.
const RECORD: usize = HEADER + MAX_PLAIN + 256;
/// A handshake message after the handshake, at most; session tickets take some hundred bytes.
const MAX_MESSAGE: usize = 16 << 10;
const CLOSE_NOTIFY: u8 = 0;
const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;

/// The reading half of a TLS connection.
pub(crate) struct TlsReader {
    socket: Shared,
    keys: Arc<Keys>,
    receiving: Direction,
    /// Bytes as they came: those of `sealed` are not opened yet.
    buf: Vec<u8>,
    sealed: Range<usize>,
    /// Opened in place, not given out yet.
    plain: Range<usize>,
    /// What was opened during the handshake.
    early: Vec<u8>,
    /// A message of the handshake that is not whole yet.
    message: Vec<u8>,
    closed: bool,
}

impl TlsReader {
    pub(super) fn new(
        socket: Shared,
        receiving: Direction,
        keys: Arc<Keys>,
        early: Vec<u8>,
        rest: &[u8],
    ) -> Self {
        let mut buf = vec![0; AHEAD.max(rest.len() + RECORD)];
        buf[..rest.len()].copy_from_slice(rest);
        Self {
            socket,
            keys,
            receiving,
            buf,
            sealed: 0..rest.len(),
            plain: 0..0,
            early,
            message: Vec::new(),
            closed: false,
        }
    }

    /// Gives out what is opened already.
    fn give(&mut self, out: &mut ReadBuf<'_>) {
        if !self.early.is_empty() {
            let n = self.early.len().min(out.remaining());
            out.put_slice(&self.early[..n]);
            self.early.drain(..n);
            return;
        }
        let n = self.plain.len().min(out.remaining());
        out.put_slice(&self.buf[self.plain.start..self.plain.start + n]);
        self.plain.start += n;
    }

    fn has_opened(&self) -> bool {
        !self.early.is_empty() || !self.plain.is_empty()
    }

    /// Opens the next record if it is whole: straight to `out` where it has room for all of it.
    fn open(&mut self, out: &mut ReadBuf<'_>) -> io::Result<bool> {
        let Some(len) = body_len(&self.buf[self.sealed.clone()])? else {
            return Ok(false);
        };
        if self.sealed.len() < HEADER + len {
            return Ok(false);
        }
        let at = self.sealed.start;
        self.sealed.start += HEADER + len;
        let (header, body) = self.buf[at..at + HEADER + len].split_at_mut(HEADER);
        let inner = len + 1 - TRAILER;
        if out.remaining() >= inner {
            let to = out.initialize_unfilled_to(inner);
            let (content, len) = self.receiving.open_to(header, body, to)?;
            if content == Content::Data {
                out.advance(len);
                return Ok(true);
            }
            let told = to[..len].to_vec();
            self.hear(content, &told)?;
            return Ok(true);
        }
        let (content, plain) = self.receiving.open(header, body)?;
        if content == Content::Data {
            self.plain = at + HEADER..at + HEADER + plain.len();
            return Ok(true);
        }
        let told = plain.to_vec();
        self.hear(content, &told)?;
        Ok(true)
    }

    /// An alert, or messages of the handshake's protocol.
    fn hear(&mut self, content: Content, told: &[u8]) -> io::Result<()> {
        if content == Content::Alert {
            return match told {
                [_, CLOSE_NOTIFY] => {
                    self.closed = true;
                    Ok(())
                }
                [_, code] => Err(super::wrong(rustls::Error::AlertReceived((*code).into()))),
                _ => Err(bad("an alert of a wrong size")),
            };
        }
        self.message.extend_from_slice(told);
        while let Some(&[kind, a, b, c]) = self.message.first_chunk::<4>() {
            let len = u32::from_be_bytes([0, a, b, c]) as usize;
            if len > MAX_MESSAGE {
                return Err(bad("a message after the handshake that is too long"));
            }
            let Some(payload) = self.message.get(4..4 + len) else {
                break;
            };
            match kind {
                NEW_SESSION_TICKET => self.keys.keep_ticket(payload)?,
                KEY_UPDATE => {
                    let asks = match payload {
                        [0] => false,
                        [1] => true,
                        _ => return Err(bad("a key update that is none")),
                    };
                    if self.message.len() > 4 + len {
                        return Err(bad("a message behind a key update"));
                    }
                    self.receiving = self.keys.next_receiving()?;
                    if asks {
                        self.keys.ask_update();
                    }
                }
                _ => return Err(bad("an unexpected message after the handshake")),
            }
            self.message.drain(..4 + len);
        }
        Ok(())
    }

    /// More bytes of the socket; 0 at its end.
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.sealed.is_empty() {
            self.sealed = 0..0;
            // Given back while there was nothing to read.
            if self.buf.is_empty() {
                self.buf = vec![0; AHEAD];
            }
        } else if self.buf.len() - self.sealed.start < RECORD {
            self.buf.copy_within(self.sealed.clone(), 0);
            self.sealed = 0..self.sealed.len();
        }
        let mut room = ReadBuf::new(&mut self.buf[self.sealed.end..]);
        ready!(Pin::new(&mut self.socket).poll_read(cx, &mut room))?;
        let n = room.filled().len();
        self.sealed.end += n;
        Poll::Ready(Ok(n))
    }
}

impl Input for TlsReader {
    const HOLDS: usize = RECORD;

    fn moved(mut self, to: &Arc<TcpStream>) -> Self {
        self.socket = Shared(to.clone());
        self
    }

    fn rest(&mut self) {
        if self.sealed.is_empty() && self.plain.is_empty() {
            self.buf = Vec::new();
            (self.sealed, self.plain) = (0..0, 0..0);
        }
    }
}

impl AsyncRead for TlsReader {
    /// Fills `out` with what can be had without waiting.
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = out.filled().len();
        loop {
            if self.has_opened() {
                self.give(out);
            }
            if out.remaining() == 0 || self.closed {
                return Poll::Ready(Ok(()));
            }
            if self.has_opened() || self.open(out)? {
                continue;
            }
            if out.filled().len() > before {
                return Poll::Ready(Ok(()));
            }
            if ready!(self.poll_more(cx))? == 0 {
                // Cut off: an honest end is announced.
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }
}
