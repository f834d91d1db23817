//! The nodes: sessions that say what nodes say and note how long answers take.

use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use dragonfly_e2e::{Failed, Result};
use dragonfly_identity::{Authority, enroll};
use dragonfly_proto::geometry::Geometry;
use dragonfly_proto::id::{ContentKey, NodeId, RequestKey};
use dragonfly_proto::rpc::scheduler_client::SchedulerClient;
use dragonfly_proto::rpc::{self, FromNode, Role, ToNode, from_node, to_node};
use dragonfly_proto::trust::EpochCert;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

/// Sessions that begin at once.
const AT_ONCE: usize = 64;
/// As nodes report.
const REPORT: Duration = Duration::from_secs(10);
/// As nodes keep their connections alive.
const ALIVE: Duration = Duration::from_secs(5);
/// How long the last answer may take, and the last session to begin.
const LIMIT: Duration = Duration::from_secs(120);
const SIZE: u64 = 1 << 30;
const QUEUE: usize = 64;

/// Messages over all sessions.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Counted {
    /// By nodes.
    pub(crate) said: u64,
    /// By the scheduler.
    pub(crate) heard: u64,
}

/// The nodes of a bench. Their sessions go with the runtime.
pub(crate) struct Crowd {
    peers: usize,
    channels: Channels,
    shared: Arc<Shared>,
    /// Which contents are to be joined.
    join: watch::Sender<Option<Round>>,
}

/// Each node joins one more content, at a moment of its own.
#[derive(Debug, Clone, Copy)]
struct Round {
    /// From 0.
    number: usize,
    begins: Instant,
    within: Duration,
}

#[derive(Default)]
struct Shared {
    tasks: usize,
    said: AtomicU64,
    heard: AtomicU64,
    replies: Mutex<Vec<Duration>>,
    neighbours: Mutex<Vec<usize>>,
    acknowledged: Mutex<Vec<Instant>>,
    failed: Mutex<Option<String>>,
}

impl Shared {
    fn fail(&self, why: String) {
        lock(&self.failed).get_or_insert(why);
    }
}

fn lock<T>(of: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How sessions reach the scheduler.
#[derive(Clone)]
struct Channels {
    address: String,
    /// Made at first and shared where there are fewer than sessions.
    few: Option<Arc<Vec<Channel>>>,
    authority: Option<Arc<Authority>>,
}

impl Channels {
    async fn of(&self, n: usize, node: NodeId, role: Role) -> Result<Channel> {
        if let Some(few) = &self.few
            && let Some(channel) = few.get(n % few.len().max(1))
        {
            return Ok(channel.clone());
        }
        let wrong = |e: &dyn std::fmt::Display| Failed::at(&self.address, e);
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address))
            .map_err(|e| wrong(&e))?
            .tcp_nodelay(true)
            .http2_keep_alive_interval(ALIVE)
            .keep_alive_timeout(ALIVE)
            .keep_alive_while_idle(true);
        match &self.authority {
            None => endpoint.connect().await,
            Some(authority) => {
                let at = [self.address.clone()];
                let own = enroll(&at, &authority.token(), node, role).await;
                let own = own.map_err(|e| wrong(&e))?;
                endpoint.connect_with_connector(own.client()).await
            }
        }
        .map_err(|e| wrong(&e))
    }
}

impl Crowd {
    /// Nodes that do not run yet. With an authority's directory they speak mutual TLS.
    pub(crate) fn new(
        address: &str,
        peers: usize,
        tasks: usize,
        connections: usize,
        authority: Option<&Path>,
    ) -> Result<Self> {
        let authority = authority.map(|dir| Authority::load_or_create(dir, "default"));
        let authority = authority
            .transpose()
            .map_err(|e| Failed::at("the mesh's keys", e))?;
        let mut few = None;
        if connections < peers {
            if authority.is_some() {
                let text = "with TLS each node needs a connection of its own: fewer --peers";
                return Err(Failed::at("the limit of open files", text));
            }
            let wrong = |e| Failed::at(address, e);
            let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(wrong)?;
            let lazy = || endpoint.clone().tcp_nodelay(true).connect_lazy();
            few = Some(Arc::new((0..connections).map(|_| lazy()).collect()));
        }
        Ok(Self {
            peers,
            channels: Channels {
                address: address.to_owned(),
                few,
                authority: authority.map(Arc::new),
            },
            shared: Arc::new(Shared {
                tasks,
                ..Shared::default()
            }),
            join: watch::Sender::new(None),
        })
    }

