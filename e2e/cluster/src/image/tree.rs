//! Files of a layer: made in memory, written as a tar that is the same for the same files.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use dragonfly_e2e::{Failed, Result};

/// Files, directories and links by their path, which starts without a slash.
#[derive(Debug, Clone, Default)]
pub struct Tree {
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug, Clone)]
struct Entry {
    mode: u32,
    owner: u64,
    kind: Kind,
}

#[derive(Debug, Clone)]
enum Kind {
    Directory,
    File(Bytes),
    Link(String),
}

impl Tree {
    /// A file of root's, with the directories above it.
    pub fn file(&mut self, path: &str, mode: u32, bytes: impl Into<Bytes>) {
        self.put(
            path,
            Entry {
                mode,
                owner: 0,
                kind: Kind::File(bytes.into()),
            },
        );
    }

    /// A directory and its owner.
    pub fn directory(&mut self, path: &str, mode: u32, owner: u32) {
        self.put(
            path,
            Entry {
                mode,
                owner: owner.into(),
                kind: Kind::Directory,
            },
        );
    }

    /// A symbolic link.
    pub fn link(&mut self, path: &str, to: &str) {
        self.put(
            path,
            Entry {
                mode: 0o777,
                owner: 0,
                kind: Kind::Link(to.to_owned()),
            },
        );
    }

    /// A file of this machine.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn copy(&mut self, path: &str, mode: u32, from: &Path) -> Result<()> {
        let bytes = std::fs::read(from).map_err(|e| Failed::at(from.display(), e))?;
        self.file(path, mode, bytes);
        Ok(())
    }

    fn put(&mut self, path: &str, entry: Entry) {
        let mut above = path;
        while let Some((dir, _)) = above.rsplit_once('/') {
            let dir_entry = Entry {
                mode: 0o755,
                owner: 0,
                kind: Kind::Directory,
            };
            self.entries.entry(dir.to_owned()).or_insert(dir_entry);
            above = dir;
        }
        self.entries.insert(path.to_owned(), entry);
    }

    /// The tar: sorted, without times.
    ///
    /// # Errors
    /// A name does not fit.
    pub fn into_tar(self) -> Result<Bytes> {
        let mut tar = tar::Builder::new(vec![]);
        for (path, entry) in self.entries {
            let mut header = tar::Header::new_gnu();
            header.set_mode(entry.mode);
            header.set_uid(entry.owner);
            header.set_gid(entry.owner);
            header.set_mtime(0);
            let appended = match entry.kind {
                Kind::Directory => {
                    header.set_entry_type(tar::EntryType::Directory);
                    header.set_size(0);
                    tar.append_data(&mut header, format!("{path}/"), std::io::empty())
                }
                Kind::File(bytes) => {
                    header.set_size(bytes.len() as u64);
                    tar.append_data(&mut header, &path, bytes.as_ref())
                }
                Kind::Link(to) => {
                    header.set_entry_type(tar::EntryType::Symlink);
                    header.set_size(0);
                    tar.append_link(&mut header, &path, to)
                }
            };
            appended.map_err(|e| Failed::at(&path, e))?;
        }
        Ok(tar.into_inner().map_err(|e| Failed::at("a tar", e))?.into())
    }
}
