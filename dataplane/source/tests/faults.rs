//! What origins do wrong, one named row each: the content comes whole or a clear error does.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails loudly"
)]

mod common;

use common::{Honest, Reply, Seen, Server, download};
use dragonfly_source::{Fault, FetchOptions, Fetcher, Kind, RetryPolicy};

const LEN: usize = 200_000;

type Handler = Box<dyn Fn(&Honest, &Seen) -> Reply + Send + Sync>;

struct Row {
    name: &'static str,
    handler: Handler,
    wanted: Result<(), (Kind, Fault)>,
    /// Most requests that the row may cost.
    requests: usize,
}

fn row(
    name: &'static str,
    wanted: Result<(), (Kind, Fault)>,
    requests: usize,
    handler: impl Fn(&Honest, &Seen) -> Reply + Send + Sync + 'static,
) -> Row {
    Row {
        name,
        handler: Box::new(handler),
        wanted,
        requests,
    }
}

/// `attempts` bounds what one range may need: where faults hit at random, several workers can take
/// turns at being unlucky.
async fn check(attempts: u32, rows: Vec<Row>) {
    for Row {
        name,
        handler,
        wanted,
        requests,
    } in rows
    {
        let honest = Honest::new(LEN);
        let body = honest.body.clone();
        let server = Server::start(move |seen| handler(&honest, seen)).await;
        let got = download(&patient(attempts), server.request()).await;
        match (&got, wanted) {
            (Ok(bytes), Ok(())) => {
                assert!(*bytes == *body, "{name}: other bytes than the origin's")
            }
            (Err(error), Err((kind, fault))) => {
                assert_eq!(
                    (error.kind(), error.fault()),
                    (kind, fault),
                    "{name}: {error}"
                );
                assert!(!error.is_temporary(), "{name}: what comes out is final");
                let culprit = server.addr.to_string();
                assert!(
                    error.to_string().contains(&culprit),
                    "{name}: {error} names no culprit"
                );
            }
            (got, wanted) => panic!(
                "{name}: wanted {wanted:?}, got {:?}",
                got.as_ref().map(Vec::len)
            ),
        }
        let count = server.seen().len();
        assert!(
            count <= requests,
            "{name}: {count} requests, allowed {requests}"
        );
    }
}

fn patient(attempts: u32) -> Fetcher {
    let mut options = common::quick();
    options.limits.max_pause = std::time::Duration::from_millis(50);
    let retry = RetryPolicy {
        attempts,
        ..common::quick_fetch().retry
    };
    Fetcher::new(
        common::http(options),
        FetchOptions {
            retry,
            ..common::quick_fetch()
        },
    )
}

/// No ranges, no validator.
fn plain(honest: &Honest) -> Honest {
    Honest {
        headers: vec![],
        ranges: false,
        ..honest.clone()
    }
}

