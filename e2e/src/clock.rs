//! Wall clocks that can be set, one for each process: the machine's own is everybody's. A library
//! before the system's (`clock.c`, built when it is needed) tells a process another time.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::mesh::{Member, Mesh};
use crate::{Failed, Result};

const SOURCE: &str = include_str!("clock.c");

/// The clocks of a mesh's members.
#[derive(Debug, Clone)]
pub struct Clocks {
    dir: PathBuf,
    library: PathBuf,
}

impl Clocks {
    /// Builds the library in a directory, where the clocks are kept too.
    ///
    /// # Errors
    /// No C compiler, or no room.
    pub fn new(dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir).map_err(|e| Failed::at(dir.display(), e))?;
        let (source, library) = (dir.join("clock.c"), dir.join("clock.so"));
        std::fs::write(&source, SOURCE).map_err(|e| Failed::at(source.display(), e))?;
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"])
            .args([&library, &source])
            .output();
        let built = built.map_err(|e| Failed::at("cc", e))?;
        if !built.status.success() {
            let said = String::from_utf8_lossy(&built.stderr).into_owned();
            return Err(Failed::at(source.display(), said));
        }
        let dir = dir.to_owned();
        Ok(Self { dir, library })
    }

    fn variables(&self, name: &str) -> [(String, String); 2] {
        let variables = [
            ("LD_PRELOAD", self.library.clone()),
            ("CLOCK_FILE", self.dir.join(name)),
        ];
        variables.map(|(name, path)| (name.to_owned(), path.display().to_string()))
    }

    /// Gives a member that does not run yet a clock of its own.
    pub fn give(&self, member: &mut Member) {
        member.environment.extend(self.variables(&member.name));
    }

    /// Variables, `NAME=VALUE`, of a process that is to have the clock of this name.
    #[must_use]
    pub fn environment(&self, name: &str) -> Vec<String> {
        let variables = self.variables(name).into_iter();
        variables
            .map(|(name, value)| format!("{name}={value}"))
            .collect()
    }

    /// Gives every member of a mesh that does not run yet a clock of its own.
    pub fn give_all(&self, mesh: &mut Mesh) {
        let members = std::iter::once(&mut mesh.scheduler).chain(&mut mesh.seeds);
        members
            .chain(&mut mesh.peers)
            .for_each(|member| self.give(member));
    }

    /// Sets a member's clock: so many seconds off the machine's.
    ///
    /// # Errors
    /// No room for a few bytes.
    pub fn set(&self, member: &str, offset: i64) -> Result<()> {
        let (making, made) = (self.dir.join("making"), self.dir.join(member));
        // At once whole: a process may look at any moment.
        let written = std::fs::write(&making, offset.to_string());
        let done = written.and_then(|()| std::fs::rename(&making, &made));
        done.map_err(|e| Failed::at(made.display(), e))
    }
}
