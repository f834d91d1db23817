//! Trust in blocks before the whole content is there.
//!
//! Whoever holds the lease on a task's origin (a seed; a peer only where policy lets peers go to
//! the origin) signs the Merkle root of each run of 1 to [`MAX_RUN`] blocks that became ready
//! together. Every block travels with its [`Proof`] (path and signature), unchanged through every
//! relay and every restart, so whoever relays needs no trust. The mesh's authority certifies the
//! lease-holder's key for one content and epoch ([`EpochCert`]).
//!
//! A leaf binds index, length and BLAKE3 hash. A run need not be contiguous: the position in the
//! tree says nothing about the index.

use std::collections::{BTreeMap, VecDeque};

use crate::id::{ContentKey, NodeId};
use crate::sign::{PublicKey, Signature, SigningKey, verify};

/// Most blocks under one signature.
pub const MAX_RUN: usize = 16;
/// Deepest Merkle path: log2 of [`MAX_RUN`].
pub const MAX_PATH: usize = 4;
/// Longest encoded proof, bytes.
pub const MAX_PROOF: usize = 4 + 1 + 1 + MAX_PATH * 32 + 64;
/// Most epochs that a verifier keeps: leases change with failures, not with load.
pub const MAX_EPOCHS: usize = 64;

const RUN: &str = "dragonfly 2026-11 signed run v1";
const EPOCH: &str = "dragonfly 2026-11 epoch certificate v1";
const SIZE: &str = "dragonfly 2026-11 signed size v1";
const CLAIM: &str = "dragonfly 2026-11 emitter claim v1";
const LEAF: u8 = 0;
const NODE: u8 = 1;

/// Why a block or a statement about a task is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    /// Bytes that are no proof.
    #[error("malformed proof")]
    Malformed,
    /// No certificate for this epoch is known.
    #[error("no certificate for epoch {0} of this task")]
    UnknownEpoch(u32),
    /// The certificate is not signed by an authority of this mesh, or is for another content.
    #[error("the certificate of epoch {0} is not from this mesh's authority for this task")]
    BadCertificate(u32),
    /// The bytes do not hash to what the lease-holder signed.
    #[error("block {0} is not what the lease-holder of its epoch signed")]
    BadBlock(u32),
    /// Whoever says that it holds the lease does not hold the key of the epoch it names.
    #[error("the node says that it holds the lease of epoch {0} and does not hold its key")]
    BadClaim(u32),
    /// A size that the lease-holder did not sign.
    #[error("the stated size is not signed by a lease-holder")]
    BadSize,
    /// Two sizes, both signed.
    #[error("two different sizes are signed for this task")]
    SizeConflict,
}

/// The authority's word that a key holds the lease on one content in one epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EpochCert {
    /// The content.
    pub content: ContentKey,
    /// Counts leases of this content; unique for a content in a mesh.
    pub epoch: u32,
    /// The lease-holder's key.
    pub key: PublicKey,
    /// By the authority.
    pub signature: Signature,
}

impl EpochCert {
    /// Encoded length, bytes.
    pub const LEN: usize = 32 + 4 + 32 + 64;

    /// Certifies `key`.
    #[must_use]
    pub fn issue(authority: &SigningKey, content: ContentKey, epoch: u32, key: PublicKey) -> Self {
        let signature = authority.sign(EPOCH, &[&content.0, &epoch.to_le_bytes(), &key]);
        Self {
            content,
            epoch,
            key,
            signature,
        }
    }

    /// Whether one of `authorities` issued it.
    #[must_use]
    pub fn is_from(&self, authorities: &[PublicKey]) -> bool {
        let parts: [&[u8]; 3] = [&self.content.0, &self.epoch.to_le_bytes(), &self.key];
        authorities
            .iter()
            .any(|a| verify(a, EPOCH, &parts, &self.signature))
    }

