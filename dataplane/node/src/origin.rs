//! Looking at origins: what does a source hold? Once for a request; the body that came with the
//! answer waits for the lease. Reading on is in `lease` and `reading`, without a lease in `alone`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dragonfly_proto::geometry::Geometry;
use dragonfly_proto::id::{ContentKey, RequestKey};
use dragonfly_proto::rpc::{self, failure::Code, from_node};
use dragonfly_source::{Begun, ByteRange, Fault, Kind, Metadata, Request, Validator};
use tokio::sync::oneshot;
use tokio_util::task::AbortOnDropHandle;

use crate::find::Meant;
use crate::meta::Meta;
use crate::node::{Node, unix_now_ms};
use crate::task::{Task, lock};

/// An answer of the origin whose body waits for the lease is dropped after this,
const BEGUN_KEPT: Duration = Duration::from_secs(15);
/// and after this where another request waits for its place at the origin. A lease comes sooner.
const BEGUN_YIELDS: Duration = Duration::from_millis(500);

/// Who looks for a request goes through its gate.
type Looking = HashMap<RequestKey, Arc<tokio::sync::Mutex<()>>>;

/// An open body that waits for the lease. What watches it ends with it.
struct Waiting {
    request: Vec<u8>,
    begun: Begun,
    _watch: AbortOnDropHandle<()>,
}

/// Origins that were looked at: their open bodies wait for the lease; the rest of the metadata is
/// kept for as long as the node may be asked to go on.
#[derive(Default)]
pub(crate) struct PendingOrigins {
    begun: Mutex<HashMap<ContentKey, Waiting>>,
    metadata: Mutex<HashMap<ContentKey, (Vec<u8>, Metadata)>>,
    /// One look at a time for a request; others are not kept waiting by an origin that is slow.
    looking: Mutex<Looking>,
    answers: Mutex<HashMap<RequestKey, (Instant, rpc::ResolveResult)>>,
    /// Who brings content himself and waits for the lease to sign it under.
    pub(crate) importing: Mutex<HashMap<ContentKey, oneshot::Sender<Arc<Task>>>>,
    /// Of those who bring the same content one at a time makes it a task.
    adopting: Mutex<HashMap<ContentKey, Arc<tokio::sync::Mutex<()>>>>,
}

impl PendingOrigins {
    /// What is known of a content at its origin turned out wrong, or it cannot be read there.
    pub(crate) fn forget(&self, content: &ContentKey) {
        lock(&self.begun).remove(content);
        lock(&self.metadata).remove(content);
        lock(&self.answers).retain(|_, (_, answer)| answer.content != content.0);
    }

    /// Forgets what belongs to no task in use.
    pub(crate) fn keep_only(&self, used: &std::collections::HashSet<ContentKey>) {
        let begun: Vec<_> = lock(&self.begun).keys().copied().collect();
        lock(&self.metadata).retain(|content, _| used.contains(content) || begun.contains(content));
        lock(&self.answers).retain(|_, (until, _)| *until > Instant::now());
    }

    /// To be held by who makes a task of what a client brought.
    pub(crate) fn adopting(&self, content: ContentKey) -> Arc<tokio::sync::Mutex<()>> {
        let mut all = lock(&self.adopting);
        // Whoever held the others is through.
        all.retain(|_, gate| Arc::strong_count(gate) > 1);
        all.entry(content).or_default().clone()
    }

    /// The body that waits for the lease of a content; `request`: of a content that several places may be
    /// named for, the one that is to be read.
    pub(crate) fn take(&self, content: &ContentKey, request: &[u8]) -> Option<Begun> {
        let mut all = lock(&self.begun);
        let wanted = |kept: &Waiting| is_of(&kept.request, request);
        all.get(content).filter(|kept| wanted(kept))?;
        all.remove(content).map(|kept| kept.begun)
    }

