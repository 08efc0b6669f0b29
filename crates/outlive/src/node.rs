//! The seam to the runtime: what the library asks of a node, with the answers it needs.

use crate::builder::Names;
use crate::cookie::Carrier;
use crate::error::NotNow;
use crate::live::{Changes, Live};
use crate::session::SessionInfo;
use bytes::Bytes;
use core::pin::Pin;
use core::sync::atomic::AtomicU64;
use core::task::{Context, Poll, Waker};
use core::time::Duration;
use outlive_core::Brought;
use outlive_core::config::Limits;
use outlive_core::id::{IdKeys, SessionId, SessionKey};
use outlive_core::output::{self, Over, Unavailable};
use outlive_core::record::{Base, Change, ROTATING, Record};
use outlive_core::stamp::{Life, Stamp};
use outlive_core::time::WallSeconds;
use outlive_core::token::Token;
use std::sync::Arc;

pub(crate) use outlive_core::wire::EndKind;
pub(crate) use outlive_runtime::{Commit, CommitFailure, Durable, Step, Waiting};
pub(crate) type Opened = outlive_runtime::Opened<Live>;

pub(crate) type Unsent<'a> = outlive_runtime::Unsent<'a, Live>;

/// How long a rotation may take; what is older was left by a node that has gone, in seconds.
pub(crate) const ROTATING_S: u32 = 60;

/// The node of this process, with what the library knows beside it.
pub(crate) struct Node {
    pub(crate) runtime: outlive_runtime::Node<Live>,
    pub(crate) keys: IdKeys,
    /// This node's name: what stands behind the id in the cookie.
    pub(crate) route: String,
    pub(crate) carrier: Carrier,
    pub(crate) size_max: usize,
    pub(crate) limits: Limits,
    pub(crate) drain_notice: Duration,
    pub(crate) drain_timeout: Duration,
    pub(crate) shutdown_grace: Duration,
    pub(crate) has_store: bool,
    /// A request that meets a value which does not decode fails.
    pub(crate) fail_undecodable: bool,
    pub(crate) stats: Counters,
    /// Handles that somebody holds after their requests.
    pub(crate) outliving: tokio::sync::watch::Sender<usize>,
    /// No other namespace of this process has them while this node lives.
    pub(crate) _names: Names,
}

/// What is counted, not kept silent.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Changes of failed requests that stayed because another had built upon them.
    pub(crate) stayed: AtomicU64,
    /// Changes refused because their session could not get a cookie any more.
    pub(crate) without_cookie: AtomicU64,
    /// Tokens of another session, or of none.
    pub(crate) foreign_tokens: AtomicU64,
    /// Old bytes put aside by a first write.
    pub(crate) quarantined: AtomicU64,
}

/// The answer to `open`.
pub(crate) enum Open {
    Here(Opened),
    NotFound,
    Ended(EndKind, Duration),
    Stale(Duration),
    Unavailable(NotNow, Duration),
}

impl output::Live for Live {
    fn of(record: &Record) -> Live {
        Live::from_record(record)
    }
}

impl Node {
    pub(crate) fn draw_id(&self) -> Result<SessionId, (NotNow, Duration)> {
        self.runtime.draw_id(&self.keys).map_err(|error| {
            tracing::error!(%error, "no session can begin");
            (NotNow::Busy, Duration::from_secs(1))
        })
    }

    /// Without `uses` it is only a look: the session does not live longer for it.
    pub(crate) fn open(self: &Arc<Self>, key: SessionKey, token: Option<Token>, uses: bool) -> Step<Open> {
        let token = token.map(|t| Brought { stamp: t.stamp, expired: t.deadline < self.runtime.wall() });
        match if uses { self.runtime.open(key, token) } else { self.runtime.look(key, token) } {
            Step::Ready(open) => Step::Ready(self.opened(open)),
            Step::Wait(waiting) => {
                let node = self.clone();
                Step::Wait(Box::pin(async move { node.opened(waiting.await) }))
            }
        }
    }

    fn opened(&self, open: Result<outlive_runtime::Open<Live>, outlive_runtime::OpenFailure>) -> Open {
        match open {
            Ok(outlive_runtime::Open::Here(opened)) => {
                if opened.external() != opened.live().external() {
                    self.reread(&opened);
                }
                Open::Here(opened)
            }
            Ok(outlive_runtime::Open::NotFound) => Open::NotFound,
            Ok(outlive_runtime::Open::Ended(kind, ago)) => Open::Ended(kind, ago),
            Err(failure) if failure.why == Unavailable::Stale => Open::Stale(failure.retry_after),
            Err(failure) => Open::Unavailable(not_now(failure.why), failure.retry_after),
        }
    }

