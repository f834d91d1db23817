//! How many bytes of blocks are on their way out at once, over all connections of a node.
//!
//! Each connection alone binds one block after the other as its socket takes them; a dozen of them fill
//! the queue in front of a slow uplink with a dozen blocks and more. Whatever else this node says, its
//! requests and TCP's acknowledgements of what it receives, waits behind them: a node of 25 Mbit/s among
//! faster ones heard from them after 75 to 150 ms, and received a fifth less than they did. So a block is
//! bound only while what is on its way takes at most some 60 ms at the rate at which it is acknowledged;
//! who may not yet stands in a line. The idea is that of congestion control by delay (RFC 6817), for a node
//! and not for a connection.

mod budget;

use std::collections::VecDeque;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::sync::Notify;

use budget::Budget;

/// Bytes that nobody acknowledged for this long wait for a slow receiver, not for this node's uplink.
const NOT_HERE: Duration = Duration::from_millis(100);
/// How often is looked while somebody stands in the line.
const TICK: Duration = Duration::from_millis(3);
/// Between two looks at all sockets, at least.
const COUNT: Duration = Duration::from_millis(1);
/// What a block is taken for until it is known.
const BLOCK: u64 = 64 << 10;

/// A node's uplink. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Uplink(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    budget: Budget,
    ways: Vec<Way>,
    line: VecDeque<Waiter>,
    /// Bytes on their way when they were counted, and bound since.
    on_the_way: u64,
    counted: Instant,
    /// Somebody looks after the line.
    ticks: bool,
    next_id: u64,
}

/// A connection with bytes on their way.
#[derive(Debug)]
struct Way {
    socket: Arc<TcpStream>,
    /// Unacknowledged when it was last looked at.
    left: u64,
    /// Written whole since.
    written: u64,
    /// Of the block that is being written.
    writing: u64,
    /// When anything was acknowledged last.
    moved: Instant,
    trip: Duration,
}

#[derive(Debug)]
struct Waiter {
    id: u64,
    notify: Arc<Notify>,
    /// It does nothing but wait.
    is_ready: bool,
    is_granted: bool,
}

