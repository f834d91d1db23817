//! An API server with the operator's kinds and rights, and the operator as a process beside it.

use std::sync::Arc;
use std::time::Duration;

use dragonfly_cluster::wait::wait_until;
use dragonfly_cluster::{Cluster, ClusterOptions, Failed, apply};
use dragonfly_crds::{Distribution, SchedulerPool};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::Client;
use kube::api::Api;
use kube::core::NamespaceResourceScope;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::OnceCell;

pub(crate) use dragonfly_cluster::operator::{Operator, SYSTEM, install, read, repository};

/// How long the operator may take for what it has to do.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// Namespaces that the shared operator runs meshes in: each test has one.
pub(crate) const ALLOWED: [&str; 16] = [
    "t0", "t1", "t2", "t3", "t4", "t5", "t6", "t7", "t8", "t9", "t10", "t11", "t12", "t13", "t14",
    "t15",
];

/// The shared API server and operator.
pub(crate) struct Bed {
    pub(crate) cluster: Arc<Cluster>,
    /// Runs for as long as the tests do.
    _operator: Operator,
}

/// One for all tests of this binary.
pub(crate) async fn shared() -> &'static Bed {
    static BED: OnceCell<Bed> = OnceCell::const_new();
    let started = BED.get_or_init(|| async {
        let cluster = Cluster::shared(&ClusterOptions::api_server())
            .await
            .unwrap();
        install(&cluster.client().await.unwrap(), &ALLOWED)
            .await
            .unwrap();
        let operator = Operator::start(&cluster, &ALLOWED).await.unwrap();
        Bed {
            cluster,
            _operator: operator,
        }
    });
    started.await
}

/// A namespace of a test, with what tests do in it.
pub(crate) struct Place {
    pub(crate) client: Client,
    pub(crate) namespace: &'static str,
}

impl Place {
    pub(crate) async fn of(bed: &Bed, namespace: &'static str) -> Self {
        Self {
            client: bed.cluster.client().await.unwrap(),
            namespace,
        }
    }

    pub(crate) fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), self.namespace)
    }

    pub(crate) async fn apply(&self, text: &str) {
        apply::yaml(&self.client, self.namespace, text)
            .await
            .unwrap();
    }

    /// A Distribution on nodes that no other test has.
    pub(crate) async fn mesh(&self, name: &str, spec: &str) {
        self.apply(&self.mesh_text(name, spec)).await;
    }

    pub(crate) fn mesh_text(&self, name: &str, spec: &str) -> String {
        let mut spec: Value = serde_saphyr::from_str(spec).unwrap();
        spec["peers"]["pods"]["nodeSelector"]["test"] = Value::from(self.namespace);
        let object = serde_json::json!({
            "apiVersion": "d7y.io/v1alpha1",
            "kind": "Distribution",
            "metadata": {"name": name},
            "spec": spec,
        });
        object.to_string()
    }

    pub(crate) async fn get(&self, name: &str) -> Distribution {
        self.api().get(name).await.unwrap()
    }

    pub(crate) async fn pool(&self, name: &str) -> SchedulerPool {
        self.api().get(name).await.unwrap()
    }

    /// Until an object of this name is as wanted.
    pub(crate) async fn until<K, T>(
        &self,
        name: &str,
        look: impl Fn(&K) -> dragonfly_cluster::wait::Look<T>,
    ) -> T
    where
        K: kube::Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + DeserializeOwned
            + std::fmt::Debug,
    {
        let api: Api<K> = self.api();
        let what = format!("{} {}/{name}", K::kind(&()), self.namespace);
        wait_until(&what, SOON, || async {
            let found = api.get_opt(name).await.map_err(|e| Failed::at(&what, e))?;
            Ok(found.map_or_else(|| Err("is not there".to_owned()), |found| look(&found)))
        })
        .await
        .unwrap()
    }

    /// Until there is none of this name.
    pub(crate) async fn gone<K>(&self, name: &str)
    where
        K: kube::Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + DeserializeOwned
            + std::fmt::Debug,
    {
        let api: Api<K> = self.api();
        wait_until(name, SOON, || async {
            let found = api.get_opt(name).await.map_err(|e| Failed::at(name, e))?;
            Ok(found.map_or(Ok(()), |_| Err("is still there".to_owned())))
        })
        .await
        .unwrap();
    }

    /// Until a mesh of its newest generation is stalled for this reason: its message.
    pub(crate) async fn stalled(&self, name: &str, reason: &str) -> String {
        self.until(name, |mesh: &Distribution| {
            let stalled = condition(mesh, "Stalled").ok_or("nothing is said yet")?;
            let current = stalled.observed_generation == mesh.metadata.generation;
            if current && stalled.status == "True" && stalled.reason == reason {
                Ok(stalled.message.clone())
            } else {
                Err(format!("{stalled:?}"))
            }
        })
        .await
    }

    /// Until all of a mesh of its newest generation was applied.
    pub(crate) async fn applied(&self, name: &str) -> Distribution {
        self.until(name, |mesh: &Distribution| {
            let said = condition(mesh, "Reconciling").ok_or("nothing is said yet")?;
            let current = said.observed_generation == mesh.metadata.generation;
            // Without controllers nothing gets ready.
            if current && said.status == "True" && said.reason == "Progressing" {
                Ok(mesh.clone())
            } else {
                Err(format!("{said:?}"))
            }
        })
        .await
    }
}

pub(crate) fn condition<'a>(mesh: &'a Distribution, type_: &str) -> Option<&'a Condition> {
    let conditions = mesh.status.as_ref().map(|status| &status.conditions)?;
    conditions.iter().find(|condition| condition.type_ == type_)
}
