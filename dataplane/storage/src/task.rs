//! A handle on one task: writing and reading its blocks. What is rarer is in `ingest` and `repair`.

use std::fs::File;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use dragonfly_proto::id::ContentKey;

use crate::bitmap::Held;
use crate::entry::{Entry, Files};
use crate::error::{ErrorKind, Result, StorageError};
use crate::format::{self, MAX_PROOF, RECORD, Record};
use crate::lock;
use crate::store::Shared;
use dragonfly_proto::geometry::Geometry;

/// What became of a written block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// It was stored by this call.
    New,
    /// It was held already; nothing was written.
    AlreadyHeld,
}

/// What is kept with a held block so that it can be relayed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// BLAKE3 of the block.
    pub hash: [u8; 32],
    /// The opaque bytes given when it was written.
    pub proof: Vec<u8>,
}

/// A counted handle: while any lives, the task is not evicted. Cheap to clone.
#[derive(Debug)]
pub struct Task {
    pub(crate) store: Arc<Shared>,
    pub(crate) entry: Arc<Entry>,
    pub(crate) files: Arc<Files>,
}

impl Clone for Task {
    fn clone(&self) -> Self {
        self.entry.handles.fetch_add(1, Ordering::SeqCst);
        Self {
            store: Arc::clone(&self.store),
            entry: Arc::clone(&self.entry),
            files: Arc::clone(&self.files),
        }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        if self.entry.handles.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.store.released(&self.entry);
        }
    }
}

impl Task {
    /// Takes over one count that the caller already added to `entry.handles`.
    pub(crate) fn counted(store: Arc<Shared>, entry: Arc<Entry>, files: Arc<Files>) -> Self {
        Self {
            store,
            entry,
            files,
        }
    }

    /// Which content.
    #[must_use]
    pub fn key(&self) -> ContentKey {
        self.entry.key
    }

