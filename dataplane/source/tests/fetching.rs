//! The engine on an honest origin: order, parallelism, requests made, what dropping does.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails loudly"
)]

mod common;

use common::{Honest, Reply, Server, collect, everything, fetcher, http, quick, quick_fetch};
use dragonfly_source::{
    ByteRange, FetchOptions, Fetcher, HttpOptions, Kind, Mode, OriginLimits, Queue,
};
use std::sync::atomic::Ordering;
use std::time::Duration;

fn range(start: u64, end: u64) -> ByteRange {
    ByteRange::new(start, end).unwrap()
}

fn starts(server: &Server) -> Vec<usize> {
    server
        .seen()
        .iter()
        .filter_map(|seen| Some(seen.range(usize::MAX)?.0))
        .collect()
}

#[tokio::test]
async fn one_request_answers_what_it_is_and_brings_the_first_bytes() {
    let server = Server::honest(Honest::new(30_000)).await;
    let begun = fetcher().begin(server.request(), None).await.unwrap();
    assert_eq!(begun.metadata().total_len, Some(30_000));
    assert_eq!(begun.mode(), Mode::Ranges);
    let bytes = collect(&mut begun.run(everything(30_000))).await.unwrap();
    assert_eq!(bytes, common::content(30_000));
    let seen = server.seen();
    assert_eq!(seen.len(), 1, "no HEAD, no probe");
    assert_eq!(seen[0].header("accept-encoding"), Some("identity"));
    assert!(
        seen[0]
            .header("user-agent")
            .unwrap()
            .starts_with("dragonfly/")
    );
}

#[tokio::test]
async fn each_byte_leaves_the_origin_once_and_adjacent_blocks_are_one_request() {
    let server = Server::honest(Honest::new(200_000)).await;
    let begun = fetcher().begin(server.request(), None).await.unwrap();
    let queue = Queue::new();
    for block in 0..200 {
        queue.push(range(block * 1000, (block + 1) * 1000));
    }
    queue.close();
    let bytes = collect(&mut begun.run(queue)).await.unwrap();
    assert_eq!(bytes, common::content(200_000));
    let mut starts = starts(&server);
    starts.sort_unstable();
    assert_eq!(starts, [0, 40_000, 80_000, 120_000, 160_000]);
}

#[tokio::test]
async fn a_body_that_nothing_is_wanted_of_leaves_its_place_to_who_waits() {
    let server = Server::honest(Honest::new(60_000)).await;
    let one_at_a_time = HttpOptions {
        limits: OriginLimits {
            requests: 1,
            ..OriginLimits::default()
        },
        ..quick()
    };
    let fetcher = Fetcher::new(http(one_at_a_time), quick_fetch());
    let wanted = Queue::new();
    wanted.push(range(0, 10_000));
    let begun = fetcher.begin(server.request(), None).await.unwrap();
    let mut partial = begun.run(wanted.clone());
    let mut held = Vec::new();
    while held.len() < 10_000 {
        held.extend(partial.next().await.unwrap().unwrap().data);
    }
    // 30,000 bytes of its answer are to be read yet, and the other asks for all.
    let other = fetcher.begin(server.request(), None);
    let other = tokio::time::timeout(Duration::from_secs(20), other);
    let begun = other.await.expect("a place").unwrap();
    assert_eq!(
        collect(&mut begun.run(everything(60_000))).await.unwrap(),
        common::content(60_000)
    );
    wanted.push(range(10_000, 60_000));
    wanted.close();
    while let Some(chunk) = partial.next().await {
        held.extend(chunk.unwrap().data);
    }
    assert_eq!(held, common::content(60_000));
}

#[tokio::test]
async fn an_empty_content_has_no_bytes_and_is_no_error() {
    for honest in [
        Honest::new(0),
        Honest {
            ranges: false,
            ..Honest::new(0)
        },
    ] {
        let server = Server::honest(honest).await;
        let begun = fetcher().begin(server.request(), None).await.unwrap();
        assert_eq!(begun.metadata().total_len, Some(0));
        assert!(
            collect(&mut begun.run(Queue::of([])))
                .await
                .unwrap()
                .is_empty()
        );
        assert_eq!(server.seen().len(), 1);
    }
}

