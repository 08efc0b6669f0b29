//! `outlive-bench app`: one small application on the library, which every load and fault check drives.

mod app;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// One node of a cluster with the workload's paths; prints `ready http://ADDR` for each address.
    App(app::Args),
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::App(args) => app::run(args).await,
    }
}
