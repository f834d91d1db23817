//! Bytes from other nodes: any, and valid ones changed at will. No decoder panics, allocates more
//! than a small multiple of what came in, or takes what it would write otherwise.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod kit;

use dragonfly_proto::frame::{
    BITMAP_CHUNK, DataHeader, Frame, FrameHeader, Greeting, Hello, MAX_CONTROL, MAX_DATA,
    MAX_RANGES, MAX_REASON, Want, kind,
};
use dragonfly_proto::id::{ContentKey, NodeId};
use dragonfly_proto::sign::SigningKey;
use dragonfly_proto::ticket::Ticket;
use dragonfly_proto::trust::{
    EmitterClaim, EpochCert, Leaf, MAX_PATH, MAX_PROOF, Proof, SignedSize, Verifier,
};
use kit::{allocated, edited, edits};
use proptest::prelude::*;
use proptest::sample::Index;

/// A decoder may hold what came in, once more while it grows, and a few small things.
fn most(input: usize) -> usize {
    4 * input + 1024
}

fn bytes<const N: usize>() -> impl Strategy<Value = [u8; N]> {
    prop::collection::vec(any::<u8>(), N).prop_map(|v| v.try_into().unwrap())
}

fn content() -> impl Strategy<Value = ContentKey> {
    bytes().prop_map(ContentKey)
}

fn cert() -> impl Strategy<Value = EpochCert> {
    (content(), any::<u32>(), bytes(), bytes()).prop_map(|(content, epoch, key, signature)| {
        EpochCert {
            content,
            epoch,
            key,
            signature,
        }
    })
}

fn claim() -> impl Strategy<Value = EmitterClaim> {
    (cert(), bytes()).prop_map(|(cert, signature)| EmitterClaim { cert, signature })
}

fn ticket() -> impl Strategy<Value = Ticket> {
    (content(), bytes(), any::<u64>(), bytes()).prop_map(|(content, bearer, expires, signature)| {
        Ticket {
            content,
            bearer: NodeId(bearer),
            expires,
            signature,
        }
    })
}

fn ranges() -> impl Strategy<Value = Vec<(u32, u32)>> {
    let range = (any::<u32>(), 1..=u32::MAX)
        .prop_map(|(first, count)| (first, count.min((u32::MAX - first).max(1))))
        .prop_filter("an end that can be said", |(first, count)| {
            first.checked_add(*count).is_some()
        });
    // The whole length that is allowed, and short ones.
    prop_oneof![
        9 => prop::collection::vec(range.clone(), 0..40),
        1 => prop::collection::vec(range, MAX_RANGES),
    ]
}

fn hello() -> impl Strategy<Value = Frame> {
    let total_len = prop::option::of(0..u64::MAX);
    let claim = prop::option::of(claim().prop_map(Box::new));
    (content(), ticket(), any::<u32>(), total_len, claim).prop_map(
        |(content, ticket, block_size, total_len, emitter)| {
            Frame::Hello(Hello {
                content,
                ticket,
                block_size,
                total_len,
                emitter,
            })
        },
    )
}

fn pex() -> impl Strategy<Value = Frame> {
    let peer = (bytes(), any::<std::net::IpAddr>(), any::<u16>()).prop_map(|(node, ip, port)| {
        (
            NodeId(node),
            std::net::SocketAddr::new(ip.to_canonical(), port),
        )
    });
    prop::collection::vec(peer, 0..=32).prop_map(Frame::Pex)
}

fn frame() -> impl Strategy<Value = Frame> {
    let map = prop::collection::vec(any::<u8>(), 0..=64);
    let size = (any::<u64>(), any::<u32>(), bytes()).prop_map(|(total_len, epoch, signature)| {
        Frame::Size(SignedSize {
            total_len,
            epoch,
            signature,
        })
    });
    let reason = "\\PC{0,100}".prop_map(|s| s[..s.floor_char_boundary(MAX_REASON)].to_owned());
    prop_oneof![
        hello(),
        hello(),
        (any::<bool>(), map).prop_map(|(last, bytes)| Frame::Bitmap { last, bytes }),
        any::<bool>().prop_map(|last| Frame::Bitmap {
            last,
            bytes: vec![7; BITMAP_CHUNK]
        }),
        ranges().prop_map(Frame::Have),
        ranges().prop_map(Frame::Hurry),
        prop_oneof![
            Just(Want::Nothing),
            Just(Want::Whole),
            ranges().prop_map(Want::Some)
        ]
        .prop_map(Frame::Want),
        any::<u32>().prop_map(Frame::Credit),
        any::<u32>().prop_map(Frame::Request),
        any::<u32>().prop_map(Frame::Cancel),
        prop_oneof![Just(Frame::Pass), Just(Frame::Close), Just(Frame::Ping)],
        any::<u64>().prop_map(Frame::Rate),
        cert().prop_map(Frame::Epoch),
        size,
        (content(), reason).prop_map(|(content, reason)| Frame::Refuse { content, reason }),
        pex(),
        any::<u8>().prop_map(Frame::Priority),
    ]
}

