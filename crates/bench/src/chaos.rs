//! `outlive-bench chaos`: a real cluster whose nodes are killed and drained under load, and clients that notice if the promise is broken.

pub(crate) mod browser;
pub(crate) mod ledger;
pub(crate) mod nodes;
pub(crate) mod tally;
mod visitor;

use anyhow::Context as _;
use browser::Browser;
use core::time::Duration;
use nodes::Nodes;
use rand::{Rng as _, RngExt as _, SeedableRng as _};
use rand_pcg::Pcg32;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tally::{Shared, Violation};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

/// A node that is asked to leave must have left by then.
const LEAVES_WITHIN: Duration = Duration::from_secs(30);
/// Every session must have its copies again by then.
const CLOSES_WITHIN: Duration = Duration::from_secs(60);
/// How often the progress is told.
const PROGRESS: Duration = Duration::from_secs(5);

/// Flags of `outlive-bench chaos`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How a client chooses the node for a request.
    #[arg(long, value_enum, default_value_t = Client::Sticky)]
    client: Client,
    /// Whether requests go through `outlive gateway`, which chooses the node. It repeats no request, because an append that is
    /// repeated would be there twice.
    #[arg(long, value_enum, default_value_t = Via::Nodes)]
    via: Via,
    /// How many clients there are, each with a session of its own.
    #[arg(long, default_value_t = 8)]
    clients: usize,
    /// How many nodes there are.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(2..=26))]
    nodes: u8,
    /// The level that answers wait for; the store is none.
    #[arg(long, default_value = "backup(1)")]
    durability: String,
    /// What is done to nodes.
    #[arg(long, value_enum, default_value_t = How::Both)]
    how: How,
    /// Milliseconds from one fault to the next; never before every session has its copies again, because what is lost within that
    /// window was not promised. Otherwise as soon as that is so.
    #[arg(long)]
    every: Option<u64>,
    /// Milliseconds that a node is away at most; the time is drawn.
    #[arg(long, default_value_t = 500)]
    away: u64,
    /// Ends after so many faults.
    #[arg(long, default_value_t = u64::MAX, hide_default_value = true)]
    faults: u64,
    /// Ends after so many seconds, or with `--faults`, whichever is first.
    #[arg(long, default_value_t = u64::MAX, hide_default_value = true)]
    seconds: u64,
    /// What is drawn at random follows from this number; the timing of processes does not.
    #[arg(long)]
    seed: Option<u64>,
    /// The program `outlive`, for `--via gateway`. Otherwise the one beside this program.
    #[arg(long)]
    outlive: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(crate) enum Client {
    /// The same node until it fails.
    Sticky,
    /// Another one for each request.
    Random,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(crate) enum Via {
    Nodes,
    Gateway,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(crate) enum How {
    /// SIGKILL.
    Kill,
    /// SIGTERM.
    Term,
    /// Either, drawn for each fault.
    Both,
}

/// Plays until the limit, prints the table, and says whether the promise held.
pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    anyhow::ensure!(args.faults < u64::MAX || args.seconds < u64::MAX, "say when to end: --faults N or --seconds S");
    // A number that differs from run to run, from the keys that the standard library draws for its maps.
    let seed = args.seed.unwrap_or_else(|| core::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0) >> 16);
    let mut rng = Pcg32::seed_from_u64(seed);
    let mut nodes = Nodes::start(&args, &mut rng).await?;
    println!("chaos: {} nodes, {:?} clients, via {:?}, {}, seed {seed}", args.nodes, args.client, args.via, args.durability);
    let shared = Arc::new(Shared::new(args.clients, args.durability.clone()));
    let mut visitors = JoinSet::new();
    for index in 0..args.clients {
        let browser = Browser::new(nodes.doors(args.via), args.client);
        visitors.spawn(visitor::visit(index, browser, shared.clone(), Pcg32::seed_from_u64(rng.next_u64())));
    }
    let progress = tokio::spawn(tell_progress(shared.clone()));
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let played = tokio::select! {
        played = play(&args, &mut nodes, &shared, &mut rng) => played,
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
    };
    shared.stop.store(true, Ordering::Relaxed);
    // All nodes run: each client looks once more at its session.
    let ended = timeout(CLOSES_WITHIN, async { while visitors.join_next().await.is_some_and(|done| done.is_ok()) {} }).await;
    let died = ended.is_err() || !visitors.is_empty();
    progress.abort();
    nodes.end().await;
    let tally = shared.tally.lock().map_err(|_| anyhow::anyhow!("a client panicked"))?;
    print!("{}", tally.table());
    played?;
    anyhow::ensure!(!died, "a client did not come to its end");
    Ok(if tally.held() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Fault after fault.
async fn play(args: &Args, nodes: &mut Nodes, shared: &Shared, rng: &mut Pcg32) -> anyhow::Result<()> {
    let began = Instant::now();
    let mut membership = String::new();
    wait_for_copies(shared).await;
    anyhow::ensure!(wait_for_peace(nodes, &mut membership).await, "the nodes have not met");
    for fault in 1..=args.faults {
        if began.elapsed().as_secs() >= args.seconds {
            break;
        }
        let at = Instant::now();
        let victim = rng.random_range(0..usize::from(args.nodes));
        let term = match args.how {
            How::Kill => false,
            How::Term => true,
            How::Both => rng.random(),
        };
        let name = nodes.name(victim);
        let ended = if term { drain(nodes, victim, shared).await? } else { nodes.kill(victim).await? };
        // From now on a copy is missing, and this node's memory is gone.
        shared.epoch.fetch_add(1, Ordering::SeqCst);
        sleep(Duration::from_millis(rng.random_range(0..=args.away))).await;
        nodes.restart(victim).await.with_context(|| format!("node {name} after fault {fault}"))?;
        let closed = wait_for_copies(shared).await;
        let window = ended.elapsed();
        // A session that has ended has nobody who appends to it: the nodes say when its marker is where it should be.
        let peace = wait_for_peace(nodes, &mut membership).await;
        let settled = ended.elapsed();
        shared.count(|tally| {
            tally.windows.push(window);
            tally.settled.push(settled);
            *if term { &mut tally.terms } else { &mut tally.kills } += 1;
        });
        let how = if term { "drained" } else { "killed" };
        eprintln!("  {fault}: {name} {how}, window {} ms, settled after {} ms", window.as_millis(), settled.as_millis());
        if !closed {
            shared.violation(Violation::Window, &format!("{name} {how}: {}", shared.behind()));
        }
        if !peace {
            shared.violation(Violation::Window, &format!("{name} {how}: the nodes do not say that they have settled"));
        }
        if let Some(every) = args.every {
            sleep(Duration::from_millis(every).saturating_sub(at.elapsed())).await;
        }
    }
    Ok(())
}

/// Asks a node to leave; when it had ended.
async fn drain(nodes: &mut Nodes, victim: usize, shared: &Shared) -> anyhow::Result<Instant> {
    let (name, asked) = (nodes.name(victim), Instant::now());
    match nodes.terminate(victim, LEAVES_WITHIN).await? {
        Some(status) => {
            shared.count(|tally| tally.drains.push(asked.elapsed()));
            if !status.success() {
                shared.violation(Violation::Abandoned, &format!("{name} was asked to leave and ended with {status}"));
            }
            Ok(Instant::now())
        }
        None => {
            shared.violation(Violation::SlowDrain, &format!("{name} had not left after {} s", LEAVES_WITHIN.as_secs()));
            shared.count(|tally| tally.drains.push(asked.elapsed()));
            nodes.kill(victim).await
        }
    }
}

/// Waits until an append of every client, begun after the last fault, was answered at the level asked for; whether that was in time.
async fn wait_for_copies(shared: &Shared) -> bool {
    let all = async {
        while !shared.whole() {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(CLOSES_WITHIN, all).await.is_ok()
}

/// Waits until all nodes agree in another membership than before, and have settled in it; whether that was in time.
async fn wait_for_peace(nodes: &Nodes, membership: &mut String) -> bool {
    let all = async {
        loop {
            match nodes.settled().await {
                Some(now) if now != *membership => break now,
                _ => sleep(Duration::from_millis(1)).await,
            }
        }
    };
    timeout(CLOSES_WITHIN, all).await.is_ok_and(|now| {
        *membership = now;
        true
    })
}

async fn tell_progress(shared: Arc<Shared>) {
    let began = Instant::now();
    loop {
        sleep(PROGRESS).await;
        if let Ok(tally) = shared.tally.lock() {
            eprintln!("{:>5} s  {}", began.elapsed().as_secs(), tally.line());
        }
    }
}
