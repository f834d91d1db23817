//! The ways in: charts by helm itself, kustomize bases by kubectl itself, the plugin by krew itself.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use dragonfly_cluster::helm::helm;
use dragonfly_cluster::image::Architecture;
use dragonfly_cluster::tools::Tool;
use dragonfly_cluster::{Cluster, ClusterOptions, Failed, Result, apply};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::ResourceExt;
use kube::api::{Api, DynamicObject};
use serde_json::Value;

/// A directory of the repository.
pub(crate) fn at(path: &str) -> String {
    root().join(path).display().to_string()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn objects(text: &str) -> BTreeMap<(String, String), DynamicObject> {
    let parsed = apply::parse(text).unwrap();
    let named = parsed.into_iter().map(|o| {
        let kind = o.types.clone().unwrap().kind;
        ((kind, o.name_any()), o)
    });
    named.collect()
}

fn rules_of(objects: &BTreeMap<(String, String), DynamicObject>, kind: &str, name: &str) -> Value {
    objects[&(kind.to_owned(), name.to_owned())].data["rules"].clone()
}

pub(crate) async fn kubectl(cluster: &Cluster, line: &[&str]) -> Result<String> {
    let built = tokio::task::spawn_blocking(|| Tool::Kubernetes.built()).await;
    let built = built.map_err(|e| Failed::at("kubectl", e))??;
    let program = built
        .get("kubectl")
        .ok_or_else(|| Failed::at("kubectl", "was not built"))?;
    let mut command = tokio::process::Command::new(program);
    command
        .args(line)
        .env("KUBECONFIG", cluster.kubeconfig())
        .stdin(Stdio::null());
    let out = command
        .output()
        .await
        .map_err(|e| Failed::at("kubectl", e))?;
    if out.status.success() {
        return Ok(String::from_utf8_lossy(&out.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    Err(Failed(format!("kubectl {}: {said}", line.join(" "))))
}

#[tokio::test]
async fn the_chart_says_the_same_each_time_and_the_same_as_the_kustomize_bases() {
    let cluster = Cluster::shared(&ClusterOptions::api_server())
        .await
        .unwrap();
    let chart = at("charts/dragonfly");
    let line = [
        "template",
        "dragonfly-operator",
        &chart,
        "-n",
        "dragonfly-system",
        // Built from its module helm thinks that it is of 2020.
        "--kube-version",
        "1.35.4",
    ];
    let text = helm(&cluster, &line).await.unwrap();
    assert_eq!(
        text,
        helm(&cluster, &line).await.unwrap(),
        "not deterministic"
    );
    let ours = objects(&text);
    let base = kubectl(&cluster, &["kustomize", &at("config/default")])
        .await
        .unwrap();
    let base = objects(&base);
    let name = "dragonfly-operator";
    let qualified = "dragonfly-system-dragonfly-operator";
    for (in_chart, in_base) in [
        (("ClusterRole", qualified), ("ClusterRole", name)),
        (
            ("ClusterRole", "dragonfly-system-dragonfly-operator-mesh"),
            ("Role", name),
        ),
    ] {
        let (a, b) = (
            rules_of(&ours, in_chart.0, in_chart.1),
            rules_of(&base, in_base.0, in_base.1),
        );
        assert!(a.as_array().is_some_and(|rules| !rules.is_empty()));
        assert_eq!(
            a, b,
            "charts/dragonfly/files and config/rbac differ: {in_chart:?}"
        );
    }
    let pod = |all: &BTreeMap<(String, String), DynamicObject>| {
        let deployment = &all[&("Deployment".to_owned(), name.to_owned())].data;
        let mut spec = deployment["spec"]["template"]["spec"].clone();
        // What is said by arguments here and by variables there.
        let container = &mut spec["containers"][0];
        for said in ["args", "env", "image", "ports", "readinessProbe"] {
            container[said] = Value::Null;
        }
        spec["automountServiceAccountToken"] = Value::Null;
        spec
    };
    assert_eq!(
        pod(&ours),
        pod(&base),
        "charts/dragonfly and config/operator differ"
    );
    // Namespaces that are listed get a binding each; all get one for the cluster.
    for (set, kind, places) in [
        ("namespaces={b,a}", "RoleBinding", vec!["a", "b"]),
        ("namespaces={*}", "ClusterRoleBinding", vec![""]),
    ] {
        let mut with = line.to_vec();
        with.extend(["--set", set]);
        let all = apply::parse(&helm(&cluster, &with).await.unwrap()).unwrap();
        let bound = all
            .iter()
            .filter(|o| o.types.as_ref().unwrap().kind == kind && o.name_any().ends_with("-mesh"));
        let bound: Vec<_> = bound.map(|o| o.namespace().unwrap_or_default()).collect();
        assert_eq!(bound, places, "{set}");
    }
}

#[tokio::test]
async fn wrong_values_are_refused_with_their_name() {
    let cluster = Cluster::shared(&ClusterOptions::api_server())
        .await
        .unwrap();
    let chart = at("charts/dragonfly");
    for (set, says) in [
        ("namespaces={Not_A_Name}", "namespaces"),
        ("image.pullPolicy=Sometimes", "pullPolicy"),
        ("image.tga=1", "tga"),
        ("replicas=10", "replicas"),
        ("fullnameOverride=-x", "fullnameOverride"),
    ] {
        let refused = helm(&cluster, &["template", "x", &chart, "--set", set]).await;
        let error = refused.unwrap_err().to_string();
        // Without the command line, which has the word anyway.
        let (_, said) = error.split_once("Error:").unwrap();
        assert!(
            said.contains("schema") && said.contains(says),
            "{set}: {said}"
        );
    }
}

#[tokio::test]
async fn helm_installs_upgrades_and_leaves_the_kinds_when_it_goes() {
    let cluster = Cluster::start(&ClusterOptions::api_server()).await.unwrap();
    let client = cluster.client().await.unwrap();
    let (crds, operator) = (at("charts/dragonfly-crds"), at("charts/dragonfly"));
    helm(&cluster, &["install", "dragonfly-crds", &crds])
        .await
        .unwrap();
    let namespace = ["--namespace", "dragonfly-system", "--create-namespace"];
    let mut line = vec!["install", "dragonfly", &operator];
    line.extend(namespace);
    let said = helm(&cluster, &line).await.unwrap();
    let commands: Vec<_> = said
        .lines()
        .map(str::trim)
        .filter(|l| l.starts_with("kubectl "))
        .collect();
    assert_eq!(commands.len(), 3, "{said}");
    // The mesh that the second one makes is one.
    let (_, object) = commands[1].split_once("<<<").unwrap();
    let object = object.trim().trim_matches('\'');
    apply::yaml(&client, "dragonfly-system", object)
        .await
        .unwrap();
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), "dragonfly-system");
    deployments.get("dragonfly").await.unwrap();

    helm(&cluster, &["upgrade", "dragonfly-crds", &crds])
        .await
        .unwrap();
    helm(
        &cluster,
        &[
            "upgrade",
            "dragonfly",
            &operator,
            "-n",
            "dragonfly-system",
            "--set",
            "log=debug",
        ],
    )
    .await
    .unwrap();
    let container = deployments
        .get("dragonfly")
        .await
        .unwrap()
        .spec
        .unwrap()
        .template
        .spec
        .unwrap();
    let args = container.containers[0].args.clone().unwrap_or_default();
    assert!(args.contains(&"--log=debug".to_owned()), "{args:?}");

    helm(
        &cluster,
        &["uninstall", "dragonfly", "-n", "dragonfly-system"],
    )
    .await
    .unwrap();
    helm(&cluster, &["uninstall", "dragonfly-crds"])
        .await
        .unwrap();
    assert!(deployments.get_opt("dragonfly").await.unwrap().is_none());
    let kinds: Api<CustomResourceDefinition> = Api::all(client.clone());
    for kind in ["distributions.d7y.io", "schedulerpools.d7y.io"] {
        kinds.get(kind).await.unwrap();
    }
    // And what kustomize says is taken too, with the samples.
    kubectl(
        &cluster,
        &[
            "apply",
            "--server-side",
            "--force-conflicts",
            "-k",
            &at("config/default"),
        ],
    )
    .await
    .unwrap();
    kubectl(
        &cluster,
        &[
            "apply",
            "-n",
            "dragonfly-system",
            "-k",
            &at("config/samples"),
        ],
    )
    .await
    .unwrap();
    deployments.get("dragonfly-operator").await.unwrap();
    cluster.stop().await.unwrap();
}

/// Runs a program to its end: what it wrote.
fn ran(program: &Path, line: &[&str], env: &[(&str, String)]) -> String {
    let mut command = std::process::Command::new(program);
    command.args(line).envs(env.iter().cloned());
    let out = command.stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(
        out.status.success(),
        "{} {line:?}: {said}",
        program.display()
    );
    String::from_utf8_lossy(&out.stdout).into_owned() + &said
}

#[test]
#[ignore = "krew is built for this test alone, and programs with all that debuggers need are packed"]
fn krew_installs_the_plugin_and_its_completion() {
    let dir = tempfile::tempdir().unwrap();
    let programs = Path::new(env!("CARGO_BIN_EXE_cluster")).parent().unwrap();
    let output = dir.path().join("output").display().to_string();
    // Those of the other processor are not looked at.
    let given = ["amd64", "arm64"].map(|arch| format!("{arch}={}", programs.display()));
    let url = "https://releases.test";
    let mut line = vec![output.as_str(), "v0.1.0", url, url];
    line.extend(given.iter().map(String::as_str));
    ran(&root().join("scripts/krew.sh"), &line, &[]);

    let built = |tool: Tool, name: &str| tool.built().unwrap()[name].clone();
    let krew_root = dir.path().join("krew");
    let path = format!(
        "{}:{}",
        krew_root.join("bin").display(),
        std::env::var("PATH").unwrap()
    );
    let env = [
        ("KREW_ROOT", krew_root.display().to_string()),
        ("KREW_NO_UPGRADE_CHECK", "1".to_owned()),
        ("PATH", path),
    ];
    let manifest = format!("--manifest={output}/dragonfly.yaml");
    let arch = Architecture::HERE.name();
    let archive = format!("--archive={output}/kubectl-dragonfly_linux_{arch}.tar.gz");
    let said = ran(
        &built(Tool::Krew, "krew"),
        &["install", &manifest, &archive],
        &env,
    );
    assert!(said.contains("Installed plugin: dragonfly"), "{said}");
    // What it tells people to do, done as they would.
    let shown: Vec<_> = said
        .lines()
        .map(|line| line.trim_start_matches([' ', '|']))
        .collect();
    let mut todo = shown
        .iter()
        .filter(|line| line.starts_with("root=") || line.starts_with("ln "));
    let todo = format!("{}\n{}", todo.next().unwrap(), todo.next().unwrap());
    ran(Path::new("/bin/sh"), &["-ec", &todo], &env);

    let kubectl = built(Tool::Kubernetes, "kubectl");
    let said = ran(&kubectl, &["dragonfly", "--help"], &env);
    assert!(said.contains("support-dump"), "{said}");
    let said = ran(&kubectl, &["__complete", "dragonfly", "sup"], &env);
    assert!(said.starts_with("support-dump"), "{said}");
}