    /// Commits for a request that was opened before its session got this key. Called within a commit of the live session.
    pub(crate) fn commit_to(&self, key: SessionKey, changes: &Changes, unsent: &mut Unsent<'_>) -> Commit {
        match ready(self.runtime.open(key, None)) {
            Some(Ok(outlive_runtime::Open::Here(opened))) => {
                let commit = self.runtime.commit_unsent(&opened, changes, unsent);
                self.runtime.close(&opened);
                commit
            }
            _ => Commit::Refused(CommitFailure::Conflict),
        }
    }

    /// A session under an id that was drawn just now, around this live session.
    pub(crate) fn create(&self, key: SessionKey, live: Arc<Live>) -> Result<Opened, (NotNow, Duration)> {
        self.runtime.create_with(key, live).map_err(|failure| (not_now(failure.why), failure.retry_after))
    }

    pub(crate) fn finish_read(&self, at: &Opened) -> Commit {
        self.runtime.finish_read(at)
    }

    pub(crate) fn close(&self, at: &Opened) {
        self.runtime.close(at);
    }

    /// Notes a use.
    pub(crate) fn touch(self: &Arc<Self>, at: &Opened) {
        if let (None, Step::Ready(Open::Here(opened))) = (at.guest_of(), self.open(at.key, None, true)) {
            self.close(&opened);
        }
    }

    pub(crate) fn end(&self, key: SessionKey) -> Step<bool> {
        now_or_later(self.runtime.end(key, None))
    }

    /// The session goes on under another key.
    pub(crate) fn end_for(&self, key: SessionKey, next: SessionKey) -> Step<bool> {
        now_or_later(self.runtime.end(key, Some(next)))
    }

    /// The session goes on under a new key with the same live session, and the old one ends. The new one can be committed to at once;
    /// when the answer comes, it is durable and the old one has ended.
    pub(crate) fn rotate(
        self: &Arc<Self>,
        at: &Opened,
        new: SessionKey,
    ) -> Result<(Opened, Step<Result<(), CommitFailure>>), CommitFailure> {
        if at.guest_of().is_some() {
            return Err(CommitFailure::Conflict);
        }
        let read = |record: &Record, _| record.get(ROTATING).map(|a| (a.dot, a.value.clone()));
        let held = self.runtime.read(at, read).ok_or_else(|| self.why_left(at.key))?;
        match self.runtime.commit(at, &[self.rotating(held)?]) {
            Commit::Applied(..) => {}
            Commit::Late(_) => return Err(CommitFailure::Conflict),
            Commit::Refused(failure) => return Err(failure),
        }
        let waiting = self.runtime.rotate(at, new);
        let Some(Ok(outlive_runtime::Open::Here(opened))) = ready(self.runtime.open(new, None)) else {
            return Err(self.why_left(at.key));
        };
        let record = self.runtime.read(&opened, |record, external| (record.clone(), external));
        opened.live().rebase(&record.ok_or_else(|| self.why_left(at.key))?.0);
        let (node, old) = (self.clone(), at.key);
        let done = now_or_later(Box::pin(async move {
            let rotated = waiting.await?;
            node.runtime.close(&rotated.opened);
            node.refuse_if_ended(old, new).await
        }));
        Ok((opened, done))
    }

    /// The change that keeps a session from getting another new id; `held` is what it has of it.
    fn rotating(&self, held: Option<(Stamp, Bytes)>) -> Result<Change, CommitFailure> {
        let now = self.runtime.wall().0;
        let since = held.as_ref().and_then(|(_, since)| since.as_ref().try_into().ok()).map(u32::from_be_bytes);
        if since.is_some_and(|since| now.abs_diff(since) < ROTATING_S) {
            return Err(CommitFailure::Conflict);
        }
        let value = Some(Bytes::copy_from_slice(&now.to_be_bytes()));
        Ok(Change { name: ROTATING.into(), base: held.map(|(stamp, _)| stamp).into(), value })
    }

    /// The owner of a session is to end it for the id that a copy of it goes on under, unless it is getting another one, or somebody has
    /// changed it meanwhile.
    pub(crate) async fn end_copied(
        &self,
        key: SessionKey,
        tip: Stamp,
        held: Option<(Stamp, Bytes)>,
        next: SessionKey,
    ) -> Result<(), CommitFailure> {
        self.rotating(held)?;
        self.runtime.end_copied(key, tip, next).await
    }

    /// The session got no new id after all.
    pub(crate) fn not_rotating(&self, at: &Opened) {
        if at.guest_of().is_some() {
            return;
        }
        if let Some(Some(dot)) = self.runtime.read(at, |record, _| record.get(ROTATING).map(|a| a.dot)) {
            drop(self.runtime.commit(at, &[Change { name: ROTATING.into(), base: Base::At(dot), value: None }]));
        }
    }

