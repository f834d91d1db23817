//! Decoders of everything that is read from the medium: no panic, and what decodes encodes again.
#![no_main]

use dragonfly_proto::id::ContentKey;
use dragonfly_storage::Geometry;
use dragonfly_storage::format::*;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let key = ContentKey([1; 32]);
    if let Ok(header) = Header::decode(bytes) {
        assert_eq!(Header::decode(&header.encode()), Ok(header));
    }
    if let Ok(meta) = decode_meta(&key, bytes) {
        assert_eq!(encode_meta(&key, &meta).len(), meta.len() + META_HEAD);
    }
    let _ = decode_requests(bytes);
    let geometry = Geometry::new(65536, None).unwrap();
    for (index, record) in bytes.chunks(RECORD).enumerate() {
        if let Some(r) = Record::decode(&key, geometry, index as u32, record) {
            let again = Record::encode(&key, r.index, r.len, r.epoch, &r.hash, &r.proof);
            assert_eq!(Record::decode(&key, geometry, index as u32, &again), Some(r));
        }
    }
});
