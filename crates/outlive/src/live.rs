//! The live session: what one process holds of a session, decoded, shared by all its requests.
//!
//! Each attribute has what is committed, encoded and with the commit that set it, and on top of it the writes of requests that have
//! not finished, in the order of writing. A request reads the last write, else what is committed. A request that commits sends its own
//! write; what lies beneath it is superseded, what lies above it is somebody else's and stays. A request that fails takes its write
//! away. So in the end an attribute has the value of the last write whose request succeeded. What no order can mend is an `update` that
//! built upon the value of a request that failed later: it stays and is counted.
//!
//! Locks: one re-entrant lock per session; the engine's shard locks are taken under it and never the other way. The user's closures run
//! under it with the state itself unborrowed, so other attributes may be read and written inside of them.

use crate::codec::{self, Encode, Scratch, Shared};
use crate::key::{AsKey, Value};
use crate::turn::Turns;
use bytes::Bytes;
use core::cell::RefCell;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicU32, Ordering};
use core::time::Duration;
use outlive_core::id::SessionKey;
use outlive_core::limits::{ATTRIBUTES_MAX, NAME_MAX};
use outlive_core::record::{Attribute as Committed, Base, Change, Record};
use outlive_core::stamp::{Claim, Life, Stamp};
use parking_lot::{Mutex, ReentrantMutex, ReentrantMutexGuard};
use smallvec::SmallVec;
use std::sync::{Arc, OnceLock};

/// How long a closure may have a session while another thread waits for it.
const LOCK_MAX: Duration = if cfg!(test) { Duration::from_millis(100) } else { Duration::from_secs(LOCK_MAX_S) };
pub(crate) const LOCK_MAX_S: u64 = 30;

/// One request of a session, counted in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RequestNo(u32);

/// The changes that a commit sends.
pub(crate) type Changes = SmallVec<[Change; 1]>;

/// Why a request's changes cannot be sent. Nothing of the request is kept.
#[derive(Debug)]
pub(crate) enum CutError {
    Encode { attribute: Arc<str>, source: rmp_serde::encode::Error },
    TooLarge { attribute: Arc<str>, what: &'static str, got: usize, limit: usize },
}

/// What became of the changes that were handed to the engine.
pub(crate) enum Sent {
    /// They are in the session, as this commit; whether they are durable is another question.
    Applied(Stamp),
    /// The session does not take them any more.
    Refused,
}

/// What is worth an event.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Notes {
    /// Changes of failed requests that stayed because a successful request had built upon them.
    pub(crate) stayed: u32,
    /// Attributes whose old bytes did not decode and were put aside by a first write.
    pub(crate) quarantined: SmallVec<[Arc<str>; 1]>,
}

/// Up to so many attributes there is no room in reserve.
const FEW: usize = 8;

/// A session in memory.
pub(crate) struct Live {
    state: ReentrantMutex<RefCell<State>>,
    /// The session's key after a rotation: for requests that were opened under the old one. Every commit asks for it, so there is no lock
    /// to take until a first rotation.
    successor: OnceLock<Mutex<Option<SessionKey>>>,
    external: AtomicU32,
    requests: AtomicU32,
    place_holders: AtomicU32,
    turns: Turns,
}

impl core::fmt::Debug for Live {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Live(..)")
    }
}

#[derive(Default)]
struct State {
    /// Sorted by name.
    attributes: Vec<Attribute>,
    /// What the committed attributes take.
    bytes: usize,
    /// Nothing of it is committed where it goes next: all has to be sent.
    uprooted: bool,
    /// Requests that met a value which does not decode, and its attribute.
    stumbled: Few<(u32, Arc<str>)>,
}

struct Attribute {
    name: Arc<str>,
    /// INVARIANT: what the engine holds of this attribute.
    bytes: Option<Bytes>,
    /// The commit that set `bytes`.
    dot: Option<Stamp>,
    decoded: Decoded,
    /// Of unfinished requests, at most one each, in the order of writing.
    writes: Few<Write>,
    /// Unfinished requests whose values went into `bytes` by an `update` of another one.
    carried: Few<u32>,
    /// Its value is with a closure.
    busy: bool,
}

/// What `bytes` is, as far as it was looked at.
#[derive(Clone)]
enum Decoded {
    NotYet,
    Absent,
    Broken,
    Value(Shared),
}

