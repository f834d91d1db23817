//! Room: the account of bytes, watermarks, and the eviction of what nobody used for longest.
//!
//! Invariants: usage is the sum of the entries' `bytes` (deleted entries in use included); eviction
//! reads only the index in memory and never takes a task that has a handle or is pinned.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, TryLockError};
use std::time::Duration;

use crate::entry::Entry;
use crate::error::{ErrorKind, Result, StorageError};
use crate::lock;
use crate::options::{EvictReason, Evicted, Options};
use crate::store::Shared;

/// The volume is asked for its free space once per so many bytes written.
const ASK_VOLUME_EVERY: u64 = 16 << 20;
/// What is evicted at least when the volume is full though the quota is not.
const EMERGENCY: u64 = 64 << 20;
/// Evictions kept for [`crate::Store::take_evicted`]; older ones are only missed in announcements.
const MAX_REPORTED: usize = 4096;

/// The account of a store.
#[derive(Debug, Default)]
pub(crate) struct Account {
    pub(crate) used: AtomicU64,
    /// Quota, or what the volume leaves if that is less.
    limit: AtomicU64,
    since_asked: AtomicU64,
    /// Rises whenever something may have become evictable.
    chances: AtomicU64,
    /// The value of `chances` at which eviction last found nothing.
    futile_at: AtomicU64,
    collecting: Mutex<()>,
}

/// Time as the store knows it: it follows the caller's clock, but a jump moves it by at most one
/// step, so that no wrong clock makes everything look old at once.
#[derive(Debug)]
pub(crate) struct Clock {
    store_ms: AtomicU64,
    caller_ms: Mutex<u64>,
}

impl Clock {
    /// `newest`: the latest use that was recorded before the start; time between was not observed.
    pub(crate) fn new(now: u64, newest: Option<u64>) -> Self {
        Self {
            store_ms: AtomicU64::new(newest.unwrap_or(now)),
            caller_ms: Mutex::new(now),
        }
    }

    pub(crate) fn now(&self) -> u64 {
        self.store_ms.load(Ordering::Relaxed)
    }

    fn advance(&self, now: u64, max_step: Duration) {
        let mut before = lock(&self.caller_ms);
        let max = u64::try_from(max_step.as_millis()).unwrap_or(u64::MAX);
        self.store_ms
            .fetch_add(now.saturating_sub(*before).min(max), Ordering::Relaxed);
        *before = now;
    }
}

fn percent(of: u64, percent: u8) -> u64 {
    u64::try_from(u128::from(of) * u128::from(percent) / 100).unwrap_or(u64::MAX)
}

impl Shared {
    pub(crate) fn advance_clock(&self, now: u64) {
        let step = self.options().max_clock_step;
        self.clock.advance(now, step);
    }

    /// Marks a task as just used.
    pub(crate) fn used_now(&self, entry: &Entry) {
        let now = self.clock.now();
        if entry.last_used.load(Ordering::Relaxed) != now {
            entry.last_used.store(now, Ordering::Relaxed);
        }
    }

    /// The last handle of a task went.
    pub(crate) fn released(&self, entry: &Entry) {
        if entry.deleted.load(Ordering::SeqCst) {
            self.forget_bytes(entry);
        }
        self.new_chance();
    }

    /// Something may have become evictable.
    pub(crate) fn new_chance(&self) {
        self.account.chances.fetch_add(1, Ordering::AcqRel);
    }

    /// Takes a deleted task out of the account; harmless when done twice.
    pub(crate) fn forget_bytes(&self, entry: &Entry) {
        let bytes = entry.bytes.swap(0, Ordering::AcqRel);
        self.account.used.fetch_sub(bytes, Ordering::AcqRel);
    }

    /// Asks the volume anew how much the store may take.
    pub(crate) fn refresh_limit(&self) -> u64 {
        let options = self.options();
        let used = self.account.used.load(Ordering::Acquire);
        let limit = match self.media.space() {
            Ok(Some(space)) => {
                let reserve = percent(space.total, options.reserve_free_percent);
                // What we hold plus what is free, less the reserve: falls below `used` when others
                // fill the volume, and then we give back.
                let ours = used.saturating_add(space.available).saturating_sub(reserve);
                ours.min(options.quota_bytes)
            }
            Ok(None) => options.quota_bytes,
            Err(e) => {
                tracing::warn!(store = %self.media.describe(), error = %e, "cannot tell the free space");
                options.quota_bytes
            }
        };
        self.account.limit.store(limit, Ordering::Release);
        limit
    }

    fn marks(&self, options: &Options) -> (u64, u64) {
        let limit = self.account.limit.load(Ordering::Acquire);
        (
            percent(limit, options.high_watermark_percent),
            percent(limit, options.low_watermark_percent),
        )
    }

