//! Which member answers a request: a pure decision over a table, a cookie header and a random number.
//!
//! No socket, no clock and no randomness of its own, so that every rule here can be tested by value. A route is a hint and
//! never an authority: a name that the table does not know is as good as no name.

use outlive_core::address::Address;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};

/// What a member may be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Takes every request.
    Up,
    /// Keeps the visitors whose route names it and takes no new ones.
    Draining,
    /// Takes nothing.
    Down,
}

/// What the gateway is told about one member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberInfo {
    /// The route name, as it stands behind the last `.` of a cookie. Compared byte by byte.
    pub name: String,
    /// Where the member answers HTTP/1.1. A name is resolved at each new connection, and its addresses are tried in turn.
    pub addr: Address,
    /// One start of one node. A higher life is a fresh start: nothing that was learnt of the former one applies.
    pub life: u64,
    /// What is known of it from elsewhere; passive health may only lower it.
    pub state: State,
}

impl MemberInfo {
    /// A member that is up, in its first life: all that a fixed list knows.
    pub fn fixed(name: impl Into<String>, addr: impl Into<Address>) -> MemberInfo {
        MemberInfo { name: name.into(), addr: addr.into(), life: 0, state: State::Up }
    }
}

/// One row of the table. `T` is what the caller keeps beside it (the proxy: its connections); routing never looks at it.
#[derive(Debug)]
pub struct Member<T = ()> {
    name: String,
    addr: Address,
    life: u64,
    told: AtomicU8,
    refused: AtomicBool,
    in_flight: AtomicU32,
    kept: T,
}

impl<T> Member<T> {
    /// A row for `info`, with nothing in flight.
    pub fn new(info: &MemberInfo, kept: T) -> Member<T> {
        Member {
            name: info.name.clone(),
            addr: info.addr.clone(),
            life: info.life,
            told: AtomicU8::new(info.state as u8),
            refused: AtomicBool::new(false),
            in_flight: AtomicU32::new(0),
            kept,
        }
    }

    /// The route name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it answers.
    pub fn addr(&self) -> &Address {
        &self.addr
    }

    /// Which start of the node this row stands for.
    pub fn life(&self) -> u64 {
        self.life
    }

    /// What the caller keeps beside the row.
    pub fn kept(&self) -> &T {
        &self.kept
    }

    /// What it may be given now: what was told, lowered to [`State::Down`] while it refuses connections.
    pub fn state(&self) -> State {
        if self.refused.load(Ordering::Relaxed) { State::Down } else { self.told() }
    }

    /// What was told of it last.
    pub fn told(&self) -> State {
        match self.told.load(Ordering::Relaxed) {
            told if told == State::Up as u8 => State::Up,
            told if told == State::Draining as u8 => State::Draining,
            _ => State::Down,
        }
    }

    /// Notes what was told. Coming up from anything else forgets that connections were refused: whoever tells it has seen it live.
    pub fn tell(&self, state: State) {
        let before = self.told.swap(state as u8, Ordering::Relaxed);
        if state == State::Up && before != State::Up as u8 {
            self.refused.store(false, Ordering::Relaxed);
        }
    }

    /// Notes that a connection was refused; true for the first to notice.
    pub fn refuse(&self) -> bool {
        !self.refused.swap(true, Ordering::Relaxed)
    }

    /// Notes that a connection was accepted.
    pub fn accept(&self) {
        self.refused.store(false, Ordering::Relaxed);
    }

    /// Whether connections are being refused.
    pub fn refuses(&self) -> bool {
        self.refused.load(Ordering::Relaxed)
    }

    /// Requests that it is answering for this gateway now.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Counts one more request in flight until the returned guard is dropped.
    pub fn begin(self: &Arc<Self>) -> InFlight<T> {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight(self.clone())
    }
}

/// A member and one request that it has in flight, for as long as this lives.
#[derive(Debug)]
pub struct InFlight<T = ()>(Arc<Member<T>>);

impl<T> std::ops::Deref for InFlight<T> {
    type Target = Arc<Member<T>>;

    fn deref(&self) -> &Arc<Member<T>> {
        &self.0
    }
}

impl<T> Drop for InFlight<T> {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The table: who there is.
#[derive(Debug)]
pub struct Members<T = ()> {
    rows: Vec<Arc<Member<T>>>,
}

impl<T> Default for Members<T> {
    fn default() -> Members<T> {
        Members { rows: Vec::new() }
    }
}

impl<T> Members<T> {
    /// The table with these rows. Of two rows with one name only the later life can be named by a route.
    pub fn new(mut rows: Vec<Arc<Member<T>>>) -> Members<T> {
        rows.sort_by(|a, b| a.name.cmp(&b.name).then(b.life.cmp(&a.life)));
        rows.dedup_by(|later, first| later.name == first.name);
        Members { rows }
    }

    /// All rows, ordered by name.
    pub fn rows(&self) -> &[Arc<Member<T>>] {
        &self.rows
    }

    /// The row with this name, if there is one.
    pub fn find(&self, name: &[u8]) -> Option<&Arc<Member<T>>> {
        self.position(name).and_then(|index| self.rows.get(index))
    }

    fn position(&self, name: &[u8]) -> Option<usize> {
        self.rows.binary_search_by(|row| row.name.as_bytes().cmp(name)).ok()
    }

