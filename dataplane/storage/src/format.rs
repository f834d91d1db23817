//! The bytes on disk: pure encoders and decoders, no input or output.
//!
//! A task is three files. `<key>.data` is the content itself, sparse, every block at its own offset.
//! `<key>.meta` is the node's opaque metadata under a checksum, replaced as a whole.
//! `<key>.index` says what is held; integers are little-endian:
//!
//! ```text
//! 0     header slot A, 512 bytes ┐ written in turn; the valid one with the higher sequence counts,
//! 512   header slot B, 512 bytes ┘ so a torn header write loses nothing
//! 4096  record of block 0, 320 bytes
//! 4416  record of block 1 …
//! slot:   magic "DFLYTASK" | version u16 | flags u16 (1 complete, 2 pinned) | block size u32
//!         | sequence u64 | content key 32 | total length u64 (all ones: unknown)
//!         | durable epoch u32 | digest length u16 | 0 u16 | last used u64 | boot id 16
//!         | verified digest 160 | zeros | checksum 16 at 496
//! record: state u8 (1 held) | 0 u8 | proof length u16 | block length u32 | epoch u32 | index u32
//!         | BLAKE3 32 | proof 256 | checksum 8 | zeros 8
//! ```
//!
//! `requests` is a log of 80-byte records (request key, content key, time, checksum) after one
//! 80-byte header. Magic and version stay where they are in every later version, so that any release
//! can tell that a file is not for it. Nothing read is believed before its checksum; the checksums
//! of records and metadata are keyed by the content key, so that a file under a wrong name is
//! noticed as well. Public only for the fuzz targets.

use dragonfly_proto::id::{ContentKey, RequestKey};

use dragonfly_proto::geometry::Geometry;

/// Version that is written.
pub const VERSION: u16 = 1;
/// Bytes of one header slot.
pub const SLOT: usize = 512;
/// Bytes of one block record.
pub const RECORD: usize = 320;
/// Where the records begin.
pub const RECORDS_AT: u64 = 4096;
/// Longest proof of a block.
pub const MAX_PROOF: usize = 256;
/// Longest metadata of a task.
pub const MAX_META: usize = 64 * 1024;
/// Longest digest that a task may be verified against.
pub const MAX_DIGEST: usize = 160;
/// Bytes of one entry of the request log.
pub const REQUEST: usize = 80;
/// Bytes before the metadata itself.
pub const META_HEAD: usize = 32;

const TASK_MAGIC: &[u8; 8] = b"DFLYTASK";
const META_MAGIC: &[u8; 8] = b"DFLYMETA";
const REQUESTS_MAGIC: &[u8; 8] = b"DFLYREQS";
const SLOT_SUM_AT: usize = SLOT - 16;
const RECORD_SUM_AT: usize = 48 + MAX_PROOF;
const FLAG_COMPLETE: u16 = 1;
const FLAG_PINNED: u16 = 2;

/// Why a file cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing was written yet (or none of it survived): a leftover of a crash.
    Empty,
    /// Not a file of ours.
    Foreign,
    /// Written by a release that this one does not know.
    UnknownVersion(u16),
    /// Ours, and its checksum is wrong.
    Corrupt,
}

/// What the header of a task's index says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Rises with every write; chooses the slot.
    pub sequence: u64,
    /// Which content.
    pub key: ContentKey,
    /// How it is cut.
    pub geometry: Geometry,
    /// Records of this epoch or an older one were synchronised to the medium with their data.
    pub durable_epoch: u32,
    /// Which boot of the kernel wrote the records of later epochs.
    pub boot: [u8; 16],
    /// Every block is held and durable: the records need not be scanned.
    pub complete: bool,
    /// Exempt from eviction.
    pub pinned: bool,
    /// Store time of the last use, milliseconds.
    pub last_used: u64,
    /// The digest that the content was verified against.
    pub verified: Option<String>,
}

/// What is known of one held block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Which block.
    pub index: u32,
    /// Its bytes.
    pub len: u32,
    /// Checkpoint epoch in which it was written.
    pub epoch: u32,
    /// BLAKE3 of its bytes.
    pub hash: [u8; 32],
    /// Opaque proof that goes with it.
    pub proof: Vec<u8>,
}

/// An entry of the request log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestRecord {
    /// What was asked for.
    pub request: RequestKey,
    /// What it resolved to; `None`: forgotten.
    pub content: Option<ContentKey>,
    /// When, milliseconds since the epoch of Unix.
    pub resolved_at: u64,
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

fn u16_at(b: &[u8], at: usize) -> Option<u16> {
    array(b, at).map(u16::from_le_bytes)
}

fn u32_at(b: &[u8], at: usize) -> Option<u32> {
    array(b, at).map(u32::from_le_bytes)
}

fn u64_at(b: &[u8], at: usize) -> Option<u64> {
    array(b, at).map(u64::from_le_bytes)
}