impl Uplink {
    pub(crate) fn new() -> Self {
        let now = Instant::now();
        Self(Arc::new(Mutex::new(State {
            budget: Budget::new(now),
            ways: Vec::new(),
            line: VecDeque::new(),
            on_the_way: 0,
            counted: now,
            ticks: false,
            next_id: 0,
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.0)
    }

    /// Nothing when a block may be bound now; else a place in the line.
    pub(crate) fn enter(&self) -> Option<Place> {
        let mut state = self.state();
        if state.line.is_empty() && state.has_room(Instant::now()) {
            return None;
        }
        let (id, notify) = (state.next_id, Arc::new(Notify::new()));
        state.next_id += 1;
        state.line.push_back(Waiter {
            id,
            notify: notify.clone(),
            is_ready: false,
            is_granted: false,
        });
        if !std::mem::replace(&mut state.ticks, true) {
            tokio::spawn(look_after(Arc::downgrade(&self.0)));
        }
        Some(Place {
            uplink: self.clone(),
            id,
            notify,
        })
    }

    /// A block of this size is about to be written.
    pub(crate) fn bound(&self, socket: &Arc<TcpStream>, bytes: u32, trip: Duration) {
        let (now, bytes) = (Instant::now(), u64::from(bytes));
        let mut state = self.state();
        if state.ways.is_empty() {
            state.budget.begin(now);
        }
        state.on_the_way += bytes;
        match state.way(socket) {
            Some(way) => way.writing = bytes,
            None => state.ways.push(Way {
                socket: socket.clone(),
                left: 0,
                written: 0,
                writing: bytes,
                moved: now,
                trip,
            }),
        }
    }

    /// The block that was bound last is in the kernel's hands whole.
    pub(crate) fn written(&self, socket: &Arc<TcpStream>) {
        if let Some(way) = self.state().way(socket) {
            way.written += std::mem::take(&mut way.writing);
        }
    }

    /// The connection is gone.
    pub(crate) fn forget(&self, socket: &Arc<TcpStream>) {
        self.state()
            .ways
            .retain(|w| !Arc::ptr_eq(&w.socket, socket));
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A connection's place in the line.
#[derive(Debug)]
pub(crate) struct Place {
    uplink: Uplink,
    id: u64,
    notify: Arc<Notify>,
}

impl Place {
    /// Waits for this one's turn. Who gives the wait up, to say something meanwhile, keeps the place.
    pub(crate) async fn turn(&self) {
        let _ready = Ready::new(self);
        while !self.with(|w| w.is_granted) {
            self.notify.notified().await;
        }
    }

    fn with<T: Default>(&self, f: impl FnOnce(&mut Waiter) -> T) -> T {
        let mut state = self.uplink.state();
        let waiter = state.line.iter_mut().find(|w| w.id == self.id);
        waiter.map(f).unwrap_or_default()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.uplink.state().line.retain(|w| w.id != self.id);
    }
}

/// While it lives, its place may be given a turn.
struct Ready<'a>(&'a Place);

impl<'a> Ready<'a> {
    fn new(place: &'a Place) -> Self {
        place.with(|w| w.is_ready = true);
        Self(place)
    }
}

impl Drop for Ready<'_> {
    fn drop(&mut self) {
        self.0.with(|w| w.is_ready = false);
    }
}

/// Gives turns until nobody waits.
async fn look_after(state: Weak<Mutex<State>>) {
    loop {
        tokio::time::sleep(TICK).await;
        let Some(state) = state.upgrade() else { return };
        let mut state = lock(&state);
        if state.line.is_empty() {
            state.ticks = false;
            return;
        }
        state.give_turns(Instant::now());
    }
}

impl State {
    fn way(&mut self, socket: &Arc<TcpStream>) -> Option<&mut Way> {
        self.ways
            .iter_mut()
            .find(|w| Arc::ptr_eq(&w.socket, socket))
    }

    fn has_room(&mut self, now: Instant) -> bool {
        self.on_the_way < self.budget.bytes(now) || self.room(now) > 0
    }

    fn room(&mut self, now: Instant) -> u64 {
        if now.duration_since(self.counted) >= COUNT {
            self.count(now);
        }
        self.budget.bytes(now).saturating_sub(self.on_the_way)
    }

    fn give_turns(&mut self, now: Instant) {
        let mut room = self.room(now);
        let mut is_held_back = false;
        for waiter in &mut self.line {
            if !waiter.is_ready {
                // It has something else to do first, and nobody waits for that.
                waiter.is_granted = false;
                continue;
            }
            if !waiter.is_granted && room > 0 {
                waiter.is_granted = true;
                waiter.notify.notify_one();
            }
            is_held_back |= !waiter.is_granted;
            room = room.saturating_sub(BLOCK);
        }
        self.budget.looked(is_held_back);
    }

    /// Asks the kernel what is still on its way.
    fn count(&mut self, now: Instant) {
        self.counted = now;
        self.on_the_way = 0;
        let (mut acked, mut trip) = (0, Duration::ZERO);
        for way in &mut self.ways {
            let left = unacknowledged(&way.socket);
            let gone = (way.left + way.written).saturating_sub(left);
            if gone > 0 || way.left == 0 {
                way.moved = now;
            }
            (way.left, way.written) = (left, 0);
            if now.duration_since(way.moved) < NOT_HERE {
                self.on_the_way += left.max(way.writing);
            }
            acked += gone;
            trip = trip.max(way.trip);
        }
        self.ways.retain(|w| w.left + w.writing > 0);
        self.budget.acked(now, acked, trip);
    }
}

/// Bytes that were written and that the other side has not acknowledged (`SIOCOUTQ`, tcp(7)).
fn unacknowledged(socket: &TcpStream) -> u64 {
    let mut bytes: libc::c_int = 0;
    #[expect(
        unsafe_code,
        reason = "no crate in the build has a safe call for this question"
    )]
    // SAFETY: the descriptor is open for as long as `socket` is borrowed, and the pointer is that of a
    // live integer, which the kernel writes.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if result == 0 {
        u64::try_from(bytes).unwrap_or(0)
    } else {
        0
    }
}
