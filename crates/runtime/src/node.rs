//! [`Node`]: one engine, driven.
//!
//! Calls of the application go into the engine on the caller's own thread; what the engine wants done is dispatched after each
//! call: bytes to the links' writers, answers to whoever waits, loads and writes to the store's tasks.

use crate::changes::Changes;
use crate::clock::{Clock, EntropyError, entropy};
use crate::dial::Dials;
use crate::drain::DrainReport;
use crate::handshake::StoreId;
use crate::links::Links;
use crate::opened::{At, Opened};
use crate::stats::{Counters, Readiness, Stats};
use crate::storing::StoreSide;
use crate::timer::Alarm;
use crate::waiting::{CommitFailure, Commits, Durable, Step, Tickets, Waiting};
use core::fmt;
use core::future::Future;
use core::sync::atomic::{AtomicU8, Ordering};
use core::time::Duration;
use outlive_core::Brought;
use outlive_core::config::{Durability, Level};
use outlive_core::engine::Engine;
use outlive_core::id::{IdKeys, Secret, SessionId, SessionKey};
use outlive_core::member::Member;
use outlive_core::output::{self, Event, Info, Live, Outcome, Output, Outputs, Over, Ticket, Unavailable, Want};
use outlive_core::record::{Change, Record};
use outlive_core::stamp::{Life, Stamp};
use outlive_core::time::{Mono, WallSeconds};
use outlive_core::wire::EndKind;
use parking_lot::Mutex;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use tokio::sync::{broadcast, oneshot, watch};

/// How often an `open` may begin anew because the session moved meanwhile.
const OPEN_TRIES: u32 = 32;
/// When to come again if a node does not say.
const SOON: Duration = Duration::from_secs(1);

/// How long losses are gathered for one line about them.
const LOSSES_PAUSE: Duration = Duration::from_secs(1);

const SERVING: u8 = 0;
const DRAINING: u8 = 1;
const DEAD: u8 = 2;

/// What a session turned out to be.
#[derive(Debug)]
pub enum Open<L> {
    /// It is here, or a copy of it. Give it back with [`Node::close`].
    Here(Opened<L>),
    /// Nobody has it. It is not adopted: a new session gets a new id.
    NotFound,
    /// It ended, so long ago.
    Ended(EndKind, Duration),
}

/// Why a session cannot be had now. Nothing changed; answer 503.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the session cannot be had now: {why:?}")]
pub struct OpenFailure {
    /// Why.
    pub why: Unavailable,
    /// When to come again.
    pub retry_after: Duration,
}

/// The answer to a commit, and to the end of a request that changed nothing.
pub enum Commit {
    /// It is in the session, as this commit if it changed anything. The response may leave when the step says so.
    Applied(Option<Stamp>, Step<Result<Durable, CommitFailure>>),
    /// The session moved, and the commit went to its owner.
    Late(Waiting<Result<(Stamp, Level), CommitFailure>>),
    /// Nothing was kept.
    Refused(CommitFailure),
}

/// A commit that may be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    /// This commit, if anything was changed.
    pub stamp: Option<Stamp>,
    /// The newest durable commit: what a token names.
    pub tip: Option<Stamp>,
    /// The level reached.
    pub level: Level,
}

impl fmt::Debug for Commit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Commit::Applied(stamp, step) => f.debug_tuple("Applied").field(stamp).field(step).finish(),
            Commit::Late(_) => f.write_str("Late"),
            Commit::Refused(failure) => f.debug_tuple("Refused").field(failure).finish(),
        }
    }
}

impl Commit {
    /// Waits until the response may leave.
    pub async fn done(self) -> Result<Committed, CommitFailure> {
        match self {
            Commit::Applied(stamp, step) => step.answer().await.map(|Durable { tip, level }| Committed { stamp, tip, level }),
            Commit::Late(waiting) => waiting.await.map(|(stamp, level)| Committed { stamp: Some(stamp), tip: Some(stamp), level }),
            Commit::Refused(failure) => Err(failure),
        }
    }
}

/// What commits have left to be sent; dropping it sends it.
#[must_use = "dropping it sends what commits have left: do that when no lock is held"]
pub struct Unsent<'a, L: Live> {
    inner: &'a Arc<Inner<L>>,
    out: Outputs,
}

impl<L: Live> Drop for Unsent<'_, L> {
    fn drop(&mut self) {
        self.inner.dispatch(&mut self.out);
    }
}

impl<L: Live> fmt::Debug for Unsent<'_, L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Unsent(..)")
    }
}

