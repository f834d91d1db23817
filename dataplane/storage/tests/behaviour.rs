//! One suite of behaviour that every medium must show.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]
// A list of ranges of which there is one.
#![allow(clippy::single_range_in_vec_init)]

#[macro_use]
mod common;

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;

use common::*;
use dragonfly_proto::id::RequestKey;
use dragonfly_storage::*;

suite!(
    blocks_in_any_order_read_back_and_survive_a_restart,
    wrong_lengths_indices_and_proofs_are_refused,
    the_length_may_come_late,
    geometry_and_length_may_not_change,
    empty_content_is_complete_at_once,
    metadata_pins_digests_and_requests_survive_a_restart,
    what_is_not_held_cannot_be_read,
    the_same_block_written_by_many_is_written_once,
    many_threads_write_and_read_one_task,
    deletion_leaves_readers_alone_and_frees_the_name,
    a_finished_file_is_given_away_read_only,
    a_file_is_ingested_and_adopted,
    a_discarded_block_is_written_anew,
    a_second_store_is_refused,
    a_sparse_task_of_100_gib_works,
    many_small_tasks_work,
);

fn blocks_in_any_order_read_back_and_survive_a_restart(open: Open<'_>) {
    let data = content(1, 5 * KIB64 as usize + 17);
    let store = open(options()).unwrap();
    let task = store
        .create_or_open(key(1), geometry(data.len() as u64), b"")
        .unwrap();
    for (n, index) in [5, 0, 3, 1].into_iter().enumerate() {
        assert_eq!(put(&task, &data, index).unwrap(), Written::New);
        assert_eq!(put(&task, &data, index).unwrap(), Written::AlreadyHeld);
        assert_eq!(task.held_count(), n as u32 + 1);
    }
    assert_eq!(task.held().ranges(), vec![0..2, 3..4, 5..6]);
    assert!(!task.is_complete());
    check_held(&task, &data);
    let bytes = store.usage().bytes;
    drop((task, store));

    let store = open(options()).unwrap();
    assert_eq!(store.usage().bytes, bytes);
    let task = store.open_task(&key(1)).unwrap().unwrap();
    assert_eq!(task.held().ranges(), vec![0..2, 3..4, 5..6]);
    check_held(&task, &data);
    put_all(&task, &data);
    assert!(task.is_complete());
    let mut middle = vec![0; KIB64 as usize / 2];
    task.read_checked(u64::from(KIB64) / 2, &mut middle)
        .unwrap();
    assert!(middle == data[KIB64 as usize / 2..][..middle.len()]);
    store.checkpoint().unwrap();
    drop((task, store));

    let store = open(options()).unwrap();
    let task = store.open_task(&key(1)).unwrap().unwrap();
    assert!(task.is_complete() && store.stat(&key(1)).unwrap().complete);
    check_held(&task, &data);
    assert!(store.open_task(&key(2)).unwrap().is_none());
}

fn wrong_lengths_indices_and_proofs_are_refused(open: Open<'_>) {
    let store = open(options()).unwrap();
    let task = store
        .create_or_open(key(1), geometry(u64::from(KIB64) + 10), b"")
        .unwrap();
    let full = vec![1; KIB64 as usize];
    for (name, index, data, proof) in [
        ("short first", 0, &full[1..], 0),
        ("empty", 0, &full[..0], 0),
        ("long last", 1, &full[..11], 0),
        ("beyond", 2, &full[..], 0),
        ("far beyond", u32::MAX, &full[..], 0),
        ("long proof", 1, &full[..10], MAX_PROOF + 1),
    ] {
        let e = task
            .write_block(index, data, hash(data), &vec![0; proof])
            .unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Invalid, "{name}");
        assert!(e.to_string().contains(&key(1).to_string()), "{name}: {e}");
    }
    assert_eq!((task.held_count(), store.usage().bytes), (0, 0));
    task.write_block(1, &full[..10], hash(&full[..10]), &[9; MAX_PROOF])
        .unwrap();
    assert_eq!(task.proof(1).unwrap().unwrap().proof, vec![9; MAX_PROOF]);
    let e = task.read_block(1, &mut [0; 9]).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Invalid);
}

