//! `purge`, `pin`, `unpin`: contents, on all nodes of a mesh.

use std::process::ExitCode;

use serde_json::{Value, json};

use super::{MeshArgs, full_name};
use crate::Failed;
use crate::cluster::Where;
use crate::output::{Format, bytes, say};
use crate::schedulers::Schedulers;

/// On all nodes of a mesh: delete contents (purge), exempt them from eviction (pin), or no longer (unpin)
///
/// Contents that somebody is reading or getting are not deleted; how many is said.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    mesh: MeshArgs,
    /// A task id (64 digits, see `tasks -o wide`), or the URL of a file without its query
    #[arg(value_name = "TASK|URL", required_unless_present = "prefix")]
    content: Option<String>,
    /// All contents whose URL begins with this
    #[arg(long, value_name = "URL", conflicts_with = "content")]
    prefix: Option<String>,
}

/// Runs one of them.
///
/// # Errors
/// No scheduler answers.
pub async fn run(at: &Where, action: &str, args: &Args) -> Result<ExitCode, Failed> {
    let mut wish = json!({"action": action});
    match (&args.content, &args.prefix) {
        (_, Some(prefix)) => wish["prefix"] = json!(prefix),
        (Some(url), None) if url.contains("://") => wish["url"] = json!(url),
        (Some(task), None) => wish["task"] = json!(task),
        (None, None) => return Err(Failed("which contents?".to_owned())),
    }
    let cluster = at.connect().await?;
    let mesh = args.mesh.find(&cluster).await?;
    let done = Schedulers::of(&cluster, &mesh).await?.tend(&wish).await?;
    let number = |field: &str| done[field].as_u64().unwrap_or_default();
    let (asked, answered) = (number("asked"), number("answered"));
    match at.output {
        Format::Json => say(&format!("{done:#}\n"))?,
        Format::Yaml => {
            let text = serde_saphyr::to_string(&done).map_err(|e| Failed::at("YAML", e))?;
            say(&text)?;
        }
        _ => say(&format!(
            "{}: {} contents ({}) on {answered} of {asked} nodes: {action} done\n",
            full_name(&mesh),
            number("contents"),
            bytes(number("bytes")),
        ))?,
    }
    if number("inUse") > 0 {
        eprintln!(
            "{} contents are in use and were kept: run it again later",
            number("inUse")
        );
    }
    let failures = done["failures"].as_array();
    for failure in failures.into_iter().flatten() {
        let text = |field: &str| failure[field].as_str().unwrap_or_default().to_owned();
        eprintln!("{}: {}", text("node"), text("message"));
    }
    let all = answered == asked && done["failures"].as_array().is_none_or(Vec::is_empty);
    if answered < asked {
        eprintln!("{} nodes did not answer in time", asked - answered);
    }
    let nothing = number("contents") == 0 && number("inUse") == 0;
    if nothing {
        eprintln!("no node holds such content: `kubectl dragonfly tasks` shows what they hold");
    }
    let _: &Value = &done;
    Ok(ExitCode::from(u8::from(!all || nothing)))
}
