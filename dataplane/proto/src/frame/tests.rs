use super::*;
use crate::id::{ContentKey, NodeId};
use crate::sign::SigningKey;
use crate::ticket::Ticket;
use crate::trust::{EmitterClaim, EpochCert, SignedSize};

fn samples() -> Vec<Frame> {
    let content = ContentKey([5; 32]);
    let ticket = Ticket {
        content,
        bearer: NodeId([6; 16]),
        expires: 9,
        signature: [7; 64],
    };
    let hello = Hello {
        content,
        ticket,
        block_size: 65536,
        total_len: Some(1),
        emitter: None,
    };
    let (key, _) = SigningKey::generate().unwrap();
    let cert = EpochCert::issue(&key, content, 1, *key.public());
    let claim = EmitterClaim {
        cert,
        signature: [4; 64],
    };
    vec![
        Frame::Hello(hello.clone()),
        Frame::Hello(Hello {
            total_len: None,
            emitter: Some(Box::new(claim)),
            ..hello
        }),
        Frame::Bitmap {
            last: true,
            bytes: vec![0xff, 1],
        },
        Frame::Have(vec![(0, 1), (9, 70)]),
        Frame::Want(Want::Nothing),
        Frame::Want(Want::Whole),
        Frame::Want(Want::Some(vec![(1, 2)])),
        Frame::Hurry(vec![(4, 4)]),
        Frame::Credit(2),
        Frame::Request(7),
        Frame::Cancel(8),
        Frame::Pass,
        Frame::Rate(12_000_000),
        Frame::Epoch(cert),
        Frame::Size(SignedSize {
            total_len: 10,
            epoch: 2,
            signature: [3; 64],
        }),
        Frame::Refuse {
            content,
            reason: "no such task".to_owned(),
        },
        Frame::Close,
        Frame::Ping,
        Frame::Pex(vec![
            (NodeId([1; 16]), "10.0.0.1:4000".parse().unwrap()),
            (NodeId([2; 16]), "[fd00::1]:4000".parse().unwrap()),
        ]),
        Frame::Priority(3),
    ]
}

#[test]
fn every_frame_comes_back_as_it_was_sent_and_not_a_byte_shorter_or_longer() {
    for frame in samples() {
        let mut bytes = vec![];
        frame.encode(42, &mut bytes);
        let (head, body) = bytes.split_first_chunk::<12>().unwrap();
        let h = FrameHeader::decode(head).unwrap();
        assert_eq!(
            (h.stream, h.len as usize, h.kind),
            (42, body.len(), frame.kind())
        );
        assert_eq!(Frame::decode(h.kind, body), Ok(Some(frame.clone())));
        let mut longer = body.to_vec();
        longer.push(0);
        let variable = matches!(frame, Frame::Refuse { .. } | Frame::Bitmap { .. });
        if !variable {
            assert!(Frame::decode(h.kind, &longer).is_err(), "{frame:?}");
            if let Some((_, shorter)) = body.split_last() {
                assert!(Frame::decode(h.kind, shorter).is_err(), "{frame:?}");
            }
        }
    }
}

#[test]
fn the_wire_is_pinned() {
    let hex = |f: &Frame| {
        let mut b = vec![];
        f.encode(0x0102_0304, &mut b);
        b.iter().map(|b| format!("{b:02x}")).collect::<String>()
    };
    assert_eq!(hex(&Frame::Request(7)), "06000000040302010400000007000000");
    assert_eq!(
        hex(&Frame::Have(vec![(1, 2)])),
        "0300000004030201080000000100000002000000"
    );
    assert_eq!(hex(&Frame::Pass), "090000000403020100000000");
    let mut hello = vec![];
    samples()[1].encode(1, &mut hello);
    // Header, content, ticket, block size, length, flag, certificate and signature.
    assert_eq!(hello.len(), 12 + 32 + 120 + 4 + 8 + 1 + 132 + 64);
    assert_eq!(
        hello[12 + 156..][..9],
        [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]
    );
    let g = Greeting::new(NodeId([1; 16]), [2; 16]).encode();
    assert_eq!(g[..12], *b"DFLYPEER\x01\0\x01\0");
}

#[test]
fn greetings_of_strangers_and_of_other_versions_are_told_apart() {
    let good = Greeting::new(NodeId([1; 16]), [2; 16]);
    assert_eq!(Greeting::decode(&good.encode()), Ok(good));
    let mut tls = [0; Greeting::LEN];
    tls[..3].copy_from_slice(&[0x16, 3, 1]);
    assert_eq!(Greeting::decode(&tls), Err(FrameError::Magic));
    let newer = Greeting {
        version: 9,
        min_version: 8,
        ..good
    };
    assert_eq!(
        Greeting::decode(&newer.encode()),
        Err(FrameError::Version(8, 9))
    );
    let newer_but_kind = Greeting { version: 9, ..good };
    assert!(Greeting::decode(&newer_but_kind.encode()).is_ok());
    let lane = good.of_lane(7);
    assert_eq!(Greeting::decode(&lane.encode()), Ok(lane));
    assert!(lane.is_of_lane() && lane.conn == 7 && !good.is_of_lane());
    let demanding = Greeting {
        required: 1 << 60,
        ..good
    };
    assert_eq!(
        Greeting::decode(&demanding.encode()),
        Err(FrameError::Features(1 << 60))
    );
}

#[test]
fn unknown_types_are_skipped_only_where_the_sender_allows_it() {
    assert_eq!(Frame::decode(0xfe, b"anything"), Ok(None));
    assert_eq!(Frame::decode(0x7f, b""), Err(FrameError::Type(0x7f)));
}

#[test]
fn lengths_beyond_the_limit_are_refused_before_anything_is_allocated() {
    let h = FrameHeader {
        kind: kind::HAVE,
        stream: 0,
        len: MAX_CONTROL + 1,
    };
    assert_eq!(
        FrameHeader::decode(&h.encode()),
        Err(FrameError::Length(kind::HAVE, h.len))
    );
    let h = FrameHeader {
        kind: kind::DATA,
        stream: 0,
        len: MAX_DATA + 1,
    };
    assert!(FrameHeader::decode(&h.encode()).is_err());
    let mut out = vec![];
    let d = DataHeader {
        index: 1,
        data_len: 100,
        proof_len: 2,
    };
    d.encode(9, &[1, 2], &mut out);
    let f = FrameHeader::decode(out.first_chunk().unwrap()).unwrap();
    let fixed: [u8; 12] = out[12..24].try_into().unwrap();
    assert_eq!(DataHeader::decode(&f, &fixed), Ok(d));
    assert!(
        DataHeader::decode(
            &FrameHeader {
                len: f.len - 1,
                ..f
            },
            &fixed
        )
        .is_err()
    );
}
