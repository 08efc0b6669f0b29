//! `outlive-bench store`: small updates of many sessions into one SQLite file, as nodes write them.

use crate::measure::{Rounds, Table, machine, micros, now, process_cpu};
use crate::requests::Draw;
use bytes::Bytes;
use core::time::Duration;
use outlive_core::id::SessionKey;
use outlive_core::stamp::{Claim, Life, Stamp};
use outlive_store::{Expect, Put, RowResult, Store};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Flags of `outlive-bench store`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Rounds; each measures every line in turn, and a figure is the median of them.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Sessions in the file; a round writes each of them once.
    #[arg(long, default_value_t = 100_000)]
    sessions: u32,
    /// Bytes of a record.
    #[arg(long, default_value_t = 100)]
    bytes: usize,
    /// Where the files are; by default the folder for temporary files.
    #[arg(long)]
    dir: Option<PathBuf>,
}

/// One way to write.
struct Line {
    name: &'static str,
    nodes: usize,
    calls: usize,
    rows: usize,
    random: bool,
    stores: Vec<Arc<dyn Store>>,
    version: u32,
    per_second: Rounds,
    cpu: Rounds,
}

const FULL: &str = "full";
const NORMAL: &str = "normal";

/// Name, `synchronous`, nodes that share the file, calls in flight of each, rows of a call, in random order.
const LINES: [(&str, &str, usize, usize, usize, bool); 6] = [
    ("one writer, calls of 256 rows", FULL, 1, 16, 256, false),
    ("one writer, 256 rows, random order", FULL, 1, 16, 256, true),
    ("two writers of one file, 256 rows", FULL, 2, 8, 256, false),
    ("four writers of one file, 256 rows", FULL, 4, 4, 256, false),
    ("four writers, 256 rows, `synchronous=normal`", NORMAL, 4, 4, 256, false),
    ("one writer, calls of 1 row", FULL, 1, 256, 1, false),
];

fn stamp(version: u32) -> Stamp {
    Claim { epoch: 1, life: Life::new(1) }.at(version)
}

/// As scattered as the hashes that keys are.
fn key(n: u32) -> SessionKey {
    SessionKey::from_bytes((u128::from(n) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835).to_be_bytes())
}

async fn put(store: &dyn Store, sessions: &[u32], expect: Expect, version: u32, record: &Bytes) -> anyhow::Result<()> {
    let expires_in = Duration::from_secs(1800);
    let row = |n: &u32| Put { key: key(*n), expect, stamp: stamp(version), record: record.clone(), expires_in, user: None };
    let results = store.put(sessions.iter().map(row).collect()).await?;
    anyhow::ensure!(results.iter().all(|r| *r == RowResult::Applied), "a write was not applied");
    Ok(())
}

impl Line {
    /// Every session once, by all writers together.
    async fn write(&mut self, sessions: &[u32], expect: Expect, record: &Bytes) -> anyhow::Result<()> {
        let version = self.version + 1;
        let each = sessions.len().div_ceil(self.nodes * self.calls);
        let mut running = Vec::new();
        for (lane, mine) in sessions.chunks(each).enumerate() {
            let (store, mine, record, rows) = (self.stores[lane % self.nodes].clone(), mine.to_vec(), record.clone(), self.rows);
            running.push(tokio::spawn(async move {
                for some in mine.chunks(rows) {
                    put(&*store, some, expect, version, &record).await?;
                }
                Ok::<(), anyhow::Error>(())
            }));
        }
        for task in running {
            task.await??;
        }
        self.version = version;
        Ok(())
    }

    async fn round(&mut self, sessions: &[u32], record: &Bytes) -> anyhow::Result<()> {
        let (start, cpu) = (now(), process_cpu());
        self.write(sessions, Expect::Exactly(stamp(self.version)), record).await?;
        let (wall, cpu) = (start.elapsed(), process_cpu() - cpu);
        self.per_second.push(sessions.len() as f64 / wall.as_secs_f64());
        self.cpu.push(micros(cpu) / sessions.len() as f64);
        Ok(())
    }
}

/// Prints the table.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let dir = args.dir.clone().unwrap_or_else(std::env::temp_dir).join(format!("outlive-bench-store-{}", std::process::id()));
    std::fs::create_dir(&dir)?;
    let measured = measure(&args, &dir).await;
    std::fs::remove_dir_all(&dir)?;
    measured
}

async fn measure(args: &Args, dir: &Path) -> anyhow::Result<()> {
    let record = Bytes::from(vec![7; args.bytes]);
    let ordered: Vec<u32> = (0..args.sessions).collect();
    let mut random = ordered.clone();
    crate::requests::shuffle(&mut random, &mut Draw::new(3));
    let mut lines = Vec::new();
    for (at, (name, synchronous, nodes, calls, rows, in_random_order)) in LINES.into_iter().enumerate() {
        let url = format!("sqlite:{}?synchronous={synchronous}", dir.join(format!("{at}.db")).display());
        let mut stores = Vec::new();
        for _ in 0..nodes {
            stores.push(outlive_store::open(&url).await?);
        }
        let (per_second, cpu) = Default::default();
        let mut line = Line { name, nodes, calls, rows, random: in_random_order, stores, version: 0, per_second, cpu };
        line.write(&ordered, Expect::Absent, &record).await?;
        lines.push(line);
    }
    println!("Machine: {}.\n", machine());
    println!("### Updates of {} sessions in a SQLite file, {} bytes each\n", args.sessions, args.bytes);
    for _ in 0..args.rounds {
        for line in &mut lines {
            let sessions = if line.random { &random } else { &ordered };
            line.round(sessions, &record).await?;
        }
    }
    let mut table = Table::new(&["writers", "calls in flight", "rows/s", "spread", "CPU µs per row", "spread"]);
    for line in &lines {
        let cells = [
            (line.nodes * line.calls).to_string(),
            format!("{:.0}", line.per_second.median()),
            format!("{:.0} %", line.per_second.spread()),
            format!("{:.1}", line.cpu.median()),
            format!("{:.0} %", line.cpu.spread()),
        ];
        table.row(line.name, &cells);
    }
    table.print();
    println!("Machine, at the end: {}.", machine());
    Ok(())
}
