//! `outlive-bench app`: one small application on the library, which every load and fault check drives. `outlive-bench inprocess`: what
//! the library costs, beside rivals in the same run. `outlive-bench chaos`: a cluster of the application whose nodes are killed and
//! drained under load.

mod app;
mod chaos;
mod children;
mod cluster;
mod day;
mod ends;
mod failover;
mod inprocess;
mod locks;
mod measure;
mod outage;
mod requests;
#[cfg(feature = "rivals")]
mod rivals;
mod store;
mod subjects;
mod throughput;
mod visitors;
mod wire;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

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
    /// What the library costs: tables of processor time, throughput, bytes to peers and failover, beside tower-sessions in the same run.
    Inprocess(inprocess::Args),
    /// How long requests wait for the engine's locks while a member dies, on a node with a million sessions.
    Locks(locks::Args),
    /// How many small updates a second go into a SQLite file, and what one costs.
    Store(store::Args),
    /// Answers requests of 1,000 visitors and prints nothing: for a profiler that counts instructions.
    Hot {
        /// Which requests.
        kind: requests::Hot,
        /// How many.
        requests: usize,
    },
    /// Kills and drains the nodes of a cluster under load, and checks that nothing acknowledged is lost. Exits with 1 if something is.
    Chaos(chaos::Args),
    /// Kills, restarts and drains nodes that hold many sessions, behind a real HAProxy, and checks that there is always a server, that no
    /// response is wrong, and that a drain keeps its deadline. Exits with 1 if something is not so.
    Outage(outage::Args),
    /// Closes, half closes and resets either end of an exchange at each of its stages: directly, and through the gateway, HAProxy and
    /// nginx. Needs both programs.
    Ends(ends::Args),
    /// A shop's day: two deployments with changed settings, a kill, a look at the store and a backup of it, a full disk, a typo, and a
    /// night. Checks that nothing acknowledged is lost and that the log tells each event. Exits with 1 otherwise.
    Day(day::Args),
}

fn main() -> anyhow::Result<ExitCode> {
    match Cli::parse().command {
        Command::App(args) => threads()?.block_on(app::run(args))?,
        Command::Inprocess(args) => inprocess::run(&args)?,
        Command::Locks(args) => locks::run(&args)?,
        Command::Store(args) => threads()?.block_on(store::run(args))?,
        Command::Ends(args) => threads()?.block_on(ends::run(args))?,
        Command::Hot { kind, requests } => requests::hot(kind, requests)?,
        Command::Chaos(args) => return threads()?.block_on(chaos::run(args)),
        Command::Outage(args) => return threads()?.block_on(outage::run(args)),
        Command::Day(args) => return threads()?.block_on(day::run(args)),
    }
    Ok(ExitCode::SUCCESS)
}

fn threads() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()
}