/// A session under its new id.
#[derive(Debug)]
pub struct Rotated<L> {
    /// The session. Give it back with [`Node::close`].
    pub opened: Opened<L>,
    /// Its first commit.
    pub committed: Committed,
}

/// Everything that the node's tasks share.
pub(crate) struct Inner<L> {
    pub(crate) engine: Engine<L>,
    pub(crate) clock: Clock,
    pub(crate) cluster: Box<str>,
    pub(crate) secret: Secret,
    pub(crate) links: Links,
    pub(crate) dials: Dials,
    pub(crate) alarm: Alarm,
    changes: Changes,
    pub(crate) store: Option<StoreSide>,
    pub(crate) store_id: Option<StoreId>,
    pub(crate) counters: Counters,
    pub(crate) formed: watch::Sender<bool>,
    pub(crate) draining: watch::Sender<bool>,
    /// Set when the node ends: its tasks end with it.
    pub(crate) stop: watch::Sender<bool>,
    pub(crate) tasks: Tasks,
    pub(crate) flush_only: watch::Sender<bool>,
    commit_bound: Duration,
    open_bound: Duration,
    tickets: Tickets,
    commits: Commits,
    events: broadcast::Sender<(SessionKey, Event)>,
    unsaid_losses: Mutex<UnsaidLosses>,
    members: watch::Sender<u64>,
    state: AtomicU8,
}

/// Losses since the last line about them.
#[derive(Debug, Default)]
struct UnsaidLosses {
    sessions: u64,
    commits: u64,
    /// The node that acknowledged the last of them.
    owner: Option<Life>,
}

/// The level that a commit is answered at, as long as there are enough nodes.
fn promised(config: &outlive_core::config::Config) -> Level {
    match config.durability {
        Durability::Owner => Level::Owner,
        Durability::Backup => Level::Backup(config.backups),
        Durability::Store => Level::Store,
    }
}

/// Where tasks run. A node of its own may have been made outside of a runtime: then there are none.
pub(crate) struct Tasks(pub(crate) Option<tokio::runtime::Handle>);

impl Tasks {
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        if let Some(handle) = &self.0 {
            drop(handle.spawn(task));
        }
    }
}

/// What [`Inner::new`] is made of.
pub(crate) struct Parts<L> {
    pub(crate) engine: Engine<L>,
    pub(crate) clock: Clock,
    pub(crate) cluster: Box<str>,
    pub(crate) secret: Secret,
    pub(crate) dials: Dials,
    pub(crate) store: Option<StoreSide>,
    pub(crate) store_id: Option<StoreId>,
    pub(crate) bounds: (Duration, Duration),
    pub(crate) tasks: Tasks,
}

impl<L: Live> Inner<L> {
    pub(crate) fn new(parts: Parts<L>) -> Inner<L> {
        Inner {
            engine: parts.engine,
            clock: parts.clock,
            cluster: parts.cluster,
            secret: parts.secret,
            links: Links::default(),
            dials: parts.dials,
            alarm: Alarm::default(),
            changes: Changes::default(),
            store: parts.store,
            store_id: parts.store_id,
            counters: Counters::default(),
            formed: watch::Sender::new(false),
            draining: watch::Sender::new(false),
            stop: watch::Sender::new(false),
            tasks: parts.tasks,
            flush_only: watch::Sender::new(false),
            commit_bound: parts.bounds.0,
            open_bound: parts.bounds.1,
            tickets: Tickets::default(),
            commits: Commits::default(),
            events: broadcast::Sender::new(4096),
            unsaid_losses: Mutex::default(),
            members: watch::Sender::new(0),
            state: AtomicU8::new(SERVING),
        }
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.state.load(Ordering::Acquire) == DEAD
    }

    /// One call into the engine, and what it wants done. `None`: the node is dead.
    pub(crate) fn call<R>(self: &Arc<Self>, f: impl FnOnce(&Engine<L>, Mono, &mut Outputs) -> R) -> Option<R> {
        let mut out = Outputs::new();
        let result = self.enter(&mut out, f);
        self.dispatch(&mut out);
        result
    }

    /// Like [`call`](Inner::call), for calls that may arm a timer.
    pub(crate) fn call_timed<R>(self: &Arc<Self>, f: impl FnOnce(&Engine<L>, Mono, &mut Outputs) -> R) -> Option<R> {
        let result = self.call(f);
        self.alarm.check(&self.engine);
        result
    }

    /// Only the call. A panic inside means that a part of the sessions may be half changed: the node serves nobody any more.
    fn enter<R>(self: &Arc<Self>, out: &mut Outputs, f: impl FnOnce(&Engine<L>, Mono, &mut Outputs) -> R) -> Option<R> {
        self.enter_at(self.clock.now(), out, f)
    }

