//! What a task keeps on disk beside its blocks: where it came from, and what proves them.

use dragonfly_proto::id::{ContentKey, is_opened_domain};
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
    /// Where `unproven`: what names the content in the mesh, so that it can be proven later: the source's
    /// identity. Of a content that is given by its digest: the request that its blocks are read for.
    /// Hexadecimal.
    #[serde(default)]
    pub request: String,
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

    /// Of a content that is known by its digest: the request whose source its blocks are of.
    pub(crate) fn reads(&self, content: &ContentKey) -> Vec<u8> {
        let by_digest = *content == ContentKey::from_digest(&self.domain, &self.digest)
            && !is_opened_domain(&self.domain);
        let request = by_digest.then(|| from_hex(&self.request));
        request.flatten().unwrap_or_default()
    }

    /// Whether the whole was compared with the digest that it was asked for by.
    pub(crate) fn compared(&self, held: &dragonfly_storage::Task) -> bool {
        held.verified().is_some_and(|digest| digest == self.digest)
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