fn the_length_may_come_late(open: Open<'_>) {
    let data = content(1, 3 * KIB64 as usize + 5);
    let unknown = Geometry::new(KIB64, None).unwrap();
    let store = open(options()).unwrap();
    let task = store.create_or_open(key(1), unknown, b"").unwrap();
    put(&task, &data, 2).unwrap();
    put(&task, &data, 0).unwrap();
    assert_eq!(
        put(&task, &data, 3).unwrap_err().kind(),
        ErrorKind::Invalid,
        "short, length unknown"
    );
    drop((task, store));

    let store = open(options()).unwrap();
    let task = store.create_or_open(key(1), unknown, b"").unwrap();
    assert_eq!(task.geometry().total_len(), None);
    for wrong in [0, u64::from(KIB64), 3 * u64::from(KIB64) - 1] {
        assert_eq!(
            task.set_total_len(wrong).unwrap_err().kind(),
            ErrorKind::Conflict,
            "{wrong}"
        );
    }
    assert_eq!(
        task.set_total_len(u64::MAX).unwrap_err().kind(),
        ErrorKind::Invalid
    );
    task.set_total_len(data.len() as u64).unwrap();
    task.set_total_len(data.len() as u64).unwrap();
    assert_eq!(
        task.set_total_len(1 << 20).unwrap_err().kind(),
        ErrorKind::Conflict
    );
    put_all(&task, &data);
    assert!(task.is_complete());
    drop((task, store));

    let store = open(options()).unwrap();
    let task = store.create_or_open(key(1), unknown, b"").unwrap();
    assert!(task.is_complete());
    check_held(&task, &data);
}

fn geometry_and_length_may_not_change(open: Open<'_>) {
    let store = open(options()).unwrap();
    drop(store.create_or_open(key(1), geometry(100), b"").unwrap());
    for other in [
        Geometry::new(2 * KIB64, Some(100)).unwrap(),
        Geometry::new(KIB64, Some(101)).unwrap(),
    ] {
        let e = store.create_or_open(key(1), other, b"").unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Conflict);
    }
    let unknown = Geometry::new(KIB64, None).unwrap();
    assert_eq!(
        store
            .create_or_open(key(1), unknown, b"")
            .unwrap()
            .geometry(),
        geometry(100)
    );
    assert_eq!(store.list()[0].handles, 0);
}

fn empty_content_is_complete_at_once(open: Open<'_>) {
    let store = open(options()).unwrap();
    let task = store.create_or_open(key(1), geometry(0), b"").unwrap();
    assert!(task.is_complete());
    assert_eq!(task.file().unwrap().metadata().unwrap().len(), 0);
    task.set_verified("sha256:e3b0").unwrap();
    store.checkpoint().unwrap();
    drop((task, store));
    let store = open(options()).unwrap();
    let task = store.open_task(&key(1)).unwrap().unwrap();
    assert!(task.is_complete());
    assert_eq!(task.verified().unwrap(), "sha256:e3b0");
}

