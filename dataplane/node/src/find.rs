//! What does a client mean, and where is it? From a source to a task that is in use.

use std::sync::Arc;

use dragonfly_proto::geometry::Geometry;
use dragonfly_proto::id::{ContentKey, RequestKey, credential_domain, negotiated, opened_domain};
use dragonfly_proto::rpc::{self, failure::Code, from_node};
use dragonfly_source::{QueryFilter, canonical, canonical_whole};

use crate::meta::{Meta, to_hex};
use crate::node::{Node, unix_now_ms};
use crate::origin::{meta, request};
use crate::task::{Task, lock};

/// What a client means.
pub(crate) struct Meant {
    /// Of exactly this question: by it schedulers and seeds are asked, and what they said is remembered.
    /// Nothing that the URL shows its origin is left out, so what one signature opened is no answer for
    /// another.
    pub(crate) lookup: RequestKey,
    /// Of what the question is about, whatever the signature: content without a digest is named by it.
    pub(crate) identity: RequestKey,
    /// The URL shows its origin what the identity does not hold, or may be a secret.
    pub(crate) opens: bool,
    /// With its isolation domain.
    pub(crate) source: rpc::Source,
}

impl Meant {
    /// What it is read for: of a digest this very question, for another place may have something else
    /// for it; else what stays the same when signatures change.
    pub(crate) fn reads(&self) -> &RequestKey {
        if self.source.is_given_by_digest() {
            &self.lookup
        } else {
            &self.identity
        }
    }

    /// The key of what it holds, in this version.
    pub(crate) fn content(&self, validator: &str) -> ContentKey {
        self.source.content(self.reads(), validator)
    }
}

impl Node {
    /// What a source means. The same again for the source that it returns.
    pub(crate) fn identify(&self, mut source: rpc::Source) -> Result<Meant, rpc::Failure> {
        source.digest = source.digest.to_ascii_lowercase();
        if !source.digest.is_empty() && !is_sha256(&source.digest) {
            let text = format!(
                "`{}` is not a digest: write sha256:<64 hex digits>",
                source.digest
            );
            return Err(rpc::Failure::new(Code::Invalid, text));
        }
        let parsed = request(&source)?;
        let mut filter: QueryFilter = self.settings().query;
        filter.exclude.extend(source.filtered_query.iter().cloned());
        let wrong = |e| crate::origin::source_failure(&e);
        let canonical = canonical(parsed.url(), &filter).map_err(wrong)?;
        let whole = canonical_whole(parsed.url()).map_err(wrong)?;
        let opens = *whole != canonical.key();
        let chosen = !source.domain.is_empty();
        if !chosen {
            source.domain = credential_domain(parsed.headers()).unwrap_or_default();
        }
        let mut asked = negotiated(parsed.headers());
        let identity = RequestKey::derive(&source.domain, canonical.key(), &asked);
        let dropped = source.filtered_query.iter();
        let dropped: Vec<_> = dropped
            .map(|name| ("dropped".to_owned(), name.clone()))
            .collect();
        if opens && !chosen && !source.digest.is_empty() {
            // Of one place. Who says that more of a URL does not count may mean another one.
            let place = [&asked[..], &dropped].concat();
            let place = RequestKey::derive(&source.domain, canonical.key(), &place);
            source.domain = opened_domain(&place);
        }
        // Whoever demands a digest asks another question than whoever takes what the origin has: the
        // answer to one, wrong digests included, must not be given to the other. So does who says what
        // does not count: what that makes one is for who says the same.
        asked.push(("digest".to_owned(), source.digest.clone()));
        asked.extend(dropped);
        if source.apart {
            asked.push(("apart".to_owned(), String::new()));
        }
        let lookup = RequestKey::derive(&source.domain, &whole, &asked);
        Ok(Meant {
            lookup,
            identity,
            opens,
            source,
        })
    }

