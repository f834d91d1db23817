//! `spec.mirror` of a Distribution: the registry mirror that every peer is for its node, and on which
//! nodes container runtimes are told of it.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::distribution::Permission;
use crate::field::{Reason, quoted};
use crate::placement::{directory_pattern, labels_schema};
use crate::policy::{MirrorPolicy, MirrorRegistry};
use crate::resolve::{Check, has_sound_port};

/// Where containerd's settings are on most machines.
pub const CONTAINERD_DIRECTORY: &str = "/etc/containerd";

/// The registry mirror of every peer. Images are pulled through it under their own names.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[schemars(inline)]
#[serde(default, rename_all = "camelCase")]
pub struct Mirror {
    /// The port on each node's loopback. Differs from spec.peers.port and spec.peers.adminPort.
    #[schemars(range(min = 1024, max = 65535))]
    pub port: i32,
    /// Registries by name. They are trusted to say truly who may read what: a layer that one of them
    /// brought is not fetched again from another. Each once.
    #[schemars(length(max = 64))]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub registries: Vec<MirroredRegistry>,
    /// Whether registries that are not listed are mirrored as well, each for itself: Allowed or
    /// Never.
    pub others: Permission,
    /// What a tag means while its registry does not answer. Revalidate: nothing, the pull fails as it
    /// would without the mirror. LastKnown: what it last meant on that node, to who was let in before.
    pub tags: TagPolicy,
    /// Secrets of this namespace (type kubernetes.io/dockerconfigjson) that peers show to the listed
    /// registries for clients that show nothing: whoever can pull on a node that is told of the mirror
    /// can then pull what these secrets open. Every peer gets them.
    #[schemars(length(max = 16))]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pull_secrets: Vec<PullSecret>,
    /// Labels of the nodes whose container runtime is told of the mirror, among those with a peer; all
    /// of them when empty or absent. No node is told when percent is absent as well: the mirror listens
    /// and nobody uses it.
    #[schemars(schema_with = "selector_schema")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<BTreeMap<String, String>>,
    /// How many of these nodes are told, in percent: all when absent. The same nodes each time, and
    /// those of a lower share are among those of a higher one. At 0 every node is looked at and none
    /// is changed: `kubectl dragonfly mirror plan` shows what would be.
    #[schemars(range(min = 0, max = 100))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub percent: Option<i32>,
    /// Which runtimes are told. Containerd: hosts.toml of each registry. Containers: CRI-O and podman,
    /// by a file in /etc/containers/registries.conf.d with the listed registries. Docker: daemon.json,
    /// for Docker Hub alone; it is read when Docker is reloaded.
    #[schemars(length(max = 3))]
    #[schemars(extend("x-kubernetes-list-type" = "set"))]
    pub runtimes: Vec<ContainerRuntime>,
    /// The directory on each node with containerd's config.toml and certs.d.
    #[schemars(length(min = 2, max = 255), regex(pattern = directory_pattern!()))]
    pub containerd_directory: String,
}

impl Default for Mirror {
    fn default() -> Self {
        Self {
            port: 4002,
            registries: vec![],
            others: Permission::Allowed,
            tags: TagPolicy::default(),
            pull_secrets: vec![],
            node_selector: None,
            percent: None,
            runtimes: vec![ContainerRuntime::Containerd],
            containerd_directory: CONTAINERD_DIRECTORY.to_owned(),
        }
    }
}

impl Mirror {
    /// On how many of the nodes that are picked runtimes are told, in percent; `None`: nobody is asked
    /// to look at any.
    pub fn told_percent(&self) -> Option<i32> {
        match (&self.node_selector, self.percent) {
            (None, None) => None,
            (_, percent) => Some(percent.unwrap_or(100)),
        }
    }
}

/// Whose settings are changed on nodes.
#[derive(
    Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord,
)]
#[schemars(inline)]
pub enum ContainerRuntime {
    /// containerd.
    Containerd,
    /// Whatever reads registries.conf: CRI-O, podman.
    Containers,
    /// Docker.
    Docker,
}

/// A Secret of the same namespace.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[schemars(inline)]
#[serde(rename_all = "camelCase")]
pub struct PullSecret {
    /// Its name.
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
    )]
    pub name: String,
}

