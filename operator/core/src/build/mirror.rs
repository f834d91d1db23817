//! Who tells container runtimes of their node's mirror: a pod on each of the nodes that
//! `spec.mirror.nodeSelector` picks. Not the peer itself, since it has to withdraw the entry when the
//! peer hangs, and since a DaemonSet's pods are all alike while nodes are picked.

use dragonfly_crds::placement::{Pods, Resources};
use k8s_openapi::api::apps::v1::DaemonSet;

use super::nodes;
use super::pods::{Part, Source, template, volume};
use crate::Settings;
use crate::names::Component;
use crate::validate::Mesh;

/// Where the pod has the node's directory of containerd.
const CONTAINERD: &str = "/host/containerd";
/// Memory of a process that asks one question a moment, bytes.
const MEMORY: u64 = 32 << 20;

/// `None` where no node is to be told.
pub(super) fn daemon_set(mesh: &Mesh, settings: &Settings) -> Option<DaemonSet> {
    const THIS: Component = Component::Mirror;
    let spec = mesh.spec.mirror.as_ref()?;
    let policy = mesh.policy.mirror.as_ref()?;
    let chosen = spec.node_selector.as_ref()?;
    // Where there is no peer there is no mirror either.
    let peers = &mesh.spec.peers;
    let mut node_selector = chosen.clone();
    node_selector.extend(peers.pods.node_selector.clone());
    let pods = Pods {
        node_selector,
        resources: Resources::default(),
        ..peers.pods.clone()
    };
    let mut args = vec![
        "mirror".to_owned(),
        format!("--mirror=127.0.0.1:{}", policy.port),
        format!("--containerd={CONTAINERD}"),
        format!("--on-node={}", spec.containerd_directory),
    ];
    args.extend(
        policy
            .registries
            .iter()
            .map(|registry| match &registry.url {
                Some(url) => format!("--registry={}={url}", registry.host),
                None => format!("--registry={}", registry.host),
            }),
    );
    if policy.others {
        args.push("--others".to_owned());
    }
    let directory = Source::HostPath(spec.containerd_directory.clone());
    let part = Part {
        component: THIS,
        slot: None,
        pods: &pods,
        args,
        env: vec![],
        ports: vec![],
        volumes: vec![volume("containerd", CONTAINERD, directory, true)],
        root: true,
        host_network: true,
        token: false,
        defaults: ("10m", MEMORY),
        restart_for: String::new(),
        fingerprint: "",
        apart: false,
    };
    Some(nodes::daemon_set(
        mesh,
        THIS,
        template(mesh, part, settings),
    ))
}
