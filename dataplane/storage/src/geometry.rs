//! How a content is cut into blocks.

use crate::error::{ErrorKind, Result, StorageError};

/// Smallest block, bytes.
pub const MIN_BLOCK_SIZE: u32 = 64 * 1024;
/// Largest block, bytes.
pub const MAX_BLOCK_SIZE: u32 = 1024 * 1024;
/// Most blocks that one task may have; bounds the memory of its bitmap to 2 MiB.
pub const MAX_BLOCKS: u32 = 1 << 24;

/// How a content is cut into blocks: all of one power-of-two size but the last, which may be
/// shorter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Geometry {
    /// Bytes of every block but the last.
    pub block_size: u32,
    /// Bytes of the whole content; `None` while the origin has not said.
    pub total_len: Option<u64>,
}

impl Geometry {
    /// Checks the bounds.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] when the block size is no power of two within
    /// [`MIN_BLOCK_SIZE`]..=[`MAX_BLOCK_SIZE`] or the content has more than [`MAX_BLOCKS`] blocks.
    pub fn validate(self) -> Result<Self> {
        if !self.block_size.is_power_of_two()
            || !(MIN_BLOCK_SIZE..=MAX_BLOCK_SIZE).contains(&self.block_size)
        {
            return Err(StorageError::new(
                ErrorKind::Invalid,
                format_args!("block size {}", self.block_size),
                format!("is not a power of two from {MIN_BLOCK_SIZE} to {MAX_BLOCK_SIZE}"),
            ));
        }
        match self.total_len {
            Some(len) if len.div_ceil(u64::from(self.block_size)) > u64::from(MAX_BLOCKS) => {
                Err(StorageError::new(
                    ErrorKind::Invalid,
                    format_args!("content of {len} bytes"),
                    format!(
                        "has more than {MAX_BLOCKS} blocks of {} bytes",
                        self.block_size
                    ),
                ))
            }
            _ => Ok(self),
        }
    }

    /// Number of blocks; `None` while the length is unknown.
    #[must_use]
    pub fn blocks(self) -> Option<u32> {
        let blocks = self.total_len?.div_ceil(u64::from(self.block_size));
        u32::try_from(blocks).ok()
    }

    /// Offset of a block's first byte in the content.
    #[must_use]
    pub fn offset(self, index: u32) -> u64 {
        u64::from(index) * u64::from(self.block_size)
    }

    /// Bytes of a block. While the length is unknown every block is full-sized; `None` beyond the
    /// end of the content or of what one task may have.
    #[must_use]
    pub fn block_len(self, index: u32) -> Option<u32> {
        if index >= MAX_BLOCKS {
            return None;
        }
        let Some(total) = self.total_len else {
            return Some(self.block_size);
        };
        let rest = total
            .checked_sub(self.offset(index))
            .filter(|rest| *rest > 0)?;
        Some(u32::try_from(rest).map_or(self.block_size, |rest| rest.min(self.block_size)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_block_is_the_rest() {
        let g = |total_len| Geometry {
            block_size: MIN_BLOCK_SIZE,
            total_len,
        };
        let b = u64::from(MIN_BLOCK_SIZE);
        for (name, total, blocks, last) in [
            ("empty", 0, 0, None),
            ("one byte", 1, 1, Some(1)),
            ("one block", b, 1, Some(MIN_BLOCK_SIZE)),
            ("a block and a byte", b + 1, 2, Some(1)),
        ] {
            let g = g(Some(total));
            assert_eq!(g.blocks(), Some(blocks), "{name}");
            assert_eq!(g.block_len(blocks.saturating_sub(1)), last, "{name}");
            assert_eq!(g.block_len(blocks), None, "{name}");
        }
        assert_eq!(g(None).block_len(7), Some(MIN_BLOCK_SIZE));
        assert_eq!(g(None).block_len(MAX_BLOCKS), None);
    }

    #[test]
    fn bounds_are_checked() {
        for (block_size, total_len, ok) in [
            (MIN_BLOCK_SIZE, None, true),
            (MAX_BLOCK_SIZE, Some(100 << 30), true),
            (MIN_BLOCK_SIZE / 2, None, false),
            (MAX_BLOCK_SIZE * 2, None, false),
            (MIN_BLOCK_SIZE + 1, None, false),
            (MIN_BLOCK_SIZE, Some(u64::MAX), false),
        ] {
            let g = Geometry {
                block_size,
                total_len,
            };
            assert_eq!(g.validate().is_ok(), ok, "{g:?}");
        }
    }
}
