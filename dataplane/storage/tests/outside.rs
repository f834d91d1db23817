//! Files that were changed at will, by a failing disk or a foreign hand: decoders and a whole store
//! stand them, give back only what was written, and allocate little.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

// One copy of the changes and of the counting allocator.
#[path = "../../proto/tests/kit/mod.rs"]
mod kit;

use dragonfly_proto::id::{ContentKey, RequestKey};
use dragonfly_storage::format::*;
use dragonfly_storage::{Geometry, Media, MemoryMedia, Options, Store};
use kit::{Edit, allocated, edited, edits};
use proptest::prelude::*;

const KEY: ContentKey = ContentKey([1; 32]);
const BLOCK: u32 = 65536;
const BLOCKS: u32 = 3;

fn most(input: usize) -> usize {
    4 * input + 1024
}

/// Every decoder on the same bytes.
fn read_as_all(bytes: &[u8]) -> Result<(), TestCaseError> {
    let (header, cost) = allocated(|| Header::decode(bytes));
    prop_assert!(cost <= most(bytes.len()));
    if let Ok(header) = header {
        prop_assert_eq!(Header::decode(&header.encode()), Ok(header));
    }
    let (meta, cost) = allocated(|| decode_meta(&KEY, bytes));
    prop_assert!(cost <= most(bytes.len()));
    if let Ok(meta) = meta {
        prop_assert_eq!(encode_meta(&KEY, &meta).len(), meta.len() + META_HEAD);
    }
    let (requests, cost) = allocated(|| decode_requests(bytes));
    prop_assert!(cost <= most(bytes.len()));
    if let Ok(requests) = requests {
        prop_assert!(requests.len() <= bytes.len() / REQUEST);
    }
    let geometry = Geometry::new(BLOCK, None).unwrap();
    for (index, record) in (0..).zip(bytes.chunks(RECORD)) {
        let (record, cost) = allocated(|| Record::decode(&KEY, geometry, index, record));
        prop_assert!(cost <= MAX_PROOF);
        if let Some(r) = record {
            let again = Record::encode(&KEY, r.index, r.len, r.epoch, &r.hash, &r.proof);
            prop_assert_eq!(Record::decode(&KEY, geometry, index, &again), Some(r));
        }
    }
    Ok(())
}

/// Valid files of each kind, one after another in one case.
fn files() -> Vec<Vec<u8>> {
    let header = |sequence| Header {
        sequence,
        key: KEY,
        geometry: Geometry::new(BLOCK, Some(9 * u64::from(BLOCK))).unwrap(),
        durable_epoch: 1,
        boot: [2; 16],
        complete: false,
        pinned: true,
        last_used: 5,
        verified: Some("sha256:ab".to_owned()),
    };
    let record = |index| Record::encode(&KEY, index, BLOCK, 1, &[3; 32], &[4; 100]);
    let request = RequestRecord {
        request: RequestKey([7; 32]),
        content: Some(KEY),
        resolved_at: 1,
    };
    vec![
        [header(0).encode(), header(1).encode()].concat(),
        (0..4).flat_map(record).collect(),
        encode_meta(&KEY, b"what is kept with the task"),
        [requests_head(), request.encode(), request.encode()].concat(),
    ]
}

fn block(index: u32) -> Vec<u8> {
    vec![index as u8 + 1; BLOCK as usize]
}

/// A store with one task of three blocks, of which two are held.
fn written() -> MemoryMedia {
    let media = MemoryMedia::new();
    let store = Store::open(media.clone(), options(), 1).unwrap();
    let geometry = Geometry::new(BLOCK, Some(u64::from(BLOCKS) * u64::from(BLOCK))).unwrap();
    let task = store.create_or_open(KEY, geometry, b"meta").unwrap();
    for index in [0, 2] {
        let data = block(index);
        let hash = *blake3::hash(&data).as_bytes();
        task.write_block(index, &data, hash, b"proof").unwrap();
    }
    store.remember_request(RequestKey([7; 32]), KEY, 1).unwrap();
    store.checkpoint().unwrap();
    drop((task, store));
    media
}

fn options() -> Options {
    Options {
        reserve_free_percent: 0,
        ..Options::default()
    }
}

fn change(media: &MemoryMedia, name: &str, edits: &[Edit]) {
    let Ok(file) = media.open(name) else { return };
    let mut bytes = vec![0; file.len().unwrap() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    let bytes = edited(bytes, edits);
    file.discard().unwrap();
    file.write_all_at(&bytes, 0).unwrap();
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        read_as_all(&bytes)?;
    }

    #[test]
    fn changed_files_are_read_or_refused(edits in edits()) {
        for file in files() {
            read_as_all(&file)?;
            read_as_all(&edited(file, &edits))?;
        }
    }

    #[test]
    fn a_store_with_changed_files_opens_and_gives_only_what_was_written(
        which in prop::collection::vec((0..3u8, edits()), 1..4),
    ) {
        let media = written();
        for (file, edits) in which {
            let name = match file {
                0 => "requests".to_owned(),
                1 => format!("{KEY}.meta"),
                _ => format!("{KEY}.index"),
            };
            change(&media, &name, &edits);
        }
        let (store, cost) = allocated(|| Store::open(media, options(), 2));
        prop_assert!(cost < 4 << 20, "{} bytes to open it", cost);
        let store = store.unwrap();
        if let Ok(Some(task)) = store.open_task(&KEY) {
            let mut buf = vec![0; BLOCK as usize];
            for index in task.held().iter() {
                prop_assert_eq!(task.read_block(index, &mut buf).ok(), Some(BLOCK as usize));
                prop_assert!(buf == block(index), "block {} differs", index);
            }
            // It works on.
            let data = block(1);
            let _ = task.write_block(1, &data, *blake3::hash(&data).as_bytes(), b"proof");
        }
    }
}
