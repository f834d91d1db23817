//! etcd, the API server, the registry, the controllers and the scheduler: daemons of one machine.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde_json::json;

use dragonfly_e2e::{Failed, Result};

use super::machines::Up;
use super::processes::Processes;
use crate::pki::Pki;
use crate::plan::{API_PORT, Machine, Plan, REGISTRY_PORT, in_url, joined};
use crate::tools::Programs;

/// The API server's record, in the cluster's directory.
pub(crate) const AUDIT: &str = "audit.log";
const ETCD: &str = "http://127.0.0.1:2379";

pub(super) struct ControlPlane<'a> {
    pub(super) plan: Plan,
    pub(super) dir: &'a Path,
    pub(super) pki: &'a Pki,
    pub(super) programs: &'a Programs,
    pub(super) machine: &'a Up,
}

impl ControlPlane<'_> {
    pub(super) fn start_api_server(&self, processes: &mut Processes) -> Result<()> {
        let data = self.machine.dir.join("etcd");
        self.daemon(
            processes,
            "etcd",
            vec![
                // Its own address: it is nobody's but the API server's.
                flag("listen-client-urls", ETCD),
                flag("advertise-client-urls", ETCD),
                flag("listen-peer-urls", "http://127.0.0.1:2380"),
                flag("data-dir", data.display()),
                flag("log-level", "warn"),
                // A cluster of tests is not missed after a power failure.
                "--unsafe-no-fsync".to_owned(),
            ],
        )?;

        let mut addresses = self.plan.addresses(Machine::ControlPlane);
        addresses.extend(self.plan.api_services());
        addresses.push(IpAddr::from([127, 0, 0, 1]));
        let names = [
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "localhost",
        ];
        let serving = self.pki.server("kube-apiserver", &addresses, &names)?;
        let kubelets = self.pki.client(
            "kube-apiserver-kubelet",
            "kube-apiserver",
            Some("system:masters"),
        )?;
        let accounts = self.pki.service_accounts()?;
        let policy = self.write("audit.yaml", &audited().to_string())?;
        let address = self.plan.address(Machine::ControlPlane);
        let everywhere = if address.is_ipv4() { "0.0.0.0" } else { "::" };
        self.daemon(
            processes,
            "kube-apiserver",
            vec![
                flag("etcd-servers", ETCD),
                flag("bind-address", everywhere),
                flag("advertise-address", address),
                flag("secure-port", API_PORT),
                flag("tls-cert-file", serving.certificate.display()),
                flag("tls-private-key-file", serving.key.display()),
                flag("client-ca-file", self.pki.ca_file().display()),
                flag(
                    "kubelet-certificate-authority",
                    self.pki.ca_file().display(),
                ),
                flag("kubelet-client-certificate", kubelets.certificate.display()),
                flag("kubelet-client-key", kubelets.key.display()),
                flag("kubelet-preferred-address-types", "InternalIP"),
                flag("service-account-key-file", accounts.certificate.display()),
                flag("service-account-signing-key-file", accounts.key.display()),
                flag("service-account-issuer", "https://kubernetes.default.svc"),
                flag("service-cluster-ip-range", joined(&self.plan.services())),
                flag("authorization-mode", "Node,RBAC"),
                flag("enable-admission-plugins", "NodeRestriction"),
                flag("allow-privileged", true),
                flag("profiling", false),
                flag("audit-policy-file", policy.display()),
                flag("audit-log-path", self.dir.join(AUDIT).display()),
                flag("audit-log-mode", "blocking"),
            ],
        )
    }

    pub(super) fn start_registry(&self, processes: &mut Processes) -> Result<()> {
        let address = self.plan.address(Machine::ControlPlane);
        let config = json!({
            "version": 0.1,
            "log": {"accesslog": {"disabled": false}, "level": "warn"},
            "storage": {
                "filesystem": {"rootdirectory": self.machine.dir.join("registry")},
                "delete": {"enabled": true},
            },
            "http": {"addr": format!("{}:{REGISTRY_PORT}", in_url(address))},
        });
        let file = self.write("registry.yaml", &config.to_string())?;
        let mut line = self.machine.enter();
        line.extend(["docker-registry", "serve", &file.display().to_string()].map(str::to_owned));
        processes.start("registry", line)?;
        Ok(())
    }

    pub(super) fn start_controllers(&self, processes: &mut Processes) -> Result<()> {
        let manager = self.pki.kubeconfig(
            "kube-controller-manager",
            "system:kube-controller-manager",
            None,
        )?;
        let accounts = self.pki.key_of("service-accounts");
        self.daemon(
            processes,
            "kube-controller-manager",
            vec![
                flag("kubeconfig", manager.display()),
                flag("root-ca-file", self.pki.ca_file().display()),
                flag("service-account-private-key-file", accounts.display()),
                flag("use-service-account-credentials", true),
                flag("kube-api-qps", 200),
                flag("kube-api-burst", 400),
                // There is one of each.
                flag("leader-elect", false),
                flag("bind-address", "127.0.0.1"),
            ],
        )?;
        let scheduler = self
            .pki
            .kubeconfig("kube-scheduler", "system:kube-scheduler", None)?;
        self.daemon(
            processes,
            "kube-scheduler",
            vec![
                flag("kubeconfig", scheduler.display()),
                flag("kube-api-qps", 200),
                flag("kube-api-burst", 400),
                flag("leader-elect", false),
                flag("bind-address", "127.0.0.1"),
            ],
        )
    }

    fn daemon(&self, processes: &mut Processes, name: &str, flags: Vec<String>) -> Result<()> {
        let mut line = self.machine.enter();
        line.push(program(self.programs, name)?);
        line.extend(flags);
        processes.start(name, line)?;
        Ok(())
    }

    fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.dir.join("control-plane").join(name);
        fs::write(&path, text).map_err(|e| Failed::at(path.display(), e))?;
        Ok(path)
    }
}

/// What the API server notes down: what operators and parts of meshes ask, without what they sent.
fn audited() -> serde_json::Value {
    json!({
        "apiVersion": "audit.k8s.io/v1", "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [
            {"level": "Metadata", "userGroups": ["system:serviceaccounts:dragonfly-system"]},
            {"level": "None"},
        ],
    })
}

/// `--name=value`.
pub(super) fn flag(name: &str, value: impl std::fmt::Display) -> String {
    format!("--{name}={value}")
}

/// Where a program is.
pub(super) fn program(all: &BTreeMap<String, PathBuf>, name: &str) -> Result<String> {
    let found = all.get(name).map(|path| path.display().to_string());
    found.ok_or_else(|| Failed::at(name, "is not among the programs that were built"))
}
