//! Content that clients bring to nodes: no origin is asked, so the node signs it, whatever policy says
//! of who may go to origins.
//!
//! A digest speaks for itself. What an origin's URL means only seeds may say, who would be believed
//! when they look at the origin too; anybody may name things under `dragonfly://`.

use std::time::Duration;

use dragonfly_proto::geometry::Geometry;
use dragonfly_proto::id::{ContentKey, NodeId, RequestKey};
use dragonfly_proto::rpc::{self, failure::Code};
use dragonfly_swarm::engine::Stripe;
use dragonfly_swarm::membership::Lease;

use crate::core::Core;
use crate::lookups::{Known, Lookup};
use crate::swarms::TaskEntry;

/// How long a source means what was imported for it.
const KNOWN: Duration = Duration::from_secs(24 * 3600);

impl Core {
    pub(crate) fn on_import(&mut self, from: NodeId, mut m: rpc::Import) {
        let source = m.source.take().unwrap_or_default();
        let (Some(content), Some(request)) = (
            ContentKey::from_slice(&m.content),
            RequestKey::from_slice(&m.request_key),
        ) else {
            return;
        };
        if m.alone {
            m.source = Some(source);
            return self.on_read_alone(from, content, request, m);
        }
        // The key is of a digest: what a source without one means, its origin says.
        let by_digest = ContentKey::from_digest(&source.domain, &source.digest);
        let geometry = m.geometry.as_ref().and_then(|g| Geometry::try_from(g).ok());
        let Some(geometry) = geometry.filter(|_| content == by_digest) else {
            tracing::warn!(node = %from, "an import that makes no sense");
            return;
        };
        let origin = m.origin.unwrap_or_default();
        if !m.held && self.tasks.get(&content).is_some_and(TaskEntry::is_unsure) {
            // What it is read from somewhere may be something else; this is compared.
            let text = "a client brought the content: it is begun anew";
            self.fail_task(content, &rpc::Failure::new(Code::Changed, text));
        }
        let task = self.entry(content);
        task.geometry.get_or_insert(geometry);
        task.origin = origin.clone();
        task.remember_source(&source, Some(&request));
        if !m.held {
            task.importer = Some(from);
        }
        let may_name = source.url.starts_with("dragonfly://")
            || self.nodes.get(&from).is_some_and(|e| e.is_seed());
        if may_name {
            let until = self.now + KNOWN;
            let known = Known {
                content,
                geometry,
                origin,
                until,
                by: from,
            };
            self.lookups.insert(request, Lookup::Known(Box::new(known)));
        }
        if m.held {
            return;
        }
        self.join_member(content, from, 0);
        let lease = Lease {
            epoch: 0,
            node: from,
            stripe: Stripe::WHOLE,
            collect: Duration::ZERO,
        };
        self.grant(content, &lease);
    }

    /// A node that read an origin alone may sign what it got, if it could have had the lease: what it
    /// says is worth what the word of any lease-holder is.
    fn on_read_alone(
        &mut self,
        from: NodeId,
        content: ContentKey,
        request: RequestKey,
        m: rpc::Import,
    ) {
        let source = m.source.unwrap_or_default();
        let origin = m.origin.unwrap_or_default();
        let named = source.content(&request, &origin.validator);
        let may_read = self.settings.swarm.peers_may_fetch
            || self.nodes.get(&from).is_some_and(|e| e.is_seed());
        let geometry = m.geometry.as_ref().and_then(|g| Geometry::try_from(g).ok());
        let Some(geometry) = geometry.filter(|_| named == content && may_read) else {
            tracing::warn!(node = %from, task = %content.short(), "may not sign what it read alone");
            return;
        };
        if let Err(elsewhere) = self.shared_by(&request, &source) {
            tracing::debug!(node = %from, task = %content.short(), elsewhere.message, "not signed");
            return;
        }
        let task = self.entry(content);
        task.read_by(&request, &source);
        task.geometry.get_or_insert(geometry);
        if task.origin.validator.is_empty() {
            task.origin = origin;
        }
        if m.reading && task.swarm.leases().is_empty() {
            task.remember_source(&source, Some(&request));
            task.wanting.insert(from);
            return self.lease_to(content, from);
        }
        self.certify(content, from);
    }
}
