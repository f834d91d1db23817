//! Builders and a medium that counts, fails and forgets, shared by the tests.
#![allow(
    dead_code,
    unreachable_pub,
    unused_macros,
    missing_docs,
    reason = "each test binary uses its part"
)]

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use dragonfly_proto::id::ContentKey;
use dragonfly_storage::*;

pub const KIB64: u32 = dragonfly_proto::geometry::MIN_BLOCK;
pub const NOW: u64 = 1_790_000_000_000;

pub fn key(n: u64) -> ContentKey {
    ContentKey(*blake3::hash(&n.to_le_bytes()).as_bytes())
}

pub fn geometry(total: u64) -> Geometry {
    Geometry::new(KIB64, Some(total)).unwrap()
}

/// Any content, different for each task.
pub fn content(seed: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new()
        .update(&seed.to_le_bytes())
        .finalize_xof()
        .fill(&mut out);
    out
}

pub fn block(content: &[u8], index: u32) -> &[u8] {
    let at = index as usize * KIB64 as usize;
    &content[at..content.len().min(at + KIB64 as usize)]
}

pub fn proof_of(index: u32) -> Vec<u8> {
    (0..index % 257).map(|i| (i ^ index) as u8).collect()
}

pub fn hash(data: &[u8]) -> [u8; 32] {
    *blake3::hash(data).as_bytes()
}

pub fn put(task: &Task, content: &[u8], index: u32) -> Result<Written> {
    let data = block(content, index);
    task.write_block(index, data, hash(data), &proof_of(index))
}

pub fn put_all(task: &Task, content: &[u8]) {
    for index in 0..task.geometry().total_blocks().unwrap() {
        put(task, content, index).unwrap();
    }
}

/// Asserts that what is held reads back with its hash and proof.
pub fn check_held(task: &Task, content: &[u8]) {
    let mut buf = vec![0; KIB64 as usize];
    for index in task.held().iter() {
        let n = task.read_block(index, &mut buf).unwrap();
        assert!(buf[..n] == *block(content, index), "block {index} differs");
        let proof = task.proof(index).unwrap().unwrap();
        assert_eq!(proof.hash, hash(block(content, index)));
        assert_eq!(proof.proof, proof_of(index));
    }
}

/// Opens the medium under test again and again: what one store wrote the next one finds.
pub type Open<'a> = &'a dyn Fn(Options) -> Result<Store>;

/// Runs functions of [`Open`] as tests on every medium; for `#[macro_use]`.
macro_rules! suite {
    ($($name:ident),* $(,)?) => {
        mod on_disk {
            $(#[test]
            fn $name() {
                let dir = super::dir();
                super::$name(&|options| {
                    super::Store::open(super::DiskMedia::new(dir.path())?, options, super::NOW)
                });
            })*
        }
        mod in_memory {
            $(#[test]
            fn $name() {
                let media = super::MemoryMedia::new();
                super::$name(&|options| super::Store::open(media.clone(), options, super::NOW));
            })*
        }
    };
}

/// No reserve, so that tests do not depend on how full this machine is.
pub fn options() -> Options {
    Options {
        reserve_free_percent: 0,
        ..Options::default()
    }
}

pub fn small(quota: u64) -> Options {
    Options {
        quota_bytes: quota,
        ..options()
    }
}

/// What a [`Faulty`] medium shall do and what it saw.
#[derive(Debug)]
pub struct Faults {
    /// Mutating operations until everything fails, as if the process had been killed. Negative:
    /// never.
    pub crash_in: AtomicI64,
    /// The write at which the crash comes is half done.
    pub tear: AtomicBool,
    pub writes_fail: AtomicU64,
    pub reads_fail: AtomicBool,
    pub data_reads: AtomicU64,
    pub index_bytes_read: AtomicU64,
    pub syncs: AtomicU64,
    pub boot: AtomicU64,
    /// Space left before writes fail with ENOSPC after writing what fits. Negative: endless.
    pub space: AtomicI64,
    /// What the volume is said to be.
    pub volume: Mutex<Option<Space>>,
    /// Remember what unsynchronised writes overwrote, for [`Faults::lose_power`].
    pub journal: AtomicBool,
    overwritten: Mutex<HashMap<(u64, u64), Overwritten>>,
}

