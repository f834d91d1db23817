//! The part of a node that goes to origins: looks (once for a request), and while it holds the lease
//! of a content, reads, signs and emits.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use dragonfly_proto::frame::{Frame, Hello};
use dragonfly_proto::geometry::Geometry;
use dragonfly_proto::id::{ContentKey, RequestKey};
use dragonfly_proto::rpc::{self, failure::Code, from_node};
use dragonfly_proto::ticket::Ticket;
use dragonfly_proto::trust::{EpochCert, Leaf, MAX_RUN, RunSigner};
use dragonfly_source::{Begun, ByteRange, Chunk, Kind, Metadata, Mode, Plan, Request, Validator};
use dragonfly_swarm::bitmap::BlockSet;
use dragonfly_swarm::engine::Stripe;
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::oneshot;

use crate::node::{Node, unix_now_ms};
use crate::task::{Effects, Meta, Task, lock};

/// An answer of the origin whose body waits for the lease is dropped after this.
const BEGUN_KEPT: Duration = Duration::from_secs(15);
/// A lease under which nothing was wanted for this long stops reading; it is taken up again when
/// something is.
const EMIT_IDLE: Duration = Duration::from_secs(30);
/// Bytes that one request to the origin covers at most.
const RANGE: u64 = 16 << 20;
/// A successor waits this long for neighbours to say what they hold.
const COLLECT: Duration = Duration::from_millis(500);

/// A task and what to sign its blocks with.
pub(crate) type Leased = (Arc<Task>, RunSigner);

/// Origins that were looked at: their open bodies wait for the lease; the rest of the metadata is
/// kept for as long as the node may be asked to go on.
#[derive(Default)]
pub(crate) struct PendingOrigins {
    begun: Mutex<HashMap<ContentKey, (Instant, Begun)>>,
    metadata: Mutex<HashMap<ContentKey, Metadata>>,
    /// One look at a time for a request; others are not kept waiting by an origin that is slow.
    looking: Mutex<HashMap<RequestKey, Arc<tokio::sync::Mutex<()>>>>,
    answers: Mutex<HashMap<RequestKey, (Instant, rpc::ResolveResult)>>,
    /// Who brings content himself and waits for the lease to sign it under.
    pub(crate) importing: Mutex<HashMap<ContentKey, oneshot::Sender<Leased>>>,
}

impl PendingOrigins {
    fn put(&self, content: ContentKey, begun: Begun) {
        let mut all = lock(&self.begun);
        all.retain(|_, (at, _)| at.elapsed() < BEGUN_KEPT);
        lock(&self.metadata).insert(content, begun.metadata().clone());
        all.entry(content).or_insert((Instant::now(), begun));
    }

    fn drop_old_bodies(&self) {
        lock(&self.begun).retain(|_, (at, _)| at.elapsed() < BEGUN_KEPT);
    }

    /// What is known of a content at its origin turned out wrong, or it cannot be read there.
    fn forget(&self, content: &ContentKey) {
        lock(&self.begun).remove(content);
        lock(&self.metadata).remove(content);
        lock(&self.answers).retain(|_, (_, answer)| answer.content != content.0);
    }

    /// Forgets what belongs to no task in use.
    pub(crate) fn keep_only(&self, used: &std::collections::HashSet<ContentKey>) {
        self.drop_old_bodies();
        let begun: Vec<_> = lock(&self.begun).keys().copied().collect();
        lock(&self.metadata).retain(|content, _| used.contains(content) || begun.contains(content));
        lock(&self.answers).retain(|_, (until, _)| *until > Instant::now());
    }

