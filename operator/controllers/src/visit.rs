//! What visits of objects of all kinds have in common: they end in time, are counted, and one that
//! failed comes again after a while.

use std::time::Instant;

use kube::ResourceExt;
use kube::runtime::controller::Action;

use crate::{Context, LIMIT};

/// Why a visit has to be repeated.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Error(pub(crate) String);

/// An object as people read of it.
pub(crate) fn key(kind: &str, object: &impl ResourceExt) -> String {
    let namespace = object.namespace().unwrap_or_default();
    format!("{kind} {namespace}/{}", object.name_any())
}

/// Does a visit.
pub(crate) async fn visited(
    context: &Context,
    kind: &'static str,
    object: &impl ResourceExt,
    visit: impl Future<Output = Result<Action, Error>>,
) -> Result<Action, Error> {
    let began = Instant::now();
    let ended = tokio::time::timeout(LIMIT, visit).await;
    let ended = ended.unwrap_or_else(|_| Err(Error(format!("not done within {LIMIT:?}"))));
    let outcome = if ended.is_ok() { "done" } else { "failed" };
    let seconds = began.elapsed().as_secs_f64();
    context.metrics.ended(kind, outcome, seconds);
    if ended.is_ok() {
        context.backoff.succeeded(&key(kind, object));
    }
    ended
}

/// When one that failed comes again.
pub(crate) fn again(
    context: &Context,
    kind: &str,
    object: &impl ResourceExt,
    error: &Error,
) -> Action {
    let key = key(kind, object);
    let wait = context.backoff.failed(&key, fastrand::f64());
    tracing::warn!(object = key, %error, ?wait, "failed; tried again");
    Action::requeue(wait)
}
