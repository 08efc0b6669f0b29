//! The way to the store: a writer, a reader, the node's own row, the search for others, the sweep.

use crate::health::{Call, Health, StoreHealth};
use crate::node::Inner;
use core::fmt::Write as _;
use core::future::{Future, poll_fn};
use core::mem::take;
use core::panic::AssertUnwindSafe;
use core::pin::pin;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use core::task::Poll;
use core::time::Duration;
use outlive_core::id::SessionKey;
use outlive_core::output::Live;
use outlive_core::stamp::Life;
use outlive_core::time::Mono;
use outlive_core::wire::EndKind;
use outlive_core::{Loaded, Touch, Write, Written};
use outlive_store::{self as store, End, Expect, LoadError, Marker, Node as Row, Put, PutError, RowResult, Store};
use parking_lot::Mutex;
use std::collections::{HashSet, VecDeque};
use std::error::Error;
use std::panic::catch_unwind;
use std::sync::Arc;
use tokio::sync::Notify;
use tokio::task::JoinSet;

/// How long a call of the store may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// Rows of one write.
const WRITES: usize = 256;
/// Batches of writes at once, however many the store takes.
const BATCHES: usize = 32;
/// Pauses after writes that failed or were not answered: the first, and the longest.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// Keys of one read.
const LOADS: usize = 64;
/// Reads at once.
const READS: usize = 4;
/// Reads that may wait; beyond it they fail at once.
const QUEUE: usize = 65_536;
/// How often a store that is left alone is tried.
const PROBE: Duration = Duration::from_secs(1);
/// How long this node's row counts, and how often it is renewed.
const LEASE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(3));
/// How often other rows are looked at: at first, and later.
const LOOK: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));
/// Looks that are frequent.
const LOOKS: u32 = 20;
/// For a newcomer rows count that were not renewed for so long: perhaps nobody could write. It asks those nodes themselves.
const LAPSED: Duration = Duration::from_secs(120);
/// How often it is said that a node waits because it cannot announce itself.
const SAY: Duration = Duration::from_secs(60);
/// How often the sweep is tried, and how long its lease is.
const SWEEP: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(90));
/// Rows of one step of the sweep, and the pause after it.
const SWEEP_STEP: (usize, Duration) = (1024, Duration::from_millis(50));

/// The store, and what waits for it.
pub(crate) struct StoreSide {
    store: Arc<dyn Store>,
    loads: Mutex<VecDeque<SessionKey>>,
    load_wake: Notify,
    write_wake: Notify,
    health: Health,
    /// How often it has turned out to have forgotten.
    forgot: AtomicU64,
    /// This node has a row, so that whoever comes finds it.
    announced: AtomicBool,
    announced_wake: Notify,
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
            health: Health::default(),
            forgot: AtomicU64::new(0),
            announced: AtomicBool::new(false),
            announced_wake: Notify::new(),
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

    pub(crate) fn health(&self) -> StoreHealth {
        self.health.now()
    }

    pub(crate) async fn withdraw(&self, life: Life) {
        let mut withdrawn = self.withdrawn.lock().await;
        *withdrawn = true;
        let _ = tokio::time::timeout(PATIENCE / 4, patiently(self.store.withdraw(life))).await;
    }
}

/// Why a call has no result.
enum Trouble<E> {
    Said(E),
    Panicked,
    Silent,
}

/// An error of the store's.
trait Failure: Error + 'static {
    fn is_gone(&self) -> bool;
}

impl Failure for LoadError {
    fn is_gone(&self) -> bool {
        matches!(self, LoadError::Gone(_))
    }
}

impl Failure for PutError {
    fn is_gone(&self) -> bool {
        matches!(self, PutError::Gone(_))
    }
}

impl<E: Failure> Trouble<E> {
    fn is_gone(&self) -> bool {
        matches!(self, Trouble::Said(error) if error.is_gone())
    }

