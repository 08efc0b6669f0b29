//! `outlive demo --script`: the demo, played without a person, and judged.
//!
//! While the shoppers shop, one owner is killed, one node is drained and restarted, and then each in turn.

use crate::config::DemoConfig;
use crate::demo::tally::{Tally, Totals};
use crate::demo::{Demo, start};
use anyhow::Context as _;
use outlive::settings::Spelling as _;
use serde::Serialize;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, interval, sleep_until};

/// The table, as `--json` writes it.
#[derive(Debug, Serialize)]
struct Table {
    requests: u64,
    failed: u64,
    refused: u64,
    lost: u64,
    stale: u64,
    resurrected: u64,
    moves: u64,
    p50_ms: Option<f64>,
    p99_ms: Option<f64>,
    first_answer_ms: Option<f64>,
    dirty_age_ms: u64,
    kills: u64,
    drains: u64,
    restarts: u64,
}

/// What was done to the nodes.
#[derive(Clone, Copy, Debug, Default)]
struct Done {
    kills: u64,
    drains: u64,
    restarts: u64,
}

pub(crate) async fn run(config: &DemoConfig) -> anyhow::Result<ExitCode> {
    println!("{} nodes, {} shoppers, durability {}: starting", config.nodes(), config.visitors(), config.durability().write());
    // 200 shoppers make some 400 requests a second.
    let demo = start(config, Duration::from_millis(500)).await?;
    let (phase, phases) = watch::channel(String::from("everyone shops"));
    let progress = tokio::spawn(report(demo.stage.world().tally.clone(), phases));
    let played = tokio::select! {
        played = play(&demo, config.seconds(), &phase) => Some(played),
        () = crate::cli::interrupted() => None,
    };
    progress.abort();
    let (tally, dirty_age_ms) = (demo.crowd.tally.clone(), demo.stage.world().dirty_age_ms());
    let durability = config.durability().write();
    demo.end().await;
    let Some(played) = played else { anyhow::bail!("interrupted") };
    let done = played?;
    let tally = tally.lock();
    let table = table(&tally, done, dirty_age_ms);
    print(&table, &tally);
    if let Some(path) = &config.json {
        write(path, &table)?;
    }
    let broken = verdict(&tally.totals, &durability);
    match &broken {
        None => println!("kept: nothing was lost, stale or resurrected beyond what durability {durability} allows"),
        Some(why) => println!("BROKEN: {why}"),
    }
    Ok(if broken.is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What was promised and not kept. At durability `owner` a crash may lose what only the owner had, if the visitor is told.
fn verdict(totals: &Totals, durability: &str) -> Option<String> {
    let lost = if durability == "owner" { totals.silent } else { totals.lost };
    let broken = [(lost, "lost"), (totals.stale, "older than seen"), (totals.resurrected, "answers to an id that had ended")];
    let words: Vec<String> = broken.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
    if words.is_empty() && totals.requests == 0 {
        return Some("nobody was served at all".into());
    }
    (!words.is_empty()).then(|| words.join(", "))
}

/// The play. It takes the time that was asked for, or longer if the nodes need longer.
async fn play(demo: &Demo, seconds: u64, phase: &watch::Sender<String>) -> anyhow::Result<Done> {
    let (stage, nodes) = (&demo.stage, demo.stage.nodes());
    let begin = Instant::now();
    let part = |percent: u64| sleep_until(begin + Duration::from_millis(seconds * 10 * percent));
    let say = |text: String| {
        phase.send_replace(text);
    };
    let mut done = Done::default();
    part(15).await;

    let owners = stage.world().nodes();
    let victim = owners.iter().max_by_key(|node| node.stats.owned).context("there is no node")?.name.clone();
    say(format!("{victim} was killed"));
    nodes.kill(&victim);
    done.kills += 1;
    nodes.ended(&victim).await?;
    anyhow::ensure!(nodes.settled().await, "the sessions of {victim} did not all get a new copy");
    part(35).await;
    say(format!("{victim} comes back"));
    stage.start(&victim).await?;
    done.restarts += 1;
    anyhow::ensure!(nodes.settled().await, "the sessions were not all safe after {victim} came back");

    let names = stage.world().names.clone();
    let leaver = names.iter().find(|name| **name != victim).unwrap_or(&victim);
    part(50).await;
    say(format!("{leaver} is drained and starts again"));
    stage.restart(leaver).await?;
    (done.drains, done.restarts) = (done.drains + 1, done.restarts + 1);
    anyhow::ensure!(nodes.settled().await, "the sessions were not all safe after {leaver} came back");

    part(65).await;
    for name in names.iter() {
        say(format!("rolling restart: {name}"));
        stage.restart(name).await?;
        (done.drains, done.restarts) = (done.drains + 1, done.restarts + 1);
        anyhow::ensure!(nodes.settled().await, "the sessions were not all safe after {name} came back");
    }
    say("everyone shops".into());
    part(100).await;
    Ok(done)
}

/// One line a second.
async fn report(tally: Arc<parking_lot::Mutex<Tally>>, phase: watch::Receiver<String>) {
    let mut every = interval(Duration::from_secs(1));
    every.tick().await;
    let (mut second, mut before) = (0, 0);
    loop {
        every.tick().await;
        second += 1;
        let (totals, p99) = {
            let tally = tally.lock();
            (tally.totals, tally.latency.quantile_ms(0.99).unwrap_or_default())
        };
        println!(
            "{second:>4} s  {:>5} req/s  failed {}  refused {}  lost {}  stale {}  moves {}  p99 {p99:.1} ms   {}",
            totals.requests - before,
            totals.failed,
            totals.refused,
            totals.lost,
            totals.stale,
            totals.moves,
            phase.borrow().as_str(),
        );
        before = totals.requests;
    }
}

fn table(tally: &Tally, done: Done, dirty_age_ms: u64) -> Table {
    let Totals { requests, failed, refused, lost, stale, resurrected, moves, .. } = tally.totals;
    Table {
        requests,
        failed,
        refused,
        lost,
        stale,
        resurrected,
        moves,
        p50_ms: tally.latency.quantile_ms(0.5),
        p99_ms: tally.latency.quantile_ms(0.99),
        first_answer_ms: tally.first_answer.map(|took| (took.as_secs_f64() * 10_000.0).round() / 10.0),
        dirty_age_ms,
        kills: done.kills,
        drains: done.drains,
        restarts: done.restarts,
    }
}

fn print(table: &Table, tally: &Tally) {
    let ms = |value: Option<f64>| value.map_or_else(|| "none".to_owned(), |ms| format!("{ms:.1} ms"));
    let rows = [
        ("requests", table.requests.to_string(), "answered or failed"),
        ("failed", table.failed.to_string(), "errors and broken connections; repeated by the shopper"),
        ("refused", table.refused.to_string(), "503 with Retry-After: asked to wait"),
        ("lost", table.lost.to_string(), "sessions, or changes in them, that were gone"),
        ("stale", table.stale.to_string(), "answers older than one already seen"),
        ("resurrected", table.resurrected.to_string(), "answers to an id that had ended"),
        ("moves", table.moves.to_string(), "answers by another node than the one before"),
        ("p50", ms(table.p50_ms), ""),
        ("p99", ms(table.p99_ms), ""),
        ("first answer", ms(table.first_answer_ms), "after the kill, to someone whose session was there"),
        ("dirty age", format!("{} ms", table.dirty_age_ms), "the oldest change that waited for the store"),
        ("kills", table.kills.to_string(), ""),
        ("drains", table.drains.to_string(), ""),
        ("restarts", table.restarts.to_string(), ""),
    ];
    println!();
    for (name, value, what) in rows {
        println!("{}", format!("  {name:<14}{value:>12}   {what}").trim_end());
    }
    println!();
    for what in &tally.named {
        println!("  {what}");
    }
}

fn write(path: &Path, table: &Table) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(table)? + "\n";
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_loss_that_was_told_of_is_allowed_and_only_at_level_owner() {
        let totals = Totals { requests: 9, lost: 1, ..Totals::default() };
        assert_eq!(verdict(&totals, "backup(1)").as_deref(), Some("1 lost"));
        assert_eq!(verdict(&totals, "owner"), None);
        assert!(verdict(&Totals { silent: 1, ..totals }, "owner").is_some());
        assert!(verdict(&Totals { stale: 1, requests: 9, ..Totals::default() }, "owner").is_some());
        assert!(verdict(&Totals { resurrected: 1, requests: 9, ..Totals::default() }, "store").is_some());
        assert!(verdict(&Totals::default(), "owner").is_some(), "a demo without an answer shows nothing");
    }
}
