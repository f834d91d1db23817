//! Pacing, given up where it costs more than it is worth.
//!
//! A kernel whose congestion control paces what it sends (BBR) sets a timer for each 64 KiB. At more than a
//! few Gbit/s those timers are most of what sending costs, above all on a virtual machine, where each leaves
//! the guest: sending 1 GiB on one connection took 0.8 s with them and 0.3 without. Between near nodes there is
//! no queue to spare that would be worth it, so a connection that is near and found to be fast goes on with a
//! control that does not pace by itself. The kernel keeps the timer of a connection that ever had one, but at a
//! rate so far above what it sends that it hardly ever has to wait.

use std::io;
use std::time::{Duration, Instant};

use rustix::net::sockopt;
use tokio::net::TcpStream;

use crate::conn::{Conn, FAR};

/// How often to look, bytes.
pub(crate) const LOOK_EVERY: u64 = 8 << 20;
/// A connection is fast where it takes no longer for that: 2 Gbit/s.
const FAST: Duration = Duration::from_millis(33);
/// What to have instead, whichever this process may set: every kernel allows the last.
const UNPACED: [&str; 2] = ["cubic", "reno"];

/// How long each [`LOOK_EVERY`] bytes take.
pub(crate) struct Speed {
    since: Instant,
    bytes: u64,
}

impl Speed {
    pub(crate) fn new() -> Self {
        Self {
            since: Instant::now(),
            bytes: 0,
        }
    }

    /// So many more bytes; how long the last [`LOOK_EVERY`] took, once for each of them.
    pub(crate) fn add(&mut self, bytes: u32) -> Option<Duration> {
        self.bytes += u64::from(bytes);
        if self.bytes < LOOK_EVERY {
            return None;
        }
        let now = Instant::now();
        self.bytes = 0;
        Some(now - std::mem::replace(&mut self.since, now))
    }
}

/// Looks at how fast one socket sends.
pub(crate) struct Pace {
    speed: Speed,
    /// There is nothing more to decide.
    decided: bool,
}

impl Pace {
    pub(crate) fn new() -> Self {
        Self {
            speed: Speed::new(),
            decided: false,
        }
    }

    /// Bytes went out.
    pub(crate) fn sent(&mut self, bytes: u32, conn: &Conn, socket: &TcpStream) {
        let Some(took) = self.speed.add(bytes) else {
            return;
        };
        conn.lane.looked(took, conn);
        if self.decided || !is_worth_it(took, conn.round_trip()) {
            return;
        }
        self.decided = true;
        not_paced(conn, socket);
    }
}

/// Has the kernel not pace this socket of a connection.
pub(crate) fn not_paced(conn: &Conn, socket: &TcpStream) {
    match unpace(socket) {
        Ok(None) => {}
        Ok(Some(now)) => {
            tracing::debug!(peer = %conn.peer(), now, "near and fast: not paced any more");
        }
        Err(error) => tracing::debug!(peer = %conn.peer(), %error, "cannot stop pacing"),
    }
}

/// Whether a connection that took so long for [`LOOK_EVERY`] is better off without.
fn is_worth_it(took: Duration, round_trip: Duration) -> bool {
    took <= FAST && is_near(round_trip)
}

/// Whether this is the round trip of two machines of one place.
pub(crate) const fn is_near(round_trip: Duration) -> bool {
    !round_trip.is_zero() && round_trip.as_nanos() < FAR.as_nanos()
}

/// Has the kernel not pace a connection that it does pace; what controls congestion then.
fn unpace(socket: &TcpStream) -> io::Result<Option<&'static str>> {
    if !sockopt::tcp_congestion(socket)?.starts_with("bbr") {
        return Ok(None);
    }
    let mut refused = None;
    for name in UNPACED {
        match sockopt::set_tcp_congestion(socket, name) {
            Ok(()) => return Ok(Some(name)),
            Err(e) => refused = Some(e),
        }
    }
    refused.map_or(Ok(None), |e| Err(e.into()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_near_and_fast_is_better_off_without() {
        let ms = Duration::from_millis;
        assert!(is_worth_it(ms(10), Duration::from_micros(80)));
        assert!(!is_worth_it(ms(70), Duration::from_micros(80)), "1 Gbit/s");
        assert!(!is_worth_it(ms(10), ms(40)), "another place");
        assert!(!is_worth_it(ms(10), ms(0)), "not known");
    }

    #[tokio::test]
    async fn only_a_paced_connection_is_changed() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        sockopt::set_tcp_congestion(&socket, "reno").unwrap();
        assert_eq!(unpace(&socket).unwrap(), None);
        // Not every kernel has it.
        let paced = sockopt::set_tcp_congestion(&socket, "bbr").is_ok();
        let now = unpace(&socket).unwrap();
        assert_eq!(now.is_some(), paced);
        let after = sockopt::tcp_congestion(&socket).unwrap();
        assert_eq!(after, now.unwrap_or("reno"));
    }
}
