//! The scheduler's decisions when all goes well and when things die, on virtual time.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod kit;

use dragonfly_proto::geometry::Geometry;
use dragonfly_proto::rpc::{self, Role, failure::Code, from_node, to_node};
use dragonfly_proto::sign::SigningKey;
use dragonfly_proto::trust::{EpochCert, RunSigner};
use dragonfly_scheduler::core::CoreSettings;
use kit::{World, content, geometry, hello, node, source};
use std::time::Duration;

#[test]
fn all_who_ask_for_one_source_are_answered_by_one_look_and_again_in_its_freshness_window_by_none() {
    let mut w = World::running(false);
    w.seed(100);
    (1..=5).for_each(|n| w.peer(n));
    let ids: Vec<u64> = (1..=3).map(|n| w.resolve(n, 1)).collect();
    let asks = w.asks();
    assert_eq!(asks.len(), 1);
    w.found(node(100), asks[0].1, 1);
    assert_eq!(
        w.resolved(),
        [],
        "answered before the lease-holder is ready"
    );
    assert_eq!(w.leases().len(), 1);
    w.lease_result(node(100), 1, None);
    let got: Vec<u64> = w.resolved().into_iter().map(|r| r.1).collect();
    assert_eq!(got, ids);
    w.pass(20.0);
    let late = w.resolve(4, 1);
    assert_eq!(w.resolved().remove(0).1, late);
    w.pass(20.0);
    w.resolve(5, 1);
    assert_eq!(
        (w.asks().len(), w.leases().len()),
        (1, 0),
        "stale: looked at again, leased once"
    );
}

#[test]
fn a_seed_that_dies_while_it_is_asked_is_followed_by_the_next_and_nobody_is_left_waiting() {
    let mut w = World::running(false);
    [100, 101, 102].into_iter().for_each(|n| w.seed(n));
    w.peer(1);
    let id = w.resolve(1, 1);
    let mut asked = vec![];
    for _ in 0..3 {
        let (at, _, _) = w.asks().remove(0);
        assert!(!asked.contains(&at));
        asked.push(at);
        w.disconnect(at.0[0]);
    }
    let failed = w.resolved();
    assert_eq!((failed.len(), failed[0].1), (1, id));
    assert_eq!(failed[0].2.as_ref().unwrap().code(), Code::NoSource);
}

#[test]
fn a_seed_whose_session_breaks_and_comes_back_at_once_is_asked_again() {
    // The new session may be there before the old one's end is noticed; then nobody says that it
    // ended.
    for key in [100, 55] {
        let mut w = World::running(false);
        w.seed(100);
        w.peer(1);
        w.resolve(1, 1);
        assert_eq!(w.asks().len(), 1);
        w.connect(hello(100, Role::Seed, "seed-100", key));
        let again = w.asks();
        assert_eq!(again.len(), 1, "its question was lost with the old session");
        w.found(node(100), again[0].1, 1);
        assert_eq!(w.leases().len(), 1);
    }
}

#[test]
fn without_a_seed_policy_decides_whether_who_asks_looks_itself() {
    let mut w = World::running(true);
    w.peer(1);
    w.resolve(1, 1);
    assert_eq!(w.asks()[0].0, node(1));
    let mut w = World::running(false);
    w.peer(1);
    w.resolve(1, 1);
    assert_eq!(w.asks().len(), 0);
    assert!(
        w.resolved()[0]
            .2
            .as_ref()
            .unwrap()
            .message
            .contains("spec.backToSource")
    );
}

#[test]
fn only_who_was_asked_can_answer() {
    let mut w = World::running(false);
    w.seed(100);
    w.peer(1);
    w.peer(66);
    w.resolve(1, 1);
    let ask = w.asks()[0].1;
    w.found(node(66), ask, 9);
    assert!(
        w.leases().is_empty() && w.resolved().is_empty(),
        "a peer answered for a seed"
    );
    w.found(node(100), ask, 1);
    assert_eq!(w.leases().len(), 1);
}