struct Write {
    request: u32,
    /// The commit that had set the value from which the request started.
    base: Option<Stamp>,
    /// `None` removes the attribute.
    value: Option<(Shared, Encode)>,
    /// Other unfinished requests upon whose values this one was built.
    upon: Few<u32>,
    /// How many requests of `upon` have failed.
    failed: u32,
}

/// A list that is empty between requests, and then one word: every request reads through all of its session's attributes, so these have
/// to be small.
struct Few<T>(Option<Box<SmallVec<[T; 1]>>>);

impl<T> Default for Few<T> {
    fn default() -> Few<T> {
        Few::new()
    }
}

impl<T> Few<T> {
    const fn new() -> Few<T> {
        Few(None)
    }

    fn push(&mut self, item: T) {
        self.0.get_or_insert_default().push(item);
    }

    /// Panics if there is no such place.
    fn remove(&mut self, at: usize) -> T {
        let item = self.0.get_or_insert_default().remove(at);
        self.0.take_if(|list| list.is_empty());
        item
    }

    fn retain(&mut self, keep: impl Fn(&T) -> bool) {
        if let Some(list) = &mut self.0 {
            list.retain(|item| keep(item));
        }
        self.0.take_if(|list| list.is_empty());
    }
}

impl<T> Deref for Few<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        self.0.as_deref().map_or(&[], |list| list)
    }
}

impl<T> DerefMut for Few<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        self.0.as_deref_mut().map_or(&mut [], |list| list)
    }
}

impl<T> FromIterator<T> for Few<T> {
    fn from_iter<I: IntoIterator<Item = T>>(items: I) -> Few<T> {
        let list: SmallVec<[T; 1]> = items.into_iter().collect();
        Few((!list.is_empty()).then(|| Box::new(list)))
    }
}

impl Attribute {
    fn absent(name: Arc<str>) -> Attribute {
        let (writes, carried) = (Few::new(), Few::new());
        Attribute { name, bytes: None, dot: None, decoded: Decoded::Absent, writes, carried, busy: false }
    }

    fn size(&self, bytes: Option<&Bytes>) -> usize {
        bytes.map_or(0, |b| 64 + self.name.len() + b.len())
    }

    /// Decodes what is committed, once.
    fn decode<T: Value>(&mut self) {
        if let (Decoded::NotYet, Some(bytes)) = (&self.decoded, &self.bytes) {
            self.decoded = match codec::decode::<T>(bytes) {
                Ok(Some(value)) => Decoded::Value(Arc::new(value)),
                Ok(None) => Decoded::Absent,
                Err(error) => {
                    crate::undecodable::say::<T>(&self.name, &error);
                    Decoded::Broken
                }
            };
        }
    }

    /// What a request sees.
    fn value<T: Value>(&mut self) -> Option<Shared> {
        if let Some(top) = self.writes.last() {
            return top.value.as_ref().map(|(value, _)| value.clone());
        }
        self.decode::<T>();
        match &self.decoded {
            Decoded::Value(value) => Some(value.clone()),
            _ => None,
        }
    }

    /// The bytes to keep beside the next value: those that did not decode, else those that are kept already.
    fn aside(&self) -> Option<&[u8]> {
        let (aside, value) = self.bytes.as_deref().map(codec::split)?;
        if matches!(self.decoded, Decoded::Broken) { Some(value) } else { aside }
    }

    /// Notes a write of `request`. With `built` it started from what the request saw, otherwise from nothing.
    fn write(&mut self, request: RequestNo, value: Option<(Shared, Encode)>, built: bool) {
        let me = request.0;
        if let Some(top) = self.writes.last_mut()
            && top.request == me
        {
            top.value = value;
            if !built {
                top.upon = Few::new();
                top.failed = 0;
            }
            return;
        }
        let mine = self.writes.iter().position(|w| w.request == me).map(|at| self.writes.remove(at));
        let mut write = Write { request: me, base: self.dot, value, upon: Few::new(), failed: 0 };
        match self.writes.last() {
            Some(top) if built => {
                write.upon = top.upon.iter().copied().chain([top.request]).filter(|r| *r != me).collect();
                (write.base, write.failed) = (top.base, top.failed);
            }
            None if built => write.upon = self.carried.iter().copied().filter(|r| *r != me).collect(),
            _ => write.base = mine.map_or(self.dot, |mine| mine.base),
        }
        self.writes.push(write);
    }

