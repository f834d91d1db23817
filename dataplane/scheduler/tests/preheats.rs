//! Content that nodes get ahead: who is told, who is left out, and what becomes of a job when nodes and
//! schedulers die. On virtual time.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod kit;

use std::time::Duration;

use dragonfly_proto::rpc::warmed::Outcome;
use dragonfly_proto::rpc::{self, Role, failure::Code, from_node, tend, to_node};
use dragonfly_scheduler::preheats::{Amount, Plan, Progress, State};
use kit::{World, hello, node, source};

const LEN: u64 = 10 << 20;

fn plan(role: Role) -> Plan {
    Plan {
        job: "uid/1".to_owned(),
        key: "uid".to_owned(),
        sources: vec![source()],
        role,
        names: None,
        zones: vec![],
        amount: Amount::All,
        parallelism: 100,
        retries: 2,
        backoff: Duration::from_secs(10),
        ends_in: None,
        continuous: false,
        expect: 0,
    }
}

struct Job {
    w: World,
}

impl Job {
    fn new(peers: u8, plan: Plan) -> Self {
        let mut w = World::new(false);
        w.seed(100);
        (1..=peers).for_each(|n| w.peer(n));
        w.pass(8.0);
        let mut job = Self { w };
        job.begin(plan);
        job
    }

    fn begin(&mut self, plan: Plan) {
        self.w.core.preheat(self.w.now, plan).unwrap();
        self.w.pass(1.0);
    }

    fn told(&mut self) -> Vec<u8> {
        let mut all = self.w.take(|to, m| match m {
            to_node::Message::Warm(_) => Some(to.0[0]),
            _ => None,
        });
        all.sort_unstable();
        all
    }

    fn stopped(&mut self) -> usize {
        self.w
            .take(|_, m| matches!(m, to_node::Message::StopWarming(_)).then_some(()))
            .len()
    }

    fn says(&mut self, n: u8, outcome: Outcome, held: u64) {
        let failure = (outcome == Outcome::Failed)
            .then(|| rpc::Failure::new(Code::Origin, "the origin answered 500"));
        let m = rpc::Warmed {
            job: "uid/1".to_owned(),
            outcome: outcome.into(),
            failure,
            contents: vec![rpc::WarmedContent {
                held,
                total: Some(LEN),
                complete: held == LEN,
            }],
        };
        self.w.say(n, from_node::Message::Warmed(m));
        self.w.pass(1.0);
    }

    fn progress(&self) -> Progress {
        self.w.core.preheated("uid/1").unwrap()
    }
}

#[test]
fn every_node_of_the_role_is_told_once_and_bytes_add_up() {
    let mut job = Job::new(3, plan(Role::Peer));
    assert_eq!(job.told(), [1, 2, 3]);
    job.says(1, Outcome::Unspecified, 4 << 20);
    let p = job.progress();
    assert_eq!((p.desired, p.active, p.contents[0].held), (3, 3, 4 << 20));
    for n in 1..=3 {
        job.says(n, Outcome::Done, LEN);
    }
    let p = job.progress();
    assert_eq!((p.state, p.succeeded), (State::Succeeded, 3));
    assert_eq!((p.contents[0].held, p.contents[0].nodes), (3 * LEN, 3));
    assert_eq!(p.contents[0].length, Some(LEN));
    assert_eq!(job.told(), [0u8; 0], "nobody is told twice");
    let mut seeds = Job::new(3, plan(Role::Seed));
    assert_eq!(seeds.told(), [100]);
}

#[test]
fn nodes_without_room_are_counted_and_do_not_fail_the_rest() {
    let mut job = Job::new(3, plan(Role::Peer));
    job.says(1, Outcome::NoRoom, 0);
    job.says(2, Outcome::NoRoom, 0);
    job.says(3, Outcome::Done, LEN);
    let p = job.progress();
    assert_eq!((p.state, p.succeeded, p.no_room), (State::Succeeded, 1, 2));
    let mut none = Job::new(1, plan(Role::Peer));
    none.says(1, Outcome::NoRoom, 0);
    assert_eq!(none.progress().state, State::Failed);
}

