//! SHA-256, as digests are written.

use std::fs::File;
use std::io::{self, Read};

use aws_lc_rs::digest::{Context, SHA256};

/// A hash under way.
#[derive(Clone)]
pub(crate) struct Hash(Context);

impl Hash {
    pub(crate) fn new() -> Self {
        Self(Context::new(&SHA256))
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// `sha256:<hex>`.
    pub(crate) fn digest(self) -> String {
        let sum = self.0.finish();
        let hex: String = sum.as_ref().iter().map(|b| format!("{b:02x}")).collect();
        format!("sha256:{hex}")
    }
}

/// `sha256:<hex>` of a file from where it stands, and how many bytes that was. Blocks.
///
/// # Errors
/// The file cannot be read.
pub fn digest_of(file: &mut File) -> io::Result<(String, u64)> {
    let mut hash = Hash::new();
    let mut buf = vec![0; 1 << 20];
    let mut len = 0;
    loop {
        match file.read(&mut buf) {
            Ok(0) => return Ok((hash.digest(), len)),
            Ok(n) => {
                hash.update(&buf[..n]);
                len += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}
