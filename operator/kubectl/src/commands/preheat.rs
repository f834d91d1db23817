//! `preheat`: give nodes content ahead, and watch it come.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use dragonfly_crds::Preheat;
use dragonfly_crds::conditions::{READY, STALLED};
use dragonfly_crds::preheat::{CREATED_BY, PLUGIN};
use indicatif::{ProgressBar, ProgressStyle};
use kube::ResourceExt;
use kube::api::{Api, ListParams, PostParams};
use serde_json::{Value, json};

use super::{MeshArgs, condition, full_name};
use crate::Failed;
use crate::cluster::{Cluster, Where};
use crate::output::{Format, Table, bytes, document, say, show};

/// Give nodes content before anybody asks for it
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    word: Word,
}

#[derive(Debug, clap::Subcommand)]
enum Word {
    /// Create one and follow it; it goes away by itself a day after it is done (--ttl)
    Create(Create),
    /// Follow one until it is done
    Follow {
        /// Which
        name: String,
    },
    /// List them
    List,
}

#[derive(Debug, clap::Args)]
struct Create {
    /// What to get: http or https; repeatable
    #[arg(required = true, value_name = "URL")]
    urls: Vec<String>,
    #[command(flatten)]
    mesh: MeshArgs,
    /// Name of the object [default: made up]
    #[arg(long)]
    name: Option<String>,
    /// What the bytes of the only URL must hash to
    #[arg(long, value_name = "sha256:HEX")]
    digest: Option<String>,
    /// Peers get it, not only seeds
    #[arg(long)]
    peers: bool,
    /// Only peers on nodes with these labels: key=value; repeatable
    #[arg(long, value_name = "KEY=VALUE", requires = "peers")]
    selector: Vec<String>,
    /// Only nodes of this zone; repeatable
    #[arg(long, value_name = "NAME")]
    zone: Vec<String>,
    /// So many nodes
    #[arg(long, conflicts_with = "percent")]
    count: Option<i32>,
    /// This share of the nodes
    #[arg(long)]
    percent: Option<i32>,
    /// Nodes at once
    #[arg(long)]
    parallelism: Option<i32>,
    /// How long it may take, such as 30m
    #[arg(long, value_name = "LENGTH")]
    deadline: Option<String>,
    /// How long the object stays after it is done
    #[arg(long, default_value = "24h", value_name = "LENGTH")]
    ttl: String,
    /// Do not wait for it
    #[arg(long)]
    detach: bool,
    /// Show the object and create nothing
    #[arg(long)]
    dry_run: bool,
}

/// Runs it.
///
/// # Errors
/// The API server's; the spec is wrong.
pub async fn run(at: &Where, args: &Args) -> Result<ExitCode, Failed> {
    let cluster = at.connect().await?;
    match &args.word {
        Word::Create(create) => make(at, &cluster, create).await,
        Word::Follow { name } => follow(&cluster, cluster.namespace(), name).await,
        Word::List => list(at, &cluster).await,
    }
}

