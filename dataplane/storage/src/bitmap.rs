//! Which blocks are held: one shared, growing bitmap that writers mark and readers test without a
//! lock between them, and [`Held`], its snapshot.
//!
//! Invariant: a bit is set (release) only after the block's bytes and record are written, so whoever
//! sees it (acquire) may read the block.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

const WORD: u32 = u64::BITS;

/// The blocks held at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Held {
    words: Vec<u64>,
}

impl Held {
    /// Whether the block is held.
    #[must_use]
    pub fn contains(&self, index: u32) -> bool {
        self.words
            .get((index / WORD) as usize)
            .is_some_and(|w| w >> (index % WORD) & 1 == 1)
    }

    /// How many blocks are held.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.words.iter().map(|w| w.count_ones()).sum()
    }

    /// The bitmap: block `i` is bit `i % 64` of word `i / 64`; missing words are zero.
    #[must_use]
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// The held blocks as maximal ranges, ascending.
    #[must_use]
    pub fn ranges(&self) -> Vec<Range<u32>> {
        let mut ranges: Vec<Range<u32>> = Vec::new();
        for index in self.iter() {
            match ranges.last_mut() {
                Some(last) if last.end == index => last.end += 1,
                _ => ranges.push(index..index + 1),
            }
        }
        ranges
    }

    /// The held blocks, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.words.iter().zip(0u32..).flat_map(|(word, at)| {
            let mut rest = *word;
            std::iter::from_fn(move || {
                let bit = rest.trailing_zeros();
                rest &= rest.wrapping_sub(1);
                (bit < WORD).then_some(at * WORD + bit)
            })
        })
    }
}

#[derive(Debug, Default)]
pub(crate) struct Bitmap {
    // The lock guards only the growing of the vector; bits change under its read side.
    words: RwLock<Vec<AtomicU64>>,
    count: AtomicU32,
}

impl Bitmap {
    /// A bitmap whose first `count` blocks are held.
    pub(crate) fn full(count: u32) -> Self {
        let words = (0..count.div_ceil(WORD)).map(|w| match count - w * WORD {
            rest if rest >= WORD => u64::MAX,
            rest => (1 << rest) - 1,
        });
        Self {
            words: RwLock::new(words.map(AtomicU64::new).collect()),
            count: AtomicU32::new(count),
        }
    }

    pub(crate) fn contains(&self, index: u32) -> bool {
        let words = self.words.read().unwrap_or_else(PoisonError::into_inner);
        words
            .get((index / WORD) as usize)
            .is_some_and(|w| w.load(Ordering::Acquire) >> (index % WORD) & 1 == 1)
    }

    /// Whether all blocks of a range are held; words are compared, not bits.
    pub(crate) fn contains_all(&self, range: Range<u32>) -> bool {
        let words = self.words.read().unwrap_or_else(PoisonError::into_inner);
        let mut at = range.start;
        while at < range.end {
            let (word, bit) = (at / WORD, at % WORD);
            let n = (WORD - bit).min(range.end - at);
            let mask = (u64::MAX >> (WORD - n)) << bit;
            let held = words
                .get(word as usize)
                .map_or(0, |w| w.load(Ordering::Acquire));
            if held & mask != mask {
                return false;
            }
            at += n;
        }
        true
    }

    pub(crate) fn insert(&self, index: u32) {
        let at = (index / WORD) as usize;
        let mark = |words: &[AtomicU64]| {
            words
                .get(at)
                .map(|w| w.fetch_or(1 << (index % WORD), Ordering::AcqRel))
        };
        let words = self.words.read().unwrap_or_else(PoisonError::into_inner);
        let before = mark(&words).or_else(|| {
            drop(words);
            let mut words = self.words.write().unwrap_or_else(PoisonError::into_inner);
            while words.len() <= at {
                words.push(AtomicU64::new(0));
            }
            mark(&words)
        });
        if before.is_some_and(|b| b >> (index % WORD) & 1 == 0) {
            self.count.fetch_add(1, Ordering::AcqRel);
        }
    }

    pub(crate) fn remove(&self, index: u32) {
        let words = self.words.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(word) = words.get((index / WORD) as usize) {
            let before = word.fetch_and(!(1 << (index % WORD)), Ordering::AcqRel);
            if before >> (index % WORD) & 1 == 1 {
                self.count.fetch_sub(1, Ordering::AcqRel);
            }
        }
    }

    pub(crate) fn count(&self) -> u32 {
        self.count.load(Ordering::Acquire)
    }

    pub(crate) fn snapshot(&self) -> Held {
        let words = self.words.read().unwrap_or_else(PoisonError::into_inner);
        Held {
            words: words.iter().map(|w| w.load(Ordering::Acquire)).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_held_when_each_of_its_blocks_is() {
        let map = Bitmap::full(200);
        map.remove(130);
        for range in [0..0, 0..130, 131..200, 63..65, 64..128, 199..200, 300..300] {
            assert!(map.contains_all(range.clone()), "{range:?}");
        }
        for range in [0..131, 130..131, 129..200, 199..201, 500..501] {
            assert!(!map.contains_all(range.clone()), "{range:?}");
        }
    }

    #[test]
    fn bits_are_counted_once_and_become_ranges() {
        let bits = Bitmap::default();
        for i in [0, 1, 2, 63, 64, 65, 200, 200, 1] {
            bits.insert(i);
        }
        let held = bits.snapshot();
        assert_eq!((bits.count(), held.count()), (7, 7));
        assert_eq!(held.ranges(), vec![0..3, 63..66, 200..201]);
        bits.remove(64);
        bits.remove(64);
        bits.remove(9999);
        assert_eq!(
            bits.snapshot().ranges(),
            vec![0..3, 63..64, 65..66, 200..201]
        );
        assert_eq!(bits.count(), 6);
    }

    #[test]
    fn full_covers_exactly_its_count() {
        for n in [0, 1, 63, 64, 65, 128, 1000] {
            let bits = Bitmap::full(n);
            assert_eq!(bits.snapshot().count(), n);
            assert!(!bits.contains(n));
            assert!(n == 0 || bits.contains(n - 1));
        }
    }
}
