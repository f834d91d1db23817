//! Addresses of schedulers, who may reach what, and how many may be taken away at once.

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::api::networking::v1::{
    IPBlock, NetworkPolicy, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort,
    NetworkPolicySpec,
};
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::meta;
use super::pods::selector;
use super::scheduler::label_slot;
use crate::names::{self, Component};
use crate::validate::{Mesh, Schedulers};

/// A Service for each slot of schedulers. Their addresses stay for as long as the mesh does.
pub fn services(mesh: &Mesh) -> Vec<Service> {
    const THIS: Component = Component::Scheduler;
    let Schedulers::Slots { replicas, .. } = &mesh.schedulers else {
        return vec![];
    };
    (0..*replicas)
        .map(|index| {
            let slot = names::within(THIS, index);
            let mut metadata = meta(mesh, names::slot(&mesh.name, THIS, index), Some(THIS));
            label_slot(&mut metadata, &slot);
            Service {
                metadata,
                spec: Some(ServiceSpec {
                    type_: Some("ClusterIP".to_owned()),
                    ip_family_policy: Some("PreferDualStack".to_owned()),
                    selector: selector(mesh, THIS, Some(&slot)).match_labels,
                    ports: Some(vec![ServicePort {
                        name: Some("grpc".to_owned()),
                        port: i32::from(names::SCHEDULER_PORT),
                        target_port: Some(IntOrString::String("grpc".to_owned())),
                        protocol: Some("TCP".to_owned()),
                        ..ServicePort::default()
                    }]),
                    ..ServiceSpec::default()
                }),
                ..Service::default()
            }
        })
        .collect()
}

/// One at a time may be taken away, where there is more than one: a drain never waits for ever.
pub(super) fn budgets(mesh: &Mesh) -> Vec<PodDisruptionBudget> {
    let schedulers = match &mesh.schedulers {
        Schedulers::Slots { replicas, .. } => *replicas,
        Schedulers::External(_) => 0,
    };
    [
        (Component::Scheduler, schedulers),
        (Component::Seed, mesh.seeds),
    ]
    .into_iter()
    .filter(|(_, count)| *count > 1)
    .map(|(part, _)| PodDisruptionBudget {
        metadata: meta(mesh, names::of(&mesh.name, part), Some(part)),
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::Int(1)),
            selector: Some(selector(mesh, part, None)),
            // A pod that does not work is no reason to keep a node.
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".to_owned()),
            ..PodDisruptionBudgetSpec::default()
        }),
        ..PodDisruptionBudget::default()
    })
    .collect()
}

/// Who may connect to schedulers and seeds: the mesh's pods and, for peers have the nodes' addresses,
/// the nodes. Metrics are for every pod of the cluster. What they connect to is not limited: origins
/// are anywhere.
pub(super) fn policies(mesh: &Mesh) -> Vec<NetworkPolicy> {
    let Some(wanted) = &mesh.spec.network_policies else {
        return vec![];
    };
    let nodes = || {
        wanted.node_cidrs.iter().map(|cidr| NetworkPolicyPeer {
            ip_block: Some(IPBlock {
                cidr: cidr.clone(),
                ..IPBlock::default()
            }),
            ..NetworkPolicyPeer::default()
        })
    };
    let own = NetworkPolicyPeer {
        pod_selector: Some(LabelSelector {
            match_labels: Some([(names::INSTANCE.to_owned(), mesh.name.clone())].into()),
            ..LabelSelector::default()
        }),
        ..NetworkPolicyPeer::default()
    };
    let everyone = NetworkPolicyPeer {
        namespace_selector: Some(LabelSelector::default()),
        ..NetworkPolicyPeer::default()
    };
    let rule = |port: u16, from: Vec<NetworkPolicyPeer>| NetworkPolicyIngressRule {
        from: Some(from),
        ports: Some(vec![NetworkPolicyPort {
            port: Some(IntOrString::Int(i32::from(port))),
            protocol: Some("TCP".to_owned()),
            ..NetworkPolicyPort::default()
        }]),
    };
    let mut parts = vec![];
    if matches!(mesh.schedulers, Schedulers::Slots { .. }) {
        parts.push((
            Component::Scheduler,
            names::SCHEDULER_PORT,
            names::SCHEDULER_ADMIN,
        ));
    }
    if mesh.seeds > 0 {
        parts.push((Component::Seed, names::SEED_PORT, names::SEED_ADMIN));
    }
    parts
        .into_iter()
        .map(|(part, port, admin)| NetworkPolicy {
            metadata: meta(mesh, names::of(&mesh.name, part), Some(part)),
            spec: Some(NetworkPolicySpec {
                pod_selector: Some(selector(mesh, part, None)),
                policy_types: Some(vec!["Ingress".to_owned()]),
                ingress: Some(vec![
                    rule(port, nodes().chain([own.clone()]).collect()),
                    rule(admin, nodes().chain([everyone.clone()]).collect()),
                ]),
                ..NetworkPolicySpec::default()
            }),
        })
        .collect()
}
