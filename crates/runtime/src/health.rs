//! [`Health`]: what can be done with the store, reads and writes apart, because a disk that is full can still be read.

use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;
use outlive_core::time::Mono;
use parking_lot::Mutex;
use tokio::sync::Notify;

/// Failed reads in a row after which reads are left alone but for a probe.
const BREAKER: u32 = 5;
/// How often it is said again that something still does not work.
const AGAIN: Duration = Duration::from_secs(60);

/// How it is with the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum StoreHealth {
    /// It answers, or there is none.
    #[default]
    Ok,
    /// Writes fail or are not answered in time: a full or read-only disk, a lock. Changes wait in memory and on copies.
    CannotBeWritten,
    /// It does not answer. Sessions are served from memory and copies; what only the store has cannot be had.
    CannotBeRead,
    /// Where it was is nothing, or another store. Nothing is read and nothing written until it is back.
    Gone,
}

impl fmt::Display for StoreHealth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            StoreHealth::Ok => "the store answers",
            StoreHealth::CannotBeWritten => "the store cannot be written, and changes wait in memory",
            StoreHealth::CannotBeRead => "the store does not answer, and changes wait in memory to be written",
            StoreHealth::Gone => "the store is not where it was, and changes wait in memory for it to come back",
        })
    }
}

/// What was asked of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    /// Reads of any kind.
    Read,
    /// Writes of what waits to be written.
    Write,
    /// The write that comes by itself every few seconds.
    Announce,
    /// A write by which nothing is measured but whether the store is there.
    Tidy,
}

/// Notes what came of each call, and says in the log what changes: once, and once a minute while it lasts.
#[derive(Debug, Default)]
pub(crate) struct Health {
    state: Mutex<State>,
    shut: AtomicBool,
    /// Something that did not work does.
    pub(crate) better: Notify,
    /// Reads are left alone, or the store is gone: somebody must look when that is over.
    pub(crate) worse: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Failed reads in a row.
    reads: u32,
    writes: bool,
    announces: bool,
    /// Reads, and writes, have not worked since it was gone.
    gone: [bool; 2],
    shown: StoreHealth,
    since: Mono,
    said: Mono,
    failed: u64,
}

impl State {
    fn health(&self) -> StoreHealth {
        match self {
            State { gone: [true, _] | [_, true], .. } => StoreHealth::Gone,
            State { reads: BREAKER.., .. } => StoreHealth::CannotBeRead,
            State { writes: true, .. } | State { announces: true, .. } => StoreHealth::CannotBeWritten,
            _ => StoreHealth::Ok,
        }
    }
}

impl Health {
    pub(crate) fn now(&self) -> StoreHealth {
        self.state.lock().shown
    }

    /// Whether reads are not worth a try.
    pub(crate) fn is_shut(&self) -> bool {
        self.shut.load(Ordering::Acquire)
    }

    /// Whether it is not known yet that writes work again where the store is.
    pub(crate) fn writes_gone(&self) -> bool {
        self.state.lock().gone[1]
    }

    /// A call failed. `waiting`: how many sessions wait to be written.
    pub(crate) fn failed(&self, call: Call, gone: bool, why: &str, now: Mono, waiting: impl FnOnce() -> u64) {
        let mut state = self.state.lock();
        state.failed += 1;
        match call {
            _ if gone => state.gone = [true; 2],
            Call::Read => state.reads = state.reads.saturating_add(1),
            Call::Write => state.writes = true,
            Call::Announce => state.announces = true,
            Call::Tidy => {}
        }
        let health = state.health();
        if health > state.shown {
            if state.shown == StoreHealth::Ok {
                (state.since, state.failed) = (now, 1);
            }
            (state.shown, state.said) = (health, now);
            tracing::error!(why, waiting = waiting(), "{health}; sessions are served from memory and copies");
        } else if health != StoreHealth::Ok && now.since(state.said) >= AGAIN {
            state.said = now;
            let seconds = now.since(state.since).as_secs();
            tracing::error!(why, seconds, failed = state.failed, waiting = waiting(), "still: {health}");
        }
        if health >= StoreHealth::CannotBeRead {
            self.shut.store(true, Ordering::Release);
            self.worse.notify_one();
        }
    }

