//! `dragonfly ls`: what the node holds.

use std::process::ExitCode;

use dragonfly_client::rpc::TaskStat;

use super::{EXIT_CODES, Failed, Format, NodeArgs, ended, say, show_bytes, table};

/// List what the node holds, latest used first
#[derive(Debug, clap::Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Args {
    /// How to list
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    node: NodeArgs,
}

/// Runs it.
pub(crate) async fn run(args: Args) -> ExitCode {
    ended(ls(&args).await)
}

async fn ls(args: &Args) -> Result<(), Failed> {
    let tasks = args.node.connect().await?.list().await?;
    if args.output == Format::Json {
        let lines: String = tasks.iter().map(|t| format!("{}\n", json(t))).collect();
        return say(&lines);
    }
    let rows: Vec<_> = tasks.iter().map(row).collect();
    say(&table(
        &["TASK", "SIZE", "HELD", "USED", "STATE", "URL"],
        &rows,
    ))
}

fn row(t: &TaskStat) -> Vec<String> {
    let total = t.geometry.as_ref().and_then(|g| g.total_len);
    vec![
        // Enough to tell apart; `-o json` has all of it.
        t.task.chars().take(12).collect(),
        total.map_or_else(|| "?".to_owned(), show_bytes),
        held(t),
        used(t),
        state(t).to_owned(),
        t.url.clone(),
    ]
}

/// The share of it that is held.
pub(super) fn held(t: &TaskStat) -> String {
    match t.geometry.as_ref().and_then(|g| g.total_len) {
        Some(_) if t.complete => "100%".to_owned(),
        Some(total) if total > 0 => format!("{}%", t.held_bytes.saturating_mul(100) / total),
        _ => show_bytes(t.held_bytes),
    }
}

/// When it was used last.
pub(super) fn used(t: &TaskStat) -> String {
    let at = i64::try_from(t.last_used_unix_ms).ok();
    let at = at.and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    at.map(|at| at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
        .unwrap_or_default()
}

/// What happens with it.
pub(super) const fn state(t: &TaskStat) -> &'static str {
    match (t.in_use, t.pinned, t.complete) {
        (true, ..) => "in use",
        (_, true, _) => "pinned",
        (_, _, true) => "complete",
        _ => "partial",
    }
}

/// All that is known of it.
pub(super) fn json(t: &TaskStat) -> serde_json::Value {
    serde_json::json!({
        "task": t.task,
        "url": t.url,
        "digest": t.digest,
        "contentType": t.content_type,
        "totalLength": t.geometry.as_ref().and_then(|g| g.total_len),
        "blockSize": t.geometry.as_ref().map(|g| g.block_size),
        "heldBytes": t.held_bytes,
        "complete": t.complete,
        "inUse": t.in_use,
        "pinned": t.pinned,
        "neighbours": t.neighbours,
        "lastUsed": used(t),
    })
}
