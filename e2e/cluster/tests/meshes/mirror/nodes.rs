//! What a test sees and does on nodes and at registries.

use std::path::Path;
use std::time::Duration;

use dragonfly_cluster::wait::wait_until;
use dragonfly_cluster::{Cluster, Failed, Node, Result};
use hyper::Request;

/// What containerd reads of `registry.test` on a node.
pub(crate) fn hosts(node: Node<'_>, registry: &str) -> Option<String> {
    let path = format!("/etc/containerd/certs.d/{registry}/hosts.toml");
    std::fs::read_to_string(node.path(Path::new(&path))).ok()
}

/// Whether a node's containerd is told of the mirror.
pub(crate) fn is_told(node: Node<'_>, registry: &str) -> bool {
    hosts(node, registry).is_some_and(|text| text.contains("http://127.0.0.1:4002"))
}

/// Until it is, or is no more; how long that took.
pub(crate) async fn until_told(node: Node<'_>, registry: &str, told: bool) -> Duration {
    let since = std::time::Instant::now();
    let what = format!("{} to be told: {told}", node.name());
    wait_until(&what, Duration::from_secs(90), || async {
        Ok(if is_told(node, registry) == told {
            Ok(())
        } else {
            Err(format!("{:?}", hosts(node, registry)))
        })
    })
    .await
    .unwrap();
    since.elapsed()
}

/// What a registry's log says of a path: how many bytes went out in bodies, and how many requests of a
/// method there were.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Went {
    pub(crate) bytes: u64,
    pub(crate) gets: usize,
    pub(crate) heads: usize,
}

/// Reads a registry's access log.
pub(crate) fn went(cluster: &Cluster, registry: &str, part: &str) -> Went {
    let path = cluster.info().dir.join(format!("logs/{registry}.log"));
    let log = std::fs::read_to_string(&path).unwrap();
    let mut went = Went::default();
    for line in log.lines() {
        let mut quoted = line.split('"');
        let (Some(request), Some(answer)) = (quoted.nth(1), quoted.next()) else {
            continue;
        };
        let mut words = request.split(' ');
        let (Some(method), Some(asked)) = (words.next(), words.next()) else {
            continue;
        };
        if !asked.contains(part) {
            continue;
        }
        let bytes = answer.split_whitespace().nth(1);
        match method {
            "GET" => {
                went.gets += 1;
                went.bytes += bytes.and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
            }
            "HEAD" => went.heads += 1,
            _ => {}
        }
    }
    went
}

/// A counter of a node's peer.
pub(crate) async fn counter(node: Node<'_>, name: &str) -> Result<u64> {
    let address = format!("{}:4001", node.address());
    let request = Request::get("/metrics").body(http_body_util::Full::default());
    let request = request.map_err(|e| Failed::at(&address, e))?;
    let answer = dragonfly_cluster::http::ask(&address, request).await?;
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    let row = text.lines().find(|line| line.starts_with(name));
    let value = row.and_then(|row| row.rsplit(' ').next()?.parse().ok());
    value.ok_or_else(|| Failed::at(name, format!("is not among\n{text}")))
}

/// The process of a node's peer: it shares the node's network, and no other node's.
pub(crate) async fn peer(node: Node<'_>) -> String {
    let script = r#"own=$(readlink /proc/self/ns/net)
for p in /proc/[0-9]*; do
    [ "$(readlink "$p/ns/net")" = "$own" ] || continue
    tr '\0' ' ' <"$p/cmdline" | grep -q '^/usr/bin/dragonfly peer' && echo "${p#/proc/}"
done
true"#;
    let found = node.run(&["sh", "-c", script]).await.unwrap();
    let mut all = found.split_whitespace();
    let one = all.next().expect("a peer").to_owned();
    assert_eq!(all.next(), None, "one peer a node: {found}");
    one
}
