//! Bringing content to the node, so that others get it from there.

use std::io::{Seek, SeekFrom};
use std::path::Path;

use dragonfly_proto::rpc::{self, import_chunk};
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::client::Client;
use crate::error::{Error, Result};
use crate::hash::digest_of;

const CHUNK: usize = 256 << 10;

/// Content that the node took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// The task's id.
    pub task: String,
    /// `sha256:<hex>`.
    pub digest: String,
    /// Its bytes.
    pub len: u64,
    /// What others ask for.
    pub url: String,
}

impl Client {
    /// Brings a file to the node. Others get it as `url`, or as `dragonfly://<hex of its digest>`
    /// where none is given. It is read twice: first for its digest.
    ///
    /// # Errors
    /// The file cannot be read, changes meanwhile, or the node does not take it.
    pub async fn import(
        &self,
        path: impl AsRef<Path>,
        url: Option<&str>,
        content_type: &str,
    ) -> Result<Imported> {
        let path = path.as_ref().to_owned();
        let fail = |error| Error::Input {
            path: path.clone(),
            error,
        };
        let mut file = std::fs::File::open(&path).map_err(fail)?;
        let hashed = tokio::task::spawn_blocking(move || {
            let (digest, len) = digest_of(&mut file)?;
            file.seek(SeekFrom::Start(0))?;
            Ok((file, digest, len))
        });
        let hashed = hashed.await.map_err(|e| fail(std::io::Error::other(e)))?;
        let (file, digest, len) = hashed.map_err(fail)?;
        let own = || format!("dragonfly://{}", digest.trim_start_matches("sha256:"));
        let url = url.map_or_else(own, str::to_owned);
        let header = rpc::ImportHeader {
            source: Some(rpc::Source {
                url: url.clone(),
                digest,
                ..rpc::Source::default()
            }),
            total_len: len,
            content_type: content_type.to_owned(),
        };
        let (out, chunks) = mpsc::channel(8);
        let reading = tokio::spawn(async move {
            let say = |chunk| rpc::ImportChunk { chunk: Some(chunk) };
            if out
                .send(say(import_chunk::Chunk::Header(header)))
                .await
                .is_err()
            {
                return Ok(());
            }
            let mut file = tokio::fs::File::from_std(file);
            loop {
                let mut buf = Vec::with_capacity(CHUNK);
                let n = (&mut file).take(CHUNK as u64).read_to_end(&mut buf).await?;
                // Nobody takes more: the answer says why.
                if n == 0 || out.send(say(import_chunk::Chunk::Data(buf))).await.is_err() {
                    return Ok::<_, std::io::Error>(());
                }
            }
        });
        let reply = self.grpc().import(ReceiverStream::new(chunks)).await;
        reading.abort();
        if let Ok(Err(error)) = reading.await {
            return Err(fail(error));
        }
        let reply = reply.map_err(|s| self.error(&s))?.into_inner();
        match reply.failure {
            Some(failure) => Err(Error::Node(failure)),
            None => Ok(Imported {
                task: reply.task,
                digest: reply.digest,
                len: reply.bytes,
                url,
            }),
        }
    }
}
