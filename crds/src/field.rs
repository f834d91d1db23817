//! What is wrong with a field, in the words of an apiserver.
//!
//! Invariant: the same mistake has the same path and the same reason whether an apiserver, light
//! mode or the resolver finds it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What kind of mistake it is. Displays as an apiserver writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Reason {
    /// The value is not one that the field takes.
    InvalidValue,
    /// The field has to be there.
    Required,
    /// The value is not one of a fixed set.
    Unsupported,
    /// Text that is too long.
    TooLong,
    /// A list or map that has too many entries.
    TooMany,
    /// An entry that a set holds already.
    Duplicate,
    /// What is referred to does not exist.
    NotFound,
    /// The kind has no such field.
    UnknownField,
    /// The file cannot be read as manifests.
    Malformed,
    /// A kind that is none of ours.
    UnknownKind,
}

impl Reason {
    /// As an apiserver writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InvalidValue => "Invalid value",
            Self::Required => "Required value",
            Self::Unsupported => "Unsupported value",
            Self::TooLong => "Too long",
            Self::TooMany => "Too many",
            Self::Duplicate => "Duplicate value",
            Self::NotFound => "Not found",
            Self::UnknownField => "unknown field",
            Self::Malformed => "malformed",
            Self::UnknownKind => "unknown kind",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One mistake in one object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{object}: {field}: {reason}: {message}")]
pub struct Invalid {
    /// `Distribution dragonfly/default`.
    pub object: String,
    /// `spec.storage.quota`.
    pub field: String,
    /// What kind of mistake.
    pub reason: Reason,
    /// The value and what it must be.
    pub message: String,
}

/// Longest text of a value in a message; the rest is cut.
const MAX_SHOWN: usize = 80;

/// `"value"`, cut to a length that a condition's message can hold, without the password of a URL.
pub fn quoted(text: &str) -> String {
    let text = match text
        .split_once("://")
        .and_then(|(scheme, rest)| Some((scheme, rest.rsplit_once('@')?)))
    {
        Some((scheme, (_, host))) => format!("{scheme}://***@{host}"),
        None => text.to_owned(),
    };
    let mut shown: String = text.chars().take(MAX_SHOWN).collect();
    if shown.len() < text.len() {
        shown.push_str("...");
    }
    format!("{shown:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_cut_and_passwords_are_not_shown() {
        assert_eq!(quoted("a\nb"), "\"a\\nb\"");
        assert_eq!(quoted("http://u:p@w@h:1/"), "\"http://***@h:1/\"");
        assert_eq!(
            quoted(&"é".repeat(100)),
            format!("\"{}...\"", "é".repeat(80))
        );
    }
}
