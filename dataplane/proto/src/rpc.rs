//! gRPC: generated from `proto/dragonfly/v1`, where each message is described.

#![allow(
    missing_docs,
    clippy::all,
    clippy::pedantic,
    unreachable_pub,
    unused_qualifications
)]

tonic::include_proto!("dragonfly.v1");

use crate::geometry::{Geometry as BlockGeometry, GeometryError};

/// Longest encoded gRPC message either side takes, bytes.
pub const MAX_MESSAGE: usize = 4 << 20;

impl Failure {
    /// A failure with a code and a message for people.
    pub fn new(code: failure::Code, message: impl Into<String>) -> Self {
        Self {
            code: code.into(),
            message: message.into(),
            http_status: 0,
        }
    }
}

impl From<&BlockGeometry> for Geometry {
    fn from(g: &BlockGeometry) -> Self {
        Self {
            block_size: g.block_size(),
            total_len: g.total_len(),
        }
    }
}

impl TryFrom<&Geometry> for BlockGeometry {
    type Error = GeometryError;

    fn try_from(g: &Geometry) -> Result<Self, GeometryError> {
        Self::new(g.block_size, g.total_len)
    }
}
