//! The reading half: frames to the handler, blocks hashed as they stream in.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use dragonfly_proto::frame::{DataHeader, Frame, FrameHeader, kind};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::timeout;

use crate::conn::{CloseReason, Conn};
use crate::{Block, Handler, Violation, Welcome};

/// Control frames are small and many: read ahead this much, bytes.
const READ_AHEAD: usize = 16 << 10;
/// Hash after this many bytes have come in: still in the cache, and long enough for SIMD.
const HASH_STEP: usize = 64 << 10;
/// A block buffer unused for this long is given back.
const IDLE_BUFFER: Duration = Duration::from_secs(5);

pub(crate) async fn run<H: Handler, R: AsyncRead + Unpin>(
    conn: &Arc<Conn>,
    handler: &H,
    io: R,
    silence: Duration,
) -> CloseReason {
    let mut reader = FrameReader {
        io,
        ahead: vec![0; READ_AHEAD],
        start: 0,
        end: 0,
        silence,
    };
    let mut block = Vec::new();
    let mut body = Vec::new();
    loop {
        if let Err(reason) = step(conn, handler, &mut reader, &mut body, &mut block).await {
            return reason;
        }
    }
}

async fn step<H: Handler, R: AsyncRead + Unpin>(
    conn: &Arc<Conn>,
    handler: &H,
    reader: &mut FrameReader<R>,
    body: &mut Vec<u8>,
    block: &mut Vec<u8>,
) -> Result<(), CloseReason> {
    if !block.is_empty() && reader.start == reader.end {
        // Between bursts a thousand connections must not each sit on a megabyte.
        if timeout(IDLE_BUFFER, reader.fill())
            .await
            .map(|r| r.map(|()| true))
            .unwrap_or(Ok(false))?
        {
        } else {
            *block = Vec::new();
        }
    }
    let mut head = [0; FrameHeader::LEN];
    reader.exact(&mut head).await?;
    let header = FrameHeader::decode(&head).map_err(wire)?;
    if header.kind == kind::DATA {
        return data(conn, handler, reader, &header, block).await;
    }
    body.resize(header.len as usize, 0);
    reader.exact(body).await?;
    match Frame::decode(header.kind, body).map_err(wire)? {
        Some(frame) => Ok(handler.frame(conn, header.stream, frame)?),
        None => Ok(()),
    }
}

async fn data<H: Handler, R: AsyncRead + Unpin>(
    conn: &Arc<Conn>,
    handler: &H,
    reader: &mut FrameReader<R>,
    frame: &FrameHeader,
    block: &mut Vec<u8>,
) -> Result<(), CloseReason> {
    let mut fixed = [0; DataHeader::LEN];
    reader.exact(&mut fixed).await?;
    let header = DataHeader::decode(frame, &fixed).map_err(wire)?;
    let welcome = handler.announced(conn, frame.stream, &header)?;
    let mut proof = [0; dragonfly_proto::trust::MAX_PROOF];
    let proof = &mut proof[..usize::from(header.proof_len)];
    reader.exact(proof).await?;
    let len = header.data_len as usize;
    if welcome == Welcome::Skip {
        return reader.skip(len).await;
    }
    if block.len() < len {
        block.resize(len, 0);
    }
    let block = &mut block[..len];
    let mut hasher = blake3::Hasher::new();
    let (mut filled, mut hashed) = (0, 0);
    while filled < len {
        filled += reader.some(&mut block[filled..]).await?;
        if filled - hashed >= HASH_STEP || filled == len {
            hasher.update(&block[hashed..filled]);
            hashed = filled;
        }
    }
    conn.received.fetch_add(len as u64, Ordering::Relaxed);
    let block = Block {
        index: header.index,
        proof,
        data: block,
        hash: *hasher.finalize().as_bytes(),
    };
    if let Some(pause) = handler.block(conn, frame.stream, &block)? {
        tokio::time::sleep(pause).await;
    }
    Ok(())
}

fn wire(e: dragonfly_proto::frame::FrameError) -> CloseReason {
    CloseReason::Violation(Violation(e.to_string()))
}

/// Reads ahead for control frames, and past its buffer for blocks.
struct FrameReader<R> {
    io: R,
    ahead: Vec<u8>,
    start: usize,
    end: usize,
    silence: Duration,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    async fn read(io: &mut R, buf: &mut [u8], silence: Duration) -> Result<usize, CloseReason> {
        match timeout(silence, io.read(buf)).await {
            Err(_) => Err(CloseReason::Silent(silence.as_millis() as u64)),
            Ok(Err(e)) => Err(CloseReason::Lost(e.to_string())),
            Ok(Ok(0)) => Err(CloseReason::Lost("end of stream".to_owned())),
            Ok(Ok(n)) => Ok(n),
        }
    }

    /// Waits for more bytes; the read-ahead buffer is empty.
    async fn fill(&mut self) -> Result<(), CloseReason> {
        let n = Self::read(&mut self.io, &mut self.ahead, self.silence).await?;
        (self.start, self.end) = (0, n);
        Ok(())
    }

    /// Some bytes: what was read ahead first, then straight from the socket.
    async fn some(&mut self, out: &mut [u8]) -> Result<usize, CloseReason> {
        if self.start == self.end {
            if out.len() >= READ_AHEAD {
                return Self::read(&mut self.io, out, self.silence).await;
            }
            self.fill().await?;
        }
        let n = out.len().min(self.end - self.start);
        out[..n].copy_from_slice(&self.ahead[self.start..self.start + n]);
        self.start += n;
        Ok(n)
    }

    async fn exact(&mut self, out: &mut [u8]) -> Result<(), CloseReason> {
        let mut done = 0;
        while done < out.len() {
            done += self.some(&mut out[done..]).await?;
        }
        Ok(())
    }

    async fn skip(&mut self, mut len: usize) -> Result<(), CloseReason> {
        while len > 0 {
            if self.start == self.end {
                self.fill().await?;
            }
            let n = len.min(self.end - self.start);
            self.start += n;
            len -= n;
        }
        Ok(())
    }
}
