//! Callers of a gRPC server whose certificate may be another one tomorrow: each handshake is made with
//! what is in use then, and connections that are up stay up.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;

/// Callers that may be in the middle of a handshake at once; further ones wait in the kernel's queue.
const MAX_GREETING: usize = 256;
/// How long one may take for it.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// A connection whose caller may have shown a certificate.
pub type Caller = TlsStream<TcpStream>;

/// Callers with whom TLS was agreed on, for `serve_with_incoming`. `config` says how, each time; `None`:
/// not yet. `refused` is told why somebody was not let in. Ends with its receiver.
pub fn incoming(
    listener: TcpListener,
    config: impl Fn() -> Option<Arc<ServerConfig>> + Send + Sync + 'static,
    refused: impl Fn(&str) + Send + Sync + 'static,
) -> ReceiverStream<io::Result<Caller>> {
    let (callers, ready) = mpsc::channel(16);
    tokio::spawn(accept(listener, config, Arc::new(refused), callers));
    ReceiverStream::new(ready)
}

async fn accept(
    listener: TcpListener,
    config: impl Fn() -> Option<Arc<ServerConfig>> + Send + Sync + 'static,
    refused: Arc<impl Fn(&str) + Send + Sync + 'static>,
    callers: mpsc::Sender<io::Result<Caller>>,
) {
    let greeting = Arc::new(Semaphore::new(MAX_GREETING));
    loop {
        // Never closed.
        let turn = greeting.clone().acquire_owned().await.ok();
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = callers.closed() => return,
        };
        let (stream, _) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept; trying again");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Some(config) = config() else { continue };
        let (callers, refused) = (callers.clone(), refused.clone());
        tokio::spawn(async move {
            let _turn = turn;
            // What is said is short and somebody waits for it.
            let _ = stream.set_nodelay(true);
            let handshake = TlsAcceptor::from(config).accept(stream);
            match tokio::time::timeout(HANDSHAKE, handshake).await {
                // Who receives is gone when the server is.
                Ok(Ok(caller)) => _ = callers.send(Ok(caller)).await,
                Ok(Err(error)) => refused(&why(&error)),
                Err(_) => refused("the handshake took too long"),
            }
        });
    }
}

fn why(error: &io::Error) -> String {
    let inner = error.get_ref();
    match inner.and_then(|e| e.downcast_ref::<rustls::Error>()) {
        Some(tls) => dragonfly_transport::explain(tls),
        None => error.to_string(),
    }
}
