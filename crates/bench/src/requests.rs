//! What sessions add to a request that its own node answers, in processor time: no socket, no other node, one thread.

use crate::measure::{Rounds, Table, micros};
use crate::subjects::{Bare, Engine, Subject, Web, app, plain};
use core::time::Duration;
use outlive::{Durability, Outlive};
use std::sync::Arc;
use tower_layer::Layer as _;

/// Requests between two looks at the clock.
const BATCH: usize = 250;

struct Line {
    name: &'static str,
    /// The line without sessions that this one is compared with.
    plain: Option<&'static str>,
    subject: Box<dyn Subject>,
    per_request: Rounds,
}

/// Draws visitors: the same for everybody who starts from the same seed.
pub(crate) struct Draw(u64);

impl Draw {
    pub(crate) fn new(seed: u64) -> Draw {
        Draw(seed)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((u128::from(self.0) * n as u128) >> 64) as usize
    }
}

const PLAIN: &str = "axum, no sessions";
const BARE: &str = "bare service, no sessions";

/// One line for each way to answer.
fn lines(runtime: &Arc<tokio::runtime::Runtime>, with_reads: bool) -> anyhow::Result<Vec<Line>> {
    let mut lines = Vec::new();
    let mut add = |name, plain, subject| lines.push(Line { name, plain, subject, per_request: Rounds::default() });
    let outlive = || start(runtime);
    let _tasks_run_here = runtime.enter();
    add("node alone: open, read, commit", None, Box::new(Engine::new(true)?) as Box<dyn Subject>);
    if with_reads {
        add("node alone: open, read", None, Box::new(Engine::new(false)?));
    }
    add(BARE, None, Box::new(Web::new(runtime, "/plain", Bare::Plain)));
    let layered = |outlive: &Outlive| outlive.layer().layer(Bare::Session);
    if with_reads {
        add("bare service, Outlive: get", Some(BARE), Box::new(Web::new(runtime, "/read", layered(&outlive()?))));
    }
    add("bare service, Outlive: get, update", Some(BARE), Box::new(Web::new(runtime, "/update", layered(&outlive()?))));
    add(PLAIN, None, Box::new(Web::new(runtime, "/plain", plain())));
    let paths: &[(&str, &str, &str)] = &[
        ("/plain", "axum, Outlive: session not used", "axum, tower-sessions in memory: session not used"),
        ("/read", "axum, Outlive: get", "axum, tower-sessions in memory: get"),
        ("/update", "axum, Outlive: get, update", "axum, tower-sessions in memory: get, update"),
    ];
    for (path, ours, theirs) in paths.iter().skip(if with_reads { 0 } else { 2 }) {
        add(ours, Some(PLAIN), Box::new(Web::new(runtime, path, app(&outlive()?))));
        #[cfg(feature = "rivals")]
        add(theirs, Some(PLAIN), Box::new(Web::new(runtime, path, crate::rivals::in_memory())));
        #[cfg(not(feature = "rivals"))]
        let _ = theirs;
    }
    Ok(lines)
}

fn runtime() -> anyhow::Result<Arc<tokio::runtime::Runtime>> {
    Ok(Arc::new(tokio::runtime::Builder::new_current_thread().enable_all().build()?))
}

/// A node whose tasks have begun.
fn start(runtime: &tokio::runtime::Runtime) -> anyhow::Result<Outlive> {
    runtime.block_on(async {
        let outlive = Outlive::builder().durability(Durability::Owner).start().await?;
        tokio::time::sleep(Duration::from_millis(100)).await;
        Ok(outlive)
    })
}