    /// The bytes on the wire and on disk.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        out[..32].copy_from_slice(&self.content.0);
        out[32..36].copy_from_slice(&self.epoch.to_le_bytes());
        out[36..68].copy_from_slice(&self.key);
        out[68..].copy_from_slice(&self.signature);
        out
    }

    /// Reads [`Self::encode`]'s bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, TrustError> {
        let b: &[u8; Self::LEN] = bytes.try_into().map_err(|_| TrustError::Malformed)?;
        Ok(Self {
            content: ContentKey(array(&b[..32])?),
            epoch: u32::from_le_bytes(array(&b[32..36])?),
            key: array(&b[36..68])?,
            signature: array(&b[68..])?,
        })
    }
}

/// A node's word that it holds a lease: who has not the certified key cannot give it, and who copies
/// another's is another node than the one that signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EmitterClaim {
    /// Of the epoch it emits under.
    pub cert: EpochCert,
    /// By the certified key, over content, epoch and the node that claims.
    pub signature: Signature,
}

impl EmitterClaim {
    /// Encoded length, bytes.
    pub const LEN: usize = EpochCert::LEN + 64;

    /// Whether `node`, which the transport knows, holds the certified key. That the certificate is
    /// this mesh's, and for this content, is for [`Verifier::add_epoch`] to say.
    ///
    /// # Errors
    /// [`TrustError::BadClaim`].
    pub fn check(&self, node: &NodeId) -> Result<(), TrustError> {
        let EpochCert { content, epoch, .. } = &self.cert;
        let parts: [&[u8]; 3] = [&content.0, &epoch.to_le_bytes(), &node.0];
        verify(&self.cert.key, CLAIM, &parts, &self.signature)
            .then_some(())
            .ok_or(TrustError::BadClaim(*epoch))
    }

    /// The bytes on the wire.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        out[..EpochCert::LEN].copy_from_slice(&self.cert.encode());
        out[EpochCert::LEN..].copy_from_slice(&self.signature);
        out
    }

    /// Reads [`Self::encode`]'s bytes.
    ///
    /// # Errors
    /// [`TrustError::Malformed`] when they are too few or too many.
    pub fn decode(bytes: &[u8]) -> Result<Self, TrustError> {
        let (cert, signature) = bytes
            .split_at_checked(EpochCert::LEN)
            .ok_or(TrustError::Malformed)?;
        Ok(Self {
            cert: EpochCert::decode(cert)?,
            signature: array(signature)?,
        })
    }
}

fn array<const N: usize>(b: &[u8]) -> Result<[u8; N], TrustError> {
    b.try_into().map_err(|_| TrustError::Malformed)
}

/// What makes a block checkable by anybody who knows the epoch's key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// Under whose key.
    pub epoch: u32,
    /// Position of the leaf in its run.
    pub position: u8,
    /// Siblings from the leaf up, at most [`MAX_PATH`].
    pub path: Vec<[u8; 32]>,
    /// The lease-holder's signature of the root.
    pub signature: Signature,
}

impl Proof {
    /// Appends the encoded proof.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.epoch.to_le_bytes());
        out.extend_from_slice(&[self.position, self.path.len() as u8]);
        self.path.iter().for_each(|p| out.extend_from_slice(p));
        out.extend_from_slice(&self.signature);
    }

    /// Reads [`Self::encode`]'s bytes; all of them, nothing more.
    pub fn decode(bytes: &[u8]) -> Result<Self, TrustError> {
        let (head, rest) = bytes.split_at_checked(6).ok_or(TrustError::Malformed)?;
        let depth = usize::from(head[5]);
        if depth > MAX_PATH || usize::from(head[4]) >= 1 << depth || rest.len() != depth * 32 + 64 {
            return Err(TrustError::Malformed);
        }
        let (path, signature) = rest.split_at(depth * 32);
        Ok(Self {
            epoch: u32::from_le_bytes(array(&head[..4])?),
            position: head[4],
            path: path.chunks_exact(32).map(array).collect::<Result<_, _>>()?,
            signature: array(signature)?,
        })
    }
}

/// One block of a run: index, length, BLAKE3 of its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leaf {
    /// Which block.
    pub index: u32,
    /// Its bytes.
    pub len: u32,
    /// BLAKE3 of them.
    pub hash: [u8; 32],
}

