//! Holding the lease of a content: reading its origin while anybody wants what nobody holds.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dragonfly_proto::frame::{Frame, Hello};
use dragonfly_proto::geometry::Geometry;
use dragonfly_proto::id::ContentKey;
use dragonfly_proto::rpc::{self, failure::Code, from_node};
use dragonfly_proto::ticket::Ticket;
use dragonfly_proto::trust::{EmitterClaim, EpochCert, MAX_RUN, RunSigner};
use dragonfly_source::Begun;
use dragonfly_swarm::engine::Stripe;

use crate::meta::{Meta, to_hex};
use crate::node::Node;
use crate::origin::{meta, request, source_failure};
use crate::reading::{RANGE, bytes_of};
use crate::task::{Task, lock};

/// A successor waits this long for neighbours to say what they hold,
const COLLECT: Duration = Duration::from_millis(500);
/// and this long at most for those that came with the lease: where processors are busy it takes a while to
/// connect, and what they hold would be read again.
const COLLECT_NAMED: Duration = Duration::from_secs(3);
/// A lease that came without a source gets one within this time, by a reminder that the scheduler sends when
/// somebody who wants the content calls for it, or the content is given up.
const SOURCE: Duration = Duration::from_secs(10);
/// Nobody calls for a source while a neighbour seems to read it: one that has none asks, this often.
const ASKS: Duration = Duration::from_millis(500);

