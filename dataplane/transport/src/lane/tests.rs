#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../../tests/kit/mod.rs"]
mod kit;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use dragonfly_proto::frame::{Greeting, kind};
use dragonfly_proto::id::NodeId;

use crate::lane::Lane;
use crate::{CloseReason, Conn, Outgoing, Security, Timeouts};
use kit::{Ca, MESH, Peer, QUICK, Raw, SOON, bytes, in_memory, until};

const LARGE: usize = 512 << 10;

fn pair(tls: bool) -> (Peer, Peer) {
    let ca = Ca::new();
    let peer = |n| match tls {
        true => ca.peer(n),
        false => Peer::plain(n),
    };
    (peer(1), peer(2))
}

/// Both ends of a connection that has a lane.
async fn with_lane(from: &Peer, to: &Peer) -> (Arc<Conn>, Arc<Conn>) {
    let conn = from.connect(to).await;
    until("the other end", SOON, || to.mesh.get(&from.id).is_some()).await;
    let other = to.mesh.get(&from.id).unwrap();
    let none = || conn.lane.one.available_permits() + other.lane.one.available_permits() == 2;
    until("the last one's end", SOON, none).await;
    conn.lane.wanted.notify_one();
    until("a lane", SOON, || conn.lane.is_up() && other.lane.is_up()).await;
    (conn, other)
}

/// Blocks to send. Made before there is a lane: that takes a while, and a lane goes when there is nothing for it.
fn blocks(many: u32) -> Vec<Outgoing> {
    // Sizes differ, so that buffers are larger than what is in them.
    let block = |index: u32| {
        let data = bytes(LARGE - 1000 * index as usize, index.into());
        in_memory(1, index, data)
    };
    (0..many).map(block).collect()
}

fn send(from: &Peer, to: &Peer, conn: &Conn, blocks: Vec<Outgoing>) {
    let mut queues = from.notes.to_send.lock().unwrap();
    queues.entry(to.id).or_default().extend(blocks);
    drop(queues);
    conn.wake();
}