    fn enter_at<R>(self: &Arc<Self>, now: Mono, out: &mut Outputs, f: impl FnOnce(&Engine<L>, Mono, &mut Outputs) -> R) -> Option<R> {
        if self.is_dead() {
            return None;
        }
        match catch_unwind(AssertUnwindSafe(|| f(&self.engine, now, out))) {
            Ok(result) => Some(result),
            Err(_) => {
                self.die("the engine panicked");
                None
            }
        }
    }

    /// Stops serving; only a new start of the process serves again. Whoever waits gets an error.
    pub(crate) fn die(self: &Arc<Self>, why: &str) {
        if self.state.swap(DEAD, Ordering::AcqRel) == DEAD {
            return;
        }
        tracing::error!(why, "this node is dead to its cluster; restart the process");
        // The caller may hold locks that this needs.
        let inner = self.clone();
        self.tasks.spawn(async move { inner.end_all() });
    }

    /// Closes everything that is open.
    pub(crate) fn end_all(&self) {
        self.state.store(DEAD, Ordering::Release);
        let _ = self.stop.send_replace(true);
        self.links.close_all();
        self.tickets.clear();
        self.commits.clear();
    }

    /// Nearly always there is nothing.
    #[inline]
    fn dispatch(self: &Arc<Self>, out: &mut Outputs) {
        if !out.is_empty() {
            self.carry_out(out);
        }
    }

    fn carry_out(self: &Arc<Self>, out: &mut Outputs) {
        for output in out.drain() {
            match output {
                Output::Flush(link) => self.links.flush(link, &self.engine, &self.counters),
                Output::Close(link) => self.links.close(link),
                Output::Connect { life, addr } => self.connect(life, addr),
                Output::Load(key) => self.load(key),
                Output::StoreReady => self.write_soon(),
                Output::Settled(ticket, outcome) => self.tickets.settle(ticket, outcome),
                Output::Durable { key, claim, version, tip, level } => {
                    let tip = (tip.version > 0).then_some(tip);
                    self.commits.room(key).settle(key, claim, version, Ok(Durable { tip, level }));
                }
                Output::Failed { key, claim, version, failure } => {
                    self.commits.room(key).settle(key, claim, version, Err(failure.into()));
                }
                Output::Event(key, event) => {
                    self.counters.event(&event);
                    if let Event::Lost { stamps, commits } = &event {
                        self.say_lost(stamps, *commits);
                    }
                    if self.events.receiver_count() > 0 {
                        let _ = self.events.send((key, event));
                    }
                }
                Output::Members => self.tell_members(),
                // Handshakes ask the engine who this node is.
                Output::Rebooted(_) => tracing::info!("an earlier life of this node's name had a later clock"),
                Output::Superseded(by) => {
                    tracing::error!(?by, "another process runs under this node's name and is younger");
                    self.die("superseded");
                }
                _ => {}
            }
        }
    }

    pub(crate) fn readiness(self: &Arc<Self>) -> Readiness {
        match self.state.load(Ordering::Acquire) {
            DEAD => Readiness::Dead,
            DRAINING => Readiness::Draining,
            _ => self.degraded(),
        }
    }

    /// The membership may have changed.
    fn tell_members(&self) {
        self.members.send_modify(|n| *n += 1);
        self.say_changes();
    }

    /// How a member died may be seen after the news of its death.
    pub(crate) fn say_unseen(&self) {
        if self.changes.waits() {
            self.say_changes();
        }
    }

    fn say_changes(&self) {
        if let Some(line) = self.changes.line(self.clock.now(), self.engine.life(), &self.engine.members()) {
            let members = self.engine.stats(self.clock.now()).members;
            // Somebody has to see why; whoever leaves in order was asked to.
            match ["dead:", "not reached from here:"].iter().any(|what| line.contains(what)) {
                true => tracing::warn!(members, "{line}"),
                false => tracing::info!(members, "{line}"),
            }
        }
    }

    /// A loss is the operator's business, too: which node took it along, and what had been promised. The death of one node may take many
    /// sessions' changes along, so those of a second are one line.
    fn say_lost(self: &Arc<Self>, stamps: &[Stamp], commits: u32) {
        let mut unsaid = self.unsaid_losses.lock();
        let first = unsaid.sessions == 0;
        unsaid.sessions += 1;
        unsaid.commits += u64::from(commits);
        unsaid.owner = stamps.last().map(|stamp| stamp.claim.life);
        drop(unsaid);
        if !first {
            return;
        }
        let inner = self.clone();
        self.tasks.spawn(async move {
            tokio::time::sleep(LOSSES_PAUSE).await;
            let unsaid = core::mem::take(&mut *inner.unsaid_losses.lock());
            let owner = unsaid.owner.and_then(|life| inner.engine.name_of(life)).unwrap_or_else(|| "unknown".into());
            tracing::error!(
                sessions = unsaid.sessions,
                versions = unsaid.commits,
                owner = &*owner,
                level = %promised(inner.engine.config()),
                "acknowledged changes are lost: neither a live node nor the store has them; their visitors are told once. \
                 A higher durability survives more"
            );
        });
    }