    /// Accounts `bytes` to a task, evicting others when usage passes the high watermark.
    pub(crate) fn reserve(&self, entry: &Entry, bytes: u64) -> Result<()> {
        let account = &self.account;
        if account.since_asked.fetch_add(bytes, Ordering::Relaxed) + bytes >= ASK_VOLUME_EVERY {
            account.since_asked.store(0, Ordering::Relaxed);
            self.refresh_limit();
        }
        let options = self.options();
        let used = account.used.fetch_add(bytes, Ordering::AcqRel) + bytes;
        entry.bytes.fetch_add(bytes, Ordering::AcqRel);
        let (high, _) = self.marks(&options);
        if used <= high {
            return Ok(());
        }
        // One thread evicts; the others go on as long as the quota itself holds.
        let limit = account.limit.load(Ordering::Acquire);
        match account.collecting.try_lock() {
            Ok(_collecting) => self.evict_to_low(&options),
            Err(TryLockError::Poisoned(_)) => self.evict_to_low(&options),
            Err(TryLockError::WouldBlock) if used <= limit => return Ok(()),
            Err(TryLockError::WouldBlock) => {
                let _collecting = lock(&account.collecting);
                self.evict_to_low(&options);
            }
        }
        let used = account.used.load(Ordering::Acquire);
        if used <= account.limit.load(Ordering::Acquire) {
            return Ok(());
        }
        self.unreserve(entry, bytes);
        Err(self.no_room(entry, bytes, used.saturating_sub(bytes), &options))
    }

    /// What stands in the way of `bytes`, beside the `used` ones: the quota, or the volume.
    fn no_room(&self, entry: &Entry, bytes: u64, used: u64, options: &Options) -> StorageError {
        let by_volume = self.account.limit.load(Ordering::Acquire) < options.quota_bytes;
        let (kind, limit) = match self.media.space() {
            Ok(Some(space)) if by_volume => (
                ErrorKind::DiskFull,
                format!(
                    "{} of the volume's {} are free, and {} % of it have to stay so",
                    space.available, space.total, options.reserve_free_percent
                ),
            ),
            _ => (
                ErrorKind::QuotaExceeded,
                format!("the quota is {}", options.quota_bytes),
            ),
        };
        let detail = format!("{bytes} bytes do not fit beside {used} in use: {limit}");
        StorageError::task(kind, &entry.key, detail)
    }

    /// Gives back what [`Self::reserve`] took.
    pub(crate) fn unreserve(&self, entry: &Entry, bytes: u64) {
        // Never below zero, though a block adopted from an ingested file was accounted with it.
        let mut given = 0;
        let _ = entry
            .bytes
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |have| {
                given = bytes.min(have);
                Some(have - given)
            });
        self.account.used.fetch_sub(given, Ordering::AcqRel);
    }

    /// The volume is full: evicts whatever the watermarks say. Whether anything came back.
    pub(crate) fn make_room(&self, bytes: u64) -> bool {
        let _collecting = lock(&self.account.collecting);
        let used = self.account.used.load(Ordering::Acquire);
        let freed = self.evict_to(used.saturating_sub(bytes.max(EMERGENCY)));
        self.refresh_limit();
        freed > 0
    }

    fn evict_to_low(&self, options: &Options) {
        let (high, low) = self.marks(options);
        if self.account.used.load(Ordering::Acquire) > high {
            self.evict_to(low);
        }
    }

    /// Evicts least recently used tasks until usage is at most `target`; returns what came back.
    fn evict_to(&self, target: u64) -> u64 {
        let chances = self.account.chances.load(Ordering::Acquire);
        if self.account.futile_at.load(Ordering::Acquire) == chances {
            return 0;
        }
        let mut freed = 0;
        let mut left = false;
        for (_, key) in self.idle_tasks() {
            if self.account.used.load(Ordering::Acquire) <= target {
                left = true;
                break;
            }
            freed += self.evict(&key, EvictReason::Space);
        }
        if !left {
            // Nothing more to find until something is released.
            self.account.futile_at.store(chances, Ordering::Release);
        }
        freed
    }

    fn evict(&self, key: &dragonfly_proto::id::ContentKey, reason: EvictReason) -> u64 {
        match self.remove_if_idle(key) {
            Ok(Some(bytes)) => {
                tracing::debug!(task = %key, bytes, ?reason, "evicted");
                let mut evicted = lock(&self.evicted);
                if evicted.len() < MAX_REPORTED {
                    evicted.push(Evicted {
                        key: *key,
                        bytes,
                        reason,
                    });
                }
                bytes
            }
            Ok(None) => 0,
            Err(e) => {
                tracing::warn!(task = %key, error = %e, "cannot evict");
                0
            }
        }
    }

    /// Age first, then the watermarks.
    pub(crate) fn collect(&self, now: u64) {
        self.advance_clock(now);
        let _collecting = lock(&self.account.collecting);
        let options = self.options();
        if let Some(max_age) = options.max_age {
            let max_age = u64::try_from(max_age.as_millis()).unwrap_or(u64::MAX);
            let now = self.clock.now();
            for (last_used, key) in self.idle_tasks() {
                if now.saturating_sub(last_used) <= max_age {
                    break;
                }
                self.evict(&key, EvictReason::Age);
            }
        }
        self.refresh_limit();
        self.evict_to_low(&options);
    }
}
