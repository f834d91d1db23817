//! A client whose operator dies, or gets no answer, after so many writes of a namespace; or that hears of
//! meshes late.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use http::{Method, Request};
use kube::client::Body;
use tower::{BoxError, Layer, Service};

/// When whose client stops working: after so many writes of a namespace.
#[derive(Clone, Default)]
pub(crate) struct Faults {
    pub(crate) after: HashMap<String, usize>,
    /// The client works again after the answer that was lost.
    pub(crate) passing: bool,
    /// How much later than other kinds meshes are listed.
    pub(crate) late: Duration,
    pub(crate) written: Arc<Mutex<HashMap<String, usize>>>,
}

impl Faults {
    /// Whether a request is carried out, and whether its answer arrives.
    fn judge<B>(&self, request: &Request<B>) -> (bool, bool) {
        let path = request.uri().path();
        let mut parts = path.split('/').skip_while(|part| *part != "namespaces");
        let Some(namespace) = parts.nth(1) else {
            return (true, true);
        };
        let mut written = self.written.lock().unwrap();
        let count = written.entry(namespace.to_owned()).or_default();
        let after = self.after.get(namespace).copied().unwrap_or(usize::MAX);
        let writes = request.method() != Method::GET;
        if *count >= after && !self.passing {
            return (false, false);
        }
        *count += usize::from(writes);
        (true, !(writes && *count == after))
    }

    pub(crate) fn written(&self, namespace: &str) -> usize {
        self.written
            .lock()
            .unwrap()
            .get(namespace)
            .copied()
            .unwrap_or_default()
    }

    pub(crate) fn is_met(&self, namespace: &str) -> bool {
        self.after
            .get(namespace)
            .is_some_and(|after| self.written(namespace) >= *after)
    }
}

/// A client with faults.
pub(crate) struct Faulty<S> {
    inner: S,
    faults: Faults,
}

impl<S> Layer<S> for Faults {
    type Service = Faulty<S>;
    fn layer(&self, inner: S) -> Faulty<S> {
        Faulty {
            inner,
            faults: self.clone(),
        }
    }
}

impl<S> Service<Request<Body>> for Faulty<S>
where
    S: Service<Request<Body>>,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<S::Response, BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (carried_out, answered) = self.faults.judge(&request);
        if !carried_out {
            return Box::pin(async { Err("the operator is dead".into()) });
        }
        let late = request.uri().path().ends_with("/distributions");
        let late = if late {
            self.faults.late
        } else {
            Duration::ZERO
        };
        let answer = self.inner.call(request);
        Box::pin(async move {
            tokio::time::sleep(late).await;
            let answer = answer.await.map_err(Into::into)?;
            if answered {
                Ok(answer)
            } else {
                Err("the answer was lost".into())
            }
        })
    }
}
