//! Parts of content whose length no origin says: it is known when the last byte has come.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod kit;

use std::time::{Duration, Instant};

use dragonfly_node::download::{Download, Wish};
use dragonfly_node::node::Role;
use dragonfly_proto::rpc::{self, failure::Code};
use dragonfly_scheduler::core::CoreSettings;
use kit::{SchedulerProcess, TestMesh, TestNode, authority, bytes, log, read_all, source};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// An origin of 1 MiB at 2 MiB/s that says how long it is for the path `/known` alone.
async fn origin() -> String {
    let says = |head: &str| {
        let length = match head.contains("/known ") {
            true => format!("content-length: {MIB}\r\n"),
            false => String::new(),
        };
        let head = format!("200 OK\r\netag: \"v1\"\r\n{length}");
        (head, bytes(MIB as usize, 1), 2 * MIB)
    };
    kit::says::origin(says).await
}

/// A mesh of two, and where the content is.
struct Bed {
    _scheduler: SchedulerProcess,
    seed: TestNode,
    peer: TestNode,
    url: String,
}

impl Bed {
    async fn start() -> Self {
        log();
        let authority = authority();
        let any = "127.0.0.1:0".parse().unwrap();
        let settings = CoreSettings::default();
        let scheduler = SchedulerProcess::start(any, authority.clone(), settings).await;
        let mesh = TestMesh::new(vec![scheduler.addr], authority);
        let seed = mesh.node(100, Role::Seed).await;
        let peer = mesh.node(1, Role::Peer).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        Self {
            _scheduler: scheduler,
            seed,
            peer,
            url: origin().await,
        }
    }

    fn source(&self) -> rpc::Source {
        source(&format!("{}/unknown", self.url))
    }

    async fn wish(&self, wish: Wish) -> Result<Download, rpc::Failure> {
        self.peer.node.download(self.source(), wish).await
    }

    fn nobody_is_banned(&self) {
        let bans = [&self.seed, &self.peer].map(|n| n.node.metrics.bans.get());
        assert_eq!(bans, [0, 0]);
    }
}

/// How a download ends, which it does soon.
async fn end(download: &Download) -> Result<(), rpc::Failure> {
    let ended = tokio::time::timeout(Duration::from_secs(10), download.finish()).await;
    ended.unwrap_or_else(|_| {
        kit::describe_all();
        panic!("{download:?} does not end: {:?}", download.progress());
    })
}

async fn ends(wish: Wish) {
    let bed = Bed::start().await;
    let mut download = bed.wish(wish).await.unwrap();
    end(&download).await.unwrap();
    assert_eq!(download.range(), (512 * KIB, Some(MIB)));
    let progress = download.progress();
    assert_eq!(
        (progress.have, progress.total),
        (512 * KIB, Some(512 * KIB))
    );
    let mut got = vec![];
    while let Some(part) = download.next_chunk().await.unwrap() {
        got.extend_from_slice(&part);
    }
    assert!(got == bytes(MIB as usize, 1)[512 << 10..]);
    bed.nobody_is_banned();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_of_content_of_unknown_length_ends() {
    ends(Wish::Range(512 * KIB, None)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_of_content_of_unknown_length_with_an_end_ends() {
    ends(Wish::Range(512 * KIB, Some(3 * MIB))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_wants_an_open_part_of_unknown_length_gets_its_node_banned_nowhere() {
    let bed = Bed::start().await;
    // One client's whim.
    let _whim = bed.wish(Wish::Range(512 * KIB, None)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    // Another client's download of something else.
    let since = Instant::now();
    let got = read_all(&bed.peer, &format!("{}/known", bed.url)).await;
    assert!(got.unwrap() == bytes(MIB as usize, 1));
    assert!(since.elapsed() < Duration::from_secs(5));
    bed.nobody_is_banned();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wish_behind_an_end_that_only_the_other_knows_is_no_reason_for_a_ban() {
    let bed = Bed::start().await;
    // The seed has it all, and knows how long it is, before the peer asks.
    read_all(&bed.seed, &bed.source().url).await.unwrap();
    let wish = Wish::Range(512 * KIB, Some(3 * MIB));
    end(&bed.wish(wish).await.unwrap()).await.unwrap();
    bed.nobody_is_banned();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_behind_the_end_of_content_of_unknown_length_ends() {
    let bed = Bed::start().await;
    for wish in [
        Wish::Range(3 * MIB, None),
        Wish::Range(3 * MIB, Some(4 * MIB)),
    ] {
        let refused = match bed.wish(wish).await {
            Ok(mut download) => {
                let failure = end(&download).await.unwrap_err();
                assert_eq!(download.range(), (3 * MIB, Some(3 * MIB)));
                assert_eq!(download.progress().total, Some(0));
                let read = download.next_chunk().await.unwrap_err();
                assert_eq!(read.code(), Code::Invalid);
                failure
            }
            // The second time the length is known.
            Err(failure) => failure,
        };
        assert_eq!(refused.code(), Code::Invalid, "{refused:?}");
    }
    bed.nobody_is_banned();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_range_far_behind_any_content_of_unknown_length_is_no_panic() {
    let bed = Bed::start().await;
    // Somebody wants all of it, so that its first block comes.
    let whole = bed.wish(Wish::Whole).await.unwrap();
    whole.chunk_at(0).await.unwrap().unwrap();
    assert_eq!(whole.range().1, None, "the length is still unknown");
    // Bytes of the block whose number is 0 in 32 bits.
    let far = (1_u64 << 32) * (256 << 10);
    for start in [far, u64::MAX - 1] {
        let refused = bed.wish(Wish::Range(start, None)).await.unwrap_err();
        assert_eq!(refused.code(), Code::Invalid, "{refused:?}");
    }
    // Nor where a reader goes there by itself.
    assert!(whole.chunk_at(far).await.unwrap().is_none());
    end(&whole).await.unwrap();
}
