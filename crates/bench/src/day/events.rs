//! What happens on the day, one after the other, and what the log must tell of it.

use super::stage::Stage;
use anyhow::Context as _;
use core::time::Duration;
use serde_json::{Value, json};
use std::io::Write as _;
use std::path::Path;
use tokio::process::Command;
use tokio::time::{Instant, sleep, sleep_until};

/// How long a full disk stays full.
const FULL_FOR: Duration = Duration::from_secs(5);
/// A line of the log may come a little later than what it tells.
const LOG_WITHIN: Duration = Duration::from_secs(70);

/// What the log must say: one line that contains all words of one of these.
type Lines = &'static [&'static [&'static str]];

/// Something that happened.
#[derive(Debug)]
pub(super) struct Event {
    pub(super) name: &'static str,
    at: Duration,
    took: Duration,
    /// Lines of the log that tell it; one for each that was asked for.
    told: Vec<String>,
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
        let log = match (&self.skipped, self.missing.first(), self.told.first()) {
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

const GONE: Lines = &[&["members"], &["link closed"], &["gone"]];
const THERE: Lines = &[&["members"], &["link up"], &["joined"]];
const FULL: Lines = &[&["full"], &["write to the store failed"], &["cannot be written"]];
const BACK: Lines = &[&["answers again"], &["written again"], &["takes writes again"], &["can be written"]];

/// The day.
struct Day<'a> {
    stage: &'a mut Stage,
    began: Instant,
    length: Duration,
    events: Vec<Event>,
}

/// Plays all events, spread over the length of the day. One that fails is noted, and the day goes on.
pub(super) async fn play(stage: &mut Stage, length: Duration) -> anyhow::Result<Vec<Event>> {
    let mut day = Day { stage, began: Instant::now(), length, events: Vec::new() };
    day.event(5, "a look at the store with sqlite3", &[], look).await?;
    day.event(12, "a backup of the store", &[], backup).await?;
    let idle = async |stage: &mut Stage| stage.deploy(|settings| settings.idle_timeout = "45m").await;
    day.event(18, "a deployment with another idle timeout", &[GONE, THERE], idle).await?;
    day.event(38, "a kill", &[GONE, THERE], kill).await?;
    let copies = async |stage: &mut Stage| stage.deploy(|settings| settings.durability = "backup(2)").await;
    day.event(48, "a deployment with another number of backups", &[GONE, THERE], copies).await?;
    day.full_disk(68).await?;
    day.typo(80).await?;
    day.event(90, "a night: all nodes ended in order, and started", &[THERE], night).await?;
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
    sleep(Duration::from_millis(500)).await;
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
    /// Does it when its time has come. Each of these lines must be told; where there is none a warning would be one too many.
    async fn event(
        &mut self,
        percent: u32,
        name: &'static str,
        wanted: &[Lines],
        act: impl AsyncFnOnce(&mut Stage) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        sleep_until(self.began + self.length * percent / 100).await;
        let (at, marks) = (Instant::now(), self.stage.marks());
        let (mut told, mut missing) = (Vec::new(), Vec::new());
        let done = act(self.stage).await;
        if let Err(error) = done {
            missing.push(format!("{error:#}"));
            self.stage.start_all().await?;
        }
        let took = at.elapsed();
        if wanted.is_empty() {
            let loud = |line: &String| line.contains(" WARN ") || line.contains("ERROR ");
            missing.extend(self.stage.written(&marks).into_iter().filter(loud));
        }
        for lines in wanted {
            match self.line(&marks, |line| has(line, lines)).await {
                Some(line) => told.push(line),
                None => missing.push(format!("the log has no line with one of {lines:?}")),
            }
        }
        self.note(Event { name, at: at - self.began, took, told, missing, skipped: None });
        Ok(())
    }

    fn note(&mut self, event: Event) {
        eprintln!("{:>6.1} s  {}", self.began.elapsed().as_secs_f64(), event.row());
        self.events.push(event);
    }

    async fn line(&self, marks: &[u64], wanted: impl Fn(&str) -> bool) -> Option<String> {
        let until = Instant::now() + LOG_WITHIN;
        loop {
            if let Some(line) = self.stage.written(marks).into_iter().find(|line| wanted(&line.to_lowercase())) {
                return Some(line);
            }
            if Instant::now() > until {
                return None;
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Somebody fills the disk of the store, and somebody makes room again.
    async fn full_disk(&mut self, percent: u32) -> anyhow::Result<()> {
        let name = "a full disk";
        let Some(disk) = self.stage.disk() else {
            let (at, took, skipped) = (self.began.elapsed(), Duration::ZERO, Some("no file system can be mounted here"));
            self.note(Event { name, at, took, told: Vec::new(), missing: Vec::new(), skipped });
            return Ok(());
        };
        let full = async |stage: &mut Stage| {
            let (ballast, marks) = (disk.join("ballast"), stage.marks());
            let until = Instant::now() + FULL_FOR;
            while Instant::now() < until {
                // What the nodes free of their own log is filled, too.
                fill(&ballast)?;
                sleep(Duration::from_millis(100)).await;
            }
            let written = stage.written(&marks);
            std::fs::remove_file(&ballast)?;
            anyhow::ensure!(stage.settles().await, "the nodes have not settled after the disk was full");
            anyhow::ensure!(
                written.iter().any(|line| has(&line.to_lowercase(), FULL)),
                "the log did not tell of the full disk while it was full"
            );
            // An operator who sees a thousand of the same line sees nothing else.
            anyhow::ensure!(written.len() < 60, "{} lines of log while the disk was full: {:?}", written.len(), written.first());
            Ok(())
        };
        self.event(percent, name, &[FULL, BACK], full).await
    }

    /// One node is started with an address that nobody has; then with none again.
    async fn typo(&mut self, percent: u32) -> anyhow::Result<()> {
        let nobody = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let typo = async |stage: &mut Stage| {
            let (last, marks) = (stage.len() - 1, stage.marks());
            stage.stop(last).await?;
            stage.settings(last).join = vec![nobody.clone()];
            stage.start_node(last).await?;
            let met = stage.settles().await;
            // It is said once the others had two seconds.
            let until = Instant::now() + Duration::from_secs(20);
            let told = loop {
                let told = stage.written(&marks).into_iter().any(|line| line.contains(&nobody));
                if told || Instant::now() >= until {
                    break told;
                }
                sleep(Duration::from_millis(100)).await;
            };
            stage.stop(last).await?;
            stage.settings(last).join = Vec::new();
            stage.start_node(last).await?;
            anyhow::ensure!(met, "a node with a typo in its `join` has not met the others, whom the store names");
            anyhow::ensure!(stage.settles().await, "the copies were not all made after the typo was mended");
            anyhow::ensure!(told, "the log does not name {nobody}");
            Ok(())
        };
        self.event(percent, "a typo in one node's join", &[THERE], typo).await
    }
}

fn has(line: &str, lines: Lines) -> bool {
    lines.iter().any(|words| words.iter().all(|word| line.contains(word)))
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