impl Leaf {
    fn node(&self) -> [u8; 32] {
        let mut h = blake3::Hasher::new();
        h.update(&[LEAF]);
        h.update(&self.index.to_le_bytes());
        h.update(&self.len.to_le_bytes());
        h.update(&self.hash);
        *h.finalize().as_bytes()
    }
}

fn parent(left: &[u8; 32], right: &[u8; 32]) -> [u8; 32] {
    let mut h = blake3::Hasher::new();
    h.update(&[NODE]);
    h.update(left);
    h.update(right);
    *h.finalize().as_bytes()
}

/// Signs a lease-holder's runs.
#[derive(Debug, Clone)]
pub struct RunSigner {
    key: std::sync::Arc<SigningKey>,
    content: ContentKey,
    epoch: u32,
}

impl RunSigner {
    /// The signer of one lease.
    #[must_use]
    pub const fn new(key: std::sync::Arc<SigningKey>, content: ContentKey, epoch: u32) -> Self {
        Self {
            key,
            content,
            epoch,
        }
    }

    /// Under which epoch it signs.
    #[must_use]
    pub const fn epoch(&self) -> u32 {
        self.epoch
    }

    /// One signature for 1 to [`MAX_RUN`] blocks; a proof for each, in order. An odd node rises
    /// beside a copy of itself, so every path of a run has the same depth. More leaves than
    /// [`MAX_RUN`] are signed as several runs.
    #[must_use]
    pub fn sign(&self, leaves: &[Leaf]) -> Vec<Proof> {
        leaves
            .chunks(MAX_RUN)
            .flat_map(|run| self.sign_run(run))
            .collect()
    }

    fn sign_run(&self, leaves: &[Leaf]) -> Vec<Proof> {
        let mut level: Vec<[u8; 32]> = leaves.iter().map(Leaf::node).collect();
        let mut paths = vec![Vec::with_capacity(MAX_PATH); leaves.len()];
        let mut depth = 0;
        while level.len() > 1 {
            for (i, path) in paths.iter_mut().enumerate() {
                let at = i >> depth;
                path.push(*level.get(at ^ 1).unwrap_or(&level[at]));
            }
            level = level
                .chunks(2)
                .map(|p| parent(&p[0], p.last().unwrap_or(&p[0])))
                .collect();
            depth += 1;
        }
        let root = level.first().copied().unwrap_or_default();
        let signature = self
            .key
            .sign(RUN, &[&self.content.0, &self.epoch.to_le_bytes(), &root]);
        let proof = |(i, path)| Proof {
            epoch: self.epoch,
            position: i as u8,
            path,
            signature,
        };
        paths.into_iter().enumerate().map(proof).collect()
    }

    /// Says for `node` that it holds this lease, which `cert` certifies; `None` when that is another's.
    #[must_use]
    pub fn claim(&self, cert: &EpochCert, node: &NodeId) -> Option<EmitterClaim> {
        let mine = cert.key == *self.key.public()
            && (cert.content, cert.epoch) == (self.content, self.epoch);
        let parts: [&[u8]; 3] = [&self.content.0, &self.epoch.to_le_bytes(), &node.0];
        mine.then(|| EmitterClaim {
            cert: *cert,
            signature: self.key.sign(CLAIM, &parts),
        })
    }

    /// States the length of content whose origin did not say it.
    #[must_use]
    pub fn sign_size(&self, total_len: u64) -> SignedSize {
        let parts: [&[u8]; 3] = [
            &self.content.0,
            &self.epoch.to_le_bytes(),
            &total_len.to_le_bytes(),
        ];
        SignedSize {
            total_len,
            epoch: self.epoch,
            signature: self.key.sign(SIZE, &parts),
        }
    }
}

/// A lease-holder's word on the length of a content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SignedSize {
    /// Bytes.
    pub total_len: u64,
    /// Under whose key.
    pub epoch: u32,
    /// The lease-holder's.
    pub signature: Signature,
}

