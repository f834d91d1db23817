//! The binary against a real node: what scripts rely on.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

#[path = "../../client/tests/common/mod.rs"]
mod common;

use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use common::{Origin, Served, content, digest};
use tokio::process::Command;

const MIB: usize = 1 << 20;

fn dragonfly(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dragonfly"));
    command
        .args(args)
        .current_dir(dir)
        .env("DRAGONFLY_SOCKET", dir.join("node.sock"));
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

async fn run(dir: &Path, args: &[&str]) -> Output {
    let output = dragonfly(dir, args).output();
    tokio::time::timeout(Duration::from_secs(60), output)
        .await
        .unwrap()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn get_writes_files_and_streams_and_is_silent_when_piped() {
    let dir = tempfile::tempdir().unwrap();
    let body = content(3 * MIB + 1);
    let origin = Origin::start(body.clone(), 0).await;
    let _served = Served::start(dir.path()).await;
    let url = origin.url("/dir/name.bin?signature=secret");
    let got = run(dir.path(), &["get", &url]).await;
    assert!(got.status.success(), "{}", text(&got.stderr));
    assert!(
        got.stdout.is_empty() && got.stderr.is_empty(),
        "{}",
        text(&got.stderr)
    );
    assert!(std::fs::read(dir.path().join("name.bin")).unwrap() == body);
    let got = run(
        dir.path(),
        &["get", &url, "-O", "-", "--digest", &digest(&body)],
    )
    .await;
    assert!(got.status.success() && got.stdout == body);
    for (range, want) in [("5-9", 5..10), ("-7", body.len() - 7..body.len())] {
        let got = run(dir.path(), &["get", &url, "-O", "-", "--range", range]).await;
        assert!(got.status.success() && got.stdout == body[want], "{range}");
    }
    let got = run(dir.path(), &["get", &url, "-O", "x", "--output", "json"]).await;
    let lines: Vec<serde_json::Value> = text(&got.stderr)
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    assert_eq!(lines.first().unwrap()["event"], "started");
    assert_eq!(lines.last().unwrap()["event"], "done");
    let listed = text(&run(dir.path(), &["ls"]).await.stdout);
    assert!(
        listed.contains("100%") && !listed.contains("secret"),
        "{listed}"
    );
    assert!(run(dir.path(), &["rm", &url]).await.status.success());
    assert_eq!(
        run(dir.path(), &["stat", &url]).await.status.code(),
        Some(3)
    );
    assert!(text(&run(dir.path(), &["top"]).await.stdout).contains("test-7"));
}

#[tokio::test(flavor = "multi_thread")]
async fn exit_codes_are_as_documented_and_failures_leave_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let origin = Origin::start(content(8 * MIB), MIB as u64).await;
    let served = Served::start(dir.path()).await;
    let (small, wrong) = (Origin::start(content(MIB), 0).await, digest(b"else"));
    let (url, slow) = (small.url("/a"), origin.url("/slow"));
    for (args, want, says) in [
        (vec!["get", &url, "--range", "9-3"], 2, "before it begins"),
        (vec!["get", &url, "--digest", "md5:1"], 2, "sha256:"),
        (vec!["get", &url, "--header", "secret"], 2, "Name: value"),
        (vec!["get", &small.url("/missing"), "-O", "f"], 3, "404"),
        (
            vec!["get", &url, "-O", "f", "--digest", &wrong],
            4,
            "hashes to",
        ),
        (
            vec!["get", &url, "-O", "-", "--digest", &wrong],
            4,
            "hashes to",
        ),
        (
            vec!["get", &url, "-O", "f", "--socket", "/no/where"],
            5,
            "no node answers",
        ),
        (
            vec!["get", &slow, "-O", "f", "--timeout", "300ms"],
            6,
            "--timeout",
        ),
        (
            vec!["get", &url, "-O", "no/such/f"],
            7,
            "--make-directories",
        ),
        (vec!["get", &url, "-O", "/dev/full"], 7, "No space"),
    ] {
        let got = run(dir.path(), &args).await;
        let error = text(&got.stderr);
        assert_eq!(got.status.code(), Some(want), "{args:?}: {error}");
        assert!(
            error.contains(says) && !error.contains("secret`"),
            "{args:?}: {error}"
        );
    }
    // The last when a terminal goes away, with a remote login for example.
    for signal in ["-INT", "-TERM", "-HUP"] {
        // Whatever these tests were started by: under `nohup` it would go on.
        let interrupted = Command::new("env")
            .args(["--default-signal=HUP", env!("CARGO_BIN_EXE_dragonfly")])
            .args(["get", &slow, "-O", "f"])
            .current_dir(dir.path())
            .env("DRAGONFLY_SOCKET", dir.path().join("node.sock"))
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        tokio::time::sleep(Duration::from_millis(500)).await;
        kill(signal, &interrupted).await;
        let ended = interrupted.wait_with_output().await.unwrap();
        assert_eq!(ended.status.code(), Some(130), "{signal}");
    }
    let left = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|e| e.unwrap().file_name());
    let mut left: Vec<_> = left.map(|n| n.to_string_lossy().into_owned()).collect();
    left.sort();
    assert_eq!(left, ["node.sock", "node.sock.side", "store"]);
    served.stop().await;
}

