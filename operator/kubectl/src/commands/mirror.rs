//! `mirror plan`: what telling container runtimes of the mirror changes on which node, asked live of the
//! pods that do it.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::Duration;

use dragonfly_crds::Distribution;
use dragonfly_operator_core::names::{self, Component};
use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, AttachParams, ListParams};
use kube::{Resource, ResourceExt};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::io::AsyncReadExt;

use super::{MeshArgs, full_name};
use crate::Failed;
use crate::cluster::Where;
use crate::output::{Table, show};

/// Pods asked at once.
const AT_ONCE: usize = 16;
/// How long one may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// Longest answer: a few hundred bytes a registry.
const MAX_ANSWER: u64 = 1 << 20;

/// The registry mirror of a mesh's nodes
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    word: Word,
}

#[derive(Debug, clap::Subcommand)]
enum Word {
    Plan(PlanArgs),
}

/// Show what telling container runtimes of the mirror changes on which node, and what would keep it from
/// being used
///
/// Asks the mirror's pods on the nodes that spec.mirror.nodeSelector picks. With spec.mirror.percent: 0
/// they run on all of these and change nothing.
#[derive(Debug, clap::Args)]
pub struct PlanArgs {
    #[command(flatten)]
    mesh: MeshArgs,
    /// As if spec.mirror.percent were this
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100))]
    percent: Option<u8>,
    /// Only these nodes
    #[arg(value_name = "NODE")]
    nodes: Vec<String>,
}

/// What one node says.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default)]
struct Said {
    node: String,
    /// It is among those whose runtimes are told.
    told: bool,
    /// Its mirror answers.
    answers: bool,
    files: Vec<File>,
    /// What keeps runtimes from using the mirror.
    findings: Vec<String>,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default)]
struct File {
    path: String,
    change: String,
}

/// Runs the words.
///
/// # Errors
/// No pod can be asked.
pub async fn run(at: &Where, args: &Args) -> Result<ExitCode, Failed> {
    let Word::Plan(args) = &args.word;
    plan(at, args).await
}

async fn plan(at: &Where, args: &PlanArgs) -> Result<ExitCode, Failed> {
    let cluster = at.connect().await?;
    let mesh = args.mesh.find(&cluster).await?;
    let spec = mesh.spec.mirror.as_ref();
    if spec.and_then(|mirror| mirror.told_percent()).is_none() {
        return Err(Failed(format!(
            "{}: no node is told of the mirror: spec.mirror.percent: 0 has every node looked at and none \
             changed",
            full_name(&mesh)
        )));
    }
    let pods: Api<Pod> = cluster.within(&mesh.namespace().unwrap_or_default());
    let wanted = |pod: &Pod| args.nodes.is_empty() || args.nodes.contains(&node_of(pod));
    let told = of(&pods, &mesh, Component::Mirror).await?;
    let peers = of(&pods, &mesh, Component::Peer).await?;
    let picked: BTreeSet<_> = told.iter().map(node_of).collect();
    let others: BTreeSet<_> = peers
        .iter()
        .filter(|pod| wanted(pod))
        .map(node_of)
        .filter(|node| !picked.contains(node))
        .collect();
    let asked = told.iter().filter(|pod| wanted(pod)).map(|pod| {
        let pods = &pods;
        async move { (node_of(pod), ask(pods, pod, args.percent).await) }
    });
    let asked: Vec<_> = asked.collect();
    let mut said: Vec<_> = futures::stream::iter(asked)
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    said.sort_by(|a, b| a.0.cmp(&b.0));
    let mut table = Table::new(&["NODE", "TOLD", "FILE", "CHANGE"], 0);
    let (mut all, mut failed, mut found) = (vec![], false, vec![]);
    for (node, said) in said {
        let said = match said {
            Ok(said) => said,
            Err(error) => {
                eprintln!("{node}: {error}");
                failed = true;
                continue;
            }
        };
        let told = match (said.told, said.answers) {
            (true, true) => "yes",
            (true, false) => "when its mirror answers",
            (false, _) => "no",
        };
        for file in &said.files {
            let change = match (said.told, file.change.as_str()) {
                (_, "HasEntry") => "has the entry",
                (false, _) => "stays as it is",
                (true, "Made") => "is made",
                (true, _) => "gets the entry",
            };
            let cells = [node.as_str(), told, file.path.as_str(), change].map(str::to_owned);
            table.row(format!("node/{node}"), cells);
        }
        found.extend(said.findings.iter().map(|text| format!("{node}: {text}")));
        all.push(said);
    }
    for node in &others {
        let why = "not picked by spec.mirror.nodeSelector";
        let cells = [node.as_str(), "no", "", why].map(str::to_owned);
        table.row(format!("node/{node}"), cells);
    }
    let data = json!({"nodes": all, "notPicked": others});
    show(at.output, &table, &data)?;
    for text in &found {
        eprintln!("{text}");
    }
    Ok(ExitCode::from(u8::from(failed || !found.is_empty())))
}