    /// Takes the write of a failed request away; 1 if its value stays in what is committed.
    fn fail(&mut self, me: u32) -> u32 {
        self.writes.retain(|w| w.request != me);
        let stayed = take(&mut self.carried, me);
        for write in self.writes.iter_mut() {
            let built = take(&mut write.upon, me);
            write.failed += u32::from(built && !stayed);
        }
        u32::from(stayed)
    }

    /// Forgets a request that can no longer fail.
    fn settle(&mut self, me: u32) {
        take(&mut self.carried, me);
        for write in self.writes.iter_mut() {
            take(&mut write.upon, me);
        }
    }

    /// Makes the write of `me` the committed value, encoded as `bytes`, or only notes that it equals it.
    fn succeed(&mut self, me: u32, changed: Option<(Option<Bytes>, Stamp)>) -> u32 {
        let Some(at) = self.writes.iter().position(|w| w.request == me) else { return 0 };
        for _ in 0..at {
            self.writes.remove(0);
        }
        let write = self.writes.remove(0);
        let mut stayed = 0;
        if let Some((bytes, stamp)) = changed {
            self.dot = bytes.is_some().then_some(stamp);
            self.bytes = bytes;
            stayed = write.failed;
            self.carried = write.upon;
        }
        self.decoded = write.value.map_or(Decoded::Absent, |(value, _)| Decoded::Value(value));
        for write in self.writes.iter_mut() {
            write.base = self.dot;
        }
        stayed
    }

    /// It is what is committed, and no unfinished request has to do with it.
    fn is_at_rest(&self) -> bool {
        self.bytes.is_some() && self.writes.is_empty() && self.carried.is_empty()
    }

    fn is_gone(&self) -> bool {
        self.bytes.is_none() && self.writes.is_empty() && self.carried.is_empty() && !self.busy
    }
}

impl State {
    fn find(&self, name: &str) -> Result<usize, usize> {
        self.attributes.binary_search_by(|a| (*a.name).cmp(name))
    }

    /// The attribute, unless its value is with a closure.
    fn get(&mut self, name: &str) -> Option<&mut Attribute> {
        let at = self.find(name).ok()?;
        let attribute = self.attributes.get_mut(at)?;
        assert!(!attribute.busy, "the session attribute `{name}` is used inside of the closure that changes it");
        Some(attribute)
    }

    fn get_or_insert(&mut self, name: &str) -> &mut Attribute {
        let at = self.find_or_insert(name);
        &mut self.attributes[at]
    }

    /// Where the attribute is, unless its value is with a closure.
    fn find_or_insert(&mut self, name: &str) -> usize {
        let at = self.find(name).unwrap_or_else(|at| {
            self.insert(at, name.into());
            at
        });
        assert!(!self.attributes[at].busy, "the session attribute `{name}` is used inside of the closure that changes it");
        at
    }

    fn insert(&mut self, at: usize, name: Arc<str>) {
        // Most sessions have one attribute or two, and there are a million of them.
        if self.attributes.len() < FEW {
            self.attributes.reserve_exact(1);
        }
        self.attributes.insert(at, Attribute::absent(name));
    }

    /// Notes that a request has met a value that does not decode.
    fn look_for_stumbles(&mut self, request: RequestNo, name: &str) {
        if let Ok(at) = self.find(name)
            && matches!(self.attributes[at].decoded, Decoded::Broken)
            && self.stumbled.iter().all(|(of, _)| *of != request.0)
        {
            self.stumbled.push((request.0, self.attributes[at].name.clone()));
        }
    }

    fn sweep(&mut self) {
        self.attributes.retain(|a| !a.is_gone());
    }
}

/// Puts the attribute back in order when its closure ends, by a panic too: what it had before is still there.
struct Busy<'a> {
    state: &'a RefCell<State>,
    name: &'a str,
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        let mut state = self.state.borrow_mut();
        if let Ok(at) = state.find(self.name) {
            state.attributes[at].busy = false;
            if state.attributes[at].is_gone() {
                state.attributes.remove(at);
            }
        }
    }
}

impl Live {
    /// A session without attributes.
    pub(crate) fn new() -> Live {
        let state = ReentrantMutex::new(RefCell::new(State::default()));
        let (external, [requests, place_holders]) = (AtomicU32::new(0), [const { AtomicU32::new(1) }; 2]);
        Live { state, successor: OnceLock::new(), external, requests, place_holders, turns: Turns::default() }
    }