/// A sector of a file and what it held before each write since the last synchronisation.
#[derive(Debug)]
struct Overwritten {
    file: Arc<dyn MediaFile>,
    versions: Vec<Vec<u8>>,
}

const SECTOR: u64 = 512;

impl Default for Faults {
    fn default() -> Self {
        Self {
            crash_in: AtomicI64::new(-1),
            tear: AtomicBool::new(false),
            writes_fail: AtomicU64::new(0),
            reads_fail: AtomicBool::new(false),
            data_reads: AtomicU64::new(0),
            index_bytes_read: AtomicU64::new(0),
            syncs: AtomicU64::new(0),
            boot: AtomicU64::new(1),
            space: AtomicI64::new(-1),
            volume: Mutex::default(),
            journal: AtomicBool::new(false),
            overwritten: Mutex::default(),
        }
    }
}

impl Faults {
    /// Every sector written since its file was synchronised comes out in any of its versions, and
    /// the machine starts anew.
    pub fn lose_power(&self, rng: &mut fastrand::Rng) {
        for (&(_, sector), lost) in self.overwritten.lock().unwrap().iter() {
            let survives = rng.usize(..=lost.versions.len());
            if let Some(old) = lost.versions.get(survives) {
                lost.file.write_all_at(old, sector * SECTOR).unwrap();
            }
        }
        self.overwritten.lock().unwrap().clear();
        self.boot.fetch_add(1, Ordering::SeqCst);
    }

    pub fn crashed(&self) -> bool {
        self.crash_in.load(Ordering::SeqCst) == 0
    }

    /// One mutating operation: `Ok(true)` do it, `Ok(false)` do half of it and fail.
    fn mutate(&self) -> io::Result<bool> {
        match self.crash_in.load(Ordering::SeqCst) {
            0 => Err(io::Error::from_raw_os_error(5)),
            n if n < 0 => Ok(true),
            n => {
                self.crash_in.store(n - 1, Ordering::SeqCst);
                match n {
                    1 if self.tear.load(Ordering::SeqCst) => Ok(false),
                    1 => Err(io::Error::from_raw_os_error(5)),
                    _ => Ok(true),
                }
            }
        }
    }

    fn whole(&self) -> io::Result<()> {
        if self.mutate()? {
            Ok(())
        } else {
            Err(io::Error::from_raw_os_error(5))
        }
    }
}

/// Wraps a medium, injects faults and counts.
#[derive(Debug, Clone)]
pub struct Faulty<M> {
    pub inner: M,
    pub faults: Arc<Faults>,
}

impl<M> Faulty<M> {
    pub fn new(inner: M) -> Self {
        Self {
            inner,
            faults: Arc::default(),
        }
    }
}

#[derive(Debug)]
struct FaultyFile {
    inner: Arc<dyn MediaFile>,
    faults: Arc<Faults>,
    is_data: bool,
    id: u64,
}

impl FaultyFile {
    fn remember(&self, len: usize, offset: u64) {
        if !self.faults.journal.load(Ordering::SeqCst) {
            return;
        }
        let mut overwritten = self.faults.overwritten.lock().unwrap();
        for sector in offset / SECTOR..(offset + len as u64).div_ceil(SECTOR) {
            let mut old = vec![0; SECTOR as usize];
            let have = self
                .inner
                .len()
                .unwrap()
                .saturating_sub(sector * SECTOR)
                .min(SECTOR);
            self.inner
                .read_exact_at(&mut old[..have as usize], sector * SECTOR)
                .unwrap();
            overwritten
                .entry((self.id, sector))
                .or_insert_with(|| Overwritten {
                    file: Arc::clone(&self.inner),
                    versions: vec![],
                })
                .versions
                .push(old);
        }
    }
}

impl<M: Media> Faulty<M> {
    fn wrap(&self, name: &str, inner: Arc<dyn MediaFile>) -> Arc<dyn MediaFile> {
        let is_data = name.ends_with(".data");
        // The file in memory is one object however often it is opened.
        let id = Arc::as_ptr(&inner).cast::<()>() as u64;
        Arc::new(FaultyFile {
            inner,
            faults: Arc::clone(&self.faults),
            is_data,
            id,
        })
    }
}

