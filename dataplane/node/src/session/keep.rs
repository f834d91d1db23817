//! One session: connecting, greeting, listening, and beginning again.

use std::sync::{Arc, Weak};
use std::time::Duration;

use dragonfly_proto::rpc::scheduler_client::SchedulerClient;
use dragonfly_proto::rpc::{self, FromNode, from_node, to_node};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};

use super::Sessions;
use crate::node::Node;
use crate::task::lock;

/// Messages that may wait for a replica that reads slowly.
const QUEUE: usize = 4096;
const RECONNECT_MIN: Duration = Duration::from_millis(100);
const RECONNECT_MAX: Duration = Duration::from_secs(5);

impl Sessions {
    async fn connect(&self, address: &str) -> Result<Channel, tonic::transport::Error> {
        let tls = lock(&self.tls).clone();
        // Under TLS too: that is made below what an endpoint knows of.
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?
            .connect_timeout(Duration::from_secs(3))
            .tcp_nodelay(true)
            .http2_keep_alive_interval(Duration::from_secs(5))
            .keep_alive_timeout(Duration::from_secs(5))
            .keep_alive_while_idle(true);
        match tls {
            Some(tls) => endpoint.connect_with_connector(tls).await,
            None => endpoint.connect().await,
        }
    }

    /// What an error means that is not in its text.
    async fn explain(&self, address: &str, error: String) -> String {
        let plaintext = lock(&self.tls).is_none();
        if plaintext && speaks_tls(address).await {
            return "it wants a certificate (spec.security.transport: MutualTLS) and this node has \
                    none: start it with the mesh's join token (--join-token-file)"
                .to_owned();
        }
        error
    }
}

/// Whether a server that does not answer plaintext speaks TLS: it answers what is no handshake with
/// an alert.
pub async fn speaks_tls(address: &str) -> bool {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    const ALERT: u8 = 21;
    let asked = async {
        let mut io = tokio::net::TcpStream::connect(address).await?;
        io.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await?;
        io.read_u8().await
    };
    let first = tokio::time::timeout(Duration::from_secs(3), asked).await;
    matches!(first, Ok(Ok(ALERT)))
}

/// Boxed, since a session starts those to the replicas that it hears of.
pub(super) fn spawn_keep(node: &Arc<Node>, address: String) {
    let kept: futures::future::BoxFuture<'static, ()> =
        Box::pin(keep(Arc::downgrade(node), address));
    node.threads.spawn(kept);
}

impl Node {
    /// The schedulers that there are now, `host:port`: new ones are spoken to from here on, and those
    /// that are gone forgotten.
    pub fn set_schedulers(self: &Arc<Self>, listed: &[String]) {
        for address in self.sessions.relist(listed) {
            spawn_keep(self, address);
        }
    }
}

/// Keeps the session to one replica until the node is gone, or the replica for good.
async fn keep(node: Weak<Node>, address: String) {
    let mut pause = RECONNECT_MIN;
    let mut complained = false;
    loop {
        let Some(strong) = node.upgrade() else { return };
        if strong.sessions.let_go(&address) {
            return tracing::info!(%address, "no scheduler of this mesh any more");
        }
        let stop = strong.stop.clone();
        if strong.sessions.is_elsewhere(&address) {
            // A second session would end the first, at once and for ever.
            let mut changes = strong.sessions.changes();
            drop(strong);
            tokio::select! {
                _ = changes.changed() => {}
                () = tokio::time::sleep(RECONNECT_MAX) => {}
                () = stop.cancelled() => return,
            }
            continue;
        }
        let outcome = tokio::select! {
            outcome = session(&strong, &address) => outcome,
            () = stop.cancelled() => {
                // The queue keeps the session up for as long as anybody could write to it, and the
                // scheduler would think that this node lives.
                return strong.sessions.down(&address);
            }
        };
        strong.sessions.down(&address);
        match outcome {
            Ok(()) => {
                tracing::info!(%address, "scheduler ended the session; connecting again");
                (pause, complained) = (RECONNECT_MIN, false);
            }
            Err(error) if !complained => {
                let error = strong.sessions.explain(&address, error).await;
                tracing::warn!(%address, %error, "no session with the scheduler; trying on");
                complained = true;
            }
            Err(error) => tracing::debug!(%address, %error, "still no session"),
        }
        let missed = strong.sessions.missed.clone();
        drop(strong);
        // Jitter, so that a returning scheduler is not met by all nodes at once; but a client that
        // asks for something has it tried at once.
        let paused = tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64()));
        pause = tokio::select! {
            () = paused => (pause * 2).min(RECONNECT_MAX),
            () = missed.notified(), if pause > RECONNECT_MIN => RECONNECT_MIN,
        };
    }
}

async fn session(node: &Arc<Node>, address: &str) -> Result<(), String> {
    let connected = node.sessions.connect(address).await;
    let channel = connected.map_err(|e| dragonfly_transport::reason(&e))?;
    let mut client = SchedulerClient::new(channel).max_decoding_message_size(rpc::MAX_MESSAGE);
    let (out, messages) = mpsc::channel(QUEUE);
    let hello = from_node::Message::Hello(node.hello());
    out.send(FromNode {
        message: Some(hello),
    })
    .await
    .map_err(|e| e.to_string())?;
    let answer = client
        .session(ReceiverStream::new(messages))
        .await
        .map_err(|status| refused(&status))?;
    let mut stream = answer.into_inner();
    let first = stream.message().await.map_err(|e| e.to_string())?;
    let Some(to_node::Message::Welcome(welcome)) = first.and_then(|m| m.message) else {
        return Err("the scheduler did not say welcome".to_owned());
    };
    node.clock.heard(welcome.unix);
    node.add_authorities(
        welcome
            .authorities
            .iter()
            .filter_map(|k| k.as_slice().try_into().ok()),
    );
    node.sessions.up(address, &welcome.scheduler, out.clone());
    for address in node.sessions.learn(&welcome.replicas) {
        spawn_keep(node, address);
    }
    tracing::info!(%address, scheduler = welcome.scheduler, "session with the scheduler is up");
    let rejoin = tokio::spawn(node.clone().rejoin(welcome.scheduler.clone(), out));
    let ended = loop {
        match stream.message().await {
            Ok(Some(m)) => {
                if let Some(m) = m.message.and_then(|m| node.sessions.answer(m)) {
                    // The inbox lives as long as the node does.
                    let _ = node.sessions.inbox.send((welcome.scheduler.clone(), m));
                }
            }
            Ok(None) => break Ok(()),
            Err(status) => break Err(status.message().to_owned()),
        }
    };
    rejoin.abort();
    // A session that worked begins anew at once, whatever ended it.
    if let Err(reason) = ended {
        tracing::debug!(%address, reason, "session broke");
    }
    Ok(())
}

/// Why a scheduler takes no session.
fn refused(status: &tonic::Status) -> String {
    // Under TLS 1.3 the other side judges a certificate after the handshake has ended here.
    let tls = dragonfly_transport::tls_error(status);
    tls.map_or_else(|| status.message().to_owned(), dragonfly_transport::explain)
}