fn greeting() -> impl Strategy<Value = Greeting> {
    let said = (any::<u16>(), any::<u64>(), any::<u32>(), any::<bool>());
    (said, bytes(), bytes()).prop_map(|((version, features, conn, is_lane), node, mesh)| {
        let greeting = Greeting {
            version: version.max(1),
            features,
            ..Greeting::new(NodeId(node), mesh)
        };
        match is_lane {
            true => greeting.of_lane(conn),
            false => greeting.numbered(conn),
        }
    })
}

fn proof() -> impl Strategy<Value = Proof> {
    let path = prop::collection::vec(bytes(), 0..=MAX_PATH);
    (any::<u32>(), any::<Index>(), path, bytes()).prop_map(|(epoch, position, path, signature)| {
        Proof {
            epoch,
            position: position.index(1 << path.len()) as u8,
            path,
            signature,
        }
    })
}

/// What a connection does with bytes after the greeting.
fn read_as_frame(bytes: &[u8]) -> Result<(), TestCaseError> {
    let Some((head, body)) = bytes.split_first_chunk::<{ FrameHeader::LEN }>() else {
        return Ok(());
    };
    if let Ok(header) = FrameHeader::decode(head) {
        let limit = if header.kind == kind::DATA {
            MAX_DATA
        } else {
            MAX_CONTROL
        };
        prop_assert!(header.len <= limit);
        if let Some((fixed, _)) = body.split_first_chunk::<{ DataHeader::LEN }>()
            && let Ok(data) = DataHeader::decode(&header, fixed)
        {
            let parts = u64::from(data.proof_len) + u64::from(data.data_len);
            prop_assert_eq!(DataHeader::LEN as u64 + parts, u64::from(header.len));
        }
    }
    let (decoded, cost) = allocated(|| Frame::decode(head[0], body));
    prop_assert!(
        cost <= most(body.len()),
        "{} bytes for {}",
        cost,
        body.len()
    );
    let Ok(Some(frame)) = decoded else {
        return Ok(());
    };
    let mut out = vec![];
    frame.encode(7, &mut out);
    let (again, rest) = out.split_first_chunk::<{ FrameHeader::LEN }>().unwrap();
    let again = FrameHeader::decode(again).unwrap();
    prop_assert_eq!(
        (again.kind, again.stream, again.len as usize),
        (head[0], 7, body.len())
    );
    // An address of version 4 may be said in two ways, so PEX is compared by its meaning.
    if again.kind == kind::PEX {
        prop_assert_eq!(Frame::decode(again.kind, rest), Ok(Some(frame)));
    } else {
        prop_assert_eq!(rest, body);
    }
    Ok(())
}

fn read_as_greeting(bytes: &[u8]) -> Result<(), TestCaseError> {
    if let Some((first, _)) = bytes.split_first_chunk::<{ Greeting::LEN }>()
        && let Ok(read) = Greeting::decode(first)
    {
        prop_assert_eq!(read.encode(), *first);
    }
    Ok(())
}

fn read_as_ticket(bytes: &[u8]) -> Result<(), TestCaseError> {
    if let Ok(ticket) = Ticket::decode(bytes) {
        prop_assert_eq!(ticket.encode().to_vec(), bytes);
        let checked = ticket.check(&[[1; 32]], &ticket.content, &ticket.bearer, 0);
        prop_assert!(checked.is_err());
    }
    Ok(())
}

fn read_as_proof(bytes: &[u8]) -> Result<(), TestCaseError> {
    let (decoded, cost) = allocated(|| Proof::decode(bytes));
    prop_assert!(cost <= most(MAX_PROOF));
    if let Ok(proof) = decoded {
        prop_assert!(bytes.len() <= MAX_PROOF);
        let mut out = vec![];
        proof.encode(&mut out);
        prop_assert_eq!(out.as_slice(), bytes);
        let leaf = Leaf {
            index: 0,
            len: 1,
            hash: [0; 32],
        };
        let mut verifier = Verifier::new(ContentKey([0; 32]), vec![[0; 32]]);
        prop_assert!(verifier.check(&leaf, &proof).is_err());
    }
    Ok(())
}

fn read_as_certificate(bytes: &[u8]) -> Result<(), TestCaseError> {
    if let Ok(cert) = EpochCert::decode(bytes) {
        prop_assert_eq!(cert.encode().to_vec(), bytes);
        let mut verifier = Verifier::new(cert.content, vec![[1; 32]]);
        prop_assert!(verifier.add_epoch(&cert).is_err());
    }
    if let Ok(claim) = EmitterClaim::decode(bytes) {
        prop_assert_eq!(claim.encode().to_vec(), bytes);
        prop_assert!(claim.check(&NodeId([1; 16])).is_err());
    }
    Ok(())
}

