//! Time as a value: the engine never reads a clock.

use core::ops::{Add, Sub};
use core::time::Duration;

/// An instant of this node's monotonic clock, in microseconds since some origin of the driver's choice.
///
/// It may be negative: a session that is older than the process was last used before the origin.
/// A `Mono` never leaves the node; peers and stores exchange ages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mono(i64);

impl Mono {
    /// The origin.
    pub const ZERO: Mono = Mono(0);
    /// Earlier than every instant that can occur.
    pub const NONE: Mono = Mono(i64::MIN);
    /// Later than every instant that can occur.
    pub const NEVER: Mono = Mono(i64::MAX);

    /// The instant `micros` microseconds after the origin.
    pub const fn from_micros(micros: i64) -> Mono {
        Mono(micros)
    }

    /// Microseconds since the origin.
    pub const fn micros(self) -> i64 {
        self.0
    }

    /// The time that has passed since `earlier`, zero if it has not come yet.
    pub fn since(self, earlier: Mono) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0).max(0) as u64)
    }
}

/// Whole milliseconds as they travel, at most all that fit.
pub(crate) fn ms(d: Duration) -> u32 {
    u32::try_from(d.as_millis()).unwrap_or(u32::MAX)
}

impl Add<Duration> for Mono {
    type Output = Mono;
    fn add(self, rhs: Duration) -> Mono {
        Mono(self.0.saturating_add(i64::try_from(rhs.as_micros()).unwrap_or(i64::MAX)))
    }
}

impl Sub<Duration> for Mono {
    type Output = Mono;
    fn sub(self, rhs: Duration) -> Mono {
        Mono(self.0.saturating_sub(i64::try_from(rhs.as_micros()).unwrap_or(i64::MAX)))
    }
}

/// A second of the wall clock, since the Unix epoch.
///
/// Only the deadline inside a version token is a wall time. It decides which *name* a missing session gets (expired or lost), and what
/// is found of a session whose last use was not told to others in time is not called expired before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WallSeconds(pub u32);
