//! Without a scheduler: reading an origin for this node's clients alone, and proving it to the others
//! when the mesh is back.
//!
//! What is read alone is signed under epoch 0, which nobody certified, and offered to nobody. A
//! scheduler that is back certifies an epoch for whoever policy lets read that origin; the blocks are
//! signed anew under it, from the hashes that were made as they came, and nothing is read twice.

use std::sync::Arc;
use std::time::Duration;

use dragonfly_proto::geometry::Geometry;
use dragonfly_proto::id::{ContentKey, RequestKey};
use dragonfly_proto::rpc::{self, failure::Code, from_node};
use dragonfly_proto::ticket::Ticket;
use dragonfly_proto::trust::{EpochCert, Leaf, MAX_RUN, Proof, RunSigner};
use dragonfly_swarm::engine::Stripe;

use crate::meta::{Meta, from_hex, to_hex};
use crate::node::Node;
use crate::origin::meta;
use crate::task::{Effects, Task, lock};
use crate::tasks::storage_failure;

/// The epoch of what nobody certified.
const NOBODYS: u32 = 0;
/// How long a client waits for what was read alone to be proven, before it is let go.
const PROVEN: Duration = Duration::from_secs(3);

impl Node {
    /// Has this node sign by its own word, for nobody else to believe. `false`: somebody has it do so
    /// already, or it has a lease: of two readers of an origin one would be too many.
    pub(crate) fn sign_alone(&self, task: &Arc<Task>, source: &rpc::Source) -> bool {
        let signer = RunSigner::new(self.signing.clone(), task.key(), NOBODYS);
        let identified = self.identify(source.clone());
        let request = identified.map(|meant| to_hex(&meant.reads().0));
        let (first, effects): (_, Effects) = task.drive(|s, now| {
            if s.lease.is_some() {
                return false;
            }
            s.lease = Some(signer);
            s.engine.start_emitting(now, Stripe::WHOLE, Duration::ZERO);
            true
        });
        if first {
            task.update_meta(|m| {
                m.unproven = true;
                m.request = request.unwrap_or_default();
            });
        }
        self.apply(task, effects);
        first
    }

    /// Asks the content's scheduler for a certificate to sign under what was read alone.
    pub(crate) fn ask_to_sign(&self, content: &ContentKey, meta: &Meta, geometry: &Geometry) {
        let Some(request) = from_hex(&meta.request).filter(|r| r.len() == 32) else {
            // Staged by an import that this node did not live to end.
            return;
        };
        let task = self.find(content);
        let reading = task
            .as_ref()
            .is_some_and(|t| !t.is_complete() && t.state().lease.is_some());
        let source = task.and_then(|t| lock(&t.source).clone());
        let shared = ContentKey::from_digest(&meta.domain, &meta.digest);
        let ask = rpc::Import {
            content: content.0.to_vec(),
            geometry: Some(geometry.into()),
            source: Some(rpc::Source {
                domain: meta.domain.clone(),
                digest: meta.digest.clone(),
                apart: !meta.digest.is_empty() && *content != shared,
                ..source.unwrap_or_default()
            }),
            request_key: request,
            origin: Some(rpc::OriginInfo {
                validator: meta.validator.clone(),
                ..rpc::OriginInfo::default()
            }),
            held: false,
            alone: true,
            reading,
        };
        self.sessions.tell(content, from_node::Message::Import(ask));
    }

    /// The scheduler's answer to that.
    pub(crate) async fn sign_for_all(&self, content: ContentKey, cert: &EpochCert, ticket: &[u8]) {
        let Some(task) = self.find_or_revive(&content) else {
            return;
        };
        let known = cert.key == *self.signing.public() && task.add_epoch(cert).is_ok();
        if !known || !task.is_unproven() {
            return;
        }
        if let Ok(ticket) = Ticket::decode(ticket) {
            self.keep_ticket(ticket);
            task.state().ticket = Some(ticket);
        }
        match self.prove(&task, cert.epoch).await {
            Ok(()) => {
                // Another has the lease, if anybody: two would read the same.
                self.give_up_lease(&task);
                self.tell_held(&task);
            }
            Err(failure) => {
                tracing::warn!(task = %content.short(), failure.message, "cannot be proven");
            }
        }
    }

    /// Tells the content's scheduler what this node has of it; the answer brings neighbours.
    pub(crate) fn tell_held(&self, task: &Arc<Task>) {
        let join = rpc::Join {
            emitter: vec![],
            ..self.join_message(task, None)
        };
        self.sessions
            .tell(&task.key(), from_node::Message::Join(join));
    }