    /// The session of that record; copies handles only, because the engine calls it under a shard lock.
    pub(crate) fn from_record(record: &Record) -> Live {
        let live = Live::new();
        live.refresh(record, 0);
        live
    }

    /// Takes over what others have committed. `read` looks under the session's lock, so that the last look counts.
    pub(crate) fn refresh_with(&self, read: impl FnOnce() -> Option<(Record, u32)>) {
        let _lock = self.lock();
        if let Some((record, external)) = read() {
            self.refresh(&record, external);
        }
    }

    /// Takes over what others have committed; writes of unfinished requests stay on top of it.
    pub(crate) fn refresh(&self, record: &Record, external: u32) {
        let lock = self.lock();
        let mut state = lock.borrow_mut();
        self.external.store(external, Ordering::Relaxed);
        for Committed { name, dot, value } in record.attributes() {
            let attribute = state.get_or_insert_even_busy(name);
            if attribute.dot != Some(*dot) {
                (attribute.dot, attribute.bytes, attribute.decoded) = (Some(*dot), Some(value.clone()), Decoded::NotYet);
            }
        }
        for attribute in &mut state.attributes {
            if attribute.bytes.is_some() && record.get(&attribute.name).is_none() {
                (attribute.dot, attribute.bytes, attribute.decoded) = (None, None, Decoded::Absent);
            }
        }
        state.sweep();
        state.bytes = state.attributes.iter().map(|a| a.size(a.bytes.as_ref())).sum();
    }

    /// How many changes of others, as the engine counts them, are in here.
    pub(crate) fn external(&self) -> u32 {
        self.external.load(Ordering::Relaxed)
    }

    /// Whose turn it is, where requests have the session one at a time.
    pub(crate) fn turns(&self) -> &Turns {
        &self.turns
    }

    /// A request begins.
    pub(crate) fn begin(&self) -> RequestNo {
        RequestNo(self.requests.fetch_add(1, Ordering::Relaxed))
    }

    /// A request ends: nothing will ask what it has met.
    pub(crate) fn end(&self, request: RequestNo) {
        self.lock().borrow_mut().stumbled.retain(|(of, _)| *of != request.0);
    }

    pub(crate) fn get<K: AsKey>(&self, request: RequestNo, key: &K) -> Option<Arc<K::Value>> {
        let name = key.name();
        let lock = self.lock();
        let mut state = lock.borrow_mut();
        match state.get(&name)?.value::<K::Value>() {
            Some(value) => typed(value, &name),
            None => {
                state.look_for_stumbles(request, &name);
                None
            }
        }
    }

    /// What a request met that does not decode.
    pub(crate) fn stumbled(&self, request: RequestNo) -> Option<Arc<str>> {
        let lock = self.lock();
        let state = lock.borrow();
        state.stumbled.iter().find(|(of, _)| *of == request.0).map(|(_, attribute)| attribute.clone())
    }

    /// The bytes of a value that does not decode as this type, or that was put aside because it did not.
    pub(crate) fn quarantined<K: AsKey>(&self, key: &K) -> Option<Bytes> {
        let name = key.name();
        let lock = self.lock();
        let mut state = lock.borrow_mut();
        let attribute = state.get(&name)?;
        attribute.decode::<K::Value>();
        attribute.aside().map(Bytes::copy_from_slice)
    }

    pub(crate) fn set<K: AsKey>(&self, request: RequestNo, key: &K, value: K::Value) {
        let name = key.name();
        let value: Shared = Arc::new(value);
        let lock = self.lock();
        let mut state = lock.borrow_mut();
        let attribute = state.get_or_insert(&name);
        attribute.decode::<K::Value>();
        attribute.write(request, Some((value, codec::encode::<K::Value>)), false);
        state.look_for_stumbles(request, &name);
    }

    pub(crate) fn remove<K: AsKey>(&self, request: RequestNo, key: &K) -> Option<Arc<K::Value>> {
        let name = key.name();
        let lock = self.lock();
        let mut state = lock.borrow_mut();
        let attribute = state.get(&name)?;
        attribute.decode::<K::Value>();
        let old = attribute.value::<K::Value>();
        attribute.write(request, None, false);
        state.look_for_stumbles(request, &name);
        typed(old?, &name)
    }

