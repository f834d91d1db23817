//! The wire between two nodes (contract 9).
//!
//! A connection begins with a [`Greeting`] from each side; frames follow, little-endian:
//!
//! ```text
//! type u8 | flags u8 | reserved u16 | stream u32 | length u32 | body
//! ```
//!
//! A stream is one task. Each side numbers the streams it sends on; HELLO binds its number to a
//! content key, so neither side can collide with the other. Types from [`SKIPPABLE`] up are passed
//! over by a node that does not know them; below, an unknown type ends the connection.
//!
//! DATA is read in two steps so that the block's bytes go straight where they belong: the fixed
//! [`DataHeader`], then the proof, then the bytes.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::geometry::MAX_BLOCK;
use crate::id::{ContentKey, NodeId};
use crate::ticket::Ticket;
use crate::trust::{EpochCert, MAX_PROOF, SignedSize};

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

/// What each side says first, in the clear or inside TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Greeting {
    /// Newest version spoken.
    pub version: u16,
    /// Oldest version spoken.
    pub min_version: u16,
    /// Feature bits that this side has.
    pub features: u64,
    /// Feature bits without which this side will not talk.
    pub required: u64,
    /// Who speaks; under TLS the certificate must say the same.
    pub node: NodeId,
    /// Which mesh, a hash of its UID.
    pub mesh: [u8; 16],
}

/// Feature bits of this release: none beyond version 1.
pub const FEATURES: u64 = 0;

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
            features: FEATURES,
            required: 0,
            node,
            mesh,
        }
    }

    /// The bytes on the wire.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut w = Vec::with_capacity(Self::LEN);
        w.extend_from_slice(&MAGIC);
        w.extend_from_slice(&self.version.to_le_bytes());
        w.extend_from_slice(&self.min_version.to_le_bytes());
        w.extend_from_slice(&[0; 4]);
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
        r.array::<4>()?;
        let g = Self {
            version,
            min_version,
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

/// A run of blocks: first index and count (never 0).
pub type BlockRange = (u32, u32);

/// A frame other than DATA.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Opens a stream: the first frame on it.
    Hello(Hello),
    /// A part of the sender's block map, in order: bytes of the map, block 0 the lowest bit of
    /// byte 0.
    Bitmap {
        /// Whether the map ends here.
        last: bool,
        /// The bytes, at most [`BITMAP_CHUNK`].
        bytes: Vec<u8>,
    },
    /// The sender has these now.
    Have(Vec<BlockRange>),
    /// The sender wants these blocks, instead of what it said before.
    Want(Want),
    /// The sender's readers wait for these and nobody announces them.
    Hurry(Vec<BlockRange>),
    /// The sender takes this many more first-pass blocks.
    Credit(u32),
    /// Asks for a block.
    Request(u32),
    /// Needs it no more.
    Cancel(u32),
    /// The emitter has emitted every block; from now on it answers requests like any other.
    Pass,
    /// The sender's mean rate on this task since it joined, bytes a second.
    Rate(u64),
    /// A lease's certificate.
    Epoch(EpochCert),
    /// The content's length, learnt at the end.
    Size(SignedSize),
    /// The sender will not serve this task: a reason for people.
    Refuse {
        /// The content that was asked for.
        content: ContentKey,
        /// Why.
        reason: String,
    },
    /// The sender leaves this task.
    Close,
    /// Nothing to say, but alive.
    Ping,
    /// Other members of the task.
    Pex(Vec<(NodeId, SocketAddr)>),
    /// How important the task is to the sender: 0 (as long as nothing is said) to 7.
    Priority(u8),
}

/// Which blocks a node wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Want {
    /// None: it only serves.
    Nothing,
    /// All there are.
    Whole,
    /// These.
    Some(Vec<BlockRange>),
}

/// Binds a stream to a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    /// Which content.
    pub content: ContentKey,
    /// Leave to be served.
    pub ticket: Ticket,
    /// Bytes a block.
    pub block_size: u32,
    /// Bytes in all, when the sender knows.
    pub total_len: Option<u64>,
    /// Whether the sender holds a lease on the origin and emits.
    pub emitter: bool,
}

const HELLO_LEN: usize = 32 + Ticket::LEN + 4 + 8 + 1;
const NO_LENGTH: u64 = u64::MAX;

