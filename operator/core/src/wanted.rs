//! Built objects as they are applied, and whether a live one is as wanted.
//!
//! Every wanted object carries the hash of what was applied. A live object with that hash whose fields
//! are all still as applied needs no write: restarts and resyncs of the operator cost reads of its own
//! cache. A field that somebody changed, or that is no longer asked for, shows in one of the two.

use dragonfly_crds::quantity::thousandths;
use k8s_openapi::Resource;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::build::Objects;
use crate::names;

/// A kind that the operator makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Kind {
    /// Empty for the core group.
    pub group: &'static str,
    /// `v1`.
    pub version: &'static str,
    /// `Service`.
    pub kind: &'static str,
    /// `services`.
    pub plural: &'static str,
}

impl Kind {
    const fn of<K: Resource>(plural: &'static str) -> Self {
        Self {
            group: K::GROUP,
            version: K::VERSION,
            kind: K::KIND,
            plural,
        }
    }

    /// Identities of pods.
    pub const SERVICE_ACCOUNT: Self =
        Self::of::<k8s_openapi::api::core::v1::ServiceAccount>("serviceaccounts");
    /// What they may do.
    pub const ROLE: Self = Self::of::<k8s_openapi::api::rbac::v1::Role>("roles");
    /// Who may do it.
    pub const ROLE_BINDING: Self =
        Self::of::<k8s_openapi::api::rbac::v1::RoleBinding>("rolebindings");
    /// Addresses.
    pub const SERVICE: Self = Self::of::<k8s_openapi::api::core::v1::Service>("services");
    /// Keys and tokens.
    pub const SECRET: Self = Self::of::<k8s_openapi::api::core::v1::Secret>("secrets");
    /// Bootstrap.
    pub const CONFIG_MAP: Self = Self::of::<k8s_openapi::api::core::v1::ConfigMap>("configmaps");
    /// Seeds' volumes.
    pub const CLAIM: Self =
        Self::of::<k8s_openapi::api::core::v1::PersistentVolumeClaim>("persistentvolumeclaims");
    /// Schedulers and seeds.
    pub const DEPLOYMENT: Self = Self::of::<k8s_openapi::api::apps::v1::Deployment>("deployments");
    /// Peers.
    pub const DAEMON_SET: Self = Self::of::<k8s_openapi::api::apps::v1::DaemonSet>("daemonsets");
    /// How many may be taken away.
    pub const BUDGET: Self =
        Self::of::<k8s_openapi::api::policy::v1::PodDisruptionBudget>("poddisruptionbudgets");
    /// Who may connect.
    pub const NETWORK_POLICY: Self =
        Self::of::<k8s_openapi::api::networking::v1::NetworkPolicy>("networkpolicies");
    /// The Prometheus operator's, where the cluster knows it.
    pub const POD_MONITOR: Self = Self {
        group: "monitoring.coreos.com",
        version: "v1",
        kind: "PodMonitor",
        plural: "podmonitors",
    };

    /// Those that are watched, in the order in which they are applied. Secrets are not: who watches
    /// them sees those of others too. PodMonitors are not: a cluster may not know them.
    pub const WATCHED: [Self; 10] = [
        Self::SERVICE_ACCOUNT,
        Self::ROLE,
        Self::ROLE_BINDING,
        Self::SERVICE,
        Self::CONFIG_MAP,
        Self::CLAIM,
        Self::DEPLOYMENT,
        Self::DAEMON_SET,
        Self::BUDGET,
        Self::NETWORK_POLICY,
    ];

    /// `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }
}

/// An object to be applied.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// All of it, its hash included.
    pub body: Value,
}

impl Objects {
    /// All objects in the order in which they are applied: what others refer to first.
    ///
    /// # Errors
    /// An object that has no JSON.
    pub fn wanted(self) -> Result<Vec<Wanted>, serde_json::Error> {
        // Without `..`: a kind that is forgotten here does not compile.
        let Self {
            service_accounts,
            roles,
            role_bindings,
            services,
            secrets,
            config_maps,
            claims,
            deployments,
            daemon_sets,
            budgets,
            network_policies,
            pod_monitors,
        } = self;
        let mut all = vec![];
        add(&mut all, Kind::SERVICE_ACCOUNT, service_accounts)?;
        add(&mut all, Kind::ROLE, roles)?;
        add(&mut all, Kind::ROLE_BINDING, role_bindings)?;
        add(&mut all, Kind::SERVICE, services)?;
        add(&mut all, Kind::SECRET, secrets)?;
        add(&mut all, Kind::CONFIG_MAP, config_maps)?;
        add(&mut all, Kind::CLAIM, claims)?;
        add(&mut all, Kind::DEPLOYMENT, deployments)?;
        add(&mut all, Kind::DAEMON_SET, daemon_sets)?;
        add(&mut all, Kind::BUDGET, budgets)?;
        add(&mut all, Kind::NETWORK_POLICY, network_policies)?;
        add(&mut all, Kind::POD_MONITOR, pod_monitors)?;
        Ok(all)
    }
}

