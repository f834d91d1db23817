//! Content that a client brings: it becomes a task that others get from this node.

use dragonfly_proto::rpc::{self, failure::Code};
use tonic::{Status, Streaming};

use crate::api::Shared;

impl Shared {
    pub(crate) async fn import(
        &self,
        _chunks: Streaming<rpc::ImportChunk>,
    ) -> Result<rpc::ImportReply, Status> {
        let failure = rpc::Failure::new(Code::Internal, "not built yet");
        Ok(rpc::ImportReply { failure: Some(failure), ..rpc::ImportReply::default() })
    }
}
