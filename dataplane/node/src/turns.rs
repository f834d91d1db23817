//! Whose turn it is on a connection: deficit round robin by bytes over its streams.
//!
//! A stream's share is its weight's among those that have something to send; one that has paid less
//! than it sent waits for its due, also when it had nothing to send for a while in between, so that a
//! stream whose requests come one by one gets no more than one with many waiting. All shares are
//! above zero: nobody starves. Who is alone owes nothing.
//!
//! All streams of a connection have the same node at the other end, so a node that lies about its
//! priorities harms itself.

use std::collections::{HashMap, VecDeque};

/// The lowest priority. Lower numbers are served first.
pub(crate) const LOWEST: u8 = 7;
/// Bytes a stream of the lowest priority is given a round; each step up doubles them.
const QUANTUM: i64 = 8 << 10;
/// Streams looked at for a first copy before others.
const LOOK: usize = 16;

/// What a priority weighs: a step is a factor of two.
pub(crate) fn weight(priority: u8) -> u32 {
    1 << (LOWEST - priority.min(LOWEST))
}

#[derive(Debug, Default)]
struct Account {
    priority: u8,
    /// Bytes it may send; negative: sent before its turn.
    balance: i64,
}

/// The streams of one connection that have something to send.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    ready: VecDeque<u32>,
    accounts: HashMap<u32, Account>,
}

impl Turns {
    /// The stream has something to send.
    pub(crate) fn ready(&mut self, stream: u32) {
        if !self.ready.contains(&stream) {
            self.ready.push_back(stream);
        }
    }

    pub(crate) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    pub(crate) fn set_priority(&mut self, stream: u32, priority: u8) {
        self.accounts.entry(stream).or_default().priority = priority;
    }

    /// The stream is closed.
    pub(crate) fn forget(&mut self, stream: u32) {
        self.ready.retain(|s| *s != stream);
        self.accounts.remove(&stream);
    }

    /// The stream whose turn it is; of those in `among`, when that is not empty.
    pub(crate) fn take(&mut self, among: &[u32]) -> Option<u32> {
        if self.ready.len() == 1
            && let Some(account) = self.ready.front().and_then(|s| self.accounts.get_mut(s))
        {
            account.balance = account.balance.max(0);
            return self.ready.pop_front();
        }
        let any = among.is_empty() || !self.ready.iter().any(|s| among.contains(s));
        let contend = |s: &u32| any || among.contains(s);
        let alone = self.ready.iter().filter(|s| contend(s)).count() == 1;
        loop {
            let at = self.ready.iter().position(contend)?;
            let stream = self.ready.remove(at)?;
            let account = self.accounts.entry(stream).or_default();
            if account.balance <= 0 {
                account.balance += QUANTUM * i64::from(weight(account.priority));
            }
            if account.balance > 0 || alone {
                return Some(stream);
            }
            self.ready.push_back(stream);
        }
    }

    /// Some streams that have something to send, when there is more than one.
    pub(crate) fn several(&self) -> Vec<u32> {
        if self.ready.len() < 2 {
            return Vec::new();
        }
        self.ready.iter().take(LOOK).copied().collect()
    }

    /// The stream taken last sends this much, and may have more.
    pub(crate) fn sends(&mut self, stream: u32, bytes: u32) {
        let account = self.accounts.entry(stream).or_default();
        account.balance -= i64::from(bytes);
        if self.ready.contains(&stream) {
            return;
        }
        // Its turn lasts for as long as it is paid for.
        if account.balance > 0 {
            self.ready.push_front(stream);
        } else {
            self.ready.push_back(stream);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that each stream sends of 1000 blocks in all, all having always more.
    fn shares(of: &[(u8, u32)]) -> Vec<u64> {
        let mut turns = Turns::default();
        let mut sent = vec![0; of.len()];
        for (stream, (priority, _)) in of.iter().enumerate() {
            turns.set_priority(stream as u32, *priority);
            turns.ready(stream as u32);
        }
        for _ in 0..1000 {
            let stream = turns.take(&[]).unwrap();
            let block = of[stream as usize].1;
            sent[stream as usize] += u64::from(block);
            turns.sends(stream, block);
        }
        sent
    }

    #[test]
    fn tasks_of_one_priority_share_by_bytes_whatever_their_blocks() {
        let sent = shares(&[(3, 64 << 10), (3, 1 << 20), (3, 256 << 10)]);
        let (least, most) = (sent.iter().min().unwrap(), sent.iter().max().unwrap());
        assert!(most - least <= 3 << 20, "{sent:?}");
    }

    #[test]
    fn a_step_of_priority_is_a_factor_of_two_and_the_lowest_is_not_starved() {
        let sent = shares(&[(0, 64 << 10), (1, 64 << 10), (7, 64 << 10)]);
        let ratio = sent[0] as f64 / sent[1] as f64;
        assert!((1.9..2.1).contains(&ratio), "{sent:?}");
        assert!(sent[2] > 0, "{sent:?}");
        assert!(sent[2] * 64 < sent[0], "{sent:?}");
    }

    #[test]
    fn a_stream_whose_requests_come_one_by_one_gets_no_more_than_its_share() {
        let mut turns = Turns::default();
        turns.set_priority(1, 0);
        turns.set_priority(2, 7);
        let (mut high, mut low) = (0_u32, 0_u32);
        turns.ready(1);
        for _ in 0..2000 {
            // The second one is asked for a block, gets its turn or not, and is asked again.
            turns.ready(2);
            match turns.take(&[]) {
                Some(1) => {
                    high += 1;
                    turns.sends(1, 256 << 10);
                }
                Some(stream) => {
                    low += 1;
                    turns.sends(stream, 256 << 10);
                    turns.ready.retain(|s| *s != stream);
                }
                None => unreachable!(),
            }
        }
        assert!(low > 0 && low * 50 < high, "{high} {low}");
    }

    #[test]
    fn who_is_alone_sends_at_once_and_owes_no_more_than_its_last_block() {
        let mut turns = Turns::default();
        turns.set_priority(1, 7);
        for _ in 0..100 {
            turns.ready(1);
            assert_eq!(turns.take(&[]), Some(1));
            turns.sends(1, 8 << 10);
        }
        turns.ready(2);
        turns.ready(1);
        let next: Vec<u32> = (0..200)
            .map(|_| {
                let stream = turns.take(&[]).unwrap();
                turns.sends(stream, 8 << 10);
                stream
            })
            .collect();
        assert!(next.contains(&1), "{next:?}");
    }

    #[test]
    fn some_can_be_preferred_and_take_turns_among_themselves() {
        let mut turns = Turns::default();
        for (stream, priority) in [(1, 0), (2, 3), (3, 3)] {
            turns.set_priority(stream, priority);
            turns.ready(stream);
        }
        let taken: Vec<u32> = (0..8)
            .map(|_| {
                let stream = turns.take(&[2, 3]).unwrap();
                turns.sends(stream, 128 << 10);
                stream
            })
            .collect();
        assert_eq!(taken, [2, 3, 2, 3, 2, 3, 2, 3]);
        assert_eq!(turns.take(&[9]), Some(1), "none of those is ready");
    }

    #[test]
    fn a_closed_stream_is_forgotten() {
        let mut turns = Turns::default();
        turns.ready(1);
        turns.ready(2);
        turns.forget(1);
        assert_eq!(turns.take(&[]), Some(2));
        assert_eq!(turns.take(&[]), None);
    }
}
