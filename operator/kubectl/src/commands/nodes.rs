//! `peers` and `tasks`: what schedulers know now, asked live.

use std::process::ExitCode;

use dragonfly_crds::Distribution;
use serde_json::json;

use super::{MeshArgs, full_name};
use crate::Failed;
use crate::cluster::{Cluster, Where};
use crate::output::{Table, bytes, show};
use crate::schedulers::{Inspected, Schedulers};

/// Show the nodes of a mesh as its schedulers see them now
#[derive(Debug, clap::Args)]
pub struct PeersArgs {
    #[command(flatten)]
    mesh: MeshArgs,
}

/// Show the contents that nodes of a mesh hold or get, as its schedulers see them now
#[derive(Debug, clap::Args)]
pub struct TasksArgs {
    #[command(flatten)]
    mesh: MeshArgs,
    /// Only contents whose URL begins with this
    #[arg(long, value_name = "URL")]
    prefix: Option<String>,
}

async fn inspect(cluster: &Cluster, mesh: &Distribution) -> Result<Inspected, Failed> {
    Schedulers::of(cluster, mesh).await?.inspect().await
}

/// Of the meshes that are meant; one that does not answer does not hide the others.
async fn each(at: &Where, which: &MeshArgs) -> Result<Vec<(Distribution, Inspected)>, Failed> {
    let cluster = at.connect().await?;
    let meshes = which.all(&cluster).await?;
    let mut found = vec![];
    let mut last = None;
    for mesh in meshes {
        match inspect(&cluster, &mesh).await {
            Ok(inspected) => found.push((mesh, inspected)),
            Err(error) => {
                eprintln!("warning: {}: {error}", full_name(&mesh));
                last = Some(error);
            }
        }
    }
    match last {
        Some(error) if found.is_empty() => Err(error),
        _ => Ok(found),
    }
}

/// Runs `peers`.
///
/// # Errors
/// No scheduler answers.
pub async fn peers(at: &Where, args: &PeersArgs) -> Result<ExitCode, Failed> {
    let all = each(at, &args.mesh).await?;
    let columns = [
        "MESH",
        "NAME",
        "ROLE",
        "ZONE",
        "STORED",
        "IN/S",
        "OUT/S",
        "ACTIVE",
        "POLICY",
        "ADDRESSES",
        "ID",
    ];
    let mut table = Table::new(&columns, 2);
    for (mesh, found) in &all {
        for n in &found.nodes {
            let policy = if n.policy.error.is_empty() {
                n.policy.revision.to_string()
            } else {
                format!("refused {}", n.policy.revision)
            };
            table.row(
                format!("node/{}", n.name),
                [
                    full_name(mesh),
                    n.name.clone(),
                    n.role.clone(),
                    if n.zone.is_empty() {
                        "-".to_owned()
                    } else {
                        n.zone.clone()
                    },
                    bytes(n.stored_bytes),
                    bytes(n.bytes_per_second_in),
                    bytes(n.bytes_per_second_out),
                    n.active_tasks.to_string(),
                    policy,
                    n.addresses.join(","),
                    n.id.clone().unwrap_or_default(),
                ],
            );
        }
    }
    let data = all
        .iter()
        .map(|(mesh, found)| json!({"mesh": full_name(mesh), "nodes": found.nodes}));
    show(
        at.output,
        &table,
        &json!({"items": data.collect::<Vec<_>>()}),
    )?;
    Ok(ExitCode::SUCCESS)
}

/// Runs `tasks`.
///
/// # Errors
/// No scheduler answers.
pub async fn tasks(at: &Where, args: &TasksArgs) -> Result<ExitCode, Failed> {
    let mut all = each(at, &args.mesh).await?;
    let columns = [
        "MESH", "TASK", "LENGTH", "NODES", "COMPLETE", "URL", "EMITTER",
    ];
    let mut table = Table::new(&columns, 1);
    for (mesh, found) in &mut all {
        if let Some(prefix) = &args.prefix {
            found.tasks.retain(|t| t.url.starts_with(prefix));
        }
        for t in &found.tasks {
            let id = t.task.clone().unwrap_or_default();
            // As much as tells them apart; `-o wide`, json and name have all of it.
            let short = if at.output == crate::output::Format::Table {
                id.chars().take(16).collect()
            } else {
                id.clone()
            };
            table.row(
                format!("task/{id}"),
                [
                    full_name(mesh),
                    short,
                    t.length.map_or_else(|| "?".to_owned(), bytes),
                    t.nodes.to_string(),
                    t.complete.to_string(),
                    t.url.clone(),
                    t.emitter.clone(),
                ],
            );
        }
    }
    let data = all
        .iter()
        .map(|(mesh, found)| json!({"mesh": full_name(mesh), "tasks": found.tasks}));
    show(
        at.output,
        &table,
        &json!({"items": data.collect::<Vec<_>>()}),
    )?;
    Ok(ExitCode::SUCCESS)
}
