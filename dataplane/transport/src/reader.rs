//! The reading half: frames to the handler, blocks hashed as they stream in.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Poll, ready};
use std::time::Duration;

use dragonfly_proto::frame::{DataHeader, Frame, FrameHeader, kind};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use crate::aside::{Aside, Taken, obey};
use crate::conn::{CloseReason, Conn, FAR};
use crate::pace::Speed;
use crate::socket::{Shared, set_receive_lowat};
use crate::{Handler, Violation, Welcome};

/// Control frames are small and many: read ahead this much, bytes.
const READ_AHEAD: usize = 16 << 10;
/// Hash after this many bytes have come in: still in the cache, and long enough for SIMD.
const HASH_STEP: usize = 64 << 10;
/// Most bytes of a block to wait for at once: hashing goes on beside the arrival of the rest.
const WAIT_FOR: usize = 64 << 10;
/// A block buffer unused for this long is given back.
const IDLE_BUFFER: Duration = Duration::from_secs(5);

/// Where a connection's bytes come from.
pub(crate) trait Input: AsyncRead + Unpin + Send {
    /// Bytes it may have taken from the socket and not given out when it has to wait.
    const HOLDS: usize;

    /// Nothing came for a while.
    fn rest(&mut self) {}

    /// The same from another descriptor of its socket.
    fn moved(self, to: &Arc<TcpStream>) -> Self;
}

impl Input for Shared {
    const HOLDS: usize = 0;

    fn moved(self, to: &Arc<TcpStream>) -> Self {
        Self(to.clone())
    }
}

pub(crate) async fn run<H: Handler, R: Input>(
    conn: &Arc<Conn>,
    handler: &Arc<H>,
    io: R,
    socket: &TcpStream,
    aside: &mut Aside,
) -> CloseReason {
    match read(conn, handler, io, socket, aside, false).await {
        Err(reason) => reason,
        // Only a lane comes to an end that nobody has to know of.
        Ok(()) => CloseReason::Lost("end of stream".to_owned()),
    }
}

/// The same for a connection's lane. Ends well when the other side says that nothing more comes.
pub(crate) async fn run_lane<H: Handler, R: Input>(
    conn: &Arc<Conn>,
    handler: &Arc<H>,
    io: R,
    socket: &TcpStream,
) -> Result<(), CloseReason> {
    // Its own thread does it all.
    let mut alone = Aside::new(Arc::new(Semaphore::new(0)));
    read(conn, handler, io, socket, &mut alone, true).await
}

async fn read<H: Handler, R: Input>(
    conn: &Arc<Conn>,
    handler: &Arc<H>,
    io: R,
    socket: &TcpStream,
    aside: &mut Aside,
    is_lane: bool,
) -> Result<(), CloseReason> {
    let mut reader = FrameReader {
        source: Source {
            io,
            conn,
            socket,
            lowat: 1,
            waited: false,
            is_lane,
        },
        ahead: vec![0; READ_AHEAD],
        start: 0,
        end: 0,
        last_block: Instant::now(),
        speed: Speed::new(),
    };
    let mut block = Vec::new();
    let mut body = Vec::new();
    loop {
        let stepped = step(conn, handler, &mut reader, aside, &mut body, &mut block);
        if !stepped.await? {
            return Ok(());
        }
    }
}

/// Reads one frame; false when it says that nothing more comes.
async fn step<H: Handler, R: Input>(
    conn: &Arc<Conn>,
    handler: &Arc<H>,
    reader: &mut FrameReader<'_, R>,
    aside: &mut Aside,
    body: &mut Vec<u8>,
    block: &mut Vec<u8>,
) -> Result<bool, CloseReason> {
    if aside.is_busy() && reader.start == reader.end {
        // Its verdict does not wait for what may never come.
        let verdict = tokio::select! {
            biased;
            filled = reader.fill(1) => {
                filled?;
                None
            }
            verdict = aside.ended() => Some(verdict),
        };
        if let Some(verdict) = verdict {
            obey(conn, verdict).await?;
        }
    }
    let holds_memory = !block.is_empty() || aside.holds_memory();
    if holds_memory && reader.start == reader.end {
        // Between bursts a thousand connections must not each sit on a megabyte.
        // Frames keep coming where no block does.
        let left = IDLE_BUFFER.saturating_sub(reader.last_block.elapsed());
        match timeout(left, reader.fill(1)).await {
            Ok(filled) => filled?,
            Err(_) => {
                *block = Vec::new();
                aside.rest();
                reader.source.io.rest();
            }
        }
    }
    let mut head = [0; FrameHeader::LEN];
    reader.exact(&mut head).await?;
    let header = FrameHeader::decode(&head).map_err(wire)?;
    if header.kind == kind::DATA {
        data(conn, handler, reader, aside, &header, block).await?;
        return Ok(true);
    }
    if reader.source.is_lane {
        return match (header.kind, header.len) {
            (kind::CLOSE, 0) => Ok(false),
            (kind, _) => Err(Violation(format!("a frame of kind {kind} on a lane")).into()),
        };
    }
    aside.end(conn).await?;
    body.resize(header.len as usize, 0);
    reader.exact(body).await?;
    if let Some(frame) = Frame::decode(header.kind, body).map_err(wire)? {
        handler.frame(conn, header.stream, frame)?;
    }
    Ok(true)
}

