//! What those who are not honest nodes of the mesh, or no nodes at all, can do to one.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod kit;

use std::sync::atomic::Ordering;
use std::time::Duration;

use dragonfly_proto::frame::{Frame, Greeting, MAX_CONTROL, MAX_DATA, kind};
use dragonfly_proto::geometry::MAX_BLOCK;
use dragonfly_proto::id::NodeId;
use dragonfly_transport::{ConnectError, Security};
use kit::{Ca, MESH, Peer, QUICK, Raw, SOON, bytes, in_memory, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_mesh_another_node_and_oneself_are_strangers() {
    let a = Peer::plain(1);
    let foreign = Peer::of(NodeId([2; 16]), [9; 16], Security::plaintext(), QUICK);
    let other = Peer::plain(3);
    let e = a
        .mesh
        .connect(foreign.id, &[foreign.addr])
        .await
        .unwrap_err();
    assert!(matches!(e, ConnectError::Stranger(_, _)), "{e}");
    let e = a
        .mesh
        .connect(NodeId([7; 16]), &[other.addr])
        .await
        .unwrap_err();
    assert!(matches!(e, ConnectError::Stranger(_, _)), "{e}");
    let e = a
        .mesh
        .connect(NodeId([8; 16]), &[a.addr])
        .await
        .unwrap_err();
    assert!(matches!(e, ConnectError::Stranger(_, _)), "{e}");
    assert!(a.mesh.is_empty() && foreign.mesh.is_empty());
    assert!(a.notes.opened.lock().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_tls_only_certificates_of_the_mesh_that_name_the_node_are_let_in() {
    let (ca, other_ca) = (Ca::new(), Ca::new());
    let a = ca.peer(1);
    // Another CA, both ways.
    let stranger = other_ca.peer(2);
    assert!(a.mesh.connect(stranger.id, &[stranger.addr]).await.is_err());
    let _ = stranger.mesh.connect(a.id, &[a.addr]).await;
    // A certificate of the mesh, for another node than it says it is.
    let liar = Peer::of(NodeId([5; 16]), MESH, ca.security(&NodeId([6; 16])), QUICK);
    assert!(a.mesh.connect(liar.id, &[liar.addr]).await.is_err());
    let _ = liar.mesh.connect(a.id, &[a.addr]).await;
    // Plaintext against TLS, both ways.
    let plain = Peer::plain(3);
    assert!(a.mesh.connect(plain.id, &[plain.addr]).await.is_err());
    let _ = plain.mesh.connect(a.id, &[a.addr]).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(a.mesh.is_empty(), "a stranger is connected");
    assert!(
        a.notes.opened.lock().unwrap().is_empty(),
        "a stranger was opened"
    );
    until("strangers' ends are gone too", SOON, || {
        stranger.mesh.is_empty() && liar.mesh.is_empty() && plain.mesh.is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn renewed_certificates_serve_new_connections_while_old_ones_live() {
    let ca = Ca::new();
    let security = ca.security(&NodeId([1; 16]));
    let a = Peer::new(1, security.clone(), QUICK);
    let (b, c) = (ca.peer(2), ca.peer(3));
    let old = a.connect(&b).await;
    security.replace(ca.tls(&a.id));
    a.connect(&c).await;
    c.connect(&b).await;
    old.send(1, &Frame::Pass);
    until("the old one lives", SOON, || {
        !b.notes.frames.lock().unwrap().is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_and_silence_instead_of_a_greeting_are_hung_up_on() {
    let a = Peer::plain(1);
    let mut http = TcpStream::connect(a.addr).await.unwrap();
    let text = b"GET / HTTP/1.1\r\nHost: somebody-who-took-this-for-a-web-server.example\r\n\r\n";
    http.write_all(text).await.unwrap();
    let mut short = TcpStream::connect(a.addr).await.unwrap();
    short
        .write_all(&Greeting::new(NodeId([2; 16]), MESH).encode()[..20])
        .await
        .unwrap();
    let mut silent = TcpStream::connect(a.addr).await.unwrap();
    let mut too_new = TcpStream::connect(a.addr).await.unwrap();
    let mut future = Greeting::new(NodeId([2; 16]), MESH);
    (future.version, future.min_version) = (9, 8);
    too_new.write_all(&future.encode()).await.unwrap();
    let mut demanding = TcpStream::connect(a.addr).await.unwrap();
    let demand = Greeting {
        required: 1 << 63,
        ..Greeting::new(NodeId([2; 16]), MESH)
    };
    demanding.write_all(&demand.encode()).await.unwrap();
    for io in [
        &mut http,
        &mut short,
        &mut silent,
        &mut too_new,
        &mut demanding,
    ] {
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(3), io.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "still connected");
    }
    assert!(a.notes.opened.lock().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_of_silent_callers_does_not_keep_honest_ones_out_for_longer_than_a_greeting() {
    let a = Peer::plain(1);
    let mut crowd = vec![];
    for _ in 0..1500 {
        crowd.push(TcpStream::connect(a.addr).await.unwrap());
    }
    let patient = dragonfly_transport::Timeouts {
        greet: Duration::from_secs(5),
        ..QUICK
    };
    let honest = Peer::new(2, Security::plaintext(), patient);
    honest.connect(&a).await;
    until("accepted", SOON, || a.mesh.len() == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lengths_beyond_the_bounds_and_unknown_types_end_the_connection_before_anything_is_read() {
    let cases: Vec<(&str, Vec<u8>)> = vec![
        (
            "a control frame too long",
            Raw::header(kind::HAVE, MAX_CONTROL + 1).to_vec(),
        ),
        (
            "four gigabytes",
            Raw::header(kind::BITMAP, u32::MAX).to_vec(),
        ),
        (
            "a skippable frame too long",
            Raw::header(0xf0, u32::MAX).to_vec(),
        ),
        ("an unknown type", Raw::header(0x7f, 0).to_vec()),
        ("type zero", Raw::header(0, 0).to_vec()),
        (
            "DATA too long",
            Raw::header(kind::DATA, MAX_DATA + 1).to_vec(),
        ),
        (
            "a block too long",
            Raw::data(0, MAX_BLOCK + 1, 0, MAX_BLOCK + 1 + 12),
        ),
        ("an empty block", Raw::data(0, 0, 10, 22)),
        ("a proof too long", Raw::data(0, 1, 1000, 1013)),
        ("lengths that do not add up", Raw::data(0, 100, 10, 50)),
        ("DATA shorter than its own header", {
            let mut bytes = Raw::header(kind::DATA, 3).to_vec();
            bytes.extend_from_slice(&[0; 12]);
            bytes
        }),
        ("a body that is none", {
            let mut bytes = Raw::header(kind::REQUEST, 3).to_vec();
            bytes.extend_from_slice(&[0; 3]);
            bytes
        }),
        ("a ping with a body", {
            let mut bytes = Raw::header(kind::PING, 1).to_vec();
            bytes.push(0);
            bytes
        }),
    ];
    let a = Peer::plain(1);
    for (n, (what, bytes)) in cases.into_iter().enumerate() {
        let mut raw = Raw::greeted(&a, NodeId([100 + n as u8; 16])).await;
        raw.send(&bytes).await;
        let took = raw.hung_up().await;
        assert!(took < Duration::from_secs(1), "{what}: {took:?}");
    }
    until("all closed", SOON, || a.notes.open_now() == 0).await;
    let reasons = a.notes.reasons();
    assert!(
        reasons.iter().all(|r| r.starts_with("violation")),
        "{reasons:?}"
    );
    assert!(a.notes.blocks.lock().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_frames_that_may_be_skipped_are_and_what_follows_is_understood() {
    let a = Peer::plain(1);
    let mut raw = Raw::greeted(&a, NodeId([2; 16])).await;
    let mut bytes = Raw::header(0x9c, 5000).to_vec();
    bytes.extend_from_slice(&[1; 5000]);
    Frame::Request(7).encode(3, &mut bytes);
    // Byte by byte: a frame may come in any pieces.
    for b in bytes.chunks(997) {
        raw.send(b).await;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    until("the frame behind it", SOON, || {
        !a.notes.frames.lock().unwrap().is_empty()
    })
    .await;
    assert_eq!(
        a.notes.frames.lock().unwrap()[0],
        (NodeId([2; 16]), 3, Frame::Request(7))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_block_that_nobody_asked_for_is_not_read() {
    let a = Peer::plain(1);
    a.notes.refuse_blocks.store(true, Ordering::Relaxed);
    let mut raw = Raw::greeted(&a, NodeId([2; 16])).await;
    raw.send(&Raw::data(0, MAX_BLOCK, 70, MAX_BLOCK + 82)).await;
    assert!(raw.hung_up().await < Duration::from_secs(1));
    until("closed", SOON, || {
        a.notes.reasons().iter().any(|r| r.contains("nobody asked"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_falls_silent_is_let_go_even_in_the_middle_of_a_block() {
    let a = Peer::plain(1);
    let mut silent = Raw::greeted(&a, NodeId([2; 16])).await;
    let mut half = Raw::greeted(&a, NodeId([3; 16])).await;
    half.send(&Raw::data(0, 100_000, 0, 100_012)).await;
    half.send(&[0; 50_000]).await;
    let (x, y) = tokio::join!(silent.hung_up(), half.hung_up());
    let bound = QUICK.silence + Duration::from_secs(1);
    assert!(x < bound && y < bound, "{x:?} {y:?}");
    until("both closed", SOON, || a.notes.open_now() == 0).await;
    assert!(
        a.notes.reasons().iter().all(|r| r.starts_with("silent")),
        "{:?}",
        a.notes.reasons()
    );
    assert!(
        a.notes.blocks.lock().unwrap().is_empty(),
        "half a block was handed over"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_stops_reading_costs_a_bounded_queue_and_is_let_go() {
    let a = Peer::plain(1);
    let mut deaf = Raw::greeted(&a, NodeId([2; 16])).await;
    until("up", SOON, || a.mesh.len() == 1).await;
    let conn = a.mesh.get(&NodeId([2; 16])).unwrap();
    for index in 0..64 {
        a.notes
            .queue(&conn.peer(), in_memory(1, index, bytes(1 << 20, 1)));
    }
    conn.wake();
    // It still talks, so it is not silent.
    let mut ping = vec![];
    Frame::Ping.encode(0, &mut ping);
    for _ in 0..2000 {
        if conn.is_closed() {
            break;
        }
        for _ in 0..20 {
            conn.send(
                1,
                &Frame::Bitmap {
                    last: false,
                    bytes: vec![0; 8192],
                },
            );
        }
        let _ = deaf.io.write_all(&ping).await;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    until("closed", SOON, || a.notes.open_now() == 0).await;
    let reasons = a.notes.reasons();
    assert!(reasons[0].contains("too slowly"), "{reasons:?}");
}
