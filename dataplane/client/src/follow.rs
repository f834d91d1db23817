//! Copying what a node holds while the rest still comes, so that a file is whole soon after its last
//! block.

use std::fs::File;
use std::io;
use std::sync::{Arc, mpsc};

use dragonfly_proto::rpc;
use tokio::task::JoinHandle;

use crate::output::{Filling, can_clone, copy};

/// A content's file, and which of its bytes were copied: in order and apart.
pub(crate) type Copied = (File, Vec<(u64, u64)>);

/// A thread that copies ranges as they are said to be held.
pub(crate) struct Follower {
    ranges: mpsc::Sender<(u64, u64)>,
    thread: JoinHandle<io::Result<Copied>>,
}

impl Follower {
    /// `from` begins with byte 0 of the content, `to` with byte `base`. Where the file system can
    /// clone, or `whole`, nothing is copied: the end clones or links the whole at once.
    pub(crate) fn start(
        from: File,
        to: File,
        base: u64,
        whole: bool,
        filling: Arc<Filling>,
    ) -> Self {
        let (ranges, said) = mpsc::channel::<(u64, u64)>();
        let thread = tokio::task::spawn_blocking(move || {
            let mut copied = vec![];
            let clones = base == 0 && (whole || can_clone(&to, &from));
            // Ends when who says them lets go.
            for range in said.iter().filter(|_| !clones) {
                copy(&from, &to, range, base, &filling)?;
                copied.push(range);
            }
            copied.sort_unstable();
            Ok((from, copied))
        });
        Self { ranges, thread }
    }

    /// The node holds these now.
    pub(crate) fn held(&self, ranges: &[rpc::ByteRange]) {
        for range in ranges {
            // A thread that failed says so at the end.
            let _ = self.ranges.send((range.start, range.end));
        }
    }

    /// The content's file and what was copied of it, once all that was said is.
    pub(crate) async fn end(self) -> io::Result<Copied> {
        drop(self.ranges);
        self.thread.await.map_err(io::Error::other)?
    }
}
