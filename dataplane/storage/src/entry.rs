//! A task as the store keeps it in memory, and its open files.
//!
//! Invariants: `header` is what the newest slot on the medium says (it changes only after the slot
//! was written). `epoch` is above `header.durable_epoch`; writers hold its read side from before
//! their data to after their record, so a checkpoint, which takes the write side, knows that every
//! record of the older epoch is complete before it synchronises.

use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, Weak};

use dragonfly_proto::id::ContentKey;

use crate::bitmap::Bitmap;
use crate::error::{ErrorKind, Result, StorageError};
use crate::format::{Header, RECORD};
use crate::lock;
use crate::media::{Media, MediaFile};
use crate::names::Part;
use dragonfly_proto::geometry::Geometry;

/// Two writers of one block meet on one of these; two of different blocks rarely do.
const STRIPES: usize = 64;
/// How exactly the last use is recorded, milliseconds.
const AGE_PRECISION_MS: u64 = 60_000;

#[derive(Debug)]
pub(crate) struct Files {
    pub(crate) data: Arc<dyn MediaFile>,
    pub(crate) index: Arc<dyn MediaFile>,
    pub(crate) reader: OnceLock<Arc<File>>,
    /// Blocks that were written, or compared with their hash, since somebody has the task open.
    pub(crate) checked: Bitmap,
    stripes: [Mutex<()>; STRIPES],
}

impl Files {
    pub(crate) fn new(data: Arc<dyn MediaFile>, index: Arc<dyn MediaFile>) -> Self {
        Self {
            data,
            index,
            reader: OnceLock::new(),
            checked: Bitmap::default(),
            stripes: std::array::from_fn(|_| Mutex::new(())),
        }
    }

    pub(crate) fn stripe(&self, index: u32) -> &Mutex<()> {
        &self.stripes[index as usize % STRIPES]
    }
}

#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) key: ContentKey,
    /// As the task was opened, and with its length once that is learnt.
    opened: Geometry,
    learnt: OnceLock<Geometry>,
    pub(crate) held: Bitmap,
    /// Bytes accounted to the store's usage.
    pub(crate) bytes: AtomicU64,
    pub(crate) last_used: AtomicU64,
    pub(crate) pinned: AtomicBool,
    pub(crate) deleted: AtomicBool,
    /// The whole content was copied in and accounted; blocks only need their records.
    pub(crate) ingested: AtomicBool,
    /// Something was written since the last checkpoint.
    pub(crate) dirty: AtomicBool,
    pub(crate) handles: AtomicUsize,
    pub(crate) epoch: RwLock<u32>,
    pub(crate) header: Mutex<Header>,
    files: Mutex<Weak<Files>>,
}

impl Entry {
    pub(crate) fn new(header: Header, held: Bitmap, bytes: u64) -> Self {
        Self {
            key: header.key,
            opened: header.geometry,
            learnt: OnceLock::new(),
            held,
            bytes: AtomicU64::new(bytes),
            last_used: AtomicU64::new(header.last_used),
            pinned: AtomicBool::new(header.pinned),
            deleted: AtomicBool::new(false),
            ingested: AtomicBool::new(false),
            dirty: AtomicBool::new(true),
            handles: AtomicUsize::new(0),
            epoch: RwLock::new(header.durable_epoch.saturating_add(1)),
            header: Mutex::new(header),
            files: Mutex::new(Weak::new()),
        }
    }

    pub(crate) fn geometry(&self) -> Geometry {
        *self.learnt.get().unwrap_or(&self.opened)
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.geometry().total_blocks() == Some(self.held.count())
    }

    /// What a block of `len` bytes costs.
    pub(crate) const fn cost(len: u32) -> u64 {
        len as u64 + RECORD as u64
    }

    /// The open files, opened now when nobody has them open.
    pub(crate) fn files(&self, media: &dyn Media) -> Result<Arc<Files>> {
        let mut slot = lock(&self.files);
        if let Some(files) = slot.upgrade() {
            return Ok(files);
        }
        let open = |part: Part| {
            media
                .open(&part.name(&self.key))
                .map_err(|e| StorageError::task_io(&self.key, "open its files", e))
        };
        let files = Arc::new(Files::new(open(Part::Data)?, open(Part::Index)?));
        *slot = Arc::downgrade(&files);
        Ok(files)
    }