async fn data<H: Handler, R: Input>(
    conn: &Arc<Conn>,
    handler: &Arc<H>,
    reader: &mut FrameReader<'_, R>,
    aside: &mut Aside,
    frame: &FrameHeader,
    block: &mut Vec<u8>,
) -> Result<(), CloseReason> {
    let mut fixed = [0; DataHeader::LEN];
    reader.exact(&mut fixed).await?;
    let header = DataHeader::decode(frame, &fixed).map_err(wire)?;
    let welcome = handler.announced(conn, frame.stream, &header)?;
    let mut proof = [0; dragonfly_proto::trust::MAX_PROOF];
    let proof_len = usize::from(header.proof_len);
    reader.exact(&mut proof[..proof_len]).await?;
    let len = header.data_len as usize;
    if welcome == Welcome::Skip {
        return reader.skip(len).await;
    }
    if block.len() < len {
        block.resize(len, 0);
    }
    reader.last_block = Instant::now();
    let mut hasher = blake3::Hasher::new();
    let (mut filled, mut hashed) = (0, 0);
    reader.source.waited = false;
    // Two threads read already where there is a lane.
    let shares = !conn.lane.is_up();
    while filled < len {
        filled += reader.some(&mut block[filled..len], len - filled).await?;
        let leave = shares && !reader.source.waited && aside.is_free(len);
        if filled - hashed >= HASH_STEP && !leave {
            hasher.update(&block[hashed..filled]);
            hashed = filled;
        }
    }
    conn.received.fetch_add(len as u64, Ordering::Relaxed);
    if let Some(took) = reader.speed.add(header.data_len) {
        conn.lane.looked(took, conn);
    }
    let taken = Taken {
        stream: frame.stream,
        index: header.index,
        hasher,
        hashed,
        proof,
        proof_len,
        data: std::mem::take(block),
        len,
    };
    // Who waits for the other side has the time to do it here.
    let is_for_itself = reader.source.waited || !shares;
    let left = if is_for_itself && !aside.is_working() {
        Some(taken)
    } else {
        aside.take(conn, handler, taken)
    };
    let Some(mut taken) = left else {
        aside.room(conn).await?;
        *block = aside.spare();
        return Ok(());
    };
    aside.end(conn).await?;
    let verdict = taken.hand_over(conn, &**handler);
    *block = taken.data;
    obey(conn, verdict).await
}

fn wire(e: dragonfly_proto::frame::FrameError) -> CloseReason {
    CloseReason::Violation(Violation(e.to_string()))
}

/// What a connection reads from.
struct Source<'a, R> {
    io: R,
    conn: &'a Conn,
    socket: &'a TcpStream,
    /// What the socket was told to wait for.
    lowat: u32,
    /// Nothing was there at some time since this was cleared.
    waited: bool,
    is_lane: bool,
}

impl<R: Input> Source<'_, R> {
    /// Some bytes into `out`; `sure` bytes are certain to come.
    async fn read(&mut self, out: &mut [u8], sure: usize) -> Result<usize, CloseReason> {
        // On a long way whatever comes is read at once: the kernel widens its receive window by what is read
        // within a round trip.
        let most = if self.conn.round_trip() < FAR {
            WAIT_FOR
        } else {
            1
        };
        let want = sure.saturating_sub(R::HOLDS).clamp(1, most) as u32;
        let (io, socket, lowat) = (&mut self.io, self.socket, &mut self.lowat);
        let waited = &mut self.waited;
        let mut buf = ReadBuf::new(out);
        let done = poll_fn(|cx| {
            let polled = Pin::new(&mut *io).poll_read(cx, &mut buf);
            *waited |= polled.is_pending();
            if polled.is_pending() && *lowat != want {
                // The kernel reports at once what is there already.
                *lowat = want;
                set_receive_lowat(socket, want)?;
            }
            ready!(polled)?;
            Poll::Ready(std::io::Result::Ok(buf.filled().len()))
        });
        let n = done.await.map_err(|e| CloseReason::Lost(e.to_string()))?;
        if n == 0 {
            return Err(CloseReason::Lost("end of stream".to_owned()));
        }
        let heard = match self.is_lane {
            true => &self.conn.lane.heard,
            false => &self.conn.heard,
        };
        heard.store(true, Ordering::Relaxed);
        Ok(n)
    }
}

/// Reads ahead for control frames, and past its buffer for blocks.
struct FrameReader<'a, R> {
    source: Source<'a, R>,
    ahead: Vec<u8>,
    start: usize,
    end: usize,
    /// When the last block began to come.
    last_block: Instant,
    speed: Speed,
}

impl<R: Input> FrameReader<'_, R> {
    /// Waits for more bytes, of which `sure` are certain to come; the read-ahead buffer is empty.
    async fn fill(&mut self, sure: usize) -> Result<(), CloseReason> {
        let n = self.source.read(&mut self.ahead, sure).await?;
        (self.start, self.end) = (0, n);
        Ok(())
    }

    /// Some of the `sure` bytes that are certain to come: what was read ahead first, then straight
    /// from the socket.
    async fn some(&mut self, out: &mut [u8], sure: usize) -> Result<usize, CloseReason> {
        if self.start == self.end {
            if out.len() >= READ_AHEAD {
                return self.source.read(out, sure).await;
            }
            self.fill(sure).await?;
        }
        let n = out.len().min(self.end - self.start);
        out[..n].copy_from_slice(&self.ahead[self.start..self.start + n]);
        self.start += n;
        Ok(n)
    }

    async fn exact(&mut self, out: &mut [u8]) -> Result<(), CloseReason> {
        let mut done = 0;
        while done < out.len() {
            done += self.some(&mut out[done..], 1).await?;
        }
        Ok(())
    }

    async fn skip(&mut self, mut len: usize) -> Result<(), CloseReason> {
        while len > 0 {
            if self.start == self.end {
                self.fill(len).await?;
            }
            let n = len.min(self.end - self.start);
            self.start += n;
            len -= n;
        }
        Ok(())
    }
}
