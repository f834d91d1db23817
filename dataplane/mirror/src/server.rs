//! The mirror's port: connections and what is done for each request.
//!
//! * Loopback only: whoever is on the node's own network may ask, nobody else.
//! * Threads of its own: however many runtimes' requests there are, the node's part in the mesh goes on
//!   beside them.
//! * `GET /healthz` is for who installs and withdraws the runtime's entry ([`crate::install`]).

use std::collections::{BTreeSet, HashMap};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use dragonfly_node::limits::Recent;
use dragonfly_node::node::Node;
use dragonfly_proto::rpc;
use dragonfly_source::http::HttpSource;
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, RANGE};
use hyper::http::request::Parts;
use hyper::service::service_fn;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, oneshot};
use tokio_util::sync::CancellationToken;

use crate::access::{Access, Who};
use crate::answer::{self, Answer, Code, Refusal};
use crate::ask::{Kind, Wanted};
use crate::metrics::Metrics;
use crate::range::Asked;
use crate::settings::{Settings, Upstream};
use crate::tokens::PullSecrets;
use crate::{content, tags, upstream};

/// Connections at once; further ones wait in the kernel's queue.
const CONNECTIONS: usize = 1024;
/// A client that says nothing for this long is gone.
const SILENCE: Duration = Duration::from_secs(60);
/// How often schedulers are told of what lasts.
const SAY_AGAIN: Duration = Duration::from_secs(3600);
/// How long what is under way may take when the mirror ends: half of the grace that pods have, so that
/// the rest of the node ends in order too.
const DRAIN: Duration = Duration::from_secs(15);
/// Contents remembered that the mesh got wrong.
const AVOIDED: usize = 1024;

/// Why a mirror does not start.
#[derive(Debug, thiserror::Error)]
pub enum MirrorError {
    /// Credentials of clients come over this port in the clear.
    #[error("the mirror listens on loopback only (127.0.0.1 or ::1), not on {0}")]
    NotLoopback(SocketAddr),
    /// Somebody else listens there, or the system refuses.
    #[error("the mirror's port {0}: {1}")]
    Listen(SocketAddr, std::io::Error),
    /// No thread can be started.
    #[error("no threads for the mirror: {0}")]
    Threads(std::io::Error),
    /// No randomness.
    #[error("no randomness for the mirror's secret")]
    Random,
}

/// What all requests share.
pub(crate) struct Shared {
    pub(crate) node: Arc<Node>,
    http: RwLock<Arc<HttpSource>>,
    settings: RwLock<Arc<Settings>>,
    pub(crate) access: Access,
    pub(crate) tags: tags::Known,
    avoided: Mutex<Recent<[u8; 32], Instant>>,
    secrets: Option<PullSecrets>,
    /// What keeps this machine's runtimes from using this mirror, and when schedulers were told.
    found: Mutex<HashMap<rpc::Finding, Instant>>,
    pub(crate) metrics: Metrics,
}

impl Shared {
    /// How registries are reached now.
    pub(crate) fn http(&self) -> Arc<HttpSource> {
        let now = self.http.read().unwrap_or_else(PoisonError::into_inner);
        now.clone()
    }

    fn settings(&self) -> Arc<Settings> {
        let now = self.settings.read().unwrap_or_else(PoisonError::into_inner);
        now.clone()
    }

    /// Who tells runtimes of this mirror says with each question what keeps them from using it. Anybody
    /// on this machine could: what is passed on is which of a few kinds it is, and as a failure that seldom.
    fn told(&self, query: &str) {
        let Some(found) = query.strip_prefix("found=") else {
            return;
        };
        let found = found.split(',').filter_map(rpc::Finding::from_str_name);
        let found: BTreeSet<_> = found.filter(|f| *f != rpc::Finding::Unspecified).collect();
        let mut known = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        for finding in &found {
            let recently = known
                .get(finding)
                .is_some_and(|at| at.elapsed() < SAY_AGAIN);
            if !recently {
                known.insert(*finding, Instant::now());
                self.node.metrics.found(*finding);
            }
        }
        self.node.metrics.looked_at(found);
    }

