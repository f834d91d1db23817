//! The files below containerd's `certs.d`.
//!
//! Beside a file that was there before stands its backup while an entry is in it; directories and files
//! that were made here go again with the entry.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::hosts::{self, Unsound};

const FILE: &str = "hosts.toml";
/// A file as it was before an entry was put into it.
const BACKUP: &str = "hosts.toml.before-dragonfly";
/// The directory for registries without one of their own.
const ANY: &str = "_default";
/// Nobody's `hosts.toml` is longer.
const MOST: u64 = 1 << 20;

/// Why an entry is not written or withdrawn.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The system refuses.
    #[error("{0}: {1}")]
    Io(PathBuf, io::Error),
    /// The file is left alone.
    #[error("{0} is left as it is: {1}")]
    Unsound(PathBuf, Unsound),
    /// Whoever made the link has to say what it should lead to.
    #[error("{0} is left as it is: it is a link or no file")]
    NoFile(PathBuf),
}

/// For whom there is an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// `host` or `host:port`; `None`: every registry without a directory of its own.
    pub registry: Option<String>,
    /// What is named as `server` in a file that names none.
    pub server: Option<String>,
}

/// What is done to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It is as it should be.
    Nothing,
    /// It is made.
    Made,
    /// It was there, and gets or has got the entry.
    Changed,
    /// It is as it was before there was an entry.
    Restored,
}

/// Entries on one node.
#[derive(Debug, Clone)]
pub struct Entries {
    /// `certs.d`.
    pub directory: PathBuf,
    /// The mirror, `http://127.0.0.1:4002`.
    pub url: String,
    /// For whom.
    pub targets: Vec<Target>,
}

impl Entries {
    /// What writing the entries would change, without doing it.
    pub fn plan(&self) -> Vec<(PathBuf, Result<Change, FileError>)> {
        let planned = self.targets.iter().map(|target| {
            let path = self.path(target);
            let change = self.wanted(target, &path).map(|(change, _)| change);
            (path, change)
        });
        planned.collect()
    }

    /// Writes the entries where they are not yet. One that cannot be written keeps no other from it.
    pub fn write(&self) -> Vec<(PathBuf, Result<Change, FileError>)> {
        let written = self.targets.iter().map(|target| {
            let path = self.path(target);
            let change = self.write_one(target, &path);
            (path, change)
        });
        written.collect()
    }

    /// Takes all entries out, those of earlier settings too.
    pub fn withdraw(&self) -> Vec<(PathBuf, Result<Change, FileError>)> {
        let found = match std::fs::read_dir(&self.directory) {
            Ok(found) => found,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return vec![],
            Err(e) => {
                let error = FileError::Io(self.directory.clone(), e);
                return vec![(self.directory.clone(), Err(error))];
            }
        };
        let paths = found.flatten().map(|entry| entry.path().join(FILE));
        let withdrawn = paths.map(|path| (path.clone(), restore(&path)));
        withdrawn
            .filter(|(_, change)| !matches!(change, Ok(Change::Nothing)))
            .collect()
    }

    fn path(&self, target: &Target) -> PathBuf {
        let name = target.registry.as_deref().unwrap_or(ANY);
        // Where both are there containerd takes `host_port_`.
        let other = name
            .split_once(':')
            .map(|(host, port)| format!("{host}_{port}_"));
        let other = other.map(|other| self.directory.join(other));
        let directory = other.filter(|other| other.is_dir());
        directory
            .unwrap_or_else(|| self.directory.join(name))
            .join(FILE)
    }

    /// What a file has to be.
    fn wanted(&self, target: &Target, path: &Path) -> Result<(Change, String), FileError> {
        let found = read(path)?;
        let text = found.as_deref().unwrap_or_default();
        let server = target.server.as_deref();
        let made = hosts::with_entry(text, &self.url, server)
            .map_err(|e| FileError::Unsound(path.to_owned(), e))?;
        let change = match &found {
            Some(found) if *found == made => Change::Nothing,
            Some(_) => Change::Changed,
            None => Change::Made,
        };
        Ok((change, made))
    }

    fn write_one(&self, target: &Target, path: &Path) -> Result<Change, FileError> {
        let (change, made) = self.wanted(target, path)?;
        if change == Change::Nothing {
            return Ok(change);
        }
        if let Some(found) = read(path)?
            && !hosts::has_entry(&found)
        {
            write(&path.with_file_name(BACKUP), &found, mode(path))?;
        }
        write(path, &made, mode(path))?;
        Ok(change)
    }
}

fn restore(path: &Path) -> Result<Change, FileError> {
    let Some(found) = read(path)? else {
        return Ok(Change::Nothing);
    };
    if !hosts::has_entry(&found) {
        return Ok(Change::Nothing);
    }
    let wrong = |e| FileError::Unsound(path.to_owned(), e);
    let without = hosts::without_entry(&found).map_err(wrong)?;
    let backup = path.with_file_name(BACKUP);
    let was_there = backup.try_exists().unwrap_or(true);
    if without.is_empty() && !was_there {
        remove(path)?;
        // Only where nobody put anything beside it.
        if let Some(directory) = path.parent() {
            let _ = std::fs::remove_dir(directory);
        }
    } else {
        // What somebody changed meanwhile stays: the backup is only as it was before.
        write(path, &without, mode(path))?;
        if was_there {
            remove(&backup)?;
        }
    }
    Ok(Change::Restored)
}

