//! Schedulers: always slots, although they have no volume. Contents belong to schedulers by
//! rendezvous hashing over the slots' names, so a scheduler that comes back, on whichever node, has to
//! be the same slot: else its contents would move to others and back.

use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy};
use k8s_openapi::api::core::v1::{Volume, VolumeMount};

use super::pods::{ADMIN, Part, Source, field, proof, proof_args, selector, template, volume};
use super::{Addresses, Keys, meta};
use crate::Settings;
use crate::names::{self, Component};
use crate::validate::{Mesh, Schedulers};

const THIS: Component = Component::Scheduler;
const STATE: &str = "/var/lib/dragonfly";

pub(super) fn deployments(
    mesh: &Mesh,
    addresses: &Addresses,
    keys: &Keys,
    settings: &Settings,
) -> Vec<Deployment> {
    let Schedulers::Slots { replicas, pods } = &mesh.schedulers else {
        return vec![];
    };
    (0..*replicas)
        .map(|index| {
            let slot = names::within(THIS, index);
            let part = Part {
                component: THIS,
                slot: Some(slot.clone()),
                pods,
                args: args(mesh, addresses, index),
                env: vec![
                    field("POD_NAME", "metadata.name"),
                    field("POD_NAMESPACE", "metadata.namespace"),
                ],
                ports: vec![
                    ("grpc", names::SCHEDULER_PORT),
                    (ADMIN, names::SCHEDULER_ADMIN),
                ],
                volumes: volumes(mesh),
                root: false,
                host_network: false,
                token: true,
                defaults: ("100m", 128 << 20),
                // Whether it speaks TLS is decided when it starts.
                restart_for: format!("{:?}", mesh.spec.security.transport),
                fingerprint: &keys.fingerprint,
                apart: false,
            };
            let mut metadata = meta(mesh, names::slot(&mesh.name, THIS, index), Some(THIS));
            label_slot(&mut metadata, &slot);
            Deployment {
                metadata,
                spec: Some(DeploymentSpec {
                    replicas: Some(1),
                    revision_history_limit: Some(2),
                    selector: selector(mesh, THIS, Some(&slot)),
                    strategy: Some(recreate()),
                    template: template(mesh, part, settings),
                    ..DeploymentSpec::default()
                }),
                ..Deployment::default()
            }
        })
        .collect()
}

fn volumes(mesh: &Mesh) -> Vec<(Volume, VolumeMount)> {
    let state = Source::EmptyDir { limit: None };
    // What signs tickets, and not what nodes join by.
    let key = Source::Key(names::authority(&mesh.name), "authority.key");
    let mut volumes = vec![
        // The last good policy, for a restart while the API server does not answer.
        volume("state", STATE, state, false),
        volume("authority", &format!("{STATE}/mesh"), key, false),
    ];
    volumes.extend(proof(mesh, false));
    volumes
}

fn args(mesh: &Mesh, addresses: &Addresses, index: u32) -> Vec<String> {
    let any = addresses.any();
    let mut args = vec![
        THIS.as_str().to_owned(),
        "--kubernetes".to_owned(),
        format!("--distribution={}/{}", mesh.namespace, mesh.name),
        format!("--name={}", names::within(THIS, index)),
        format!("--listen={any}:{}", names::SCHEDULER_PORT),
        format!("--admin={any}:{}", names::SCHEDULER_ADMIN),
        format!("--local=127.0.0.1:{}", names::SCHEDULER_LOCAL),
        format!("--state={STATE}"),
    ];
    args.extend(proof_args(mesh));
    for (other, address) in (0u32..).zip(&addresses.schedulers) {
        args.push(if other == index {
            format!("--advertise={address}")
        } else {
            format!("--replica={}={address}", names::within(THIS, other))
        });
    }
    args
}

/// Never two of one slot at once.
pub(super) fn recreate() -> DeploymentStrategy {
    DeploymentStrategy {
        type_: Some("Recreate".to_owned()),
        ..DeploymentStrategy::default()
    }
}

pub(super) fn label_slot(
    metadata: &mut k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
    slot: &str,
) {
    let labels = metadata.labels.get_or_insert_default();
    labels.insert(names::SLOT.to_owned(), slot.to_owned());
}
