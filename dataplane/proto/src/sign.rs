//! Ed25519 (RFC 8032) over messages that begin with their purpose, so that a signature made for
//! one purpose can never pass for another.

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};

/// A public key.
pub type PublicKey = [u8; 32];
/// A signature.
pub type Signature = [u8; 64];

/// A signing key: the authority's, or a lease-holder's.
pub struct SigningKey {
    pair: Ed25519KeyPair,
    public: PublicKey,
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SigningKey(public {:02x?})", &self.public[..4])
    }
}

/// A key that could not be made or read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The operating system gave no randomness.
    #[error("no randomness for a new signing key")]
    Random,
    /// Not a PKCS#8 Ed25519 key.
    #[error("not an Ed25519 private key in PKCS#8")]
    Invalid,
}

impl SigningKey {
    /// A new key and its PKCS#8 encoding, to be kept secret.
    pub fn generate() -> Result<(Self, Vec<u8>), KeyError> {
        let rng = aws_lc_rs::rand::SystemRandom::new();
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&rng).map_err(|_| KeyError::Random)?;
        Ok((Self::from_pkcs8(pkcs8.as_ref())?, pkcs8.as_ref().to_vec()))
    }

    /// Reads a key that [`Self::generate`] made.
    pub fn from_pkcs8(bytes: &[u8]) -> Result<Self, KeyError> {
        let pair = Ed25519KeyPair::from_pkcs8(bytes).map_err(|_| KeyError::Invalid)?;
        let public = pair
            .public_key()
            .as_ref()
            .try_into()
            .map_err(|_| KeyError::Invalid)?;
        Ok(Self { pair, public })
    }

    /// The public half.
    #[must_use]
    pub const fn public(&self) -> &PublicKey {
        &self.public
    }

    /// Signs `parts` for `purpose`.
    #[must_use]
    pub fn sign(&self, purpose: &str, parts: &[&[u8]]) -> Signature {
        let mut out = [0; 64];
        let sig = self.pair.sign(&message(purpose, parts));
        out.copy_from_slice(&sig.as_ref()[..64]);
        out
    }
}

/// Whether `signature` over `parts` for `purpose` was made with the private half of `key`.
#[must_use]
pub fn verify(key: &PublicKey, purpose: &str, parts: &[&[u8]], signature: &Signature) -> bool {
    UnparsedPublicKey::new(&ED25519, key)
        .verify(&message(purpose, parts), signature)
        .is_ok()
}

fn message(purpose: &str, parts: &[&[u8]]) -> [u8; 32] {
    let mut h = blake3::Hasher::new_derive_key(purpose);
    for p in parts {
        h.update(&(p.len() as u64).to_le_bytes());
        h.update(p);
    }
    *h.finalize().as_bytes()
}
