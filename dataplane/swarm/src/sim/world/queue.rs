//! Events in the order of their time, and of their making where times are equal.
//!
//! A wheel of short spans: what is far from now waits unsorted, and only the events of the present
//! span are in a heap, one so small that it stays in the processor's nearest cache.

use super::Nanos;
use core::cmp::Reverse;
use std::collections::BinaryHeap;

/// A span is 2^14 ns.
const SPAN: u32 = 14;
/// Spans on the wheel: about a second.
const SPANS: u64 = 1 << 16;

type Entry<E> = (Nanos, u64, E);

pub(super) struct Queue<E> {
    /// The span that `near` belongs to.
    present: u64,
    /// Events of the present span and before.
    near: BinaryHeap<Reverse<Entry<E>>>,
    wheel: Vec<Vec<Entry<E>>>,
    on_wheel: usize,
    /// Events later than the wheel reaches.
    far: BinaryHeap<Reverse<Entry<E>>>,
    made: u64,
    /// A span began since this was last asked.
    begun: bool,
}

impl<E: Ord> Queue<E> {
    pub(super) fn new() -> Self {
        Self {
            present: 0,
            near: BinaryHeap::new(),
            wheel: (0..SPANS).map(|_| Vec::new()).collect(),
            on_wheel: 0,
            far: BinaryHeap::new(),
            made: 0,
            begun: false,
        }
    }

    pub(super) fn push(&mut self, at: Nanos, event: E) {
        self.made += 1;
        let entry = (at, self.made, event);
        let span = at >> SPAN;
        if span <= self.present {
            self.near.push(Reverse(entry));
        } else if span < self.present + SPANS {
            self.wheel[(span % SPANS) as usize].push(entry);
            self.on_wheel += 1;
        } else {
            self.far.push(Reverse(entry));
        }
    }

    /// When the next event is.
    pub(super) fn next(&mut self) -> Option<Nanos> {
        while self.near.is_empty() {
            let far = self.far.peek().map(|Reverse(entry)| entry.0 >> SPAN);
            self.present = match (self.on_wheel, far) {
                (0, None) => return None,
                (0, Some(far)) => far,
                _ => self.present + 1,
            };
            let span = &mut self.wheel[(self.present % SPANS) as usize];
            self.on_wheel -= span.len();
            self.begun |= !span.is_empty();
            self.near.extend(span.drain(..).map(Reverse));
            while self
                .far
                .peek()
                .is_some_and(|Reverse(entry)| entry.0 >> SPAN <= self.present)
            {
                self.near.extend(self.far.pop());
            }
        }
        self.near.peek().map(|Reverse(entry)| entry.0)
    }

    /// When a span began since the last call: its events, in no order.
    pub(super) fn begun(&mut self) -> impl Iterator<Item = &E> {
        let near = core::mem::take(&mut self.begun).then_some(&self.near);
        near.into_iter().flatten().map(|Reverse(entry)| &entry.2)
    }

    pub(super) fn pop(&mut self) -> Option<(Nanos, E)> {
        self.next()?;
        let Reverse((at, _, event)) = self.near.pop()?;
        Some((at, event))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_in_order_however_far_apart_they_are() {
        let mut rng = fastrand::Rng::with_seed(1);
        let mut queue = Queue::new();
        let (mut now, mut made, mut order) = (0, 0_u32, Vec::new());
        let mut expected = Vec::new();
        while made < 2000 || queue.next().is_some() {
            if made < 2000 {
                let far = [1 << 10, 1 << 16, 1 << 26, 1 << 31, 1 << 35];
                let reach = far[rng.usize(..far.len())];
                let at = now + rng.u64(..reach);
                queue.push(at, made);
                expected.push((at, made));
                made += 1;
            }
            if rng.bool() || made >= 2000 {
                let next = queue.next();
                if let Some((at, event)) = queue.pop() {
                    assert_eq!(next, Some(at));
                    assert!(at >= now);
                    now = at;
                    order.push((at, event));
                }
            }
        }
        expected.sort_unstable();
        assert_eq!(order, expected);
    }
}