#[test]
fn a_node_that_fails_is_asked_again_later_each_time_and_then_named() {
    let mut job = Job::new(1, plan(Role::Peer));
    for wait in [10.0, 20.0] {
        assert_eq!(job.told(), [1]);
        job.says(1, Outcome::Failed, 0);
        job.w.pass(wait - 2.0);
        assert_eq!(job.told(), [0u8; 0], "it waits {wait} s");
        job.w.pass(2.0);
    }
    assert_eq!(job.told(), [1]);
    job.says(1, Outcome::Failed, 0);
    let p = job.progress();
    assert_eq!((p.state, p.failed), (State::Failed, 1));
    let failure = &p.failures[0];
    assert_eq!((failure.node.as_str(), failure.attempts), ("peer-1", 3));
    assert!(failure.message.contains("500"));
}

#[test]
fn no_more_nodes_are_at_it_than_the_plan_says() {
    let mut job = Job::new(
        5,
        Plan {
            parallelism: 2,
            ..plan(Role::Peer)
        },
    );
    let mut done = vec![];
    for _ in 0..10 {
        let told = job.told();
        assert!(told.len() <= 2, "{told:?}");
        for n in told {
            assert!(!done.contains(&n));
            done.push(n);
            job.says(n, Outcome::Done, LEN);
        }
    }
    assert_eq!(done.len(), 5);
    assert_eq!(job.progress().state, State::Succeeded);
}

#[test]
fn count_percent_names_and_zones_choose_always_the_same_nodes() {
    let chosen = |change: &dyn Fn(&mut Plan)| {
        let mut p = plan(Role::Peer);
        change(&mut p);
        let mut job = Job::new(10, p);
        job.told()
    };
    let three = chosen(&|p| p.amount = Amount::Count(3));
    assert_eq!(three.len(), 3);
    assert_eq!(three, chosen(&|p| p.amount = Amount::Percent(21)));
    let one = chosen(&|p| p.amount = Amount::Count(1));
    assert!(three.contains(&one[0]), "fewer are some of more");
    let names = ["peer-2", "peer-7", "elsewhere"].map(str::to_owned);
    assert_eq!(chosen(&|p| p.names = Some(names.clone().into())), [2, 7]);
    assert_eq!(chosen(&|p| p.zones = vec!["far".to_owned()]), [0u8; 0]);
    assert_eq!(chosen(&|p| p.amount = Amount::Count(99)).len(), 10);
}

#[test]
fn a_job_whose_time_is_up_stops_the_nodes_that_are_at_it() {
    let mut job = Job::new(
        2,
        Plan {
            ends_in: Some(Duration::from_secs(60)),
            ..plan(Role::Peer)
        },
    );
    job.says(1, Outcome::Done, LEN);
    job.w.pass(60.0);
    let p = job.progress();
    assert_eq!((p.state, p.succeeded), (State::TimeUp, 1));
    assert_eq!(job.stopped(), 1);
}

#[test]
fn a_job_that_is_given_up_is_stopped_at_nodes_and_one_that_another_takes_over_is_not() {
    for (stop, stopped) in [(true, 2), (false, 0)] {
        let mut job = Job::new(2, plan(Role::Peer));
        job.w.core.end_preheat("uid/1", stop);
        job.w.pass(1.0);
        assert_eq!(job.stopped(), stopped);
        assert_eq!(job.w.core.preheated("uid/1"), None);
    }
}

#[test]
fn a_node_that_comes_back_goes_on_and_one_that_does_not_gives_its_place_away() {
    let mut job = Job::new(
        3,
        Plan {
            amount: Amount::Count(1),
            ..plan(Role::Peer)
        },
    );
    let first = job.told()[0];
    job.w.disconnect(first);
    job.w.pass(20.0);
    let name = format!("peer-{first}");
    job.w.connect(hello(first, Role::Peer, &name, first));
    job.w.pass(1.0);
    assert_eq!(job.told(), [first], "told again, for it may have forgotten");
    job.w.disconnect(first);
    job.w.pass(70.0);
    let second = job.told();
    assert_eq!(second.len(), 1);
    assert_ne!(second[0], first);
    job.says(second[0], Outcome::Done, LEN);
    assert_eq!(job.progress().state, State::Succeeded);
}

#[test]
fn a_node_that_dies_each_time_it_is_told_has_failed_in_the_end() {
    let mut job = Job::new(2, plan(Role::Peer));
    job.told();
    job.says(1, Outcome::Done, LEN);
    // A scheduler's restarts and its own are no fault of it, as long as they are few.
    let mut deaths = 0;
    while job.progress().state == State::Running {
        job.w.disconnect(2);
        job.w.pass(2.0);
        job.w.connect(hello(2, Role::Peer, "peer-2", 2));
        deaths += 1;
        assert!(deaths < 20, "for ever");
        // Longer than it waits after a failure.
        job.w.pass(50.0);
    }
    assert!(deaths > 3, "{deaths}");
    let p = job.progress();
    assert_eq!((p.state, p.succeeded, p.failed), (State::Failed, 1, 1));
    assert!(p.failures[0].message.contains("session ended"), "{p:?}");
}