/// The table for this many sessions, drawn at random.
pub(crate) fn measure(rounds: usize, sessions: usize, batches: usize, with_reads: bool) -> anyhow::Result<()> {
    let runtime = runtime()?;
    let mut lines = lines(&runtime, with_reads)?;
    lines.iter_mut().for_each(|line| line.subject.fill(sessions));
    let mut draw = Draw::new(7);
    for round in 0..=rounds {
        let at = round % lines.len();
        lines.rotate_left(at);
        for line in &mut lines {
            let mut times = Rounds::default();
            for _ in 0..batches {
                // Each visitor once, so that all of a batch's requests can be made before it.
                let mut visitors: Vec<usize> = (0..BATCH).map(|_| draw.below(sessions)).collect();
                visitors.sort_unstable();
                visitors.dedup();
                shuffle(&mut visitors, &mut draw);
                times.push(micros(line.subject.answer(&visitors)) / visitors.len() as f64);
            }
            // The first round warms up.
            if round > 0 {
                line.per_request.push(times.median());
            }
        }
        lines.rotate_right(at);
    }
    println!("### Requests answered by their own node, {sessions} sessions\n");
    let mut table = Table::new(&["one thread, processor time per request", "µs", "spread", "added by sessions, µs", "spread"]);
    for line in &lines {
        let mut cells = vec![format!("{:.2}", line.per_request.median()), format!("{:.0} %", line.per_request.spread())];
        let added = line
            .plain
            .and_then(|plain| lines.iter().find(|l| l.name == plain))
            .map(|p| line.per_request.with(&p.per_request, |a, b| a - b));
        cells.push(added.as_ref().map_or_else(String::new, |a| format!("{:.2}", a.median())));
        cells.push(added.map_or_else(String::new, |a| format!("{:.0} %", a.spread())));
        table.row(line.name, &cells);
    }
    table.print();
    Ok(())
}

/// Puts them in an order of chance.
pub(crate) fn shuffle<T>(items: &mut [T], draw: &mut Draw) {
    for at in (1..items.len()).rev() {
        items.swap(at, draw.below(at + 1));
    }
}

/// What `outlive-bench hot` runs.
#[derive(Clone, Copy, clap::ValueEnum)]
pub(crate) enum Hot {
    /// The node alone: open, read, commit.
    Node,
    /// A bare service without sessions.
    BarePlain,
    /// A bare service whose handler reads an attribute.
    BareRead,
    /// A bare service whose handler reads an attribute and changes another.
    BareUpdate,
    /// axum without sessions.
    Plain,
    /// axum with the layer and a handler that does not use the session.
    Unused,
    /// axum with the layer and a handler that reads.
    Read,
    /// axum with the layer and a handler that reads an attribute and changes another.
    Update,
    /// axum with tower-sessions in memory and a handler that does not use the session.
    #[cfg(feature = "rivals")]
    RivalUnused,
    /// axum with tower-sessions in memory and a handler that reads.
    #[cfg(feature = "rivals")]
    RivalRead,
    /// axum with tower-sessions in memory and a handler that reads a value and changes another.
    #[cfg(feature = "rivals")]
    RivalUpdate,
}

/// Answers that many requests of 1,000 visitors and prints nothing: for a profiler that counts instructions.
pub(crate) fn hot(kind: Hot, requests: usize) -> anyhow::Result<()> {
    let runtime = runtime()?;
    let outlive = start(&runtime)?;
    let mut subject: Box<dyn Subject> = match kind {
        Hot::Node => Box::new(Engine::new(true)?),
        Hot::BarePlain => Box::new(Web::new(&runtime, "/plain", Bare::Plain)),
        Hot::BareRead => Box::new(Web::new(&runtime, "/read", outlive.layer().layer(Bare::Session))),
        Hot::BareUpdate => Box::new(Web::new(&runtime, "/update", outlive.layer().layer(Bare::Session))),
        Hot::Plain => Box::new(Web::new(&runtime, "/plain", plain())),
        Hot::Unused => Box::new(Web::new(&runtime, "/plain", app(&outlive))),
        Hot::Read => Box::new(Web::new(&runtime, "/read", app(&outlive))),
        Hot::Update => Box::new(Web::new(&runtime, "/update", app(&outlive))),
        #[cfg(feature = "rivals")]
        Hot::RivalUnused => Box::new(Web::new(&runtime, "/plain", crate::rivals::in_memory())),
        #[cfg(feature = "rivals")]
        Hot::RivalRead => Box::new(Web::new(&runtime, "/read", crate::rivals::in_memory())),
        #[cfg(feature = "rivals")]
        Hot::RivalUpdate => Box::new(Web::new(&runtime, "/update", crate::rivals::in_memory())),
    };
    subject.fill(1000);
    let visitors: Vec<usize> = (0..1000).collect();
    for from in (0..requests).step_by(1000) {
        subject.answer(&visitors[..(requests - from).min(1000)]);
    }
    Ok(())
}
