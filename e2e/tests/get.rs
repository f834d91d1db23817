//! What scripts rely on when they call `dragonfly get`, at a node of a mesh or without any.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::os::unix::fs::symlink;

use common::{LIMIT, MIB, Setting, run, text};
use dragonfly_e2e::mesh::{Mesh, Options};
use dragonfly_e2e::origin::Origin;
use dragonfly_e2e::{binary, sample};

#[tokio::test(flavor = "multi_thread")]
async fn without_a_node_it_starts_one_of_its_own_and_leaves_only_the_file() {
    let (dir, temp) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let origin = Origin::start(0).await.unwrap();
    let source = sample::random(&dir.path().join("source"), 8 * MIB, 3).unwrap();
    let url = origin.serve("file.bin", &source.path).unwrap();
    // What it makes for itself goes to a directory that shows whether it is gone afterwards.
    let script = format!("TMPDIR={} exec \"$0\" \"$@\"", temp.path().display());
    let program = binary::dragonfly().unwrap().display().to_string();
    let args = [
        "-c",
        &script,
        &program,
        "get",
        &url,
        "--no-node",
        "-O",
        "out",
    ];
    let got = run("sh".as_ref(), dir.path(), &args).await;
    assert!(got.status.success(), "{}", text(&got.stderr));
    assert_eq!(
        sample::digest(&dir.path().join("out")).unwrap(),
        source.digest
    );
    assert_eq!(origin.sent(), source.len);
    assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 0);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_have_their_exit_codes_and_leave_no_file() {
    let s = Setting::new(
        &Options {
            peers: 1,
            ..Options::default()
        },
        4 * MIB,
        0,
    )
    .await;
    let socket = &s.mesh.peers[0].socket;
    let (missing, wrong) = (
        s.origin.url("missing"),
        format!("sha256:{}", "0".repeat(64)),
    );
    for (args, code, says) in [
        (vec!["get", &missing, "-O", "out"], 3, "404"),
        (
            vec!["get", &s.url, "-O", "out", "--digest", &wrong],
            4,
            "hashes to",
        ),
        // Again: nothing of the first failure is in the way.
        (
            vec!["get", &s.url, "-O", "out", "--digest", &wrong],
            4,
            "hashes to",
        ),
    ] {
        let got = s.run(socket, &args).await;
        let error = text(&got.stderr);
        assert_eq!(got.status.code(), Some(code), "{args:?}: {error}");
        assert!(error.contains(says), "{args:?}: {error}");
        assert!(!s.mesh.work.join("out").exists());
    }
    // Nor is it in the way of the right digest, or of none.
    let got = s.run(socket, &["get", &s.url, "-O", "out"]).await;
    assert!(got.status.success(), "{}", text(&got.stderr));
    let got = s
        .run(
            socket,
            &["get", &s.url, "-O", "out", "--digest", &s.source.digest],
        )
        .await;
    assert!(got.status.success(), "{}", text(&got.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_comes_in_order_while_others_download_too() {
    let s = Setting::new(
        &Options {
            peers: 3,
            ..Options::default()
        },
        16 * MIB,
        8 * MIB,
    )
    .await;
    let gets = s.all_get();
    let streamed = s
        .run(&s.mesh.peers[0].socket, &["get", &s.url, "-O", "-"])
        .await;
    assert!(streamed.status.success(), "{}", text(&streamed.stderr));
    assert!(streamed.stdout == std::fs::read(&s.source.path).unwrap());
    s.all_have(gets).await;
    s.origin_sent_at_most(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_is_away_for_a_moment_fails_no_download() {
    let s = Setting::new(
        &Options {
            peers: 2,
            ..Options::default()
        },
        16 * MIB,
        8 * MIB,
    )
    .await;
    let mut gets = s.all_get();
    gets[0].until(4 * MIB, LIMIT).await.unwrap();
    s.origin.set_status(503);
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    s.origin.set_status(0);
    s.all_have(gets).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn called_dfget_it_gets() {
    let s = Setting::new(
        &Options {
            peers: 1,
            ..Options::default()
        },
        MIB,
        0,
    )
    .await;
    let dfget = s.mesh.work.join("dfget");
    symlink(&s.mesh.dragonfly, &dfget).unwrap();
    let socket = s.mesh.peers[0].socket.display().to_string();
    let args = [s.url.as_str(), "-O", "out", "--socket", &socket];
    let got = run(&dfget, &s.mesh.work, &args).await;
    assert!(got.status.success(), "{}", text(&got.stderr));
    assert_eq!(
        sample::digest(&s.mesh.work.join("out")).unwrap(),
        s.source.digest
    );
    let version = text(&run(&dfget, &s.mesh.work, &["--version"]).await.stdout);
    assert!(version.starts_with("dfget "), "{version}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_moved_is_followed_and_the_proxy_that_policy_names_is_used() {
    let dir = tempfile::tempdir().unwrap();
    let source = sample::random(&dir.path().join("source"), 4 * MIB, 9).unwrap();
    let (first, second) = (
        Origin::start(0).await.unwrap(),
        Origin::start(0).await.unwrap(),
    );
    let real = second.serve("real.bin", &source.path).unwrap();
    let moved = first.redirect("moved.bin", &real);
    // A forward proxy is asked for whole URLs: this one has what is behind a name that is nobody's.
    let proxy = Origin::start(0).await.unwrap();
    proxy.serve("behind.bin", &source.path).unwrap();
    let spec = format!(
        "  sources:\n    http:\n      proxy: http://{}\n      noProxy: [127.0.0.0/8]\n",
        proxy.addr
    );
    let options = Options {
        peers: 2,
        spec,
        ..Options::default()
    };
    let mesh = Mesh::start(&options).await.unwrap();
    for (url, from) in [
        (moved.as_str(), &second),
        ("http://origin.invalid/behind.bin", &proxy),
    ] {
        let gets: Vec<_> = (0..2).map(|n| mesh.get(n, url, &[]).unwrap()).collect();
        for get in gets {
            let output = get.output.clone();
            let ended = get.wait(LIMIT).await.unwrap();
            assert_eq!(ended.code, Some(0), "{url}: {}", ended.complaint());
            assert_eq!(sample::digest(&output).unwrap(), source.digest);
        }
        assert_eq!(from.sent(), source.len, "{url}");
    }
    assert_eq!(first.sent(), 0);
}
