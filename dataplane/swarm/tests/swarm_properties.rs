//! What must hold under any order of events, losses and deaths.

mod common;

use common::Net;
use core::time::Duration;
use dragonfly_swarm::bitmap::BlockSet;
use dragonfly_swarm::engine::{Config, Control, NeighbourId, Wanted};
use proptest::prelude::*;

/// Something that goes wrong.
#[derive(Debug, Clone)]
enum Fault {
    Reset(u32, u32),
    Kill(u32),
    Join,
    ReplaceEmitter(u32),
    Time(u64),
    Steps(u32),
}

fn faults() -> impl Strategy<Value = Vec<Fault>> {
    let fault = prop_oneof![
        4 => (0u32..8, 0u32..8).prop_map(|(a, b)| Fault::Reset(a, b)),
        1 => (1u32..8).prop_map(Fault::Kill),
        2 => Just(Fault::Join),
        1 => (0u32..8).prop_map(Fault::ReplaceEmitter),
        4 => (1u64..400).prop_map(Fault::Time),
        8 => (1u32..200).prop_map(Fault::Steps),
    ];
    prop::collection::vec(fault, 0..40)
}

/// A mesh of one seed, which wants nothing for itself, and some peers.
fn mesh(peers: u32, total: u32, seed: u64) -> Net {
    let mut net = Net::new(total, seed);
    let origin = net.add(Config::default(), Wanted::Nothing);
    net.emit(origin, Duration::ZERO);
    for _ in 0..peers {
        join(&mut net);
    }
    net
}

fn join(net: &mut Net) -> u32 {
    let node = net.add(Config::default(), Wanted::Whole);
    for other in 0..node {
        net.connect(node, other);
    }
    node
}

