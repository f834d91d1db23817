//! Clusters run side by side, and stay where they are told to.

use std::path::Path;
use std::process::{Command, Stdio};

use dragonfly_cluster::supervisor::Info;
use dragonfly_cluster::{Cluster, ClusterOptions, apply};
use k8s_openapi::api::core::v1::Namespace;
use kube::api::Api;

use crate::trace::Seen;

fn cluster(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cluster"));
    command.args(args).stdin(Stdio::null());
    command
}

#[tokio::test]
async fn two_clusters_run_side_by_side_and_do_not_see_each_other() {
    let options = ClusterOptions::nodes(1);
    let (one, two) = tokio::join!(Cluster::start(&options), Cluster::start(&options));
    let (one, two) = (one.unwrap(), two.unwrap());
    assert_ne!(one.info().number, two.info().number);
    let address = |cluster: &Cluster| cluster.node(0).unwrap().address().to_owned();
    assert_ne!(address(&one), address(&two));
    let only = r"{apiVersion: v1, kind: Namespace, metadata: {name: only-in-one}}";
    apply::yaml(&one.client().await.unwrap(), "", only)
        .await
        .unwrap();
    let others: Api<Namespace> = Api::all(two.client().await.unwrap());
    assert!(others.get_opt("only-in-one").await.unwrap().is_none());
    let (first, second) = (Seen::at(&one.info().dir), Seen::at(&two.info().dir));
    one.stop().await.unwrap();
    first.is_gone();
    assert!(
        two.client()
            .await
            .unwrap()
            .apiserver_version()
            .await
            .is_ok()
    );
    drop(two);
    second.is_gone();
}

#[test]
fn a_cluster_that_stays_is_listed_and_taken_down_by_its_number() {
    let up = cluster(&["up", "--nodes", "0"]).output().unwrap();
    assert!(
        up.status.success(),
        "{}",
        String::from_utf8_lossy(&up.stderr)
    );
    let said = String::from_utf8(up.stdout).unwrap();
    let config = said
        .lines()
        .find_map(|l| l.strip_prefix("export KUBECONFIG="))
        .unwrap();
    let dir = Path::new(config).ancestors().nth(2).unwrap();
    let info: Info =
        serde_json::from_slice(&std::fs::read(dir.join("info.json")).unwrap()).unwrap();
    let number = info.number.to_string();
    let seen = Seen::at(&info.dir);
    let status = String::from_utf8(cluster(&["status"]).output().unwrap().stdout).unwrap();
    let listed = status
        .lines()
        .find(|l| l.starts_with(&format!("cluster {number} ")))
        .unwrap();
    assert!(
        listed.contains("stays") && listed.ends_with(config),
        "{listed}"
    );
    assert!(cluster(&["down", &number]).status().unwrap().success());
    seen.is_gone();
    assert!(
        !cluster(&["down", &number]).status().unwrap().success(),
        "it is gone"
    );
}

#[tokio::test]
async fn without_root_a_cluster_says_what_it_needs() {
    // Somebody with a user of their own, as far as programs can tell.
    let line = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("cluster");
    std::fs::copy(env!("CARGO_BIN_EXE_cluster"), &program).unwrap();
    let all = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(dir.path(), all).unwrap();
    let out = Command::new("setpriv")
        .args(line)
        .arg(&program)
        .args(["up"])
        .output()
        .unwrap();
    assert!(!out.status.success());
    let said = String::from_utf8(out.stderr).unwrap();
    assert!(said.contains("you are not root"), "{said}");
}