impl Node {
    /// Holds a lease until the task is complete, put away or failed.
    pub(crate) async fn hold_lease(self: Arc<Self>, from: String, mut lease: rpc::Lease) {
        let Some(content) = ContentKey::from_slice(&lease.content) else {
            return;
        };
        let cert = EpochCert::decode(&lease.epoch).ok();
        if let (true, Some(cert)) = (lease.only_sign, &cert) {
            return self.sign_for_all(content, cert, &lease.ticket).await;
        }
        let epoch = cert.map_or(0, |c| c.epoch);
        let outcome = match cert {
            Some(cert) => self.take_lease(content, &lease, cert).await,
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
        let Ok((task, begins)) = outcome else {
            return;
        };
        if lock(&task.source).is_some() {
            // The task has it, and loses it when nobody wants the content any more.
            lease.source = None;
        }
        self.connect_members(&task, &lease.members);
        self.hear_early(&task);
        if !begins {
            return;
        }
        let importer = lock(&self.origins.importing).remove(&content);
        if let Some(importer) = importer {
            // The bytes come from a client. One that gave up meanwhile has cleaned up after itself.
            let _ = importer.send(task);
            return;
        }
        let ended = tokio::select! {
            ended = self.emit(&task, &lease) => ended,
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

    /// What shows a neighbour that this node holds the lease that `signer` signs under.
    pub(crate) fn claim(&self, task: &Task, signer: &RunSigner) -> Option<Box<EmitterClaim>> {
        let verifier = task.verifier();
        let cert = verifier.epochs().find(|c| c.epoch == signer.epoch())?;
        signer.claim(cert, &self.identity.node).map(Box::new)
    }

    pub(crate) fn give_up_lease(&self, task: &Arc<Task>) {
        let ((), effects) = task.drive(|s, now| {
            s.lease = None;
            s.engine.stop_emitting(now);
        });
        self.apply(task, effects);
    }

    /// The task of a lease, and whether reading begins with it: it goes on where it is under way.
    async fn take_lease(
        &self,
        content: ContentKey,
        lease: &rpc::Lease,
        cert: EpochCert,
    ) -> Result<(Arc<Task>, bool), rpc::Failure> {
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
        let given = self.source_given(&content, lease).await;
        // A peer uses what its own client showed.
        let source = match &given {
            Ok(given) => given.clone(),
            Err(_) => lease.source.clone(),
        };
        let source = source.unwrap_or_default();
        let origin = lease.origin.clone().unwrap_or_default();
        if self.find(&content).is_some_and(|t| t.failure().is_some()) {
            self.forget_task(&content);
        }
        self.discard_others(&content, &lease.request_key)?;
        let meta = Meta {
            request: to_hex(&lease.request_key),
            ..meta(&source, &origin)
        };
        let task = self.open(content, geometry, meta)?;
        self.note_reads(&task, &lease.request_key);
        if let Ok(Some(given)) = given {
            *lock(&task.source) = Some(given);
        }
        self.take_epochs(&task, &lease.epochs);
        task.add_epoch(&cert).map_err(|e| wrong(e.to_string()))?;
        if let Ok(ticket) = Ticket::decode(&lease.ticket) {
            self.keep_ticket(ticket);
            task.state().ticket = Some(ticket);
        }
        if task.is_unproven() {
            // Read while there was no scheduler, from the same origin: now it is for all.
            self.prove(&task, cert.epoch).await?;
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
            return Ok((task, false));
        }
        let signer = RunSigner::new(self.signing.clone(), content, cert.epoch);
        // Whoever takes over first hears what the others hold.
        let named: HashSet<_> = self.others(&lease.members).map(|(id, _)| id).collect();
        let collect = if named.is_empty() {
            Duration::ZERO
        } else {
            COLLECT
        };
        let emitter = self.claim(&task, &signer);
        let (begins, effects) = task.drive(|s, now| {
            if s.lease.is_some() {
                // It was sent twice, and the other is a step ahead.
                return false;
            }
            s.lease = Some(signer.clone());
            s.used = Instant::now();
            s.engine.start_emitting(now, stripe, collect);
            if !named.is_empty() {
                s.engine.collect_named(now, COLLECT_NAMED);
                s.awaited = named;
                s.hear(now, None);
            }
            let again = Hello {
                content,
                ticket: match s.ticket {
                    Some(ticket) => ticket,
                    None => return true,
                },
                block_size: s.geometry.block_size(),
                total_len: s.geometry.total_len(),
                emitter,
            };
            let again = Frame::Hello(again);
            for link in s.links.values() {
                link.conn.send(link.ours, &again);
            }
            true
        });
        self.apply(&task, effects);
        Ok((task, begins))
    }

    /// The source that came with a lease, if it is one of the content's: any member may have told it to
    /// the scheduler, which sees no more than its public part.
    async fn source_given(
        &self,
        content: &ContentKey,
        lease: &rpc::Lease,
    ) -> Result<Option<rpc::Source>, rpc::Failure> {
        let Some(source) = lease.source.clone() else {
            return Ok(None);
        };
        let source = self.opened(source, None).await?;
        let validator = lease.origin.as_ref().map_or("", |o| o.validator.as_str());
        if self.is_source_of(content, &source, validator) {
            return Ok(Some(source));
        }
        tracing::warn!(task = %content.short(), url = source.public_url(),
            "this is no source of the content: it is not asked");
        Ok(None)
    }

    /// Reads from the origin what members want and nobody holds, until nothing is left.
    pub(crate) async fn emit(
        self: &Arc<Self>,
        task: &Arc<Task>,
        lease: &rpc::Lease,
    ) -> Result<(), rpc::Failure> {
        let mut begun = self.origins.take(&task.key(), &lease.request_key);
        loop {
            if !self.wait_for_demand(task).await {
                return Ok(());
            }
            let next = match begun.take() {
                Some(begun) => begun,
                None => match self.source_of(task, lease).await? {
                    Some(source) => self.begin_again(task, lease, &source).await?,
                    None => return Ok(()),
                },
            };
            self.read_origin(task, next).await?;
            if task.is_complete() || task.failure().is_some() || self.stop.is_cancelled() {
                return Ok(());
            }
        }
    }

    /// Waits until somebody wants a block that only the origin has; false when the lease is over, the
    /// task put away, or nothing can be wanted any more. While the lease is held somebody waits:
    /// the scheduler gives none to others. What a client showed goes when nobody has wanted any for a while:
    /// whoever does then shows their own.
    async fn wait_for_demand(&self, task: &Arc<Task>) -> bool {
        let since = Instant::now();
        loop {
            {
                let state = task.state();
                if state.lease.is_none() || state.failure.is_some() {
                    return false;
                }
                if !state.engine.origin_wanted(1).is_empty() {
                    return true;
                }
                if state.wants.is_empty() && since.elapsed() > SOURCE {
                    lock(&task.source).take();
                }
            }
            if task.is_complete() || self.stop.is_cancelled() || !self.is_current(task) {
                return false;
            }
            let _ =
                tokio::time::timeout(Duration::from_millis(200), task.emission.notified()).await;
        }
    }

    /// What to ask the origin with; nothing when nobody needs it any more. Members' requests come straight
    /// to this node, and may be here before the scheduler has passed on what their clients showed.
    async fn source_of(
        &self,
        task: &Arc<Task>,
        lease: &rpc::Lease,
    ) -> Result<Option<rpc::Source>, rpc::Failure> {
        let (mut since, mut asked) = (Instant::now(), Instant::now());
        loop {
            // A reminder of the lease may have brought what the lease did not.
            let own = lock(&task.source).clone();
            if let Some(own) = own {
                return Ok(Some(own));
            }
            if let Some(given) = self.source_given(&task.key(), lease).await? {
                return Ok(Some(given));
            }
            if since.elapsed() > SOURCE {
                let text =
                    "the scheduler knows of no client's request for it any more: ask for it again";
                return Err(rpc::Failure::new(Code::NoSource, text));
            }
            let _ =
                tokio::time::timeout(Duration::from_millis(200), task.emission.notified()).await;
            if asked.elapsed() > ASKS {
                asked = Instant::now();
                self.ask_for_source(task, None);
            }
            let idle = Instant::now();
            if !self.wait_for_demand(task).await {
                return Ok(None);
            }
            if idle.elapsed() > Duration::from_millis(50) {
                // Nobody wanted anything for a while: whoever does now has the whole time.
                since = Instant::now();
            }
        }
    }

    /// Whether nobody else has read this content so far.
    fn is_only_reader(&self, lease: &rpc::Lease) -> bool {
        let mut before = lease.epochs.iter().map(|cert| EpochCert::decode(cert));
        before.all(|cert| cert.is_ok_and(|cert| cert.key == *self.signing.public()))
    }

    /// Another fetch of a content that is known: by this node, or by the seed before it.
    async fn begin_again(
        &self,
        task: &Arc<Task>,
        lease: &rpc::Lease,
        source: &rpc::Source,
    ) -> Result<Begun, rpc::Failure> {
        let validator = lease
            .origin
            .as_ref()
            .map_or("", |origin| origin.validator.as_str());
        if validator.is_empty() && source.digest.is_empty() && !self.is_only_reader(lease) {
            // Whatever is read now may be another version than what was read and signed before.
            let text = format!(
                "the node that read {} is gone, and nothing in the origin's answers tells whether it is \
                 the same still",
                task.meta().url
            );
            return Err(rpc::Failure::new(Code::Changed, text));
        }
        let request = request(source)?;
        let known = self.origins.said(&task.key(), &lease.request_key);
        if let Some(metadata) = known {
            return Ok(self.fetcher().resume(request, metadata));
        }
        // What is held already is not asked for again, the first answer's body included.
        let first = {
            let state = task.state();
            let most = (RANGE / u64::from(state.geometry.block_size())).max(1) as u32;
            let wanted = state.engine.origin_wanted(most).into_iter().next();
            wanted.and_then(|blocks| bytes_of(&state.geometry, &blocks))
        };
        let begun = self
            .fetcher()
            .begin(request, first)
            .await
            .map_err(|e| source_failure(&e))?;
        let m = begun.metadata();
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
        self.origins
            .keep_said(task.key(), &lease.request_key, m.clone());
        Ok(begun)
    }
}
