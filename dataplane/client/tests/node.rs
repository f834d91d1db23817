//! The client against a real node that fetches from a real origin.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod common;

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use common::{Origin, Served, content, digest};
use dragonfly_client::{Client, Error, Event, FileOptions, How, Kind, Range, Request, rpc};
use dragonfly_node::api::{Api, ApiError, ApiOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

const MIB: usize = 1 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_file_comes_through_the_side_channel_and_the_second_time_from_the_cache() {
    let dir = tempfile::tempdir().unwrap();
    let body = content(5 * MIB + 17);
    let origin = Origin::start(body.clone(), 0).await;
    let served = Served::start(dir.path()).await;
    let client = served.client().await;
    let mut request = Request::new(origin.url("/a"));
    request.digest = digest(&body);
    for _ in 0..2 {
        let out = dir.path().join("out/deep/a");
        let options = FileOptions {
            make_directories: true,
            fsync: true,
            ..FileOptions::default()
        };
        let got = client
            .fetch_to_file(&request, &out, &options, |_| {})
            .await
            .unwrap();
        assert_eq!(std::fs::read(&out).unwrap(), body);
        assert_ne!(got.how, How::Streamed);
        assert_eq!(
            (got.len, got.done.digest),
            (body.len() as u64, request.digest.clone())
        );
        std::fs::remove_file(out).unwrap();
    }
    assert_eq!(origin.sent.load(Ordering::Relaxed), body.len() as u64);
    let tasks = client.list().await.unwrap();
    assert!(tasks[0].complete && tasks[0].url == origin.url("/a"));
    assert_eq!(
        client.stat(&request).await.unwrap().unwrap().task,
        tasks[0].task
    );
    assert!(!client.delete(&request).await.unwrap());
    assert_eq!(client.stat(&request).await.unwrap(), None);
}

/// Bytes on disk of what a directory's unfinished file has.
fn unfinished(dir: &std::path::Path) -> u64 {
    let files = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap());
    let part = files.filter(|f| f.file_name().to_string_lossy().ends_with(".part"));
    part.map(|f| f.metadata().unwrap().blocks() * 512).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_written_while_its_blocks_come_and_a_part_of_it_too() {
    let dir = tempfile::tempdir().unwrap();
    let body = content(16 * MIB + 5);
    let origin = Origin::start(body.clone(), MIB as u64).await;
    let served = Served::start(dir.path()).await;
    let client = served.client().await;
    let out = tempfile::tempdir().unwrap();
    let whole = 0..body.len();
    for (path, range, want) in [
        (
            "/part",
            Range::Part(MIB as u64 + 7, None),
            MIB + 7..body.len(),
        ),
        ("/whole", Range::Whole, whole),
    ] {
        let request = Request {
            range,
            ..Request::new(origin.url(path))
        };
        let mut early = 0;
        let to = out.path().join("file");
        let got = client
            .fetch_to_file(&request, &to, &FileOptions::default(), |event| {
                if let Event::Progress(p) = event
                    && p.have < want.len() as u64
                {
                    early = early.max(unfinished(out.path()));
                }
            })
            .await
            .unwrap();
        assert!(std::fs::read(&to).unwrap() == body[want.clone()], "{path}");
        assert_eq!(got.len, want.len() as u64, "{path}");
        assert_eq!(unfinished(out.path()), 0);
        if got.how != How::Cloned {
            assert_eq!(got.how, How::Copied, "{path}");
            assert!(
                early > 4 * MIB as u64,
                "{path}: {early} bytes were there before the end"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_are_the_bytes_asked_for_and_the_rest_stays_at_the_origin() {
    let dir = tempfile::tempdir().unwrap();
    let body = content(40 * MIB);
    let origin = Origin::start(body.clone(), 0).await;
    let served = Served::start(dir.path()).await;
    let client = served.client().await;
    let n = body.len();
    let of = |range| Request {
        range,
        ..Request::new(origin.url("/a"))
    };
    for (range, want) in [
        (Range::Part(100_000, Some(100_001)), 100_000..100_001),
        (
            Range::Part(3 * MIB as u64 - 5, Some(5 * MIB as u64)),
            3 * MIB - 5..5 * MIB,
        ),
        (Range::Last(10), n - 10..n),
        (Range::Part(n as u64 - 70_000, None), n - 70_000..n),
    ] {
        let out = dir.path().join("part");
        let got = client
            .fetch_to_file(&of(range), &out, &FileOptions::default(), |_| {})
            .await;
        assert_eq!(got.unwrap().len, want.len() as u64, "{range:?}");
        assert_eq!(
            std::fs::read(&out).unwrap(),
            body[want.clone()],
            "{range:?}"
        );
        let mut read = Vec::new();
        let mut reader = client.read(&of(range)).into_async_read();
        reader.read_to_end(&mut read).await.unwrap();
        assert_eq!(read, body[want]);
    }
    let past = client
        .read(&of(Range::Part(n as u64 + 1, None)))
        .next()
        .await
        .unwrap_err();
    assert_eq!(past.kind(), Kind::Usage);
    // With the whole of it there, a range comes by descriptor too.
    let whole = dir.path().join("whole");
    client
        .fetch_to_file(&of(Range::Whole), &whole, &FileOptions::default(), |_| {})
        .await
        .unwrap();
    let range = of(Range::Part(7, Some(MIB as u64)));
    let got = client
        .fetch_to_file(&range, &whole, &FileOptions::default(), |_| {})
        .await
        .unwrap();
    assert_eq!((got.how, got.len), (How::Copied, MIB as u64 - 7));
    assert_eq!(std::fs::read(&whole).unwrap(), body[7..MIB]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_digest_never_ends_well_and_leaves_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let origin = Origin::start(content(2 * MIB), 0).await;
    let served = Served::start(dir.path()).await;
    let client = served.client().await;
    let mut request = Request::new(origin.url("/a"));
    request.digest = digest(b"something else");
    let out = dir.path().join("out");
    std::fs::write(&out, "before").unwrap();
    for stream_only in [false, true] {
        let options = FileOptions {
            stream_only,
            ..FileOptions::default()
        };
        let got = client
            .fetch_to_file(&request, &out, &options, |_| {})
            .await
            .unwrap_err();
        assert_eq!(got.kind(), Kind::Digest, "{got}");
    }
    assert_eq!(std::fs::read(&out).unwrap(), b"before");
    let left = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|e| e.unwrap().file_name());
    let left: Vec<_> = left
        .filter(|n| n.to_string_lossy().ends_with(".part"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_restarts_under_way_costs_neither_the_download_nor_bytes_twice() {
    let dir = tempfile::tempdir().unwrap();
    let body = content(24 * MIB);
    let origin = Origin::start(body.clone(), 3 * MIB as u64).await;
    let served = Served::start(dir.path()).await;
    let client = served.client().await;
    let mut request = Request::new(origin.url("/a"));
    request.digest = digest(&body);
    let (streaming, filing) = (client.clone(), client.clone());
    let (streamed, filed) = (request.clone(), request);
    let stream = tokio::spawn(async move {
        let mut reader = streaming.read(&streamed);
        let mut got = Vec::new();
        while let Some(bytes) = reader.next().await.unwrap() {
            got.extend_from_slice(&bytes);
        }
        (got, reader.resumed())
    });
    let out = dir.path().join("out");
    let path = out.clone();
    let file = tokio::spawn(async move {
        let mut away = 0;
        let on = |e: Event| away += usize::from(matches!(e, Event::Reconnecting));
        filing
            .fetch_to_file(&filed, path, &FileOptions::default(), on)
            .await
            .unwrap();
        away
    });
    while origin.sent.load(Ordering::Relaxed) < 8 * MIB as u64 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    served.stop().await;
    let _again = Served::start(dir.path()).await;
    let (got, resumed) = stream.await.unwrap();
    assert!(got == body && resumed > 0);
    assert!(file.await.unwrap() > 0);
    assert!(std::fs::read(out).unwrap() == body);
    // At most what was on its way when the node went.
    let sent = origin.sent.load(Ordering::Relaxed);
    assert!(
        sent < body.len() as u64 + 8 * MIB as u64,
        "{sent} bytes left the origin"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn many_who_ask_at_once_cost_the_origin_one_copy() {
    let dir = tempfile::tempdir().unwrap();
    let body = content(3 * MIB);
    let origin = Origin::start(body.clone(), 0).await;
    let served = Served::start(dir.path()).await;
    let client = served.client().await;
    // Without a scheduler who asks may find that he has to read the origin for all: one of them does.
    for round in 0..20 {
        let request = Request {
            digest: digest(&body),
            ..Request::new(origin.url(&format!("/{round}")))
        };
        let before = origin.sent.load(Ordering::Relaxed);
        let all = (0..8).map(|_| {
            let (client, request) = (client.clone(), request.clone());
            tokio::spawn(async move {
                let mut reader = client.read(&request);
                let mut len = 0;
                while let Some(bytes) = reader.next().await.unwrap() {
                    len += bytes.len();
                }
                len
            })
        });
        for one in all.collect::<Vec<_>>() {
            assert_eq!(one.await.unwrap(), body.len());
        }
        let sent = origin.sent.load(Ordering::Relaxed) - before;
        assert_eq!(sent, body.len() as u64, "round {round}");
        client.delete(&request).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_limit_holds_for_the_stream_and_for_what_is_fetched() {
    let dir = tempfile::tempdir().unwrap();
    let body = content(3 * MIB);
    let origin = Origin::start(body.clone(), 0).await;
    let served = Served::start(dir.path()).await;
    let client = served.client().await;
    for (path, stream_only) in [("/a", true), ("/b", false)] {
        let request = Request {
            rate_limit: 2 * MIB as u64,
            ..Request::new(origin.url(path))
        };
        let since = Instant::now();
        let options = FileOptions {
            stream_only,
            ..FileOptions::default()
        };
        let out = dir.path().join("out");
        client
            .fetch_to_file(&request, &out, &options, |_| {})
            .await
            .unwrap();
        assert!(std::fs::read(&out).unwrap() == body);
        let took = since.elapsed().as_secs_f64();
        // 1.5 s at the limit; half a second of it may come ahead.
        assert!((0.9..4.0).contains(&took), "{path} took {took}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn deletion_waits_for_who_reads() {
    let dir = tempfile::tempdir().unwrap();
    let body = content(4 * MIB);
    let origin = Origin::start(body.clone(), 0).await;
    let served = Served::start(dir.path()).await;
    let client = served.client().await;
    let request = Request {
        rate_limit: 4 * MIB as u64,
        ..Request::new(origin.url("/a"))
    };
    let mut reader = client.read(&request);
    let mut got = reader.next().await.unwrap().unwrap().to_vec();
    assert!(client.delete(&request).await.unwrap());
    while let Some(bytes) = reader.next().await.unwrap() {
        got.extend_from_slice(&bytes);
    }
    assert!(got == body);
    for _ in 0..100 {
        if client.stat(&request).await.unwrap().is_none() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("still there");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_origin_refuses_and_what_makes_no_sense_is_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let origin = Origin::start(content(10), 0).await;
    let served = Served::start(dir.path()).await;
    let client = served.client().await;
    let digest = |digest: &str| Request {
        digest: digest.to_owned(),
        ..Request::new(origin.url("/"))
    };
    let many = vec![("x".to_owned(), "y".to_owned()); 1000];
    for (request, want) in [
        (Request::new(origin.url("/missing")), Kind::Denied),
        (Request::new("no url"), Kind::Usage),
        (Request::new("gopher://host/x"), Kind::Denied),
        (
            Request {
                headers: many,
                ..Request::new(origin.url("/"))
            },
            Kind::Usage,
        ),
        (digest("sha256:12"), Kind::Usage),
        (
            Request {
                range: Range::Part(5, Some(3)),
                ..Request::new(origin.url("/"))
            },
            Kind::Usage,
        ),
    ] {
        let got = client.read(&request).next().await.unwrap_err();
        assert_eq!(got.kind(), want, "{request:?}: {got}");
    }
    let huge = Request::new(format!("http://h/{}", "x".repeat(8 * MIB)));
    let got = client.read(&huge).next().await.unwrap_err();
    assert!(matches!(got, Error::Refused(_)), "{got}");
    // The node is none the worse.
    assert!(
        client
            .read(&Request::new(origin.url("/")))
            .next()
            .await
            .unwrap()
            .is_some()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_works_once_and_guesses_do_not() {
    let dir = tempfile::tempdir().unwrap();
    let body = content(MIB);
    let origin = Origin::start(body.clone(), 0).await;
    let served = Served::start(dir.path()).await;
    let client = served.client().await;
    let mut ticket = Vec::new();
    let mut events = std::pin::pin!(client.download(&Request::new(origin.url("/a")), true));
    while let Some(event) = futures::StreamExt::next(&mut events).await {
        if let Event::Done(done) = event.unwrap() {
            ticket = done.descriptor_ticket;
        }
    }
    assert_eq!(ticket.len(), 32);
    assert!(client.descriptor(&[0; 32]).await.is_err());
    let mut file = client.descriptor(&ticket).await.unwrap();
    let mut got = Vec::new();
    std::io::Read::read_to_end(&mut file, &mut got).unwrap();
    assert!(got == body);
    assert!(std::io::Write::write(&mut file, b"x").is_err(), "read-only");
    assert!(client.descriptor(&ticket).await.is_err(), "once");
    // Who says too little, or hangs up, is in nobody's way.
    let side = dir.path().join("node.sock.side");
    let _silent = UnixStream::connect(&side).await.unwrap();
    let mut short = UnixStream::connect(&side).await.unwrap();
    short.write_all(&[1; 5]).await.unwrap();
    drop(short);
    assert!(client.descriptor(&[9; 32]).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_ends_its_interest() {
    let dir = tempfile::tempdir().unwrap();
    let origin = Origin::start(content(64 * MIB), MIB as u64).await;
    let served = Served::start(dir.path()).await;
    let client = served.client().await;
    let mut reader = client.read(&Request::new(origin.url("/a")));
    reader.next().await.unwrap().unwrap();
    assert!(client.list().await.unwrap()[0].in_use);
    drop(reader);
    for _ in 0..100 {
        if !client.list().await.unwrap()[0].in_use {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the node goes on for nobody");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_socket_of_a_dead_node_is_replaced_and_that_of_a_living_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("node.sock");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let none = Client::connect(&socket).await.unwrap_err();
    assert_eq!(none.kind(), Kind::Unavailable);
    let served = Served::start(dir.path()).await;
    assert_eq!(
        std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777,
        0o660
    );
    let second = Api::bind(served.node.clone(), &ApiOptions::new(&socket))
        .await
        .unwrap_err();
    assert!(matches!(second, ApiError::InUse(_)), "{second}");
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let third = Api::bind(served.node.clone(), &ApiOptions::new(&file))
        .await
        .unwrap_err();
    assert!(matches!(third, ApiError::NotASocket(_)), "{third}");
    let status: rpc::StatusReply = served.client().await.status().await.unwrap();
    assert_eq!(status.name, "test-7");
    served.stop().await;
    assert!(!socket.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn empty_content_is_an_empty_file() {
    let dir = tempfile::tempdir().unwrap();
    let origin = Origin::start(vec![], 0).await;
    let served = Served::start(dir.path()).await;
    let client = served.client().await;
    let request = Request {
        digest: digest(b""),
        ..Request::new(origin.url("/a"))
    };
    for stream_only in [false, true] {
        let out = dir.path().join("out");
        let options = FileOptions {
            stream_only,
            ..FileOptions::default()
        };
        let got = client
            .fetch_to_file(&request, &out, &options, |_| {})
            .await
            .unwrap();
        assert_eq!((got.len, std::fs::read(&out).unwrap().len()), (0, 0));
        std::fs::remove_file(out).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_is_content_like_any_other() {
    let dir = tempfile::tempdir().unwrap();
    let served = Served::start(dir.path()).await;
    let client = served.client().await;
    for len in [0, 1, 65536, 3 * MIB + 5] {
        let body = content(len);
        let file = dir.path().join("in");
        std::fs::write(&file, &body).unwrap();
        let done = client.import(&file, None, "text/plain").await.unwrap();
        assert_eq!((done.len, &done.digest), (len as u64, &digest(&body)));
        let request = Request {
            digest: done.digest,
            ..Request::new(done.url)
        };
        let out = dir.path().join("out");
        client
            .fetch_to_file(&request, &out, &FileOptions::default(), |_| {})
            .await
            .unwrap();
        assert!(std::fs::read(&out).unwrap() == body);
        let stat = client.stat(&request).await.unwrap().unwrap();
        assert_eq!(stat.content_type, "text/plain");
        // Again: it is there.
        assert_eq!(
            client.import(&file, None, "text/plain").await.unwrap().task,
            stat.task
        );
    }
    let named = client
        .import(dir.path().join("in"), Some("dragonfly://a/b"), "")
        .await
        .unwrap();
    let mut reader = client.read(&Request::new(named.url));
    assert!(reader.next().await.unwrap().is_some());
    let foreign = client
        .import(dir.path().join("in"), Some("https://x.test/a"), "")
        .await;
    assert_eq!(foreign.unwrap_err().kind(), Kind::Denied);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_imports_of_the_same_file_at_once_both_end_well() {
    let dir = tempfile::tempdir().unwrap();
    let scheduler = common::scheduler().await;
    let one = Served::start_in(dir.path(), 1, vec![scheduler]).await;
    let (a, b) = (one.client().await, one.client().await);
    while a.status().await.unwrap().schedulers.is_empty() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for round in 0..5 {
        let file = dir.path().join(format!("in{round}"));
        std::fs::write(&file, content(MIB + round)).unwrap();
        let other_name = Some("dragonfly://another/name");
        let (x, y) = tokio::join!(a.import(&file, None, ""), b.import(&file, other_name, ""));
        let (x, y) = (x.unwrap(), y.unwrap());
        assert_eq!((x.task, x.digest, x.len), (y.task, y.digest, y.len));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_imported_at_one_node_is_had_at_the_others() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let scheduler = common::scheduler().await;
    let one = Served::start_in(a.path(), 1, vec![scheduler.clone()]).await;
    let two = Served::start_in(b.path(), 2, vec![scheduler]).await;
    let (at_one, at_two) = (one.client().await, two.client().await);
    for client in [&at_one, &at_two] {
        while client.status().await.unwrap().schedulers.is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    let body = content(5 * MIB + 3);
    let file = a.path().join("in");
    std::fs::write(&file, &body).unwrap();
    for url in [None, Some("dragonfly://models/a")] {
        let done = at_one.import(&file, url, "").await.unwrap();
        let by_digest = if url.is_none() {
            done.digest
        } else {
            String::new()
        };
        let request = Request {
            digest: by_digest,
            ..Request::new(done.url)
        };
        let out = b.path().join("out");
        let options = FileOptions::default();
        let got = at_two.fetch_to_file(&request, &out, &options, |_| {});
        let got = tokio::time::timeout(Duration::from_secs(20), got)
            .await
            .unwrap()
            .unwrap();
        assert!(std::fs::read(&out).unwrap() == body);
        let from = got.done.progress.unwrap();
        assert_eq!(from.from_origin, 0, "{from:?}");
    }
    let sent = at_one.status().await.unwrap().uploaded;
    assert!(sent >= body.len() as u64, "{sent}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_to_be_deleted_when_its_reader_is_done_is_deleted_after_a_restart_too() {
    let dir = tempfile::tempdir().unwrap();
    let origin = Origin::start(content(8 * MIB), MIB as u64).await;
    let served = Served::start(dir.path()).await;
    let client = served.client().await;
    let request = Request::new(origin.url("/a"));
    let mut reader = client.read(&request);
    assert!(reader.next().await.unwrap().is_some());
    assert!(client.delete(&request).await.unwrap(), "not in use");
    assert_eq!(client.list().await.unwrap().len(), 1);
    served.stop().await;
    drop(reader);
    let served = Served::start(dir.path()).await;
    let client = served.client().await;
    for _ in 0..100 {
        if client.list().await.unwrap().is_empty() {
            return served.stop().await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("it is still held");
}
