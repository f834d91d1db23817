//! What each request key resolved to, over restarts: a map in memory and a log on the medium.
//!
//! Invariants: the log is appended to and rewritten when more than half of it is stale; the number
//! of keys is bounded, the oldest resolutions go first.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use dragonfly_proto::id::{ContentKey, RequestKey};

use crate::error::{Result, StorageError};
use crate::format::{self, REQUEST, RequestRecord};
use crate::media::{Media, MediaFile};
use crate::names::REQUESTS;

/// Most keys remembered (about 8 MiB of memory).
pub(crate) const MAX_REQUESTS: usize = 65_536;
/// Stale entries that are not worth a rewrite.
const SLACK: u64 = 1024;

#[derive(Debug)]
pub(crate) struct Requests {
    resolved: HashMap<RequestKey, (ContentKey, u64)>,
    log: Arc<dyn MediaFile>,
    /// Entries in the log, stale ones included.
    entries: u64,
}

impl Requests {
    /// Starts an empty log.
    pub(crate) fn create(media: &dyn Media) -> io::Result<Self> {
        media.replace(REQUESTS, &format::requests_head(), false)?;
        Ok(Self {
            resolved: HashMap::new(),
            log: media.open(REQUESTS)?,
            entries: 0,
        })
    }

    /// Goes on with a log that was read and decoded.
    pub(crate) fn resume(
        media: &dyn Media,
        records: &[RequestRecord],
        log_bytes: usize,
    ) -> io::Result<Self> {
        let mut resolved = HashMap::new();
        for r in records {
            match r.content {
                Some(content) => resolved.insert(r.request, (content, r.resolved_at)),
                None => resolved.remove(&r.request),
            };
        }
        let entries = (log_bytes / REQUEST).saturating_sub(1) as u64;
        Ok(Self {
            resolved,
            log: media.open(REQUESTS)?,
            entries,
        })
    }

    pub(crate) fn lookup(&self, request: &RequestKey) -> Option<(ContentKey, u64)> {
        self.resolved.get(request).copied()
    }

    pub(crate) fn log(&self) -> Arc<dyn MediaFile> {
        Arc::clone(&self.log)
    }

    pub(crate) fn set(
        &mut self,
        media: &dyn Media,
        request: RequestKey,
        content: Option<ContentKey>,
        resolved_at: u64,
    ) -> Result<()> {
        let fail = |e| StorageError::io(format_args!("request {request}"), "remember it", e);
        let before = match content {
            Some(content) => self.resolved.insert(request, (content, resolved_at)),
            None => self.resolved.remove(&request),
        };
        if before == content.map(|c| (c, resolved_at)) {
            return Ok(());
        }
        let record = RequestRecord {
            request,
            content,
            resolved_at,
        }
        .encode();
        self.log
            .write_all_at(&record, (self.entries + 1) * REQUEST as u64)
            .map_err(fail)?;
        self.entries += 1;
        if self.resolved.len() > MAX_REQUESTS {
            self.drop_oldest();
            self.compact(media).map_err(fail)?;
        } else if self.entries > 2 * self.resolved.len() as u64 + SLACK {
            self.compact(media).map_err(fail)?;
        }
        Ok(())
    }

    /// Drops the oldest eighth, so that this is not done at each further request.
    fn drop_oldest(&mut self) {
        let mut times: Vec<u64> = self.resolved.values().map(|(_, at)| *at).collect();
        let (_, cut, _) = times.select_nth_unstable(MAX_REQUESTS / 8);
        let cut = *cut;
        self.resolved.retain(|_, (_, at)| *at > cut);
    }

    fn compact(&mut self, media: &dyn Media) -> io::Result<()> {
        let mut bytes = format::requests_head().to_vec();
        for (request, (content, resolved_at)) in &self.resolved {
            let (request, content, resolved_at) = (*request, Some(*content), *resolved_at);
            bytes.extend_from_slice(
                &RequestRecord {
                    request,
                    content,
                    resolved_at,
                }
                .encode(),
            );
        }
        media.replace(REQUESTS, &bytes, true)?;
        self.log = media.open(REQUESTS)?;
        self.entries = self.resolved.len() as u64;
        Ok(())
    }
}
