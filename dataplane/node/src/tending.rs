//! Contents that a person has all nodes delete or keep: purge, pin, unpin.

use std::sync::Arc;

use dragonfly_proto::id::ContentKey;
use dragonfly_proto::rpc::{self, failure::Code, from_node, tend::Action};
use dragonfly_storage::Snapshot;

use crate::inventory::{delete_now, in_use, kept_meta};
use crate::meta::Meta;
use crate::node::Node;

impl Node {
    /// Does it, and tells the replica that asked.
    pub(crate) async fn on_tend(self: Arc<Self>, from: String, tend: rpc::Tend) {
        let id = tend.id;
        let node = self.clone();
        // Reads a file for each content.
        let done = tokio::task::spawn_blocking(move || node.tend(&tend));
        let done = done.await.unwrap_or_else(|e| {
            let failure = rpc::Failure::new(Code::Internal, e.to_string());
            rpc::Tended {
                failure: Some(failure),
                ..rpc::Tended::default()
            }
        });
        let key = ContentKey::from_digest("", &from).0;
        let done = from_node::Message::Tended(rpc::Tended { id, ..done });
        self.sessions.reply(&from, &key, done);
    }

    fn tend(&self, tend: &rpc::Tend) -> rpc::Tended {
        let mut done = rpc::Tended::default();
        let which = match Which::of(tend) {
            Ok(which) => which,
            Err(failure) => {
                done.failure = Some(failure);
                return done;
            }
        };
        for held in self.store.list() {
            if !which.means(&held, || kept_meta(self, &held.key)) {
                continue;
            }
            let did = match tend.action() {
                Action::Purge if in_use(self, &held.key) => {
                    done.in_use += 1;
                    continue;
                }
                Action::Purge => delete_now(self, &held.key),
                Action::Pin => self.store.pin(&held.key),
                Action::Unpin => self.store.unpin(&held.key),
                Action::Unspecified => {
                    let text = "an action that this release does not know";
                    done.failure = Some(rpc::Failure::new(Code::Invalid, text));
                    return done;
                }
            };
            match did {
                Ok(true) => {
                    // Of what a node only knows (it was asked to fetch it, and did not yet)
                    // nobody expects to be told.
                    done.contents += u32::from(held.complete || held.held_blocks > 0);
                    done.bytes = done.bytes.saturating_add(held.bytes);
                }
                // It went meanwhile.
                Ok(false) => {}
                Err(e) => done.failure = Some(crate::tasks::storage_failure(&e)),
            }
        }
        tracing::info!(
            action = ?tend.action(),
            contents = done.contents,
            bytes = done.bytes,
            in_use = done.in_use,
            "contents were tended to"
        );
        done
    }
}

/// Which contents are meant.
enum Which<'a> {
    Task(ContentKey),
    Url(&'a str),
    Prefix(&'a str),
    Domain(&'a str),
}

impl<'a> Which<'a> {
    fn of(tend: &'a rpc::Tend) -> Result<Self, rpc::Failure> {
        let invalid = |text: &str| rpc::Failure::new(Code::Invalid, text);
        let ways = [
            (tend.task.as_str(), None),
            (&tend.url, Some(Which::Url as fn(&'a str) -> Self)),
            (&tend.url_prefix, Some(Which::Prefix)),
            (&tend.domain, Some(Which::Domain)),
        ];
        let mut said = ways.into_iter().filter(|(text, _)| !text.is_empty());
        match (said.next(), said.next()) {
            (None, _) => Err(invalid(
                "which contents? A task, a URL, a prefix of URLs or a domain",
            )),
            (Some((text, Some(way))), None) => Ok(way(text)),
            (Some((task, None)), None) => task
                .parse()
                .map(Self::Task)
                .map_err(|_| invalid("a task id is 64 hexadecimal digits")),
            _ => Err(invalid("a task, a URL, a prefix or a domain: one of them")),
        }
    }

    fn means(&self, held: &Snapshot, meta: impl FnOnce() -> Option<Meta>) -> bool {
        match self {
            Self::Task(key) => held.key == *key,
            Self::Url(url) => meta().is_some_and(|meta| meta.url == *url),
            Self::Prefix(prefix) => meta().is_some_and(|meta| meta.url.starts_with(prefix)),
            Self::Domain(domain) => meta().is_some_and(|meta| meta.domain == *domain),
        }
    }
}
