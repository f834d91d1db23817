//! Large blocks from who sends faster than they are taken: stored while the next one arrives.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod kit;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use dragonfly_proto::frame::Frame;
use dragonfly_transport::{CloseReason, Security};
use kit::{Ca, Peer, QUICK, SOON, bytes, in_memory, until};

const LARGE: usize = 512 << 10;

/// A sender and a receiver that takes `slow` milliseconds for each block.
fn pair(tls: bool, slow: u64) -> (Peer, Peer) {
    let ca = Ca::new();
    let peer = |n: u8| match tls {
        true => ca.peer(n),
        false => Peer::new(n, Security::plaintext(), QUICK),
    };
    let (from, to) = (peer(1), peer(2));
    to.notes.slow.store(slow, Ordering::SeqCst);
    (from, to)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocks_come_whole_and_in_order_and_frames_behind_those_before_them() {
    for tls in [false, true] {
        let (from, to) = pair(tls, 40);
        let conn = from.connect(&to).await;
        let blocks = 20_u32;
        for index in 0..blocks {
            // Sizes differ, so that buffers are larger than what is in them.
            let len = LARGE - 1000 * index as usize;
            let data = bytes(len, index.into());
            from.notes.queue(&to.id, in_memory(1, index, data));
        }
        conn.wake();
        let frames = 10;
        for n in 0..frames {
            tokio::time::sleep(Duration::from_millis(20)).await;
            conn.send(1, &Frame::Priority(n));
        }
        let notes = &to.notes;
        let all = || {
            let (blocks_now, frames_now) =
                (notes.blocks.lock().unwrap(), notes.frames.lock().unwrap());
            blocks_now.len() == blocks as usize && frames_now.len() == usize::from(frames)
        };
        until("all blocks and frames", SOON, all).await;
        for (index, got) in notes.blocks.lock().unwrap().iter().enumerate() {
            let data = bytes(LARGE - 1000 * index, index as u64);
            assert_eq!(got.index as usize, index, "in order");
            assert_eq!(got.hash, *blake3::hash(&data).as_bytes(), "block {index}");
            assert!(got.data == data, "block {index}");
        }
        assert!(
            !notes.out_of_turn.load(Ordering::SeqCst),
            "a frame beside a block"
        );
        let processors = std::thread::available_parallelism().unwrap().get();
        let beside = notes.beside.load(Ordering::SeqCst);
        assert!(processors == 1 || beside > 0, "none came beside another");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lie_is_why_the_connection_ends_though_the_liar_hangs_up_or_says_nothing_more() {
    for (tls, hangs_up) in [(false, true), (true, true), (false, false), (true, false)] {
        let (from, to) = pair(tls, 200);
        to.notes.lies_from.store(2, Ordering::SeqCst);
        let conn = from.connect(&to).await;
        for index in 0..3 {
            let data = bytes(LARGE / 2, index.into());
            from.notes.queue(&to.id, in_memory(1, index, data));
        }
        conn.wake();
        let sent = || from.notes.sent.load(Ordering::Relaxed) == 3 * LARGE as u64 / 2;
        until("three blocks to leave", SOON, sent).await;
        if hangs_up {
            conn.close(CloseReason::Local("gone".to_owned()));
        }
        let since = Instant::now();
        until("the end", SOON, || !to.notes.reasons().is_empty()).await;
        let reasons = to.notes.reasons();
        assert!(reasons[0].contains("block 2 is a lie"), "{reasons:?}");
        // Three blocks take 0.6 s; silence would be noticed after 2.5.
        let late = since.elapsed();
        assert!(late < Duration::from_secs(2), "{late:?}");
        assert!(
            !to.notes.out_of_turn.load(Ordering::SeqCst),
            "told of beside a block"
        );
        assert_eq!(to.notes.blocks.lock().unwrap().len(), 2);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_handed_over_behind_a_lie() {
    // What is said of a block comes while the next one is read, or while its reader waits for room.
    for (tls, slow) in [(false, 0), (true, 0), (false, 50)].repeat(8) {
        let (from, to) = pair(tls, slow);
        to.notes.lies_from.store(2, Ordering::SeqCst);
        let conn = from.connect(&to).await;
        for index in 0..12 {
            let data = bytes(LARGE, index.into());
            from.notes.queue(&to.id, in_memory(1, index, data));
        }
        conn.wake();
        until("the end", SOON, || !to.notes.reasons().is_empty()).await;
        let reasons = to.notes.reasons();
        assert!(reasons[0].contains("block 2 is a lie"), "{reasons:?}");
        assert_eq!(to.notes.handed.load(Ordering::SeqCst), 3);
    }
}