impl Frame {
    /// Its type on the wire.
    #[must_use]
    pub const fn kind(&self) -> u8 {
        match self {
            Self::Hello(_) => kind::HELLO,
            Self::Bitmap { .. } => kind::BITMAP,
            Self::Have(_) => kind::HAVE,
            Self::Want(_) => kind::WANT,
            Self::Hurry(_) => kind::HURRY,
            Self::Credit(_) => kind::CREDIT,
            Self::Request(_) => kind::REQUEST,
            Self::Cancel(_) => kind::CANCEL,
            Self::Pass => kind::PASS,
            Self::Rate(_) => kind::RATE,
            Self::Epoch(_) => kind::EPOCH,
            Self::Size(_) => kind::SIZE,
            Self::Refuse { .. } => kind::REFUSE,
            Self::Close => kind::CLOSE,
            Self::Ping => kind::PING,
            Self::Pex(_) => kind::PEX,
            Self::Priority(_) => kind::PRIORITY,
        }
    }

    /// Appends header and body.
    pub fn encode(&self, stream: u32, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[0; FrameHeader::LEN]);
        match self {
            Self::Hello(h) => {
                out.extend_from_slice(&h.content.0);
                out.extend_from_slice(&h.ticket.encode());
                out.extend_from_slice(&h.block_size.to_le_bytes());
                out.extend_from_slice(&h.total_len.unwrap_or(NO_LENGTH).to_le_bytes());
                out.push(u8::from(h.emitter));
            }
            Self::Bitmap { last, bytes } => {
                out.push(u8::from(*last));
                out.extend_from_slice(bytes);
            }
            Self::Have(ranges) | Self::Hurry(ranges) => encode_ranges(ranges, out),
            Self::Want(Want::Nothing) => out.push(0),
            Self::Want(Want::Whole) => out.push(1),
            Self::Want(Want::Some(ranges)) => {
                out.push(2);
                encode_ranges(ranges, out);
            }
            Self::Credit(n) | Self::Request(n) | Self::Cancel(n) => {
                out.extend_from_slice(&n.to_le_bytes());
            }
            Self::Rate(n) => out.extend_from_slice(&n.to_le_bytes()),
            Self::Epoch(cert) => out.extend_from_slice(&cert.encode()),
            Self::Size(s) => {
                out.extend_from_slice(&s.total_len.to_le_bytes());
                out.extend_from_slice(&s.epoch.to_le_bytes());
                out.extend_from_slice(&s.signature);
            }
            Self::Refuse { content, reason } => {
                out.extend_from_slice(&content.0);
                let end = reason.floor_char_boundary(MAX_REASON);
                out.extend_from_slice(&reason.as_bytes()[..end]);
            }
            Self::Pass | Self::Close | Self::Ping => {}
            Self::Priority(priority) => out.push(*priority),
            Self::Pex(peers) => {
                for (node, addr) in peers {
                    let ip = match addr.ip() {
                        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
                        IpAddr::V6(v6) => v6,
                    };
                    out.extend_from_slice(&node.0);
                    out.extend_from_slice(&ip.octets());
                    out.extend_from_slice(&addr.port().to_le_bytes());
                }
            }
        }
        let len = (out.len() - start - FrameHeader::LEN) as u32;
        let header = FrameHeader {
            kind: self.kind(),
            stream,
            len,
        }
        .encode();
        out[start..start + FrameHeader::LEN].copy_from_slice(&header);
    }

    /// Reads a body of the given type; `None` for an unknown type that may be skipped.
    pub fn decode(kind: u8, body: &[u8]) -> Result<Option<Self>, FrameError> {
        let mut r = Reader { rest: body, kind };
        let frame = match kind {
            kind::HELLO => {
                if body.len() != HELLO_LEN {
                    return Err(FrameError::Body(kind));
                }
                let content = ContentKey(r.array()?);
                let ticket = r.array::<{ Ticket::LEN }>()?;
                let ticket = Ticket::decode(&ticket).map_err(|_| FrameError::Body(kind))?;
                let block_size = r.u32()?;
                let total_len = Some(r.u64()?).filter(|n| *n != NO_LENGTH);
                let emitter = r.bool()?;
                Self::Hello(Hello {
                    content,
                    ticket,
                    block_size,
                    total_len,
                    emitter,
                })
            }
            kind::BITMAP => {
                let last = r.bool()?;
                if r.rest.len() > BITMAP_CHUNK {
                    return Err(FrameError::Body(kind));
                }
                Self::Bitmap {
                    last,
                    bytes: r.take_rest().to_vec(),
                }
            }
            kind::HAVE => Self::Have(r.ranges()?),
            kind::HURRY => Self::Hurry(r.ranges()?),
            kind::WANT => Self::Want(match r.array::<1>()?[0] {
                0 => Want::Nothing,
                1 => Want::Whole,
                2 => Want::Some(r.ranges()?),
                _ => return Err(FrameError::Body(kind)),
            }),
            kind::CREDIT => Self::Credit(r.u32()?),
            kind::REQUEST => Self::Request(r.u32()?),
            kind::CANCEL => Self::Cancel(r.u32()?),
            kind::PASS => Self::Pass,
            kind::RATE => Self::Rate(r.u64()?),
            kind::EPOCH => {
                Self::Epoch(EpochCert::decode(r.take_rest()).map_err(|_| FrameError::Body(kind))?)
            }
            kind::SIZE => Self::Size(SignedSize {
                total_len: r.u64()?,
                epoch: r.u32()?,
                signature: r.array()?,
            }),
            kind::REFUSE => {
                let content = ContentKey(r.array()?);
                let text = r.take_rest();
                let reason = std::str::from_utf8(text).map_err(|_| FrameError::Body(kind))?;
                if text.len() > MAX_REASON {
                    return Err(FrameError::Body(kind));
                }
                Self::Refuse {
                    content,
                    reason: reason.to_owned(),
                }
            }
            kind::CLOSE => Self::Close,
            kind::PING => Self::Ping,
            kind::PEX => {
                const ENTRY: usize = 16 + 16 + 2;
                if !body.len().is_multiple_of(ENTRY) || body.len() / ENTRY > MAX_PEX {
                    return Err(FrameError::Body(kind));
                }
                let mut peers = Vec::with_capacity(body.len() / ENTRY);
                while !r.rest.is_empty() {
                    let node = NodeId(r.array()?);
                    let ip = Ipv6Addr::from(r.array::<16>()?).to_canonical();
                    peers.push((node, SocketAddr::new(ip, r.u16()?)));
                }
                Self::Pex(peers)
            }
            kind::PRIORITY => Self::Priority(r.array::<1>()?[0]),
            kind if kind >= SKIPPABLE => return Ok(None),
            kind => return Err(FrameError::Type(kind)),
        };
        if r.rest.is_empty() {
            Ok(Some(frame))
        } else {
            Err(FrameError::Body(kind))
        }
    }
}

