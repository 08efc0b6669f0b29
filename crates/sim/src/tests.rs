//! What continuous integration plays: the regression seeds, a few fresh ones by number, and some of them twice.

use crate::cli::play;
use crate::options::Options;
use outlive_core::plant::Bug;

/// One seed a line; what follows it says what it once found.
const SEEDS: &str = include_str!("../seeds.txt");

#[test]
fn the_seeds_that_once_failed_hold() {
    for line in SEEDS.lines().filter(|l| !l.starts_with('#')) {
        let Some(seed) = line.split_whitespace().next().and_then(|s| s.parse().ok()) else { continue };
        let opts = Options::of(seed);
        assert_eq!(play(&opts, false).violation, None, "seed {seed}");
    }
}

#[test]
fn one_seed_gives_the_same_trace_twice() {
    for seed in 500..520 {
        let opts = Options { chaos: 6 * crate::options::S, ..Options::of(seed) };
        let (a, b) = (play(&opts, true), play(&opts, false));
        assert_eq!(a.hash, b.hash, "seed {seed}");
        let c = play(&opts, true);
        assert!(a.trace == c.trace && !a.trace.is_empty(), "seed {seed}");
    }
}

#[test]
fn a_planted_bug_is_caught() {
    let caught = |bug| {
        (1..200).any(|seed| {
            let opts = Options { plant: Some(bug), ..Options::of(seed) };
            play(&opts, false).violation.is_some()
        })
    };
    assert!(caught(Bug::AckBeforeBackup));
    assert!(caught(Bug::CompareEpochFirst));
    assert!(caught(Bug::ServeUncommitted));
}