    /// Begins all sessions, the seeds' first, and waits until each was welcomed.
    pub(crate) async fn connect(&self, seeds: usize) -> Result<()> {
        let at_once = Arc::new(Semaphore::new(AT_ONCE));
        let mut beginning = tokio::task::JoinSet::new();
        for n in 0..seeds + self.peers {
            let permit = at_once.clone().acquire_owned().await;
            let (channels, shared) = (self.channels.clone(), self.shared.clone());
            let join = self.join.subscribe();
            beginning.spawn(async move {
                let role = if n < seeds { Role::Seed } else { Role::Peer };
                let session = Session::begin(n, role, &channels, shared.clone()).await;
                drop(permit);
                match session {
                    Ok(session) if role == Role::Seed => drop(tokio::spawn(session.seed())),
                    Ok(session) => drop(tokio::spawn(session.peer(n - seeds, join))),
                    Err(wrong) => shared.fail(wrong.to_string()),
                }
            });
        }
        let all = async { while beginning.join_next().await.is_some() {} };
        let done = tokio::time::timeout(LIMIT, all).await;
        done.map_err(|_| Failed(format!("not all sessions began within {LIMIT:?}")))?;
        self.check()
    }

    /// Has all nodes join a content within a time, each at a moment of its own, another one than in
    /// rounds before, and waits for that time and for the last answer.
    pub(crate) async fn join(&self, number: usize, within: Duration) -> Result<()> {
        lock(&self.shared.replies).clear();
        self.join.send_replace(Some(Round {
            number,
            begins: Instant::now(),
            within,
        }));
        tokio::time::sleep(within).await;
        let until = Instant::now() + LIMIT;
        while lock(&self.shared.replies).len() < self.peers {
            self.check()?;
            if Instant::now() > until {
                let there = lock(&self.shared.replies).len();
                return Err(Failed(format!(
                    "{there} of {} nodes were answered",
                    self.peers
                )));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.check()
    }

    fn check(&self) -> Result<()> {
        lock(&self.shared.failed)
            .take()
            .map_or(Ok(()), |why| Err(Failed(why)))
    }

    pub(crate) fn counted(&self) -> Counted {
        Counted {
            said: self.shared.said.load(Ordering::Relaxed),
            heard: self.shared.heard.load(Ordering::Relaxed),
        }
    }

    /// How long each node waited for its answer in the last round, ascending.
    pub(crate) fn replies(&self) -> Vec<Duration> {
        let mut replies = lock(&self.shared.replies).clone();
        replies.sort_unstable();
        replies
    }

    /// When policies were acknowledged since that was forgotten.
    pub(crate) fn acknowledged(&self) -> Vec<Instant> {
        lock(&self.shared.acknowledged).clone()
    }

    pub(crate) fn forget_acknowledged(&self) {
        lock(&self.shared.acknowledged).clear();
    }

    /// Of the nodes that know fewest others, how many: a swarm that falls apart is no achievement.
    pub(crate) fn fewest_neighbours(&self) -> usize {
        let all = lock(&self.shared.neighbours);
        all.iter().copied().min().unwrap_or_default()
    }
}

struct Session {
    out: mpsc::Sender<FromNode>,
    heard: Streaming<ToNode>,
    shared: Arc<Shared>,
    scheduler: String,
    /// The connection ends with it.
    _client: SchedulerClient<Channel>,
}

impl Session {
    async fn begin(n: usize, role: Role, channels: &Channels, shared: Arc<Shared>) -> Result<Self> {
        let wrong = |e: &dyn std::fmt::Display| Failed::at(format!("session {n}"), e);
        let node = node(n);
        let channel = channels.of(n, node, role).await?;
        let mut client = SchedulerClient::new(channel).max_decoding_message_size(rpc::MAX_MESSAGE);
        let (out, messages) = mpsc::channel(QUEUE);
        let hello = rpc::NodeHello {
            node: node.0.to_vec(),
            role: role.into(),
            name: format!("node-{n}"),
            addresses: vec![format!(
                "10.{}.{}.{}:4000",
                n >> 16 & 255,
                n >> 8 & 255,
                n & 255
            )],
            signing_key: [node.0, node.0].concat(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..rpc::NodeHello::default()
        };
        // The first message is read before the answer comes.
        let _ = out.try_send(FromNode {
            message: Some(from_node::Message::Hello(hello)),
        });
        let answer = client.session(ReceiverStream::new(messages)).await;
        let mut heard = answer.map_err(|e| wrong(&e))?.into_inner();
        let first = heard.message().await.map_err(|e| wrong(&e))?;
        let Some(to_node::Message::Welcome(welcome)) = first.and_then(|m| m.message) else {
            return Err(wrong(&"the scheduler did not say welcome"));
        };
        Ok(Self {
            out,
            heard,
            shared,
            scheduler: welcome.scheduler,
            _client: client,
        })
    }

    async fn say(&self, message: from_node::Message) {
        self.shared.said.fetch_add(1, Ordering::Relaxed);
        // Nobody to say it to: what is read next says why.
        let _ = self
            .out
            .send(FromNode {
                message: Some(message),
            })
            .await;
    }

    /// None at the end, which is not expected.
    async fn hear(&mut self) -> Option<to_node::Message> {
        let heard = match self.heard.message().await {
            Ok(Some(heard)) => heard.message?,
            Ok(None) => {
                self.shared.fail("the scheduler ended a session".to_owned());
                return None;
            }
            Err(status) => {
                self.shared.fail(format!("a session broke: {status}"));
                return None;
            }
        };
        self.shared.heard.fetch_add(1, Ordering::Relaxed);
        Some(heard)
    }

    async fn run(&self, policy: rpc::PolicyUpdate) {
        let rpc::PolicyUpdate {
            uid,
            revision,
            hash,
            ..
        } = policy;
        let ack = rpc::PolicyAck {
            uid,
            revision,
            hash,
            error: String::new(),
        };
        lock(&self.shared.acknowledged).push(Instant::now());
        self.say(from_node::Message::PolicyAck(ack)).await;
    }

    /// A seed: it looks at origins and takes leases at once.
    async fn seed(mut self) {
        while let Some(message) = self.hear().await {
            match message {
                to_node::Message::Policy(policy) => self.run(policy).await,
                to_node::Message::ResolveAt(ask) => {
                    let source = ask.source.unwrap_or_default();
                    let result = rpc::ResolveResult {
                        id: ask.id,
                        content: ContentKey::from_digest("", &source.url).0.to_vec(),
                        geometry: Geometry::for_len(Some(SIZE)).ok().as_ref().map(Into::into),
                        origin: Some(rpc::OriginInfo {
                            validator: "\"one\"".to_owned(),
                            fresh_ms: 60_000,
                            accepts_ranges: true,
                            ..rpc::OriginInfo::default()
                        }),
                        failure: None,
                    };
                    self.say(from_node::Message::ResolveResult(result)).await;
                }
                to_node::Message::Lease(lease) => {
                    let epoch = EpochCert::decode(&lease.epoch).map_or(0, |cert| cert.epoch);
                    let result = rpc::LeaseResult {
                        content: lease.content,
                        epoch,
                        failure: None,
                    };
                    self.say(from_node::Message::LeaseResult(result)).await;
                }
                _ => {}
            }
        }
    }

    /// A peer: it wants a content each round, at a moment of its own, and reports from time to time.
    async fn peer(mut self, n: usize, mut join: watch::Receiver<Option<Round>>) {
        let mut rng = fastrand::Rng::with_seed(n as u64);
        let (moment, phase) = (rng.f64(), REPORT.mul_f64(rng.f64()));
        let begun = tokio::time::Instant::now();
        let mut report = tokio::time::interval_at(begun + phase, REPORT);
        let mut due: Option<(tokio::time::Instant, usize)> = None;
        let mut asked: Option<Instant> = None;
        let mut contents: Vec<Vec<u8>> = vec![];
        loop {
            tokio::select! {
                message = self.hear() => match message {
                    None => return,
                    Some(to_node::Message::Policy(policy)) => self.run(policy).await,
                    Some(to_node::Message::Resolved(resolved)) => {
                        if let Some(failure) = resolved.failure {
                            return self.shared.fail(format!("not resolved: {}", failure.message));
                        }
                        let waited = asked.map(|at| at.elapsed()).unwrap_or_default();
                        contents.push(resolved.content);
                        let joined = resolved.joined.unwrap_or_default();
                        let known: HashSet<_> = joined.members.into_iter().map(|m| m.node).collect();
                        lock(&self.shared.neighbours).push(known.len());
                        lock(&self.shared.replies).push(waited);
                    }
                    Some(_) => {}
                },
                changed = join.changed() => {
                    let Some(round) = changed.ok().and(*join.borrow_and_update()) else { return };
                    let at = round.begins + round.within.mul_f64(moment);
                    due = Some((at.into(), round.number));
                }
                number = until(due), if due.is_some() => {
                    due = None;
                    asked = Some(Instant::now());
                    self.say(from_node::Message::Resolve(self.question(n, number))).await;
                }
                _ = report.tick() => {
                    let held = |content: &Vec<u8>| rpc::TaskReport {
                        content: content.clone(), held: 1, complete: false,
                    };
                    let tasks = contents.iter().map(held).collect();
                    let report = rpc::Report { tasks, connections: 12, ..rpc::Report::default() };
                    self.say(from_node::Message::Report(report)).await;
                }
            }
        }
    }

    fn question(&self, n: usize, round: usize) -> rpc::Resolve {
        let url = format!(
            "https://registry.example/v2/image/blobs/{}",
            (n + round) % self.shared.tasks
        );
        rpc::Resolve {
            id: round as u64 + 1,
            request_key: RequestKey::derive("", &url, &[]).0.to_vec(),
            source: Some(rpc::Source {
                url,
                ..rpc::Source::default()
            }),
            replicas: vec![self.scheduler.clone()],
            only_look: false,
        }
    }
}

async fn until(due: Option<(tokio::time::Instant, usize)>) -> usize {
    match due {
        Some((due, number)) => {
            tokio::time::sleep_until(due).await;
            number
        }
        None => std::future::pending().await,
    }
}

fn node(n: usize) -> NodeId {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&(n as u64).to_be_bytes());
    id[8..].copy_from_slice(&0x6465_6d6f_6372_6f77_u64.to_be_bytes());
    NodeId(id)
}
