//! The bytes on disk: pinned, and decoders that stand any input.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use dragonfly_proto::id::{ContentKey, RequestKey};
use dragonfly_storage::Geometry;
use dragonfly_storage::format::*;
use proptest::prelude::*;

const KEY: ContentKey = ContentKey([0xab; 32]);

fn header() -> Header {
    Header {
        sequence: 3,
        key: KEY,
        geometry: Geometry::new(65536, Some(200_000)).unwrap(),
        durable_epoch: 9,
        boot: [7; 16],
        complete: true,
        pinned: true,
        last_used: 1_790_000_000_000,
        verified: Some("sha256:00ff".to_owned()),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn the_layout_of_version_1_is_pinned() {
    let slot = header().encode();
    assert_eq!(
        hex(&slot[..24]),
        concat!(
            "44464c595441534b", // DFLYTASK
            "0100",             // version
            "0300",             // complete, pinned
            "00000100",         // block size
            "0300000000000000", // sequence
        )
    );
    assert_eq!(hex(&slot[24..56]), "ab".repeat(32));
    assert_eq!(
        hex(&slot[56..107]),
        concat!(
            "400d030000000000",                 // total length
            "09000000",                         // durable epoch
            "0b000000",                         // digest length
            "006c50c4a0010000",                 // last used
            "07070707070707070707070707070707", // boot id
            "7368613235363a30306666",           // digest
        )
    );
    assert_eq!(
        (header().slot_offset(), record_offset(2)),
        (512, 4096 + 640)
    );
    let record = Record::encode(&KEY, 2, 65536, 9, &[0xcd; 32], b"proof");
    assert_eq!(
        hex(&record[..16]),
        concat!("0100", "0500", "00000100", "09000000", "02000000")
    );
    assert_eq!(hex(&record[48..53]), hex(b"proof"));
    // The checksums pin all the rest.
    let all: Vec<u8> = [
        &slot[..],
        &record,
        &encode_meta(&KEY, b"meta"),
        &RequestRecord {
            request: RequestKey([1; 32]),
            content: Some(KEY),
            resolved_at: 5,
        }
        .encode(),
        &requests_head(),
    ]
    .concat();
    assert_eq!(blake3::hash(&all).to_hex().as_str(), PINNED);
}

const PINNED: &str = "532bbb20f64af427453bcde7729126ea52f52ba480f78cd9ae77704a13fbd86c";

#[test]
fn the_newer_good_slot_counts_and_a_future_version_rules_the_file() {
    let (older, newer) = (
        header(),
        Header {
            sequence: 4,
            pinned: false,
            ..header()
        },
    );
    let page = |a: &Header, b: &Header| [a.encode(), b.encode()].concat();
    assert_eq!(Header::decode(&page(&newer, &older)), Ok(newer.clone()));
    assert_eq!(Header::decode(&page(&older, &newer)), Ok(newer.clone()));
    let mut torn = page(&newer, &older);
    torn[300] ^= 1;
    assert_eq!(Header::decode(&torn), Ok(older.clone()));
    torn[512 + 300] ^= 1;
    assert_eq!(Header::decode(&torn), Err(Fault::Corrupt));
    let mut future = page(&newer, &older);
    future[512 + 8] = 2;
    assert_eq!(Header::decode(&future), Err(Fault::UnknownVersion(2)));
    assert_eq!(Header::decode(&[0; 1024]), Err(Fault::Empty));
    assert_eq!(Header::decode(&[]), Err(Fault::Empty));
    assert_eq!(Header::decode(b"#!/bin/sh"), Err(Fault::Foreign));
    assert_eq!(Header::decode(&newer.encode()), Ok(newer));
}

#[test]
fn a_record_of_another_block_or_task_is_refused() {
    let g = header().geometry;
    let record = Record::encode(&KEY, 3, 3392, 1, &[1; 32], &[2; MAX_PROOF]);
    assert_eq!(
        Record::decode(&KEY, g, 3, &record).unwrap().proof,
        vec![2; MAX_PROOF]
    );
    assert!(Record::decode(&KEY, g, 2, &record).is_none());
    assert!(Record::decode(&ContentKey([0; 32]), g, 3, &record).is_none());
    assert!(
        Record::decode(
            &KEY,
            Geometry::new(g.block_size(), None).unwrap(),
            3,
            &record
        )
        .is_none()
    );
    for at in 0..312 {
        let mut bad = record;
        bad[at] ^= 0x10;
        assert!(Record::decode(&KEY, g, 3, &bad).is_none(), "byte {at}");
    }
}

proptest! {
    #[test]
    fn decoders_stand_any_bytes(
        bytes in prop::collection::vec(any::<u8>(), 0..2000),
        magic in prop::sample::select(vec![&b""[..], b"DFLYTASK\x01\x00", b"DFLYMETA\x01\x00", b"DFLYREQS\x01\x00", b"\x01"]),
        index in any::<u32>(),
    ) {
        let bytes = [magic, &bytes].concat();
        let _ = Header::decode(&bytes);
        let _ = decode_meta(&KEY, &bytes);
        let _ = decode_requests(&bytes);
        prop_assert!(Record::decode(&KEY, header().geometry, index, &bytes).is_none());
    }

    #[test]
    fn what_is_encoded_is_decoded(
        sequence in any::<u64>(),
        total in prop::option::of(0..1u64 << 40),
        shift in 16..=20u32,
        epoch in any::<u32>(),
        flags in any::<(bool, bool)>(),
        digest in prop::option::of("[a-z0-9:]{1,160}"),
        index in 0..1u32 << 20,
        hash in any::<[u8; 32]>(),
        proof in prop::collection::vec(any::<u8>(), 0..=MAX_PROOF),
        meta in prop::collection::vec(any::<u8>(), 0..500),
    ) {
        let geometry = Geometry::new(1 << shift, total);
        prop_assume!(geometry.is_ok());
        let geometry = geometry.unwrap();
        let h = Header {
            sequence, geometry, durable_epoch: epoch, complete: flags.0, pinned: flags.1,
            verified: digest, ..header()
        };
        prop_assert_eq!(Header::decode(&h.encode()), Ok(h));
        let open = Geometry::new(1 << shift, None).unwrap();
        let r = Record { index, len: 1 << shift, epoch, hash, proof };
        let bytes = Record::encode(&KEY, index, r.len, epoch, &hash, &r.proof);
        prop_assert_eq!(Record::decode(&KEY, open, index, &bytes), Some(r));
        prop_assert_eq!(decode_meta(&KEY, &encode_meta(&KEY, &meta)), Ok(meta));
    }
}
