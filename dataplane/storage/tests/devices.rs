//! Full disks and failing devices.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::atomic::Ordering::SeqCst;

use common::*;
use dragonfly_storage::*;

const LEN: usize = 5 * KIB64 as usize + 77;

#[test]
fn a_full_disk_is_a_clear_error_and_space_comes_back() {
    let media = faulty();
    let store = reopen(&media);
    let data = content(1, LEN);
    let other = store
        .create_or_open(key(2), geometry(LEN as u64), b"")
        .unwrap();
    put_all(&other, &data);
    let task = store
        .create_or_open(key(1), geometry(LEN as u64), b"")
        .unwrap();
    put(&task, &data, 0).unwrap();
    let used = store.usage().bytes;
    media.faults.space.store(1000, SeqCst);
    for _ in 0..3 {
        let e = put(&task, &data, 1).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::DiskFull, "{e}");
        assert!(e.to_string().contains("free space"), "{e}");
    }
    let e = store
        .create_or_open(key(3), geometry(10), b"meta")
        .unwrap_err();
    assert_eq!(e.kind(), ErrorKind::DiskFull);
    assert!(store.stat(&key(3)).is_none());
    assert_eq!(task.set_meta(b"x").unwrap_err().kind(), ErrorKind::DiskFull);
    assert_eq!(store.usage().bytes, used, "what failed is not accounted");
    check_held(&task, &data);
    check_held(&other, &data);
    drop(other);
    // The next write evicts the other task, and all is well.
    put_all(&task, &data);
    assert!(task.is_complete());
    assert_eq!(store.take_evicted()[0].key, key(2));
}

#[test]
fn a_failing_device_fails_the_call_and_nothing_else() {
    let media = faulty();
    let store = reopen(&media);
    let data = content(1, LEN);
    let task = store
        .create_or_open(key(1), geometry(LEN as u64), b"")
        .unwrap();
    for (failing, index) in [(1, 0), (1, 1), (1, 5)] {
        media.faults.writes_fail.store(failing, SeqCst);
        assert_eq!(put(&task, &data, index).unwrap_err().kind(), ErrorKind::Io);
        assert!(!task.is_held(index));
        assert_eq!(put(&task, &data, index).unwrap(), Written::New);
    }
    check_held(&task, &data);
    media.faults.reads_fail.store(true, SeqCst);
    assert_eq!(
        task.read_block(0, &mut vec![0; KIB64 as usize])
            .unwrap_err()
            .kind(),
        ErrorKind::Io
    );
    assert_eq!(task.proof(0).unwrap_err().kind(), ErrorKind::Io);
    drop((task, store));
    // A start that cannot read a task leaves its files alone and goes on without it.
    let store = reopen(&media);
    assert!(store.list().is_empty());
    drop(store);
    media.faults.reads_fail.store(false, SeqCst);
    check_held(&reopen(&media).open_task(&key(1)).unwrap().unwrap(), &data);
}

#[test]
fn a_small_file_system_fills_up_and_recovers() {
    let dir = dir();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=2m", "tmpfs"])
        .arg(dir.path())
        .status()
        .is_ok_and(|s| s.success());
    if !mounted {
        eprintln!(
            "SKIPPED: mounting a tmpfs needs root; the injected faults cover the same ground"
        );
        return;
    }
    struct Unmount<'a>(&'a std::path::Path);
    impl Drop for Unmount<'_> {
        fn drop(&mut self) {
            let _ = std::process::Command::new("umount").arg(self.0).status();
        }
    }
    let _unmount = Unmount(dir.path());
    let media = || DiskMedia::new(dir.path().join("store")).unwrap();
    // Without a limit of its own the store learns from the volume that it is full.
    let store = Store::open(
        media(),
        Options {
            high_watermark_percent: 100,
            ..options()
        },
        NOW,
    )
    .unwrap();
    let data = content(1, 64 * KIB64 as usize);
    let task = store
        .create_or_open(key(1), geometry(data.len() as u64), b"")
        .unwrap();
    let mut failed = None;
    for index in 0..64 {
        if let Err(e) = put(&task, &data, index) {
            failed = Some(e);
            break;
        }
    }
    let failed = failed.unwrap();
    assert_eq!(failed.kind(), ErrorKind::DiskFull, "{failed}");
    let full = task.held_count();
    assert!((20..32).contains(&full), "{full} blocks of 64 KiB in 2 MiB");
    check_held(&task, &data);
    let small = content(2, 3 * KIB64 as usize);
    assert!(
        store
            .create_or_open(key(2), geometry(small.len() as u64), b"")
            .and_then(|t| put(&t, &small, 0))
            .is_err()
    );
    drop((task, store));
    let store = Store::open(media(), options(), NOW).unwrap();
    assert_eq!(store.stat(&key(1)).unwrap().held_blocks, full);
    // Now that nobody uses the large one, it makes way.
    let task = store
        .create_or_open(key(2), geometry(small.len() as u64), b"")
        .unwrap();
    put_all(&task, &small);
    check_held(&task, &small);
    assert!(store.stat(&key(1)).is_none());
}

#[test]
fn a_volume_that_is_full_enough_is_named_with_what_is_to_stay_free() {
    let media = faulty();
    let volume = |available| {
        *media.faults.volume.lock().unwrap() = Some(Space {
            total: 1_000_000_000,
            available,
        });
    };
    volume(40_000_000);
    let reserving = Options {
        reserve_free_percent: 5,
        ..options()
    };
    let store = Store::open(media.clone(), reserving.clone(), NOW).unwrap();
    let data = content(1, LEN);
    let task = store
        .create_or_open(key(1), geometry(LEN as u64), b"")
        .unwrap();
    let e = put(&task, &data, 0).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::DiskFull, "{e}");
    let said = e.to_string();
    let named = "40000000 of the volume's 1000000000 are free, and 5 % of it have to stay so";
    assert!(
        said.contains(named) && said.contains("reserveFreePercent"),
        "{said}"
    );
    // Where the quota leaves no more than the volume does, it is the quota that is named.
    let quota = Options {
        quota_bytes: 0,
        ..reserving.clone()
    };
    store.set_options(quota).unwrap();
    let e = put(&task, &data, 0).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::QuotaExceeded, "{e}");
    // Others went.
    volume(60_000_000);
    store.set_options(reserving).unwrap();
    put_all(&task, &data);
}

#[test]
fn what_a_client_has_a_name_for_is_given_up_without_it() {
    let dir = tempfile::tempdir().unwrap();
    let media = DiskMedia::new(dir.path().join("store")).unwrap();
    let file = media.create("content").unwrap();
    file.write_all_at(b"bytes", 0).unwrap();
    let linked = dir.path().join("linked");
    std::fs::hard_link(dir.path().join("store/content"), &linked).unwrap();
    file.discard().unwrap();
    assert_eq!(std::fs::read(&linked).unwrap(), b"bytes");
    std::fs::remove_file(&linked).unwrap();
    file.discard().unwrap();
    assert!(file.is_empty().unwrap());
}
