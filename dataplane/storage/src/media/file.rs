//! What an open file can do, the same for a file on disk and for anonymous memory.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};

use rustix::fs::{SealFlags, SeekFrom};

use super::{Ingested, MediaFile};

/// Bytes asked of one `copy_file_range`: large enough to be cheap, small enough to be interruptible.
const COPY_STEP: u64 = 64 << 20;
const COPY_BUFFER: usize = 1 << 20;

#[derive(Debug)]
pub(super) struct Handle {
    file: File,
    sealable: bool,
}

impl Handle {
    pub(super) const fn disk(file: File) -> Self {
        Self {
            file,
            sealable: false,
        }
    }

    pub(super) const fn memory(file: File) -> Self {
        Self {
            file,
            sealable: true,
        }
    }
}

impl MediaFile for Handle {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(buf, offset)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn discard(&self) -> io::Result<()> {
        if self.file.metadata()?.nlink() > 1 {
            return Ok(());
        }
        self.file.set_len(0)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        // The file position that this moves is never used: all reads and writes name their offset.
        match rustix::fs::seek(&self.file, SeekFrom::Data(offset)) {
            Ok(at) => Ok(Some(at)),
            Err(rustix::io::Errno::NXIO) => Ok(None),
            Err(rustix::io::Errno::INVAL) => Ok((offset < self.len()?).then_some(offset)),
            Err(e) => Err(e.into()),
        }
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn reader(&self, seal: bool) -> io::Result<File> {
        if seal && self.sealable {
            let seals = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW;
            rustix::fs::fcntl_add_seals(&self.file, seals)?;
        }
        // By descriptor, not by name: the name may already be another task's.
        std::fs::OpenOptions::new()
            .read(true)
            .custom_flags(rustix::fs::OFlags::CLOEXEC.bits() as i32)
            .open(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }

    fn growing_reader(&self) -> io::Result<Option<File>> {
        // What is in memory belongs to whoever opens it, until it is sealed.
        (!self.sealable).then(|| self.reader(false)).transpose()
    }

    fn ingest(&self, from: &File, len: u64) -> io::Result<Ingested> {
        if from.metadata()?.len() == len && rustix::fs::ioctl_ficlone(&self.file, from).is_ok() {
            return Ok(Ingested::Reflinked);
        }
        let mut done = 0;
        while done < len {
            let (mut at_in, mut at_out) = (done, done);
            let step = usize::try_from((len - done).min(COPY_STEP)).unwrap_or(COPY_BUFFER);
            match rustix::fs::copy_file_range(
                from,
                Some(&mut at_in),
                &self.file,
                Some(&mut at_out),
                step,
            ) {
                Ok(0) => break,
                Ok(n) => done += n as u64,
                Err(rustix::io::Errno::INTR) => {}
                Err(
                    e @ (rustix::io::Errno::NOSPC
                    | rustix::io::Errno::DQUOT
                    | rustix::io::Errno::IO),
                ) => {
                    return Err(e.into());
                }
                // Other file system, special file, old kernel: by hand.
                Err(_) => break,
            }
        }
        let mut buffer = vec![0; COPY_BUFFER];
        while done < len {
            let step = usize::try_from(len - done)
                .unwrap_or(COPY_BUFFER)
                .min(COPY_BUFFER);
            from.read_exact_at(&mut buffer[..step], done)?;
            self.file.write_all_at(&buffer[..step], done)?;
            done += step as u64;
        }
        Ok(Ingested::Copied)
    }
}
