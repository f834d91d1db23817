//! Contents that clients demand by their digest, from wherever each of them says.
//!
//! They share one swarm, and who asks for one says where it is read: a place that sends something else, or
//! next to nothing, would keep the content from everybody. So a digest is read from one request's source, and
//! until a member has compared the whole with it, who names another place gets it apart: in a swarm of that
//! place's own. From then on it is shared with all.

use dragonfly_proto::geometry::Geometry;
use dragonfly_proto::id::{ContentKey, NodeId, RequestKey};
use dragonfly_proto::rpc::{self, failure::Code};

use crate::core::Core;
use crate::swarms::TaskEntry;

impl TaskEntry {
    /// Whether who asks by this request, and holds nothing yet, may have what the others have.
    pub(crate) fn is_for(&self, key: &RequestKey) -> bool {
        self.reads.is_none_or(|reads| reads == *key)
            || !self.compared.is_empty()
            // What a client brings is compared before it is signed.
            || self.importer.is_some()
    }

    /// Takes note of whose source the content is read from.
    pub(crate) fn read_by(&mut self, key: &RequestKey, source: &rpc::Source) {
        if source.shared().is_some() {
            self.reads.get_or_insert(*key);
        }
    }

    pub(crate) fn request_key(&self) -> Vec<u8> {
        self.reads.map(|key| key.0.to_vec()).unwrap_or_default()
    }

    /// Whether it is read from where somebody said, and may be something else than its digest says.
    pub(crate) fn is_unsure(&self) -> bool {
        self.reads.is_some() && self.compared.is_empty() && self.importer.is_none()
    }

    /// Whether what nobody compared, and nobody wants, is in the way of a node that has compared the whole.
    pub(crate) fn gives_way_to(&self, key: &RequestKey, join: &rpc::Join) -> bool {
        let others = self.reads.is_some_and(|reads| reads != *key);
        let unsure = self.is_unsure() && self.wanting.is_empty();
        others && unsure && join.compared && join.complete
    }

    /// Why a node with these blocks may be no member, if that is so.
    pub(crate) fn refuses(
        &self,
        geometry: Option<&Geometry>,
        key: Option<&RequestKey>,
        join: &rpc::Join,
    ) -> Option<rpc::Failure> {
        let own = key.is_none_or(|key| self.reads.is_none_or(|reads| reads == *key));
        let has_others = join.held > 0 && !join.compared;
        if !own && (has_others || key.is_some_and(|key| !self.is_for(key))) {
            return Some(elsewhere());
        }
        let known = self.geometry.as_ref().zip(geometry);
        if known.is_some_and(|(known, told)| !known.agrees_with(told)) {
            // Held since before the origin said how long it is, or since another one said so: none of the
            // others could use a block of it.
            let text = "the others have this content cut into other blocks: begin it anew";
            return Some(rpc::Failure::new(Code::Changed, text));
        }
        None
    }
}

impl Core {
    /// What is known of a digest that somebody asks for, if he may share it with those who have it.
    /// `Err`: he may not.
    pub(crate) fn shared_by(
        &self,
        key: &RequestKey,
        source: &rpc::Source,
    ) -> Result<Option<(ContentKey, Geometry)>, rpc::Failure> {
        let Some(content) = source.shared() else {
            return Ok(None);
        };
        let Some(task) = self.tasks.get(&content) else {
            return Ok(None);
        };
        match task.geometry {
            Some(_) if !task.is_for(key) => Err(elsewhere()),
            geometry => Ok(geometry.map(|geometry| (content, geometry))),
        }
    }

    /// A member has compared the whole: from now on it is for all who demand the digest.
    pub(crate) fn on_compared(&mut self, from: NodeId, m: &rpc::Compared) {
        let content = ContentKey::from_slice(&m.content);
        let task = content.and_then(|content| self.tasks.get_mut(&content));
        if let Some(task) = task.filter(|t| t.reads.is_some() && t.swarm.contains(from)) {
            task.compared.insert(from);
        }
    }
}

fn elsewhere() -> rpc::Failure {
    let text = "this digest is being read from where somebody else said, and nobody has compared it yet: \
                ask for it apart";
    rpc::Failure::new(Code::Digest, text)
}
