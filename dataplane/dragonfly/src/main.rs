//! The `dragonfly` binary.

mod commands;
mod progress;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Peer-to-peer distribution of files and images.
#[derive(Parser)]
#[command(name = "dragonfly", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Get(commands::get::Args),
    Import(commands::import::Args),
    Ls(commands::ls::Args),
    Stat(commands::stat::Args),
    Rm(commands::rm::Args),
    Top(commands::top::Args),
}

#[tokio::main]
async fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Get(args) => commands::get::run(args, &commands::NoTemporaryNode).await,
        Command::Import(args) => commands::import::run(args).await,
        Command::Ls(args) => commands::ls::run(args).await,
        Command::Stat(args) => commands::stat::run(args).await,
        Command::Rm(args) => commands::rm::run(args).await,
        Command::Top(args) => commands::top::run(args).await,
    }
}
