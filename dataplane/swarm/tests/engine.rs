//! One engine, or a few on a network without delay: what it says, when, and what it refuses.

#![allow(clippy::unwrap_used, reason = "helpers of tests may fail loudly")]
#![allow(clippy::single_range_in_vec_init, reason = "one range is meant")]

mod common;

use common::Net;
use core::time::Duration;
use dragonfly_swarm::bitmap::BlockSet;
use dragonfly_swarm::engine::{
    Action, Config, Control, Engine, NeighbourId, NeighbourInfo, ReaderId, Receipt, Stripe,
    Violation, Wanted,
};

const ZERO: Duration = Duration::ZERO;
const A: NeighbourId = NeighbourId(1);
const B: NeighbourId = NeighbourId(2);
const EMITTER: NeighbourInfo = NeighbourInfo {
    emitter: true,
    rtt: ZERO,
    may_ask: Some(Stripe::WHOLE),
};

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn said(engine: &mut Engine, to: NeighbourId) -> Vec<Control> {
    let mut messages = Vec::new();
    while let Some(action) = engine.poll() {
        match action {
            Action::Send(id, message) if id == to => messages.push(message),
            _ => {}
        }
    }
    messages
}

fn peer(total: u32) -> Engine {
    let mut engine = Engine::new(Config::default(), 7, Some(total));
    engine.set_wanted(ZERO, Wanted::Whole);
    engine
}

fn full(total: u32) -> Control {
    Control::Bitmap(BlockSet::full(total))
}

/// An emitter that holds everything, and neighbours that want everything and gave credit.
fn emitter(total: u32) -> Engine {
    let mut engine = Engine::new(Config::default(), 7, Some(total));
    engine.add_held(ZERO, core::iter::once(0..total));
    engine.start_emitting(ZERO, Stripe::WHOLE, ZERO);
    for id in [A, B] {
        engine.join(ZERO, id, NeighbourInfo::default());
        engine
            .handle(ZERO, id, Control::Want(Wanted::Whole))
            .unwrap();
        engine.handle(ZERO, id, Control::Credit(2)).unwrap();
    }
    engine
}

fn send(engine: &mut Engine, to: NeighbourId) -> Option<u32> {
    let block = engine.next_data(ZERO, to)?;
    engine.data_sent(ZERO, to, block);
    Some(block)
}

fn have(index: u32) -> Control {
    Control::Have(core::iter::once(index..index + 1).collect())
}

#[test]
fn requests_stay_within_the_window_and_follow_arrivals() {
    let mut engine = peer(100);
    engine.join(ZERO, A, NeighbourInfo::default());
    engine.handle(ZERO, A, full(100)).unwrap();
    let requested = |messages: Vec<Control>| -> Vec<u32> {
        let index = |m| match m {
            Control::Request(index) => Some(index),
            _ => None,
        };
        messages.into_iter().filter_map(index).collect()
    };
    let first = requested(said(&mut engine, A));
    assert_eq!(first.len(), 3, "few parents, a window of three");
    assert_eq!(engine.block_received(ms(1), A, first[0]), Ok(Receipt::New));
    assert_eq!(requested(said(&mut engine, A)).len(), 1);
}

#[test]
fn an_emitter_announces_nothing_and_sends_each_block_once_until_it_passes() {
    let mut engine = emitter(4);
    assert_eq!(said(&mut engine, A), [Control::Bitmap(BlockSet::new())]);
    let order = [A, B, A, B].map(|to| send(&mut engine, to));
    assert_eq!(order, [Some(0), Some(1), Some(2), Some(3)]);
    let after = said(&mut engine, A);
    assert_eq!(
        after,
        [
            Control::Have(core::iter::once(0..4).collect()),
            Control::Pass
        ]
    );
}