    /// In one line, with what lies beneath.
    fn why(&self) -> String {
        match self {
            Trouble::Silent => format!("no answer within {} s", PATIENCE.as_secs()),
            Trouble::Panicked => "the store's driver panicked".to_owned(),
            Trouble::Said(error) => {
                let mut text = error.to_string();
                let mut source = error.source();
                while let Some(cause) = source {
                    // A string takes all.
                    let _ = write!(text, ": {cause}");
                    source = cause.source();
                }
                text
            }
        }
    }
}

/// Waits for the store, but not for ever. A driver that panics has not answered either, and takes nothing of the node with it.
async fn patiently<T, E>(answer: impl Future<Output = Result<T, E>>) -> Result<T, Trouble<E>> {
    let mut answer = pin!(answer);
    let caught = poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| answer.as_mut().poll(cx))) {
        Ok(polled) => polled.map(|result| result.map_err(Trouble::Said)),
        Err(_) => Poll::Ready(Err(Trouble::Panicked)),
    });
    tokio::time::timeout(PATIENCE, caught).await.unwrap_or(Err(Trouble::Silent))
}

impl<L: Live> Inner<L> {
    /// One call of the store, and what it says about the store's health.
    async fn ask<T, E: Failure>(self: &Arc<Self>, call: Call, answer: impl Future<Output = Result<T, E>>) -> Result<T, Trouble<E>> {
        let result = patiently(answer).await;
        let Some(side) = &self.store else { return result };
        match &result {
            Ok(_) => {
                if side.health.worked(call, self.clock.now()) {
                    self.forgot("it was gone, and is back");
                }
            }
            Err(trouble) => {
                self.counters.store_failures.add();
                let (now, waiting) = (self.clock.now(), || self.engine.stats(self.clock.now()).dirty);
                side.health.failed(call, trouble.is_gone(), &trouble.why(), now, waiting);
                side.load_wake.notify_one();
            }
        }
        result
    }

    /// The store may not have what it acknowledged: all that is owned here is held against it.
    fn forgot(self: &Arc<Self>, why: &str) {
        self.counters.store_forgot.add();
        if let Some(side) = &self.store {
            side.forgot.fetch_add(1, Ordering::AcqRel);
        }
        tracing::warn!(
            why,
            "the store may have forgotten what it had: what this node owns is compared with it, and what it lacks is written"
        );
        self.call_timed(|e, now, out| e.handle_store_forgot(now, out));
    }
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

/// What was taken from the engine to be written and is not on its way yet, and what is.
#[derive(Default)]
struct Taken {
    writes: Vec<Write>,
    touches: Vec<Touch>,
    /// Sessions of the batches under way.
    busy: HashSet<SessionKey>,
}

/// What is written one call after the other.
struct Batch {
    puts: Vec<Write>,
    ends: Vec<Write>,
    touches: Vec<Touch>,
    keys: Vec<SessionKey>,
}

impl Taken {
    /// The next batch; it may be empty. A session that is in a batch under way waits until that is answered: what is written of one session
    /// is in the store in the order in which it was taken. `None`: the node is dead.
    fn next<L: Live>(&mut self, inner: &Arc<Inner<L>>) -> Option<Batch> {
        let room = WRITES - self.writes.len();
        self.writes.extend(inner.call(|e, now, out| e.take_writes(now, room, out))?);
        let room = WRITES - self.touches.len();
        self.touches.extend(inner.call(|e, now, out| e.take_touches(now, room, out))?);
        let mut keys = Vec::new();
        let mut is_free = |key: SessionKey| {
            let free = self.busy.insert(key);
            keys.extend(free.then_some(key));
            free
        };
        let (writes, waiting): (Vec<_>, Vec<_>) = take(&mut self.writes).into_iter().partition(|write| is_free(write.key()));
        self.writes = waiting;
        let (touches, waiting) = take(&mut self.touches).into_iter().partition(|touch| is_free(touch.key));
        self.touches = waiting;
        let (puts, ends) = writes.into_iter().partition(|write| matches!(write, Write::Put { .. }));
        Some(Batch { puts, ends, touches, keys })
    }

