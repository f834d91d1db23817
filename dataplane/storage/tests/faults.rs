//! Crashes at every operation, power loss, and foreign files.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]
// A list of ranges of which there is one.
#![allow(clippy::single_range_in_vec_init)]

mod common;

use std::sync::atomic::Ordering::SeqCst;

use common::*;
use dragonfly_proto::id::RequestKey;
use dragonfly_storage::*;

const BLOCKS: u32 = 6;
const LEN: usize = (BLOCKS as usize - 1) * KIB64 as usize + 77;

/// Everything that a node does to a store, each step acknowledged through `done`.
fn script(store: &Store, done: &mut Done) -> Result<()> {
    let data = content(1, LEN);
    let unknown = Geometry::new(KIB64, None).unwrap();
    let task = store.create_or_open(key(1), unknown, b"meta 1")?;
    done.created = true;
    let mut write = |index| -> Result<()> {
        put(&task, &data, index)?;
        done.blocks |= 1 << index;
        Ok(())
    };
    write(3)?;
    write(0)?;
    task.set_total_len(LEN as u64)?;
    write(5)?;
    store.remember_request(RequestKey([1; 32]), key(1), 7)?;
    done.request = true;
    store.checkpoint()?;
    write(1)?;
    task.set_meta(b"meta 2")?;
    write(4)?;
    store.pin(&key(1))?;
    write(2)?;
    task.set_verified("sha256:ok")?;
    done.verified = true;
    store.checkpoint()?;
    let other = content(2, LEN);
    let second = store.create_or_open(key(2), geometry(LEN as u64), b"")?;
    put_all_but_fail(&second, &other)?;
    drop(second);
    store.delete(&key(2))?;
    done.deleted = true;
    Ok(())
}

fn put_all_but_fail(task: &Task, data: &[u8]) -> Result<()> {
    (0..BLOCKS).try_for_each(|index| put(task, data, index).map(drop))
}

#[derive(Debug, Default)]
struct Done {
    created: bool,
    blocks: u32,
    request: bool,
    verified: bool,
    deleted: bool,
}

fn check_after(store: &Store, done: &Done, at: &str) {
    let data = content(1, LEN);
    assert!(
        !done.created || store.stat(&key(1)).is_some(),
        "{at}: the task is lost"
    );
    if let Some(task) = store.open_task(&key(1)).unwrap() {
        for index in (0..BLOCKS).filter(|i| done.blocks >> i & 1 == 1) {
            assert!(
                task.is_held(index),
                "{at}: block {index} was acknowledged and is lost"
            );
        }
        check_held(&task, &data);
        assert!(!done.verified || task.verified().is_some(), "{at}");
        let meta = task.meta().unwrap();
        assert!(
            [&b"meta 1"[..], b"meta 2"].contains(&&meta[..]),
            "{at}: {meta:?}"
        );
        // And it goes on from there.
        task.set_total_len(LEN as u64).unwrap();
        put_all(&task, &data);
        assert!(task.is_complete());
    }
    if let Some(task) = store.open_task(&key(2)).unwrap() {
        assert!(!done.deleted, "{at}: a deleted task is back");
        check_held(&task, &content(2, LEN));
    }
    assert!(
        !done.request || store.lookup_request(&RequestKey([1; 32])) == Some((key(1), 7)),
        "{at}"
    );
    let sum: u64 = store.list().iter().map(|t| t.bytes).sum();
    assert_eq!(store.usage().bytes, sum, "{at}");
}

#[test]
fn a_kill_at_any_operation_loses_nothing_acknowledged() {
    let mut operations = 1;
    loop {
        let mut finished = false;
        for tear in [false, true] {
            let media = faulty();
            let mut done = Done::default();
            let store = reopen(&media);
            media.faults.tear.store(tear, SeqCst);
            media.faults.crash_in.store(operations, SeqCst);
            finished = script(&store, &mut done).is_ok() && !media.faults.crashed();
            drop(store);
            media.faults.crash_in.store(-1, SeqCst);
            media.faults.data_reads.store(0, SeqCst);
            let store = reopen(&media);
            assert_eq!(
                media.faults.data_reads.load(SeqCst),
                0,
                "a restart reads no data"
            );
            check_after(
                &store,
                &done,
                &format!("operation {operations}, torn: {tear}"),
            );
        }
        if finished {
            break;
        }
        operations += 1;
    }
    assert!(operations > 40, "only {operations} operations");
}

#[test]
fn a_kill_while_recovering_loses_nothing_either() {
    for operations in 1..30 {
        let media = faulty();
        let mut done = Done::default();
        let store = reopen(&media);
        media.faults.crash_in.store(25, SeqCst);
        assert!(script(&store, &mut done).is_err());
        drop(store);
        media.faults.boot.fetch_add(1, SeqCst);
        media.faults.crash_in.store(operations, SeqCst);
        drop(Store::open(media.clone(), options(), NOW));
        media.faults.crash_in.store(-1, SeqCst);
        check_after(
            &reopen(&media),
            &done,
            &format!("recovery operation {operations}"),
        );
    }
}

