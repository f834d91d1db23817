//! One line for all connections with blocks to send.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod kit;

use std::sync::atomic::Ordering;
use std::time::Duration;

use dragonfly_proto::frame::Frame;
use dragonfly_proto::id::NodeId;
use dragonfly_transport::{Security, Timeouts};
use kit::{Peer, QUICK, Raw, bytes, in_memory, until};
use tokio::io::AsyncReadExt;

const BLOCK: usize = 64 << 10;
const LIMIT: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn receivers_that_stand_still_hold_nobody_else_up() {
    let from = Peer::plain(1);
    let still: Vec<_> = (2..8).map(Peer::plain).collect();
    let quick = Peer::plain(8);
    for to in still.iter().chain([&quick]) {
        let stands_still = to.id != quick.id;
        to.notes.stall.store(stands_still, Ordering::SeqCst);
        let conn = from.connect(to).await;
        // More than the kernel takes for one connection.
        for index in 0..200 {
            let block = in_memory(1, index, bytes(BLOCK, index.into()));
            from.notes.queue(&to.id, block);
        }
        if stands_still {
            conn.wake();
        }
    }
    // They have taken what they take, and this node has waited for them for longer than it does.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let conn = from.mesh.get(&quick.id).unwrap();
    conn.wake();
    let got = || quick.notes.blocks.lock().unwrap().len() == 200;
    until("the quick one has all", LIMIT, got).await;
    let taken = |p: &Peer| p.notes.blocks.lock().unwrap().len();
    let all: Vec<_> = still.iter().map(taken).collect();
    assert!(all.iter().all(|n| *n == 1), "{all:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn receivers_that_take_a_little_now_and_then_hold_nobody_else_up() {
    // They say nothing, and that is not what ends them here.
    let patient = Timeouts {
        silence: Duration::from_secs(60),
        ..QUICK
    };
    let from = Peer::new(1, Security::plaintext(), patient);
    let queue = |to: &NodeId, blocks| {
        for index in 0..blocks {
            let block = in_memory(1, index, bytes(BLOCK, index.into()));
            from.notes.queue(to, block);
        }
    };
    let mut trickles = vec![];
    for n in 20..36 {
        let id = NodeId([n; 16]);
        let mut raw = Raw::narrow(&from, id).await;
        until("it is there", LIMIT, || from.mesh.get(&id).is_some()).await;
        queue(&id, 300);
        from.mesh.get(&id).unwrap().wake();
        // Its window opens by a packet or two at a time.
        trickles.push(tokio::spawn(async move {
            let mut buf = [0; 4 << 10];
            while raw.io.read_exact(&mut buf).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(30)).await;
            }
        }));
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let quick = Peer::plain(8);
    let conn = from.connect(&quick).await;
    // By the turns that nobody can take away alone, one in 50 ms, this would take 50 s.
    queue(&quick.id, 1000);
    conn.wake();
    let got = || quick.notes.blocks.lock().unwrap().len() == 1000;
    until("the quick one has all", LIMIT, got).await;
    for task in trickles {
        task.abort();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_get_their_blocks_and_what_is_said_meanwhile() {
    let from = Peer::plain(1);
    let to: Vec<_> = (2..14).map(Peer::plain).collect();
    for peer in &to {
        peer.notes.slow.store(2, Ordering::SeqCst);
        let conn = from.connect(peer).await;
        for index in 0..60 {
            let block = in_memory(1, index, bytes(BLOCK, index.into()));
            from.notes.queue(&peer.id, block);
        }
        conn.wake();
    }
    for n in 0..50 {
        for peer in &to {
            let conn = from.mesh.get(&peer.id).unwrap();
            conn.send(1, &Frame::Priority(n));
        }
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    let all = || {
        to.iter().all(|p| {
            let (blocks, frames) = (
                p.notes.blocks.lock().unwrap(),
                p.notes.frames.lock().unwrap(),
            );
            blocks.len() == 60 && frames.len() == 50
        })
    };
    until("all have all", LIMIT, all).await;
}