    pub(crate) async fn find_task(
        self: &Arc<Self>,
        meant: &Meant,
    ) -> Result<Arc<Task>, rpc::Failure> {
        let (key, source) = (meant.lookup, &meant.source);
        if let Some(task) = self.held_already(&key, source) {
            return Ok(task);
        }
        if !self.sessions.any_configured() {
            return self.fetch_alone(key, source).await;
        }
        let ask = rpc::Resolve {
            id: 0,
            request_key: key.0.to_vec(),
            source: Some(source.clone()),
            replicas: self.sessions.connected(),
            only_look: false,
        };
        let asking = self.asking.for_now(&key, source);
        let resolved = self.sessions.resolve(ask).await;
        drop(asking);
        let resolved = match resolved {
            Ok(resolved) => resolved,
            Err(no_scheduler) => return self.without_scheduler(key, source, no_scheduler).await,
        };
        if let Some(failure) = resolved.failure {
            return Err(failure);
        }
        let broken = |e: String| rpc::Failure::new(Code::Internal, format!("scheduler: {e}"));
        let content = ContentKey::from_slice(&resolved.content)
            .ok_or_else(|| broken("no content key".to_owned()))?;
        let geometry = resolved
            .geometry
            .as_ref()
            .ok_or_else(|| broken("no geometry".to_owned()))?;
        let geometry = Geometry::try_from(geometry).map_err(|e| broken(e.to_string()))?;
        let origin = resolved.origin.unwrap_or_default();
        let lasts = !origin.validator.is_empty() || !source.digest.is_empty();
        if lasts && origin.fresh_ms > 0 {
            let _ = self.store.remember_request(key, content, unix_now_ms());
        }
        // What is held whole is that content, however it was cut.
        let whole = self.store.stat(&content).filter(|held| held.complete);
        let geometry = whole.map_or(geometry, |held| held.geometry);
        if self.find(&content).is_some_and(|t| t.failure().is_some()) {
            // An earlier attempt failed for all; this one begins anew.
            self.forget_task(&content);
        }
        let reads = self.apart_from_others(&key, source, resolved.joined.as_ref())?;
        let meta = Meta {
            request: to_hex(&reads),
            ..meta(source, &origin)
        };
        let mut task = self.open(content, geometry, meta.clone())?;
        self.note_reads(&task, &reads);
        if task.is_unproven() && !task.is_complete() {
            if task.state().lease.is_some() {
                // Begun while there was no scheduler, and still on its way.
                return Ok(task);
            }
            if !self.proven_soon(&task).await {
                // Policy keeps this node from that origin by now: nobody could be given it.
                self.forget_task(&content);
                self.store
                    .delete(&content)
                    .map_err(|e| crate::tasks::storage_failure(&e))?;
                task = self.open(content, geometry, meta)?;
            }
        }
        let client = Client {
            node: self,
            task: &task,
            stays: false,
        };
        *lock(&task.source) = Some(source.clone());
        if task.is_complete() || task.state().joined {
            client.stays();
            return Ok(task);
        }
        match resolved.joined {
            Some(joined) => self.on_joined(&joined),
            None => {
                let join = rpc::Join {
                    wants: true,
                    resolver: resolved.resolver,
                    ..self.join_message(&task, Some(source.clone()))
                };
                match self.sessions.join(join).await {
                    Ok(joined) => match joined.failure {
                        Some(failure) => return Err(failure),
                        None => self.on_joined(&joined),
                    },
                    Err(e) => {
                        client.stays();
                        return self.without_scheduler(key, source, e).await;
                    }
                }
            }
        }
        client.stays();
        Ok(task)
    }

    /// A scheduler answers a client that has given up meanwhile: nobody here wants that content any more,
    /// and the scheduler keeps what the client showed as long as it believes that somebody does.
    pub(crate) fn on_late_answer(&self, late: &rpc::Resolved) {
        let content = ContentKey::from_slice(&late.content);
        let (Some(content), Some(_)) = (content, &late.joined) else {
            return;
        };
        if let Some(task) = self.find(&content) {
            return self.let_go(&task, true);
        }
        let join = rpc::Join {
            content: late.content.clone(),
            geometry: late.geometry,
            ..rpc::Join::default()
        };
        self.sessions.tell(&content, from_node::Message::Join(join));
    }

