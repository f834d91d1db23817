//! Origins that say now this and now that, and clients that name origins which lead nowhere: what others
//! ask for is had all the same.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod kit;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use dragonfly_node::download::Wish;
use dragonfly_node::node::{Role, Settings};
use dragonfly_scheduler::core::CoreSettings;
use kit::{SchedulerProcess, TestMesh, authority, bytes, log, read_all, source};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

/// What an origin does with a request's head: status line, headers, body, bytes a second.
type Answer = (String, Vec<u8>, u64);
type Says = Arc<Mutex<dyn FnMut(&str) -> Answer + Send>>;

/// An origin that closes after each answer.
async fn origin(says: impl FnMut(&str) -> Answer + Send + 'static) -> String {
    let says: Says = Arc::new(Mutex::new(says));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let says = says.clone();
            tokio::spawn(async move {
                let (r, mut w) = stream.split();
                let mut lines = BufReader::new(r).lines();
                let mut head = String::new();
                while let Ok(Some(line)) = lines.next_line().await {
                    if line.is_empty() {
                        break;
                    }
                    head += &line.to_ascii_lowercase();
                    head.push('\n');
                }
                let (answer, body, rate) = (*says.lock().unwrap())(&head);
                let answer = format!("HTTP/1.1 {answer}connection: close\r\n\r\n");
                if w.write_all(answer.as_bytes()).await.is_err() || head.starts_with("head ") {
                    return;
                }
                for part in body.chunks(16 << 10) {
                    if w.write_all(part).await.is_err() {
                        return;
                    }
                    if rate > 0 {
                        let pause = Duration::from_secs_f64(part.len() as f64 / rate as f64);
                        tokio::time::sleep(pause).await;
                    }
                }
                let _ = w.shutdown().await;
            });
        }
    });
    url
}

async fn world() -> (SchedulerProcess, TestMesh) {
    log();
    let authority = authority();
    let any = "127.0.0.1:0".parse().unwrap();
    let scheduler = SchedulerProcess::start(any, authority.clone(), CoreSettings::default()).await;
    let mesh = TestMesh::new(vec![scheduler.addr], authority);
    (scheduler, mesh)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_held_before_an_origin_said_its_length_is_had_when_it_says_it() {
    let says = Arc::new(Mutex::new(false));
    let body = bytes(1 << 20, 1);
    let (told, sent) = (says.clone(), body.clone());
    let url = origin(move |_| {
        // As a proxy does it that has it in its cache only the second time.
        let length = match *told.lock().unwrap() {
            false => String::new(),
            true => format!("content-length: {}\r\n", sent.len()),
        };
        let head = format!("200 OK\r\netag: \"v1\"\r\n{length}");
        (head, sent.clone(), 0)
    })
    .await;
    let url = format!("{url}/file");
    let settings = || Settings {
        freshness: Duration::from_millis(1),
        back_to_source: false,
        ..Settings::default()
    };
    // One that held all of it, and one that held a part.
    let (dir, scrap) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (scheduler, mesh) = world().await;
    let seed = mesh.node(100, Role::Seed).await;
    let node_of = |mesh: TestMesh, n, dir| async move {
        mesh.node_of(n, 9, Role::Peer, settings(), dir, 1 << 30)
            .await
    };
    let a = node_of(mesh.clone(), 1, dir).await;
    let b = node_of(mesh, 2, scrap).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let part = Wish::Range(0, Some(1 << 18));
    let part = b.node.fetch(&source(&url), part).await.unwrap();
    drop(part);
    assert!(read_all(&a, &url).await.unwrap() == body);
    // Those machines are away for a while; everything else is new by then.
    let mut kept = vec![];
    for kit::TestNode { node, dir } in [a, b] {
        node.shutdown().await;
        kept.push(dir);
    }
    seed.node.shutdown().await;
    drop((seed, scheduler));
    *says.lock().unwrap() = true;
    let (_scheduler, mesh) = world().await;
    let _seed = mesh.node(101, Role::Seed).await;
    let c = mesh.node(3, Role::Peer).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(read_all(&c, &url).await.unwrap() == body);
    for (n, dir) in (1..).zip(kept) {
        let back = node_of(mesh.clone(), n, dir).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        for _ in 0..2 {
            let got = tokio::time::timeout(Duration::from_secs(20), read_all(&back, &url)).await;
            assert!(got.unwrap().unwrap() == body);
        }
    }
}