#[test]
fn a_lease_holder_that_dies_is_followed_by_another_seed_under_a_higher_epoch() {
    for ready in [true, false] {
        let mut w = World::running(true);
        w.seed(100);
        w.seed(101);
        (1..=3).for_each(|n| w.peer(n));
        w.resolve(1, 1);
        let (first, ask, _) = w.asks().remove(0);
        w.found(first, ask, 1);
        let before = w.leases().remove(0).1;
        if ready {
            w.lease_result(first, 1, None);
            assert_eq!(w.resolved().len(), 1);
        }
        w.disconnect(first.0[0]);
        w.pass(1.0);
        assert!(w.leases().is_empty(), "it may come back");
        w.pass(2.0);
        let leases = w.leases();
        assert_eq!(leases.len(), 1, "{leases:?}");
        let (second, after) = leases[0];
        assert!(
            second != first && [node(100), node(101)].contains(&second),
            "{second}"
        );
        assert!(after.epoch > before.epoch);
        assert_eq!(after.key, [second.0[0]; 32]);
        assert!(w.resolved().is_empty());
        let waits = w.resolve(2, 1);
        w.lease_result(second, 1, None);
        let answered: Vec<_> = w.resolved().into_iter().map(|r| (r.1, r.2)).collect();
        assert!(answered.iter().any(|a| a.0 == waits) && answered.iter().all(|a| a.1.is_none()));
        assert_eq!(answered.len(), if ready { 1 } else { 2 });
    }
}

#[test]
fn what_all_let_go_of_is_fetched_anew_and_whoever_holds_the_lease_hears_from_where() {
    for peers_may_fetch in [false, true] {
        let mut w = World::running(peers_may_fetch);
        w.seed(100);
        w.peer(1);
        let seed = w.begun(1);
        w.join(100, 1, |j| j.complete = true);
        w.join(1, 1, |j| j.complete = true);
        w.said.clear();
        for n in [100, 1] {
            let content = content(1).0.to_vec();
            w.say(
                n,
                from_node::Message::Leave(rpc::Leave {
                    content,
                    damaged: false,
                }),
            );
        }
        w.resolve(1, 1);
        let leases = w.take(|to, m| match m {
            to_node::Message::Lease(lease) => Some((to, lease)),
            _ => None,
        });
        let (to, last) = leases.last().unwrap();
        assert_eq!(*to, seed, "peers may fetch: {peers_may_fetch}");
        assert_eq!(last.source, Some(source()));
    }
}

#[test]
fn who_waits_for_a_lease_holder_that_dies_with_no_other_is_answered_and_may_ask_for_a_source() {
    let mut w = World::running(false);
    w.seed(100);
    w.peer(1);
    let id = w.resolve(1, 1);
    let ask = w.asks()[0].1;
    w.found(node(100), ask, 1);
    w.disconnect(100);
    w.pass(3.0);
    let resolved = w.resolved();
    assert_eq!(
        (resolved.len(), resolved[0].1),
        (1, id),
        "left waiting for good"
    );
    w.need_source(1, 1);
    let failures = w.failures();
    assert_eq!(failures.len(), 1);
    assert_eq!(
        (failures[0].0, failures[0].1.code()),
        (node(1), Code::NoSource)
    );
}

#[test]
fn a_lease_holder_that_does_not_answer_is_told_again_and_then_given_up() {
    let mut w = World::running(false);
    w.seed(100);
    w.seed(101);
    w.peer(1);
    w.resolve(1, 1);
    let (first, ask, _) = w.asks().remove(0);
    w.found(first, ask, 1);
    let told = w.leases();
    w.pass(12.0);
    assert_eq!(w.leases(), told, "the same lease again");
    w.pass(40.0);
    let others: Vec<_> = w.leases().into_iter().filter(|l| l.0 != first).collect();
    assert!(!others.is_empty(), "nobody else is tried");
    w.lease_result(others[0].0, 1, None);
    assert_eq!(w.resolved().len(), 1);
}

