//! Byte ranges and the headers that speak of them (RFC 9110 section 14).
//!
//! Invariant: a [`ByteRange`] is never empty and its end never overflows; parsers take any input and
//! answer `None` rather than guess.

use std::fmt;

/// A run of bytes of a content: `start..end`, never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ByteRange {
    start: u64,
    end: u64,
}

impl ByteRange {
    /// An end that means "to the last byte, wherever that is".
    pub const OPEN: u64 = u64::MAX;

    /// Bytes `start..end` (`end` excluded); `None` when empty.
    pub fn new(start: u64, end: u64) -> Option<Self> {
        (start < end).then_some(Self { start, end })
    }

    /// `len` bytes from `start`; `None` when empty or past `u64::MAX`.
    pub fn at(start: u64, len: u64) -> Option<Self> {
        Self::new(start, start.checked_add(len)?)
    }

    /// First byte.
    pub fn start(self) -> u64 {
        self.start
    }

    /// One past the last byte.
    pub fn end(self) -> u64 {
        self.end
    }

    /// Bytes in it, at least 1.
    #[allow(clippy::len_without_is_empty, reason = "a range is never empty")]
    pub fn len(self) -> u64 {
        self.end - self.start
    }

    /// The value of a `Range` header (RFC 9110 section 14.2); its last byte is included there.
    pub fn header(self) -> String {
        if self.end == Self::OPEN {
            return format!("bytes={}-", self.start);
        }
        format!("bytes={}-{}", self.start, self.end - 1)
    }

    /// The first `len` bytes and the rest.
    pub fn split(self, len: u64) -> (Option<Self>, Option<Self>) {
        let middle = self.start.saturating_add(len).min(self.end);
        (Self::new(self.start, middle), Self::new(middle, self.end))
    }
}

impl fmt::Display for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.end == Self::OPEN {
            return write!(f, "{}-", self.start);
        }
        write!(f, "{}-{}", self.start, self.end - 1)
    }
}

/// A `Content-Range` header in bytes (RFC 9110 section 14.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentRange {
    /// `bytes first-last/total`, where the total may be `*`.
    Part {
        /// What the body holds.
        range: ByteRange,
        /// Length of the whole, where the origin knows it.
        total: Option<u64>,
    },
    /// `bytes */total`, the answer of a 416.
    Unsatisfied {
        /// Length of the whole.
        total: u64,
    },
}

impl ContentRange {
    /// Parses the value; `None` for another unit or anything that contradicts itself.
    pub fn parse(value: &str) -> Option<Self> {
        let rest = value.trim();
        let unit = rest.get(..5)?;
        if !unit.eq_ignore_ascii_case("bytes") {
            return None;
        }
        let rest = rest.get(5..)?;
        // RFC 9110 has one space; some origins send `=` or several spaces.
        if !rest.starts_with([' ', '=']) {
            return None;
        }
        let (part, total) = rest.get(1..)?.trim().split_once('/')?;
        let total = match total.trim() {
            "*" => None,
            digits => Some(number(digits)?),
        };
        if part.trim() == "*" {
            return total.map(|total| Self::Unsatisfied { total });
        }
        let (first, last) = part.split_once('-')?;
        let range = ByteRange::new(number(first.trim())?, number(last.trim())?.checked_add(1)?)?;
        if total.is_some_and(|total| range.end() > total) {
            return None;
        }
        Some(Self::Part { range, total })
    }
}

/// Digits only: `u64::from_str` would accept a plus sign.
pub(crate) fn number(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn part(start: u64, end: u64, total: Option<u64>) -> Option<ContentRange> {
        Some(ContentRange::Part {
            range: ByteRange::new(start, end)?,
            total,
        })
    }

    #[test]
    fn content_ranges_are_read_or_refused() {
        let rows = [
            ("bytes 0-9/100", part(0, 10, Some(100))),
            ("Bytes 0-9/*", part(0, 10, None)),
            ("bytes=0-9/10", part(0, 10, Some(10))),
            (
                "bytes */100",
                Some(ContentRange::Unsatisfied { total: 100 }),
            ),
            ("bytes 5-4/100", None),
            ("bytes 0-100/100", None),
            ("bytes */*", None),
            ("bytes -9/100", None),
            ("bytes 0-/100", None),
            ("bytes +0-9/100", None),
            ("bytes 0-18446744073709551615/*", None),
            ("items 0-9/100", None),
            ("bytes0-9/100", None),
            ("", None),
        ];
        for (value, wanted) in rows {
            assert_eq!(ContentRange::parse(value), wanted, "{value}");
        }
    }

    #[test]
    fn headers_name_the_last_byte() {
        assert_eq!(ByteRange::new(0, 10).unwrap().header(), "bytes=0-9");
        assert_eq!(
            ByteRange::new(5, ByteRange::OPEN).unwrap().header(),
            "bytes=5-"
        );
    }

    proptest! {
        #[test]
        fn any_content_range_is_answered(value in ".{0,40}") {
            let _ = ContentRange::parse(&value);
        }

        #[test]
        fn near_misses_are_answered_and_never_contradict_themselves(
            value in "bytes[ =][0-9*]{0,21}-?[0-9]{0,21}/?[0-9*]{0,21}"
        ) {
            if let Some(ContentRange::Part { range, total }) = ContentRange::parse(&value) {
                prop_assert!(range.start() < range.end());
                prop_assert!(total.is_none_or(|total| range.end() <= total));
            }
        }

        #[test]
        fn splitting_loses_nothing(start in 0_u64..1000, len in 1_u64..1000, at in 0_u64..3000) {
            let range = ByteRange::at(start, len).unwrap();
            let (head, tail) = range.split(at);
            let sum: u64 = head.iter().chain(&tail).map(|part| part.len()).sum();
            prop_assert_eq!(sum, len);
        }
    }
}
