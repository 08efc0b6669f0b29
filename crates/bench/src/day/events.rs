//! What happens on the day, one after the other, and what the log must tell of it.

use super::stage::{LOG_WITHIN, Stage};
use super::tale::{GATEWAY, Tale};
use anyhow::Context as _;
use core::time::Duration;
use serde_json::{Value, json};
use std::io::Write as _;
use std::path::Path;
use tokio::process::Command;
use tokio::time::{Instant, sleep, sleep_until};

/// How long a full disk stays full after a node was started on it.
const FULL_FOR: Duration = Duration::from_secs(5);
/// An operator who sees a thousand of the same line sees nothing else.
const LINES_MAX: usize = 100;
/// Begins and ends what the log says of a full disk.
const FULL: &str = "the store cannot be written, and changes wait in memory; sessions are served from memory and copies";
/// What a node says of a typo in its `join`.
const UNMET: &str = "`join` names addresses where this node has never met anybody; ";
/// What a node says that starts where it cannot write.
const UNANNOUNCED: &str = "this node cannot announce itself in the store, and does not begin a cluster of its own until it can";
/// Mistakes of one event that are shown besides the first.
const SHOWN: usize = 20;
const BACK: &str = "the store can be read and written again";

/// Something that happened.
#[derive(Debug)]
pub(super) struct Event {
    pub(super) name: &'static str,
    at: Duration,
    took: Duration,
    /// The line of the log that tells it.
    told: Option<String>,
    /// What the log should have said and did not, or said and should not.
    missing: Vec<String>,
    /// Why it was not played.
    skipped: Option<&'static str>,
}

impl Event {
    pub(super) fn held(&self) -> bool {
        self.missing.is_empty()
    }

    pub(super) fn row(&self) -> String {
        let log = match (&self.skipped, self.missing.first(), &self.told) {
            (Some(why), ..) => format!("NOT PLAYED: {why}"),
            (_, Some(missing), _) => missing.clone(),
            (_, _, Some(line)) => line.chars().take(160).collect(),
            _ => "nothing to tell".into(),
        };
        let mark = if self.held() { "" } else { "**wrong**" };
        format!(
            "| {} | {:.1} s | {:.1} s | {} | {mark} |",
            self.name,
            self.at.as_secs_f64(),
            self.took.as_secs_f64(),
            log.replace('|', "/")
        )
    }

    pub(super) fn json(&self) -> Value {
        json!({ "name": self.name, "at_s": self.at.as_secs_f64(), "took_s": self.took.as_secs_f64(), "log": self.told,
                "missing": self.missing, "skipped": self.skipped })
    }
}

/// The day.
struct Day<'a> {
    stage: &'a mut Stage,
    began: Instant,
    length: Duration,
    events: Vec<Event>,
    /// How much of each log was read, and what may still be said of what was before.
    marks: Vec<u64>,
    before: Tale,
}

/// Plays all events, spread over the length of the day. One that fails is noted, and the day goes on.
pub(super) async fn play(stage: &mut Stage, length: Duration) -> anyhow::Result<Vec<Event>> {
    let (marks, all) = (stage.marks(), stage.names());
    let nodes: Vec<String> = all.iter().filter(|name| *name != GATEWAY).cloned().collect();
    let begun = nodes.iter().fold(Tale::of(&all), |tale, name| tale.comes(name)).perhaps();
    let mut day = Day { stage, began: Instant::now(), length, events: Vec::new(), marks, before: begun };
    let deployed = || nodes.iter().fold(Tale::of(&all), |tale, name| tale.leaves(name).comes(name));
    day.event(5, "a look at the store with sqlite3", Tale::of(&all), look).await?;
    day.event(12, "a backup of the store", Tale::of(&all), backup).await?;
    let idle = async |stage: &mut Stage| stage.deploy(|settings| settings.idle_timeout = "45m").await;
    day.event(18, "a deployment with another idle timeout", deployed(), idle).await?;
    day.event(38, "a kill", Tale::of(&all).dies("b").comes("b"), kill).await?;
    let copies = async |stage: &mut Stage| stage.deploy(|settings| settings.durability = "backup(2)").await;
    day.event(48, "a deployment with another number of backups", deployed(), copies).await?;
    day.full_disk(68, &all).await?;
    day.typo(80, &all).await?;
    let evening = nodes.iter().fold(Tale::of(&all), |tale, name| tale.leaves(name));
    let morning = nodes.iter().fold(evening, |tale, name| tale.comes(name));
    day.event(90, "a night: all nodes ended in order, and started", morning, night).await?;
    sleep_until(day.began + length).await;
    Ok(day.events)
}