/// Checks blocks and sizes of one content against the epochs it was told of.
///
/// A root once verified is remembered (64 of them), so a run costs one signature check.
#[derive(Debug)]
pub struct Verifier {
    content: ContentKey,
    authorities: Vec<PublicKey>,
    epochs: BTreeMap<u32, EpochCert>,
    roots: VecDeque<(u32, [u8; 32], Signature)>,
}

/// Verified roots kept: the runs in flight from a dozen neighbours.
const ROOTS: usize = 64;

impl Verifier {
    /// Knows no epoch yet.
    #[must_use]
    pub const fn new(content: ContentKey, authorities: Vec<PublicKey>) -> Self {
        Self {
            content,
            authorities,
            epochs: BTreeMap::new(),
            roots: VecDeque::new(),
        }
    }

    /// The mesh's authorities, or another of them, are known by now.
    pub fn trust(&mut self, authorities: &[PublicKey]) {
        for key in authorities {
            if !self.authorities.contains(key) {
                self.authorities.push(*key);
            }
        }
    }

    /// Takes a certificate; true when it is new. Past [`MAX_EPOCHS`] the oldest is forgotten.
    pub fn add_epoch(&mut self, cert: &EpochCert) -> Result<bool, TrustError> {
        if self.epochs.get(&cert.epoch) == Some(cert) {
            return Ok(false);
        }
        let bad = TrustError::BadCertificate(cert.epoch);
        // A second key for a known epoch would let two holders speak as one.
        if cert.content != self.content || self.epochs.contains_key(&cert.epoch) {
            return Err(bad);
        }
        if !cert.is_from(&self.authorities) {
            return Err(bad);
        }
        self.epochs.insert(cert.epoch, *cert);
        if self.epochs.len() > MAX_EPOCHS {
            self.epochs.pop_first();
        }
        Ok(true)
    }

    /// The epochs known, oldest first.
    pub fn epochs(&self) -> impl Iterator<Item = &EpochCert> {
        self.epochs.values()
    }

    /// Whether the lease-holder of the proof's epoch signed this block.
    pub fn check(&mut self, leaf: &Leaf, proof: &Proof) -> Result<(), TrustError> {
        let cert = self
            .epochs
            .get(&proof.epoch)
            .ok_or(TrustError::UnknownEpoch(proof.epoch))?;
        let mut node = leaf.node();
        let mut at = proof.position;
        for sibling in &proof.path {
            node = if at & 1 == 0 {
                parent(&node, sibling)
            } else {
                parent(sibling, &node)
            };
            at >>= 1;
        }
        let root = (proof.epoch, node, proof.signature);
        if self.roots.contains(&root) {
            return Ok(());
        }
        let parts: [&[u8]; 3] = [&self.content.0, &proof.epoch.to_le_bytes(), &node];
        if !verify(&cert.key, RUN, &parts, &proof.signature) {
            return Err(TrustError::BadBlock(leaf.index));
        }
        if self.roots.len() == ROOTS {
            self.roots.pop_front();
        }
        self.roots.push_back(root);
        Ok(())
    }