async fn kill(signal: &str, process: &tokio::process::Child) {
    let pid = process.id().unwrap().to_string();
    let sent = Command::new("kill").args([signal, &pid]).status();
    assert!(sent.await.unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_to_survive_its_terminal_does() {
    let dir = tempfile::tempdir().unwrap();
    let origin = Origin::start(content(4 * MIB), 2 * MIB as u64).await;
    let _served = Served::start(dir.path()).await;
    let mut command = Command::new("sh");
    // As `nohup` does it.
    let script = "trap '' HUP; exec \"$@\"";
    command.args(["-c", script, "-", env!("CARGO_BIN_EXE_dragonfly")]);
    command.args(["get", &origin.url("/slow"), "-O", "f"]);
    let socket = dir.path().join("node.sock");
    command
        .current_dir(dir.path())
        .env("DRAGONFLY_SOCKET", socket);
    let mut goes_on = command.kill_on_drop(true).spawn().unwrap();
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert!(goes_on.try_wait().unwrap().is_none(), "it is under way");
    kill("-HUP", &goes_on).await;
    let ended = tokio::time::timeout(Duration::from_secs(60), goes_on.wait());
    assert!(ended.await.unwrap().unwrap().success());
    assert!(dir.path().join("f").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_imported_can_be_got() {
    let dir = tempfile::tempdir().unwrap();
    let _served = Served::start(dir.path()).await;
    std::fs::write(dir.path().join("in"), content(MIB)).unwrap();
    let got = run(dir.path(), &["import", "in", "-o", "json"]).await;
    let json: serde_json::Value = serde_json::from_slice(&got.stdout).unwrap();
    let url = json["url"].as_str().unwrap();
    assert!(url.starts_with("dragonfly://"));
    let got = run(dir.path(), &["get", url, "-O", "out"]).await;
    assert!(got.status.success(), "{}", text(&got.stderr));
    assert!(std::fs::read(dir.path().join("out")).unwrap() == content(MIB));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_got_by_its_digest_is_found_by_its_url_alone() {
    let dir = tempfile::tempdir().unwrap();
    let body = content(MIB);
    let origin = Origin::start(body.clone(), 0).await;
    let _served = Served::start(dir.path()).await;
    let url = origin.url("/by-digest");
    let digest = digest(&body);
    let got = run(dir.path(), &["get", &url, "-O", "f", "--digest", &digest]).await;
    assert!(got.status.success(), "{}", text(&got.stderr));
    let stat = run(dir.path(), &["stat", &url]).await;
    let shown = text(&stat.stdout);
    assert!(shown.contains(&digest), "{shown} {}", text(&stat.stderr));
    assert!(run(dir.path(), &["rm", &url]).await.status.success());
    assert_eq!(
        run(dir.path(), &["stat", &url]).await.status.code(),
        Some(3)
    );
}
