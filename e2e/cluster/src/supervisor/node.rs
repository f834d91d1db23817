//! A node: containerd, kubelet and kube-proxy on a machine of their own.

use std::fs;
use std::path::PathBuf;

use serde_json::json;

use dragonfly_e2e::{Failed, Result};

use super::control_plane::{flag, program};
use super::machines::Up;
use super::processes::Processes;
use super::{CNI, NodeInfo};
use crate::options::Containerd;
use crate::pki::Pki;
use crate::plan::{Machine, Plan, REGISTRY_PORT, joined};
use crate::registry::{NAME, PAUSE};
use crate::tools::Programs;

/// Where containerd finds its network. `/etc/cni` is on no machine that runs no Kubernetes.
const NETWORKS: &str = "/etc/containerd/networks";
const SOCKET: &str = "/run/containerd/containerd.sock";

pub(super) struct Node<'a> {
    pub(super) index: usize,
    pub(super) plan: Plan,
    pub(super) containerd: Containerd,
    pub(super) pki: &'a Pki,
    pub(super) machine: &'a Up,
    pub(super) programs: &'a Programs,
    pub(super) containerd_programs: &'a Programs,
    /// What its containers are put below.
    pub(super) cgroup: String,
    /// The file that its other processes are written into.
    pub(super) procs: PathBuf,
}

