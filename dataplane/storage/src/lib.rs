//! Where a node keeps content: blocks that arrive in any order, each with the proof that lets it be
//! relayed again after a restart.
//!
//! ```text
//! Store ── shards ── Entry (bitmap, ages, header; always in memory, ~0.5 KiB + 1 bit a block)
//!   │                  └─ Files (descriptors; only while a Task handle lives)
//!   ├─ gc: quota, watermarks, age        └─ Media: DiskMedia | MemoryMedia | a test's wrapper
//!   └─ requests: what a source resolved to
//! ```
//!
//! A *task* is one content ([`ContentKey`](dragonfly_proto::id::ContentKey)), cut into blocks
//! ([`Geometry`]). All calls block; the caller decides on which thread. There is no clock inside:
//! times are passed in, and every [`Task::touch`] or [`Store::collect_garbage`] moves the store's
//! idea of now.
//!
//! # Invariants
//! * A block is written once, visible only when whole, and its data precede its record.
//! * A process that is killed loses only blocks whose `write_block` had not returned; the next start
//!   reads records, not data. After a power loss, records since the last [`Store::checkpoint`]
//!   (known by the kernel's boot id) are checked against their BLAKE3, and only those.
//! * Proofs and hashes stay on the medium and are read on demand.
//! * A task with a living handle is never evicted; deletion lets living handles go on reading.
//! * Nothing read from the medium is believed before its checksum. Data themselves are checked by
//!   whoever receives them, or by [`Task::read_checked`] and [`Task::verify_block`].
//! * Files of an unknown version are set aside under another name, never deleted nor misread.

mod bitmap;
mod entry;
mod error;
mod facts;
#[doc(hidden)]
pub mod format;
mod gc;
mod ingest;
mod media;
mod names;
mod options;
mod recover;
mod repair;
mod requests;
mod store;
mod task;

pub use bitmap::Held;
pub use dragonfly_proto::geometry::{Geometry, MAX_BLOCKS};
pub use error::{ErrorKind, Result, StorageError};
pub use format::{MAX_DIGEST, MAX_META, MAX_PROOF};
pub use media::{DiskMedia, Ingested, LockGuard, Media, MediaFile, MemoryMedia, Space};
pub use options::{EvictReason, Evicted, Options, Snapshot, Usage};
pub use store::Store;
pub use task::{Proof, Task, Written};

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks whatever happened to the thread that held it before: every critical section here leaves
/// its data usable at each point.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
