//! Anonymous memory (memfd): for nodes without a disk to spare. Has real descriptors, so `sendfile`
//! and the passing of descriptors to clients work as on disk; finished content is sealed first.

use std::collections::HashMap;
use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::MemfdFlags;

use super::file::Handle;
use super::{LockGuard, Media, MediaFile, Space};
use crate::error::{ErrorKind, Result, StorageError};

/// Files in memory; gone with the last clone. The store's quota is what bounds it.
#[derive(Debug, Clone, Default)]
pub struct MemoryMedia {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    files: Mutex<HashMap<String, Arc<dyn MediaFile>>>,
    locked: AtomicBool,
}

struct Guard(Arc<Shared>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.locked.store(false, Ordering::Release);
    }
}

impl MemoryMedia {
    /// An empty medium.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn files(&self) -> MutexGuard<'_, HashMap<String, Arc<dyn MediaFile>>> {
        self.shared
            .files
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn anonymous() -> io::Result<Arc<dyn MediaFile>> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = File::from(rustix::fs::memfd_create("dragonfly", flags)?);
        // A new memfd may be opened for writing by everyone who gets a read-only descriptor of it.
        file.set_permissions(Permissions::from_mode(0o600))?;
        Ok(Arc::new(Handle::memory(file)))
    }
}

fn not_found(name: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("no file {name} in memory"))
}

impl Media for MemoryMedia {
    fn describe(&self) -> String {
        "memory".to_owned()
    }

    fn lock(&self) -> Result<LockGuard> {
        if self.shared.locked.swap(true, Ordering::Acquire) {
            return Err(StorageError::new(
                ErrorKind::Busy,
                "store in memory",
                "is in use by this process",
            ));
        }
        Ok(Box::new(Guard(Arc::clone(&self.shared))))
    }

    fn boot_id(&self) -> [u8; 16] {
        // Memory lives exactly as long as what it is asked about.
        [1; 16]
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.files().keys().cloned().collect())
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn MediaFile>> {
        let file = Self::anonymous()?;
        self.files().insert(name.to_owned(), Arc::clone(&file));
        Ok(file)
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn MediaFile>> {
        self.files()
            .get(name)
            .cloned()
            .ok_or_else(|| not_found(name))
    }

    fn replace(&self, name: &str, bytes: &[u8], _durable: bool) -> io::Result<()> {
        let file = Self::anonymous()?;
        file.write_all_at(bytes, 0)?;
        self.files().insert(name.to_owned(), file);
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut files = self.files();
        let file = files.remove(from).ok_or_else(|| not_found(from))?;
        files.insert(to.to_owned(), file);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.files()
            .remove(name)
            .map(drop)
            .ok_or_else(|| not_found(name))
    }

    fn sync_names(&self) -> io::Result<()> {
        Ok(())
    }

    fn space(&self) -> io::Result<Option<Space>> {
        Ok(None)
    }
}
