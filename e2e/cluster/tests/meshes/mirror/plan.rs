//! Who is told in which wave, and what keeps containerd from using the mirror.

use std::path::Path;
use std::process::Command;

use dragonfly_cluster::place::{READY, condition};
use dragonfly_cluster::wait::{wait_for, wait_until};
use dragonfly_crds::Distribution;
use dragonfly_crds::conditions::{MIRROR_USABLE, mirror};
use k8s_openapi::api::events::v1::Event;
use kube::api::{Api, ListParams};
use serde_json::{Value, json};

use super::nodes::{is_told, until_told};
use super::place::{Bed, OPEN};

/// `kubectl dragonfly`: what it wrote for programs and for people, and whether all is well.
fn plugin(bed: &Bed, line: &[&str]) -> (String, String, bool) {
    let own = std::env::current_exe().unwrap();
    let beside = own.ancestors().skip(1).take(2);
    let mut found = beside.map(|dir| dir.join("kubectl-dragonfly"));
    let plugin = found
        .find(|path| path.is_file())
        .expect("build it: cargo build -p dragonfly-kubectl");
    let out = Command::new(plugin)
        .args([
            "--kubeconfig",
            &bed.cluster.kubeconfig().display().to_string(),
        ])
        .args(["-n", bed.system()])
        .args(line)
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&out.stdout), text(&out.stderr), out.status.success())
}

/// `kubectl dragonfly mirror plan`.
fn asked(bed: &Bed, more: &[&str]) -> (Value, String, bool) {
    let line = [&["-o", "json", "mirror", "plan"], more].concat();
    let (plan, said, well) = plugin(bed, &line);
    let plan = serde_json::from_str(&plan);
    (plan.unwrap_or_else(|e| panic!("{e}: {said}")), said, well)
}

/// Until the mesh says of the mirror what is wanted (status, reason, a part of the message), or nothing at
/// all; its message.
async fn says(bed: &Bed, wanted: Option<(&str, &str, &str)>) -> String {
    let meshes: Api<Distribution> = bed.place.api();
    let said = wait_for(&meshes, "default", READY, |mesh| {
        let found = mesh.and_then(|mesh| condition(mesh, MIRROR_USABLE));
        let message = found.map(|c| c.message.clone()).unwrap_or_default();
        let is = match (found, wanted) {
            (Some(c), Some((status, reason, part))) => {
                (c.status.as_str(), c.reason.as_str()) == (status, reason) && message.contains(part)
            }
            (found, wanted) => found.is_none() && wanted.is_none(),
        };
        if is {
            Ok(message)
        } else {
            Err(format!("{found:?}"))
        }
    });
    match said.await {
        Ok(message) => message,
        Err(wrong) => bed.fail(&wrong.to_string()).await,
    }
}

