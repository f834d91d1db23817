//! Why there is no connection, for who asked for one.

use std::io;
use std::net::SocketAddr;

use dragonfly_proto::frame::FrameError;
use dragonfly_proto::id::NodeId;

use crate::security::SecurityError;

/// Why there is no connection to a node.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No address answered.
    #[error("cannot reach node {node} at {addr}: {source}")]
    Unreachable {
        /// Whom.
        node: NodeId,
        /// Where.
        addr: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// No address is known.
    #[error("no address of node {0} is known")]
    NoAddress(NodeId),
    /// It is somebody else, or of another mesh.
    #[error("{0} greeted as node {1} of another mesh or another node than was dialled")]
    Stranger(SocketAddr, NodeId),
    /// It does not speak the protocol.
    #[error("{0}: {1}")]
    Greeting(SocketAddr, FrameError),
    /// TLS failed.
    #[error("{0}: {1}")]
    Security(SocketAddr, SecurityError),
    /// It is banned for now.
    #[error("node {0} is banned")]
    Banned(NodeId),
    /// Another connection to it was preferred and has ended meanwhile.
    #[error("the connection to node {0} ended while another one was made")]
    Gone(NodeId),
    /// A second connection that is not to be had now.
    #[error("no second connection to node {0}: {1}")]
    NoLane(NodeId, &'static str),
}
