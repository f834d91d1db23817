//! When to try again: jittered exponential backoff that honours the origin's `Retry-After`.
//!
//! Invariant: a fetch that gets nowhere ends, after a bounded number of attempts and a bounded time;
//! one that moves forward goes on for as long as it takes. A few bytes an attempt are no progress.

use crate::error::{Error, Result};
use std::time::Duration;
use tokio::time::Instant;

/// How often and how long to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Attempts without progress, the first one included; at least 1.
    pub attempts: u32,
    /// Pause before the second attempt; doubles each time, with jitter of one half downwards.
    pub base: Duration,
    /// Longest pause of our own choosing.
    pub max_pause: Duration,
    /// Longest pause that a `Retry-After` may impose; a longer wish is cut to this.
    pub max_retry_after: Duration,
    /// Give up when nothing has come for this long, whatever the attempts.
    pub give_up_after: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts: 6,
            base: Duration::from_millis(250),
            max_pause: Duration::from_secs(15),
            max_retry_after: Duration::from_secs(60),
            give_up_after: Duration::from_secs(300),
        }
    }
}

/// Bytes in one attempt that count as progress and reset the attempts.
const PROGRESS: u64 = 64 * 1024;

/// The attempts at one range.
pub(crate) struct Tries {
    policy: RetryPolicy,
    failed: u32,
    since: Instant,
}

impl Tries {
    pub(crate) fn new(policy: RetryPolicy) -> Self {
        Self {
            policy,
            failed: 0,
            since: Instant::now(),
        }
    }

    /// Waits before the next attempt after `error`, which came `progressed` bytes after the one
    /// before; gives the error back when there should be none.
    pub(crate) async fn pause(&mut self, error: Error, progressed: u64) -> Result<()> {
        if progressed >= PROGRESS {
            self.failed = 0;
            self.since = Instant::now();
        }
        if !error.is_temporary() {
            return Err(error);
        }
        self.failed += 1;
        if self.failed >= self.policy.attempts.max(1)
            || self.since.elapsed() >= self.policy.give_up_after
        {
            return Err(error.given_up(self.failed));
        }
        let pause = self.length(&error);
        tracing::debug!(kind = ?error.kind(), attempt = self.failed, pause_ms = pause.as_millis(),
            "origin request failed, trying again: {error}");
        tokio::time::sleep(pause).await;
        Ok(())
    }

    fn length(&self, error: &Error) -> Duration {
        let doublings = self.failed.saturating_sub(1).min(16);
        let full = self
            .policy
            .base
            .saturating_mul(1 << doublings)
            .min(self.policy.max_pause);
        let own = full.mul_f64(0.5 + fastrand::f64() / 2.0);
        let wish = error
            .retry_after()
            .unwrap_or_default()
            .min(self.policy.max_retry_after);
        // All fetches that were told the same moment would come back together: spread them.
        own.max(wish.saturating_add(own.mul_f64(0.1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Fault, Kind};

    fn cut() -> Error {
        Error::temporary(Kind::Interrupted, Fault::Origin, "cut")
    }

    #[tokio::test(start_paused = true)]
    async fn attempts_without_progress_are_bounded() {
        let mut tries = Tries::new(RetryPolicy {
            attempts: 3,
            ..RetryPolicy::default()
        });
        assert!(tries.pause(cut(), 0).await.is_ok());
        assert!(
            tries.pause(cut(), 10).await.is_ok(),
            "ten bytes are no progress"
        );
        let error = tries.pause(cut(), 10).await.unwrap_err();
        assert!(!error.is_temporary());
        assert!(error.to_string().contains("after 3 attempts"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn progress_resets_the_count() {
        let mut tries = Tries::new(RetryPolicy {
            attempts: 2,
            ..RetryPolicy::default()
        });
        for _ in 0..50 {
            assert!(tries.pause(cut(), PROGRESS).await.is_ok());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_permanent_error_is_given_back_at_once() {
        let began = Instant::now();
        let mut tries = Tries::new(RetryPolicy::default());
        let gone = Error::permanent(Kind::NotFound, Fault::Caller, "gone");
        assert_eq!(
            tries.pause(gone, 0).await.unwrap_err().kind(),
            Kind::NotFound
        );
        assert_eq!(began.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn the_origins_wish_is_kept_up_to_the_cap() {
        for (wish, least, most) in [(5, 5, 6), (3600, 60, 67)] {
            let mut tries = Tries::new(RetryPolicy::default());
            let began = Instant::now();
            let error = cut().with_retry_after(Some(Duration::from_secs(wish)));
            assert!(tries.pause(error, 0).await.is_ok());
            let waited = began.elapsed().as_secs();
            assert!(
                (least..=most).contains(&waited),
                "wish {wish}: waited {waited}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn time_without_progress_is_bounded() {
        let policy = RetryPolicy {
            attempts: 1000,
            give_up_after: Duration::from_secs(30),
            ..RetryPolicy::default()
        };
        let mut tries = Tries::new(policy);
        let began = Instant::now();
        while tries.pause(cut(), 0).await.is_ok() {}
        assert!(began.elapsed() < Duration::from_secs(60));
    }
}
