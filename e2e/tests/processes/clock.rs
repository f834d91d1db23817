//! Wall clocks that are set while real processes work.

use std::time::Duration;

use crate::common::{LIMIT, MIB, Setting};
use dragonfly_e2e::clock::Clocks;
use dragonfly_e2e::mesh::{Mesh, Options};
use dragonfly_e2e::origin::Origin;
use dragonfly_e2e::sample;

const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;

/// A mesh each member of which has a clock.
async fn with_clocks(spec: &str, len: u64, rate: u64) -> (Clocks, Setting) {
    let options = Options {
        spec: spec.to_owned(),
        ..Options::default()
    };
    let mut mesh = Mesh::prepare(&options).unwrap();
    let clocks = Clocks::new(&mesh.dir().join("clocks")).unwrap();
    clocks.give_all(&mut mesh);
    mesh.begin().await.unwrap();
    let origin = Origin::start(rate).await.unwrap();
    let source = sample::random(&mesh.dir().join("source"), len, len).unwrap();
    let url = origin.serve("file.bin", &source.path).unwrap();
    let s = Setting {
        mesh,
        origin,
        source,
        url,
    };
    (clocks, s)
}

#[tokio::test(flavor = "multi_thread")]
async fn clocks_that_are_set_while_a_download_runs_do_not_disturb_it() {
    // Whose clock is set, and by how much: an hour is what time zones and dead batteries do, more than
    // a day is beyond what a ticket admits.
    for (whose, offset) in [
        ("peer-0", HOUR),
        ("peer-0", -HOUR),
        ("peer-0", 2 * DAY),
        ("peer-0", -400 * DAY),
        ("seed", 2 * DAY),
        ("seed", -2 * DAY),
        ("scheduler", 2 * DAY),
        ("scheduler", -2 * DAY),
        ("", 2 * DAY),
        ("", -2 * DAY),
    ] {
        let (clocks, s) = with_clocks("", 16 * MIB, 8 * MIB).await;
        let mut gets = s.all_get();
        gets[0].until(4 * MIB, LIMIT).await.unwrap();
        for member in s.mesh.members().filter(|m| m.name.starts_with(whose)) {
            clocks.set(&member.name, offset).unwrap();
        }
        for get in gets {
            let ended = get.wait(LIMIT).await.unwrap();
            assert_eq!(
                ended.code,
                Some(0),
                "{whose} {offset}: {}",
                ended.complaint()
            );
        }
        for peer in &s.mesh.peers {
            let output = s.mesh.work.join(format!("{}.out", peer.name));
            assert_eq!(sample::digest(&output).unwrap(), s.source.digest);
        }
        s.origin_sent_at_most(0);
        // And the next download, which begins with the clocks as they are now, goes well or says why.
        let url = s.origin.serve("another.bin", &s.source.path).unwrap();
        for peer in 0..2 {
            let get = s.mesh.get(peer, &url, &[]).unwrap();
            let (output, ended) = (get.output.clone(), get.wait(LIMIT).await.unwrap());
            assert_eq!(
                ended.code,
                Some(0),
                "{whose} {offset}: {}",
                ended.complaint()
            );
            assert_eq!(sample::digest(&output).unwrap(), s.source.digest);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scheduler_that_was_started_with_a_clock_that_is_ahead_keeps_nobody_out() {
    let (clocks, mut s) = with_clocks("", MIB, 0).await;
    clocks.set(&s.mesh.scheduler.name, 2 * DAY).unwrap();
    for set_right in [false, true] {
        if set_right {
            clocks.set(&s.mesh.scheduler.name, 0).unwrap();
        } else {
            s.mesh.scheduler.kill();
            s.mesh.scheduler.start().unwrap();
        }
        // Nodes that start now ask it who they are.
        for node in s.mesh.seeds.iter_mut().chain(&mut s.mesh.peers) {
            node.kill();
            node.start().unwrap();
        }
        for node in s.mesh.seeds.iter_mut().chain(&mut s.mesh.peers) {
            node.ready().await.unwrap();
        }
        s.url = s
            .origin
            .serve(&format!("{set_right}.bin"), &s.source.path)
            .unwrap();
        s.all_have(s.all_get()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_had_before_the_clock_was_set_back_is_not_fresh_for_longer() {
    let (clocks, s) = with_clocks("  sources: {http: {freshness: 1s}}\n", MIB, 0).await;
    s.all_have(s.all_get()).await;
    for member in s.mesh.members() {
        clocks.set(&member.name, -HOUR).unwrap();
    }
    let changed = sample::random(&s.mesh.dir().join("changed"), MIB, 2).unwrap();
    let url = s.origin.serve("file.bin", &changed.path).unwrap();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    for peer in 0..2 {
        let get = s.mesh.get(peer, &url, &[]).unwrap();
        let (output, ended) = (get.output.clone(), get.wait(LIMIT).await.unwrap());
        assert_eq!(ended.code, Some(0), "{}", ended.complaint());
        assert_eq!(sample::digest(&output).unwrap(), changed.digest);
    }
}
