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