/// What a node's file would become.
fn change(plan: &Value, node: &str, registry: &str) -> (bool, String) {
    let nodes = plan["nodes"].as_array().unwrap();
    let said = nodes.iter().find(|n| n["node"] == node).unwrap();
    let path = format!("/etc/containerd/certs.d/{registry}/hosts.toml");
    let files = said["files"].as_array().unwrap();
    let file = files.iter().find(|f| f["path"] == path.as_str()).unwrap();
    let told = said["told"].as_bool().unwrap();
    (told, file["change"].as_str().unwrap().to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_are_told_in_waves_and_what_keeps_containerd_from_the_mirror_is_said() {
    let bed = &Bed::start().await;
    let mut wanted = bed.mirror();
    wanted["percent"] = json!(100);
    bed.mesh_with(Some(wanted.clone())).await;
    for node in bed.cluster.nodes() {
        until_told(node, OPEN, true).await;
    }
    says(bed, Some(("True", mirror::USABLE, "on the 2 nodes"))).await;
    // Back to nobody.
    wanted["percent"] = json!(0);
    bed.mesh_with(Some(wanted)).await;
    let nobody = wait_until("nobody to be told", READY, || async {
        let told = bed.cluster.nodes().find(|node| is_told(*node, OPEN));
        Ok(told.map_or(Ok(()), |node| Err(format!("{} is", node.name()))))
    });
    if let Err(wrong) = nobody.await {
        bed.fail(&wrong.to_string()).await;
    }
    // Both are looked at, neither is changed.
    let both = wait_until("both nodes to be looked at", READY, || async {
        let (plan, said, _) = asked(bed, &[]);
        let count = plan["nodes"].as_array().map_or(0, Vec::len);
        Ok(if count == 2 {
            Ok(plan)
        } else {
            Err(format!("{plan} {said}"))
        })
    });
    let plan = both.await.unwrap();
    for node in bed.cluster.nodes() {
        let now = change(&plan, node.name(), OPEN);
        assert_eq!(now, (false, "Changed".to_owned()), "{plan}");
        assert!(!is_told(node, OPEN));
    }
    let (all, _, _) = asked(bed, &["--percent", "100", "node-1"]);
    assert_eq!(change(&all, "node-1", OPEN), (true, "Changed".to_owned()));
    assert_eq!(all["nodes"].as_array().unwrap().len(), 1);

    // A list of directories on one node: said in status, in an Event and in the plan.
    let config = bed.node(1).path(Path::new("/etc/containerd/config.toml"));
    let before = std::fs::read_to_string(&config).unwrap();
    let own = "config_path = \"/etc/containerd/certs.d\"";
    assert!(before.contains(own), "{before}");
    let list = "config_path = \"/etc/containerd/certs.d:/etc/docker/certs.d\"";
    std::fs::write(&config, before.replace(own, list)).unwrap();
    let meshes: Api<Distribution> = bed.place.api();
    let failure = wait_for(&meshes, "default", READY, |mesh| {
        let status = mesh
            .and_then(|mesh| mesh.status.as_ref())
            .ok_or("no status")?;
        let mut found = status.failures.iter();
        let found = found.find(|f| f.reason == "MirrorUnused");
        found
            .cloned()
            .ok_or_else(|| format!("{:?}", status.failures))
    });
    let part = "on 1 of 2 nodes containerd's config_path lists several";
    says(bed, Some(("False", mirror::CONFIG_PATH_LIST, part))).await;
    let (said, _, well) = plugin(bed, &["status"]);
    let wanted = format!("{MIRROR_USABLE}: {}: on 1 of 2", mirror::CONFIG_PATH_LIST);
    assert!(!well && said.contains(&wanted), "{said}");
    let failure = match failure.await {
        Ok(failure) => failure,
        Err(wrong) => bed.fail(&wrong.to_string()).await,
    };
    assert!(
        failure.message.contains("lists several directories"),
        "{failure:?}"
    );
    let events: Api<Event> = bed.place.api();
    wait_until("an Event", READY, || async {
        let all = events.list(&ListParams::default()).await;
        let all = all.map_err(|e| dragonfly_cluster::Failed::at("events", e))?;
        let found = all.items.iter().any(|e| {
            e.reason.as_deref() == Some("MirrorUnused")
                && e.regarding
                    .as_ref()
                    .is_some_and(|r| r.name.as_deref() == Some("default"))
        });
        Ok(if found {
            Ok(())
        } else {
            Err("none yet".to_owned())
        })
    })
    .await
    .unwrap();
    let (plan, said, well) = asked(bed, &[]);
    assert!(!well && said.contains("node-1: config_path"), "{said}");
    let findings = plan["nodes"][1]["findings"].to_string();
    assert!(findings.contains("lists several directories"), "{plan}");

    // The older way to name mirrors instead: another reason.
    let older = "mirrors.\"docker.io\".endpoint = [\"https://mirror.test\"]";
    std::fs::write(&config, before.replace(own, older)).unwrap();
    let part = "sets registry.mirrors";
    says(bed, Some(("False", mirror::REGISTRY_MIRRORS, part))).await;

    // It is mended: the condition says so. Then no mirror is asked for: it goes.
    std::fs::write(&config, before).unwrap();
    let message = says(bed, Some(("True", mirror::USABLE, "on the 2 nodes"))).await;
    let (said, _, _) = plugin(bed, &["status"]);
    assert!(
        said.contains(&message) && !said.contains("MirrorUnused"),
        "{said}"
    );
    bed.mesh_with(None).await;
    says(bed, None).await;
}
