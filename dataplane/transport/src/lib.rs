//! Connections between nodes: one TCP connection a pair, both directions, all tasks on it; a second one for blocks
//! alone where the way is very fast (`lane`).
//!
//! This crate moves frames and blocks; what they mean is its [`Handler`]'s business. A connection
//! is one tokio task in which a reader, a writer and a watch for silence take turns, and ends when one
//! of them does. The rules that
//! make a swarm fast are kept here: control frames go before DATA, and a block is bound to the
//! socket only when the kernel can really take it (`TCP_NOTSENT_LOWAT`), so that the choice of
//! block is as late as it can be.
//!
//! Nothing from the wire is believed: lengths are bounded before anything is allocated, a block is
//! hashed while it streams in, and the handler decides whether it was asked for before a byte of it
//! is kept.

// The kit of the tests of this crate is that of its connections' tests too.
#[cfg(test)]
extern crate self as dragonfly_transport;

mod aside;
mod calls;
mod conn;
mod lane;
mod pace;
mod reader;
mod refusal;
mod seal;
mod security;
mod socket;
mod table;
mod tls;
mod uplink;
mod watch;
mod who;
mod writer;

pub use calls::{Callee, Calls};
pub use conn::{CloseReason, Conn};
pub use refusal::{explain, reason, tls_error};
pub use seal::{OpeningKey, SealError, SealedText, Sealing};
pub use security::{
    Revoked, SCHEDULER_NAME, Security, SecurityError, TlsConfig, is_node, is_scheduler,
    issuer_name, node_name,
};
pub use table::{ConnectError, Local, Mesh, Timeouts};
pub use who::{Role, Who};

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use dragonfly_proto::frame::{DataHeader, Frame};

/// What the other side did that no honest node does; the connection ends and the node is banned.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Violation(pub String);

/// What to do with a block whose header has arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Welcome {
    /// Read it, hash it, hand it over.
    Take,
    /// Read past it: it was wanted once.
    Skip,
}

/// A block to send.
#[derive(Debug)]
pub struct Outgoing {
    /// Our number of the task on this connection.
    pub stream: u32,
    /// Which block.
    pub index: u32,
    /// Its encoded proof.
    pub proof: Vec<u8>,
    /// Its bytes.
    pub payload: Payload,
}

/// Where a block's bytes are.
#[derive(Debug, Clone)]
pub enum Payload {
    /// In a file: sent without passing through this process where the link is plaintext.
    File {
        /// Open for reading.
        file: Arc<File>,
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u32,
    },
    /// In memory.
    Bytes(Vec<u8>),
}

impl Payload {
    /// Bytes.
    #[must_use]
    pub fn len(&self) -> u32 {
        match self {
            Self::File { len, .. } => *len,
            Self::Bytes(b) => b.len() as u32,
        }
    }

    /// Whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What a connection may send next.
#[derive(Debug)]
pub enum Next {
    /// This.
    Send(Outgoing),
    /// Nothing until [`Conn::wake`] is called.
    Idle,
    /// Something, but not before this has passed (rate limits).
    Later(Duration),
}

/// The node, as its connections see it. Calls come from the connections' tasks, must not wait, and
/// may come concurrently for different connections. Those of one connection come one after the other,
/// but a large block may be handed over on a thread of its own while headers of the next are announced
/// and blocks are sent, and on a connection with a lane two threads read and write. Such a thread is in no runtime
/// of the node's.
pub trait Handler: Send + Sync + 'static {
    /// The connection is up.
    fn opened(&self, conn: &Arc<Conn>);

    /// A frame other than DATA.
    fn frame(&self, conn: &Arc<Conn>, stream: u32, frame: Frame) -> Result<(), Violation>;

    /// The header of a block; its bytes have not been read.
    fn announced(
        &self,
        conn: &Arc<Conn>,
        stream: u32,
        header: &DataHeader,
    ) -> Result<Welcome, Violation>;

    /// A block, whole, with its BLAKE3 hash. Returns how long to stop reading (download limits).
    fn block(
        &self,
        conn: &Arc<Conn>,
        stream: u32,
        block: &Block<'_>,
    ) -> Result<Option<Duration>, Violation>;

    /// Whether there may be a block to send; the kernel is asked for room only then.
    fn has_next(&self, conn: &Arc<Conn>) -> bool;

    /// The socket can take a block.
    fn next(&self, conn: &Arc<Conn>) -> Next;

    /// The same for a lane: nothing but what frames may overtake, and what may overtake them. What [`Self::has_next`]
    /// tells of and this does not give is left for [`Self::next`].
    fn next_unordered(&self, conn: &Arc<Conn>) -> Next;

    /// A block went out whole.
    fn sent(&self, conn: &Arc<Conn>, stream: u32, index: u32, bytes: u32);

    /// The file of a block cannot be read. Its header is out, so the connection ends.
    fn unreadable(&self, conn: &Arc<Conn>, stream: u32, index: u32, why: &io::Error);

    /// The connection is gone.
    fn closed(&self, conn: &Arc<Conn>, reason: &CloseReason);
}

/// A block as it came in.
#[derive(Debug)]
pub struct Block<'a> {
    /// Which.
    pub index: u32,
    /// Encoded proof, unchecked.
    pub proof: &'a [u8],
    /// Its bytes, unchecked.
    pub data: &'a [u8],
    /// BLAKE3 of the bytes.
    pub hash: [u8; 32],
}
