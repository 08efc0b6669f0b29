//! The handle that handlers use: [`Session`].

use crate::cookie::{Mode, Place as IdPlace};
use crate::error::{CommitError, LoginError, NotNow, OpenError};
use crate::key::AsKey;
use crate::live::{Changes, CutError, Live, Notes, RequestNo, Sent};
use crate::message::Headers;
use crate::node::{Commit, CommitFailure, Durable, EndKind, Node, Open, Opened, Step, Unsent, Waiting};
use crate::turn::Turn;
use bytes::Bytes;
use core::future::Future;
use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;
use outlive_core::config::{Level, Limits};
use outlive_core::id::{SessionId, SessionKey};
use outlive_core::output::{Event, Over};
use outlive_core::record::{Excess, LIMITS, LOST, ROTATING, USER};
use outlive_core::stamp::Stamp;
use outlive_core::token::Token;
use parking_lot::{Mutex, RwLock};
use std::sync::{Arc, OnceLock};
use tokio::sync::broadcast::error::RecvError;

/// Until when the browser is to keep the session's cookies, in seconds by the wall clock, big endian. Absent: until it is closed.
const REMEMBER: &str = "outlive.remember";
/// What browsers keep at most.
pub(crate) const REMEMBER_MAX: Duration = Duration::from_secs(400 * 24 * 3600);

/// The session of the visitor whose request this is. A cheap clone, `Send + Sync`.
///
/// **Sync methods only touch memory. Async methods may have to wait for other nodes.** `get`, `set`, `update`, `modify`, `try_update`,
/// `remove`, `rotate`, `remember`, `touch`, `rollback` and `set_idle_timeout` wait for nothing; `login`, `invalidate`, `flush` and
/// `refresh` may.
///
/// Changes are committed when the handler has returned and before the response leaves. A request that fails (5xx, a panic, dropped by
/// its client) is rolled back; so are 4xx only if the layer says so. Requests of one session that run at once share its values: `update`
/// is atomic, and changes of different attributes never affect each other.
///
/// Closures run under the session's lock. Inside of one, other attributes may be used, and all that is sync; the same attribute panics
/// with its name, and so does [`rollback`](Session::rollback), because it would take away what is being changed. They cannot `.await`,
/// and what is async and polled inside of one all the same panics, too. Closures of two *different* sessions (two namespaces) inside of
/// each other may wait for one another in two threads; after 30 s one of them panics.
///
/// # After its request
/// A clone that outlives its request (a spawned task, a streamed body, a WebSocket) keeps reading the last known state. What it
/// writes is kept, and committed by [`flush`](Session::flush) or when the last clone is dropped. A session that had no cookie when the
/// response left can no longer begin: that `flush` returns [`CommitError::NoCookie`].
///
/// When the server ends, [`run`](crate::Outlive::run) waits for such clones, and for the commit of the last one, up to `shutdown_grace`.
/// Let the task or stream that holds one end when [`draining`](crate::Outlive::draining) resolves. A clone that is still held after
/// `shutdown_grace` is cut, and what it has not flushed is lost with the process. Examples: server-sent events and a WebSocket, in the repository.
///
/// # Cancel safety
/// A request future that is dropped rolls back what was not committed. A commit that has begun continues; only its result is lost.
#[derive(Clone)]
pub struct Session {
    inner: Arc<Inner>,
}

impl core::fmt::Debug for Session {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Session(..)")
    }
}

/// What a commit got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Committed {
    /// The durability that it really reached.
    pub level: Level,
    /// The number of the session's newest durable commit under its present owner; 0 if it has none.
    pub version: u32,
}

/// How far an end has got.
#[must_use = "`Pending` means that a node which is cut off may still serve the session"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Every node that may hold a copy has confirmed it, and the store.
    Everywhere,
    /// Ended here. At least one node that may hold a copy, or the store, has not confirmed yet; this node keeps telling it.
    Pending,
}

/// Changes that this visitor had seen acknowledged and that could not be recovered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Loss {
    /// How many of the session's versions (commits) are gone, at least.
    pub versions: u32,
}

/// Bytes of a user's name.
pub(crate) const USER_MAX: usize = 255;

/// The outcome of a commit, now or later.
pub(crate) type Committing = Step<Result<Durable, CommitError>>;

/// Why a session is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EndReason {
    /// The application ended it: a logout.
    Invalidated,
    /// It was not used for too long, or lived too long.
    Expired,
    /// The session moved to another node, which may have ended it since. Call [`refresh`](Session::refresh) to find out.
    Unknown,
}

/// Where a session is: for operators and the curious, not for decisions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SessionInfo {
    /// Its name everywhere but at its client, as events carry it: 32 hex digits that say nothing about the id. Empty if it does not
    /// exist yet.
    pub key: String,
    /// The name of the node that may commit to it now, if it is known here.
    pub owner: Option<String>,
    /// How many times it has had a new owner, counting the first; 0 if it does not exist yet.
    pub epoch: u32,
    /// The number of its newest commit under that owner.
    pub version: u32,
    /// The level that its newest durable commit reached, if this node owns it.
    pub level: Option<Level>,
    /// The names of the nodes that hold its newest durable state, if this node owns it.
    pub backups: Vec<String>,
}

/// What the request brought.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Brought {
    pub(crate) mode: Mode,
    /// The id of the session that was opened.
    pub(crate) id: Option<SessionId>,
    /// It says that this node serves the session.
    pub(crate) routed: bool,
    pub(crate) token: Option<Token>,
    /// The id was rotated a moment ago: the client has, or gets, a newer cookie which must not be overwritten.
    pub(crate) mute: bool,
    /// A late response has overwritten the id.
    pub(crate) repair: bool,
    /// It has no id, and the browser may have kept one away from it.
    pub(crate) kept_away: bool,
}