    /// What the origin said of a content; `request` as above.
    pub(crate) fn said(&self, content: &ContentKey, request: &[u8]) -> Option<Metadata> {
        let all = lock(&self.metadata);
        let (of, metadata) = all.get(content)?;
        is_of(of, request).then(|| metadata.clone())
    }

    pub(crate) fn keep_said(&self, content: ContentKey, request: &[u8], metadata: Metadata) {
        lock(&self.metadata).insert(content, (request.to_vec(), metadata));
    }
}

/// A look at an origin for a request, or one that waits for its turn; forgotten with the last of them,
/// also where its client gives up.
struct Turn<'a> {
    looking: &'a Mutex<Looking>,
    key: RequestKey,
    gate: Arc<tokio::sync::Mutex<()>>,
}

impl<'a> Turn<'a> {
    fn new(looking: &'a Mutex<Looking>, key: RequestKey) -> Self {
        let gate = lock(looking).entry(key).or_default().clone();
        Self { looking, key, gate }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut looking = lock(self.looking);
        // The map and this one hold one each: nobody else waits.
        if Arc::strong_count(&self.gate) <= 2 {
            looking.remove(&self.key);
        }
    }
}

/// Whether what one request brought is of use for another: of most contents there is but one.
fn is_of(known: &[u8], request: &[u8]) -> bool {
    request.is_empty() || known == request
}

/// A client's source as a request to an origin.
pub(crate) fn request(source: &rpc::Source) -> Result<Request, rpc::Failure> {
    let mut request = Request::new(&source.url).map_err(|e| source_failure(&e))?;
    for h in &source.headers {
        request = request
            .with_header(&h.name, &h.value)
            .map_err(|e| source_failure(&e))?;
    }
    Ok(if source.digest.is_empty() {
        request
    } else {
        request.checked_at_end()
    })
}

/// An origin's error as others are told of it.
pub(crate) fn source_failure(e: &dragonfly_source::Error) -> rpc::Failure {
    let code = match e.kind() {
        // No range was asked for, or one within what it said: that is its doing, not a client's.
        Kind::RangeNotSatisfiable if e.fault() == Fault::Origin => Code::Origin,
        Kind::InvalidRequest | Kind::RangeNotSatisfiable | Kind::Unsupported => Code::Invalid,
        Kind::Refused => Code::Denied,
        Kind::Unauthorized | Kind::Forbidden | Kind::NotFound | Kind::Status => Code::Origin,
        Kind::ContentChanged => Code::Changed,
        _ => Code::OriginUnavailable,
    };
    let mut failure = rpc::Failure::new(code, e.to_string());
    failure.http_status = u32::from(e.status().unwrap_or(0));
    failure
}

/// How long what the origin said holds: as long as policy says, or longer where the origin says so and
/// nothing was shown that may be taken back; not at all where it was for this client or is not to be kept.
fn fresh_for(meant: &Meant, m: &Metadata, policy: Duration) -> Duration {
    let freshness = &m.freshness;
    if freshness.no_store || freshness.private {
        return Duration::ZERO;
    }
    let shown = meant.opens || !meant.source.domain.is_empty();
    let longer = freshness.max_age.filter(|age| !shown && *age > policy);
    longer.unwrap_or(policy)
}

/// What the origin said, for the others.
fn origin_info(m: &Metadata, fresh: Duration) -> rpc::OriginInfo {
    rpc::OriginInfo {
        validator: m.version().unwrap_or_default(),
        content_type: m.content_type.clone().unwrap_or_default(),
        content_encoding: m.content_encoding.clone().unwrap_or_default(),
        digest: m.digest.clone().unwrap_or_default(),
        fresh_ms: fresh.as_millis().min(u128::from(u64::MAX)) as u64,
        accepts_ranges: m.accepts_ranges,
    }
}

/// The key of what an origin's answer says it holds.
fn content_key(meant: &Meant, m: &Metadata) -> ContentKey {
    // A digest that the origin claims is its validator at best: only one that a client demanded is
    // enough to share content with other sources.
    let nonce = || format!("unvalidated {:032x}", fastrand::u128(..));
    let version = m.version().unwrap_or_else(nonce);
    meant.content(&version)
}

