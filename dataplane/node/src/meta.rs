//! What a task keeps on disk beside its blocks: where it came from, and what proves them.

use dragonfly_proto::trust::{EpochCert, Verifier};
use serde::{Deserialize, Serialize};

/// What is kept with a task over restarts, beside its blocks.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Meta {
    /// Where it came from, secrets removed.
    pub url: String,
    /// As the origin said.
    pub content_type: String,
    /// As the origin said: the bytes are stored as they were sent.
    pub content_encoding: String,
    /// The origin's validator.
    pub validator: String,
    /// `sha256:<hex>` the content was asked for by; checked at the end.
    pub digest: String,
    /// Certificates of the epochs whose signatures the blocks carry, hexadecimal.
    pub epochs: Vec<String>,
    /// The signed size of content whose origin gave no length, hexadecimal (size, epoch, signature).
    pub size: Option<(u64, u32, String)>,
    /// Fetched without a lease while no scheduler could be asked: no other node could check the
    /// blocks, so they serve this node's clients only.
    #[serde(default)]
    pub unproven: bool,
    /// Where `unproven`: what names the content in the mesh, so that it can be proven later. The
    /// source's identity, hexadecimal.
    #[serde(default, rename = "request")]
    pub identity: String,
    /// Its isolation domain: empty for shared public content.
    #[serde(default)]
    pub domain: String,
    /// To be deleted when its last reader is done, or with the next start.
    #[serde(default)]
    pub doomed: bool,
}

impl Meta {
    /// The certificates, decoded.
    #[must_use]
    pub fn epoch_bytes(&self) -> Vec<Vec<u8>> {
        self.epochs.iter().filter_map(|e| from_hex(e)).collect()
    }

    /// Tells a verifier of the certificates.
    pub(crate) fn certify(&self, verifier: &mut Verifier) {
        for bytes in self.epoch_bytes() {
            let Ok(cert) = EpochCert::decode(&bytes) else {
                continue;
            };
            if let Err(error) = verifier.add_epoch(&cert) {
                // No scheduler was reached yet, or the blocks are of a mesh with another authority.
                tracing::debug!(task = %cert.content.short(), %error, "a kept certificate");
            }
        }
    }
}

/// Bytes as hexadecimal text.
pub(crate) fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Bytes of a hexadecimal text.
pub(crate) fn from_hex(s: &str) -> Option<Vec<u8>> {
    let nibbles: Option<Vec<u8>> = s.chars().map(|c| c.to_digit(16).map(|d| d as u8)).collect();
    let nibbles = nibbles.filter(|n| n.len().is_multiple_of(2))?;
    Some(nibbles.chunks_exact(2).map(|p| p[0] << 4 | p[1]).collect())
}