#[tokio::test]
async fn transient_faults_end_in_the_right_bytes() {
    check(
        20,
        vec![
            row("nothing wrong", Ok(()), 5, |h, seen| h.reply(seen)),
            row(
                "each second body is cut half way",
                Ok(()),
                30,
                |h, seen| match seen.nth % 2 {
                    0 => h.reply(seen).cut_body(20_000),
                    _ => h.reply(seen),
                },
            ),
            row("cut right after the head", Ok(()), 30, |h, seen| {
                match seen.nth % 2 {
                    0 => h.reply(seen).cut_body(0),
                    _ => h.reply(seen),
                }
            }),
            row("closed without an answer", Ok(()), 30, |h, seen| {
                match seen.nth % 2 {
                    0 => Reply::default().close(),
                    _ => h.reply(seen),
                }
            }),
            row("one body stalls", Ok(()), 8, |h, seen| match seen.nth {
                1 => h.reply(seen).stall_body(5_000),
                _ => h.reply(seen),
            }),
            row(
                "the first answers are 503",
                Ok(()),
                10,
                |h, seen| match seen.nth {
                    0 | 1 => Reply::status("503 Service Unavailable"),
                    _ => h.reply(seen),
                },
            ),
            row("429 with a Retry-After", Ok(()), 10, |h, seen| {
                match seen.nth {
                    0 | 2 => Reply::sized("429 Too Many Requests", &[("retry-after", "1")], b""),
                    _ => h.reply(seen),
                }
            }),
            row(
                "500, 502, 504 and 408 in turn",
                Ok(()),
                20,
                |h, seen| match seen.nth {
                    0 => Reply::status("500 Internal Server Error"),
                    2 => Reply::status("502 Bad Gateway"),
                    3 => Reply::status("504 Gateway Timeout"),
                    5 => Reply::status("408 Request Timeout"),
                    _ => h.reply(seen),
                },
            ),
            row("ranges shorter than asked for", Ok(()), 40, |h, seen| {
                let Some((start, end)) = seen.range(LEN) else {
                    return h.reply(seen);
                };
                let end = end.min(start + 7_000);
                let range = format!("bytes {start}-{}/{LEN}", end - 1);
                Reply::sized(
                    "206 Partial Content",
                    &[("etag", "\"v1\""), ("content-range", &range)],
                    &h.body[start..end],
                )
            }),
            row("ranges ignored from the start", Ok(()), 1, |h, seen| {
                Honest {
                    ranges: false,
                    ..h.clone()
                }
                .reply(seen)
            }),
            row(
                "ranges ignored by some of its servers",
                Ok(()),
                10,
                |h, seen| {
                    Honest {
                        ranges: seen.nth % 2 == 0,
                        ..h.clone()
                    }
                    .reply(seen)
                },
            ),
            row("any range is a 416", Ok(()), 2, |h, seen| {
                match seen.header("range") {
                    Some(_) => Reply::status("416 Range Not Satisfiable"),
                    None => h.reply(seen),
                }
            }),
            row("any range is a 400", Ok(()), 2, |h, seen| {
                match seen.header("range") {
                    Some(_) => Reply::status("400 Bad Request"),
                    None => h.reply(seen),
                }
            }),
            row(
                "ranges without a validator are not joined",
                Ok(()),
                2,
                |h, seen| {
                    Honest {
                        headers: vec![],
                        ..h.clone()
                    }
                    .reply(seen)
                },
            ),
            row("no length, chunked", Ok(()), 1, |h, _| {
                Reply::chunked(&[], &h.body, true)
            }),
            row(
                "chunked, closed before the last chunk once",
                Ok(()),
                3,
                |h, seen| match seen.nth {
                    0 => Reply::chunked(&[], &h.body[..150_000], false),
                    _ => Reply::chunked(&[], &h.body, true),
                },
            ),
            row(
                "chunked with a tag, resumed by an open range",
                Ok(()),
                2,
                |h, seen| match seen.nth {
                    0 => Reply::chunked(
                        &[("etag", "\"v1\""), ("accept-ranges", "bytes")],
                        &h.body[..150_000],
                        false,
                    ),
                    _ => {
                        assert_eq!(seen.header("if-range"), Some("\"v1\""));
                        assert!(seen.header("range").unwrap().ends_with('-'));
                        h.reply(seen)
                    }
                },
            ),
            row(
                "no ranges, cut once, same bytes again",
                Ok(()),
                3,
                |h, seen| match seen.nth {
                    0 => plain(h).reply(seen).cut_body(120_000),
                    _ => plain(h).reply(seen),
                },
            ),
            row("length by the end of the connection", Ok(()), 1, |h, _| {
                Reply::new("200 OK", &[("connection", "close")], &h.body).close()
            }),
        ],
    )
    .await;
}

