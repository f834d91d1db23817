//! The operator on a cluster: its kinds and rights; as a process that has no more than those, or in a
//! pod as `config/` installs it. Its namespace has another name every time.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use dragonfly_e2e::process::{self, Process};
use dragonfly_e2e::{Failed, Result};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::Client;
use kube::api::{Api, PostParams};
use serde_json::Value;

use crate::cluster::{pods_possible, temp_namespace};
use crate::image::{Architecture, component};
use crate::place::{Place, READY};
use crate::wait::{ready_deployment, wait_for};
use crate::{Cluster, apply, definitions, mesh};

/// What `config/` calls the operator's namespace.
const SYSTEM: &str = "dragonfly-system";

/// A file of the repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .join(path)
}

/// How files of the repository are read: as they are, or as they were.
pub type Read<'a> = &'a (dyn Fn(&str) -> Result<String> + Sync);

/// One of `config/`, about this namespace of the operator.
///
/// # Errors
/// It cannot be read.
pub fn config(read: Read<'_>, path: &str, system: &str) -> Result<String> {
    Ok(read(&format!("config/{path}"))?.replace(SYSTEM, system))
}

/// The text of a file of the repository.
///
/// # Errors
/// It cannot be read.
pub fn read(path: &str) -> Result<String> {
    let path = repository(path);
    std::fs::read_to_string(&path).map_err(|e| Failed::at(path.display(), e))
}

/// The operator's kinds, account and rights on a cluster.
#[derive(Debug)]
pub struct Installed {
    /// The operator's own namespace.
    pub system: String,
    namespaces: Vec<String>,
}

impl Installed {
    /// Installs them, with rights to run meshes in these namespaces.
    ///
    /// # Errors
    /// The API server's.
    pub async fn on(cluster: &Cluster, namespaces: &[&str]) -> Result<Self> {
        let client = cluster.client().await?;
        let system = temp_namespace(&client).await?;
        install(&client, &system, namespaces, &read).await?;
        let namespaces = namespaces.iter().map(|name| (*name).to_owned()).collect();
        Ok(Self { system, namespaces })
    }
}