    /// The less loaded of two random rows that are up and were not tried: enough to keep the load even, and unlike the least
    /// loaded of all it does not send everyone to the node that has just come.
    fn less_loaded_of_two(&self, tried: &[usize], random: u64) -> Option<usize> {
        let fit = |index: &usize| self.rows[*index].state() == State::Up && !tried.contains(index);
        let count = (0..self.rows.len()).filter(fit).count() as u64;
        if count == 0 {
            return None;
        }
        let first = (random & 0xffff_ffff) % count;
        let nth = |n: u64| (0..self.rows.len()).filter(fit).nth(n as usize);
        if count == 1 {
            return nth(0);
        }
        let mut second = (random >> 32) % (count - 1);
        if second >= first {
            second += 1;
        }
        // A state may change between counting and picking; then there is one candidate less, not a wrong one.
        match (nth(first), nth(second)) {
            (Some(a), Some(b)) if self.rows[b].in_flight() < self.rows[a].in_flight() => Some(b),
            (a, b) => a.or(b),
        }
    }
}

/// Why a member was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The request's own route names it.
    Route,
    /// It holds a copy of the session, as [`Placement`] says.
    Holder,
    /// It is the less loaded of two.
    Load,
}

/// Whom to give a request to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The row in [`Members::rows`].
    pub index: usize,
    /// Why this one.
    pub reason: Reason,
    /// The request came with the route of another member that the table knows: its session moves.
    pub moved: bool,
}

/// Who else holds a session: asked only when the member that a route names cannot take the request.
pub trait Placement: Send + Sync {
    /// Names of members that hold a copy of the session with this cookie value, best first. Unknown names are skipped, an empty
    /// list means that nobody knows. The value comes from outside and may be anything.
    fn holders(&self, cookie_value: &[u8]) -> Vec<String>;
}

impl<F: Fn(&[u8]) -> Vec<String> + Send + Sync> Placement for F {
    fn holders(&self, cookie_value: &[u8]) -> Vec<String> {
        self(cookie_value)
    }
}

/// The rules: which cookies carry a route, and who knows where sessions are.
///
/// Beside the session's cookie `NAME`, which ends in the node where its id was born, Outlive sets `NAME-r` (`NAME-R` where the name is in
/// capitals) with the node that serves the session now: `.NODE`. That one is asked first.
#[derive(Default)]
pub struct Router {
    cookies: Vec<String>,
    placement: Option<Box<dyn Placement>>,
}

impl Router {
    /// Routes by the cookies with these names; without a name, by whichever cookie ends in the name of a member.
    pub fn new(cookies: Vec<String>, placement: Option<Box<dyn Placement>>) -> Router {
        Router { cookies, placement }
    }

    /// The member for a request with these `Cookie` header values, leaving out the rows in `tried`. `None` when nobody can
    /// take it. `random` should be uniform over all of its bits.
    pub fn route<'a, T>(
        &self,
        cookie_headers: impl Iterator<Item = &'a [u8]>,
        members: &Members<T>,
        tried: &[usize],
        random: u64,
    ) -> Option<Choice> {
        let wish = self.wish(cookie_headers, members);
        let named = wish.and_then(|wish| wish.index);
        if let Some(index) = named
            && !tried.contains(&index)
            && members.rows[index].state() != State::Down
        {
            return Some(Choice { index, reason: Reason::Route, moved: false });
        }
        let moved = named.is_some();
        if let (Some(session), Some(placement)) = (wish.and_then(|wish| wish.session), &self.placement) {
            for name in placement.holders(session) {
                if let Some(index) = members.position(name.as_bytes())
                    && !tried.contains(&index)
                    && members.rows[index].state() == State::Up
                {
                    return Some(Choice { index, reason: Reason::Holder, moved });
                }
            }
        }
        let index = members.less_loaded_of_two(tried, random)?;
        Some(Choice { index, reason: Reason::Load, moved })
    }

    /// The first cookie of where a session is now, else the first session cookie, with a known route; and the first session cookie.
    fn wish<'a, T>(&self, cookie_headers: impl Iterator<Item = &'a [u8]>, members: &Members<T>) -> Option<Wish<'a>> {
        let (mut now, mut born, mut session) = (None, None, None);
        for header in cookie_headers {
            for pair in header.split(|byte| *byte == b';') {
                let Some(equals) = pair.iter().position(|byte| *byte == b'=') else { continue };
                let name = pair[..equals].trim_ascii();
                let value = unquoted(pair[equals + 1..].trim_ascii());
                let Some(dot) = value.iter().rposition(|byte| *byte == b'.') else { continue };
                let index = members.position(&value[dot + 1..]);
                if dot == 0 && self.is_ours(name.strip_suffix(b"-r").or_else(|| name.strip_suffix(b"-R"))) {
                    now = now.or(index);
                } else if self.is_ours(Some(name)) {
                    born = born.or(index);
                    // Where the names are not known, only a route says that it is a session.
                    if session.is_none() && (index.is_some() || !self.cookies.is_empty()) {
                        session = Some(value);
                    }
                }
            }
        }
        let index = now.or(born);
        (index.is_some() || session.is_some()).then_some(Wish { session, index })
    }

    fn is_ours(&self, name: Option<&[u8]>) -> bool {
        name.is_some_and(|name| self.cookies.is_empty() || self.cookies.iter().any(|cookie| cookie.as_bytes() == name))
    }
}

impl std::fmt::Debug for Router {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Router").field("cookies", &self.cookies).field("placement", &self.placement.is_some()).finish()
    }
}

/// What a request's cookie asks for. Holds a session id, so it has no `Debug`.
#[derive(Clone, Copy)]
struct Wish<'a> {
    session: Option<&'a [u8]>,
    index: Option<usize>,
}

fn unquoted(value: &[u8]) -> &[u8] {
    match value {
        [b'"', inner @ .., b'"'] => inner,
        plain => plain,
    }
}

#[cfg(test)]
#[path = "routing/tests.rs"]
mod tests;
