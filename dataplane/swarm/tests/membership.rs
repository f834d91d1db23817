//! The scheduler's side: the graph, gateways, leases and bans.

#![allow(clippy::unwrap_used, reason = "helpers of tests may fail loudly")]

use core::time::Duration;
use dragonfly_swarm::engine::Stripe;
use dragonfly_swarm::membership::{
    Command, Lease, LeastConnected, MemberInfo, News, Refill, Refused, Settings, Swarm, ZoneId,
};
use std::collections::BTreeSet;

const SEED: MemberInfo = MemberInfo {
    seed: true,
    zone: ZoneId(0),
    held: 0,
    load: 0.0,
};

fn swarm(settings: Settings) -> Swarm<u32> {
    Swarm::new(settings, Box::new(LeastConnected), 1)
}

/// Seeds 0.. and peers 100.., the leases given.
fn with(settings: Settings, seeds: u32, peers: u32) -> Swarm<u32> {
    let mut swarm = swarm(settings);
    for seed in 0..seeds {
        swarm.join(seed, SEED).unwrap();
    }
    swarm.assign_leases();
    for peer in 100..100 + peers {
        swarm.join(peer, MemberInfo::default()).unwrap();
    }
    swarm
}

fn commands(swarm: &mut Swarm<u32>) -> Vec<Command<u32>> {
    core::iter::from_fn(|| swarm.poll()).collect()
}

fn grants(swarm: &mut Swarm<u32>) -> Vec<Lease<u32>> {
    let grant = |command| match command {
        Command::Grant(lease) => Some(lease),
        _ => None,
    };
    commands(swarm).into_iter().filter_map(grant).collect()
}

/// Who is told what now.
fn told(swarm: &mut Swarm<u32>) -> Vec<(u32, News<u32>)> {
    let told = |command| match command {
        Command::Tell { node, news } => Some((node, news)),
        _ => None,
    };
    commands(swarm).into_iter().filter_map(told).collect()
}

fn far(zone: u32, held: u32) -> MemberInfo {
    MemberInfo {
        zone: ZoneId(zone),
        held,
        ..MemberInfo::default()
    }
}

#[test]
fn thirteen_nodes_all_know_each_other() {
    let swarm = with(Settings::default(), 1, 12);
    for node in (100..112).chain([0]) {
        assert_eq!(swarm.neighbours(node).len(), 12);
    }
}

/// Edges are symmetric, all members but the seed have the degree, and everybody reaches everybody.
fn hold_regular(swarm: &Swarm<u32>, members: &BTreeSet<u32>, degree: usize, lacking: usize) {
    let mut seen = BTreeSet::from([0]);
    let mut queue = vec![0];
    while let Some(node) = queue.pop() {
        for &other in swarm.neighbours(node) {
            assert!(
                swarm.neighbours(other).contains(&node),
                "edges are symmetric"
            );
            if seen.insert(other) {
                queue.push(other);
            }
        }
    }
    assert_eq!(seen.len(), members.len() + 1, "connected");
    let mut short = 0;
    for &peer in members {
        let edges = swarm.neighbours(peer).iter().filter(|n| **n != 0).count();
        assert!(edges <= degree + 1, "{peer} has {edges}");
        short += degree.saturating_sub(edges);
    }
    assert!(short <= lacking, "{short} edges are missing");
}

#[test]
fn a_large_graph_is_regular_and_connected_however_members_come_and_go() {
    let mut swarm = with(Settings::default(), 1, 1000);
    let mut members: BTreeSet<u32> = (100..1100).collect();
    assert_eq!(swarm.neighbours(0).len(), 32);
    hold_regular(&swarm, &members, 12, 12);
    for gone in (100..1100).step_by(3) {
        swarm.leave(gone);
        members.remove(&gone);
    }
    hold_regular(&swarm, &members, 12, 60);
    // Those that lack a neighbour ask for it.
    for (at, peer) in members.iter().enumerate() {
        swarm.refill(Duration::from_millis(300 * at as u64), *peer);
    }
    hold_regular(&swarm, &members, 12, 6);
}

