//! What members are told of their neighbours, gathered so that many changes cost one message.
//!
//! A joiner parts several edges and many join together, so most members would hear of several
//! changes within moments. What can wait is kept until [`Swarm::flush`], and what became untrue
//! meanwhile is not said at all; what cannot wait takes along what is kept for the same member.

use super::{Command, Introduction, NodeKey, Swarm};

/// Changes among a member's neighbours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct News<K> {
    /// Neighbours to connect to.
    pub connect: Vec<Introduction<K>>,
    /// Neighbours of another zone that connect by themselves, and how they relate to this member.
    pub expect: Vec<Introduction<K>>,
    /// Neighbours to let go of when what was asked of them has come: other nodes take their places.
    /// They learn it from this member.
    pub part: Vec<K>,
}

impl<K> Default for News<K> {
    fn default() -> Self {
        let (connect, expect, part) = (Vec::new(), Vec::new(), Vec::new());
        Self {
            connect,
            expect,
            part,
        }
    }
}

impl<K> News<K> {
    fn is_empty(&self) -> bool {
        self.connect.is_empty() && self.expect.is_empty() && self.part.is_empty()
    }
}

impl<K: NodeKey> Swarm<K> {
    /// Whether something is kept for [`Swarm::flush`]: call that within some ten milliseconds.
    #[must_use]
    pub fn has_news(&self) -> bool {
        !self.news.is_empty()
    }

    /// What was gathered is to be told now.
    pub fn flush(&mut self) {
        self.urgent.extend(self.news.keys());
    }

    /// The next member that is to be told something now.
    pub(super) fn next_told(&mut self) -> Option<Command<K>> {
        while let Some(node) = self.urgent.pop_first() {
            let Some(mut news) = self.news.remove(&node) else {
                continue;
            };
            let edges = self.neighbours(node);
            news.connect.retain(|to| edges.contains(&to.node));
            news.expect.retain(|peer| edges.contains(&peer.node));
            // Those that left are missed without a word.
            news.part
                .retain(|from| !edges.contains(from) && self.members.contains_key(from));
            if !news.is_empty() {
                return Some(Command::Tell { node, news });
            }
        }
        None
    }

    pub(super) fn connect_soon(&mut self, node: K, other: K) {
        let to = self.introduce(node, other);
        let known = &mut self.news.entry(node).or_default().connect;
        known.retain(|known| known.node != other);
        known.push(to);
    }

    pub(super) fn connect_now(&mut self, node: K, other: K) {
        self.connect_soon(node, other);
        self.urgent.insert(node);
    }

    pub(super) fn expect_now(&mut self, node: K, other: K) {
        let peer = self.introduce(node, other);
        let known = &mut self.news.entry(node).or_default().expect;
        known.retain(|known| known.node != other);
        known.push(peer);
        self.urgent.insert(node);
    }

    pub(super) fn part_soon(&mut self, node: K, from: K) {
        let parted = &mut self.news.entry(node).or_default().part;
        if !parted.contains(&from) {
            parted.push(from);
        }
    }
}
