//! What all pods of a mesh have in common: one container, no shell, nothing that it does not need.

use std::collections::BTreeMap;

use dragonfly_crds::placement::{Pods, TolerationOperator};
use k8s_openapi::api::core::v1::{
    Capabilities, ConfigMapVolumeSource, Container, ContainerPort, EmptyDirVolumeSource, EnvVar,
    EnvVarSource, HTTPGetAction, HostPathVolumeSource, KeyToPath, ObjectFieldSelector,
    PersistentVolumeClaimVolumeSource, PodSecurityContext, PodSpec, PodTemplateSpec, Probe,
    ProjectedVolumeSource, ResourceRequirements, SeccompProfile, SecretVolumeSource,
    SecurityContext, ServiceAccountTokenProjection, Toleration, TopologySpreadConstraint, Volume,
    VolumeMount, VolumeProjection,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::Settings;
use crate::names::{self, Component};
use crate::validate::Mesh;

/// Who parts run as that own nothing of their node.
const NONROOT: i64 = 65532;
/// The port with health and metrics, by name.
pub(super) const ADMIN: &str = "admin";

/// What a part needs beyond what all have.
pub(super) struct Part<'a> {
    pub(super) component: Component,
    /// Labels of this slot alone.
    pub(super) slot: Option<String>,
    pub(super) pods: &'a Pods,
    pub(super) args: Vec<String>,
    pub(super) env: Vec<EnvVar>,
    /// Name, number.
    pub(super) ports: Vec<(&'static str, u16)>,
    pub(super) volumes: Vec<(Volume, VolumeMount)>,
    /// Root of the node, without any capability: it owns directories there.
    pub(super) root: bool,
    pub(super) host_network: bool,
    /// Talks to the API server.
    pub(super) token: bool,
    /// Requests where none are said: processors, bytes of memory.
    pub(super) defaults: (&'static str, u64),
    /// Changes when pods have to be replaced although nothing else of them differs.
    pub(super) restart_for: String,
    pub(super) fingerprint: &'a str,
    /// At most one pod of the part a node; else they only prefer to be apart.
    pub(super) apart: bool,
}

/// Labels that select a part's pods.
pub(super) fn selector(mesh: &Mesh, component: Component, slot: Option<&str>) -> LabelSelector {
    let mut labels = names::selector(&mesh.name, component);
    if let Some(slot) = slot {
        labels.insert(names::SLOT.to_owned(), slot.to_owned());
    }
    LabelSelector {
        match_labels: Some(labels),
        ..LabelSelector::default()
    }
}

pub(super) fn template(mesh: &Mesh, part: Part<'_>, settings: &Settings) -> PodTemplateSpec {
    let mut labels = names::labels(&mesh.name, Some(part.component));
    if let Some(slot) = &part.slot {
        labels.insert(names::SLOT.to_owned(), slot.clone());
    }
    let annotations = BTreeMap::from([
        (names::AUTHORITY.to_owned(), part.fingerprint.to_owned()),
        (names::RESTART_FOR.to_owned(), part.restart_for.clone()),
    ]);
    let (volumes, mounts): (Vec<_>, Vec<_>) = part.volumes.into_iter().unzip();
    let admin = part.ports.iter().find(|(name, _)| *name == ADMIN);
    let probe = |path: &str, period, failures| Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::String(ADMIN.to_owned()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period),
        failure_threshold: Some(failures),
        timeout_seconds: Some(2),
        ..Probe::default()
    };
    let container = Container {
        name: part.component.as_str().to_owned(),
        image: Some(settings.image.clone()),
        image_pull_policy: settings.image_pull_policy.clone(),
        args: Some(part.args),
        env: (!part.env.is_empty()).then_some(part.env),
        ports: (!part.ports.is_empty()).then(|| {
            part.ports
                .iter()
                .map(|(name, port)| ContainerPort {
                    name: Some((*name).to_owned()),
                    container_port: i32::from(*port),
                    // Said, so that no two pods that want one are put on one node.
                    host_port: part.host_network.then_some(i32::from(*port)),
                    protocol: Some("TCP".to_owned()),
                    ..ContainerPort::default()
                })
                .collect()
        }),
        readiness_probe: admin.map(|_| probe("/readyz", 2, 3)),
        // A minute of silence: a busy disk is no reason to start anew.
        liveness_probe: admin.map(|_| probe("/healthz", 10, 6)),
        resources: Some(resources(part.pods, part.defaults)),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(true),
            capabilities: Some(Capabilities {
                drop: Some(vec!["ALL".to_owned()]),
                ..Capabilities::default()
            }),
            ..SecurityContext::default()
        }),
        // A part that ends says why in its last words: `kubectl describe pod` shows them.
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        volume_mounts: Some(mounts),
        ..Container::default()
    };
    let spread = TopologySpreadConstraint {
        max_skew: 1,
        topology_key: "kubernetes.io/hostname".to_owned(),
        when_unsatisfiable: if part.apart {
            "DoNotSchedule".to_owned()
        } else {
            "ScheduleAnyway".to_owned()
        },
        label_selector: Some(selector(mesh, part.component, None)),
        ..TopologySpreadConstraint::default()
    };
    PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(labels),
            annotations: Some(annotations),
            ..ObjectMeta::default()
        }),
        spec: Some(PodSpec {
            service_account_name: Some(names::of(&mesh.name, part.component)),
            automount_service_account_token: Some(part.token),
            enable_service_links: Some(false),
            host_network: part.host_network.then_some(true),
            dns_policy: part
                .host_network
                .then(|| "ClusterFirstWithHostNet".to_owned()),
            node_selector: (!part.pods.node_selector.is_empty())
                .then(|| part.pods.node_selector.clone()),
            tolerations: tolerations(part.pods),
            priority_class_name: part.pods.priority_class_name.clone(),
            security_context: Some(security(part.root)),
            topology_spread_constraints: (!matches!(
                part.component,
                Component::Peer | Component::Mirror
            ))
            .then(|| vec![spread]),
            affinity: part.apart.then(|| super::nodes::apart(mesh)),
            containers: vec![container],
            volumes: Some(volumes),
            ..PodSpec::default()
        }),
    }
}

