//! `purge`, `pin`, `unpin`: contents, on all nodes of a mesh.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use dragonfly_proto::id::credential_domain;
use serde_json::json;

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
    #[arg(value_name = "TASK|URL", required_unless_present_any = ["prefix", "credentials"])]
    content: Option<String>,
    /// All contents whose URL begins with this
    #[arg(long, value_name = "URL", conflicts_with = "content")]
    prefix: Option<String>,
    /// All contents that were got by showing these: a file with the headers that a client showed, one a
    /// line (`Authorization: Bearer …`), or - for stdin. Only a hash of them leaves this machine
    #[arg(long, value_name = "FILE", conflicts_with_all = ["content", "prefix"])]
    credentials: Option<PathBuf>,
}

/// The isolation domain of what was got with the headers of a file.
fn domain(path: &Path) -> Result<String, Failed> {
    let text = if path == Path::new("-") {
        std::io::read_to_string(std::io::stdin())
    } else {
        std::fs::read_to_string(path)
    };
    domain_of(&text.map_err(|e| Failed::at(path.display(), e))?)
        .map_err(|why| Failed::at(path.display(), why))
}

/// `Err`: what is wrong with the lines, which are not told.
fn domain_of(text: &str) -> Result<String, String> {
    let mut headers = vec![];
    for (number, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let (name, value) = line
            .split_once(':')
            .ok_or_else(|| format!("line {}: write `Name: value`", number + 1))?;
        headers.push((name.trim().to_ascii_lowercase(), value.trim()));
    }
    let headers = headers.iter().map(|(name, value)| (name.as_str(), *value));
    credential_domain(headers)
        .ok_or_else(|| "no credentials in it: without them content is everybody's".to_owned())
}

/// Runs one of them.
///
/// # Errors
/// No scheduler answers.
pub async fn run(at: &Where, action: &str, args: &Args) -> Result<ExitCode, Failed> {
    let mut wish = json!({"action": action});
    match (&args.content, &args.prefix, &args.credentials) {
        (_, _, Some(file)) => wish["domain"] = json!(domain(file)?),
        (_, Some(prefix), None) => wish["prefix"] = json!(prefix),
        (Some(url), None, None) if url.contains("://") => wish["url"] = json!(url),
        (Some(task), None, None) => wish["task"] = json!(task),
        (None, None, None) => return Err(Failed("which contents?".to_owned())),
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
    Ok(ExitCode::from(u8::from(!all || nothing)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_read_as_clients_write_them_and_never_told() {
        let one = domain_of("Authorization: Bearer s3cret\n\nAccept: y\n").unwrap();
        assert_eq!(one, domain_of("authorization:Bearer s3cret").unwrap());
        assert_ne!(one, domain_of("authorization: Bearer other").unwrap());
        assert!(domain_of("Private-Token: s3cret").is_ok());
        for (text, says) in [
            ("Accept: y", "no credentials"),
            ("Cookie: a\nBearer s3cret", "line 2"),
        ] {
            let said = domain_of(text).unwrap_err();
            assert!(said.contains(says) && !said.contains("s3cret"), "{said}");
        }
    }
}
