//! What 200 shoppers saw, counted: the plot of the page and the table of `--script` are both made of this.

use crate::demo::histogram::Histogram;
use serde::Serialize;
use std::collections::VecDeque;
use std::time::Duration;
use tokio::time::Instant;

/// How an answer is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// As it should be.
    Good = 0,
    /// 503 with `Retry-After`: asked to wait.
    Refused = 1,
    /// No answer, or another error.
    Failed = 2,
    /// It showed a loss, or something older than already seen, or what had been signed out.
    Wrong = 3,
}

/// One dot: when (ms since 1970), how long (ms), which node (its place in the list), how.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Dot(pub(crate) u64, pub(crate) f32, pub(crate) i8, pub(crate) u8);

/// What was counted.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Totals {
    /// Answers and failures to answer.
    pub(crate) requests: u64,
    /// Errors and broken connections.
    pub(crate) failed: u64,
    /// 503 with `Retry-After`.
    pub(crate) refused: u64,
    /// Sessions, or changes in them, that are gone.
    pub(crate) lost: u64,
    /// Of these, losses that no notice told of.
    pub(crate) silent: u64,
    /// Answers older than one already seen.
    pub(crate) stale: u64,
    /// Answers to an id that had ended.
    pub(crate) resurrected: u64,
    /// Answers by another node than the one before.
    pub(crate) moves: u64,
}

/// A kill whose first answer is waited for.
#[derive(Clone, Copy, Debug)]
struct Kill {
    node: i8,
    at: Instant,
}

/// The counters, the last minute's dots, and what was lost by name.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) totals: Totals,
    pub(crate) latency: Histogram,
    pub(crate) dots: VecDeque<Dot>,
    /// Dots that no page has been sent yet.
    pub(crate) fresh: Vec<Dot>,
    /// The first few losses, in words.
    pub(crate) named: Vec<String>,
    kill: Option<Kill>,
    /// From the kill to the first good answer, elsewhere, to someone whose session was there.
    pub(crate) first_answer: Option<Duration>,
}

/// Dots that are kept: a minute of 200 shoppers, and some.
const DOTS_MAX: usize = 30_000;
const NAMED_MAX: usize = 20;

impl Tally {
    /// One answer: by `node`, to someone whose former answer came from `before`.
    pub(crate) fn answer(&mut self, at_ms: u64, took: Duration, node: Option<i8>, before: Option<i8>, kind: Kind) {
        self.totals.requests += 1;
        match kind {
            Kind::Good | Kind::Wrong => self.latency.add(took),
            Kind::Refused => self.totals.refused += 1,
            Kind::Failed => self.totals.failed += 1,
        }
        if let (Kind::Good, Some(node), Some(before)) = (kind, node, before)
            && node != before
        {
            self.totals.moves += 1;
            if let Some(kill) = self.kill.filter(|kill| kill.node == before) {
                self.first_answer = Some(kill.at.elapsed());
                self.kill = None;
            }
        }
        self.dot(Dot(at_ms, took.as_secs_f32() * 1000.0, node.or(before).unwrap_or(-1), kind as u8));
    }

    fn dot(&mut self, dot: Dot) {
        if self.dots.len() == DOTS_MAX {
            self.dots.pop_front();
        }
        self.dots.push_back(dot);
        if self.fresh.len() < DOTS_MAX {
            self.fresh.push(dot);
        }
    }

    /// What was answered last, by `node`, was wrong: it gets a dot of its own on top, and counts once.
    pub(crate) fn wrong(&mut self, at_ms: u64, took: Duration, node: Option<i8>) {
        self.dot(Dot(at_ms, took.as_secs_f32() * 1000.0, node.unwrap_or(-1), Kind::Wrong as u8));
    }

    /// A node is killed now.
    pub(crate) fn killed(&mut self, node: i8) {
        self.kill = Some(Kill { node, at: Instant::now() });
    }

    /// Puts a loss, or whatever else must not happen, into words.
    pub(crate) fn name(&mut self, what: String) {
        if self.named.len() < NAMED_MAX {
            self.named.push(what);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_answer_is_one_to_somebody_whose_node_was_killed() {
        let mut tally = Tally::default();
        let ms = Duration::from_millis(1);
        tally.killed(0);
        tally.answer(0, ms, Some(2), Some(1), Kind::Good);
        tally.answer(0, ms, Some(1), Some(0), Kind::Refused);
        assert_eq!((tally.first_answer, tally.totals.moves, tally.totals.refused), (None, 1, 1));
        tally.answer(0, ms, Some(1), Some(0), Kind::Good);
        assert!(tally.first_answer.is_some());
        assert_eq!((tally.totals.requests, tally.totals.moves), (3, 2));
    }
}