    fn load(self: &Arc<Self>, key: SessionKey) {
        if let Some(store) = &self.store {
            store.load(key);
        }
    }

    fn write_soon(self: &Arc<Self>) {
        if let Some(store) = &self.store {
            store.write_soon();
        }
    }

    pub(crate) fn tidy(&self) {
        self.commits.tidy();
    }

    async fn settled(&self, bound: Duration, answer: oneshot::Receiver<Outcome>) -> Option<Outcome> {
        tokio::time::timeout(bound, answer).await.ok()?.ok()
    }

    /// With `uses` that counts as a use of the session.
    fn opens(
        self: &Arc<Self>,
        key: SessionKey,
        token: Option<Brought>,
        want: Want,
    ) -> Result<Result<Open<L>, OpenFailure>, oneshot::Receiver<Outcome>> {
        let open = |e: &Engine<L>, now, out: &mut Outputs| match want {
            Want::Use => e.open(now, key, token, out),
            Want::Look => e.look(now, key, token, out),
            Want::Create => e.open_or_create(now, key, token, out),
        };
        let Some(open) = self.call(open) else { return Ok(Err(dead())) };
        Ok(match open {
            output::Open::Here(opened) => Ok(Open::Here(opened.into())),
            output::Open::Wait(ticket) => {
                let answer = self.tickets.wait(ticket);
                self.alarm.check(&self.engine);
                return Err(answer);
            }
            output::Open::NotFound => Ok(Open::NotFound),
            output::Open::Ended(kind, ago) => Ok(Open::Ended(kind, ago)),
            output::Open::Unavailable(why, retry_after) => Err(OpenFailure { why, retry_after }),
            _ => Err(dead()),
        })
    }

    async fn open_later(
        self: Arc<Self>,
        key: SessionKey,
        token: Option<Brought>,
        want: Want,
        mut answer: oneshot::Receiver<Outcome>,
    ) -> Result<Open<L>, OpenFailure> {
        let late = OpenFailure { why: Unavailable::Stale, retry_after: SOON };
        let until = tokio::time::Instant::now() + self.open_bound;
        for _ in 0..OPEN_TRIES {
            let outcome = tokio::time::timeout_at(until, answer).await.map_err(|_| late)?.map_err(|_| dead())?;
            match outcome {
                Outcome::Again => {}
                Outcome::NotFound => return Ok(Open::NotFound),
                Outcome::Ended(kind, ago) => return Ok(Open::Ended(kind, ago)),
                Outcome::Guest(guest) => return Ok(Open::Here(Opened::guest(key, *guest))),
                Outcome::Unavailable(why, retry_after) => return Err(OpenFailure { why, retry_after }),
                _ => return Err(late),
            }
            match self.opens(key, token, want) {
                Ok(opened) => return opened,
                Err(next) => answer = next,
            }
        }
        Err(OpenFailure { why: Unavailable::Contended, ..late })
    }

    /// Turns the engine's answer into ours. `room` has been locked since before the commit.
    fn committed(self: &Arc<Self>, key: SessionKey, commit: Option<output::Commit>, room: &mut crate::waiting::Room<'_>) -> Commit {
        match commit {
            Some(output::Commit::Done { tip, level, stamp }) => Commit::Applied(stamp, Step::Ready(Ok(Durable { tip, level }))),
            Some(output::Commit::Wait { claim, version, stamp }) => {
                let answer = room.wait(key, claim, version);
                Commit::Applied(stamp, Step::Wait(self.durable(answer)))
            }
            Some(output::Commit::Late(ticket)) => Commit::Late(self.late(ticket)),
            Some(output::Commit::Conflict) => Commit::Refused(CommitFailure::Conflict),
            Some(output::Commit::Ended) => Commit::Refused(CommitFailure::Ended),
            Some(output::Commit::UnderReplicated) => Commit::Refused(CommitFailure::UnderReplicated),
            Some(output::Commit::TooLarge(excess)) => Commit::Refused(CommitFailure::TooLarge(excess)),
            None => Commit::Refused(CommitFailure::Dead),
            _ => Commit::Refused(CommitFailure::Unknown),
        }
    }

