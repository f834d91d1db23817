//! Checking stored blocks, forgetting wrong ones, and proving them anew.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use crate::entry::Entry;
use crate::error::{ErrorKind, Result};
use crate::format::{self, RECORD, Record};
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
        self.is_right(index, &data)
    }

    /// Fills `buf` from `offset` of the content, within one held block. The first time that a block is
    /// read since somebody has the task open it is compared with its BLAKE3, unless it was written
    /// since: what a disk changed meanwhile is not handed out.
    ///
    /// # Errors
    /// [`Corrupt`](crate::ErrorKind::Corrupt) when the block or its record is not what was stored;
    /// [`NotHeld`](crate::ErrorKind::NotHeld); [`Invalid`](crate::ErrorKind::Invalid) when the bytes
    /// are not within one block; [`Io`](crate::ErrorKind::Io).
    pub fn read_checked(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let geometry = self.geometry();
        let index = u32::try_from(offset / u64::from(geometry.block_size())).unwrap_or(u32::MAX);
        self.check_held(index)?;
        let (start, len) = (geometry.offset(index), self.expected_len(index)? as usize);
        let from = (offset - start) as usize;
        let Some(to) = Some(from + buf.len()).filter(|to| *to <= len) else {
            let text = format!("{} bytes from {offset} are not of one block", buf.len());
            return Err(self.fail(ErrorKind::Invalid, text));
        };
        if self.files.checked.contains(index) {
            return self.read_data(offset, buf);
        }
        if buf.len() == len {
            self.read_data(offset, buf)?;
            return self.check_data(index, buf);
        }
        let mut whole = vec![0; len];
        self.read_data(start, &mut whole)?;
        self.check_data(index, &whole)?;
        buf.copy_from_slice(&whole[from..to]);
        Ok(())
    }

    /// Compares every held block as [`Task::read_checked`] would, for whoever reads the file itself,
    /// as long as `go_on` says so.
    ///
    /// # Errors
    /// As [`Task::read_checked`].
    pub fn check_all(&self, go_on: impl Fn() -> bool) -> Result<()> {
        let mut data = Vec::new();
        for index in self.held().iter().take_while(|_| go_on()) {
            if !self.files.checked.contains(index) {
                data.resize(self.expected_len(index)? as usize, 0);
                self.read_block(index, &mut data)?;
                self.check_data(index, &data)?;
            }
        }
        Ok(())
    }

    /// Whether these bytes are the block that was stored.
    fn is_right(&self, index: u32, data: &[u8]) -> Result<bool> {
        let hash = *blake3::hash(data).as_bytes();
        let is_it = || Ok(self.proof(index)?.is_some_and(|p| p.hash == hash));
        if matches!(is_it(), Ok(true)) {
            return Ok(true);
        }
        // A record that is being replaced may have been read half old, half new.
        let _alone = lock(self.files.stripe(index));
        is_it()
    }

    fn check_data(&self, index: u32, data: &[u8]) -> Result<()> {
        if !self.is_right(index, data)? {
            let text = format!("block {index} holds other bytes than were stored");
            return Err(self.fail(ErrorKind::Corrupt, text));
        }
        self.files.checked.insert(index);
        Ok(())
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
        self.files.checked.remove(index);
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

    /// Replaces the proof of a held block; its bytes and hash stay. A checkpoint makes that survive a
    /// power loss.
    ///
    /// # Errors
    /// [`NotHeld`](crate::ErrorKind::NotHeld); [`Invalid`](crate::ErrorKind::Invalid) for a proof over
    /// the bound; [`Corrupt`](crate::ErrorKind::Corrupt) (of the record), [`Deleted`](crate::ErrorKind::Deleted),
    /// [`Io`](crate::ErrorKind::Io).
    pub fn set_proof(&self, index: u32, proof: &[u8]) -> Result<()> {
        if proof.len() > format::MAX_PROOF {
            let text = format!("a proof of {} bytes for block {index}", proof.len());
            return Err(self.fail(ErrorKind::Invalid, text));
        }
        let entry = &*self.entry;
        entry.check_alive()?;
        let _alone = lock(self.files.stripe(index));
        self.check_held(index)?;
        let Some(before) = self.proof(index)? else {
            return self.check_held(index);
        };
        let len = self.expected_len(index)?;
        let epoch = entry.epoch.read().unwrap_or_else(PoisonError::into_inner);
        let record = Record::encode(&entry.key, index, len, *epoch, &before.hash, proof);
        self.files
            .index
            .write_all_at(&record, format::record_offset(index))
            .map_err(|e| self.io("write the record of a block", e))?;
        entry.dirty.store(true, Ordering::Release);
        Ok(())
    }
}
