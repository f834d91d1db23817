//! A namespace of one test, with what tests of meshes do in it. Whatever state of a mesh is waited for,
//! ArgoCD's health check is held to what the operator wrote.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "what a test expects and does not find ends the test"
)]

use std::path::PathBuf;
use std::time::Duration;

use dragonfly_crds::{Distribution, SchedulerPool};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::Client;
use kube::api::Api;
use kube::core::NamespaceResourceScope;
use serde::de::DeserializeOwned;
use serde_json::Value;

use dragonfly_e2e::{Failed, Result};

use crate::wait::{Look, wait_for, wait_until};
use crate::{Cluster, apply, argocd, diagnostics};

/// How long the operator may take for what it has to do.
pub const SOON: Duration = Duration::from_secs(60);
/// How long pods may take on a machine that does other things too.
pub const READY: Duration = Duration::from_secs(180);
/// How long may be spent on telling why a test failed.
const TELLING: Duration = Duration::from_secs(30);

/// A namespace with a random name. When the test that has it panics, the states of its pods, its events
/// and the logs of its containers are printed, and the cluster's own logs. It goes with its cluster.
pub struct Place {
    /// The administrator's client, of the test's runtime.
    pub client: Client,
    /// The namespace's name.
    pub namespace: String,
    kubeconfig: PathBuf,
    daemons: PathBuf,
    logs: Vec<PathBuf>,
}

impl Place {
    /// One that is made now.
    ///
    /// # Errors
    /// The API server's.
    pub async fn new(cluster: &Cluster) -> Result<Self> {
        let name = crate::cluster::temp_namespace(&cluster.client().await?).await?;
        Self::of(cluster, name).await
    }

    /// One that was made before.
    ///
    /// # Errors
    /// The cluster was taken down.
    pub async fn of(cluster: &Cluster, namespace: String) -> Result<Self> {
        Ok(Self {
            client: cluster.client().await?,
            namespace,
            kubeconfig: cluster.kubeconfig().to_owned(),
            daemons: cluster.info().dir.join("logs"),
            logs: vec![],
        })
    }

    /// Another namespace of the same cluster, whether it is there yet or not.
    #[must_use]
    pub fn beside(&self, namespace: String) -> Self {
        Self {
            client: self.client.clone(),
            namespace,
            kubeconfig: self.kubeconfig.clone(),
            daemons: self.daemons.clone(),
            logs: vec![],
        }
    }

    /// Has one more log shown when the test fails: of a process that works here.
    #[must_use]
    pub fn with_log(mut self, log: PathBuf) -> Self {
        self.logs.push(log);
        self
    }

    /// Objects of a kind.
    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Applies what a text says.
    pub async fn apply(&self, text: &str) {
        apply::yaml(&self.client, &self.namespace, text)
            .await
            .unwrap();
    }

    /// Applies a Distribution on nodes that no other test has.
    pub async fn mesh(&self, name: &str, spec: &str) {
        self.apply(&self.mesh_text(name, spec)).await;
    }

    /// That Distribution.
    pub fn mesh_text(&self, name: &str, spec: &str) -> String {
        let mut spec: Value = serde_saphyr::from_str(spec).unwrap();
        spec["peers"]["pods"]["nodeSelector"]["test"] = Value::from(self.namespace.as_str());
        // The disk of a machine for tests may be fuller than a node of the world would let it be.
        if spec["storage"]["reserveFreePercent"].is_null() {
            spec["storage"]["reserveFreePercent"] = 0.into();
        }
        let object = serde_json::json!({
            "apiVersion": "d7y.io/v1alpha1",
            "kind": "Distribution",
            "metadata": {"name": name},
            "spec": spec,
        });
        object.to_string()
    }

    /// A Distribution as it is now.
    pub async fn get(&self, name: &str) -> Distribution {
        self.api().get(name).await.unwrap()
    }

    /// A pool as it is now.
    pub async fn pool(&self, name: &str) -> SchedulerPool {
        self.api().get(name).await.unwrap()
    }

