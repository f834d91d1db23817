//! Lengths of time, written as Go writes them: `168h`, `1h30m`, `500ms`.
//!
//! Invariant: milliseconds, a whole number that an `i64` holds. Units are `h`, `m`, `s`, `ms`;
//! fractions and finer units are refused, so that there is one way to read a number.

/// Why a length of time is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// Not a sequence of numbers with units.
    #[error("must be numbers with the units h, m, s or ms, such as 168h or 1h30m")]
    Syntax,
    /// Longer than anything means.
    #[error("must be at most 87600h")]
    TooLong,
}

/// Ten years; longer is a mistake.
const MAX_MS: u64 = 87_600 * 3_600_000;
const UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("ms", 1), ("m", 60_000), ("s", 1_000)];

/// Milliseconds that `text` says.
pub fn parse_ms(text: &str) -> Result<u64, DurationError> {
    if text.is_empty() {
        return Err(DurationError::Syntax);
    }
    let mut rest = text;
    let mut total = 0u64;
    while !rest.is_empty() {
        let end = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (digits, tail) = rest.split_at(end);
        if digits.is_empty() {
            return Err(DurationError::Syntax);
        }
        let (tail, unit) = UNITS
            .iter()
            .find_map(|(name, unit)| Some((tail.strip_prefix(name)?, *unit)))
            .ok_or(DurationError::Syntax)?;
        let number = digits.parse::<u64>().map_err(|_| DurationError::TooLong)?;
        total = number
            .checked_mul(unit)
            .and_then(|part| total.checked_add(part))
            .filter(|total| *total <= MAX_MS)
            .ok_or(DurationError::TooLong)?;
        rest = tail;
    }
    Ok(total)
}

/// The shortest way to write so many milliseconds.
pub fn format_ms(ms: u64) -> String {
    if ms == 0 {
        return "0s".to_owned();
    }
    let mut rest = ms;
    let mut text = String::new();
    for (name, unit) in [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)] {
        if rest / unit > 0 {
            text.push_str(&format!("{}{name}", rest / unit));
            rest %= unit;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lengths_of_time_read_as_go_reads_them() {
        let rows = [
            ("0s", Ok(0)),
            ("500ms", Ok(500)),
            ("1h30m", Ok(5_400_000)),
            ("168h", Ok(604_800_000)),
            ("1m1ms", Ok(60_001)),
            ("90s", Ok(90_000)),
            ("1", Err(DurationError::Syntax)),
            ("0", Err(DurationError::Syntax)),
            ("1d", Err(DurationError::Syntax)),
            ("1.5h", Err(DurationError::Syntax)),
            ("-1s", Err(DurationError::Syntax)),
            ("s", Err(DurationError::Syntax)),
            ("", Err(DurationError::Syntax)),
            ("1h 30m", Err(DurationError::Syntax)),
            ("10us", Err(DurationError::Syntax)),
            ("87601h", Err(DurationError::TooLong)),
            ("99999999999999999999s", Err(DurationError::TooLong)),
        ];
        for (text, wanted) in rows {
            assert_eq!(parse_ms(text), wanted, "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(ms in 0..=MAX_MS) {
            prop_assert_eq!(parse_ms(&format_ms(ms)), Ok(ms));
        }

        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,40}") {
            let _ = parse_ms(&text);
        }
    }
}
