//! [`MemoryStore`]: the reference for the law.

use crate::error::{LoadError, PutError};
use crate::store::{Answer, End, Expect, Loaded, MAX_ROWS, Marker, Node, Put, Reach, Row, RowResult, Store, Swept, Touch};
use crate::store::{check_keys, check_puts, check_text};
use bytes::Bytes;
use core::fmt;
use core::future::poll_fn;
use core::hash::{BuildHasher, Hasher};
use core::task::{Context, Poll, Waker};
use core::time::Duration;
use outlive_core::id::SessionKey;
use outlive_core::stamp::{Life, Stamp};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet, HashMap, hash_map::RandomState};
use std::sync::Arc;
use std::time::Instant;

const DAY: Duration = Duration::from_secs(86_400);

/// A store in this process's memory. Clones share it; it is gone with the last one.
///
/// About 150 bytes a session besides its record. For tests, and for several nodes in one process.
#[derive(Clone, Default)]
pub struct MemoryStore(Arc<Mutex<State>>);

/// How a [`MemoryStore`] behaves; for tests of those who use it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Health {
    /// It works.
    #[default]
    Up,
    /// Every call fails, and nothing happens.
    Down,
    /// Writes happen, but their answers are lost; reads fail.
    Mute,
    /// Every call panics, as a driver with a bug does.
    Broken,
    /// Reads work, and no write happens, though nobody can say so: a disk that is full.
    Full,
    /// Reads work, and writes wait for as long as it is so: a lock that another program holds.
    Stuck,
    /// Every call finds that the store is not there, and nothing happens.
    Gone,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> MemoryStore {
        MemoryStore::default()
    }

    /// Moves this store's clock forward.
    pub fn advance(&self, by: Duration) {
        let clock = &mut self.0.lock().clock;
        clock.offset = clock.offset.saturating_add(by);
    }

    /// Forgets all sessions, markers and nodes, as a store of which an older copy is restored; for tests.
    pub fn forget(&self) {
        let state = &mut *self.0.lock();
        (state.entries, state.due, state.nodes) = Default::default();
    }

    /// Makes the store work or fail from now on.
    pub fn set_health(&self, health: Health) {
        let waiting = {
            let mut state = self.0.lock();
            state.health = health;
            core::mem::take(&mut state.waiting)
        };
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Waits while writes wait.
    fn stuck(&self, cx: &Context<'_>) -> Poll<()> {
        let mut state = self.0.lock();
        if state.health != Health::Stuck {
            return Poll::Ready(());
        }
        // Whoever gave up leaves its waker behind until the health changes; a test has few.
        state.waiting.push(cx.waker().clone());
        Poll::Pending
    }

    fn read<T>(&self, read: impl FnOnce(&State) -> T) -> Result<T, LoadError> {
        let state = self.0.lock();
        match state.health {
            Health::Up | Health::Full | Health::Stuck => Ok(read(&state)),
            Health::Broken => broken(),
            Health::Gone => Err(LoadError::Gone("the memory store was told to be gone".into())),
            Health::Down | Health::Mute => Err(LoadError::Unavailable("the memory store was told to fail".into())),
        }
    }

    async fn write<T>(&self, write: impl FnOnce(&mut State, Duration) -> T) -> Result<T, PutError> {
        poll_fn(|cx| self.stuck(cx)).await;
        let mut state = self.0.lock();
        match state.health {
            Health::Down => return Err(PutError::Failed("the memory store was told to fail".into())),
            Health::Gone => return Err(PutError::Gone("the memory store was told to be gone".into())),
            Health::Full => return Err(PutError::Unknown("the memory store was told to be full".into())),
            Health::Broken => broken(),
            Health::Up | Health::Mute | Health::Stuck => {}
        }
        let now = state.clock.now();
        let answer = write(&mut state, now);
        match state.health {
            Health::Mute => Err(PutError::Unknown("the memory store was told to lose its answers".into())),
            _ => Ok(answer),
        }
    }
}