    /// Changes the attribute by a closure, which says whether to keep the result. An absent one starts from `absent`; without that,
    /// nothing happens. With `copy` the closure works on a copy.
    pub(crate) fn change<K: AsKey, R>(
        &self,
        request: RequestNo,
        key: &K,
        absent: Option<fn() -> K::Value>,
        copy: bool,
        f: impl FnOnce(&mut K::Value) -> (R, bool),
    ) -> Option<R> {
        let name = key.name();
        let lock = self.lock();
        let start: Option<Arc<K::Value>> = {
            let mut state = lock.borrow_mut();
            if absent.is_none() && state.get(&name)?.value::<K::Value>().is_none() {
                state.look_for_stumbles(request, &name);
                return None;
            }
            let at = state.find_or_insert(&name);
            let value = state.attributes[at].value::<K::Value>();
            if value.is_none() {
                state.look_for_stumbles(request, &name);
            }
            let attribute = &mut state.attributes[at];
            attribute.busy = true;
            if attribute.writes.is_empty() && !copy && matches!(attribute.decoded, Decoded::Value(..)) {
                // The encoded form is enough to come back to, so that this is the only holder and the change happens in place.
                attribute.decoded = Decoded::NotYet;
            }
            value.and_then(|value| typed(value, &name))
        };
        let busy = Busy { state: &lock, name: &name };
        let mut value = match start {
            Some(value) => value,
            None => Arc::new(absent?()),
        };
        let (result, keep) = f(Arc::make_mut(&mut value));
        if keep {
            let mut state = lock.borrow_mut();
            if let Ok(at) = state.find(&name) {
                state.attributes[at].write(request, Some((value, codec::encode::<K::Value>)), true);
            }
        }
        drop(busy);
        Some(result)
    }

    /// A reserved attribute, as bytes.
    pub(crate) fn get_raw(&self, name: &str) -> Option<Bytes> {
        let lock = self.lock();
        let mut state = lock.borrow_mut();
        let attribute = state.get(name)?;
        match attribute.writes.last() {
            Some(top) => top.value.as_ref().and_then(|(value, _)| value.downcast_ref::<Bytes>().cloned()),
            None => attribute.bytes.clone(),
        }
    }

    /// What is committed of a reserved attribute, and the commit that set it.
    pub(crate) fn committed_raw(&self, name: &str) -> Option<(Stamp, Bytes)> {
        let lock = self.state.lock();
        let mut state = lock.borrow_mut();
        let attribute = state.get(name)?;
        attribute.dot.zip(attribute.bytes.clone())
    }

    /// The newest of the commits that set what is here, by version.
    pub(crate) fn newest(&self) -> Option<Stamp> {
        let lock = self.state.lock();
        let state = lock.borrow();
        state.attributes.iter().filter_map(|a| a.dot).max_by_key(|dot| dot.version)
    }

    /// Sets or removes a reserved attribute.
    pub(crate) fn set_raw(&self, request: RequestNo, name: &str, value: Option<Bytes>) {
        let lock = self.lock();
        let mut state = lock.borrow_mut();
        let value = value.map(|bytes| (Arc::new(bytes) as Shared, codec::encode_raw as Encode));
        state.get_or_insert(name).write(request, value, false);
    }