#[test]
fn members_that_came_together_do_not_stay_together() {
    let swarm = with(Settings::default(), 1, 1000);
    let near = |a: u32, b: u32| a.abs_diff(b) <= 20;
    let (mut close, mut all) = (0, 0);
    for peer in 100..1100 {
        let edges = swarm.neighbours(peer).iter().filter(|n| **n != 0);
        let (of, edges): (Vec<u32>, Vec<u32>) = edges.copied().partition(|n| near(peer, *n));
        close += of.len();
        all += of.len() + edges.len();
    }
    // One in 25 would be by chance.
    assert!(close * 12 < all, "{close} of {all}");
}

#[test]
fn whoever_joins_a_regular_graph_changes_nobodys_degree() {
    let mut swarm = with(Settings::default(), 1, 200);
    swarm.flush();
    commands(&mut swarm);
    let before: Vec<usize> = (100..300).map(|n| swarm.neighbours(n).len()).collect();
    let given = swarm.join(300, MemberInfo::default()).unwrap();
    assert_eq!(given.len(), 12);
    assert!(commands(&mut swarm).is_empty(), "who parts can wait");
    swarm.flush();
    let told = told(&mut swarm);
    let parts = told.iter().map(|(_, news)| news.part.len());
    assert_eq!(parts.sum::<usize>(), 6, "{told:?}");
    for (node, news) in told {
        let near = swarm.neighbours(node);
        assert!(news.part.iter().all(|from| !near.contains(from)));
    }
    let after: Vec<usize> = (100..300).map(|n| swarm.neighbours(n).len()).collect();
    assert_eq!(before, after);
}

#[test]
fn what_is_no_longer_true_when_it_is_told_is_not_told() {
    let mut swarm = with(Settings::default(), 1, 200);
    swarm.flush();
    told(&mut swarm);
    for joiner in 300..310 {
        swarm.join(joiner, MemberInfo::default()).unwrap();
    }
    for joiner in 300..310 {
        swarm.leave(joiner);
    }
    swarm.flush();
    for (node, news) in told(&mut swarm) {
        let near = swarm.neighbours(node);
        assert!(news.connect.iter().all(|to| near.contains(&to.node)));
        assert!(news.part.iter().all(|from| !near.contains(from)));
        assert!(news.part.iter().all(|from| swarm.contains(*from)));
    }
    assert!(!swarm.has_news());
}

#[test]
fn many_joins_at_once_are_told_to_each_member_once() {
    let mut swarm = with(Settings::default(), 1, 200);
    swarm.flush();
    let told: Vec<u32> = told(&mut swarm).iter().map(|(node, _)| *node).collect();
    let members: BTreeSet<u32> = told.iter().copied().collect();
    assert_eq!(told.len(), members.len());
}

#[test]
fn refills_are_limited_in_rate_and_end_when_there_is_nobody_else() {
    let mut swarm = with(Settings::default(), 1, 3);
    let now = Duration::from_secs(1);
    assert_eq!(swarm.refill(now, 100), Refill::Exhausted);
    assert_eq!(swarm.refill(now, 100), Refill::TooSoon);
    swarm.join(103, MemberInfo::default()).unwrap();
    swarm.disconnected(100, 103);
    let later = now + Duration::from_millis(250);
    assert!(matches!(swarm.refill(later, 100), Refill::More(more) if more.node == 103));
}

#[test]
fn loaded_members_are_chosen_less_often() {
    let mut swarm = swarm(Settings::default());
    for peer in 0..60 {
        let load = if peer % 2 == 0 { 1.0 } else { 0.0 };
        let info = MemberInfo {
            load,
            ..MemberInfo::default()
        };
        swarm.join(peer, info).unwrap();
    }
    let (mut loaded, mut idle) = (0, 0);
    for joiner in 100..110 {
        let given = swarm.join(joiner, MemberInfo::default()).unwrap();
        let of = given.iter().filter(|i| i.node < 60 && i.node % 2 == 0);
        loaded += of.count();
        idle += given
            .iter()
            .filter(|i| i.node < 60 && i.node % 2 == 1)
            .count();
    }
    assert!(loaded * 2 < idle, "{loaded} {idle}");
}

