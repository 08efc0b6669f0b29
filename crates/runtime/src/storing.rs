//! The way to the store: a writer, a reader, the node's own row, the search for others, the sweep.

use crate::node::Inner;
use core::future::{Future, poll_fn};
use core::panic::AssertUnwindSafe;
use core::pin::pin;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use core::task::Poll;
use core::time::Duration;
use outlive_core::id::SessionKey;
use outlive_core::output::Live;
use outlive_core::stamp::Life;
use outlive_core::wire::EndKind;
use outlive_core::{Loaded, Touch, Write, Written};
use outlive_store::{self as store, End, Expect, Node as Row, Put, PutError, RowResult, Store};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::panic::catch_unwind;
use std::sync::Arc;
use tokio::sync::Notify;
use tokio::task::JoinSet;

/// How long a call of the store may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// Rows of one write.
const WRITES: usize = 256;
/// Keys of one read.
const LOADS: usize = 64;
/// Reads at once.
const READS: usize = 4;
/// Reads that may wait; beyond it they fail at once.
const QUEUE: usize = 65_536;
/// Failures in a row after which the store is left alone.
const BREAKER: u32 = 5;
/// How often a store that is left alone is tried.
const PROBE: Duration = Duration::from_secs(1);
/// How long this node's row counts, and how often it is renewed.
const LEASE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(3));
/// How often other rows are looked at: at first, and later.
const LOOK: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));
/// Looks that are frequent.
const LOOKS: u32 = 20;
/// How often the sweep is tried, and how long its lease is.
const SWEEP: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(90));
/// Rows of one step of the sweep.
const SWEEP_ROWS: usize = 1024;

/// The store, and what waits for it.
pub(crate) struct StoreSide {
    store: Arc<dyn Store>,
    loads: Mutex<VecDeque<SessionKey>>,
    load_wake: Notify,
    write_wake: Notify,
    failures: AtomicU32,
    down: AtomicBool,
    recovered: Notify,
    /// Set when this node's row has been withdrawn: it must not be announced again.
    withdrawn: tokio::sync::Mutex<bool>,
}

impl StoreSide {
    pub(crate) fn new(store: Arc<dyn Store>) -> StoreSide {
        StoreSide {
            store,
            loads: Mutex::default(),
            load_wake: Notify::new(),
            write_wake: Notify::new(),
            failures: AtomicU32::new(0),
            down: AtomicBool::new(false),
            recovered: Notify::new(),
            withdrawn: tokio::sync::Mutex::new(false),
        }
    }

    pub(crate) fn load(&self, key: SessionKey) {
        self.loads.lock().push_back(key);
        self.load_wake.notify_one();
    }

    pub(crate) fn write_soon(&self) {
        self.write_wake.notify_one();
    }

    pub(crate) fn is_down(&self) -> bool {
        self.down.load(Ordering::Acquire)
    }

    /// Notes whether a call worked. Nothing is worth more calls to a store that does not answer than the probe.
    fn note(&self, ok: bool) {
        if ok {
            self.failures.store(0, Ordering::Release);
        } else if self.failures.fetch_add(1, Ordering::AcqRel) + 1 >= BREAKER && !self.down.swap(true, Ordering::AcqRel) {
            tracing::error!("the store does not answer; sessions are served from memory and copies");
            self.recovered.notify_one();
            self.load_wake.notify_one();
        }
    }

    pub(crate) async fn withdraw(&self, life: Life) {
        let mut withdrawn = self.withdrawn.lock().await;
        *withdrawn = true;
        let _ = tokio::time::timeout(PATIENCE / 4, patiently(self.store.withdraw(life))).await;
    }
}

/// Waits for the store, but not for ever. A driver that panics has not answered either, and takes nothing of the node with it.
async fn patiently<T>(answer: impl Future<Output = T>) -> Option<T> {
    let mut answer = pin!(answer);
    let caught = poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| answer.as_mut().poll(cx))) {
        Ok(polled) => polled.map(Some),
        Err(_) => {
            tracing::error!("the store's driver panicked");
            Poll::Ready(None)
        }
    });
    tokio::time::timeout(PATIENCE, caught).await.ok().flatten()
}

fn kind_byte(kind: EndKind) -> u8 {
    match kind {
        EndKind::Invalidated => 0,
        EndKind::Rotated => 1,
    }
}

fn byte_kind(byte: u8) -> EndKind {
    if byte == 1 { EndKind::Rotated } else { EndKind::Invalidated }
}

/// Starts everything that has to do with the store.
pub(crate) fn start<L: Live>(inner: &Arc<Inner<L>>) {
    let tasks = &inner.tasks;
    tasks.spawn(until_stop(inner.clone(), write(inner.clone())));
    tasks.spawn(until_stop(inner.clone(), read(inner.clone())));
    tasks.spawn(until_stop(inner.clone(), probe(inner.clone())));
    tasks.spawn(until_stop(inner.clone(), announce(inner.clone())));
    tasks.spawn(until_stop(inner.clone(), look(inner.clone())));
    if !inner.engine.me().observer {
        tasks.spawn(until_stop(inner.clone(), sweep(inner.clone())));
    }
}

