//! Where the bytes are: a flat set of named files. [`DiskMedia`] is a directory, [`MemoryMedia`]
//! anonymous memory; both must pass one behaviour suite, and tests wrap them to inject faults.
//!
//! What the store relies on:
//! * a file that is removed or renamed stays readable and writable through what was opened before;
//! * a write that returned is seen by every later read, also by a process started after this one was
//!   killed (not after the kernel died: that is what [`MediaFile::sync`] is for);
//! * `replace` and `rename` are atomic: a reader sees all of the old or all of the new.

mod disk;
mod file;
mod memory;

use std::any::Any;
use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::sync::Arc;

pub use disk::DiskMedia;
pub use memory::MemoryMedia;

use crate::error::Result;

/// Room on the volume, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Size of the volume.
    pub total: u64,
    /// What an ordinary user may still write.
    pub available: u64,
}

/// How bytes came from another file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ingested {
    /// The file system shares the extents: nothing was copied.
    Reflinked,
    /// The bytes were copied.
    Copied,
}

/// Held as long as the store is open; releases the exclusive lock when dropped.
pub type LockGuard = Box<dyn Any + Send + Sync>;

/// A flat set of named files. Names are plain (no separators) and chosen by the store.
pub trait Media: Debug + Send + Sync + 'static {
    /// What to call it in messages (a path).
    fn describe(&self) -> String;

    /// Takes the exclusive lock.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Busy`], naming the holder where it is known.
    fn lock(&self) -> Result<LockGuard>;

    /// Identity of the run of the machine during which unsynchronised writes stay readable (the
    /// kernel's boot id). All zeros: unknown, nothing unsynchronised is trusted.
    fn boot_id(&self) -> [u8; 16];

    /// Names of all files.
    ///
    /// # Errors
    /// Of the medium.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Creates an empty file for reading and writing; one of that name is unlinked first.
    ///
    /// # Errors
    /// Of the medium.
    fn create(&self, name: &str) -> io::Result<Arc<dyn MediaFile>>;

    /// Opens an existing file for reading and writing.
    ///
    /// # Errors
    /// `NotFound` or others of the medium.
    fn open(&self, name: &str) -> io::Result<Arc<dyn MediaFile>>;

    /// Replaces a small file atomically. `durable`: the bytes are synchronised before they take the
    /// name, so that a power loss cannot leave neither.
    ///
    /// # Errors
    /// Of the medium; the old file is then still there.
    fn replace(&self, name: &str, bytes: &[u8], durable: bool) -> io::Result<()>;

    /// Renames a file over whatever has the new name.
    ///
    /// # Errors
    /// Of the medium.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Unlinks a file.
    ///
    /// # Errors
    /// `NotFound` or others of the medium.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Makes the names (not the contents) durable.
    ///
    /// # Errors
    /// Of the medium.
    fn sync_names(&self) -> io::Result<()>;

    /// Room on the volume; `None` where there is no such limit.
    ///
    /// # Errors
    /// Of the medium.
    fn space(&self) -> io::Result<Option<Space>>;
}

/// An open file of a medium. All methods may be called from many threads at once.
pub trait MediaFile: Debug + Send + Sync {
    /// Fills `buf` from `offset`.
    ///
    /// # Errors
    /// `UnexpectedEof` beyond the end, or others of the medium.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes all of `buf` at `offset`, growing the file as needed.
    ///
    /// # Errors
    /// `StorageFull` or others of the medium; part of the bytes may then be written.
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;

    /// Length, bytes, holes included.
    ///
    /// # Errors
    /// Of the medium.
    fn len(&self) -> io::Result<u64>;

    /// Whether it has no bytes.
    ///
    /// # Errors
    /// Of the medium.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Gives up all that is in it, unless somebody else has a name for it: a client's hard link stays
    /// as it is.
    ///
    /// # Errors
    /// Of the medium.
    fn discard(&self) -> io::Result<()>;

    /// First byte at or after `offset` that is not in a hole, `None` when only holes follow. May
    /// answer `offset` itself when the medium cannot tell.
    ///
    /// # Errors
    /// Of the medium.
    fn next_data(&self, offset: u64) -> io::Result<Option<u64>>;

    /// Makes contents and length durable.
    ///
    /// # Errors
    /// Of the medium.
    fn sync(&self) -> io::Result<()>;

    /// A read-only descriptor of its own (own offset, not convertible to a writable one by a user
    /// without rights on the file). `seal`: the content is final; where the medium can, it makes any
    /// further change impossible before it answers.
    ///
    /// # Errors
    /// Of the medium.
    fn reader(&self, seal: bool) -> io::Result<File>;

    /// The same for content that is still written, where who gets it cannot make it writable;
    /// `None` where he could, or where nobody knows.
    ///
    /// # Errors
    /// Of the medium.
    fn growing_reader(&self) -> io::Result<Option<File>> {
        Ok(None)
    }

    /// Fills this (empty) file with the first `len` bytes of another, sharing extents where the file
    /// system can.
    ///
    /// # Errors
    /// `UnexpectedEof` when the source is shorter, or others of the medium.
    fn ingest(&self, from: &File, len: u64) -> io::Result<Ingested>;
}
