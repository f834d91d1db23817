//! The manifests that a mesh of processes is started from.

use std::path::Path;

use crate::mesh::Options;
use crate::{Failed, Result, binary};

/// A machine for tests may be fuller than a node of the world would let its disk be.
const WHOLE_VOLUME: &str = "  storage: {reserveFreePercent: 0}\n";

/// The samples of a mesh, as they are but for what the options say and the room that they may take.
///
/// # Errors
/// They cannot be read or written.
pub fn write(to: &Path, options: &Options) -> Result<()> {
    let samples = binary::samples()?;
    for name in ["distribution.yaml", "schedulerpool.yaml"] {
        let from = samples.join(name);
        let text = std::fs::read_to_string(&from).map_err(|e| Failed::at(from.display(), e))?;
        let mut text = text.trim_end().to_owned() + "\n";
        if name == "distribution.yaml" {
            if options.plaintext {
                text.push_str("  security: {transport: Plaintext}\n");
            }
            text.push_str(&options.spec);
            if !options.spec.contains("storage:") {
                text.push_str(WHOLE_VOLUME);
            }
        }
        let to = to.join(name);
        std::fs::write(&to, text).map_err(|e| Failed::at(to.display(), e))?;
    }
    Ok(())
}
