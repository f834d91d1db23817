//! A mesh in one process whose peers are mirrors.
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic
)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use dragonfly_mirror::{Mirror, More, Registry, Settings};
use dragonfly_node::node::Role;
use dragonfly_scheduler::core::CoreSettings;
use dragonfly_source::http::{HttpOptions, HttpSource};
use tokio_util::sync::CancellationToken;

use crate::double::{Answer, Double, Image, MANIFEST, ask, digest};
use crate::kit::{SchedulerProcess, TestMesh, TestNode, authority};

/// A peer and its mirror.
pub struct Peer {
    pub node: TestNode,
    pub mirror: Mirror,
    pub at: SocketAddr,
    stop: CancellationToken,
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

pub struct Bed {
    pub scheduler: Option<SchedulerProcess>,
    pub seed: Option<TestNode>,
    pub peers: Vec<Peer>,
    pub mesh: TestMesh,
}

/// How `registry.test` is reached.
pub fn named(host: &str, registry: &Double) -> Registry {
    Registry {
        host: host.to_owned(),
        url: Some(registry.url()),
    }
}

pub fn settings(registries: Vec<Registry>) -> Settings {
    Settings {
        registries,
        others: false,
        ..Settings::default()
    }
}

pub async fn mirror_of(node: TestNode, settings: Settings) -> Peer {
    mirror_with(node, settings, More::default()).await
}

pub async fn mirror_with(node: TestNode, settings: Settings, more: More) -> Peer {
    let options = HttpOptions {
        stall_timeout: Duration::from_secs(5),
        ..HttpOptions::default()
    };
    let http = Arc::new(HttpSource::new(options).unwrap());
    let loopback = "127.0.0.1:0".parse().unwrap();
    let mirror = Mirror::bind(loopback, node.node.clone(), http, settings, more)
        .await
        .unwrap();
    let stop = CancellationToken::new();
    tokio::spawn(mirror.clone().run(stop.clone()));
    let at = mirror.address();
    Peer {
        node,
        mirror,
        at,
        stop,
    }
}

impl Bed {
    pub async fn start(peers: u8, settings: &Settings) -> Self {
        crate::kit::log();
        let authority = authority();
        let any = "127.0.0.1:0".parse().unwrap();
        let scheduler =
            SchedulerProcess::start(any, authority.clone(), CoreSettings::default()).await;
        let mesh = TestMesh::new(vec![scheduler.addr], authority);
        let seed = mesh.node(100, Role::Seed).await;
        let mut all = vec![];
        for n in 1..=peers {
            let node = mesh.node(n, Role::Peer).await;
            all.push(mirror_of(node, settings.clone()).await);
        }
        // Sessions with the scheduler.
        tokio::time::sleep(Duration::from_millis(300)).await;
        Self {
            scheduler: Some(scheduler),
            seed: Some(seed),
            peers: all,
            mesh,
        }
    }
}

/// A pull, as containerd does it: the tag's digest, then the manifest, then all blobs. What came, in
/// order; the first refusal where there is one.
pub async fn pull(
    at: SocketAddr,
    registry: &str,
    image: &Image,
    tag: &str,
    authorization: Option<&str>,
) -> Result<Vec<Vec<u8>>, Answer> {
    let mut headers = vec![("accept", MANIFEST)];
    headers.extend(authorization.map(|a| ("authorization", a)));
    let ns = registry.replace(':', "%3A");
    let name = &image.repository;
    let path = format!("/v2/{name}/manifests/{tag}?ns={ns}");
    let head = ask(at, "HEAD", &path, &headers).await;
    if head.status != 200 {
        return Err(head);
    }
    assert_eq!(head.header("content-type"), MANIFEST);
    let found = head.header("docker-content-digest").to_owned();
    let len: usize = head.header("content-length").parse().unwrap();
    let mut all = vec![];
    let paths = std::iter::once(format!("/v2/{name}/manifests/{found}"));
    let blobs = image.blobs.iter().map(|b| format!("/v2/{name}/blobs/{b}"));
    for path in paths.chain(blobs) {
        let answer = ask(at, "GET", &format!("{path}?ns={ns}"), &headers).await;
        if answer.status != 200 {
            return Err(answer);
        }
        assert!(!answer.cut, "{path} was cut");
        let wanted = path.rsplit('/').next().unwrap();
        assert_eq!(digest(&answer.body), wanted, "{path}");
        assert_eq!(answer.header("docker-content-digest"), wanted);
        assert_eq!(
            answer.header("content-length"),
            answer.body.len().to_string()
        );
        if all.is_empty() {
            assert_eq!(answer.body.len(), len);
            assert_eq!(answer.header("content-type"), MANIFEST);
        }
        all.push(answer.body);
    }
    Ok(all)
}