impl Node {
    /// Looks at the origin for a request, for whoever asked the scheduler.
    pub(crate) async fn resolve_at(self: Arc<Self>, from: String, ask: rpc::ResolveAt) {
        let id = ask.id;
        let mut result = match self.look(&ask).await {
            Ok(result) => result,
            Err(failure) => rpc::ResolveResult {
                failure: Some(failure),
                ..Default::default()
            },
        };
        result.id = id;
        // The replica that asked owns the request key; if it is gone, so is its question.
        if let Some(key) = ContentKey::from_slice(&ask.request_key) {
            self.sessions
                .reply(&from, &key.0, from_node::Message::ResolveResult(result));
        }
    }

    /// One request at the origin answers what the content is and brings its first bytes.
    pub(crate) async fn look(
        &self,
        ask: &rpc::ResolveAt,
    ) -> Result<rpc::ResolveResult, rpc::Failure> {
        let invalid = || rpc::Failure::new(Code::Invalid, "a resolve without source or key");
        let source = ask.source.clone().ok_or_else(invalid)?;
        let key = RequestKey::from_slice(&ask.request_key).ok_or_else(invalid)?;
        let source = self.opened(source, Some(&key)).await?;
        let meant = self.identify(source)?;
        let turn = Turn::new(&self.origins.looking, meant.lookup);
        let mut found = {
            let _one_at_a_time = turn.gate.lock().await;
            self.look_now(&meant, ask.only_look).await
        };
        if meant.lookup != key
            && let Ok(rpc::ResolveResult {
                origin: Some(origin),
                ..
            }) = &mut found
        {
            // Another release's key, or a lie: it is no answer for who asks by that key later.
            origin.fresh_ms = 0;
        }
        found
    }

    async fn look_now(
        &self,
        meant: &Meant,
        only_look: bool,
    ) -> Result<rpc::ResolveResult, rpc::Failure> {
        let key = meant.lookup;
        let kept = lock(&self.origins.answers).get(&key).cloned();
        if let Some((until, answer)) = kept
            && until > Instant::now()
        {
            return Ok(answer);
        }
        let (content, geometry, metadata) = match self.still_current(meant).await {
            Some(held) => held,
            None => self.begin_to_look(meant, only_look).await?,
        };
        let fresh = self.settings().freshness;
        let answer = rpc::ResolveResult {
            id: 0,
            failure: None,
            content: content.0.to_vec(),
            geometry: Some((&geometry).into()),
            origin: Some(origin_info(&metadata, fresh_for(meant, &metadata, fresh))),
        };
        // Without a validator two answers cannot be told apart: each fetch is a content of its own.
        if metadata.validator != Validator::None || !meant.source.digest.is_empty() {
            self.keep_answer(meant, content, &answer);
        }
        Ok(answer)
    }

    /// Keeps what an origin said for as long as it holds, and what it was about for the next look.
    fn keep_answer(&self, meant: &Meant, content: ContentKey, answer: &rpc::ResolveResult) {
        let lasts = answer.origin.as_ref().is_some_and(|o| o.fresh_ms > 0);
        if lasts {
            let until = Instant::now() + self.settings().freshness;
            let mut answers = lock(&self.origins.answers);
            answers.retain(|_, (until, _)| *until > Instant::now());
            answers.insert(meant.lookup, (until, answer.clone()));
        }
        // Known, but never fresh.
        let at = if lasts { unix_now_ms() } else { 0 };
        let mut kept = self.store.remember_request(meant.lookup, content, at);
        if meant.opens && meant.source.digest.is_empty() {
            kept = kept.and_then(|()| self.store.remember_request(meant.identity, content, 0));
        }
        if let Err(error) = kept {
            tracing::debug!(%error, "cannot remember a request");
        }
    }