    /// Until an object of this name is as wanted.
    pub async fn until<K, T>(&self, name: &str, look: impl Fn(&K) -> Look<T>) -> T
    where
        K: kube::Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + DeserializeOwned
            + std::fmt::Debug,
    {
        self.within(SOON, name, look).await
    }

    async fn within<K, T>(&self, limit: Duration, name: &str, look: impl Fn(&K) -> Look<T>) -> T
    where
        K: kube::Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + DeserializeOwned
            + std::fmt::Debug,
    {
        let what = format!("{} {}/{name}", K::kind(&()), self.namespace);
        let api = self.api();
        let looked = wait_for(&api, name, limit, |found| match found {
            Some(found) => look(found),
            None => Err("is not there".to_owned()),
        });
        looked.await.map_err(|e| Failed::at(what, e)).unwrap()
    }

    /// Until there is none of this name.
    pub async fn gone<K>(&self, name: &str)
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
    pub async fn stalled(&self, name: &str, reason: &str) -> String {
        let stalled = |mesh: &Distribution| {
            let stalled = condition(mesh, "Stalled").ok_or("nothing is said yet")?;
            let current = stalled.observed_generation == mesh.metadata.generation;
            if current && stalled.status == "True" && stalled.reason == reason {
                Ok((mesh.clone(), stalled.message.clone()))
            } else {
                Err(format!("{stalled:?}"))
            }
        };
        let (mesh, message) = self.until(name, stalled).await;
        assert_eq!(
            argocd::health(&mesh).unwrap(),
            ("Degraded".to_owned(), message.clone())
        );
        message
    }

    /// Until all of a mesh of its newest generation was applied, where nothing gets ready.
    pub async fn applied(&self, name: &str) -> Distribution {
        let applied = |mesh: &Distribution| {
            let said = condition(mesh, "Reconciling").ok_or("nothing is said yet")?;
            let current = said.observed_generation == mesh.metadata.generation;
            // Without controllers nothing gets ready.
            if current && said.status == "True" && said.reason == "Progressing" {
                Ok(mesh.clone())
            } else {
                Err(format!("{said:?}"))
            }
        };
        let mesh = self.until(name, applied).await;
        assert_eq!(argocd::health(&mesh).unwrap().0, "Progressing");
        mesh
    }

    /// Until a mesh of its newest generation is ready.
    pub async fn ready(&self, name: &str) -> Distribution {
        let ready = |mesh: &Distribution| {
            let ready = condition(mesh, "Ready").ok_or("nothing is said yet")?;
            let current = ready.observed_generation == mesh.metadata.generation;
            if current && ready.status == "True" {
                Ok(mesh.clone())
            } else {
                Err(format!("{ready:?}"))
            }
        };
        let mesh = self.within(READY, name, ready).await;
        assert_eq!(argocd::health(&mesh).unwrap().0, "Healthy");
        mesh
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let (kubeconfig, namespace) = (self.kubeconfig.clone(), self.namespace.clone());
        // On a thread and a runtime of its own: the test's is unwinding.
        let told = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|e| Failed::at("a runtime", e))?;
            runtime.block_on(async {
                let client = crate::cluster::client(&kubeconfig).await?;
                let told = diagnostics::of_namespace(&client, &namespace);
                let told = tokio::time::timeout(TELLING, told).await;
                told.map_err(|_| Failed(format!("{namespace}: not told within {TELLING:?}")))
            })
        });
        match told.join() {
            Ok(Ok(told)) => eprintln!("{told}"),
            Ok(Err(wrong)) => eprintln!("{wrong}"),
            Err(_) => eprintln!("{}: telling of it panicked", self.namespace),
        }
        eprintln!("{}", diagnostics::of_daemons(&self.daemons));
        eprintln!("{}", dragonfly_e2e::process::tail(&self.logs, 40));
    }
}

/// A condition of a mesh.
pub fn condition<'a>(mesh: &'a Distribution, type_: &str) -> Option<&'a Condition> {
    let conditions = mesh.status.as_ref().map(|status| &status.conditions)?;
    conditions.iter().find(|condition| condition.type_ == type_)
}
