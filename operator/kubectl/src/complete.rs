//! What kubectl asks when Tab is pressed: words and flags from the command line's own description, names
//! of objects from the cluster, as long as that takes no longer than people wait.

use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, Parser};
use dragonfly_crds::{Distribution, Preheat};
use kube::ResourceExt;
use kube::api::ListParams;

use crate::cluster::Where;
use crate::{Cli, output};

/// How long a cluster may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// To the shell: these, and no names of files.
const NO_FILES: &str = ":4";

/// The flags that say where, among whatever else is on the line.
#[derive(Parser)]
#[command(ignore_errors = true)]
struct Line {
    #[command(flatten)]
    at: Where,
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    _rest: Vec<String>,
}

/// Prints completions of the arguments: the last is the one that is being typed.
pub async fn run() -> ExitCode {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let args: Vec<_> = std::env::args().skip(1).collect();
    let mut found = words(&args);
    if let Some(kind) = names_wanted(&args) {
        let named = tokio::time::timeout(PATIENCE, names(kind, &args)).await;
        found.extend(named.unwrap_or_default());
    }
    let typed = args.last().map_or("", String::as_str);
    found.retain(|word| word.starts_with(typed));
    found.push(NO_FILES.to_owned());
    let text = found.join("\n") + "\n";
    match output::say(&text) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// The command that the arguments before the typed one have come to, and how many of its own words.
fn reached(args: &[String]) -> (clap::Command, usize) {
    let mut command = Cli::command();
    command.build();
    let before = args.split_last().map_or(&[][..], |(_, before)| before);
    let mut own = 0;
    let mut value = false;
    for arg in before {
        if std::mem::take(&mut value) {
            continue;
        }
        if let Some(flag) = arg.strip_prefix('-') {
            value = takes_value(&command, flag) && !arg.contains('=');
            continue;
        }
        match command.find_subcommand(arg) {
            Some(next) => {
                command = next.clone();
                own = 0;
            }
            None => own += 1,
        }
    }
    (command, own)
}

fn takes_value(command: &clap::Command, flag: &str) -> bool {
    let name = flag.trim_start_matches('-');
    let is = |arg: &&clap::Arg| {
        arg.get_long() == Some(name) || arg.get_short().is_some_and(|s| name == s.to_string())
    };
    let found = command.get_arguments().find(is);
    found.is_some_and(|arg| arg.get_action().takes_values())
}

/// Words and flags.
fn words(args: &[String]) -> Vec<String> {
    let (command, _) = reached(args);
    let typed = args.last().map_or("", String::as_str);
    if typed.starts_with('-') {
        let long = command.get_arguments().filter_map(clap::Arg::get_long);
        return long.map(|flag| format!("--{flag}")).collect();
    }
    let before = args.len().checked_sub(2).and_then(|at| args.get(at));
    if before.is_some_and(|flag| flag == "-o" || flag == "--output") {
        return ["table", "wide", "json", "yaml", "name"]
            .map(str::to_owned)
            .to_vec();
    }
    let described = command.get_subcommands().map(|sub| {
        let about = sub.get_about().map(ToString::to_string).unwrap_or_default();
        format!("{}\t{about}", sub.get_name())
    });
    described.collect()
}

/// Whose names fit here.
fn names_wanted(args: &[String]) -> Option<&'static str> {
    let (command, own) = reached(args);
    let before = args.len().checked_sub(2).and_then(|at| args.get(at));
    if before.is_some_and(|flag| flag == "-d" || flag == "--distribution") {
        return Some("Distribution");
    }
    match command.get_name() {
        "status" if own == 0 => Some("Distribution"),
        "follow" if own == 0 => Some("Preheat"),
        _ => None,
    }
}

async fn names(kind: &str, args: &[String]) -> Vec<String> {
    let line = std::iter::once("kubectl-dragonfly").chain(args.iter().map(String::as_str));
    let at = Line::try_parse_from(line).map(|line| line.at);
    let Ok(cluster) = at.unwrap_or_default().connect().await else {
        return vec![];
    };
    let params = ListParams::default();
    if kind == "Preheat" {
        let found = cluster.api::<Preheat>().list_metadata(&params).await;
        return found.map_or(vec![], |l| {
            l.items.iter().map(ResourceExt::name_any).collect()
        });
    }
    let found = cluster.api::<Distribution>().list_metadata(&params).await;
    found.map_or(vec![], |l| {
        l.items.iter().map(ResourceExt::name_any).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words_of(line: &[&str]) -> Vec<String> {
        let args: Vec<_> = line.iter().map(|a| (*a).to_owned()).collect();
        let all = words(&args).into_iter();
        all.map(|w| w.split('\t').next().unwrap_or_default().to_owned())
            .collect()
    }

    #[test]
    fn words_flags_and_formats_are_offered_where_they_fit() {
        assert!(words_of(&[""]).contains(&"explain-policy".to_owned()));
        assert!(words_of(&["preheat", ""]).contains(&"follow".to_owned()));
        assert!(words_of(&["-n", "status", "preheat", ""]).contains(&"create".to_owned()));
        assert!(words_of(&["top", "--"]).contains(&"--namespace".to_owned()));
        assert!(words_of(&["peers", "-o", ""]).contains(&"yaml".to_owned()));
    }

    #[test]
    fn names_are_asked_for_where_they_fit() {
        let wanted = |line: &[&str]| {
            let args: Vec<_> = line.iter().map(|a| (*a).to_owned()).collect();
            names_wanted(&args)
        };
        assert_eq!(wanted(&["status", ""]), Some("Distribution"));
        assert_eq!(wanted(&["peers", "-d", ""]), Some("Distribution"));
        assert_eq!(wanted(&["preheat", "follow", "x"]), Some("Preheat"));
        assert_eq!(wanted(&["preheat", "follow", "x", ""]), None);
        assert_eq!(wanted(&[""]), None);
    }
}
