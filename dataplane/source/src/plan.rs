//! Which bytes a fetch should get next: the caller's order, asked for as late as possible.
//!
//! A fetch asks its [`Plan`] whenever one of its connections is free, so whatever became urgent in
//! the meantime goes next. [`Queue`] is the plan that most callers want.

use crate::range::ByteRange;
use futures::future::BoxFuture;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Notify;

/// The caller's side of a fetch that goes by ranges.
pub trait Plan: Send {
    /// The next bytes wanted, at most `max` of them (a longer answer is fetched as it is). `None`
    /// ends the fetch once what was handed out has arrived. May wait: meanwhile nothing is
    /// requested. Each byte handed out is delivered once, or the fetch fails.
    fn next(&mut self, max: u64) -> BoxFuture<'_, Option<ByteRange>>;
}

/// A shared list of wanted ranges: pushed to and reordered while the fetch runs.
#[derive(Clone, Debug, Default)]
pub struct Queue {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    ranges: VecDeque<ByteRange>,
    closed: bool,
}

impl Queue {
    /// Empty and open: the fetch waits until something is pushed or the queue is closed.
    pub fn new() -> Self {
        Self::default()
    }

    /// These ranges in this order, closed: the fetch ends after them.
    pub fn of(ranges: impl IntoIterator<Item = ByteRange>) -> Self {
        let queue = Self::new();
        ranges.into_iter().for_each(|range| queue.push(range));
        queue.close();
        queue
    }

    /// Appends; a range that continues the last one is joined with it.
    pub fn push(&self, range: ByteRange) {
        self.with(|state| match state.ranges.back_mut() {
            Some(last) if last.end() == range.start() => {
                if let Some(joined) = ByteRange::new(last.start(), range.end()) {
                    *last = joined;
                }
            }
            _ => state.ranges.push_back(range),
        });
    }

    /// Moves what is still queued of `range` to the head. What was handed out already or never
    /// pushed is left alone, so nothing is fetched twice.
    pub fn prefer(&self, range: ByteRange) {
        self.with(|state| {
            let mut head = VecDeque::new();
            let mut rest = VecDeque::new();
            for held in state.ranges.drain(..) {
                let from = held.start().max(range.start());
                let to = held.end().min(range.end());
                match ByteRange::new(from, to) {
                    Some(common) => {
                        head.push_back(common);
                        rest.extend(ByteRange::new(held.start(), from));
                        rest.extend(ByteRange::new(to, held.end()));
                    }
                    None => rest.push_back(held),
                }
            }
            head.append(&mut rest);
            state.ranges = head;
        });
    }

    /// Takes what is still queued of `range` out (it came from elsewhere); returns the bytes taken.
    pub fn remove(&self, range: ByteRange) -> u64 {
        self.with(|state| {
            let mut taken = 0;
            let mut rest = VecDeque::new();
            for held in state.ranges.drain(..) {
                let from = held.start().max(range.start());
                let to = held.end().min(range.end());
                match ByteRange::new(from, to) {
                    Some(common) => {
                        taken += common.len();
                        rest.extend(ByteRange::new(held.start(), from));
                        rest.extend(ByteRange::new(to, held.end()));
                    }
                    None => rest.push_back(held),
                }
            }
            state.ranges = rest;
            taken
        })
    }

    /// Nothing more will be pushed.
    pub fn close(&self) {
        self.with(|state| state.closed = true);
    }

    /// Bytes queued and not handed out.
    pub fn queued(&self) -> u64 {
        let state = self
            .shared
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        state.ranges.iter().map(|range| range.len()).sum()
    }

    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(
            &mut self
                .shared
                .state
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        );
        self.shared.changed.notify_waiters();
        result
    }

    /// `Some(None)` when there will never be more; `None` when there is nothing now.
    fn take(&self, max: u64) -> Option<Option<ByteRange>> {
        let mut state = self
            .shared
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let Some(first) = state.ranges.pop_front() else {
            return state.closed.then_some(None);
        };
        let (now, later) = first.split(max.max(1));
        if let Some(later) = later {
            state.ranges.push_front(later);
        }
        Some(now)
    }
}

impl Plan for Queue {
    fn next(&mut self, max: u64) -> BoxFuture<'_, Option<ByteRange>> {
        Box::pin(async move {
            loop {
                let changed = self.shared.changed.notified();
                tokio::pin!(changed);
                // Registered before the look, or a push between the two would be missed.
                changed.as_mut().enable();
                if let Some(answer) = self.take(max) {
                    return answer;
                }
                changed.await;
            }
        })
    }
}
