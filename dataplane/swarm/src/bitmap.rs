//! Sets of block indices, one bit a block.
//!
//! A set grows with the highest index inserted and never by a question asked of it, so whoever
//! checks an index before inserting it bounds the memory. Counting is kept up to date; all walks
//! go word by word.

use core::fmt;
use core::ops::Range;

/// A growable set of block indices.
#[derive(Clone, Default)]
pub struct BlockSet {
    words: Vec<u64>,
    count: u32,
}

/// Why bytes from the wire are no set of blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the bitmap names a block at or after {limit}")]
pub struct BitmapTooLong {
    /// The first index that is not a block of the task.
    pub limit: u32,
}

const BITS: u32 = u64::BITS;

fn word_of(index: u32) -> usize {
    (index / BITS) as usize
}

fn bit_of(index: u32) -> u64 {
    1 << (index % BITS)
}

/// The bits of word `word` that lie in `range`.
fn mask_of(range: &Range<u32>, word: usize) -> u64 {
    let base = word as u64 * u64::from(BITS);
    let low = u64::from(range.start).saturating_sub(base).min(64);
    let high = u64::from(range.end).saturating_sub(base).min(64);
    if low >= high {
        return 0;
    }
    let upto = |n: u64| if n == 64 { u64::MAX } else { (1 << n) - 1 };
    upto(high) & !upto(low)
}

impl BlockSet {
    /// The empty set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Every block below `end`.
    #[must_use]
    pub fn full(end: u32) -> Self {
        let mut set = Self::new();
        set.insert_range(0..end);
        set
    }

    /// Number of blocks in the set.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Whether the set holds nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether `index` is in the set.
    #[must_use]
    pub fn contains(&self, index: u32) -> bool {
        self.words
            .get(word_of(index))
            .is_some_and(|word| word & bit_of(index) != 0)
    }

    /// Adds one block; whether it is new.
    pub fn insert(&mut self, index: u32) -> bool {
        let at = word_of(index);
        if at >= self.words.len() {
            self.words.resize(at + 1, 0);
        }
        let bit = bit_of(index);
        let new = self.words[at] & bit == 0;
        self.words[at] |= bit;
        self.count += u32::from(new);
        new
    }

    /// Takes one block out; whether it was in.
    pub fn remove(&mut self, index: u32) -> bool {
        let Some(word) = self.words.get_mut(word_of(index)) else {
            return false;
        };
        let bit = bit_of(index);
        let was = *word & bit != 0;
        *word &= !bit;
        self.count -= u32::from(was);
        was
    }

    /// Adds a run of blocks; how many of them are new.
    pub fn insert_range(&mut self, range: Range<u32>) -> u32 {
        if range.start >= range.end {
            return 0;
        }
        let last = word_of(range.end - 1);
        if last >= self.words.len() {
            self.words.resize(last + 1, 0);
        }
        let mut new = 0;
        for at in word_of(range.start)..=last {
            let add = mask_of(&range, at) & !self.words[at];
            self.words[at] |= add;
            new += add.count_ones();
        }
        self.count += new;
        new
    }

    /// Takes a run of blocks out; how many of them were in.
    pub fn remove_range(&mut self, range: Range<u32>) -> u32 {
        let mut gone = 0;
        if range.start >= range.end {
            return 0;
        }
        let last = word_of(range.end - 1);
        for (at, word) in self
            .words
            .iter_mut()
            .enumerate()
            .take(last + 1)
            .skip(word_of(range.start))
        {
            let cut = mask_of(&range, at) & *word;
            *word &= !cut;
            gone += cut.count_ones();
        }
        self.count -= gone;
        gone
    }

    /// Whether every block of the run is in the set.
    #[must_use]
    pub fn contains_range(&self, range: Range<u32>) -> bool {
        range.start >= range.end || self.next_missing(range.start) >= range.end
    }

    /// The first block of the set at or after `from`.
    #[must_use]
    pub fn next(&self, from: u32) -> Option<u32> {
        first_bit(self.words.len(), from, |at| self.words[at])
    }

