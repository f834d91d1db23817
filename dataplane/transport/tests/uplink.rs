//! One line for all connections with blocks to send.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod kit;

use std::sync::atomic::Ordering;
use std::time::Duration;

use dragonfly_proto::frame::Frame;
use kit::{Peer, bytes, in_memory, until};

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