fn broken() -> ! {
    panic!("the memory store was told to panic")
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MemoryStore(..)")
    }
}

/// Instants are durations since the store began.
struct Clock {
    origin: Instant,
    offset: Duration,
}

impl Default for Clock {
    #[expect(clippy::disallowed_methods, reason = "this store stands for a database, and a database has a clock of its own")]
    fn default() -> Clock {
        Clock { origin: Instant::now(), offset: Duration::ZERO }
    }
}

impl Clock {
    fn now(&self) -> Duration {
        self.origin.elapsed().saturating_add(self.offset)
    }
}

#[derive(Default)]
struct State {
    clock: Clock,
    health: Health,
    entries: HashMap<SessionKey, Entry>,
    /// INVARIANT: holds (`until`, key) of every entry and nothing else, so that a sweep costs what it removes.
    due: BTreeSet<(Duration, SessionKey)>,
    leases: HashMap<String, Lease>,
    nodes: BTreeMap<Life, (Node, Duration)>,
    secret: Option<[u8; 32]>,
    identity: Identity,
    /// Writers of a store that is [`Health::Stuck`].
    waiting: Vec<Waker>,
}

/// Random, so that no two stores are taken for one.
struct Identity([u8; 16]);

impl Default for Identity {
    fn default() -> Identity {
        let half = || RandomState::new().build_hasher().finish();
        Identity(((u128::from(half()) << 64) | u128::from(half())).to_be_bytes())
    }
}

struct Entry {
    until: Duration,
    held: Held,
}

enum Held {
    Session { stamp: Stamp, record: Bytes, written: Duration, touched: Duration },
    Ended(Marker),
}

struct Lease {
    holder: Life,
    fence: u64,
    until: Duration,
}

impl State {
    fn set(&mut self, key: SessionKey, until: Duration, held: Held) {
        if let Some(old) = self.entries.insert(key, Entry { until, held }) {
            self.due.remove(&(old.until, key));
        }
        self.due.insert((until, key));
    }

    fn load(&self, key: &SessionKey, now: Duration) -> Loaded {
        match self.entries.get(key).map(|entry| &entry.held) {
            None => Loaded::Missing,
            Some(Held::Ended(marker)) => Loaded::Ended(*marker),
            Some(Held::Session { stamp, record, written, touched }) => Loaded::Here(Row {
                stamp: *stamp,
                record: record.clone(),
                age: now.saturating_sub(*written),
                touched: now.saturating_sub(*touched),
            }),
        }
    }

    /// The comparison of the law. `Applied` means that the caller may write.
    fn compare(&self, key: &SessionKey, expect: Expect) -> RowResult {
        let found = match self.entries.get(key).map(|entry| &entry.held) {
            None => None,
            Some(Held::Ended(marker)) => return RowResult::Ended(*marker),
            Some(Held::Session { stamp, .. }) => Some(*stamp),
        };
        let expected = match expect {
            Expect::Absent => None,
            Expect::Exactly(stamp) => Some(stamp),
        };
        if found == expected { RowResult::Applied } else { RowResult::Mismatch(found) }
    }

    fn put(&mut self, row: Put, now: Duration) -> RowResult {
        let result = self.compare(&row.key, row.expect);
        if result == RowResult::Applied {
            let held = Held::Session { stamp: row.stamp, record: row.record, written: now, touched: now };
            self.set(row.key, now.saturating_add(row.expires_in), held);
        }
        result
    }

    fn end(&mut self, end: End, now: Duration) -> Marker {
        let until = now.saturating_add(end.keep);
        let (until, marker) = match self.entries.get(&end.key) {
            Some(Entry { until: old, held: Held::Ended(marker) }) => (until.max(*old), end.marker.and(*marker)),
            _ => (until, end.marker),
        };
        self.set(end.key, until, Held::Ended(marker));
        marker
    }

