//! Requests that are to be sent where this node alone gets: by redirect, by a name, and by a name that
//! means something else when it is asked for again.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails loudly"
)]

mod common;

use common::{Honest, Reply, Server, quick};
use dragonfly_source::{Error, Fault, HttpSource, Kind, Lookup, Request, Source};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const METADATA: &str = "169.254.169.254";

/// A resolver that gives these in turn, and the last one from then on.
fn answers(all: &[&str]) -> (Lookup, Arc<AtomicUsize>) {
    let all: Vec<Vec<IpAddr>> = all
        .iter()
        .map(|one| one.split(' ').map(|ip| ip.parse().unwrap()).collect())
        .collect();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let lookup: Lookup = Arc::new(move |_| {
        let nth = count.fetch_add(1, Ordering::Relaxed).min(all.len() - 1);
        let found = all[nth].iter().map(|ip| SocketAddr::new(*ip, 0)).collect();
        Box::pin(async move { Ok(found) })
    });
    (lookup, asked)
}

async fn open(source: &HttpSource, url: &str) -> Result<(), Error> {
    let request = Request::new(url).unwrap();
    source.open(&request, None, None).await.map(|_| ())
}

fn refused(what: &str, error: &Error) {
    let of = (error.kind(), error.fault());
    assert_eq!(of, (Kind::Refused, Fault::Policy), "{what}: {error}");
    assert!(!error.is_temporary(), "{what}");
}

#[tokio::test]
async fn a_redirect_to_a_metadata_service_is_not_followed_whatever_its_spelling() {
    for target in [
        "http://169.254.169.254/latest/meta-data/".to_owned(),
        "http://0xa9fea9fe/".to_owned(),
        "http://2852039166/".to_owned(),
        "http://[::ffff:169.254.169.254]/".to_owned(),
        "http://[fd00:ec2::254]/".to_owned(),
        "http://metadata.google.internal/computeMetadata/v1/".to_owned(),
        "//169.254.169.254/".to_owned(),
    ] {
        let to = target.clone();
        let server =
            Server::start(move |_| Reply::sized("302 Found", &[("location", &to)], b"")).await;
        let source = HttpSource::new(quick()).unwrap();
        let error = open(&source, &server.url("/file")).await.unwrap_err();
        refused(&target, &error);
        assert_eq!(server.seen().len(), 1, "{target}");
    }
}

#[tokio::test]
async fn a_redirect_to_a_name_that_means_a_metadata_service_is_not_followed() {
    let server =
        Server::start(|_| Reply::sized("302 Found", &[("location", "http://inner.example/")], b""))
            .await;
    let (lookup, asked) = answers(&[METADATA]);
    let source = HttpSource::with_lookup(quick(), lookup).unwrap();
    let error = open(&source, &server.url("/file")).await.unwrap_err();
    refused("by name", &error);
    assert!(error.to_string().contains(METADATA), "{error}");
    assert_eq!(asked.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_name_that_changes_its_mind_is_judged_by_the_address_that_is_dialled() {
    // Each answer ends its connection, so that the next request resolves anew.
    let server = Server::start(|seen| Honest::new(10).reply(seen).close()).await;
    let url = format!("http://rebinding.example:{}/file", server.addr.port());
    let (lookup, asked) = answers(&["127.0.0.1", METADATA]);
    let source = HttpSource::with_lookup(quick(), lookup).unwrap();
    open(&source, &url).await.unwrap();
    let error = open(&source, &url).await.unwrap_err();
    refused("the second time", &error);
    assert_eq!(server.seen().len(), 1);
    // Judged once a connection: what is dialled is what was judged, not another answer.
    assert_eq!(asked.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn of_several_addresses_only_the_allowed_are_dialled() {
    let server = Server::honest(Honest::new(10)).await;
    let url = format!("http://both.example:{}/file", server.addr.port());
    let both = format!("{METADATA} fe80::1 127.0.0.1");
    let (lookup, _) = answers(&[&both]);
    let source = HttpSource::with_lookup(quick(), lookup).unwrap();
    open(&source, &url).await.unwrap();
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn where_policy_allows_it_an_inner_address_is_dialled() {
    let (lookup, _) = answers(&["169.254.1.1"]);
    let mut options = quick();
    options.addresses.link_local = true;
    options.connect_timeout = std::time::Duration::from_millis(200);
    let source = HttpSource::with_lookup(options, lookup).unwrap();
    let error = open(&source, "http://inner.example/").await.unwrap_err();
    // Nobody is there, and nobody forbade it.
    assert_ne!(error.kind(), Kind::Refused, "{error}");
}
