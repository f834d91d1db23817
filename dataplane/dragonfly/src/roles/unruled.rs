//! What a node is before any policy of its mesh was in force: its defaults are nobody's wish, so it
//! reads no origin and serves no client. It only speaks to schedulers, until one says what the mesh
//! does.

use std::sync::Arc;
use std::time::Duration;

use dragonfly_crds::Policy;
use dragonfly_node::node::Settings;
use dragonfly_source::{
    ByteRange, Error, Fault, FetchOptions, Fetcher, Kind, Metadata, Opened, Request, Result, Source,
};
use futures::future::BoxFuture;
use tokio::sync::watch;

use super::policy;

/// Settings with which a node goes to no origin.
pub(super) fn settings(defaults: &Policy) -> Settings {
    Settings {
        back_to_source: false,
        ..policy::settings(defaults)
    }
}

/// How long who asks for an origin waits for the policy: a scheduler that has just given a node its
/// session may want something of it before the policy, which is on its way, is there.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where the source is told once it is known.
pub(super) type Later = watch::Sender<Option<Arc<dyn Source>>>;

/// Fetches nothing until a source is told.
pub(super) fn fetcher() -> (Fetcher, Later) {
    let (later, known) = watch::channel(None);
    let fetcher = Fetcher::new(Arc::new(Unknown(known)), FetchOptions::default());
    (fetcher, later)
}

struct Unknown(watch::Receiver<Option<Arc<dyn Source>>>);

impl Unknown {
    async fn source(&self) -> Result<Arc<dyn Source>> {
        let mut known = self.0.clone();
        let told = known.wait_for(Option::is_some);
        let told = tokio::time::timeout(PATIENCE, told).await;
        let told = told.ok().and_then(std::result::Result::ok);
        told.and_then(|source| source.clone()).ok_or_else(|| {
            Error::permanent(
                Kind::Refused,
                Fault::Policy,
                "no policy of the mesh is in force on this node yet: it reads no origin",
            )
        })
    }
}

impl Source for Unknown {
    fn open<'a>(
        &'a self,
        request: &'a Request,
        range: Option<ByteRange>,
        before: Option<&'a Metadata>,
    ) -> BoxFuture<'a, Result<Opened>> {
        Box::pin(async move { self.source().await?.open(request, range, before).await })
    }

    fn stat<'a>(&'a self, request: &'a Request) -> BoxFuture<'a, Result<Metadata>> {
        Box::pin(async move { self.source().await?.stat(request).await })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever asks is told that it was reached.
    struct Reached;

    impl Source for Reached {
        fn open<'a>(
            &'a self,
            _: &'a Request,
            _: Option<ByteRange>,
            _: Option<&'a Metadata>,
        ) -> BoxFuture<'a, Result<Opened>> {
            let error = Error::permanent(Kind::NotFound, Fault::Origin, "reached");
            Box::pin(std::future::ready(Err(error)))
        }

        fn stat<'a>(&'a self, _: &'a Request) -> BoxFuture<'a, Result<Metadata>> {
            let error = Error::permanent(Kind::NotFound, Fault::Origin, "reached");
            Box::pin(std::future::ready(Err(error)))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_before_the_policy_came_waits_for_it_and_not_for_ever() {
        let (later, known) = watch::channel(None);
        let unknown = Unknown(known);
        let request = Request::new("http://host/file").unwrap();
        let early = unknown.stat(&request);
        let told = async {
            tokio::time::sleep(PATIENCE / 2).await;
            let source: Arc<dyn Source> = Arc::new(Reached);
            later.send_replace(Some(source));
        };
        let (early, ()) = futures::join!(early, told);
        assert!(early.unwrap_err().to_string().contains("reached"));
        later.send_replace(None);
        let error = unknown.open(&request, None, None).await.err().unwrap();
        assert!(error.to_string().contains("no policy"), "{error}");
    }
}