fn remove(path: &Path) -> Result<(), FileError> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(FileError::Io(path.to_owned(), e)),
        _ => Ok(()),
    }
}

fn read(path: &Path) -> Result<Option<String>, FileError> {
    let wrong = |e| FileError::Io(path.to_owned(), e);
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.is_file() && found.len() <= MOST => {
            std::fs::read_to_string(path).map(Some).map_err(wrong)
        }
        Ok(_) => Err(FileError::NoFile(path.to_owned())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(wrong(e)),
    }
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).map_or(0o644, |found| found.permissions().mode() & 0o777)
}

/// Whole or not at all.
fn write(path: &Path, text: &str, mode: u32) -> Result<(), FileError> {
    let new = path.with_extension("new-by-dragonfly");
    let written = (|| {
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory)?;
        }
        std::fs::write(&new, text)?;
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(mode))?;
        std::fs::File::open(&new)?.sync_all()?;
        std::fs::rename(&new, path)
    })();
    written.map_err(|e| {
        let _ = std::fs::remove_file(&new);
        FileError::Io(path.to_owned(), e)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(directory: &Path, registries: &[&str]) -> Entries {
        Entries {
            directory: directory.to_owned(),
            url: "http://127.0.0.1:4002".to_owned(),
            targets: registries
                .iter()
                .map(|r| Target {
                    registry: Some((*r).to_owned()).filter(|r| !r.is_empty()),
                    server: None,
                })
                .collect(),
        }
    }

    fn changes(all: Vec<(PathBuf, Result<Change, FileError>)>) -> Vec<Change> {
        all.into_iter().map(|(_, change)| change.unwrap()).collect()
    }

    #[test]
    fn uninstalling_leaves_everything_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let certs = dir.path().join("certs.d");
        let own = certs.join("a.test:5000/hosts.toml");
        let before = "server = \"https://a.test:5000\"\n[host.\"https://a.test:5000\"]\n";
        write(&own, before, 0o640).unwrap();
        let entries = entries(&certs, &["a.test:5000", "b.test", ""]);
        let wanted = [Change::Changed, Change::Made, Change::Made];
        assert_eq!(changes(entries.plan()), wanted);
        assert_eq!(
            std::fs::read_to_string(&own).unwrap(),
            before,
            "a plan only"
        );
        assert_eq!(changes(entries.write()), wanted);
        assert_eq!(changes(entries.write()), [Change::Nothing; 3]);
        assert_eq!(mode(&own), 0o640);
        let backup = own.with_file_name(BACKUP);
        assert_eq!(std::fs::read_to_string(&backup).unwrap(), before);
        assert_eq!(changes(entries.withdraw()), [Change::Restored; 3]);
        assert_eq!(std::fs::read_to_string(&own).unwrap(), before);
        let left: Vec<_> = std::fs::read_dir(&certs)
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(left, ["a.test:5000"]);
        assert!(!backup.exists() && entries.withdraw().is_empty());
    }

    #[test]
    fn what_somebody_changes_meanwhile_stays() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("a.test/hosts.toml");
        let entries = entries(dir.path(), &["a.test"]);
        entries.write();
        let mut text = std::fs::read_to_string(&own).unwrap();
        text.push_str("[host.\"https://added.test\"]\n");
        std::fs::write(&own, text).unwrap();
        assert_eq!(changes(entries.write()), [Change::Nothing]);
        assert_eq!(changes(entries.withdraw()), [Change::Restored]);
        let left = std::fs::read_to_string(&own).unwrap();
        assert_eq!(left, "[host.\"https://added.test\"]\n");
    }

    #[test]
    fn a_file_that_cannot_be_read_is_left_and_keeps_no_other_from_its_entry() {
        let dir = tempfile::tempdir().unwrap();
        let broken = dir.path().join("a.test/hosts.toml");
        write(&broken, "server = ", 0o644).unwrap();
        let link = dir.path().join("b.test/hosts.toml");
        std::fs::create_dir(dir.path().join("b.test")).unwrap();
        std::os::unix::fs::symlink("/nowhere", &link).unwrap();
        let written = entries(dir.path(), &["a.test", "b.test", "c.test"]).write();
        let errors: Vec<_> = written
            .iter()
            .map(|(_, change)| change.as_ref().map_err(ToString::to_string))
            .collect();
        assert!(
            errors[0]
                .as_ref()
                .unwrap_err()
                .contains("a.test/hosts.toml")
        );
        assert!(errors[1].as_ref().unwrap_err().contains("link"));
        assert_eq!(errors[2].as_ref().ok(), Some(&&Change::Made));
        assert_eq!(std::fs::read_to_string(&broken).unwrap(), "server = ");
    }
}
