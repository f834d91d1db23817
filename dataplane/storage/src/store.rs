//! The store: which tasks there are, opening and deleting them.
//!
//! Lock order: shard, then an entry's header, then the medium. The block path takes neither a shard
//! nor a header lock. `account.collecting` comes before any shard lock.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use dragonfly_proto::id::{ContentKey, RequestKey};

use crate::bitmap::Bitmap;
use crate::entry::{Entry, Files};
use crate::error::{ErrorKind, Result, StorageError};
use crate::facts::encode_meta;
use crate::format::Header;
use crate::gc::{Account, Clock};
use crate::lock;
use crate::media::{LockGuard, Media};
use crate::names::{self, Part};
use crate::options::{Evicted, Options, Snapshot, Usage};
use crate::recover;
use crate::requests::Requests;
use crate::task::Task;
use dragonfly_proto::geometry::Geometry;

const SHARDS: usize = 16;
/// What a new task is assumed to need when the volume is full.
const ROOM_FOR_A_TASK: u64 = 1 << 20;

type Shard = HashMap<ContentKey, Arc<Entry>>;

/// A store that is open. Cheap to clone; closed (and unlocked) when the last clone and the last
/// [`Task`] are gone.
#[derive(Debug, Clone)]
pub struct Store {
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) media: Box<dyn Media>,
    pub(crate) boot: [u8; 16],
    pub(crate) account: Account,
    pub(crate) clock: Clock,
    pub(crate) evicted: Mutex<Vec<Evicted>>,
    options: RwLock<Arc<Options>>,
    shards: [Mutex<Shard>; SHARDS],
    requests: Mutex<Requests>,
    trash: AtomicU64,
    set_aside: AtomicUsize,
    // Last, so that the lock outlives every open file.
    _lock: LockGuard,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store")
            .field("media", &self.media)
            .finish_non_exhaustive()
    }
}

