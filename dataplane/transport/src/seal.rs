//! What only a mesh's seeds may read, although it passes through its schedulers: HPKE (RFC 9180, X25519,
//! HKDF-SHA256, AES-128-GCM) for a key that whoever gives certificates gives to seeds alone.
//!
//! A scheduler keeps what clients show origins for as long as a content is wanted, so that another seed
//! can take over. Sealed, that is of no use to it, nor to whoever reads its memory or its connections.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::agreement::{PrivateKey, X25519};
use rustls::crypto::aws_lc_rs::hpke::DH_KEM_X25519_HKDF_SHA256_AES_128;
use rustls::crypto::hpke::{EncapsulatedSecret, Hpke as _, HpkePrivateKey, HpkePublicKey};

/// What a sealed text is for: one of another use is none of these.
const INFO: &[u8] = b"dragonfly 2026-11 shown to an origin v1";

/// Bytes of a key.
const KEY: usize = 32;

/// Why something sealed is not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// It is for a key that is not here; it may come with another certificate.
    #[error("it is sealed for a key that this node does not have")]
    UnknownKey,
    /// It was not made for this, or was changed since.
    #[error("it is broken: somebody changed it on its way")]
    Broken,
    /// What should be a key is none.
    #[error("a key that is none")]
    Key,
}

/// Opens what was sealed for its public half. Clones share the secret.
#[derive(Clone)]
pub struct OpeningKey {
    public: [u8; KEY],
    secret: Arc<HpkePrivateKey>,
}

impl fmt::Debug for OpeningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OpeningKey(..)")
    }
}

impl OpeningKey {
    /// Bytes of its secret.
    pub const LEN: usize = KEY;

    /// Of its secret.
    ///
    /// # Errors
    /// [`SealError::Key`]: it is not 32 bytes.
    pub fn new(secret: &[u8]) -> Result<Self, SealError> {
        let key = PrivateKey::from_private_key(&X25519, secret).map_err(|_| SealError::Key)?;
        let public = key.compute_public_key().map_err(|_| SealError::Key)?;
        Ok(Self {
            public: public.as_ref().try_into().map_err(|_| SealError::Key)?,
            secret: Arc::new(secret.to_vec().into()),
        })
    }

    /// The one that belongs to another secret, such as a CA's key: whoever has that has this.
    ///
    /// # Errors
    /// [`SealError::Key`]: the library refuses it.
    pub fn derived(from: &[u8]) -> Result<Self, SealError> {
        Self::new(&blake3::derive_key(
            "dragonfly 2026-11 opening key v1",
            from,
        ))
    }

    /// Its public half.
    #[must_use]
    pub const fn public(&self) -> &[u8; KEY] {
        &self.public
    }

    /// Its secret, to be given to a seed.
    #[must_use]
    pub fn secret(&self) -> &[u8] {
        self.secret.secret_bytes()
    }
}

/// A text that whoever holds the key's secret can read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedText {
    /// The public key that it is for.
    pub key: Vec<u8>,
    /// HPKE's encapsulated secret.
    pub encapsulated: Vec<u8>,
    /// Ciphertext and tag.
    pub text: Vec<u8>,
}

/// The keys that one has: to seal, and to open.
#[derive(Debug, Clone, Default)]
pub struct Sealing {
    /// Whom to seal for; `None` in a mesh without, such as one in plaintext.
    pub seal_for: Option<[u8; KEY]>,
    /// A seed's.
    pub open_with: Vec<OpeningKey>,
}

impl Sealing {
    /// Seals a text; `None` where there is nobody to seal for.
    ///
    /// # Errors
    /// [`SealError::Key`]: what was given as a key is none.
    pub fn seal(&self, text: &[u8]) -> Result<Option<SealedText>, SealError> {
        let Some(key) = &self.seal_for else {
            return Ok(None);
        };
        let to = HpkePublicKey(key.to_vec());
        let (encapsulated, text) = DH_KEM_X25519_HKDF_SHA256_AES_128
            .seal(INFO, &[], text, &to)
            .map_err(|_| SealError::Key)?;
        Ok(Some(SealedText {
            key: key.to_vec(),
            encapsulated: encapsulated.0,
            text,
        }))
    }

    /// Opens what [`Self::seal`] made.
    ///
    /// # Errors
    /// [`SealError::UnknownKey`], or [`SealError::Broken`].
    pub fn open(&self, sealed: &SealedText) -> Result<Vec<u8>, SealError> {
        let is_for = |key: &&OpeningKey| key.public[..] == sealed.key;
        let key = self.open_with.iter().find(is_for);
        let key = key.ok_or(SealError::UnknownKey)?;
        let encapsulated = EncapsulatedSecret(sealed.encapsulated.clone());
        DH_KEM_X25519_HKDF_SHA256_AES_128
            .open(&encapsulated, INFO, &[], &sealed.text, &key.secret)
            .map_err(|_| SealError::Broken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(of: &[u8]) -> Sealing {
        let key = OpeningKey::derived(of).unwrap();
        Sealing {
            seal_for: Some(*key.public()),
            open_with: vec![key],
        }
    }

    #[test]
    fn who_has_the_key_reads_what_was_sealed_and_nobody_else() {
        let (ours, theirs) = (keys(b"ours"), keys(b"theirs"));
        let peer = Sealing {
            open_with: vec![],
            ..ours.clone()
        };
        let sealed = peer.seal(b"Bearer secret").unwrap().unwrap();
        assert!(!sealed.text.windows(6).any(|w| w == b"secret"));
        assert_eq!(ours.open(&sealed).unwrap(), b"Bearer secret");
        assert_eq!(theirs.open(&sealed), Err(SealError::UnknownKey));
        assert_eq!(peer.open(&sealed), Err(SealError::UnknownKey));
        // Under the name of another key.
        let renamed = SealedText {
            key: theirs.seal_for.unwrap().to_vec(),
            ..sealed
        };
        assert_eq!(theirs.open(&renamed), Err(SealError::Broken));
        assert_eq!(Sealing::default().seal(b"x"), Ok(None));
    }

    #[test]
    fn what_was_changed_on_its_way_is_broken_and_nothing_panics() {
        let ours = keys(b"ours");
        let sealed = ours.seal(b"https://host/file").unwrap().unwrap();
        for _ in 0..2_000 {
            let mut changed = sealed.clone();
            let part = match fastrand::u8(..2) {
                0 => &mut changed.encapsulated,
                _ => &mut changed.text,
            };
            match fastrand::u8(..3) {
                0 => part.truncate(fastrand::usize(..part.len())),
                1 => part.push(fastrand::u8(..)),
                _ => {
                    let at = fastrand::usize(..part.len());
                    part[at] ^= 1 << fastrand::u8(..7);
                }
            }
            assert_eq!(ours.open(&changed), Err(SealError::Broken));
        }
    }

    #[test]
    fn a_key_comes_back_from_its_secret() {
        let key = OpeningKey::derived(b"x").unwrap();
        let again = OpeningKey::new(key.secret()).unwrap();
        assert_eq!(again.public(), key.public());
        for wrong in [&[][..], &[1; 31], &[1; 33]] {
            assert_eq!(OpeningKey::new(wrong).unwrap_err(), SealError::Key);
        }
        assert!(!format!("{key:?}").contains("secret"));
    }
}
