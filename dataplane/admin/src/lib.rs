//! Small HTTP ports of processes that people, kubelets and Prometheus ask, apart from the ports that
//! carry content: [`serve`] for `/healthz`, `/readyz` and `/metrics`, [`answering`] for whatever else.
//!
//! Invariants: a caller who says nothing loses his connection after ten seconds; nothing is read but
//! requests' heads, unless who answers reads a body; a failure to accept is never the end.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// How long a caller may take for the head of a request.
const HEAD: Duration = Duration::from_secs(10);
/// Before the next caller is accepted where one could not be: there are no descriptors left.
const PAUSE: Duration = Duration::from_millis(100);

/// What a process shows: whether it can serve (and why not), and its numbers.
pub trait Shown: Send + Sync + 'static {
    /// Whether it can serve.
    ///
    /// # Errors
    /// Why not, for people.
    fn ready(&self) -> Result<(), String>;
    /// Its numbers in the OpenMetrics text format: see [`encode`].
    fn metrics(&self) -> String;
}

/// Encodes a registry.
pub fn encode(registry: &Registry) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = prometheus_client::encoding::text::encode(&mut out, registry);
    out
}

/// Serves `/healthz`, `/readyz` and `/metrics` until stopped; the address bound.
///
/// # Errors
/// The address cannot be bound.
pub async fn serve(
    addr: SocketAddr,
    shown: Arc<dyn Shown>,
    stop: CancellationToken,
) -> io::Result<SocketAddr> {
    answering(addr, stop, move |request| {
        let answer = answer(request.uri().path(), &*shown);
        std::future::ready(answer)
    })
    .await
}

/// Answers requests until stopped; the address bound.
///
/// # Errors
/// The address cannot be bound.
pub async fn answering<A, F>(
    addr: SocketAddr,
    stop: CancellationToken,
    answer: A,
) -> io::Result<SocketAddr>
where
    A: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    let listener = TcpListener::bind(addr).await?;
    let addr = listener.local_addr()?;
    tokio::spawn(async move {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = stop.cancelled() => return,
            };
            let Ok((stream, _)) = accepted else {
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            let answer = answer.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request| {
                    let answered = answer(request);
                    async move { Ok::<_, Infallible>(answered.await) }
                });
                let served = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEAD)
                    .serve_connection(TokioIo::new(stream), service);
                if let Err(error) = served.await {
                    tracing::debug!(%addr, %error, "connection");
                }
            });
        }
    });
    Ok(addr)
}

/// A whole answer.
pub fn response(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

fn answer(path: &str, shown: &dyn Shown) -> Response<Full<Bytes>> {
    const TEXT: &str = "text/plain";
    match path {
        "/healthz" => response(StatusCode::OK, TEXT, "ok\n".to_owned()),
        "/readyz" => match shown.ready() {
            Ok(()) => response(StatusCode::OK, TEXT, "ready\n".to_owned()),
            Err(why) => response(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("{why}\n")),
        },
        "/metrics" => response(
            StatusCode::OK,
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
            shown.metrics(),
        ),
        _ => {
            let paths = "there are /healthz, /readyz and /metrics\n".to_owned();
            response(StatusCode::NOT_FOUND, TEXT, paths)
        }
    }
}
