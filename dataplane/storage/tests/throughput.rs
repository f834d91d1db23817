//! How fast blocks go in and out. Run by hand, on a quiet machine:
//! `cargo test --release -p dragonfly-storage --test throughput -- --ignored --nocapture`.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::time::Instant;

use common::*;
use dragonfly_storage::*;

#[test]
#[ignore = "a measurement, not a test"]
fn blocks_per_second() {
    let total: u64 = 1 << 30;
    let dir = dir();
    let store = Store::open(DiskMedia::new(dir.path()).unwrap(), options(), NOW).unwrap();
    for block_size in [KIB64, 256 * 1024, dragonfly_proto::geometry::MAX_BLOCK] {
        for round in 0..4 {
            let geometry = Geometry::new(block_size, Some(total)).unwrap();
            let task = store.create_or_open(key(0), geometry, b"").unwrap();
            let data = content(0, block_size as usize);
            let (digest, blocks) = (hash(&data), geometry.total_blocks().unwrap());
            let start = Instant::now();
            for index in 0..blocks {
                task.write_block(index, &data, digest, &[1; 200]).unwrap();
            }
            let wrote = start.elapsed().as_secs_f64();
            let mut buf = vec![0; block_size as usize];
            let start = Instant::now();
            for index in 0..blocks {
                task.read_block(index, &mut buf).unwrap();
            }
            let read = start.elapsed().as_secs_f64();
            let start = Instant::now();
            for index in 0..blocks {
                assert!(task.proof(index).unwrap().is_some());
            }
            let proofs = start.elapsed().as_secs_f64();
            let mib = total as f64 / f64::from(1 << 20);
            eprintln!(
                "{:4} KiB, round {round}: write {:5.0} MiB/s, read {:5.0} MiB/s, proof {:.2} us each",
                block_size >> 10,
                mib / wrote,
                mib / read,
                proofs * 1e6 / f64::from(blocks),
            );
            // The next round finds the pages recycled.
            drop(task);
            store.delete(&key(0)).unwrap();
        }
    }
    let start = Instant::now();
    for n in 0..1000 {
        let task = store
            .create_or_open(key(n), geometry(4096), b"meta")
            .unwrap();
        put(&task, &content(0, 4096), 0).unwrap();
        task.set_verified("sha256:0").unwrap();
    }
    eprintln!("1000 tasks of 4 KiB: {:?}", start.elapsed());
}
