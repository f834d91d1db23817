//! Who tells container runtimes of their node's mirror: a pod on each of the nodes that
//! `spec.mirror.nodeSelector` picks, which changes the share of them that `percent` says. Not the peer
//! itself, since it has to withdraw the entry when the peer hangs, and since a DaemonSet's pods are all
//! alike while nodes are picked.

use dragonfly_crds::mirror::ContainerRuntime;
use dragonfly_crds::placement::{Pods, Resources};
use k8s_openapi::api::apps::v1::DaemonSet;

use super::nodes;
use super::pods::{Part, Source, field, template, volume};
use crate::Settings;
use crate::names::Component;
use crate::validate::Mesh;

/// Where the pod has directories of the node's runtimes, and what nodes call those.
const CONTAINERD: &str = "/host/containerd";
const CONTAINERS: (&str, &str) = ("/host/containers", "/etc/containers");
const DOCKER: (&str, &str) = ("/host/docker", "/etc/docker");
/// Memory of a process that asks one question a moment, bytes.
const MEMORY: u64 = 32 << 20;

/// `None` where no node is to be told, or none is picked that has a peer.
pub(super) fn daemon_set(mesh: &Mesh, settings: &Settings) -> Option<DaemonSet> {
    const THIS: Component = Component::Mirror;
    let spec = mesh.spec.mirror.as_ref()?;
    let policy = mesh.policy.mirror.as_ref()?;
    let percent = spec.told_percent()?;
    // Where there is no peer there is no mirror either.
    let peers = &mesh.spec.peers;
    let mut node_selector = spec.node_selector.clone().unwrap_or_default();
    for (label, value) in &peers.pods.node_selector {
        let picked = node_selector.insert(label.clone(), value.clone());
        if picked.is_some_and(|other| other != *value) {
            // No node has both.
            return None;
        }
    }
    let pods = Pods {
        node_selector,
        resources: Resources::default(),
        ..peers.pods.clone()
    };
    let mut args = vec![
        "mirror".to_owned(),
        format!("--mirror=127.0.0.1:{}", policy.port),
        "--node=$(NODE_NAME)".to_owned(),
        format!("--percent={percent}"),
    ];
    let mut volumes = vec![];
    let mut runtimes = spec.runtimes.clone();
    runtimes.sort_unstable();
    for runtime in runtimes {
        let (name, at, on_node) = match runtime {
            ContainerRuntime::Containerd => {
                let on_node = spec.containerd_directory.as_str();
                args.push(format!("--containerd={CONTAINERD}"));
                args.push(format!("--on-node={on_node}"));
                ("containerd", CONTAINERD, on_node)
            }
            ContainerRuntime::Containers => {
                args.push(format!("--containers={}", CONTAINERS.0));
                ("containers", CONTAINERS.0, CONTAINERS.1)
            }
            ContainerRuntime::Docker => {
                args.push(format!("--docker={}", DOCKER.0));
                ("docker", DOCKER.0, DOCKER.1)
            }
        };
        let directory = Source::HostPath(on_node.to_owned());
        volumes.push(volume(name, at, directory, true));
    }
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
    let part = Part {
        component: THIS,
        slot: None,
        pods: &pods,
        args,
        env: vec![field("NODE_NAME", "spec.nodeName")],
        ports: vec![],
        volumes,
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