/// The operator's kinds, account and rights in its namespace, and a Role in each namespace where it runs
/// meshes.
///
/// # Errors
/// The API server's; a file cannot be read.
pub async fn install(
    client: &Client,
    system: &str,
    namespaces: &[&str],
    read: Read<'_>,
) -> Result<()> {
    for plural in ["distributions", "schedulerpools", "preheats"] {
        definitions::install(client, &read(&format!("config/crd/d7y.io_{plural}.yaml"))?).await?;
    }
    for file in [
        "rbac/service_account.yaml",
        "rbac/own_role.yaml",
        "operator/service.yaml",
        "rbac/cluster_role.yaml",
    ] {
        apply::yaml(client, system, &config(read, file, system)?).await?;
    }
    let role = config(read, "rbac/role.yaml", system)?;
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

/// Pushes an image of this project, from the program that was built beside this one; what pods call it.
///
/// # Errors
/// The program was not built, or the registry refuses it.
pub async fn load(cluster: &Cluster, name: &str) -> Result<String> {
    let program = match name {
        "dragonfly" => dragonfly_e2e::binary::dragonfly()?,
        "dragonfly-operator" => dragonfly_e2e::binary::operator()?,
        _ => dragonfly_e2e::binary::program(name, "dragonfly-cluster", "TEST_ORIGIN_BIN")?,
    };
    let image = component(name)?.image(Architecture::HERE, &program)?;
    cluster.load_image(&image, &format!("{name}:dev")).await
}

/// The operator in a pod of a namespace of its own, where it runs meshes, as `config/` installs it but
/// with these arguments; an origin is beside it.
///
/// # Errors
/// What is missing, or does not get ready.
pub async fn deploy(cluster: &Cluster, arguments: &[&str]) -> Result<Place> {
    let place = Place::new(cluster).await?;
    let (client, system) = (&place.client, place.namespace.as_str());
    install(client, system, &[system], &read).await?;
    let operator = load(cluster, "dragonfly-operator").await?;
    let dragonfly = load(cluster, "dragonfly").await?;
    load(cluster, "test-origin").await?;
    let image = format!("image: {operator}\n          args: {arguments:?}");
    let text = config(&read, "operator/deployment.yaml", system)?
        .replace("image: dragonfly-operator:dev", &image)
        .replace("value: dragonfly:dev", &format!("value: {dragonfly}"));
    pods_possible(client, system).await?;
    apply::yaml(client, system, &text).await?;
    apply::yaml(client, system, mesh::ORIGIN).await?;
    let deployments: Api<Deployment> = place.api();
    for name in ["dragonfly-operator", "origin"] {
        let ready = wait_for(&deployments, name, READY, ready_deployment).await;
        if let Err(wrong) = ready {
            let told = crate::diagnostics::of_namespace(client, system).await;
            return Err(Failed(format!("{wrong}\n{told}")));
        }
    }
    Ok(place)
}

/// A kubeconfig of the operator's ServiceAccount.
async fn kubeconfig(cluster: &Cluster, system: &str) -> Result<String> {
    let accounts: Api<ServiceAccount> = Api::namespaced(cluster.client().await?, system);
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
pub struct Operator {
    process: Process,
    log: PathBuf,
    _dir: tempfile::TempDir,
}

impl Operator {
    /// Starts it where it was installed.
    ///
    /// # Errors
    /// It was not built, or the API server's.
    pub async fn start(cluster: &Cluster, installed: &Installed) -> Result<Self> {
        Self::start_with(cluster, installed, |_| ()).await
    }

    /// Starts one of several, as the pod of this name.
    ///
    /// # Errors
    /// Those of [`Operator::start`].
    pub async fn start_as(cluster: &Cluster, installed: &Installed, pod: &str) -> Result<Self> {
        Self::start_with(cluster, installed, |command| {
            command
                .env("POD_NAMESPACE", &installed.system)
                .env("POD_NAME", pod);
        })
        .await
    }

    /// The same, with more arguments or another environment.
    ///
    /// # Errors
    /// Those of [`Operator::start`].
    pub async fn start_with(
        cluster: &Cluster,
        installed: &Installed,
        more: impl FnOnce(&mut Command),
    ) -> Result<Self> {
        let dir = tempfile::tempdir().map_err(|e| Failed::at("a temporary directory", e))?;
        let (config, log) = (dir.path().join("kubeconfig"), dir.path().join("log"));
        let text = kubeconfig(cluster, &installed.system).await?;
        std::fs::write(&config, text).map_err(|e| Failed::at(config.display(), e))?;
        let mut command = Command::new(dragonfly_e2e::binary::operator()?);
        command
            .env("KUBECONFIG", &config)
            .env("DRAGONFLY_LOG", "info,dragonfly_controllers=debug")
            .args(["--image=registry.test/dragonfly:dev", "--admin=127.0.0.1:0"])
            .args(["--issuer=127.0.0.1:0", "--issuer-address=127.0.0.1:1"])
            .stderr(process::log(&log)?);
        for namespace in &installed.namespaces {
            command.arg(format!("--namespace={namespace}"));
        }
        more(&mut command);
        let process = Process::spawn("dragonfly-operator", &mut command)?;
        Ok(Self {
            process,
            log,
            _dir: dir,
        })
    }

    /// All that it logged.
    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The file that it logs to.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Its counters.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn metrics(&self) -> Result<String> {
        let address = self.address("addr")?;
        let request = hyper::Request::get("/metrics")
            .body(http_body_util::Full::default())
            .map_err(|e| Failed::at("/metrics", e))?;
        let answer = crate::http::ask(&address, request).await?;
        Ok(String::from_utf8_lossy(&answer.body).into_owned())
    }

    /// An address that it logged under this name.
    ///
    /// # Errors
    /// There is none.
    pub fn address(&self, name: &str) -> Result<String> {
        let said = self.said();
        let name = format!("{name}=");
        let found = said
            .lines()
            .find_map(|line| line.split_once(&name)?.1.split(' ').next());
        found
            .map(str::to_owned)
            .ok_or_else(|| Failed(format!("no {name} in its log:\n{said}")))
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// How many requests that change something it made.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn writes(&self) -> Result<u64> {
        let text = self.metrics().await?;
        let rows = text
            .lines()
            .filter(|line| line.starts_with("dragonfly_operator_writes_total"));
        Ok(rows
            .filter_map(|row| row.rsplit(' ').next()?.parse::<u64>().ok())
            .sum())
    }

    /// SIGTERM, and until it has ended.
    ///
    /// # Errors
    /// It does not end.
    pub async fn stop(mut self) -> Result<std::process::ExitStatus> {
        self.process.signal(rustix::process::Signal::TERM)?;
        self.process.wait(Duration::from_secs(30)).await
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", process::tail(std::slice::from_ref(&self.log), 40));
        }
    }
}
