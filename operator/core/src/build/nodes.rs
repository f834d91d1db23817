//! Seeds and peers: one program, told which it is.

use dragonfly_crds::placement::PEER_DIRECTORY;
use dragonfly_crds::policy::Media;
use k8s_openapi::api::apps::v1::{
    DaemonSet, DaemonSetSpec, DaemonSetUpdateStrategy, Deployment, DeploymentSpec,
    DeploymentStrategy, RollingUpdateDaemonSet, RollingUpdateDeployment,
};
use k8s_openapi::api::core::v1::{
    Affinity, EnvVar, PersistentVolumeClaim, PersistentVolumeClaimSpec, PodAffinityTerm,
    PodAntiAffinity, PodTemplateSpec, Volume, VolumeMount, VolumeResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::pods::{ADMIN, Part, Source, field, proof, proof_args, selector, template, volume};
use super::scheduler::{label_slot, recreate};
use super::{Addresses, Keys, meta};
use crate::Settings;
use crate::names::{self, Component};
use crate::validate::{Mesh, Schedulers};

const STATE: &str = "/var/lib/dragonfly";
const SOCKET: &str = "/run/dragonfly";
const JOIN: &str = "/etc/dragonfly/join";
const PULL_SECRETS: &str = "/etc/dragonfly/pull-secrets";

pub(super) fn seeds(
    mesh: &Mesh,
    addresses: &Addresses,
    keys: &Keys,
    settings: &Settings,
) -> Vec<Deployment> {
    const THIS: Component = Component::Seed;
    let storage = &mesh.spec.seeds.storage;
    let deployment = |slot: Option<u32>| {
        let within = slot.map(|index| names::within(THIS, index));
        let (source, root) = match (slot, &storage.host_path) {
            (Some(index), _) => (Source::Claim(names::slot(&mesh.name, THIS, index)), false),
            (None, Some(path)) => (Source::HostPath(path.path.clone()), true),
            (None, None) => {
                let limit = storage
                    .empty_dir
                    .as_ref()
                    .and_then(|d| d.size_limit.clone());
                (Source::EmptyDir { limit }, false)
            }
        };
        let socket = Source::EmptyDir { limit: None };
        let mut volumes = vec![
            volume("state", STATE, source, root),
            volume("socket", SOCKET, socket, root),
        ];
        volumes.extend(membership(mesh, root));
        // A slot is the same node after every restart, a pod without one is another.
        let name = within.clone().unwrap_or_else(|| "$(POD_NAME)".to_owned());
        let part = Part {
            component: THIS,
            slot: within.clone(),
            pods: &mesh.spec.seeds.pods,
            args: args(
                mesh,
                THIS,
                addresses,
                &name,
                names::SEED_PORT,
                names::SEED_ADMIN,
            ),
            env: vec![field("POD_NAME", "metadata.name"), zone()],
            ports: vec![("mesh", names::SEED_PORT), (ADMIN, names::SEED_ADMIN)],
            volumes,
            root,
            host_network: false,
            token: false,
            defaults: ("250m", memory(mesh, 512 << 20)),
            restart_for: restart_for(mesh),
            fingerprint: &keys.fingerprint,
            apart: root,
        };
        let name = match slot {
            Some(index) => names::slot(&mesh.name, THIS, index),
            None => names::of(&mesh.name, THIS),
        };
        let mut metadata = meta(mesh, name, Some(THIS));
        if let Some(within) = &within {
            label_slot(&mut metadata, within);
        }
        let replicas = if slot.is_some() { 1 } else { mesh.seeds };
        Deployment {
            metadata,
            spec: Some(DeploymentSpec {
                replicas: Some(i32::try_from(replicas).unwrap_or(i32::MAX)),
                revision_history_limit: Some(2),
                selector: selector(mesh, THIS, within.as_deref()),
                strategy: Some(if slot.is_some() {
                    recreate()
                } else {
                    rolling(root, mesh.seeds)
                }),
                template: template(mesh, part, settings),
                ..DeploymentSpec::default()
            }),
            ..Deployment::default()
        }
    };
    if mesh.seeds == 0 {
        vec![]
    } else if mesh.seeds_are_slots() {
        (0..mesh.seeds)
            .map(|index| deployment(Some(index)))
            .collect()
    } else {
        vec![deployment(None)]
    }
}

/// A volume for each slot of seeds.
pub(super) fn claims(mesh: &Mesh) -> Vec<PersistentVolumeClaim> {
    let Some(wanted) = &mesh.spec.seeds.storage.volume_claim else {
        return vec![];
    };
    let size = [("storage".to_owned(), Quantity(wanted.size.clone()))];
    (0..mesh.seeds)
        .map(|index| {
            let name = names::slot(&mesh.name, Component::Seed, index);
            let mut metadata = meta(mesh, name, Some(Component::Seed));
            label_slot(&mut metadata, &names::within(Component::Seed, index));
            PersistentVolumeClaim {
                metadata,
                spec: Some(PersistentVolumeClaimSpec {
                    access_modes: Some(vec!["ReadWriteOnce".to_owned()]),
                    storage_class_name: wanted.storage_class_name.clone(),
                    resources: Some(VolumeResourceRequirements {
                        requests: Some(size.clone().into()),
                        ..VolumeResourceRequirements::default()
                    }),
                    ..PersistentVolumeClaimSpec::default()
                }),
                ..PersistentVolumeClaim::default()
            }
        })
        .collect()
}

pub(super) fn peers(
    mesh: &Mesh,
    addresses: &Addresses,
    keys: &Keys,
    settings: &Settings,
) -> DaemonSet {
    const THIS: Component = Component::Peer;
    let peers = &mesh.spec.peers;
    let source = match (&peers.storage.empty_dir, &peers.storage.host_path) {
        (Some(dir), _) => Source::EmptyDir {
            limit: dir.size_limit.clone(),
        },
        (None, Some(path)) => Source::HostPath(path.path.clone()),
        (None, None) => Source::HostPath(PEER_DIRECTORY.to_owned()),
    };
    let socket = Source::HostPath(peers.socket_directory.clone());
    let mut volumes = vec![
        volume("state", STATE, source, true),
        volume("socket", SOCKET, socket, true),
    ];
    volumes.extend(membership(mesh, true));
    let secrets = mesh.spec.mirror.iter().flat_map(|m| &m.pull_secrets);
    let pull_secrets: Vec<_> = secrets
        .enumerate()
        .map(|(at, secret)| {
            let source = Source::PullSecret(secret.name.clone());
            volume(
                &format!("pull-secret-{at}"),
                &format!("{PULL_SECRETS}/{at}"),
                source,
                true,
            )
        })
        .collect();
    // Validated: they are ports.
    let port = |number: i32| u16::try_from(number).unwrap_or_default();
    let (own, admin) = (port(peers.port), port(peers.admin_port));
    let mut args = args(mesh, THIS, addresses, "$(NODE_NAME)", own, admin);
    if !pull_secrets.is_empty() {
        args.push(format!("--pull-secrets={PULL_SECRETS}"));
        volumes.extend(pull_secrets);
    }
    let part = Part {
        component: THIS,
        slot: None,
        pods: &peers.pods,
        args,
        env: vec![field("NODE_NAME", "spec.nodeName"), zone()],
        ports: vec![("mesh", own), (ADMIN, admin)],
        volumes,
        root: true,
        host_network: true,
        token: false,
        defaults: ("100m", memory(mesh, 256 << 20)),
        restart_for: restart_for(mesh),
        fingerprint: &keys.fingerprint,
        apart: false,
    };
    daemon_set(mesh, THIS, template(mesh, part, settings))
}

/// A pod on each node of the mesh's peers, replaced as they are.
pub(super) fn daemon_set(
    mesh: &Mesh,
    component: Component,
    template: PodTemplateSpec,
) -> DaemonSet {
    let most = format!("{}%", mesh.spec.peers.max_unavailable_percent);
    DaemonSet {
        metadata: meta(mesh, names::of(&mesh.name, component), Some(component)),
        spec: Some(DaemonSetSpec {
            revision_history_limit: Some(2),
            selector: selector(mesh, component, None),
            update_strategy: Some(DaemonSetUpdateStrategy {
                type_: Some("RollingUpdate".to_owned()),
                rolling_update: Some(RollingUpdateDaemonSet {
                    max_unavailable: Some(IntOrString::String(most)),
                    ..RollingUpdateDaemonSet::default()
                }),
            }),
            template,
            ..DaemonSetSpec::default()
        }),
        ..DaemonSet::default()
    }
}

/// Which zone the node is in. Kubernetes puts that label of nodes on their pods from 1.35 on; before, all
/// nodes count as of one zone.
fn zone() -> EnvVar {
    field(
        "DRAGONFLY_ZONE",
        "metadata.labels['topology.kubernetes.io/zone']",
    )
}

/// At most one seed on a node, whose directory it has.
pub(super) fn apart(mesh: &Mesh) -> Affinity {
    Affinity {
        pod_anti_affinity: Some(PodAntiAffinity {
            required_during_scheduling_ignored_during_execution: Some(vec![PodAffinityTerm {
                label_selector: Some(selector(mesh, Component::Seed, None)),
                topology_key: "kubernetes.io/hostname".to_owned(),
                ..PodAffinityTerm::default()
            }]),
            ..PodAntiAffinity::default()
        }),
        ..Affinity::default()
    }
}

/// With a directory of the node the old one goes first: there may be no other node. Else the only seed
/// stays until its successor is ready, which one with a wrong image or token never is.
fn rolling(apart: bool, seeds: u32) -> DeploymentStrategy {
    let stays = !apart && seeds == 1;
    DeploymentStrategy {
        type_: Some("RollingUpdate".to_owned()),
        rolling_update: Some(RollingUpdateDeployment {
            max_unavailable: Some(IntOrString::Int(if stays { 0 } else { 1 })),
            max_surge: Some(IntOrString::Int(if apart { 0 } else { 1 })),
        }),
    }
}

fn args(
    mesh: &Mesh,
    component: Component,
    addresses: &Addresses,
    name: &str,
    port: u16,
    admin: u16,
) -> Vec<String> {
    let any = addresses.any();
    let mut args = vec![
        component.as_str().to_owned(),
        format!("--name={name}"),
        format!("--state={STATE}"),
        format!("--listen={any}:{port}"),
        format!("--socket={SOCKET}/node.sock"),
        format!("--admin={any}:{admin}"),
    ];
    args.extend(proof_args(mesh));
    if mesh.secure() && !mesh.issues() {
        args.push(format!("--join-token-file={JOIN}/join-token"));
    }
    args
}

/// How a node finds its mesh and proves itself.
fn membership(mesh: &Mesh, root: bool) -> Vec<(Volume, VolumeMount)> {
    let mut volumes = proof(mesh, root);
    // Somebody else's mesh, which knows nothing of this cluster's accounts.
    if let Schedulers::External(external) = &mesh.schedulers
        && mesh.secure()
        && let Some(secret) = &external.join_token_secret_ref
    {
        volumes.push(volume(
            "join",
            JOIN,
            Source::Secret(secret.name.clone()),
            root,
        ));
    }
    volumes
}

/// A node that keeps content in memory has to have room for it.
fn memory(mesh: &Mesh, own: u64) -> u64 {
    let storage = &mesh.policy.node.storage;
    match storage.media {
        Media::Disk => own,
        Media::Memory => own.saturating_add(storage.quota_bytes),
    }
}

/// What a node cannot take from a policy while it runs.
fn restart_for(mesh: &Mesh) -> String {
    let node = &mesh.policy.node;
    let own = format!("{:?} {:?}", node.transport, node.storage.media);
    match &mesh.schedulers {
        Schedulers::Slots { .. } => own,
        // Whose mesh it is, is read once.
        Schedulers::External(external) => format!("{own} {}", external.mesh),
    }
}