#[test]
fn where_nobody_can_take_its_place_a_node_that_is_gone_has_failed() {
    let mut job = Job::new(2, plan(Role::Peer));
    job.says(1, Outcome::Done, LEN);
    job.w.disconnect(2);
    job.w.pass(150.0);
    let p = job.progress();
    assert_eq!((p.state, p.succeeded, p.failed), (State::Failed, 1, 1));
    assert!(p.failures[0].message.contains("went away"));
}

#[test]
fn who_takes_over_waits_for_as_many_nodes_as_there_were() {
    let mut job = Job::new(
        1,
        Plan {
            expect: 3,
            ..plan(Role::Peer)
        },
    );
    job.w.pass(10.0);
    assert_eq!(job.told(), [0u8; 0]);
    job.w.peer(2);
    job.w.peer(3);
    job.w.pass(2.0);
    assert_eq!(job.told(), [1, 2, 3]);
    // But not for ever.
    let mut job = Job::new(
        1,
        Plan {
            expect: 3,
            ..plan(Role::Peer)
        },
    );
    job.w.pass(31.0);
    assert_eq!(job.told(), [1]);
}

#[test]
fn nodes_that_join_get_it_too_where_the_plan_is_continuous() {
    let mut job = Job::new(
        1,
        Plan {
            continuous: true,
            ..plan(Role::Peer)
        },
    );
    job.says(1, Outcome::Done, LEN);
    assert_eq!(job.progress().state, State::Running);
    job.told();
    job.w.peer(2);
    job.w.pass(5.0);
    assert_eq!(job.told(), [2]);
    job.says(2, Outcome::Done, LEN);
    assert_eq!((job.progress().desired, job.progress().succeeded), (2, 2));
    // Who left is no longer counted.
    job.w.disconnect(1);
    job.w.pass(70.0);
    let p = job.progress();
    assert_eq!((p.desired, p.succeeded, p.contents[0].held), (1, 1, LEN));
}

#[test]
fn a_silent_node_is_asked_again() {
    let mut job = Job::new(1, plan(Role::Peer));
    assert_eq!(job.told(), [1]);
    job.w.pass(140.0);
    assert_eq!(job.told(), [1]);
    assert_eq!(job.progress().active, 1);
}

#[test]
fn nothing_that_a_node_says_of_jobs_it_has_not_counts() {
    let mut job = Job::new(
        2,
        Plan {
            amount: Amount::Count(1),
            ..plan(Role::Peer)
        },
    );
    let told = job.told()[0];
    let other = if told == 1 { 2 } else { 1 };
    job.says(other, Outcome::Done, LEN);
    assert_eq!(job.progress().succeeded, 0);
    job.says(told, Outcome::Done, LEN);
    job.says(told, Outcome::Done, LEN);
    assert_eq!(job.progress().succeeded, 1);
}

#[test]
fn all_nodes_tend_to_contents_and_their_answers_are_summed() {
    let mut w = World::running(false);
    w.seed(100);
    (1..=2).for_each(|n| w.peer(n));
    let wish = rpc::Tend {
        action: tend::Action::Purge.into(),
        url_prefix: "http://o/".to_owned(),
        ..rpc::Tend::default()
    };
    let id = w.core.tend(wish).unwrap();
    w.pass(0.5);
    let asked = w.take(|to, m| matches!(m, to_node::Message::Tend(_)).then_some(to));
    assert_eq!(asked.len(), 3);
    for n in [100, 1, 1] {
        let done = rpc::Tended {
            id,
            contents: 2,
            bytes: 10,
            in_use: 1,
            failure: (n == 100).then(|| rpc::Failure::new(Code::Internal, "broken")),
        };
        w.say(n, from_node::Message::Tended(done));
    }
    assert_eq!(w.core.tended(id, true), None, "one has not answered");
    let done = w.core.tended(id, false).unwrap();
    assert_eq!((done.asked, done.answered), (3, 2), "each counts once");
    assert_eq!((done.contents, done.bytes, done.in_use), (4, 20, 2));
    assert_eq!(
        done.failures,
        [("seed-100".to_owned(), "broken".to_owned())]
    );
    let _ = node(1);
}