#[test]
fn a_seed_that_cannot_reach_the_origin_is_followed_by_another_and_what_the_origin_refuses_is_final()
{
    let mut w = World::running(false);
    w.seed(100);
    w.seed(101);
    (1..=2).for_each(|n| w.peer(n));
    w.begun(1);
    let holder = [100, 101].into_iter().find(|n| {
        let mut probe = false;
        w.core
            .inspect()
            .tasks
            .iter()
            .for_each(|t| probe |= t.emitter == format!("seed-{n}"));
        probe
    });
    let holder = node(holder.unwrap());
    w.lease_result(holder, 1, Some(Code::OriginUnavailable));
    let next = w.leases().remove(0);
    assert_ne!(next.0, holder);
    assert!(w.failures().is_empty());
    let waits = w.resolve(2, 1);
    w.lease_result(next.0, 1, Some(Code::Origin));
    let failed = w.failures();
    assert!(
        failed
            .iter()
            .any(|f| f.0 == node(1) && f.1.code() == Code::Origin)
    );
    let told = w.resolved();
    assert!(
        told.iter().any(|r| r.1 == waits && r.2.is_some()),
        "who waited hears it too"
    );
    assert!(
        !w.core.keeps_source(&content(1)),
        "credentials of a failed task stay"
    );
    // A new attempt may use every seed, and gives no epoch to a second key.
    w.resolve(1, 1);
    let (at, ask, _) = w.asks().remove(0);
    w.found(at, ask, 1);
    let anew = w.leases().remove(0).1;
    assert!(
        anew.epoch > next.1.epoch,
        "{} is not after {}",
        anew.epoch,
        next.1.epoch
    );
}

fn restarted(before: &World) -> World {
    World::again(before.authority.clone(), false, before.now)
}

#[test]
fn after_a_restart_who_holds_the_lease_keeps_it_whoever_joins_first() {
    let mut old = World::running(false);
    let key = SigningKey::generate().unwrap().0;
    let seed = rpc::NodeHello {
        signing_key: key.public().to_vec(),
        ..hello(101, Role::Seed, "seed-101", 101)
    };
    old.connect(seed.clone());
    old.peer(1);
    old.resolve(1, 1);
    let ask = old.asks()[0].1;
    old.found(node(101), ask, 1);
    let cert = old.leases()[0].1;
    let claim = RunSigner::new(key.into(), content(1), cert.epoch).claim(&cert, &node(101));
    let claim = claim.unwrap().encode().to_vec();
    let mut w = restarted(&old);
    // Another seed holds a part of it, has the lower number and comes back first.
    w.seed(100);
    w.connect(seed);
    w.peer(1);
    // Another that says the same is not believed: neither without the claim nor with its copy.
    for lie in [vec![], vec![1; claim.len()], claim.clone()] {
        w.join(100, 1, |j| (j.emitter, j.held) = (lie, 50));
    }
    w.join(1, 1, |j| (j.wants, j.source) = (true, Some(source())));
    assert!(w.leases().is_empty(), "a second lease while one is held");
    w.pass(1.0);
    w.join(101, 1, |j| {
        (j.emitter, j.held, j.epochs) = (claim, 20, vec![cert.encode().to_vec()])
    });
    w.pass(10.0);
    let leases = w.leases();
    assert!(leases.iter().all(|l| l.0 == node(101)), "{leases:?}");
    assert!(leases.iter().all(|l| l.1.epoch > cert.epoch));
    assert_eq!(w.core.inspect().tasks[0].emitter, "seed-101");
}

#[test]
fn after_a_restart_who_asks_first_waits_for_the_seeds_to_come_back() {
    // A peer that looked itself would be sent the beginning of what a seed reads already.
    let mut w = World::new(true);
    w.peer(1);
    w.peer(2);
    w.resolve(1, 1);
    w.resolve(2, 1);
    assert_eq!(w.asks(), []);
    w.pass(1.0);
    assert_eq!(w.asks(), []);
    w.seed(100);
    let asks = w.asks();
    assert_eq!((asks.len(), asks[0].0), (1, node(100)), "once for both");
    w.found(node(100), asks[0].1, 1);
    w.pass(3.0);
    w.lease_result(node(100), 1, None);
    assert_eq!(w.resolved().len(), 2);
    // Where none comes, who asks looks for itself, and who asked in a session that is gone is not asked.
    let mut w = World::new(true);
    w.peer(1);
    w.peer(2);
    w.resolve(1, 1);
    w.resolve(2, 1);
    w.disconnect(1);
    w.pass(3.0);
    let asks = w.asks();
    assert_eq!((asks.len(), asks[0].0), (1, node(2)));
}

