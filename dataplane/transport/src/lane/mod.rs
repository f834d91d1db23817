//! A connection's second socket, for blocks alone.
//!
//! A socket is read by one thread at a time and written by one. Where the way is as fast as memory, one thread at
//! each end is busy while the other processors wait for it, however its work is shared out: in turns with two sockets,
//! each of which is read, hashed and stored by a thread of its own, a pair on two processors moved 12.8 and 15.8 Gbit/s
//! (`docs/performance.md`). So the side that dialled a connection dials it once more when it finds it near
//! and fast. A lane has a thread at each end, and is given up when no block went over it for a while.
//!
//! Frames go over the first socket, and what goes over a lane may be overtaken by them or overtake them. So not every
//! block may ([`Handler::next_unordered`]).

use std::convert::Infallible;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::Duration;

use dragonfly_proto::frame::{Frame, FrameHeader, Greeting, LANES, kind};
use socket2::SockRef;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::runtime::Builder;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};

use crate::Handler;
use crate::aside::processors;
use crate::conn::{CloseReason, Conn};
use crate::pace::{is_near, not_paced};
use crate::reader::{self, Input};
use crate::table::Mesh;
use crate::writer::{self, Output};

/// A connection is worth a lane where it takes no longer for each [`crate::pace::LOOK_EVERY`] bytes: 4 Gbit/s. One thread
/// manages twice as much.
const FAST: Duration = Duration::from_millis(16);
/// Two processors have enough to do with a connection that is encrypted; with so many it may have a lane too.
const PLENTY: usize = 4;
/// Who could not have one tries again after this.
const AGAIN: Duration = Duration::from_secs(10);
/// A lane that carried nothing for this long is given up, and the other side's word that it will carry nothing more is
/// waited for twice as long.
pub(crate) const IDLE: Duration = Duration::from_millis(if cfg!(test) { 500 } else { 5000 });

/// What a connection knows of its lane.
#[derive(Debug)]
pub(crate) struct Lane {
    /// The other side takes lanes, and this one has the processors for it.
    is_possible: bool,
    /// The numbers that both sides gave the connection: ours and theirs.
    pub(crate) numbers: (u32, u32),
    /// Whoever makes or runs the lane has it.
    one: Arc<Semaphore>,
    is_up: AtomicBool,
    wanted: Notify,
    pub(crate) wake: Notify,
    stop: Notify,
    /// Something came over it since this was looked at.
    pub(crate) heard: AtomicBool,
    pub(crate) shares: Shares,
}

impl Lane {
    /// Of a connection with these greetings.
    pub(crate) fn new(ours: &Greeting, theirs: &Greeting, is_encrypted: bool) -> Self {
        let takes = theirs.features & LANES != 0;
        Self {
            is_possible: takes && (!is_encrypted || processors() >= PLENTY),
            numbers: (ours.conn, theirs.conn),
            one: Arc::new(Semaphore::new(1)),
            is_up: AtomicBool::new(false),
            wanted: Notify::new(),
            wake: Notify::new(),
            stop: Notify::new(),
            heard: AtomicBool::new(false),
            shares: Shares::default(),
        }
    }

    /// Whether blocks may come and go over it.
    pub(crate) fn is_up(&self) -> bool {
        self.is_up.load(Ordering::Relaxed)
    }

    /// There may be a block for it.
    pub(crate) fn wake(&self) {
        if self.is_up() {
            self.wake.notify_one();
        }
    }

    /// The connection needed this long for the last [`crate::pace::LOOK_EVERY`] bytes.
    pub(crate) fn looked(&self, took: Duration, conn: &Conn) {
        let is_wanted = conn.dialled() && self.is_possible && !self.is_up();
        if is_wanted && took <= FAST && is_near(conn.round_trip()) {
            self.wanted.notify_one();
        }
    }

    /// The right to make the connection's lane; nothing where there is one already.
    pub(crate) fn begin(&self) -> Option<OwnedSemaphorePermit> {
        self.one.clone().try_acquire_owned().ok()
    }

