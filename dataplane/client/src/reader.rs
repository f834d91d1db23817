//! Content as a stream of bytes that survives its node.
//!
//! When the node goes away, the rest is asked for from where the bytes ended. Two versions are never
//! mixed: another content key ends the stream with [`Error::Changed`]. Where a digest was given, the
//! bytes are hashed here as well, so that what several nodes' lives sent is checked as one.

use std::io;

use bytes::Bytes;
use dragonfly_proto::rpc::{self, read_chunk};
use futures::{Stream, StreamExt};
use tokio::io::AsyncRead;
use tonic::Status;

use crate::client::{Client, Patience, is_lost};
use crate::error::{Error, Result};
use crate::hash::Hash;
use crate::request::{Range, Request};

/// See the module's header.
pub struct Reader {
    client: Client,
    request: Request,
    patience: Patience,
    chunks: Option<tonic::Streaming<rpc::ReadChunk>>,
    started: Option<rpc::Started>,
    got: u64,
    /// Present while there is a digest to compare with.
    hash: Option<Hash>,
    wanted: Option<String>,
    progress: rpc::Progress,
    over: bool,
    resumed: u32,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Reader({:?}, at {})", self.request, self.got)
    }
}

impl Reader {
    pub(crate) fn new(client: Client, request: Request) -> Self {
        let patience = client.patience();
        let wanted = request.checkable_digest();
        Self {
            client,
            request,
            patience,
            chunks: None,
            started: None,
            got: 0,
            hash: wanted.is_some().then(Hash::new),
            wanted,
            progress: rpc::Progress::default(),
            over: false,
            resumed: 0,
        }
    }

    /// What the content is, once the first bytes (or the end) came.
    #[must_use]
    pub const fn started(&self) -> Option<&rpc::Started> {
        self.started.as_ref()
    }

    /// How far it is: `have` counts what came out here, the rest is as the node says.
    #[must_use]
    pub fn progress(&self) -> rpc::Progress {
        rpc::Progress {
            have: self.got,
            total: self.len(),
            ..self.progress
        }
    }

    /// How often the node was lost and found.
    #[must_use]
    pub const fn resumed(&self) -> u32 {
        self.resumed
    }

    /// Bytes in all, when that is known: an end that was asked for is none of content whose length is not.
    fn len(&self) -> Option<u64> {
        let started = self.started.as_ref()?;
        let range = started.range.as_ref()?;
        started.total_len?;
        Some(range.end.saturating_sub(range.start))
    }

    /// Whether nothing of what was asked for can be missing.
    fn has_all(&self) -> bool {
        let asked = self.started.as_ref().and_then(|s| s.range);
        let up_to_end = asked.is_some_and(|r| r.end > 0 && r.end == r.start + self.got);
        self.got > 0 && (up_to_end || self.len() == Some(self.got))
    }

    fn missing(&self) -> Range {
        let known = self.started.as_ref().and_then(|s| s.range);
        match known {
            Some(r) if self.got > 0 => {
                Range::Part(r.start + self.got, (r.end > 0).then_some(r.end))
            }
            _ => self.request.range,
        }
    }

    /// The next bytes; `None` at the end, which is only reached with every byte right.
    ///
    /// # Errors
    /// After an error there is nothing more.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        if self.over {
            return Ok(None);
        }
        let next = self.step().await;
        self.over = !matches!(next, Ok(Some(_)));
        next
    }

    async fn step(&mut self) -> Result<Option<Bytes>> {
        loop {
            if self.chunks.is_none() {
                if self.has_all() {
                    // Only the node's word of farewell is missing.
                    return self.end().map(|()| None);
                }
                let message = self.request.message(self.missing(), false);
                match self.client.grpc().read(message).await {
                    Ok(chunks) => self.chunks = Some(chunks.into_inner()),
                    Err(status) => {
                        self.lost(&status).await?;
                        continue;
                    }
                }
            }
            let Some(chunks) = &mut self.chunks else {
                continue;
            };
            let chunk = match chunks.next().await {
                Some(Ok(chunk)) => chunk.chunk,
                Some(Err(status)) => {
                    self.lost(&status).await?;
                    continue;
                }
                None => {
                    self.lost(&Status::unavailable("the node ended the stream"))
                        .await?;
                    continue;
                }
            };
            match chunk {
                Some(read_chunk::Chunk::Started(started)) => self.on_started(started)?,
                Some(read_chunk::Chunk::Data(bytes)) => {
                    self.patience.renew();
                    self.got += bytes.len() as u64;
                    if let Some(hash) = &mut self.hash {
                        hash.update(&bytes);
                    }
                    if !bytes.is_empty() {
                        return Ok(Some(bytes));
                    }
                }
                Some(read_chunk::Chunk::Progress(progress)) => self.progress = progress,
                Some(read_chunk::Chunk::Done(done)) => {
                    self.progress = done.progress.unwrap_or_default();
                    return self.end().map(|()| None);
                }
                Some(read_chunk::Chunk::Failure(failure)) => return Err(Error::Node(failure)),
                None => {}
            }
        }
    }

    fn on_started(&mut self, started: rpc::Started) -> Result<()> {
        if self.got == 0 {
            self.started = Some(started);
            return Ok(());
        }
        let before = self.started.as_ref();
        if before.is_some_and(|b| b.task != started.task) {
            return Err(Error::Changed(self.request.url.clone()));
        }
        let from = started.range.as_ref().map(|r| r.start);
        let expected = before
            .and_then(|b| b.range.as_ref())
            .map(|r| r.start + self.got);
        if from != expected {
            return Err(Error::Protocol(format!(
                "asked for byte {expected:?}, got {from:?}"
            )));
        }
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        if let Some(len) = self.len()
            && len != self.got
        {
            return Err(Error::Protocol(format!("{} bytes of {len} came", self.got)));
        }
        let (Some(hash), Some(wanted)) = (self.hash.take(), self.wanted.take()) else {
            return Ok(());
        };
        let found = hash.digest();
        if found == wanted {
            return Ok(());
        }
        Err(Error::Digest {
            url: self.request.url.clone(),
            wanted,
            found,
        })
    }

    async fn lost(&mut self, status: &Status) -> Result<()> {
        self.chunks = None;
        if is_lost(status) && self.patience.wait().await {
            tracing::debug!(
                reason = status.message(),
                at = self.got,
                "asking the node again"
            );
            self.resumed += 1;
            return Ok(());
        }
        Err(self.client.error(status))
    }

    /// As a stream of chunks.
    pub fn into_stream(self) -> impl Stream<Item = Result<Bytes>> + Send + 'static {
        futures::stream::unfold(self, |mut reader| async move {
            let next = reader.next().await.transpose()?;
            Some((next, reader))
        })
    }

    /// As something to read from; errors come as [`io::Error`] with [`Error`] inside.
    pub fn into_async_read(self) -> impl AsyncRead + Send + Unpin + 'static {
        let chunks = self
            .into_stream()
            .map(|next| next.map_err(io::Error::other));
        tokio_util::io::StreamReader::new(Box::pin(chunks))
    }
}