#[test]
fn a_block_whose_owner_leaves_goes_to_another() {
    let mut engine = emitter(100);
    assert_eq!(send(&mut engine, A), Some(0));
    assert_eq!(send(&mut engine, A), Some(1));
    engine.handle(ZERO, A, have(1)).unwrap();
    engine.leave(ZERO, A);
    assert_eq!(send(&mut engine, B), Some(0), "lost");
    // The announcement of block 1 left with A.
    assert_eq!(engine.stats().reemitted, 1);
}

#[test]
fn a_block_that_is_not_announced_in_time_is_emitted_once_more() {
    let mut engine = emitter(100);
    assert_eq!(send(&mut engine, A), Some(0));
    engine.tick(ms(399));
    assert_eq!(send(&mut engine, B), Some(1));
    engine.tick(ms(450));
    assert_eq!(send(&mut engine, B), Some(0));
    assert_eq!(send(&mut engine, A), Some(1), "the other owner's, in turn");
}

#[test]
fn an_owner_that_announces_nothing_gets_no_more_until_it_does() {
    let mut engine = emitter(200);
    for _ in 0..200 {
        engine.handle(ZERO, A, Control::Credit(2)).unwrap();
        send(&mut engine, A);
    }
    assert_eq!(engine.stats().emitted, 96);
    while engine.poll().is_some() {}
    engine.handle(ZERO, A, have(0)).unwrap();
    let actions: Vec<Action> = core::iter::from_fn(|| engine.poll()).collect();
    assert!(actions.contains(&Action::Wake(A)));
}

#[test]
fn blocks_that_readers_wait_for_are_emitted_first() {
    let mut engine = emitter(100);
    let hurry = Control::Hurry(core::iter::once(50..51).collect());
    engine.handle(ZERO, A, hurry).unwrap();
    assert_eq!(send(&mut engine, B), Some(50));
    assert_eq!(send(&mut engine, A), Some(0));
}

#[test]
fn a_reader_hurries_the_emitter_for_what_nobody_announces() {
    let mut engine = peer(1000);
    engine.join(ZERO, A, EMITTER);
    engine.add_reader(ReaderId(1), 500);
    said(&mut engine, A);
    engine.tick(ms(50));
    let hurry = Control::Hurry(core::iter::once(500..564).collect());
    assert!(said(&mut engine, A).contains(&hurry));
}

#[test]
fn blocks_that_found_no_space_are_asked_for_again_after_a_pause() {
    let mut engine = peer(3);
    engine.join(ZERO, A, NeighbourInfo::default());
    engine.handle(ZERO, A, full(3)).unwrap();
    let requested = |engine: &mut Engine| -> Vec<u32> {
        let messages = said(engine, A).into_iter();
        messages
            .filter_map(|m| match m {
                Control::Request(index) => Some(index),
                _ => None,
            })
            .collect()
    };
    let first = requested(&mut engine);
    assert!(!first.is_empty());
    for index in &first {
        engine.accepts(A, *index).unwrap();
        engine.block_lost(ms(1), A, *index);
    }
    assert_eq!(requested(&mut engine), vec![], "at once");
    engine.tick(engine.next_timeout().unwrap());
    let again = requested(&mut engine);
    assert_eq!(again.len(), first.len());
    for index in again {
        let receipt = engine.block_received(ms(60), A, index).unwrap();
        assert_eq!(receipt, Receipt::New);
    }
}

#[test]
fn a_push_that_found_no_space_is_asked_of_the_emitter_which_hears_that_it_arrived() {
    let mut engine = peer(100);
    engine.join(ZERO, A, EMITTER);
    let said_at_first = said(&mut engine, A);
    assert!(
        said_at_first.contains(&Control::Credit(2)),
        "{said_at_first:?}"
    );
    engine.accepts(A, 0).unwrap();
    engine.block_lost(ms(1), A, 0);
    assert_eq!(said(&mut engine, A), vec![], "at once");
    engine.tick(engine.next_timeout().unwrap());
    let again = said(&mut engine, A);
    assert!(again.contains(&Control::Request(0)), "{again:?}");
    assert!(again.contains(&Control::Credit(1)), "{again:?}");
    engine.block_received(ms(60), A, 0).unwrap();
    engine.tick(ms(200));
    assert!(
        said(&mut engine, A).contains(&have(0)),
        "it still waits for that word"
    );
}

