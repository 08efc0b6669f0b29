//! One request's way to its session: opened at first use, committed or taken back at its end.

use crate::caching;
use crate::cookie::Place;
use crate::error::{CommitError, OpenError};
use crate::live::Live;
use crate::message::{Head, Headers};
use crate::node::{Durable, EndKind, Node, Open, Step};
use crate::session::{Brought, Committed, Committing, Session};
use crate::turn::{self, Turn};
use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;
use outlive_core::id::{SessionId, SessionKey};
use outlive_core::token::Token;
use smallvec::SmallVec;
use std::sync::{Arc, OnceLock};

/// How long after a rotation a request with the old id may be one that left before it: the client has the newer cookie by now, or is
/// about to get it.
const ROTATED_KEEP: Duration = Duration::from_secs(60);

/// Ids of one request that are looked up, if those before them turn out to be dead.
pub(crate) const IDS_MAX: usize = 8;

/// An id that a request brought and this cluster issued.
struct Candidate {
    place: Place,
    /// It is in the session's own cookie, wherever else it is.
    own: bool,
    id: SessionId,
    key: SessionKey,
    /// The tokens among those that came which are this session's.
    tokens: SmallVec<[Token; 1]>,
}

/// An application on another port of the host, a cookie with a `Domain`, an id that has ended: several may have our name.
type Candidates = SmallVec<[Candidate; 1]>;

/// What a layer puts into a request's extensions. A handler that does not ask for it costs nothing else.
#[derive(Clone)]
pub(crate) struct Slot(Arc<Inner>);

struct Inner {
    node: Arc<Node>,
    session: OnceLock<Session>,
    /// The session is to be had alone.
    exclusive: AtomicBool,
    /// Opening it is a use of it.
    uses: AtomicBool,
    /// Two handlers' arguments of one request must not wait for each other's turn.
    taking: tokio::sync::Mutex<()>,
}

impl Slot {
    pub(crate) fn new(node: Arc<Node>, exclusive: bool, uses: bool) -> Slot {
        let taking = tokio::sync::Mutex::new(());
        Slot(Arc::new(Inner { node, session: OnceLock::new(), exclusive: exclusive.into(), uses: uses.into(), taking }))
    }

    pub(crate) fn is_of(&self, node: &Arc<Node>) -> bool {
        Arc::ptr_eq(&self.0.node, node)
    }

    /// From here on, whoever asks for the session has it alone.
    pub(crate) fn make_exclusive(&self) {
        self.0.exclusive.store(true, Ordering::Relaxed);
    }

    /// From here on, opening the session is no use of it.
    pub(crate) fn only_look(&self) {
        self.0.uses.store(false, Ordering::Relaxed);
    }

    fn uses(&self) -> bool {
        self.0.uses.load(Ordering::Relaxed)
    }

    pub(crate) fn session(&self) -> Option<&Session> {
        self.0.session.get()
    }

    /// The session, opened by the first call.
    fn open(&self, head: &Head<'_, impl Headers>) -> Step<Result<Session, OpenError>> {
        let exclusive = self.0.exclusive.load(Ordering::Relaxed);
        if let Some(session) = self.0.session.get() {
            if exclusive && session.lacks_turn() {
                return Step::Wait(Box::pin(self.clone().take_turn_late(session.clone())));
            }
            return Step::Ready(Ok(session.clone()));
        }
        let node = &self.0.node;
        let mode = node.carrier.mode(head);
        let mut brought = Brought::new(mode);
        let (candidates, foreign) = candidates(node, head, &mut brought);
        if candidates.is_empty() {
            node.carrier.came_without(mode, head, foreign);
            brought.kept_away = node.carrier.is_kept_away(mode, head);
            return Step::Ready(Ok(self.keep(Session::fresh(node.clone(), brought))));
        }
        node.carrier.came_back();
        let only = match &candidates[..] {
            [one] if !exclusive && one.tokens.len() < 2 => one,
            _ => return Step::Wait(Box::pin(self.clone().open_first_alive(candidates, brought, exclusive))),
        };
        let (id, brought) = (only.id, only.brought(brought));
        match node.open(only.key, brought.token, self.uses()) {
            Step::Ready(open) => Step::Ready(self.opened(id, brought, open)),
            Step::Wait(waiting) => {
                let slot = self.clone();
                Step::Wait(Box::pin(async move { slot.opened(id, brought, waiting.await) }))
            }
        }
    }