fn security(root: bool) -> PodSecurityContext {
    let seccomp_profile = Some(SeccompProfile {
        type_: "RuntimeDefault".to_owned(),
        ..SeccompProfile::default()
    });
    if root {
        return PodSecurityContext {
            run_as_user: Some(0),
            run_as_group: Some(0),
            seccomp_profile,
            ..PodSecurityContext::default()
        };
    }
    PodSecurityContext {
        run_as_non_root: Some(true),
        run_as_user: Some(NONROOT),
        run_as_group: Some(NONROOT),
        // Mounted keys and volumes belong to this group.
        fs_group: Some(NONROOT),
        fs_group_change_policy: Some("OnRootMismatch".to_owned()),
        seccomp_profile,
        ..PodSecurityContext::default()
    }
}

fn resources(pods: &Pods, (cpu, memory): (&str, u64)) -> ResourceRequirements {
    let (requests, limits) = (&pods.resources.requests, &pods.resources.limits);
    let amounts = |cpu: Option<String>, memory: Option<String>| {
        let all: BTreeMap<_, _> = [("cpu", cpu), ("memory", memory)]
            .into_iter()
            .filter_map(|(name, amount)| Some((name.to_owned(), Quantity(amount?))))
            .collect();
        (!all.is_empty()).then_some(all)
    };
    // A limit alone is a request too, as Kubernetes has it.
    let or = |said: &Option<String>, limit: &Option<String>, default: String| {
        Some(said.clone().or_else(|| limit.clone()).unwrap_or(default))
    };
    ResourceRequirements {
        requests: amounts(
            or(&requests.cpu, &limits.cpu, cpu.to_owned()),
            or(
                &requests.memory,
                &limits.memory,
                dragonfly_crds::quantity::format(memory),
            ),
        ),
        limits: amounts(limits.cpu.clone(), limits.memory.clone()),
        ..ResourceRequirements::default()
    }
}

fn tolerations(pods: &Pods) -> Option<Vec<Toleration>> {
    let all: Vec<_> = pods
        .tolerations
        .iter()
        .map(|said| Toleration {
            key: said.key.clone(),
            operator: Some(match said.operator {
                TolerationOperator::Equal => "Equal".to_owned(),
                TolerationOperator::Exists => "Exists".to_owned(),
            }),
            value: said.value.clone(),
            effect: said.effect.map(|effect| effect.as_str().to_owned()),
            toleration_seconds: said.toleration_seconds,
        })
        .collect();
    (!all.is_empty()).then_some(all)
}

/// Where a pod's token for its certificate is.
pub(super) const IDENTITY: &str = "/etc/dragonfly/identity";
/// Where its certificate outlives a restart of its container.
const KEPT: &str = "/run/identity";
/// Where the bootstrap is.
pub(super) const BOOTSTRAP: &str = "/etc/dragonfly/bootstrap";

/// The bootstrap, and the token, where the operator gives certificates.
pub(super) fn proof(mesh: &Mesh, root: bool) -> Vec<(Volume, VolumeMount)> {
    let map = Source::ConfigMap(names::bootstrap(&mesh.name));
    let mut volumes = vec![volume("bootstrap", BOOTSTRAP, map, root)];
    if mesh.issues() {
        let token = Source::Token(names::audience(&mesh.uid));
        volumes.push(volume("identity", IDENTITY, token, root));
        volumes.push(volume("kept-identity", KEPT, Source::Memory, root));
    }
    volumes
}

