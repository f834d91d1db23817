//! What scripts rely on when they call `dragonfly get`, at a node of a mesh or without any.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::process::CommandExt;
use std::process::Stdio;

use common::{LIMIT, MIB, Setting, run, text, until};
use dragonfly_e2e::mesh::{Mesh, Options, port};
use dragonfly_e2e::origin::Origin;
use dragonfly_e2e::process::{Process, log};
use dragonfly_e2e::{binary, sample};
use rustix::process::Signal;

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

/// Runs it as a user without rights, where this is root.
fn unprivileged(command: &mut std::process::Command) -> &mut std::process::Command {
    if rustix::process::geteuid().is_root() {
        command.uid(65534).gid(65534);
    }
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hard_link_is_the_nodes_copy_and_stays_when_the_node_lets_go_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let program = at("dragonfly");
    std::fs::copy(binary::dragonfly().unwrap(), &program).unwrap();
    std::fs::create_dir(at("manifests")).unwrap();
    let mesh = "{apiVersion: d7y.io/v1alpha1, kind: Distribution, metadata: {name: default}, spec: {profile: Light, storage: {reserveFreePercent: 0}}}";
    std::fs::write(at("manifests/mesh.yaml"), mesh).unwrap();
    let origin = Origin::start(0).await.unwrap();
    let source = sample::random(&at("source"), 16 * MIB, 5).unwrap();
    let url = origin.serve("file", &source.path).unwrap();
    if rustix::process::geteuid().is_root() {
        for name in ["", "manifests"] {
            std::os::unix::fs::chown(at(name), Some(65534), Some(65534)).unwrap();
        }
    }
    let port = port().unwrap().to_string();
    let up = || {
        let mut command = std::process::Command::new(&program);
        unprivileged(command.current_dir(dir.path()));
        command.args(["up", "-f", "manifests", "--peers", "1", "--state", "state"]);
        command.args(["--listen", &port]);
        command
            .stdout(Stdio::null())
            .stderr(log(&at("log")).unwrap());
        Process::spawn("up", &mut command).unwrap()
    };
    let get_by = async |mut command: std::process::Command, output: &str| {
        command.arg(&program).current_dir(dir.path());
        let socket = at("state/peer-0/node.sock");
        command.args(["get", &url, "--hard-link", "-O", output, "--socket"]);
        let got = unprivileged(command.arg(socket)).output().unwrap();
        let log = std::fs::read(at("log")).unwrap();
        assert!(got.status.success(), "{}{}", text(&got.stderr), text(&log));
        assert_eq!(sample::digest(&at(output)).unwrap(), source.digest);
        std::fs::metadata(at(output)).unwrap()
    };
    let get = async |output: &str| get_by(std::process::Command::new("env"), output).await;
    let mut node = up();
    until("the node runs", || async {
        at("state/peer-0/node.sock").exists()
    })
    .await;
    let first = get("first").await;
    // A file system that clones has two files of one content.
    let linked = first.nlink() > 1;
    assert!(
        linked || first.nlink() == 1 && clones(dir.path()),
        "{first:?}"
    );
    if linked {
        assert_eq!(first.mode() & 0o777, 0o444);
        let second = get("second").await;
        assert_eq!((second.ino(), second.nlink()), (first.ino(), 3));
        // Over itself: nothing of the way there stays.
        let again = get("second").await;
        assert_eq!((again.ino(), again.nlink()), (first.ino(), 3));
        // Who wants others to read it, or not to, gets a copy: the mode is that of all.
        let mut command = std::process::Command::new("sh");
        command.args(["-c", "umask 077; exec \"$0\" \"$@\""]);
        let own = get_by(command, "private").await;
        assert_eq!((own.nlink(), own.mode() & 0o777), (1, 0o600));
    }
    // Nor does it keep the node from its content: what it held it holds when it comes back.
    node.signal(Signal::TERM).unwrap();
    assert!(node.wait(LIMIT).await.unwrap().success());
    let node = up();
    until("the node runs again", || async {
        at("state/peer-0/node.sock").exists()
    })
    .await;
    let third = get("third").await;
    assert!(!linked || third.ino() == first.ino());
    assert_eq!(origin.sent(), source.len);
    // What it gives up is the clients' still.
    let socket = at("state/peer-0/node.sock").display().to_string();
    let mut command = std::process::Command::new(&program);
    let gone = unprivileged(&mut command).args(["rm", "--socket", &socket, &url]);
    let gone = gone.output();
    assert!(gone.unwrap().status.success());
    drop(node);
    assert_eq!(sample::digest(&at("first")).unwrap(), source.digest);
}

/// Whether files of a directory can be clones of each other.
fn clones(dir: &std::path::Path) -> bool {
    let from = std::fs::File::open(dir.join("source")).unwrap();
    let to = std::fs::File::create(dir.join("clone")).unwrap();
    rustix::fs::ioctl_ficlone(&to, &from).is_ok()
}
