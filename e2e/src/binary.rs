//! Where the built `dragonfly` and the sample manifests are.

use std::path::{Path, PathBuf};

use crate::{Failed, Result};

/// The binary: `DRAGONFLY_BIN`, or the one that was built beside this program.
pub fn dragonfly() -> Result<PathBuf> {
    program("dragonfly", "dragonfly", "DRAGONFLY_BIN")
}

/// The operator's: `DRAGONFLY_OPERATOR_BIN`, or the one that was built beside this program.
pub fn operator() -> Result<PathBuf> {
    program(
        "dragonfly-operator",
        "dragonfly-operator",
        "DRAGONFLY_OPERATOR_BIN",
    )
}

/// kubectl's plugin: `KUBECTL_DRAGONFLY_BIN`, or the one that was built beside this program.
pub fn plugin() -> Result<PathBuf> {
    program(
        "kubectl-dragonfly",
        "dragonfly-kubectl",
        "KUBECTL_DRAGONFLY_BIN",
    )
}

/// A program of a package: the one that a variable names, or that was built beside this program.
pub fn program(name: &str, package: &str, variable: &str) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        return absolute(Path::new(&path));
    }
    let own = own()?;
    // A test is in target/PROFILE/deps, the demo in target/PROFILE.
    let beside = own.ancestors().skip(1).take(2).map(|dir| dir.join(name));
    beside
        .into_iter()
        .find(|path| path.is_file())
        .ok_or_else(|| {
            let flag = if cfg!(debug_assertions) {
                ""
            } else {
                " --release"
            };
            Failed(format!(
                "there is no {name} beside {}: run `cargo build -p {package}{flag}` first, or name \
             it in {variable}",
                own.display()
            ))
        })
}

/// The directory of what was built with this program.
pub fn build_directory() -> Result<PathBuf> {
    let own = own()?;
    let dir = own.parent().map(Path::to_owned);
    dir.ok_or_else(|| Failed::at(own.display(), "is in no directory"))
}

/// `config/samples`, from here upwards or from where this program is.
pub fn samples() -> Result<PathBuf> {
    let here = std::env::current_dir().map_err(|e| Failed::at("the working directory", e))?;
    let own = own()?;
    let mut above = here
        .ancestors()
        .chain(own.ancestors())
        .map(|dir| dir.join("config/samples"));
    above
        .find(|dir| dir.join("distribution.yaml").is_file())
        .ok_or_else(|| Failed("run this in the repository: it has config/samples".to_owned()))
}

fn own() -> Result<PathBuf> {
    std::env::current_exe().map_err(|e| Failed::at("this program's own path", e))
}

fn absolute(path: &Path) -> Result<PathBuf> {
    path.canonicalize()
        .map_err(|e| Failed::at(path.display(), e))
}