    pub(crate) fn avoided(&self) -> MutexGuard<'_, Recent<[u8; 32], Instant>> {
        self.avoided.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One request, with what it may need to be answered.
#[derive(Clone)]
pub(crate) struct Call {
    pub(crate) shared: Arc<Shared>,
    /// As they were when it came.
    pub(crate) settings: Arc<Settings>,
    pub(crate) upstream: Upstream,
    pub(crate) wanted: Wanted,
    pub(crate) method: Method,
    pub(crate) headers: HeaderMap,
    pub(crate) who: Who,
    pub(crate) asked: Asked,
}

/// What not every mirror has.
#[derive(Debug, Default)]
pub struct More {
    /// What is shown to named registries for clients that show nothing.
    pub secrets: Option<PullSecrets>,
}

/// A mirror whose port is bound. Clones are the same one.
#[derive(Clone)]
pub struct Mirror {
    shared: Arc<Shared>,
    listener: Arc<Mutex<Option<std::net::TcpListener>>>,
    address: SocketAddr,
}

impl std::fmt::Debug for Mirror {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Mirror({})", self.address)
    }
}

impl Mirror {
    /// Takes the port, of loopback. It answers once [`Mirror::run`] runs.
    ///
    /// # Errors
    /// The address is no loopback's or is taken.
    pub async fn bind(
        address: SocketAddr,
        node: Arc<Node>,
        http: Arc<HttpSource>,
        settings: Settings,
        more: More,
    ) -> Result<Self, MirrorError> {
        if !address.ip().is_loopback() {
            return Err(MirrorError::NotLoopback(address));
        }
        let wrong = |e| MirrorError::Listen(address, e);
        let listener = TcpListener::bind(address).await.map_err(wrong)?;
        let bound = listener.local_addr().map_err(wrong)?;
        let shared = Shared {
            node,
            http: RwLock::new(http),
            settings: RwLock::new(Arc::new(settings)),
            access: Access::new().map_err(|_| MirrorError::Random)?,
            tags: tags::Known::default(),
            avoided: Mutex::new(Recent::new(AVOIDED)),
            secrets: more.secrets,
            found: Mutex::default(),
            metrics: Metrics::default(),
        };
        let listener = listener.into_std().map_err(wrong)?;
        Ok(Self {
            shared: Arc::new(shared),
            listener: Arc::new(Mutex::new(Some(listener))),
            address: bound,
        })
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its counters.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    /// Policy changed: it holds for requests from now on.
    pub fn apply(&self, http: Arc<HttpSource>, settings: Settings) {
        *self
            .shared
            .http
            .write()
            .unwrap_or_else(PoisonError::into_inner) = http;
        *self
            .shared
            .settings
            .write()
            .unwrap_or_else(PoisonError::into_inner) = Arc::new(settings);
    }

    /// Serves until `stop`; then no connection is taken any more, and what is under way goes on for a
    /// while, then breaks off. A second call returns at once.
    ///
    /// # Errors
    /// No thread can be started.
    pub async fn run(self, stop: CancellationToken) -> Result<(), MirrorError> {
        let taken = self
            .listener
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some(listener) = taken else {
            return Ok(());
        };
        let threads = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(dragonfly_node::threads())
            .thread_name("mirror")
            .enable_all()
            .build()
            .map_err(MirrorError::Threads)?;
        let (ended, outcome) = oneshot::channel();
        let (shared, address) = (self.shared, self.address);
        // A runtime waits for its threads when it goes: not in one of another.
        std::thread::Builder::new()
            .name("mirror".to_owned())
            .spawn(move || {
                let served = threads.block_on(serve(shared, listener, address, stop));
                threads.shutdown_timeout(Duration::from_secs(1));
                let _ = ended.send(served);
            })
            .map_err(MirrorError::Threads)?;
        outcome.await.unwrap_or(Ok(()))
    }
}

async fn serve(
    shared: Arc<Shared>,
    listener: std::net::TcpListener,
    address: SocketAddr,
    stop: CancellationToken,
) -> Result<(), MirrorError> {
    let listener = TcpListener::from_std(listener).map_err(|e| MirrorError::Listen(address, e))?;
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    tracing::info!(%address, "container runtimes are served");
    loop {
        let accepted = tokio::select! {
            accepted = async {
                let place = places.clone().acquire_owned().await;
                (listener.accept().await, place)
            } => accepted,
            () = stop.cancelled() => break,
        };
        let (Ok((stream, _)), Ok(place)) = accepted else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let _ = stream.set_nodelay(true);
        let (shared, stop) = (shared.clone(), stop.clone());
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let shared = shared.clone();
                // A request's body, should there be one, is nothing to the mirror.
                let (head, _) = Request::<Incoming>::into_parts(request);
                async move { Ok::<_, Infallible>(answer(&shared, &head).await) }
            });
            let serving = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(SILENCE)
                .serve_connection(TokioIo::new(stream), service);
            let mut serving = std::pin::pin!(serving);
            let served = tokio::select! {
                served = serving.as_mut() => served,
                () = stop.cancelled() => {
                    serving.as_mut().graceful_shutdown();
                    serving.await
                }
            };
            if let Err(error) = served {
                tracing::debug!(%error, "a runtime's connection");
            }
            drop(place);
        });
    }
    // Whoever comes now is refused, and goes to the registry.
    drop(listener);
    let all = u32::try_from(CONNECTIONS).unwrap_or(u32::MAX);
    if tokio::time::timeout(DRAIN, places.acquire_many(all))
        .await
        .is_err()
    {
        let left = CONNECTIONS - places.available_permits();
        tracing::warn!(left, "runtimes' connections are broken off after {DRAIN:?}");
    }
    Ok(())
}

