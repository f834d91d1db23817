//! A node's cache when it is full: what nobody uses gives way to what somebody wants.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use common::{MIB, Setting};
use dragonfly_e2e::mesh::Options;

#[tokio::test(flavor = "multi_thread")]
async fn a_full_cache_gives_way_to_the_next_content_at_seed_and_peer() {
    let options = Options {
        peers: 1,
        spec: "  backToSource: Never\n  storage: {quota: 256Mi, reserveFreePercent: 0}\n"
            .to_owned(),
        ..Options::default()
    };
    let setting = Setting::new(&options, 64 * MIB, 0).await;
    for n in 0..9 {
        let url = format!("{}?which={n}", setting.url);
        let get = setting.mesh.get(0, &url, &[]).unwrap();
        setting.has(get).await;
    }
}

/// Files below a directory that hold content.
fn contents(dir: &Path) -> Vec<PathBuf> {
    let mut found = vec![];
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(contents(&path));
        } else if path.extension().is_some_and(|e| e == "data") {
            found.push(path);
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_disk_changed_is_had_anew_by_a_client_that_names_a_digest() {
    let options = Options {
        peers: 1,
        ..Options::default()
    };
    let mut s = Setting::new(&options, 8 * MIB, 0).await;
    let digest = s.source.digest.clone();
    let named = ["--digest", &digest];
    s.has(s.mesh.get(0, &s.url, &named).unwrap()).await;
    s.mesh.peers[0].kill();
    let files = contents(&s.mesh.peers[0].state);
    assert_eq!(files.len(), 1);
    let file = std::fs::File::options()
        .write(true)
        .open(&files[0])
        .unwrap();
    file.write_all_at(b"changed", 5 * MIB).unwrap();
    s.mesh.peers[0].start().unwrap();
    s.mesh.peers[0].ready().await.unwrap();
    s.has(s.mesh.get(0, &s.url, &named).unwrap()).await;
    let found = s.mesh.peers[0].metric("dragonfly_node_damaged_contents_total");
    assert_eq!(found.await.unwrap(), 1.0);
}
