//! Short lists of runs of blocks, which nearly all announcements are.

use core::ops::{Deref, Range};

/// Runs that need no memory of their own.
const FEW: usize = 2;

/// A list of runs of block indices; one or two of them cost no allocation.
#[derive(Debug, Clone)]
pub struct Runs(List);

#[derive(Debug, Clone)]
enum List {
    Few(u8, [Range<u32>; FEW]),
    Many(Vec<Range<u32>>),
}

impl Runs {
    /// No runs.
    #[must_use]
    pub const fn new() -> Self {
        Self(List::Few(0, [const { 0..0 }; FEW]))
    }

    /// Appends a run.
    pub fn push(&mut self, run: Range<u32>) {
        match &mut self.0 {
            List::Few(count, few) => {
                if let Some(free) = few.get_mut(usize::from(*count)) {
                    *free = run;
                    *count += 1;
                } else {
                    let mut many = few.to_vec();
                    many.push(run);
                    self.0 = List::Many(many);
                }
            }
            List::Many(many) => many.push(run),
        }
    }

    /// Appends one block: to the last run when it follows on that.
    pub fn push_block(&mut self, index: u32) {
        let last = match &mut self.0 {
            List::Few(count, few) => few[..usize::from(*count)].last_mut(),
            List::Many(many) => many.last_mut(),
        };
        match last {
            Some(last) if last.end == index => last.end += 1,
            _ => self.push(index..index + 1),
        }
    }
}

impl Default for Runs {
    fn default() -> Self {
        Self::new()
    }
}

impl Deref for Runs {
    type Target = [Range<u32>];

    fn deref(&self) -> &Self::Target {
        match &self.0 {
            List::Few(count, few) => &few[..usize::from(*count)],
            List::Many(many) => many,
        }
    }
}

impl PartialEq for Runs {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Runs {}

impl FromIterator<Range<u32>> for Runs {
    fn from_iter<I: IntoIterator<Item = Range<u32>>>(runs: I) -> Self {
        let mut list = Self::new();
        for run in runs {
            list.push(run);
        }
        list
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_the_same_however_many_there_are() {
        for count in 0..6 {
            let expected: Vec<Range<u32>> = (0..count).map(|n| n * 10..n * 10 + 3).collect();
            let list: Runs = expected.iter().cloned().collect();
            assert_eq!(*list, *expected);
            let mut blocks = Runs::new();
            for index in expected.iter().cloned().flatten() {
                blocks.push_block(index);
            }
            assert_eq!(blocks, list);
        }
    }
}