    fn touch(&mut self, touch: Touch, now: Duration) -> RowResult {
        let result = self.compare(&touch.key, Expect::Exactly(touch.stamp));
        if result == RowResult::Applied
            && let Some(Entry { until, held: Held::Session { touched, .. } }) = self.entries.get_mut(&touch.key)
        {
            *touched = now.saturating_sub(touch.ago).max(*touched);
            let old = core::mem::replace(until, now.saturating_add(touch.expires_in));
            let until = *until;
            self.due.remove(&(old, touch.key));
            self.due.insert((until, touch.key));
        }
        result
    }

    fn sweep(&mut self, limit: usize, now: Duration) -> Swept {
        let mut swept = Swept::default();
        for _ in 0..limit.min(MAX_ROWS) {
            let Some(&(until, key)) = self.due.first() else { break };
            if until > now {
                break;
            }
            self.due.pop_first();
            match self.entries.remove(&key).map(|entry| entry.held) {
                Some(Held::Session { stamp, .. }) => swept.sessions.push((key, stamp)),
                Some(Held::Ended(_)) => swept.markers += 1,
                None => {}
            }
        }
        swept.more = limit > 0 && self.due.first().is_some_and(|(until, _)| *until <= now);
        swept
    }

    fn lease(&mut self, name: String, holder: Life, ttl: Duration, now: Duration) -> Option<u64> {
        let until = now.saturating_add(ttl);
        let lease = self.leases.entry(name).or_insert(Lease { holder, fence: 0, until: Duration::ZERO });
        let free = lease.until <= now;
        if !free && lease.holder != holder {
            return None;
        }
        *lease = Lease { holder, fence: lease.fence + u64::from(free), until };
        Some(lease.fence)
    }

    fn announce(&mut self, node: Node, lease: Duration, now: Duration) -> Option<u64> {
        self.nodes.retain(|_, (_, until)| until.saturating_add(DAY) > now);
        let before = self.nodes.insert(node.life, (node, now.saturating_add(lease)));
        before.map(|(node, _)| node.beat)
    }
}

impl Store for MemoryStore {
    fn reach(&self) -> Reach {
        Reach::Process
    }