impl Store {
    /// Opens a store: takes its lock, reads its index once, cleans up after a crash. `now`:
    /// milliseconds since the epoch of Unix.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] when another process has it open; [`ErrorKind::Invalid`] options;
    /// [`ErrorKind::Io`]. A single unreadable task is no error.
    pub fn open(media: impl Media, options: Options, now: u64) -> Result<Self> {
        options.validate()?;
        let guard = media.lock()?;
        let boot = media.boot_id();
        let found = recover::recover(&media, boot)?;
        let newest = found
            .tasks
            .iter()
            .map(|t| t.last_used.load(Ordering::Relaxed))
            .max();
        let shared = Shared {
            media: Box::new(media),
            boot,
            account: Account::default(),
            clock: Clock::new(now, newest),
            evicted: Mutex::default(),
            options: RwLock::new(Arc::new(options)),
            shards: std::array::from_fn(|_| Mutex::default()),
            requests: Mutex::new(found.requests),
            trash: AtomicU64::new(0),
            set_aside: AtomicUsize::new(found.set_aside),
            _lock: guard,
        };
        for entry in found.tasks {
            let bytes = entry.bytes.load(Ordering::Relaxed);
            shared.account.used.fetch_add(bytes, Ordering::Relaxed);
            shared.shard(&entry.key).insert(entry.key, Arc::new(entry));
        }
        shared.new_chance();
        shared.refresh_limit();
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// Opens a task, creating it when there is none. `meta` is kept when the task is new or has
    /// none. A length that the task did not know is set.
    ///
    /// # Errors
    /// [`ErrorKind::Conflict`] when it exists with another geometry; [`ErrorKind::Invalid`];
    /// [`ErrorKind::DiskFull`] when eviction made no room; [`ErrorKind::Io`].
    pub fn create_or_open(&self, key: ContentKey, geometry: Geometry, meta: &[u8]) -> Result<Task> {
        let encoded = encode_meta(&key, meta)?;
        let attempt = || -> Result<(Task, bool)> {
            let mut shard = self.shared.shard(&key);
            match shard.get(&key) {
                Some(entry) => Ok((self.handle(entry)?, false)),
                None => {
                    let (entry, files) = self.shared.create(key, geometry, &encoded)?;
                    shard.insert(key, Arc::clone(&entry));
                    entry.handles.fetch_add(1, Ordering::SeqCst);
                    Ok((Task::counted(Arc::clone(&self.shared), entry, files), true))
                }
            }
        };
        let (task, new) = match attempt() {
            Err(e) if e.kind() == ErrorKind::DiskFull && self.shared.make_room(ROOM_FOR_A_TASK) => {
                attempt()?
            }
            other => other?,
        };
        if new {
            return Ok(task);
        }
        task.used();
        if task.geometry().block_size() != geometry.block_size() {
            return Err(StorageError::task(
                ErrorKind::Conflict,
                &key,
                format!(
                    "has blocks of {} bytes, not {}",
                    task.geometry().block_size(),
                    geometry.block_size()
                ),
            ));
        }
        if let Some(total) = geometry.total_len() {
            task.set_total_len(total)?;
        }
        if !meta.is_empty() && task.meta().is_ok_and(|have| have.is_empty()) {
            task.set_meta(meta)?;
        }
        Ok(task)
    }

    /// Opens a task that exists.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] when its files cannot be opened.
    pub fn open_task(&self, key: &ContentKey) -> Result<Option<Task>> {
        let task = self.open_unused(key)?;
        if let Some(task) = &task {
            task.used();
        }
        Ok(task)
    }

    /// A task's metadata, read without counting as a use of it.
    ///
    /// # Errors
    /// As [`Task::meta`].
    pub fn peek_meta(&self, key: &ContentKey) -> Result<Option<Vec<u8>>> {
        self.open_unused(key)?.map(|task| task.meta()).transpose()
    }

    /// Opens a task for housekeeping, which is no use of it.
    fn open_unused(&self, key: &ContentKey) -> Result<Option<Task>> {
        let shard = self.shared.shard(key);
        shard.get(key).map(|entry| self.handle(entry)).transpose()
    }

    /// Opens a task under the lock of its shard, so that eviction sees the new handle.
    fn handle(&self, entry: &Arc<Entry>) -> Result<Task> {
        let files = entry.files(&*self.shared.media)?;
        entry.handles.fetch_add(1, Ordering::SeqCst);
        Ok(Task::counted(
            Arc::clone(&self.shared),
            Arc::clone(entry),
            files,
        ))
    }

    /// All tasks, in no order.
    #[must_use]
    pub fn list(&self) -> Vec<Snapshot> {
        let now = self.shared.clock.now();
        self.shared
            .entries()
            .iter()
            .map(|entry| snapshot(entry, now))
            .collect()
    }

    /// One task without opening it.
    #[must_use]
    pub fn stat(&self, key: &ContentKey) -> Option<Snapshot> {
        let entry = self.shared.shard(key).get(key).cloned()?;
        Some(snapshot(&entry, self.shared.clock.now()))
    }

    /// Deletes a task, pinned or not. It is gone for whoever opens from now on (who may create it
    /// anew at once); living handles go on reading and fail to write with [`ErrorKind::Deleted`],
    /// and the space comes back with the last of them. Returns whether there was one.
    ///
    /// # Errors
    /// [`ErrorKind::Io`]: the task is then still there.
    pub fn delete(&self, key: &ContentKey) -> Result<bool> {
        Ok(self.shared.remove(key, |_| true)?.is_some())
    }

    /// The same, but only what this is a handle of: not what took its place.
    ///
    /// # Errors
    /// As [`Store::delete`].
    pub fn delete_this(&self, task: &Task) -> Result<bool> {
        let is_it = |entry: &Entry| std::ptr::eq(entry, &*task.entry);
        Ok(self.shared.remove(&task.key(), is_it)?.is_some())
    }

    /// Exempts a task from eviction, over restarts too. Returns whether there is one.
    ///
    /// # Errors
    /// [`ErrorKind::Io`].
    pub fn pin(&self, key: &ContentKey) -> Result<bool> {
        self.set_pinned(key, true)
    }

    /// Undoes [`Store::pin`]. Returns whether there is such a task.
    ///
    /// # Errors
    /// [`ErrorKind::Io`].
    pub fn unpin(&self, key: &ContentKey) -> Result<bool> {
        self.set_pinned(key, false)
    }

    fn set_pinned(&self, key: &ContentKey, pinned: bool) -> Result<bool> {
        let Some(task) = self.open_unused(key)? else {
            return Ok(false);
        };
        task.set_pinned(pinned)?;
        self.shared.new_chance();
        Ok(true)
    }

    /// How full the store is. Asks the volume.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let limit = self.shared.refresh_limit();
        let bytes = self.shared.account.used.load(Ordering::Acquire);
        Usage {
            bytes,
            tasks: self.shared.shards.iter().map(|s| lock(s).len()).sum(),
            quota: self.shared.options().quota_bytes,
            free: limit.saturating_sub(bytes),
            set_aside: self.shared.set_aside.load(Ordering::Relaxed),
        }
    }

