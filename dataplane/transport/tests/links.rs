//! Connections between honest nodes, over real sockets, in the clear and under TLS.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod kit;

use std::fs::File;
use std::io::Write;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use dragonfly_proto::frame::Frame;
use dragonfly_proto::id::NodeId;
use dragonfly_transport::{CloseReason, Outgoing, Payload, Security};
use kit::{Ca, Peer, QUICK, SOON, bytes, in_memory, until};

fn pair(tls: bool) -> (Peer, Peer) {
    if tls {
        let ca = Ca::new();
        (ca.peer(1), ca.peer(2))
    } else {
        (Peer::plain(1), Peer::plain(2))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocks_of_files_and_of_memory_arrive_whole_both_ways_and_many_at_once() {
    for tls in [false, true] {
        let (a, b) = pair(tls);
        let body = bytes(3 << 20, 7);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&body).unwrap();
        let file = Arc::new(file);
        for (from, to) in [(&a, &b), (&b, &a)] {
            for index in 0..48_u32 {
                let (offset, len) = (u64::from(index) * 65536, 65536);
                let payload = Payload::File {
                    file: file.clone(),
                    offset,
                    len,
                };
                let proof = vec![index as u8; 6 + index as usize];
                from.notes.queue(
                    &to.id,
                    Outgoing {
                        stream: 5,
                        index,
                        proof,
                        payload,
                    },
                );
                let odd = bytes(1 + index as usize * 21_777, u64::from(index));
                from.notes.queue(&to.id, in_memory(6, index, odd));
            }
        }
        let conn = a.connect(&b).await;
        assert_eq!((conn.peer(), conn.dialled()), (b.id, true));
        for (from, to) in [(&a, &b), (&b, &a)] {
            until("all blocks", SOON, || {
                to.notes.blocks.lock().unwrap().len() == 96
            })
            .await;
            for got in to.notes.blocks.lock().unwrap().iter() {
                let index = got.index as usize;
                let (expected, proof) = if got.stream == 5 {
                    (
                        body[index * 65536..][..65536].to_vec(),
                        vec![index as u8; 6 + index],
                    )
                } else {
                    (
                        bytes(1 + index * 21_777, index as u64),
                        vec![index as u8; 70],
                    )
                };
                assert!(got.from == from.id && got.data == expected && got.proof == proof);
                assert_eq!(got.hash, *blake3::hash(&expected).as_bytes());
            }
        }
        a.notes.check_pairs();
    }
}

/// Sends two blocks of a file, the second of which cannot be read.
async fn second_is_unreadable(what: &str, tls: bool, file: &Arc<File>) {
    let (a, b) = pair(tls);
    for index in 0..2 {
        let payload = Payload::File {
            file: file.clone(),
            offset: u64::from(index) * 65536,
            len: 65536,
        };
        let block = Outgoing {
            stream: 5,
            index,
            proof: vec![0; 6],
            payload,
        };
        a.notes.queue(&b.id, block);
    }
    a.connect(&b).await;
    let told = || !a.notes.unreadable.lock().unwrap().is_empty();
    until(what, SOON, told).await;
    assert_eq!(*a.notes.unreadable.lock().unwrap(), [1], "{what}");
    let ends = || a.notes.reasons().len() == 1;
    until("the end", SOON, ends).await;
    let said = a.notes.reasons().concat();
    assert!(said.contains("a block cannot be read"), "{what}: {said}");
    // The other side has what was whole, and nothing of what was not.
    let ends = || b.notes.reasons().len() == 1;
    until("the other's end", SOON, ends).await;
    let got: Vec<_> = b
        .notes
        .blocks
        .lock()
        .unwrap()
        .iter()
        .map(|b| b.index)
        .collect();
    assert_eq!(got, [0], "{what}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_ends_too_soon_is_told_of_and_ends_the_connection() {
    for tls in [false, true] {
        let file = tempfile::tempfile().unwrap();
        file.set_len(65536 + 100).unwrap();
        second_is_unreadable("a short file", tls, &Arc::new(file)).await;
    }
}

/// A device of this machine, which goes with it.
struct Device(String);

impl Drop for Device {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_cannot_be_read_is_told_of_and_ends_the_connection() {
    let backing = tempfile::NamedTempFile::new().unwrap();
    backing.as_file().set_len(1 << 20).unwrap();
    let mut line = Command::new("losetup");
    line.args(["--find", "--show"]).arg(backing.path());
    let Some(made) = line.output().ok().filter(|o| o.status.success()) else {
        eprintln!(
            "SKIPPED: a device that fails needs root; the test of a short file is much the same"
        );
        return;
    };
    let device = Device(String::from_utf8(made.stdout).unwrap().trim().to_owned());
    // What lies behind it is gone from the second block on: reads fail with EIO.
    backing.as_file().set_len(65536).unwrap();
    for tls in [false, true] {
        let file = File::open(&device.0).unwrap();
        second_is_unreadable("a failing disk", tls, &Arc::new(file)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn control_frames_go_before_blocks_that_wait() {
    for tls in [false, true] {
        let (a, b) = pair(tls);
        let conn = a.connect(&b).await;
        for index in 0..40 {
            a.notes.queue(&b.id, in_memory(1, index, bytes(1 << 20, 1)));
        }
        conn.wake();
        for n in 0..10 {
            conn.send(9, &Frame::Request(n));
        }
        // The writer may be in the middle of one more block, and of no further one.
        let before = (a.notes.sent.load(std::sync::atomic::Ordering::Relaxed) >> 20) as usize + 1;
        until("all", SOON, || b.notes.order.lock().unwrap().len() == 50).await;
        let order = b.notes.order.lock().unwrap().clone();
        let late = order.rfind('f').unwrap();
        assert!(
            late < before + 10,
            "control frames waited behind blocks: {order}"
        );
        let frames = b.notes.frames.lock().unwrap();
        let numbers: Vec<_> = frames.iter().map(|(_, s, f)| (*s, f.clone())).collect();
        let expected: Vec<_> = (0..10).map(|n| (9, Frame::Request(n))).collect();
        assert_eq!(numbers, expected);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_skipped_block_leaves_the_connection_in_step() {
    let (a, b) = pair(false);
    b.notes
        .skip
        .store(true, std::sync::atomic::Ordering::Relaxed);
    a.notes.queue(&b.id, in_memory(1, 1, bytes(777_777, 1)));
    let conn = a.connect(&b).await;
    until("sent", SOON, || {
        a.notes.sent.load(std::sync::atomic::Ordering::Relaxed) > 0
    })
    .await;
    conn.send(2, &Frame::Pass);
    until("the frame behind it", SOON, || {
        !b.notes.frames.lock().unwrap().is_empty()
    })
    .await;
    assert!(b.notes.blocks.lock().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_stay_up_and_those_woken_for_nothing_too() {
    let (a, b) = pair(true);
    let conn = a.connect(&b).await;
    for _ in 0..60 {
        // Woken more often than the heartbeat is due, with nothing to send.
        conn.wake();
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
    assert!(!conn.is_closed(), "{:?}", a.notes.reasons());
    assert!(b.notes.reasons().is_empty(), "{:?}", b.notes.reasons());
    // The loopback's: known, and no more than a busy machine's.
    let trip = conn.round_trip();
    assert!(
        !trip.is_zero() && trip < Duration::from_millis(500),
        "{trip:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dialling_each_other_at_once_ends_with_one_connection_and_every_opened_is_closed_once() {
    for round in 0..60_u8 {
        let (a, b) = pair(round % 4 == 3);
        let dial = |x: &Peer, y: &Peer| {
            let (mesh, id, addr) = (x.mesh.clone(), y.id, y.addr);
            tokio::spawn(async move { mesh.connect(id, &[addr]).await })
        };
        let calls = [dial(&a, &b), dial(&b, &a), dial(&a, &b), dial(&b, &a)];
        for call in calls {
            match call.await.unwrap() {
                Ok(_) | Err(dragonfly_transport::ConnectError::Gone(_)) => {}
                Err(e) => panic!("{e}"),
            }
        }
        let settled = || {
            let up = |p: &Peer, q: &Peer| p.mesh.get(&q.id).is_some() && p.mesh.len() == 1;
            up(&a, &b)
                && up(&b, &a)
                && a.notes.open_now() == 1
                && b.notes.open_now() == 1
                && a.mesh.get(&b.id).map(|c| c.dialled()) != b.mesh.get(&a.id).map(|c| c.dialled())
        };
        until("one connection on each side", SOON, settled).await;
        // It is the same one: what is said on one end comes out of the other.
        let (x, y) = (a.mesh.get(&b.id).unwrap(), b.mesh.get(&a.id).unwrap());
        x.send(1, &Frame::Pass);
        y.send(2, &Frame::Close);
        until("both hear", SOON, || {
            !a.notes.frames.lock().unwrap().is_empty() && !b.notes.frames.lock().unwrap().is_empty()
        })
        .await;
        a.notes.check_pairs();
        b.notes.check_pairs();
        x.close(CloseReason::Local("done".to_owned()));
        until("both gone", SOON, || {
            a.mesh.is_empty() && b.mesh.is_empty() && a.notes.open_now() + b.notes.open_now() == 0
        })
        .await;
        a.notes.check_pairs();
        b.notes.check_pairs();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_for_one_node_at_once_share_one_connection() {
    let (a, b) = pair(false);
    let calls: Vec<_> = (0..50)
        .map(|_| {
            let (mesh, id, addr) = (a.mesh.clone(), b.id, b.addr);
            tokio::spawn(async move { mesh.connect(id, &[addr]).await.unwrap().id() })
        })
        .collect();
    let mut ids = vec![];
    for c in calls {
        ids.push(c.await.unwrap());
    }
    ids.dedup();
    assert_eq!(ids.len(), 1);
    // Who dialled may be done before the other side is.
    until("it is opened there", SOON, || {
        !b.notes.opened.lock().unwrap().is_empty()
    })
    .await;
    assert_eq!(b.notes.opened.lock().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_comes_back_with_the_same_identity_is_taken_again_and_the_old_one_let_go() {
    for (n, other) in [(1, 2), (3, 2)] {
        let b = Peer::plain(other);
        let first = Peer::plain(n);
        let old = first.connect(&b).await;
        until("accepted", SOON, || b.mesh.get(&first.id).is_some()).await;
        let at_b = b.mesh.get(&first.id).unwrap();
        // As if the machine lost its power: the old process says no goodbye.
        let second = Peer::plain(n);
        let new = second.connect(&b).await;
        until("the new one took its place", SOON, || {
            b.mesh.get(&second.id).is_some_and(|c| c.id() != at_b.id())
        })
        .await;
        new.send(1, &Frame::Pass);
        until("it works", SOON, || {
            !b.notes.frames.lock().unwrap().is_empty()
        })
        .await;
        until("the old one is gone", SOON, || {
            old.is_closed() && b.notes.open_now() == 1
        })
        .await;
        assert!(
            b.mesh.get(&second.id).is_some(),
            "its end took the new one with it"
        );
        b.notes.check_pairs();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn addresses_are_tried_in_turn_and_no_address_is_an_error() {
    let (a, b) = pair(false);
    let nobody = "127.0.0.1:1".parse().unwrap();
    assert_eq!(
        a.mesh
            .connect(b.id, &[nobody, b.addr])
            .await
            .unwrap()
            .peer(),
        b.id
    );
    let stranger = NodeId([9; 16]);
    assert!(a.mesh.connect(stranger, &[]).await.is_err());
    assert!(a.mesh.connect(stranger, &[nobody]).await.is_err());
    assert!(a.mesh.get(&stranger).is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_hundred_nodes_connect_to_one_and_each_gets_its_block() {
    let hub = Peer::plain(255);
    let nodes: Vec<_> = (0..500_u32)
        .map(|n| {
            let mut id = [1; 16];
            id[..4].copy_from_slice(&n.to_be_bytes());
            Peer::of(NodeId(id), kit::MESH, Security::plaintext(), QUICK)
        })
        .collect();
    for (n, node) in nodes.iter().enumerate() {
        hub.notes
            .queue(&node.id, in_memory(1, n as u32, bytes(8192, n as u64)));
    }
    let mut calls = tokio::task::JoinSet::new();
    for node in &nodes {
        let (mesh, id, addr) = (node.mesh.clone(), hub.id, hub.addr);
        calls.spawn(async move { mesh.connect(id, &[addr]).await.map(|_| ()) });
    }
    while let Some(done) = calls.join_next().await {
        done.unwrap().unwrap();
    }
    let all = || {
        nodes
            .iter()
            .all(|n| n.notes.blocks.lock().unwrap().len() == 1)
    };
    until("every node has its block", SOON * 2, all).await;
    for (n, node) in nodes.iter().enumerate() {
        assert_eq!(
            node.notes.blocks.lock().unwrap()[0].data,
            bytes(8192, n as u64)
        );
    }
    assert_eq!(hub.mesh.len(), 500);
    drop(nodes);
    until("all gone", SOON * 2, || {
        hub.mesh.is_empty() && hub.notes.open_now() == 0
    })
    .await;
    hub.notes.check_pairs();
}