impl Node<'_> {
    fn name(&self) -> String {
        format!("node-{}", self.index)
    }

    pub(super) fn info(&self) -> NodeInfo {
        NodeInfo {
            name: self.name(),
            address: self.plan.address(Machine::Node(self.index)).to_string(),
            holder: self.machine.holder,
            containerd: self.containerd,
            procs: self.procs.clone(),
            dir: self.machine.dir.join("root"),
        }
    }

    pub(super) fn start_containerd(&self, processes: &mut Processes) -> Result<()> {
        // Any registry may have its directory here, as on machines of the world. The name once more, not
        // an address: containerd 1.6 reads no `]` in a table's name.
        let registry = format!("http://{NAME}:{REGISTRY_PORT}");
        let hosts = format!(
            "server = \"{registry}\"\n[host.\"{registry}\"]\ncapabilities = [\"pull\", \"resolve\"]\n"
        );
        self.write(
            &format!("root/etc/containerd/certs.d/{NAME}/hosts.toml"),
            &hosts,
        )?;
        self.write(
            &format!("root{NETWORKS}/10-pods.conflist"),
            &self.network().to_string(),
        )?;
        let config = self.write("root/etc/containerd/config.toml", &self.containerd_config())?;
        let mut path = std::env::var("PATH").unwrap_or_default();
        let program = match self.containerd {
            Containerd::Debian => "containerd".to_owned(),
            Containerd::Two => {
                let found = program(self.containerd_programs, "containerd")?;
                // Its shim is found by PATH, and must be its own.
                if let Some((dir, _)) = found.rsplit_once('/') {
                    path = format!("{dir}:{path}");
                }
                found
            }
        };
        let mut line = self.machine.enter();
        line.extend([program, "--config".to_owned(), config.display().to_string()]);
        let environment = vec![("PATH".to_owned(), path)];
        processes.start_again(&format!("containerd-{}", self.index), line, environment)?;
        Ok(())
    }

    /// Routed pairs rather than a bridge: traffic between two pods of a node then passes the rules of
    /// kube-proxy without br_netfilter.
    fn network(&self) -> serde_json::Value {
        let ranges: Vec<_> = self
            .plan
            .pods_of(self.index)
            .iter()
            .map(|pods| json!([{"subnet": pods.to_string()}]))
            .collect();
        let mut routes = vec![];
        if self.plan.family.has_v4() {
            routes.push(json!({"dst": "0.0.0.0/0"}));
        }
        if self.plan.family.has_v6() {
            routes.push(json!({"dst": "::/0"}));
        }
        json!({
            "cniVersion": "0.4.0",
            "name": "pods",
            "plugins": [
                {
                    "type": "ptp",
                    "ipMasq": false,
                    "ipam": {"type": "host-local", "ranges": ranges, "routes": routes},
                },
                {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true},
            ],
        })
    }

    fn containerd_config(&self) -> String {
        // Without CAP_SYS_RESOURCE no process may be given a lower oom_score_adj.
        let common = format!(
            "root = \"/var/lib/containerd\"\nstate = \"/run/containerd\"\n\
             [grpc]\naddress = \"{SOCKET}\"\n\
             [plugins.\"io.containerd.internal.v1.opt\"]\npath = \"/var/lib/containerd/opt\"\n"
        );
        match self.containerd {
            Containerd::Debian => format!(
                "version = 2\n{common}\
                 [plugins.\"io.containerd.grpc.v1.cri\"]\n\
                 sandbox_image = \"{PAUSE}\"\nrestrict_oom_score_adj = true\n\
                 [plugins.\"io.containerd.grpc.v1.cri\".cni]\n\
                 bin_dir = \"{CNI}\"\nconf_dir = \"{NETWORKS}\"\n\
                 [plugins.\"io.containerd.grpc.v1.cri\".registry]\n\
                 config_path = \"/etc/containerd/certs.d\"\n"
            ),
            Containerd::Two => format!(
                "version = 3\n{common}\
                 [plugins.\"io.containerd.cri.v1.images\".pinned_images]\nsandbox = \"{PAUSE}\"\n\
                 [plugins.\"io.containerd.cri.v1.images\".registry]\n\
                 config_path = \"/etc/containerd/certs.d\"\n\
                 [plugins.\"io.containerd.cri.v1.runtime\"]\nrestrict_oom_score_adj = true\n\
                 [plugins.\"io.containerd.cri.v1.runtime\".cni]\n\
                 bin_dirs = [\"{CNI}\"]\nconf_dir = \"{NETWORKS}\"\n"
            ),
        }
    }

    pub(super) fn start_kubelet(&self, processes: &mut Processes) -> Result<()> {
        let name = self.name();
        let addresses = self.plan.addresses(Machine::Node(self.index));
        let serving = self
            .pki
            .server(&format!("{name}-serving"), &addresses, &[&name])?;
        let user = format!("system:node:{name}");
        let kubeconfig = self.pki.kubeconfig(&name, &user, Some("system:nodes"))?;
        let resolver = self.write(
            "resolv.conf",
            "# No name server: services are found by address.\n",
        )?;
        let config = json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": false},
                "webhook": {"enabled": true},
                "x509": {"clientCAFile": self.pki.ca_file()},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": serving.certificate,
            "tlsPrivateKeyFile": serving.key,
            "containerRuntimeEndpoint": format!("unix://{SOCKET}"),
            "resolvConf": resolver,
            "failCgroupV1": false,
            "cgroupDriver": "cgroupfs",
            // Only with groups for qualities of service does kubelet put pods below its root; without,
            // containerd puts them beside it, where nobody who ends the cluster looks.
            "cgroupRoot": self.cgroup,
            "cgroupsPerQOS": true,
            "enforceNodeAllocatable": [],
            "oomScoreAdj": 0,
            "failSwapOn": false,
            "serializeImagePulls": false,
            // The disk is the whole machine's, and may be rather full.
            "imageGCHighThresholdPercent": 100,
            "evictionHard": {
                "memory.available": "1%",
                "nodefs.available": "200Mi",
                "nodefs.inodesFree": "1%",
                "imagefs.available": "200Mi",
            },
        });
        let config = self.write("kubelet.json", &config.to_string())?;
        let mut line = self.machine.enter();
        line.push(program(self.programs, "kubelet")?);
        line.extend([
            flag("config", config.display()),
            flag("kubeconfig", kubeconfig.display()),
            flag("hostname-override", &name),
            flag("node-ip", joined(&addresses)),
            flag("root-dir", "/var/lib/kubelet"),
        ]);
        processes.start_again(&format!("kubelet-{}", self.index), line, vec![])?;

        let kubeconfig =
            self.pki
                .kubeconfig(&format!("{name}-kube-proxy"), "system:kube-proxy", None)?;
        let config = json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "iptables",
            "hostnameOverride": name,
            "clusterCIDR": joined(&self.plan.pods()),
            "clientConnection": {"kubeconfig": kubeconfig},
            // The table of connections is the whole machine's.
            "conntrack": {
                "maxPerCore": 0, "min": 0,
                "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s",
            },
        });
        let config = self.write("kube-proxy.json", &config.to_string())?;
        let mut line = self.machine.enter();
        line.extend([
            program(self.programs, "kube-proxy")?,
            flag("config", config.display()),
        ]);
        processes.start_again(&format!("kube-proxy-{}", self.index), line, vec![])?;
        Ok(())
    }

    fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.machine.dir.join(name);
        if let Some(above) = path.parent() {
            fs::create_dir_all(above).map_err(|e| Failed::at(above.display(), e))?;
        }
        fs::write(&path, text).map_err(|e| Failed::at(path.display(), e))?;
        Ok(path)
    }
}