    /// Signs under a certified epoch what was read alone, and what is still being read.
    pub(crate) async fn prove(&self, task: &Arc<Task>, epoch: u32) -> Result<(), rpc::Failure> {
        let signer = RunSigner::new(self.signing.clone(), task.key(), epoch);
        let task = task.clone();
        let signed = tokio::task::spawn_blocking(move || {
            {
                let _no_block_between = lock(&task.signing);
                let mut state = task.state();
                if state.lease.is_some() {
                    state.lease = Some(signer.clone());
                }
            }
            let blocks = sign_anew(&task, &signer)?;
            let size = task.state().size.filter(|s| s.epoch == NOBODYS);
            if let Some(size) = size {
                task.keep_size(&signer.sign_size(size.total_len));
            }
            // Or a power loss could leave a block that is offered without its proof.
            task.store.checkpoint()?;
            task.update_meta(|m| m.unproven = false);
            tracing::info!(task = %task.key().short(), blocks, "proven: it is for all now");
            task.notify();
            Ok(())
        });
        let signed = signed
            .await
            .map_err(|e| rpc::Failure::new(Code::Internal, format!("signing broke off: {e}")))?;
        signed.map_err(|e: dragonfly_storage::StorageError| storage_failure(&e))
    }

    /// Waits for a scheduler to let what was read alone be proven; whether it is.
    pub(crate) async fn proven_soon(&self, task: &Arc<Task>) -> bool {
        self.ask_to_sign(&task.key(), &task.meta(), &task.geometry());
        let proven = async {
            loop {
                let changed = task.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if !task.is_unproven() {
                    return;
                }
                changed.await;
            }
        };
        tokio::time::timeout(PROVEN, proven).await.is_ok()
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
            only_look: false,
        };
        let reads = self.apart_from_others(&key, source, None)?;
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
        let meta = Meta {
            request: to_hex(&reads),
            ..meta(source, &origin)
        };
        let task = self.open(content, geometry, meta)?;
        self.note_reads(&task, &reads);
        *lock(&task.source) = Some(source.clone());
        let swarm_lives = task.neighbours() > 0;
        if !swarm_lives {
            self.go_alone(&task);
        }
        Ok(task)
    }

    /// Reads a content's rest for this node's clients alone: there is no scheduler to give the lease,
    /// and nobody who has it. What comes so cannot be proven to others yet, so the node leaves the
    /// swarm of this content: offering it would make a liar of it.
    pub(crate) fn go_alone(self: &Arc<Self>, task: &Arc<Task>) {
        let source = lock(&task.source).clone();
        let (Some(source), content) = (source, task.key()) else {
            return;
        };
        if task.is_complete() || task.state().lease.is_some() {
            return;
        }
        self.close_streams(task);
        if !self.sign_alone(task, &source) {
            return;
        }
        tracing::warn!(task = %content.short(), "reading the origin without a lease");
        let validator = task.meta().validator;
        let lease = rpc::Lease {
            content: content.0.to_vec(),
            request_key: self.asked_by(&source),
            source: Some(source),
            origin: Some(rpc::OriginInfo {
                validator,
                ..rpc::OriginInfo::default()
            }),
            ..rpc::Lease::default()
        };
        let (node, emitted) = (self.clone(), task.clone());
        self.threads.spawn(async move {
            let ended = tokio::select! {
                ended = node.emit(&emitted, &lease) => ended,
                () = node.stop.cancelled() => return,
            };
            match ended {
                Ok(()) if emitted.is_unproven() => {
                    node.ask_to_sign(&content, &emitted.meta(), &emitted.geometry());
                }
                Ok(()) => node.tell_held(&emitted),
                Err(failure) => {
                    node.origins.forget(&content);
                    emitted.fail(failure);
                }
            }
        });
    }
}

/// Signs every block of a task that nobody certified, in runs; how many there were.
fn sign_anew(task: &Task, signer: &RunSigner) -> dragonfly_storage::Result<usize> {
    let g = task.geometry();
    let (mut run, mut blocks, mut bytes) = (Vec::with_capacity(MAX_RUN), 0, Vec::new());
    let mut sign = |run: &mut Vec<Leaf>| {
        for (leaf, proof) in run.iter().zip(signer.sign(run)) {
            bytes.clear();
            proof.encode(&mut bytes);
            task.store.set_proof(leaf.index, &bytes)?;
        }
        blocks += run.len();
        run.clear();
        Ok(())
    };
    for index in task.store.held().iter() {
        let (Some(kept), Some(len)) = (task.store.proof(index)?, g.block_len(index)) else {
            continue;
        };
        let alone = Proof::decode(&kept.proof).is_ok_and(|p| p.epoch == NOBODYS);
        if alone {
            run.push(Leaf {
                index,
                len,
                hash: kept.hash,
            });
        }
        if run.len() == MAX_RUN {
            sign(&mut run)?;
        }
    }
    sign(&mut run)?;
    Ok(blocks)
}