    fn durable(self: &Arc<Self>, answer: oneshot::Receiver<Result<Durable, CommitFailure>>) -> Waiting<Result<Durable, CommitFailure>> {
        let inner = self.clone();
        Box::pin(async move {
            match tokio::time::timeout(inner.commit_bound, answer).await {
                Ok(Ok(result)) => result,
                Ok(Err(_)) | Err(_) => {
                    inner.counters.unknown.add();
                    Err(CommitFailure::Unknown)
                }
            }
        })
    }

    fn late(self: &Arc<Self>, ticket: Ticket) -> Waiting<Result<(Stamp, Level), CommitFailure>> {
        let answer = self.tickets.wait(ticket);
        let inner = self.clone();
        Box::pin(async move {
            // The engine gives up after its own bound; this one is for a dead node.
            match inner.settled(inner.commit_bound + SOON, answer).await {
                Some(Outcome::Late { stamp, level }) => Ok((stamp, level)),
                Some(Outcome::LateFailed(failure)) => Err(failure.into()),
                _ => {
                    inner.counters.unknown.add();
                    Err(CommitFailure::Unknown)
                }
            }
        })
    }

    fn end(self: &Arc<Self>, key: SessionKey, next: Option<SessionKey>) -> Waiting<bool> {
        self.ending(self.call_timed(|e, now, out| e.end(now, key, next, out)))
    }

    fn ending(self: &Arc<Self>, ticket: Option<Ticket>) -> Waiting<bool> {
        let answer = ticket.map(|ticket| self.tickets.wait(ticket));
        let inner = self.clone();
        Box::pin(async move {
            let Some(answer) = answer else { return false };
            matches!(inner.settled(inner.commit_bound, answer).await, Some(Outcome::End(true)))
        })
    }
}

fn dead() -> OpenFailure {
    OpenFailure { why: Unavailable::Dead, retry_after: SOON }
}

/// One node of a cluster. Clones are the same node; it ends with the last of them, or by [`drain`](Node::drain) or
/// [`shutdown_now`](Node::shutdown_now).
///
/// Futures may be dropped at any time: what was begun goes on, and only the answer is lost.
pub struct Node<L: Live> {
    pub(crate) inner: Arc<Inner<L>>,
    _end: Arc<End<L>>,
}

impl<L: Live> Clone for Node<L> {
    fn clone(&self) -> Node<L> {
        Node { inner: self.inner.clone(), _end: self._end.clone() }
    }
}

impl<L: Live> fmt::Debug for Node<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").field("life", &self.inner.engine.life()).finish_non_exhaustive()
    }
}

/// Ends the node's tasks when nobody can use it any more; they hold it alive otherwise.
struct End<L: Live>(Arc<Inner<L>>);

impl<L: Live> Drop for End<L> {
    fn drop(&mut self) {
        self.0.end_all();
    }
}

/// Closes a session under a new id if whoever rotates goes away; before the old one has ended, the new one ends instead.
struct NewId<L: Live> {
    inner: Arc<Inner<L>>,
    opened: Option<output::Opened<L>>,
    ended_old: bool,
}

impl<L: Live> Drop for NewId<L> {
    fn drop(&mut self) {
        if let Some(opened) = self.opened.take() {
            self.inner.call(|e, now, out| e.close(now, &opened, out));
            if !self.ended_old {
                // Nobody has been told this id.
                drop(self.inner.end(opened.key, None));
            }
        }
    }
}

impl<L: Live> Node<L> {
    pub(crate) fn of(inner: Arc<Inner<L>>) -> Node<L> {
        Node { _end: Arc::new(End(inner.clone())), inner }
    }

    // ---- sessions -------------------------------------------------------------------------------------------------------

    /// The keys for ids and tokens of a namespace.
    pub fn keys(&self, namespace: &str) -> IdKeys {
        self.inner.secret.keys(namespace)
    }

    /// A new session id.
    pub fn draw_id(&self, keys: &IdKeys) -> Result<SessionId, EntropyError> {
        entropy().map(|random| SessionId::issue(keys, random))
    }

    /// A session under an id that was drawn just now. It costs nobody anything until its first commit. Give it back with
    /// [`close`](Node::close).
    pub fn create(&self, key: SessionKey) -> Result<Opened<L>, OpenFailure> {
        let created = self.inner.call(|e, now, out| e.create(now, key, out));
        created.ok_or_else(dead)?.map(Opened::from).map_err(|why| OpenFailure { why, retry_after: SOON })
    }