fn add<K: Serialize>(
    into: &mut Vec<Wanted>,
    kind: Kind,
    objects: Vec<K>,
) -> Result<(), serde_json::Error> {
    for object in objects {
        into.push(Wanted::new(kind, serde_json::to_value(object)?));
    }
    Ok(())
}

impl Wanted {
    /// An object with its hash.
    pub fn new(kind: Kind, mut body: Value) -> Self {
        // The same object has the same bytes: nothing of it comes from an unordered map.
        let hash = blake3::hash(body.to_string().as_bytes()).to_hex();
        let text = |field: &str| {
            let found = body.pointer(&format!("/metadata/{field}"));
            found.and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        let (namespace, name) = (text("namespace"), text("name"));
        if let Some(metadata) = body.get_mut("metadata").and_then(Value::as_object_mut) {
            let annotations = metadata
                .entry("annotations")
                .or_insert_with(|| Value::Object(Map::new()));
            annotations[names::APPLIED] = Value::from(&hash[..16]);
        }
        Self {
            kind,
            namespace,
            name,
            body,
        }
    }

    /// Whether a live object is as wanted already.
    pub fn is_met_by(&self, live: &Value) -> bool {
        // What it is goes without saying: items of a list do not say it.
        let said = self.body.as_object().into_iter().flatten();
        said.filter(|(field, _)| !matches!(field.as_str(), "apiVersion" | "kind"))
            .all(|(field, value)| live.get(field).is_some_and(|found| within(value, found)))
    }
}

/// Whether everything that `wanted` says is so in `live`. Lists have to be the same, but for what is
/// added to their items.
fn within(wanted: &Value, live: &Value) -> bool {
    match (wanted, live) {
        (Value::Object(wanted), Value::Object(live)) => {
            wanted.iter().all(|(name, value)| match live.get(name) {
                Some(found) => within(value, found),
                // Nothing said and nothing there are one.
                None => value.as_object().is_some_and(Map::is_empty),
            })
        }
        (Value::Array(wanted), Value::Array(live)) => {
            wanted.len() == live.len() && wanted.iter().zip(live).all(|(w, l)| within(w, l))
        }
        (Value::String(wanted), Value::String(live)) => {
            // An API server writes `500m` where `0.5` was said.
            wanted == live || thousandths(wanted).is_some_and(|n| Some(n) == thousandths(live))
        }
        (wanted, live) => wanted == live,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn wanted() -> Wanted {
        Wanted::new(
            Kind::SERVICE,
            json!({"kind": "Service", "metadata": {"name": "a"}, "spec": {"ports": [{"port": 1}], "selector": {}}}),
        )
    }

    #[test]
    fn a_live_object_with_defaults_added_is_as_wanted() {
        let mut live = wanted().body;
        live["spec"]["clusterIP"] = json!("10.0.0.1");
        live["spec"]["ports"][0]["protocol"] = json!("TCP");
        live["spec"].as_object_mut().unwrap().remove("selector");
        live.as_object_mut().unwrap().remove("kind");
        assert!(wanted().is_met_by(&live));
    }

    #[test]
    fn an_amount_written_in_another_way_is_the_same() {
        for (wanted, live) in [
            ("0.5", "500m"),
            ("1024Mi", "1Gi"),
            ("1000M", "1G"),
            ("2", "2"),
        ] {
            assert!(within(&json!(wanted), &json!(live)), "{wanted} {live}");
        }
        for (wanted, live) in [("0.5", "50m"), ("1Gi", "1G"), ("a", "b"), ("", "0")] {
            assert!(!within(&json!(wanted), &json!(live)), "{wanted} {live}");
        }
    }

    #[test]
    fn a_changed_field_an_added_item_and_another_hash_are_drift() {
        let changes: [fn(&mut Value); 3] = [
            |live| live["spec"]["ports"][0]["port"] = json!(2),
            |live| live["spec"]["ports"] = json!([{"port": 1}, {"port": 2}]),
            |live| live["metadata"]["annotations"][names::APPLIED] = json!("0"),
        ];
        for change in changes {
            let mut live = wanted().body;
            change(&mut live);
            assert!(!wanted().is_met_by(&live), "{live}");
        }
    }
}
