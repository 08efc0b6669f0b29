//! Clocks, medians and tables.

use core::fmt::Display;
use core::time::Duration;
use rustix::time::{ClockId, clock_gettime};
use std::path::Path;
use std::time::Instant;

/// The time on the wall.
#[expect(clippy::disallowed_methods, reason = "a measurement reads the clock")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// What this thread has computed: waiting for a core does not count.
pub(crate) fn thread_cpu() -> Duration {
    cpu(ClockId::ThreadCPUTime)
}

/// What all threads of this process have computed.
pub(crate) fn process_cpu() -> Duration {
    cpu(ClockId::ProcessCPUTime)
}

fn cpu(clock: ClockId) -> Duration {
    Duration::try_from(clock_gettime(clock)).unwrap_or_default()
}

/// What all threads of another process have computed, exact while it sleeps.
pub(crate) fn cpu_of(pid: u32) -> Duration {
    let threads = std::fs::read_dir(Path::new("/proc").join(pid.to_string()).join("task"));
    let nanos = |thread: std::fs::DirEntry| {
        let text = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    };
    Duration::from_nanos(threads.into_iter().flatten().flatten().filter_map(nanos).sum())
}

/// The same figure in several rounds.
#[derive(Clone, Default)]
pub(crate) struct Rounds(Vec<f64>);

impl Rounds {
    pub(crate) fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }

    pub(crate) fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// The value that a share `q` of them does not exceed.
    pub(crate) fn quantile(&self, q: f64) -> f64 {
        let sorted = self.sorted();
        let at = ((sorted.len() as f64 * q).ceil() as usize).clamp(1, sorted.len().max(1)) - 1;
        sorted.get(at).copied().unwrap_or(f64::NAN)
    }

    /// What lies between the smallest and the largest, in percent of the median.
    pub(crate) fn spread(&self) -> f64 {
        let sorted = self.sorted();
        let width = sorted.last().zip(sorted.first()).map_or(0.0, |(last, first)| last - first);
        100.0 * width / self.median().abs()
    }

    /// Round by round, `f` of this and the other.
    pub(crate) fn with(&self, other: &Rounds, f: impl Fn(f64, f64) -> f64) -> Rounds {
        Rounds(self.0.iter().zip(&other.0).map(|(a, b)| f(*a, *b)).collect())
    }
}

impl Extend<f64> for Rounds {
    fn extend<I: IntoIterator<Item = f64>>(&mut self, values: I) {
        self.0.extend(values);
    }
}

pub(crate) fn micros(d: Duration) -> f64 {
    d.as_secs_f64() * 1e6
}

/// A Markdown table: numbers to the right, the first column to the left.
pub(crate) struct Table(Vec<Vec<String>>);

impl Table {
    pub(crate) fn new(head: &[&str]) -> Table {
        Table(vec![head.iter().map(|h| (*h).to_owned()).collect()])
    }

    pub(crate) fn row(&mut self, name: impl Display, cells: &[String]) {
        self.0.push(core::iter::once(name.to_string()).chain(cells.iter().cloned()).collect());
    }

    pub(crate) fn print(&self) {
        for (at, row) in self.0.iter().enumerate() {
            println!("| {} |", row.join(" | "));
            if at == 0 {
                println!("|---{}|", "|---:".repeat(row.len() - 1));
            }
        }
        println!();
    }
}

/// One line that says on what this was measured, and how busy it was.
pub(crate) fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo.lines().find_map(|l| l.strip_prefix("model name")?.split_once(": ")).map_or("unknown", |(_, name)| name);
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = read("/proc/sys/kernel/osrelease");
    let load = read("/proc/loadavg");
    let load: Vec<&str> = load.split(' ').take(3).collect();
    let build = if cfg!(debug_assertions) { "DEBUG BUILD, figures are worthless" } else { "release build" };
    format!("{cores} cores, {model}, Linux {}, load {}, {build}", kernel.trim(), load.join(" "))
}
