//! `/healthz`, `/readyz` and `/metrics`, apart from the ports that carry content.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::RoleError;

/// What a part shows: whether it can serve (and why not), and its numbers.
pub(crate) trait Shown: Send + Sync + 'static {
    /// `Err`: why not.
    fn ready(&self) -> Result<(), String>;
    /// In the OpenMetrics text format.
    fn metrics(&self) -> String;
}

/// Encodes a registry.
pub(crate) fn encode(registry: &Registry) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = prometheus_client::encoding::text::encode(&mut out, registry);
    out
}

/// Serves until stopped; the address bound.
pub(crate) async fn serve(
    addr: SocketAddr,
    shown: Arc<dyn Shown>,
    stop: CancellationToken,
) -> Result<SocketAddr, RoleError> {
    let listener = TcpListener::bind(addr)
        .await
        .map_err(|e| RoleError::at(format!("admin port {addr}"), e))?;
    let addr = listener
        .local_addr()
        .map_err(|e| RoleError::at("admin port", e))?;
    tokio::spawn(async move {
        loop {
            let accepted = tokio::select! {
                a = listener.accept() => a,
                () = stop.cancelled() => return,
            };
            let Ok((stream, _)) = accepted else {
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            };
            let shown = shown.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request| {
                    let answer = answer(&request, &*shown);
                    async move { Ok::<_, Infallible>(answer) }
                });
                let served = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(std::time::Duration::from_secs(10))
                    .serve_connection(TokioIo::new(stream), service);
                if let Err(error) = served.await {
                    tracing::debug!(%error, "admin connection");
                }
            });
        }
    });
    Ok(addr)
}

fn answer(request: &Request<Incoming>, shown: &dyn Shown) -> Response<Full<Bytes>> {
    let (status, kind, body) = match request.uri().path() {
        "/healthz" => (StatusCode::OK, "text/plain", "ok\n".to_owned()),
        "/readyz" => match shown.ready() {
            Ok(()) => (StatusCode::OK, "text/plain", "ready\n".to_owned()),
            Err(why) => (
                StatusCode::SERVICE_UNAVAILABLE,
                "text/plain",
                format!("{why}\n"),
            ),
        },
        "/metrics" => (
            StatusCode::OK,
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
            shown.metrics(),
        ),
        _ => {
            let paths = "there are /healthz, /readyz and /metrics\n".to_owned();
            (StatusCode::NOT_FOUND, "text/plain", paths)
        }
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let kind = hyper::header::HeaderValue::from_static(kind);
    response
        .headers_mut()
        .insert(hyper::header::CONTENT_TYPE, kind);
    response
}
