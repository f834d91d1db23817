//! From an object to a mesh, or to all that is wrong with it.
//!
//! Invariant: what an apiserver's schema refuses today may come from a schema of yesterday, so nothing
//! that objects are built from is taken on trust. What Kubernetes itself checks of the built objects
//! (names of labels, amounts) is left to it: its refusal is reported in its words.

use std::net::IpAddr;

use dragonfly_crds::distribution::{DistributionSpec, IssuerRef, Transport};
use dragonfly_crds::field::{Invalid, Reason, quoted};
use dragonfly_crds::placement::{ExternalSchedulers, Location, Pods};
use dragonfly_crds::policy::Policy;
use dragonfly_crds::{API_VERSION, Distribution, SchedulerPool, resolve};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

use crate::claims;

/// Who schedules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Schedulers {
    /// Slots of this cluster.
    Slots {
        /// How many.
        replicas: u32,
        /// Where they run.
        pods: Pods,
    },
    /// Somebody else's.
    External(ExternalSchedulers),
}

/// A mesh that objects can be built of.
#[derive(Clone, Debug, PartialEq)]
pub struct Mesh {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its identity.
    pub uid: String,
    /// The policy that its nodes run.
    pub policy: Policy,
    /// Its schedulers.
    pub schedulers: Schedulers,
    /// Seeds that are run here; none where they are elsewhere.
    pub seeds: u32,
    /// The rest.
    pub spec: DistributionSpec,
}

impl Mesh {
    /// The reference by which everything of the mesh goes with it. It blocks nothing: whoever deletes
    /// the mesh does not wait for its parts.
    pub fn owner(&self) -> OwnerReference {
        OwnerReference {
            api_version: API_VERSION.to_owned(),
            kind: "Distribution".to_owned(),
            name: self.name.clone(),
            uid: self.uid.clone(),
            controller: Some(true),
            block_owner_deletion: None,
        }
    }

    /// Whether parts prove who they are.
    pub fn secure(&self) -> bool {
        self.spec.security.transport == Transport::MutualTLS
    }

    /// Whether the operator gives its parts their certificates.
    pub fn issues(&self) -> bool {
        self.secure() && matches!(self.schedulers, Schedulers::Slots { .. })
    }

    /// Whether each seed has a volume of its own.
    pub const fn seeds_are_slots(&self) -> bool {
        self.spec.seeds.storage.volume_claim.is_some()
    }

    /// The policy as it is published; none where others' schedulers say what nodes do.
    pub const fn published(&self) -> Option<&Policy> {
        match self.schedulers {
            Schedulers::Slots { .. } => Some(&self.policy),
            Schedulers::External(_) => None,
        }
    }
}

/// Validates a Distribution with the pool that it refers to.
///
/// # Errors
/// Everything that is wrong with either.
pub fn validate(
    distribution: &Distribution,
    pool: Option<&SchedulerPool>,
    previous: Option<&Policy>,
) -> Result<Mesh, Vec<Invalid>> {
    let policy = resolve(distribution, pool, previous);
    let meta = &distribution.metadata;
    let spec = &distribution.spec;
    let (namespace, name) = (text(&meta.namespace), text(&meta.name));
    let mut check = Check {
        object: format!("Distribution {namespace}/{name}"),
        wrong: vec![],
    };
    check.name(&name);
    check.peers(spec);
    if let Some(wanted) = &spec.network_policies {
        check.networks(&wanted.node_cidrs);
    }
    if let Some(external) = &spec.external_schedulers {
        check.external(external, spec);
    }
    if let Some(issuer) = &spec.security.issuer_ref {
        check.issuer(issuer, spec);
    }
    if let Some(other) = claims::within(distribution) {
        check.wrong("spec.seeds.storage.hostPath.path", other);
    }
    let (policy, mut wrong) = match policy {
        Ok(policy) => (Some(policy), vec![]),
        Err(wrong) => (None, wrong),
    };
    wrong.append(&mut check.wrong);
    let Some(policy) = policy.filter(|_| wrong.is_empty()) else {
        return Err(wrong);
    };
    let schedulers = match &spec.external_schedulers {
        Some(external) => Schedulers::External(external.clone()),
        None => Schedulers::Slots {
            replicas: policy.scheduler.replicas,
            pods: pool.map(|pool| pool.spec.pods.clone()).unwrap_or_default(),
        },
    };
    let seeds = match spec.seeds.location {
        Location::Internal => policy.scheduler.seeds,
        Location::External => 0,
    };
    Ok(Mesh {
        namespace,
        name,
        uid: text(&meta.uid),
        policy,
        schedulers,
        seeds,
        spec: spec.clone(),
    })
}

fn text(field: &Option<String>) -> String {
    field.clone().unwrap_or_default()
}

struct Check {
    object: String,
    wrong: Vec<Invalid>,
}

impl Check {
    fn wrong(&mut self, field: &str, message: String) {
        self.wrong.push(Invalid {
            object: self.object.clone(),
            field: field.to_owned(),
            reason: Reason::InvalidValue,
            message,
        });
    }

    fn name(&mut self, name: &str) {
        let letter = name.bytes().next().is_some_and(|b| b.is_ascii_lowercase());
        if !letter || name.contains('.') || name.len() > 45 {
            let message = format!(
                "{}: must begin with a letter, hold no dot and have at most 45 characters: Services \
                 are named after it",
                quoted(name)
            );
            self.wrong("metadata.name", message);
        }
    }

