//! An API server with the operator's kinds and rights, and the operator as a process beside it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use dragonfly_cluster::wait::wait_until;
use dragonfly_cluster::{Cluster, ClusterOptions, Failed, Result, apply, definitions};
use dragonfly_crds::{Distribution, SchedulerPool};
use dragonfly_e2e::process::{self, Process};
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::Client;
use kube::api::{Api, PostParams};
use kube::core::NamespaceResourceScope;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::OnceCell;

/// Where the operator's own objects are.
const SYSTEM: &str = "dragonfly-system";
/// How long the operator may take for what it has to do.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// A file of the repository.
pub(crate) fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .join(path)
}

pub(crate) fn read(path: &str) -> Result<String> {
    let path = repository(path);
    std::fs::read_to_string(&path).map_err(|e| Failed::at(path.display(), e))
}

/// The operator's kinds, namespace, account and rights, and a Role in each namespace where it runs
/// meshes.
pub(crate) async fn install(client: &Client, namespaces: &[&str]) -> Result<()> {
    for plural in ["distributions", "schedulerpools", "preheats"] {
        definitions::install(client, &read(&format!("config/crd/d7y.io_{plural}.yaml"))?).await?;
    }
    let account = read("config/rbac/service_account.yaml")?;
    let (cluster_role, role) = (
        read("config/rbac/cluster_role.yaml")?,
        read("config/rbac/role.yaml")?,
    );
    for namespace in namespaces.iter().chain([&SYSTEM]) {
        let made = format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {namespace}}}}}");
        apply::yaml(client, SYSTEM, &made).await?;
    }
    apply::yaml(client, SYSTEM, &account).await?;
    for file in ["config/rbac/own_role.yaml", "config/operator/service.yaml"] {
        apply::yaml(client, SYSTEM, &read(file)?).await?;
    }
    apply::yaml(client, SYSTEM, &cluster_role).await?;
    for namespace in namespaces {
        // The Role and its binding are the namespace's, the account stays the operator's.
        let mut objects = apply::parse(&role)?;
        for object in &mut objects {
            object.metadata.namespace = Some((*namespace).to_owned());
        }
        for object in objects {
            let text = serde_json::to_string(&object).map_err(|e| Failed::at("a Role", e))?;
            apply::yaml(client, namespace, &text).await?;
        }
    }
    Ok(())
}

/// A kubeconfig of the operator's ServiceAccount.
async fn kubeconfig(cluster: &Cluster, client: &Client) -> Result<String> {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), SYSTEM);
    let wanted = TokenRequest {
        spec: TokenRequestSpec {
            audiences: vec![],
            expiration_seconds: Some(7200),
            ..TokenRequestSpec::default()
        },
        ..TokenRequest::default()
    };
    let given = accounts
        .create_token_request("dragonfly-operator", &PostParams::default(), &wanted)
        .await
        .map_err(|e| Failed::at("a token", e))?;
    let token = given.status.map(|status| status.token).unwrap_or_default();
    let path = cluster.kubeconfig();
    let text = std::fs::read_to_string(path).map_err(|e| Failed::at(path.display(), e))?;
    let mut config: Value =
        serde_saphyr::from_str(&text).map_err(|e| Failed::at(path.display(), e))?;
    config["users"][0]["user"] = serde_json::json!({"token": token});
    Ok(config.to_string())
}

/// The operator as a process.
pub(crate) struct Operator {
    process: Process,
    pub(crate) log: PathBuf,
    _dir: tempfile::TempDir,
}

impl Operator {
    /// Starts it for these namespaces.
    pub(crate) async fn start(cluster: &Cluster, namespaces: &[&str]) -> Result<Self> {
        let dir = tempfile::tempdir().map_err(|e| Failed::at("a temporary directory", e))?;
        let (config, log) = (dir.path().join("kubeconfig"), dir.path().join("log"));
        let text = kubeconfig(cluster, &cluster.client().await?).await?;
        std::fs::write(&config, text).map_err(|e| Failed::at(config.display(), e))?;
        let mut command = Command::new(dragonfly_e2e::binary::operator()?);
        command
            .env("KUBECONFIG", &config)
            .env("DRAGONFLY_LOG", "info,dragonfly_controllers=debug")
            .args(["--image=registry.test/dragonfly:dev", "--admin=127.0.0.1:0"])
            .args(["--issuer=127.0.0.1:0", "--issuer-address=127.0.0.1:1"])
            .stderr(process::log(&log)?);
        for namespace in namespaces {
            command.arg(format!("--namespace={namespace}"));
        }
        let process = Process::spawn("dragonfly-operator", &mut command)?;
        Ok(Self {
            process,
            log,
            _dir: dir,
        })
    }

    /// All that it logged.
    pub(crate) fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Its counters.
    pub(crate) async fn metrics(&self) -> Result<String> {
        let said = self.said();
        let address = said
            .lines()
            .find_map(|line| line.split_once("addr=")?.1.split(' ').next())
            .ok_or_else(|| Failed(format!("no address in its log:\n{said}")))?;
        let request = hyper::Request::get("/metrics")
            .body(http_body_util::Full::default())
            .map_err(|e| Failed::at("/metrics", e))?;
        let answer = dragonfly_cluster::http::ask(address, request).await?;
        Ok(String::from_utf8_lossy(&answer.body).into_owned())
    }

    /// How many requests that change something it made.
    pub(crate) async fn writes(&self) -> Result<u64> {
        let text = self.metrics().await?;
        let rows = text
            .lines()
            .filter(|line| line.starts_with("dragonfly_operator_writes_total"));
        Ok(rows
            .filter_map(|row| row.rsplit(' ').next()?.parse::<u64>().ok())
            .sum())
    }

    /// SIGTERM, and until it has ended.
    pub(crate) async fn stop(mut self) -> Result<std::process::ExitStatus> {
        self.process.signal(rustix::process::Signal::TERM)?;
        self.process.wait(Duration::from_secs(30)).await
    }
}

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
        look: impl Fn(&K) -> std::result::Result<T, String>,
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
