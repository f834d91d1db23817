//! Bounds: token buckets that owe instead of wait (the caller sleeps, or sends somebody else's bytes),
//! and maps that forget what is oldest.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::task::lock;

/// Burst a bucket allows: what its rate gives in this time.
const BURST: Duration = Duration::from_millis(50);

/// Bytes a second, changeable while in use; 0 is no limit.
#[derive(Debug)]
pub struct RateLimit(Mutex<Bucket>);

#[derive(Debug)]
struct Bucket {
    rate: u64,
    /// When the bucket is full again; later than now by more than the burst: in debt.
    full_at: Instant,
}

impl RateLimit {
    /// A limit in bytes a second; 0 for none.
    #[must_use]
    pub fn new(rate: u64) -> Self {
        Self(Mutex::new(Bucket {
            rate,
            full_at: Instant::now(),
        }))
    }

    /// Sets another limit.
    pub fn set(&self, rate: u64) {
        lock(&self.0).rate = rate;
    }

    /// The limit.
    #[must_use]
    pub fn rate(&self) -> u64 {
        lock(&self.0).rate
    }

    /// Accounts for bytes that were moved; how long to pause before the next.
    pub fn take(&self, bytes: u64) -> Option<Duration> {
        let mut b = lock(&self.0);
        if b.rate == 0 {
            return None;
        }
        let now = Instant::now();
        let cost = Duration::from_secs_f64(bytes as f64 / b.rate as f64);
        b.full_at = b.full_at.max(now) + cost;
        Self::over(&b, now)
    }

    /// How long to pause before anything more may be moved.
    #[must_use]
    pub fn debt(&self) -> Option<Duration> {
        let b = lock(&self.0);
        if b.rate == 0 {
            None
        } else {
            Self::over(&b, Instant::now())
        }
    }

    fn over(b: &Bucket, now: Instant) -> Option<Duration> {
        b.full_at
            .checked_duration_since(now + BURST)
            .filter(|d| !d.is_zero())
    }
}

/// A map of at most so many entries: what was put in first goes first. What is put again is new.
#[derive(Debug)]
pub struct Recent<K, V> {
    most: usize,
    all: HashMap<K, (u64, V)>,
    /// In order of age; entries that were put again or removed since are stale.
    order: VecDeque<(u64, K)>,
    next: u64,
}

impl<K: Hash + Eq + Copy, V> Recent<K, V> {
    /// An empty one for so many entries.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self {
            most,
            all: HashMap::new(),
            order: VecDeque::new(),
            next: 0,
        }
    }

    /// What was put last.
    #[must_use]
    pub fn get(&self, key: &K) -> Option<&V> {
        self.all.get(key).map(|(_, value)| value)
    }

    /// Takes it out.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        self.all.remove(key).map(|(_, value)| value)
    }

    /// Enters it as the newest.
    pub fn put(&mut self, key: K, value: V) {
        self.next += 1;
        self.all.insert(key, (self.next, value));
        self.order.push_back((self.next, key));
        while self.all.len() > self.most || self.order.len() > 2 * self.most {
            let Some((at, oldest)) = self.order.pop_front() else {
                return;
            };
            if self.all.get(&oldest).is_some_and(|(put, _)| *put == at) {
                self.all.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_allows_its_burst_and_then_asks_for_a_pause_in_proportion() {
        let limit = RateLimit::new(1_000_000);
        assert_eq!(limit.take(40_000), None);
        let pause = limit.take(1_000_000).unwrap();
        assert!((Duration::from_millis(900)..Duration::from_millis(1000)).contains(&pause));
        assert!(limit.debt().is_some());
        limit.set(0);
        assert_eq!((limit.debt(), limit.take(1 << 40)), (None, None));
    }

    #[test]
    fn what_was_put_first_goes_first_and_what_is_put_again_stays() {
        let mut map = Recent::new(3);
        for key in [1, 2, 3, 1, 4] {
            map.put(key, key * 10);
        }
        assert_eq!(
            [1, 2, 3, 4].map(|k| map.get(&k).copied()),
            [Some(10), None, Some(30), Some(40)]
        );
        for _ in 0..100 {
            map.put(4, 41);
        }
        assert_eq!(map.get(&4), Some(&41));
        assert!(map.order.len() <= 6);
        assert_eq!((map.remove(&4), map.get(&4)), (Some(41), None));
    }
}
