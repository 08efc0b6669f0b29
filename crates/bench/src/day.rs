//! `outlive-bench day`: a shop on three nodes behind a balancer, and what happens to it on an ordinary day. Customers keep a ledger of
//! what was acknowledged, as those of `chaos` do; operators do what operators do; and the log is read as an operator reads it.

mod customer;
mod events;
mod stage;
mod tale;

use crate::chaos::tally::Shared;
use core::time::Duration;
use customer::{Counts, Customer};
use rand::{Rng as _, SeedableRng as _};
use rand_pcg::Pcg32;
use serde_json::json;
use stage::Stage;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

/// Customers must have looked at their carts once more by then.
const CLOSES_WITHIN: Duration = Duration::from_secs(75);

/// Flags of `outlive-bench day`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How long the day takes, at least, in seconds; events that need longer take longer.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u64).range(10..=86_400))]
    seconds: u64,
    /// Who chooses the node for a request. `both`: each customer comes by the one for a while, then by the other.
    #[arg(long, value_enum, default_value_t = Via::Both)]
    via: Via,
    /// How many customers there are at a time.
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u16).range(1..=1000))]
    customers: u16,
    /// Writes what happened, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// The program `outlive`, for the gateway. Otherwise the one beside this program.
    #[arg(long)]
    outlive: Option<PathBuf>,
    /// Leaves the folder with the logs and the store behind.
    #[arg(long)]
    keep: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(crate) enum Via {
    Haproxy,
    Gateway,
    Both,
}

/// Plays the day, prints what happened, and says whether the promise held and the log told it.
pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let seed = core::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0);
    let mut rng = Pcg32::seed_from_u64(seed);
    let mut stage = Stage::start(&args, &mut rng).await?;
    println!("day: three nodes, {} customers via {:?}, {} s; {}", args.customers, args.via, args.seconds, stage.describe());
    let shared = Arc::new(Shared::new(usize::from(args.customers), "backup(1)".into()));
    let counts = Arc::new(Counts::default());
    let mut customers = JoinSet::new();
    for index in 0..usize::from(args.customers) {
        let rng = Pcg32::seed_from_u64(rng.next_u64());
        let customer = Customer::new(index, stage.doors(), shared.clone(), counts.clone(), rng);
        customers.spawn(customer.shop());
    }
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let began = Instant::now();
    let played = tokio::select! {
        played = events::play(&mut stage, Duration::from_secs(args.seconds)) => played,
        _ = interrupt.recv() => Err(anyhow::anyhow!("interrupted")),
        _ = terminate.recv() => Err(anyhow::anyhow!("interrupted")),
    };
    let took = began.elapsed();
    // All nodes run: each customer looks once more at its session.
    shared.stop.store(true, Ordering::Relaxed);
    let ended = timeout(CLOSES_WITHIN, async { while customers.join_next().await.is_some_and(|done| done.is_ok()) {} }).await;
    let died = ended.is_err() || !customers.is_empty();
    let told = stage.end(args.keep || played.as_ref().is_ok_and(|events| events.iter().any(|event| !event.held()))).await;
    let events = played?;
    let tally = shared.tally.lock().map_err(|_| anyhow::anyhow!("a customer panicked"))?;
    println!("\n| event | at | took | log | |\n|---|---:|---:|---|---|");
    for event in &events {
        println!("{}", event.row());
    }
    println!("\n| what | measured |\n|---|---:|");
    let mut rows = counts.rows();
    rows.extend([("refused (nothing kept)", tally.refused), ("unknown (503)", tally.unknown)]);
    rows.extend([("no connection", tally.unconnected), ("unanswered (connection broke)", tally.unanswered)]);
    for (name, value) in rows.iter().chain(&tally.broken()) {
        println!("| {name} | {value} |");
    }
    println!("| slowest answer | {} ms |", tally.slowest.as_millis());
    if let Some(told) = told {
        println!("\nthe logs are in {}", told.display());
    }
    let held = tally.held() && !died;
    let silent: Vec<&str> = events.iter().filter(|event| !event.held()).map(|event| event.name).collect();
    if let Some(path) = &args.json {
        let counted: serde_json::Map<String, serde_json::Value> =
            rows.iter().chain(&tally.broken()).map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
        let events: Vec<_> = events.iter().map(events::Event::json).collect();
        let day = json!({ "seconds": took.as_secs_f64(), "via": format!("{:?}", args.via).to_lowercase(), "events": events,
                          "counts": counted, "slowest_ms": tally.slowest.as_millis() as u64, "held": held });
        std::fs::write(path, format!("{day:#}\n"))?;
    }
    println!("\n{}", if held { "the promise held" } else { "THE PROMISE WAS BROKEN" });
    if !silent.is_empty() {
        println!("NOT AS IT SHOULD BE: {}", silent.join(", "));
    }
    Ok(if held && silent.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
