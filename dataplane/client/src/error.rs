//! What can go wrong between a program and its node, with what to do about it.

use std::io;
use std::path::PathBuf;

use dragonfly_proto::rpc::{self, failure::Code};

/// Of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Why something did not work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The node says why it cannot.
    #[error("{}", .0.message)]
    Node(rpc::Failure),
    /// No node answers.
    #[error(
        "no node answers at {}: {reason} (is `dragonfly up` or the node's peer running, and may \
         this user open the socket?)", socket.display()
    )]
    Unavailable {
        /// Where it was looked for.
        socket: PathBuf,
        /// What the system or gRPC says.
        reason: String,
    },
    /// The node refused the call itself.
    #[error("the node refused the request: {0}")]
    Refused(String),
    /// The content is another than it was when its first bytes came.
    #[error("{0} changed while it was read: read it again from the start")]
    Changed(String),
    /// The bytes are not what they should be.
    #[error("{url} hashes to {found}, not to {wanted}: nothing was written")]
    Digest {
        /// What was asked for.
        url: String,
        /// Which hash was asked for.
        wanted: String,
        /// What came.
        found: String,
    },
    /// The output cannot be written.
    #[error("{}: {error}{}", path.display(), hint(error))]
    Output {
        /// What was to be written.
        path: PathBuf,
        /// Why not.
        #[source]
        error: io::Error,
    },
    /// A file to import cannot be read.
    #[error("cannot read {}: {error}", path.display())]
    Input {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// The node broke the protocol.
    #[error("the node's answer makes no sense: {0} (is it of another release?)")]
    Protocol(String),
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull => " (make room there, or choose another place)",
        io::ErrorKind::NotFound => " (the directory does not exist)",
        io::ErrorKind::PermissionDenied => " (this user may not write there)",
        io::ErrorKind::IsADirectory => " (name a file in it)",
        _ => "",
    }
}

/// Whose fault it is, for exit codes and retries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The request is wrong.
    Usage,
    /// The origin, or policy, does not let it be had.
    Denied,
    /// The bytes are not what the digest says.
    Digest,
    /// Neither origin nor mesh nor node can be reached, now.
    Unavailable,
    /// It took too long.
    Timeout,
    /// The output, or the node's disk, takes no more.
    Output,
    /// A defect.
    Internal,
}

impl Error {
    /// Whose fault it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Node(f) => match f.code() {
                Code::Invalid => Kind::Usage,
                Code::Denied | Code::Origin | Code::NotFound => Kind::Denied,
                Code::Digest => Kind::Digest,
                Code::OriginUnavailable | Code::NoSource | Code::Changed => Kind::Unavailable,
                Code::NoSpace => Kind::Output,
                Code::Deadline => Kind::Timeout,
                // No download ends with a finding about settings.
                Code::Internal | Code::Settings | Code::Unspecified => Kind::Internal,
            },
            Self::Unavailable { .. } | Self::Changed(_) => Kind::Unavailable,
            Self::Digest { .. } => Kind::Digest,
            Self::Output { .. } => Kind::Output,
            Self::Refused(_) | Self::Input { .. } => Kind::Usage,
            Self::Protocol(_) => Kind::Internal,
        }
    }

    pub(crate) fn output(path: impl Into<PathBuf>, error: io::Error) -> Self {
        Self::Output {
            path: path.into(),
            error,
        }
    }
}