    /// Like [`create`](Node::create), around a live session that is there already.
    pub fn create_with(&self, key: SessionKey, live: Arc<L>) -> Result<Opened<L>, OpenFailure> {
        let created = self.inner.call(|e, now, out| e.create_with(now, key, live, out));
        created.ok_or_else(dead)?.map(Opened::from).map_err(|why| OpenFailure { why, retry_after: SOON })
    }

    /// Opens a session. One that this node owns is there at once, without a message; otherwise other nodes or the store are asked,
    /// within `open_bound`.
    pub fn open(&self, key: SessionKey, token: Option<Brought>) -> Step<Result<Open<L>, OpenFailure>> {
        self.opens(key, token, Want::Use)
    }

    /// Like [`open`](Node::open), and no use: the session does not live longer for it.
    pub fn look(&self, key: SessionKey, token: Option<Brought>) -> Step<Result<Open<L>, OpenFailure>> {
        self.opens(key, token, Want::Look)
    }

    /// Opens a session under a name that clients chose, and begins it if nobody has it: see
    /// [`Engine::open_or_create`](outlive_core::engine::Engine::open_or_create). It costs a question to every node.
    pub fn open_or_create(&self, key: SessionKey, token: Option<Brought>) -> Step<Result<Open<L>, OpenFailure>> {
        self.opens(key, token, Want::Create)
    }

    fn opens(&self, key: SessionKey, token: Option<Brought>, want: Want) -> Step<Result<Open<L>, OpenFailure>> {
        match self.inner.opens(key, token, want) {
            Ok(opened) => Step::Ready(opened),
            Err(answer) => Step::Wait(Box::pin(self.inner.clone().open_later(key, token, want, answer))),
        }
    }

    /// Gives an opened session back; exactly once for each [`Open::Here`] and [`create`](Node::create).
    pub fn close(&self, at: &Opened<L>) {
        let At::Owned(at) = &at.at else { return };
        let mut out = Outputs::new();
        self.inner.enter_at(self.inner.clock.lately(), &mut out, |e, now, out| e.close(now, at, out));
        self.inner.dispatch(&mut out);
    }

    /// Reads the record of an opened session and how often others' commits were merged into it; `None` if it has moved. Called under a
    /// lock of the engine: copy handles, lock nothing. A copy is as it was when it was opened.
    pub fn read<R>(&self, at: &Opened<L>, f: impl FnOnce(&Record, u32) -> R) -> Option<R> {
        let at = match &at.at {
            At::Owned(at) => at,
            At::Guest(guest, _) => return Some(f(&guest.record, 0)),
        };
        self.inner.enter_at(Mono::ZERO, &mut Outputs::new(), |e, _, _| e.read(at, f)).flatten()
    }

    /// Commits changes, all or nothing. The change is in the session when this returns; the response may leave when the answer says so,
    /// within `commit_bound`.
    pub fn commit(&self, at: &Opened<L>, changes: &[Change]) -> Commit {
        self.commit_unsent(at, changes, &mut self.unsent())
    }

