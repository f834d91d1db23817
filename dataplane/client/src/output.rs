//! A file that appears whole or not at all, and the cheapest way to fill it.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::error::{Error, Result};
use crate::file::How;

/// Bytes copied between two looks at whether anybody still wants them.
const STEP: u64 = 16 << 20;

/// What a thread that fills a file and whoever waits for it tell each other.
#[derive(Debug, Default)]
pub(crate) struct Filling {
    /// Nobody waits any more.
    pub(crate) cancelled: AtomicBool,
    /// Bytes so far.
    pub(crate) written: AtomicU64,
}

/// Where content goes: beside its place first, unless that is no regular file (a pipe, a device).
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) file: File,
    target: PathBuf,
    /// Under which name it is written; none for what is written in place.
    temporary: Option<PathBuf>,
    /// Whether it may be another name of the node's file.
    pub(crate) may_link: bool,
}

impl Output {
    pub(crate) fn create(target: &Path, make_directories: bool) -> Result<Self> {
        let fail = |e| Error::output(target, e);
        let parent = target.parent().filter(|p| !p.as_os_str().is_empty());
        if make_directories && let Some(parent) = parent {
            std::fs::create_dir_all(parent).map_err(fail)?;
        }
        match std::fs::metadata(target) {
            Ok(m) if m.is_dir() => return Err(fail(io::ErrorKind::IsADirectory.into())),
            Ok(m) if !m.is_file() => {
                let file = OpenOptions::new().write(true).open(target).map_err(fail)?;
                return Ok(Self {
                    file,
                    target: target.to_owned(),
                    temporary: None,
                    may_link: false,
                });
            }
            _ => {}
        }
        // A link stays, and what it points to is replaced.
        let target = std::fs::canonicalize(target).unwrap_or_else(|_| target.to_owned());
        let name = target
            .file_name()
            .ok_or_else(|| fail(io::ErrorKind::IsADirectory.into()))?;
        let mut hidden = std::ffi::OsString::from(".");
        // Names end at 255 bytes.
        hidden.push(&*name.to_string_lossy().chars().take(40).collect::<String>());
        hidden.push(format!(".{:016x}.part", fastrand::u64(..)));
        let temporary = target.with_file_name(hidden);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&temporary);
        let file = file.map_err(fail)?;
        Ok(Self {
            file,
            target,
            temporary: Some(temporary),
            may_link: false,
        })
    }

    /// Whether it could be another name of this file.
    pub(crate) fn can_link(&self, from: &File) -> bool {
        let named = self.name(from);
        named.is_ok_and(|(name, _)| std::fs::remove_file(name).is_ok())
    }

    /// Makes it another name of this file, which nobody is to write to any more. Nothing has changed
    /// when that cannot be.
    fn link(&mut self, from: &File) -> io::Result<()> {
        let (name, mode) = self.name(from)?;
        let opened = from
            .set_permissions(Permissions::from_mode(mode))
            .and_then(|()| File::open(&name));
        if opened.is_err() {
            let _ = std::fs::remove_file(&name);
        }
        self.file = opened?;
        // Not moved over the empty file: a file that replaces another by rename is written to the disk
        // first (ext4's auto_da_alloc), which takes longer than its download.
        if let Some(empty) = self.temporary.replace(name) {
            let _ = std::fs::remove_file(empty);
        }
        Ok(())
    }

    /// A name for this file beside the output, and the mode that it is to have. The file has to be this
    /// user's own, for it becomes read-only, and on the same mount.
    fn name(&self, from: &File) -> io::Result<(PathBuf, u32)> {
        let temporary = self.temporary.as_ref().filter(|_| self.may_link);
        let temporary = temporary.ok_or(io::ErrorKind::Unsupported)?;
        let mode = self.file.metadata()?.mode() & 0o444;
        let shared = from.metadata()?;
        let is_own = shared.uid() == rustix::process::geteuid().as_raw();
        // Who may read an earlier output is not decided by a later one's umask, nor the reverse.
        let same_readers = shared.nlink() == 1 || shared.mode() & 0o777 == mode;
        if !is_own || !same_readers {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let name = temporary.with_extension("link");
        let open = format!("/proc/self/fd/{}", from.as_raw_fd());
        let (here, follow) = (rustix::fs::CWD, rustix::fs::AtFlags::SYMLINK_FOLLOW);
        rustix::fs::linkat(here, open, here, &name, follow)?;
        Ok((name, mode))
    }

    pub(crate) fn target(&self) -> &Path {
        &self.target
    }

    /// Whether it can be written anew from its start.
    pub(crate) const fn is_regular(&self) -> bool {
        self.temporary.is_some()
    }

    /// Forgets what was written.
    pub(crate) fn restart(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0)).map(|_| ())
    }

    /// Moves it into place. `durable`: so that it survives a power loss from then on.
    pub(crate) fn commit(mut self, durable: bool) -> Result<()> {
        let fail = |e| Error::output(&self.target, e);
        if let Some(temporary) = &self.temporary {
            if durable {
                self.file.sync_all().map_err(fail)?;
            }
            std::fs::rename(temporary, &self.target).map_err(fail)?;
            // Two names of one file stay two (rename(2)): the output was this one's link before.
            let _ = std::fs::remove_file(temporary);
            if durable {
                let parent = self.target.parent().filter(|p| !p.as_os_str().is_empty());
                let parent = File::open(parent.unwrap_or(Path::new(".")));
                parent.and_then(|d| d.sync_all()).map_err(fail)?;
            }
        }
        self.temporary = None;
        Ok(())
    }

    /// Fills it with bytes `start..end` of `from`: cloned, linked, copied in the kernel, or by hand. `copied`:
    /// what is in it already, as bytes of `from`, in order and apart.
    pub(crate) fn fill(
        &mut self,
        from: &File,
        (start, end): (u64, u64),
        copied: &[(u64, u64)],
        filling: &Filling,
    ) -> io::Result<How> {
        let size = from.metadata()?.len();
        if end > size {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the descriptor is too short",
            ));
        }
        if (start, end) == (0, size) && can_clone(&self.file, from) {
            // A clone does not shorten what was longer.
            self.file.set_len(size)?;
            return Ok(How::Cloned);
        }
        if (start, end) == (0, size) && self.link(from).is_ok() {
            return Ok(How::Linked);
        }
        let mut at = start;
        for (from_byte, to_byte) in copied.iter().copied().chain([(end, end)]) {
            if at < from_byte {
                copy(from, &self.file, (at, from_byte), start, filling)?;
            }
            at = at.max(to_byte);
        }
        // Something longer may have been in it before.
        self.file.set_len(end - start)?;
        Ok(How::Copied)
    }
}

