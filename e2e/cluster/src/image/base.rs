//! What a dynamically linked program needs to run, and nothing else: the C library, authorities, a
//! user. No shell, no package manager.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use dragonfly_e2e::{Failed, Result};

use super::{Architecture, Tree, elf};

/// The user and group that images run as where their role allows.
pub const NONROOT: u32 = 65532;

const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";
const PASSWD: &str = "root:x:0:0:root:/root:/sbin/nologin\n\
                      nonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin\n";
const GROUP: &str = "root:x:0:\nnonroot:x:65532:\n";
const HOSTS: &str = "hosts: files dns\n";

impl Architecture {
    /// Where Debian has this processor's libraries: its own or those for cross-compiling.
    fn libraries(self) -> Vec<PathBuf> {
        let triple = match self {
            Self::Amd64 => "x86_64-linux-gnu",
            Self::Arm64 => "aarch64-linux-gnu",
        };
        ["/lib/TRIPLE", "/usr/lib/TRIPLE", "/usr/TRIPLE/lib"]
            .iter()
            .map(|dir| PathBuf::from(dir.replace("TRIPLE", triple)))
            .collect()
    }
}

/// The files below programs, with every library that one of them names, and those libraries name.
///
/// # Errors
/// A program is not for this processor, or a library is not on this machine.
pub fn base(architecture: Architecture, programs: &[&Path]) -> Result<Tree> {
    let mut tree = Tree::default();
    tree.file("etc/passwd", 0o644, PASSWD);
    tree.file("etc/group", 0o644, GROUP);
    tree.file("etc/nsswitch.conf", 0o644, HOSTS);
    tree.copy(
        "etc/ssl/certs/ca-certificates.crt",
        0o644,
        Path::new(AUTHORITIES),
    )
    .map_err(|e| Failed(format!("{e}: the package ca-certificates has it")))?;
    tree.directory("tmp", 0o1777, 0);
    tree.directory("home/nonroot", 0o750, NONROOT);
    for dir in ["var/lib/dragonfly", "run/dragonfly"] {
        tree.directory(dir, 0o755, NONROOT);
    }

    let mut have = BTreeSet::new();
    let mut wanted: Vec<PathBuf> = programs.iter().map(|p| p.to_path_buf()).collect();
    while let Some(path) = wanted.pop() {
        let bytes = std::fs::read(&path).map_err(|e| Failed::at(path.display(), e))?;
        let read = elf::read(&bytes).filter(|p| p.architecture == architecture);
        let program = read.ok_or_else(|| {
            Failed::at(
                path.display(),
                format!("is no program for {}", architecture.name()),
            )
        })?;
        // The dynamic linker is named by its path, which has to be kept.
        if let Some(interpreter) = &program.interpreter {
            let name = interpreter.rsplit('/').next().unwrap_or_default();
            tree.copy(
                interpreter.trim_start_matches('/'),
                0o755,
                &library(architecture, name)?,
            )?;
            have.insert(name.to_owned());
        }
        for name in program.needed {
            if have.insert(name.clone()) {
                let library = library(architecture, &name)?;
                tree.copy(&format!("lib/{name}"), 0o755, &library)?;
                wanted.push(library);
            }
        }
    }
    Ok(tree)
}

fn library(architecture: Architecture, name: &str) -> Result<PathBuf> {
    let dirs = architecture.libraries();
    let found = dirs
        .iter()
        .map(|dir| dir.join(name))
        .find(|path| path.is_file());
    found.ok_or_else(|| {
        Failed(format!(
            "{name} for {} is in none of {dirs:?}; `scripts/setup.sh arm64` installs what \
             cross-compiling needs",
            architecture.name()
        ))
    })
}
