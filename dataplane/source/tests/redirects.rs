//! Redirects, credentials and policy: what is sent where.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails loudly"
)]

mod common;

use common::{Honest, Reply, Seen, Server, http, quick};
use dragonfly_source::{ByteRange, Fault, HostHeaders, HttpOptions, HttpSource, Kind, Request};

fn to(location: &str) -> Reply {
    Reply::sized("302 Found", &[("location", location)], b"")
}

fn secret_request(url: &str) -> Request {
    Request::new(url)
        .unwrap()
        .with_header("Authorization", "Bearer hunter2")
        .and_then(|r| r.with_header("Cookie", "hunter2"))
        .and_then(|r| r.with_header("X-Private", "hunter2"))
        .and_then(|r| r.with_header("Accept", "text/plain"))
        .unwrap()
}

fn secrets(seen: &Seen) -> usize {
    seen.headers
        .iter()
        .filter(|(_, value)| value.contains("hunter2"))
        .count()
}

#[tokio::test]
async fn credentials_do_not_follow_to_another_origin_and_do_not_come_back() {
    // first → (same) → other → first again
    let first_url = std::sync::Arc::new(std::sync::OnceLock::<String>::new());
    let back = first_url.clone();
    let other = Server::start(move |_| to(&format!("{}/last", back.get().unwrap()))).await;
    let other_url = other.url("/elsewhere");
    let first = Server::start(move |seen| match seen.path.as_str() {
        "/file" => to("/second"),
        "/second" => to(&other_url),
        _ => Honest::new(10).reply(seen),
    })
    .await;
    first_url.set(first.url("")).unwrap();
    let opened = http(quick())
        .open(&secret_request(&first.url("/file")), None, None)
        .await
        .unwrap();
    let counts: Vec<usize> = first.seen().iter().map(secrets).collect();
    assert_eq!(counts, [3, 3, 0]);
    // Nor where later ranges go straight to where the first was led.
    let source = http(quick());
    let request = secret_request(&first.url("/file"));
    let range = ByteRange::new(1, 2);
    source
        .open(&request, range, Some(&opened.metadata))
        .await
        .unwrap();
    assert!(opened.metadata.final_url.is_none());
    let last = first.seen().into_iter().filter(|s| s.path == "/last");
    assert_eq!(last.map(|s| secrets(&s)).collect::<Vec<_>>(), [0, 0]);
    let elsewhere = &other.seen()[0];
    assert_eq!(secrets(elsewhere), 0);
    assert_eq!(elsewhere.header("accept"), Some("text/plain"));
}

#[tokio::test]
async fn headers_of_a_host_go_to_that_host_only() {
    let target = Server::honest(Honest::new(10)).await;
    let target_url = target.url("/x");
    let first = Server::start(move |_| to(&target_url)).await;
    let options = HttpOptions {
        host_headers: vec![HostHeaders {
            host: target.addr.to_string(),
            headers: vec![(
                "authorization".into(),
                "Bearer of-the-host".to_owned().into(),
            )],
        }],
        ..quick()
    };
    http(options)
        .open(&secret_request(&first.url("/file")), None, None)
        .await
        .unwrap();
    assert_eq!(
        first.seen()[0].header("authorization"),
        Some("Bearer hunter2")
    );
    assert_eq!(
        target.seen()[0].header("authorization"),
        Some("Bearer of-the-host")
    );
}

#[tokio::test]
async fn userinfo_becomes_basic_credentials() {
    let server = Server::honest(Honest::new(10)).await;
    let url = format!("http://user:p%40ss@{}/file", server.addr);
    http(quick())
        .open(&Request::new(&url).unwrap(), None, None)
        .await
        .unwrap();
    assert_eq!(
        server.seen()[0].header("authorization"),
        Some("Basic dXNlcjpwQHNz")
    );
}

#[tokio::test]
async fn a_clients_range_and_conditions_are_not_forwarded() {
    let server = Server::honest(Honest::new(10)).await;
    let mut request = server.request();
    for name in [
        "Range",
        "If-None-Match",
        "If-Modified-Since",
        "Accept-Encoding",
        "Host",
        "TE",
    ] {
        request = request.with_header(name, "hunter2").unwrap();
    }
    http(quick()).open(&request, None, None).await.unwrap();
    assert_eq!(secrets(&server.seen()[0]), 0);
}

