//! [`Clock`]: the store's own time, which no wall clock can set.
//!
//! A file has no clock, and the machine's may be set, may go backwards, or may be wrong in one of the processes. So the store's time is kept
//! in the file, moves with the monotonic clocks of those who use it, and never goes back. The wall clock is asked once, by a process that
//! comes anew: how long was nobody here? If that is more than a minute and others seem to be alive, the answer is not believed until it is
//! clear that they are not; until then it is as if no time had passed, and nothing is swept.

use core::hash::{BuildHasher, Hasher};
use core::time::Duration;
use parking_lot::Mutex;
use rusqlite::{Connection, Result, params};
use std::collections::hash_map::RandomState;
use std::time::Instant;

/// Milliseconds that a newcomer's wall clock may be ahead of what others wrote, without a question.
const LEAP: i64 = 60_000;
/// After this time without a sign of them others are not alive: longer than a node's row lasts.
const SILENCE: Duration = Duration::from_secs(12);

/// The time of one open store.
pub(super) struct Clock {
    me: [u8; 8],
    origin: Instant,
    state: Mutex<Option<State>>,
}

struct State {
    /// The store's time when the monotonic clock said `at`.
    now: i64,
    at: Duration,
    leap: Option<Leap>,
}

/// What the wall clock says on top, and is not believed yet.
struct Leap {
    by: i64,
    /// The store's time that it would be added to, and when that was.
    from: i64,
    since: Duration,
}

/// What stands in the file, and the wall clock.
struct Told {
    now: i64,
    wall: i64,
    clock: [u8; 8],
    wall_now: i64,
}

impl Clock {
    #[expect(clippy::disallowed_methods, reason = "this store stands for a database, and a database has a clock of its own")]
    pub(super) fn new() -> Clock {
        let me = RandomState::new().build_hasher().finish().to_be_bytes();
        Clock { me, origin: Instant::now(), state: Mutex::default() }
    }

    /// The store's time, within a transaction.
    pub(super) fn now(&self, db: &Connection) -> Result<i64> {
        // Asked before the wall clock is: whoever is held up between the two is ahead, which the others follow, and not behind them.
        let before = self.origin.elapsed();
        let mut find = db.prepare_cached("SELECT now, wall, clock, CAST(unixepoch('subsec') * 1000 AS INTEGER) FROM store")?;
        let told = find.query_row([], |row| Ok(Told { now: row.get(0)?, wall: row.get(1)?, clock: row.get(2)?, wall_now: row.get(3)? }))?;
        let mut state = self.state.lock();
        match &mut *state {
            Some(state) => Ok(state.tell(&told, told.clock == self.me, self.origin.elapsed())),
            None => {
                let sql = "SELECT EXISTS (SELECT 1 FROM node WHERE until > ?1)";
                let others = db.query_row(sql, [told.now], |row| row.get(0))?;
                Ok(state.insert(State::new(&told, others, before)).now)
            }
        }
    }

    /// Whether it is clear what the time is: what may be over by the wall clock alone is not.
    pub(super) fn is_clear(&self) -> bool {
        self.state.lock().as_ref().is_some_and(|state| state.leap.is_none())
    }

    /// Writes the time down with what is written at it, so that nobody finds that before its time, and whoever comes anew knows how long
    /// nobody was here.
    pub(super) fn write(&self, db: &Connection, now: i64) -> Result<()> {
        let mut write =
            db.prepare_cached("UPDATE store SET now = max(now, ?1), wall = CAST(unixepoch('subsec') * 1000 AS INTEGER), clock = ?2")?;
        write.execute(params![now, self.me]).map(drop)
    }
}

impl State {
    /// `others`: some had not withdrawn when the file was written last.
    fn new(told: &Told, others: bool, at: Duration) -> State {
        let by = told.wall_now.saturating_sub(told.wall).max(0);
        if by > LEAP && others {
            return State { now: told.now, at, leap: Some(Leap { by, from: told.now, since: at }) };
        }
        State { now: told.now.saturating_add(by), at, leap: None }
    }