    fn peers(&mut self, spec: &DistributionSpec) {
        let peers = &spec.peers;
        for (field, port) in [("port", peers.port), ("adminPort", peers.admin_port)] {
            if !(1024..=65535).contains(&port) {
                let message = format!("{port}: must be from 1024 to 65535");
                self.wrong(&format!("spec.peers.{field}"), message);
            }
        }
        if peers.port == peers.admin_port {
            let message = format!("{}: must differ from port", peers.admin_port);
            self.wrong("spec.peers.adminPort", message);
        }
        if !(1..=100).contains(&peers.max_unavailable_percent) {
            let message = format!("{}: must be from 1 to 100", peers.max_unavailable_percent);
            self.wrong("spec.peers.maxUnavailablePercent", message);
        }
        let seed = spec.seeds.storage.host_path.as_ref();
        let peer = peers.storage.host_path.as_ref();
        let directories = [
            (
                "spec.peers.socketDirectory",
                Some(peers.socket_directory.as_str()),
            ),
            (
                "spec.peers.storage.hostPath.path",
                peer.map(|p| p.path.as_str()),
            ),
            (
                "spec.seeds.storage.hostPath.path",
                seed.map(|p| p.path.as_str()),
            ),
        ];
        for (field, path) in directories {
            if let Some(path) = path.filter(|path| !is_directory(path)) {
                let message = format!(
                    "{}: must be an absolute path below / without ..",
                    quoted(path)
                );
                self.wrong(field, message);
            }
        }
        let storage = &spec.seeds.storage;
        let kinds = [
            storage.empty_dir.is_some(),
            storage.host_path.is_some(),
            storage.volume_claim.is_some(),
        ];
        if kinds.iter().filter(|said| **said).count() > 1 {
            let message = "at most one of emptyDir, hostPath and volumeClaim".to_owned();
            self.wrong("spec.seeds.storage", message);
        }
        if peers.storage.empty_dir.is_some() && peers.storage.host_path.is_some() {
            let message = "at most one of emptyDir and hostPath".to_owned();
            self.wrong("spec.peers.storage", message);
        }
    }

    fn networks(&mut self, networks: &[String]) {
        const FIELD: &str = "spec.networkPolicies.nodeCIDRs";
        if networks.is_empty() {
            let message = "must name the networks of the nodes: peers come from nodes' addresses";
            self.wrong(FIELD, message.to_owned());
        }
        for (index, network) in networks.iter().enumerate() {
            if !is_network(network) {
                let message = format!("{}: must be a network such as 10.0.0.0/16", quoted(network));
                self.wrong(&format!("{FIELD}[{index}]"), message);
            }
        }
    }

    fn issuer(&mut self, issuer: &IssuerRef, spec: &DistributionSpec) {
        const FIELD: &str = "spec.security.issuerRef";
        if spec.security.transport == Transport::Plaintext {
            let message = "has no effect with transport Plaintext, which has no certificates";
            self.wrong(FIELD, message.to_owned());
        }
        if spec.external_schedulers.is_some() {
            let message = "has no effect with externalSchedulers, whose mesh has the CA";
            self.wrong(FIELD, message.to_owned());
        }
        if !issuer.is_known() {
            let message = format!(
                "{}: of group cert-manager.io must be Issuer or ClusterIssuer",
                quoted(&issuer.kind)
            );
            self.wrong(&format!("{FIELD}.kind"), message);
        }
    }

    fn external(&mut self, external: &ExternalSchedulers, spec: &DistributionSpec) {
        const FIELD: &str = "spec.externalSchedulers";
        if spec.scheduler_pool_ref.is_some() {
            let message = "schedulerPoolRef and externalSchedulers exclude each other".to_owned();
            self.wrong("spec", message);
        }
        if external.addresses.is_empty() {
            let message = "must name a scheduler as host:port".to_owned();
            self.wrong(&format!("{FIELD}.addresses"), message);
        }
        for (index, address) in external.addresses.iter().enumerate() {
            let port = address
                .rsplit_once(':')
                .map(|(_, port)| port.parse::<u16>());
            if !matches!(port, Some(Ok(1..))) {
                let message = format!("{}: must be host:port", quoted(address));
                self.wrong(&format!("{FIELD}.addresses[{index}]"), message);
            }
        }
        let secure = spec.security.transport == Transport::MutualTLS;
        if secure && external.join_token_secret_ref.is_none() {
            let message = "needs joinTokenSecretRef with transport MutualTLS".to_owned();
            self.wrong(FIELD, message);
        }
    }
}

fn is_directory(path: &str) -> bool {
    let sound = |part: &str| !part.is_empty() && !part.starts_with('.');
    path.strip_prefix('/')
        .is_some_and(|rest| rest.split('/').all(sound))
        && path.bytes().all(|b| b.is_ascii_graphic())
}

fn is_network(text: &str) -> bool {
    text.split_once('/').is_some_and(|(address, bits)| {
        let most = match address.parse::<IpAddr>() {
            Ok(IpAddr::V4(_)) => 32,
            Ok(IpAddr::V6(_)) => 128,
            Err(_) => return false,
        };
        bits.parse::<u8>().is_ok_and(|bits| bits <= most)
    })
}

/// What is wrong with a pool, whoever refers to it.
pub fn pool_mistakes(pool: &SchedulerPool) -> Vec<Invalid> {
    // A mesh with every default is right, so what is wrong with it is the pool's.
    let mut mesh = Distribution::new("any", DistributionSpec::default());
    mesh.metadata.namespace.clone_from(&pool.metadata.namespace);
    mesh.metadata.uid = Some("any".to_owned());
    mesh.spec.scheduler_pool_ref = pool
        .metadata
        .name
        .clone()
        .map(|name| dragonfly_crds::distribution::LocalRef { name });
    resolve(&mesh, Some(pool), None).err().unwrap_or_default()
}
