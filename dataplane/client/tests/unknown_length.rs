//! Parts of content whose length the origin does not say, into files.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod common;

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
async fn fetch(dir: &std::path::Path, range: Range) -> Result<Fetched, Error> {
    let served = Served::start(dir).await;
    let client = served.client().await;
    let request = Request {
        range,
        ..Request::new(origin().await)
    };
    let (out, options) = (dir.join("out"), FileOptions::default());
    let got = client.fetch_to_file(&request, &out, &options, |_| {});
    let got = tokio::time::timeout(Duration::from_secs(20), got).await;
    got.expect("it ends")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_that_begins_behind_the_end_is_refused_though_the_length_is_learnt_under_way() {
    for range in [
        Range::Part(4 * MIB as u64, None),
        Range::Part(4 * MIB as u64, Some(5 * MIB as u64)),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let got = fetch(dir.path(), range).await;
        let error = got.expect_err("there are no such bytes");
        assert_eq!(error.kind(), Kind::Usage, "{error}");
        assert!(!dir.path().join("out").exists());
    }
}