fn put(out: &mut [u8], at: usize, bytes: &[u8]) {
    out[at..at + bytes.len()].copy_from_slice(bytes);
}

fn sum<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&blake3::hash(bytes).as_bytes()[..N]);
    out
}

fn keyed_sum<const N: usize>(key: &ContentKey, bytes: &[u8]) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&blake3::keyed_hash(&key.0, bytes).as_bytes()[..N]);
    out
}

/// Where a block's record is in the index file.
#[must_use]
pub fn record_offset(index: u32) -> u64 {
    RECORDS_AT + u64::from(index) * RECORD as u64
}

impl Header {
    /// Where this header belongs in the index file.
    #[must_use]
    pub const fn slot_offset(&self) -> u64 {
        (self.sequence % 2) * SLOT as u64
    }

    /// The bytes of its slot. A digest longer than [`MAX_DIGEST`] is left out.
    #[must_use]
    pub fn encode(&self) -> [u8; SLOT] {
        let mut out = [0; SLOT];
        let flags = if self.complete { FLAG_COMPLETE } else { 0 }
            | if self.pinned { FLAG_PINNED } else { 0 };
        put(&mut out, 0, TASK_MAGIC);
        put(&mut out, 8, &VERSION.to_le_bytes());
        put(&mut out, 10, &flags.to_le_bytes());
        put(&mut out, 12, &self.geometry.block_size().to_le_bytes());
        put(&mut out, 16, &self.sequence.to_le_bytes());
        put(&mut out, 24, &self.key.0);
        put(
            &mut out,
            56,
            &self.geometry.total_len().unwrap_or(u64::MAX).to_le_bytes(),
        );
        put(&mut out, 64, &self.durable_epoch.to_le_bytes());
        let digest = self
            .verified
            .as_deref()
            .filter(|d| d.len() <= MAX_DIGEST)
            .unwrap_or("");
        put(&mut out, 68, &(digest.len() as u16).to_le_bytes());
        put(&mut out, 72, &self.last_used.to_le_bytes());
        put(&mut out, 80, &self.boot);
        put(&mut out, 96, digest.as_bytes());
        let check = sum::<16>(&out[..SLOT_SUM_AT]);
        put(&mut out, SLOT_SUM_AT, &check);
        out
    }

    /// Reads the header from the first bytes of an index file (both slots, or what there is).
    ///
    /// # Errors
    /// Why it cannot be used.
    pub fn decode(bytes: &[u8]) -> Result<Self, Fault> {
        let mut best: Option<Self> = None;
        let mut fault = Fault::Empty;
        for slot in bytes.chunks(SLOT).take(2) {
            match Self::decode_slot(slot) {
                Ok(h) if best.as_ref().is_none_or(|b| b.sequence < h.sequence) => best = Some(h),
                // A version from the future rules the whole file, whatever the other slot says.
                Err(Fault::UnknownVersion(v)) => return Err(Fault::UnknownVersion(v)),
                Ok(_) | Err(Fault::Empty) => {}
                Err(other) => fault = other,
            }
        }
        best.ok_or(fault)
    }

    fn decode_slot(slot: &[u8]) -> Result<Self, Fault> {
        let decode = match opening(slot, TASK_MAGIC)? {
            1 => Self::decode_v1,
            // A release that writes version n adds its decoder here and keeps that of n - 1.
            unknown => return Err(Fault::UnknownVersion(unknown)),
        };
        decode(slot).ok_or(Fault::Corrupt)
    }

    fn decode_v1(slot: &[u8]) -> Option<Self> {
        if array::<16>(slot, SLOT_SUM_AT)? != sum::<16>(&slot[..SLOT_SUM_AT]) {
            return None;
        }
        let total = u64_at(slot, 56)?;
        let geometry = Geometry::new(u32_at(slot, 12)?, (total != u64::MAX).then_some(total));
        let digest_len = usize::from(u16_at(slot, 68)?);
        let digest = slot.get(96..96 + MAX_DIGEST)?.get(..digest_len)?;
        let flags = u16_at(slot, 10)?;
        Some(Self {
            sequence: u64_at(slot, 16)?,
            key: ContentKey(array(slot, 24)?),
            geometry: geometry.ok()?,
            durable_epoch: u32_at(slot, 64)?,
            boot: array(slot, 80)?,
            complete: flags & FLAG_COMPLETE != 0,
            pinned: flags & FLAG_PINNED != 0,
            last_used: u64_at(slot, 72)?,
            verified: match std::str::from_utf8(digest).ok()? {
                "" => None,
                digest => Some(digest.to_owned()),
            },
        })
    }
}

/// The version after the magic, if the file is ours.
fn opening(bytes: &[u8], magic: &[u8; 8]) -> Result<u16, Fault> {
    if bytes.iter().all(|b| *b == 0) {
        return Err(Fault::Empty);
    }
    if array::<8>(bytes, 0).as_ref() != Some(magic) {
        return Err(Fault::Foreign);
    }
    u16_at(bytes, 8).ok_or(Fault::Corrupt)
}