fn metadata_pins_digests_and_requests_survive_a_restart(open: Open<'_>) {
    let request = |n: u32| RequestKey::derive("", &format!("https://example.com/{n}"), &[]);
    let store = open(options()).unwrap();
    let data = content(1, 100);
    let task = store
        .create_or_open(key(1), geometry(100), b"first")
        .unwrap();
    assert_eq!(
        store
            .create_or_open(key(1), geometry(100), b"other")
            .unwrap()
            .meta()
            .unwrap(),
        b"first"
    );
    task.set_meta(&[7; MAX_META]).unwrap();
    assert_eq!(
        task.set_meta(&[7; MAX_META + 1]).unwrap_err().kind(),
        ErrorKind::Invalid
    );
    assert_eq!(
        task.set_verified("sha256:ab").unwrap_err().kind(),
        ErrorKind::NotHeld
    );
    put_all(&task, &data);
    assert_eq!(
        task.set_verified("").unwrap_err().kind(),
        ErrorKind::Invalid
    );
    task.set_verified("sha256:ab").unwrap();
    assert!(store.pin(&key(1)).unwrap() && !store.pin(&key(2)).unwrap());
    for n in 0..10 {
        store
            .remember_request(request(n), key(u64::from(n)), NOW + u64::from(n))
            .unwrap();
    }
    for _ in 0..5000 {
        // Enough to rewrite the log.
        store
            .remember_request(request(3), key(33), fastrand::u64(..))
            .unwrap();
    }
    store.remember_request(request(3), key(3), 5).unwrap();
    store.forget_request(&request(4)).unwrap();
    drop((task, store));

    let store = open(options()).unwrap();
    let found = &store.list()[0];
    assert!(found.pinned && found.complete && found.handles == 0);
    assert_eq!(found.verified.as_deref(), Some("sha256:ab"));
    let task = store
        .create_or_open(key(1), geometry(100), b"late")
        .unwrap();
    assert_eq!(task.meta().unwrap(), vec![7; MAX_META]);
    assert_eq!(store.lookup_request(&request(3)), Some((key(3), 5)));
    assert_eq!(store.lookup_request(&request(4)), None);
    assert_eq!(store.lookup_request(&request(9)), Some((key(9), NOW + 9)));
    drop(store.create_or_open(key(2), geometry(100), b"").unwrap());
    assert_eq!(
        store
            .create_or_open(key(2), geometry(100), b"late")
            .unwrap()
            .meta()
            .unwrap(),
        b"late"
    );
}

fn what_is_not_held_cannot_be_read(open: Open<'_>) {
    let data = content(1, 3 * KIB64 as usize);
    let store = open(options()).unwrap();
    let task = store
        .create_or_open(key(1), geometry(data.len() as u64), b"")
        .unwrap();
    put(&task, &data, 0).unwrap();
    put(&task, &data, 2).unwrap();
    let mut buf = vec![0; KIB64 as usize];
    for e in [
        task.read_block(1, &mut buf).unwrap_err(),
        task.read_block(9, &mut buf).unwrap_err(),
        task.read_checked(u64::from(KIB64), &mut buf[..2])
            .unwrap_err(),
        task.read_checked(u64::MAX, &mut buf[..2]).unwrap_err(),
        task.file().unwrap_err(),
    ] {
        assert_eq!(e.kind(), ErrorKind::NotHeld, "{e}");
    }
    let e = task
        .read_checked(data.len() as u64 - 1, &mut buf[..2])
        .unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Invalid);
    assert!(task.proof(1).unwrap().is_none());
    let mut source = vec![0; 10];
    task.sendfile_source()
        .unwrap()
        .read_exact_at(&mut source, 2 * u64::from(KIB64))
        .unwrap();
    assert!(source == data[2 * KIB64 as usize..][..10]);
}

fn the_same_block_written_by_many_is_written_once(open: Open<'_>) {
    let data = content(1, 8 * KIB64 as usize);
    let store = open(options()).unwrap();
    let task = store
        .create_or_open(key(1), geometry(data.len() as u64), b"")
        .unwrap();
    let new = std::sync::atomic::AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for index in 0..8 {
                    if put(&task, &data, index).unwrap() == Written::New {
                        new.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                    }
                    assert!(task.is_held(index), "acknowledged is held");
                }
            });
        }
    });
    assert_eq!(new.into_inner(), 8);
    check_held(&task, &data);
    assert_eq!(store.usage().bytes, data.len() as u64 + 8 * 320);
}

fn many_threads_write_and_read_one_task(open: Open<'_>) {
    let blocks = 96;
    let data = content(1, blocks * KIB64 as usize);
    let store = open(options()).unwrap();
    let task = store
        .create_or_open(key(1), geometry(data.len() as u64), b"")
        .unwrap();
    std::thread::scope(|scope| {
        for t in 0..4 {
            let (task, data) = (task.clone(), &data);
            scope.spawn(move || {
                for index in (t..blocks as u32).step_by(4) {
                    put(&task, data, index).unwrap();
                }
            });
            let (task, data) = (store.open_task(&key(1)).unwrap().unwrap(), data);
            scope.spawn(move || {
                while !task.is_complete() {
                    check_held(&task, data);
                }
            });
        }
        scope.spawn(|| {
            while !task.is_complete() {
                store.checkpoint().unwrap();
                task.set_meta(b"again").unwrap();
            }
        });
    });
    check_held(&task, &data);
}

