//! Bytes from a connection, after the greeting: headers are bounded, and what is read as a frame is
//! written as the same bytes.
#![no_main]

use dragonfly_proto::frame::{DataHeader, Frame, FrameHeader, MAX_CONTROL, MAX_DATA, kind};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((head, body)) = bytes.split_first_chunk::<{ FrameHeader::LEN }>() else { return };
    if let Ok(header) = FrameHeader::decode(head) {
        assert!(header.len <= if header.kind == kind::DATA { MAX_DATA } else { MAX_CONTROL });
        if let Some((fixed, _)) = body.split_first_chunk::<{ DataHeader::LEN }>()
            && let Ok(data) = DataHeader::decode(&header, fixed)
        {
            let lengths = DataHeader::LEN as u64 + u64::from(data.proof_len) + u64::from(data.data_len);
            assert_eq!(lengths, u64::from(header.len));
        }
    }
    if let Ok(Some(frame)) = Frame::decode(head[0], body) {
        let mut out = Vec::new();
        frame.encode(7, &mut out);
        let (again, rest) = out.split_first_chunk::<{ FrameHeader::LEN }>().unwrap();
        let header = FrameHeader::decode(again).unwrap();
        assert_eq!((header.kind, header.stream, header.len as usize), (head[0], 7, body.len()));
        // An address of version 4 may be said in two ways, so PEX is compared by its meaning.
        if header.kind == kind::PEX {
            assert_eq!(Frame::decode(header.kind, rest).unwrap(), Some(frame));
        } else {
            assert_eq!(rest, body);
        }
    }
});
