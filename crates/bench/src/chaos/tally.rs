//! What all clients and the one who kills have in common: counts, violations, and how far the copies are.

use core::fmt::Write as _;
use core::time::Duration;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// A promise that was broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Violation {
    Missing,
    Doubled,
    Disordered,
    Foreign,
    Kept,
    WentBack,
    Attribute,
    Lost,
    Resurrected,
    Window,
    SlowDrain,
    Abandoned,
}

/// All of them, as they are called in the table.
const KINDS: [(Violation, &str); 12] = [
    (Violation::Missing, "acknowledged append missing"),
    (Violation::Doubled, "append there twice"),
    (Violation::Disordered, "appends out of order"),
    (Violation::Foreign, "append in another session"),
    (Violation::Kept, "refused append there"),
    (Violation::WentBack, "less than was seen before"),
    (Violation::Attribute, "acknowledged attribute missing"),
    (Violation::Lost, "loss said"),
    (Violation::Resurrected, "ended session answered"),
    (Violation::Window, "copies missing after 60 s"),
    (Violation::SlowDrain, "drain took longer than 30 s"),
    (Violation::Abandoned, "drain abandoned sessions"),
];

/// Everything that was counted.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) kills: u64,
    pub(crate) terms: u64,
    pub(crate) appends: u64,
    pub(crate) reads: u64,
    pub(crate) pairs: u64,
    pub(crate) logouts: u64,
    pub(crate) ended_asked: u64,
    pub(crate) refused: u64,
    pub(crate) unknown: u64,
    pub(crate) unconnected: u64,
    pub(crate) unanswered: u64,
    pub(crate) slowest: Duration,
    pub(crate) windows: Vec<Duration>,
    pub(crate) settled: Vec<Duration>,
    pub(crate) drains: Vec<Duration>,
    violations: [u64; KINDS.len()],
}

/// The value that this share does not exceed.
fn quantile(sorted: &[Duration], share: f64) -> String {
    let at = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(at.saturating_sub(1)).map_or_else(|| "-".to_owned(), |d| format!("{} ms", d.as_millis()))
}

impl Tally {
    pub(crate) fn held(&self) -> bool {
        self.violations.iter().all(|n| *n == 0)
    }

    /// What was broken, and how often.
    pub(crate) fn broken(&self) -> Vec<(&'static str, u64)> {
        KINDS.iter().zip(&self.violations).map(|((_, name), n)| (*name, *n)).collect()
    }

    /// One line for whoever waits.
    pub(crate) fn line(&self) -> String {
        format!(
            "faults {} (kills {}, terms {})  appends {}  no connection {}  refused {}  unknown {}  unanswered {}  violations {}",
            self.kills + self.terms,
            self.kills,
            self.terms,
            self.appends,
            self.unconnected,
            self.refused,
            self.unknown,
            self.unanswered,
            self.violations.iter().sum::<u64>()
        )
    }

    pub(crate) fn table(&self) -> String {
        let (mut windows, mut settled, mut drains) = (self.windows.clone(), self.settled.clone(), self.drains.clone());
        windows.sort_unstable();
        settled.sort_unstable();
        drains.sort_unstable();
        let mut rows = vec![
            ("faults", (self.kills + self.terms).to_string()),
            ("kills", self.kills.to_string()),
            ("terms", self.terms.to_string()),
            ("appends acknowledged", self.appends.to_string()),
            ("reads checked", self.reads.to_string()),
            ("pairs of parallel requests", self.pairs.to_string()),
            ("logouts", self.logouts.to_string()),
            ("ended sessions asked for", self.ended_asked.to_string()),
            ("no connection", self.unconnected.to_string()),
            ("refused (nothing kept)", self.refused.to_string()),
            ("unknown (503)", self.unknown.to_string()),
            ("unanswered (connection broke)", self.unanswered.to_string()),
            ("slowest answer", format!("{} ms", self.slowest.as_millis())),
            ("window p50", quantile(&windows, 0.5)),
            ("window p99", quantile(&windows, 0.99)),
            ("window max", quantile(&windows, 1.0)),
            ("settled p50", quantile(&settled, 0.5)),
            ("settled p99", quantile(&settled, 0.99)),
            ("settled max", quantile(&settled, 1.0)),
            ("drain p50", quantile(&drains, 0.5)),
            ("drain max", quantile(&drains, 1.0)),
        ];
        rows.extend(KINDS.iter().zip(&self.violations).map(|((_, name), n)| (*name, n.to_string())));
        let mut table = String::from("\n| what | measured |\n|---|---:|\n");
        for (name, value) in rows {
            let _ = writeln!(table, "| {name} | {value} |");
        }
        let _ = writeln!(table, "\n{}", if self.held() { "the promise held" } else { "THE PROMISE WAS BROKEN" });
        table
    }
}

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) tally: Mutex<Tally>,
    pub(crate) stop: AtomicBool,
    /// Grows with each fault.
    pub(crate) epoch: AtomicU64,
    /// The last fault after which this client's session had its copies again.
    whole: Vec<AtomicU64>,
    /// The level that answers must reach for that.
    level: String,
}

impl Shared {
    pub(crate) fn new(clients: usize, level: String) -> Shared {
        let whole = (0..clients).map(|_| AtomicU64::new(0)).collect();
        Shared { tally: Mutex::default(), stop: AtomicBool::new(false), epoch: AtomicU64::new(1), whole, level }
    }

    pub(crate) fn count(&self, change: impl FnOnce(&mut Tally)) {
        if let Ok(mut tally) = self.tally.lock() {
            change(&mut tally);
        }
    }

    pub(crate) fn violation(&self, kind: Violation, what: &str) {
        let name = KINDS.iter().find(|(k, _)| *k == kind).map_or("", |(_, name)| name);
        eprintln!("VIOLATION {name}: {what}");
        self.count(|tally| tally.violations[kind as usize] += 1);
    }

    /// An append that began in `epoch` was answered at `level`.
    pub(crate) fn answered(&self, client: usize, epoch: u64, level: Option<&str>) {
        if level == Some(&*self.level)
            && let Some(whole) = self.whole.get(client)
        {
            whole.store(epoch, Ordering::SeqCst);
        }
    }

    /// Whether every client's session has its copies since the last fault.
    pub(crate) fn whole(&self) -> bool {
        let epoch = self.epoch.load(Ordering::SeqCst);
        self.whole.iter().all(|w| w.load(Ordering::SeqCst) == epoch)
    }

    /// Whether this client's does not.
    pub(crate) fn is_behind(&self, client: usize) -> bool {
        self.whole.get(client).is_some_and(|w| w.load(Ordering::SeqCst) != self.epoch.load(Ordering::SeqCst))
    }

    /// The clients whose sessions do not.
    pub(crate) fn behind(&self) -> String {
        let epoch = self.epoch.load(Ordering::SeqCst);
        let behind = self.whole.iter().enumerate().filter(|(_, w)| w.load(Ordering::SeqCst) != epoch);
        format!("clients {:?}", behind.map(|(client, _)| client).collect::<Vec<_>>())
    }
}
