//! The command line.

use crate::marks::Mark;
use crate::options::{MS, Options, S};
use crate::scenario;
use crate::world::World;
use outlive_core::plant::Bug;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

const HELP: &str = "\
outlive-sim run [--seeds N] [--from SEED] [--nodes N] [--all]    plays seeds; stops minimising after the first violation unless --all
outlive-sim replay SEED [--nodes N] [--min]                      the trace; the same bytes every time
outlive-sim scenario [NAME...]                                   the protocol's traces by name; with names, their steps
outlive-sim plant [--seeds N] [--from SEED] [NAME...]            one line per planted bug
";

/// What one run found.
pub(crate) struct Found {
    pub(crate) violation: Option<String>,
    pub(crate) marks: Vec<u64>,
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
    all: bool,
    min: bool,
    rest: Vec<String>,
}

fn parse(args: &[String]) -> Option<Args> {
    let mut out = Args { seeds: 100, from: None, nodes: None, all: false, min: false, rest: Vec::new() };
    let mut it = args.iter();
    while let Some(arg) = it.next() {
        match arg.as_str() {
            "--seeds" => out.seeds = it.next()?.parse().ok()?,
            "--from" => out.from = Some(it.next()?.parse().ok()?),
            "--nodes" => out.nodes = Some(it.next()?.parse().ok().filter(|n| (1..=8).contains(n))?),
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
        "replay" => replay(&parsed),
        "plant" => plant(&parsed),
        "scenario" => scenarios(&parsed),
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
    #[expect(clippy::disallowed_methods, reason = "the rate that is printed at the end")]
    let begun = Instant::now();
    let mut marks = vec![0_u64; Mark::ALL.len()];
    let mut violations = 0;
    for seed in from..from + args.seeds {
        let opts = options(seed, args);
        let found = play(&opts, false);
        for (all, one) in marks.iter_mut().zip(&found.marks) {
            *all += one;
        }
        if let Some(violation) = found.violation {
            violations += 1;
            println!("seed {seed}: {violation}");
            println!("  {}", opts.line());
            if violations == 1 && !args.all {
                let small = minimise(&opts, &violation);
                let found = play(&small, true);
                println!("  smaller: {}", small.line());
                println!("  {}", found.violation.unwrap_or_default());
                let skip = found.trace.len().saturating_sub(60);
                for line in found.trace.iter().skip(skip) {
                    println!("    {line}");
                }
            }
        }
    }
    let missed: Vec<&str> = Mark::ALL.iter().filter(|m| marks[**m as usize] == 0).map(|m| m.name()).collect();
    if !missed.is_empty() {
        println!("not reached: {}", missed.join(" "));
    }
    let rate = args.seeds as f64 / begun.elapsed().as_secs_f64().max(0.001);
    let (reached, all) = (Mark::ALL.len() - missed.len(), Mark::ALL.len());
    println!("seeds={} violations={violations} seeds_per_s={rate:.1} reached={reached}/{all}", args.seeds);
    if violations == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
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
    println!("{}", opts.line());
    let found = play(&opts, true);
    for line in &found.trace {
        println!("{line}");
    }
    println!("hash={:016x} violation={}", found.hash, found.violation.as_deref().unwrap_or("none"));
    if found.violation.is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn plant(args: &Args) -> ExitCode {
    let from = args.from.unwrap_or(1);
    let mut all = true;
    for bug in Bug::ALL {
        if !args.rest.is_empty() && !args.rest.iter().any(|n| n == bug.name()) {
            continue;
        }
        let caught = (from..from + args.seeds).find(|seed| {
            let opts = Options { plant: Some(*bug), ..options(*seed, args) };
            play(&opts, false).violation.is_some()
        });
        match caught {
            Some(seed) => println!("{} caught after {} seeds", bug.name(), seed - from + 1),
            None => {
                all = false;
                println!("{} not caught", bug.name());
            }
        }
    }
    if all { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn scenarios(args: &Args) -> ExitCode {
    let mut bad = 0;
    for s in scenario::ALL.iter().filter(|s| args.rest.is_empty() || args.rest.iter().any(|n| n == s.name)) {
        let Some((violation, trace)) = scenario::play(s.name, !args.rest.is_empty()) else { continue };
        for line in trace {
            println!("{line}");
        }
        println!("{} {}", s.name, violation.as_deref().unwrap_or("holds"));
        bad += u32::from(violation.is_some());
    }
    if bad == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