#[test]
fn a_lost_lease_goes_to_another_seed_and_then_to_the_most_complete_peer() {
    let mut swarm = with(Settings::default(), 2, 5);
    assert_eq!(grants(&mut swarm)[0].node, 0);
    swarm.report(103, 77, 0.0);
    swarm.leave(0);
    let second = grants(&mut swarm)[0];
    assert_eq!((second.node, second.epoch), (1, 2));
    assert!(second.collect > Duration::ZERO);
    swarm.leave(1);
    let third = grants(&mut swarm)[0];
    assert_eq!((third.node, third.epoch), (103, 3));
}

#[test]
fn no_peer_goes_to_the_origin_where_policy_forbids_it() {
    let settings = Settings {
        peers_may_fetch: false,
        ..Settings::default()
    };
    let mut swarm = with(settings, 1, 5);
    commands(&mut swarm);
    swarm.leave(0);
    swarm.request_lease(101);
    assert!(grants(&mut swarm).is_empty());
    assert!(swarm.leases().is_empty());
}

#[test]
fn two_peers_at_most_share_the_origin_in_disjoint_ranges() {
    let mut swarm = with(Settings::default(), 0, 5);
    assert!(grants(&mut swarm).is_empty());
    for peer in 100..105 {
        swarm.request_lease(peer);
    }
    let leases = swarm.leases().to_vec();
    assert_eq!(leases.len(), 2);
    for block in 0..1000 {
        let owners = leases.iter().filter(|l| l.stripe.contains(block)).count();
        assert_eq!(owners, 1, "block {block}");
    }
}

#[test]
fn the_survivor_of_two_emitters_takes_the_whole_with_a_new_epoch() {
    let settings = Settings {
        emitters: 2,
        ..Settings::default()
    };
    let mut swarm = with(settings, 2, 5);
    assert_eq!(swarm.leases().len(), 2);
    grants(&mut swarm);
    swarm.leave(0);
    let granted = grants(&mut swarm);
    assert_eq!(granted.len(), 1);
    assert_eq!((granted[0].node, granted[0].stripe), (1, Stripe::WHOLE));
    assert_eq!(granted[0].epoch, 3);
}

#[test]
fn a_remote_zone_has_one_gateway_and_elects_the_next_when_it_dies() {
    let mut swarm = with(Settings::default(), 1, 10);
    let gateway = swarm.join(200, far(1, 0)).unwrap();
    assert!(gateway.iter().any(|i| i.node == 0));
    assert_eq!(gateway.len(), 5, "the seed and four peers");
    assert!(gateway.iter().all(|i| !i.emitter && i.may_ask.is_some()));
    for peer in 201..210 {
        let given = swarm.join(peer, far(1, peer)).unwrap();
        assert!(given.iter().all(|i| i.node >= 200), "edges stay inside");
    }
    commands(&mut swarm);
    swarm.leave(200);
    let told = told(&mut swarm);
    let (elected, news) = told.iter().find(|(node, _)| *node >= 200).unwrap();
    assert_eq!(*elected, 209, "the most complete member");
    assert!(news.connect.iter().all(|to| to.node < 200));
    assert_eq!(news.connect.len(), 5, "in one message");
    let expecting = told.iter().filter(|(_, news)| news.expect.len() == 1);
    assert_eq!(expecting.count(), 5);
}

#[test]
fn one_accuser_expels_nobody_and_two_do() {
    let mut swarm = with(Settings::default(), 1, 5);
    swarm.accuse(100, 101);
    swarm.accuse(100, 101);
    assert!(!swarm.neighbours(100).contains(&101));
    assert!(!swarm.neighbours(101).is_empty());
    swarm.accuse(102, 101);
    assert!(swarm.neighbours(101).is_empty());
    assert_eq!(swarm.join(101, MemberInfo::default()), Err(Refused::Banned));
}

#[test]
fn members_that_come_and_go_leave_nothing_behind() {
    let mut swarm = with(Settings::default(), 1, 50);
    for peer in 100..150 {
        swarm.leave(peer);
    }
    swarm.leave(0);
    assert!(swarm.is_empty());
    assert!(swarm.leases().is_empty());
}

#[test]
fn registering_again_changes_no_edge() {
    let mut swarm = with(Settings::default(), 1, 50);
    let before = swarm.neighbours(120).to_vec();
    let again = swarm.join(120, MemberInfo::default()).unwrap();
    let again: Vec<u32> = again.iter().map(|i| i.node).collect();
    assert_eq!(again, before);
}
