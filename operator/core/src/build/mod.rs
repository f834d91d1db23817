//! Everything that Kubernetes is asked for on behalf of a mesh.
//!
//! Services come first ([`services`]), for the rest names the addresses that they get
//! ([`objects`]): nodes and schedulers then need no cluster DNS.

mod access;
mod mirror;
mod monitor;
mod network;
mod nodes;
mod pods;
mod scheduler;

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{
    ConfigMap, PersistentVolumeClaim, Secret, Service, ServiceAccount,
};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;

pub use network::services;

use crate::Settings;
use crate::names::{self, Component};
use crate::validate::{Mesh, Schedulers};

/// Where schedulers are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// `host:port` of each, in order.
    pub schedulers: Vec<String>,
    /// Whether pods have IPv6 addresses. Not known where no Service was asked: then yes, which listens
    /// on both.
    pub ipv6: bool,
    /// `host:port` of who gives certificates: the operator.
    pub issuer: Option<String>,
}

impl Addresses {
    /// Reads what Services got. `None` while one has no address.
    pub fn of_services(services: &[Service]) -> Option<Self> {
        let mut found = Self::default();
        for service in services {
            let spec = service.spec.as_ref()?;
            let ip = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty())?;
            let port = names::SCHEDULER_PORT;
            found.schedulers.push(if ip.contains(':') {
                format!("[{ip}]:{port}")
            } else {
                format!("{ip}:{port}")
            });
            let families = spec.ip_families.iter().flatten();
            found.ipv6 |= ip.contains(':') || families.into_iter().any(|f| f == "IPv6");
        }
        Some(found)
    }

    /// What pods listen on: both families only where there are both, since a kernel may lack one.
    pub(crate) const fn any(&self) -> &'static str {
        if self.ipv6 { "[::]" } else { "0.0.0.0" }
    }
}

/// The mesh's keys, as far as objects show them.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Keys {
    /// Changes when they do.
    pub fingerprint: String,
    /// What nodes join by, where the operator hands it out.
    pub join_token: Option<String>,
    /// The CAs that sign certificates, PEM, where the operator gives them.
    pub ca: Option<String>,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Keys({})", self.fingerprint)
    }
}

/// What is built of a mesh.
#[derive(Clone, Debug, Default, PartialEq)]
#[allow(missing_docs, reason = "each is what its type says")]
pub struct Objects {
    pub service_accounts: Vec<ServiceAccount>,
    pub roles: Vec<Role>,
    pub role_bindings: Vec<RoleBinding>,
    pub services: Vec<Service>,
    pub secrets: Vec<Secret>,
    pub config_maps: Vec<ConfigMap>,
    pub claims: Vec<PersistentVolumeClaim>,
    pub deployments: Vec<Deployment>,
    pub daemon_sets: Vec<DaemonSet>,
    pub budgets: Vec<PodDisruptionBudget>,
    pub network_policies: Vec<NetworkPolicy>,
    pub pod_monitors: Vec<Value>,
}

/// Everything of a mesh whose Services have addresses. `pod_monitors`: the cluster knows that kind.
pub fn objects(
    mesh: &Mesh,
    addresses: &Addresses,
    keys: &Keys,
    settings: &Settings,
    pod_monitors: bool,
) -> Objects {
    let mut deployments = scheduler::deployments(mesh, addresses, keys, settings);
    deployments.extend(nodes::seeds(mesh, addresses, keys, settings));
    Objects {
        service_accounts: access::service_accounts(mesh, settings),
        roles: access::roles(mesh),
        role_bindings: access::role_bindings(mesh),
        services: services(mesh),
        secrets: join_secret(mesh, keys).into_iter().collect(),
        config_maps: vec![bootstrap(mesh, addresses, keys)],
        claims: nodes::claims(mesh),
        deployments,
        daemon_sets: std::iter::once(nodes::peers(mesh, addresses, keys, settings))
            .chain(mirror::daemon_set(mesh, settings))
            .collect(),
        budgets: network::budgets(mesh),
        network_policies: network::policies(mesh),
        pod_monitors: monitor::pod_monitor(mesh)
            .filter(|_| pod_monitors)
            .into_iter()
            .collect(),
    }
}

/// Metadata of a part's object.
fn meta(mesh: &Mesh, name: String, component: Option<Component>) -> ObjectMeta {
    ObjectMeta {
        namespace: Some(mesh.namespace.clone()),
        name: Some(name),
        labels: Some(names::labels(&mesh.name, component)),
        owner_references: Some(vec![mesh.owner()]),
        ..ObjectMeta::default()
    }
}

/// What nodes find their mesh by.
fn bootstrap(mesh: &Mesh, addresses: &Addresses, keys: &Keys) -> ConfigMap {
    let (id, schedulers) = match &mesh.schedulers {
        Schedulers::Slots { .. } => (&mesh.uid, &addresses.schedulers),
        Schedulers::External(external) => (&external.mesh, &external.addresses),
    };
    let mut text = serde_json::json!({"version": 1, "mesh": id, "schedulers": schedulers});
    if mesh.issues() {
        text["issuer"] = addresses.issuer.clone().into();
        text["ca"] = keys.ca.clone().into();
    }
    let mut metadata = meta(mesh, names::bootstrap(&mesh.name), None);
    metadata.annotations = Some([(names::AUTHORITY.to_owned(), keys.fingerprint.clone())].into());
    ConfigMap {
        metadata,
        data: Some([("bootstrap.json".to_owned(), text.to_string())].into()),
        ..ConfigMap::default()
    }
}

/// What nodes prove themselves by, where they have to and the operator has it.
fn join_secret(mesh: &Mesh, keys: &Keys) -> Option<Secret> {
    let token = keys.join_token.as_ref().filter(|_| mesh.secure())?;
    Some(Secret {
        metadata: meta(mesh, names::join(&mesh.name), None),
        // Not `stringData`, which is never read back.
        data: Some(BTreeMap::from([(
            "join-token".to_owned(),
            k8s_openapi::ByteString(token.clone().into_bytes()),
        )])),
        ..Secret::default()
    })
}