/// An operator asks the store how many sessions there are.
async fn look(stage: &mut Stage) -> anyhow::Result<()> {
    let count = sqlite3(&stage.store_file(), "select count(*) from session").await?;
    anyhow::ensure!(count.trim().parse::<u64>().is_ok_and(|n| n > 0), "the store has {count:?} sessions");
    Ok(())
}

async fn backup(stage: &mut Stage) -> anyhow::Result<()> {
    let backup = stage.dir().join("backup.db");
    sqlite3(&stage.store_file(), &format!(".backup '{}'", backup.display())).await?;
    let sound = sqlite3(&backup, "pragma integrity_check; select count(*) > 0 from session").await?;
    anyhow::ensure!(sound == "ok\n1\n", "the backup of the store says {sound:?}");
    Ok(())
}

async fn kill(stage: &mut Stage) -> anyhow::Result<()> {
    stage.kill(1).await?;
    stage.start_node(1).await?;
    anyhow::ensure!(stage.settles().await, "the copies were not all made after the kill");
    Ok(())
}

async fn night(stage: &mut Stage) -> anyhow::Result<()> {
    for index in 0..stage.len() {
        stage.stop(index).await?;
    }
    for index in 0..stage.len() {
        stage.start_node(index).await?;
    }
    anyhow::ensure!(stage.settles().await, "the nodes have not met in the morning");
    Ok(())
}

impl Day<'_> {
    /// Does it when its time has come. The logs must tell what is to be told of it, and nothing else.
    async fn event(
        &mut self,
        percent: u32,
        name: &'static str,
        tale: Tale,
        act: impl AsyncFnOnce(&mut Stage) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        sleep_until(self.began + self.length * percent / 100).await;
        let (at, mut missing) = (Instant::now(), Vec::new());
        if let Err(error) = act(self.stage).await {
            missing.push(format!("{error:#}"));
            self.stage.start_all().await?;
        }
        let took = at.elapsed();
        let until = Instant::now() + LOG_WITHIN;
        let (marks, log) = loop {
            let marks = self.stage.marks();
            let log = self.stage.written(&self.marks, &marks);
            if tale.missing(&log).is_empty() || Instant::now() >= until || !missing.is_empty() {
                break (marks, log);
            }
            sleep(Duration::from_millis(50)).await;
        };
        self.marks = marks;
        missing.extend(tale.missing(&log));
        let wrong = log.iter().filter(|said| !tale.has(said) && !self.before.has(said));
        missing.extend(wrong.map(|said| format!("{} should not have said: {}", said.who, said.text)));
        if log.len() > LINES_MAX {
            missing.push(format!("{} lines of log", log.len()));
        }
        self.note(Event { name, at: at - self.began, took, told: tale.told(&log), missing, skipped: None });
        self.before = tale;
        Ok(())
    }

    fn note(&mut self, event: Event) {
        eprintln!("{:>6.1} s  {}", self.began.elapsed().as_secs_f64(), event.row());
        for more in event.missing.iter().skip(1).take(SHOWN) {
            eprintln!("          {more}");
        }
        self.events.push(event);
    }

    /// Somebody fills the disk of the store, a node is started again meanwhile, and somebody makes room.
    async fn full_disk(&mut self, percent: u32, all: &[String]) -> anyhow::Result<()> {
        let name = "a full disk, and a node that starts on it";
        let Some(disk) = self.stage.disk() else {
            let (at, took, skipped) = (self.began.elapsed(), Duration::ZERO, Some("no file system can be mounted here"));
            self.note(Event { name, at, took, told: None, missing: Vec::new(), skipped });
            return Ok(());
        };
        let full = async |stage: &mut Stage| {
            let ballast = disk.join("ballast");
            // What the store's own log has room for would be written there for minutes.
            sqlite3(&stage.store_file(), "pragma wal_checkpoint(truncate)").await?;
            let filling = async {
                loop {
                    // What the nodes free of their own log is filled, too.
                    fill(&ballast)?;
                    sleep(Duration::from_millis(100)).await;
                }
            };
            let done = tokio::select! {
                failed = filling => failed,
                done = starts_on_a_full_disk(stage) => done,
            };
            std::fs::remove_file(&ballast)?;
            done?;
            anyhow::ensure!(stage.settles().await, "the nodes have not settled after the disk was full");
            Ok(())
        };
        let mut tale = Tale::of(all);
        for node in ["a", "b"] {
            tale = tale.says(node, FULL, "disk is full").says(node, BACK, "");
        }
        for node in all {
            // It may find room for a moment, and one of two kinds of writes may go through before the other.
            tale = tale.may_say(node, FULL).may_say(node, BACK).may_say(node, "better, but: ");
        }
        let tale = tale.says("c", FULL, "disk is full").may_say("c", UNANNOUNCED);
        self.event(percent, name, tale.leaves("c").comes("c"), full).await
    }

    /// One node is started with an address that nobody has; then with none again.
    async fn typo(&mut self, percent: u32, all: &[String]) -> anyhow::Result<()> {
        let nobody = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let typo = async |stage: &mut Stage| {
            let (last, marks) = (stage.len() - 1, stage.marks());
            stage.stop(last).await?;
            stage.settings(last).join = vec![nobody.clone()];
            stage.start_node(last).await?;
            let met = stage.settles().await;
            // It is said once the others had two seconds.
            stage.says(&marks, "c", UNMET, LOG_WITHIN).await;
            stage.stop(last).await?;
            stage.settings(last).join = Vec::new();
            stage.start_node(last).await?;
            anyhow::ensure!(met, "a node with a typo in its `join` has not met the others, whom the store names");
            anyhow::ensure!(stage.settles().await, "the copies were not all made after the typo was mended");
            Ok(())
        };
        let told = Tale::of(all).says("c", UNMET, &format!("{nobody}: nobody listens there"));
        self.event(percent, "a typo in one node's join", told.leaves("c").comes("c"), typo).await
    }
}

