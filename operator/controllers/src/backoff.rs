//! How long an object that failed is left alone: each on its own, longer each time.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

const FIRST: Duration = Duration::from_secs(1);
const MOST: Duration = Duration::from_secs(300);
/// Objects that failed and are gone are forgotten above this.
const REMEMBERED: usize = 10_000;

/// Failures in a row, by object.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: Mutex<HashMap<String, u32>>,
}

impl Backoff {
    /// One more failure: how long to wait. `jitter` in 0..1 spreads those that failed together.
    pub fn failed(&self, object: &str, jitter: f64) -> Duration {
        let mut all = self.lock();
        if all.len() >= REMEMBERED && !all.contains_key(object) {
            all.clear();
        }
        let count = all.entry(object.to_owned()).or_default();
        *count = count.saturating_add(1);
        let wait = FIRST.saturating_mul(1 << (*count - 1).min(16)).min(MOST);
        wait.mul_f64(1.0 - 0.2 * jitter.clamp(0.0, 1.0))
    }

    /// It went well.
    pub fn succeeded(&self, object: &str) {
        self.lock().remove(object);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, u32>> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_waits_longer_each_time_and_no_other_waits_with_it() {
        let backoff = Backoff::default();
        let waits: Vec<_> = (0..12)
            .map(|_| backoff.failed("a", 0.0).as_secs())
            .collect();
        assert_eq!(waits[..9], [1, 2, 4, 8, 16, 32, 64, 128, 256]);
        assert_eq!(waits[9..], [300, 300, 300]);
        assert_eq!(backoff.failed("b", 0.0), FIRST);
        backoff.succeeded("a");
        assert_eq!(backoff.failed("a", 0.0), FIRST);
        assert!(backoff.failed("a", 1.0) < Duration::from_secs(2));
    }
}
