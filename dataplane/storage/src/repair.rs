//! Checking stored blocks and forgetting wrong ones.

use std::sync::atomic::Ordering;

use crate::entry::Entry;
use crate::error::Result;
use crate::format::{self, RECORD};
use crate::lock;
use crate::task::Task;

impl Task {
    /// Reads a held block and compares it with its recorded BLAKE3: for scrubbing, and when a peer
    /// says that a block from here was wrong.
    ///
    /// # Errors
    /// [`NotHeld`](crate::ErrorKind::NotHeld), [`Corrupt`](crate::ErrorKind::Corrupt) (of the record), [`Io`](crate::ErrorKind::Io).
    pub fn verify_block(&self, index: u32) -> Result<bool> {
        self.check_held(index)?;
        let mut data = vec![0; self.expected_len(index)? as usize];
        self.read_block(index, &mut data)?;
        let proof = self.proof(index)?;
        Ok(proof.is_some_and(|p| p.hash == *blake3::hash(&data).as_bytes()))
    }

    /// Forgets a block that proved wrong, so that it can be written anew. The task is no longer
    /// complete nor verified.
    ///
    /// # Errors
    /// [`Conflict`](crate::ErrorKind::Conflict) once content in memory was sealed by [`Task::file`] (delete the task
    /// instead); [`Deleted`](crate::ErrorKind::Deleted), [`Io`](crate::ErrorKind::Io).
    pub fn discard_block(&self, index: u32) -> Result<()> {
        let entry = &*self.entry;
        entry.check_alive()?;
        let _alone = lock(self.files.stripe(index));
        if !entry.held.contains(index) {
            return Ok(());
        }
        let len = self.expected_len(index)?;
        // First of all here, so that no checkpoint declares the task complete meanwhile; then the
        // flag, so that no start takes it for the record.
        entry.held.remove(index);
        entry.ingested.store(false, Ordering::Release);
        self.store.unreserve(entry, Entry::cost(len));
        entry.update_header(&self.files, |h| {
            h.complete = false;
            h.verified = None;
        })?;
        let zeros = [0; RECORD];
        self.files
            .index
            .write_all_at(&zeros, format::record_offset(index))
            .map_err(|e| self.io("clear the record of a block", e))?;
        entry.dirty.store(true, Ordering::Release);
        Ok(())
    }
}