impl Brought {
    pub(crate) fn new(mode: Mode) -> Brought {
        Brought { mode, id: None, routed: false, token: None, mute: false, repair: false, kept_away: false }
    }
}

struct Inner {
    node: Arc<Node>,
    place: RwLock<Place>,
    brought: Brought,
    /// Its request has ended.
    late: AtomicBool,
    /// Somebody held the handle then: `run` waits for it.
    outlives: OnceLock<Outliving>,
    /// The client may be told the session's present id: a commit under it is durable.
    known: AtomicBool,
    /// The session ended, or rotated, by somebody else's doing.
    gone: AtomicBool,
    /// The application has asked for a loss, so that its response tells it.
    told: AtomicBool,
    /// It has set how long the session lives.
    relimited: AtomicBool,
    /// Until the request ends nobody else has the session, under `exclusive`. Elsewhere there is not even a lock to take.
    turn: OnceLock<Mutex<Option<Turn>>>,
}

/// Where the handle's data lives; it changes when the session begins, rotates or is invalidated.
struct Place {
    live: Arc<Live>,
    request: RequestNo,
    at: At,
    rotate: AtomicBool,
    /// The id is one that a login or a rotation of this request asked for.
    renewed: bool,
    /// The client's session was ended by this handle.
    ended: bool,
}

enum At {
    /// Nothing exists yet but, perhaps, an id.
    Fresh(OnceLock<SessionId>),
    Here(SessionId, Opened),
}

impl Session {
    /// A session that does not exist until something is put in it.
    pub(crate) fn fresh(node: Arc<Node>, brought: Brought) -> Session {
        Session::at(node, brought, Arc::new(Live::new()), At::Fresh(OnceLock::new()))
    }

    pub(crate) fn opened(node: Arc<Node>, brought: Brought, id: SessionId, opened: Opened) -> Session {
        let live = opened.live().clone();
        Session::at(node, brought, live, At::Here(id, opened))
    }

    fn at(node: Arc<Node>, brought: Brought, live: Arc<Live>, at: At) -> Session {
        let rotate = AtomicBool::new(false);
        let place = RwLock::new(Place { request: live.begin(), live, at, rotate, renewed: false, ended: false });
        let [late, known, gone, told, relimited] = [const { AtomicBool::new(false) }; 5];
        let (outlives, turn) = (OnceLock::new(), OnceLock::new());
        Session { inner: Arc::new(Inner { node, place, brought, late, outlives, known, gone, told, relimited, turn }) }
    }

    /// The value as it is now: a snapshot without a lock, which may live across `.await`.
    #[must_use]
    pub fn get<K: AsKey>(&self, key: K) -> Option<Arc<K::Value>> {
        let place = self.inner.place.read_recursive();
        place.live.get(place.request, &key)
    }

    /// Like [`get`](Session::get); where there is no value, the type's default. Nothing begins for a visitor who has no session.
    #[must_use]
    pub fn get_or_default<K: AsKey>(&self, key: K) -> Arc<K::Value>
    where
        K::Value: Default,
    {
        self.get(key).unwrap_or_default()
    }

    /// The bytes of a value of this name that today's type does not read, or that was put aside by the first write because it did not:
    /// MessagePack with names, as the release before wrote it. For looking at, and for bringing over what matters.
    ///
    /// A value that has not been overwritten needs none of this: as soon as the type reads it again (a release with `#[serde(default)]`), it
    /// is there again. What was put aside stays beside the new value, one generation, until the session ends.
    #[must_use]
    pub fn quarantined<K: AsKey>(&self, key: K) -> Option<Vec<u8>> {
        let bytes = self.inner.place.read_recursive().live.quarantined(&key)?;
        // The first byte names the codec.
        Some(bytes.get(1..).unwrap_or_default().to_vec())
    }

    /// Sets the value.
    #[doc(alias = "insert")]
    pub fn set<K: AsKey>(&self, key: K, value: K::Value) {
        let place = self.inner.place.read_recursive();
        place.live.set(place.request, &key, value);
    }

    /// Removes the value and returns what it was.
    pub fn remove<K: AsKey>(&self, key: K) -> Option<Arc<K::Value>> {
        let place = self.inner.place.read_recursive();
        place.live.remove(place.request, &key)
    }

    /// Changes the value in place, atomically; an absent one starts from its default.
    ///
    /// # Panics
    /// If the closure uses the same attribute.
    pub fn update<K: AsKey, R>(&self, key: K, f: impl FnOnce(&mut K::Value) -> R) -> R
    where
        K::Value: Default,
    {
        let place = self.inner.place.read_recursive();
        let result = place.live.change(place.request, &key, Some(K::Value::default), false, |value| (f(value), true));
        #[expect(clippy::expect_used, reason = "an absent value starts from its default")]
        result.expect("the closure has run")
    }

    /// Like [`update`](Session::update), on a copy: what the closure did is kept only if it returns `Ok`.
    ///
    /// # Errors
    /// Those of the closure.
    ///
    /// # Panics
    /// If the closure uses the same attribute.
    pub fn try_update<K: AsKey, R, E>(&self, key: K, f: impl FnOnce(&mut K::Value) -> Result<R, E>) -> Result<R, E>
    where
        K::Value: Default,
    {
        let place = self.inner.place.read_recursive();
        let result = place.live.change(place.request, &key, Some(K::Value::default), true, |value| {
            let result = f(value);
            let keep = result.is_ok();
            (result, keep)
        });
        #[expect(clippy::expect_used, reason = "an absent value starts from its default")]
        result.expect("the closure has run")
    }