    fn take(&self, content: &ContentKey) -> Option<Begun> {
        lock(&self.begun).remove(content).map(|(_, begun)| begun)
    }
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

/// What the origin said, for the others.
fn origin_info(m: &Metadata, fresh: Duration) -> rpc::OriginInfo {
    let fresh = m.freshness.max_age.map_or(fresh, |age| age.max(fresh));
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
fn content_key(source: &rpc::Source, key: &RequestKey, m: &Metadata) -> ContentKey {
    if !source.digest.is_empty() {
        return ContentKey::from_digest(&source.domain, &source.digest);
    }
    // A digest that the origin claims is its validator at best: only one that a client demanded is
    // enough to share content with other sources.
    let nonce = || format!("unvalidated {:032x}", fastrand::u128(..));
    let version = m.version().unwrap_or_else(nonce);
    ContentKey::from_validator(&source.domain, key, &version)
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
        let source = ask.source.as_ref().ok_or_else(invalid)?;
        let key = RequestKey::from_slice(&ask.request_key).ok_or_else(invalid)?;
        let gate = lock(&self.origins.looking).entry(key).or_default().clone();
        let found = {
            let _one_at_a_time = gate.lock().await;
            self.look_now(source, key).await
        };
        let mut looking = lock(&self.origins.looking);
        // The map and this call hold one each: nobody else waits.
        if Arc::strong_count(&gate) <= 2 {
            looking.remove(&key);
        }
        found
    }

    async fn look_now(
        &self,
        source: &rpc::Source,
        key: RequestKey,
    ) -> Result<rpc::ResolveResult, rpc::Failure> {
        let kept = lock(&self.origins.answers).get(&key).cloned();
        if let Some((until, answer)) = kept
            && until > Instant::now()
        {
            return Ok(answer);
        }
        let begun = self
            .fetcher()
            .begin(request(source)?, None)
            .await
            .map_err(|e| source_failure(&e))?;
        let metadata = begun.metadata().clone();
        let content = content_key(source, &key, &metadata);
        let geometry = Geometry::for_len(metadata.total_len)
            .map_err(|e| rpc::Failure::new(Code::Invalid, e.to_string()))?;
        let held = self.store.stat(&content).is_some_and(|s| s.complete);
        if held {
            lock(&self.origins.metadata).insert(content, metadata.clone());
        } else {
            self.origins.put(content, begun);
            if let Some(node) = self.me() {
                // A body that nobody takes occupies the origin.
                tokio::spawn(async move {
                    tokio::select! {
                        () = tokio::time::sleep(BEGUN_KEPT) => node.origins.drop_old_bodies(),
                        () = node.stop.cancelled() => {}
                    }
                });
            }
        }
        let fresh = self.settings().freshness;
        let answer = rpc::ResolveResult {
            id: 0,
            failure: None,
            content: content.0.to_vec(),
            geometry: Some((&geometry).into()),
            origin: Some(origin_info(&metadata, fresh)),
        };
        // Without a validator two answers cannot be told apart: each fetch is a content of its own.
        if metadata.validator != Validator::None || !source.digest.is_empty() {
            let mut answers = lock(&self.origins.answers);
            answers.retain(|_, (until, _)| *until > Instant::now());
            answers.insert(key, (Instant::now() + fresh, answer.clone()));
            if let Err(error) = self.store.remember_request(key, content, unix_now_ms()) {
                tracing::debug!(%error, "cannot remember a request");
            }
        }
        Ok(answer)
    }

    /// Holds a lease until the task is complete, put away or failed.
    pub(crate) async fn hold_lease(self: Arc<Self>, from: String, lease: rpc::Lease) {
        let Some(content) = ContentKey::from_slice(&lease.content) else {
            return;
        };
        let cert = EpochCert::decode(&lease.epoch).ok();
        let epoch = cert.map_or(0, |c| c.epoch);
        let outcome = match cert {
            Some(cert) => self.take_lease(content, &lease, cert),
            None => Err(rpc::Failure::new(
                Code::Invalid,
                "a lease without certificate",
            )),
        };
        let failure = match &outcome {
            Ok(_) => None,
            Err(failure) => Some(failure.clone()),
        };
        let result = rpc::LeaseResult {
            content: lease.content.clone(),
            epoch,
            failure,
        };
        self.sessions
            .reply(&from, &content.0, from_node::Message::LeaseResult(result));
        let Ok(Some((task, signer))) = outcome else {
            return;
        };
        self.connect_members(&task, &lease.members);
        self.hear_early(&task);
        let importer = lock(&self.origins.importing).remove(&content);
        if let Some(importer) = importer {
            // The bytes come from a client. One that gave up meanwhile has cleaned up after itself.
            let _ = importer.send((task, signer));
            return;
        }
        let ended = tokio::select! {
            ended = self.emit(&task, &signer, &lease) => ended,
            // A node that stops lets go of its store at once.
            () = self.stop.cancelled() => return,
        };
        if let Err(failure) = ended {
            self.origins.forget(&content);
            task.fail(failure.clone());
            let result = rpc::LeaseResult {
                content: lease.content.clone(),
                epoch,
                failure: Some(failure),
            };
            self.sessions
                .reply(&from, &content.0, from_node::Message::LeaseResult(result));
        }
        let still_mine = task
            .state()
            .lease
            .as_ref()
            .is_some_and(|l| l.epoch() == epoch);
        if still_mine && task.failure().is_some() {
            self.give_up_lease(&task);
        }
    }

    pub(crate) fn give_up_lease(&self, task: &Arc<Task>) {
        let ((), effects) = task.drive(|s, now| {
            s.lease = None;
            s.engine.stop_emitting(now);
        });
        self.apply(task, effects);
    }

    fn take_lease(
        &self,
        content: ContentKey,
        lease: &rpc::Lease,
        cert: EpochCert,
    ) -> Result<Option<(Arc<Task>, RunSigner)>, rpc::Failure> {
        let wrong = |e: String| rpc::Failure::new(Code::Invalid, e);
        if cert.key != *self.signing.public() {
            return Err(wrong(
                "the lease is for another key: this node restarted".to_owned(),
            ));
        }
        let geometry = lease
            .geometry
            .as_ref()
            .ok_or_else(|| wrong("no geometry".to_owned()))?;
        let geometry = Geometry::try_from(geometry).map_err(|e| wrong(e.to_string()))?;
        let source = lease.source.clone().unwrap_or_default();
        let origin = lease.origin.clone().unwrap_or_default();
        let task = self.open(content, geometry, meta(&source, &origin))?;
        if task.failure().is_some() {
            self.forget_task(&content);
            return self.take_lease(content, lease, cert);
        }
        if task.is_unproven() {
            // Read while there was no scheduler: nobody could be served from it. Who waits for it
            // here begins again, with the others.
            let text = "the mesh is back: this content is read anew, for all".to_owned();
            task.fail(rpc::Failure::new(Code::Changed, text));
            self.forget_task(&content);
            self.store
                .delete(&content)
                .map_err(|e| crate::node::storage_failure(&e))?;
            return self.take_lease(content, lease, cert);
        }
        *lock(&task.source) = lease.source.clone();
        self.take_epochs(&task, &lease.epochs);
        task.add_epoch(&cert).map_err(|e| wrong(e.to_string()))?;
        if let Ok(ticket) = Ticket::decode(&lease.ticket) {
            self.keep_ticket(ticket);
            task.state().ticket = Some(ticket);
        }
        let stripe = Stripe {
            index: lease.stripe_index,
            of: lease.stripe_of.max(1),
            run: MAX_RUN as u32,
        };
        if task.state().lease.is_some() {
            // A scheduler that restarted gives anew what is held already, or another holder's share
            // comes to this one: reading goes on under the epoch it began with.
            let ((), effects) = task.drive(|s, now| s.engine.set_stripe(now, stripe));
            self.apply(&task, effects);
            task.notify_emission();
            return Ok(None);
        }
        let signer = RunSigner::new(self.signing.clone(), content, cert.epoch);
        // Whoever takes over first hears what the others hold.
        let collect = if lease.members.is_empty() {
            Duration::ZERO
        } else {
            COLLECT
        };
        let ((), effects) = task.drive(|s, now| {
            s.lease = Some(signer.clone());
            s.used = Instant::now();
            s.engine.start_emitting(now, stripe, collect);
            let again = Hello {
                content,
                ticket: match s.ticket {
                    Some(ticket) => ticket,
                    None => return,
                },
                block_size: s.geometry.block_size(),
                total_len: s.geometry.total_len(),
                emitter: true,
            };
            for link in s.links.values() {
                link.conn.send(link.ours, &Frame::Hello(again));
            }
        });
        self.apply(&task, effects);
        Ok(Some((task, signer)))
    }

    /// Reads from the origin what members want and nobody holds, until nothing is left.
    async fn emit(
        self: &Arc<Self>,
        task: &Arc<Task>,
        signer: &RunSigner,
        lease: &rpc::Lease,
    ) -> Result<(), rpc::Failure> {
        let mut begun = self.origins.take(&task.key());
        loop {
            if !self.wait_for_demand(task).await {
                return Ok(());
            }
            let next = match begun.take() {
                Some(begun) => begun,
                None => self.begin_again(task, lease).await?,
            };
            self.read_origin(task, signer, next).await?;
            if task.is_complete() || task.failure().is_some() || self.stop.is_cancelled() {
                return Ok(());
            }
        }
    }

    /// Waits until somebody wants a block that only the origin has; false when the lease is over, the
    /// task put away, or nothing can be wanted any more. While the lease is held somebody waits:
    /// the scheduler gives none to others.
    async fn wait_for_demand(&self, task: &Arc<Task>) -> bool {
        loop {
            {
                let state = task.state();
                if state.lease.is_none() || state.failure.is_some() {
                    return false;
                }
                if !state.engine.origin_wanted(1).is_empty() {
                    return true;
                }
            }
            if task.is_complete() || self.stop.is_cancelled() || !self.is_current(task) {
                return false;
            }
            let _ =
                tokio::time::timeout(Duration::from_millis(200), task.emission.notified()).await;
        }
    }

    /// Another fetch of a content that is known: by this node, or by the seed before it.
    async fn begin_again(
        &self,
        task: &Arc<Task>,
        lease: &rpc::Lease,
    ) -> Result<Begun, rpc::Failure> {
        let source = lease.source.as_ref();
        let lost = || rpc::Failure::new(Code::NoSource, "the lease came without a source");
        let request = request(source.ok_or_else(lost)?)?;
        let known = lock(&self.origins.metadata).get(&task.key()).cloned();
        if let Some(metadata) = known {
            return Ok(self.fetcher().resume(request, metadata));
        }
        let begun = self
            .fetcher()
            .begin(request, None)
            .await
            .map_err(|e| source_failure(&e))?;
        let m = begun.metadata();
        let validator = lease
            .origin
            .as_ref()
            .map(|o| o.validator.as_str())
            .unwrap_or_default();
        let same_version = validator.is_empty() || m.version().as_deref() == Some(validator);
        let geometry = task.geometry();
        let same_len = geometry.total_len().is_none() || geometry.total_len() == m.total_len;
        if !same_version || !same_len {
            let text = format!(
                "{} changed at the origin while it was distributed",
                task.meta().url
            );
            return Err(rpc::Failure::new(Code::Changed, text));
        }
        lock(&self.origins.metadata).insert(task.key(), m.clone());
        Ok(begun)
    }

    async fn read_origin(
        self: &Arc<Self>,
        task: &Arc<Task>,
        signer: &RunSigner,
        begun: Begun,
    ) -> Result<(), rpc::Failure> {
        let sequential = begun.mode() == Mode::Sequential;
        let plan = EnginePlan {
            task: task.clone(),
            handed_out: Vec::new(),
        };
        let mut fetch = begun.run(plan);
        let mut blocks = Assembler::new(task.clone());
        let mut ready = Vec::new();
        loop {
            // Sign what is there as soon as the origin pauses; under load, sixteen at once.
            let chunk = match fetch.next().now_or_never() {
                Some(chunk) => chunk,
                None => {
                    self.publish(task, signer, &mut ready)?;
                    fetch.next().await
                }
            };
            let Some(chunk) = chunk else { break };
            let chunk = chunk.map_err(|e| source_failure(&e))?;
            self.metrics.from_origin.inc_by(chunk.data.len() as u64);
            task.traffic
                .origin
                .fetch_add(chunk.data.len() as u64, Ordering::Relaxed);
            blocks.add(chunk, &mut ready)?;
            if ready.len() >= MAX_RUN {
                self.publish(task, signer, &mut ready)?;
            }
            if task.failure().is_some() || self.stop.is_cancelled() {
                return Ok(());
            }
        }
        if sequential && task.geometry().total_len().is_none() {
            let size = signer.sign_size(fetch.delivered_end());
            self.publish(task, signer, &mut ready)?;
            let internal = |e| rpc::Failure::new(Code::Internal, e);
            let effects = task.set_size(&size).map_err(internal)?;
            self.apply(task, effects);
            blocks.finish(&mut ready);
        }
        self.publish(task, signer, &mut ready)
    }

    /// Signs, stores and offers blocks that the origin delivered.
    pub(crate) fn publish(
        &self,
        task: &Arc<Task>,
        signer: &RunSigner,
        ready: &mut Vec<(u32, Vec<u8>)>,
    ) -> Result<(), rpc::Failure> {
        if ready.is_empty() {
            return Ok(());
        }
        let leaves: Vec<Leaf> = ready
            .iter()
            .map(|(index, data)| Leaf {
                index: *index,
                len: data.len() as u32,
                hash: *blake3::hash(data).as_bytes(),
            })
            .collect();
        let proofs = signer.sign(&leaves);
        let mut bytes = Vec::new();
        for ((leaf, proof), (index, data)) in leaves.iter().zip(proofs).zip(ready.drain(..)) {
            bytes.clear();
            proof.encode(&mut bytes);
            let written = task.store.write_block(index, &data, leaf.hash, &bytes);
            written.map_err(|e| crate::node::storage_failure(&e))?;
        }
        let ((), effects) = task.drive(|s, now| {
            s.used = Instant::now();
            leaves
                .iter()
                .for_each(|l| s.engine.origin_block_ready(now, l.index));
        });
        self.apply(task, effects);
        task.notify();
        Ok(())
    }

    /// Has this node sign by its own word, for nobody else to believe.
    pub(crate) fn sign_alone(&self, task: &Arc<Task>) -> RunSigner {
        let signer = RunSigner::new(self.signing.clone(), task.key(), 0);
        task.update_meta(|m| m.unproven = true);
        let (_, effects): (_, Effects) = task.drive(|s, now| {
            s.lease = Some(signer.clone());
            s.engine.start_emitting(now, Stripe::WHOLE, Duration::ZERO);
        });
        self.apply(task, effects);
        signer
    }

    /// Fetches a content for this node's clients alone, when no scheduler can be asked and policy
    /// allows the origin: the content's key, the task complete or on its way.
    pub(crate) async fn fetch_alone(
        self: &Arc<Self>,
        key: RequestKey,
        source: &rpc::Source,
    ) -> Result<Arc<Task>, rpc::Failure> {
        let ask = rpc::ResolveAt {
            id: 0,
            request_key: key.0.to_vec(),
            source: Some(source.clone()),
        };
        let found = self.look(&ask).await?;
        let gone = || rpc::Failure::new(Code::Internal, "resolved to nothing");
        let content = ContentKey::from_slice(&found.content).ok_or_else(gone)?;
        let geometry = found
            .geometry
            .as_ref()
            .and_then(|g| Geometry::try_from(g).ok());
        let geometry = geometry.ok_or_else(gone)?;
        let origin = found.origin.clone().unwrap_or_default();
        if self.find(&content).is_some_and(|t| t.failure().is_some()) {
            // An earlier attempt failed; this one begins anew.
            self.forget_task(&content);
        }
        let task = self.open(content, geometry, meta(source, &origin))?;
        *lock(&task.source) = Some(source.clone());
        let swarm_lives = task.neighbours() > 0;
        if !swarm_lives {
            self.go_alone(&task);
        }
        Ok(task)
    }

    /// Reads a content's rest for this node's clients alone: there is no scheduler to give the lease,
    /// and nobody who has it. What comes so cannot be proven to others, so the node leaves the swarm
    /// of this content: offering it would make a liar of it.
    pub(crate) fn go_alone(self: &Arc<Self>, task: &Arc<Task>) {
        let source = lock(&task.source).clone();
        let (Some(source), content) = (source, task.key()) else {
            return;
        };
        if task.is_complete() || task.state().lease.is_some() {
            return;
        }
        tracing::warn!(task = %content.short(), "reading the origin without a lease");
        self.close_streams(task);
        let own = EpochCert::issue(&self.signing, content, 0, *self.signing.public());
        let signer = self.sign_alone(task);
        let validator = task.meta().validator;
        let lease = rpc::Lease {
            content: content.0.to_vec(),
            epoch: own.encode().to_vec(),
            source: Some(source),
            origin: Some(rpc::OriginInfo {
                validator,
                ..rpc::OriginInfo::default()
            }),
            ..rpc::Lease::default()
        };
        let (node, emitted) = (self.clone(), task.clone());
        tokio::spawn(async move {
            let ended = tokio::select! {
                ended = node.emit(&emitted, &signer, &lease) => ended,
                () = node.stop.cancelled() => return,
            };
            if let Err(failure) = ended {
                node.origins.forget(&content);
                emitted.fail(failure);
            }
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
        ..Meta::default()
    }
}

/// Asks the engine what to read next, as late as possible.
struct EnginePlan {
    task: Arc<Task>,
    /// Blocks handed out and not delivered yet.
    handed_out: Vec<std::ops::Range<u32>>,
}

impl Plan for EnginePlan {
    fn next(&mut self, max: u64) -> BoxFuture<'_, Option<ByteRange>> {
        async move {
            let since = Instant::now();
            loop {
                if let Some(range) = self.pick(max) {
                    return Some(range);
                }
                let over = {
                    let s = self.task.state();
                    s.lease.is_none() || s.failure.is_some()
                };
                if over || self.task.is_complete() || since.elapsed() > EMIT_IDLE {
                    return None;
                }
                // Notifications may be taken by somebody else who waits: look again soon anyway.
                let wake = self.task.emission.notified();
                let _ = tokio::time::timeout(Duration::from_millis(100), wake).await;
            }
        }
        .boxed()
    }
}

impl EnginePlan {
    fn pick(&mut self, max: u64) -> Option<ByteRange> {
        let state = self.task.state();
        let g = state.geometry;
        let held = state.engine.held();
        self.handed_out.retain(|r| !held.contains_range(r.clone()));
        let most = (max.min(RANGE) / u64::from(g.block_size())).max(1) as u32;
        // What is under way comes back again and again: ask for so much more.
        let under_way: u32 = self.handed_out.iter().map(|r| r.end - r.start).sum();
        let wanted = state.engine.origin_wanted(most + under_way);
        let first = wanted
            .iter()
            .flat_map(Clone::clone)
            .find(|b| !self.is_out(*b))?;
        // What a reader hurries for heads the list; the request goes on over what is wanted behind
        // it, for a request of one block would waste the body that is open.
        let set: BlockSet = wanted.into_iter().collect();
        let end = (first..first.saturating_add(most))
            .find(|b| !set.contains(*b) || self.is_out(*b))
            .unwrap_or(first.saturating_add(most));
        self.handed_out.push(first..end);
        let to = g.total_len().unwrap_or(u64::MAX).min(g.offset(end));
        ByteRange::new(g.offset(first), to)
    }

    fn is_out(&self, block: u32) -> bool {
        self.handed_out.iter().any(|r| r.contains(&block))
    }
}

/// Puts chunks together to blocks.
struct Assembler {
    task: Arc<Task>,
    partial: BTreeMap<u32, Vec<u8>>,
}

impl Assembler {
    const fn new(task: Arc<Task>) -> Self {
        Self {
            task,
            partial: BTreeMap::new(),
        }
    }

    fn add(&mut self, chunk: Chunk, ready: &mut Vec<(u32, Vec<u8>)>) -> Result<(), rpc::Failure> {
        let g = self.task.geometry();
        let size = u64::from(g.block_size());
        let (mut at, mut data): (u64, Bytes) = (chunk.offset, chunk.data);
        while !data.is_empty() {
            let index = (at / size) as u32;
            let len = g.block_len(index).ok_or_else(|| {
                let text = "the origin sent more than its length".to_owned();
                rpc::Failure::new(Code::OriginUnavailable, text)
            })?;
            let within = (at % size) as usize;
            let take = data.len().min(len as usize - within);
            let part = data.split_to(take);
            at += take as u64;
            if self.task.store.is_held(index) {
                continue;
            }
            let block = self
                .partial
                .entry(index)
                .or_insert_with(|| Vec::with_capacity(len as usize));
            if block.len() != within {
                // Chunks of a block come in order; a block whose head was held came otherwise.
                self.partial.remove(&index);
                continue;
            }
            block.extend_from_slice(&part);
            if block.len() == len as usize
                && let Some(block) = self.partial.remove(&index)
            {
                ready.push((index, block));
            }
        }
        Ok(())
    }

    /// The last block of content whose length was not known.
    fn finish(&mut self, ready: &mut Vec<(u32, Vec<u8>)>) {
        let last = std::mem::take(&mut self.partial);
        ready.extend(last.into_iter().filter(|(_, block)| !block.is_empty()));
    }
}