    /// Where [`commit_unsent`](Node::commit_unsent) leaves what it has to send.
    pub fn unsent(&self) -> Unsent<'_, L> {
        Unsent { inner: &self.inner, out: Outputs::new() }
    }

    /// Like [`commit`](Node::commit), and what follows from it, such as frames to backups, is sent when `unsent` is dropped: for callers
    /// that hold a lock of their own, under which nothing should be written to a socket. Commits are sent in the order in which they were
    /// made, whichever is dropped first.
    pub fn commit_unsent(&self, at: &Opened<L>, changes: &[Change], unsent: &mut Unsent<'_, L>) -> Commit {
        let at = match &at.at {
            At::Owned(at) => at,
            At::Guest(guest, _) => return Commit::Late(self.commit_late(at.key, Some(guest.record.tip), changes)),
        };
        let mut room = self.inner.commits.room(at.key);
        let commit = self.inner.enter(&mut unsent.out, |e, now, out| e.commit(now, at, changes, out));
        self.inner.committed(at.key, commit, &mut room)
    }

    /// Commits changes to a session that another node owns, for a request that has read this commit of it.
    pub fn commit_late(&self, key: SessionKey, read: Option<Stamp>, changes: &[Change]) -> Waiting<Result<(Stamp, Level), CommitFailure>> {
        match self.inner.call_timed(|e, now, out| e.commit_late(now, key, read, changes, out)) {
            Some(ticket) => self.inner.late(ticket),
            None => Box::pin(core::future::ready(Err(CommitFailure::Dead))),
        }
    }

    /// The last step of a rotation at a node that serves a copy (see [`Opened::guest_of`]): the session's owner ends it, and lets it go on as
    /// `next`, if the copy's last commit is still the session's. If this fails, `next` is to end instead.
    pub fn end_copied(&self, key: SessionKey, read: Stamp, next: SessionKey) -> Waiting<Result<(), CommitFailure>> {
        let ended = match self.inner.call_timed(|e, now, out| e.end_copied(now, key, read, next, out)) {
            Some(ticket) => self.inner.late(ticket),
            None => return Box::pin(core::future::ready(Err(CommitFailure::Dead))),
        };
        Box::pin(async move { ended.await.map(drop) })
    }

    /// Ends a request that changed nothing: its response may leave when all that it read is durable. Almost always that is now.
    pub fn finish_read(&self, at: &Opened<L>) -> Commit {
        let at = match &at.at {
            At::Owned(at) => at,
            // The owner sent what was durable.
            At::Guest(guest, _) => {
                return Commit::Applied(None, Step::Ready(Ok(Durable { tip: Some(guest.record.tip), level: Level::Owner })));
            }
        };
        self.finish_owned(at)
    }

    fn finish_owned(&self, at: &output::Opened<L>) -> Commit {
        let finish = |out: &mut Outputs| self.inner.enter_at(self.inner.clock.lately(), out, |e, now, out| e.finish_read(now, at, out));
        let mut out = Outputs::new();
        let commit = match finish(&mut out) {
            Some(output::Commit::Done { tip, level, stamp }) => Commit::Applied(stamp, Step::Ready(Ok(Durable { tip, level }))),
            // It may have become durable meanwhile, and then nobody says so again: ask once more with the waiters locked.
            _ => {
                let mut room = self.inner.commits.room(at.key);
                let commit = finish(&mut out);
                self.inner.committed(at.key, commit, &mut room)
            }
        };
        self.inner.dispatch(&mut out);
        commit
    }

    /// Ends a session for good, on every node that hears of it; needs no ownership. `next` is the id that it goes on under, if it does;
    /// should somebody log out meanwhile, that one ends too. `true`: all live holders and the store know; `false`: one of them is
    /// silent, and is told again.
    pub fn end(&self, key: SessionKey, next: Option<SessionKey>) -> Waiting<bool> {
        self.inner.end(key, next)
    }

    /// The session goes on under another id: its committed content becomes the first commit of `key`; when that is durable the old id
    /// ends. Commit first what is to go along; close `at` as ever. If it fails, because somebody has changed or taken over the session
    /// meanwhile perhaps, the old id stays as it was. Only for a session that this node owns.
    pub fn rotate(&self, at: &Opened<L>, key: SessionKey) -> Waiting<Result<Rotated<L>, CommitFailure>> {
        let At::Owned(at) = &at.at else { return Box::pin(core::future::ready(Err(CommitFailure::Conflict))) };
        let mut out = Outputs::new();
        let opened = self.inner.enter(&mut out, |e, now, out| e.rotate(now, at, key, out)).flatten();
        self.inner.dispatch(&mut out);
        let Some(opened) = opened else { return Box::pin(core::future::ready(Err(CommitFailure::Ended))) };
        let first = self.finish_owned(&opened);
        let mut new = NewId { inner: self.inner.clone(), opened: Some(opened), ended_old: false };
        let (inner, at) = (self.inner.clone(), at.clone());
        Box::pin(async move {
            let committed = first.done().await.map_err(|failure| match failure {
                // Whatever becomes of the copy, it ends under the new id, and the old one is as it was.
                CommitFailure::Unknown => CommitFailure::Unreached,
                failure => failure,
            })?;
            let ticket = inner.call_timed(|e, now, out| e.end_rotated(now, &at, key, out)).ok_or(CommitFailure::Dead)?;
            new.ended_old = ticket.is_some();
            if ticket.is_none() {
                let ended = inner.enter_at(Mono::ZERO, &mut Outputs::new(), |e, _, _| e.info(at.key)).flatten().is_none();
                return Err(if ended { CommitFailure::Ended } else { CommitFailure::Conflict });
            }
            inner.ending(ticket).await;
            let opened = new.opened.take().ok_or(CommitFailure::Unknown)?;
            Ok(Rotated { opened: opened.into(), committed: Committed { stamp: committed.tip, ..committed } })
        })
    }

    /// An [`Opened::deadline`] by the wall clock, for a token.
    pub fn deadline(&self, at: Mono) -> WallSeconds {
        // Both clocks are read some milliseconds late, and seconds are cut.
        let left = at.since(self.inner.clock.lately()).as_secs().saturating_add(2);
        WallSeconds(self.wall().0.saturating_add(u32::try_from(left).unwrap_or(u32::MAX)))
    }

    /// The wall clock some milliseconds ago, for judging a token's deadline.
    pub fn wall(&self) -> WallSeconds {
        self.inner.clock.wall_lately()
    }

    /// This node's clock, as in `Opened::expires`.
    pub fn now(&self) -> Mono {
        self.inner.clock.now()
    }

    // ---- looking --------------------------------------------------------------------------------------------------------

    /// What this node knows of a session.
    pub fn info(&self, key: SessionKey) -> Option<Info> {
        self.inner.enter_at(Mono::ZERO, &mut Outputs::new(), |e, _, _| e.info(key)).flatten()
    }

    /// How a session is over, if that is known here. Asks nobody.
    pub fn over(&self, key: SessionKey) -> Option<Over> {
        self.inner.enter_at(Mono::ZERO, &mut Outputs::new(), |e, _, _| e.over(key)).flatten()
    }

    /// The nodes that would hold a session, in order.
    pub fn placed(&self, key: SessionKey) -> Vec<Life> {
        self.inner.enter_at(Mono::ZERO, &mut Outputs::new(), |e, _, _| e.placed(key)).unwrap_or_default()
    }

    /// This node.
    pub fn me(&self) -> outlive_core::member::Node {
        self.inner.engine.me()
    }

    /// The members, this node and those that died within a day included.
    pub fn members(&self) -> Vec<Member> {
        self.inner.engine.members()
    }

    /// The name of the node that a life belonged to, if it is still remembered.
    pub fn name_of(&self, life: Life) -> Option<Box<str>> {
        self.inner.engine.name_of(life)
    }

    /// Rises whenever the membership changes.
    pub fn watch_members(&self) -> watch::Receiver<u64> {
        self.inner.members.subscribe()
    }

    /// What happens to sessions here. Bounded: whoever is slow is told how many were dropped.
    pub fn subscribe_events(&self) -> broadcast::Receiver<(SessionKey, Event)> {
        self.inner.events.subscribe()
    }

    /// Tells those who watch of something that only the application's side can see.
    pub fn tell(&self, key: SessionKey, event: Event) {
        // Nobody may be watching.
        let _ = self.inner.events.send((key, event));
    }

    /// Numbers.
    pub fn stats(&self) -> Stats {
        self.inner.stats()
    }

    /// Whether requests should be sent here.
    pub fn readiness(&self) -> Readiness {
        self.inner.readiness()
    }

    /// What keeps this node apart from others, as the log says it every minute: who does not let it in, or that nobody whom it was to
    /// join is reached, each with the reason. `None`: nothing.
    pub fn apart(&self) -> Option<String> {
        self.inner.apart()
    }

    /// Addresses of `join` where this node has never met anybody, each with the reason: a typo, or a node that is not there yet.
    pub fn unmet(&self) -> Vec<String> {
        self.inner.unmet()
    }

    // ---- leaving --------------------------------------------------------------------------------------------------------

    /// Becomes `true` when the node begins to leave.
    pub fn draining(&self) -> watch::Receiver<bool> {
        self.inner.draining.subscribe()
    }

    /// The first part of a [`drain`](Node::drain), for a server that still has requests in flight: others take over what is owned here,
    /// and the store's queue is flushed, until `deadline` at the latest. The node goes on: requests are served, their commits go to the
    /// sessions' new owners. Sessions that begin here meanwhile are handed over too, but not waited for: they come as long as requests do.
    pub async fn hand_over(&self, deadline: Duration) -> DrainReport {
        self.begin_to_leave();
        self.inner.hand_over(deadline, |drained| drained.left == drained.newcomers).await
    }

    /// Leaves in order: others take over what is owned here, copies held for others move, the store's queue is flushed. Requests are
    /// served meanwhile. Ends the node, at `deadline` at the latest; says how many sessions are not known to be safe elsewhere.
    pub async fn drain(&self, deadline: Duration) -> DrainReport {
        self.begin_to_leave();
        self.inner.drain(deadline).await
    }

    fn begin_to_leave(&self) {
        let _ = self.inner.state.compare_exchange(SERVING, DRAINING, Ordering::AcqRel, Ordering::Acquire);
        self.inner.draining.send_replace(true);
    }

    /// Makes a drain that runs wait for nothing but the store's queue: the second signal.
    pub fn drain_faster(&self) {
        self.inner.flush_only.send_replace(true);
    }

    /// Stops at once and says goodbye to nobody, like a crash.
    pub fn shutdown_now(&self) {
        self.inner.end_all();
    }
}
