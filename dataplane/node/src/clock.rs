//! The time by which tickets are judged: the schedulers' who issued them, told when a session begins and
//! carried on by this machine's steady clock. A machine whose own clock is wrong, or is set while it
//! works, keeps nobody out and is kept out by nobody. Before any scheduler was heard it is this
//! machine's own.

use std::sync::Mutex;
use std::time::Instant;

use crate::node::unix_now;
use crate::task::lock;

/// See the module's header.
#[derive(Debug, Default)]
pub(crate) struct MeshClock(Mutex<Option<(Instant, u64)>>);

impl MeshClock {
    /// A scheduler says what time it is, in seconds since 1970; one of an earlier release says 0.
    pub(crate) fn heard(&self, unix: u64) {
        if unix > 0 {
            *lock(&self.0) = Some((Instant::now(), unix));
        }
    }

    /// Seconds since 1970.
    pub(crate) fn now(&self) -> u64 {
        let heard = *lock(&self.0);
        heard.map_or_else(unix_now, |(at, unix)| {
            unix.saturating_add(at.elapsed().as_secs())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_scheduler_said_counts_more_than_this_machines_clock() {
        let clock = MeshClock::default();
        assert!(clock.now().abs_diff(unix_now()) <= 1);
        clock.heard(0);
        assert!(clock.now().abs_diff(unix_now()) <= 1);
        clock.heard(1_000);
        assert!((1_000..1_060).contains(&clock.now()));
        clock.heard(u64::MAX);
        assert_eq!(clock.now(), u64::MAX);
    }
}