    /// Changes the value in place if there is one.
    ///
    /// # Panics
    /// If the closure uses the same attribute.
    pub fn modify<K: AsKey, R>(&self, key: K, f: impl FnOnce(&mut K::Value) -> R) -> Option<R> {
        let place = self.inner.place.read_recursive();
        place.live.change(place.request, &key, None, false, |value| (f(value), true))
    }

    /// The session's secret name. It prints as `SessionId(..)`: it is a password, and belongs into no log.
    pub fn id(&self) -> SessionId {
        match &self.inner.place.read_recursive().at {
            At::Here(id, _) => *id,
            At::Fresh(id) => {
                #[expect(clippy::expect_used, reason = "the operating system gave randomness when the node started")]
                let new = || self.inner.node.draw_id().expect("there is randomness");
                *id.get_or_init(new)
            }
        }
    }

    /// Whether this visitor has no session: none was brought, or no node knows it any more. It begins when something is set.
    pub fn is_new(&self) -> bool {
        matches!(self.inner.place.read_recursive().at, At::Fresh(_))
    }

    /// The user whom [`login`](Session::login) bound the session to.
    pub fn user(&self) -> Option<Arc<str>> {
        let bytes = self.inner.place.read_recursive().live.get_raw(USER)?;
        core::str::from_utf8(&bytes).ok().map(Arc::from)
    }

    /// What was lost, so that the application can say so.
    ///
    /// It stays until a response whose handler has asked for it has left with what the handler changed: one that does not ask, fails, or is
    /// rolled back uses nothing up, and a session that moves takes it along. Parallel requests that ask may tell it each.
    pub fn loss(&self) -> Option<Loss> {
        let bytes = self.inner.place.read_recursive().live.get_raw(LOST)?;
        self.inner.told.store(true, Ordering::Relaxed);
        Some(Loss { versions: bytes.first_chunk().map_or(1, |versions| u32::from_be_bytes(*versions)) })
    }

    /// Where the session is.
    pub fn info(&self) -> SessionInfo {
        let place = self.inner.place.read_recursive();
        match &place.at {
            At::Fresh(_) => SessionInfo::default(),
            At::Here(_, opened) => self.inner.node.info(opened.key),
        }
    }

    /// A new id at the commit; the old one is dead from then on. It is independent of what is set and removed.
    #[doc(alias = "cycle_id")]
    #[doc(alias = "renew")]
    #[doc(alias = "changeSessionId")]
    pub fn rotate(&self) {
        self.inner.place.read_recursive().rotate.store(true, Ordering::Relaxed);
    }

    /// Takes back what this request has changed and not committed.
    ///
    /// # Panics
    /// Inside of a closure that changes an attribute of this session: it would take away what is being changed.
    pub fn rollback(&self) {
        self.outside_of_closures("rollback");
        self.take_back();
    }

    pub(crate) fn take_back(&self) {
        let place = self.inner.place.read_recursive();
        place.rotate.store(false, Ordering::Relaxed);
        let stayed = place.live.rollback(place.request);
        self.inner.count_stayed(stayed);
    }

    /// Panics inside of a closure, where waiting for other nodes, or for the handle's own lock, would be waiting for oneself.
    fn outside_of_closures(&self, call: &str) {
        self.inner.place.read_recursive().live.outside_of_closures(call);
    }

    /// Notes a use. Opening does that already; a stream that stays open calls it when the *user* did something.
    pub fn touch(&self) {
        if let At::Here(_, opened) = &self.inner.place.read_recursive().at {
            self.inner.node.touch(opened);
        }
    }

    /// How long this session lives without use from this commit on, on whatever node, instead of what was configured where it began. Less
    /// than 1 s counts as 1 s; more than what is left of its lifetime counts as that.
    pub fn set_idle_timeout(&self, idle: Duration) {
        let place = self.inner.place.read_recursive();
        let own = place.live.get_raw(LIMITS).and_then(|bytes| Limits::decode(&bytes));
        let born = match &place.at {
            At::Here(_, opened) => self.inner.node.limits(opened),
            At::Fresh(_) => self.inner.node.limits,
        };
        let limits = Limits { idle, ..own.unwrap_or(born) };
        self.inner.set_limits(&place, limits);
    }

    /// Keeps the visitor for this long, whether their browser is closed meanwhile or not: "keep me signed in", at a login or later. The
    /// session lives that long, used or not, whatever the configured times; [`set_idle_timeout`](Session::set_idle_timeout) afterwards
    /// ends it earlier if it is not used. At most 400 days, which is what browsers keep; at least a second. Without it the cookie goes
    /// when the browser is closed.
    ///
    /// The session gets a new id, as by [`rotate`](Session::rotate), because the cookie of an id is set once. What is remembered stays
    /// in the memory of its nodes all the time.
    pub fn remember(&self, duration: Duration) {
        let duration = duration.clamp(Duration::from_secs(1), REMEMBER_MAX);
        let node = &self.inner.node;
        {
            let place = self.inner.place.read_recursive();
            let age = match &place.at {
                At::Here(_, opened) => node.age(opened),
                At::Fresh(_) => Duration::ZERO,
            };
            let limits = Limits { idle: duration, lifetime: age + duration };
            self.inner.set_limits(&place, limits);
            let until = node.runtime.wall().0.saturating_add(u32::try_from(duration.as_secs()).unwrap_or(u32::MAX));
            place.live.set_raw(place.request, REMEMBER, Some(Bytes::copy_from_slice(&until.to_be_bytes())));
        }
        self.rotate();
    }

