//! `top`: who moves how much now.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::json;

use super::{MeshArgs, full_name};
use crate::Failed;
use crate::cluster::Where;
use crate::output::{Format, Table, bytes, say, show};
use crate::schedulers::{Inspected, Schedulers};

/// Show live traffic, busiest nodes first; redrawn on a terminal, once when piped
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    mesh: MeshArgs,
    /// Nodes shown
    #[arg(long, default_value_t = 20)]
    nodes: usize,
    /// Show it once
    #[arg(long)]
    once: bool,
}

/// Runs it.
///
/// # Errors
/// No scheduler answers.
pub async fn run(at: &Where, args: &Args) -> Result<ExitCode, Failed> {
    let cluster = at.connect().await?;
    let mesh = args.mesh.find(&cluster).await?;
    let live = at.output == Format::Table && !args.once && std::io::stdout().is_terminal();
    loop {
        // Anew each time: schedulers come and go.
        let found = Schedulers::of(&cluster, &mesh).await?.inspect().await?;
        if live {
            say("\x1b[H\x1b[J")?;
        }
        if at.output == Format::Table {
            let sum = |of: fn(&crate::schedulers::Node) -> u64| -> String {
                bytes(found.nodes.iter().map(of).fold(0, u64::saturating_add))
            };
            say(&format!(
                "{}: {} nodes, {} contents; in {}/s, out {}/s\n\n",
                full_name(&mesh),
                found.nodes.len(),
                found.tasks.len(),
                sum(|n| n.bytes_per_second_in),
                sum(|n| n.bytes_per_second_out),
            ))?;
        }
        table(at, args, found)?;
        if !live {
            return Ok(ExitCode::SUCCESS);
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(2)) => {}
            _ = tokio::signal::ctrl_c() => return Ok(ExitCode::SUCCESS),
        }
    }
}

fn table(at: &Where, args: &Args, mut found: Inspected) -> Result<(), Failed> {
    let busy = |n: &crate::schedulers::Node| n.bytes_per_second_in + n.bytes_per_second_out;
    found
        .nodes
        .sort_by(|a, b| busy(b).cmp(&busy(a)).then_with(|| a.name.cmp(&b.name)));
    found.nodes.truncate(args.nodes);
    let columns = [
        "NAME",
        "ROLE",
        "IN/S",
        "OUT/S",
        "ACTIVE",
        "FROM-ORIGIN",
        "FROM-SEEDS",
        "FROM-PEERS",
        "SENT",
        "STORED",
        "CONNECTIONS",
    ];
    let mut table = Table::new(&columns, 2);
    for n in &found.nodes {
        table.row(
            format!("node/{}", n.name),
            [
                n.name.clone(),
                n.role.clone(),
                bytes(n.bytes_per_second_in),
                bytes(n.bytes_per_second_out),
                n.active_tasks.to_string(),
                bytes(n.from_origin),
                bytes(n.from_seeds),
                bytes(n.from_peers),
                bytes(n.uploaded),
                bytes(n.stored_bytes),
                n.connections.to_string(),
            ],
        );
    }
    show(at.output, &table, &json!({"nodes": found.nodes}))
}
