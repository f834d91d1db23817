//! The `dragonfly` binary: every part of a mesh, and its client. Wiring only.

mod commands;
mod progress;
mod roles;
mod wiping;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Peer-to-peer distribution of files and images
#[derive(Parser)]
#[command(name = "dragonfly", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// `dfget` is `dragonfly get`.
#[derive(Parser)]
#[command(name = "dfget", version)]
struct Dfget {
    #[command(flatten)]
    args: commands::get::Args,
}

#[derive(Subcommand)]
enum Command {
    Up(Box<roles::up::Args>),
    Scheduler(Box<roles::scheduler::Args>),
    /// Run a seed: a node that goes to origins for the others
    Seed(Box<roles::node::Args>),
    /// Run a peer: the node of this machine's clients
    Peer(Box<roles::node::PeerArgs>),
    Mirror(Box<roles::mirror::Args>),
    Get(Box<commands::get::Args>),
    Import(commands::import::Args),
    Ls(commands::ls::Args),
    Stat(commands::stat::Args),
    Rm(commands::rm::Args),
    Top(Box<commands::top::Args>),
    Simulate(roles::simulate::Args),
}

fn main() -> ExitCode {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    // The environment's word goes before this one.
    if std::env::var_os("TOKIO_WORKER_THREADS").is_none() {
        runtime.worker_threads(dragonfly_node::threads());
    }
    match runtime.enable_all().build() {
        Ok(runtime) => runtime.block_on(command()),
        Err(error) => {
            eprintln!("dragonfly: cannot start threads: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn command() -> ExitCode {
    let called = std::env::args_os().next().unwrap_or_default();
    let temporary = roles::temporary::FromEnvironment;
    if std::path::Path::new(&called)
        .file_name()
        .is_some_and(|n| n == "dfget")
    {
        return commands::get::run(Dfget::parse().args, &temporary).await;
    }
    match Cli::parse().command {
        Command::Up(args) => roles::up::run(*args).await,
        Command::Scheduler(args) => roles::scheduler::run(*args).await,
        Command::Seed(args) => roles::node::seed(*args).await,
        Command::Peer(args) => roles::node::peer(*args).await,
        Command::Mirror(args) => roles::mirror::run(*args).await,
        Command::Get(args) => commands::get::run(*args, &temporary).await,
        Command::Import(args) => commands::import::run(args).await,
        Command::Ls(args) => commands::ls::run(args).await,
        Command::Stat(args) => commands::stat::run(args).await,
        Command::Rm(args) => commands::rm::run(args).await,
        Command::Top(args) => commands::top::run(*args).await,
        Command::Simulate(args) => roles::simulate::run(&args),
    }
}
