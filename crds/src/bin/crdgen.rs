//! Writes the CRDs that the types say below a directory (default: the current one): to `config/crd`, to
//! the chart of the CRDs and to `docs/fields.md`.

use std::path::PathBuf;
use std::process::ExitCode;

use dragonfly_crds::crdgen::{render, render_chart, write};
use dragonfly_crds::reference;

fn main() -> ExitCode {
    let root = std::env::args_os()
        .nth(1)
        .map_or_else(PathBuf::new, PathBuf::from);
    let written = render()
        .and_then(|files| write(&root.join("config/crd"), &files))
        .and_then(|()| render_chart())
        .and_then(|files| write(&root.join("charts/dragonfly-crds/templates"), &files))
        .and_then(|()| reference::render())
        .and_then(|text| std::fs::write(root.join("docs/fields.md"), text));
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("crdgen: {}: {error}", root.display());
            ExitCode::FAILURE
        }
    }
}