/// Labels that are set as a whole: who applies `{}` after some labels means all nodes, where merged maps
/// would keep what was there.
fn selector_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
    let mut schema = labels_schema(generator);
    schema.insert("x-kubernetes-map-type".to_owned(), "atomic".into());
    schema
}

/// A registry.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[schemars(inline)]
#[serde(rename_all = "camelCase")]
pub struct MirroredRegistry {
    /// As names of images have it: host or host:port, such as docker.io.
    #[schemars(
        length(min = 1, max = 259),
        regex(pattern = r"^[a-z0-9]([-a-z0-9_.]*[a-z0-9])?(:[0-9]{1,5})?$")
    )]
    pub host: String,
    /// Where it is, where that is not `https://` and the host: `http://registry.example:5000`. Seeds
    /// and peers have to reach it there.
    #[schemars(
        length(min = 1, max = 512),
        regex(pattern = r"^https?://([-A-Za-z0-9_.]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?/?$")
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
}

/// What a tag means while its registry does not answer.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[schemars(inline)]
pub enum TagPolicy {
    /// Nothing.
    #[default]
    Revalidate,
    /// What it last meant.
    LastKnown,
}

/// The part of the policy. `taken`: ports of the same nodes that are others'.
pub(crate) fn resolve(check: &mut Check, spec: &Mirror, taken: [i32; 2]) -> MirrorPolicy {
    let port = check.integer("spec.mirror.port", spec.port, 1024, 65535);
    if taken.contains(&spec.port) {
        let message = format!("{}: is taken by spec.peers on the same nodes", spec.port);
        check.fail("spec.mirror.port", Reason::InvalidValue, message);
    }
    check.integer("spec.mirror.percent", spec.percent.unwrap_or(100), 0, 100);
    let mut runtimes = BTreeSet::new();
    if spec.runtimes.is_empty() || !spec.runtimes.iter().all(|r| runtimes.insert(r)) {
        let message = "must hold one runtime at least, each once".to_owned();
        check.fail("spec.mirror.runtimes", Reason::InvalidValue, message);
    }
    let mut secrets = BTreeSet::new();
    for (index, secret) in spec.pull_secrets.iter().enumerate() {
        let at = format!("spec.mirror.pullSecrets[{index}].name");
        if secret.name.is_empty() || !secrets.insert(&secret.name) {
            let message = format!("{}: must be a name, each once", quoted(&secret.name));
            check.fail(&at, Reason::InvalidValue, message);
        }
    }
    if !spec.pull_secrets.is_empty() && spec.registries.is_empty() {
        let message = "are shown to listed registries only: list them in spec.mirror.registries";
        check.fail(
            "spec.mirror.pullSecrets",
            Reason::InvalidValue,
            message.to_owned(),
        );
    }
    let mut seen = BTreeSet::new();
    for (index, registry) in spec.registries.iter().enumerate() {
        let at = |field: &str| format!("spec.mirror.registries[{index}].{field}");
        let host = &registry.host;
        let bad = host.chars().any(|c| c.is_ascii_uppercase() || c == '/') || host.is_empty();
        if bad || !has_sound_port(host) {
            let message = format!("{}: must be host or host:port in lower case", quoted(host));
            check.fail(&at("host"), Reason::InvalidValue, message);
        }
        if !seen.insert(host) {
            let message = format!("{}: is listed twice", quoted(host));
            check.fail(&at("host"), Reason::InvalidValue, message);
        }
        if let Some(url) = &registry.url
            && (url.contains('@')
                || !has_sound_port(url)
                || !(url.starts_with("http://") || url.starts_with("https://")))
        {
            // Not shown: it may hold a password.
            let message = "must be http://host:port or https://host:port".to_owned();
            check.fail(&at("url"), Reason::InvalidValue, message);
        }
    }
    MirrorPolicy {
        port: u16::try_from(port).unwrap_or_default(),
        registries: spec
            .registries
            .iter()
            .map(|registry| MirrorRegistry {
                host: registry.host.clone(),
                url: registry.url.clone(),
            })
            .collect(),
        others: spec.others == Permission::Allowed,
        last_known_tags: spec.tags == TagPolicy::LastKnown,
    }
}
