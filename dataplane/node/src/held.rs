//! What a client that copies while content comes has been told to be held.

use std::ops::Range;

use dragonfly_proto::geometry::Geometry;
use dragonfly_proto::rpc;

use crate::download::Download;
use crate::task::Task;

/// Most ranges of one message.
const MOST: usize = 4096;

/// Block ranges, in order and apart.
#[derive(Debug, Default)]
pub(crate) struct Told {
    blocks: Vec<Range<u32>>,
}

impl Told {
    /// What is new, as bytes of what the download asks for, and what counts as told once that was
    /// said.
    pub(crate) fn news(&self, download: &Download) -> (Vec<rpc::ByteRange>, Self) {
        let (start, end) = download.range();
        let range = start..end.unwrap_or(u64::MAX);
        let g = download.task().geometry();
        let held = held_of(download.task(), &g, &range);
        let mut news = minus(&held, &self.blocks);
        let later = news.split_off(news.len().min(MOST));
        let bytes = news.iter().map(|run| part_of(&g, run, &range));
        let blocks = minus(&held, &later);
        (bytes.collect(), Self { blocks })
    }
}

/// The blocks of some bytes that are held, in order and apart. As long as what is held, however far the
/// bytes go: that is far where the length is unknown.
pub(crate) fn held_of(task: &Task, g: &Geometry, range: &Range<u64>) -> Vec<Range<u32>> {
    let wanted = g.blocks_of(range.start, range.end);
    let held = task.store.held().ranges().into_iter();
    held.map(|r| r.start.max(wanted.start)..r.end.min(wanted.end))
        .filter(|r| !r.is_empty())
        .collect()
}

/// What of some bytes is in a run of blocks.
pub(crate) fn part_of(g: &Geometry, run: &Range<u32>, range: &Range<u64>) -> rpc::ByteRange {
    let last = run.end.saturating_sub(1);
    let to = g.offset(last) + u64::from(g.block_len(last).unwrap_or(0));
    rpc::ByteRange {
        start: g.offset(run.start).max(range.start),
        end: to.min(range.end),
    }
}

/// What of `all` is not in `some`; both are in order and apart.
fn minus(all: &[Range<u32>], some: &[Range<u32>]) -> Vec<Range<u32>> {
    let mut out = vec![];
    let mut some = some.iter().peekable();
    for range in all {
        let mut at = range.start;
        while let Some(taken) = some.peek() {
            if taken.start >= range.end {
                break;
            }
            if taken.start > at {
                out.push(at..taken.start);
            }
            at = at.max(taken.end);
            if taken.end > range.end {
                break;
            }
            some.next();
        }
        if at < range.end {
            out.push(at..range.end);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::single_range_in_vec_init, reason = "lists of ranges")]
    fn each_block_is_news_once() {
        let rows = [
            (vec![0..5], vec![], vec![0..5]),
            (vec![0..5], vec![0..5], vec![]),
            (vec![0..10], vec![2..3, 5..7], vec![0..2, 3..5, 7..10]),
            (vec![0..4, 6..9], vec![1..2, 6..8], vec![0..1, 2..4, 8..9]),
            (vec![4..6, 8..10], vec![0..9], vec![9..10]),
        ];
        for (all, some, left) in rows {
            assert_eq!(minus(&all, &some), left, "{all:?} without {some:?}");
        }
    }
}
