//! That a seed is a world and nothing else, and that a broken engine is noticed. Many seeds are for an optimised build: see `regress` and `run`.

use crate::cli::play;
use crate::options::Options;
use outlive_core::plant::Bug;

#[test]
fn one_seed_gives_the_same_trace_twice() {
    for seed in 500..503 {
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
    assert!(caught(Bug::ServeUncommitted));
}
