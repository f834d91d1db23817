//! Sizes in bytes, written as Kubernetes writes quantities: `100Mi`, `1.5Gi`, `2G`, `4096`.
//!
//! Invariant: a result is a whole number of bytes that an `i64` holds, or an error. Fractions of a
//! byte (`1m`, `0.3k` is fine, `0.3` is not) are refused rather than rounded.

/// Why a size is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// Not `number[suffix]`.
    #[error(
        "must be a number of bytes with one of the suffixes k, M, G, T, P, Ki, Mi, Gi, Ti, Pi or none, such as 100Mi"
    )]
    Syntax,
    /// Not a whole number of bytes.
    #[error("must be a whole number of bytes")]
    Fraction,
    /// More than 2^63-1 bytes.
    #[error("must be less than 8Ei")]
    TooLarge,
}

const SUFFIXES: [(&str, u64); 10] = [
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
    ("Pi", 1 << 50),
    ("k", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
    ("P", 1_000_000_000_000_000),
];

/// Bytes that `text` says.
pub fn parse(text: &str) -> Result<u64, QuantityError> {
    match i64::try_from(times(text, 1)?) {
        Ok(bytes) => Ok(bytes.unsigned_abs()),
        Err(_) => Err(QuantityError::TooLarge),
    }
}

/// The thousandths of what `text` says, `m` for one of them included: API servers write amounts in
/// another way than they were said, such as `500m` for `0.5`.
pub fn thousandths(text: &str) -> Option<u128> {
    let said = match text.strip_suffix('m') {
        Some(number) if number.ends_with(|c: char| c.is_ascii_digit()) => times(number, 1),
        Some(_) => return None,
        None => times(text, 1_000),
    };
    said.ok()
}

/// A number of units, `by` times: a whole number.
fn times(text: &str, by: u128) -> Result<u128, QuantityError> {
    let (number, unit) = SUFFIXES
        .iter()
        .find_map(|(suffix, unit)| Some((text.strip_suffix(suffix)?, *unit)))
        .unwrap_or((text, 1));
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    let dangling = number.contains('.') && fraction.is_empty();
    if whole.is_empty() || dangling || !digits(whole) || !digits(fraction) {
        return Err(QuantityError::Syntax);
    }
    if whole.len() > 18 || fraction.len() > 9 {
        return Err(QuantityError::TooLarge);
    }
    let scale = 10u128.pow(fraction.len() as u32);
    let number = format!("{whole}{fraction}")
        .parse::<u128>()
        .map_err(|_| QuantityError::Syntax)?;
    // What overflows here is above 2^63 even after the division by at most 10^9.
    let scaled = number
        .checked_mul(u128::from(unit))
        .and_then(|units| units.checked_mul(by))
        .ok_or(QuantityError::TooLarge)?;
    if scaled % scale != 0 {
        return Err(QuantityError::Fraction);
    }
    Ok(scaled / scale)
}

/// The shortest exact way to write so many bytes, binary suffixes first.
pub fn format(bytes: u64) -> String {
    for (suffix, unit) in SUFFIXES[..5].iter().rev().chain(SUFFIXES[5..].iter().rev()) {
        if bytes >= *unit && bytes.is_multiple_of(*unit) {
            return format!("{}{suffix}", bytes / unit);
        }
    }
    bytes.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_read_as_kubernetes_reads_them() {
        let rows = [
            ("0", Ok(0)),
            ("4096", Ok(4096)),
            ("100Mi", Ok(100 << 20)),
            ("1.5Gi", Ok(3 << 29)),
            ("0.5k", Ok(500)),
            ("2P", Ok(2_000_000_000_000_000)),
            ("1.0", Ok(1)),
            ("0.3", Err(QuantityError::Fraction)),
            ("0.0001Ki", Err(QuantityError::Fraction)),
            ("1m", Err(QuantityError::Syntax)),
            ("1mi", Err(QuantityError::Syntax)),
            ("1K", Err(QuantityError::Syntax)),
            ("1.", Err(QuantityError::Syntax)),
            (".5Gi", Err(QuantityError::Syntax)),
            ("-1", Err(QuantityError::Syntax)),
            ("1e3", Err(QuantityError::Syntax)),
            ("", Err(QuantityError::Syntax)),
            ("Mi", Err(QuantityError::Syntax)),
            ("1 Mi", Err(QuantityError::Syntax)),
            ("99999Pi", Err(QuantityError::TooLarge)),
            ("9999999999999999999", Err(QuantityError::TooLarge)),
        ];
        for (text, wanted) in rows {
            assert_eq!(parse(text), wanted, "{text}");
        }
    }

    #[test]
    fn amounts_written_in_other_ways_are_the_same() {
        for (one, other) in [
            ("0.5", "500m"),
            ("1024Mi", "1Gi"),
            ("1000M", "1G"),
            ("0.5k", "500"),
        ] {
            assert!(thousandths(one).is_some(), "{one}");
            assert_eq!(thousandths(one), thousandths(other), "{one} {other}");
        }
        for wrong in ["", "m", "5km", "0.0001", "-1m", "a"] {
            assert_eq!(thousandths(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(bytes in 0..=999_999_999_999_999_999u64) {
            prop_assert_eq!(parse(&format(bytes)), Ok(bytes));
        }

        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,40}") {
            let _ = parse(&text);
        }

        #[test]
        fn digits_and_suffixes_never_overflow(text in "[0-9]{1,20}([.][0-9]{1,12})?(k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?") {
            if let Ok(bytes) = parse(&text) {
                prop_assert!(i64::try_from(bytes).is_ok());
            }
        }
    }
}