/// Makes `to` a clone of `from` as it is now, where their file system can.
pub(crate) fn can_clone(to: &File, from: &File) -> bool {
    rustix::fs::ioctl_ficlone(to, from).is_ok()
}

/// Copies bytes `at..end` of one file into another that begins with its byte `base`.
pub(crate) fn copy(
    from: &File,
    to: &File,
    (mut at, end): (u64, u64),
    base: u64,
    filling: &Filling,
) -> io::Result<()> {
    let go_on = || match filling.cancelled.load(Ordering::Relaxed) {
        true => Err(io::Error::from(io::ErrorKind::Interrupted)),
        false => Ok(()),
    };
    // In the kernel where both sides can; what it refuses at once is done by hand.
    while at < end {
        go_on()?;
        let (mut input, mut output) = (at, at - base);
        let len = (end - at).min(STEP) as usize;
        match rustix::fs::copy_file_range(from, Some(&mut input), to, Some(&mut output), len) {
            Ok(0) => break,
            Ok(n) => {
                at += n as u64;
                filling.written.fetch_add(n as u64, Ordering::Relaxed);
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::NOSPC) => return Err(rustix::io::Errno::NOSPC.into()),
            Err(_) => break,
        }
    }
    let mut buf = vec![0; if at < end { 1 << 20 } else { 0 }];
    while at < end {
        go_on()?;
        let most = (end - at).min(buf.len() as u64) as usize;
        let n = from.read_at(&mut buf[..most], at)?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        to.write_all_at(&buf[..n], at - base)?;
        at += n as u64;
        filling.written.fetch_add(n as u64, Ordering::Relaxed);
    }
    Ok(())
}

impl Drop for Output {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            let _ = std::fs::remove_file(temporary);
        }
    }
}
