//! The second half of a large block's way, beside the first half of the next one's: checking and storing
//! on another thread while the connection reads on.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use dragonfly_proto::trust::MAX_PROOF;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinError, JoinHandle};

use crate::conn::{CloseReason, Conn};
use crate::{Block, Handler, Violation};

/// Waking another thread for less than this costs more than it saves, bytes.
const WORTH_IT: usize = 256 << 10;

/// What a handler said of a block.
pub(crate) type Verdict = Result<Option<Duration>, Violation>;

/// How many connections of a node may use another thread at once: as many as there are processors that
/// none of the runtime's own threads (one for two processors) has to itself.
pub(crate) fn turns() -> Arc<Semaphore> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    Arc::new(Semaphore::new(processors / 2))
}

/// A block that its reader is done with.
pub(crate) struct Taken {
    pub(crate) stream: u32,
    pub(crate) index: u32,
    /// Has seen the first `hashed` bytes.
    pub(crate) hasher: blake3::Hasher,
    pub(crate) hashed: usize,
    pub(crate) proof: [u8; MAX_PROOF],
    pub(crate) proof_len: usize,
    /// Its bytes are the first `len` of `data`.
    pub(crate) data: Vec<u8>,
    pub(crate) len: usize,
}

impl Taken {
    pub(crate) fn hand_over<H: Handler>(&mut self, conn: &Arc<Conn>, handler: &H) -> Verdict {
        self.hasher.update(&self.data[self.hashed..self.len]);
        let block = Block {
            index: self.index,
            proof: &self.proof[..self.proof_len],
            data: &self.data[..self.len],
            hash: *self.hasher.finalize().as_bytes(),
        };
        handler.block(conn, self.stream, &block)
    }
}

/// One connection's other thread: one block at a time, in order.
pub(crate) struct Aside {
    turns: Arc<Semaphore>,
    busy: Option<JoinHandle<(Verdict, Vec<u8>)>>,
    /// The buffer that is not being filled.
    spare: Vec<u8>,
}

impl Aside {
    pub(crate) fn new(turns: Arc<Semaphore>) -> Self {
        Self {
            turns,
            busy: None,
            spare: Vec::new(),
        }
    }

    /// A turn on another thread, where a block of this size is worth one and one is free.
    pub(crate) fn turn(&self, len: usize) -> Option<OwnedSemaphorePermit> {
        let worth_it = len >= WORTH_IT;
        worth_it.then(|| self.turns.clone().try_acquire_owned().ok())?
    }

    pub(crate) const fn is_busy(&self) -> bool {
        self.busy.is_some()
    }

    /// Whether it would take a block of this size at once.
    pub(crate) fn is_free(&self, len: usize) -> bool {
        // Its turn is given back before it is finished: a free one, or this connection's own.
        let is_done = match &self.busy {
            Some(busy) => busy.is_finished(),
            None => self.turns.available_permits() > 0,
        };
        len >= WORTH_IT && is_done
    }

    /// Hands a block over on another thread, and gives a buffer for the next. Nothing is under way.
    pub(crate) fn start<H: Handler>(
        &mut self,
        conn: &Arc<Conn>,
        handler: &Arc<H>,
        mut taken: Taken,
        turn: OwnedSemaphorePermit,
    ) -> Vec<u8> {
        let (conn, handler) = (conn.clone(), handler.clone());
        self.busy = Some(tokio::task::spawn_blocking(move || {
            let verdict = taken.hand_over(&conn, &*handler);
            drop(turn);
            (verdict, taken.data)
        }));
        std::mem::take(&mut self.spare)
    }

    /// Waits for the block that is under way, if one is; what the handler said of it. May be dropped while
    /// it waits.
    pub(crate) async fn ended(&mut self) -> Verdict {
        let Some(busy) = &mut self.busy else {
            return Ok(None);
        };
        let ended = busy.await;
        self.busy = None;
        match ended.map_err(JoinError::try_into_panic) {
            Ok((verdict, data)) => {
                self.spare = data;
                verdict
            }
            Err(Ok(panic)) => std::panic::resume_unwind(panic),
            // Never begun: the runtime is going away.
            Err(Err(_)) => Ok(None),
        }
    }

    /// The same for a reader, which reads nothing meanwhile and does as it is told.
    pub(crate) async fn end(&mut self, conn: &Conn) -> Result<(), CloseReason> {
        if !self.is_busy() {
            return Ok(());
        }
        // A disk that stands still is not the other side's silence.
        conn.pausing.store(true, Ordering::Relaxed);
        let verdict = self.ended().await;
        conn.pausing.store(false, Ordering::Relaxed);
        obey(conn, verdict).await
    }

    pub(crate) const fn holds_memory(&self) -> bool {
        !self.spare.is_empty()
    }

    /// Gives memory back that is not in use.
    pub(crate) fn rest(&mut self) {
        self.spare = Vec::new();
    }
}

/// Pauses, or ends the connection, as the handler says.
pub(crate) async fn obey(conn: &Conn, verdict: Verdict) -> Result<(), CloseReason> {
    if let Some(pause) = verdict.map_err(CloseReason::Violation)? {
        conn.pausing.store(true, Ordering::Relaxed);
        tokio::time::sleep(pause).await;
        conn.pausing.store(false, Ordering::Relaxed);
    }
    Ok(())
}