fn node_of(pod: &Pod) -> String {
    let spec = pod.spec.as_ref();
    spec.and_then(|spec| spec.node_name.clone())
        .unwrap_or_default()
}

/// A part's pods that run.
async fn of(
    pods: &Api<Pod>,
    mesh: &Distribution,
    component: Component,
) -> Result<Vec<Pod>, Failed> {
    let name = mesh.meta().name.as_deref().unwrap_or_default();
    let labels: Vec<_> = names::selector(name, component)
        .into_iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    let listed = pods
        .list(&ListParams::default().labels(&labels.join(",")))
        .await?;
    let runs = |pod: &Pod| {
        let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
        phase == Some("Running") && pod.metadata.deletion_timestamp.is_none()
    };
    Ok(listed.items.into_iter().filter(runs).collect())
}

/// Runs the pod's own command with `--plan` in it.
async fn ask(pods: &Api<Pod>, pod: &Pod, percent: Option<u8>) -> Result<Said, Failed> {
    let node = node_of(pod);
    let container = pod.spec.as_ref().and_then(|spec| spec.containers.first());
    let own = container.and_then(|c| c.args.clone()).unwrap_or_default();
    let mut line = vec!["/usr/bin/dragonfly".to_owned()];
    line.extend(own.into_iter().map(|arg| match (arg.as_str(), percent) {
        (arg, Some(percent)) if arg.starts_with("--percent=") => format!("--percent={percent}"),
        // The kubelet fills it in for the pod, not for who runs something in it.
        (arg, _) => arg.replace("$(NODE_NAME)", &node),
    }));
    line.extend(["--plan", "--json"].map(str::to_owned));
    let wanted = AttachParams::default()
        .stdin(false)
        .stdout(true)
        .stderr(true);
    let run = async {
        let attached = pods.exec(&pod.name_any(), line, &wanted).await;
        let mut attached = attached.map_err(|error| {
            Failed(format!(
                "{error}; it needs the rights to get and to create pods/exec in this namespace"
            ))
        })?;
        let (mut said, mut errors) = (vec![], vec![]);
        let streams = attached.stdout().zip(attached.stderr());
        let (stdout, stderr) = streams.ok_or_else(|| Failed("no streams".to_owned()))?;
        let (mut stdout, mut stderr) = (stdout.take(MAX_ANSWER), stderr.take(MAX_ANSWER));
        let (read, read_errors) = tokio::join!(
            stdout.read_to_end(&mut said),
            stderr.read_to_end(&mut errors)
        );
        read.and(read_errors).map_err(|e| Failed(e.to_string()))?;
        serde_json::from_slice(&said).map_err(|_| {
            let errors = String::from_utf8_lossy(&errors).trim().to_owned();
            Failed(format!("{} did not say: {errors}", pod.name_any()))
        })
    };
    let limited = tokio::time::timeout(PATIENCE, run).await;
    limited.unwrap_or_else(|_| Err(Failed(format!("no answer within {PATIENCE:?}"))))
}