/// Everybody reconnects, as refills do.
fn heal(net: &mut Net) {
    let count = net.nodes.len() as u32;
    for a in 0..count {
        for b in 0..a {
            net.connect(a, b);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, max_shrink_iters: 300, max_shrink_time: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_peer_finishes_whatever_happens_while_one_source_lives(
        peers in 1u32..7,
        total in 1u32..150,
        seed: u64,
        faults in faults(),
    ) {
        let mut net = mesh(peers, total, seed);
        let mut disturbed = false;
        for fault in faults {
            let count = net.nodes.len() as u32;
            match fault {
                Fault::Reset(a, b) if a < count && b < count => {
                    disturbed = true;
                    net.reset(a, b);
                }
                Fault::Kill(node) if node < count && !net.emitters.contains_key(&node) => {
                    disturbed = true;
                    net.kill(node);
                }
                Fault::Join if count < 9 => {
                    join(&mut net);
                }
                Fault::ReplaceEmitter(node)
                    if node < count && net.nodes[node as usize].is_some() =>
                {
                    disturbed = true;
                    let old = net.emitters.keys().next().copied();
                    net.emit(node, Duration::from_millis(500));
                    if let Some(old) = old.filter(|old| *old != node && *old != 0) {
                        net.kill(old);
                    }
                }
                Fault::Time(ms) => net.pass_time(Duration::from_millis(ms)),
                Fault::Steps(steps) => (0..steps).for_each(|_| net.step()),
                _ => {}
            }
        }
        heal(&mut net);
        prop_assert!(net.run(120), "unfinished: {:?}", net.unfinished());
        for engine in net.nodes.iter().flatten() {
            prop_assert!(engine.wanted().is_nothing() || *engine.held() == BlockSet::full(total));
        }
        if !disturbed {
            prop_assert!(net.origin.iter().all(|sent| *sent <= 1), "{:?}", net.origin);
        }
    }

    #[test]
    fn the_origin_sends_no_block_twice_but_those_in_flight_when_the_emitter_dies(
        peers in 2u32..7,
        total in 1u32..150,
        seed: u64,
        before in 0u32..3000,
    ) {
        let mut net = mesh(peers, total, seed);
        (0..before).for_each(|_| net.step());
        net.pass_time(Duration::from_millis(10));
        // What only the emitter held or was fetching dies with it, and what is on its wires.
        let lost = |net: &Net| -> u32 {
            let mut spread = BlockSet::new();
            net.nodes.iter().skip(1).flatten().for_each(|e| spread.union(e.held()));
            let sent: u32 = net.origin.iter().sum();
            sent - spread.count()
        };
        let lost = lost(&net);
        net.kill(0);
        let successor = join(&mut net);
        net.emit(successor, Duration::from_millis(500));
        prop_assert!(net.run(60), "unfinished: {:?}", net.unfinished());
        let sent: u32 = net.origin.iter().sum();
        prop_assert!(sent <= total + lost, "{sent} sent, {total} blocks, {lost} lost");
    }

    #[test]
    fn with_two_emitters_no_block_leaves_the_origin_twice_for_one_of_them_whoever_dies(
        peers in 1u32..6,
        total in 1u32..150,
        seed: u64,
        faults in faults(),
        // Whether one of the seeds dies, which, and after how many of the faults.
        death in prop::option::of((0u32..2, 0usize..40)),
    ) {
        let mut net = Net::new(total, seed);
        for _ in 0..2 {
            net.add(Config::default(), Wanted::Nothing);
        }
        net.connect(0, 1);
        net.emit_all(&[0, 1], Duration::ZERO);
        for _ in 0..peers {
            join(&mut net);
        }
        let mut disturbed = false;
        for (at, fault) in faults.into_iter().enumerate() {
            let count = net.nodes.len() as u32;
            if let Some((victim, _)) = death.filter(|(_, after)| *after == at) {
                disturbed = true;
                net.kill(victim);
                net.emit_all(&[1 - victim], Duration::from_millis(500));
            }
            match fault {
                Fault::Reset(a, b) if a < count && b < count => {
                    disturbed = true;
                    net.reset(a, b);
                }
                Fault::Kill(node) if (2..count).contains(&node) => {
                    disturbed = true;
                    net.kill(node);
                }
                Fault::Join if count < 9 => {
                    join(&mut net);
                }
                Fault::Time(ms) => net.pass_time(Duration::from_millis(ms)),
                Fault::Steps(steps) => (0..steps).for_each(|_| net.step()),
                _ => {}
            }
        }
        heal(&mut net);
        prop_assert!(net.run(120), "unfinished: {:?}", net.unfinished());
        for ((node, block), times) in &net.origin_to {
            prop_assert!(*times == 1, "{block} went to {node} {times} times");
            let stranger = !disturbed && block % 2 != *node;
            prop_assert!(!stranger, "{node} fetched {block} of the other's share");
        }
        if !disturbed {
            prop_assert!(net.origin.iter().all(|sent| *sent <= 1), "{:?}", net.origin);
        }
    }

    #[test]
    fn a_hostile_neighbour_stops_nobody_and_grows_nothing(
        total in 2u32..150,
        seed: u64,
        messages in prop::collection::vec(hostile(), 1..200),
    ) {
        let mut net = mesh(3, total, seed);
        let enemy = net.add(Config::default(), Wanted::Nothing);
        net.hostile.insert(enemy);
        // Maps of the neighbours, a few lists and the bytes a block costs.
        let bound = 4 * (total as usize / 8 + 64) * 8 + 4096 * 8 + total as usize * 64;
        for (at, message) in messages.into_iter().enumerate() {
            for victim in 0..4u32 {
                net.connect(enemy, victim);
                let Some(engine) = &mut net.nodes[victim as usize] else { continue };
                let _ = match message.clone() {
                    Hostile::Say(message) => engine.handle(net.now, NeighbourId(enemy), message),
                    Hostile::Data(index) => engine
                        .accepts(NeighbourId(enemy), index)
                        .map(|_| engine.block_rejected(net.now, NeighbourId(enemy), index)),
                }
                .map_err(|_| engine.leave(net.now, NeighbourId(enemy)));
                prop_assert!(engine.memory() < bound, "{} bytes", engine.memory());
                net.settle(victim);
            }
            if at % 8 == 0 {
                (0..20).for_each(|_| net.step());
                net.pass_time(Duration::from_millis(5));
            }
        }
        prop_assert!(net.run(180), "unfinished: {:?}", net.unfinished());
    }
}

#[derive(Debug, Clone)]
enum Hostile {
    Say(Control),
    Data(u32),
}

fn index() -> impl Strategy<Value = u32> {
    prop_oneof![0u32..150, any::<u32>(), Just(u32::MAX)]
}

fn hostile() -> impl Strategy<Value = Hostile> {
    let ranges = || prop::collection::vec((index(), index()).prop_map(|(a, b)| a..b), 0..6);
    let set =
        prop::collection::vec(0u32..200, 0..50).prop_map(|v| v.into_iter().collect::<BlockSet>());
    let control = prop_oneof![
        set.clone().prop_map(Control::Bitmap),
        ranges().prop_map(|runs| Control::Have(runs.into_iter().collect())),
        (0u32..150).prop_map(|end| Control::Have(core::iter::once(0..end).collect())),
        Just(Control::Want(Wanted::Whole)),
        set.prop_map(|set| Control::Want(Wanted::Some(set))),
        ranges().prop_map(Control::Hurry),
        any::<u32>().prop_map(Control::Credit),
        index().prop_map(Control::Request),
        index().prop_map(Control::Cancel),
        Just(Control::Pass),
        any::<u64>().prop_map(Control::Rate),
    ];
    prop_oneof![9 => control.prop_map(Hostile::Say), 1 => index().prop_map(Hostile::Data)]
}
