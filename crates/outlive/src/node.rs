//! The seam to the engine: what the library asks of it, with the answers it needs.

use crate::cookie::Carrier;
use crate::live::Live;
use core::future::Future;
use core::pin::Pin;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use core::time::Duration;
use outlive_core::config::{Level, Limits};
use outlive_core::id::{IdKeys, Secret, SessionId, SessionKey};
use outlive_core::record::{Change, Record};
use outlive_core::stamp::{Claim, Life, Stamp};
use outlive_core::time::{Mono, WallSeconds};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;

/// An answer that has to be waited for.
pub(crate) type Waiting<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// An answer, now or later.
pub(crate) enum Step<T> {
    Ready(T),
    Wait(Waiting<T>),
}

impl<T> Step<T> {
    pub(crate) async fn answer(self) -> T {
        match self {
            Step::Ready(value) => value,
            Step::Wait(waiting) => waiting.await,
        }
    }
}

/// Why a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EndKind {
    Logout,
    Rotated,
}

/// The answer to `open`.
pub(crate) enum Open {
    Here(Opened),
    NotFound,
    Ended(EndKind, Duration),
    Stale(Duration),
    Unavailable(Duration),
}

/// A session in use by one request.
#[derive(Clone, Debug)]
pub(crate) struct Opened {
    pub(crate) key: SessionKey,
    pub(crate) live: Arc<Live>,
    pub(crate) lost: bool,
}

/// What an answer may rely on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Durable {
    /// The newest durable commit.
    pub(crate) tip: Option<Stamp>,
    pub(crate) level: Level,
}

/// Why a commit that went out failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    Unknown,
    Conflict,
    Ended,
}

/// The answer to a commit, and to the end of a request that changed nothing.
pub(crate) enum Commit {
    /// It is in the session, as this commit, and durable then.
    Applied(Option<Stamp>, Step<Result<Durable, Failure>>),
    /// It went to the session's owner.
    Late(Waiting<Result<(Stamp, Level), Failure>>),
    Conflict,
    Ended,
    UnderReplicated,
    TooLarge(usize),
}

struct Entry {
    record: Record,
    live: Arc<Live>,
}

enum Slot {
    Held(Entry),
    Ended(EndKind),
}

/// One node.
pub(crate) struct Node {
    pub(crate) keys: IdKeys,
    pub(crate) route: String,
    pub(crate) carrier: Carrier,
    pub(crate) size_max: usize,
    pub(crate) limits: Limits,
    pub(crate) stats: Counters,
    claim: Claim,
    table: Mutex<HashMap<SessionKey, Slot>>,
    drawn: AtomicU64,
    version: AtomicU32,
}

/// What is counted, not kept silent.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Changes of failed requests that stayed because another had built upon them.
    pub(crate) stayed: AtomicU64,
    /// Changes refused because their session could not get a cookie any more.
    pub(crate) without_cookie: AtomicU64,
    /// Tokens of another session.
    pub(crate) foreign_tokens: AtomicU64,
}

impl Node {
    pub(crate) fn in_memory(carrier: Carrier) -> Node {
        Node {
            keys: Secret::new([7; 32]).keys("session"),
            route: "local".to_owned(),
            carrier,
            size_max: outlive_core::limits::RECORD_MAX,
            limits: Limits::default(),
            stats: Counters::default(),
            claim: Claim { epoch: 1, life: Life::new(1) },
            table: Mutex::default(),
            drawn: AtomicU64::new(1),
            version: AtomicU32::new(0),
        }
    }

    pub(crate) fn draw_id(&self) -> SessionId {
        let mut random = [0; 24];
        random[..8].copy_from_slice(&self.drawn.fetch_add(1, Ordering::Relaxed).to_be_bytes());
        SessionId::issue(&self.keys, random)
    }

    pub(crate) fn open(self: &Arc<Self>, key: SessionKey, _token: Option<Stamp>, _touch: bool) -> Step<Open> {
        Step::Ready(match self.table.lock().get(&key) {
            Some(Slot::Held(entry)) => Open::Here(Opened { key, live: entry.live.clone(), lost: false }),
            Some(Slot::Ended(kind)) => Open::Ended(*kind, Duration::ZERO),
            None => Open::NotFound,
        })
    }

    pub(crate) fn create(&self, key: SessionKey, live: Arc<Live>) -> Result<Opened, Duration> {
        let record = Record::new(Mono::ZERO);
        self.table.lock().insert(key, Slot::Held(Entry { record, live: live.clone() }));
        Ok(Opened { key, live, lost: false })
    }

    pub(crate) fn commit(&self, at: &Opened, changes: &[Change]) -> Commit {
        let mut table = self.table.lock();
        let Some(Slot::Held(entry)) = table.get_mut(&at.key) else { return Commit::Ended };
        if !entry.record.bases_hold(changes) {
            return Commit::Conflict;
        }
        let stamp = self.claim.at(self.version.fetch_add(1, Ordering::Relaxed) + 1);
        entry.record.commit(stamp, changes);
        Commit::Applied(Some(stamp), Step::Ready(Ok(Durable { tip: Some(stamp), level: Level::Owner })))
    }

    pub(crate) fn finish_read(&self, at: &Opened) -> Commit {
        match self.table.lock().get(&at.key) {
            Some(Slot::Held(entry)) => {
                let tip = Some(entry.record.tip).filter(|t| t.version > 0);
                Commit::Applied(None, Step::Ready(Ok(Durable { tip, level: Level::Owner })))
            }
            _ => Commit::Ended,
        }
    }

    pub(crate) fn close(&self, _at: &Opened) {}

    pub(crate) fn touch(&self, _at: &Opened) {}

    pub(crate) fn end(&self, key: SessionKey, kind: EndKind) -> Step<bool> {
        self.table.lock().insert(key, Slot::Ended(kind));
        Step::Ready(true)
    }

    /// The session under a new id; the old one is dead.
    pub(crate) fn rotate(&self, at: &Opened, new: SessionKey) -> Step<Result<Opened, Failure>> {
        let mut table = self.table.lock();
        Step::Ready(match table.insert(at.key, Slot::Ended(EndKind::Rotated)) {
            Some(Slot::Held(entry)) => {
                let opened = Opened { key: new, live: entry.live.clone(), lost: false };
                table.insert(new, Slot::Held(entry));
                Ok(opened)
            }
            Some(ended) => {
                table.insert(at.key, ended);
                Err(Failure::Ended)
            }
            None => Err(Failure::Ended),
        })
    }

    /// When a session that is used now may have expired.
    pub(crate) fn deadline(&self, _at: &Opened) -> WallSeconds {
        WallSeconds(1_000_000)
    }
}

/// A version token.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Token {
    pub(crate) stamp: Stamp,
    pub(crate) deadline: WallSeconds,
}

impl Token {
    pub(crate) fn seal(&self, _keys: &IdKeys, key: &SessionKey) -> String {
        format!("{key:?}-{}", self.stamp.version)
    }

    pub(crate) fn open(_keys: &IdKeys, key: &SessionKey, text: &str) -> Option<Token> {
        let (of, version) = text.split_once('-')?;
        let claim = Claim { epoch: 1, life: Life::new(1) };
        (of == format!("{key:?}")).then_some(Token { stamp: claim.at(version.parse().ok()?), deadline: WallSeconds(1_000_000) })
    }
}