    pub(crate) fn adopt_files(&self, files: &Arc<Files>) {
        *lock(&self.files) = Arc::downgrade(files);
    }

    pub(crate) fn check_alive(&self) -> Result<()> {
        if self.deleted.load(Ordering::SeqCst) {
            return Err(StorageError::task(
                ErrorKind::Deleted,
                &self.key,
                "was deleted while in use",
            ));
        }
        Ok(())
    }

    /// Changes the header on the medium, then here. Does nothing when `change` changes nothing.
    pub(crate) fn update_header(
        &self,
        files: &Files,
        change: impl FnOnce(&mut Header),
    ) -> Result<()> {
        let mut current = lock(&self.header);
        self.write_header(&mut current, files, change)
    }

    fn write_header(
        &self,
        current: &mut Header,
        files: &Files,
        change: impl FnOnce(&mut Header),
    ) -> Result<()> {
        let mut next = current.clone();
        change(&mut next);
        if next == *current {
            return Ok(());
        }
        next.sequence += 1;
        files
            .index
            .write_all_at(&next.encode(), next.slot_offset())
            .map_err(|e| StorageError::task_io(&self.key, "write its header", e))?;
        if next.geometry != self.opened {
            // Only a length changes, from unknown to known, once.
            self.learnt.get_or_init(|| next.geometry);
        }
        *current = next;
        Ok(())
    }

    /// Replaces the metadata. Refused once the task is deleted: its name may be another's by then.
    pub(crate) fn replace_meta(&self, media: &dyn Media, encoded: &[u8]) -> Result<()> {
        let header = lock(&self.header);
        self.check_alive()?;
        // Before the first checkpoint a power loss takes the task anyway; do not wait for the disk.
        let durable = header.durable_epoch > 0;
        media
            .replace(&Part::Meta.name(&self.key), encoded, durable)
            .map_err(|e| StorageError::task_io(&self.key, "write its metadata", e))
    }

    /// Whether the recorded last use lags so far behind that a restart would misjudge its age.
    pub(crate) fn age_is_stale(&self) -> bool {
        let recorded = lock(&self.header).last_used;
        self.last_used.load(Ordering::Relaxed).abs_diff(recorded) >= AGE_PRECISION_MS
    }

    /// Records the last use; worth no synchronisation.
    pub(crate) fn record_age(&self, files: &Files) -> Result<()> {
        self.update_header(files, |h| {
            h.last_used = self.last_used.load(Ordering::Relaxed)
        })
    }

    /// Makes everything written so far survive a power loss. Readers and writers go on meanwhile.
    pub(crate) fn checkpoint(
        &self,
        media: &dyn Media,
        files: &Files,
        boot: [u8; 16],
    ) -> Result<()> {
        let (written, complete) = {
            let mut epoch = self.epoch.write().unwrap_or_else(PoisonError::into_inner);
            let written = *epoch;
            *epoch = written.saturating_add(1);
            self.dirty.store(false, Ordering::Release);
            (written, self.is_complete())
        };
        let sync = || {
            let fail = |e| StorageError::task_io(&self.key, "synchronise it", e);
            files.data.sync().map_err(fail)?;
            files.index.sync().map_err(fail)?;
            let mut header = lock(&self.header);
            self.check_alive()?;
            if header.durable_epoch == 0
                && let Ok(meta) = media.open(&Part::Meta.name(&self.key))
            {
                meta.sync().map_err(fail)?;
            }
            self.write_header(&mut header, files, |h| {
                h.durable_epoch = written;
                h.boot = boot;
                // A block may have been discarded in between.
                h.complete = complete && self.is_complete();
                h.last_used = self.last_used.load(Ordering::Relaxed);
            })?;
            files.index.sync().map_err(fail)
        };
        sync().inspect_err(|_| self.dirty.store(true, Ordering::Release))
    }
}