#[test]
fn a_late_block_near_a_reader_is_asked_of_a_second_holder_and_cancelled_on_arrival() {
    let mut engine = peer(2);
    engine.add_reader(ReaderId(1), 0);
    engine.join(ZERO, A, NeighbourInfo::default());
    engine.handle(ZERO, A, full(2)).unwrap();
    engine.join(ZERO, B, NeighbourInfo::default());
    engine.handle(ms(1), B, full(2)).unwrap();
    said(&mut engine, B);
    engine.tick(ms(200));
    let asked = said(&mut engine, B);
    assert!(asked.contains(&Control::Request(0)), "{asked:?}");
    engine.block_received(ms(210), B, 0).unwrap();
    assert!(said(&mut engine, A).contains(&Control::Cancel(0)));
    // The CANCEL crossed the DATA: counted, not punished.
    assert_eq!(engine.block_received(ms(220), A, 0), Ok(Receipt::Duplicate));
    assert_eq!(engine.stats().duplicates, 1);
}

#[test]
fn what_frames_may_overtake_can_be_checked_and_is_not_the_end_of_a_pass() {
    let total = 40;
    let mut engine = emitter(total);
    // What it takes to check a block is told with the first ones: nothing overtakes that.
    assert_eq!(engine.next_unordered(ZERO, A), None);
    let first = send(&mut engine, A).unwrap();
    assert_eq!(engine.next_unordered(ZERO, A), None);
    engine.handle(ZERO, A, have(first)).unwrap();
    let mut sent = vec![first];
    engine.handle(ZERO, A, Control::Credit(total)).unwrap();
    while let Some(index) = engine.next_unordered(ZERO, A) {
        engine.data_sent(ZERO, A, index);
        sent.push(index);
    }
    assert_eq!(
        sent.len(),
        total as usize - 16,
        "the last ones are in order"
    );
    assert!(!said(&mut engine, A).contains(&Control::Pass));
    while let Some(index) = send(&mut engine, A) {
        sent.push(index);
    }
    sent.sort_unstable();
    assert_eq!(sent, (0..total).collect::<Vec<_>>());
    assert!(said(&mut engine, A).contains(&Control::Pass));
    // Asked for: known to who asks.
    engine.handle(ZERO, B, Control::Request(5)).unwrap();
    assert_eq!(engine.next_unordered(ZERO, B), Some(5));

    // Who wants a part of it is at the end of its part sooner.
    let mut engine = emitter(total);
    let part: BlockSet = (20..total).collect();
    let want = Control::Want(Wanted::Some(part));
    engine.handle(ZERO, A, want).unwrap();
    engine.handle(ZERO, A, Control::Credit(total)).unwrap();
    let first = send(&mut engine, A).unwrap();
    engine.handle(ZERO, A, have(first)).unwrap();
    let left: Vec<_> = core::iter::from_fn(|| engine.next_unordered(ZERO, A)).collect();
    assert_eq!(left.len(), 20 - 1 - 16);
    // Nor is the last of all one of them, how long it is may be said just before.
    let hurry = Control::Hurry(vec![total - 1..total]);
    let mut engine = emitter(total);
    engine.handle(ZERO, A, Control::Credit(total)).unwrap();
    let first = send(&mut engine, A).unwrap();
    engine.handle(ZERO, A, have(first)).unwrap();
    engine.handle(ZERO, A, hurry).unwrap();
    assert_eq!(engine.next_unordered(ZERO, A), None);
    assert_eq!(engine.next_data(ZERO, A), Some(total - 1));
    assert!(engine.next_unordered(ZERO, A).is_some());

    // That of one block may be asked for before anything is known of it.
    let mut engine = emitter(1);
    engine.handle(ZERO, A, Control::Request(0)).unwrap();
    assert_eq!(engine.next_unordered(ZERO, A), None);
    assert_eq!(engine.next_data(ZERO, A), Some(0));
}