#[test]
fn after_a_restart_a_content_whose_lease_holder_never_returns_gets_another() {
    let mut w = World::new(false);
    w.seed(100);
    w.peer(1);
    w.join(1, 1, |j| (j.wants, j.source) = (true, Some(source())));
    assert!(w.leases().is_empty(), "nodes say first what they hold");
    w.pass(3.0);
    assert_eq!(w.leases().len(), 1);
}

#[test]
fn a_seed_that_restarts_with_another_key_gets_its_lease_anew_for_that_key() {
    let mut w = World::running(false);
    w.seed(100);
    w.peer(1);
    w.begun(1);
    w.connect(hello(100, Role::Seed, "seed-100", 55));
    w.pass(2.0);
    let leases = w.leases();
    assert!(!leases.is_empty(), "the content is left without a lease");
    assert!(
        leases.iter().all(|l| l.1.key == [55; 32]),
        "a lease for a key that is gone"
    );
    assert!(w.failures().is_empty());
}

#[test]
fn two_seeds_of_one_name_are_told_apart_and_either_can_fail() {
    let mut w = World::running(false);
    w.connect(hello(100, Role::Seed, "twin", 1));
    w.connect(hello(101, Role::Seed, "twin", 2));
    w.peer(1);
    w.resolve(1, 1);
    let (first, _, _) = w.asks().remove(0);
    w.disconnect(first.0[0]);
    let (second, ask, _) = w.asks().remove(0);
    assert_ne!(first, second);
    w.found(second, ask, 1);
    assert_eq!(w.leases()[0].0, second);
}

#[test]
fn a_member_that_finds_no_holder_is_believed_more_than_one_that_says_it_has_all() {
    let mut w = World::running(false);
    w.seed(100);
    w.peer(1);
    w.peer(66);
    w.join(66, 1, |j| (j.complete, j.held) = (true, 160));
    w.join(1, 1, |j| (j.wants, j.source) = (true, Some(source())));
    w.pass(1.0);
    assert!(w.leases().is_empty(), "somebody has it all");
    w.need_source(1, 1);
    assert_eq!(
        w.leases().len(),
        1,
        "the liar keeps everybody from the origin"
    );
}

#[test]
fn a_lease_holder_that_put_the_content_away_is_reminded_by_who_misses_blocks() {
    let mut w = World::running(false);
    w.seed(100);
    w.peer(1);
    w.begun(1);
    w.pass(5.0);
    w.need_source(1, 1);
    w.need_source(1, 1);
    let leases = w.leases();
    assert_eq!((leases.len(), leases[0].0), (1, node(100)));
}

#[test]
fn a_clients_credentials_are_in_memory_only_while_somebody_wants_the_content() {
    let mut w = World::running(false);
    w.seed(100);
    w.peer(1);
    w.peer(2);
    w.begun(1);
    assert!(w.core.keeps_source(&content(1)));
    w.join(2, 1, |j| j.wants = true);
    w.join(1, 1, |j| j.complete = true);
    assert!(
        w.core.keeps_source(&content(1)),
        "the second still wants it"
    );
    w.disconnect(2);
    w.pass(3.0);
    assert!(!w.core.keeps_source(&content(1)));
    assert!(
        !w.core.inspect().tasks[0].url.contains("secret"),
        "people are shown credentials"
    );
}

#[test]
fn nodes_that_left_leave_nothing_behind() {
    let mut w = World::running(true);
    for round in 0..50_u8 {
        for n in 1..=20 {
            w.peer(n);
            w.resolve(n, round);
            w.join(n, round, |j| {
                (j.wants, j.complete) = (n % 2 == 0, n % 3 == 0)
            });
            w.need_source(n, round);
        }
        let asks = w.asks();
        for (at, ask, _) in asks {
            w.found(at, ask, round);
        }
        (1..=20).for_each(|n| w.disconnect(n));
        w.pass(3.0);
        w.said.clear();
    }
    assert!(w.core.inspect().nodes.is_empty());
    assert!(
        w.core
            .inspect()
            .tasks
            .iter()
            .all(|t| t.members + t.complete == 0)
    );
    w.pass(700.0);
    assert!(w.core.inspect().tasks.is_empty());
}