    /// The first block at or after `from` that is in this set and in `other`.
    #[must_use]
    pub fn next_in_both(&self, other: &Self, from: u32) -> Option<u32> {
        let words = self.words.len().min(other.words.len());
        first_bit(words, from, |at| self.words[at] & other.words[at])
    }

    /// Number of blocks that are in this set and in `other`.
    #[must_use]
    pub fn common(&self, other: &Self) -> u32 {
        let words = self.words.iter().zip(&other.words);
        words.map(|(a, b)| (a & b).count_ones()).sum()
    }

    /// The first block at or after `from` that is in this set but not in `other`.
    #[must_use]
    pub fn next_not_in(&self, other: &Self, from: u32) -> Option<u32> {
        first_bit(self.words.len(), from, |at| {
            self.words[at] & !other.word(at)
        })
    }

    /// The first index at or after `from` that is not in the set.
    #[must_use]
    pub fn next_missing(&self, from: u32) -> u32 {
        first_bit(self.words.len(), from, |at| !self.words[at])
            .unwrap_or_else(|| from.max(self.words.len() as u32 * BITS))
    }

    /// The greatest index of the set, plus one.
    #[must_use]
    pub fn end(&self) -> u32 {
        self.words
            .iter()
            .rposition(|word| *word != 0)
            .map_or(0, |at| {
                (at as u32 + 1) * BITS - self.words[at].leading_zeros()
            })
    }

    /// The maximal runs of the set, ascending.
    pub fn ranges(&self) -> impl Iterator<Item = Range<u32>> + '_ {
        let mut from = 0;
        core::iter::from_fn(move || {
            let start = self.next(from)?;
            let end = self.next_missing(start);
            from = end;
            Some(start..end)
        })
    }

    /// The blocks of the set, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        let mut from = 0;
        core::iter::from_fn(move || {
            let index = self.next(from)?;
            from = index + 1;
            Some(index)
        })
    }

    /// Adds every block of `other`.
    pub fn union(&mut self, other: &Self) {
        if other.words.len() > self.words.len() {
            self.words.resize(other.words.len(), 0);
        }
        for (word, more) in self.words.iter_mut().zip(&other.words) {
            *word |= more;
        }
        self.recount();
    }

    /// Takes every block of `other` out.
    pub fn subtract(&mut self, other: &Self) {
        for (word, less) in self.words.iter_mut().zip(&other.words) {
            *word &= !less;
        }
        self.recount();
    }

    /// Keeps the blocks that `other` has too.
    pub fn intersect(&mut self, other: &Self) {
        for (at, word) in self.words.iter_mut().enumerate() {
            *word &= other.words.get(at).copied().unwrap_or(0);
        }
        self.recount();
    }

    /// Forgets every block and gives the memory back.
    pub fn clear(&mut self) {
        *self = Self::new();
    }

    /// Bytes for the wire: block 0 is the lowest bit of byte 0; trailing zero bytes are left out.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = self
            .words
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect();
        bytes.truncate((self.end() as usize).div_ceil(8));
        bytes
    }

    /// Reads [`Self::to_bytes`] back.
    ///
    /// # Errors
    /// When a block at or after `limit` is named; nothing is allocated then.
    pub fn from_bytes(bytes: &[u8], limit: u32) -> Result<Self, BitmapTooLong> {
        let used = bytes
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |at| at + 1);
        let bytes = &bytes[..used];
        let end = bytes
            .last()
            .map_or(0, |last| used as u64 * 8 - u64::from(last.leading_zeros()));
        if end > u64::from(limit) {
            return Err(BitmapTooLong { limit });
        }
        let words = bytes
            .chunks(8)
            .map(|chunk| {
                let mut word = [0; 8];
                word[..chunk.len()].copy_from_slice(chunk);
                u64::from_le_bytes(word)
            })
            .collect();
        let mut set = Self { words, count: 0 };
        set.recount();
        Ok(set)
    }

    /// Number of 64-bit words in memory.
    #[must_use]
    pub fn words(&self) -> usize {
        self.words.len()
    }

    /// The 64 blocks that begin at `64 * at`, block 0 the lowest bit.
    #[must_use]
    pub fn word(&self, at: usize) -> u64 {
        self.words.get(at).copied().unwrap_or(0)
    }

    fn recount(&mut self) {
        self.count = self.words.iter().map(|word| word.count_ones()).sum();
    }
}

