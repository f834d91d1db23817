//! `dragonfly import`: a file of this machine, for all who are in the mesh.

use std::path::PathBuf;
use std::process::ExitCode;

use super::{EXIT_CODES, Failed, Format, NodeArgs, ended, say, show_bytes};

/// Bring a file into the mesh
///
/// Others get it as the URL given, or as `dragonfly://<hex of its sha256>`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Args {
    /// The file
    file: PathBuf,
    /// The URL that others ask for
    #[arg(long)]
    url: Option<String>,
    /// What it is, as HTTP says it
    #[arg(long, value_name = "TYPE", default_value = "application/octet-stream")]
    content_type: String,
    /// How to say what was done
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    node: NodeArgs,
}

/// Runs it.
pub(crate) async fn run(args: Args) -> ExitCode {
    ended(import(&args).await)
}

async fn import(args: &Args) -> Result<(), Failed> {
    let client = args.node.connect().await?;
    let done = client
        .import(&args.file, args.url.as_deref(), &args.content_type)
        .await?;
    if args.output == Format::Json {
        let json = serde_json::json!({
            "task": done.task, "digest": done.digest, "length": done.len, "url": done.url,
        });
        return say(&format!("{json}\n"));
    }
    say(&format!(
        "{}  {}  {}\n",
        done.url,
        done.digest,
        show_bytes(done.len)
    ))
}
