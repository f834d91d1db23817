//! Which bytes a client wants: the `Range` header (RFC 9110 section 14.2).
//!
//! Invariant: what cannot be read counts as not said, as the RFC has it; nothing overflows.

/// What was asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Asked {
    /// All.
    #[default]
    Whole,
    /// From here to the end: a client that goes on.
    From(u64),
    /// From the first to before the second, never empty.
    Between(u64, u64),
    /// The last so many, at least one.
    Last(u64),
}

impl Asked {
    /// Reads the header's value. Several ranges count as none said: the whole is a sound answer.
    pub(crate) fn read(value: &str) -> Self {
        let number = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
            digits.then(|| text.parse::<u64>().ok()).flatten()
        };
        let read = || {
            let (unit, rest) = value.trim().split_once('=')?;
            if !unit.trim().eq_ignore_ascii_case("bytes") {
                return None;
            }
            let (first, last) = rest.trim().split_once('-')?;
            match (first.trim(), last.trim()) {
                ("", last) => number(last).filter(|n| *n > 0).map(Self::Last),
                (first, "") => number(first).map(Self::From),
                (first, last) => {
                    let (first, end) = (number(first)?, number(last)?.checked_add(1)?);
                    (first < end).then_some(Self::Between(first, end))
                }
            }
        };
        read().unwrap_or_default()
    }

    /// The bytes of a content of this length, end excluded; `None`: it has none of them.
    pub(crate) fn of(self, total: u64) -> Option<(u64, u64)> {
        let (start, end) = match self {
            Self::Whole => return Some((0, total)),
            Self::From(start) => (start, total),
            Self::Between(start, end) => (start, end.min(total)),
            Self::Last(n) => (total.saturating_sub(n), total),
        };
        (start < end).then_some((start, end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ranges_are_read_and_what_is_none_is_the_whole() {
        let rows = [
            ("bytes=0-", Asked::From(0)),
            ("bytes=5-", Asked::From(5)),
            ("bytes=5-9", Asked::Between(5, 10)),
            ("Bytes = 5 - 9", Asked::Between(5, 10)),
            ("bytes=-3", Asked::Last(3)),
            ("bytes=-0", Asked::Whole),
            ("bytes=9-5", Asked::Whole),
            ("bytes=0-1,4-5", Asked::Whole),
            ("bytes=-", Asked::Whole),
            ("bytes=+5-", Asked::Whole),
            ("items=0-1", Asked::Whole),
            ("bytes=0-18446744073709551615", Asked::Whole),
            ("bytes=99999999999999999999-", Asked::Whole),
            ("", Asked::Whole),
        ];
        for (value, asked) in rows {
            assert_eq!(Asked::read(value), asked, "{value}");
        }
        assert_eq!(Asked::From(10).of(10), None);
        assert_eq!(Asked::Last(20).of(10), Some((0, 10)));
        assert_eq!(Asked::Between(5, 100).of(10), Some((5, 10)));
        assert_eq!(Asked::Whole.of(0), Some((0, 0)));
    }

    proptest! {
        #[test]
        fn any_header_is_read(value in ".{0,40}", total: u64) {
            if let Some((start, end)) = Asked::read(&value).of(total) {
                prop_assert!(start <= end && end <= total);
            }
        }

        #[test]
        fn what_is_written_is_read(first in 0u64..1 << 40, len in 1u64..1 << 40) {
            let written = format!("bytes={first}-{}", first + len - 1);
            prop_assert_eq!(Asked::read(&written), Asked::Between(first, first + len));
        }
    }
}