    fn tell(&mut self, told: &Told, mine: bool, at: Duration) -> i64 {
        let passed = at.saturating_sub(self.at).as_millis();
        let passed = u64::try_from(passed).unwrap_or(u64::MAX);
        self.at += Duration::from_millis(passed);
        self.now = self.now.saturating_add_unsigned(passed).max(told.now);
        if let Some(leap) = self.leap.take() {
            let alive = !mine && told.now > leap.from;
            let believed = if alive { told.wall_now.abs_diff(told.wall) <= LEAP.unsigned_abs() } else { at >= leap.since + SILENCE };
            if believed {
                let since = u64::try_from(at.saturating_sub(leap.since).as_millis()).unwrap_or(u64::MAX);
                self.now = self.now.max(leap.from.saturating_add(leap.by).saturating_add_unsigned(since));
            } else if alive {
                let seconds = leap.by / 1000;
                tracing::warn!(seconds, "this machine's clock is ahead of that of the nodes that use the store: nothing is aged by it");
            } else {
                self.leap = Some(leap);
            }
        }
        self.now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400_000;

    fn told(now: i64, wall: i64, wall_now: i64) -> Told {
        Told { now, wall, clock: [0; 8], wall_now }
    }

    fn second(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn whoever_comes_anew_counts_the_time_in_which_nobody_was_here() {
        let clock = State::new(&told(1_000, 50_000, 50_000 + DAY), false, second(0));
        assert_eq!((clock.now, clock.leap.is_none()), (1_000 + DAY, true));
        let backwards = State::new(&told(1_000, 50_000, 50_000 - DAY), false, second(0));
        assert_eq!(backwards.now, 1_000, "a clock that went backwards takes nothing back");
        let restarted = State::new(&told(1_000, 50_000, 50_000 + 30_000), true, second(0));
        assert_eq!((restarted.now, restarted.leap.is_none()), (31_000, true), "half a minute is no leap");
    }

    #[test]
    fn while_it_is_used_the_wall_clock_says_nothing() {
        let mut clock = State::new(&told(1_000, 50_000, 50_000), true, second(0));
        for wall in [50_000 + 2 * DAY, 50_000 - 2 * DAY, 0, i64::MAX] {
            clock.tell(&told(1_000, 50_000, wall), false, second(3));
            assert_eq!(clock.now, 4_000);
        }
        assert_eq!(clock.tell(&told(9_000, 0, 0), false, second(3)), 9_000, "another was faster");
        assert_eq!(clock.tell(&told(2_000, 0, 0), false, second(4)), 10_000, "it never goes back, whatever the file says");
    }

    #[test]
    fn a_newcomer_whose_clock_is_two_days_ahead_of_living_nodes_ages_nothing() {
        let wall = 50_000 + 2 * DAY;
        let mut clock = State::new(&told(1_000, 50_000, wall), true, second(0));
        assert_eq!(clock.now, 1_000);
        assert_eq!(clock.tell(&told(1_000, 50_000, wall + 1_000), false, second(1)), 2_000, "nobody wrote yet");
        // It writes itself, and that is no sign of others.
        assert_eq!(clock.tell(&told(2_000, wall + 1_000, wall + 2_000), true, second(2)), 3_000);
        assert!(clock.leap.is_some());
        // Another one does, by its own clock.
        assert_eq!(clock.tell(&told(4_000, 53_000, wall + 3_000), false, second(3)), 4_000);
        assert!(clock.leap.is_none());
        assert_eq!(clock.tell(&told(4_000, 53_000, wall + 60_000), false, second(60)), 61_000);
    }

    #[test]
    fn after_two_days_down_time_has_passed_though_nobody_withdrew() {
        let wall = 50_000 + 2 * DAY;
        let mut clock = State::new(&told(1_000, 50_000, wall), true, second(0));
        assert_eq!(clock.tell(&told(1_000, 50_000, wall + 11_000), false, second(11)), 12_000);
        assert_eq!(clock.tell(&told(1_000, 50_000, wall + 12_000), false, second(12)), 13_000 + 2 * DAY, "they are all gone");
        // Two that come back together agree at once.
        let mut clock = State::new(&told(1_000, 50_000, wall), true, second(0));
        assert_eq!(clock.tell(&told(2_000, wall + 1_000, wall + 2_000), false, second(2)), 3_000 + 2 * DAY);
        assert!(clock.leap.is_none());
    }
}
