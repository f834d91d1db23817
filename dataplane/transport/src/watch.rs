//! Silence, noticed and avoided, and the round trip, measured: one timer a connection, so that no read
//! or write needs its own.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use dragonfly_proto::frame::Frame;
use tokio::net::TcpStream;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::conn::{CloseReason, Conn};

/// Say something at least this often, so that silence means death.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// Ends when nothing came in for `silence`.
pub(crate) async fn run(conn: &Arc<Conn>, socket: &TcpStream, silence: Duration) -> CloseReason {
    let mut tick = interval(
        (HEARTBEAT / 2)
            .min(silence / 4)
            .max(Duration::from_millis(1)),
    );
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut heard, mut said) = (Instant::now(), Instant::now());
    let mut unread = 0;
    loop {
        let now = tick.tick().await;
        // Bytes that arrive while the reader waits for a whole block count, and so does the reader's
        // own choice not to read.
        let arrived = rustix::io::ioctl_fionread(socket).unwrap_or(0);
        if conn.heard.swap(false, Ordering::Relaxed) || arrived != unread || conn.is_pausing() {
            heard = now;
        }
        unread = arrived;
        conn.measure(socket);
        if conn.said.swap(false, Ordering::Relaxed) {
            said = now;
        }
        if now - heard >= silence {
            return CloseReason::Silent(silence.as_millis() as u64);
        }
        if now - said >= HEARTBEAT {
            said = now;
            conn.send(0, &Frame::Ping);
        }
    }
}
