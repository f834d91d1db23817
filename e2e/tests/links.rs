//! Links that are cut, half open or slow, of real processes on machines of their own. Nobody is told
//! of such a thing by a closed connection: only silence tells.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::time::{Duration, Instant};

use common::{LIMIT, MIB, Setting, alone};
use dragonfly_e2e::links::Links;
use dragonfly_e2e::mesh::Options;

/// The machines, in the order of the members.
const SCHEDULER: usize = 0;
const SEED: usize = 1;
const FIRST: usize = 2;
/// What the origin takes for the content.
const WHOLE: Duration = Duration::from_millis(3200);
/// Silence is noticed after three seconds, and the next one is there at once.
const NOTICED: Duration = Duration::from_secs(6);

/// A mesh of three peers, each part on a machine of its own, and an origin beside them.
async fn mesh(seeds: usize) -> (Links, Setting) {
    let links = Links::new(1 + seeds + 3).unwrap();
    let options = Options {
        seeds,
        peers: 3,
        places: links.places(),
        ..Options::default()
    };
    let origin = format!("{}:0", Links::here());
    let s = Setting::at(&origin, &options, 32 * MIB, 10 * MIB).await;
    (links, s)
}

#[test]
fn a_peer_whose_link_is_cut_holds_nobody_up_and_finishes_once_it_is_mended() {
    alone(
        "a_peer_whose_link_is_cut_holds_nobody_up_and_finishes_once_it_is_mended",
        || async {
            let (links, s) = mesh(1).await;
            let mut gets = s.all_get();
            gets[0].until(8 * MIB, LIMIT).await.unwrap();
            links.cut(FIRST, true).unwrap();
            let cut_off = gets.remove(0);
            for ended in s.all_have(gets).await {
                assert!(ended.took < WHOLE + NOTICED, "took {:?}", ended.took);
            }
            assert!(!cut_off.state().done, "it has no link");
            links.cut(FIRST, false).unwrap();
            let mended = Instant::now();
            s.has(cut_off).await;
            assert!(
                mended.elapsed() < Duration::from_secs(15),
                "{:?}",
                mended.elapsed()
            );
            s.origin_sent_at_most(4 * MIB);
        },
    );
}

#[test]
fn a_peer_that_hears_nothing_but_is_heard_holds_nobody_up() {
    alone(
        "a_peer_that_hears_nothing_but_is_heard_holds_nobody_up",
        || async {
            let (links, s) = mesh(1).await;
            let mut gets = s.all_get();
            gets[0].until(8 * MIB, LIMIT).await.unwrap();
            links.deafen(FIRST, true).unwrap();
            let deaf = gets.remove(0);
            for ended in s.all_have(gets).await {
                assert!(ended.took < WHOLE + NOTICED, "took {:?}", ended.took);
            }
            links.deafen(FIRST, false).unwrap();
            s.has(deaf).await;
            s.origin_sent_at_most(4 * MIB);
        },
    );
}

#[test]
fn downloads_go_on_while_the_schedulers_link_is_cut_and_new_ones_after_it_is_mended() {
    alone(
        "downloads_go_on_while_the_schedulers_link_is_cut_and_new_ones_after_it_is_mended",
        || async {
            let (links, s) = mesh(1).await;
            let mut gets = s.all_get();
            gets[0].until(8 * MIB, LIMIT).await.unwrap();
            links.cut(SCHEDULER, true).unwrap();
            for ended in s.all_have(gets).await {
                assert!(ended.took < WHOLE + NOTICED, "took {:?}", ended.took);
            }
            s.origin_sent_at_most(2 * MIB);
            links.cut(SCHEDULER, false).unwrap();
            let url = s.origin.serve("another.bin", &s.source.path).unwrap();
            for peer in 0..3 {
                s.has(s.mesh.get(peer, &url, &[]).unwrap()).await;
            }
        },
    );
}

#[test]
fn another_seed_takes_over_when_ones_link_is_cut() {
    alone("another_seed_takes_over_when_ones_link_is_cut", || async {
        let (links, s) = mesh(2).await;
        let mut gets = s.all_get();
        gets[0].until(8 * MIB, LIMIT).await.unwrap();
        let mut read = vec![];
        for seed in &s.mesh.seeds {
            let metric = seed.metric("dragonfly_node_origin_read_bytes_total");
            read.push(metric.await.unwrap());
        }
        let busy = if read[0] >= read[1] { 0 } else { 1 };
        links.cut(SEED + busy, true).unwrap();
        s.all_have(gets).await;
        // What the one read and could not tell the others, and what stood in its sockets.
        s.origin_sent_at_most(16 * MIB);
    });
}

#[test]
fn a_peer_with_a_hundredth_of_the_others_link_holds_nobody_up() {
    alone(
        "a_peer_with_a_hundredth_of_the_others_link_holds_nobody_up",
        || async {
            let (links, s) = mesh(1).await;
            for machine in 0..5 {
                links.slow(machine, 100).unwrap();
            }
            links.slow(FIRST, 1).unwrap();
            let mut gets = s.all_get();
            let slow = gets.remove(0);
            for ended in s.all_have(gets).await {
                // 32 MiB at 100 Mbit/s are 2.8 s; the origin takes longer.
                assert!(ended.took < 2 * WHOLE, "took {:?}", ended.took);
            }
            assert!(!slow.state().done);
            links.slow(FIRST, 100).unwrap();
            s.has(slow).await;
            s.origin_sent_at_most(4 * MIB);
        },
    );
}

#[test]
fn an_origin_whose_link_is_cut_for_seconds_fails_no_download() {
    alone(
        "an_origin_whose_link_is_cut_for_seconds_fails_no_download",
        || async {
            let (links, s) = mesh(1).await;
            let mut gets = s.all_get();
            gets[0].until(8 * MIB, LIMIT).await.unwrap();
            // Only the seed goes to the origin, but peers reach it neither: all is on one bridge.
            for _ in 0..2 {
                links.cut(SEED, true).unwrap();
                tokio::time::sleep(Duration::from_millis(1500)).await;
                links.cut(SEED, false).unwrap();
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            s.all_have(gets).await;
            s.origin_sent_at_most(16 * MIB);
        },
    );
}

#[test]
fn who_is_far_away_asks_for_more_at_once() {
    alone("who_is_far_away_asks_for_more_at_once", || async {
        let mut links = Links::new(3).unwrap();
        links.far(FIRST, Duration::from_millis(50)).unwrap();
        let options = Options {
            seeds: 1,
            peers: 1,
            places: links.places(),
            ..Options::default()
        };
        let origin = format!("{}:0", Links::here());
        let s = Setting::at(&origin, &options, 32 * MIB, 0).await;
        for ended in s.all_have(s.all_get()).await {
            // With a window that does not grow with the round trip of 100 ms it takes 30 s.
            assert!(
                ended.took < Duration::from_secs(12),
                "took {:?}",
                ended.took
            );
        }
        s.origin_sent_at_most(0);
    });
}