    /// Where this node holds the whole of what a request gave last, or is at it: whether the origin
    /// still has that, by a question that brings no body. `None`: it has to be asked for the content
    /// itself. (After a scheduler's restart everybody asks anew what is under way already.)
    async fn still_current(&self, meant: &Meant) -> Option<(ContentKey, Geometry, Metadata)> {
        let source = &meant.source;
        let held = if source.digest.is_empty() {
            let last = |key| self.store.lookup_request(key);
            // Or what another signature opened last.
            last(&meant.lookup).or_else(|| last(&meant.identity))?.0
        } else {
            meant.content("")
        };
        let under_way = self.find(&held).is_some_and(|t| t.held_bytes() > 0);
        let on_disk = self.store.stat(&held);
        let on_disk = on_disk.filter(|s| s.complete || under_way)?;
        // Whatever is wrong with this answer, the next question tells in full.
        let mut metadata = self.fetcher().stat(&request(source).ok()?).await.ok()?;
        let len = on_disk.geometry.total_len();
        if metadata.total_len.is_none() {
            // An answer without a body may leave its length out, and a weak version holds it.
            metadata.total_len = len;
        }
        if metadata.total_len != len || content_key(meant, &metadata) != held {
            return None;
        }
        self.origins
            .keep_said(held, &meant.lookup.0, metadata.clone());
        Some((held, on_disk.geometry, metadata))
    }

    /// Asks the origin for the content; the answer's body waits for the lease. Where nobody wants the
    /// content yet there is none to wait for: a byte is asked for, and its place is given back at once.
    async fn begin_to_look(
        &self,
        meant: &Meant,
        only_look: bool,
    ) -> Result<(ContentKey, Geometry, Metadata), rpc::Failure> {
        let first = ByteRange::new(0, 1).filter(|_| only_look);
        let begun = self
            .fetcher()
            .begin(request(&meant.source)?, first)
            .await
            .map_err(|e| source_failure(&e))?;
        let metadata = begun.metadata().clone();
        let content = content_key(meant, &metadata);
        let geometry = Geometry::for_len(metadata.total_len)
            .map_err(|e| rpc::Failure::new(Code::Invalid, e.to_string()))?;
        self.origins
            .keep_said(content, &meant.lookup.0, metadata.clone());
        let held = self.store.stat(&content).is_some_and(|s| s.complete);
        if !held && !only_look {
            self.keep_body(content, &meant.lookup, begun);
        }
        Ok((content, geometry, metadata))
    }

    /// Keeps a body for the lease that is about to come. One that nobody takes occupies the origin: it
    /// goes after a while, and soon where somebody waits for its place.
    fn keep_body(&self, content: ContentKey, key: &RequestKey, begun: Begun) {
        let Some(node) = self.me() else { return };
        let place = begun.place();
        let watch = async move {
            let wanted = async {
                tokio::time::sleep(BEGUN_YIELDS).await;
                match place {
                    Some(place) => place.wanted().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = wanted => {}
                () = tokio::time::sleep(BEGUN_KEPT) => {}
                () = node.stop.cancelled() => return,
            }
            drop(node.origins.take(&content, &[]));
        };
        let mut kept = lock(&self.origins.begun);
        kept.entry(content).or_insert_with(|| Waiting {
            request: key.0.to_vec(),
            begun,
            _watch: AbortOnDropHandle::new(self.threads.spawn(watch)),
        });
    }
}

/// What is kept with a task on disk.
pub(crate) fn meta(source: &rpc::Source, origin: &rpc::OriginInfo) -> Meta {
    let url = dragonfly_source::Url::parse(&source.url)
        .map(|u| dragonfly_source::secret::redact(&u))
        .unwrap_or_default();
    Meta {
        url,
        content_type: origin.content_type.clone(),
        content_encoding: origin.content_encoding.clone(),
        validator: origin.validator.clone(),
        digest: source.digest.clone(),
        domain: source.domain.clone(),
        ..Meta::default()
    }
}
