//! Deaths and stalls of real processes during downloads: each ends with the right bytes everywhere.
//!
//! The origin is slow enough for every fault to fall into the download.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::time::Duration;

use common::{LIMIT, MIB, Setting};
use dragonfly_e2e::mesh::Options;
use rustix::process::Signal;

/// What a dying process may take with it: blocks on their way.
const IN_FLIGHT: u64 = 2 * MIB;

#[tokio::test(flavor = "multi_thread")]
async fn downloads_go_on_while_the_scheduler_is_dead_and_after_it_is_back() {
    let options = Options {
        peers: 3,
        ..Options::default()
    };
    let mut s = Setting::new(&options, 32 * MIB, 10 * MIB).await;
    let mut gets = s.all_get();
    gets[0].until(8 * MIB, LIMIT).await.unwrap();
    s.mesh.scheduler.kill();
    let had = gets[0].state().have;
    gets[0].until(had + 4 * MIB, LIMIT).await.unwrap();
    s.mesh.scheduler.start().unwrap();
    s.all_have(gets).await;
    s.origin_sent_at_most(IN_FLIGHT);
    for node in s.mesh.peers.iter_mut().chain(&mut s.mesh.seeds) {
        node.ready().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scheduler_and_a_peer_that_die_at_once_cost_no_byte_of_the_origin_twice() {
    let options = Options {
        peers: 3,
        ..Options::default()
    };
    let mut s = Setting::new(&options, 64 * MIB, 16 * MIB).await;
    let mut gets = s.all_get();
    gets[0].until(24 * MIB, LIMIT).await.unwrap();
    s.mesh.scheduler.kill();
    s.mesh.peers[0].kill();
    tokio::time::sleep(Duration::from_secs(1)).await;
    s.mesh.scheduler.start().unwrap();
    s.mesh.peers[0].start().unwrap();
    s.all_have(gets).await;
    assert_eq!(s.origin.sent_again("file.bin"), []);
    s.origin_sent_at_most(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_seed_takes_over_when_one_is_killed() {
    let options = Options {
        seeds: 2,
        peers: 2,
        ..Options::default()
    };
    let mut s = Setting::new(&options, 32 * MIB, 8 * MIB).await;
    let mut gets = s.all_get();
    gets[0].until(8 * MIB, LIMIT).await.unwrap();
    let mut read = vec![];
    for seed in &s.mesh.seeds {
        read.push(
            seed.metric("dragonfly_node_origin_read_bytes_total")
                .await
                .unwrap(),
        );
    }
    assert!(read[0].max(read[1]) > 0.0, "{read:?}");
    let busy = if read[0] >= read[1] { 0 } else { 1 };
    s.mesh.seeds[busy].kill();
    s.all_have(gets).await;
    // What lay in its socket unread, which is more where processors are busy.
    s.origin_sent_at_most(2 * IN_FLIGHT);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_peers_get_goes_on_with_what_the_peer_kept_when_it_is_started_again() {
    let options = Options {
        peers: 3,
        ..Options::default()
    };
    let mut s = Setting::new(&options, 32 * MIB, 10 * MIB).await;
    let mut gets = s.all_get();
    gets[0].until(16 * MIB, LIMIT).await.unwrap();
    s.mesh.peers[0].kill();
    tokio::time::sleep(Duration::from_millis(300)).await;
    s.mesh.peers[0].start().unwrap();
    let ended = s.all_have(gets).await;
    let state = &ended[0].state;
    assert!(
        state.reconnects > 0 && state.kept > 4 * MIB,
        "kept {} bytes",
        state.kept
    );
    s.origin_sent_at_most(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_part_may_be_killed_in_turn() {
    let options = Options {
        seeds: 2,
        peers: 3,
        ..Options::default()
    };
    let mut s = Setting::new(&options, 32 * MIB, 6 * MIB).await;
    let gets = s.all_get();
    let away = Duration::from_millis(300);
    let mesh = &mut s.mesh;
    let parts = std::iter::once(&mut mesh.scheduler).chain(&mut mesh.seeds);
    for part in parts.chain(&mut mesh.peers) {
        tokio::time::sleep(away).await;
        part.kill();
        tokio::time::sleep(away).await;
        part.start().unwrap();
    }
    let ended = s.all_have(gets).await;
    assert!(ended.iter().any(|e| e.state.reconnects > 0));
    // What leaves the origin twice here is all that the first seed read until it died, 0.9 s into the
    // downloads (4.25 MiB at 6 MiB/s); nothing that was read after that does.
    s.origin_sent_at_most(4 * IN_FLIGHT);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_is_asked_to_end_under_load_loses_nothing() {
    let options = Options {
        peers: 3,
        ..Options::default()
    };
    let mut s = Setting::new(&options, 32 * MIB, 10 * MIB).await;
    let mut gets = s.all_get();
    gets[0].until(16 * MIB, LIMIT).await.unwrap();
    let had = gets[0].state().have;
    s.mesh.peers[0]
        .terminate(Duration::from_secs(10))
        .await
        .unwrap();
    s.mesh.peers[0].start().unwrap();
    let ended = s.all_have(gets).await;
    let kept = ended[0].state.kept;
    assert!(kept >= had, "{kept} bytes of {had} were there again");
    s.origin_sent_at_most(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn others_finish_while_a_peer_hangs_and_it_finishes_once_it_goes_on() {
    let options = Options {
        peers: 3,
        ..Options::default()
    };
    let mut s = Setting::new(&options, 32 * MIB, 10 * MIB).await;
    let mut gets = s.all_get();
    gets[0].until(8 * MIB, LIMIT).await.unwrap();
    s.mesh.peers[0].signal(Signal::STOP).unwrap();
    let hanging = gets.remove(0);
    s.all_have(gets).await;
    assert!(!hanging.state().done);
    s.mesh.peers[0].signal(Signal::CONT).unwrap();
    s.has(hanging).await;
    s.origin_sent_at_most(IN_FLIGHT);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_at_a_hundredth_of_its_speed_holds_nobody_up() {
    let options = Options {
        peers: 3,
        ..Options::default()
    };
    let mut s = Setting::new(&options, 32 * MIB, 10 * MIB).await;
    let mut gets = s.all_get();
    let slow = gets.remove(0);
    let mut peer = s.mesh.peers.remove(0);
    // Gets at the peers that are left; the slow one runs 5 of 500 milliseconds.
    let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
    let slowed = tokio::spawn(async move {
        while stopped.try_recv().is_err() {
            peer.signal(Signal::STOP).unwrap();
            tokio::time::sleep(Duration::from_millis(495)).await;
            peer.signal(Signal::CONT).unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        peer
    });
    let ended = s.all_have(gets).await;
    assert!(!slow.state().done);
    for e in ended {
        // 3.2 s is what the origin takes.
        assert!(e.took < Duration::from_secs(8), "took {:?}", e.took);
    }
    stop.send(()).unwrap();
    let _peer = slowed.await.unwrap();
    s.has(slow).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_is_started_again_has_its_cache() {
    for plaintext in [false, true] {
        let options = Options {
            peers: 1,
            plaintext,
            ..Options::default()
        };
        let mut s = Setting::new(&options, 8 * MIB, 0).await;
        s.all_have(s.all_get()).await;
        s.mesh.peers[0]
            .terminate(Duration::from_secs(10))
            .await
            .unwrap();
        s.mesh.peers[0].start().unwrap();
        s.mesh.peers[0].ready().await.unwrap();
        let sent = s.origin.sent();
        let ended = s.all_have(s.all_get()).await;
        let traffic = ended[0].state.traffic;
        assert_eq!((traffic.origin, traffic.seeds, traffic.peers), (0, 0, 0));
        assert_eq!((s.origin.sent(), traffic.cache), (sent, 8 * MIB));
    }
}