/// Once the others know that their disk is full, node c is started again.
async fn starts_on_a_full_disk(stage: &mut Stage) -> anyhow::Result<()> {
    let (last, marks) = (stage.len() - 1, stage.marks());
    for other in ["a", "b"] {
        anyhow::ensure!(stage.says(&marks, other, FULL, LOG_WITHIN).await, "{other} did not tell of the full disk while it was full");
    }
    stage.stop(last).await?;
    stage.start_node(last).await?;
    let (until, last_look) = (Instant::now() + FULL_FOR, Instant::now() + LOG_WITHIN);
    loop {
        let said = stage.readiness(last).await;
        let full = said.starts_with("degraded: the store cannot be written");
        // As long as it has found nobody it begins no cluster of its own; and it is not as it should be once it has. It may have found
        // room for a moment, in which it announced itself, and then it learns with its next write.
        let met = stage.written(&marks, &stage.marks()).iter().any(|line| line.who == "c" && line.text.starts_with("joined: "));
        let honest = full || said.starts_with("starting") || met && (said == "ready" || said.starts_with("degraded: "));
        anyhow::ensure!(honest, "a node that was started on a full disk says that it is {said:?}");
        if full && Instant::now() >= until {
            return Ok(());
        }
        anyhow::ensure!(Instant::now() < last_look, "a node that was started on a full disk says, after a while, that it is {said:?}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// Writes until nothing fits any more.
fn fill(ballast: &Path) -> std::io::Result<()> {
    let mut file = std::fs::File::options().create(true).append(true).open(ballast)?;
    for size in [1 << 20, 1 << 12, 1] {
        while file.write_all(&vec![0; size]).is_ok() {}
    }
    Ok(())
}

async fn sqlite3(file: &Path, command: &str) -> anyhow::Result<String> {
    let output =
        Command::new("sqlite3").arg("-cmd").arg(".timeout 10000").arg(file).arg(command).output().await.context("cannot start sqlite3")?;
    anyhow::ensure!(output.status.success(), "sqlite3 {command}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