async fn make(at: &Where, cluster: &Cluster, create: &Create) -> Result<ExitCode, Failed> {
    let mesh = create.mesh.find(cluster).await?;
    let object = object(create, &mesh.name_any())?;
    if create.dry_run {
        say(&document(at.output, &object)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let namespace = mesh.namespace().unwrap_or_default();
    let api: Api<Preheat> = cluster.within(&namespace);
    let typed: Preheat = serde_json::from_value(object).map_err(|e| Failed::at("the object", e))?;
    let made = api.create(&PostParams::default(), &typed).await?;
    let name = made.name_any();
    let value = serde_json::to_value(&made).map_err(|e| Failed::at("JSON", e))?;
    say(&created(at.output, &name, &value)?)?;
    if create.detach {
        return Ok(ExitCode::SUCCESS);
    }
    follow(cluster, &namespace, &name).await
}

/// What is said of an object that was created.
fn created(format: Format, name: &str, made: &Value) -> Result<String, Failed> {
    match format {
        Format::Json | Format::Yaml => document(format, made),
        Format::Table | Format::Wide | Format::Name => Ok(format!("preheat.d7y.io/{name}\n")),
    }
}

fn object(create: &Create, mesh: &str) -> Result<Value, Failed> {
    if create.digest.is_some() && create.urls.len() > 1 {
        return Err(Failed(
            "--digest is of one URL: for several apply a manifest (see --dry-run)".to_owned(),
        ));
    }
    let files: Vec<_> = create
        .urls
        .iter()
        .map(|url| match &create.digest {
            Some(digest) => json!({"url": url, "digest": digest}),
            None => json!({"url": url}),
        })
        .collect();
    let mut targets = json!({"role": if create.peers { "Peers" } else { "Seeds" }});
    for label in &create.selector {
        let (key, value) = label
            .split_once('=')
            .ok_or_else(|| Failed(format!("--selector {label}: write key=value")))?;
        targets["nodeSelector"][key] = json!(value);
    }
    if !create.zone.is_empty() {
        targets["zones"] = json!(create.zone);
    }
    let mut spec = json!({
        "distributionRef": {"name": mesh},
        "files": files,
        "ttl": create.ttl,
    });
    for (field, value) in [("count", create.count), ("percent", create.percent)] {
        if let Some(value) = value {
            targets[field] = json!(value);
        }
    }
    spec["targets"] = targets;
    if let Some(parallelism) = create.parallelism {
        spec["parallelism"] = json!(parallelism);
    }
    if let Some(deadline) = &create.deadline {
        spec["deadline"] = json!(deadline);
    }
    let mut metadata = json!({"labels": {CREATED_BY: PLUGIN}});
    match &create.name {
        Some(name) => metadata["name"] = json!(name),
        None => metadata["generateName"] = json!("preheat-"),
    }
    Ok(json!({
        "apiVersion": dragonfly_crds::API_VERSION,
        "kind": "Preheat",
        "metadata": metadata,
        "spec": spec,
    }))
}

/// An operator looks at an object within a moment, and after a leader's death within its Lease's time.
const UNSEEN: Duration = Duration::from_secs(20);

/// Until it is done, or is to be done later; fails as it does.
async fn follow(cluster: &Cluster, namespace: &str, name: &str) -> Result<ExitCode, Failed> {
    let api: Api<Preheat> = cluster.within(namespace);
    let bar = if std::io::stderr().is_terminal() {
        ProgressBar::new(0)
    } else {
        ProgressBar::hidden()
    };
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} {msg}") {
        bar.set_style(style);
    }
    let mut last = String::new();
    let mut tell = |line: String| {
        if line != last {
            bar.set_message(line.clone());
            if bar.is_hidden() {
                eprintln!("{line}");
            }
            last = line;
        }
    };
    let begun = Instant::now();
    loop {
        let Some(found) = api.get_opt(name).await? else {
            bar.finish_and_clear();
            return Err(Failed(format!("preheat {namespace}/{name} is gone")));
        };
        let status = found.status.clone().unwrap_or_default();
        let files = status.progress.iter().flat_map(|p| &p.files);
        let (held, total) = files.fold((0, 0), |(held, total), f| {
            let sum = |all: u64, n: i64| all + u64::try_from(n).unwrap_or_default();
            (sum(held, f.bytes), sum(total, f.total_bytes))
        });
        bar.set_length(total);
        bar.set_position(held);
        let current = status.observed_generation == found.metadata.generation;
        let ready = condition(&status.conditions, READY).filter(|_| current);
        let Some(ready) = ready else {
            if begun.elapsed() > UNSEEN {
                tell(
                    "Pending: no operator has looked at it yet: see whether one runs and leads \
                      (kubectl dragonfly check)"
                        .to_owned(),
                );
            }
            pause().await;
            continue;
        };
        tell(format!("{}: {}", ready.reason, ready.message));
        let stalled = condition(&status.conditions, STALLED).is_some_and(|c| c.status == "True");
        if ready.status == "True" || stalled || ready.reason == "Suspended" {
            bar.finish_and_clear();
            eprintln!("{}: {}", ready.reason, ready.message);
            let failed = status.progress.iter().flat_map(|p| &p.failed_nodes);
            for node in failed {
                eprintln!(
                    "  {}: {} ({} attempts)",
                    node.node, node.message, node.attempts
                );
            }
            return Ok(ExitCode::from(u8::from(ready.status != "True")));
        }
        pause().await;
    }
}

async fn pause() {
    tokio::time::sleep(Duration::from_secs(1)).await;
}

async fn list(at: &Where, cluster: &Cluster) -> Result<ExitCode, Failed> {
    let found = cluster
        .api::<Preheat>()
        .list(&ListParams::default())
        .await?;
    let columns = [
        "PREHEAT", "MESH", "READY", "REASON", "NODES", "BYTES", "NEXT", "MESSAGE",
    ];
    let mut table = Table::new(&columns, 1);
    for p in &found.items {
        let status = p.status.clone().unwrap_or_default();
        let ready = condition(&status.conditions, READY);
        let progress = status.progress.clone().unwrap_or_default();
        let held = progress.files.iter().map(|f| f.bytes).sum::<i64>();
        table.row(
            format!("preheat.d7y.io/{}", p.name_any()),
            [
                if cluster.shows_namespaces() {
                    full_name(p)
                } else {
                    p.name_any()
                },
                p.spec.distribution_ref.name.clone(),
                ready.map_or_else(String::new, |c| c.status.clone()),
                ready.map_or_else(String::new, |c| c.reason.clone()),
                format!(
                    "{}/{}",
                    progress.targets.succeeded, progress.targets.desired
                ),
                bytes(u64::try_from(held).unwrap_or_default()),
                status
                    .next_run_time
                    .map_or_else(|| "-".to_owned(), |t| t.0.to_string()),
                ready.map_or_else(String::new, |c| c.message.clone()),
            ],
        );
    }
    show(at.output, &table, &json!({"items": found.items}))?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_created_is_shown_as_it_was_asked_for() {
        let made = json!({"metadata": {"name": "p"}});
        let rows = [
            (Format::Table, "preheat.d7y.io/p\n"),
            (Format::Name, "preheat.d7y.io/p\n"),
            (Format::Yaml, "metadata:\n  name: p\n"),
            (
                Format::Json,
                "{\n  \"metadata\": {\n    \"name\": \"p\"\n  }\n}\n",
            ),
        ];
        for (format, shown) in rows {
            assert_eq!(created(format, "p", &made).unwrap(), shown, "{format:?}");
        }
        // And so is what would be created, which is YAML unless something else is said.
        for (format, begins) in [(Format::Table, "metadata:"), (Format::Json, "{")] {
            assert!(document(format, &made).unwrap().starts_with(begins));
        }
    }
}