#[test]
fn a_single_block_is_asked_of_the_emitter_at_once() {
    let mut engine = peer(1);
    engine.join(ZERO, A, EMITTER);
    assert!(said(&mut engine, A).contains(&Control::Request(0)));

    let mut seed = Engine::new(Config::default(), 7, Some(1));
    seed.start_emitting(ZERO, Stripe::WHOLE, ZERO);
    seed.join(ZERO, A, NeighbourInfo::default());
    seed.handle(ZERO, A, Control::Want(Wanted::Whole)).unwrap();
    seed.handle(ZERO, A, Control::Request(0)).unwrap();
    assert_eq!(seed.origin_wanted(4), [0..1]);
    assert_eq!(seed.next_data(ZERO, A), None);
    seed.origin_block_ready(ms(1), 0);
    assert_eq!(send(&mut seed, A), Some(0));
}

#[test]
fn what_nobody_asked_for_is_a_violation() {
    let mut engine = peer(10);
    engine.join(ZERO, A, NeighbourInfo::default());
    let unrequested = Violation::Unrequested { index: 3 };
    assert_eq!(engine.accepts(A, 3), Err(unrequested));
    assert_eq!(engine.block_received(ZERO, A, 3), Err(unrequested));
    let limit = 10;
    let out = |index| Err(Violation::OutOfRange { index, limit });
    assert_eq!(engine.handle(ZERO, A, full(11)), out(10));
    assert_eq!(
        engine.handle(ZERO, A, Control::Request(u32::MAX)),
        out(u32::MAX)
    );
    let missing = Err(Violation::NotAnnounced { index: 3 });
    assert_eq!(engine.handle(ZERO, A, Control::Request(3)), missing);
    let backwards =
        Control::Have(core::iter::once(core::ops::Range { start: 5, end: 4 }).collect());
    let empty = Err(Violation::EmptyRange { start: 5, end: 4 });
    assert_eq!(engine.handle(ZERO, A, backwards), empty);
}

#[test]
fn a_bad_block_bans_its_sender_and_frees_its_requests() {
    let mut engine = peer(2);
    for id in [A, B] {
        engine.join(ZERO, id, NeighbourInfo::default());
        engine.handle(ZERO, id, full(2)).unwrap();
    }
    engine.block_rejected(ms(1), A, 0);
    let actions: Vec<Action> = core::iter::from_fn(|| engine.poll()).collect();
    assert!(actions.contains(&Action::Ban(A, Violation::BadBlock { index: 0 })));
    assert!(actions.contains(&Action::Send(B, Control::Request(0))));
}

#[test]
fn a_silent_neighbour_that_owes_blocks_is_dropped() {
    let mut engine = peer(2);
    engine.join(ZERO, A, NeighbourInfo::default());
    engine.handle(ZERO, A, full(2)).unwrap();
    let mut dropped_by = |until: u64| {
        (0..until).step_by(50).for_each(|at| engine.tick(ms(at)));
        let mut actions = core::iter::from_fn(|| engine.poll());
        actions.any(|a| a == Action::Drop(A))
    };
    assert!(!dropped_by(3000));
    assert!(dropped_by(3200));
}

#[test]
fn a_node_that_stood_still_itself_does_not_call_its_neighbours_silent() {
    let mut engine = peer(2);
    engine.join(ZERO, A, NeighbourInfo::default());
    engine.handle(ZERO, A, full(2)).unwrap();
    engine.tick(ms(50));
    engine.tick(ms(20_000));
    engine.tick(ms(22_500));
    let mut actions = core::iter::from_fn(|| engine.poll());
    assert!(!actions.any(|a| a == Action::Drop(A)));
}

