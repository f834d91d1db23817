//! A member of the mesh that wants to do harm: it has a valid ticket, and says what it likes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod kit;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dragonfly_node::download::Wish;
use dragonfly_node::node::Role;
use dragonfly_proto::frame::{
    DataHeader, Frame, FrameHeader, Greeting, Hello, MAX_PEX, Want, kind,
};
use dragonfly_proto::id::{ContentKey, NodeId};
use dragonfly_proto::sign::SigningKey;
use dragonfly_proto::ticket::Ticket;
use dragonfly_proto::trust::{EmitterClaim, EpochCert, Leaf, RunSigner, SignedSize};
use dragonfly_scheduler::core::CoreSettings;
use kit::scripted::{Script, Scripted};
use kit::{SchedulerProcess, TestMesh, TestNode, authority, bytes, log, read_all, source};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const EVIL: NodeId = NodeId([66; 16]);

/// A seed, two honest peers, a download that lasts a second or two, and its content's key.
struct World {
    _scheduler: SchedulerProcess,
    seed: TestNode,
    a: TestNode,
    b: TestNode,
    authority: Arc<SigningKey>,
    origin: Scripted,
    body: Vec<u8>,
}

impl World {
    async fn new(rate: u64) -> Self {
        log();
        let authority = authority();
        let addr = "127.0.0.1:0".parse().unwrap();
        let settings = CoreSettings::default();
        let scheduler = SchedulerProcess::start(addr, authority.clone(), settings).await;
        let mesh = TestMesh::new(vec![scheduler.addr], authority.clone());
        let seed = mesh.node(100, Role::Seed).await;
        let (a, b) = (
            mesh.node(1, Role::Peer).await,
            mesh.node(2, Role::Peer).await,
        );
        tokio::time::sleep(Duration::from_millis(300)).await;
        let body = bytes(4 << 20, 1);
        let mut script = Script::of(body.clone());
        script.rate = rate;
        let origin = Scripted::start(script).await;
        Self {
            _scheduler: scheduler,
            seed,
            a,
            b,
            authority,
            origin,
            body,
        }
    }

    fn ticket(&self, content: ContentKey) -> Ticket {
        ticket(&self.authority, content, EVIL)
    }

    /// Runs `evil` against peer `a` while both peers download, and sees to it that they end well.
    async fn attack<F: Future<Output = ()>>(&self, name: &str, evil: impl FnOnce(Evil) -> F) {
        let url = self.origin.url(name);
        let both = async { tokio::join!(read_all(&self.a, &url), read_all(&self.b, &url)) };
        let attack = async {
            let content = opened(&self.a, name, 0).await;
            let addr = self.a.node.identity().addresses[0];
            evil(Evil::greeted(addr, self.authority.clone(), content, EVIL).await).await;
        };
        let done = tokio::time::timeout(Duration::from_secs(20), async {
            tokio::join!(both, attack)
        });
        let ((x, y), ()) = done.await.unwrap_or_else(|_| panic!("{name}: no end"));
        assert!(
            x.unwrap() == self.body && y.unwrap() == self.body,
            "{name}: wrong bytes"
        );
        assert_eq!(
            self.b.node.metrics.bans.get(),
            0,
            "{name}: an honest node was banned"
        );
    }
}

