//! What a node is before any policy of its mesh was in force: its defaults are nobody's wish, so it
//! reads no origin and serves no client. It only speaks to schedulers, until one says what the mesh
//! does.

use std::sync::Arc;

use dragonfly_crds::Policy;
use dragonfly_node::node::Settings;
use dragonfly_source::{
    ByteRange, Error, Fault, FetchOptions, Fetcher, Kind, Metadata, Opened, Request, Result, Source,
};
use futures::future::BoxFuture;

use super::policy;

/// Settings with which a node goes to no origin.
pub(super) fn settings(defaults: &Policy) -> Settings {
    Settings {
        back_to_source: false,
        ..policy::settings(defaults)
    }
}

/// Fetches nothing, whoever asks.
pub(super) fn fetcher() -> Fetcher {
    Fetcher::new(Arc::new(Nowhere), FetchOptions::default())
}

struct Nowhere;

fn refused() -> Error {
    Error::permanent(
        Kind::Refused,
        Fault::Policy,
        "no policy of the mesh is in force on this node yet: it reads no origin",
    )
}

impl Source for Nowhere {
    fn open<'a>(
        &'a self,
        _: &'a Request,
        _: Option<ByteRange>,
        _: Option<&'a Metadata>,
    ) -> BoxFuture<'a, Result<Opened>> {
        Box::pin(std::future::ready(Err(refused())))
    }

    fn stat<'a>(&'a self, _: &'a Request) -> BoxFuture<'a, Result<Metadata>> {
        Box::pin(std::future::ready(Err(refused())))
    }
}
