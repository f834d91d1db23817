//! The streams to the scheduler replicas: one each, kept up for as long as the node lives.
//!
//! A task's scheduler is the first connected replica in the rendezvous order of its key, so a dead
//! replica's tasks move to the next and come back when it does. A node that loses a replica loses no
//! download: it asks the next, and tells a replica that returns what it holds.

mod keep;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dragonfly_proto::id::NodeId;
use dragonfly_proto::rpc::{self, FromNode, failure::Code, from_node, to_node};
use dragonfly_swarm::membership::rendezvous;
use dragonfly_transport::{Calls, Security};
use tokio::sync::{Notify, mpsc, oneshot, watch};

use self::keep::spawn_keep;
use crate::node::Node;
use crate::sealed::sealed;
use crate::task::lock;

pub use self::keep::speaks_tls;

/// How long a request waits for a replica to be there at all.
const FIND: Duration = Duration::from_secs(3);

/// What a node knows of schedulers before it spoke to one.
#[derive(Debug, Clone, Default)]
pub struct Bootstrap {
    /// `host:port` of replicas; one is enough, it tells of the others.
    pub addresses: Vec<String>,
    /// Mutual TLS, unless policy says plaintext.
    pub tls: Option<Calls>,
}

/// A message and the replica that it came from.
pub(crate) type FromScheduler = (String, to_node::Message);

#[derive(Debug)]
struct Replica {
    /// Its name once it said so; its address until then.
    name: String,
    address: String,
    /// Whoever keeps the list of replicas still names it, or another replica told of it.
    listed: bool,
    out: Option<mpsc::Sender<FromNode>>,
}

enum Reply {
    Resolved(Box<rpc::Resolved>),
    Joined(Box<rpc::Joined>),
}

struct Waiting {
    replica: String,
    answer: oneshot::Sender<Reply>,
}

/// All sessions of a node.
pub(crate) struct Sessions {
    tls: Mutex<Option<Calls>>,
    security: Security,
    replicas: Mutex<Vec<Replica>>,
    waiting: Mutex<HashMap<u64, Waiting>>,
    next_id: AtomicU64,
    inbox: mpsc::UnboundedSender<FromScheduler>,
    connected: watch::Sender<usize>,
    /// Somebody waits for a replica, and there is none: who pauses between attempts shall not.
    missed: Arc<Notify>,
}

impl Sessions {
    pub(crate) fn new(
        bootstrap: Bootstrap,
        security: Security,
        inbox: mpsc::UnboundedSender<FromScheduler>,
    ) -> Self {
        let replica = |address: String| Replica {
            name: address.clone(),
            address,
            listed: true,
            out: None,
        };
        Self {
            tls: Mutex::new(bootstrap.tls),
            security,
            replicas: Mutex::new(bootstrap.addresses.into_iter().map(replica).collect()),
            waiting: Mutex::default(),
            next_id: AtomicU64::new(1),
            inbox,
            connected: watch::Sender::new(0),
            missed: Arc::default(),
        }
    }

    pub(crate) fn start(&self, node: &Arc<Node>) {
        for address in self.addresses() {
            spawn_keep(node, address);
        }
    }

    /// Whether there is any scheduler to have.
    pub(crate) fn any_configured(&self) -> bool {
        !lock(&self.replicas).is_empty()
    }

    /// Shows another certificate in sessions from now on.
    pub(crate) fn set_tls(&self, tls: Calls) {
        *lock(&self.tls) = Some(tls);
    }

    /// Names of the replicas with a session.
    pub(crate) fn connected(&self) -> Vec<String> {
        let replicas = lock(&self.replicas);
        replicas
            .iter()
            .filter(|r| r.out.is_some())
            .map(|r| r.name.clone())
            .collect()
    }

    /// The replica that is responsible for a key now.
    pub(crate) fn owner(&self, key: &[u8; 32]) -> Option<String> {
        self.pick(key).map(|(name, _)| name)
    }

    fn pick(&self, key: &[u8; 32]) -> Option<(String, mpsc::Sender<FromNode>)> {
        let replicas = lock(&self.replicas);
        let names = replicas
            .iter()
            .filter(|r| r.out.is_some())
            .map(|r| r.name.as_str());
        let order = rendezvous(key, names);
        let first = order.first()?;
        let r = replicas
            .iter()
            .find(|r| r.name == *first && r.out.is_some())?;
        Some((r.name.clone(), r.out.clone()?))
    }

    /// As it is sent: what is not for schedulers to read is sealed.
    pub(crate) fn message(&self, message: from_node::Message) -> FromNode {
        FromNode {
            message: Some(sealed(message, &self.security.sealing())),
        }
    }

    /// Says something about a key to its scheduler; false when there is none to say it to.
    pub(crate) fn tell(
        &self,
        key: &dragonfly_proto::id::ContentKey,
        message: from_node::Message,
    ) -> bool {
        let Some((_, out)) = self.pick(&key.0) else {
            return false;
        };
        out.try_send(self.message(message)).is_ok()
    }