async fn answer(shared: &Arc<Shared>, request: &Parts) -> Answer {
    let path = request.uri.path();
    if path == "/healthz" {
        shared.told(request.uri.query().unwrap_or_default());
        return answer::whole(200, "ok\n");
    }
    shared.metrics.requests.inc();
    match read(shared, request) {
        Ok(Some(call)) => answer_for(call).await,
        // What clients ask first to learn which protocol this is. Which registry is meant nobody
        // knows yet, so nobody asks for credentials here.
        Ok(None) => {
            let mut answer = answer::whole(200, "{}");
            let json = HeaderValue::from_static("application/json");
            answer.headers_mut().insert(CONTENT_TYPE, json);
            answer
        }
        Err(refusal) => {
            tracing::debug!(
                status = refusal.status,
                why = refusal.text,
                "a request is refused"
            );
            refusal.answer()
        }
    }
}

fn read(shared: &Arc<Shared>, request: &Parts) -> Result<Option<Call>, Refusal> {
    let (method, uri) = (&request.method, &request.uri);
    if method != Method::GET && method != Method::HEAD {
        let text = format!("{method}: the mirror is read only; push to the registry itself");
        return Err(Refusal::new(405, Code::Unsupported, text));
    }
    if matches!(uri.path(), "/v2" | "/v2/") {
        return Ok(None);
    }
    let wanted = Wanted::read(uri.path(), uri.query())?;
    let settings = shared.settings();
    let Some(upstream) = settings.upstream(&wanted.registry) else {
        let text = format!(
            "registry {} is not among spec.mirror.registries",
            wanted.registry
        );
        return Err(Refusal::new(403, Code::Denied, text));
    };
    let headers = &request.headers;
    let range = answer::text(headers, RANGE);
    Ok(Some(Call {
        shared: shared.clone(),
        settings,
        upstream,
        wanted,
        method: method.clone(),
        headers: headers.clone(),
        who: shared.access.who(headers),
        asked: range.map(Asked::read).unwrap_or_default(),
    }))
}

/// Answers; a client that shows nothing may be shown what a pull secret opens.
async fn answer_for(mut call: Call) -> Answer {
    let nothing_shown = !call.headers.contains_key(AUTHORIZATION);
    let secrets = call.shared.clone();
    let secrets = secrets
        .secrets
        .as_ref()
        .filter(|_| nothing_shown && call.upstream.named);
    let Some(secrets) = secrets else {
        return answer_call(&call).await;
    };
    let mut again = true;
    loop {
        let http = call.shared.http();
        let shown = secrets.shown(&http, &call.upstream.url, &call.wanted).await;
        let Some(shown) = shown else {
            call.headers.remove(AUTHORIZATION);
            call.who = call.shared.access.who(&call.headers);
            return answer_call(&call).await;
        };
        call.who = call.shared.access.by_secret(&shown.identity);
        let value = shown.authorization.as_deref();
        let value = value.and_then(|text| HeaderValue::from_str(text).ok());
        let Some(mut value) = value else {
            call.headers.remove(AUTHORIZATION);
            return answer_call(&call).await;
        };
        value.set_sensitive(true);
        call.headers.insert(AUTHORIZATION, value);
        let answer = answer_call(&call).await;
        if answer.status() != StatusCode::UNAUTHORIZED {
            return answer;
        }
        // Once more with a new one: a token may be withdrawn, and a secret replaced.
        secrets.forget(&call.wanted);
        if !std::mem::take(&mut again) {
            return answer;
        }
    }
}

async fn answer_call(call: &Call) -> Answer {
    match &call.wanted.kind {
        Kind::Tag(tag) => tags::answer(call, tag).await,
        Kind::Manifest(digest) | Kind::Blob(digest) => content::answer(call, digest).await,
        Kind::Tags | Kind::Referrers(_) => upstream::pass(call).await,
    }
}
