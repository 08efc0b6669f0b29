//! The command line.

use crate::marks::Mark;
use crate::options::{MS, Options, S};
use crate::oracle::excuse::{Excuse, Excuses};
use crate::scenario;
use crate::world::World;
use outlive_core::plant::Bug;
use std::collections::BTreeMap;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// One seed a line; what follows it says what it once found.
const SEEDS: &str = include_str!("../seeds.txt");

/// How often a long run says how far it is.
const PROGRESS: Duration = Duration::from_secs(5);

const HELP: &str = "\
outlive-sim run [--seeds N] [--from SEED] [--nodes N] [--all]    plays seeds; the first violation is made smaller unless --all
outlive-sim regress                                              plays the seeds that once found something
outlive-sim replay SEED [--nodes N] [--min]                      the trace; the same bytes every time
outlive-sim scenario [NAME...]                                   the protocol's traces by name; with names, their steps
outlive-sim excuses                                              what the judge excuses, and by which rule
outlive-sim plant [--seeds N] [--from SEED] [NAME...]            whether scenarios or seeds notice each planted bug
--jobs N plays so many seeds at once; default: as many as the machine has cores
";

/// What one run found.
pub(crate) struct Found {
    pub(crate) violation: Option<String>,
    pub(crate) marks: Vec<u64>,
    /// Which excuses fired.
    pub(crate) excuses: Vec<bool>,
    pub(crate) trace: Vec<String>,
    pub(crate) hash: u64,
}

/// Plays these options.
pub(crate) fn play(options: &Options, trace: bool) -> Found {
    let mut world = World::new(options.clone(), trace);
    let result = catch_unwind(AssertUnwindSafe(|| world.run()));
    if result.is_err() {
        world.violate("I14 a panic".into());
    }
    Found {
        violation: world.violation.take(),
        marks: core::mem::take(&mut world.marks),
        excuses: core::mem::replace(&mut world.excuses, Excuses::new()).fired(),
        trace: world.trace.take().unwrap_or_default(),
        hash: world.hash,
    }
}

/// Makes a failure smaller as long as some violation remains: fewer faults, fewer sessions, less time.
pub(crate) fn minimise(options: &Options, violation: &str) -> Options {
    let kind = |v: &str| v.split_whitespace().next().unwrap_or("").to_owned();
    let want = kind(violation);
    let fails = |o: &Options| play(o, false).violation.is_some_and(|v| kind(&v) == want);
    let mut best = options.clone();
    for _ in 0..2 {
        let mut at = 0;
        while at < best.faults.len() {
            let mut fewer = best.clone();
            fewer.faults.remove(at);
            if fails(&fewer) {
                best = fewer;
            } else {
                at += 1;
            }
        }
        for sessions in [1, 2, 3, 5, 8] {
            let fewer = Options { sessions, ..best.clone() };
            if sessions < best.sessions && fails(&fewer) {
                best = fewer;
                break;
            }
        }
        for nodes in 2..best.nodes {
            let fewer = Options { nodes, ..best.clone() };
            if fails(&fewer) {
                best = fewer;
                break;
            }
        }
        for part in 1..10 {
            let shorter = Options { chaos: (best.chaos * part / 10).max(4 * S) / MS * MS, ..best.clone() };
            if shorter.chaos < best.chaos && fails(&shorter) {
                best = shorter;
                break;
            }
        }
        for think in [3000 * MS, 1500 * MS, 700 * MS] {
            let calmer = Options { think, ..best.clone() };
            if think > best.think && fails(&calmer) {
                best = calmer;
                break;
            }
        }
    }
    best
}

struct Args {
    seeds: u64,
    from: Option<u64>,
    nodes: Option<usize>,
    jobs: Option<usize>,
    all: bool,
    min: bool,
    rest: Vec<String>,
}

fn parse(args: &[String]) -> Option<Args> {
    let mut out = Args { seeds: 100, from: None, nodes: None, jobs: None, all: false, min: false, rest: Vec::new() };
    let mut it = args.iter();
    while let Some(arg) = it.next() {
        match arg.as_str() {
            "--seeds" => out.seeds = it.next()?.parse().ok()?,
            "--from" => out.from = Some(it.next()?.parse().ok()?),
            "--nodes" => out.nodes = Some(it.next()?.parse().ok().filter(|n| (1..=8).contains(n))?),
            "--jobs" => out.jobs = Some(it.next()?.parse().ok().filter(|n| *n > 0)?),
            "--all" => out.all = true,
            "--min" => out.min = true,
            other if other.starts_with("--") => return None,
            other => out.rest.push(other.to_owned()),
        }
    }
    Some(out)
}

