//! Rows per second into a SQLite file: `cargo run --release -p outlive-store --features sqlite --example store_bench [DIR [SESSIONS AT MOST]]`.
//!
//! Updates, touches and loads go in the order of creation, as visits roughly do; in random order every row costs a page more.
//! Each line is one shape of work: sessions in the file, bytes of a record, rows of a call, calls in flight; then rows per second and, for
//! machines that have other things to do, microseconds of this process's CPU per row (Linux).

use outlive_core::id::SessionKey;
use outlive_core::stamp::{Claim, Life, Stamp};
use outlive_store::{Expect, Put, RowResult, SqliteStore, Store, Synchronous, Touch};
use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let dir = std::env::args().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = dir.join(format!("store-bench-{}", std::process::id()));
    std::fs::create_dir(&dir)?;
    let largest = std::env::args().nth(2).map_or(Ok(1_000_000), |n| n.parse())?;
    for synchronous in [Synchronous::Full, Synchronous::Normal] {
        println!("synchronous = {synchronous:?}");
        println!(
            "{:>9} {:>6} {:>5} {:>6}   {:>9} {:>9} {:>9} {:>9}",
            "sessions", "bytes", "rows", "calls", "create/s", "update/s", "touch/s", "load/s"
        );
        for (sessions, bytes, rows, calls) in [
            (20_000, 1024, 64, 1),
            (20_000, 1024, 256, 1),
            (20_000, 1024, 256, 8),
            (200_000, 100, 64, 1),
            (200_000, 100, 256, 1),
            (200_000, 100, 256, 8),
            (200_000, 100, 256, 16),
            (200_000, 100, 4096, 2),
            (1_000_000, 100, 256, 16),
        ] {
            if sessions > largest {
                continue;
            }
            let path = dir.join("bench.db");
            let shape = Shape { sessions, bytes, rows, calls };
            shape.run(SqliteStore::open(&path, synchronous).await?).await?;
            for suffix in ["", "-wal", "-shm"] {
                let file = dir.join(format!("bench.db{suffix}"));
                // The worker threads close the file a moment after the handle; what is gone already is well.
                drop(std::fs::remove_file(file));
            }
        }
    }
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}

struct Shape {
    sessions: u32,
    bytes: usize,
    rows: u32,
    calls: u32,
}

impl Shape {
    async fn run(&self, store: SqliteStore) -> Result<(), Box<dyn Error>> {
        let store = Arc::new(store);
        let create = self.timed(&store, async |store, keys, bytes| write(store, keys, bytes, Expect::Absent, 1).await).await?;
        let update = self.timed(&store, async |store, keys, bytes| write(store, keys, bytes, Expect::Exactly(stamp(1)), 2).await).await?;
        let touch = self
            .timed(&store, async |store, keys, _| {
                let touch = |n| Touch { key: key(n), stamp: stamp(2), ago: Duration::ZERO, expires_in: Duration::from_secs(1800) };
                assert!(store.touch(keys.map(touch).collect()).await?.iter().all(|r| *r == RowResult::Applied));
                Ok(())
            })
            .await?;
        let load = self
            .timed(&store, async |store, keys, _| {
                drop(store.load(keys.map(key).collect()).await?);
                Ok(())
            })
            .await?;
        let Shape { sessions, bytes, rows, calls } = self;
        println!("{sessions:>9} {bytes:>6} {rows:>5} {calls:>6} {create} {update} {touch} {load}");
        Ok(())
    }

    /// All sessions once, `calls` at a time; rows per second.
    async fn timed(
        &self,
        store: &SqliteStore,
        work: impl AsyncFn(&SqliteStore, std::ops::Range<u32>, usize) -> Result<(), Box<dyn Error>>,
    ) -> Result<String, Box<dyn Error>> {
        #[expect(clippy::disallowed_methods, reason = "a bench is about time")]
        let start = Instant::now();
        let cpu = cpu();
        let next = std::cell::Cell::new(0);
        let lane = async || {
            while next.get() < self.sessions {
                let from = next.get();
                next.set(from + self.rows);
                work(store, from..(from + self.rows).min(self.sessions), self.bytes).await?;
            }
            Ok(())
        };
        let mut lanes: Vec<_> = (0..self.calls).map(|_| Box::pin(lane())).collect();
        let mut failed = None;
        std::future::poll_fn(|cx| {
            lanes.retain_mut(|lane| match lane.as_mut().poll(cx) {
                std::task::Poll::Ready(Err(error)) => {
                    failed = Some(error);
                    false
                }
                std::task::Poll::Ready(Ok(())) => false,
                std::task::Poll::Pending => true,
            });
            if lanes.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
        })
        .await;
        let (wall, cpu) = (start.elapsed(), self::cpu().saturating_sub(cpu));
        let rows = f64::from(self.sessions);
        let figures = format!("{:>8.0}/s {:>4.1}us", rows / wall.as_secs_f64(), cpu.as_secs_f64() * 1e6 / rows);
        failed.map_or(Ok(figures), Err)
    }
}

async fn write(store: &SqliteStore, keys: std::ops::Range<u32>, bytes: usize, expect: Expect, version: u32) -> Result<(), Box<dyn Error>> {
    let record = bytes::Bytes::from(vec![version as u8; bytes]);
    let put =
        |n| Put { key: key(n), expect, stamp: stamp(version), record: record.clone(), expires_in: Duration::from_secs(1800), user: None };
    assert!(store.put(keys.map(put).collect()).await?.iter().all(|result| *result == RowResult::Applied));
    Ok(())
}

/// What all threads of this process have used, in steps of 10 ms.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let ticks = stat.rsplit(')').next().into_iter().flat_map(|fields| fields.split_whitespace().skip(11).take(2));
    Duration::from_millis(ticks.filter_map(|n| n.parse::<u64>().ok()).sum::<u64>() * 10)
}

fn stamp(version: u32) -> Stamp {
    Claim { epoch: 1, life: Life::new(1) }.at(version)
}

/// As scattered as the hashes that keys are.
fn key(n: u32) -> SessionKey {
    let mix = |n: u64| (n ^ (n >> 31)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let (a, b) = (mix(mix(u64::from(n) + 1)), mix(u64::from(n) + 77));
    SessionKey::from_bytes((u128::from(a) << 64 | u128::from(b)).to_be_bytes())
}