    /// Answers a replica; where that one is gone, tells the key's scheduler of now.
    pub(crate) fn reply(&self, to: &str, key: &[u8; 32], message: from_node::Message) {
        let out = {
            let replicas = lock(&self.replicas);
            replicas
                .iter()
                .find(|r| r.name == to)
                .and_then(|r| r.out.clone())
        };
        let out = out.or_else(|| self.pick(key).map(|(_, out)| out));
        if let Some(out) = out {
            // A replica that does not read its session loses it, and asks anew.
            let _ = out.try_send(self.message(message));
        }
    }

    /// Tells every replica how the node does, and one of them that it is the node's home. Whether that
    /// one was told.
    pub(crate) fn report(&self, node: &NodeId, report: &rpc::Report) -> bool {
        let mut key = [0; 32];
        key[..16].copy_from_slice(&node.0);
        let home = self.owner(&key);
        let mut told = false;
        for r in lock(&self.replicas).iter() {
            let Some(out) = &r.out else { continue };
            let is_home = home.as_ref() == Some(&r.name);
            let report = rpc::Report {
                home: is_home,
                ..report.clone()
            };
            let sent = out.try_send(FromNode {
                message: Some(from_node::Message::Report(report)),
            });
            told |= is_home && sent.is_ok();
        }
        told
    }

    pub(crate) fn broadcast(&self, message: from_node::Message) {
        for r in lock(&self.replicas).iter() {
            if let Some(out) = &r.out {
                // A replica that is far behind loses its session, and hears it anew.
                let _ = out.try_send(FromNode {
                    message: Some(message.clone()),
                });
            }
        }
    }

    pub(crate) async fn resolve(&self, ask: rpc::Resolve) -> Result<rpc::Resolved, rpc::Failure> {
        let key = key_of(&ask.request_key)?;
        let make = |id| from_node::Message::Resolve(rpc::Resolve { id, ..ask.clone() });
        match self.ask(&key, make).await? {
            Reply::Resolved(r) => Ok(*r),
            Reply::Joined(_) => Err(unexpected()),
        }
    }

    pub(crate) async fn join(&self, ask: rpc::Join) -> Result<rpc::Joined, rpc::Failure> {
        let key = key_of(&ask.content)?;
        let make = |id| from_node::Message::Join(rpc::Join { id, ..ask.clone() });
        match self.ask(&key, make).await? {
            Reply::Joined(r) => Ok(*r),
            Reply::Resolved(_) => Err(unexpected()),
        }
    }

    /// Asks the responsible replica, and the next when it goes away before it answers.
    async fn ask(
        &self,
        key: &[u8; 32],
        make: impl Fn(u64) -> from_node::Message,
    ) -> Result<Reply, rpc::Failure> {
        loop {
            let (replica, out) = self.find(key).await?;
            let id = self.next_id.fetch_add(1, Ordering::Relaxed);
            let (answer, reply) = oneshot::channel();
            lock(&self.waiting).insert(id, Waiting { replica, answer });
            let _forget = Forget { sessions: self, id };
            if out.send(self.message(make(id))).await.is_err() {
                // Its keeper has yet to hear of it, and may never where this asks it again and again.
                self.hang_up(&out);
                continue;
            }
            if let Ok(reply) = reply.await {
                return Ok(reply);
            }
        }
    }

    async fn find(&self, key: &[u8; 32]) -> Result<(String, mpsc::Sender<FromNode>), rpc::Failure> {
        let mut connected = self.connected.subscribe();
        let found = async {
            loop {
                if let Some(found) = self.pick(key) {
                    return Some(found);
                }
                self.missed.notify_waiters();
                connected.changed().await.ok()?;
            }
        };
        let found = tokio::time::timeout(FIND, found).await.ok().flatten();
        found.ok_or_else(|| {
            let text = format!(
                "no scheduler answers (tried {})",
                self.addresses().join(", ")
            );
            rpc::Failure::new(Code::NoSource, text)
        })
    }

    /// Hands an answer to who waits for it; gives back what nobody waits for.
    pub(crate) fn answer(&self, message: to_node::Message) -> Option<to_node::Message> {
        let id = match &message {
            to_node::Message::Resolved(r) => r.id,
            to_node::Message::Joined(j) => j.id,
            _ => return Some(message),
        };
        let Some(waiting) = lock(&self.waiting).remove(&id) else {
            return Some(message);
        };
        let reply = match message {
            to_node::Message::Resolved(r) => Reply::Resolved(Box::new(r)),
            to_node::Message::Joined(j) => Reply::Joined(Box::new(j)),
            other => return Some(other),
        };
        let unheard = waiting.answer.send(reply).err()?;
        Some(match unheard {
            Reply::Resolved(r) => to_node::Message::Resolved(*r),
            Reply::Joined(j) => to_node::Message::Joined(*j),
        })
    }