    /// Binds the session to a user, under a new id: the id from before the login stops working. A name has 1 to 255 bytes.
    ///
    /// # Errors
    /// [`LoginError`]; then the session is as it was.
    pub async fn login(&self, user: &str) -> Result<(), LoginError> {
        self.outside_of_closures("login");
        if user.is_empty() || user.len() > USER_MAX {
            return Err(LoginError::BadUser { got: user.len(), limit: USER_MAX });
        }
        let place = self.inner.place.read_recursive();
        place.live.set_raw(place.request, USER, Some(Bytes::copy_from_slice(user.as_bytes())));
        place.rotate.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Ends the session, at once: a 5xx does not bring it back. What is set afterwards goes into a new, anonymous session.
    ///
    /// To keep something over a logout, read it before and set it after.
    ///
    /// # Errors
    /// [`CommitError`], if the end could not even be noted here.
    #[doc(alias = "purge")]
    #[doc(alias = "destroy")]
    pub async fn invalidate(&self) -> Result<Ended, CommitError> {
        self.outside_of_closures("invalidate");
        let node = &self.inner.node;
        let ended = {
            let mut place = self.inner.place.write();
            if self.inner.brought.mute && matches!(place.at, At::Fresh(_)) {
                // It goes on under an id that this request does not know.
                return Err(CommitError::Ended);
            }
            let stayed = place.live.rollback(place.request);
            self.inner.count_stayed(stayed);
            let ended = match &place.at {
                At::Fresh(_) => None,
                At::Here(_, opened) => {
                    self.inner.close(&place);
                    let next = place.live.successor().filter(|key| *key != opened.key);
                    Some((opened.key, node.end(opened.key), next.map(|key| (key, node.end(key)))))
                }
            };
            let live = Arc::new(Live::new());
            let any = place.ended || ended.is_some();
            let (at, rotate) = (At::Fresh(OnceLock::new()), AtomicBool::new(false));
            *place = Place { request: live.begin(), live, at, rotate, renewed: false, ended: any };
            ended
        };
        let Some((mut key, step, next)) = ended else { return Ok(Ended::Everywhere) };
        let mut everywhere = step.answer().await;
        if let Some((next, step)) = next {
            everywhere &= step.answer().await;
            key = next;
        }
        // Other nodes may have given it one new id after another meanwhile.
        while let Some(next) = node.goes_on_as(key) {
            everywhere &= node.end(next).answer().await;
            key = next;
        }
        if node.ended_as(key) == Some(EndKind::Rotated) {
            return Err(CommitError::Ended);
        }
        Ok(if everywhere { Ended::Everywhere } else { Ended::Pending })
    }

    /// Commits what was changed so far; it is not rolled back any more.
    ///
    /// In tower-sessions a method of this name deletes the session. Here [`invalidate`](Session::invalidate) does.
    ///
    /// # Errors
    /// [`CommitError`].
    pub async fn flush(&self) -> Result<Committed, CommitError> {
        self.outside_of_closures("flush");
        if self.inner.late.load(Ordering::Relaxed) {
            self.inner.tell();
        }
        let durable = self.start_commit().answer().await?;
        self.inner.known.store(true, Ordering::Relaxed);
        Ok(Committed::of(durable))
    }

    /// Opens the session again, after a while: what others have committed meanwhile, here or on another node, is there then.
    ///
    /// What was not committed yet is committed first, and counts as a use of the session; if that fails, so does this. Without it this is only a look, as a stream takes
    /// one all the time: it does not keep the session alive. [`touch`](Session::touch) does.
    ///
    /// # Errors
    /// [`OpenError`]; the handle keeps its last known state.
    pub async fn refresh(&self) -> Result<(), OpenError> {
        self.outside_of_closures("refresh");
        let (id, key) = {
            let place = self.inner.place.read_recursive();
            match &place.at {
                At::Fresh(_) => return Ok(()),
                At::Here(id, opened) => (*id, place.live.successor().unwrap_or(opened.key)),
            }
        };
        if self.has_writes() {
            self.flush().await.map_err(OpenError::Uncommitted)?;
        }
        let opened = match self.inner.node.open(key, None, false).answer().await {
            Open::Here(opened) => opened,
            Open::NotFound | Open::Ended(..) => return Err(OpenError::Ended),
            Open::Stale(after) => return Err(OpenError::Stale { after }),
            Open::Unavailable(why, after) => return Err(OpenError::Unavailable { why, after }),
        };
        let mut place = self.inner.place.write();
        let late = self.inner.late.load(Ordering::Relaxed);
        if Arc::ptr_eq(&place.live, opened.live()) {
            self.inner.node.close(&opened);
            return Ok(());
        }
        if !late {
            self.inner.close(&place);
        }
        let live = opened.live().clone();
        let request = live.begin();
        if late {
            live.end(request);
            self.inner.node.close(&opened);
        }
        let rotate = AtomicBool::new(place.rotate.load(Ordering::Relaxed));
        *place = Place { request, live, at: At::Here(id, opened), rotate, renewed: place.renewed, ended: place.ended };
        Ok(())
    }

    /// Resolves when the session is over, so that a stream or a socket does not outlive the login. Its id may rotate meanwhile. A session
    /// that does not exist yet does not end.
    pub fn ended(&self) -> impl Future<Output = EndReason> + Send + use<> {
        let place = self.inner.place.read_recursive();
        let at = match &place.at {
            At::Here(_, opened) => Some((opened.key, place.live.clone())),
            At::Fresh(_) => None,
        };
        let node = self.inner.node.clone();
        let mut events = node.runtime.subscribe_events();
        async move {
            let Some((opened, live)) = at else { return core::future::pending().await };
            let (mut given, mut key) = (opened, opened);
            // What happened before the subscription makes no event any more, nor does what was dropped from it.
            let mut look = true;
            loop {
                // This node gives it a new id, or does not after all.
                let gives = live.successor().unwrap_or(opened);
                if gives != given {
                    (given, key, look) = (gives, gives, true);
                }
                if look {
                    while let Some(next) = node.goes_on_as(key) {
                        key = next;
                    }
                    match node.runtime.over(key) {
                        Some(Over::Ended(EndKind::Invalidated, _)) => return EndReason::Invalidated,
                        Some(Over::Expired) => return EndReason::Expired,
                        _ if node.runtime.info(key).is_none() => return EndReason::Unknown,
                        _ => {}
                    }
                }
                match events.recv().await {
                    Ok((of, Event::Ended(EndKind::Invalidated))) if of == key => return EndReason::Invalidated,
                    Ok((of, Event::Expired)) if of == key => return EndReason::Expired,
                    Ok((of, event)) => look = of == key && event == Event::Ended(EndKind::Rotated),
                    Err(RecvError::Lagged(_)) => look = true,
                    Err(RecvError::Closed) => return EndReason::Unknown,
                }
            }
        }
    }

    /// Keeps the session to this request until it ends.
    pub(crate) fn hold(&self, turn: Turn) {
        *self.inner.turn.get_or_init(Mutex::default).lock() = Some(turn);
    }

    /// Whether there is a session that other requests may have at the same time.
    pub(crate) fn lacks_turn(&self) -> bool {
        !self.is_new() && !self.inner.has_turn()
    }

    /// The live session, if there is one.
    pub(crate) fn live_here(&self) -> Option<Arc<Live>> {
        let place = self.inner.place.read_recursive();
        matches!(place.at, At::Here(..)).then(|| place.live.clone())
    }

    fn has_writes(&self) -> bool {
        let place = self.inner.place.read_recursive();
        place.live.has_writes(place.request)
    }

    /// The end of the request: commits, or rolls back, and from now on the handle is late.
    pub(crate) fn finish(&self, keep: bool) -> Committing {
        if !keep {
            self.take_back();
        } else {
            self.inner.tell();
        }
        let step = self.start_commit();
        // The slot's handle and the caller's.
        self.end(2);
        step
    }

    /// The request was dropped, or panicked.
    pub(crate) fn abort(&self) {
        self.take_back();
        // The slot's.
        self.end(1);
    }

    /// `handles` of the session are the layer's own; any other one goes on after the request.
    fn end(&self, handles: usize) {
        if !self.inner.late.swap(true, Ordering::Relaxed) {
            if Arc::strong_count(&self.inner) > handles {
                self.inner.outlives.get_or_init(|| Outliving::new(self.inner.node.clone()));
            }
            self.inner.close(&self.inner.place.read_recursive());
            if let Some(turn) = self.inner.turn.get() {
                turn.lock().take();
            }
        }
    }

    fn start_commit(&self) -> Committing {
        let place = self.inner.place.read_recursive();
        if let Some(attribute) = self.inner.stumbled(&place) {
            let stayed = place.live.rollback(place.request);
            self.inner.count_stayed(stayed);
            return Step::Ready(Err(CommitError::Undecodable { attribute }));
        }
        match &place.at {
            At::Here(..) if place.rotate.load(Ordering::Relaxed) => {
                drop(place);
                self.rotate_and_commit()
            }
            At::Here(_, opened) => self.inner.commit(&place, opened),
            At::Fresh(_) if !place.live.has_writes(place.request) => NOTHING,
            At::Fresh(_) => {
                drop(place);
                self.begin()
            }
        }
    }

    /// The new id first, with all that was committed, then what this request changed under it, then the end of the old id. Nobody can
    /// see a login under the id from before it.
    fn rotate_and_commit(&self) -> Committing {
        let inner = &*self.inner;
        let mut place = inner.place.write();
        let new = match inner.node.draw_id() {
            Ok(id) => id,
            Err((why, after)) => return Step::Ready(Err(CommitError::Unavailable { why, after })),
        };
        let At::Here(old_id, opened) = &place.at else { return NOTHING };
        let (old_id, opened, live) = (*old_id, opened.clone(), place.live.clone());
        if opened.guest_of().is_some() {
            let tip = opened.tip();
            let held = live.committed_raw(ROTATING);
            // What this request has flushed is in the copy, and what others have committed in between is not.
            let flushed = tip.claim.at(tip.version.saturating_add(live.sent_elsewhere()));
            let tip = live.newest().filter(|own| *own == flushed).unwrap_or(tip);
            live.uproot();
            place.at = At::Fresh(new.into());
            drop(place);
            return self.begun_instead_of(opened.key, tip, held);
        }
        let key = new.key(&inner.node.keys);
        let rotated = live.locked(|| {
            let rotated = inner.node.rotate(&opened, key)?;
            live.set_successor(Some(key));
            Ok(rotated)
        });
        let (next, done) = match rotated {
            Ok(rotated) => rotated,
            Err(failure) => {
                let stayed = live.rollback(place.request);
                inner.count_stayed(stayed);
                return Step::Ready(Err(failed(failure)));
            }
        };
        let commit = inner.commit(&place, &next);
        (place.at, place.rotate, place.renewed) = (At::Here(new, next), AtomicBool::new(false), true);
        drop(place);
        let rotation = Rotation { session: self.clone(), old: Some((old_id, opened)) };
        match (done, commit) {
            (Step::Ready(done), Step::Ready(commit)) => Step::Ready(rotation.settle(done).and(commit)),
            (done, commit) => Step::Wait(Box::pin(async move {
                let done = done.answer().await;
                rotation.settle(done)?;
                commit.answer().await
            })),
        }
    }

    /// A copy of a session that stays at its owner goes on here as a new one, and the old one ends. Only one that nobody else has done
    /// this with, or changed since the copy was made, does: until then nobody hears of the new one.
    fn begun_instead_of(&self, old: SessionKey, tip: Stamp, held: Option<(Stamp, Bytes)>) -> Committing {
        let (step, session) = (self.begin(), self.clone());
        Step::Wait(Box::pin(async move {
            let durable = step.answer().await?;
            let (node, new) = (&session.inner.node, session.id().key(&session.inner.node.keys));
            if let Err(failure) = node.end_copied(old, tip, held, new).await {
                node.end(new).answer().await;
                return Err(failed(failure));
            }
            node.end_for(old, new).answer().await;
            node.refuse_if_ended(old, new).await.map_err(failed)?;
            Ok(durable)
        }))
    }

    /// The first commit of a session that did not exist.
    fn begin(&self) -> Committing {
        let (inner, mut place) = (&*self.inner, self.inner.place.write());
        let At::Fresh(id) = &place.at else {
            drop(place);
            return self.start_commit();
        };
        let refused = if inner.late.load(Ordering::Relaxed) {
            inner.node.stats.without_cookie.fetch_add(1, Ordering::Relaxed);
            Some(CommitError::NoCookie)
        } else {
            inner.brought.mute.then_some(CommitError::Ended)
        };
        if let Some(refused) = refused {
            place.live.rollback(place.request);
            return Step::Ready(Err(refused));
        }
        let id = match id.get().map_or_else(|| inner.node.draw_id(), |id| Ok(*id)) {
            Ok(id) => id,
            Err((why, after)) => return Step::Ready(Err(CommitError::Unavailable { why, after })),
        };
        let mut created = None;
        let sent = inner.commit_live(&place, |changes, unsent| match inner.node.create(id.key(&inner.node.keys), place.live.clone()) {
            Ok(opened) => {
                let sent = send(&inner.node, &place.live, &opened, changes, unsent);
                created = Some(opened);
                sent
            }
            Err((why, after)) => (Sent::Refused, Step::Ready(Err(CommitError::Unavailable { why, after }))),
        });
        if let Some(opened) = created {
            let renewed = place.rotate.load(Ordering::Relaxed);
            (place.at, place.renewed, place.rotate) = (At::Here(id, opened), renewed, AtomicBool::new(false));
        }
        inner.sent(sent).unwrap_or(NOTHING)
    }

    pub(crate) fn vary(&self, headers: &mut impl Headers) {
        self.inner.node.carrier.vary(headers);
    }

    /// What is true of a failed commit once its response leaves. A session that begins with it and gets no cookie ends: nothing of it is
    /// kept, wherever it has come.
    pub(crate) fn as_told(&self, error: CommitError) -> CommitError {
        match error {
            CommitError::Unknown if self.is_untold() => failed(CommitFailure::Unreached),
            error => error,
        }
    }

    /// Whether its id is new, and no client may be told of it yet.
    fn is_untold(&self) -> bool {
        let born = matches!(&self.inner.place.read_recursive().at, At::Here(id, _) if self.inner.brought.id != Some(*id));
        born && !self.inner.known.load(Ordering::Relaxed)
    }

    /// Puts the cookies that the client needs into the response; whether there was one.
    ///
    /// The id is set at its birth alone. It is not cleared when it has ended either: nothing can be done with it, and a response that
    /// clears may come after one that brought the id of a login. What a logout clears is the token: who has none is promised less until
    /// the next response, and who keeps that of a session that is forgotten one day would be told of a loss.
    pub(crate) fn set_cookies(&self, durable: Option<&Durable>, headers: &mut impl Headers) -> bool {
        let (node, brought) = (&*self.inner.node, &self.inner.brought);
        let place = self.inner.place.read_recursive();
        let At::Here(id, opened) = &place.at else {
            if place.ended {
                node.carrier.clear_token(brought.mode, headers);
            }
            return place.ended;
        };
        let born = brought.id != Some(*id);
        let known = durable.is_some() || self.inner.known.load(Ordering::Relaxed);
        if !known && born {
            // Nobody will ever hear of this session.
            drop(node.end(opened.key));
        }
        // An id that was ended or rotated by somebody else meanwhile never causes a cookie.
        if brought.mute || !known || !born && self.inner.gone.load(Ordering::Relaxed) {
            return false;
        }
        let carrier = &node.carrier;
        if born && brought.kept_away && !place.renewed {
            // The visitor's own token and route stay with the session that may be there.
            carrier.set_id(brought.mode, headers, IdPlace::Aside, [&id.reveal(), &node.route], None);
            carrier.began_aside();
            return true;
        }
        let mut any = born || brought.repair;
        if any {
            let text = id.reveal();
            carrier.set_id(brought.mode, headers, IdPlace::Own, [&text, &node.route], self.inner.kept(&place));
            if born && place.renewed {
                carrier.set_id(brought.mode, headers, IdPlace::Newest, [&text, &node.route], None);
            }
        }
        let tip = durable.and_then(|d| d.tip).filter(|s| s.version > 0);
        if let Some(stamp) = tip {
            let before = brought.token.filter(|t| !born && t.stamp == stamp);
            let (deadline, step) = node.deadline(opened, self.inner.relimited.load(Ordering::Relaxed));
            let current = before.is_some_and(|t| t.deadline.0.saturating_add(step) > deadline.0);
            if !current {
                let mut text = [0; Token::TEXT_MAX];
                let text = Token { stamp, deadline }.seal(&node.keys, &opened.key, &mut text);
                carrier.set_token(brought.mode, headers, text, self.inner.kept(&place));
                any = true;
            }
        }
        // Who was sent here by the cookie, and is served by a copy, learns where the session is. It has moved there for good: from a node
        // that leaves, or to one that had fewer.
        let owner = if brought.routed { node.owner_elsewhere(opened) } else { None };
        let route = match &owner {
            Some(owner) => Some(&**owner),
            None if !brought.routed && (born || tip.is_some()) && opened.guest_of().is_none() => Some(node.route.as_str()),
            None => None,
        };
        if let Some(route) = route {
            carrier.set_route(brought.mode, headers, route);
            any = true;
        }
        any
    }
}

impl Inner {
    /// For how long the browser is to keep the session's cookies, if not until it is closed.
    fn kept(&self, place: &Place) -> Option<Duration> {
        let bytes = place.live.get_raw(REMEMBER)?;
        let until = u32::from_be_bytes(bytes.as_ref().try_into().ok()?);
        Some(Duration::from_secs(until.saturating_sub(self.node.runtime.wall().0).into()))
    }

