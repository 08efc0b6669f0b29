//! Leaving in order.

use crate::health::StoreHealth;
use crate::node::Inner;
use core::time::Duration;
use outlive_core::engine::Drained;
use outlive_core::output::Live;
use std::sync::Arc;

/// How often the engine is asked how far it is, near the end.
const POLL: Duration = Duration::from_millis(10);
/// No session is handed over in less time, where there are many.
const PER_SESSION: Duration = Duration::from_micros(5);
/// How long the last bytes may take.
const GOODBYE: Duration = Duration::from_millis(500);

/// How a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct DrainReport {
    /// Sessions held here that are not known to be safe elsewhere. 0: nothing was lost.
    pub abandoned: u64,
}

impl<L: Live> Inner<L> {
    pub(crate) async fn drain(self: &Arc<Self>, deadline: Duration) -> DrainReport {
        let report = self.hand_over(deadline, |drained| drained.left == 0).await;
        self.say_goodbye().await;
        report
    }

    pub(crate) async fn hand_over(self: &Arc<Self>, deadline: Duration, enough: impl Fn(&Drained) -> bool) -> DrainReport {
        let until = tokio::time::Instant::now() + deadline;
        let flush_only = self.flush_only.subscribe();
        self.call_timed(|e, now, out| e.drain(now, out));
        let abandoned = loop {
            let looked = tokio::time::Instant::now();
            let Some(drained) = self.call(|e, _, _| e.drained()) else { break 0 };
            let dirty = if self.store.is_some() { self.engine.stats(self.clock.now()).dirty } else { 0 };
            let nobody = drained.alone || *flush_only.borrow();
            if drained.untold > 0 {
                // Nobody stays who knows when they were used last: the store will be asked.
                self.call(|e, now, out| e.touch_rows(now, out));
            }
            let told = drained.untold == 0 || self.store.as_ref().is_none_or(|store| store.health() != StoreHealth::Ok);
            let done = told && enough(&drained) || (nobody && self.store.is_none()) || (*flush_only.borrow() && dirty == 0);
            if done || tokio::time::Instant::now() >= until {
                break drained.left;
            }
            // A look costs as much as there are sessions, so it comes the less often the more of them are left.
            let left = PER_SESSION * u32::try_from(drained.left).unwrap_or(u32::MAX);
            tokio::time::sleep_until(until.min(tokio::time::Instant::now() + left.max(looked.elapsed() * 5).max(POLL))).await;
        };
        DrainReport { abandoned }
    }

    /// Peers hear that this life is over before the links close, so that they need not find out.
    async fn say_goodbye(self: &Arc<Self>) {
        self.call(|e, now, out| e.stop(now, out));
        self.links.finish();
        let empty = async {
            while !self.links.is_empty() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let _ = tokio::time::timeout(GOODBYE, empty).await;
        if let Some(store) = &self.store {
            store.withdraw(self.engine.life()).await;
        }
        self.end_all();
    }
}