    /// A session that another node has ended while it got a new id here is over under that id, too.
    pub(crate) async fn refuse_if_ended(&self, old: SessionKey, new: SessionKey) -> Result<(), CommitFailure> {
        if self.ended_as(old) != Some(EndKind::Invalidated) {
            return Ok(());
        }
        self.end(new).answer().await;
        Err(CommitFailure::Ended)
    }

    /// How a session ended, if it is known here to have.
    pub(crate) fn ended_as(&self, key: SessionKey) -> Option<EndKind> {
        match self.runtime.over(key)? {
            Over::Ended(kind, _) => Some(kind),
            _ => None,
        }
    }

    /// The key under which a session goes on that has got a new id, on any node, if that is known here.
    pub(crate) fn goes_on_as(&self, key: SessionKey) -> Option<SessionKey> {
        match self.runtime.over(key)? {
            Over::Ended(EndKind::Rotated, next) => next,
            _ => None,
        }
    }

    /// Why a session that was opened here is not here any more.
    fn why_left(&self, key: SessionKey) -> CommitFailure {
        match self.runtime.readiness() {
            outlive_runtime::Readiness::Dead => CommitFailure::Dead,
            _ if self.runtime.over(key).is_some() => CommitFailure::Ended,
            // It went to another node, and nobody knows here what was done to it there, or whether it went with that node.
            _ => CommitFailure::Conflict,
        }
    }

    /// Takes over what the engine holds; of a copy it holds nothing newer.
    pub(crate) fn reread(&self, at: &Opened) {
        if at.guest_of().is_none() {
            at.live().refresh_with(|| self.runtime.read(at, |record, external| (record.clone(), external)));
        }
    }

    /// How long ago the session was created, as far as it is known here.
    pub(crate) fn age(&self, at: &Opened) -> Duration {
        let created = self.runtime.read(at, |record, _| record.created);
        created.map_or(Duration::ZERO, |created| self.runtime.now().since(created))
    }

    /// Whether the session has left this node since it was opened.
    pub(crate) fn has_left(&self, at: &Opened) -> bool {
        self.runtime.read(at, |_, _| ()).is_none()
    }

    pub(crate) fn info(&self, key: SessionKey) -> SessionInfo {
        let Some(info) = self.runtime.info(key) else { return SessionInfo::default() };
        let name = |life| self.name_of(life);
        SessionInfo {
            key: key_text(key),
            owner: info.owner.map(name),
            epoch: info.claim.epoch,
            version: info.tip.version,
            level: info.level,
            backups: info.backups.into_iter().map(name).collect(),
        }
    }

    /// The node that owns the session, if that is another one and its name is known.
    pub(crate) fn owner_elsewhere(&self, at: &Opened) -> Option<Box<str>> {
        self.runtime.name_of(at.guest_of()?)
    }

    /// A node's name, or that of its life if it is forgotten.
    pub(crate) fn name_of(&self, life: Life) -> String {
        self.runtime.name_of(life).map_or_else(|| format!("{life:?}"), String::from)
    }

    /// Until when a session that is used now may be alive, and by how many seconds that has to move to be worth another token. If the
    /// request has set its limits, they are not those with which it was opened.
    pub(crate) fn deadline(&self, at: &Opened, relimited: bool) -> (WallSeconds, u32) {
        let read = if relimited { self.runtime.read(at, |record, _| record.deadline()) } else { None };
        let (deadline, step) = read.unwrap_or_else(|| at.deadline());
        (self.runtime.deadline(deadline), u32::try_from(step.as_secs()).unwrap_or(u32::MAX).max(1))
    }

    /// How long this session lives: as it was born, or as it was set.
    pub(crate) fn limits(&self, at: &Opened) -> Limits {
        self.runtime.read(at, |record, _| record.limits()).unwrap_or(self.limits)
    }
}

fn not_now(why: Unavailable) -> NotNow {
    match why {
        Unavailable::Forming => NotNow::Starting,
        Unavailable::Contended => NotNow::Contended,
        Unavailable::Dead => NotNow::Ended,
        _ => NotNow::Busy,
    }
}

/// A session's name everywhere but at its client, in hex.
pub(crate) fn key_text(key: SessionKey) -> String {
    use core::fmt::Write as _;
    key.bytes().iter().fold(String::with_capacity(32), |mut text, byte| {
        // Writing to a text does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn ready<T>(step: Step<T>) -> Option<T> {
    match step {
        Step::Ready(value) => Some(value),
        Step::Wait(_) => None,
    }
}

/// The answer without a wait, if it is there already.
fn now_or_later<T>(mut waiting: Waiting<T>) -> Step<T> {
    match Pin::as_mut(&mut waiting).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Step::Ready(value),
        Poll::Pending => Step::Wait(waiting),
    }
}
