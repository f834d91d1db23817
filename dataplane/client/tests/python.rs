//! The Python sample against a real node. Installs grpcio the first time, so `make test` asks for it
//! by name: `cargo test -p dragonfly-client --test python -- --ignored`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod common;

use common::{Origin, Served, content};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "installs grpcio: run by `make test` with --ignored"]
async fn the_python_sample_reads_content() {
    let dir = tempfile::tempdir().unwrap();
    let body = content(1_234_567);
    let origin = Origin::start(body.clone(), 0).await;
    let served = Served::start(dir.path()).await;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../e2e/python-sample.sh");
    let run = |url: String| {
        let (script, socket) = (script, served.socket());
        tokio::process::Command::new(script)
            .arg(socket)
            .arg(url)
            .output()
    };
    let got = run(origin.url("/a")).await.unwrap();
    let error = String::from_utf8_lossy(&got.stderr).into_owned();
    if got.status.code() == Some(77) {
        eprintln!("SKIPPED: {error}");
        return;
    }
    assert!(got.status.success(), "{error}");
    assert!(got.stdout == body);
    let got = run(origin.url("/missing")).await.unwrap();
    assert_eq!(got.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&got.stderr).contains("404"));
}
