//! The operator's kinds and rights at an API server, and the operator as a process beside it, which has
//! no more rights than its ServiceAccount.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use dragonfly_e2e::process::{self, Process};
use dragonfly_e2e::{Failed, Result};
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::Client;
use kube::api::{Api, PostParams};
use serde_json::Value;

use crate::{Cluster, apply, definitions};

/// Where the operator's own objects are.
pub const SYSTEM: &str = "dragonfly-system";

/// A file or directory of the repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .join(path)
}

/// What is in a file of the repository.
///
/// # Errors
/// It cannot be read.
pub fn read(path: &str) -> Result<String> {
    let path = repository(path);
    std::fs::read_to_string(&path).map_err(|e| Failed::at(path.display(), e))
}

/// The operator's kinds, namespace, account and rights, and a Role in each namespace where it runs
/// meshes.
///
/// # Errors
/// The API server's.
pub async fn install(client: &Client, namespaces: &[&str]) -> Result<()> {
    install_from(client, namespaces, &read).await
}

/// The same from the files of another state of the repository.
///
/// # Errors
/// The API server's; a file cannot be read.
pub async fn install_from(
    client: &Client,
    namespaces: &[&str],
    read: &(dyn Fn(&str) -> Result<String> + Sync),
) -> Result<()> {
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

/// The operator as a process. Killed when dropped.
#[derive(Debug)]
pub struct Operator {
    process: Process,
    log: PathBuf,
    _dir: tempfile::TempDir,
}

impl Operator {
    /// Starts it for these namespaces, the only one.
    ///
    /// # Errors
    /// It is not built; the API server's.
    pub async fn start(cluster: &Cluster, namespaces: &[&str]) -> Result<Self> {
        Self::start_as(cluster, None, namespaces).await
    }

    /// Starts one of several, as the pod of this name.
    ///
    /// # Errors
    /// Those of [`Self::start`].
    pub async fn start_as(
        cluster: &Cluster,
        pod: Option<&str>,
        namespaces: &[&str],
    ) -> Result<Self> {
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
        if let Some(pod) = pod {
            command.env("POD_NAMESPACE", SYSTEM).env("POD_NAME", pod);
        }
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

    /// Its process.
    pub fn id(&self) -> u32 {
        self.process.id()
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
    /// It has ended already, or does not end.
    pub async fn stop(mut self) -> Result<std::process::ExitStatus> {
        self.process.signal(rustix::process::Signal::TERM)?;
        self.process.wait(Duration::from_secs(30)).await
    }
}