impl Record {
    /// The bytes of the record. A proof longer than [`MAX_PROOF`] is cut; callers check before.
    #[must_use]
    pub fn encode(
        key: &ContentKey,
        index: u32,
        len: u32,
        epoch: u32,
        hash: &[u8; 32],
        proof: &[u8],
    ) -> [u8; RECORD] {
        let mut out = [0; RECORD];
        let proof = &proof[..proof.len().min(MAX_PROOF)];
        out[0] = 1;
        put(&mut out, 2, &(proof.len() as u16).to_le_bytes());
        put(&mut out, 4, &len.to_le_bytes());
        put(&mut out, 8, &epoch.to_le_bytes());
        put(&mut out, 12, &index.to_le_bytes());
        put(&mut out, 16, hash);
        put(&mut out, 48, proof);
        let check = keyed_sum::<8>(key, &out[..RECORD_SUM_AT]);
        put(&mut out, RECORD_SUM_AT, &check);
        out
    }

    /// Reads the record of block `index` of a task. `None`: not held, torn, or of another block.
    #[must_use]
    pub fn decode(key: &ContentKey, geometry: Geometry, index: u32, bytes: &[u8]) -> Option<Self> {
        if *bytes.first()? != 1 {
            return None;
        }
        if array::<8>(bytes, RECORD_SUM_AT)? != keyed_sum::<8>(key, bytes.get(..RECORD_SUM_AT)?) {
            return None;
        }
        let record = Self {
            index: u32_at(bytes, 12)?,
            len: u32_at(bytes, 4)?,
            epoch: u32_at(bytes, 8)?,
            hash: array(bytes, 16)?,
            proof: bytes
                .get(48..48 + MAX_PROOF)?
                .get(..usize::from(u16_at(bytes, 2)?))?
                .to_vec(),
        };
        (record.index == index && geometry.block_len(index) == Some(record.len)).then_some(record)
    }
}

/// The bytes of a metadata file.
#[must_use]
pub fn encode_meta(key: &ContentKey, meta: &[u8]) -> Vec<u8> {
    let mut out = vec![0; META_HEAD];
    put(&mut out, 0, META_MAGIC);
    put(&mut out, 8, &VERSION.to_le_bytes());
    put(&mut out, 12, &(meta.len() as u32).to_le_bytes());
    put(&mut out, 16, &keyed_sum::<16>(key, meta));
    out.extend_from_slice(meta);
    out
}

/// Reads a metadata file.
///
/// # Errors
/// Why it cannot be used.
pub fn decode_meta(key: &ContentKey, bytes: &[u8]) -> Result<Vec<u8>, Fault> {
    match opening(bytes, META_MAGIC)? {
        1 => {}
        unknown => return Err(Fault::UnknownVersion(unknown)),
    }
    let read = || {
        let len = u32_at(bytes, 12)? as usize;
        let meta = bytes.get(META_HEAD..)?;
        let good = meta.len() == len
            && len <= MAX_META
            && array::<16>(bytes, 16)? == keyed_sum::<16>(key, meta);
        good.then(|| meta.to_vec())
    };
    read().ok_or(Fault::Corrupt)
}

/// The first bytes of a request log.
#[must_use]
pub fn requests_head() -> [u8; REQUEST] {
    let mut out = [0; REQUEST];
    put(&mut out, 0, REQUESTS_MAGIC);
    put(&mut out, 8, &VERSION.to_le_bytes());
    out
}

impl RequestRecord {
    /// The bytes of the entry.
    #[must_use]
    pub fn encode(&self) -> [u8; REQUEST] {
        let mut out = [0; REQUEST];
        put(&mut out, 0, &self.request.0);
        put(&mut out, 32, &self.content.map_or([0; 32], |c| c.0));
        put(&mut out, 64, &self.resolved_at.to_le_bytes());
        let check = sum::<8>(&out[..72]);
        put(&mut out, 72, &check);
        out
    }

    /// Reads one entry; `None` when it is torn.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        if array::<8>(bytes, 72)? != sum::<8>(bytes.get(..72)?) {
            return None;
        }
        let content = array::<32>(bytes, 32)?;
        Some(Self {
            request: RequestKey(array(bytes, 0)?),
            content: (content != [0; 32]).then_some(ContentKey(content)),
            resolved_at: u64_at(bytes, 64)?,
        })
    }
}

/// Reads a request log: its good entries in the order in which they were written. A torn entry (the
/// last before a crash) is passed over.
///
/// # Errors
/// Why the whole log cannot be used.
pub fn decode_requests(bytes: &[u8]) -> Result<Vec<RequestRecord>, Fault> {
    match opening(bytes, REQUESTS_MAGIC)? {
        1 => {}
        unknown => return Err(Fault::UnknownVersion(unknown)),
    }
    Ok(bytes
        .chunks_exact(REQUEST)
        .skip(1)
        .filter_map(RequestRecord::decode)
        .collect())
}