/// The content of a task, when the node has it and so many neighbours in it.
async fn opened(at: &TestNode, name: &str, neighbours: usize) -> ContentKey {
    loop {
        let tasks = at.node.tasks().into_iter();
        let mut fits =
            tasks.filter(|t| t.meta().url.ends_with(name) && t.neighbours() >= neighbours);
        if let Some(task) = fits.next() {
            return task.key();
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn ticket(authority: &SigningKey, content: ContentKey, node: NodeId) -> Ticket {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    Ticket::issue(authority, content, node, now.as_secs() + 3600)
}

struct Evil {
    io: TcpStream,
    addr: SocketAddr,
    authority: Arc<SigningKey>,
    content: ContentKey,
    ticket: Ticket,
    /// Certificates that it was told of.
    epochs: Vec<EpochCert>,
}

impl Evil {
    async fn greeted(
        addr: SocketAddr,
        authority: Arc<SigningKey>,
        content: ContentKey,
        node: NodeId,
    ) -> Self {
        let mut io = TcpStream::connect(addr).await.unwrap();
        io.write_all(&Greeting::new(node, kit::MESH).encode())
            .await
            .unwrap();
        let mut theirs = [0; Greeting::LEN];
        io.read_exact(&mut theirs).await.unwrap();
        Self {
            ticket: ticket(&authority, content, node),
            io,
            addr,
            authority,
            content,
            epochs: vec![],
        }
    }

    /// Another connection, under another name.
    async fn other(&self, node: NodeId) -> Self {
        Self::greeted(self.addr, self.authority.clone(), self.content, node).await
    }

    async fn say(&mut self, stream: u32, frame: &Frame) -> bool {
        let mut out = vec![];
        frame.encode(stream, &mut out);
        self.io.write_all(&out).await.is_ok()
    }

    fn hello(&self) -> Hello {
        Hello {
            content: self.content,
            ticket: self.ticket,
            block_size: 65536,
            total_len: Some(4 << 20),
            emitter: None,
        }
    }

    /// Says that it emits.
    async fn claims(&mut self, claim: EmitterClaim) -> bool {
        let emitter = Some(Box::new(claim));
        let hello = Hello {
            emitter,
            ..self.hello()
        };
        self.say(1, &Frame::Hello(hello)).await
    }

    /// What the other side, which emits, shows for it.
    async fn claim_of_other(&mut self) -> EmitterClaim {
        loop {
            let hello = Frame::Hello(self.hello());
            assert!(self.say(1, &hello).await);
            loop {
                let (head, body) = self.next().await.unwrap();
                match Frame::decode(head.kind, &body) {
                    Ok(Some(Frame::Hello(hello))) => return *hello.emitter.unwrap(),
                    // It does not know the task yet.
                    Ok(Some(Frame::Refuse { .. })) => break,
                    _ => {}
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn opened(mut self) -> Self {
        let hello = Frame::Hello(self.hello());
        assert!(self.say(1, &hello).await);
        self
    }

    /// Says that it has all and wants all.
    async fn full(self) -> Self {
        let mut me = self.opened().await;
        me.say(
            1,
            &Frame::Bitmap {
                last: true,
                bytes: vec![0xff; 8],
            },
        )
        .await;
        me.say(1, &Frame::Want(Want::Whole)).await;
        me
    }

    /// The next frame, DATA with its body as bytes.
    async fn next(&mut self) -> Option<(FrameHeader, Vec<u8>)> {
        let mut head = [0; FrameHeader::LEN];
        self.io.read_exact(&mut head).await.ok()?;
        let head = FrameHeader::decode(&head).unwrap();
        let mut body = vec![0; head.len as usize];
        self.io.read_exact(&mut body).await.ok()?;
        if head.kind == kind::EPOCH {
            self.epochs.push(EpochCert::decode(&body).unwrap());
        }
        Some((head, body))
    }

    /// A certified epoch of the task: the other side tells of it before any block.
    async fn epoch(&mut self) -> u32 {
        loop {
            if let Some(cert) = self.epochs.last() {
                return cert.epoch;
            }
            self.next().await.unwrap();
        }
    }

    /// A block that the other side holds, as it sends it: index, proof, bytes.
    async fn real_block(&mut self) -> (u32, Vec<u8>, Vec<u8>) {
        loop {
            let (head, body) = self.next().await.unwrap();
            if head.kind == kind::HAVE {
                let Ok(Some(Frame::Have(ranges))) = Frame::decode(head.kind, &body) else {
                    panic!("a frame that is none")
                };
                self.say(1, &Frame::Request(ranges[0].0)).await;
            }
            if head.kind == kind::DATA {
                let fixed = body[..DataHeader::LEN].try_into().unwrap();
                let header = DataHeader::decode(&head, fixed).unwrap();
                let (proof, data) = body[DataHeader::LEN..].split_at(header.proof_len.into());
                return (header.index, proof.to_vec(), data.to_vec());
            }
        }
    }

    /// The next block it is asked for.
    async fn asked(&mut self) -> Option<u32> {
        loop {
            let (head, body) = self.next().await?;
            if let (kind::REQUEST, Ok(bytes)) = (head.kind, body.try_into()) {
                return Some(u32::from_le_bytes(bytes));
            }
        }
    }

    async fn data(&mut self, index: u32, proof: &[u8], data: &[u8]) {
        let mut out = vec![];
        let header = DataHeader {
            index,
            data_len: data.len() as u32,
            proof_len: proof.len() as u16,
        };
        header.encode(1, proof, &mut out);
        out.extend_from_slice(data);
        let _ = self.io.write_all(&out).await;
    }

    /// Until the other side hangs up, or `limit`.
    async fn hung_up(&mut self, limit: Duration) -> bool {
        let gone = async { while self.next().await.is_some() {} };
        tokio::time::timeout(limit, gone).await.is_ok()
    }

    /// Whether the other side lets it in again.
    async fn let_in_again(&self) -> bool {
        let again = self.other(self.ticket.bearer).await;
        !again
            .opened()
            .await
            .hung_up(Duration::from_millis(500))
            .await
    }
}

/// Once for what it did, and perhaps again for coming back.
const BANNED: std::ops::RangeInclusive<u64> = 1..=2;
const SOON: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_block_of_wrong_bytes_or_with_a_wrong_proof_gets_its_sender_banned_and_nobody_else() {
    for how in ["noproof", "forged", "replayed", "flipped", "short"] {
        let w = World::new(2 << 20).await;
        let (stranger, _) = SigningKey::generate().unwrap();
        let stranger = Arc::new(stranger);
        w.attack(how, |evil| async move {
            // What the lease-holder did sign, from another connection that keeps the rules.
            let mut honest = evil.other(NodeId([67; 16])).await.opened().await;
            honest.say(1, &Frame::Want(Want::Whole)).await;
            honest.say(1, &Frame::Credit(64)).await;
            let (held, proof, mut data) = honest.real_block().await;
            let mut evil = evil.full().await;
            let epoch = evil.epoch().await;
            let index = loop {
                let asked = evil.asked().await;
                let index = asked.unwrap_or_else(|| panic!("{how}: never asked"));
                if index != held {
                    break index;
                }
            };
            let lie = vec![0xee; 65536];
            match how {
                "noproof" => evil.data(index, &[1, 2, 3], &lie).await,
                "short" => evil.data(index, &proof, &lie[..100]).await,
                // All that was signed, for another place.
                "replayed" => evil.data(index, &proof, &data).await,
                "flipped" => {
                    data[7] ^= 1;
                    evil.data(index, &proof, &data).await;
                }
                // Its own key, under an epoch that is certified for another's.
                _ => {
                    let hash = *blake3::hash(&lie).as_bytes();
                    let leaf = Leaf {
                        index,
                        len: 65536,
                        hash,
                    };
                    let signer = RunSigner::new(stranger, evil.content, epoch);
                    let mut proof = vec![];
                    signer.sign(&[leaf])[0].encode(&mut proof);
                    evil.data(index, &proof, &lie).await;
                }
            }
            assert!(evil.hung_up(SOON).await, "{how}: still connected");
            assert!(!evil.let_in_again().await, "{how}: not banned");
            let left_alone = !honest.hung_up(Duration::from_millis(10)).await;
            assert!(left_alone, "{how}: another was banned for it");
        })
        .await;
        assert!(BANNED.contains(&w.a.node.metrics.bans.get()), "{how}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_tells_thousands_of_addresses_costs_a_few_dials_and_gets_nobody_banned() {
    let World {
        _scheduler: scheduler,
        seed: _seed,
        a,
        b,
        authority,
        origin,
        body,
    } = World::new(1 << 20).await;
    let url = origin.url("pex");
    let both = async { tokio::join!(read_all(&a, &url), read_all(&b, &url)) };
    let attack = async {
        let content = opened(&a, "pex", 2).await;
        // Hints count only while no scheduler answers.
        scheduler.kill().await;
        let decoy = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (decoy_addr, honest) = (decoy.local_addr().unwrap(), b.node.identity().addresses[0]);
        let dialled = Arc::new(AtomicUsize::new(0));
        let counted = dialled.clone();
        let counting = tokio::spawn(async move {
            while decoy.accept().await.is_ok() {
                counted.fetch_add(1, Ordering::Relaxed);
            }
        });
        let addr = a.node.identity().addresses[0];
        let evil = Evil::greeted(addr, authority.clone(), content, EVIL).await;
        let mut evil = evil.opened().await;
        let mut names = 0_u32;
        // Itself under many names, and an honest node under others'.
        let mut tell = || {
            let peers = (0..MAX_PEX).map(|_| {
                names += 1;
                let mut name = [7; 16];
                name[..4].copy_from_slice(&names.to_le_bytes());
                let at = if names.is_multiple_of(4) {
                    honest
                } else {
                    decoy_addr
                };
                (NodeId(name), at)
            });
            Frame::Pex(peers.collect())
        };
        for _ in 0..125 {
            assert!(evil.say(1, &tell()).await);
        }
        // Whoever lost a neighbour looks for others.
        let gone = evil.other(NodeId([67; 16])).await.opened().await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        drop(gone);
        let began = Instant::now();
        for _ in 0..20 {
            assert!(evil.say(1, &tell()).await, "cut off for hints");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        counting.abort();
        (dialled.load(Ordering::Relaxed), began.elapsed())
    };
    let done = tokio::time::timeout(Duration::from_secs(30), async {
        tokio::join!(both, attack)
    });
    let ((x, y), (dialled, took)) = done.await.expect("no end");
    assert!(x.unwrap() == body && y.unwrap() == body, "wrong bytes");
    // Four at a time, and not more often than neighbours are asked for.
    let most = 4 * (took.as_millis() as usize / 250 + 2);
    assert!((1..=most).contains(&dialled), "{dialled} dials in {took:?}");
    let bans = [&a, &b].map(|n| n.node.metrics.bans.get());
    assert_eq!(bans, [0, 0], "for what somebody else said");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_asked_for_is_not_taken() {
    let w = World::new(2 << 20).await;
    w.attack("unrequested", |evil| async move {
        let mut evil = evil.opened().await;
        evil.data(3, &[0; 70], &vec![1; 65536]).await;
        assert!(evil.hung_up(SOON).await);
        assert!(!evil.let_in_again().await);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_claims_to_have_all_and_sends_nothing_costs_a_second_or_two() {
    let w = World::new(0).await;
    let since = Instant::now();
    w.attack("silent", |evil| async move {
        let mut evil = evil.full().await;
        let mut alive = tokio::time::interval(Duration::from_millis(200));
        for _ in 0..20 {
            alive.tick().await;
            if !evil.say(0, &Frame::Ping).await {
                break;
            }
        }
    })
    .await;
    assert!(
        since.elapsed() < Duration::from_secs(10),
        "{:?}",
        since.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_holds_a_lease_and_does_not_emit_keeps_nobody_waiting() {
    let w = World::new(2 << 20).await;
    let (key, _) = SigningKey::generate().unwrap();
    w.attack("emitter", |mut evil| async move {
        let cert = EpochCert::issue(&evil.authority, evil.content, 7, *key.public());
        let signer = RunSigner::new(key.into(), evil.content, 7);
        evil.claims(signer.claim(&cert, &EVIL).unwrap()).await;
        for _ in 0..10 {
            tokio::time::sleep(Duration::from_millis(200)).await;
            assert!(evil.say(1, &Frame::Rate(1 << 40)).await);
        }
    })
    .await;
    assert_eq!(w.a.node.metrics.bans.get(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_says_it_emits_without_the_key_of_the_lease_is_banned() {
    for how in [
        "copied",
        "signed_by_itself",
        "certified_by_itself",
        "of_another_content",
    ] {
        let w = World::new(2 << 20).await;
        let seed = w.seed.node.identity().addresses[0];
        let (key, pkcs8) = SigningKey::generate().unwrap();
        w.attack(how, |mut evil| async move {
            let (content, authority) = (evil.content, evil.authority.clone());
            let honest = NodeId([67; 16]);
            let mut asking = Evil::greeted(seed, authority.clone(), content, honest).await;
            let real = asking.claim_of_other().await;
            let mine = |cert: EpochCert| {
                let own = EpochCert {
                    key: *key.public(),
                    ..cert
                };
                let key = Arc::new(SigningKey::from_pkcs8(&pkcs8).unwrap());
                let signer = RunSigner::new(key, cert.content, cert.epoch);
                signer.claim(&own, &EVIL).unwrap()
            };
            let claim = match how {
                "copied" => real,
                // The certificate is the lease-holder's.
                "signed_by_itself" => EmitterClaim {
                    cert: real.cert,
                    ..mine(real.cert)
                },
                "certified_by_itself" => mine(EpochCert {
                    epoch: 9,
                    ..real.cert
                }),
                _ => mine(EpochCert::issue(
                    &authority,
                    ContentKey([9; 32]),
                    9,
                    *key.public(),
                )),
            };
            evil.claims(claim).await;
            assert!(evil.hung_up(SOON).await, "{how}: still connected");
            assert!(!evil.let_in_again().await, "{how}: not banned");
        })
        .await;
        assert!(BANNED.contains(&w.a.node.metrics.bans.get()), "{how}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_of_every_frame_end_in_a_ban_or_in_nothing() {
    let w = World::new(1 << 20).await;
    let before = resident();
    w.attack("flood", |evil| async move {
        let content = evil.content;
        let many: Vec<(u32, u32)> = (0..4096).map(|n| (n % 64, 1)).collect();
        let floods = [
            Frame::Have(many.clone()),
            Frame::Hurry(many.clone()),
            Frame::Want(Want::Some(many)),
            Frame::Request(5),
            Frame::Cancel(5),
            Frame::Credit(u32::MAX),
            Frame::Rate(u64::MAX),
            Frame::Pass,
            Frame::Have(vec![(0, u32::MAX)]),
            Frame::Request(u32::MAX),
            Frame::Bitmap {
                last: false,
                bytes: vec![0; 32 << 10],
            },
            Frame::Refuse {
                content,
                reason: "no".into(),
            },
        ];
        for (n, frame) in floods.into_iter().enumerate() {
            // Each under a name of its own: a ban for one must not hide what the next would do.
            let mut evil = evil.other(NodeId([70 + n as u8; 16])).await.opened().await;
            for _ in 0..300 {
                if !evil.say(1, &frame).await {
                    break;
                }
            }
        }
    })
    .await;
    let grown = resident().saturating_sub(before);
    // Two peers and a seed, with 4 MiB each on its way, in this process.
    assert!(grown < 96 << 20, "{grown} bytes more");
}

/// Bytes of this process in memory.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    // At least; no page is smaller.
    let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_ticket_of_its_own_for_the_task_nothing_is_served() {
    let w = World::new(0).await;
    let url = w.origin.url("file");
    read_all(&w.a, &url).await.unwrap();
    let content = w.a.node.tasks()[0].key();
    let addr = w.a.node.identity().addresses[0];
    let good = w.ticket(content);
    let (stranger, _) = SigningKey::generate().unwrap();
    let other_task = w.ticket(ContentKey([5; 32]));
    let tickets = [
        ("expired", Ticket::issue(&w.authority, content, EVIL, 1000)),
        (
            "another bearer's",
            Ticket::issue(&w.authority, content, NodeId([1; 16]), u64::MAX),
        ),
        ("another task's", other_task),
        (
            "relabelled",
            Ticket {
                content,
                ..other_task
            },
        ),
        ("forged", Ticket::issue(&stranger, content, EVIL, u64::MAX)),
        (
            "prolonged",
            Ticket {
                expires: good.expires + 1,
                ..good
            },
        ),
    ];
    for (what, ticket) in tickets {
        let mut evil = Evil::greeted(addr, w.authority.clone(), content, EVIL).await;
        evil.ticket = ticket;
        let mut evil = evil.opened().await;
        evil.say(1, &Frame::Want(Want::Whole)).await;
        evil.say(1, &Frame::Request(0)).await;
        let (mut refused, mut served) = (false, false);
        let listen = async {
            while let Some((head, _)) = evil.next().await {
                refused |= head.kind == kind::REFUSE;
                served |= matches!(head.kind, kind::DATA | kind::BITMAP | kind::HELLO);
            }
        };
        let _ = tokio::time::timeout(Duration::from_millis(300), listen).await;
        assert!(
            refused && !served,
            "{what}: refused {refused}, served {served}"
        );
    }
    // And with one it is, so that the test tests something.
    let honest = Evil::greeted(addr, w.authority.clone(), content, EVIL).await;
    let mut honest = honest.opened().await;
    honest.say(1, &Frame::Want(Want::Whole)).await;
    honest.say(1, &Frame::Request(0)).await;
    let served = async { while honest.next().await.unwrap().0.kind != kind::DATA {} };
    tokio::time::timeout(SOON, served).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_and_sizes_that_nobody_signed_get_their_sender_banned() {
    for what in ["epoch", "secondkey", "unsigned", "size"] {
        let w = World::new(2 << 20).await;
        let (stranger, _) = SigningKey::generate().unwrap();
        let stranger = Arc::new(stranger);
        w.attack(what, |evil| async move {
            let mut evil = evil.opened().await;
            let (content, certified) = (evil.content, evil.epoch().await);
            let key = *stranger.public();
            let lie = match what {
                "epoch" => Frame::Epoch(EpochCert::issue(&stranger, content, certified + 7, key)),
                "secondkey" => Frame::Epoch(EpochCert::issue(&stranger, content, certified, key)),
                "unsigned" => Frame::Size(SignedSize {
                    total_len: 1,
                    epoch: certified,
                    signature: [0; 64],
                }),
                _ => Frame::Size(RunSigner::new(stranger, content, certified).sign_size(1)),
            };
            evil.say(1, &lie).await;
            assert!(evil.hung_up(SOON).await, "{what}");
            assert!(!evil.let_in_again().await, "{what}");
        })
        .await;
        assert!(BANNED.contains(&w.a.node.metrics.bans.get()), "{what}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_without_a_task_are_bounded_and_do_not_keep_honest_ones_out() {
    let w = World::new(0).await;
    let addr = w.a.node.identity().addresses[0];
    let mut strangers = vec![];
    for n in 0..1100_u16 {
        let mut node = [80; 16];
        node[..2].copy_from_slice(&n.to_le_bytes());
        let content = ContentKey([1; 32]);
        strangers.push(Evil::greeted(addr, w.authority.clone(), content, NodeId(node)).await);
    }
    assert!(read_all(&w.a, &w.origin.url("file")).await.unwrap() == w.body);
    // All at once: after five seconds of silence the others are closed too, as anybody is.
    let looks = strangers.iter_mut();
    let looks = looks.map(|s| s.hung_up(Duration::from_millis(500)));
    let closed = futures::future::join_all(looks).await;
    let closed = closed.into_iter().filter(|gone| *gone).count();
    assert!(closed >= 60, "{closed} of 1100 were closed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_streams_are_answered_or_refused_and_the_node_works_on() {
    let w = World::new(0).await;
    read_all(&w.a, &w.origin.url("file")).await.unwrap();
    let content = w.a.node.tasks()[0].key();
    let addr = w.a.node.identity().addresses[0];
    let evil = Evil::greeted(addr, w.authority.clone(), content, EVIL).await;
    let (hello, tickets) = (
        evil.hello(),
        (0..200_u8).map(|n| w.ticket(ContentKey([n; 32]))),
    );
    let tickets: Vec<_> = tickets.collect();
    let (mut r, mut out) = evil.io.into_split();
    let drain = tokio::spawn(async move { tokio::io::copy(&mut r, &mut tokio::io::sink()).await });
    for n in 0..6000_u32 {
        let mut bytes = vec![];
        let ticket = tickets[n as usize % tickets.len()];
        let hello = if n % 2 == 0 {
            hello.clone()
        } else {
            Hello {
                content: ticket.content,
                ticket,
                ..hello.clone()
            }
        };
        Frame::Hello(hello).encode(n, &mut bytes);
        if out.write_all(&bytes).await.is_err() {
            break;
        }
    }
    let url = w.origin.url("another");
    let mut d = w.b.node.download(source(&url), Wish::Whole).await.unwrap();
    let mut got = vec![];
    while let Some(b) = d.next_chunk().await.unwrap() {
        got.extend_from_slice(&b);
    }
    assert!(got == w.body);
    assert!(read_all(&w.a, &url).await.unwrap() == w.body);
    assert!(
        w.a.node.tasks().len() <= 2,
        "tasks were made for what nobody has"
    );
    drain.abort();
}
