//! The first bytes of a connection.

use super::{FrameError, MAGIC, MIN_VERSION, Reader, VERSION};
use crate::id::NodeId;

/// What each side says first, in the clear or inside TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Greeting {
    /// Newest version spoken.
    pub version: u16,
    /// Oldest version spoken.
    pub min_version: u16,
    /// The speaker's number of the connection; that of a lane repeats the other side's number of the connection that it
    /// is for. 0 where none is given.
    pub conn: u32,
    /// Feature bits that this side has.
    pub features: u64,
    /// Feature bits without which this side will not talk.
    pub required: u64,
    /// Who speaks; under TLS the certificate must say the same.
    pub node: NodeId,
    /// Which mesh, a hash of its UID.
    pub mesh: [u8; 16],
}

/// Feature bit: takes a second connection, a lane, beside one that is up. Whoever requires it dials one.
pub const LANES: u64 = 1;

/// Feature bits of this release.
pub const FEATURES: u64 = LANES;

impl Greeting {
    /// Encoded length, bytes.
    pub const LEN: usize = 8 + 2 + 2 + 4 + 8 + 8 + 16 + 16;

    /// This release's greeting.
    #[must_use]
    pub const fn new(node: NodeId, mesh: [u8; 16]) -> Self {
        let (version, min_version) = (VERSION, MIN_VERSION);
        Self {
            version,
            min_version,
            conn: 0,
            features: FEATURES,
            required: 0,
            node,
            mesh,
        }
    }

    /// The same with the speaker's number of the connection.
    #[must_use]
    pub const fn numbered(mut self, conn: u32) -> Self {
        self.conn = conn;
        self
    }

    /// The same for a lane of the connection that the other side gave this number: who knows of no lanes refuses it.
    #[must_use]
    pub const fn of_lane(mut self, conn: u32) -> Self {
        self.required |= LANES;
        self.numbered(conn)
    }

    /// Whether it is that of who dials a lane.
    #[must_use]
    pub const fn is_of_lane(&self) -> bool {
        self.required & LANES != 0
    }

    /// The bytes on the wire.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut w = Vec::with_capacity(Self::LEN);
        w.extend_from_slice(&MAGIC);
        w.extend_from_slice(&self.version.to_le_bytes());
        w.extend_from_slice(&self.min_version.to_le_bytes());
        w.extend_from_slice(&self.conn.to_le_bytes());
        w.extend_from_slice(&self.features.to_le_bytes());
        w.extend_from_slice(&self.required.to_le_bytes());
        w.extend_from_slice(&self.node.0);
        w.extend_from_slice(&self.mesh);
        let mut out = [0; Self::LEN];
        out.copy_from_slice(&w);
        out
    }

    /// Reads a greeting and makes sure that the two sides can talk.
    pub fn decode(bytes: &[u8; Self::LEN]) -> Result<Self, FrameError> {
        let mut r = Reader {
            rest: bytes,
            kind: 0,
        };
        if r.array::<8>()? != MAGIC {
            return Err(FrameError::Magic);
        }
        let (version, min_version) = (r.u16()?, r.u16()?);
        let g = Self {
            version,
            min_version,
            conn: r.u32()?,
            features: r.u64()?,
            required: r.u64()?,
            node: NodeId(r.array()?),
            mesh: r.array()?,
        };
        if g.min_version > VERSION || g.version < MIN_VERSION {
            return Err(FrameError::Version(g.min_version, g.version));
        }
        match g.required & !FEATURES {
            0 => Ok(g),
            missing => Err(FrameError::Features(missing)),
        }
    }
}