/// Runs the command line.
pub fn main(args: Vec<String>) -> ExitCode {
    let Some((command, rest)) = args.split_first() else {
        print!("{HELP}");
        return ExitCode::from(2);
    };
    let Some(parsed) = parse(rest) else {
        eprint!("{HELP}");
        return ExitCode::from(2);
    };
    match command.as_str() {
        "run" => run(&parsed),
        "regress" => regress(&parsed),
        "replay" => replay(&parsed),
        "plant" => plant(&parsed),
        "scenario" => scenarios(&parsed),
        "excuses" => excuses(),
        "help" | "--help" | "-h" => {
            print!("{HELP}");
            ExitCode::SUCCESS
        }
        _ => {
            eprint!("{HELP}");
            ExitCode::from(2)
        }
    }
}

fn options(seed: u64, args: &Args) -> Options {
    let mut options = Options::of(seed);
    options.nodes = args.nodes.unwrap_or(options.nodes);
    options
}

fn fresh() -> u64 {
    #[expect(clippy::disallowed_methods, reason = "fresh seeds are drawn from the clock, and printed")]
    let nanos = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64);
    nanos / 1000 % 1_000_000_000_000
}

fn run(args: &Args) -> ExitCode {
    let from = args.from.unwrap_or_else(|| {
        let seed = fresh();
        println!("from seed {seed}");
        seed
    });
    play_all(args, (from..from.saturating_add(args.seeds)).collect())
}

fn regress(args: &Args) -> ExitCode {
    play_all(args, regressions().collect())
}

/// The seeds that once found something.
pub(crate) fn regressions() -> impl Iterator<Item = u64> {
    SEEDS.lines().filter(|l| !l.starts_with('#')).filter_map(|l| l.split_whitespace().next()?.parse().ok())
}

/// What the seeds played so far came to.
struct Tally {
    seeds: usize,
    marks: Vec<u64>,
    /// In how many seeds each excuse fired.
    excuses: Vec<usize>,
    violations: usize,
    hash: u64,
}

impl Tally {
    fn add(&mut self, args: &Args, seed: u64, found: Found) {
        self.seeds += 1;
        self.hash = (self.hash ^ found.hash).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
        for (all, one) in self.marks.iter_mut().zip(&found.marks) {
            *all += one;
        }
        for (all, one) in self.excuses.iter_mut().zip(&found.excuses) {
            *all += usize::from(*one);
        }
        let Some(violation) = found.violation else { return };
        self.violations += 1;
        let opts = options(seed, args);
        println!("seed {seed}: {violation}");
        println!("  {}", opts.line());
        if self.violations == 1 && !args.all {
            let small = minimise(&opts, &violation);
            let found = play(&small, true);
            println!("  smaller: {}", small.line());
            println!("  {}", found.violation.unwrap_or_default());
            let skip = found.trace.len().saturating_sub(60);
            for line in found.trace.iter().skip(skip) {
                println!("    {line}");
            }
        }
        // A long run is read while it goes on.
        let _ = std::io::stdout().flush();
    }
}

impl Tally {
    /// In which share of the seeds each excuse fired, the most frequent first.
    fn excuses(&self) -> String {
        let mut fired: Vec<(usize, Excuse)> = Excuse::ALL.iter().map(|e| (self.excuses[*e as usize], *e)).filter(|(n, _)| *n > 0).collect();
        fired.sort_by_key(|(n, _)| core::cmp::Reverse(*n));
        let share = |n: usize| 100.0 * n as f64 / self.seeds.max(1) as f64;
        fired.iter().map(|(n, e)| format!(" {}={:.1}%", e.name(), share(*n))).collect()
    }
}