#[tokio::test]
async fn ranges_go_where_the_first_request_was_led_until_that_stops_working() {
    let honest = Honest::new(1000);
    let data = Server::start(move |seen| match seen.nth {
        2 => Reply::status("403 Forbidden"),
        _ => honest.reply(seen),
    })
    .await;
    let signed = data.url("/blob?X-Amz-Signature=hunter2");
    let registry = Server::start(move |_| to(&signed)).await;
    let source = http(quick());
    let request = registry.request();
    let first = source
        .open(&request, ByteRange::new(0, 10), None)
        .await
        .unwrap()
        .metadata;
    assert!(!format!("{first:?}").contains("hunter2"));
    source
        .open(&request, ByteRange::new(10, 20), Some(&first))
        .await
        .unwrap();
    assert_eq!(registry.seen().len(), 1, "no second redirect was asked for");
    source
        .open(&request, ByteRange::new(20, 30), Some(&first))
        .await
        .unwrap();
    assert_eq!((registry.seen().len(), data.seen().len()), (2, 4));
}

#[tokio::test]
async fn redirects_that_lead_nowhere_are_clear_errors() {
    let rows: [(&str, &str, Kind); 6] = [
        ("a loop", "/file", Kind::Redirect),
        ("no URL", "http://", Kind::Redirect),
        ("another scheme", "ftp://127.0.0.1/x", Kind::Refused),
        ("a file", "file:///etc/passwd", Kind::Refused),
        (
            "a metadata service",
            "http://169.254.169.254/latest/meta-data",
            Kind::Refused,
        ),
        (
            "mapped into IPv6",
            "http://[::ffff:a9fe:a9fe]/latest",
            Kind::Refused,
        ),
    ];
    for (name, location, kind) in rows {
        let server = Server::start(move |_| to(location)).await;
        let error = http(quick())
            .open(&server.request(), None, None)
            .await
            .unwrap_err();
        assert_eq!(error.kind(), kind, "{name}: {error}");
        assert!(!error.is_temporary(), "{name}");
        assert!(server.seen().len() <= 11, "{name}");
    }
    let bare = Server::start(|_| Reply::status("302 Found")).await;
    let error = http(quick())
        .open(&bare.request(), None, None)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Redirect);
}

#[tokio::test]
async fn refused_targets_are_never_contacted() {
    let server = Server::honest(Honest::new(10)).await;
    let port = server.addr.port();
    let mut no_loopback = quick();
    no_loopback.addresses.loopback = false;
    let listed = HttpOptions {
        allowed_hosts: vec!["*.example".into(), "127.0.0.1:1".into()],
        ..quick()
    };
    let rows: [(&str, HttpOptions, String); 7] = [
        ("link-local", quick(), "http://169.254.169.254/".into()),
        ("odd spelling of it", quick(), "http://0xa9fea9fe/".into()),
        ("unspecified", quick(), format!("http://0.0.0.0:{port}/")),
        (
            "metadata by name",
            quick(),
            "http://metadata.google.internal/".into(),
        ),
        (
            "loopback when refused",
            no_loopback.clone(),
            server.url("/"),
        ),
        // Only resolving tells what this name means.
        (
            "loopback by name when refused",
            no_loopback,
            format!("http://localhost:{port}/"),
        ),
        ("not in the list of hosts", listed, server.url("/")),
    ];
    for (name, options, url) in rows {
        let error = http(options)
            .open(&Request::new(&url).unwrap(), None, None)
            .await
            .unwrap_err();
        assert_eq!(
            (error.kind(), error.fault()),
            (Kind::Refused, Fault::Policy),
            "{name}: {error}"
        );
        assert!(!error.is_temporary(), "{name}");
    }
    assert!(server.seen().is_empty());
}

#[tokio::test]
async fn a_name_that_does_not_resolve_and_a_port_that_nobody_holds_say_so() {
    let closed = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    let rows = [
        ("http://no-such-host.invalid/x".to_owned(), Kind::Resolve),
        (format!("http://{closed}/x"), Kind::Connect),
    ];
    for (url, kind) in rows {
        let error = http(quick())
            .open(&Request::new(&url).unwrap(), None, None)
            .await
            .unwrap_err();
        assert_eq!(
            (error.kind(), error.fault()),
            (kind, Fault::Network),
            "{error}"
        );
        assert!(error.is_temporary());
    }
}

