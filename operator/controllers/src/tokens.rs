//! What a token says: who its bearer is, or why he is nobody. Knows no cluster and no clock.

use dragonfly_identity::{Role, SCHEDULER_NAME, Subject, Who, assigned, node_name};
use dragonfly_operator_core::names::{self, Component};
use dragonfly_proto::id::NodeId;
use dragonfly_proto::rpc;
use k8s_openapi::api::authentication::v1::TokenReviewStatus;
use tonic::Status;

/// Longest token, bytes.
const MAX_TOKEN: usize = 16 << 10;
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";

/// Where an identity of seeds comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seeds {
    Slots,
    OfMachines,
    OfPods,
}

/// A mesh, as far as tokens of it go.
pub(crate) struct Mesh {
    pub(crate) uid: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) seeds: Seeds,
    /// Machines and nodes that get nothing.
    pub(crate) revoked: Vec<String>,
    pub(crate) join_secret: String,
}

/// What somebody gets.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Granted {
    pub(crate) who: Who,
    /// His identity, where he is a node.
    pub(crate) node: Option<NodeId>,
    pub(crate) names: Vec<String>,
}

/// Who may ask as what: what the API server says of a token, and nothing else.
pub(crate) fn judge(
    known: &Mesh,
    audience: &str,
    status: &TokenReviewStatus,
    wanted: rpc::Role,
) -> Result<Granted, String> {
    if status.authenticated != Some(true) {
        let error = status.error.as_deref().unwrap_or("it does not say why");
        return Err(format!(
            "the API server does not take the token (of a pod that is gone, or too old?): {}",
            shortened(error)
        ));
    }
    // One that does not know audiences would have taken any token.
    let audiences = status.audiences.iter().flatten();
    if !audiences.into_iter().any(|a| a == audience) {
        return Err(format!(
            "the API server did not judge the token for {audience}"
        ));
    }
    let user = status.user.clone().unwrap_or_default();
    let name = user.username.unwrap_or_default();
    let of_account = name.strip_prefix("system:serviceaccount:");
    let (namespace, account) = of_account
        .and_then(|rest| rest.split_once(':'))
        .ok_or_else(|| {
            format!(
                "the token is {}'s, who is no ServiceAccount",
                shortened(&name)
            )
        })?;
    let parts = [
        (Component::Scheduler, Role::Scheduler, rpc::Role::Scheduler),
        (Component::Seed, Role::Seed, rpc::Role::Seed),
        (Component::Peer, Role::Peer, rpc::Role::Peer),
    ];
    let part = parts.into_iter().find(|(component, ..)| {
        namespace == known.namespace && account == names::of(&known.name, *component)
    });
    let (_, role, asked) = part.ok_or_else(|| {
        format!(
            "ServiceAccount {namespace}/{account} is of no part of mesh {}/{}",
            known.namespace, known.name
        )
    })?;
    if asked != wanted {
        return Err(format!(
            "ServiceAccount {namespace}/{account} makes a {role}, and a certificate of another role \
             was asked for"
        ));
    }
    let extra = user.extra.unwrap_or_default();
    let one = |key: &str| extra.get(key).and_then(|all| all.first()).cloned();
    let (Some(pod), Some(pod_uid)) = (one(POD_NAME), one(POD_UID)) else {
        return Err("the token is bound to no pod: only a projected one is taken".to_owned());
    };
    let machine = one(NODE_NAME).ok_or_else(|| {
        "the API server does not say on which node the token's pod is (Kubernetes 1.30 does)"
            .to_owned()
    })?;
    if known.revoked.contains(&machine) {
        return Err(format!(
            "node {machine} is revoked (spec.security.revokedNodes)"
        ));
    }
    let who = Who {
        mesh: known.uid.clone(),
        role,
        node: machine.clone(),
    };
    let subject = match (role, known.seeds) {
        (Role::Scheduler, _) => {
            return Ok(Granted {
                who,
                node: None,
                names: vec![SCHEDULER_NAME.to_owned()],
            });
        }
        (Role::Seed, Seeds::Slots) => Subject::Slot(slot(&known.name, &pod).ok_or_else(|| {
            format!("pod {} is of no slot of this mesh's seeds", shortened(&pod))
        })?),
        (Role::Seed, Seeds::OfPods) => Subject::Pod(&pod_uid),
        _ => Subject::Machine(&machine),
    };
    let node = assigned(&known.uid, role.as_str(), subject);
    if known.revoked.contains(&node.to_string()) {
        return Err(format!(
            "node {node} is revoked (spec.security.revokedNodes)"
        ));
    }
    Ok(Granted {
        who,
        node: Some(node),
        names: vec![node_name(&node)],
    })
}

