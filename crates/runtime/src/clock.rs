//! The clocks and the entropy of the process. Nothing else in this crate asks for the time or for randomness.

use core::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering};
use core::time::Duration;
use outlive_core::time::{Mono, WallSeconds};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// The operating system gave no randomness.
#[derive(Debug, thiserror::Error)]
#[error("the operating system gives no randomness")]
pub struct EntropyError(#[source] getrandom::Error);

/// Time since the process's node began, and numbers for jitter.
///
/// The monotonic clock of Linux stands still while the machine is suspended: a suspension is then not noticed as a stall, and ages
/// do not grow in it.
#[derive(Debug)]
pub(crate) struct Clock {
    origin: Instant,
    /// When the timer task last looked; `i64::MIN` if there is none.
    looked: AtomicI64,
    /// What the wall clock said then.
    looked_wall: AtomicU32,
    jitter: AtomicU64,
}

impl Clock {
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the monotonic clock")]
    pub(crate) fn start(seed: u64) -> Clock {
        Clock { origin: Instant::now(), looked: AtomicI64::new(i64::MIN), looked_wall: AtomicU32::new(0), jitter: AtomicU64::new(seed) }
    }

    pub(crate) fn now(&self) -> Mono {
        Mono::from_micros(i64::try_from(self.origin.elapsed().as_micros()).unwrap_or(i64::MAX))
    }

    /// As the timer task saw it last, some milliseconds ago: for calls that measure nothing, because reading the clock is a good part of
    /// what they cost.
    pub(crate) fn lately(&self) -> Mono {
        match self.looked.load(Ordering::Relaxed) {
            i64::MIN => self.now(),
            micros => Mono::from_micros(micros),
        }
    }

    /// The wall clock, as [`lately`](Clock::lately): for the deadline in version tokens alone.
    pub(crate) fn wall_lately(&self) -> WallSeconds {
        match self.looked.load(Ordering::Acquire) {
            i64::MIN => wall_seconds(),
            _ => WallSeconds(self.looked_wall.load(Ordering::Relaxed)),
        }
    }

    /// The time, for the timer task.
    pub(crate) fn look(&self) -> Mono {
        self.looked_wall.store(wall_seconds().0, Ordering::Relaxed);
        let now = self.now();
        self.looked.store(now.micros(), Ordering::Release);
        now
    }

    /// Between three quarters of `d` and five quarters of it, so that nodes do not do things at the same moment.
    pub(crate) fn jittered(&self, d: Duration) -> Duration {
        let mut z = self.jitter.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        d.mul_f64(0.75 + ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 54) as f64)
    }
}

#[expect(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
fn wall() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// The wall clock in microseconds: what a life's boot is made of.
pub(crate) fn wall_micros() -> u64 {
    u64::try_from(wall().as_micros()).unwrap_or(u64::MAX)
}

fn wall_seconds() -> WallSeconds {
    WallSeconds(u32::try_from(wall().as_secs()).unwrap_or(u32::MAX))
}

/// Random bytes of the operating system.
#[expect(clippy::disallowed_methods, reason = "the one place that draws randomness")]
pub(crate) fn entropy<const N: usize>() -> Result<[u8; N], EntropyError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(EntropyError)?;
    Ok(bytes)
}