#[tokio::test]
async fn what_is_preferred_goes_next_and_nothing_is_fetched_twice() {
    let server = Server::honest(Honest::new(400_000)).await;
    let options = FetchOptions {
        parallel: 1,
        buffered: 1,
        ..quick_fetch()
    };
    let fetcher = Fetcher::new(http(quick()), options);
    let begun = fetcher.begin(server.request(), None).await.unwrap();
    let queue = everything(400_000);
    let mut fetch = begun.run(queue.clone());
    let first = fetch.next().await.unwrap().unwrap();
    assert_eq!(first.offset, 0);
    queue.prefer(range(300_000, 310_000));
    assert_eq!(queue.remove(range(390_000, 400_000)), 10_000);
    let mut order = vec![];
    let mut total = first.data.len();
    while let Some(chunk) = fetch.next().await {
        let chunk = chunk.unwrap();
        order.push(chunk.offset);
        total += chunk.data.len();
    }
    assert_eq!(total, 390_000);
    let jump = order.iter().position(|offset| *offset == 300_000).unwrap();
    assert!(
        order[..jump].iter().all(|offset| *offset < 80_000),
        "{order:?}"
    );
}

#[tokio::test]
async fn a_waiting_plan_keeps_no_request_open() {
    let server = Server::honest(Honest::new(100_000)).await;
    let begun = fetcher().begin(server.request(), None).await.unwrap();
    let queue = Queue::new();
    let mut fetch = begun.run(queue.clone());
    queue.push(range(0, 40_000));
    let mut got = 0;
    while got < 40_000 {
        got += fetch.next().await.unwrap().unwrap().data.len();
    }
    assert!(
        tokio::time::timeout(Duration::from_millis(50), fetch.next())
            .await
            .is_err()
    );
    assert_eq!(server.seen().len(), 1);
    queue.push(range(90_000, 100_000));
    queue.close();
    assert_eq!(fetch.next().await.unwrap().unwrap().offset, 90_000);
}

#[tokio::test]
async fn a_known_content_is_resumed_without_asking_first() {
    let server = Server::honest(Honest::new(100_000)).await;
    let metadata = fetcher()
        .begin(server.request(), None)
        .await
        .unwrap()
        .metadata()
        .clone();
    let before = server.seen().len();
    let begun = fetcher().resume(server.request(), metadata);
    let mut fetch = begun.run(Queue::of([range(70_000, 100_000)]));
    let mut got = Vec::new();
    while let Some(chunk) = fetch.next().await {
        got.extend(chunk.unwrap().data);
    }
    assert_eq!(got, common::content(100_000)[70_000..]);
    let seen = server.seen();
    assert_eq!(seen.len(), before + 1);
    assert_eq!(seen[before].header("if-range"), Some("\"v1\""));
}

