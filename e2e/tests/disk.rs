//! Disks that are full, of real processes: small file systems, in mount namespaces of the tests' own.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::time::Duration;

use common::{LIMIT, MIB, Setting, alone};
use dragonfly_e2e::mesh::{Member, Mesh, Options};
use dragonfly_e2e::origin::Origin;
use dragonfly_e2e::{disk, sample};

/// A mesh, one member of which has a small disk, before it starts.
async fn with_small_disk(options: &Options, whose: impl Fn(&Mesh) -> &Member, mib: u64) -> Setting {
    let mut mesh = Mesh::prepare(options).unwrap();
    disk::small(&whose(&mesh).state, mib).unwrap();
    mesh.begin().await.unwrap();
    let origin = Origin::start(16 * MIB).await.unwrap();
    let source = sample::random(&mesh.dir().join("source"), 32 * MIB, 7).unwrap();
    let url = origin.serve("file.bin", &source.path).unwrap();
    Setting {
        mesh,
        origin,
        source,
        url,
    }
}

#[test]
fn a_peers_full_disk_is_a_clear_error_there_and_the_others_finish() {
    alone(
        "a_peers_full_disk_is_a_clear_error_there_and_the_others_finish",
        || async {
            let options = Options {
                peers: 3,
                ..Options::default()
            };
            let s = with_small_disk(&options, |m| &m.peers[0], 12).await;
            let mut gets = s.all_get();
            let full = gets.remove(0).wait(LIMIT).await.unwrap();
            assert_ne!(full.code, Some(0));
            let said = full.complaint();
            assert!(said.contains("do not fit"), "{said}");
            assert!(!s.mesh.work.join("peer-0.out").exists());
            s.all_have(gets).await;
            s.origin_sent_at_most(2 * MIB);
            // What fits is had there, soon.
            let little = sample::random(&s.mesh.dir().join("little"), MIB, 8).unwrap();
            let url = s.origin.serve("little.bin", &little.path).unwrap();
            let get = s.mesh.get(0, &url, &[]).unwrap();
            let (output, ended) = (get.output.clone(), get.wait(LIMIT).await.unwrap());
            assert_eq!(ended.code, Some(0), "{}", ended.complaint());
            assert_eq!(sample::digest(&output).unwrap(), little.digest);
        },
    );
}

#[test]
fn a_seeds_full_disk_leaves_the_origin_to_another_seed() {
    alone(
        "a_seeds_full_disk_leaves_the_origin_to_another_seed",
        || async {
            let options = Options {
                seeds: 2,
                peers: 2,
                ..Options::default()
            };
            let s = with_small_disk(&options, |m| &m.seeds[0], 12).await;
            // Whichever seed is a content's home: of several, one is the small one's.
            for n in 0..4 {
                let url = s
                    .origin
                    .serve(&format!("file-{n}.bin"), &s.source.path)
                    .unwrap();
                let gets = (0..2).map(|p| s.mesh.get(p, &url, &[]).unwrap()).collect();
                for ended in s.all_have(gets).await {
                    assert!(
                        ended.took < Duration::from_secs(20),
                        "took {:?}",
                        ended.took
                    );
                }
            }
        },
    );
}

#[test]
fn the_only_seeds_full_disk_is_a_clear_error_and_what_fits_is_had() {
    alone(
        "the_only_seeds_full_disk_is_a_clear_error_and_what_fits_is_had",
        || async {
            let options = Options {
                peers: 2,
                ..Options::default()
            };
            let s = with_small_disk(&options, |m| &m.seeds[0], 12).await;
            for get in s.all_get() {
                let ended = get.wait(LIMIT).await.unwrap();
                // Peers may go to the origin themselves where policy lets them: then they have it.
                if ended.code != Some(0) {
                    let said = ended.complaint();
                    assert!(said.contains("do not fit"), "{said}");
                }
            }
            let little = sample::random(&s.mesh.dir().join("little"), MIB, 8).unwrap();
            let url = s.origin.serve("little.bin", &little.path).unwrap();
            for peer in 0..2 {
                let get = s.mesh.get(peer, &url, &[]).unwrap();
                let (output, ended) = (get.output.clone(), get.wait(LIMIT).await.unwrap());
                assert_eq!(ended.code, Some(0), "{}", ended.complaint());
                assert_eq!(sample::digest(&output).unwrap(), little.digest);
            }
        },
    );
}
