//! The engine's timers and its tick: one task.

use crate::node::Inner;
use core::sync::atomic::{AtomicI64, Ordering};
use core::time::Duration;
use outlive_core::engine::{Engine, STALL};
use outlive_core::output::Live;
use outlive_core::time::Mono;
use std::sync::Arc;
use tokio::sync::Notify;

/// How often the engine's walk and sweep go on.
const TICK: Duration = Duration::from_millis(50);
/// Sessions that a tick visits.
const BUDGET: usize = 2000;
/// Ticks between two rounds of tidying.
const TIDY: u32 = 200;
/// How long the links' readers get after a stall before the node draws conclusions from what it has not heard.
const CATCH_UP: Duration = Duration::from_millis(20);

/// Wakes the timer task when a timer is armed that is due before it would wake by itself.
#[derive(Debug, Default)]
pub(crate) struct Alarm {
    planned: AtomicI64,
    wake: Notify,
}

impl Alarm {
    pub(crate) fn check<L: Live>(&self, engine: &Engine<L>) {
        if let Some(next) = engine.next_timer()
            && next.micros() < self.planned.load(Ordering::SeqCst)
        {
            self.wake.notify_one();
        }
    }

    /// Until the next timer or `tick`. While it is computed everybody who arms a timer wakes: none is missed.
    async fn sleep<L: Live>(&self, inner: &Inner<L>, tick: Mono) -> Mono {
        self.planned.store(i64::MAX, Ordering::SeqCst);
        let next = inner.engine.next_timer().map_or(tick, |timer| timer.min(tick));
        self.planned.store(next.micros(), Ordering::SeqCst);
        tokio::select! {
            () = tokio::time::sleep(next.since(inner.clock.now())) => {}
            () = self.wake.notified() => {}
        }
        next
    }
}

pub(crate) async fn run<L: Live>(inner: Arc<Inner<L>>) {
    let mut stop = inner.stop.subscribe();
    let mut tick = inner.clock.now() + TICK;
    let mut ticks: u32 = 0;
    while !*stop.borrow() {
        let due = tokio::select! {
            due = inner.alarm.sleep(&inner, tick) => due,
            _ = stop.wait_for(|stop| *stop) => return,
        };
        let gap = inner.clock.look().since(due);
        if gap > STALL {
            inner.counters.stalls.add();
            tracing::warn!(ms = gap.as_millis() as u64, "this node stood still");
            tokio::time::sleep(CATCH_UP).await;
            inner.call(|e, now, out| e.handle_stall(now, gap, out));
        }
        let now = inner.clock.look();
        if inner.engine.next_timer().is_some_and(|timer| timer <= now) {
            inner.call(|e, now, out| e.handle_timer(now, out));
        }
        if now >= tick {
            inner.call(|e, now, out| e.handle_tick(now, BUDGET, out));
            inner.say_unseen();
            tick = now + TICK;
            ticks = ticks.wrapping_add(1);
            if ticks.is_multiple_of(TIDY) {
                inner.tidy();
                // The engine does not wait for ever for somebody to answer, and then it serves.
                if !*inner.formed.borrow() && inner.engine.is_formed() {
                    inner.formed.send_replace(true);
                }
            }
        }
    }
}
