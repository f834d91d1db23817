//! Frames other than DATA.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::{BITMAP_CHUNK, FrameError, FrameHeader, MAX_PEX, MAX_REASON, Reader, SKIPPABLE, kind};
use crate::id::{ContentKey, NodeId};
use crate::ticket::Ticket;
use crate::trust::{EmitterClaim, EpochCert, SignedSize};

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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// Which content.
    pub content: ContentKey,
    /// Leave to be served.
    pub ticket: Ticket,
    /// Bytes a block.
    pub block_size: u32,
    /// Bytes in all, when the sender knows.
    pub total_len: Option<u64>,
    /// Where the sender holds a lease on the origin and emits: that it does.
    pub emitter: Option<Box<EmitterClaim>>,
}

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
                out.push(u8::from(h.emitter.is_some()));
                if let Some(claim) = &h.emitter {
                    out.extend_from_slice(&claim.encode());
                }
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
                let content = ContentKey(r.array()?);
                let ticket = r.array::<{ Ticket::LEN }>()?;
                let ticket = Ticket::decode(&ticket).map_err(|_| FrameError::Body(kind))?;
                let block_size = r.u32()?;
                let total_len = Some(r.u64()?).filter(|n| *n != NO_LENGTH);
                let emitter = if r.bool()? {
                    let claim = r.array::<{ EmitterClaim::LEN }>()?;
                    let claim = EmitterClaim::decode(&claim);
                    Some(Box::new(claim.map_err(|_| FrameError::Body(kind))?))
                } else {
                    None
                };
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