    /// How it is cut; the length appears once it was set.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        self.entry.geometry()
    }

    /// The blocks held now.
    #[must_use]
    pub fn held(&self) -> Held {
        self.entry.held.snapshot()
    }

    /// Whether a block is held now.
    #[must_use]
    pub fn is_held(&self, index: u32) -> bool {
        self.entry.held.contains(index)
    }

    /// Whether all blocks of a range are held now.
    #[must_use]
    pub fn is_held_all(&self, range: std::ops::Range<u32>) -> bool {
        self.entry.held.contains_all(range)
    }

    /// How many blocks are held now.
    #[must_use]
    pub fn held_count(&self) -> u32 {
        self.entry.held.count()
    }

    /// Whether the length is known and every block is held.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.entry.is_complete()
    }

    /// Whether both are handles of one task, and not of one and its successor.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.entry, &other.entry)
    }

    /// Whether the task was deleted while this handle lives.
    #[must_use]
    pub fn is_deleted(&self) -> bool {
        self.entry.deleted.load(Ordering::SeqCst)
    }

    /// Stores a block with its BLAKE3 (the caller computed it while receiving; it is not computed
    /// again) and its proof. When it returns, the block is visible to readers and survives a kill
    /// of the process. Of several writers of one block one stores it, the others wait for it.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for an index, length or proof outside the bounds (while the length is
    /// unknown only full blocks are taken: set the length, then write the short last block);
    /// [`ErrorKind::QuotaExceeded`], [`ErrorKind::DiskFull`] when eviction made no room;
    /// [`ErrorKind::Deleted`]; [`ErrorKind::Io`]. The task stays usable for what it holds.
    pub fn write_block(
        &self,
        index: u32,
        data: &[u8],
        hash: [u8; 32],
        proof: &[u8],
    ) -> Result<Written> {
        let expected = self.expected_len(index)?;
        if data.len() != expected as usize {
            return Err(self.fail(
                ErrorKind::Invalid,
                format!(
                    "block {index} has {} bytes where {expected} belong",
                    data.len()
                ),
            ));
        }
        self.put_block(index, expected, Some(data), &hash, proof)
    }

    pub(crate) fn put_block(
        &self,
        index: u32,
        len: u32,
        data: Option<&[u8]>,
        hash: &[u8; 32],
        proof: &[u8],
    ) -> Result<Written> {
        if proof.len() > MAX_PROOF {
            return Err(self.fail(
                ErrorKind::Invalid,
                format!(
                    "the proof of block {index} has {} bytes, over {MAX_PROOF}",
                    proof.len()
                ),
            ));
        }
        let entry = &*self.entry;
        entry.check_alive()?;
        if entry.held.contains(index) {
            return Ok(Written::AlreadyHeld);
        }
        let _alone = lock(self.files.stripe(index));
        if entry.held.contains(index) {
            return Ok(Written::AlreadyHeld);
        }
        let cost = if data.is_some() {
            Entry::cost(len)
        } else {
            RECORD as u64
        };
        self.store.reserve(entry, cost)?;
        let write = || self.write_once(index, len, data, hash, proof);
        let result = write().or_else(|e| match e.kind() {
            // The volume is fuller than its quota knows (others write there too): make room once.
            ErrorKind::DiskFull if self.store.make_room(cost) => write(),
            _ => Err(e),
        });
        if result.is_err() {
            self.store.unreserve(entry, cost);
        }
        result.map(|()| Written::New)
    }

    fn write_once(
        &self,
        index: u32,
        len: u32,
        data: Option<&[u8]>,
        hash: &[u8; 32],
        proof: &[u8],
    ) -> Result<()> {
        let entry = &*self.entry;
        let epoch = entry.epoch.read().unwrap_or_else(PoisonError::into_inner);
        if entry.geometry().block_len(index) != Some(len) {
            // The length was set after the caller's check; from here on it cannot change.
            return Err(self.fail(
                ErrorKind::Conflict,
                format!("block {index} is not {len} bytes long"),
            ));
        }
        if let Some(data) = data {
            self.files
                .data
                .write_all_at(data, entry.geometry().offset(index))
                .map_err(|e| self.io("write a block", e))?;
        }
        let record = Record::encode(&entry.key, index, len, *epoch, hash, proof);
        self.files
            .index
            .write_all_at(&record, format::record_offset(index))
            .map_err(|e| self.io("write the record of a block", e))?;
        entry.dirty.store(true, Ordering::Release);
        self.files.checked.insert(index);
        entry.held.insert(index);
        self.store.used_now(entry);
        Ok(())
    }

    /// Reads a held block into the front of `buf` and returns its length.
    ///
    /// # Errors
    /// [`ErrorKind::NotHeld`]; [`ErrorKind::Invalid`] when `buf` is too short; [`ErrorKind::Io`],
    /// [`ErrorKind::Corrupt`] of the medium.
    pub fn read_block(&self, index: u32, buf: &mut [u8]) -> Result<usize> {
        self.check_held(index)?;
        let len = self.expected_len(index)? as usize;
        let have = buf.len();
        let buf = buf.get_mut(..len).ok_or_else(|| {
            self.fail(
                ErrorKind::Invalid,
                format!("block {index} of {len} bytes into {have}"),
            )
        })?;
        self.read_data(self.geometry().offset(index), buf)?;
        Ok(len)
    }

    pub(crate) fn read_data(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.files
            .data
            .read_exact_at(buf, offset)
            .map_err(|e| self.io("read", e))?;
        self.store.used_now(&self.entry);
        Ok(())
    }

    /// Hash and proof of a block, read from the medium; `None` when it is not held.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] when the record does not match its checksum any more (discard the
    /// block then); [`ErrorKind::Io`].
    pub fn proof(&self, index: u32) -> Result<Option<Proof>> {
        if !self.is_held(index) {
            return Ok(None);
        }
        let mut bytes = [0; RECORD];
        self.files
            .index
            .read_exact_at(&mut bytes, format::record_offset(index))
            .map_err(|e| self.io("read the record of a block", e))?;
        let record =
            Record::decode(&self.entry.key, self.geometry(), index, &bytes).ok_or_else(|| {
                self.fail(
                    ErrorKind::Corrupt,
                    format!("the record of block {index} is damaged"),
                )
            })?;
        Ok(Some(Proof {
            hash: record.hash,
            proof: record.proof,
        }))
    }

    /// Sets the length once it is known. Setting the same length again is fine.
    ///
    /// # Errors
    /// [`ErrorKind::Conflict`] with another length or with blocks already held;
    /// [`ErrorKind::Invalid`] beyond the bounds; [`ErrorKind::Io`].
    pub fn set_total_len(&self, len: u64) -> Result<()> {
        let entry = &*self.entry;
        entry.check_alive()?;
        let wanted = self
            .geometry()
            .with_total(len)
            .map_err(|e| self.fail(ErrorKind::Invalid, e.to_string()))?;
        // Writers take the length and mark their block under the read side of the epoch.
        let _no_writer = entry.epoch.write().unwrap_or_else(PoisonError::into_inner);
        match self.geometry().total_len() {
            Some(have) if have == len => return Ok(()),
            Some(have) => {
                return Err(self.fail(ErrorKind::Conflict, format!("has {have} bytes, not {len}")));
            }
            None => {}
        }
        if let Some(last) = self.held().iter().last()
            && wanted.block_len(last) != Some(wanted.block_size())
        {
            return Err(self.fail(
                ErrorKind::Conflict,
                format!("holds block {last} in full, so it cannot have {len} bytes"),
            ));
        }
        entry.dirty.store(true, Ordering::Release);
        entry.update_header(&self.files, |h| h.geometry = wanted)
    }

    /// A read-only descriptor of the complete content, of its own (own offset), for handing to a
    /// client. Content in memory is sealed first.
    ///
    /// # Errors
    /// [`ErrorKind::NotHeld`] while incomplete; [`ErrorKind::Io`].
    pub fn file(&self) -> Result<File> {
        if !self.is_complete() {
            return Err(self.fail(
                ErrorKind::NotHeld,
                "is not complete, so its file is not given away",
            ));
        }
        self.store.used_now(&self.entry);
        self.files
            .data
            .reader(true)
            .map_err(|e| self.io("open a reader", e))
    }

    /// Like [`Task::file`] while blocks still come: only what is held may be read from it. `None`
    /// where the medium could not keep a client from writing to it.
    ///
    /// # Errors
    /// [`ErrorKind::Io`].
    pub fn growing_file(&self) -> Result<Option<File>> {
        self.store.used_now(&self.entry);
        self.files
            .data
            .growing_reader()
            .map_err(|e| self.io("open a reader", e))
    }

    /// A shared read-only descriptor for `sendfile` of held blocks inside this process, complete or
    /// not. Its offset is shared: always pass explicit ones. Never hand it to a client.
    ///
    /// # Errors
    /// [`ErrorKind::Io`].
    pub fn sendfile_source(&self) -> Result<Arc<File>> {
        self.store.used_now(&self.entry);
        if let Some(file) = self.files.reader.get() {
            return Ok(Arc::clone(file));
        }
        let file = Arc::new(
            self.files
                .data
                .reader(false)
                .map_err(|e| self.io("open a reader", e))?,
        );
        Ok(Arc::clone(self.files.reader.get_or_init(|| file)))
    }

    /// Says that the task was used at `now` (milliseconds since the epoch of Unix) by something
    /// that this crate does not see, such as `sendfile` to a peer. Reads and writes through the
    /// handle count by themselves, at the time last passed to the store.
    pub fn touch(&self, now: u64) {
        self.store.advance_clock(now);
        self.store.used_now(&self.entry);
    }

    /// Makes what was written so far survive a power loss (see [`crate::Store::checkpoint`]).
    ///
    /// # Errors
    /// [`ErrorKind::Deleted`], [`ErrorKind::Io`]; a kill of the process is survived regardless.
    pub fn checkpoint(&self) -> Result<()> {
        self.entry
            .checkpoint(&*self.store.media, &self.files, self.store.boot)
    }

    pub(crate) fn used(&self) {
        self.store.used_now(&self.entry);
    }

    pub(crate) fn record_age(&self) -> Result<()> {
        self.entry.record_age(&self.files)
    }

    pub(crate) fn set_pinned(&self, pinned: bool) -> Result<()> {
        self.entry.check_alive()?;
        self.entry
            .update_header(&self.files, |h| h.pinned = pinned)?;
        self.entry.pinned.store(pinned, Ordering::SeqCst);
        Ok(())
    }

    pub(crate) fn expected_len(&self, index: u32) -> Result<u32> {
        self.geometry().block_len(index).ok_or_else(|| {
            self.fail(
                ErrorKind::Invalid,
                format!("block {index} is beyond its end"),
            )
        })
    }

    pub(crate) fn check_held(&self, index: u32) -> Result<()> {
        if self.is_held(index) {
            return Ok(());
        }
        Err(self.fail(ErrorKind::NotHeld, format!("block {index} is not held")))
    }

    pub(crate) fn fail(&self, kind: ErrorKind, detail: impl Into<String>) -> StorageError {
        StorageError::task(kind, &self.entry.key, detail)
    }

    pub(crate) fn io(&self, what: &str, e: std::io::Error) -> StorageError {
        // A sealed file refuses writes this way; only a discarded block can lead there.
        if e.kind() == std::io::ErrorKind::PermissionDenied {
            return self.fail(
                ErrorKind::Conflict,
                "was sealed when its file was given away",
            );
        }
        StorageError::task_io(&self.entry.key, what, e)
    }
}
