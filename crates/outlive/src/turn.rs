//! One request of a session at a time: the queue of a layer that is [`exclusive`](crate::SessionLayer::exclusive).

use crate::error::OpenError;
use core::sync::atomic::{AtomicUsize, Ordering};
use core::time::Duration;
use std::sync::{Arc, OnceLock};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until, timeout_at};

/// Requests that may wait for one session.
pub(crate) const WAITERS_MAX: usize = 64;
/// How long each of them may.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(10);
/// How long until a node that may not have the session asks for it again.
const PAUSE: Duration = Duration::from_millis(100);
/// When to come again.
const AGAIN: Duration = Duration::from_secs(1);

const BUSY: OpenError = OpenError::Busy { after: AGAIN };

/// Whose turn it is; first come, first served. Costs nothing where no layer is exclusive.
#[derive(Default)]
pub(crate) struct Turns {
    one: OnceLock<Arc<Semaphore>>,
    waiting: AtomicUsize,
}

/// A request has the session to itself as long as this lives.
pub(crate) struct Turn {
    _permit: OwnedSemaphorePermit,
}

/// Counted as waiting.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Turns {
    fn one(&self) -> Arc<Semaphore> {
        self.one.get_or_init(|| Arc::new(Semaphore::new(1))).clone()
    }

    /// The turn, if nobody has it or waits for it.
    pub(crate) fn try_take(&self) -> Option<Turn> {
        self.one().try_acquire_owned().ok().map(|permit| Turn { _permit: permit })
    }

    /// The turn, when it comes.
    pub(crate) async fn take(&self, until: Instant) -> Result<Turn, OpenError> {
        let before = self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&self.waiting);
        if before >= WAITERS_MAX {
            return Err(BUSY);
        }
        match timeout_at(until, self.one().acquire_owned()).await {
            Ok(Ok(permit)) => Ok(Turn { _permit: permit }),
            _ => Err(BUSY),
        }
    }
}

/// Until when a request that comes now waits.
pub(crate) fn until() -> Instant {
    Instant::now() + WAIT_MAX
}

/// Waits a little, where the session cannot be had alone for now.
pub(crate) async fn pause(until: Instant) -> Result<(), OpenError> {
    let now = Instant::now();
    if now >= until {
        return Err(BUSY);
    }
    sleep_until(until.min(now + PAUSE)).await;
    Ok(())
}