#[test]
fn a_block_is_announced_within_thirty_milliseconds_but_not_to_those_that_have_it() {
    let mut engine = peer(10);
    engine.join(ZERO, A, NeighbourInfo::default());
    engine.join(ZERO, B, NeighbourInfo::default());
    engine.handle(ZERO, A, have(4)).unwrap();
    engine.tick(ms(0));
    engine.block_received(ms(5), A, 4).unwrap();
    assert_eq!(engine.next_timeout(), Some(ms(35)));
    while engine.poll().is_some() {}
    engine.tick(ms(34));
    assert_eq!(engine.poll(), None);
    engine.tick(ms(35));
    let actions: Vec<Action> = core::iter::from_fn(|| engine.poll()).collect();
    assert_eq!(actions, [Action::Send(B, have(4))]);
}

#[test]
fn six_blocks_are_announced_at_once_and_so_is_the_last() {
    let mut engine = peer(7);
    engine.join(ZERO, A, NeighbourInfo::default());
    engine.join(ZERO, B, NeighbourInfo::default());
    engine.handle(ZERO, A, full(7)).unwrap();
    engine.tick(ZERO);
    let (mut owed, mut received, mut told) = (vec![], 0, vec![]);
    loop {
        while let Some(action) = engine.poll() {
            match action {
                Action::Send(A, Control::Request(index)) => owed.push(index),
                Action::Send(B, Control::Have(runs)) => {
                    told.push((received, runs.iter().map(|run| run.len()).sum::<usize>()));
                }
                _ => {}
            }
        }
        let Some(index) = owed.pop() else { break };
        engine.block_received(ms(1), A, index).unwrap();
        received += 1;
    }
    assert_eq!(told, [(6, 6), (7, 1)]);
}

#[test]
fn a_content_of_unknown_length_completes_when_the_length_is_told() {
    let mut engine = Engine::new(Config::default(), 7, None);
    engine.set_wanted(ZERO, Wanted::Whole);
    engine.join(ZERO, A, EMITTER);
    engine.block_received(ZERO, A, 0).unwrap();
    engine.block_received(ZERO, A, 1).unwrap();
    assert!(!engine.is_complete());
    let known = 2;
    let contradiction = Err(Violation::TotalContradicts { said: 1, known });
    assert_eq!(engine.set_total(ZERO, 1), contradiction);
    engine.set_total(ms(1), 2).unwrap();
    assert!(engine.is_complete());
}

#[test]
fn a_successor_fetches_only_what_nobody_announces() {
    let mut engine = Engine::new(Config::default(), 7, Some(100));
    engine.join(ZERO, A, NeighbourInfo::default());
    engine
        .handle(ZERO, A, Control::Want(Wanted::Whole))
        .unwrap();
    engine.start_emitting(ZERO, Stripe::WHOLE, ms(500));
    assert!(engine.origin_wanted(100).is_empty(), "bitmaps first");
    engine.handle(ms(100), A, full(60)).unwrap();
    engine.tick(ms(500));
    assert_eq!(engine.origin_wanted(100), [60..100]);
}

/// A successor that has begun to collect, with a neighbour that wants everything.
fn successor(total: u32) -> Engine {
    let mut engine = Engine::new(Config::default(), 7, Some(total));
    engine.start_emitting(ZERO, Stripe::WHOLE, ms(500));
    engine.collect_named(ZERO, ms(3000));
    engine.join(ZERO, A, NeighbourInfo::default());
    let want = Control::Want(Wanted::Whole);
    engine.handle(ZERO, A, want).unwrap();
    engine
}

#[test]
fn a_successor_waits_for_the_members_it_was_told_of_but_not_for_ever() {
    let mut engine = successor(100);
    engine.tick(ms(1000));
    assert!(!engine.has_told(A));
    assert!(engine.origin_wanted(100).is_empty(), "A has not told yet");
    engine.handle(ms(1200), A, full(60)).unwrap();
    assert!(engine.has_told(A));
    engine.heard_all(ms(1200));
    assert_eq!(engine.origin_wanted(100), [60..100]);

    let mut engine = successor(100);
    engine.tick(ms(2900));
    assert!(engine.origin_wanted(100).is_empty());
    engine.tick(ms(3000));
    assert_eq!(engine.origin_wanted(100), [0..100], "A never tells");
}