impl<M: Media> Media for Faulty<M> {
    fn describe(&self) -> String {
        self.inner.describe()
    }
    fn lock(&self) -> Result<LockGuard> {
        self.inner.lock()
    }
    fn boot_id(&self) -> [u8; 16] {
        [self.faults.boot.load(Ordering::SeqCst) as u8; 16]
    }
    fn list(&self) -> io::Result<Vec<String>> {
        self.inner.list()
    }
    fn create(&self, name: &str) -> io::Result<Arc<dyn MediaFile>> {
        self.faults.whole()?;
        Ok(self.wrap(name, self.inner.create(name)?))
    }
    fn open(&self, name: &str) -> io::Result<Arc<dyn MediaFile>> {
        Ok(self.wrap(name, self.inner.open(name)?))
    }
    fn replace(&self, name: &str, bytes: &[u8], durable: bool) -> io::Result<()> {
        self.faults.whole()?;
        if self.faults.space.load(Ordering::SeqCst) == 0 {
            return Err(io::Error::from_raw_os_error(28));
        }
        self.inner.replace(name, bytes, durable)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.faults.whole()?;
        self.inner.rename(from, to)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.faults.whole()?;
        let len = self.inner.open(name)?.len()?;
        self.inner.remove(name)?;
        if self.faults.space.load(Ordering::SeqCst) >= 0 {
            self.faults.space.fetch_add(len as i64, Ordering::SeqCst);
        }
        Ok(())
    }
    fn sync_names(&self) -> io::Result<()> {
        self.faults.whole()?;
        self.inner.sync_names()
    }
    fn space(&self) -> io::Result<Option<Space>> {
        let volume = *self.faults.volume.lock().unwrap();
        volume.map_or_else(|| self.inner.space(), |space| Ok(Some(space)))
    }
}

impl MediaFile for FaultyFile {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        if self.faults.reads_fail.load(Ordering::SeqCst) {
            return Err(io::Error::from_raw_os_error(5));
        }
        if self.is_data {
            self.faults.data_reads.fetch_add(1, Ordering::SeqCst);
        } else {
            self.faults
                .index_bytes_read
                .fetch_add(buf.len() as u64, Ordering::SeqCst);
        }
        self.inner.read_exact_at(buf, offset)
    }
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.remember(buf.len(), offset);
        if !self.faults.mutate()? {
            self.inner.write_all_at(&buf[..buf.len() / 2], offset)?;
            return Err(io::Error::from_raw_os_error(5));
        }
        if self.faults.writes_fail.load(Ordering::SeqCst) > 0 {
            self.faults.writes_fail.fetch_sub(1, Ordering::SeqCst);
            self.inner.write_all_at(&buf[..buf.len() / 3], offset)?;
            return Err(io::Error::from_raw_os_error(5));
        }
        let space = self.faults.space.load(Ordering::SeqCst);
        if space >= 0 {
            let fits = buf.len().min(space as usize);
            self.faults.space.fetch_sub(fits as i64, Ordering::SeqCst);
            self.inner.write_all_at(&buf[..fits], offset)?;
            if fits < buf.len() {
                return Err(io::Error::from_raw_os_error(28));
            }
            return Ok(());
        }
        self.inner.write_all_at(buf, offset)
    }
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }
    fn discard(&self) -> io::Result<()> {
        self.faults.whole()?;
        self.inner.discard()
    }
    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        self.inner.next_data(offset)
    }
    fn sync(&self) -> io::Result<()> {
        self.faults.whole()?;
        self.faults.syncs.fetch_add(1, Ordering::SeqCst);
        self.faults
            .overwritten
            .lock()
            .unwrap()
            .retain(|(id, _), _| *id != self.id);
        self.inner.sync()
    }
    fn reader(&self, seal: bool) -> io::Result<File> {
        self.inner.reader(seal)
    }
    fn ingest(&self, from: &File, len: u64) -> io::Result<Ingested> {
        self.faults.whole()?;
        self.inner.ingest(from, len)
    }
}

/// A directory that goes with the test.
pub fn dir() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// A medium in memory that can be made to fail.
pub fn faulty() -> Faulty<MemoryMedia> {
    Faulty::new(MemoryMedia::new())
}

pub fn reopen(media: &Faulty<MemoryMedia>) -> Store {
    Store::open(media.clone(), options(), NOW).unwrap()
}