#[tokio::test]
async fn lasting_faults_end_in_a_clear_error() {
    check(
        4,
        vec![
            row("404", Err((Kind::NotFound, Fault::Caller)), 1, |_, _| {
                Reply::status("404 Not Found")
            }),
            row("410", Err((Kind::NotFound, Fault::Caller)), 1, |_, _| {
                Reply::status("410 Gone")
            }),
            row("403", Err((Kind::Forbidden, Fault::Caller)), 1, |_, _| {
                Reply::status("403 Forbidden")
            }),
            row(
                "401",
                Err((Kind::Unauthorized, Fault::Caller)),
                1,
                |_, _| {
                    Reply::sized(
                        "401 Unauthorized",
                        &[("www-authenticate", "Bearer realm=\"x\"")],
                        b"",
                    )
                },
            ),
            row("418", Err((Kind::Status, Fault::Origin)), 1, |_, _| {
                Reply::status("418 Teapot")
            }),
            row("204", Err((Kind::Status, Fault::Origin)), 1, |_, _| {
                Reply::new("204 No Content", &[], b"")
            }),
            row(
                "503 for ever",
                Err((Kind::Unavailable, Fault::Origin)),
                4,
                |_, _| Reply::status("503 Service Unavailable"),
            ),
            row(
                "429 for ever",
                Err((Kind::Throttled, Fault::Origin)),
                4,
                |_, _| Reply::sized("429 Too Many Requests", &[("retry-after", "3600")], b""),
            ),
            row(
                "never answers",
                Err((Kind::Interrupted, Fault::Origin)),
                4,
                |_, _| Reply::default().close(),
            ),
            row(
                "416 for ever",
                Err((Kind::RangeNotSatisfiable, Fault::Origin)),
                2,
                |_, _| Reply::status("416 Range Not Satisfiable"),
            ),
            row(
                "not HTTP",
                Err((Kind::Interrupted, Fault::Origin)),
                4,
                |_, _| Reply {
                    acts: vec![
                        common::Act::Write(b"SSH-2.0-OpenSSH_9.9\r\n\r\n".to_vec()),
                        common::Act::Close,
                    ],
                },
            ),
            row(
                "206 to no range",
                Err((Kind::Protocol, Fault::Origin)),
                2,
                |h, seen| match seen.header("range") {
                    Some(_) => Reply::status("416 Range Not Satisfiable"),
                    None => Reply::sized(
                        "206 Partial Content",
                        &[("content-range", "bytes 0-9/200000")],
                        &h.body[..10],
                    ),
                },
            ),
            row(
                "206 without Content-Range",
                Err((Kind::Protocol, Fault::Origin)),
                1,
                |h, _| Reply::sized("206 Partial Content", &[], &h.body[..40_000]),
            ),
            row(
                "unreadable Content-Range",
                Err((Kind::Protocol, Fault::Origin)),
                1,
                |h, _| {
                    Reply::sized(
                        "206 Partial Content",
                        &[("content-range", "bytes 10-5/3")],
                        &h.body[..40_000],
                    )
                },
            ),
            row(
                "another range than asked for",
                Err((Kind::Protocol, Fault::Origin)),
                1,
                |h, _| {
                    Reply::sized(
                        "206 Partial Content",
                        &[("content-range", "bytes 1-40000/200000")],
                        &h.body[1..40_001],
                    )
                },
            ),
            row(
                "Content-Range and length disagree",
                Err((Kind::LengthMismatch, Fault::Origin)),
                1,
                |h, _| {
                    Reply::sized(
                        "206 Partial Content",
                        &[("content-range", "bytes 0-39999/200000")],
                        &h.body[..30_000],
                    )
                },
            ),
            row(
                "chunked range that is too long",
                Err((Kind::LengthMismatch, Fault::Origin)),
                5,
                |h, seen| {
                    let (start, end) = seen.range(LEN).unwrap();
                    let range = format!("bytes {start}-{}/{LEN}", end - 1);
                    let mut reply = Reply::chunked(
                        &[("content-range", &range), ("etag", "\"v1\"")],
                        &h.body[..end - start + 5_000],
                        true,
                    );
                    if let Some(common::Act::Write(head)) = reply.acts.first_mut() {
                        let text = String::from_utf8(head.clone()).unwrap();
                        *head = text.replace("200 OK", "206 Partial Content").into_bytes();
                    }
                    reply
                },
            ),
            row(
                "always fewer bytes than its length",
                Err((Kind::Interrupted, Fault::Origin)),
                8,
                |h, seen| plain(h).reply(seen).cut_body(1_000),
            ),
            row(
                "chunked without an end, for ever",
                Err((Kind::Interrupted, Fault::Origin)),
                8,
                |h, _| Reply::chunked(&[], &h.body[..1_000], false),
            ),
            row(
                "one byte an attempt is no progress",
                Err((Kind::Interrupted, Fault::Origin)),
                20,
                |h, seen| h.reply(seen).cut_body(1),
            ),
        ],
    )
    .await;
}

