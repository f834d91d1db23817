//! A node's socket among clients that say nothing, have gone without a word, or wait for long.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod common;

use std::path::Path;
use std::time::{Duration, Instant};

use common::{Served, content};
use dragonfly_client::{Event, FileOptions, Request};
use dragonfly_node::api::ApiOptions;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// A node that has little patience.
async fn served(dir: &Path, connections: usize, patience: Duration) -> Served {
    let options = ApiOptions {
        connections,
        patience,
        ..ApiOptions::new(dir.join("node.sock"))
    };
    Served::start_with(dir, 7, vec![], &options).await
}

/// Whether the node ends a connection within that time; what it says meanwhile does not count.
async fn is_ended(stream: &mut UnixStream, within: Duration) -> bool {
    let mut said = [0; 4096];
    let end = async { while stream.read(&mut said).await.is_ok_and(|n| n > 0) {} };
    tokio::time::timeout(within, end).await.is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_of_clients_that_say_nothing_are_bounded_or_end() {
    let dir = tempfile::tempdir().unwrap();
    let patience = Duration::from_secs(4);
    let served = served(dir.path(), 200, patience).await;
    let mut silent = vec![];
    for _ in 0..400 {
        silent.push(UnixStream::connect(served.socket()).await.unwrap());
    }
    // All of them are one user's, who has half.
    let ended = |stream: &UnixStream| stream.try_read(&mut [0; 4096]).is_ok_and(|n| n == 0);
    let since = Instant::now();
    while silent.len() > 100 && since.elapsed() < patience * 3 / 4 {
        silent.retain(|stream| !ended(stream));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(silent.len(), 100);
    for stream in &mut silent {
        assert!(is_ended(stream, patience * 2).await);
    }
    let client = served.client().await;
    client.status().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_answer_any_more_is_ended() {
    let dir = tempfile::tempdir().unwrap();
    let patience = Duration::from_millis(500);
    let served = served(dir.path(), 200, patience).await;
    let mut half = UnixStream::connect(served.socket()).await.unwrap();
    half.write_all(b"PRI * HTTP/2.0\r\n").await.unwrap();
    let mut gone = UnixStream::connect(served.socket()).await.unwrap();
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    gone.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .await
        .unwrap();
    gone.write_all(&settings).await.unwrap();
    assert!(
        !is_ended(&mut gone, patience).await,
        "it has time to answer"
    );
    assert!(is_ended(&mut gone, patience * 6).await);
    assert!(is_ended(&mut half, patience * 6).await);
}

/// An origin that falls silent for that long in the middle of 1 MiB.
async fn slow_origin(pause: Duration) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/file", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = vec![];
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await?);
                }
                let to = "HTTP/1.1 200 OK\r\ncontent-length: 1048576\r\nconnection: close\r\n\r\n";
                stream.write_all(to.as_bytes()).await?;
                for half in content(1 << 20).chunks(1 << 19) {
                    stream.write_all(half).await?;
                    tokio::time::sleep(pause).await;
                }
                stream.shutdown().await
            });
        }
    });
    url
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_waits_for_bytes_for_long_is_not_ended() {
    let dir = tempfile::tempdir().unwrap();
    let patience = Duration::from_millis(500);
    let served = served(dir.path(), 200, patience).await;
    let client = served.client().await;
    let request = Request::new(slow_origin(patience * 8).await);
    let out = dir.path().join("out");
    for stream_only in [false, true] {
        let options = FileOptions {
            stream_only,
            ..FileOptions::default()
        };
        let mut lost = false;
        let got = client.fetch_to_file(&request, &out, &options, |event| {
            lost |= matches!(event, Event::Reconnecting);
        });
        got.await.unwrap();
        assert!(!lost && std::fs::read(&out).unwrap() == content(1 << 20));
        assert!(client.delete(&request).await.is_ok());
    }
    // Nor is one that has nothing to ask.
    tokio::time::sleep(patience * 4).await;
    client.status().await.unwrap();
}