    /// A call worked. `true`: the store had been gone and is back, and may have forgotten what it had acknowledged.
    pub(crate) fn worked(&self, call: Call, now: Mono) -> bool {
        let mut state = self.state.lock();
        let was_gone = state.shown == StoreHealth::Gone;
        match call {
            Call::Read => (state.reads, state.gone[0]) = (0, false),
            // The small write that comes by itself says nothing about larger ones, on a disk that is nearly full.
            Call::Write => (state.writes, state.announces, state.gone[1]) = (false, false, false),
            Call::Announce => (state.announces, state.gone[1]) = (false, false),
            Call::Tidy => state.gone[1] = false,
        }
        self.improved(&mut state, now);
        was_gone && state.shown != StoreHealth::Gone
    }

    /// Nothing waits to be written, so nothing that waits cannot be.
    pub(crate) fn nothing_waits(&self, now: Mono) {
        let mut state = self.state.lock();
        if state.writes {
            state.writes = false;
            self.improved(&mut state, now);
        }
    }

    fn improved(&self, state: &mut State, now: Mono) {
        let health = state.health();
        if health < StoreHealth::CannotBeRead {
            self.shut.store(false, Ordering::Release);
        }
        if health >= state.shown {
            return;
        }
        state.shown = health;
        let (seconds, failed) = (now.since(state.since).as_secs(), state.failed);
        if health == StoreHealth::Ok {
            tracing::info!(seconds, failed, "the store can be read and written again");
        } else {
            state.said = now;
            tracing::warn!(seconds, failed, "better, but: {health}");
        }
        self.better.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Mono {
        Mono::from_micros(seconds * 1_000_000)
    }

    #[test]
    fn reads_that_work_do_not_clear_writes_that_fail() {
        let health = Health::default();
        health.failed(Call::Write, false, "full", at(1), || 1);
        assert!(!health.worked(Call::Read, at(2)));
        assert_eq!((health.now(), health.is_shut()), (StoreHealth::CannotBeWritten, false));
        health.worked(Call::Announce, at(3));
        assert_eq!(health.now(), StoreHealth::CannotBeWritten, "a small write fits where a large one does not");
        health.worked(Call::Write, at(4));
        assert_eq!(health.now(), StoreHealth::Ok);
        health.failed(Call::Write, false, "full", at(5), || 1);
        health.nothing_waits(at(6));
        assert_eq!(health.now(), StoreHealth::Ok);
        health.failed(Call::Announce, false, "full", at(7), || 1);
        health.nothing_waits(at(8));
        assert_eq!(health.now(), StoreHealth::CannotBeWritten, "whoever has nothing to write cannot either");
    }

    #[test]
    fn a_few_reads_that_fail_are_tried_again_and_many_are_left_alone() {
        let health = Health::default();
        for n in 0..BREAKER {
            assert!(!health.is_shut(), "{n}");
            health.failed(Call::Read, false, "away", at(1), || 1);
        }
        assert_eq!((health.now(), health.is_shut()), (StoreHealth::CannotBeRead, true));
        health.worked(Call::Write, at(2));
        assert!(health.is_shut());
        assert!(!health.worked(Call::Read, at(3)), "it was there all the time");
        assert_eq!((health.now(), health.is_shut()), (StoreHealth::Ok, false));
    }

    #[test]
    fn a_store_that_was_gone_is_back_when_it_was_read_and_written() {
        let health = Health::default();
        health.failed(Call::Announce, true, "moved", at(1), || 1);
        assert_eq!((health.now(), health.is_shut()), (StoreHealth::Gone, true));
        assert!(!health.worked(Call::Read, at(2)) && health.writes_gone());
        assert!(health.worked(Call::Tidy, at(3)) && !health.writes_gone());
        assert_eq!((health.now(), health.is_shut()), (StoreHealth::Ok, false));
    }
}