#[test]
fn a_power_loss_costs_at_most_what_came_after_the_checkpoint() {
    for seed in 0..300 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let media = faulty();
        media.faults.journal.store(true, SeqCst);
        let store = reopen(&media);
        let data = content(1, LEN);
        let task = store
            .create_or_open(key(1), geometry(LEN as u64), b"m")
            .unwrap();
        let mut durable = Held::default();
        for _ in 0..rng.usize(1..15) {
            match rng.u8(0..6) {
                0 => {
                    store.checkpoint().unwrap();
                    durable = task.held();
                }
                1 => {
                    let index = rng.u32(0..BLOCKS);
                    if durable.contains(index) {
                        continue;
                    }
                    task.discard_block(index).unwrap();
                }
                2 if task.is_complete() => task.set_verified("sha256:ok").unwrap(),
                _ => drop(put(&task, &data, rng.u32(0..BLOCKS)).unwrap()),
            }
        }
        drop((task, store));
        media.faults.lose_power(&mut rng);
        for restart in 0..2 {
            media.faults.data_reads.store(0, SeqCst);
            let store = reopen(&media);
            if restart > 0 {
                assert_eq!(
                    media.faults.data_reads.load(SeqCst),
                    0,
                    "seed {seed}: checked twice"
                );
            }
            assert!(
                durable.count() == 0 || store.stat(&key(1)).is_some(),
                "seed {seed}: task lost"
            );
            let Some(task) = store.open_task(&key(1)).unwrap() else {
                continue;
            };
            for index in durable.iter() {
                assert!(
                    task.is_held(index),
                    "seed {seed}: durable block {index} is lost"
                );
            }
            check_held(&task, &data);
            assert!(
                task.verified().is_none() || task.is_complete(),
                "seed {seed}"
            );
        }
    }
}

#[test]
fn after_a_power_loss_only_what_is_not_durable_is_hashed() {
    let media = faulty();
    let data = content(1, LEN);
    let store = reopen(&media);
    let task = store
        .create_or_open(key(1), geometry(LEN as u64), b"")
        .unwrap();
    for index in [0, 1, 2] {
        put(&task, &data, index).unwrap();
    }
    store.checkpoint().unwrap();
    for index in [3, 4] {
        put(&task, &data, index).unwrap();
    }
    drop((task, store));
    // Block 4 did not make it; neither did block 0, but it was promised to be durable.
    let name = format!("{}.data", key(1));
    let file = media.inner.open(&name).unwrap();
    file.write_all_at(&[0; 512], 4 * u64::from(KIB64)).unwrap();
    file.write_all_at(&[0; 512], 0).unwrap();
    media.faults.boot.store(2, SeqCst);
    let store = reopen(&media);
    assert_eq!(media.faults.data_reads.load(SeqCst), 2);
    let task = store.open_task(&key(1)).unwrap().unwrap();
    assert_eq!(task.held().ranges(), vec![0..4]);
    assert!(!task.verify_block(0).unwrap() && task.verify_block(3).unwrap());
    drop((task, store));
    media.faults.data_reads.store(0, SeqCst);
    let store = reopen(&media);
    assert_eq!(
        media.faults.data_reads.load(SeqCst),
        0,
        "what was checked is not checked again"
    );
    assert_eq!(store.stat(&key(1)).unwrap().held_blocks, 4);
}

#[test]
fn what_was_changed_while_nobody_had_it_open_is_found_by_who_reads_it_checked() {
    let media = faulty();
    let store = reopen(&media);
    let data = content(1, LEN);
    let task = store
        .create_or_open(key(1), geometry(LEN as u64), b"")
        .unwrap();
    put_all(&task, &data);
    drop((task, store));
    let file = media.inner.open(&format!("{}.data", key(1))).unwrap();
    file.write_all_at(&[1; 4], u64::from(KIB64) + 10).unwrap();
    let store = reopen(&media);
    let task = store.open_task(&key(1)).unwrap().unwrap();
    let mut buf = [0; 100];
    for (at, reads) in [(5, 1), (200, 2)] {
        task.read_checked(at, &mut buf).unwrap();
        assert_eq!(buf, data[at as usize..][..100]);
        assert_eq!(media.faults.data_reads.load(SeqCst), reads);
    }
    // Wherever in the block the change is.
    let second = u64::from(KIB64);
    let e = task.read_checked(second + 5000, &mut buf).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Corrupt, "{e}");
    assert!(e.to_string().contains("block 1"), "{e}");
    assert_eq!(
        task.check_all(|| true).unwrap_err().kind(),
        ErrorKind::Corrupt
    );
    let e = task.read_checked(second - 50, &mut buf).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Invalid, "{e}");
    let e = task.read_checked(LEN as u64 - 50, &mut buf).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Invalid, "{e}");
    task.discard_block(1).unwrap();
    let e = task.read_checked(second, &mut buf).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::NotHeld, "{e}");
    put(&task, &data, 1).unwrap();
    task.check_all(|| true).unwrap();
    let before = media.faults.data_reads.load(SeqCst);
    task.check_all(|| true).unwrap();
    assert_eq!(media.faults.data_reads.load(SeqCst), before);
}

