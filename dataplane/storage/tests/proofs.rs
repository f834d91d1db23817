//! Blocks that are proven anew keep their bytes, on every medium and over a restart.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{block, content, dir, geometry, hash, key, options, put};
use dragonfly_storage::{DiskMedia, ErrorKind, Store};

#[test]
fn a_block_that_is_proven_anew_has_the_new_proof_and_the_old_bytes_after_a_restart_too() {
    let dir = dir();
    let open = || Store::open(DiskMedia::new(dir.path()).unwrap(), options(), 1).unwrap();
    let data = content(1, 2 << 16);
    let store = open();
    let task = store
        .create_or_open(key(1), geometry(data.len() as u64), b"")
        .unwrap();
    put(&task, &data, 0).unwrap();
    task.set_proof(0, b"another").unwrap();
    let of_none = task.set_proof(1, b"another").unwrap_err();
    assert_eq!(of_none.kind(), ErrorKind::NotHeld);
    let too_long = task.set_proof(0, &[0; 4096]).unwrap_err();
    assert_eq!(too_long.kind(), ErrorKind::Invalid);
    task.checkpoint().unwrap();
    drop((task, store));
    let store = open();
    let task = store.open_task(&key(1)).unwrap().unwrap();
    let kept = task.proof(0).unwrap().unwrap();
    assert_eq!(kept.proof, b"another");
    assert_eq!(kept.hash, hash(block(&data, 0)));
    assert!(task.verify_block(0).unwrap());
}
