//! Much at once, of real processes: contents, small files, connections; and the memory it costs.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use common::{MIB, until};
use dragonfly_client::{Client, Request};
use dragonfly_e2e::mesh::{Member, Mesh, Options};
use dragonfly_e2e::origin::Origin;
use dragonfly_e2e::{sample, usage};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// Resident memory of a node, MiB.
fn resident(member: &mut Member) -> f64 {
    usage::memory(member.id().unwrap(), "VmRSS")
}

fn open_files(member: &mut Member) -> usize {
    let dir = format!("/proc/{}/fd", member.id().unwrap());
    std::fs::read_dir(dir).unwrap().count()
}

/// So many files at the origin: their URLs, and what each hashes to.
fn files(origin: &Origin, dir: &Path, count: u64, len: u64) -> HashMap<String, String> {
    let made = (0..count).map(|n| {
        let name = format!("{count}-{n}.bin");
        let made = sample::random(&dir.join(&name), len, count * 10_000 + n).unwrap();
        (origin.serve(&name, &made.path).unwrap(), made.digest)
    });
    made.collect()
}

/// Every peer gets everything at once, over one connection of a client.
async fn all_get_all(mesh: &Mesh, wanted: &HashMap<String, String>, limit: Duration) {
    let began = Instant::now();
    let mut downloads = JoinSet::new();
    for peer in &mesh.peers {
        let client = Client::connect(&peer.socket).await.unwrap();
        for (url, digest) in wanted {
            let (client, name) = (client.clone(), peer.name.clone());
            let (url, digest) = (url.clone(), digest.clone());
            downloads.spawn(async move {
                let got = read(&client, &url).await;
                let got = got.unwrap_or_else(|e| panic!("{url} at {name}: {e}"));
                assert_eq!(got, digest, "{url} at {name}");
            });
        }
    }
    let count = downloads.len();
    let all = async {
        while let Some(done) = downloads.join_next().await {
            done.unwrap()
        }
    };
    let done = tokio::time::timeout(limit, all).await;
    done.unwrap_or_else(|_| panic!("not all {count} were there after {limit:?}"));
    eprintln!("{count} downloads in {:?}", began.elapsed());
}

async fn read(client: &Client, url: &str) -> Result<String, dragonfly_client::Error> {
    let mut reader = client.read(&Request::new(url));
    let mut bytes = vec![];
    while let Some(part) = reader.next().await? {
        bytes.extend_from_slice(&part);
    }
    Ok(sample::digest_of(&bytes))
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_contents_and_a_thousand_small_files_at_once_come_whole_and_cost_little_memory()
{
    let options = Options {
        peers: 3,
        ..Options::default()
    };
    let mut mesh = Mesh::start(&options).await.unwrap();
    let origin = Origin::start(0).await.unwrap();
    for (count, len) in [(200, MIB), (1000, 4 << 10)] {
        let sent = origin.sent();
        let wanted = files(&origin, &mesh.dir().join("work"), count, len);
        all_get_all(&mesh, &wanted, Duration::from_secs(90)).await;
        let sent = origin.sent() - sent;
        assert!(
            sent <= count * len * 102 / 100,
            "{sent} bytes sent for {count} x {len}"
        );
        for member in mesh.seeds.iter_mut().chain(&mut mesh.peers) {
            let now = resident(member);
            assert!(
                now < 256.0,
                "{} has {now} MiB with {count} tasks",
                member.name
            );
        }
    }
    // Once more the same: all is there, and nothing grows.
    let before: Vec<_> = mesh.peers.iter_mut().map(resident).collect();
    let wanted = files(&origin, &mesh.dir().join("work"), 1000, 4 << 10);
    let sent = origin.sent();
    for _ in 0..3 {
        all_get_all(&mesh, &wanted, Duration::from_secs(60)).await;
    }
    // Served anew, they are new versions: fetched once, and then held.
    assert!(origin.sent() - sent <= 1000 * (4 << 10) * 102 / 100);
    for (peer, before) in mesh.peers.iter_mut().zip(before) {
        let now = resident(peer);
        assert!(
            now < before + 64.0,
            "{}: {before} MiB, then {now}",
            peer.name
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_connections_of_each_kind_are_served_or_let_go_and_leave_nothing() {
    let mut mesh = Mesh::start(&Options::default()).await.unwrap();
    let origin = Origin::start(0).await.unwrap();
    let held = sample::random(&mesh.dir().join("held"), 2 * MIB, 1).unwrap();
    let url = origin.serve("held.bin", &held.path).unwrap();
    let first = Client::connect(&mesh.peers[0].socket).await.unwrap();
    assert_eq!(read(&first, &url).await.unwrap(), held.digest);
    let (memory, files) = (resident(&mut mesh.peers[0]), open_files(&mut mesh.peers[0]));

    // Strangers that say nothing at the port for nodes, and clients that all want something.
    let mut strangers = vec![];
    for _ in 0..500 {
        strangers.push(TcpStream::connect(mesh.peers[0].listen).await.unwrap());
    }
    let mut clients = JoinSet::new();
    for _ in 0..500 {
        let (socket, url) = (mesh.peers[0].socket.clone(), url.clone());
        let digest = held.digest.clone();
        clients.spawn(async move {
            let client = Client::connect(&socket).await.unwrap();
            assert_eq!(read(&client, &url).await.unwrap(), digest);
            client
        });
    }
    // Meanwhile the other peer gets something new, from the origin's seed and from this one.
    let fresh = sample::random(&mesh.dir().join("fresh"), 8 * MIB, 2).unwrap();
    let fresh_url = origin.serve("fresh.bin", &fresh.path).unwrap();
    let gets: Vec<_> = (0..2)
        .map(|p| mesh.get(p, &fresh_url, &[]).unwrap())
        .collect();
    for get in gets {
        let (output, ended) = (get.output.clone(), get.wait(common::LIMIT).await.unwrap());
        assert_eq!(ended.code, Some(0), "{}", ended.complaint());
        assert_eq!(sample::digest(&output).unwrap(), fresh.digest);
    }
    let mut served = vec![];
    while let Some(client) = clients.join_next().await {
        served.push(client.unwrap());
    }
    assert_eq!(served.len(), 500);
    let peak = resident(&mut mesh.peers[0]);
    // What waits to be read by a client is bounded: less than a MiB each.
    assert!(
        peak < memory + 500.0,
        "{memory} MiB before, {peak} with them"
    );
    drop((strangers, served));
    let mut peer = mesh.peers.remove(0);
    let gone = || {
        let now = open_files(&mut peer);
        async move { now <= files + 20 }
    };
    until("the connections are closed here too", gone).await;
}
