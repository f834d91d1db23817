//! Taking over a file that exists already: its bytes come by reflink where the file system can, and
//! only then become blocks, each when the caller has hashed it.

use std::fs::File;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use crate::error::{ErrorKind, Result};
use crate::media::Ingested;
use crate::task::{Task, Written};

impl Task {
    /// Copies a whole file into this empty task, by reflink where the file system can. No block is
    /// held yet: read each with [`Task::read_ingested`], hash it, and [`Task::adopt_block`] it. A
    /// crash in between leaves the task empty but for the adopted blocks.
    ///
    /// # Errors
    /// [`ErrorKind::Conflict`] when the length is unknown or blocks are held already;
    /// [`ErrorKind::Corrupt`] when the file is shorter than the content;
    /// [`ErrorKind::QuotaExceeded`], [`ErrorKind::DiskFull`], [`ErrorKind::Deleted`], [`ErrorKind::Io`].
    pub fn ingest(&self, from: &File) -> Result<Ingested> {
        let entry = &*self.entry;
        entry.check_alive()?;
        // Shuts out every writer: they would be overwritten.
        let _no_writer = entry.epoch.write().unwrap_or_else(PoisonError::into_inner);
        let Some(total) = self.geometry().total_len() else {
            return Err(self.fail(
                ErrorKind::Conflict,
                "has no length yet, so nothing can be copied in",
            ));
        };
        if self.held_count() > 0 || entry.ingested.load(Ordering::Acquire) {
            return Err(self.fail(
                ErrorKind::Conflict,
                "is not empty, so nothing can be copied in",
            ));
        }
        self.store.reserve(entry, total)?;
        match self.files.data.ingest(from, total) {
            Ok(how) => {
                entry.ingested.store(true, Ordering::Release);
                Ok(how)
            }
            Err(e) => {
                // What was copied so far would only take space.
                let _ = self.files.data.discard();
                self.store.unreserve(entry, total);
                Err(self.io("copy a file into it", e))
            }
        }
    }

    /// Reads a block of what [`Task::ingest`] copied, held or not, into the front of `buf` and
    /// returns its length.
    ///
    /// # Errors
    /// [`ErrorKind::Conflict`] when nothing was ingested; else as [`Task::read_block`].
    pub fn read_ingested(&self, index: u32, buf: &mut [u8]) -> Result<usize> {
        self.check_ingested()?;
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

    /// Declares an ingested block held, with its BLAKE3 and proof.
    ///
    /// # Errors
    /// [`ErrorKind::Conflict`] when nothing was ingested; else as [`Task::write_block`].
    pub fn adopt_block(&self, index: u32, hash: [u8; 32], proof: &[u8]) -> Result<Written> {
        self.check_ingested()?;
        self.put_block(index, self.expected_len(index)?, None, &hash, proof)
    }

    fn check_ingested(&self) -> Result<()> {
        if self.entry.ingested.load(Ordering::Acquire) {
            return Ok(());
        }
        Err(self.fail(ErrorKind::Conflict, "has no file copied in"))
    }
}
