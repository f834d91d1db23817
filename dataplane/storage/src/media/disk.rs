//! A directory on a file system.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::FlockOperation;

use super::file::Handle;
use super::{LockGuard, Media, MediaFile, Space};
use crate::error::{ErrorKind, Result, StorageError};
use crate::names;

const LOCK: &str = "lock";

/// A directory that one store has for itself. Files are readable by their owner only.
#[derive(Debug)]
pub struct DiskMedia {
    dir: PathBuf,
    temporaries: AtomicU64,
}

impl DiskMedia {
    /// Uses (and creates, mode 0700) a directory.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] when it cannot be created.
    pub fn new(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref().to_owned();
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)
            .map_err(|e| StorageError::io(dir.display(), "create directory", e))?;
        Ok(Self {
            dir,
            temporaries: AtomicU64::new(0),
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn create_new(path: &Path) -> io::Result<File> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
    }

    fn write_temporary(path: &Path, bytes: &[u8], durable: bool) -> io::Result<()> {
        let mut file = Self::create_new(path)?;
        file.write_all(bytes)?;
        if durable { file.sync_data() } else { Ok(()) }
    }
}

impl Media for DiskMedia {
    fn describe(&self) -> String {
        self.dir.display().to_string()
    }

    fn lock(&self) -> Result<LockGuard> {
        let path = self.path(LOCK);
        let fail = |what: &str, e: io::Error| StorageError::io(path.display(), what, e);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|e| fail("open", e))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut holder = String::new();
                // The note is for people; a holder that could not write it is still the holder.
                let _ = file.take(64).read_to_string(&mut holder);
                let holder = match holder.trim() {
                    "" => "another process".to_owned(),
                    pid => format!("process {pid}"),
                };
                return Err(StorageError::new(
                    ErrorKind::Busy,
                    format_args!("store {}", self.dir.display()),
                    format!("is in use by {holder}"),
                ));
            }
            Err(e) => return Err(fail("lock", e.into())),
        }
        // On a full disk the lock holds all the same, only nameless.
        let _ = file
            .set_len(0)
            .and_then(|()| writeln!(file, "{}", std::process::id()));
        Ok(Box::new(file))
    }

    fn boot_id(&self) -> [u8; 16] {
        let mut id = [0; 16];
        if let Ok(text) = fs::read_to_string("/proc/sys/kernel/random/boot_id") {
            id.copy_from_slice(&blake3::hash(text.trim().as_bytes()).as_bytes()[..16]);
        }
        id
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            if entry.file_type()?.is_file()
                && let Ok(name) = entry.file_name().into_string()
                && name != LOCK
            {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn MediaFile>> {
        let path = self.path(name);
        let file = match Self::create_new(&path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                fs::remove_file(&path)?;
                Self::create_new(&path)?
            }
            other => other?,
        };
        Ok(Arc::new(Handle::disk(file)))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn MediaFile>> {
        let path = self.path(name);
        let open = || OpenOptions::new().read(true).write(true).open(&path);
        let file = match open() {
            // Read-only since a client shares it: ours all the same.
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                let shared = fs::metadata(&path)?.permissions();
                let mode = shared.mode() | 0o600;
                fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
                let file = open();
                fs::set_permissions(&path, shared)?;
                file?
            }
            file => file?,
        };
        Ok(Arc::new(Handle::disk(file)))
    }

    fn replace(&self, name: &str, bytes: &[u8], durable: bool) -> io::Result<()> {
        let number = self.temporaries.fetch_add(1, Ordering::Relaxed);
        let temporary = self.path(&names::temporary(number));
        let result = Self::write_temporary(&temporary, bytes, durable)
            .and_then(|()| fs::rename(&temporary, self.path(name)));
        if result.is_err() {
            // Best effort: the next start removes it otherwise.
            let _ = fs::remove_file(&temporary);
        }
        result
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path(from), self.path(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path(name))
    }

    fn sync_names(&self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }

    fn space(&self) -> io::Result<Option<Space>> {
        let stat = rustix::fs::statvfs(&self.dir)?;
        Ok(Some(Space {
            total: stat.f_blocks.saturating_mul(stat.f_frsize),
            available: stat.f_bavail.saturating_mul(stat.f_frsize),
        }))
    }
}
