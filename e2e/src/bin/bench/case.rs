//! What is measured: links, joins and faults, and the time that no system could beat.

use std::time::Duration;

use crate::net::{GOODPUT, Link};

/// What goes wrong half way.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Fault {
    /// The last peer dies for good.
    Peer,
    /// Our scheduler dies and stays away to the end of the run.
    Scheduler,
}

/// One regime.
#[derive(Clone)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) size: u64,
    pub(crate) rate: u64,
    /// The seed's first, then the peers'.
    pub(crate) links: Vec<Link>,
    /// Time between two joins.
    pub(crate) apart: Duration,
    pub(crate) fault: Option<Fault>,
    /// Clients read in order to a pipe, and the time to the first 4 MiB counts.
    pub(crate) stream: bool,
}

impl Case {
    pub(crate) fn peers(&self) -> usize {
        self.links.len() - 1
    }

    /// Seconds that the slowest node needs at least, from its own start: every node has to receive
    /// the content, the seed to send it once, and all uplinks together to send it N times.
    pub(crate) fn limit(&self) -> f64 {
        let seconds =
            |copies: f64, mbit: f64| copies * self.size as f64 * 8.0 / (mbit * 1e6 * GOODPUT);
        let of = |l: Option<u64>| l.map_or(f64::INFINITY, |r| r as f64);
        let up: f64 = self.links.iter().map(|l| of(l.up)).sum();
        let down = self.links[1..].iter().map(|l| of(l.down));
        let down = down.fold(f64::INFINITY, f64::min);
        seconds(1.0, down)
            .max(seconds(1.0, of(self.links[0].up)))
            .max(seconds(self.peers() as f64, up))
    }

    /// Whether a node's uplink is quicker than another's, and none is quicker.
    pub(crate) fn is_quick(&self, node: usize) -> bool {
        let ups = || self.links[1..].iter().map(|l| l.up);
        let (least, most) = (ups().min().flatten(), ups().max().flatten());
        least != most && self.links[node].up == most
    }

    /// The case that every system runs in `make bench`.
    pub(crate) fn equal(peers: usize, rate: u64, size: u64) -> Self {
        Self {
            name: "equal",
            about: "every link the same, all start at once",
            size,
            rate,
            links: vec![Link::equal(rate); peers + 1],
            apart: Duration::ZERO,
            fault: None,
            stream: false,
        }
    }

    /// The others, of `make bench-full`.
    pub(crate) fn regimes(peers: usize, rate: u64, size: u64) -> Vec<Self> {
        let equal = Self::equal(peers, rate, size);
        let mut mixed = equal.links.clone();
        for (n, link) in mixed.iter_mut().enumerate().skip(1) {
            link.up = Some(rate >> ((n - 1) * 3 / peers));
        }
        let mut fast = equal.links.clone();
        fast[0] = Link::equal(rate * 6);
        vec![
            Self {
                name: "stream",
                about: "clients read in order while it comes in",
                stream: true,
                ..equal.clone()
            },
            Self {
                name: "peer-dies",
                about: "a peer is killed half way; the others count",
                fault: Some(Fault::Peer),
                ..equal.clone()
            },
            Self {
                name: "scheduler-dies",
                about: "the scheduler is killed half way",
                fault: Some(Fault::Scheduler),
                ..equal.clone()
            },
            Self {
                name: "joins",
                about: "peers come one second apart; each against its own start",
                apart: Duration::from_secs(1),
                ..equal.clone()
            },
            Self {
                name: "fast-seed",
                about: "the seed's link is six times as fast",
                links: fast,
                ..equal.clone()
            },
            Self {
                name: "mixed-uplinks",
                about: "a third of the uplinks whole, a third half, a third a quarter",
                links: mixed,
                ..equal
            },
        ]
    }
}
