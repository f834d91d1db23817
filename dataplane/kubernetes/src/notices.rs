//! What a person should notice, told seldom enough to be noticed.

use std::collections::HashMap;
use std::time::Duration;

/// The same is told again after this at the earliest.
const QUIET: Duration = Duration::from_secs(60);
/// Told apart; of more only the first are told until these have passed.
const MAX: usize = 32;

/// Something for an Event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// In one word.
    pub reason: &'static str,
    /// What was being done: tells notices of one reason apart, at most 128 characters.
    pub action: String,
    /// What happened and what to do.
    pub note: String,
}

/// Notices that nobody took yet, and when which was last given.
#[derive(Debug, Default)]
pub(crate) struct Notices {
    given: HashMap<(&'static str, String), Duration>,
    waiting: Vec<Notice>,
}

impl Notices {
    pub(crate) fn add(&mut self, now: Duration, notice: Notice) {
        self.given.retain(|_, at| now.saturating_sub(*at) < QUIET);
        let key = (notice.reason, notice.action.clone());
        if self.given.len() < MAX && !self.given.contains_key(&key) {
            self.given.insert(key, now);
            self.waiting.push(notice);
        }
    }

    pub(crate) fn take(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notice(action: &str) -> Notice {
        Notice {
            reason: "OriginDenied",
            action: action.to_owned(),
            note: String::new(),
        }
    }

    #[test]
    fn the_same_is_told_once_a_minute_and_another_at_once() {
        let mut notices = Notices::default();
        for second in 0..60 {
            notices.add(Duration::from_secs(second), notice("a"));
        }
        notices.add(Duration::from_secs(59), notice("b"));
        assert_eq!(notices.take(), [notice("a"), notice("b")]);
        notices.add(Duration::from_secs(60), notice("a"));
        assert_eq!(notices.take(), [notice("a")]);
    }

    #[test]
    fn a_flood_of_different_ones_is_bounded() {
        let mut notices = Notices::default();
        for n in 0..1000 {
            notices.add(Duration::ZERO, notice(&n.to_string()));
        }
        assert_eq!(notices.take().len(), MAX);
    }
}