/// The slot of a pod `MESH-seed-N-…` of a Deployment.
fn slot(mesh: &str, pod: &str) -> Option<u32> {
    let rest = pod.strip_prefix(&names::of(mesh, Component::Seed))?;
    rest.strip_prefix('-')?.split('-').next()?.parse().ok()
}

/// Who runs elsewhere, and shows the mesh's secret: what he says he is, but no scheduler.
pub(crate) fn joined(known: &Mesh, ask: &rpc::IssueRequest) -> Result<Granted, Status> {
    if !same(&ask.token, &known.join_secret) {
        return Err(Status::permission_denied(
            "the join token is not this mesh's",
        ));
    }
    let role = match ask.role() {
        rpc::Role::Seed => Role::Seed,
        rpc::Role::Peer => Role::Peer,
        rpc::Role::Viewer => {
            let who = Who {
                mesh: known.uid.clone(),
                role: Role::Viewer,
                node: "anybody".to_owned(),
            };
            return Ok(Granted {
                who,
                node: None,
                names: vec![],
            });
        }
        rpc::Role::Scheduler | rpc::Role::Unspecified => {
            let text = "a join token makes seeds, peers and viewers";
            return Err(Status::permission_denied(text));
        }
    };
    let node = NodeId::from_slice(&ask.node)
        .ok_or_else(|| Status::invalid_argument("the node's identity is not 16 bytes"))?;
    let name = node.to_string();
    if known.revoked.contains(&name) {
        let text = format!("node {name} is revoked (spec.security.revokedNodes)");
        return Err(Status::permission_denied(text));
    }
    Ok(Granted {
        who: Who {
            mesh: known.uid.clone(),
            role,
            node: name,
        },
        node: Some(node),
        names: vec![node_name(&node)],
    })
}

/// In a time that does not tell how much of it is right.
fn same(shown: &str, secret: &str) -> bool {
    let key = |text: &str| blake3::derive_key("dragonfly 2026-11 comparison v1", text.as_bytes());
    // Hashes compare in constant time.
    blake3::Hash::from(key(shown)) == blake3::Hash::from(key(secret))
}

/// What a token says of itself, believed by nobody: enough to not ask the API server in vain, and to
/// say what is wrong.
pub(crate) struct Claims {
    pub(crate) audiences: Vec<String>,
    pub(crate) expires: Option<u64>,
}

pub(crate) fn claims(token: &str) -> Result<Claims, String> {
    use base64::Engine as _;
    let none = || "this is neither a projected token nor a join token".to_owned();
    if token.len() > MAX_TOKEN {
        return Err(format!("a token of {} bytes is too long", token.len()));
    }
    let payload = token.split('.').nth(1).ok_or_else(none)?;
    let payload = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(payload);
    let payload = payload.map_err(|_| none())?;
    let said: serde_json::Value = serde_json::from_slice(&payload).map_err(|_| none())?;
    let audiences = match &said["aud"] {
        serde_json::Value::String(one) => vec![one.clone()],
        serde_json::Value::Array(all) => {
            let all = all.iter().filter_map(|one| one.as_str());
            all.map(str::to_owned).collect()
        }
        _ => return Err(none()),
    };
    Ok(Claims {
        audiences,
        expires: said["exp"].as_u64(),
    })
}

/// What a stranger wrote, for a message.
pub(crate) fn shortened(text: &str) -> String {
    let printable = text.chars().filter(|c| !c.is_control());
    printable.take(200).collect()
}

#[cfg(test)]
#[path = "tokens_tests.rs"]
mod tests;
