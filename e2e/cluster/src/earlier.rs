//! This project as it was at an earlier commit: its programs and its manifests, for tests of upgrades.
//!
//! Built once from the clone's own history, into the cache of tools. Dependencies are compiled into one
//! directory beside it for all commits, since they hardly change.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use dragonfly_e2e::{Failed, Result};

use crate::operator::repository;
use crate::tools::{cache, cached, finished};

/// What of the tree is kept beside the programs.
const KEPT: [&str; 2] = ["config", "Cargo.lock"];

/// An earlier state.
#[derive(Debug, Clone)]
pub struct Earlier(PathBuf);

impl Earlier {
    /// The one of a commit, by its whole name.
    ///
    /// # Errors
    /// The clone does not hold it, or it cannot be built.
    pub fn at(commit: &str) -> Result<Self> {
        let entry = format!("dragonfly-{commit}");
        cached(&entry, |dir| build(commit, dir)).map(Self)
    }

    /// A program.
    pub fn program(&self, name: &str) -> PathBuf {
        self.0.join("bin").join(name)
    }

    /// A file of the repository as it was then.
    ///
    /// # Errors
    /// There was none.
    pub fn read(&self, path: &str) -> Result<String> {
        let path = self.0.join(path);
        std::fs::read_to_string(&path).map_err(|e| Failed::at(path.display(), e))
    }
}

fn build(commit: &str, dir: &Path) -> Result<()> {
    let (source, bin) = (dir.join("source"), dir.join("bin"));
    let target = cache()?.join("dragonfly-target");
    for made in [&source, &bin] {
        std::fs::create_dir_all(made).map_err(|e| Failed::at(made.display(), e))?;
    }
    unpack(commit, &source)?;
    let programs = ["dragonfly", "dragonfly-operator"];
    let mut cargo = Command::new("cargo");
    cargo.args(["build", "--locked"]).current_dir(&source);
    for program in programs {
        cargo.args(["-p", program]);
    }
    cargo.env("CARGO_TARGET_DIR", &target);
    finished(&format!("dragonfly of commit {commit}"), &mut cargo)?;
    let moved = |from: PathBuf, to: PathBuf| -> Result<()> {
        let copied = std::fs::copy(&from, &to);
        copied.map(drop).map_err(|e| Failed::at(from.display(), e))
    };
    for program in programs {
        moved(target.join("debug").join(program), bin.join(program))?;
    }
    for name in KEPT {
        let (from, to) = (source.join(name), dir.join(name));
        std::fs::rename(&from, &to).map_err(|e| Failed::at(from.display(), e))?;
    }
    std::fs::remove_dir_all(&source).map_err(|e| Failed::at(source.display(), e))
}

/// The tree of a commit into a directory.
fn unpack(commit: &str, into: &Path) -> Result<()> {
    let git = || {
        let mut git = Command::new("git");
        git.arg("-C").arg(repository("."));
        git
    };
    let known = git()
        .args(["cat-file", "-e", &format!("{commit}^{{commit}}")])
        .stdin(Stdio::null())
        .output()
        .map_err(|e| Failed::at("git", e))?;
    if !known.status.success() {
        let said = String::from_utf8_lossy(&known.stderr);
        return Err(Failed(format!(
            "commit {commit} is not in this clone, and upgrades are tested from it: a shallow clone \
             gets its history by `git fetch --unshallow` ({})",
            said.trim()
        )));
    }
    let archive = into.join("tree.tar");
    let mut line = git();
    line.args(["archive", "--format=tar", "-o"])
        .arg(&archive)
        .arg(commit);
    finished("the tree of an earlier commit", &mut line)?;
    let mut tar = Command::new("tar");
    // Files of now: by those of the commit cargo would take what it built of a later one for theirs.
    tar.arg("-xmf").arg(&archive).arg("-C").arg(into);
    finished("the tree of an earlier commit", &mut tar)?;
    std::fs::remove_file(&archive).map_err(|e| Failed::at(archive.display(), e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_that_the_clone_does_not_hold_is_named_with_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let wrong = unpack(&"0".repeat(40), dir.path()).unwrap_err().to_string();
        assert!(
            wrong.contains("git fetch --unshallow") && wrong.contains("0000"),
            "{wrong}"
        );
    }
}