fn encode_ranges(ranges: &[BlockRange], out: &mut Vec<u8>) {
    for (first, count) in ranges {
        out.extend_from_slice(&first.to_le_bytes());
        out.extend_from_slice(&count.to_le_bytes());
    }
}

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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sign::SigningKey;

    fn samples() -> Vec<Frame> {
        let content = ContentKey([5; 32]);
        let ticket = Ticket {
            content,
            bearer: NodeId([6; 16]),
            expires: 9,
            signature: [7; 64],
        };
        let hello = Hello {
            content,
            ticket,
            block_size: 65536,
            total_len: Some(1),
            emitter: true,
        };
        let (key, _) = SigningKey::generate().unwrap();
        vec![
            Frame::Hello(hello),
            Frame::Hello(Hello {
                total_len: None,
                emitter: false,
                ..hello
            }),
            Frame::Bitmap {
                last: true,
                bytes: vec![0xff, 1],
            },
            Frame::Have(vec![(0, 1), (9, 70)]),
            Frame::Want(Want::Nothing),
            Frame::Want(Want::Whole),
            Frame::Want(Want::Some(vec![(1, 2)])),
            Frame::Hurry(vec![(4, 4)]),
            Frame::Credit(2),
            Frame::Request(7),
            Frame::Cancel(8),
            Frame::Pass,
            Frame::Rate(12_000_000),
            Frame::Epoch(EpochCert::issue(&key, content, 1, *key.public())),
            Frame::Size(SignedSize {
                total_len: 10,
                epoch: 2,
                signature: [3; 64],
            }),
            Frame::Refuse {
                content,
                reason: "no such task".to_owned(),
            },
            Frame::Close,
            Frame::Ping,
            Frame::Pex(vec![
                (NodeId([1; 16]), "10.0.0.1:4000".parse().unwrap()),
                (NodeId([2; 16]), "[fd00::1]:4000".parse().unwrap()),
            ]),
            Frame::Priority(3),
        ]
    }

    #[test]
    fn every_frame_comes_back_as_it_was_sent_and_not_a_byte_shorter_or_longer() {
        for frame in samples() {
            let mut bytes = vec![];
            frame.encode(42, &mut bytes);
            let (head, body) = bytes.split_first_chunk::<12>().unwrap();
            let h = FrameHeader::decode(head).unwrap();
            assert_eq!(
                (h.stream, h.len as usize, h.kind),
                (42, body.len(), frame.kind())
            );
            assert_eq!(Frame::decode(h.kind, body), Ok(Some(frame.clone())));
            let mut longer = body.to_vec();
            longer.push(0);
            let variable = matches!(frame, Frame::Refuse { .. } | Frame::Bitmap { .. });
            if !variable {
                assert!(Frame::decode(h.kind, &longer).is_err(), "{frame:?}");
                if let Some((_, shorter)) = body.split_last() {
                    assert!(Frame::decode(h.kind, shorter).is_err(), "{frame:?}");
                }
            }
        }
    }

    #[test]
    fn the_wire_is_pinned() {
        let hex = |f: &Frame| {
            let mut b = vec![];
            f.encode(0x0102_0304, &mut b);
            b.iter().map(|b| format!("{b:02x}")).collect::<String>()
        };
        assert_eq!(hex(&Frame::Request(7)), "06000000040302010400000007000000");
        assert_eq!(
            hex(&Frame::Have(vec![(1, 2)])),
            "0300000004030201080000000100000002000000"
        );
        assert_eq!(hex(&Frame::Pass), "090000000403020100000000");
        let g = Greeting::new(NodeId([1; 16]), [2; 16]).encode();
        assert_eq!(g[..12], *b"DFLYPEER\x01\0\x01\0");
    }

    #[test]
    fn greetings_of_strangers_and_of_other_versions_are_told_apart() {
        let good = Greeting::new(NodeId([1; 16]), [2; 16]);
        assert_eq!(Greeting::decode(&good.encode()), Ok(good));
        let mut tls = [0; Greeting::LEN];
        tls[..3].copy_from_slice(&[0x16, 3, 1]);
        assert_eq!(Greeting::decode(&tls), Err(FrameError::Magic));
        let newer = Greeting {
            version: 9,
            min_version: 8,
            ..good
        };
        assert_eq!(
            Greeting::decode(&newer.encode()),
            Err(FrameError::Version(8, 9))
        );
        let newer_but_kind = Greeting { version: 9, ..good };
        assert!(Greeting::decode(&newer_but_kind.encode()).is_ok());
        let demanding = Greeting {
            required: 1 << 60,
            ..good
        };
        assert_eq!(
            Greeting::decode(&demanding.encode()),
            Err(FrameError::Features(1 << 60))
        );
    }

    #[test]
    fn unknown_types_are_skipped_only_where_the_sender_allows_it() {
        assert_eq!(Frame::decode(0xfe, b"anything"), Ok(None));
        assert_eq!(Frame::decode(0x7f, b""), Err(FrameError::Type(0x7f)));
    }

    #[test]
    fn lengths_beyond_the_limit_are_refused_before_anything_is_allocated() {
        let h = FrameHeader {
            kind: kind::HAVE,
            stream: 0,
            len: MAX_CONTROL + 1,
        };
        assert_eq!(
            FrameHeader::decode(&h.encode()),
            Err(FrameError::Length(kind::HAVE, h.len))
        );
        let h = FrameHeader {
            kind: kind::DATA,
            stream: 0,
            len: MAX_DATA + 1,
        };
        assert!(FrameHeader::decode(&h.encode()).is_err());
        let mut out = vec![];
        let d = DataHeader {
            index: 1,
            data_len: 100,
            proof_len: 2,
        };
        d.encode(9, &[1, 2], &mut out);
        let f = FrameHeader::decode(out.first_chunk().unwrap()).unwrap();
        let fixed: [u8; 12] = out[12..24].try_into().unwrap();
        assert_eq!(DataHeader::decode(&f, &fixed), Ok(d));
        assert!(
            DataHeader::decode(
                &FrameHeader {
                    len: f.len - 1,
                    ..f
                },
                &fixed
            )
            .is_err()
        );
    }

    proptest! {
        #[test]
        fn arbitrary_bodies_never_panic_and_what_parses_encodes_back(
            kind in any::<u8>(), body in prop::collection::vec(any::<u8>(), 0..400)
        ) {
            if let Ok(Some(frame)) = Frame::decode(kind, &body) {
                let mut out = vec![];
                frame.encode(0, &mut out);
                let again = Frame::decode(kind, &out[FrameHeader::LEN..]);
                prop_assert_eq!(again, Ok(Some(frame)));
            }
        }

        #[test]
        fn arbitrary_headers_never_panic(b in any::<[u8; 12]>(), g in any::<[u8; 32]>()) {
            if let Ok(h) = FrameHeader::decode(&b) {
                let _ = DataHeader::decode(&h, &b);
            }
            let mut greeting = [0; Greeting::LEN];
            greeting[..32].copy_from_slice(&g);
            let _ = Greeting::decode(&greeting);
        }
    }
}
