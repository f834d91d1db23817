//! Names of the files of a store, and what a name says at start.

use dragonfly_proto::id::ContentKey;

/// The log of resolved requests.
pub(crate) const REQUESTS: &str = "requests";
const ASIDE: &str = "aside-";

/// The three files of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Data,
    Index,
    Meta,
}

impl Part {
    pub(crate) const ALL: [Self; 3] = [Self::Index, Self::Data, Self::Meta];

    pub(crate) fn name(self, key: &ContentKey) -> String {
        format!("{key}.{}", self.suffix())
    }

    pub(crate) const fn suffix(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::Index => "index",
            Self::Meta => "meta",
        }
    }
}

/// What a file is for, by its name.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Name {
    Task(ContentKey, Part),
    /// Temporary or half-deleted: remove.
    Leftover,
    /// Set aside; the name it had.
    Aside(String),
    Requests,
    Unknown,
}

impl Name {
    pub(crate) fn parse(name: &str) -> Self {
        if name == REQUESTS {
            return Self::Requests;
        }
        if name.starts_with("tmp-") || name.starts_with("trash-") {
            return Self::Leftover;
        }
        if let Some(original) = name.strip_prefix(ASIDE) {
            return Self::Aside(original.to_owned());
        }
        let part = |(key, suffix): (&str, &str)| {
            let part = Part::ALL.into_iter().find(|p| p.suffix() == suffix)?;
            Some(Self::Task(key.parse().ok()?, part))
        };
        name.split_once('.').and_then(part).unwrap_or(Self::Unknown)
    }
}

pub(crate) fn temporary(number: u64) -> String {
    format!("tmp-{number}")
}

pub(crate) fn trash(number: u64, part: Part) -> String {
    format!("trash-{number}.{}", part.suffix())
}

pub(crate) fn aside(name: &str) -> String {
    format!("{ASIDE}{name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_what_files_are_for() {
        let key = ContentKey([7; 32]);
        for part in Part::ALL {
            assert_eq!(Name::parse(&part.name(&key)), Name::Task(key, part));
            assert_eq!(
                Name::parse(&aside(&part.name(&key))),
                Name::Aside(part.name(&key))
            );
            assert_eq!(Name::parse(&trash(3, part)), Name::Leftover);
        }
        assert_eq!(Name::parse(&temporary(1)), Name::Leftover);
        assert_eq!(Name::parse(REQUESTS), Name::Requests);
        for other in ["", "lost+found", "zz.data", "0707.index", "a.b.c"] {
            assert_eq!(Name::parse(other), Name::Unknown, "{other}");
        }
    }
}
