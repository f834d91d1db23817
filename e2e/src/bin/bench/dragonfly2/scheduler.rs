//! A stand-in for the scheduler: it has the seed read what somebody wants and tells each peer its parents.
//!
//! Nothing that the real one keeps or measures is here, so that it costs next to nothing.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use dragonfly_e2e::{Failed, Result};
use futures::stream::BoxStream;
use tokio::sync::{mpsc, watch};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

use super::api::dfdaemon::v2::DownloadTaskRequest;
use super::api::dfdaemon::v2::dfdaemon_upload_client::DfdaemonUploadClient;
use super::api::grpc::health::v1::HealthCheckResponse;
use super::api::grpc::health::v1::health_server::{Health, HealthServer};
use super::api::scheduler::v2::announce_peer_request::Request as Says;
use super::api::scheduler::v2::announce_peer_response::Response as Answer;
use super::api::scheduler::v2::scheduler_server::{Scheduler, SchedulerServer};
use super::api::scheduler::v2::{
    AnnounceHostRequest, AnnouncePeerRequest, AnnouncePeerResponse, Download, Empty, Host,
    Parents as Answered, Peer,
};

/// The scheduler tells a peer at most so many candidates.
const CANDIDATES: usize = 4;
const SERVING: i32 = 1;
/// What it says when it can be called.
pub(super) const LISTENS: &str = "listens";

/// Who is a peer's parent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(crate) enum Parents {
    /// Some of those that came before. The real one takes random peers too, and then the best of them by what
    /// it knows of their load and place, which here are all the same.
    Random,
    /// The one that came just before: the best that is known for links that are all the same.
    Chain,
}

impl Parents {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::Chain => "chain",
        }
    }

    /// In a chain a node passes pieces on soonest where it takes one after the other; eight is what
    /// the daemon does when nobody says anything.
    pub(crate) const fn pieces_at_once(self) -> u32 {
        match self {
            Self::Random => 8,
            Self::Chain => 1,
        }
    }

    /// The parents of one before whom these came, the seed first.
    fn choose(self, before: &[Peer]) -> Vec<Peer> {
        match self {
            Self::Chain => before.last().cloned().into_iter().collect(),
            Self::Random => {
                let mut some = before.to_vec();
                fastrand::shuffle(&mut some);
                some.truncate(CANDIDATES);
                some
            }
        }
    }
}

/// Answers until it is killed.
pub(crate) fn serve(listen: &str, parents: Parents) -> Result<()> {
    let at: SocketAddr = listen.parse().map_err(|e| Failed::at(listen, e))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(|e| Failed::at("the stand-in scheduler", e))?;
    let standin = Standin(Arc::new(State {
        parents,
        hosts: Mutex::default(),
        tasks: Mutex::default(),
    }));
    let server = tonic::transport::Server::builder()
        .add_service(SchedulerServer::new(standin.clone()))
        .add_service(HealthServer::new(standin));
    runtime.block_on(async {
        let incoming = TcpIncoming::bind(at).map_err(|e| Failed::at(listen, e))?;
        eprintln!("{LISTENS}");
        let served = server.serve_with_incoming(incoming).await;
        served.map_err(|e| Failed::at(listen, e))
    })
}

#[derive(Clone)]
struct Standin(Arc<State>);

struct State {
    parents: Parents,
    hosts: Mutex<HashMap<String, Host>>,
    tasks: Mutex<HashMap<String, watch::Sender<Task>>>,
}

#[derive(Default)]
struct Task {
    /// In the order they came, the seed first.
    peers: Vec<Peer>,
    /// The seed was told to read it.
    asked: bool,
}

impl State {
    fn host(&self, id: &str) -> std::result::Result<Host, Status> {
        let host = lock(&self.hosts).get(id).cloned();
        host.ok_or_else(|| Status::failed_precondition(format!("host {id} is not announced")))
    }

    fn seed(&self) -> std::result::Result<Host, Status> {
        let seed = lock(&self.hosts).values().find(|h| h.r#type != 0).cloned();
        seed.ok_or_else(|| Status::failed_precondition("there is no seed"))
    }

    fn task(&self, id: &str) -> watch::Sender<Task> {
        lock(&self.tasks).entry(id.to_owned()).or_default().clone()
    }

    async fn register(
        &self,
        said: &AnnouncePeerRequest,
        download: Download,
    ) -> std::result::Result<Answer, Status> {
        let host = self.host(&said.host_id)?;
        let task = self.task(&said.task_id);
        let me = Peer {
            id: said.peer_id.clone(),
            host: Some(host.clone()),
        };
        if host.r#type != 0 {
            task.send_modify(|t| t.peers.insert(0, me));
            return Ok(Answer::BackToSource(Empty {}));
        }
        if download.metadata_only {
            return Ok(Answer::MetadataOnly(Empty {}));
        }
        if download.need_back_to_source {
            return Ok(Answer::BackToSource(Empty {}));
        }
        let asks = task.send_if_modified(|t| {
            let asks = t.peers.is_empty() && !t.asked;
            t.asked |= asks;
            asks
        });
        if asks {
            self.read(download).await?;
        }
        let seeded = |t: &Task| !t.peers.is_empty();
        let mut look = task.subscribe();
        let there = look.wait_for(seeded).await.map(drop);
        there.map_err(|e| Status::internal(e.to_string()))?;
        let mut answer = vec![];
        task.send_modify(|t| {
            answer = self.parents.choose(&t.peers);
            t.peers.push(me);
        });
        Ok(Answer::Parents(Answered { peers: answer }))
    }