async fn until_stop<L: Live>(inner: Arc<Inner<L>>, task: impl Future<Output = ()>) {
    let mut stop = inner.stop.subscribe();
    tokio::select! {
        _ = stop.wait_for(|stop| *stop) => {}
        () = task => {}
    }
}

/// Writes what is dirty, one call at a time: what is committed meanwhile goes with the next one.
async fn write<L: Live>(inner: Arc<Inner<L>>) {
    let Some(side) = &inner.store else { return };
    loop {
        side.write_wake.notified().await;
        while !side.is_down() {
            let Some(writes) = inner.call(|e, now, out| e.take_writes(now, WRITES, out)) else { return };
            let Some(touches) = inner.call(|e, now, out| e.take_touches(now, WRITES, out)) else { return };
            if writes.is_empty() && touches.is_empty() {
                break;
            }
            let (puts, ends): (Vec<Write>, Vec<Write>) = writes.into_iter().partition(|w| matches!(w, Write::Put { .. }));
            put(&inner, side, puts).await;
            end(&inner, side, ends).await;
            touch(&inner, side, touches).await;
        }
    }
}

async fn put<L: Live>(inner: &Arc<Inner<L>>, side: &StoreSide, writes: Vec<Write>) {
    if writes.is_empty() {
        return;
    }
    let keys: Vec<SessionKey> = writes.iter().map(Write::key).collect();
    let rows = writes.into_iter().filter_map(|w| match w {
        Write::Put { key, expect, stamp, record, expires_in } => {
            let expect = expect.map_or(Expect::Absent, Expect::Exactly);
            Some(Put { key, expect, stamp, record, expires_in, user: None })
        }
        _ => None,
    });
    let answer = patiently(side.store.put(rows.collect())).await;
    side.note(matches!(answer, Some(Ok(_))));
    let results: Vec<Written> = match answer {
        Some(Ok(results)) => results.into_iter().map(written).collect(),
        Some(Err(error)) => {
            inner.counters.store_failures.add();
            tracing::warn!(%error, rows = keys.len(), "a write to the store failed");
            vec![if matches!(error, PutError::Unknown(_)) { Written::Unknown } else { Written::Failed }; keys.len()]
        }
        None => {
            inner.counters.store_failures.add();
            vec![Written::Unknown; keys.len()]
        }
    };
    // A store that answers for fewer rows than it was given has not said what became of the rest.
    let results = results.into_iter().chain(core::iter::repeat(Written::Unknown));
    for (key, result) in keys.into_iter().zip(results) {
        if result == Written::Applied {
            inner.counters.store_writes.add();
        }
        inner.call_timed(|e, now, out| e.handle_written(now, key, result, out));
    }
}

/// Tells which sessions were used; their rows are as they should be otherwise.
async fn touch<L: Live>(inner: &Arc<Inner<L>>, side: &StoreSide, touches: Vec<Touch>) {
    if touches.is_empty() {
        return;
    }
    let keys: Vec<SessionKey> = touches.iter().map(|t| t.key).collect();
    let rows = touches.into_iter().map(|Touch { key, stamp, ago, expires_in, .. }| store::Touch { key, stamp, ago, expires_in });
    let answer = patiently(side.store.touch(rows.collect())).await;
    side.note(matches!(answer, Some(Ok(_))));
    let results = match answer {
        Some(Ok(results)) => results,
        _ => {
            inner.counters.store_failures.add();
            Vec::new()
        }
    };
    // A use that is told twice is the same use.
    let results = results.into_iter().map(written).chain(core::iter::repeat(Written::Failed));
    for (key, result) in keys.into_iter().zip(results) {
        inner.call_timed(|e, now, out| e.handle_touched(now, key, result, out));
    }
}

fn written(result: RowResult) -> Written {
    match result {
        RowResult::Applied => Written::Applied,
        RowResult::Mismatch(_) => Written::Mismatch,
        RowResult::Ended(kind) => Written::Ended(byte_kind(kind)),
    }
}

async fn end<L: Live>(inner: &Arc<Inner<L>>, side: &StoreSide, writes: Vec<Write>) {
    if writes.is_empty() {
        return;
    }
    let keys: Vec<SessionKey> = writes.iter().map(Write::key).collect();
    let ends = writes.into_iter().filter_map(|w| match w {
        Write::End { key, kind, keep } => Some(End { key, kind: kind_byte(kind), keep }),
        _ => None,
    });
    let answer = patiently(side.store.end(ends.collect())).await;
    let ok = matches!(answer, Some(Ok(())));
    side.note(ok);
    if !ok {
        inner.counters.store_failures.add();
    }
    // Ending twice is the same as ending once, so an unknown end is simply repeated.
    let result = if ok { Written::Applied } else { Written::Failed };
    for key in keys {
        inner.call_timed(|e, now, out| e.handle_written(now, key, result, out));
    }
}