    /// Ends it, and waits until it has ended. There is no further one.
    pub(crate) async fn end(&self) {
        self.stop.notify_one();
        // Never closed but here, behind this.
        if let Ok(last) = self.one.acquire().await {
            last.forget();
        }
        self.one.close();
    }
}

/// Which of a connection's sockets takes the next block. Both have room for all that is asked for at most times, so who
/// comes first would take it all: that is who hears of requests, and the lane would carry nothing.
#[derive(Debug, Default)]
pub(crate) struct Shares {
    /// Blocks by which the first socket is ahead of the lane.
    ahead: AtomicI32,
    /// Whether the first one's writer waits for something to do, and the lane's.
    idle: [AtomicBool; 2],
}

impl Shares {
    /// How far one may get ahead of the other while that has something to do.
    const MOST: i32 = 2;

    /// Whether the next block is the other one's, who waits for it.
    pub(crate) fn is_others(&self, is_lane: bool) -> bool {
        let ahead = self.ahead.load(Ordering::SeqCst);
        let is_ahead = if is_lane { ahead < 0 } else { ahead > 0 };
        is_ahead && self.idle[usize::from(!is_lane)].load(Ordering::SeqCst)
    }

    /// One of them takes a block.
    pub(crate) fn takes(&self, is_lane: bool) {
        let step = |ahead: i32| match is_lane {
            true => (ahead - 1).max(-Self::MOST),
            false => (ahead + 1).min(Self::MOST),
        };
        let (to, from) = (Ordering::SeqCst, Ordering::SeqCst);
        // Never refuses.
        let _ = self.ahead.fetch_update(to, from, |a| Some(step(a)));
    }

    /// The lane found nothing that it may take: the first one goes on.
    pub(crate) fn not_for_lanes(&self) {
        self.ahead.store(-Self::MOST, Ordering::SeqCst);
    }

    /// One of them has nothing to do, until this is dropped.
    pub(crate) fn rest(&self, is_lane: bool) -> Resting<'_> {
        let idle = &self.idle[usize::from(is_lane)];
        idle.store(true, Ordering::SeqCst);
        Resting(idle)
    }
}

/// See [`Shares::rest`].
pub(crate) struct Resting<'a>(&'a AtomicBool);

impl Drop for Resting<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::SeqCst);
    }
}

/// Makes lanes for a connection when it needs them.
pub(crate) async fn keep<H: Handler>(mesh: &Arc<Mesh<H>>, conn: &Arc<Conn>) -> Infallible {
    loop {
        conn.lane.wanted.notified().await;
        // Rare, and large: not in every connection's task.
        let dialled = Box::pin(mesh.dial_lane(conn));
        if let Err(error) = dialled.await {
            tracing::debug!(peer = %conn.peer(), %error, "no second connection");
            tokio::time::sleep(AGAIN).await;
        }
    }
}

/// What a lane holds for as long as it is there: one of the node's
/// [`crate::aside::turns`] and the connection's [`Lane::begin`], in the
/// order in which they are given back.
pub(crate) type Held = [OwnedSemaphorePermit; 2];

/// What an end of a lane says before anything else: its greeting where it was dialled, and then that it hears, where it
/// dialled. Who was dialled waits for that before it sends a block: until then nothing is lost with a lane.
pub(crate) enum First {
    /// To who dialled.
    Greeting(Vec<u8>),
    /// To who was dialled.
    Ready,
}