#[test]
fn messages_of_nodes_without_a_session_change_nothing() {
    let mut w = World::running(true);
    w.join(9, 1, |j| (j.complete, j.held) = (true, 160));
    w.resolve(9, 1);
    w.need_source(9, 1);
    w.lease_result(node(9), 1, None);
    w.found(node(9), 1, 1);
    let report = rpc::Report {
        from_origin: 5,
        home: true,
        ..rpc::Report::default()
    };
    w.say(9, from_node::Message::Report(report));
    assert!(w.said.is_empty() && w.core.inspect().tasks.is_empty());
    assert_eq!(w.core.totals().sums.from_origin, 0);
}

#[test]
fn certificates_of_another_authority_are_not_handed_on() {
    let mut w = World::running(false);
    let (stranger, _) = SigningKey::generate().unwrap();
    let forged = EpochCert::issue(&stranger, content(1), 7, [1; 32]);
    w.peer(1);
    w.peer(2);
    w.join(1, 1, |j| {
        (j.held, j.epochs) = (5, vec![forged.encode().to_vec(), vec![1, 2, 3]])
    });
    w.said.clear();
    w.join(2, 1, |j| j.wants = true);
    let joined = w.take(|_, m| match m {
        to_node::Message::Joined(j) => Some(j),
        _ => None,
    });
    assert!(joined[0].epochs.is_empty());
    assert_eq!(joined[0].geometry, Some(geometry()));
    assert!(w.now > Duration::ZERO);
}

#[test]
fn a_lease_given_without_a_source_is_told_of_it_as_soon_as_a_member_brings_it() {
    let mut w = World::running(false);
    w.seed(100);
    w.peer(1);
    w.join(1, 1, |j| j.wants = true);
    let sources = |w: &mut World| {
        w.take(|to, m| match m {
            to_node::Message::Lease(l) => Some((to, l.source)),
            _ => None,
        })
    };
    assert_eq!(sources(&mut w), vec![(node(100), None)]);
    w.need_source_of(1, 1, Some(source()));
    assert_eq!(
        sources(&mut w),
        vec![(node(100), Some(source()))],
        "at once"
    );
    // What is known is no news: the holder is reminded as seldom as always.
    w.need_source_of(1, 1, Some(source()));
    assert_eq!(sources(&mut w), vec![]);
}

#[test]
fn a_lease_holder_without_a_source_is_told_it_and_members_are_asked_for_theirs() {
    let mut w = World::running(false);
    w.seed(100);
    for n in 1..=9 {
        w.peer(n);
        w.join(n, 1, |j| j.wants = n < 9);
    }
    let (holder, _) = w.leases().remove(0);
    w.lease_result(holder, 1, None);
    let shown = |w: &mut World| {
        w.take(|to, m| match m {
            to_node::Message::ShowSource(ask) => {
                assert_eq!(ask.content, content(1).0.to_vec());
                Some(to)
            }
            _ => None,
        })
    };
    w.need_source(holder.0[0], 1);
    assert!(shown(&mut w).is_empty(), "its lease is on its way");
    w.pass(3.0);
    w.need_source(holder.0[0], 1);
    let asked = shown(&mut w);
    assert_eq!(asked.len(), 4);
    assert!(!asked.contains(&node(9)), "it wants nothing");
    assert!(w.leases().is_empty(), "there is nothing to tell");
    w.need_source(holder.0[0], 1);
    assert!(shown(&mut w).is_empty(), "as seldom as all reminders");
    // One answers.
    w.need_source_of(asked[0].0[0], 1, Some(source()));
    let told = |w: &mut World| {
        w.take(|to, m| match m {
            to_node::Message::Lease(l) => Some((to, l.source)),
            _ => None,
        })
    };
    let lease = (holder, Some(source()));
    assert_eq!(told(&mut w), std::slice::from_ref(&lease));
    // The holder lost it, or does not believe it. However often: it keeps its lease.
    for _ in 0..8 {
        w.pass(3.0);
        w.need_source(holder.0[0], 1);
        assert_eq!(told(&mut w), std::slice::from_ref(&lease));
        assert_eq!(shown(&mut w).len(), 4);
    }
}

