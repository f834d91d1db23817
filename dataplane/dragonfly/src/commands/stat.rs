//! `dragonfly stat`: what the node knows of one content.

use std::process::ExitCode;

use dragonfly_client::{Client, Request, rpc::TaskStat};

use super::{
    EXIT_CODES, Exit, Failed, Format, NodeArgs, ended, imported_digest, is_task_id, ls, say,
    show_bytes,
};

/// Show what the node holds of one content, without asking anybody
#[derive(Debug, clap::Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Args {
    /// A URL, a task id, or the first digits of one as `ls` shows them
    what: String,
    /// How to show it
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    node: NodeArgs,
}

/// Runs it.
pub(crate) async fn run(args: Args) -> ExitCode {
    ended(stat(&args).await)
}

async fn stat(args: &Args) -> Result<(), Failed> {
    let client = args.node.connect().await?;
    let Some(t) = find(&client, &args.what).await? else {
        let text = format!("the node holds nothing of {}", args.what);
        return Err(Failed::new(Exit::Denied, text));
    };
    if args.output == Format::Json {
        return say(&format!("{}\n", ls::json(&t)));
    }
    let total = t.geometry.as_ref().and_then(|g| g.total_len);
    let rows = [
        ("task", t.task.clone()),
        ("url", t.url.clone()),
        (
            "size",
            total.map_or_else(|| "not known yet".to_owned(), show_bytes),
        ),
        (
            "held",
            format!("{} ({})", show_bytes(t.held_bytes), ls::held(&t)),
        ),
        ("state", ls::state(&t).to_owned()),
        ("type", t.content_type.clone()),
        ("digest", t.digest.clone()),
        ("last used", ls::used(&t)),
        ("neighbours", t.neighbours.to_string()),
    ];
    let lines = rows.iter().filter(|(_, v)| !v.is_empty());
    say(&lines
        .map(|(k, v)| format!("{k:<11} {v}\n"))
        .collect::<String>())
}

/// What somebody means by a URL, an id or the beginning of one.
pub(super) async fn find(client: &Client, what: &str) -> Result<Option<TaskStat>, Failed> {
    if is_task_id(what) {
        return Ok(client.stat_task(&what.to_ascii_lowercase()).await?);
    }
    if what.len() >= 4 && what.bytes().all(|b| b.is_ascii_hexdigit()) {
        let start = what.to_ascii_lowercase();
        let mut all = client.list().await?;
        all.retain(|t| t.task.starts_with(&start));
        if all.len() > 1 {
            let text = format!("{} tasks begin with {what}: give more digits", all.len());
            return Err(Failed::new(Exit::Usage, text));
        }
        return Ok(all.pop());
    }
    let mut request = Request::new(what);
    request.digest = imported_digest(what).unwrap_or_default();
    Ok(client.stat(&request).await?)
}