    fn load(&self, keys: Vec<SessionKey>) -> Answer<'_, Result<Vec<Loaded>, LoadError>> {
        Box::pin(async move {
            if keys.len() > MAX_ROWS {
                return Err(LoadError::TooLarge { what: "keys of a call", got: keys.len(), limit: MAX_ROWS });
            }
            self.read(|state| {
                let now = state.clock.now();
                keys.iter().map(|key| state.load(key, now)).collect()
            })
        })
    }

    fn put(&self, rows: Vec<Put>) -> Answer<'_, Result<Vec<RowResult>, PutError>> {
        Box::pin(async move {
            check_puts(&rows)?;
            self.write(|state, now| rows.into_iter().map(|row| state.put(row, now)).collect()).await
        })
    }

    fn end(&self, ends: Vec<End>) -> Answer<'_, Result<Vec<Marker>, PutError>> {
        Box::pin(async move {
            check_keys(ends.iter().map(|end| end.key))?;
            self.write(|state, now| ends.into_iter().map(|end| state.end(end, now)).collect()).await
        })
    }

    fn touch(&self, touches: Vec<Touch>) -> Answer<'_, Result<Vec<RowResult>, PutError>> {
        Box::pin(async move {
            check_keys(touches.iter().map(|touch| touch.key))?;
            self.write(|state, now| touches.into_iter().map(|touch| state.touch(touch, now)).collect()).await
        })
    }

    fn sweep(&self, limit: usize) -> Answer<'_, Result<Swept, PutError>> {
        Box::pin(async move { self.write(|state, now| state.sweep(limit, now)).await })
    }

    fn lease(&self, name: String, holder: Life, ttl: Duration) -> Answer<'_, Result<Option<u64>, PutError>> {
        Box::pin(async move {
            check_text("bytes of a lease's name", &name)?;
            self.write(|state, now| state.lease(name, holder, ttl, now)).await
        })
    }

    fn announce(&self, node: Node, lease: Duration) -> Answer<'_, Result<Option<u64>, PutError>> {
        Box::pin(async move {
            node.check()?;
            self.write(|state, now| state.announce(node, lease, now)).await
        })
    }

    fn nodes(&self, lapsed: Duration) -> Answer<'_, Result<Vec<Node>, LoadError>> {
        Box::pin(async move {
            self.read(|state| {
                let now = state.clock.now();
                let counts = |until: Duration| until.saturating_add(lapsed.min(DAY)) > now;
                state.nodes.values().filter(|(_, until)| counts(*until)).map(|(node, _)| node.clone()).collect()
            })
        })
    }

    fn withdraw(&self, life: Life) -> Answer<'_, Result<(), PutError>> {
        Box::pin(async move {
            self.write(|state, _| {
                state.nodes.remove(&life);
            })
            .await
        })
    }

    fn secret(&self, proposal: [u8; 32]) -> Answer<'_, Result<[u8; 32], PutError>> {
        Box::pin(async move {
            // Reading it is no write.
            if let Ok(Some(secret)) = self.read(|state| state.secret) {
                return Ok(secret);
            }
            self.write(|state, _| *state.secret.get_or_insert(proposal)).await
        })
    }

    fn identity(&self) -> Answer<'_, Result<[u8; 16], LoadError>> {
        Box::pin(async move { self.read(|state| state.identity.0) })
    }

    fn probe(&self) -> Answer<'_, Result<(), LoadError>> {
        Box::pin(async move { self.read(|_| ()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::{self, Pair};

    fn pair(store: &MemoryStore) -> Pair {
        [Arc::new(store.clone()), Arc::new(store.clone())]
    }

    #[tokio::test]
    async fn keeps_the_law() {
        conformance::all(async || pair(&MemoryStore::new())).await;
    }

    #[tokio::test]
    async fn says_what_it_does_not_know() {
        for broken in [Health::Down, Health::Mute] {
            let store = MemoryStore::new();
            let health = store.clone();
            let break_it = move |broke| health.set_health(if broke { broken } else { Health::Up });
            conformance::failures_tell_the_truth(&pair(&store), break_it).await;
        }
    }

    #[tokio::test]
    async fn a_moved_clock_ages_rows_and_ends_leases() {
        let store = MemoryStore::new();
        let minute = Duration::from_secs(60);
        let put = conformance::row(1, Expect::Absent, 1, b"x");
        store.put(vec![Put { expires_in: minute * 2, ..put.clone() }]).await.unwrap();
        let node = Node { name: "a".into(), life: Life::new(1), peer: String::new(), http: String::new(), beat: 1 };
        store.announce(node.clone(), minute).await.unwrap();
        assert_eq!(store.lease("job".into(), Life::new(1), minute).await.unwrap(), Some(1));
        store.advance(minute);
        store.touch(vec![Touch { key: put.key, stamp: put.stamp, ago: Duration::ZERO, expires_in: minute * 2 }]).await.unwrap();
        store.advance(minute);
        let Loaded::Here(row) = store.load(vec![put.key]).await.unwrap().remove(0) else { panic!("the row is there") };
        assert!(row.age >= minute * 2 && row.touched >= minute && row.touched < row.age, "{row:?}");
        assert_eq!(store.sweep(10).await.unwrap(), Swept::default());
        assert_eq!(store.nodes(Duration::ZERO).await.unwrap(), vec![]);
        assert_eq!(store.nodes(minute * 2).await.unwrap(), vec![node.clone()]);
        assert_eq!(store.lease("job".into(), Life::new(2), minute).await.unwrap(), Some(2));
        store.advance(minute);
        assert_eq!(store.sweep(10).await.unwrap().sessions, vec![(put.key, put.stamp)]);
        assert_eq!(store.announce(node.clone(), minute).await.unwrap(), Some(1), "a lapsed row is kept for a day");
        store.advance(DAY + minute * 2);
        assert_eq!(store.announce(node, minute).await.unwrap(), None);
    }
}
