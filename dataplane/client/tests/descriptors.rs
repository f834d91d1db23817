//! A node that has no descriptor left for a client. In a process of its own: the limit is the process's.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod common;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use common::Served;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, connect, socket};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Hundredths of a second that this process has worked.
fn worked(stat: &File) -> u64 {
    let mut text = [0; 1024];
    let len = stat.read_at(&mut text, 0).unwrap();
    let text = String::from_utf8_lossy(&text[..len]);
    let after_name = text.rsplit_once(')').unwrap().1;
    let numbers = after_name.split_whitespace().skip(11).take(2);
    numbers.map(|n| n.parse::<u64>().unwrap()).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_descriptors_for_clients_waits_for_some_at_no_cost() {
    let dir = tempfile::tempdir().unwrap();
    let served = Served::start(dir.path()).await;
    served.client().await.status().await.unwrap();
    let stat = File::open("/proc/self/stat").unwrap();
    // Both ends are in this process: these have theirs, the node gets none.
    let clients = [(); 8].map(|()| socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap());
    let before = getrlimit(Resource::Nofile);
    let none = Rlimit {
        current: Some(0),
        ..before
    };
    setrlimit(Resource::Nofile, none).unwrap();
    let address = SocketAddrUnix::new(served.socket()).unwrap();
    for client in &clients {
        connect(client, &address).unwrap();
    }
    let since = worked(&stat);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let cost = worked(&stat) - since;
    setrlimit(Resource::Nofile, before).unwrap();
    assert!(
        cost < 30,
        "{cost} hundredths of a second of work in two seconds"
    );
    served.client().await.status().await.unwrap();
}