#[tokio::test]
async fn content_that_changes_under_way_is_never_mixed() {
    let changed = || Err((Kind::ContentChanged, Fault::Origin));
    let second = |h: &Honest| {
        let mut body = h.body.to_vec();
        body.reverse();
        Honest {
            body: std::sync::Arc::new(body),
            headers: vec![("etag".into(), "\"v2\"".into())],
            ranges: h.ranges,
        }
    };
    check(
        4,
        vec![
            row(
                "another tag: 200 to an If-Range",
                changed(),
                6,
                move |h, seen| match seen.nth {
                    0 => h.reply(seen),
                    _ => second(h).reply(seen),
                },
            ),
            row(
                "another tag in a 206 by an origin that ignores If-Range",
                changed(),
                6,
                move |h, seen| match seen.nth {
                    0 => h.reply(seen),
                    _ => {
                        let mut blind = seen.clone();
                        blind.headers.retain(|(name, _)| name != "if-range");
                        second(h).reply(&blind)
                    }
                },
            ),
            row("412", changed(), 6, |h, seen| match seen.nth {
                0 => h.reply(seen),
                _ => Reply::status("412 Precondition Failed"),
            }),
            row("another total length", changed(), 6, |h, seen| {
                let Some((start, end)) = seen.range(LEN).filter(|_| seen.nth > 0) else {
                    return h.reply(seen);
                };
                let range = format!("bytes {start}-{}/{}", end - 1, LEN + 1);
                Reply::sized(
                    "206 Partial Content",
                    &[("content-range", &range)],
                    &h.body[start..end],
                )
            }),
            row("shorter by now: 416", changed(), 6, |h, seen| {
                match seen.nth {
                    0 => h.reply(seen),
                    _ => Reply::sized(
                        "416 Range Not Satisfiable",
                        &[("content-range", "bytes */10")],
                        b"",
                    ),
                }
            }),
            row("another date without tags", changed(), 6, |h, seen| {
                let date = match seen.nth {
                    0 => "Sun, 06 Nov 1994 08:49:37 GMT",
                    _ => "Sun, 06 Nov 1994 08:49:38 GMT",
                };
                Honest {
                    headers: vec![("last-modified".into(), date.into())],
                    ..h.clone()
                }
                .reply(seen)
            }),
            row(
                "compressed the second time",
                changed(),
                6,
                |h, seen| match seen.nth {
                    0 => h.reply(seen),
                    _ => {
                        let mut zipped = h.clone();
                        zipped
                            .headers
                            .push(("content-encoding".into(), "gzip".into()));
                        zipped.reply(seen)
                    }
                },
            ),
            row("lost its tag", changed(), 6, |h, seen| match seen.nth {
                0 => h.reply(seen),
                _ => Honest {
                    headers: vec![],
                    ranges: false,
                    ..h.clone()
                }
                .reply(seen),
            }),
            row(
                "no validator, other bytes after a cut",
                changed(),
                3,
                move |h, seen| match seen.nth {
                    0 => plain(h).reply(seen).cut_body(120_000),
                    _ => plain(&second(h)).reply(seen),
                },
            ),
            row(
                "no validator, shorter after a cut",
                changed(),
                3,
                |h, seen| match seen.nth {
                    0 => Reply::chunked(&[], &h.body[..150_000], false),
                    _ => Reply::chunked(&[], &h.body[..100_000], true),
                },
            ),
        ],
    )
    .await;
}

#[tokio::test]
async fn any_mixture_of_transient_faults_ends_in_the_right_bytes() {
    for seed in 0..40_u64 {
        let honest = Honest::new(LEN);
        let tagged = seed % 3 != 0;
        let honest = if tagged { honest } else { plain(&honest) };
        let body = honest.body.clone();
        let server = Server::start(move |seen| {
            let mut random = fastrand::Rng::with_seed(seed * 1000 + seen.nth as u64);
            let reply = honest.reply(seen);
            match random.u8(..12) {
                0 => Reply::default().close(),
                1 => Reply::status("503 Service Unavailable"),
                2 => reply.cut_body(0),
                3..=5 => reply.cut_body(random.usize(..LEN)),
                6 if tagged => Honest {
                    ranges: false,
                    ..honest.clone()
                }
                .reply(seen),
                7 if tagged => Reply::chunked(&[("etag", "\"v1\"")], &honest.body, true),
                8 => Reply::sized("429 Too Many Requests", &[("retry-after", "0")], b""),
                _ => reply,
            }
        })
        .await;
        match download(&patient(40), server.request()).await {
            Ok(bytes) => assert!(bytes == *body, "seed {seed}: other bytes than the origin's"),
            Err(error) => panic!("seed {seed}: {error}"),
        }
    }
}