    /// Whether a lease-holder signed this size.
    pub fn check_size(&self, size: &SignedSize) -> Result<(), TrustError> {
        let cert = self
            .epochs
            .get(&size.epoch)
            .ok_or(TrustError::UnknownEpoch(size.epoch))?;
        let parts: [&[u8]; 3] = [
            &self.content.0,
            &size.epoch.to_le_bytes(),
            &size.total_len.to_le_bytes(),
        ];
        verify(&cert.key, SIZE, &parts, &size.signature)
            .then_some(())
            .ok_or(TrustError::BadSize)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;

    fn leaf(index: u32) -> Leaf {
        Leaf {
            index,
            len: 65536,
            hash: *blake3::hash(&index.to_le_bytes()).as_bytes(),
        }
    }

    fn lease() -> (SigningKey, RunSigner, Verifier) {
        let (authority, _) = SigningKey::generate().unwrap();
        let (key, _) = SigningKey::generate().unwrap();
        let content = ContentKey([7; 32]);
        let mut v = Verifier::new(content, vec![*authority.public()]);
        v.add_epoch(&EpochCert::issue(&authority, content, 3, *key.public()))
            .unwrap();
        (authority, RunSigner::new(Arc::new(key), content, 3), v)
    }

    #[test]
    fn every_block_of_a_run_of_any_length_checks_and_no_other_does() {
        let (_, signer, mut v) = lease();
        for n in 1..=20 {
            let leaves: Vec<_> = (0..n).map(|i| leaf(i * 3)).collect();
            let proofs = signer.sign(&leaves);
            assert_eq!(proofs.len(), leaves.len());
            for (l, p) in leaves.iter().zip(&proofs) {
                let mut bytes = vec![];
                p.encode(&mut bytes);
                assert!(bytes.len() <= MAX_PROOF);
                assert_eq!(Proof::decode(&bytes).as_ref(), Ok(p));
                assert_eq!(v.check(l, p), Ok(()));
                let other = Leaf {
                    index: l.index + 1,
                    ..*l
                };
                assert_eq!(v.check(&other, p), Err(TrustError::BadBlock(l.index + 1)));
                let shorter = Leaf { len: 1, ..*l };
                assert!(v.check(&shorter, p).is_err());
            }
        }
    }

    #[test]
    fn a_certificate_counts_only_from_the_authority_for_this_content_and_once_an_epoch() {
        let (authority, signer, mut v) = lease();
        let (stranger, _) = SigningKey::generate().unwrap();
        let content = ContentKey([7; 32]);
        let key = *stranger.public();
        for bad in [
            EpochCert::issue(&stranger, content, 4, key),
            EpochCert::issue(&authority, ContentKey([8; 32]), 4, key),
            EpochCert::issue(&authority, content, 3, key),
        ] {
            assert_eq!(
                v.add_epoch(&bad),
                Err(TrustError::BadCertificate(bad.epoch))
            );
        }
        let good = EpochCert::issue(&authority, content, 4, key);
        // Who does not know the authority yet believes it later.
        let mut early = Verifier::new(content, vec![]);
        assert!(early.add_epoch(&good).is_err());
        early.trust(&[*authority.public()]);
        assert_eq!(early.add_epoch(&good), Ok(true));
        assert_eq!(EpochCert::decode(&good.encode()), Ok(good));
        assert_eq!(v.add_epoch(&good), Ok(true));
        assert_eq!(v.add_epoch(&good), Ok(false));
        let size = signer.sign_size(12345);
        assert_eq!(v.check_size(&size), Ok(()));
        assert_eq!(
            v.check_size(&SignedSize {
                total_len: 1,
                ..size
            }),
            Err(TrustError::BadSize)
        );
    }

    #[test]
    fn a_lease_is_claimed_only_by_the_node_and_the_key_that_hold_it() {
        let (authority, signer, _) = lease();
        let (me, other) = (NodeId([1; 16]), NodeId([2; 16]));
        let content = ContentKey([7; 32]);
        let cert = EpochCert::issue(&authority, content, 3, *signer.key.public());
        let claim = signer.claim(&cert, &me).unwrap();
        assert_eq!(EmitterClaim::decode(&claim.encode()), Ok(claim));
        assert_eq!(claim.check(&me), Ok(()));
        assert_eq!(claim.check(&other), Err(TrustError::BadClaim(3)));
        let (stranger, _) = SigningKey::generate().unwrap();
        let forged = RunSigner::new(Arc::new(stranger), content, 3);
        assert_eq!(forged.claim(&cert, &me), None);
        for changed in [
            EpochCert { epoch: 4, ..cert },
            EpochCert {
                content: ContentKey([8; 32]),
                ..cert
            },
        ] {
            assert_eq!(signer.claim(&changed, &me), None);
            let changed = EmitterClaim {
                cert: changed,
                ..claim
            };
            assert!(changed.check(&me).is_err());
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_a_proof_only_if_they_encode_back(b in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(p) = Proof::decode(&b) {
                let mut out = vec![];
                p.encode(&mut out);
                prop_assert_eq!(out, b);
            }
        }
    }
}