/// Works on all cores; `each` gets the results in their order.
fn in_order<R: Send>(args: &Args, count: usize, work: impl Fn(usize) -> R + Sync, mut each: impl FnMut(usize, R)) {
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    let jobs = args.jobs.unwrap_or_else(cores).clamp(1, count.max(1));
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let (send, receive) = mpsc::sync_channel(jobs);
        for _ in 0..jobs {
            let (send, next, work) = (send.clone(), &next, &work);
            scope.spawn(move || {
                while let Some(at) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|at| *at < count) {
                    if send.send((at, work(at))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(send);
        let (mut early, mut turn) = (BTreeMap::new(), 0);
        while let Ok((at, result)) = receive.recv() {
            early.insert(at, result);
            while let Some(result) = early.remove(&turn) {
                each(turn, result);
                turn += 1;
            }
        }
    });
}

/// Plays these seeds, and tells of them in their order.
fn play_all(args: &Args, seeds: Vec<u64>) -> ExitCode {
    #[expect(clippy::disallowed_methods, reason = "the rate that is printed at the end")]
    let begun = Instant::now();
    let mut tally = Tally { seeds: 0, marks: vec![0; Mark::ALL.len()], excuses: vec![0; Excuse::ALL.len()], violations: 0, hash: 0 };
    let mut told = Duration::ZERO;
    let work = |at: usize| play(&options(seeds[at], args), false);
    in_order(args, seeds.len(), work, |at, found| {
        tally.add(args, seeds[at], found);
        let elapsed = begun.elapsed();
        if elapsed - told >= PROGRESS {
            told = elapsed;
            let rate = tally.seeds as f64 / elapsed.as_secs_f64();
            eprintln!("{} of {} seeds, {} violations, {rate:.1} seeds/s", tally.seeds, seeds.len(), tally.violations);
        }
    });
    let missed: Vec<&str> = Mark::ALL.iter().filter(|m| tally.marks[**m as usize] == 0).map(|m| m.name()).collect();
    if !missed.is_empty() {
        println!("not reached: {}", missed.join(" "));
    }
    let rate = tally.seeds as f64 / begun.elapsed().as_secs_f64().max(0.001);
    let (reached, all) = (Mark::ALL.len() - missed.len(), Mark::ALL.len());
    println!("excuses:{}", tally.excuses());
    // All runs in one number: a change that is to change nothing leaves it as it is.
    println!("hash={:016x}", tally.hash);
    println!("seeds={} violations={} seeds_per_s={rate:.1} reached={reached}/{all}", tally.seeds, tally.violations);
    if tally.violations == 0 && tally.seeds == seeds.len() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn replay(args: &Args) -> ExitCode {
    let Some(seed) = args.rest.first().and_then(|s| s.parse().ok()) else {
        eprint!("{HELP}");
        return ExitCode::from(2);
    };
    let mut opts = options(seed, args);
    if args.min
        && let Some(violation) = play(&opts, false).violation
    {
        opts = minimise(&opts, &violation);
    }
    let found = play(&opts, true);
    let end = format!("hash={:016x} violation={}", found.hash, found.violation.as_deref().unwrap_or("none"));
    let mut out = std::io::stdout().lock();
    for line in std::iter::once(&opts.line()).chain(&found.trace).chain([&end]) {
        // Whoever reads only its beginning has closed the pipe.
        if writeln!(out, "{line}").is_err() {
            break;
        }
    }
    if found.violation.is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn excuses() -> ExitCode {
    for excuse in Excuse::ALL {
        println!("{} ({}): {}", excuse.name(), excuse.rests_on(), excuse.says());
    }
    ExitCode::SUCCESS
}

fn plant(args: &Args) -> ExitCode {
    let from = args.from.unwrap_or(1);
    let bugs: Vec<Bug> = Bug::ALL.iter().copied().filter(|b| args.rest.is_empty() || args.rest.iter().any(|n| n == b.name())).collect();
    let violates = |bug, seed| play(&Options { plant: Some(bug), ..options(seed, args) }, false).violation.is_some();
    let broken = |bug| move |s: &&scenario::Scenario| scenario::play(s.name, Some(bug), false).is_some_and(|(v, _)| v.is_some());
    let search = |at: usize| match scenario::ALL.iter().find(broken(bugs[at])) {
        Some(s) => Some(format!("caught by {}", s.name)),
        None => (from..from + args.seeds).find(|s| violates(bugs[at], *s)).map(|s| format!("caught after {} seeds", s - from + 1)),
    };
    let mut all = true;
    in_order(args, bugs.len(), search, |at, caught| match caught {
        Some(how) => println!("{} {how}", bugs[at].name()),
        None => {
            all = false;
            println!("{} not caught", bugs[at].name());
        }
    });
    if all { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn scenarios(args: &Args) -> ExitCode {
    let mut bad = 0;
    for s in scenario::ALL.iter().filter(|s| args.rest.is_empty() || args.rest.iter().any(|n| n == s.name)) {
        let Some((violation, trace)) = scenario::play(s.name, None, !args.rest.is_empty()) else { continue };
        for line in trace {
            println!("{line}");
        }
        println!("{} {}", s.name, violation.as_deref().unwrap_or("holds"));
        bad += u32::from(violation.is_some());
    }
    if bad == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