    /// One that is not alive hides none behind it. One of which that cannot be said now is not dead.
    async fn open_first_alive(self, candidates: Candidates, none: Brought, exclusive: bool) -> Result<Session, OpenError> {
        let (node, mut mute) = (self.0.node.clone(), false);
        for candidate in &candidates {
            let brought = candidate.brought(none);
            if exclusive && candidates.len() == 1 {
                return self.take_turn(candidate.id, candidate.key, brought).await;
            }
            match open_all(&node, candidate, self.uses()).await {
                Open::NotFound => {}
                Open::Ended(kind, ago) => mute |= kind == EndKind::Rotated && ago < ROTATED_KEEP,
                Open::Here(opened) if exclusive => {
                    node.close(&opened);
                    return self.take_turn(candidate.id, candidate.key, brought).await;
                }
                open => return self.opened(candidate.id, brought, open),
            }
        }
        Ok(self.keep(Session::fresh(node, Brought { mute, ..none })))
    }

    /// Opens the session when it is this request's turn. The queue is where the session is: when that changes, those who wait look again.
    async fn take_turn(self, id: SessionId, key: SessionKey, brought: Brought) -> Result<Session, OpenError> {
        let _one = self.0.taking.lock().await;
        if let Some(session) = self.0.session.get() {
            return Ok(session.clone());
        }
        let (node, until) = (&self.0.node, turn::until());
        let mut held: Option<(Arc<Live>, Turn)> = None;
        loop {
            let opened = match node.open(key, brought.token, self.uses()).answer().await {
                Open::Here(opened) => opened,
                other => return self.opened(id, brought, other),
            };
            let live = opened.live().clone();
            if opened.guest_of().is_some() {
                node.close(&opened);
                turn::pause(until).await?;
                continue;
            }
            let mine = held.take().filter(|(of, _)| Arc::ptr_eq(of, &live)).map(|(_, turn)| turn);
            if let Some(turn) = mine.or_else(|| live.turns().try_take()) {
                let session = Session::opened(node.clone(), brought, id, opened);
                session.hold(turn);
                return Ok(self.keep(session));
            }
            // Not held open meanwhile: a request that waits must not keep the session from moving.
            node.close(&opened);
            let turn = live.turns().take(until).await?;
            held = Some((live, turn));
        }
    }

    /// The same for a session that a layer further out has opened already. It stays open meanwhile, because that layer's changes are in it;
    /// if it moves away for that, this request is one that runs while its session moves.
    async fn take_turn_late(self, session: Session) -> Result<Session, OpenError> {
        let _one = self.0.taking.lock().await;
        if let (true, Some(live)) = (session.lacks_turn(), session.live_here()) {
            session.hold(live.turns().take(turn::until()).await?);
        }
        Ok(session)
    }

    fn opened(&self, id: SessionId, brought: Brought, open: Open) -> Result<Session, OpenError> {
        let node = self.0.node.clone();
        let session = match open {
            Open::Here(opened) => Session::opened(node, brought, id, opened),
            Open::Ended(EndKind::Rotated, ago) if ago < ROTATED_KEEP => {
                Session::fresh(node, Brought { mute: true, ..Brought::new(brought.mode) })
            }
            Open::NotFound | Open::Ended(..) => Session::fresh(node, Brought::new(brought.mode)),
            Open::Stale(after) => return Err(OpenError::Stale { after }),
            Open::Unavailable(why, after) => return Err(OpenError::Unavailable { why, after }),
        };
        Ok(self.keep(session))
    }

    /// The first of two that were opened at once stays; the other is dropped and counts as a request that did nothing.
    fn keep(&self, session: Session) -> Session {
        self.0.session.get_or_init(|| session).clone()
    }
}

/// The session of a request that a layer has seen.
pub(crate) fn open(slot: Option<&Slot>, head: &Head<'_, impl Headers>) -> Step<Result<Session, OpenError>> {
    match slot {
        Some(slot) => slot.open(head),
        None => Step::Ready(Err(OpenError::NoLayer)),
    }
}

impl Candidate {
    fn brought(&self, none: Brought) -> Brought {
        let newest = |t: &&Token| (t.stamp.claim.epoch, t.stamp.version, t.deadline.0);
        let repair = self.place == Place::Newest && !self.own;
        Brought { id: Some(self.id), token: self.tokens.iter().max_by_key(newest).copied(), repair, ..none }
    }
}