fn read_as_all(bytes: &[u8]) -> Result<(), TestCaseError> {
    read_as_frame(bytes)?;
    read_as_greeting(bytes)?;
    read_as_ticket(bytes)?;
    read_as_proof(bytes)?;
    read_as_certificate(bytes)
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        read_as_all(&bytes)?;
    }

    #[test]
    fn any_body_under_any_type_is_read_or_refused(
        kind in prop_oneof![0u8..20, 0x80u8..0x84, any::<u8>()],
        body in prop::collection::vec(any::<u8>(), 0..600),
    ) {
        let header = FrameHeader { kind, stream: 1, len: body.len() as u32 };
        read_as_frame(&[&header.encode()[..], &body].concat())?;
    }

    #[test]
    fn every_frame_comes_back_and_changed_ones_are_read_or_refused(frame in frame(), edits in edits()) {
        let mut out = vec![];
        frame.encode(3, &mut out);
        let body = &out[FrameHeader::LEN..];
        prop_assert_eq!(Frame::decode(frame.kind(), body), Ok(Some(frame.clone())));
        read_as_frame(&edited(out.clone(), &edits))?;
        // The same with a header that fits, so that the body alone is at fault.
        let body = edited(body.to_vec(), &edits);
        out.splice(FrameHeader::LEN.., body);
        read_as_frame(&out)?;
    }

    #[test]
    fn every_data_header_comes_back_and_changed_ones_are_read_or_refused(
        index in any::<u32>(), data_len in 1..=4u32 << 20,
        proof in prop::collection::vec(any::<u8>(), 0..=MAX_PROOF), edits in edits(),
    ) {
        let header = DataHeader { index, data_len, proof_len: proof.len() as u16 };
        let mut out = vec![];
        header.encode(9, &proof, &mut out);
        if let Ok(frame) = FrameHeader::decode(out.first_chunk().unwrap()) {
            let fixed = out[FrameHeader::LEN..].first_chunk().unwrap();
            let again = DataHeader::decode(&frame, fixed);
            let fits = data_len <= dragonfly_proto::geometry::MAX_BLOCK;
            prop_assert_eq!(again.ok(), fits.then_some(header));
        }
        read_as_frame(&edited(out, &edits))?;
    }

    #[test]
    fn every_greeting_comes_back_and_changed_ones_are_read_or_refused(g in greeting(), edits in edits()) {
        prop_assert_eq!(Greeting::decode(&g.encode()), Ok(g));
        read_as_greeting(&edited(g.encode().to_vec(), &edits))?;
    }

    #[test]
    fn every_ticket_comes_back_and_changed_ones_admit_nobody(edits in edits(), expires in any::<u64>()) {
        let (key, _) = SigningKey::generate().unwrap();
        let (content, bearer) = (ContentKey([3; 32]), NodeId([4; 16]));
        let ticket = Ticket::issue(&key, content, bearer, expires);
        let encoded = ticket.encode().to_vec();
        prop_assert_eq!(Ticket::decode(&encoded), Ok(ticket));
        prop_assert_eq!(ticket.check(&[*key.public()], &content, &bearer, 0), Ok(()));
        let changed = edited(encoded.clone(), &edits);
        read_as_ticket(&changed)?;
        if let Ok(other) = Ticket::decode(&changed) {
            let admits = other.check(&[*key.public()], &content, &bearer, 0).is_ok();
            prop_assert_eq!(admits, changed == encoded);
        }
    }

    #[test]
    fn every_certificate_and_claim_comes_back_and_changed_ones_bind_nobody(edits in edits(), epoch in any::<u32>()) {
        let (authority, _) = SigningKey::generate().unwrap();
        let (key, _) = SigningKey::generate().unwrap();
        let (content, node) = (ContentKey([3; 32]), NodeId([4; 16]));
        let cert = EpochCert::issue(&authority, content, epoch, *key.public());
        let signer = dragonfly_proto::trust::RunSigner::new(key.into(), content, epoch);
        let claim = signer.claim(&cert, &node).unwrap();
        prop_assert_eq!(EmitterClaim::decode(&claim.encode()), Ok(claim));
        let changed = edited(claim.encode().to_vec(), &edits);
        read_as_certificate(&changed)?;
        if let Ok(other) = EmitterClaim::decode(&changed) {
            let holds = other.cert.is_from(&[*authority.public()]) && other.check(&node).is_ok();
            prop_assert_eq!(holds, other == claim);
        }
    }

    #[test]
    fn every_proof_comes_back_and_changed_ones_are_read_or_refused(proof in proof(), edits in edits()) {
        let mut out = vec![];
        proof.encode(&mut out);
        prop_assert_eq!(Proof::decode(&out), Ok(proof.clone()));
        read_as_proof(&edited(out, &edits))?;
    }
}
