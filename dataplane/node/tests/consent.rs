//! What an origin gave to one client is given to another only where the origin lets that one in too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod kit;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use dragonfly_node::node::Role;
use dragonfly_proto::id::RequestKey;
use dragonfly_proto::rpc;
use dragonfly_scheduler::core::CoreSettings;
use kit::{SchedulerProcess, TestMesh, TestNode, authority, bytes, log, read, read_all, source};

/// What an origin says to a request's head, in lower case: status line and headers, and the body.
type Answer = (String, Vec<u8>);

/// An origin that closes after each answer.
async fn origin(mut says: impl FnMut(&str) -> Answer + Send + 'static) -> String {
    let whole = move |head: &str| {
        let (answer, body) = says(head);
        (
            format!("{answer}content-length: {}\r\n", body.len()),
            body,
            0,
        )
    };
    kit::says::origin(whole).await
}

fn refused() -> Answer {
    ("403 No\r\n".to_owned(), vec![])
}

fn given(body: &[u8]) -> Answer {
    ("200 OK\r\netag: \"v1\"\r\n".to_owned(), body.to_vec())
}

struct World {
    a: TestNode,
    b: TestNode,
    _seed: TestNode,
    scheduler: SchedulerProcess,
}

/// A scheduler, a seed and two peers.
async fn world() -> World {
    log();
    let authority = authority();
    let any = "127.0.0.1:0".parse().unwrap();
    let scheduler = SchedulerProcess::start(any, authority.clone(), CoreSettings::default()).await;
    let mesh = TestMesh::new(vec![scheduler.addr], authority);
    let seed = mesh.node(100, Role::Seed).await;
    let (a, b) = (
        mesh.node(1, Role::Peer).await,
        mesh.node(2, Role::Peer).await,
    );
    // Sessions with the scheduler.
    tokio::time::sleep(Duration::from_millis(300)).await;
    World {
        a,
        b,
        _seed: seed,
        scheduler,
    }
}

fn with(url: &str, name: &str, value: &str) -> rpc::Source {
    let mut source = source(url);
    source.headers.push(rpc::Header {
        name: name.to_owned(),
        value: value.to_owned(),
    });
    source
}

/// A URL signed for S3.
fn signed(url: &str, signature: &str) -> String {
    format!(
        "{url}?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=k&X-Amz-Date=20261128T000000Z\
         &X-Amz-Expires=60&X-Amz-SignedHeaders=host&X-Amz-Signature={signature}"
    )
}

fn digest(bytes: &[u8]) -> String {
    let sum = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    let hex: String = sum.as_ref().iter().map(|b| format!("{b:02x}")).collect();
    format!("sha256:{hex}")
}