#[test]
fn a_seed_whose_disk_was_damaged_is_told_and_taken_back_once() {
    let mut w = World::running(false);
    w.seed(100);
    for n in 1..=3 {
        w.peer(n);
    }
    let seed = w.begun(1);
    for n in 2..=3 {
        w.join(n, 1, |j| j.wants = true);
    }
    let accuse = |w: &mut World, by: u8| {
        let lost = rpc::LostNode {
            content: content(1).0.to_vec(),
            node: seed.0.to_vec(),
            reason: "block 7 failed its check".to_owned(),
            banned: true,
        };
        w.say(by, from_node::Message::LostNode(lost));
        w.take(|to, m| match m {
            to_node::Message::Check(check) => Some((to, check.content)),
            _ => None,
        })
    };
    for once in [true, false] {
        let check = vec![(seed, content(1).0.to_vec())];
        assert_eq!(accuse(&mut w, 1), check);
        assert_eq!(accuse(&mut w, 2), check, "two: it is out");
        assert_eq!(accuse(&mut w, 3), [], "it is no member any more");
        w.leases();
        let leave = rpc::Leave {
            content: content(1).0.to_vec(),
            damaged: true,
        };
        w.say(seed.0[0], from_node::Message::Leave(leave));
        w.pass(3.0);
        w.need_source(3, 1);
        let leases = w.leases();
        assert_eq!(leases.iter().any(|l| l.0 == seed), once, "{leases:?}");
        w.lease_result(seed, 1, None);
    }
}

#[test]
fn a_lease_holder_that_members_cannot_reach_is_followed_by_another_seed() {
    let mut w = World::running(false);
    w.seed(100);
    w.seed(101);
    w.peer(1);
    let first = w.begun(1);
    for _ in 0..8 {
        w.pass(3.0);
        w.need_source(1, 1);
        w.lease_result(first, 1, None);
    }
    let others: Vec<_> = w.leases().into_iter().filter(|l| l.0 != first).collect();
    assert!(
        !others.is_empty(),
        "everybody waits for a seed that nobody reaches"
    );
    assert!(others.iter().all(|l| l.0 == others[0].0), "{others:?}");
}

fn joined(w: &mut World) -> Vec<rpc::Joined> {
    w.take(|_, m| match m {
        to_node::Message::Joined(j) => Some(j),
        _ => None,
    })
}

#[test]
fn a_node_may_take_part_in_many_contents_and_not_in_endlessly_many() {
    let mut w = World::running(false);
    w.peer(1);
    let join = |w: &mut World, n: u32| {
        let mut key = [0; 32];
        key[..4].copy_from_slice(&n.to_le_bytes());
        let m = rpc::Join {
            content: key.to_vec(),
            geometry: Some(geometry()),
            held: 1,
            ..rpc::Join::default()
        };
        w.say(1, from_node::Message::Join(m));
        joined(w).remove(0).failure
    };
    for n in 0..65_536 {
        assert_eq!(join(&mut w, n), None, "{n}");
    }
    let refused = join(&mut w, 65_536).unwrap();
    assert_eq!(refused.code(), Code::Denied, "{}", refused.message);
    assert_eq!(join(&mut w, 7), None, "one that it is in already");
    assert_eq!(w.core.task_count(), 65_536, "the refused one left an entry");
    let leave = rpc::Leave {
        content: vec![0; 32],
        damaged: false,
    };
    w.say(1, from_node::Message::Leave(leave));
    assert_eq!(w.core.task_count(), 65_535, "an entry of nobody's");
    assert_eq!(join(&mut w, 65_536), None, "there is room again");
}