/// How a part is told of both.
pub(super) fn proof_args(mesh: &Mesh) -> Vec<String> {
    let mut args = vec![format!("--bootstrap={BOOTSTRAP}/bootstrap.json")];
    if mesh.issues() {
        args.push(format!("--identity-token-file={IDENTITY}/token"));
        args.push(format!("--identity-dir={KEPT}"));
    }
    args
}

/// A variable with a field of the pod.
pub(super) fn field(name: &str, path: &str) -> EnvVar {
    EnvVar {
        name: name.to_owned(),
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                field_path: path.to_owned(),
                api_version: Some("v1".to_owned()),
            }),
            ..EnvVarSource::default()
        }),
        ..EnvVar::default()
    }
}

/// What a volume is.
pub(super) enum Source {
    Secret(String),
    /// One key of a Secret, and no other.
    Key(String, &'static str),
    /// Logins of registries, where there are any: a mesh does not wait for them.
    PullSecret(String),
    /// A token of the pod's account for this audience.
    Token(String),
    ConfigMap(String),
    EmptyDir {
        limit: Option<String>,
    },
    /// Gone with the pod, and never on a disk.
    Memory,
    HostPath(String),
    Claim(String),
}

/// A volume and its place.
pub(super) fn volume(name: &str, at: &str, source: Source, root: bool) -> (Volume, VolumeMount) {
    let mut volume = Volume {
        name: name.to_owned(),
        ..Volume::default()
    };
    let mut read_only = None;
    match source {
        Source::Secret(secret) => {
            read_only = Some(true);
            volume.secret = Some(SecretVolumeSource {
                secret_name: Some(secret),
                // Its owner alone, or the group of who is not root.
                default_mode: Some(if root { 0o400 } else { 0o440 }),
                ..SecretVolumeSource::default()
            });
        }
        Source::Key(secret, key) => {
            read_only = Some(true);
            volume.secret = Some(SecretVolumeSource {
                secret_name: Some(secret),
                default_mode: Some(if root { 0o400 } else { 0o440 }),
                items: Some(vec![KeyToPath {
                    key: key.to_owned(),
                    path: key.to_owned(),
                    mode: None,
                }]),
                ..SecretVolumeSource::default()
            });
        }
        Source::PullSecret(secret) => {
            const KEY: &str = ".dockerconfigjson";
            read_only = Some(true);
            volume.secret = Some(SecretVolumeSource {
                secret_name: Some(secret),
                optional: Some(true),
                default_mode: Some(if root { 0o400 } else { 0o440 }),
                items: Some(vec![KeyToPath {
                    key: KEY.to_owned(),
                    path: KEY.to_owned(),
                    mode: None,
                }]),
            });
        }
        Source::Token(audience) => {
            read_only = Some(true);
            volume.projected = Some(ProjectedVolumeSource {
                default_mode: Some(if root { 0o400 } else { 0o440 }),
                sources: Some(vec![VolumeProjection {
                    service_account_token: Some(ServiceAccountTokenProjection {
                        audience: Some(audience),
                        // Replaced by the kubelet when most of it is over.
                        expiration_seconds: Some(3600),
                        path: "token".to_owned(),
                    }),
                    ..VolumeProjection::default()
                }]),
            });
        }
        Source::ConfigMap(name) => {
            read_only = Some(true);
            volume.config_map = Some(ConfigMapVolumeSource {
                name,
                default_mode: Some(0o444),
                ..ConfigMapVolumeSource::default()
            });
        }
        Source::EmptyDir { limit } => {
            volume.empty_dir = Some(EmptyDirVolumeSource {
                size_limit: limit.map(Quantity),
                ..EmptyDirVolumeSource::default()
            });
        }
        Source::Memory => {
            volume.empty_dir = Some(EmptyDirVolumeSource {
                medium: Some("Memory".to_owned()),
                size_limit: Some(Quantity("1Mi".to_owned())),
            });
        }
        Source::HostPath(path) => {
            volume.host_path = Some(HostPathVolumeSource {
                path,
                type_: Some("DirectoryOrCreate".to_owned()),
            });
        }
        Source::Claim(claim_name) => {
            volume.persistent_volume_claim = Some(PersistentVolumeClaimVolumeSource {
                claim_name,
                ..PersistentVolumeClaimVolumeSource::default()
            });
        }
    }
    let mount = VolumeMount {
        name: name.to_owned(),
        mount_path: at.to_owned(),
        read_only,
        ..VolumeMount::default()
    };
    (volume, mount)
}
