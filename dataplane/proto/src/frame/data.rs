//! DATA: a block on its way.

use super::{FrameError, FrameHeader, Reader, kind};
use crate::geometry::MAX_BLOCK;
use crate::trust::MAX_PROOF;

/// The fixed part of a DATA body; proof and bytes follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataHeader {
    /// Which block.
    pub index: u32,
    /// Bytes of the block.
    pub data_len: u32,
    /// Bytes of the proof.
    pub proof_len: u16,
}

impl DataHeader {
    /// Encoded length, bytes.
    pub const LEN: usize = 12;

    /// The frame header and fixed part on the wire, proof appended: all but the block's bytes.
    pub fn encode(&self, stream: u32, proof: &[u8], out: &mut Vec<u8>) {
        let len = Self::LEN as u32 + proof.len() as u32 + self.data_len;
        out.extend_from_slice(
            &FrameHeader {
                kind: kind::DATA,
                stream,
                len,
            }
            .encode(),
        );
        out.extend_from_slice(&self.index.to_le_bytes());
        out.extend_from_slice(&self.data_len.to_le_bytes());
        out.extend_from_slice(&(proof.len() as u16).to_le_bytes());
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(proof);
    }

    /// Reads it; the two lengths are within bounds and add up to the frame's.
    pub fn decode(frame: &FrameHeader, bytes: &[u8; Self::LEN]) -> Result<Self, FrameError> {
        let mut r = Reader {
            rest: bytes,
            kind: kind::DATA,
        };
        let h = Self {
            index: r.u32()?,
            data_len: r.u32()?,
            proof_len: r.u16()?,
        };
        let sum = Self::LEN as u64 + u64::from(h.proof_len) + u64::from(h.data_len);
        let fits = usize::from(h.proof_len) <= MAX_PROOF && (1..=MAX_BLOCK).contains(&h.data_len);
        if fits && sum == u64::from(frame.len) {
            Ok(h)
        } else {
            Err(FrameError::Body(kind::DATA))
        }
    }
}