    fn reschedule(&self, said: &AnnouncePeerRequest) -> Answer {
        let task = self.task(&said.task_id);
        let task = task.borrow();
        let before = task.peers.split(|p| p.id == said.peer_id).next();
        let peers = self.parents.choose(before.unwrap_or_default());
        Answer::Parents(Answered { peers })
    }

    /// Has the seed read it; what it says of its progress is not looked at.
    async fn read(&self, download: Download) -> std::result::Result<(), Status> {
        let seed = self.seed()?;
        let url = format!("http://{}:{}", seed.ip, seed.port);
        let failed = |e: tonic::transport::Error| Status::unavailable(format!("{url}: {e}"));
        let mut client = DfdaemonUploadClient::connect(url.clone())
            .await
            .map_err(failed)?;
        let request = DownloadTaskRequest {
            download: Some(download),
        };
        let mut said = client.download_task(request).await?.into_inner();
        tokio::spawn(async move { while let Ok(Some(_)) = said.message().await {} });
        Ok(())
    }
}

#[tonic::async_trait]
impl Scheduler for Standin {
    type AnnouncePeerStream = BoxStream<'static, std::result::Result<AnnouncePeerResponse, Status>>;

    async fn announce_peer(
        &self,
        request: Request<Streaming<AnnouncePeerRequest>>,
    ) -> std::result::Result<Response<Self::AnnouncePeerStream>, Status> {
        let (state, mut says) = (self.0.clone(), request.into_inner());
        let (answers, stream) = mpsc::channel(4);
        tokio::spawn(async move {
            while let Some(Ok(mut said)) = says.next().await {
                let answer = match said.request.take() {
                    Some(Says::Register(register)) => {
                        let download = register.download.unwrap_or_default();
                        state.register(&said, download).await
                    }
                    Some(Says::Reschedule(_)) => Ok(state.reschedule(&said)),
                    // The end of both streams is what its peer waits for.
                    Some(
                        Says::Finished(_)
                        | Says::BackToSourceFinished(_)
                        | Says::Failed(_)
                        | Says::BackToSourceFailed(_),
                    ) => return,
                    _ => continue,
                };
                let answer = answer.map(|a| AnnouncePeerResponse { response: Some(a) });
                if answers.send(answer).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn announce_host(
        &self,
        request: Request<AnnounceHostRequest>,
    ) -> std::result::Result<Response<Empty>, Status> {
        let host = request.into_inner().host;
        let host = host.ok_or_else(|| Status::invalid_argument("no host"))?;
        lock(&self.0.hosts).insert(host.id.clone(), host);
        Ok(Response::new(Empty {}))
    }

    async fn delete_host(&self, _: Request<Empty>) -> std::result::Result<Response<Empty>, Status> {
        Ok(Response::new(Empty {}))
    }

    async fn delete_peer(&self, _: Request<Empty>) -> std::result::Result<Response<Empty>, Status> {
        Ok(Response::new(Empty {}))
    }

    async fn delete_task(&self, _: Request<Empty>) -> std::result::Result<Response<Empty>, Status> {
        Ok(Response::new(Empty {}))
    }
}

#[tonic::async_trait]
impl Health for Standin {
    async fn check(
        &self,
        _: Request<Empty>,
    ) -> std::result::Result<Response<HealthCheckResponse>, Status> {
        Ok(Response::new(HealthCheckResponse { status: SERVING }))
    }
}

fn lock<T>(of: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    of.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_are_of_those_that_came_before() {
        let peer = |n: usize| Peer {
            id: n.to_string(),
            host: None,
        };
        let before: Vec<Peer> = (0..7).map(peer).collect();
        assert_eq!(Parents::Chain.choose(&before), [peer(6)]);
        assert_eq!(Parents::Chain.choose(&before[..1]), [peer(0)]);
        assert_eq!(Parents::Random.choose(&before[..1]), [peer(0)]);
        let mut some = Parents::Random.choose(&before);
        some.sort_by(|a, b| a.id.cmp(&b.id));
        some.dedup();
        assert_eq!(some.len(), CANDIDATES);
        assert!(some.iter().all(|p| before.contains(p)));
    }
}