#[test]
fn of_a_node_that_asks_without_end_some_questions_are_turned_away_and_a_new_session_asks_anew() {
    let mut w = World::running(false);
    w.seed(100);
    w.peer(1);
    for _ in 0..4096 {
        w.resolve(1, 1);
    }
    assert_eq!(w.resolved(), []);
    w.resolve(1, 1);
    let refused = w.resolved();
    assert_eq!(refused.len(), 1);
    assert_eq!(refused[0].2.as_ref().unwrap().code(), Code::Denied);
    w.connect(hello(1, Role::Peer, "peer-1", 1));
    let id = w.resolve(1, 1);
    let (at, ask, _) = w.asks().remove(0);
    w.found(at, ask, 1);
    w.lease_result(at, 1, None);
    let answered = w.resolved();
    assert_eq!(answered.len(), 1, "the old session's questions are void");
    assert_eq!((answered[0].1, &answered[0].2), (id, &None));
}

#[test]
fn who_holds_a_part_is_known_after_the_origin_failed_and_not_after_it_changed() {
    for (code, known) in [(Code::OriginUnavailable, true), (Code::Changed, false)] {
        let mut w = World::running(false);
        w.seed(100);
        w.peer(1);
        w.peer(2);
        let holder = w.begun(1);
        w.join(2, 1, |j| j.held = 5);
        w.said.clear();
        w.lease_result(holder, 1, Some(code));
        assert_eq!(w.failures().len(), 1);
        w.peer(3);
        w.join(3, 1, |j| j.wants = true);
        let members = joined(&mut w).remove(0).members;
        let met = members.iter().any(|m| m.node == node(2).0.to_vec());
        assert_eq!(met, known, "{code:?}");
    }
}

#[test]
fn what_was_read_alone_may_be_signed_by_who_may_read_the_origin_and_by_nobody_else() {
    use dragonfly_proto::id::{ContentKey, RequestKey};
    let request = RequestKey([9; 32]);
    let alone = |content: ContentKey, validator: &str| rpc::Import {
        content: content.0.to_vec(),
        geometry: Some(geometry()),
        source: Some(rpc::Source::default()),
        request_key: request.0.to_vec(),
        origin: Some(rpc::OriginInfo {
            validator: validator.to_owned(),
            ..rpc::OriginInfo::default()
        }),
        alone: true,
        ..rpc::Import::default()
    };
    let real = ContentKey::from_validator("", &request, "v1");
    for (peers_may_fetch, content, granted) in
        [(true, real, 1), (false, real, 0), (true, content(4), 0)]
    {
        let mut w = World::running(peers_may_fetch);
        w.peer(1);
        w.say(1, from_node::Message::Import(alone(content, "v1")));
        assert_eq!(w.leases().len(), granted, "{peers_may_fetch} {content}");
        assert!(!w.core.keeps_source(&content));
    }
}

#[test]
fn a_policy_is_one_text_however_many_nodes_are_sent_it() {
    let mut w = World::running(false);
    (1..=50).for_each(|n| w.peer(n));
    w.said.clear();
    let policy = rpc::PolicyUpdate {
        uid: "u".to_owned(),
        revision: 2,
        hash: "h".to_owned(),
        json: vec![b' '; 1000].into(),
    };
    let text = policy.json.as_ptr();
    w.core.set_policy(policy, CoreSettings::default());
    // Those that come later too.
    w.pass(1.0);
    w.peer(51);
    let sent = w.take(|_, message| match message {
        to_node::Message::Policy(policy) => Some(policy.json.as_ptr()),
        _ => None,
    });
    assert_eq!(sent.len(), 51);
    assert!(sent.iter().all(|at| *at == text));
}

#[test]
fn who_has_a_content_cut_in_another_way_is_no_member_and_is_told_to_begin_anew() {
    let mut w = World::running(false);
    w.seed(100);
    [1, 2].into_iter().for_each(|n| w.peer(n));
    w.begun(1);
    let other = Geometry::new(262_144, None).unwrap();
    w.join(2, 1, |m| {
        m.geometry = Some((&other).into());
        m.held = 4;
    });
    let refused = joined(&mut w).remove(0).failure.unwrap();
    assert_eq!(refused.code(), Code::Changed);
    let longer = other.with_total(10 << 20).unwrap();
    w.join(2, 1, |m| m.geometry = Some((&longer).into()));
    assert!(joined(&mut w).remove(0).failure.is_some());
    w.join(2, 1, |_| {});
    assert_eq!(joined(&mut w).remove(0).failure, None);
}

