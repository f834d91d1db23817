//! `kubectl dragonfly`: what people ask of meshes and have done, over the API server alone.
//!
//! ```text
//!  objects (Distribution, Preheat) ◄─── API server ───► [`schedulers`]: port-forward to a scheduler's
//!  status, preheat, explain-policy                       loopback: tasks, peers, top, purge, pin
//! ```
//! - [`cluster`]: which cluster and namespace; [`output`]: tables, JSON, YAML, names
//! - [`commands`]: one module a word
//! - [`complete`]: what kubectl's completion asks
//!
//! Rights that it needs are those of whoever runs it, see `docs/kubectl.md`. Data goes to stdout, words
//! about it to stderr.

pub mod cluster;
pub mod commands;
pub mod complete;
pub mod output;
pub mod schedulers;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use cluster::Where;

/// Meshes that distribute images and files among nodes: see them, give nodes content ahead, find what is
/// wrong
#[derive(Debug, Parser)]
#[command(
    name = "kubectl-dragonfly",
    bin_name = "kubectl dragonfly",
    version,
    disable_help_subcommand = true
)]
pub struct Cli {
    /// What is asked.
    #[command(subcommand)]
    pub command: Command,
    /// Of which cluster.
    #[command(flatten)]
    pub at: Where,
}

/// The words.
#[derive(Debug, Subcommand)]
#[allow(missing_docs, reason = "each is what its arguments say")]
pub enum Command {
    Check(commands::check::Args),
    Status(commands::status::Args),
    Top(commands::top::Args),
    Preheat(commands::preheat::Args),
    Peers(commands::nodes::PeersArgs),
    Tasks(commands::nodes::TasksArgs),
    ExplainPolicy(commands::explain::Args),
    Purge(commands::tend::Args),
    Pin(commands::tend::Args),
    Unpin(commands::tend::Args),
    Mirror(commands::mirror::Args),
    SupportDump(commands::support::Args),
}

/// Why a command did not do what was asked, for people.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Failed(pub String);

impl Failed {
    /// What, and why.
    pub fn at(what: impl std::fmt::Display, why: impl std::fmt::Display) -> Self {
        Self(format!("{what}: {why}"))
    }
}

impl From<kube::Error> for Failed {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) if status.code == 404 && status.message.contains("page not") => {
                Self("the cluster does not know Dragonfly's kinds: install the chart dragonfly-crds, or config/crd".to_owned())
            }
            kube::Error::Api(status) => Self(status.message.clone()),
            other => Self(other.to_string()),
        }
    }
}

/// Runs what the command line says.
pub async fn run() -> ExitCode {
    // Once in the process, before anything speaks TLS.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let cli = Cli::parse();
    let at = &cli.at;
    let done = match &cli.command {
        Command::Check(args) => commands::check::run(at, args).await,
        Command::Status(args) => commands::status::run(at, args).await,
        Command::Top(args) => commands::top::run(at, args).await,
        Command::Preheat(args) => commands::preheat::run(at, args).await,
        Command::Peers(args) => commands::nodes::peers(at, args).await,
        Command::Tasks(args) => commands::nodes::tasks(at, args).await,
        Command::ExplainPolicy(args) => commands::explain::run(at, args).await,
        Command::Purge(args) => commands::tend::run(at, "purge", args).await,
        Command::Pin(args) => commands::tend::run(at, "pin", args).await,
        Command::Unpin(args) => commands::tend::run(at, "unpin", args).await,
        Command::Mirror(args) => commands::mirror::run(at, args).await,
        Command::SupportDump(args) => commands::support::run(at, args).await,
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
