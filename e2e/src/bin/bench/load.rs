//! A client that asks the same again and again, from within a node: how long until the first byte.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use dragonfly_e2e::{Failed, Result};
use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::TcpStream;

/// One request that takes longer counts as failed.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(clap::Args)]
pub(crate) struct LoadArgs {
    /// `host:port`
    at: String,
    /// Path and query
    path: String,
    /// Connections that ask
    #[arg(long, default_value_t = 1)]
    connections: usize,
    /// Requests in all
    #[arg(long, default_value_t = 100)]
    requests: u64,
    /// Requests a second of all connections together; 0 for as many as there can be
    #[arg(long, default_value_t = 0)]
    rate: u64,
    /// `Accept` of each
    #[arg(long, default_value = "*/*")]
    accept: String,
}

/// Asks, and prints what came of it as JSON.
pub(crate) fn run(args: LoadArgs) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failed::at("a runtime", e))?;
    let said = runtime.block_on(ask_all(Arc::new(args)))?;
    println!("{said}");
    Ok(())
}

async fn ask_all(args: Arc<LoadArgs>) -> Result<serde_json::Value> {
    let (next, began) = (Arc::new(AtomicU64::new(0)), Instant::now());
    let mut workers = tokio::task::JoinSet::new();
    for _ in 0..args.connections.max(1) {
        workers.spawn(worker(args.clone(), next.clone(), began));
    }
    let (mut times, mut failed) = (vec![], 0_u64);
    while let Some(done) = workers.join_next().await {
        let (took, wrong) = done.map_err(|e| Failed::at("a worker", e))??;
        times.extend(took);
        failed += wrong;
    }
    let seconds = began.elapsed().as_secs_f64();
    times.sort_by(f64::total_cmp);
    let at = |share: f64| {
        let index = (times.len() as f64 * share) as usize;
        let index = index.min(times.len().saturating_sub(1));
        times.get(index).copied().unwrap_or(f64::NAN)
    };
    Ok(json!({
        "p50_ms": at(0.5) * 1e3, "p99_ms": at(0.99) * 1e3,
        "requests_per_second": times.len() as f64 / seconds, "failed": failed,
    }))
}

/// Times to the first byte, from when a request was due, and how many failed.
async fn worker(
    args: Arc<LoadArgs>,
    next: Arc<AtomicU64>,
    began: Instant,
) -> Result<(Vec<f64>, u64)> {
    let (mut times, mut failed) = (vec![], 0);
    let mut sender = connect(&args.at).await?;
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= args.requests {
            return Ok((times, failed));
        }
        let mut due = Instant::now();
        if args.rate > 0 {
            due = began + Duration::from_secs_f64(number as f64 / args.rate as f64);
            tokio::time::sleep_until(due.into()).await;
        }
        match tokio::time::timeout(PATIENCE, ask(&mut sender, &args)).await {
            Ok(Ok(first)) => times.push(first.duration_since(due).as_secs_f64()),
            _ => {
                failed += 1;
                sender = connect(&args.at).await?;
            }
        }
    }
}

async fn connect(at: &str) -> Result<SendRequest<Empty<Bytes>>> {
    let stream = TcpStream::connect(at)
        .await
        .map_err(|e| Failed::at(at, e))?;
    let _ = stream.set_nodelay(true);
    let (sender, connection) = handshake(TokioIo::new(stream))
        .await
        .map_err(|e| Failed::at(at, e))?;
    tokio::spawn(connection);
    Ok(sender)
}

/// When the first byte of the body came; it is read to its end.
async fn ask(sender: &mut SendRequest<Empty<Bytes>>, args: &LoadArgs) -> Result<Instant> {
    let wrong = |e: hyper::Error| Failed::at(&args.at, e);
    let request = Request::get(&args.path)
        .header("host", &args.at)
        .header("accept", &args.accept)
        .body(Empty::new())
        .map_err(|e| Failed::at(&args.path, e))?;
    sender.ready().await.map_err(wrong)?;
    let answer = sender.send_request(request).await.map_err(wrong)?;
    if !answer.status().is_success() {
        return Err(Failed::at(&args.path, answer.status()));
    }
    let (mut body, mut first) = (answer.into_body(), None);
    while let Some(frame) = body.frame().await {
        frame.map_err(wrong)?;
        first.get_or_insert_with(Instant::now);
    }
    first.ok_or_else(|| Failed::at(&args.path, "an answer without a body"))
}
