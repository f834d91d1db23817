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
        Frame::Want(Want::Some(ranges)) => {
            let mut set = BlockSet::new();
            for r in ranges.iter().map(range) {
                if r.end > max_blocks {
                    return Err(format!("wants block {} of {max_blocks}", r.end - 1));
                }
                set.insert_range(r);
            }
            Control::Want(Wanted::Some(set))
        }
        Frame::Credit(n) => Control::Credit(*n),
        Frame::Request(n) => Control::Request(*n),
        Frame::Cancel(n) => Control::Cancel(*n),
        Frame::Pass => Control::Pass,
        Frame::Rate(n) => Control::Rate(*n),
        _ => return Ok(None),
    }))
}