/// Neither who holds it nor another node gives it for this.
async fn nobody_gives(w: &World, source: &rpc::Source, what: &str) {
    for (node, which) in [(&w.a, "the same node"), (&w.b, "another node")] {
        let got = read(node, source.clone()).await;
        assert!(got.is_err(), "{which} gives it for {what}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_origin_gave_one_client_as_private_is_not_given_to_another() {
    let w = world().await;
    let body = bytes(1 << 20, 1);
    let secret = body.clone();
    let url = origin(move |head| match head.contains("private-token: s3cret\n") {
        false => refused(),
        true => {
            let (head, body) = given(&secret);
            (format!("{head}cache-control: private\r\n"), body)
        }
    })
    .await;
    let url = format!("{url}/api/v4/projects/1/packages/generic/x/1/secret.bin");
    let shown = with(&url, "PRIVATE-TOKEN", "s3cret");
    assert!(read(&w.a, shown).await.unwrap() == body);
    nobody_gives(&w, &source(&url), "no token").await;
    nobody_gives(&w, &with(&url, "Private-Token", "guess"), "a wrong token").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_origin_says_is_private_or_not_to_be_kept_it_is_asked_for_each_time() {
    let w = world().await;
    for (control, again) in [("no-store", 2), ("private", 2), ("max-age=60", 0)] {
        let body = bytes(100_000, 1);
        let (sent, asked) = (body.clone(), Arc::new(Mutex::new(0)));
        let count = asked.clone();
        let url = origin(move |_| {
            *count.lock().unwrap() += 1;
            let (head, body) = given(&sent);
            (format!("{head}cache-control: {control}\r\n"), body)
        })
        .await;
        assert!(read_all(&w.a, &url).await.unwrap() == body);
        let first = *asked.lock().unwrap();
        for node in [&w.a, &w.b] {
            assert!(read_all(node, &url).await.unwrap() == body);
        }
        assert_eq!(*asked.lock().unwrap() - first, again, "{control}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_origin_gives_for_one_accept_is_not_given_for_another() {
    let w = world().await;
    // One entity tag for both, as an origin does that makes it of a version in its database.
    let url = origin(move |head| {
        let json = head.contains("accept: application/json\n");
        given(if json { b"{}" } else { b"<html>" })
    })
    .await;
    let asked = |accept: &str| with(&format!("{url}/x"), "Accept", accept);
    for node in [&w.a, &w.b] {
        let json = read(node, asked("application/json")).await.unwrap();
        let html = read(node, asked("text/html")).await.unwrap();
        assert_eq!((&*json, &*html), (&b"{}"[..], &b"<html>"[..]));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_signed_url_opened_for_one_client_is_not_given_to_who_shows_no_signature() {
    let w = world().await;
    let body = bytes(1 << 20, 1);
    let secret = body.clone();
    let url = origin(move |head| match head.contains("x-amz-signature=900d") {
        false => refused(),
        true => given(&secret),
    })
    .await;
    let plain = format!("{url}/bucket/secret.bin");
    let shown = signed(&plain, "900d");
    assert!(read_all(&w.a, &shown).await.unwrap() == body);
    nobody_gives(&w, &source(&plain), "no signature").await;
    nobody_gives(&w, &source(&signed(&plain, "bad0")), "a wrong one").await;
    let mut dropped = source(&format!("{plain}?x-amz-signature=bad0"));
    dropped.filtered_query = vec!["x-amz-*".to_owned()];
    nobody_gives(&w, &dropped, "a wrong one that is said not to count").await;
    // What it was opened by opens it again.
    assert!(read_all(&w.b, &shown).await.unwrap() == body);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_client_says_does_not_count_is_shown_to_the_origin_all_the_same() {
    let w = world().await;
    let body = bytes(100_000, 1);
    let secret = body.clone();
    let url = origin(move |head| match head.contains("?ticket=900d&v=1 ") {
        false => refused(),
        true => given(&secret),
    })
    .await;
    let asked = |query: &str| {
        let mut source = source(&format!("{url}/file?{query}"));
        source.filtered_query = vec!["ticket".to_owned()];
        source
    };
    let got = read(&w.a, asked("ticket=900d&v=1")).await;
    assert!(got.unwrap() == body);
    nobody_gives(&w, &asked("ticket=bad0&v=1"), "a wrong ticket").await;
    nobody_gives(&w, &asked("v=1"), "no ticket").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_signature_opened_is_not_given_for_its_digest_without_one() {
    let w = world().await;
    let body = bytes(1 << 20, 1);
    let (secret, bodies) = (body.clone(), Arc::new(Mutex::new(0)));
    let count = bodies.clone();
    let url = origin(move |head| {
        if !head.contains("x-amz-signature=900d") || head.starts_with("head ") {
            return refused();
        }
        if !head.contains("range: bytes=0-0\n") {
            *count.lock().unwrap() += 1;
            return given(&secret);
        }
        let part = "206 Part\r\netag: \"v1\"\r\ncontent-range: bytes 0-0/1048576\r\n";
        (part.to_owned(), secret[..1].to_vec())
    })
    .await;
    let any = origin(|_| given(b"whatever")).await;
    let plain = format!("{url}/bucket/secret.bin");
    let asked = |url: &str| rpc::Source {
        digest: digest(&body),
        ..source(url)
    };
    for (node, signature) in [(&w.a, "900d1"), (&w.b, "900d2")] {
        let got = read(node, asked(&signed(&plain, signature))).await;
        assert!(got.unwrap() == body);
    }
    assert_eq!(*bodies.lock().unwrap(), 1);
    nobody_gives(&w, &asked(&plain), "no signature").await;
    nobody_gives(&w, &asked(&signed(&plain, "bad0")), "a wrong one").await;
    let elsewhere = asked(&signed(&format!("{any}/bucket/secret.bin"), "900d"));
    nobody_gives(&w, &elsewhere, "one that opens something else").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_who_are_let_in_with_signatures_of_their_own_have_the_origin_read_once() {
    let w = world().await;
    let body = bytes(1 << 20, 1);
    let (secret, seen) = (body.clone(), Arc::new(Mutex::new(vec![])));
    let heads = seen.clone();
    let url = origin(move |head| {
        heads.lock().unwrap().push(head.to_owned());
        // A signature is for one method.
        if !head.contains("x-amz-signature=900d") || head.starts_with("head ") {
            return refused();
        }
        if !head.contains("range: bytes=0-0\n") {
            return given(&secret);
        }
        let part = "206 Part\r\netag: \"v1\"\r\ncontent-range: bytes 0-0/1048576\r\n";
        (part.to_owned(), secret[..1].to_vec())
    })
    .await;
    let url = format!("{url}/bucket/model.bin");
    for (node, signature) in [(&w.a, "900d1"), (&w.b, "900d2"), (&w.a, "900d3")] {
        let got = read_all(node, &signed(&url, signature)).await;
        assert!(got.unwrap() == body);
        let heads = seen.lock().unwrap();
        let looked = |head: &&String| head.contains(&format!("signature={signature} "));
        assert!(
            heads.iter().any(|head| looked(&head)),
            "{signature} was not shown"
        );
    }
    let bodies = |head: &&String| head.starts_with("get ") && !head.contains("bytes=0-0\n");
    let heads = seen.lock().unwrap().clone();
    assert_eq!(heads.iter().filter(bodies).count(), 1, "{heads:#?}");
    // What it said to a question holds for a while, for that one.
    assert!(read_all(&w.b, &signed(&url, "900d1")).await.unwrap() == body);
    assert_eq!(seen.lock().unwrap().len(), heads.len());
}

/// A node that says to the scheduler what it likes, and hears what its questions are answered.
struct Liar {
    says: tokio::sync::mpsc::Sender<rpc::FromNode>,
    hears: tonic::Streaming<rpc::ToNode>,
}

impl Liar {
    async fn at(w: &World) -> Self {
        let address = format!("http://{}", w.scheduler.addr);
        let mut client = rpc::scheduler_client::SchedulerClient::connect(address)
            .await
            .unwrap();
        let (says, messages) = tokio::sync::mpsc::channel(8);
        let hello = rpc::NodeHello {
            node: vec![50; 16],
            role: rpc::Role::Peer.into(),
            signing_key: vec![50; 32],
            addresses: vec!["127.0.0.1:1".to_owned()],
            ..rpc::NodeHello::default()
        };
        let hello = rpc::FromNode {
            message: Some(rpc::from_node::Message::Hello(hello)),
        };
        says.send(hello).await.unwrap();
        let messages = tokio_stream::wrappers::ReceiverStream::new(messages);
        let hears = client.session(messages).await.unwrap().into_inner();
        Self { says, hears }
    }

    /// Asks for one URL by the request key of another.
    async fn asks(&mut self, url: &str, by: &str) {
        let nothing_demanded = ("digest".to_owned(), String::new());
        let resolve = rpc::Resolve {
            id: 7,
            request_key: RequestKey::derive("", by, &[nothing_demanded]).0.to_vec(),
            source: Some(source(url)),
            ..rpc::Resolve::default()
        };
        let resolve = rpc::FromNode {
            message: Some(rpc::from_node::Message::Resolve(resolve)),
        };
        self.says.send(resolve).await.unwrap();
        loop {
            let heard = self.hears.message().await.unwrap().unwrap().message;
            if let Some(rpc::to_node::Message::Resolved(answer)) = heard {
                assert_eq!(answer.failure, None);
                return;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_asked_by_the_key_of_another_url_is_not_given_for_that_one() {
    let w = world().await;
    let asked = Arc::new(Mutex::new(0));
    let count = asked.clone();
    let url = origin(move |head| {
        *count.lock().unwrap() += 1;
        given(if head.contains("/evil") {
            b"wrong"
        } else {
            b"right"
        })
    })
    .await;
    let mut liar = Liar::at(&w).await;
    // This is its key: what was said of it by this question is used.
    let (honest, file) = (format!("{url}/honest"), format!("{url}/file"));
    liar.asks(&honest, &honest).await;
    assert_eq!(read_all(&w.a, &honest).await.unwrap(), b"right");
    assert_eq!(*asked.lock().unwrap(), 1);
    liar.asks(&format!("{url}/evil"), &file).await;
    assert_eq!(read_all(&w.a, &file).await.unwrap(), b"right");
}