/// Reads what is asked for, together what is asked for at once.
async fn read<L: Live>(inner: Arc<Inner<L>>) {
    let Some(side) = &inner.store else { return };
    let mut reads = JoinSet::new();
    loop {
        tokio::select! {
            () = side.load_wake.notified() => {}
            Some(_) = reads.join_next() => {}
        }
        // Whoever is about to ask goes along.
        tokio::task::yield_now().await;
        loop {
            let (keys, refused) = {
                let mut loads = side.loads.lock();
                let surplus = if side.is_down() { loads.len() } else { loads.len().saturating_sub(QUEUE) };
                let refused: Vec<SessionKey> = loads.drain(..surplus).collect();
                let count = if reads.len() < READS { loads.len().min(LOADS) } else { 0 };
                (loads.drain(..count).collect::<Vec<_>>(), refused)
            };
            for key in refused {
                inner.call_timed(|e, now, out| e.handle_loaded(now, key, &Loaded::Failed, out));
            }
            if keys.is_empty() {
                break;
            }
            reads.spawn(load(inner.clone(), keys));
        }
    }
}

async fn load<L: Live>(inner: Arc<Inner<L>>, keys: Vec<SessionKey>) {
    let Some(side) = &inner.store else { return };
    let answer = patiently(side.store.load(keys.clone())).await;
    side.note(matches!(answer, Some(Ok(_))));
    let rows = match answer {
        Some(Ok(rows)) => {
            inner.counters.store_reads.add_many(rows.len() as u64);
            rows
        }
        other => {
            inner.counters.store_failures.add();
            if let Some(Err(error)) = other {
                tracing::warn!(%error, rows = keys.len(), "a read of the store failed");
            }
            Vec::new()
        }
    };
    let rows = rows.into_iter().map(loaded).chain(core::iter::repeat(Loaded::Failed));
    for (key, row) in keys.into_iter().zip(rows) {
        inner.call_timed(|e, now, out| e.handle_loaded(now, key, &row, out));
    }
}

fn loaded(row: store::Loaded) -> Loaded {
    match row {
        store::Loaded::Missing => Loaded::Missing,
        store::Loaded::Ended(kind) => Loaded::Ended(byte_kind(kind)),
        store::Loaded::Here(row) => Loaded::Here { record: row.record, age: row.age, touched: row.touched },
    }
}

/// Looks whether a store that is left alone has come back.
async fn probe<L: Live>(inner: Arc<Inner<L>>) {
    let Some(side) = &inner.store else { return };
    loop {
        side.recovered.notified().await;
        while side.is_down() {
            tokio::time::sleep(inner.clock.jittered(PROBE)).await;
            if matches!(patiently(side.store.probe()).await, Some(Ok(()))) {
                side.failures.store(0, Ordering::Release);
                side.down.store(false, Ordering::Release);
                tracing::info!("the store answers again");
                side.write_wake.notify_one();
            }
        }
    }
}

/// Keeps this node's row fresh.
async fn announce<L: Live>(inner: Arc<Inner<L>>) {
    let Some(side) = &inner.store else { return };
    let me = inner.engine.me();
    if me.addr.as_ref() == crate::start::NO_ADDRESS {
        return;
    }
    let mut beat = 0;
    loop {
        {
            let withdrawn = side.withdrawn.lock().await;
            if *withdrawn {
                return;
            }
            beat += 1;
            let row = Row { name: me.name.to_string(), life: me.life, peer: me.addr.to_string(), http: me.http.to_string(), beat };
            let answer = patiently(side.store.announce(row, LEASE.0)).await;
            if !matches!(answer, Some(Ok(_))) {
                inner.counters.store_failures.add();
            }
        }
        tokio::time::sleep(inner.clock.jittered(LEASE.1)).await;
    }
}

/// Looks for other nodes' rows.
async fn look<L: Live>(inner: Arc<Inner<L>>) {
    let Some(side) = &inner.store else { return };
    let me = inner.engine.life();
    let mut looks = 0;
    loop {
        match patiently(side.store.nodes(Duration::ZERO)).await {
            Some(Ok(rows)) => {
                inner.dials.discovered(rows.into_iter().filter(|row| row.life != me).map(|row| row.peer.into()));
                looks += 1;
            }
            _ => inner.counters.store_failures.add(),
        }
        tokio::time::sleep(inner.clock.jittered(if looks < LOOKS { LOOK.0 } else { LOOK.1 })).await;
    }
}

/// Removes rows whose time is over, one node at a time.
async fn sweep<L: Live>(inner: Arc<Inner<L>>) {
    let Some(side) = &inner.store else { return };
    loop {
        tokio::time::sleep(inner.clock.jittered(SWEEP.0)).await;
        if side.is_down() {
            continue;
        }
        let lease = side.store.lease("sweeper".to_owned(), inner.engine.life(), SWEEP.1);
        if !matches!(patiently(lease).await, Some(Ok(Some(_)))) {
            continue;
        }
        while let Some(Ok(swept)) = patiently(side.store.sweep(SWEEP_ROWS)).await
            && swept.sessions.len() + swept.markers >= SWEEP_ROWS
        {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}
