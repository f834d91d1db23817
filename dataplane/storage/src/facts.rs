//! What is kept with a task beside its blocks: the node's metadata, and the digest it was checked
//! against.

use dragonfly_proto::id::ContentKey;
use std::sync::atomic::Ordering;

use crate::error::{ErrorKind, Result, StorageError};
use crate::format::{self, MAX_DIGEST, MAX_META};
use crate::lock;
use crate::names::Part;
use crate::task::Task;

impl Task {
    /// The node's metadata; empty when none was given (or a power loss took it before the first
    /// checkpoint).
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] (set it anew), [`ErrorKind::Deleted`], [`ErrorKind::Io`].
    pub fn meta(&self) -> Result<Vec<u8>> {
        let _unchanged = lock(&self.entry.header);
        self.entry.check_alive()?;
        let name = Part::Meta.name(&self.entry.key);
        let limit = (MAX_META + format::META_HEAD) as u64;
        let bytes = match crate::recover::read_file(&*self.store.media, &name, limit) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(self.io("read its metadata", e)),
        };
        match format::decode_meta(&self.entry.key, &bytes) {
            Ok(meta) => Ok(meta),
            Err(format::Fault::Empty) => Ok(Vec::new()),
            Err(fault) => Err(self.fail(
                ErrorKind::Corrupt,
                format!("its metadata are unusable ({fault:?})"),
            )),
        }
    }

    /// Replaces the node's metadata (at most [`MAX_META`] bytes), atomically.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] when too long; [`ErrorKind::DiskFull`], [`ErrorKind::Deleted`],
    /// [`ErrorKind::Io`]: the old metadata are then still there.
    pub fn set_meta(&self, meta: &[u8]) -> Result<()> {
        let encoded = encode_meta(&self.entry.key, meta)?;
        self.entry.replace_meta(&*self.store.media, &encoded)
    }

    /// Remembers that the content matches `digest` (`algorithm:hex`), so that no restart hashes it
    /// again.
    ///
    /// # Errors
    /// [`ErrorKind::NotHeld`] while incomplete; [`ErrorKind::Invalid`] for an empty digest or one
    /// over [`MAX_DIGEST`] bytes; [`ErrorKind::Deleted`], [`ErrorKind::Io`].
    pub fn set_verified(&self, digest: &str) -> Result<()> {
        if digest.is_empty() || digest.len() > MAX_DIGEST {
            return Err(self.fail(
                ErrorKind::Invalid,
                format!("a digest of {} bytes", digest.len()),
            ));
        }
        self.entry.check_alive()?;
        if !self.is_complete() {
            return Err(self.fail(
                ErrorKind::NotHeld,
                "is not complete, so it cannot be verified",
            ));
        }
        self.entry.dirty.store(true, Ordering::Release);
        self.entry
            .update_header(&self.files, |h| h.verified = Some(digest.to_owned()))
    }

    /// The digest that the content was verified against.
    #[must_use]
    pub fn verified(&self) -> Option<String> {
        lock(&self.entry.header).verified.clone()
    }
}

pub(crate) fn encode_meta(key: &ContentKey, meta: &[u8]) -> Result<Vec<u8>> {
    if meta.len() > MAX_META {
        return Err(StorageError::task(
            ErrorKind::Invalid,
            key,
            format!("metadata of {} bytes, over {MAX_META}", meta.len()),
        ));
    }
    Ok(format::encode_meta(key, meta))
}