    /// The limits in force.
    #[must_use]
    pub fn options(&self) -> Options {
        (*self.shared.options()).clone()
    }

    /// Changes the limits; a lower quota is enforced by the next write or collection.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`]: the old ones stay in force.
    pub fn set_options(&self, options: Options) -> Result<()> {
        options.validate()?;
        *self
            .shared
            .options
            .write()
            .unwrap_or_else(PoisonError::into_inner) = Arc::new(options);
        self.shared.refresh_limit();
        self.shared.new_chance();
        Ok(())
    }

    /// Evicts what is too old, and least recently used tasks while usage is over the high
    /// watermark. `now`: milliseconds since the epoch of Unix. Call it every minute or so: it is also
    /// what moves the store's clock. Returns all evictions since they were last asked for, those
    /// that writes made included.
    pub fn collect_garbage(&self, now: u64) -> Vec<Evicted> {
        self.shared.collect(now);
        self.take_evicted()
    }

    /// The evictions since they were last asked for.
    pub fn take_evicted(&self) -> Vec<Evicted> {
        std::mem::take(&mut *lock(&self.shared.evicted))
    }

    /// Makes everything written so far survive a power loss. A kill of the process is survived
    /// without it. Call it now and then (30 s) on a thread that may wait for the disk, and before
    /// a planned shutdown; blocks written since are hashed again after a power loss.
    ///
    /// # Errors
    /// The first of the medium; the other tasks are synchronised all the same.
    pub fn checkpoint(&self) -> Result<()> {
        let shared = &*self.shared;
        let mut first = Ok(());
        for entry in shared.entries() {
            let dirty = entry.dirty.load(Ordering::Acquire);
            if !dirty && !entry.age_is_stale() {
                continue;
            }
            let Some(task) = self.open_unused(&entry.key).transpose() else {
                continue;
            };
            let result = task.and_then(|t| {
                if dirty {
                    t.checkpoint()
                } else {
                    t.record_age()
                }
            });
            match result {
                Err(e) if e.kind() != ErrorKind::Deleted && first.is_ok() => first = Err(e),
                _ => {}
            }
        }
        let fail = |e| {
            StorageError::io(
                format_args!("store {}", shared.media.describe()),
                "synchronise",
                e,
            )
        };
        let log = lock(&shared.requests).log();
        let rest = log
            .sync()
            .and_then(|()| shared.media.sync_names())
            .map_err(fail);
        first.and(rest)
    }

    /// Remembers over restarts what a request resolved to, at `resolved_at` (milliseconds since the
    /// epoch of Unix). A bounded number is kept, the latest.
    ///
    /// # Errors
    /// [`ErrorKind::DiskFull`], [`ErrorKind::Io`]: it is then remembered until the restart only.
    pub fn remember_request(
        &self,
        request: RequestKey,
        content: ContentKey,
        resolved_at: u64,
    ) -> Result<()> {
        lock(&self.shared.requests).set(&*self.shared.media, request, Some(content), resolved_at)
    }

    /// What a request resolved to, and when.
    #[must_use]
    pub fn lookup_request(&self, request: &RequestKey) -> Option<(ContentKey, u64)> {
        lock(&self.shared.requests).lookup(request)
    }

    /// Forgets what a request resolved to.
    ///
    /// # Errors
    /// [`ErrorKind::DiskFull`], [`ErrorKind::Io`]: it may then come back with a restart.
    pub fn forget_request(&self, request: &RequestKey) -> Result<()> {
        lock(&self.shared.requests).set(&*self.shared.media, *request, None, 0)
    }
}

fn snapshot(entry: &Entry, now: u64) -> Snapshot {
    Snapshot {
        key: entry.key,
        geometry: entry.geometry(),
        held_blocks: entry.held.count(),
        bytes: entry.bytes.load(Ordering::Relaxed),
        complete: entry.is_complete(),
        verified: lock(&entry.header).verified.clone(),
        pinned: entry.pinned.load(Ordering::Relaxed),
        handles: entry.handles.load(Ordering::Relaxed),
        idle: Duration::from_millis(now.saturating_sub(entry.last_used.load(Ordering::Relaxed))),
    }
}