#[test]
fn a_restart_reads_neither_data_nor_the_records_of_complete_tasks() {
    let media = faulty();
    let store = reopen(&media);
    for n in 0..20 {
        let task = store
            .create_or_open(key(n), geometry(LEN as u64), b"")
            .unwrap();
        put_all(&task, &content(n, LEN));
    }
    store.checkpoint().unwrap();
    let syncs = media.faults.syncs.load(SeqCst);
    store.checkpoint().unwrap();
    assert_eq!(
        media.faults.syncs.load(SeqCst),
        syncs + 1,
        "only the request log: nothing changed"
    );
    drop(store);
    for boot in [1, 2] {
        media.faults.boot.store(boot, SeqCst);
        media.faults.index_bytes_read.store(0, SeqCst);
        let store = reopen(&media);
        assert!(store.list().iter().all(|t| t.complete));
        assert_eq!(media.faults.data_reads.load(SeqCst), 0);
        assert!(media.faults.index_bytes_read.load(SeqCst) <= 20 * 1024 + 80);
    }
}

#[test]
fn another_version_is_set_aside_and_taken_back_when_it_is_known() {
    let media = faulty();
    let data = content(1, LEN);
    let store = reopen(&media);
    put_all(
        &store
            .create_or_open(key(1), geometry(LEN as u64), b"mine")
            .unwrap(),
        &data,
    );
    store
        .remember_request(RequestKey([1; 32]), key(1), 7)
        .unwrap();
    drop(store);
    let index = media.inner.open(&format!("{}.index", key(1))).unwrap();
    index.write_all_at(&[9], 8).unwrap();
    media
        .inner
        .open("requests")
        .unwrap()
        .write_all_at(&[9], 8)
        .unwrap();

    let store = reopen(&media);
    assert!(store.list().is_empty());
    assert_eq!(store.usage().set_aside, 4);
    assert_eq!(store.lookup_request(&RequestKey([1; 32])), None);
    drop(store);
    assert!(
        media
            .inner
            .list()
            .unwrap()
            .contains(&format!("aside-{}.data", key(1)))
    );

    index.write_all_at(&[1], 8).unwrap();
    let store = reopen(&media);
    let task = store.open_task(&key(1)).unwrap().unwrap();
    check_held(&task, &data);
    assert_eq!(
        (task.held_count(), &task.meta().unwrap()[..]),
        (BLOCKS, &b"mine"[..])
    );
    assert_eq!(store.usage().set_aside, 1);
}

#[test]
fn leftovers_of_a_crash_are_removed() {
    let media = faulty();
    for name in [
        "tmp-1",
        "trash-4.data",
        &format!("{}.data", key(1)),
        &format!("{}.meta", key(2)),
    ] {
        media.inner.create(name).unwrap();
    }
    for part in ["data", "index"] {
        media.inner.create(&format!("{}.{part}", key(3))).unwrap();
    }
    media.inner.create("README").unwrap();
    let store = reopen(&media);
    assert!(store.list().is_empty());
    let mut names = media.inner.list().unwrap();
    names.sort();
    assert_eq!(names, ["README", "requests"], "what is not ours stays");
}

#[test]
fn damaged_indexes_never_lead_to_wrong_blocks() {
    let data = content(1, LEN);
    for seed in 0..400 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let media = faulty();
        let store = reopen(&media);
        let task = store
            .create_or_open(key(1), geometry(LEN as u64), b"meta")
            .unwrap();
        for index in 0..rng.u32(1..=BLOCKS) {
            put(&task, &data, index).unwrap();
        }
        if rng.bool() {
            store.checkpoint().unwrap();
        }
        drop((task, store));
        let part = ["index", "index", "index", "meta"][rng.usize(..4)];
        let file = media.inner.open(&format!("{}.{part}", key(1))).unwrap();
        for _ in 0..rng.usize(1..20) {
            let at = rng.u64(..file.len().unwrap());
            file.write_all_at(&[rng.u8(..)], at).unwrap();
        }
        if rng.u8(..4) == 0 {
            let mut left = vec![0; rng.usize(..=file.len().unwrap() as usize)];
            file.read_exact_at(&mut left, 0).unwrap();
            file.discard().unwrap();
            file.write_all_at(&left, 0).unwrap();
        }
        let store = reopen(&media);
        let Some(task) = store.open_task(&key(1)).unwrap() else {
            continue;
        };
        let mut buf = vec![0; KIB64 as usize];
        for index in task.held().iter() {
            let n = task.read_block(index, &mut buf).unwrap();
            assert!(buf[..n] == *block(&data, index));
            match task.proof(index) {
                Ok(proof) => assert_eq!(proof.unwrap().hash, hash(block(&data, index))),
                Err(e) => assert_eq!(e.kind(), ErrorKind::Corrupt),
            }
        }
        match task.meta() {
            Ok(meta) => assert!(meta == b"meta" || meta.is_empty()),
            Err(e) => assert_eq!(e.kind(), ErrorKind::Corrupt),
        }
        put_all(&task, &data);
    }
}
