//! One request's way to its session: opened at first use, committed or taken back at its end.

use crate::caching;
use crate::error::{CommitError, OpenError};
use crate::live::Live;
use crate::node::{Durable, EndKind, Node, Open, Step};
use crate::session::{Brought, Committed, Committing, Session};
use crate::turn::{self, Turn};
use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;
use http::uri::Authority;
use http::{Extensions, HeaderMap, HeaderValue, StatusCode, Uri};
use outlive_core::id::{SessionId, SessionKey};
use outlive_core::token::Token;
use std::sync::{Arc, OnceLock};

/// How long after a rotation a request with the old id may be one that left before it: the client has the newer cookie by now, or is
/// about to get it.
const ROTATED_KEEP: Duration = Duration::from_secs(60);

/// What a layer puts into a request's extensions. A handler that does not ask for it costs nothing else.
#[derive(Clone)]
pub(crate) struct Slot(Arc<Inner>);

struct Inner {
    node: Arc<Node>,
    session: OnceLock<Session>,
    /// The session is to be had alone.
    exclusive: AtomicBool,
    /// Two handlers' arguments of one request must not wait for each other's turn.
    taking: tokio::sync::Mutex<()>,
}

impl Slot {
    pub(crate) fn new(node: Arc<Node>, exclusive: bool) -> Slot {
        Slot(Arc::new(Inner { node, session: OnceLock::new(), exclusive: exclusive.into(), taking: tokio::sync::Mutex::new(()) }))
    }

    pub(crate) fn is_of(&self, node: &Arc<Node>) -> bool {
        Arc::ptr_eq(&self.0.node, node)
    }

    /// From here on, whoever asks for the session has it alone.
    pub(crate) fn make_exclusive(&self) {
        self.0.exclusive.store(true, Ordering::Relaxed);
    }

    pub(crate) fn session(&self) -> Option<&Session> {
        self.0.session.get()
    }

    /// The session, opened by the first call.
    fn open(&self, headers: &HeaderMap, authority: Option<&Authority>) -> Step<Result<Session, OpenError>> {
        let exclusive = self.0.exclusive.load(Ordering::Relaxed);
        if let Some(session) = self.0.session.get() {
            if exclusive && session.lacks_turn() {
                return Step::Wait(Box::pin(self.clone().take_turn_late(session.clone())));
            }
            return Step::Ready(Ok(session.clone()));
        }
        let node = &self.0.node;
        let mode = node.carrier.mode(headers, authority);
        let mut brought = Brought { mode, id: None, here: false, token: None, mute: false };
        let mut found = None;
        let tokens = node.carrier.read(mode, headers, |text| {
            found = known(node, text);
            found.is_some()
        });
        let Some((id, key, route)) = found else {
            node.carrier.hint(headers, authority);
            return Step::Ready(Ok(self.keep(Session::fresh(node.clone(), brought))));
        };
        let token = tokens.iter().find_map(|text| Token::open(&node.keys, &key, text));
        if token.is_none() && !tokens.is_empty() {
            node.stats.foreign_tokens.fetch_add(1, Ordering::Relaxed);
        }
        (brought.id, brought.here, brought.token) = (Some(id), route == node.route, token);
        if exclusive {
            return Step::Wait(Box::pin(self.clone().take_turn(id, key, brought)));
        }
        match node.open(key, token) {
            Step::Ready(open) => Step::Ready(self.opened(id, brought, open)),
            Step::Wait(waiting) => {
                let slot = self.clone();
                Step::Wait(Box::pin(async move { slot.opened(id, brought, waiting.await) }))
            }
        }
    }

    /// Opens the session when it is this request's turn. The queue is where the session is: when that changes, those who wait look again.
    async fn take_turn(self, id: SessionId, key: SessionKey, brought: Brought) -> Result<Session, OpenError> {
        let _one = self.0.taking.lock().await;
        if let Some(session) = self.0.session.get() {
            return Ok(session.clone());
        }
        let (node, until) = (&self.0.node, turn::until());
        let (mut held, mut lost): (Option<(Arc<Live>, Turn)>, bool) = (None, false);
        loop {
            let mut opened = match node.open(key, brought.token).answer().await {
                Open::Here(opened) => opened,
                other => return self.opened(id, brought, other),
            };
            lost |= opened.lost;
            let live = opened.live().clone();
            if Node::is_guest(&opened) {
                node.close(&opened);
                turn::pause(until).await?;
                continue;
            }
            let mine = held.take().filter(|(of, _)| Arc::ptr_eq(of, &live)).map(|(_, turn)| turn);
            if let Some(turn) = mine.or_else(|| live.turns().try_take()) {
                opened.lost = lost;
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
            Open::Ended(EndKind::Rotated, ago) if ago < ROTATED_KEEP => Session::fresh(node, Brought { mute: true, ..brought }),
            Open::NotFound | Open::Ended(..) => Session::fresh(node, brought),
            Open::Stale(after) => return Err(OpenError::Stale { after }),
            Open::Unavailable(after) => return Err(OpenError::Unavailable { after }),
        };
        Ok(self.keep(session))
    }

    /// The first of two that were opened at once stays; the other is dropped and counts as a request that did nothing.
    fn keep(&self, session: Session) -> Session {
        self.0.session.get_or_init(|| session).clone()
    }
}

/// The session of a request that a layer has seen.
pub(crate) fn open(extensions: &Extensions, headers: &HeaderMap, uri: &Uri) -> Step<Result<Session, OpenError>> {
    match extensions.get::<Slot>() {
        Some(slot) => slot.open(headers, uri.authority()),
        None => Step::Ready(Err(OpenError::NoLayer)),
    }
}

/// A candidate for the id, if this cluster issued it: its tag makes a foreign one cost no look-up.
fn known<'a>(node: &Node, text: &'a str) -> Option<(SessionId, SessionKey, &'a str)> {
    let (id, route) = text.split_at_checked(SessionId::LEN)?;
    let route = if route.is_empty() { "" } else { route.strip_prefix('.')? };
    SessionId::parse(&node.keys, id).map(|(id, key)| (id, key, route))
}