#[tokio::test]
async fn a_proxy_is_used_for_all_but_the_excepted() {
    let proxy = Server::start(|seen| {
        assert!(
            seen.path.starts_with("http://origin.example/"),
            "{}",
            seen.path
        );
        Honest::new(10).reply(seen)
    })
    .await;
    let direct = Server::honest(Honest::new(20)).await;
    let options = HttpOptions {
        proxy: Some(format!("http://user:hunter2@{}", proxy.addr).into()),
        no_proxy: "127.0.0.1".into(),
        ..quick()
    };
    let source = http(options);
    let far = Request::new("http://origin.example/file").unwrap();
    let opened = source.open(&far, None, None).await.unwrap();
    assert_eq!(opened.metadata.total_len, Some(10));
    assert!(
        proxy.seen()[0]
            .header("proxy-authorization")
            .unwrap()
            .starts_with("Basic ")
    );
    let opened = source.open(&direct.request(), None, None).await.unwrap();
    assert_eq!(opened.metadata.total_len, Some(20));
    for bad in ["", "socks5://x", "not a url"] {
        let options = HttpOptions {
            proxy: Some(bad.to_owned().into()),
            ..quick()
        };
        assert_eq!(
            HttpSource::new(options).unwrap_err().kind(),
            Kind::InvalidOptions,
            "{bad}"
        );
    }
}

#[tokio::test]
async fn stat_uses_head_and_falls_back_to_get() {
    type Row = (&'static str, fn(&Seen) -> Reply, usize);
    let rows: [Row; 4] = [
        ("HEAD works", |seen| Honest::new(10).reply(seen), 1),
        (
            "HEAD is refused",
            |seen| match seen.method.as_str() {
                "HEAD" => Reply::new("405 Method Not Allowed", &[], b"").close(),
                _ => Honest::new(10).reply(seen),
            },
            2,
        ),
        (
            "signed for GET only",
            |seen| match seen.method.as_str() {
                "HEAD" => Reply::new("403 Forbidden", &[], b"").close(),
                _ => Honest::new(10).reply(seen),
            },
            2,
        ),
        (
            "neither HEAD nor ranges",
            |seen| match (seen.method.as_str(), seen.header("range")) {
                ("HEAD", _) => Reply::new("501 Not Implemented", &[], b"").close(),
                (_, Some(_)) => Reply::status("416 Range Not Satisfiable"),
                _ => Honest::new(10).reply(seen),
            },
            3,
        ),
    ];
    for (name, handler, requests) in rows {
        let server = Server::start(handler).await;
        let metadata = http(quick()).stat(&server.request()).await.unwrap();
        assert_eq!(metadata.total_len, Some(10), "{name}");
        assert_eq!(server.seen().len(), requests, "{name}");
    }
}

#[tokio::test]
async fn no_error_and_no_debug_shows_a_secret() {
    let server = Server::start(|seen| match seen.nth % 4 {
        0 => Reply::status("403 Forbidden"),
        1 => Reply::default().close(),
        2 => to("http://169.254.169.254/?sig=hunter2"),
        _ => Reply::new("200 OK", &[("content-length", "9")], b"x").close(),
    })
    .await;
    let url = format!(
        "http://user:hunter2@{}/f?X-Amz-Signature=hunter2&token=hunter2",
        server.addr
    );
    let request = Request::new(&url)
        .unwrap()
        .with_header("X-Token", "hunter2")
        .unwrap();
    assert!(!format!("{request:?}").contains("hunter2"), "{request:?}");
    let source = http(quick());
    for _ in 0..4 {
        let error = match source.open(&request, None, None).await {
            Err(error) => error,
            Ok(mut opened) => {
                assert!(!format!("{opened:?}").contains("hunter2"));
                loop {
                    match opened.body.next_chunk().await {
                        Err(error) => break error,
                        Ok(chunk) => assert!(chunk.is_some()),
                    }
                }
            }
        };
        assert!(
            !format!("{error} {error:?}").contains("hunter2"),
            "{error:?}"
        );
    }
}

#[tokio::test]
async fn a_401_says_what_to_log_in_to() {
    let server = Server::start(|_| {
        Reply::sized(
            "401 Unauthorized",
            &[("www-authenticate", "Bearer realm=\"r\"")],
            b"",
        )
    })
    .await;
    let error = http(quick())
        .open(&server.request(), None, None)
        .await
        .unwrap_err();
    assert_eq!(
        (error.status(), error.challenge()),
        (Some(401), Some("Bearer realm=\"r\""))
    );
}