fn deletion_leaves_readers_alone_and_frees_the_name(open: Open<'_>) {
    let data = content(1, 2 * KIB64 as usize);
    let other = content(2, KIB64 as usize);
    let store = open(options()).unwrap();
    let task = store
        .create_or_open(key(1), geometry(data.len() as u64), b"old")
        .unwrap();
    put_all(&task, &data);
    store.pin(&key(1)).unwrap();
    let used = store.usage().bytes;
    assert!(store.delete(&key(1)).unwrap());
    assert!(!store.delete(&key(1)).unwrap());
    assert!(task.is_deleted() && store.list().is_empty());
    let new = store
        .create_or_open(key(1), geometry(other.len() as u64), b"new")
        .unwrap();
    put_all(&new, &other);
    check_held(&task, &data);
    check_held(&new, &other);
    for e in [
        put(&task, &data, 0).unwrap_err(),
        task.set_meta(b"late").unwrap_err(),
        task.meta().unwrap_err(),
        task.checkpoint().unwrap_err(),
        task.set_verified("x").unwrap_err(),
    ] {
        assert_eq!(e.kind(), ErrorKind::Deleted);
    }
    assert!(store.usage().bytes > used);
    drop(task);
    assert_eq!(store.usage().bytes, other.len() as u64 + 320);
    store.checkpoint().unwrap();
    assert_eq!(new.meta().unwrap(), b"new");
    drop((new, store));
    let store = open(options()).unwrap();
    check_held(&store.open_task(&key(1)).unwrap().unwrap(), &other);
    assert!(!store.stat(&key(1)).unwrap().pinned);
    assert!(store.delete(&key(1)).unwrap());
    assert_eq!(store.usage().bytes, 0);
}

fn a_finished_file_is_given_away_read_only(open: Open<'_>) {
    let data = content(1, KIB64 as usize + 99);
    let store = open(options()).unwrap();
    let task = store
        .create_or_open(key(1), geometry(data.len() as u64), b"")
        .unwrap();
    put_all(&task, &data);
    let (mut a, mut b) = (task.file().unwrap(), task.file().unwrap());
    a.seek(SeekFrom::Start(50)).unwrap();
    let mut got = Vec::new();
    b.read_to_end(&mut got).unwrap();
    assert!(
        got == data,
        "each descriptor has its own offset, and the file ends where it should"
    );
    assert!(a.write(b"x").is_err());
    store.delete(&key(1)).unwrap();
    drop((task, store));
    a.read_exact(&mut got[..10]).unwrap();
    assert!(got[..10] == data[50..60], "it outlives the task");
}

fn a_file_is_ingested_and_adopted(open: Open<'_>) {
    let data = content(1, 3 * KIB64 as usize + 5);
    let mut from: File = tempfile::tempfile().unwrap();
    from.write_all(&data).unwrap();
    let store = open(options()).unwrap();
    let unknown = Geometry::new(KIB64, None).unwrap();
    let task = store.create_or_open(key(1), unknown, b"").unwrap();
    assert_eq!(
        task.ingest(&from).unwrap_err().kind(),
        ErrorKind::Conflict,
        "no length"
    );
    assert_eq!(
        task.adopt_block(0, [0; 32], b"").unwrap_err().kind(),
        ErrorKind::Conflict
    );
    task.set_total_len(data.len() as u64).unwrap();
    task.ingest(&from).unwrap();
    assert_eq!(
        task.ingest(&from).unwrap_err().kind(),
        ErrorKind::Conflict,
        "twice"
    );
    assert_eq!(task.held_count(), 0);
    let mut buf = vec![0; KIB64 as usize];
    for index in 0..4 {
        let n = task.read_ingested(index, &mut buf).unwrap();
        task.adopt_block(index, hash(&buf[..n]), &proof_of(index))
            .unwrap();
    }
    assert!(task.is_complete());
    check_held(&task, &data);
    let used = store.usage().bytes;
    assert_eq!(used, data.len() as u64 + 4 * 320);
    let short = store
        .create_or_open(key(2), geometry(data.len() as u64 + 1), b"")
        .unwrap();
    assert_eq!(
        short.ingest(&from).unwrap_err().kind(),
        ErrorKind::Corrupt,
        "source too short"
    );
    assert_eq!(store.usage().bytes, used);
    drop((task, short, store));
    let store = open(options()).unwrap();
    assert_eq!(store.usage().bytes, used);
    check_held(&store.open_task(&key(1)).unwrap().unwrap(), &data);
}

