//! What a scheduler tells and does for people: on its pod's loopback only, where `kubectl dragonfly`
//! comes by the API server's port-forward. Who may do that (`pods/portforward` in the mesh's namespace)
//! may do this; nobody else reaches it.

use std::net::SocketAddr;

use dragonfly_proto::id::{ContentKey, NodeId};
use dragonfly_proto::rpc::{self, Role, tend::Action};
use dragonfly_scheduler::service::Service;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::RoleError;

/// Longest request.
const MAX_REQUEST: usize = 16 << 10;

/// Serves until stopped.
pub(crate) async fn serve(
    addr: SocketAddr,
    service: Service,
    stop: CancellationToken,
) -> Result<SocketAddr, RoleError> {
    if !addr.ip().is_loopback() {
        return Err(RoleError(format!(
            "--local {addr}: it asks nobody who he is, so it may only be a loopback address"
        )));
    }
    let served = dragonfly_admin::answering(addr, stop, move |request| {
        let scheduler = service.clone();
        async move { answer(request, &scheduler).await }
    });
    served
        .await
        .map_err(|e| RoleError::at(format!("--local {addr}"), e))
}

async fn answer(request: Request<Incoming>, scheduler: &Service) -> Response<Full<Bytes>> {
    let path = request.uri().path().to_owned();
    let found = match (request.method(), path.as_str()) {
        (&Method::GET, "/v1/inspect") => Ok(shown(&scheduler.inspect())),
        (&Method::POST, "/v1/tend") => tend(request, scheduler).await,
        _ => Err((
            StatusCode::NOT_FOUND,
            "there are GET /v1/inspect and POST /v1/tend".to_owned(),
        )),
    };
    let (status, body) = match found {
        Ok(body) => (StatusCode::OK, body),
        Err((status, error)) => (status, json!({"error": error})),
    };
    dragonfly_admin::response(status, "application/json", body.to_string())
}

/// What is to be done with which contents.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wish {
    action: String,
    #[serde(default)]
    task: String,
    #[serde(default)]
    url: String,
    #[serde(default)]
    prefix: String,
    #[serde(default)]
    domain: String,
}

async fn tend(
    request: Request<Incoming>,
    scheduler: &Service,
) -> Result<Value, (StatusCode, String)> {
    let wrong = |error: String| (StatusCode::BAD_REQUEST, error);
    let body = Limited::new(request.into_body(), MAX_REQUEST);
    let body = body.collect().await.map_err(|e| wrong(e.to_string()))?;
    let wish: Wish = serde_json::from_slice(&body.to_bytes()).map_err(|e| wrong(e.to_string()))?;
    let action = match wish.action.as_str() {
        "purge" => Action::Purge,
        "pin" => Action::Pin,
        "unpin" => Action::Unpin,
        other => return Err(wrong(format!("`{other}` is not purge, pin or unpin"))),
    };
    let said = [&wish.task, &wish.url, &wish.prefix, &wish.domain];
    if said.iter().filter(|text| !text.is_empty()).count() != 1 {
        return Err(wrong(
            "a task, a url, a prefix or a domain: one of them".to_owned(),
        ));
    }
    tracing::info!(
        action = wish.action,
        task = wish.task,
        url = wish.url,
        prefix = wish.prefix,
        domain = wish.domain,
        "a person has all nodes tend to contents"
    );
    let tend = rpc::Tend {
        id: 0,
        action: action.into(),
        task: wish.task,
        url: wish.url,
        url_prefix: wish.prefix,
        domain: wish.domain,
    };
    let done = scheduler.tend(tend).await;
    let done = done.map_err(|error| (StatusCode::TOO_MANY_REQUESTS, error))?;
    let failures = done.failures.iter();
    Ok(json!({
        "asked": done.asked,
        "answered": done.answered,
        "contents": done.contents,
        "bytes": done.bytes,
        "inUse": done.in_use,
        "failures": failures.map(|(node, why)| json!({"node": node, "message": why})).collect::<Vec<_>>(),
    }))
}

fn shown(found: &rpc::InspectReply) -> Value {
    let node = |n: &rpc::NodeInfo| {
        let id = NodeId::from_slice(&n.node).map(|id| id.to_string());
        let totals = n.totals.clone().unwrap_or_default();
        let policy = n.policy.clone().unwrap_or_default();
        json!({
            "name": n.name,
            "id": id,
            "role": match n.role() {
                Role::Seed => "seed",
                Role::Peer => "peer",
                _ => "unknown",
            },
            "zone": n.zone,
            "addresses": n.addresses,
            "bytesPerSecondIn": n.rate_in,
            "bytesPerSecondOut": n.rate_out,
            "storedBytes": totals.stored_bytes,
            "activeTasks": totals.active_tasks,
            "connections": totals.connections,
            "fromOrigin": totals.from_origin,
            "fromSeeds": totals.from_seeds,
            "fromPeers": totals.from_peers,
            "uploaded": totals.uploaded,
            "finished": totals.tasks_done,
            "failed": totals.tasks_failed,
            "policy": {
                "revision": policy.revision,
                "hash": policy.hash,
                "error": policy.error,
            },
        })
    };
    let task = |t: &rpc::TaskInfo| {
        json!({
            "task": ContentKey::from_slice(&t.content).map(|key| key.to_string()),
            "url": t.url,
            "length": t.geometry.as_ref().and_then(|g| g.total_len),
            "nodes": t.members,
            "complete": t.complete,
            "emitter": t.emitter,
        })
    };
    json!({
        "scheduler": found.scheduler,
        "nodes": found.nodes.iter().map(node).collect::<Vec<_>>(),
        "tasks": found.tasks.iter().map(task).collect::<Vec<_>>(),
        "policy": found.policy.as_ref().map(|p| json!({"revision": p.revision, "hash": p.hash})),
    })
}