#[test]
fn a_successor_hears_all_and_still_collects_what_was_announced_last() {
    let mut engine = successor(100);
    engine.handle(ms(10), A, full(60)).unwrap();
    engine.heard_all(ms(10));
    assert!(engine.is_collecting() && engine.origin_wanted(100).is_empty());
    engine.handle(ms(20), A, have(60)).unwrap();
    engine.tick(ms(500));
    assert!(!engine.is_collecting());
    assert_eq!(engine.origin_wanted(100), [61..100]);
}

#[test]
fn what_all_who_want_it_hold_is_not_read_again_however_long_nothing_happens() {
    let mut engine = successor(100);
    engine.join(ZERO, B, NeighbourInfo::default());
    let want = Control::Want(Wanted::Whole);
    engine.handle(ZERO, B, want).unwrap();
    engine.handle(ms(10), A, full(60)).unwrap();
    engine.handle(ms(10), B, full(40)).unwrap();
    engine.heard_all(ms(10));
    engine.tick(ms(500));
    assert_eq!(engine.origin_wanted(100), [60..100]);
    // A may have lied, or serve nobody.
    engine.tick(ms(4000));
    assert_eq!(engine.origin_wanted(100), [40..100]);
    // But B gets it.
    engine.handle(ms(4100), B, have(40)).unwrap();
    assert_eq!(engine.origin_wanted(100), [60..100]);
}

#[test]
fn a_successor_that_is_sent_what_it_lacks_does_not_read_it() {
    let mut engine = successor(100);
    engine.set_wanted(ZERO, Wanted::Whole);
    engine.handle(ms(10), A, full(60)).unwrap();
    engine.heard_all(ms(10));
    engine.tick(ms(500));
    let asked: Vec<u32> = (0..60).filter(|b| engine.accepts(A, *b).is_ok()).collect();
    assert!(asked.len() > 1, "{asked:?}");
    // One block every two seconds: slow, but no lie.
    engine.block_received(ms(2500), A, asked[0]).unwrap();
    engine.tick(ms(4400));
    assert_eq!(engine.origin_wanted(100), [60..100]);
}

#[test]
fn only_what_is_wanted_is_fetched_and_moved() {
    let mut net = Net::new(200, 3);
    let seed = net.add(Config::default(), Wanted::Nothing);
    net.emit(seed, ZERO);
    let part = |range| Wanted::Some(core::iter::once(range).collect());
    let a = net.add(Config::default(), part(10..50));
    let b = net.add(Config::default(), part(40..60));
    net.connect(seed, a);
    net.connect(seed, b);
    net.connect(a, b);
    assert!(net.run(30), "unfinished {:?}", net.unfinished());
    let sent: Vec<usize> = (0..200).filter(|i| net.origin[*i] > 0).collect();
    assert_eq!(sent, (10..60).collect::<Vec<_>>());
}

#[test]
fn two_emitters_send_every_block_of_the_origin_once() {
    let mut engines = [0, 1].map(|index| {
        let mut engine = Engine::new(Config::default(), 7, Some(10));
        engine.start_emitting(
            ZERO,
            Stripe {
                index,
                of: 2,
                run: 1,
            },
            ZERO,
        );
        engine.join(ZERO, A, NeighbourInfo::default());
        engine
            .handle(ZERO, A, Control::Want(Wanted::Whole))
            .unwrap();
        engine
    });
    let wanted = engines.each_mut().map(|e| e.origin_wanted(10));
    assert_eq!(
        wanted[0].iter().cloned().flatten().collect::<Vec<_>>(),
        [0, 2, 4, 6, 8]
    );
    assert_eq!(
        wanted[1].iter().cloned().flatten().collect::<Vec<_>>(),
        [1, 3, 5, 7, 9]
    );
}