async fn check(to: &Peer, many: u32) {
    let came = || to.notes.blocks.lock().unwrap().len() >= many as usize;
    until("all blocks", SOON, came).await;
    let mut got = to.notes.blocks.lock().unwrap();
    got.sort_by_key(|b| b.index);
    assert_eq!(got.len(), many as usize, "some came twice");
    for (index, got) in got.iter().enumerate() {
        let data = bytes(LARGE - 1000 * index, index as u64);
        assert_eq!(got.index as usize, index);
        assert_eq!(got.hash, *blake3::hash(&data).as_bytes(), "block {index}");
        assert!(got.data == data, "block {index}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocks_go_over_both_sockets_both_ways_and_each_comes_once() {
    for tls in [false, true] {
        let (a, b) = pair(tls);
        let (there, back) = (blocks(60), blocks(60));
        let (conn, other) = with_lane(&a, &b).await;
        for notes in [&a.notes, &b.notes] {
            // So that none of them can be done before the other has begun.
            notes.slow.store(5, Ordering::SeqCst);
        }
        send(&a, &b, &conn, there);
        send(&b, &a, &other, back);
        for to in [&a, &b] {
            check(to, 60).await;
            let on_lane = to.notes.on_lanes.load(Ordering::SeqCst);
            assert!((1..60).contains(&on_lane), "{on_lane} of 60 over the lane");
        }
        assert!(!conn.is_closed() && !other.is_closed());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_that_nobody_needs_goes_and_the_connection_stays_and_may_have_another() {
    for tls in [false, true] {
        let (a, b) = pair(tls);
        let (conn, other) = with_lane(&a, &b).await;
        for again in 0..2 {
            let gone = || !conn.lane.is_up() && !other.lane.is_up();
            until("its end", SOON, gone).await;
            assert!(a.notes.reasons().is_empty() && b.notes.reasons().is_empty());
            let (same, _) = with_lane(&a, &b).await;
            assert_eq!(same.id(), conn.id(), "{again}");
        }
        send(&a, &b, &conn, blocks(20));
        check(&b, 20).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_ends_with_its_connection_at_both_ends() {
    for tls in [false, true] {
        let (a, b) = pair(tls);
        b.notes.slow.store(20, Ordering::SeqCst);
        let there = blocks(40);
        let (conn, other) = with_lane(&a, &b).await;
        send(&a, &b, &conn, there);
        tokio::time::sleep(Duration::from_millis(50)).await;
        conn.close(CloseReason::Local("gone".to_owned()));
        let told = || a.notes.reasons().len() == 1 && b.notes.reasons().len() == 1;
        until("the end", SOON, told).await;
        assert_eq!(a.notes.reasons(), ["closed here: gone"]);
        assert!(!conn.lane.is_up() && !other.lane.is_up());
        // And there is no further one.
        assert!(conn.lane.begin().is_none() && other.lane.begin().is_none());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lie_ends_the_connection_whichever_socket_it_came_over() {
    for tls in [false, true] {
        let (a, b) = pair(tls);
        b.notes.slow.store(5, Ordering::SeqCst);
        b.notes.lies_from.store(10, Ordering::SeqCst);
        let there = blocks(40);
        let (conn, _) = with_lane(&a, &b).await;
        send(&a, &b, &conn, there);
        until("the end", SOON, || !b.notes.reasons().is_empty()).await;
        let said = b.notes.reasons().concat();
        assert!(said.contains("is a lie"), "{said}");
    }
}

/// A connection of somebody's to `to`, and a lane of it.
async fn raw_with_lane(to: &Peer, id: NodeId) -> (Raw, Raw) {
    let (first, theirs) = Raw::answer(to, Greeting::new(id, MESH)).await.unwrap();
    until("the connection", SOON, || to.mesh.get(&id).is_some()).await;
    let lane = Greeting::new(id, MESH).of_lane(theirs.conn);
    let (mut lane, _) = Raw::answer(to, lane).await.expect("it takes a lane");
    let conn = to.mesh.get(&id).unwrap();
    assert!(!conn.lane.is_up(), "before the other end hears");
    lane.send(&Raw::header(kind::PING, 0)).await;
    until("a lane", SOON, || conn.lane.is_up()).await;
    (first, lane)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_no_connection_or_has_a_lane_already_gets_none() {
    let to = Peer::plain(1);
    let id = NodeId([9; 16]);
    let lane = |conn| Greeting::new(id, MESH).of_lane(conn);
    let refused = async |greeting| Raw::answer(&to, greeting).await.is_none();
    assert!(refused(lane(1)).await, "of no connection");
    let (_first, _lane) = raw_with_lane(&to, id).await;
    let number = to.mesh.get(&id).unwrap().lane.numbers.0;
    assert!(refused(lane(number)).await, "a second one");
    assert!(refused(lane(number + 1)).await, "of another connection");
    let stranger = Greeting::new(id, [8; 16]).of_lane(number);
    assert!(refused(stranger).await, "of another mesh");
    assert_eq!(to.notes.open_now(), 1, "the first one stays");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_this_side_dialled_is_given_no_lane_by_the_other() {
    let (a, b) = pair(false);
    let conn = a.connect(&b).await;
    let lane = Greeting::new(b.id, MESH).of_lane(conn.lane.numbers.0);
    assert!(Raw::answer(&a, lane).await.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_is_for_who_has_the_certificate_of_its_connection() {
    let ca = Ca::new();
    let (a, b) = (ca.peer(1), ca.peer(2));
    with_lane(&a, &b).await;
    let other = b.mesh.get(&a.id).unwrap();
    until("its end", SOON, || other.lane.one.available_permits() == 1).await;
    // One who says that it is `a`, and has a certificate of its own.
    let theirs = ca.security(&NodeId([3; 16]));
    let liar = Peer::of(a.id, MESH, theirs, QUICK);
    let numbered = |n| Greeting::new(b.id, MESH).numbered(n);
    let lane = Lane::new(&numbered(1), &numbered(other.lane.numbers.0), true);
    let conn = Conn::new(1, b.id, b.addr, true, None, lane);
    let said = liar.mesh.dial_lane(&conn).await.unwrap_err();
    assert!(!other.lane.is_up() && !other.is_closed(), "{said}");
    let said = a.mesh.dial_lane(&a.mesh.get(&b.id).unwrap()).await;
    assert!(said.is_ok(), "a itself may");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_blocks_are_taken_from_a_lane() {
    for frame in [
        Raw::header(kind::PING, 0).to_vec(),
        Raw::header(kind::CLOSE, 4).to_vec(),
        Raw::header(200, 8).to_vec(),
        Raw::data(1, 100, 70, 5),
    ] {
        let to = Peer::plain(1);
        let (mut first, mut lane) = raw_with_lane(&to, NodeId([9; 16])).await;
        lane.send(&frame).await;
        first.hung_up().await;
        let said = to.notes.reasons().concat();
        assert!(said.contains("violation"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_cut_in_a_block_ends_the_connection_and_one_of_silence_alone_does_not() {
    let to = Peer::plain(1);
    let (mut first, mut lane) = raw_with_lane(&to, NodeId([9; 16])).await;
    lane.send(&Raw::data(1, 1000, 70, 12 + 1000 + 70)).await;
    drop(lane);
    first.hung_up().await;

    let (_first, mut lane) = raw_with_lane(&to, NodeId([8; 16])).await;
    // It says nothing, and not that it will say nothing more either.
    lane.hung_up().await;
    let conn = to.mesh.get(&NodeId([8; 16])).expect("it stays");
    let may_have_another = || conn.lane.begin().is_some();
    until("its end", SOON, may_have_another).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_whose_other_end_never_hears_costs_nothing() {
    let to = Peer::plain(1);
    let id = NodeId([9; 16]);
    let (_first, theirs) = Raw::answer(&to, Greeting::new(id, MESH)).await.unwrap();
    until("the connection", SOON, || to.mesh.get(&id).is_some()).await;
    let conn = to.mesh.get(&id).unwrap();
    let lane = Greeting::new(id, MESH).of_lane(theirs.conn);
    for says in [None, Some(kind::CLOSE)] {
        let (mut raw, _) = Raw::answer(&to, lane).await.expect("it takes a lane");
        if let Some(kind) = says {
            raw.send(&Raw::header(kind, 0)).await;
        }
        drop(raw);
        until("its end", SOON, || conn.lane.one.available_permits() == 1).await;
        assert!(!conn.is_closed(), "{says:?}");
    }
    // Nor does one who keeps it waiting keep it for ever.
    let (mut raw, _) = Raw::answer(&to, lane).await.expect("it takes a lane");
    raw.hung_up().await;
    assert!(!conn.is_closed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_reads_nothing_for_its_own_reasons_loses_no_block_of_a_lane() {
    for tls in [false, true] {
        let ca = Ca::new();
        // Whose connections' own tasks stand still too, which is not what this is about.
        let patient = Timeouts {
            silence: SOON,
            ..QUICK
        };
        let peer = |n| match tls {
            true => Peer::new(n, ca.security(&NodeId([n; 16])), patient),
            false => Peer::new(n, Security::plaintext(), patient),
        };
        let (a, b) = (peer(1), peer(2));
        let there = blocks(4);
        let (conn, other) = with_lane(&a, &b).await;
        let pausing = other.pause();
        // Longer than a lane lives that says nothing.
        b.notes.slow.store(1200, Ordering::SeqCst);
        send(&a, &b, &conn, there);
        check(&b, 4).await;
        drop(pausing);
        let reasons = [a.notes.reasons(), b.notes.reasons()];
        assert!(reasons.concat().is_empty(), "{reasons:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_that_is_woken_for_nothing_goes_as_if_it_had_not_been() {
    let (a, b) = pair(false);
    let there = blocks(20);
    let (conn, other) = with_lane(&a, &b).await;
    for _ in 0..600 {
        conn.wake();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(!conn.lane.is_up() && !other.lane.is_up());
    send(&a, &b, &conn, there);
    check(&b, 20).await;
}
