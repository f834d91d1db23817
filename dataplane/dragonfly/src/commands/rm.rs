//! `dragonfly rm`: lets go of what the node holds.

use std::process::ExitCode;

use super::{EXIT_CODES, Exit, Failed, NodeArgs, ended, say, stat};

/// Have the node delete what it holds; others keep theirs
#[derive(Debug, clap::Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Args {
    /// URLs, task ids, or first digits of ids as `ls` shows them
    #[arg(required = true)]
    what: Vec<String>,
    #[command(flatten)]
    node: NodeArgs,
}

/// Runs it.
pub(crate) async fn run(args: Args) -> ExitCode {
    ended(rm(&args).await)
}

async fn rm(args: &Args) -> Result<(), Failed> {
    let client = args.node.connect().await?;
    for what in &args.what {
        let Some(task) = stat::find(&client, what).await? else {
            return Err(Failed::new(
                Exit::Denied,
                format!("the node holds nothing of {what}"),
            ));
        };
        if client.delete_task(&task.task).await? {
            say(&format!("{what} is in use: deleted when that is over\n"))?;
        }
    }
    Ok(())
}