/// What the request brought: the ids, the likeliest first, and whether there was one that looks like ours and is not.
fn candidates(node: &Node, head: &Head<'_, impl Headers>, brought: &mut Brought) -> (Candidates, bool) {
    let (mut found, mut foreign) = (Candidates::new(), false);
    let carried = node.carrier.read(brought.mode, head.headers, &node.route, |place, text| {
        let Some((id, key)) = known(node, text) else {
            foreign |= is_like_ours(text);
            return;
        };
        let own = place == Place::Own;
        if let Some(again) = found.iter_mut().find(|c: &&mut Candidate| c.key == key) {
            (again.place, again.own) = (again.place.min(place), again.own | own);
        } else if found.len() < IDS_MAX {
            found.push(Candidate { place, own, id, key, tokens: SmallVec::new() });
        }
    });
    brought.routed = carried.routed;
    for candidate in &mut found {
        for text in &carried.tokens {
            if let Some(token) = Token::open(&node.keys, &candidate.key, text) {
                candidate.tokens.push(token);
            }
        }
    }
    if !carried.tokens.is_empty() && !found.is_empty() && found.iter().all(|c| c.tokens.is_empty()) {
        node.stats.foreign_tokens.fetch_add(1, Ordering::Relaxed);
    }
    if found.len() > 1 {
        found.sort_by_key(|c| (c.place, c.tokens.is_empty()));
    }
    (found, foreign)
}

/// Opens a session that includes all that its client has seen, by whatever copies of the token's cookie.
async fn open_all(node: &Arc<Node>, candidate: &Candidate, uses: bool) -> Open {
    let Some((last, others)) = candidate.tokens.split_last() else { return node.open(candidate.key, None, uses).answer().await };
    for token in others {
        match node.open(candidate.key, Some(*token), uses).answer().await {
            Open::Here(opened) => node.close(&opened),
            open => return open,
        }
    }
    node.open(candidate.key, Some(*last), uses).answer().await
}

/// A candidate for the id, if this cluster issued it: its tag makes a foreign one cost no look-up.
fn known(node: &Node, text: &[u8]) -> Option<(SessionId, SessionKey)> {
    let (id, route) = text.split_at_checked(SessionId::LEN)?;
    (route.is_empty() || route.starts_with(b".")).then(|| SessionId::parse(&node.keys, id))?
}

/// Whether it is an id with a route, whoever issued it.
fn is_like_ours(text: &[u8]) -> bool {
    let url_safe = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    text.split_at_checked(SessionId::LEN).is_some_and(|(id, route)| route.starts_with(b".") && id.iter().all(url_safe))
}

/// Not told that the handler has answered, it takes the request's changes back: the handler was dropped, panicked or failed.
pub(crate) struct Guard {
    slot: Option<Slot>,
    /// A layer further out ends the request, and may hear of this handler only what somebody between the two says in its place.
    joins: bool,
}

impl Guard {
    /// Ends the request whatever becomes of it.
    pub(crate) fn new(slot: Slot) -> Guard {
        Guard { slot: Some(slot), joins: false }
    }

    /// Another layer's guard ends the request.
    pub(crate) fn joining(slot: Slot) -> Guard {
        Guard { slot: Some(slot), joins: true }
    }

    /// The handler has answered. `None` if that is not the end of the request, or it did not use the session.
    pub(crate) fn finish(&mut self, keep: bool) -> Option<(Session, Committing)> {
        let slot = self.slot.take().filter(|_| !self.joins)?;
        let session = slot.session()?.clone();
        let step = session.finish(keep);
        Some((session, step))
    }

    /// The handler has failed.
    pub(crate) fn fail(&mut self) {
        match self.slot.take().as_ref().and_then(Slot::session) {
            Some(session) if self.joins => session.take_back(),
            Some(session) => session.abort(),
            None => {}
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.fail();
    }
}

/// What becomes of the response: it says that this was committed, or an error takes its place, with that status.
pub(crate) fn told(session: &Session, result: Result<Durable, CommitError>) -> Result<Durable, CommitError> {
    result.map_err(|error| {
        let error = session.as_told(error);
        log(&error);
        error
    })
}

/// Puts into the response's headers what its session requires.
pub(crate) fn seal(
    session: &Session,
    told: Result<Durable, CommitError>,
    headers: &mut impl Headers,
    debug_header: bool,
) -> Option<Committed> {
    if let Err(error) = &told {
        error_headers(error.retry(), headers);
    }
    session.vary(headers);
    let durable = told.ok();
    if session.set_cookies(durable.as_ref(), headers) {
        caching::forbid_sharing(headers);
    }
    let committed = durable.map(Committed::of)?;
    if debug_header {
        let text = format!("level={} version={}", committed.level, committed.version);
        headers.set("outlive-committed", text.into());
    }
    Some(committed)
}

/// What the client simply does again is between the two of them, and what keeps a node from serving has lines of its own: no line for
/// each request. What is told to nobody else is a warning, and what the application has to mend is an error.
fn log(error: &CommitError) {
    let what = "a session could not be committed";
    match error {
        CommitError::Conflict | CommitError::Ended | CommitError::Unavailable { .. } => tracing::debug!(%error, "{what}"),
        CommitError::Unknown | CommitError::UnderReplicated => tracing::warn!(%error, "{what}"),
        _ => tracing::error!(%error, "{what}"),
    }
}

pub(crate) fn error_headers(retry: crate::error::Retry, headers: &mut impl Headers) {
    if let Some(seconds) = crate::error::retry_after(retry) {
        headers.set("retry-after", seconds.to_string().into());
    }
}

/// Which responses take the request's changes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Rollback {
    /// 5xx, and 408, which a timeout says in the place of a handler that it dropped. A 422 carries the form's draft and a 401 the counter
    /// of attempts, so they are kept.
    #[default]
    ServerError,
    /// 4xx as well.
    ClientError,
    /// None.
    Never,
}

