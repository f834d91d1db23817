//! How content is cut: the block is the unit of request, check, announcement and relay.

/// Smallest block, bytes.
pub const MIN_BLOCK: u32 = 64 << 10;
/// Largest block, bytes; no DATA frame carries more.
pub const MAX_BLOCK: u32 = 1 << 20;
/// Block size while the length of the content is unknown, bytes.
pub const UNKNOWN_LENGTH_BLOCK: u32 = 256 << 10;
/// Largest content, bytes: 16 TiB.
pub const MAX_CONTENT: u64 = 16 << 40;
/// Most blocks of one content: a block map never exceeds 2 MiB.
pub const MAX_BLOCKS: u32 = 1 << 24;

/// A geometry that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GeometryError {
    /// Not a power of two between [`MIN_BLOCK`] and [`MAX_BLOCK`].
    #[error("block size {0} is not a power of two from {MIN_BLOCK} to {MAX_BLOCK}")]
    BlockSize(u32),
    /// More than [`MAX_CONTENT`].
    #[error("content of {0} bytes is longer than the largest supported, {MAX_CONTENT}")]
    TooLong(u64),
    /// More than [`MAX_BLOCKS`].
    #[error(
        "content of {0} bytes has more than {MAX_BLOCKS} blocks of {1} bytes: cut it into larger ones"
    )]
    TooMany(u64, u32),
}

/// Block size and, once known, length of one content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Geometry {
    block_size: u32,
    total_len: Option<u64>,
}

impl Geometry {
    /// Checks and takes both.
    pub fn new(block_size: u32, total_len: Option<u64>) -> Result<Self, GeometryError> {
        if !block_size.is_power_of_two() || !(MIN_BLOCK..=MAX_BLOCK).contains(&block_size) {
            return Err(GeometryError::BlockSize(block_size));
        }
        match total_len {
            Some(n) if n > MAX_CONTENT => Err(GeometryError::TooLong(n)),
            Some(n) if blocks_for(n, block_size) > MAX_BLOCKS => {
                Err(GeometryError::TooMany(n, block_size))
            }
            _ => Ok(Self {
                block_size,
                total_len,
            }),
        }
    }

    /// The geometry every node derives for content of this length: the power of two nearest below
    /// a 2048th of the length, within the bounds, so that one block's time on a link stays small
    /// against the whole.
    pub fn for_len(total_len: Option<u64>) -> Result<Self, GeometryError> {
        let block_size = match total_len {
            None => UNKNOWN_LENGTH_BLOCK,
            Some(n) => {
                let target = (n / 2048).clamp(u64::from(MIN_BLOCK), u64::from(MAX_BLOCK));
                1 << target.ilog2()
            }
        };
        Self::new(block_size, total_len)
    }

    /// Bytes in every block but the last.
    #[must_use]
    pub const fn block_size(&self) -> u32 {
        self.block_size
    }

    /// Bytes in all, once known.
    #[must_use]
    pub const fn total_len(&self) -> Option<u64> {
        self.total_len
    }

    /// Blocks in all, once known.
    #[must_use]
    pub fn total_blocks(&self) -> Option<u32> {
        self.total_len.map(|n| blocks_for(n, self.block_size))
    }

    /// Most blocks that content of this geometry may have.
    #[must_use]
    pub fn max_blocks(&self) -> u32 {
        blocks_for(self.total_len.unwrap_or(MAX_CONTENT), self.block_size).min(MAX_BLOCKS)
    }

    /// The block that holds the byte at `at`; for bytes behind any content one that cannot be.
    #[must_use]
    pub fn block_at(&self, at: u64) -> u32 {
        u32::try_from(at / u64::from(self.block_size)).unwrap_or(u32::MAX)
    }

    /// Where a block starts, bytes.
    #[must_use]
    pub fn offset(&self, index: u32) -> u64 {
        u64::from(index) * u64::from(self.block_size)
    }