/// Runs a lane on a thread of its own, from here on.
///
/// # Errors
/// There is no thread, or no descriptor, to be had.
pub(crate) fn start<H: Handler, R: Input + 'static, W: Output + 'static>(
    conn: Arc<Conn>,
    handler: Arc<H>,
    (reader, writer, socket): (R, W, Arc<TcpStream>),
    held: Held,
    first: First,
) -> io::Result<()> {
    // Its own runtime waits for its socket: the node's threads have other things to do.
    let own = SockRef::from(&*socket).try_clone()?;
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let run = move || {
        let up = Up(conn, held);
        let conn = &up.0;
        let runs = async {
            let socket = TcpStream::from_std(own.into()).map(Arc::new);
            let socket = socket.map_err(|e| CloseReason::Lost(e.to_string()))?;
            let (mut reader, mut writer) = (reader.moved(&socket), writer.moved(&socket));
            not_paced(conn, &socket);
            if let Err(error) = come_up(conn, &mut reader, &mut writer, first).await {
                tracing::debug!(peer = %conn.peer(), %error, "a lane that did not come up");
                return Ok(());
            }
            conn.lane.is_up.store(true, Ordering::Relaxed);
            // What it was woken for before it was up.
            conn.lane.wake.notify_one();
            both(conn, &handler, reader, writer, &socket).await
        };
        if let Err(reason) = runtime.block_on(runs) {
            conn.close(reason);
        }
    };
    std::thread::Builder::new()
        .name("lane".to_owned())
        .spawn(run)?;
    Ok(())
}

/// A lane's thread; what it does last, however it ends.
struct Up(Arc<Conn>, #[expect(dead_code, reason = "held")] Held);

impl Drop for Up {
    fn drop(&mut self) {
        self.0.lane.is_up.store(false, Ordering::Relaxed);
        // What was left for the lane is the first one's again.
        self.0.wake_first();
        if std::thread::panicking() {
            let reason = "a fault of this program on a lane's thread";
            self.0.close(CloseReason::Local(reason.to_owned()));
        }
    }
}

/// Says what is said first, and waits for what has to come before the lane is used.
async fn come_up<R: Input, W: Output>(
    conn: &Conn,
    reader: &mut R,
    writer: &mut W,
    first: First,
) -> io::Result<()> {
    let greeting = match first {
        First::Ready => {
            let mut ping = Vec::new();
            Frame::Ping.encode(0, &mut ping);
            return writer.say(&ping).await;
        }
        First::Greeting(greeting) => greeting,
    };
    let heard = async {
        writer.say(&greeting).await?;
        let mut said = [0; FrameHeader::LEN];
        reader.read_exact(&mut said).await?;
        FrameHeader::decode(&said).map_err(io::Error::other)
    };
    let said = tokio::select! {
        said = timeout(IDLE * 2, heard) => said??,
        () = conn.lane.stop.notified() => return Err(io::Error::other("its connection ended")),
    };
    match (said.kind, said.len) {
        (kind::PING, 0) => Ok(()),
        _ => Err(io::Error::other("something else was said first")),
    }
}

/// Reads and writes blocks until neither side has any for a while.
async fn both<H: Handler, R: Input, W: Output>(
    conn: &Arc<Conn>,
    handler: &Arc<H>,
    reader: R,
    writer: W,
    socket: &Arc<TcpStream>,
) -> Result<(), CloseReason> {
    let mut reading = pin!(reader::run_lane(conn, handler, reader, socket));
    let mut writing = pin!(writer::run_lane(conn, &**handler, writer, socket));
    let (mut reads, mut writes) = (true, true);
    let mut tick = interval_at(Instant::now() + IDLE, IDLE);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut quiet = 0;
    while reads || writes {
        tokio::select! {
            ended = &mut reading, if reads => {
                ended?;
                reads = false;
            }
            ended = &mut writing, if writes => {
                ended.map_err(|e| CloseReason::Lost(e.to_string()))?;
                writes = false;
            }
            () = conn.lane.stop.notified() => return Ok(()),
            _ = tick.tick() => {
                // An honest side would have said by now that nothing more comes.
                let heard = conn.lane.heard.swap(false, Ordering::Relaxed) || conn.is_pausing();
                quiet = if writes || heard { 0 } else { quiet + 1 };
                if quiet <= 1 {
                    continue;
                }
                // What is in the middle of a block waits for more than it has.
                let unread = rustix::io::ioctl_fionread(&**socket).unwrap_or(0);
                return match unread {
                    0 => Ok(()),
                    _ => Err(CloseReason::Silent((IDLE * 2).as_millis() as u64)),
                };
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