    fn up(&self, address: &str, name: &str, out: mpsc::Sender<FromNode>) {
        for r in lock(&self.replicas)
            .iter_mut()
            .filter(|r| r.address == address)
        {
            name.clone_into(&mut r.name);
            r.out = Some(out.clone());
        }
        self.connected.send_modify(|n| *n += 1);
    }

    fn down(&self, address: &str) {
        self.end(|r| r.address == address);
    }

    /// The session whose queue nobody empties any more is over.
    fn hang_up(&self, queue: &mpsc::Sender<FromNode>) {
        self.end(|r| r.out.as_ref().is_some_and(|out| out.same_channel(queue)));
    }

    fn end(&self, is_over: impl Fn(&Replica) -> bool) {
        let mut gone = None;
        for r in lock(&self.replicas).iter_mut().filter(|r| is_over(r)) {
            if r.out.take().is_some() {
                gone = Some(r.name.clone());
            }
        }
        if let Some(name) = gone {
            // Dropping the senders wakes those who wait: they ask the next replica.
            lock(&self.waiting).retain(|_, w| w.replica != name);
            self.connected.send_modify(|n| *n += 1);
        }
    }

    /// Replicas that one of them told of; the addresses that were not known yet.
    fn learn(&self, told: &[rpc::Replica]) -> Vec<String> {
        let mut replicas = lock(&self.replicas);
        let mut new = vec![];
        for t in told.iter().take(64) {
            let known = replicas
                .iter()
                .any(|r| r.address == t.address || r.name == t.name);
            if !known && !t.address.is_empty() {
                let (name, address) = (t.name.clone(), t.address.clone());
                new.push(address.clone());
                replicas.push(Replica {
                    name,
                    address,
                    listed: true,
                    out: None,
                });
            }
        }
        new
    }

    /// The replicas that there are now: the addresses that were not known yet. One that is gone is
    /// kept for as long as it answers.
    fn relist(&self, listed: &[String]) -> Vec<String> {
        let mut replicas = lock(&self.replicas);
        for r in replicas.iter_mut() {
            r.listed = listed.contains(&r.address);
        }
        let mut new = vec![];
        for address in listed.iter().take(64) {
            if replicas.iter().any(|r| r.address == *address) {
                continue;
            }
            new.push(address.clone());
            replicas.push(Replica {
                name: address.clone(),
                address: address.clone(),
                listed: true,
                out: None,
            });
        }
        new
    }

    /// Whether another address is the same replica's and has its session.
    fn is_elsewhere(&self, address: &str) -> bool {
        let replicas = lock(&self.replicas);
        let own = replicas.iter().find(|r| r.address == address);
        let name = own.map(|r| r.name.as_str());
        replicas
            .iter()
            .any(|r| r.address != address && r.out.is_some() && Some(r.name.as_str()) == name)
    }

    /// Forgets a replica without a session that nobody lists any more. Only its keeper asks, so that
    /// there is never a second one.
    fn let_go(&self, address: &str) -> bool {
        let mut replicas = lock(&self.replicas);
        let before = replicas.len();
        replicas.retain(|r| r.address != address || r.listed);
        replicas.len() < before
    }

    /// `host:port` of the replicas known.
    pub(crate) fn addresses(&self) -> Vec<String> {
        let replicas = lock(&self.replicas);
        replicas.iter().map(|r| r.address.clone()).collect()
    }

    /// Ticks when a session begins or ends.
    pub(crate) fn changes(&self) -> watch::Receiver<usize> {
        self.connected.subscribe()
    }
}

struct Forget<'a> {
    sessions: &'a Sessions,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        lock(&self.sessions.waiting).remove(&self.id);
    }
}

fn key_of(bytes: &[u8]) -> Result<[u8; 32], rpc::Failure> {
    bytes
        .try_into()
        .map_err(|_| rpc::Failure::new(Code::Internal, "a key that is not 32 bytes"))
}

fn unexpected() -> rpc::Failure {
    rpc::Failure::new(Code::Internal, "the scheduler answered another question")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One worker, as on two processors: who never lets go of it keeps everybody waiting.
    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn a_session_that_ended_unheard_keeps_nobody_busy() {
        let bootstrap = Bootstrap {
            addresses: vec!["scheduler:8002".to_owned()],
            tls: None,
        };
        let (inbox, _unread) = mpsc::unbounded_channel();
        let sessions = Arc::new(Sessions::new(bootstrap, Security::plaintext(), inbox));
        let (out, queue) = mpsc::channel(1);
        sessions.up("scheduler:8002", "scheduler-0", out);
        // The stream is gone, and its keeper has not had its turn.
        drop(queue);
        let ask = rpc::Join {
            content: vec![0; 32],
            ..rpc::Join::default()
        };
        let asking = sessions.clone();
        let asked = tokio::spawn(async move { asking.join(ask).await });
        let asked = tokio::time::timeout(2 * FIND, asked).await;
        let failure = asked.expect("never lets go").unwrap().unwrap_err();
        assert_eq!(failure.code(), Code::NoSource);
        assert!(sessions.connected().is_empty());
    }
}
