//! Accounts and what they may do: schedulers read their one Distribution and report on it; nodes may
//! do nothing at all.

use k8s_openapi::api::core::v1::{LocalObjectReference, ServiceAccount};
use k8s_openapi::api::rbac::v1::{PolicyRule, Role, RoleBinding, RoleRef, Subject};

use super::meta;
use crate::Settings;
use crate::names::{self, Component};
use crate::validate::{Mesh, Schedulers};

/// Parts that run here. Each has an account of its own, so that a cluster may allow to one what it
/// allows to no other, such as the network of the node.
fn parts(mesh: &Mesh) -> Vec<Component> {
    let mut parts = vec![Component::Peer];
    if mesh
        .spec
        .mirror
        .as_ref()
        .is_some_and(|m| m.told_percent().is_some())
    {
        parts.push(Component::Mirror);
    }
    if mesh.seeds > 0 {
        parts.push(Component::Seed);
    }
    if matches!(mesh.schedulers, Schedulers::Slots { .. }) {
        parts.push(Component::Scheduler);
    }
    parts
}

pub(super) fn service_accounts(mesh: &Mesh, settings: &Settings) -> Vec<ServiceAccount> {
    let secrets = settings.image_pull_secrets.iter();
    let secrets: Vec<_> = secrets
        .map(|name| LocalObjectReference { name: name.clone() })
        .collect();
    parts(mesh)
        .into_iter()
        .map(|part| ServiceAccount {
            metadata: meta(mesh, names::of(&mesh.name, part), Some(part)),
            automount_service_account_token: Some(false),
            image_pull_secrets: (!secrets.is_empty()).then(|| secrets.clone()),
            ..ServiceAccount::default()
        })
        .collect()
}

pub(super) fn roles(mesh: &Mesh) -> Vec<Role> {
    if matches!(mesh.schedulers, Schedulers::External(_)) {
        return vec![];
    }
    let rule = |group: &str, resource: &str, names: Option<String>, verbs: &[&str]| PolicyRule {
        api_groups: Some(vec![group.to_owned()]),
        resources: Some(vec![resource.to_owned()]),
        resource_names: names.map(|name| vec![name]),
        verbs: verbs.iter().map(|verb| (*verb).to_owned()).collect(),
        ..PolicyRule::default()
    };
    let own = || Some(mesh.name.clone());
    let reports = || Some(names::reports(&mesh.name));
    let group = dragonfly_crds::GROUP;
    let leases = "coordination.k8s.io";
    vec![Role {
        metadata: meta(
            mesh,
            names::of(&mesh.name, Component::Scheduler),
            Some(Component::Scheduler),
        ),
        rules: Some(vec![
            // The policy comes from there.
            rule(group, "distributions", own(), &["get", "list", "watch"]),
            // Reports go there.
            rule(group, "distributions/status", own(), &["patch"]),
            // Plans of Preheats come from these, and how far they are goes there.
            rule(group, "preheats", None, &["get", "list", "watch"]),
            rule(group, "preheats/status", None, &["patch"]),
            // Which of the schedulers reports. Creation cannot be bound to a name.
            rule(leases, "leases", reports(), &["get", "update", "patch"]),
            rule(leases, "leases", None, &["create"]),
            // What a person should notice.
            rule("events.k8s.io", "events", None, &["create", "patch"]),
        ]),
    }]
}

pub(super) fn role_bindings(mesh: &Mesh) -> Vec<RoleBinding> {
    if matches!(mesh.schedulers, Schedulers::External(_)) {
        return vec![];
    }
    let name = names::of(&mesh.name, Component::Scheduler);
    vec![RoleBinding {
        metadata: meta(mesh, name.clone(), Some(Component::Scheduler)),
        role_ref: RoleRef {
            api_group: "rbac.authorization.k8s.io".to_owned(),
            kind: "Role".to_owned(),
            name: name.clone(),
        },
        subjects: Some(vec![Subject {
            kind: "ServiceAccount".to_owned(),
            name,
            namespace: Some(mesh.namespace.clone()),
            ..Subject::default()
        }]),
    }]
}