fn a_discarded_block_is_written_anew(open: Open<'_>) {
    let data = content(1, 2 * KIB64 as usize);
    let store = open(options()).unwrap();
    let task = store
        .create_or_open(key(1), geometry(data.len() as u64), b"")
        .unwrap();
    let wrong = vec![0; KIB64 as usize];
    task.write_block(0, &wrong, hash(block(&data, 0)), b"")
        .unwrap();
    put(&task, &data, 1).unwrap();
    task.set_verified("d").unwrap();
    store.checkpoint().unwrap();
    assert!(!task.verify_block(0).unwrap() && task.verify_block(1).unwrap());
    task.discard_block(0).unwrap();
    task.discard_block(0).unwrap();
    assert_eq!((task.held().ranges(), task.verified()), (vec![1..2], None));
    drop((task, store));
    let store = open(options()).unwrap();
    let task = store.open_task(&key(1)).unwrap().unwrap();
    assert_eq!(task.held().ranges(), vec![1..2]);
    put(&task, &data, 0).unwrap();
    check_held(&task, &data);
    assert_eq!(store.usage().bytes, data.len() as u64 + 640);
}

fn a_second_store_is_refused(open: Open<'_>) {
    let store = open(options()).unwrap();
    let e = open(options()).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Busy, "{e}");
    let task = store.create_or_open(key(1), geometry(1), b"").unwrap();
    drop(store);
    assert_eq!(
        open(options()).unwrap_err().kind(),
        ErrorKind::Busy,
        "a task keeps it open"
    );
    drop(task);
    open(options()).unwrap();
}

fn a_sparse_task_of_100_gib_works(open: Open<'_>) {
    let geometry = Geometry::new(dragonfly_proto::geometry::MAX_BLOCK, Some(100 << 30)).unwrap();
    let data = content(1, dragonfly_proto::geometry::MAX_BLOCK as usize);
    let store = open(options()).unwrap();
    let task = store.create_or_open(key(1), geometry, b"").unwrap();
    let last = geometry.total_blocks().unwrap() - 1;
    for index in [0, 51_200, last] {
        task.write_block(index, &data, hash(&data), b"p").unwrap();
    }
    store.checkpoint().unwrap();
    drop((task, store));
    let store = open(options()).unwrap();
    let task = store.open_task(&key(1)).unwrap().unwrap();
    assert_eq!(
        task.held().ranges(),
        vec![0..1, 51_200..51_201, last..last + 1]
    );
    assert!(task.verify_block(last).unwrap());
    assert!(store.usage().bytes < 4 << 20);
}

fn many_small_tasks_work(open: Open<'_>) {
    let store = open(options()).unwrap();
    for n in 0..300 {
        let data = content(n, 4096);
        let task = store
            .create_or_open(key(n), geometry(4096), b"source")
            .unwrap();
        put_all(&task, &data);
        task.set_verified("sha256:00").unwrap();
    }
    drop(store);
    let store = open(options()).unwrap();
    assert_eq!(store.usage().tasks, 300);
    for n in 0..300 {
        check_held(
            &store.open_task(&key(n)).unwrap().unwrap(),
            &content(n, 4096),
        );
    }
}
