//! What a cluster asks of the machine, looked at before anything is started, and said in full.

use std::process::{Command, Stdio};

use dragonfly_e2e::{Failed, Result};

/// Programs, and the packages of Debian that have them.
const PROGRAMS: [(&str, &str); 8] = [
    ("containerd", "containerd"),
    ("docker-registry", "docker-registry"),
    ("runc", "runc"),
    ("ip", "iproute2"),
    ("iptables", "iptables"),
    ("nsenter", "util-linux"),
    ("unshare", "util-linux"),
    ("mount", "mount"),
];

/// Why this machine cannot run a cluster, if it cannot: every reason, and what to do.
pub(crate) fn check() -> Result<()> {
    let mut wrong = vec![];
    if !rustix::process::geteuid().is_root() {
        wrong.push(
            "you are not root: nodes are network and mount namespaces, and only root makes those; \
             run it as root, or leave it out with `cargo test --workspace --exclude dragonfly-cluster`"
                .to_owned(),
        );
    }
    let missing: Vec<_> = PROGRAMS
        .iter()
        .filter(|(name, _)| !in_path(name))
        .map(|(_, package)| *package)
        .collect();
    let cni = std::path::Path::new(crate::supervisor::CNI).join("ptp");
    if !missing.is_empty() || !cni.is_file() {
        let mut missing = missing;
        if !cni.is_file() {
            missing.push("containernetworking-plugins");
        }
        missing.dedup();
        wrong.push(format!(
            "not installed: {}; `scripts/setup.sh cluster` installs what is missing",
            missing.join(" ")
        ));
    }
    if wrong.is_empty() {
        let unshared = Command::new("unshare")
            .args(["--net", "--mount", "--uts", "sh", "-c"])
            .arg("ip link add name t type bridge && mount -t tmpfs none /run")
            .stdin(Stdio::null())
            .output();
        match unshared {
            Ok(out) if out.status.success() => {}
            Ok(out) => wrong.push(format!(
                "namespaces with a bridge and mounts cannot be made here ({}): a container needs \
                 CAP_SYS_ADMIN and CAP_NET_ADMIN for that",
                String::from_utf8_lossy(&out.stderr).trim()
            )),
            Err(e) => wrong.push(format!("unshare: {e}")),
        }
    }
    if wrong.is_empty() {
        return Ok(());
    }
    Err(Failed(format!(
        "a cluster cannot be started on this machine:\n- {}",
        wrong.join("\n- ")
    )))
}

fn in_path(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(name).is_file())
}
