//! `outlive-bench inprocess`.

use crate::children::Redis;
use crate::measure::machine;
use crate::{failover, requests, throughput, wire};

/// Flags of `outlive-bench inprocess`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Rounds; each measures everything in turn, and a figure is the median of them.
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// Only these tables; otherwise all.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Part>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Processor time that sessions add to a request answered by its own node.
    Requests,
    /// The same with 200,000 sessions.
    Cold,
    /// Many requests at once, beside Redis.
    Throughput,
    /// Bytes to peers, messages, store calls.
    Wire,
    /// The first answer after the owner was killed, or fell silent.
    Failover,
}

/// Prints the tables.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let wanted = |part| args.only.is_empty() || args.only.contains(&part);
    if !cfg!(feature = "rivals") {
        eprintln!("BUILT WITHOUT RIVALS: build with `--features rivals` to measure tower-sessions in the same run");
        anyhow::ensure!(!args.only.is_empty(), "without rivals only parts are measured: give --only");
    }
    let redis = Redis::start()?;
    println!("Machine: {}.\n", machine());
    if wanted(Part::Requests) {
        // So few that their memory stays in the processor's caches, then as many as a busy node has at a time.
        requests::measure(args.rounds, 64, 80, false)?;
        requests::measure(args.rounds, 1000, 20, true)?;
    }
    if wanted(Part::Cold) {
        requests::measure(args.rounds, 200_000, 20, false)?;
    }
    if wanted(Part::Throughput) {
        throughput::measure(args.rounds, &redis)?;
    }
    if wanted(Part::Wire) {
        wire::measure(&redis)?;
    }
    if wanted(Part::Failover) {
        failover::measure(args.rounds)?;
    }
    println!("Machine, at the end: {}.", machine());
    Ok(())
}
