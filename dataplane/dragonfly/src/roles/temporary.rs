//! A node for one command, where none runs: it talks to the mesh's schedulers if it knows any, and
//! goes to the origin itself otherwise.

use std::net::SocketAddr;

use dragonfly_node::node::Role;
use futures::future::BoxFuture;
use tokio_util::sync::CancellationToken;

use super::identity::Proof;
use super::node::{Config, start};
use super::{MeshArgs, bootstrap, manifests};
use crate::commands::{StartNode, TemporaryNode};

/// Starts it with what the environment says of the mesh.
pub(crate) struct FromEnvironment;

impl StartNode for FromEnvironment {
    fn start(&self) -> BoxFuture<'_, Result<TemporaryNode, String>> {
        Box::pin(async {
            let variable = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
            let mesh = MeshArgs {
                schedulers: variable("DRAGONFLY_SCHEDULERS")
                    .map(|all| all.split(',').map(|s| s.trim().to_owned()).collect())
                    .unwrap_or_default(),
                join_token_file: variable("DRAGONFLY_JOIN_TOKEN_FILE").map(Into::into),
                identity_token_file: None,
                identity_dir: None,
                mesh: variable("DRAGONFLY_MESH").unwrap_or_else(|| "default".to_owned()),
                bootstrap: variable("DRAGONFLY_BOOTSTRAP").map(Into::into),
            };
            // Beside the downloads, not in memory: content may be larger than that.
            let dir = tempfile::Builder::new()
                .prefix("dragonfly-")
                .tempdir()
                .map_err(|e| format!("a directory for a node of its own: {e}"))?;
            let mut policy = manifests::default_policy().map_err(|e| e.to_string())?;
            policy.node.storage.quota_bytes = 1 << 50;
            policy.node.storage.reserve_free_percent = 0;
            let stop = CancellationToken::new();
            let known = bootstrap::of(&mesh, &stop).map_err(|e| e.to_string())?;
            let proof = Proof::of(&mesh, &known).map_err(|e| e.to_string())?;
            let socket = dir.path().join("node.sock");
            let config = Config {
                role: Role::Peer,
                name: format!("get-{}", std::process::id()),
                zone: variable("DRAGONFLY_ZONE").unwrap_or_default(),
                mesh: known.mesh,
                state: dir.path().to_owned(),
                listen: SocketAddr::from(([0, 0, 0, 0], 0)),
                advertise: vec![],
                schedulers: known.schedulers,
                proof,
                policy: Some(policy),
                ruled: CancellationToken::new(),
                socket: Some((socket.clone(), 0o600)),
                mirrored: None,
            };
            let node = start(config, stop.clone())
                .await
                .map_err(|e| e.to_string())?;
            let end = async move {
                stop.cancel();
                node.shutdown().await;
                drop(dir);
            };
            Ok(TemporaryNode {
                socket,
                stop: Box::pin(end),
            })
        })
    }
}
