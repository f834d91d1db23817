//! A store whose index, metadata and request log were altered at will: it opens, and what it holds
//! has its length.
#![no_main]

use dragonfly_proto::id::ContentKey;
use dragonfly_storage::{Geometry, Media, MemoryMedia, Options, Store};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|edits: Vec<(u8, u16, u8)>| {
    let media = MemoryMedia::new();
    let key = ContentKey([1; 32]);
    let block = vec![5; 65536];
    let Ok(store) = Store::open(media.clone(), Options::default(), 1) else { return };
    let geometry = Geometry::new(65536, Some(2 * 65536)).unwrap();
    let Ok(task) = store.create_or_open(key, geometry, b"meta") else { return };
    // The hash is only compared after a power loss, which does not happen here.
    let _ = task.write_block(0, &block, [0; 32], b"proof");
    drop((task, store));
    for (file, at, byte) in edits {
        let name = match file % 3 {
            0 => "requests".to_owned(),
            1 => format!("{key}.meta"),
            _ => format!("{key}.index"),
        };
        if let Ok(file) = media.open(&name) {
            let _ = file.write_all_at(&[byte], u64::from(at));
        }
    }
    let Ok(store) = Store::open(media, Options::default(), 2) else { return };
    if let Ok(Some(task)) = store.open_task(&key) {
        let _ = task.meta();
        let mut buf = vec![0; 65536];
        for index in task.held().iter() {
            assert_eq!(task.read_block(index, &mut buf).ok(), Some(65536));
            assert_eq!(buf, block);
        }
    }
});