#[test]
fn a_digest_is_read_from_where_the_first_says_and_is_for_others_when_a_member_has_compared_it() {
    let mut w = World::running(false);
    w.seed(100);
    (1..=4).for_each(|n| w.peer(n));
    let demanded = rpc::Source {
        digest: format!("sha256:{}", "ab".repeat(32)),
        ..source()
    };
    let content = demanded.shared().unwrap();
    let ask = |w: &mut World, n: u8, key: u8, only_look: bool| {
        let ask = rpc::Resolve {
            id: n.into(),
            request_key: vec![key; 32],
            source: Some(demanded.clone()),
            only_look,
            ..rpc::Resolve::default()
        };
        w.say(n, from_node::Message::Resolve(ask));
    };
    let failed = |w: &mut World| w.resolved().remove(0).2.map(|f| f.code());
    ask(&mut w, 1, 1, false);
    let (seed, asked, _) = w.asks().remove(0);
    let result = rpc::ResolveResult {
        id: asked,
        content: content.0.to_vec(),
        geometry: Some(geometry()),
        ..rpc::ResolveResult::default()
    };
    w.say(seed.0[0], from_node::Message::ResolveResult(result));
    assert_eq!(w.leases().len(), 1);
    let began = rpc::LeaseResult {
        content: content.0.to_vec(),
        ..rpc::LeaseResult::default()
    };
    w.say(seed.0[0], from_node::Message::LeaseResult(began));
    assert_eq!(failed(&mut w), None);
    // Another place: apart, and how long it is is asked there.
    ask(&mut w, 2, 2, false);
    assert_eq!(failed(&mut w), Some(Code::Digest));
    ask(&mut w, 2, 2, true);
    assert_eq!(w.asks().len(), 1);
    // The same place: together.
    ask(&mut w, 3, 1, false);
    assert_eq!(failed(&mut w), None);
    let join = |key: u8, held, compared| rpc::Join {
        content: content.0.to_vec(),
        geometry: Some(geometry()),
        held,
        complete: compared,
        request_key: vec![key; 32],
        compared,
        ..rpc::Join::default()
    };
    let refused = |w: &mut World, n, m| {
        w.say(n, from_node::Message::Join(m));
        joined(w).remove(0).failure.map(|f| f.code())
    };
    for m in [join(2, 0, false), join(2, 9, false), join(2, 160, true)] {
        assert_eq!(refused(&mut w, 2, m), Some(Code::Digest));
    }
    // Who is no member has compared nothing.
    let compared = rpc::Compared {
        content: content.0.to_vec(),
    };
    w.say(2, from_node::Message::Compared(compared.clone()));
    ask(&mut w, 4, 2, false);
    assert_eq!(failed(&mut w), Some(Code::Digest));
    w.say(1, from_node::Message::Compared(compared));
    ask(&mut w, 4, 2, false);
    assert_eq!(failed(&mut w), None);
    assert_eq!(refused(&mut w, 2, join(2, 9, false)), Some(Code::Digest));
    assert_eq!(refused(&mut w, 2, join(2, 160, true)), None);
    // Until all are gone that have.
    for n in [1, 2] {
        let leave = rpc::Leave {
            content: content.0.to_vec(),
            damaged: false,
        };
        w.say(n, from_node::Message::Leave(leave));
    }
    ask(&mut w, 2, 2, false);
    assert_eq!(failed(&mut w), Some(Code::Digest));
    // What nobody compared and nobody wants gives way to who has compared the whole.
    w.disconnect(3);
    w.disconnect(4);
    w.pass(60.0);
    assert_eq!(refused(&mut w, 2, join(2, 160, true)), None);
    assert_eq!(refused(&mut w, 1, join(1, 9, false)), Some(Code::Digest));
}
