//! What policy says about the store, and what the store says about itself.

use std::time::Duration;

use dragonfly_proto::id::ContentKey;

use crate::error::{ErrorKind, Result, StorageError};
use dragonfly_proto::geometry::Geometry;

/// Limits of a store; may be changed while it is open ([`crate::Store::set_options`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Most bytes that tasks may take (blocks and their records). `u64::MAX`: only the volume limits.
    pub quota_bytes: u64,
    /// A write that takes usage over this share of the quota starts eviction.
    pub high_watermark_percent: u8,
    /// Eviction goes on until usage is at or below this share of the quota.
    pub low_watermark_percent: u8,
    /// Tasks not used for longer go at the next collection. `None`: age alone evicts nothing.
    pub max_age: Option<Duration>,
    /// Share of the volume that is left free for others. Keep it above the kubelet's eviction
    /// threshold (its default is 10 % for nodefs, 15 % for imagefs), or a full cache evicts pods.
    pub reserve_free_percent: u8,
    /// Most by which the clock moves between two calls that pass the time; what is beyond is a jump
    /// of the clock (or a sleep) and ages nothing.
    pub max_clock_step: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            quota_bytes: u64::MAX,
            high_watermark_percent: 95,
            low_watermark_percent: 85,
            max_age: None,
            reserve_free_percent: 20,
            max_clock_step: Duration::from_secs(3600),
        }
    }
}

impl Options {
    pub(crate) fn validate(&self) -> Result<()> {
        let wrong = |detail: &str| {
            Err(StorageError::new(
                ErrorKind::Invalid,
                "storage options",
                detail,
            ))
        };
        if self.high_watermark_percent > 100 || self.high_watermark_percent == 0 {
            return wrong("the high watermark is not within 1..=100 percent");
        }
        if self.low_watermark_percent > self.high_watermark_percent {
            return wrong("the low watermark is above the high one");
        }
        if self.reserve_free_percent > 99 {
            return wrong("the reserve of free space is above 99 percent");
        }
        Ok(())
    }
}

/// How full the store is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Bytes that tasks take, deleted ones that are still in use included.
    pub bytes: u64,
    /// Tasks that can be opened.
    pub tasks: usize,
    /// The configured quota.
    pub quota: u64,
    /// Bytes that can still be written before something must be evicted or refused.
    pub free: u64,
    /// Files that were set aside because a newer or foreign release wrote them.
    pub set_aside: usize,
}

/// What is known of a task without opening it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Which content.
    pub key: ContentKey,
    /// How it is cut.
    pub geometry: Geometry,
    /// Blocks held.
    pub held_blocks: u32,
    /// Bytes it takes (blocks and their records).
    pub bytes: u64,
    /// Whether the length is known and every block is held.
    pub complete: bool,
    /// The digest it was verified against.
    pub verified: Option<String>,
    /// Whether it is exempt from eviction.
    pub pinned: bool,
    /// Living handles; a task with any is not evicted.
    pub handles: usize,
    /// How long nobody used it, as far as the clock that the caller passes is to be believed.
    pub idle: Duration,
}

/// Why a task was evicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EvictReason {
    /// Not used for longer than [`Options::max_age`].
    Age,
    /// Least recently used while usage was over the watermark or the volume was short of space.
    Space,
}

/// A task that eviction removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Evicted {
    /// Which content.
    pub key: ContentKey,
    /// Bytes that came back.
    pub bytes: u64,
    /// Why.
    pub reason: EvictReason,
}
