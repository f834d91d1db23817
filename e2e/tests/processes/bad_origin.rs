//! Origins that misbehave, and two peers of real processes that want what they have: it ends soon, with
//! the right bytes or with an error that says what the origin did, and nothing wrong is kept.

#[path = "../../../dataplane/node/tests/kit/scripted.rs"]
mod scripted;

use std::sync::Arc;
use std::time::Duration;

use crate::common::{LIMIT, MIB};
use dragonfly_e2e::get::Ended;
use dragonfly_e2e::mesh::{Mesh, Options};
use dragonfly_e2e::sample;
use scripted::{Script, Scripted};

fn body(len: u64, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(len).unwrap()];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes
}

/// Two peers, and a policy that waits less long for an origin than people have to.
async fn mesh() -> Mesh {
    let options = Options {
        spec: "  sources: {http: {stallTimeout: 2s}}\n".to_owned(),
        ..Options::default()
    };
    Mesh::start(&options).await.unwrap()
}

/// Both peers get a URL; where they have it is compared with what it should be.
async fn both(mesh: &Mesh, url: &str, name: &str) -> Vec<(Ended, Option<Vec<u8>>)> {
    let gets: Vec<_> = (0..2).map(|p| mesh.get(p, url, &[]).unwrap()).collect();
    let mut all = vec![];
    for get in gets {
        let output = get.output.clone();
        let ended = get
            .wait(LIMIT)
            .await
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        let there = std::fs::read(&output).ok();
        if there.is_some() {
            std::fs::remove_file(&output).unwrap();
        }
        all.push((ended, there));
    }
    all
}

async fn both_have(mesh: &Mesh, origin: &Scripted, path: &str, wanted: &[u8], limit: Duration) {
    for (ended, there) in both(mesh, &origin.url(path), path).await {
        assert_eq!(ended.code, Some(0), "{path}: {}", ended.complaint());
        assert!(ended.took < limit, "{path}: took {:?}", ended.took);
        assert!(there.unwrap() == wanted, "{path}: other bytes");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_origin_does_for_a_while_costs_time_and_no_byte() {
    let mesh = mesh().await;
    let wanted = body(6 * MIB, 1);
    let bad = |requests: u64, change: fn(&mut Script)| {
        let mut script = Script::of(wanted.clone());
        script.bad_requests = requests;
        change(&mut script);
        script
    };
    for (path, limit, script) in [
        ("500-twice", 10, bad(2, |s| s.status = 500)),
        ("503-twice", 10, bad(2, |s| s.status = 503)),
        (
            "503-for-a-second",
            15,
            bad(1, |s| (s.status, s.retry_after) = (503, Some(1))),
        ),
        ("429-twice", 10, bad(2, |s| s.status = 429)),
        (
            "429-for-two-seconds",
            15,
            bad(1, |s| (s.status, s.retry_after) = (429, Some(2))),
        ),
        (
            "closes-at-once-twice",
            10,
            bad(2, |s| s.cut_after = Some(0)),
        ),
        (
            "closes-early-each-time",
            20,
            bad(u64::MAX, |s| s.cut_after = Some(MIB as usize)),
        ),
        (
            "stops-half-way",
            15,
            bad(1, |s| s.stall_after = Some(3 * MIB as usize)),
        ),
        // Something comes all the time, and never enough.
        ("slows-to-nothing", 15, bad(1, |s| s.rate = 2 << 10)),
        ("no-length", 10, bad(0, |s| s.says_length = false)),
        ("slow", 20, bad(u64::MAX, |s| s.rate = MIB)),
    ] {
        let origin = Scripted::start(script).await;
        both_have(&mesh, &origin, path, &wanted, Duration::from_secs(limit)).await;
        // Whatever it did, what it sent was not sent twice but for what was cut off or refused.
        let most = wanted.len() as u64 + 8 * 64 * 1024;
        assert!(
            origin.sent() <= most,
            "{path}: {} bytes sent",
            origin.sent()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_origin_refuses_is_an_error_that_says_so_and_stands_in_nobodys_way_later() {
    let mesh = mesh().await;
    let wanted = body(2 * MIB, 3);
    for (status, code, limit) in [
        (403, 3, 5),
        (404, 3, 5),
        (410, 3, 5),
        (416, 3, 5),
        (429, 5, 30),
        (500, 5, 30),
        (503, 5, 30),
    ] {
        let mut script = Script::of(wanted.clone());
        script.status = status;
        let origin = Scripted::start(script).await;
        let path = format!("always-{status}");
        for (ended, there) in both(&mesh, &origin.url(&path), &path).await {
            assert_eq!(ended.code, Some(code), "{path}: {}", ended.complaint());
            let said = ended.complaint();
            assert!(said.contains(&status.to_string()), "{path}: {said}");
            assert!(
                ended.took < Duration::from_secs(limit),
                "{path}: took {:?}",
                ended.took
            );
            assert!(there.is_none(), "{path}: a file of it");
        }
        origin.change(|s| s.status = 200);
        both_have(&mesh, &origin, &path, &wanted, Duration::from_secs(5)).await;
    }
    let always = |change: fn(&mut Script)| {
        let mut script = Script::of(wanted.clone());
        change(&mut script);
        script
    };
    for (path, script) in [
        ("hangs-up", always(|s| s.cut_after = Some(0))),
        ("never-says-more", always(|s| s.stall_after = Some(0))),
        ("trickles", always(|s| s.rate = 1 << 10)),
    ] {
        let origin = Scripted::start(script).await;
        for (ended, there) in both(&mesh, &origin.url(path), path).await {
            assert_eq!(ended.code, Some(5), "{path}: {}", ended.complaint());
            assert!(ended.took < LIMIT, "{path}: took {:?}", ended.took);
            assert!(there.is_none(), "{path}: a file of it");
        }
        origin.change(|s| (s.cut_after, s.stall_after, s.rate) = (None, None, 0));
        both_have(&mesh, &origin, path, &wanted, Duration::from_secs(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn content_that_changes_under_way_ends_as_one_version_everywhere() {
    let mesh = mesh().await;
    let (old, new) = (body(12 * MIB, 4), body(12 * MIB, 5));
    for closes in [true, false] {
        let mut script = Script::of(old.clone());
        script.rate = 6 * MIB;
        // The rest has to be asked for again, or comes with the connection that is open.
        script.cut_after = closes.then_some(4 * MIB as usize);
        let origin = Scripted::start(script).await;
        let path = format!("changes-{closes}");
        let url = origin.url(&path);
        let change = async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            origin.change(|s| {
                s.body = Arc::new(new.clone());
                (s.etag, s.rate, s.cut_after) = ("\"v2\"".to_owned(), 0, None);
            });
        };
        let (ended, ()) = tokio::join!(both(&mesh, &url, &path), change);
        for (ended, there) in ended {
            assert_eq!(ended.code, Some(0), "{path}: {}", ended.complaint());
            let there = there.unwrap();
            assert!(there == new || !closes && there == old, "{path}: a mixture");
        }
    }
    // What each node keeps of it all is what it was given: it is compared again when it is read.
    for peer in &mesh.peers {
        assert!(peer.state.is_dir());
        assert!(sample::files_below(&peer.state).len() > 1);
    }
}