/// The first set bit at or after `from` among `words` words.
fn first_bit(words: usize, from: u32, word: impl Fn(usize) -> u64) -> Option<u32> {
    let start = word_of(from);
    if start >= words {
        return None;
    }
    let mut bits = word(start) & !(bit_of(from) - 1);
    let mut at = start;
    loop {
        if bits != 0 {
            return Some(at as u32 * BITS + bits.trailing_zeros());
        }
        at += 1;
        if at >= words {
            return None;
        }
        bits = word(at);
    }
}

impl PartialEq for BlockSet {
    fn eq(&self, other: &Self) -> bool {
        let words = self.words.len().max(other.words.len());
        self.count == other.count && (0..words).all(|at| self.word(at) == other.word(at))
    }
}

impl Eq for BlockSet {}

impl fmt::Debug for BlockSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.ranges()).finish()
    }
}

impl FromIterator<u32> for BlockSet {
    fn from_iter<I: IntoIterator<Item = u32>>(indices: I) -> Self {
        let mut set = Self::new();
        for index in indices {
            set.insert(index);
        }
        set
    }
}

impl FromIterator<Range<u32>> for BlockSet {
    fn from_iter<I: IntoIterator<Item = Range<u32>>>(ranges: I) -> Self {
        let mut set = Self::new();
        for range in ranges {
            set.insert_range(range);
        }
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_cross_words_and_keep_the_count() {
        let mut set = BlockSet::new();
        assert_eq!(set.insert_range(60..200), 140);
        assert_eq!(set.insert_range(50..70), 10);
        assert!(set.insert(300));
        assert!(!set.insert(300));
        assert_eq!(set.count(), 151);
        assert_eq!(set.ranges().collect::<Vec<_>>(), [50..200, 300..301]);
        assert_eq!(set.remove_range(64..128), 64);
        assert_eq!(
            set.ranges().collect::<Vec<_>>(),
            [50..64, 128..200, 300..301]
        );
        assert_eq!(set.end(), 301);
        assert_eq!(set.next_missing(130), 200);
        assert_eq!(set.next_missing(1000), 1000);
        assert!(set.contains_range(128..200));
        assert!(!set.contains_range(127..200));
    }

    #[test]
    fn bytes_from_the_wire_are_held_to_the_limit() {
        let set: BlockSet = [0u32, 7, 8, 77].into_iter().collect();
        let bytes = set.to_bytes();
        assert_eq!(bytes, [0x81, 0x01, 0, 0, 0, 0, 0, 0, 0, 0x20]);
        assert_eq!(BlockSet::from_bytes(&bytes, 78), Ok(set));
        assert_eq!(
            BlockSet::from_bytes(&bytes, 77),
            Err(BitmapTooLong { limit: 77 })
        );
        assert_eq!(
            BlockSet::from_bytes(&[0; 9000], 1),
            Ok(BlockSet::new()),
            "zero bytes name no block"
        );
    }

    #[test]
    fn sets_of_different_length_can_be_equal() {
        let mut long = BlockSet::full(1000);
        long.remove_range(3..1000);
        assert_eq!(long, BlockSet::full(3));
    }

    #[test]
    fn common_blocks_are_found_word_by_word() {
        let a: BlockSet = [1u32..3, 100..300].into_iter().collect();
        let b: BlockSet = core::iter::once(2u32..250).collect();
        assert_eq!(a.next_in_both(&b, 0), Some(2));
        assert_eq!(a.next_in_both(&b, 3), Some(100));
        assert_eq!(a.next_in_both(&b, 250), None);
        assert_eq!(a.next_not_in(&b, 2), Some(250));
    }
}