impl Rollback {
    pub(crate) fn keeps(self, status: u16) -> bool {
        match self {
            Rollback::ServerError => !(500..600).contains(&status) && status != 408,
            Rollback::ClientError => !(400..600).contains(&status),
            Rollback::Never => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outlive::Outlive;
    use bytes::Bytes;
    use http::header::{COOKIE, HeaderMap, HeaderValue};
    use outlive_core::record::{Base, Change};

    /// A session of this node with one attribute: its id and its token.
    fn begun(node: &Node) -> (SessionId, String) {
        let id = node.draw_id().unwrap();
        let key = id.key(&node.keys);
        let opened = node.create(key, Arc::new(Live::new())).unwrap();
        let change = Change { name: "n".into(), base: Base::Absent, value: Some(Bytes::from_static(&[1, 1])) };
        let crate::node::Commit::Applied(Some(stamp), _) = node.runtime.commit(&opened, &[change]) else { panic!("it was not taken") };
        node.close(&opened);
        (id, Token { stamp, deadline: node.deadline(&opened, true).0 }.seal(&node.keys, &key, &mut [0; Token::TEXT_MAX]).to_owned())
    }

    fn open_with(node: &Arc<Node>, cookie: &str) -> Session {
        let (slot, mut headers) = (Slot::new(node.clone(), false, true), HeaderMap::new());
        headers.insert(COOKIE, HeaderValue::from_str(cookie).unwrap());
        let head = Head { method: "GET", authority: None, headers: &headers };
        let Step::Ready(session) = slot.open(&head) else { panic!("it is here") };
        session.unwrap()
    }

    #[test]
    fn a_session_lives_5_minutes_until_its_cookie_has_come_back_once() {
        let node = &Outlive::in_memory().node;
        let (id, _) = begun(node);
        let left = |opened: &crate::node::Opened| node.deadline(opened, false).0.0.saturating_sub(node.runtime.wall().0);
        let at = |key| {
            let Step::Ready(Open::Here(opened)) = node.open(key, None, true) else { panic!("it is here") };
            node.close(&opened);
            opened
        };
        let orphan = node.create(node.draw_id().unwrap().key(&node.keys), Arc::new(Live::new())).unwrap();
        assert!((328..=332).contains(&left(&orphan)), "{} s", left(&orphan));
        let back = left(&at(id.key(&node.keys)));
        assert!((1978..=1982).contains(&back), "{back} s");
    }

    #[test]
    fn a_token_of_another_session_is_counted_and_its_own_is_not() {
        let node = &Outlive::in_memory().node;
        let ((ada, own), (_, other)) = (begun(node), begun(node));
        let cookie = |token: &str| format!("__Host-session={}.{}; __Host-session-v={token}", ada.reveal(), node.route);
        let foreign = || node.stats.foreign_tokens.load(Ordering::Relaxed);
        assert!(!open_with(node, &cookie(&own)).is_new() && foreign() == 0);
        assert!(!open_with(node, &cookie(&other)).is_new() && foreign() == 1);
        assert!(!open_with(node, &cookie("nonsense")).is_new() && foreign() == 2);
    }

    #[test]
    fn a_foreign_cookie_costs_no_look_up() {
        let node = &Outlive::in_memory().node;
        let (id, _) = begun(node);
        assert!(known(node, id.reveal().as_bytes()).is_some());
        let mut foreign = id.reveal().to_string();
        let last = if foreign.ends_with('A') { "B" } else { "A" };
        foreign.replace_range(42.., last);
        for text in [foreign.as_str(), "", "JSESSIONID", &"A".repeat(43), &format!("{}.x", "B".repeat(43)), "ü"] {
            assert!(known(node, text.as_bytes()).is_none(), "{text}");
            assert!(open_with(node, &format!("__Host-session={}", text.replace('ü', "u"))).is_new());
        }
        assert_eq!(node.runtime.stats().engine.rounds, 0);
    }
}
