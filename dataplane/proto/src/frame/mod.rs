//! The wire between two nodes.
//!
//! A connection begins with a [`Greeting`] from each side; frames follow, little-endian:
//!
//! ```text
//! type u8 | flags u8 | reserved u16 | stream u32 | length u32 | body
//! ```
//!
//! A connection may have a second one beside it, a lane ([`LANES`]), over which nothing goes but DATA and at
//! last CLOSE, behind a PING by which who dialled it says that it hears.
//!
//! A stream is one task. Each side numbers the streams it sends on; HELLO binds its number to a
//! content key, so neither side can collide with the other. Types from [`SKIPPABLE`] up are passed
//! over by a node that does not know them; below, an unknown type ends the connection.
//!
//! DATA is read in two steps so that the block's bytes go straight where they belong: the fixed
//! [`DataHeader`], then the proof, then the bytes.

mod control;
mod data;
mod greeting;
#[cfg(test)]
mod tests;

use crate::geometry::MAX_BLOCK;
use crate::trust::MAX_PROOF;

pub use control::{BlockRange, Frame, Hello, Want};
pub use data::DataHeader;
pub use greeting::{FEATURES, Greeting, LANES};

/// First bytes of every connection between nodes.
pub const MAGIC: [u8; 8] = *b"DFLYPEER";
/// The version spoken here.
pub const VERSION: u16 = 1;
/// The oldest version still understood.
pub const MIN_VERSION: u16 = 1;
/// Frame types from here up may be skipped by who does not know them.
pub const SKIPPABLE: u8 = 0x80;
/// Longest body of a frame other than DATA, bytes.
pub const MAX_CONTROL: u32 = 64 << 10;
/// Longest DATA body, bytes.
pub const MAX_DATA: u32 = DataHeader::LEN as u32 + MAX_PROOF as u32 + MAX_BLOCK;
/// Most ranges in one HAVE or WANT.
pub const MAX_RANGES: usize = 4096;
/// Most addresses in one PEX.
pub const MAX_PEX: usize = 32;
/// Block-map bytes in one BITMAP frame.
pub const BITMAP_CHUNK: usize = 32 << 10;
/// Longest text in a REFUSE, bytes.
pub const MAX_REASON: usize = 512;

/// Bytes that are no frame of this protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Not a Dragonfly node, or TLS on one side only.
    #[error(
        "the other side does not speak Dragonfly's peer protocol (is TLS on at one side only?)"
    )]
    Magic,
    /// No version in common.
    #[error(
        "the other side speaks versions {0} to {1}, this one {MIN_VERSION} to {VERSION}: upgrade the older"
    )]
    Version(u16, u16),
    /// The other side's policy needs what this side has not.
    #[error("the other side requires features {0:#x} that this release lacks")]
    Features(u64),
    /// A type below [`SKIPPABLE`] that nobody knows.
    #[error("unknown frame type {0:#04x}")]
    Type(u8),
    /// A body longer than its type allows.
    #[error("a frame of type {0:#04x} with {1} bytes")]
    Length(u8, u32),
    /// A body that does not parse as its type.
    #[error("malformed body in a frame of type {0:#04x}")]
    Body(u8),
}

/// What precedes every frame's body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// Frame type.
    pub kind: u8,
    /// The sender's number for the task.
    pub stream: u32,
    /// Body bytes.
    pub len: u32,
}

impl FrameHeader {
    /// Encoded length, bytes.
    pub const LEN: usize = 12;

    /// The bytes on the wire.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        out[0] = self.kind;
        out[4..8].copy_from_slice(&self.stream.to_le_bytes());
        out[8..].copy_from_slice(&self.len.to_le_bytes());
        out
    }

    /// Reads a header; the length is checked against the type's limit, so that it may be allocated.
    pub fn decode(bytes: &[u8; Self::LEN]) -> Result<Self, FrameError> {
        let mut r = Reader {
            rest: bytes,
            kind: bytes[0],
        };
        let kind = r.array::<1>()?[0];
        r.array::<3>()?;
        let h = Self {
            kind,
            stream: r.u32()?,
            len: r.u32()?,
        };
        let max = if kind == kind::DATA {
            MAX_DATA
        } else {
            MAX_CONTROL
        };
        if h.len > max {
            return Err(FrameError::Length(kind, h.len));
        }
        Ok(h)
    }
}

/// Frame types.
pub mod kind {
    #![allow(missing_docs)]
    pub const HELLO: u8 = 1;
    pub const BITMAP: u8 = 2;
    pub const HAVE: u8 = 3;
    pub const WANT: u8 = 4;
    pub const CREDIT: u8 = 5;
    pub const REQUEST: u8 = 6;
    pub const CANCEL: u8 = 7;
    pub const DATA: u8 = 8;
    pub const PASS: u8 = 9;
    pub const RATE: u8 = 10;
    pub const EPOCH: u8 = 11;
    pub const SIZE: u8 = 12;
    pub const REFUSE: u8 = 13;
    pub const CLOSE: u8 = 14;
    pub const PING: u8 = 15;
    pub const HURRY: u8 = 16;
    pub const PEX: u8 = 0x80;
    pub const PRIORITY: u8 = 0x81;
}

struct Reader<'a> {
    rest: &'a [u8],
    kind: u8,
}

impl<'a> Reader<'a> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], FrameError> {
        let (head, rest) = self
            .rest
            .split_first_chunk::<N>()
            .ok_or(FrameError::Body(self.kind))?;
        self.rest = rest;
        Ok(*head)
    }

    fn bool(&mut self) -> Result<bool, FrameError> {
        match self.array::<1>()?[0] {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(FrameError::Body(self.kind)),
        }
    }

    fn u16(&mut self) -> Result<u16, FrameError> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, FrameError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, FrameError> {
        self.array().map(u64::from_le_bytes)
    }

    fn take_rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    fn ranges(&mut self) -> Result<Vec<BlockRange>, FrameError> {
        let n = self.rest.len() / 8;
        if !self.rest.len().is_multiple_of(8) || n > MAX_RANGES {
            return Err(FrameError::Body(self.kind));
        }
        (0..n)
            .map(|_| {
                let (first, count) = (self.u32()?, self.u32()?);
                let ok = count > 0 && first.checked_add(count).is_some();
                ok.then_some((first, count))
                    .ok_or(FrameError::Body(self.kind))
            })
            .collect()
    }
}