/// Ends the request whatever becomes of it: not told how, it takes the request's changes back.
pub(crate) struct Guard(Option<Slot>);

impl Guard {
    pub(crate) fn new(slot: Slot) -> Guard {
        Guard(Some(slot))
    }

    /// A request that another layer looks after.
    pub(crate) fn none() -> Guard {
        Guard(None)
    }

    /// The handler has answered. `None` if it did not use the session.
    pub(crate) fn finish(&mut self, keep: bool) -> Option<(Session, Committing)> {
        let slot = self.0.take()?;
        let session = slot.session()?.clone();
        let step = session.finish(keep);
        Some((session, step))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(session) = self.0.as_ref().and_then(Slot::session) {
            session.abort();
        }
    }
}

/// Puts into the answer what its session requires, or replaces it by an error.
pub(crate) fn seal<B: Default>(
    session: &Session,
    result: Result<Durable, CommitError>,
    mut answer: http::Response<B>,
    debug_header: bool,
) -> http::Response<B> {
    if let Err(error) = &result {
        tracing::error!(%error, "a session could not be committed");
        answer = http::Response::new(B::default());
        *answer.status_mut() = error.status();
        error_headers(error.retry(), answer.headers_mut());
        answer.extensions_mut().insert(error.clone());
    }
    let durable = result.ok();
    if session.set_cookies(durable.as_ref(), answer.headers_mut()) {
        caching::forbid_sharing(answer.headers_mut());
    }
    caching::vary_by(answer.headers_mut(), session.vary());
    if let Some(committed) = durable.map(Committed::of) {
        if debug_header && let Ok(value) = HeaderValue::from_str(&format!("level={} version={}", committed.level, committed.version)) {
            answer.headers_mut().insert("outlive-committed", value);
        }
        answer.extensions_mut().insert(committed);
    }
    answer
}

pub(crate) fn error_headers(retry: crate::error::Retry, headers: &mut HeaderMap) {
    if let Some(seconds) = crate::error::retry_after(retry) {
        headers.insert(http::header::RETRY_AFTER, HeaderValue::from(seconds));
    }
}

/// Which answers take the request's changes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Rollback {
    /// 5xx. A 422 carries the form's draft and a 401 the counter of attempts, so they are kept.
    #[default]
    ServerError,
    /// 4xx as well.
    ClientError,
    /// None.
    Never,
}

impl Rollback {
    pub(crate) fn keeps(self, status: StatusCode) -> bool {
        match self {
            Rollback::ServerError => !status.is_server_error(),
            Rollback::ClientError => !status.is_server_error() && !status.is_client_error(),
            Rollback::Never => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outlive::Outlive;
    use bytes::Bytes;
    use http::header::COOKIE;
    use outlive_core::record::Change;

    /// A session of this node with one attribute: its id and its token.
    fn begun(node: &Node) -> (SessionId, String) {
        let id = node.draw_id().unwrap();
        let key = id.key(&node.keys);
        let opened = node.create(key, Arc::new(Live::new())).unwrap();
        let change = Change { name: "n".into(), base: None, value: Some(Bytes::from_static(&[1, 1])) };
        let crate::node::Commit::Applied(Some(stamp), _) = node.commit(&opened, &core::iter::once(change).collect()) else {
            panic!("it was not taken")
        };
        node.close(&opened);
        (id, Token { stamp, deadline: node.deadline(&opened, true).0 }.seal(&node.keys, &key, &mut [0; Token::TEXT_MAX]).to_owned())
    }

    fn open_with(node: &Arc<Node>, cookie: &str) -> Session {
        let (slot, mut headers) = (Slot::new(node.clone(), false), HeaderMap::new());
        headers.insert(COOKIE, HeaderValue::from_str(cookie).unwrap());
        let Step::Ready(session) = slot.open(&headers, None) else { panic!("it is here") };
        session.unwrap()
    }

    #[test]
    fn a_session_lives_5_minutes_until_its_cookie_has_come_back_once() {
        let node = &Outlive::in_memory().node;
        let (id, _) = begun(node);
        let left = |opened: &crate::node::Opened| node.deadline(opened, false).0.0.saturating_sub(node.runtime.wall().0);
        let at = |key| {
            let Step::Ready(Open::Here(opened)) = node.open(key, None) else { panic!("it is here") };
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
        assert!(known(node, id.reveal().as_ref()).is_some());
        let mut foreign = id.reveal().to_string();
        let last = if foreign.ends_with('A') { "B" } else { "A" };
        foreign.replace_range(42.., last);
        for text in [foreign.as_str(), "", "JSESSIONID", &"A".repeat(43), &format!("{}.x", "B".repeat(43)), "ü"] {
            assert!(known(node, text).is_none(), "{text}");
            assert!(open_with(node, &format!("__Host-session={}", text.replace('ü', "u"))).is_new());
        }
        assert_eq!(node.runtime.stats().engine.rounds, 0);
    }
}