#[tokio::test]
async fn an_origin_is_never_asked_for_more_at_once_than_its_limit() {
    let honest = Honest::new(400_000);
    let server = Server::start(move |seen| {
        let mut reply = honest.reply(seen);
        reply
            .acts
            .insert(1, common::Act::Sleep(Duration::from_millis(5)));
        reply
    })
    .await;
    let mut options = quick();
    options.limits.requests = 2;
    let source = http(options);
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let fetcher = Fetcher::new(
            source.clone(),
            FetchOptions {
                parallel: 4,
                ..quick_fetch()
            },
        );
        let request = server.request();
        tasks.spawn(async move { common::download(&fetcher, request).await.unwrap().len() });
    }
    while let Some(len) = tasks.join_next().await {
        assert_eq!(len.unwrap(), 400_000);
    }
    assert_eq!(server.most.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn the_rate_of_an_origin_is_kept_by_all_its_fetches_together() {
    let server = Server::honest(Honest::new(100_000)).await;
    let mut options = quick();
    options.limits.bytes_per_second = Some(400_000);
    let source = http(options);
    let began = std::time::Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..2 {
        let fetcher = Fetcher::new(source.clone(), quick_fetch());
        let request = server.request();
        tasks.spawn(async move { common::download(&fetcher, request).await.unwrap() });
    }
    while tasks.join_next().await.is_some() {}
    let took = began.elapsed().as_secs_f64();
    assert!(took > 0.25, "200000 bytes at 400000 a second took {took}");
}

#[tokio::test]
async fn a_slow_consumer_slows_the_origin_and_is_no_stall() {
    let server = Server::honest(Honest::new(40_000)).await;
    let options = FetchOptions {
        buffered: 1,
        parallel: 1,
        ..quick_fetch()
    };
    let fetcher = Fetcher::new(http(quick()), options);
    let begun = fetcher.begin(server.request(), None).await.unwrap();
    let mut fetch = begun.run(everything(40_000));
    let mut total = fetch.next().await.unwrap().unwrap().data.len();
    tokio::time::sleep(Duration::from_millis(500)).await; // longer than the stall timeout
    while let Some(chunk) = fetch.next().await {
        total += chunk.unwrap().data.len();
    }
    assert_eq!(total, 40_000);
    assert_eq!(server.seen().len(), 1, "nothing was asked for again");
}

#[tokio::test]
async fn a_trickle_counts_as_a_stall() {
    let server = Server::start(|_| {
        let mut reply = Reply::new("200 OK", &[("content-length", "1000")], b"");
        for _ in 0..40 {
            reply.acts.push(common::Act::Write(b"x".to_vec()));
            reply = reply.sleep(Duration::from_millis(50));
        }
        reply
    })
    .await;
    let error = common::download(&fetcher(), server.request())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Stalled, "{error}");
}

#[tokio::test]
async fn dropping_a_fetch_gives_its_places_back() {
    let server = Server::honest(Honest::new(4_000_000)).await;
    let mut options = quick();
    options.limits.requests = 1;
    let fetcher = Fetcher::new(
        http(options),
        FetchOptions {
            buffered: 1,
            ..quick_fetch()
        },
    );
    for _ in 0..3 {
        let begun = fetcher.begin(server.request(), None).await.unwrap();
        let mut fetch = begun.run(everything(4_000_000));
        assert!(fetch.next().await.unwrap().is_ok());
    }
}

#[tokio::test]
async fn a_range_past_the_end_is_the_callers_fault() {
    let server = Server::honest(Honest::new(1000)).await;
    let begun = fetcher().begin(server.request(), None).await.unwrap();
    let error = collect(&mut begun.run(everything(1001))).await.unwrap_err();
    assert_eq!(error.kind(), Kind::RangeNotSatisfiable);
}

#[tokio::test]
async fn a_digest_checked_at_the_end_allows_ranges_without_validators() {
    let server = Server::honest(Honest {
        headers: vec![],
        ..Honest::new(100_000)
    })
    .await;
    let request = server.request().checked_at_end();
    let begun = fetcher().begin(request, None).await.unwrap();
    assert_eq!(begun.mode(), Mode::Ranges);
    assert_eq!(
        collect(&mut begun.run(everything(100_000)))
            .await
            .unwrap()
            .len(),
        100_000
    );
    assert_eq!(server.seen().len(), 3);
}

#[tokio::test]
async fn once_ranges_are_ignored_one_connection_reads_on_alone() {
    let honest = Honest::new(800_000);
    let server = Server::start(move |seen| {
        Honest {
            ranges: seen.nth == 0,
            ..honest.clone()
        }
        .reply(seen)
    })
    .await;
    let bytes = common::download(&fetcher(), server.request())
        .await
        .unwrap();
    assert_eq!(bytes, common::content(800_000));
    let count = server.seen().len();
    assert!(count <= 4, "{count} requests, each from the first byte");
}

#[tokio::test]
async fn an_encoding_is_reported_and_its_bytes_are_passed_as_sent() {
    let mut honest = Honest::new(50_000);
    honest
        .headers
        .push(("content-encoding".into(), "gzip".into()));
    let server = Server::honest(honest).await;
    let begun = fetcher().begin(server.request(), None).await.unwrap();
    assert_eq!(begun.metadata().content_encoding.as_deref(), Some("gzip"));
    assert!(begun.metadata().version().unwrap().contains("gzip"));
    let bytes = collect(&mut begun.run(everything(50_000))).await.unwrap();
    assert_eq!(bytes, common::content(50_000));
}