    /// The session's lock. Nobody holds it for long: closures do not wait. Whoever does not get it at all is inside of a closure of another
    /// session, for whose lock the holder waits; a handler that fails is better than a node that stands still.
    #[inline]
    fn lock(&self) -> ReentrantMutexGuard<'_, RefCell<State>> {
        self.state.try_lock().unwrap_or_else(|| self.lock_slowly())
    }

    #[cold]
    fn lock_slowly(&self) -> ReentrantMutexGuard<'_, RefCell<State>> {
        let lock = self.state.try_lock_for(LOCK_MAX);
        lock.unwrap_or_else(|| {
            panic!(
                "a closure has had this session for {} s: it waits, perhaps for this thread, which is inside of a closure of another session",
                LOCK_MAX.as_secs()
            )
        })
    }

    /// Panics if this thread is inside of a closure that changes an attribute.
    pub(crate) fn outside_of_closures(&self, call: &str) {
        if !self.state.is_owned_by_current_thread() {
            return;
        }
        let lock = self.lock();
        let state = lock.borrow();
        if let Some(busy) = state.attributes.iter().find(|a| a.busy) {
            panic!("`{call}` is called inside of the closure that changes the session attribute `{}`", busy.name);
        }
    }

    /// Whether the request has changed something, by its own word: the bytes may still turn out to be equal.
    pub(crate) fn has_writes(&self, request: RequestNo) -> bool {
        let lock = self.lock();
        let state = lock.borrow();
        state.uprooted || state.attributes.iter().any(|a| a.writes.iter().any(|w| w.request == request.0))
    }

    /// Hands what the request has changed to `send`, under the session's lock so that two commits cannot swap; `send` must not touch the
    /// session's values. `None` if nothing
    /// changed: then `send` is not called.
    pub(crate) fn commit<T>(
        &self,
        request: RequestNo,
        size_max: usize,
        send: impl FnOnce(&Changes) -> (Sent, T),
    ) -> Result<(Option<T>, Notes), CutError> {
        let lock = self.lock();
        let mut state = lock.borrow_mut();
        // By far the usual end of a request that only read.
        if !state.uprooted && state.attributes.iter().all(Attribute::is_at_rest) {
            return Ok((None, Notes::default()));
        }
        let cut = match cut(&state, request, size_max) {
            Ok(cut) => cut,
            Err(e) => {
                fail(&mut state, request);
                return Err(e);
            }
        };
        let mut notes = Notes::default();
        let (stamp, sent) = match cut.changes.is_empty() {
            true => (None, None),
            false => match send(&cut.changes) {
                (Sent::Applied(stamp), sent) => (Some(stamp), Some(sent)),
                (Sent::Refused, sent) => {
                    notes.stayed = fail(&mut state, request);
                    return Ok((Some(sent), notes));
                }
            },
        };
        let mut changes = cut.changes;
        if core::mem::take(&mut state.uprooted) {
            for attribute in state.attributes.iter_mut().filter(|a| a.bytes.is_some()) {
                attribute.dot = stamp;
            }
        }
        for (at, change) in cut.touched {
            let attribute = &mut state.attributes[at];
            let change = change.and_then(|change| changes.get_mut(change));
            let changed = change.zip(stamp).map(|(change, stamp)| (change.value.take(), stamp));
            if changed.is_some() && matches!(attribute.decoded, Decoded::Broken) {
                notes.quarantined.push(attribute.name.clone());
            }
            notes.stayed += attribute.succeed(request.0, changed);
        }
        state.bytes = cut.bytes;
        state.attributes.retain_mut(|a| {
            a.settle(request.0);
            !a.is_gone()
        });
        Ok((sent, notes))
    }

    /// The key that the session got by its last rotation.
    pub(crate) fn successor(&self) -> Option<SessionKey> {
        self.successor.get().and_then(|key| *key.lock())
    }

    pub(crate) fn set_successor(&self, key: Option<SessionKey>) {
        *self.successor.get_or_init(Mutex::default).lock() = key;
    }

    /// Runs something under the session's lock: no commit comes between.
    pub(crate) fn locked<T>(&self, f: impl FnOnce() -> T) -> T {
        let _lock = self.lock();
        f()
    }

    /// The session's content was copied to another key: same values, the new record's commits. A write that started from a value which
    /// is still there starts from the copy.
    pub(crate) fn rebase(&self, record: &Record) {
        let lock = self.lock();
        for attribute in &mut lock.borrow_mut().attributes {
            let dot = record.get(&attribute.name).map(|a| a.dot);
            attribute.writes.iter_mut().filter(|w| w.base == attribute.dot).for_each(|w| w.base = dot);
            attribute.dot = dot;
        }
    }

    /// The session goes on as a new one, elsewhere: its next commit sends all of it. Only for a live session that no other request has.
    pub(crate) fn uproot(&self) {
        self.lock().borrow_mut().uprooted = true;
    }

    /// Stands for the stamp of a commit that another node makes, until it is known. Not a stamp that any commit has.
    pub(crate) fn place_holder(&self) -> Stamp {
        Claim { epoch: u32::MAX, life: Life::new(0) }.at(self.place_holders.fetch_add(1, Ordering::Relaxed))
    }

    /// How many commits were sent to another node.
    pub(crate) fn sent_elsewhere(&self) -> u32 {
        self.place_holders.load(Ordering::Relaxed).saturating_sub(1)
    }

    /// Puts the stamp where its place holder is.
    pub(crate) fn restamp(&self, place_holder: Stamp, stamp: Stamp) {
        let lock = self.lock();
        for attribute in &mut lock.borrow_mut().attributes {
            let bases = attribute.writes.iter_mut().map(|w| &mut w.base);
            bases.chain([&mut attribute.dot]).filter(|dot| **dot == Some(place_holder)).for_each(|dot| *dot = Some(stamp));
        }
    }

    /// Takes back what the request has changed and not committed; how much of it stayed because others had built upon it.
    pub(crate) fn rollback(&self, request: RequestNo) -> u32 {
        let lock = self.lock();
        let mut state = lock.borrow_mut();
        fail(&mut state, request)
    }
}

