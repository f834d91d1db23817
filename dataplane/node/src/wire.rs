//! Between the engine's words and the frames on the wire.

use std::ops::Range;

use dragonfly_proto::frame::{BITMAP_CHUNK, BlockRange, Frame, MAX_RANGES, Want};
use dragonfly_swarm::bitmap::BlockSet;
use dragonfly_swarm::engine::{Control, Wanted};

fn pair(r: Range<u32>) -> BlockRange {
    (r.start, r.end - r.start)
}

fn range(&(first, count): &BlockRange) -> Range<u32> {
    first..first + count
}

fn want(w: &Wanted) -> Want {
    match w {
        Wanted::Nothing => Want::Nothing,
        Wanted::Whole => Want::Whole,
        Wanted::Some(set) => {
            let ranges: Vec<_> = set.ranges().map(pair).take(MAX_RANGES + 1).collect();
            // So many scattered wishes are as good as all: too much is emitted, nothing is lost.
            if ranges.len() > MAX_RANGES {
                Want::Whole
            } else {
                Want::Some(ranges)
            }
        }
    }
}

/// Hands the frames that say `control` to `send`.
pub(crate) fn frames(control: &Control, mut send: impl FnMut(&Frame)) {
    match control {
        Control::Bitmap(set) => {
            let bytes = set.to_bytes();
            let mut chunks = bytes.chunks(BITMAP_CHUNK).peekable();
            if chunks.peek().is_none() {
                send(&Frame::Bitmap {
                    last: true,
                    bytes: vec![],
                });
            }
            while let Some(chunk) = chunks.next() {
                let last = chunks.peek().is_none();
                send(&Frame::Bitmap {
                    last,
                    bytes: chunk.to_vec(),
                });
            }
        }
        Control::Have(ranges) => {
            for part in ranges.chunks(MAX_RANGES) {
                send(&Frame::Have(part.iter().cloned().map(pair).collect()));
            }
        }
        Control::Hurry(ranges) => {
            send(&Frame::Hurry(
                ranges.iter().take(MAX_RANGES).cloned().map(pair).collect(),
            ));
        }
        Control::Want(w) => send(&Frame::Want(want(w))),
        Control::Credit(n) => send(&Frame::Credit(*n)),
        Control::Request(n) => send(&Frame::Request(*n)),
        Control::Cancel(n) => send(&Frame::Cancel(*n)),
        Control::Pass => send(&Frame::Pass),
        Control::Rate(n) => send(&Frame::Rate(*n)),
    }
}

/// The blocks below `max_blocks` of a wish. Who does not know the length yet may honestly wish for blocks
/// behind the end: they are left out, so that what is kept is bounded.
fn wished(ranges: &[BlockRange], max_blocks: u32) -> Result<BlockSet, String> {
    let mut set = BlockSet::new();
    for r in ranges.iter().map(range) {
        let part = r.start.min(max_blocks)..r.end.min(max_blocks);
        let new = set.insert_range(part.clone());
        // Thousands of long ranges one over the other would cost much time and say nothing.
        if new as usize != part.len() {
            return Err(format!("wants blocks {} to {} twice", r.start, r.end - 1));
        }
    }
    Ok(set)
}

/// What the engine is told for a frame; `None` for those that are not the engine's, and for parts of
/// a block map, which are gathered in `map` until the last.
pub(crate) fn control(
    frame: &Frame,
    map: &mut Vec<u8>,
    max_blocks: u32,
) -> Result<Option<Control>, String> {
    Ok(Some(match frame {
        Frame::Bitmap { last, bytes } => {
            // A full map and a byte: more cannot be honest, and nothing is kept of it.
            if map.len() + bytes.len() > max_blocks as usize / 8 + 8 {
                return Err(format!("a block map longer than {max_blocks} blocks"));
            }
            map.extend_from_slice(bytes);
            if !last {
                return Ok(None);
            }
            let bytes = std::mem::take(map);
            let set = BlockSet::from_bytes(&bytes, max_blocks).map_err(|e| e.to_string())?;
            Control::Bitmap(set)
        }
        Frame::Have(ranges) => Control::Have(ranges.iter().map(range).collect()),
        Frame::Hurry(ranges) => Control::Hurry(ranges.iter().map(range).collect()),
        Frame::Want(Want::Nothing) => Control::Want(Wanted::Nothing),
        Frame::Want(Want::Whole) => Control::Want(Wanted::Whole),
        Frame::Want(Want::Some(ranges)) => Control::Want(Wanted::Some(wished(ranges, max_blocks)?)),
        Frame::Credit(n) => Control::Credit(*n),
        Frame::Request(n) => Control::Request(*n),
        Frame::Cancel(n) => Control::Cancel(*n),
        Frame::Pass => Control::Pass,
        Frame::Rate(n) => Control::Rate(*n),
        _ => return Ok(None),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(ranges: Vec<BlockRange>, max_blocks: u32) -> Result<Option<Control>, String> {
        let frame = Frame::Want(Want::Some(ranges));
        control(&frame, &mut vec![], max_blocks)
    }

    #[test]
    #[allow(clippy::single_range_in_vec_init, reason = "lists of ranges")]
    fn a_wish_is_cut_where_the_content_ends_and_costs_no_more_than_that() {
        let rows = [
            (vec![(2, u32::MAX - 2)], vec![2..100]),
            (
                vec![(99, 1), (100, 7), (5000, u32::MAX - 5000)],
                vec![99..100],
            ),
            (vec![(u32::MAX - 1, 1)], vec![]),
            (vec![], vec![]),
        ];
        for (ranges, left) in rows {
            let Ok(Some(Control::Want(Wanted::Some(set)))) = wish(ranges.clone(), 100) else {
                panic!("{ranges:?} is a wish");
            };
            assert_eq!(set.ranges().collect::<Vec<_>>(), left, "{ranges:?}");
            assert!(set.words() <= 2, "{ranges:?}");
        }
    }

    #[test]
    fn a_wish_that_names_blocks_again_and_again_is_refused_before_it_costs_time() {
        let many = vec![(0, 1 << 24); MAX_RANGES];
        assert!(wish(many, 1 << 24).is_err());
    }
}
