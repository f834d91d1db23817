//! One request over plain HTTP: what the registry needs.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper::header::{HOST, HeaderMap};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use dragonfly_e2e::{Failed, Result};

/// No request of a test takes longer.
const LIMIT: Duration = Duration::from_secs(120);
/// A first packet that found no rule of kube-proxy is lost, and so are its repetitions.
const CONNECTS: Duration = Duration::from_secs(3);
/// What an answer's body may be: tests ask for manifests and lists.
const MOST: usize = 64 << 20;

/// What was answered.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body, whole.
    pub body: Bytes,
}

/// Asks `host:port` on a connection of its own.
///
/// # Errors
/// Nobody listens, no HTTP is spoken, it takes minutes, or the answer is too long.
pub async fn ask(address: &str, mut request: Request<Full<Bytes>>) -> Result<Answer> {
    let wrong = |e: &dyn std::fmt::Display| Failed::at(address, e);
    let host = address.parse().map_err(|e| wrong(&e))?;
    request.headers_mut().insert(HOST, host);
    let asked = async {
        let connected = tokio::time::timeout(CONNECTS, TcpStream::connect(address)).await;
        let stream = connected.map_err(|e| wrong(&e))?.map_err(|e| wrong(&e))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| wrong(&e))?;
        let answered = async {
            let (parts, body) = sender
                .send_request(request)
                .await
                .map_err(|e| wrong(&e))?
                .into_parts();
            let body = http_body_util::Limited::new(body, MOST);
            let body = body
                .collect()
                .await
                .map_err(|e| Failed::at(address, e))?
                .to_bytes();
            Ok(Answer {
                status: parts.status,
                headers: parts.headers,
                body,
            })
        };
        tokio::pin!(connection);
        tokio::select! {
            biased;
            answer = answered => answer,
            _ = &mut connection => Err(Failed::at(address, "closed the connection before it answered")),
        }
    };
    let limited = tokio::time::timeout(LIMIT, asked).await;
    limited.map_err(|_| Failed::at(address, format!("no answer within {LIMIT:?}")))?
}