impl Shared {
    pub(crate) fn options(&self) -> Arc<Options> {
        Arc::clone(&self.options.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn shard(&self, key: &ContentKey) -> MutexGuard<'_, Shard> {
        lock(&self.shards[usize::from(key.0[0]) % SHARDS])
    }

    fn entries(&self) -> Vec<Arc<Entry>> {
        self.shards
            .iter()
            .flat_map(|s| lock(s).values().cloned().collect::<Vec<_>>())
            .collect()
    }

    /// Tasks that may be evicted, least recently used first (equal ages: by key).
    pub(crate) fn idle_tasks(&self) -> Vec<(u64, ContentKey)> {
        let mut idle = Vec::new();
        for shard in &self.shards {
            idle.extend(
                lock(shard)
                    .values()
                    .filter(|e| is_idle(e))
                    .map(|e| (e.last_used.load(Ordering::Relaxed), e.key)),
            );
        }
        idle.sort_unstable();
        idle
    }

    /// Creates the files of a task, the index last: with it the task exists.
    fn create(
        &self,
        key: ContentKey,
        geometry: Geometry,
        meta: &[u8],
    ) -> Result<(Arc<Entry>, Arc<Files>)> {
        let header = Header {
            sequence: 0,
            key,
            geometry,
            durable_epoch: 0,
            boot: self.boot,
            complete: false,
            pinned: false,
            last_used: self.clock.now(),
            verified: None,
        };
        let create = || {
            let data = self.media.create(&Part::Data.name(&key))?;
            if meta.len() > crate::format::META_HEAD {
                self.media.replace(&Part::Meta.name(&key), meta, false)?;
            }
            let index = self.media.create(&Part::Index.name(&key))?;
            index.write_all_at(&header.encode(), header.slot_offset())?;
            Ok(Arc::new(Files::new(data, index)))
        };
        let files = create().map_err(|e| {
            for part in Part::ALL {
                // Best effort: the next start removes it otherwise.
                let _ = self.media.remove(&part.name(&key));
            }
            StorageError::task_io(&key, "create it", e)
        })?;
        let entry = Arc::new(Entry::new(header, Bitmap::default(), 0));
        entry.adopt_files(&files);
        Ok((entry, files))
    }

    pub(crate) fn remove_if_idle(&self, key: &ContentKey) -> Result<Option<u64>> {
        self.remove(key, is_idle)
    }

    /// Deletes a task if `when` says so; returns its bytes.
    fn remove(&self, key: &ContentKey, when: impl Fn(&Entry) -> bool) -> Result<Option<u64>> {
        let number = self.trash.fetch_add(1, Ordering::Relaxed);
        let mut trash = Vec::with_capacity(Part::ALL.len());
        let entry = {
            let mut shard = self.shard(key);
            let Some(entry) = shard.get(key).filter(|e| when(e)).cloned() else {
                return Ok(None);
            };
            let _no_change = lock(&entry.header);
            // Renaming is quick and frees the names for a successor; unlinking a large file is not.
            // The index first: without it the rest is a leftover.
            for part in Part::ALL {
                let (from, to) = (part.name(key), names::trash(number, part));
                match self.media.rename(&from, &to) {
                    Ok(()) => trash.push(to),
                    Err(e) if part == Part::Index && e.kind() != std::io::ErrorKind::NotFound => {
                        return Err(StorageError::task_io(key, "delete it", e));
                    }
                    // Often there are no metadata; the rest is removed by the next start at latest.
                    Err(_) => trash.push(from),
                }
            }
            entry.deleted.store(true, Ordering::SeqCst);
            shard.remove(key);
            // A file that could not be renamed must go before a successor takes its name.
            trash.retain(|name| {
                let renamed = matches!(names::Name::parse(name), names::Name::Leftover);
                if !renamed {
                    let _ = self.media.remove(name);
                }
                renamed
            });
            Arc::clone(&entry)
        };
        for name in trash {
            if let Err(e) = self.media.remove(&name) {
                tracing::warn!(task = %key, name, error = %e, "cannot remove a deleted file");
            }
        }
        let bytes = entry.bytes.load(Ordering::Acquire);
        if entry.handles.load(Ordering::SeqCst) == 0 {
            self.forget_bytes(&entry);
        }
        self.new_chance();
        Ok(Some(bytes))
    }
}

fn is_idle(entry: &Entry) -> bool {
    entry.handles.load(Ordering::SeqCst) == 0 && !entry.pinned.load(Ordering::SeqCst)
}
