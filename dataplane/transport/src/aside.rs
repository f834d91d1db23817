//! The second half of a large block's way, beside the first half of the next ones: checking and storing
//! on another thread while the connection reads on.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dragonfly_proto::trust::MAX_PROOF;
use tokio::sync::{Notify, Semaphore};
use tokio::task::{JoinError, JoinHandle};

use crate::conn::{CloseReason, Conn};
use crate::{Block, Handler, Violation};

/// Waking another thread for less than this costs more than it saves, bytes.
const WORTH_IT: usize = 256 << 10;
/// Blocks of one connection that may be under way; then its reader waits until so few are left: two threads
/// that wake each other for each block sleep and wake most of the time.
const MOST: usize = 4;
const ROOM: usize = 2;
/// With so many the reader does the hashing.
const ENOUGH: usize = 2;

/// What a handler said of a block.
pub(crate) type Verdict = Result<Option<Duration>, Violation>;

/// How many connections of a node may use another thread at once: as many as there are processors that
/// none of the runtime's own threads (one for two processors) has to itself.
pub(crate) fn turns() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(processors() / 2))
}

/// How many processors this node may use.
pub(crate) fn processors() -> usize {
    let here = std::thread::available_parallelism().map_or(1, usize::from);
    // This crate's own tests are the same everywhere.
    if cfg!(test) { here.max(4) } else { here }
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

/// One connection's other thread: its blocks one after the other, in order.
pub(crate) struct Aside {
    turns: Arc<Semaphore>,
    queue: Arc<Queue>,
    /// Takes blocks until none is left.
    worker: Option<JoinHandle<()>>,
}

/// What a reader and its other thread share.
#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    /// There is room again, or a lie.
    moved: Notify,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Taken>,
    /// Blocks that wait or are looked at.
    under_way: usize,
    /// Buffers of blocks that are done.
    spare: Vec<Vec<u8>>,
    /// How long to pause, of those that are done.
    pause: Option<Duration>,
    lie: Option<Violation>,
    /// A thread takes what waits.
    is_taken: bool,
}

impl State {
    fn add(&mut self, taken: Taken) {
        self.under_way += 1;
        self.waiting.push_back(taken);
    }
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next block to look at; none ends the thread.
    fn next(&self) -> Option<Taken> {
        let mut state = self.state();
        let next = state.waiting.pop_front();
        state.is_taken = next.is_some();
        next
    }

    fn done(&self, verdict: Verdict, data: Vec<u8>) {
        let mut state = self.state();
        state.under_way -= 1;
        state.spare.push(data);
        match verdict {
            Ok(pause) => state.pause = state.pause.max(pause),
            Err(lie) => {
                // What came behind it is of the same hand.
                state.under_way -= state.waiting.len();
                state.waiting.clear();
                state.lie = Some(lie);
            }
        }
        let moved = state.under_way <= ROOM || state.lie.is_some();
        drop(state);
        if moved {
            self.moved.notify_one();
        }
    }

    fn verdict(&self) -> Verdict {
        let mut state = self.state();
        match state.lie.take() {
            Some(lie) => Err(lie),
            None => Ok(state.pause.take()),
        }
    }
}

impl Aside {
    pub(crate) fn new(turns: Arc<Semaphore>) -> Self {
        Self {
            turns,
            queue: Arc::default(),
            worker: None,
        }
    }

    /// Whether a block is under way, or what was said of one has not been read.
    pub(crate) const fn is_busy(&self) -> bool {
        self.worker.is_some()
    }

    /// Whether blocks are under way.
    pub(crate) fn is_working(&self) -> bool {
        self.queue.state().under_way > 0
    }

    /// Whether it has nothing better to do than to hash a block of this size.
    pub(crate) fn is_free(&self, len: usize) -> bool {
        let under_way = self.queue.state().under_way;
        let has_turn = under_way > 0 || self.turns.available_permits() > 0;
        len >= WORTH_IT && under_way < ENOUGH && has_turn
    }

    /// Takes a block over, where it is worth that and another thread may; else gives it back.
    pub(crate) fn take<H: Handler>(
        &mut self,
        conn: &Arc<Conn>,
        handler: &Arc<H>,
        taken: Taken,
    ) -> Option<Taken> {
        let mut state = self.queue.state();
        // Nothing is handed over behind a lie: its reader finds it before it does anything with this.
        if state.lie.is_some() {
            return Some(taken);
        }
        if state.is_taken {
            state.add(taken);
            return None;
        }
        if taken.len < WORTH_IT {
            return Some(taken);
        }
        let Ok(turn) = self.turns.clone().try_acquire_owned() else {
            return Some(taken);
        };
        state.is_taken = true;
        state.add(taken);
        drop(state);
        let (conn, handler, queue) = (conn.clone(), handler.clone(), self.queue.clone());
        self.worker = Some(tokio::task::spawn_blocking(move || {
            while let Some(mut taken) = queue.next() {
                let verdict = taken.hand_over(&conn, &*handler);
                queue.done(verdict, taken.data);
            }
            drop(turn);
        }));
        None
    }

    /// A buffer that is not in use.
    pub(crate) fn spare(&self) -> Vec<u8> {
        self.queue.state().spare.pop().unwrap_or_default()
    }

    /// Waits until no block is under way; what the handler said of those that were. May be dropped while
    /// it waits.
    pub(crate) async fn ended(&mut self) -> Verdict {
        if let Some(worker) = &mut self.worker {
            let ended = worker.await;
            self.worker = None;
            went_well(ended);
        }
        self.queue.verdict()
    }

    /// The same for a reader, which reads nothing meanwhile and does as it is told.
    pub(crate) async fn end(&mut self, conn: &Conn) -> Result<(), CloseReason> {
        if !self.is_busy() {
            return Ok(());
        }
        // A disk that stands still is not the other side's silence.
        let pausing = conn.pause();
        let verdict = self.ended().await;
        drop(pausing);
        obey(conn, verdict).await
    }

    /// The same, but some blocks may be left under way.
    pub(crate) async fn room(&mut self, conn: &Conn) -> Result<(), CloseReason> {
        let has_room = |most| {
            let state = self.queue.state();
            state.under_way <= most || state.lie.is_some()
        };
        if !has_room(MOST - 1) {
            let _pausing = conn.pause();
            while let Some(worker) = self.worker.as_mut().filter(|_| !has_room(ROOM)) {
                tokio::select! {
                    () = self.queue.moved.notified() => {}
                    ended = worker => {
                        self.worker = None;
                        went_well(ended);
                    }
                }
            }
        }
        obey(conn, self.queue.verdict()).await
    }

    pub(crate) fn holds_memory(&self) -> bool {
        !self.queue.state().spare.is_empty()
    }

    /// Gives memory back that is not in use.
    pub(crate) fn rest(&mut self) {
        self.queue.state().spare = Vec::new();
    }
}

fn went_well(ended: Result<(), JoinError>) {
    // Cancelled: never begun, for the runtime is going away.
    if let Err(Ok(panic)) = ended.map_err(JoinError::try_into_panic) {
        std::panic::resume_unwind(panic);
    }
}

/// Pauses, or ends the connection, as the handler says.
pub(crate) async fn obey(conn: &Conn, verdict: Verdict) -> Result<(), CloseReason> {
    if let Some(pause) = verdict.map_err(CloseReason::Violation)? {
        let _pausing = conn.pause();
        tokio::time::sleep(pause).await;
    }
    Ok(())
}
