//! How many bytes of blocks are on their way out at once, over all connections of a node.
//!
//! Each connection alone binds one block after the other as its socket takes them; a dozen of them fill
//! the queue in front of a slow uplink with a dozen blocks and more. Whatever else this node says, its
//! requests and TCP's acknowledgements of what it receives, waits behind them: a node of 25 Mbit/s among
//! faster ones heard from them after 75 to 150 ms, and received a fifth less than they did. So a block is
//! bound only while what is on its way takes some 75 ms at the rate at which it is acknowledged;
//! who may not yet stands in a line. The idea is that of congestion control by delay (RFC 6817), for a node
//! and not for a connection.

mod budget;
mod way;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::sync::Notify;

use budget::Budget;
use way::{MOST, Way};

use crate::socket::info;

/// How often is looked while somebody stands in the line: when there should be room, and within these.
const SOON: Duration = Duration::from_millis(5);
const LATE: Duration = Duration::from_millis(12);
/// Between two looks at all sockets, at least; and for each of them.
const COUNT: Duration = Duration::from_millis(4);
const COUNT_EACH: Duration = Duration::from_micros(25);
/// What was counted so long ago is counted again.
const OLD: Duration = Duration::from_millis(50);
/// What one counts for before it is bound, at least: that of most contents.
const SMALLEST: u64 = 64 << 10;

/// A node's uplink. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Uplink(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    budget: Budget,
    /// Connections with bytes on their way, now or just before.
    ways: Vec<(Arc<TcpStream>, Way)>,
    line: VecDeque<Waiter>,
    /// Bytes on their way when they were counted, and bound since.
    on_the_way: u64,
    /// How many there may be until they are counted again.
    level: u64,
    counted: Instant,
    /// The kernel does not say how connections do: nobody is held back.
    is_blind: bool,
    /// What the last block counted for.
    block: u64,
    /// Somebody looks after the line.
    ticks: bool,
    next_id: u64,
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
            level: 0,
            counted: now,
            is_blind: false,
            block: SMALLEST,
            ticks: false,
            next_id: 0,
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.0)
    }

    /// Nothing when a block may be bound now; else a place in the line.
    pub(crate) fn enter(&self) -> Option<Place> {
        let (now, mut state) = (Instant::now(), self.state());
        if state.budget.begin(now) {
            state.ways.clear();
            (state.on_the_way, state.level) = (0, 0);
        }
        // Who has a turn and has not used it yet, or has other things to do first, is not overtaken.
        let nobody_waits = state.line.iter().all(|w| w.is_granted || !w.is_ready);
        if nobody_waits && state.room(now) > 0 {
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
    pub(crate) fn bound(&self, socket: &Arc<TcpStream>, bytes: u32) {
        let (now, mut state) = (Instant::now(), self.state());
        state.budget.leaves(now, bytes.into());
        let bytes = u64::from(bytes).min(MOST);
        state.on_the_way += bytes;
        state.block = bytes.max(SMALLEST);
        let way = match state.way(socket) {
            Some(at) => at,
            None => {
                let Some(seen) = info(socket) else {
                    state.is_blind = true;
                    return;
                };
                state.ways.push((socket.clone(), Way::new(now, seen)));
                state.ways.len() - 1
            }
        };
        state.ways[way].1.writes(bytes);
    }

    /// The block that was bound last is in the kernel's hands whole.
    pub(crate) fn written(&self, socket: &Arc<TcpStream>) {
        let mut state = self.state();
        if let Some(way) = state.way(socket) {
            state.ways[way].1.writes(0);
        }
    }

    /// The connection is gone.
    pub(crate) fn forget(&self, socket: &Arc<TcpStream>) {
        self.state().ways.retain(|(s, _)| !Arc::ptr_eq(s, socket));
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
    let mut pause = SOON;
    loop {
        tokio::time::sleep(pause).await;
        let Some(state) = state.upgrade() else { return };
        let mut state = lock(&state);
        if state.line.is_empty() {
            state.ticks = false;
            return;
        }
        let now = Instant::now();
        state.give_turns(now);
        pause = state.budget.until_room(state.on_the_way);
        pause = pause.clamp(SOON, LATE);
    }
}

impl State {
    fn way(&self, socket: &Arc<TcpStream>) -> Option<usize> {
        self.ways.iter().position(|(s, _)| Arc::ptr_eq(s, socket))
    }

    /// Bytes that may be bound beside what is on its way and what turns were given for.
    fn room(&mut self, now: Instant) -> u64 {
        let every = COUNT + COUNT_EACH * self.ways.len() as u32;
        let since = now.duration_since(self.counted);
        // One receiver has the uplink to itself, and the kernel governs what is on its way.
        let is_alone = self.ways.len() <= 1 && self.line.is_empty();
        if self.is_blind || is_alone || self.budget.is_open(now) {
            if since >= every {
                self.count(now);
            }
            return u64::MAX;
        }
        let granted = self.line.iter().filter(|w| w.is_granted).count() as u64 * self.block;
        let is_full = self.on_the_way + granted >= self.level;
        if since >= every && (is_full || since >= OLD) {
            self.count(now);
            self.level = self.on_the_way + self.budget.room(now, self.on_the_way);
        }
        self.level.saturating_sub(self.on_the_way + granted)
    }

    fn give_turns(&mut self, now: Instant) {
        for waiter in &mut self.line {
            // What it was given and cannot use, as it has something else to do first, is for the others.
            waiter.is_granted &= waiter.is_ready;
        }
        let mut room = self.room(now);
        let mut is_held_back = false;
        for waiter in self.line.iter_mut().filter(|w| w.is_ready && !w.is_granted) {
            if room == 0 {
                is_held_back = true;
                break;
            }
            waiter.is_granted = true;
            waiter.notify.notify_one();
            room = room.saturating_sub(self.block);
        }
        self.budget.looked(is_held_back);
    }

    /// Asks the kernel what is still on its way.
    fn count(&mut self, now: Instant) {
        self.counted = now;
        self.on_the_way = 0;
        let (mut acked, mut came, mut delay) = (0, 0, None);
        self.ways.retain_mut(|(socket, way)| {
            let Some(seen) = info(socket) else {
                return false;
            };
            let (gone, new) = way.look(now, seen);
            (acked, came) = (acked + gone, came + new);
            self.on_the_way += way.counts();
            delay = [delay, way.delay(now)].into_iter().flatten().min();
            !way.is_done(now)
        });
        self.budget.acked(now, acked, came, delay);
    }
}