fn fail(state: &mut State, request: RequestNo) -> u32 {
    let stayed = state.attributes.iter_mut().map(|a| a.fail(request.0)).sum();
    state.sweep();
    stayed
}

fn take(list: &mut Few<u32>, me: u32) -> bool {
    let at = list.iter().position(|r| *r == me);
    at.map(|at| list.remove(at)).is_some()
}

/// What one request is about to commit.
struct Cut {
    /// Places of the attributes that it wrote, and of their changes where the bytes differ.
    touched: SmallVec<[(usize, Option<usize>); 4]>,
    changes: Changes,
    /// What the committed attributes will take.
    bytes: usize,
}

fn cut(state: &State, request: RequestNo, size_max: usize) -> Result<Cut, CutError> {
    let mut cut = Cut { touched: SmallVec::new(), changes: Changes::new(), bytes: state.bytes };
    let (mut largest, mut scratch) = (None, Scratch::new());
    for (at, attribute) in state.attributes.iter().enumerate() {
        let Some(write) = attribute.writes.iter().find(|w| w.request == request.0) else {
            if let (true, Some(bytes)) = (state.uprooted, &attribute.bytes) {
                cut.changes.push(Change { name: attribute.name.clone(), base: Base::Absent, value: Some(bytes.clone()) });
            }
            continue;
        };
        scratch.clear();
        if let Some(aside) = attribute.aside() {
            codec::begin_with_aside(aside, &mut scratch);
        }
        if let Some((value, encode)) = &write.value {
            encode(&**value, &mut scratch).map_err(|source| CutError::Encode { attribute: attribute.name.clone(), source })?;
        }
        let encoded = (write.value.is_some() || !scratch.is_empty()).then_some(&*scratch);
        let committed = attribute.bytes.as_ref().filter(|_| !state.uprooted);
        if encoded == committed.map(|b| &**b) {
            cut.touched.push((at, None));
            continue;
        }
        cut.touched.push((at, Some(cut.changes.len())));
        let value = encoded.map(codec::kept);
        let size = attribute.size(value.as_ref());
        cut.bytes = cut.bytes + size - attribute.size(attribute.bytes.as_ref());
        if size > largest.map_or(0, |(_, size)| size) {
            largest = Some((at, size));
        }
        if attribute.name.len() > NAME_MAX {
            let (got, limit) = (attribute.name.len(), NAME_MAX);
            return Err(CutError::TooLarge { attribute: attribute.name.clone(), what: "bytes of name", got, limit });
        }
        let base = write.base.filter(|_| !state.uprooted);
        cut.changes.push(Change { name: attribute.name.clone(), base: base.into(), value });
    }
    let Some(attribute) = largest.and_then(|(at, _)| state.attributes.get(at)) else { return Ok(cut) };
    let attribute = || attribute.name.clone();
    if cut.bytes > size_max {
        return Err(CutError::TooLarge { attribute: attribute(), what: "bytes in the session", got: cut.bytes, limit: size_max });
    }
    if state.attributes.len() > ATTRIBUTES_MAX {
        let (got, limit) = (state.attributes.len(), ATTRIBUTES_MAX);
        return Err(CutError::TooLarge { attribute: attribute(), what: "attributes in the session", got, limit });
    }
    Ok(cut)
}

/// INVARIANT: [`key`](crate::key) gives a name one type in a process, so the value has it.
fn typed<T: Value>(value: Shared, name: &str) -> Option<Arc<T>> {
    let typed = value.downcast::<T>();
    debug_assert!(typed.is_ok(), "{name} has another type");
    typed.ok()
}

impl State {
    fn get_or_insert_even_busy(&mut self, name: &Arc<str>) -> &mut Attribute {
        let at = self.find(name).unwrap_or_else(|at| {
            self.insert(at, name.clone());
            at
        });
        &mut self.attributes[at]
    }
}

#[cfg(test)]
#[path = "live/tests.rs"]
mod tests;