    fn set_limits(&self, place: &Place, limits: Limits) {
        self.relimited.store(true, Ordering::Relaxed);
        place.live.set_raw(place.request, LIMITS, Some(Bytes::copy_from_slice(&limits.encode())));
    }

    /// A loss that the handler asked for is told with its own changes: if they cannot be committed, the response is replaced and has told
    /// nothing.
    fn tell(&self) {
        if self.told.load(Ordering::Relaxed) {
            let place = self.place.read_recursive();
            place.live.set_raw(place.request, LOST, None);
        }
    }

    /// The attribute for which the request has to fail.
    fn stumbled(&self, place: &Place) -> Option<Arc<str>> {
        self.node.fail_undecodable.then(|| place.live.stumbled(place.request)).flatten()
    }

    fn has_turn(&self) -> bool {
        self.turn.get().is_some_and(|turn| turn.lock().is_some())
    }

    fn close(&self, place: &Place) {
        if let At::Here(_, opened) = &place.at {
            self.node.close(opened);
        }
        place.live.end(place.request);
    }

    fn count_stayed(&self, stayed: u32) {
        if stayed > 0 {
            self.node.stats.stayed.fetch_add(stayed.into(), Ordering::Relaxed);
            tracing::warn!(stayed, "changes of a failed request stayed: another request of the session had built upon them");
        }
    }