    fn answered(&mut self, keys: &[SessionKey]) {
        for key in keys {
            self.busy.remove(key);
        }
    }
}

/// Writes what is dirty, as many batches at once as the store takes: what is committed while all are under way goes with the next one. After a
/// failure it waits until all are answered, pauses, ever longer, and tries with a single one: a store that is full or locked is not worth more.
async fn write<L: Live>(inner: Arc<Inner<L>>) {
    let Some(side) = &inner.store else { return };
    let most = side.store.batches().clamp(1, BATCHES);
    let (mut taken, mut under_way) = (Taken::default(), JoinSet::new());
    let (mut pause, mut at_once) = (PAUSE.0, most);
    loop {
        while under_way.len() < at_once {
            let Some(batch) = taken.next(&inner) else { return };
            if batch.keys.is_empty() {
                let idle = under_way.is_empty() && side.health() != StoreHealth::Ok;
                if idle && inner.engine.stats(inner.clock.now()).dirty == 0 {
                    side.health.nothing_waits(inner.clock.now());
                }
                break;
            }
            under_way.spawn(carry_out(inner.clone(), batch));
        }
        let answered = tokio::select! {
            () = side.write_wake.notified() => continue,
            Some(answered) = under_way.join_next() => answered,
        };
        // A task that panicked is a fault of this file: nobody knows what is written.
        let Ok((keys, worked)) = answered else { return };
        taken.answered(&keys);
        if worked {
            (pause, at_once) = (PAUSE.0, most);
            continue;
        }
        while let Some(answered) = under_way.join_next().await {
            let Ok((keys, _)) = answered else { return };
            taken.answered(&keys);
        }
        tokio::select! {
            () = tokio::time::sleep(inner.clock.jittered(pause)) => {}
            () = side.health.better.notified() => {}
        }
        (pause, at_once) = ((pause * 2).min(PAUSE.1), 1);
    }
}

/// The sessions, and whether all of it worked.
async fn carry_out<L: Live>(inner: Arc<Inner<L>>, batch: Batch) -> (Vec<SessionKey>, bool) {
    let Batch { puts, ends, touches, keys } = batch;
    let Some(side) = &inner.store else { return (keys, true) };
    let worked = put(&inner, side, puts).await & end(&inner, side, ends).await & touch(&inner, side, touches).await;
    (keys, worked)
}

/// Whether it worked.
async fn put<L: Live>(inner: &Arc<Inner<L>>, side: &StoreSide, writes: Vec<Write>) -> bool {
    if writes.is_empty() {
        return true;
    }
    let keys: Vec<SessionKey> = writes.iter().map(Write::key).collect();
    let rows = writes.into_iter().filter_map(|w| match w {
        Write::Put { key, expect, stamp, record, expires_in } => {
            let expect = expect.map_or(Expect::Absent, Expect::Exactly);
            Some(Put { key, expect, stamp, record, expires_in, user: None })
        }
        _ => None,
    });
    let forgot = side.forgot.load(Ordering::Acquire);
    let answer = inner.ask(Call::Write, side.store.put(rows.collect())).await;
    let worked = answer.is_ok();
    let results: Vec<Written> = match answer {
        // It may be among what was forgotten.
        Ok(_) if side.forgot.load(Ordering::Acquire) != forgot => vec![Written::Unknown; keys.len()],
        Ok(results) => results.into_iter().map(written).collect(),
        Err(Trouble::Said(PutError::Unknown(_)) | Trouble::Silent | Trouble::Panicked) => vec![Written::Unknown; keys.len()],
        Err(Trouble::Said(_)) => vec![Written::Failed; keys.len()],
    };
    // A store that answers for fewer rows than it was given has not said what became of the rest.
    let results = results.into_iter().chain(core::iter::repeat(Written::Unknown));
    for (key, result) in keys.into_iter().zip(results) {
        if result == Written::Applied {
            inner.counters.store_writes.add();
        }
        inner.call_timed(|e, now, out| e.handle_written(now, key, result, out));
    }
    worked
}

/// Tells which sessions were used; their rows are as they should be otherwise. Whether it worked.
async fn touch<L: Live>(inner: &Arc<Inner<L>>, side: &StoreSide, touches: Vec<Touch>) -> bool {
    if touches.is_empty() {
        return true;
    }
    let keys: Vec<SessionKey> = touches.iter().map(|t| t.key).collect();
    let rows = touches.into_iter().map(|Touch { key, stamp, ago, expires_in, .. }| store::Touch { key, stamp, ago, expires_in });
    let answer = inner.ask(Call::Write, side.store.touch(rows.collect())).await;
    let worked = answer.is_ok();
    // A use that is told twice is the same use.
    let results = answer.unwrap_or_default().into_iter().map(written).chain(core::iter::repeat(Written::Failed));
    for (key, result) in keys.into_iter().zip(results) {
        inner.call_timed(|e, now, out| e.handle_touched(now, key, result, out));
    }
    worked
}

fn written(result: RowResult) -> Written {
    match result {
        RowResult::Applied => Written::Applied,
        RowResult::Mismatch(_) => Written::Mismatch,
        RowResult::Ended(marker) => ended(marker),
    }
}

fn ended(Marker { kind, next }: Marker) -> Written {
    Written::Ended(byte_kind(kind), next)
}

/// Whether it worked.
async fn end<L: Live>(inner: &Arc<Inner<L>>, side: &StoreSide, writes: Vec<Write>) -> bool {
    if writes.is_empty() {
        return true;
    }
    let keys: Vec<SessionKey> = writes.iter().map(Write::key).collect();
    let ends = writes.into_iter().filter_map(|w| match w {
        Write::End { key, kind, next, keep } => Some(End { key, marker: Marker { kind: kind_byte(kind), next }, keep }),
        _ => None,
    });
    let forgot = side.forgot.load(Ordering::Acquire);
    let answer = inner.ask(Call::Write, side.store.end(ends.collect())).await;
    let worked = answer.is_ok();
    // Ending twice is the same as ending once, so an unknown end is simply repeated, and so is one that may be among what was forgotten.
    let known = answer.ok().filter(|_| side.forgot.load(Ordering::Acquire) == forgot).unwrap_or_default();
    let results = known.into_iter().map(ended).chain(core::iter::repeat(Written::Failed));
    for (key, result) in keys.into_iter().zip(results) {
        inner.call_timed(|e, now, out| e.handle_written(now, key, result, out));
    }
    worked
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
                let surplus = if side.health.is_shut() { loads.len() } else { loads.len().saturating_sub(QUEUE) };
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
    let rows = inner.ask(Call::Read, side.store.load(keys.clone())).await.unwrap_or_default();
    inner.counters.store_reads.add_many(rows.len() as u64);
    let rows = rows.into_iter().map(loaded).chain(core::iter::repeat(Loaded::Failed));
    for (key, row) in keys.into_iter().zip(rows) {
        inner.call_timed(|e, now, out| e.handle_loaded(now, key, &row, out));
    }
}

fn loaded(row: store::Loaded) -> Loaded {
    match row {
        store::Loaded::Missing => Loaded::Missing,
        store::Loaded::Ended(Marker { kind, next }) => Loaded::Ended(byte_kind(kind), next),
        store::Loaded::Here(row) => Loaded::Here { record: row.record, age: row.age, touched: row.touched },
    }
}

/// Looks whether a store that is left alone has come back.
async fn probe<L: Live>(inner: Arc<Inner<L>>) {
    let Some(side) = &inner.store else { return };
    loop {
        side.health.worse.notified().await;
        while side.health() >= StoreHealth::CannotBeRead {
            tokio::time::sleep(inner.clock.jittered(PROBE)).await;
            let _ = inner.ask(Call::Read, side.store.probe()).await;
            if side.health.writes_gone() {
                // Sweeping nothing is a write of nothing.
                let _ = inner.ask(Call::Tidy, side.store.sweep(0)).await;
            }
            side.write_wake.notify_one();
        }
    }
}

/// Keeps this node's row fresh.
async fn announce<L: Live>(inner: Arc<Inner<L>>) {
    let Some(side) = &inner.store else { return };
    let me = inner.engine.me();
    if me.addr.as_ref() == crate::start::NO_ADDRESS {
        // Nobody can connect to it, so nobody has to find it.
        side.announced.store(true, Ordering::Release);
        return;
    }
    let (mut beat, mut last, mut said) = (0, None, None);
    loop {
        {
            let withdrawn = side.withdrawn.lock().await;
            if *withdrawn {
                return;
            }
            beat += 1;
            let row = Row { name: me.name.to_string(), life: me.life, peer: me.addr.to_string(), http: me.http.to_string(), beat };
            match inner.ask(Call::Announce, side.store.announce(row, LEASE.0)).await {
                Ok(before) => {
                    if last.is_some_and(|last| before.is_none_or(|before| before < last)) {
                        inner.forgot("this node's row there is older than what was written");
                    }
                    last = Some(beat);
                    side.announced.store(true, Ordering::Release);
                    side.announced_wake.notify_one();
                }
                Err(trouble) => waits(&inner, &trouble.why(), &mut said),
            }
        }
        tokio::time::sleep(inner.clock.jittered(LEASE.1)).await;
    }
}

/// A node that others cannot find must not believe that it is alone.
fn waits<L: Live>(inner: &Inner<L>, why: &str, said: &mut Option<Mono>) {
    let now = inner.clock.now();
    if !*inner.formed.borrow() && said.is_none_or(|said| now.since(said) >= SAY) {
        *said = Some(now);
        tracing::warn!(why, "this node cannot announce itself in the store, and does not begin a cluster of its own until it can");
    }
}

/// Looks for other nodes' rows. What is seen counts as all once this node's own row was there before: of two that come at once, one at
/// least sees the other.
async fn look<L: Live>(inner: Arc<Inner<L>>) {
    let Some(side) = &inner.store else { return };
    let me = inner.engine.life();
    let (mut looks, mut announced_at) = (0, None);
    loop {
        let announced = side.announced.load(Ordering::Acquire);
        let now = inner.clock.now();
        if announced {
            announced_at = announced_at.or(Some(now));
        }
        // Whoever could not write either has renewed its row by then.
        let fresh = announced_at.is_none_or(|at: Mono| now.since(at) < LEASE.0);
        if let Ok(rows) = inner.ask(Call::Read, side.store.nodes(if fresh { LAPSED } else { Duration::ZERO })).await {
            inner.dials.discovered(rows.into_iter().filter(|row| row.life != me).map(|row| row.peer.into()), announced);
            looks += 1;
        }
        tokio::select! {
            () = tokio::time::sleep(inner.clock.jittered(if looks < LOOKS { LOOK.0 } else { LOOK.1 })) => {}
            () = side.announced_wake.notified(), if !announced => {}
        }
    }
}

/// Removes rows whose time is over, one node at a time.
async fn sweep<L: Live>(inner: Arc<Inner<L>>) {
    let Some(side) = &inner.store else { return };
    loop {
        tokio::time::sleep(inner.clock.jittered(SWEEP.0)).await;
        if side.health() != StoreHealth::Ok {
            continue;
        }
        let lease = side.store.lease("sweeper".to_owned(), inner.engine.life(), SWEEP.1);
        if !matches!(inner.ask(Call::Tidy, lease).await, Ok(Some(_))) {
            continue;
        }
        while inner.ask(Call::Tidy, side.store.sweep(SWEEP_STEP.0)).await.is_ok_and(|swept| swept.more) {
            tokio::time::sleep(SWEEP_STEP.1).await;
        }
    }
}