    /// Bytes in a block; `None` when there is no such block. While the length is unknown every
    /// block is taken to be full: only the signed size says otherwise.
    #[must_use]
    pub fn block_len(&self, index: u32) -> Option<u32> {
        let start = self.offset(index);
        match self.total_len {
            None => (index < self.max_blocks()).then_some(self.block_size),
            Some(n) => n
                .checked_sub(start)
                .filter(|rest| *rest > 0)
                .map(|rest| rest.min(u64::from(self.block_size)) as u32),
        }
    }

    /// The same content, its length now known.
    pub fn with_total(self, total_len: u64) -> Result<Self, GeometryError> {
        Self::new(self.block_size, Some(total_len))
    }

    /// Whether blocks cut in this way are the same as cut in the other.
    #[must_use]
    pub fn agrees_with(&self, other: &Self) -> bool {
        let lengths = self.total_len.zip(other.total_len);
        self.block_size == other.block_size && lengths.is_none_or(|(a, b)| a == b)
    }

    /// The blocks that hold the bytes `start..end`.
    #[must_use]
    pub fn blocks_of(&self, start: u64, end: u64) -> std::ops::Range<u32> {
        let end = end.min(self.total_len.unwrap_or(MAX_CONTENT));
        if start >= end {
            return 0..0;
        }
        let size = u64::from(self.block_size);
        (start / size) as u32..end.div_ceil(size) as u32
    }
}

fn blocks_for(len: u64, block_size: u32) -> u32 {
    u32::try_from(len.div_ceil(u64::from(block_size))).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_is_in_the_block_that_holds_it_and_one_behind_any_content_in_none() {
        let g = Geometry::for_len(None).unwrap();
        let size = u64::from(g.block_size());
        for (at, block) in [(0, 0), (size - 1, 0), (size, 1), (size << 32, u32::MAX)] {
            assert_eq!(g.block_at(at), block, "{at}");
        }
        assert_eq!(g.block_len(g.block_at(u64::MAX)), None);
    }

    #[test]
    fn the_block_size_is_the_power_of_two_nearest_below_a_2048th_within_bounds() {
        for (len, size) in [
            (0, MIN_BLOCK),
            (64 << 20, 64 << 10),
            (255 << 20, 64 << 10),
            (256 << 20, 128 << 10),
            (1 << 30, 512 << 10),
            (100 << 30, 1 << 20),
        ] {
            assert_eq!(
                Geometry::for_len(Some(len)).unwrap().block_size(),
                size,
                "{len} bytes"
            );
        }
        assert_eq!(
            Geometry::for_len(None).unwrap().block_size(),
            UNKNOWN_LENGTH_BLOCK
        );
    }

    #[test]
    fn the_last_block_is_short_and_there_is_none_after_it() {
        let g = Geometry::new(65536, Some(65536 * 2 + 7)).unwrap();
        assert_eq!(g.total_blocks(), Some(3));
        assert_eq!(
            [g.block_len(0), g.block_len(2), g.block_len(3)],
            [Some(65536), Some(7), None]
        );
        assert_eq!(
            Geometry::new(65536, Some(0)).unwrap().total_blocks(),
            Some(0)
        );
        assert_eq!(g.blocks_of(65535, 65537), 0..2);
        assert_eq!(g.blocks_of(9 << 20, 10 << 20), 0..0);
        let open = Geometry::new(65536, None).unwrap();
        assert_eq!(open.block_len(MAX_BLOCKS - 1), Some(65536));
        assert_eq!(open.block_len(MAX_BLOCKS), None);
    }

    #[test]
    fn bounds_are_checked() {
        for (block_size, total_len, ok) in [
            (MIN_BLOCK, None, true),
            (MAX_BLOCK, Some(100 << 30), true),
            (MAX_BLOCK, Some(MAX_CONTENT), true),
            (MAX_BLOCK, Some(MAX_CONTENT + 1), false),
            (MIN_BLOCK, Some(1 << 40), true),
            (MIN_BLOCK, Some((1 << 40) + 1), false),
            (MIN_BLOCK / 2, None, false),
            (MAX_BLOCK * 2, None, false),
            (MIN_BLOCK + 1, None, false),
            (MIN_BLOCK, Some(u64::MAX), false),
        ] {
            let made = Geometry::new(block_size, total_len);
            assert_eq!(made.is_ok(), ok, "{block_size} {total_len:?}");
        }
    }
}
