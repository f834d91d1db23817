//! What many large tasks cost in memory and at start. Alone in its process, since it looks at the
//! process's memory.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::time::Instant;

use common::*;
use dragonfly_storage::format::{Header, RECORD, RECORDS_AT, Record};
use dragonfly_storage::*;

const TASKS: u64 = 200;
const BLOCK: u32 = 512 * 1024;
const TOTAL: u64 = 1 << 30;

/// Resident memory, bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|l| l.strip_prefix("VmRSS:"))
        .unwrap();
    line.split_whitespace()
        .next()
        .unwrap()
        .parse::<u64>()
        .unwrap()
        << 10
}

/// A task of holes whose records all claim a maximal proof.
fn forge(media: &DiskMedia, n: u64) {
    let key = key(n);
    let geometry = Geometry::new(BLOCK, Some(TOTAL)).unwrap();
    let blocks = geometry.total_blocks().unwrap();
    let mut index = vec![0; RECORDS_AT as usize];
    let header = Header {
        sequence: 0,
        key,
        geometry,
        durable_epoch: 1,
        boot: [0; 16],
        complete: false,
        pinned: false,
        last_used: NOW,
        verified: None,
    };
    index[..512].copy_from_slice(&header.encode());
    for block in 0..blocks {
        index.extend(Record::encode(
            &key,
            block,
            BLOCK,
            1,
            &[1; 32],
            &[2; MAX_PROOF],
        ));
    }
    assert_eq!(index.len(), RECORDS_AT as usize + blocks as usize * RECORD);
    media
        .create(&format!("{key}.index"))
        .unwrap()
        .write_all_at(&index, 0)
        .unwrap();
    media
        .create(&format!("{key}.data"))
        .unwrap()
        .write_all_at(&[0], TOTAL - 1)
        .unwrap();
}

#[test]
fn two_hundred_tasks_of_a_gib_cost_little_memory_and_open_quickly() {
    let dir = dir();
    let media = DiskMedia::new(dir.path()).unwrap();
    for n in 0..TASKS {
        forge(&media, n);
    }
    let before = resident();
    let start = Instant::now();
    let store = Store::open(media, options(), NOW).unwrap();
    let took = start.elapsed();
    let tasks: Vec<Task> = (0..TASKS)
        .map(|n| store.open_task(&key(n)).unwrap().unwrap())
        .collect();
    assert!(tasks.iter().all(Task::is_complete));
    assert_eq!(
        tasks[7].proof(2047).unwrap().unwrap().proof,
        vec![2; MAX_PROOF]
    );
    let cost = resident().saturating_sub(before);
    eprintln!(
        "{TASKS} open tasks of 1 GiB: {} KiB, opened in {took:?}",
        cost >> 10
    );
    assert!(cost < 8 << 20, "{cost} bytes for {TASKS} tasks");
    assert_eq!(store.usage().bytes, TASKS * (TOTAL + 2048 * RECORD as u64));
}