    fn commit(&self, place: &Place, opened: &Opened) -> Committing {
        if self.has_turn() && place.live.has_writes(place.request) && self.node.has_left(opened) {
            // Somebody else may have it to themselves there by now, and must not find half of what was done here.
            let stayed = place.live.rollback(place.request);
            self.count_stayed(stayed);
            return Step::Ready(Err(CommitError::Conflict));
        }
        let moved = place.live.successor().is_some_and(|key| key != opened.key);
        if moved {
            self.gone.store(true, Ordering::Relaxed);
        }
        let sent = self.commit_live(place, |changes, unsent| send(&self.node, &place.live, opened, changes, unsent));
        if let Ok((_, notes)) = &sent {
            for attribute in &notes.quarantined {
                self.node.runtime.tell(opened.key, Event::Quarantined { attribute: attribute.clone() });
            }
        }
        self.sent(sent).unwrap_or_else(|| match self.node.finish_read(opened) {
            Commit::Applied(_, step) => durable(step),
            // It ended or moved meanwhile; the request changed nothing, so there is nothing to refuse.
            _ => {
                self.gone.store(true, Ordering::Relaxed);
                NOTHING
            }
        })
    }

    /// Commits under the live session's lock; what is left to be sent goes when that is gone.
    fn commit_live(
        &self,
        place: &Place,
        send: impl FnOnce(&Changes, &mut Unsent<'_>) -> (Sent, Committing),
    ) -> Result<(Option<Committing>, Notes), CutError> {
        let mut unsent = None;
        place.live.commit(place.request, self.node.size_max, |changes| send(changes, unsent.insert(self.node.runtime.unsent())))
    }

    /// `None` if nothing was sent.
    fn sent(&self, sent: Result<(Option<Committing>, Notes), CutError>) -> Option<Committing> {
        match sent {
            Ok((step, notes)) => {
                self.count_stayed(notes.stayed);
                for attribute in notes.quarantined {
                    self.node.stats.quarantined.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!(%attribute, "an attribute's bytes did not decode; they were put aside by the first write");
                }
                step
            }
            Err(CutError::Encode { attribute, source }) => {
                Some(Step::Ready(Err(CommitError::Encode { attribute, source: Arc::new(source) })))
            }
            Err(CutError::TooLarge { attribute, what, got, limit }) => {
                Some(Step::Ready(Err(CommitError::TooLarge { attribute, what, got, limit })))
            }
        }
    }
}

/// The last clone is gone: what a late handle wrote is committed without waiting, what a running request wrote is taken back.
impl Drop for Inner {
    fn drop(&mut self) {
        let outlives = self.outlives.take();
        let place = self.place.read_recursive();
        // With `fail`, what a late handle wrote beside a value that does not decode is not kept either.
        let stumbled = outlives.is_some() && self.stumbled(&place).is_some();
        if outlives.is_some() {
            place.live.end(place.request);
        }
        if !self.late.load(Ordering::Relaxed) {
            let stayed = place.live.rollback(place.request);
            self.count_stayed(stayed);
            self.close(&place);
        } else if place.live.has_writes(place.request) {
            match &place.at {
                At::Here(..) if stumbled => {
                    place.live.rollback(place.request);
                    tracing::warn!("what was written after the request is not kept: a value that it used does not decode");
                }
                At::Here(_, opened) => last_commit(self.commit(&place, opened), outlives),
                At::Fresh(_) => {
                    self.node.stats.without_cookie.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!("what was written after the request is gone: its answer had left without a cookie");
                }
            }
        }
    }
}

/// What a late handle wrote last. Nobody waits for the answer but [`run`](crate::Outlive::run).
fn last_commit(commit: Committing, outlives: Option<Outliving>) {
    let say = |result: Result<Durable, CommitError>| {
        if let Err(error) = result {
            tracing::warn!(%error, "what was written after the request could not be committed");
        }
    };
    match (commit, tokio::runtime::Handle::try_current()) {
        (Step::Ready(result), _) => say(result),
        (Step::Wait(waiting), Ok(runtime)) => drop(runtime.spawn(async move {
            say(waiting.await);
            drop(outlives);
        })),
        // Without a runtime it goes on all the same, and nobody hears how it ends.
        (Step::Wait(_), Err(_)) => {}
    }
}

/// A handle that somebody holds after its request, or its last commit.
struct Outliving(Arc<Node>);

impl Outliving {
    fn new(node: Arc<Node>) -> Outliving {
        node.outliving.send_modify(|handles| *handles += 1);
        Outliving(node)
    }
}

impl Drop for Outliving {
    fn drop(&mut self) {
        self.0.outliving.send_modify(|handles| *handles = handles.saturating_sub(1));
    }
}

impl Committed {
    pub(crate) fn of(durable: Durable) -> Committed {
        Committed { level: durable.level, version: durable.tip.map_or(0, |t| t.version) }
    }
}

const NOTHING: Committing = Step::Ready(Ok(Durable { tip: None, level: Level::Owner }));

fn failed(failure: CommitFailure) -> CommitError {
    match failure {
        CommitFailure::Conflict => CommitError::Conflict,
        CommitFailure::Ended => CommitError::Ended,
        CommitFailure::UnderReplicated => CommitError::UnderReplicated,
        CommitFailure::Unreached => CommitError::Unavailable { why: NotNow::Silent, after: Duration::from_secs(1) },
        CommitFailure::Dead => CommitError::Unavailable { why: NotNow::Ended, after: Duration::from_secs(1) },
        // Only where the owner is another node: here it is known which attribute it is.
        CommitFailure::TooLarge(excess) => too_large("".into(), excess),
        _ => CommitError::Unknown,
    }
}

fn too_large(attribute: Arc<str>, excess: Excess) -> CommitError {
    let (what, got, limit) = match excess {
        Excess::Bytes { got, most } => ("bytes in the session", got, most),
        Excess::Attributes { got, most } => ("attributes in the session", got, most),
    };
    CommitError::TooLarge { attribute, what, got, limit }
}

fn durable(step: Step<Result<Durable, CommitFailure>>) -> Committing {
    match step {
        Step::Ready(result) => Step::Ready(result.map_err(failed)),
        Step::Wait(waiting) => Step::Wait(Box::pin(async move { waiting.await.map_err(failed) })),
    }
}

/// Sends changes to the engine. A request that was opened before its session rotated commits to the session under its new id.
fn send(node: &Node, live: &Arc<Live>, opened: &Opened, changes: &Changes, unsent: &mut Unsent<'_>) -> (Sent, Committing) {
    let commit = match live.successor().filter(|key| *key != opened.key) {
        None => node.runtime.commit_unsent(opened, changes, unsent),
        Some(key) => node.commit_to(key, changes, unsent),
    };
    match commit {
        Commit::Applied(stamp, step) => (Sent::Applied(stamp.unwrap_or_default()), durable(step)),
        Commit::Late(waiting) => {
            let place_holder = live.place_holder();
            (Sent::Applied(place_holder), Step::Wait(late(waiting, live.clone(), place_holder)))
        }
        Commit::Refused(CommitFailure::TooLarge(excess)) => {
            let largest = changes.iter().max_by_key(|c| c.value.as_ref().map_or(0, Bytes::len));
            let attribute = largest.map_or_else(|| Arc::from(""), |c| c.name.clone());
            (Sent::Refused, Step::Ready(Err(too_large(attribute, excess))))
        }
        Commit::Refused(failure) => (Sent::Refused, Step::Ready(Err(failed(failure)))),
    }
}

fn late(
    waiting: Waiting<Result<(Stamp, Level), CommitFailure>>,
    live: Arc<Live>,
    place_holder: Stamp,
) -> Waiting<Result<Durable, CommitError>> {
    Box::pin(async move {
        let (stamp, level) = waiting.await.map_err(failed)?;
        live.restamp(place_holder, stamp);
        Ok(Durable { tip: Some(stamp), level })
    })
}

/// A rotation on its way. If it fails, or whoever waits for it goes away, the old id is as it was.
struct Rotation {
    session: Session,
    old: Option<(SessionId, Opened)>,
}

impl Rotation {
    fn settle(mut self, done: Result<(), CommitFailure>) -> Result<(), CommitError> {
        done.map_err(failed)?;
        let inner = &*self.session.inner;
        if let Some((_, old)) = self.old.take() {
            inner.node.close(&old);
        }
        inner.known.store(true, Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for Rotation {
    fn drop(&mut self) {
        let Some((id, old)) = self.old.take() else { return };
        let inner = &*self.session.inner;
        let mut place = inner.place.write();
        old.live().locked(|| {
            old.live().set_successor(None);
            inner.node.not_rotating(&old);
            inner.node.reread(&old);
        });
        if let At::Here(_, new) = core::mem::replace(&mut place.at, At::Here(id, old))
            && !inner.late.load(Ordering::Relaxed)
        {
            inner.node.close(&new);
        }
    }
}
