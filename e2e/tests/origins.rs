//! Origins as they are met: of a company's own authority, and of contents larger than any disk here.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::fs::File;
use std::os::unix::fs::FileExt;

use common::{LIMIT, MIB, text};
use dragonfly_e2e::mesh::{Mesh, Options};
use dragonfly_e2e::origin::Origin;
use dragonfly_e2e::sample;

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_of_an_authority_that_policy_names_is_believed_and_otherwise_the_error_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let source = sample::random(&dir.path().join("source"), 4 * MIB, 5).unwrap();
    let (origin, authority) = Origin::start_tls().await.unwrap();
    let url = origin.serve("file.bin", &source.path).unwrap();
    assert!(url.starts_with("https://"), "{url}");
    let indented: String = authority
        .lines()
        .map(|line| format!("        {line}\n"))
        .collect();
    let named = format!("  sources:\n    http:\n      caBundle: |\n{indented}");
    for (spec, believed) in [(String::new(), false), (named, true)] {
        let options = Options {
            peers: 2,
            spec,
            ..Options::default()
        };
        let mesh = Mesh::start(&options).await.unwrap();
        let gets: Vec<_> = (0..2).map(|n| mesh.get(n, &url, &[]).unwrap()).collect();
        for get in gets {
            let output = get.output.clone();
            let ended = get.wait(LIMIT).await.unwrap();
            if believed {
                assert_eq!(ended.code, Some(0), "{}", ended.complaint());
                assert_eq!(sample::digest(&output).unwrap(), source.digest);
            } else {
                let complaint = ended.complaint();
                assert_eq!(ended.code, Some(5), "{complaint}");
                for part in ["certificate is not accepted", "CA bundle"] {
                    assert!(complaint.contains(part), "{complaint}");
                }
                assert!(!output.exists());
            }
        }
        assert_eq!(origin.sent(), if believed { source.len } else { 0 });
    }
}

/// Bytes of a large content, and what they are.
struct Part {
    start: u64,
    bytes: Vec<u8>,
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_of_a_hundred_gibibytes_are_exact_wherever_numbers_grow_wider() {
    const GIB: u64 = 1 << 30;
    const LEN: u64 = 100 * GIB + 12_345;
    let options = Options {
        peers: 2,
        ..Options::default()
    };
    let mesh = Mesh::start(&options).await.unwrap();
    let path = mesh.dir().join("large");
    let file = File::create(&path).unwrap();
    // A hole but for the parts that are looked at.
    file.set_len(LEN).unwrap();
    let mut random = fastrand::Rng::with_seed(100);
    let parts: Vec<_> = [
        0,
        // Lengths and offsets of 31 and of 32 bits.
        2 * GIB - MIB - 7,
        4 * GIB - MIB - 7,
        // Blocks are of 1 MiB here: their numbers outgrow 16 bits.
        64 * GIB - MIB - 7,
        // The end, which is a block of 12,345 bytes.
        LEN - 2 * MIB - 3,
    ]
    .into_iter()
    .map(|start| {
        let mut bytes = vec![0; (2 * MIB + 3) as usize];
        random.fill(&mut bytes);
        file.write_all_at(&bytes, start).unwrap();
        Part { start, bytes }
    })
    .collect();
    let origin = Origin::start(0).await.unwrap();
    let url = origin.serve("large.bin", &path).unwrap();
    for peer in 0..2 {
        for Part { start, bytes } in &parts {
            let last = start + bytes.len() as u64 - 1;
            let range = format!("{start}-{last}");
            let get = mesh.get(peer, &url, &["--range", &range]).unwrap();
            let output = get.output.clone();
            let ended = get.wait(LIMIT).await.unwrap();
            assert_eq!(ended.code, Some(0), "{range}: {}", ended.complaint());
            assert!(std::fs::read(&output).unwrap() == *bytes, "{range} differs");
        }
    }
    let past = format!("{LEN}-");
    let ended = mesh.get(0, &url, &["--range", &past]).unwrap();
    let ended = ended.wait(LIMIT).await.unwrap();
    assert!(
        ended.complaint().contains(&LEN.to_string()),
        "{}",
        ended.complaint()
    );
    // Four blocks a part at most, and what a first answer brings before the reader is known.
    let most = 4 * MIB * parts.len() as u64 + 16 * MIB;
    assert!(
        origin.sent() <= most,
        "the origin sent {} bytes",
        origin.sent()
    );
    // What the nodes keep is as sparse as what was asked for.
    let mut du = std::process::Command::new("du");
    let du = du.arg("-sk").arg(mesh.dir()).output().unwrap();
    let kept: u64 = text(&du.stdout)
        .split_whitespace()
        .next()
        .unwrap()
        .parse()
        .unwrap();
    assert!(kept << 10 < 300 * MIB, "{kept} KiB on disk");
}