    /// Whether this is a source of the content, or of something else that a member passes off as one.
    pub(crate) fn is_source_of(
        &self,
        content: &ContentKey,
        source: &rpc::Source,
        validator: &str,
    ) -> bool {
        // As it was when the content was found, whatever policy says by now of its query.
        let same_place = || {
            let known = self.find(content).map(|t| t.meta().url);
            known.is_some_and(|url| url == meta(source, &rpc::OriginInfo::default()).url)
        };
        let identified = self.identify(source.clone());
        identified.is_ok_and(|m| is_named(content, m.reads(), &m.source, validator)) || same_place()
    }

    /// What is on disk and known to be current.
    fn held_already(&self, key: &RequestKey, source: &rpc::Source) -> Option<Arc<Task>> {
        let content = if source.is_given_by_digest() {
            self.held_by_digest(key, source)?
        } else {
            let (content, at) = self.store.lookup_request(key)?;
            let fresh = self.settings().freshness.as_millis() as u64;
            // A clock that was set back would keep what is marked later than now fresh until then.
            let age = unix_now_ms().checked_sub(at)?;
            (age < fresh).then_some(content)?
        };
        self.store.stat(&content).filter(|s| s.complete)?;
        let task = self.find_or_revive(&content)?;
        let size = task.geometry().total_len().unwrap_or(0);
        self.metrics.from_cache.inc_by(size);
        Some(task)
    }

    async fn without_scheduler(
        self: &Arc<Self>,
        key: RequestKey,
        source: &rpc::Source,
        why: rpc::Failure,
    ) -> Result<Arc<Task>, rpc::Failure> {
        if why.code() != Code::NoSource {
            return Err(why);
        }
        if !self.settings().back_to_source {
            let text = format!(
                "{}; policy does not let this node go to the origin",
                why.message
            );
            return Err(rpc::Failure::new(Code::NoSource, text));
        }
        tracing::warn!(
            reason = why.message,
            "going to the origin without a scheduler"
        );
        self.fetch_alone(key, source).await
    }
}

/// A client that what is kept and told of a source is for, until it is known to want the content: where it
/// gives up or is refused before, that goes.
struct Client<'a> {
    node: &'a Node,
    task: &'a Arc<Task>,
    stays: bool,
}

impl Client<'_> {
    fn stays(mut self) {
        self.stays = true;
    }
}

impl Drop for Client<'_> {
    fn drop(&mut self) {
        if !self.stays {
            self.node.let_go(self.task, true);
        }
    }
}

/// Whether a content's key is made of what it is read for, or of its digest.
fn is_named(
    content: &ContentKey,
    reads: &RequestKey,
    source: &rpc::Source,
    validator: &str,
) -> bool {
    // What an origin gives no validator for is named by chance.
    let by_chance = source.digest.is_empty() && validator.is_empty();
    by_chance || *content == source.content(reads, validator)
}

/// Whether a text is `sha256:` and 64 lower-case hexadecimal digits.
pub(crate) fn is_sha256(digest: &str) -> bool {
    digest.strip_prefix("sha256:").is_some_and(|hex| {
        hex.len() == 64
            && hex
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_content_is_named_by_its_request_and_validator_or_by_its_digest() {
        let key = |url: &str| RequestKey::derive("", url, &[]);
        let (this, other) = (key("http://o/this"), key("http://o/other"));
        let content = ContentKey::from_validator("", &this, "v1");
        let mut source = rpc::Source::default();
        assert!(is_named(&content, &this, &source, "v1"));
        assert!(!is_named(&content, &other, &source, "v1"));
        assert!(!is_named(&content, &this, &source, "v2"));
        // By a digest it may come from anywhere.
        source.digest = format!("sha256:{}", "ab".repeat(32));
        let content = ContentKey::from_digest("", &source.digest);
        assert!(is_named(&content, &other, &source, "v1"));
        assert!(!is_named(
            &ContentKey::from_digest("t", &source.digest),
            &other,
            &source,
            ""
        ));
    }
}
