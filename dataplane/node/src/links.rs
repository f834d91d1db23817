//! What this node keeps with each connection: its streams, and which of them have blocks to send.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use dragonfly_proto::id::ContentKey;
use dragonfly_swarm::engine::NeighbourId;

use crate::task::{Task, lock};
use crate::turns::Turns;

/// Streams one connection may carry; an honest pair shares far fewer tasks at once.
pub(crate) const MAX_STREAMS: usize = 8192;

/// A task on a connection.
#[derive(Debug, Clone)]
pub(crate) struct Stream {
    pub(crate) task: Arc<Task>,
    pub(crate) neighbour: NeighbourId,
    pub(crate) ours: u32,
}

#[derive(Debug, Default)]
struct Streams {
    /// By the other side's number.
    theirs: HashMap<u32, Stream>,
    /// By ours.
    ours: HashMap<u32, Stream>,
    /// The other side's number, by content.
    bound: HashMap<ContentKey, u32>,
    /// HELLO sent, by content: our number.
    hello_sent: HashMap<ContentKey, u32>,
    /// Parts of block maps on their way, by the other side's number.
    maps: HashMap<u32, Vec<u8>>,
    refused: HashMap<ContentKey, u8>,
    next: u32,
}

/// Streams with something to send, in turn, so that tasks share a connection fairly.
#[derive(Debug, Default)]
pub(crate) struct ConnState {
    streams: Mutex<Streams>,
    turns: Mutex<Turns>,
    unknown_epochs: AtomicU32,
}

impl ConnState {
    /// Our number for a HELLO of this task; `None` when one was sent already.
    pub(crate) fn begin_hello(&self, content: ContentKey) -> Option<u32> {
        let mut s = lock(&self.streams);
        if s.hello_sent.contains_key(&content) || s.hello_sent.len() >= MAX_STREAMS {
            return None;
        }
        s.next += 1;
        let ours = s.next;
        s.hello_sent.insert(content, ours);
        Some(ours)
    }

    pub(crate) fn hello_sent(&self, content: &ContentKey) -> Option<u32> {
        lock(&self.streams).hello_sent.get(content).copied()
    }

    pub(crate) fn bind(&self, theirs: u32, stream: Stream) -> bool {
        let mut s = lock(&self.streams);
        if s.theirs.len() >= MAX_STREAMS {
            return false;
        }
        s.refused.remove(&stream.task.key());
        s.bound.insert(stream.task.key(), theirs);
        s.ours.insert(stream.ours, stream.clone());
        s.theirs.insert(theirs, stream);
        true
    }

    pub(crate) fn theirs(&self, theirs: u32) -> Option<Stream> {
        lock(&self.streams).theirs.get(&theirs).cloned()
    }

    pub(crate) fn ours(&self, ours: u32) -> Option<Stream> {
        lock(&self.streams).ours.get(&ours).cloned()
    }

    /// The other side's number for a content that is bound.
    pub(crate) fn bound(&self, content: &ContentKey) -> Option<u32> {
        lock(&self.streams).bound.get(content).copied()
    }

    /// Ends what there is of a content on this connection: our number, when the other side was told
    /// one, and the stream, when there is one.
    pub(crate) fn close(&self, content: &ContentKey) -> (Option<u32>, Option<Stream>) {
        let stream = self.bound(content).and_then(|theirs| self.unbind(theirs));
        let said = lock(&self.streams).hello_sent.remove(content);
        (stream.as_ref().map(|s| s.ours).or(said), stream)
    }

    /// Whether there is no task between the two: the other side showed no ticket that was good, and
    /// this one said none.
    pub(crate) fn is_strange(&self) -> bool {
        let s = lock(&self.streams);
        s.theirs.is_empty() && s.hello_sent.is_empty()
    }

    /// A block came under an epoch that nobody told of: how many did so far.
    pub(crate) fn unknown_epoch(&self) -> u32 {
        self.unknown_epochs.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Runs `f` on the part of a block map that came so far on this stream.
    pub(crate) fn with_map<R>(&self, theirs: u32, f: impl FnOnce(&mut Vec<u8>) -> R) -> R {
        let mut s = lock(&self.streams);
        let mut map = s.maps.remove(&theirs).unwrap_or_default();
        let result = f(&mut map);
        if !map.is_empty() {
            s.maps.insert(theirs, map);
        }
        result
    }

    /// Forgets a stream; it may be opened again.
    pub(crate) fn unbind(&self, theirs: u32) -> Option<Stream> {
        let mut s = lock(&self.streams);
        s.maps.remove(&theirs);
        let stream = s.theirs.remove(&theirs)?;
        s.ours.remove(&stream.ours);
        lock(&self.turns).forget(stream.ours);
        s.hello_sent.remove(&stream.task.key());
        s.bound.remove(&stream.task.key());
        Some(stream)
    }

    /// The other side refused a task: how often it did so in a row.
    pub(crate) fn refused(&self, content: &ContentKey) -> u8 {
        let mut s = lock(&self.streams);
        if s.hello_sent.remove(content).is_none() {
            return u8::MAX;
        }
        let n = s.refused.entry(*content).or_default();
        *n = n.saturating_add(1);
        *n
    }

    /// All streams, and all contents of which the other side was told, for when the connection is
    /// gone.
    pub(crate) fn drain(&self) -> (Vec<Stream>, Vec<ContentKey>) {
        let mut s = lock(&self.streams);
        s.ours.clear();
        s.bound.clear();
        s.maps.clear();
        let told = s.hello_sent.drain().map(|(content, _)| content).collect();
        (s.theirs.drain().map(|(_, stream)| stream).collect(), told)
    }

    /// A stream has blocks to send.
    pub(crate) fn ready(&self, ours: u32) {
        lock(&self.turns).ready(ours);
    }

    /// Whether a stream may have blocks to send.
    pub(crate) fn has_ready(&self) -> bool {
        lock(&self.turns).has_ready()
    }

    /// How important the other side says a stream is to it.
    pub(crate) fn set_priority(&self, ours: u32, priority: u8) {
        lock(&self.turns).set_priority(ours, priority);
    }

    /// The stream whose turn it is: one with a block that nobody has yet before those with second
    /// copies. Call [`Self::sends`] when it sends.
    pub(crate) fn take_ready(&self) -> Option<Stream> {
        let several = lock(&self.turns).several();
        // No lock is held while engines are asked: they hold theirs while they say who is ready.
        let emits = |ours: &u32| {
            let stream = self.ours(*ours);
            stream.is_some_and(|s| s.task.emits_to(s.neighbour))
        };
        let first: Vec<u32> = several.into_iter().filter(emits).collect();
        loop {
            let ours = lock(&self.turns).take(&first)?;
            if let Some(stream) = self.ours(ours) {
                return Some(stream);
            }
        }
    }

    /// A stream sends a block of so many bytes, and may have more.
    pub(crate) fn sends(&self, ours: u32, bytes: u32) {
        lock(&self.turns).sends(ours, bytes);
    }
}
