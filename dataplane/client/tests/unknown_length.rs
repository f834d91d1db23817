//! Parts of content whose length the origin does not say, into files.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod common;

use std::path::Path;
use std::time::Duration;

use common::{Served, content};
use dragonfly_client::{Error, Fetched, FileOptions, Kind, Range, Request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const MIB: usize = 1 << 20;

/// An origin of 2 MiB at 4 MiB/s that does not say how long its content is.
async fn origin() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/file", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = vec![];
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await?);
                }
                let to = "HTTP/1.1 200 OK\r\netag: \"v1\"\r\nconnection: close\r\n\r\n";
                stream.write_all(to.as_bytes()).await?;
                if head.starts_with(b"HEAD") {
                    return Ok(());
                }
                for part in content(2 * MIB).chunks(64 << 10) {
                    stream.write_all(part).await?;
                    tokio::time::sleep(Duration::from_millis(15)).await;
                }
                stream.shutdown().await
            });
        }
    });
    url
}

/// Gets a range into `out` of the directory.
async fn fetch(dir: &Path, range: Range, stream_only: bool) -> Result<Fetched, Error> {
    let served = Served::start(dir).await;
    let client = served.client().await;
    let request = Request {
        range,
        ..Request::new(origin().await)
    };
    let out = dir.join("out");
    let options = FileOptions {
        stream_only,
        ..FileOptions::default()
    };
    let got = client.fetch_to_file(&request, &out, &options, |_| {});
    let got = tokio::time::timeout(Duration::from_secs(20), got).await;
    got.expect("it ends")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_that_begins_behind_the_end_is_refused_though_the_length_is_learnt_under_way() {
    let from = 4 * MIB as u64;
    for (end, stream_only) in [(None, false), (None, true), (Some(from + 1), false)] {
        let dir = tempfile::tempdir().unwrap();
        let got = fetch(dir.path(), Range::Part(from, end), stream_only).await;
        let error = got.expect_err("there are no such bytes");
        assert_eq!(error.kind(), Kind::Usage, "{error}");
        assert!(!dir.path().join("out").exists());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_that_ends_behind_the_end_is_cut_there_though_the_length_is_learnt_under_way() {
    let from = MIB as u64;
    for (end, stream_only) in [
        (Some(8 * from), false),
        (Some(8 * from), true),
        (None, false),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let got = fetch(dir.path(), Range::Part(from, end), stream_only).await;
        assert_eq!(got.unwrap().len, MIB as u64, "{end:?}, {stream_only}");
        assert!(std::fs::read(dir.path().join("out")).unwrap() == content(2 * MIB)[MIB..]);
    }
}
