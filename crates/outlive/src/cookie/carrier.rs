//! Reads what a request carries, and sets what a response has to carry.
//!
//! The `Cookie` header is scanned by hand, because parsing every pair costs more than the session; the attributes of `Set-Cookie` are
//! built by a crate, once.

use super::{HeaderNames, Site, origin};
use crate::caching;
use crate::message::{Head, Headers};
use cookie::SameSite;
use core::fmt::Write as _;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use core::time::Duration;
use smallvec::SmallVec;

/// For how long a new id is kept in a second place, where responses that come late do not write.
const NEWEST_KEEP: Duration = Duration::from_secs(300);
/// Sessions that may begin without a cookie coming back before the log asks why; fewer, if requests say that they came over plain HTTP.
const BORN_IN_VAIN: u32 = 20;
const BORN_IN_VAIN_PLAIN: u32 = 3;

/// Where an id came from, the one that counts most first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    /// What a login or a rotation set a moment ago.
    Newest,
    /// The session's own cookie.
    Own,
    /// A session that began where the browser may have kept the visitor's own away.
    Aside,
}

/// What a cookie or a header of ours is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Id(Place),
    Token,
    Route,
}

/// The cookies' names in one mode, and what `Set-Cookie` has behind a value.
#[derive(Debug)]
pub(super) struct Names {
    id: String,
    /// The other names' endings are in capitals, as the name is.
    capitals: bool,
    attributes: String,
}

impl Names {
    pub(super) fn new(id: String, path: &str, domain: Option<&str>, secure: bool, same_site: SameSite) -> Names {
        let mut cookie = cookie::Cookie::build(("n", "")).path(path).http_only(true).same_site(same_site);
        if let Some(domain) = domain {
            cookie = cookie.domain(domain);
        }
        if same_site == SameSite::None {
            cookie = cookie.partitioned(true);
        }
        if secure {
            cookie = cookie.secure(true);
        }
        let attributes = cookie.build().to_string()["n=".len()..].to_owned();
        Names { capitals: !id.bytes().any(|b| b.is_ascii_lowercase()), attributes, id }
    }

    fn ending(&self, part: Part) -> &'static str {
        let (small, capital) = match part {
            Part::Id(Place::Own) => ("", ""),
            Part::Id(Place::Newest) => ("-s", "-S"),
            Part::Id(Place::Aside) => ("-x", "-X"),
            Part::Token => ("-v", "-V"),
            Part::Route => ("-r", "-R"),
        };
        if self.capitals { capital } else { small }
    }

    /// What a pair whose name begins with ours is for, and its value.
    fn pair<'a>(&self, rest: &'a [u8]) -> Option<(Part, &'a [u8])> {
        let (part, rest) = match rest {
            [b'-', letter, rest @ ..] if letter.is_ascii_uppercase() == self.capitals => {
                let part = match letter.to_ascii_lowercase() {
                    b'v' => Part::Token,
                    b'r' => Part::Route,
                    b's' => Part::Id(Place::Newest),
                    b'x' => Part::Id(Place::Aside),
                    _ => return None,
                };
                (part, rest)
            }
            _ => (Part::Id(Place::Own), rest),
        };
        value(rest).map(|value| (part, value))
    }

    /// Adds `Set-Cookie` for these parts of a value; with `keep` the browser keeps it for that long, otherwise until it is closed.
    fn set(&self, headers: &mut impl Headers, part: Part, value: &[&str], keep: Option<Duration>) {
        let ending = self.ending(part);
        let length = value.iter().map(|part| part.len()).sum::<usize>() + self.id.len() + ending.len() + 1 + self.attributes.len();
        // Of just that length, so that the header takes it over as it is.
        let mut text = String::with_capacity(length + if keep.is_some() { "; Max-Age=4294967295".len() } else { 0 });
        text.push_str(&self.id);
        text.push_str(ending);
        text.push('=');
        value.iter().for_each(|part| text.push_str(part));
        text.push_str(&self.attributes);
        if let Some(keep) = keep {
            // Writing to a text does not fail.
            let _ = write!(text, "; Max-Age={}", keep.as_secs());
        }
        headers.add("set-cookie", text.into());
    }
}

/// The pairs of a `Cookie` header.
fn pairs(header: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(header);
    core::iter::from_fn(move || {
        let pairs = rest?;
        let end = memchr::memchr(b';', pairs);
        rest = end.map(|end| &pairs[end + 1..]);
        Some(&pairs[..end.unwrap_or(pairs.len())])
    })
}

/// The value in what follows a cookie's name; nothing if the name goes on.
fn value(rest: &[u8]) -> Option<&[u8]> {
    let value = rest.trim_ascii_start().strip_prefix(b"=")?.trim_ascii();
    Some(value.strip_prefix(b"\"").and_then(|v| v.strip_suffix(b"\"")).unwrap_or(value))
}

/// A [`Cookie`](super::Cookie) with its names.
#[derive(Debug)]
pub(crate) struct Carrier {
    usual: Names,
    /// In a debug build on a loopback host.
    loopback: Names,
    headers: Option<HeaderNames>,
    header_only: bool,
    site: Site,
    secure: bool,
    pub(super) debug_build: bool,
    watch: Watch,
}

/// What the log says once.
#[derive(Debug, Default)]
struct Watch {
    born: AtomicU32,
    came_back: AtomicBool,
    said_loopback: AtomicBool,
    said_plain: AtomicBool,
    said_foreign: AtomicBool,
    said_kept_away: AtomicBool,
}

fn once(said: &AtomicBool) -> bool {
    !said.load(Ordering::Relaxed) && !said.swap(true, Ordering::Relaxed)
}

/// Which of a carrier's names are in force for one request; the others are not even read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Usual,
    Loopback,
    Header,
}

/// What a request carries beside ids.
#[derive(Debug, Default)]
pub(crate) struct Carried<'a> {
    /// Candidates for the token; duplicates are somebody else's doing.
    pub(crate) tokens: SmallVec<[&'a [u8]; 2]>,
    /// It names this node as the one that serves the session.
    pub(crate) routed: bool,
}

/// Tokens of one request that are looked at.
const TOKENS_MAX: usize = 8;

impl Carrier {
    pub(super) fn new(loopback: Names, usual: Names, secure: bool, site: Site) -> Carrier {
        Carrier {
            usual,
            loopback,
            headers: None,
            header_only: false,
            site,
            secure,
            debug_build: cfg!(debug_assertions),
            watch: Watch::default(),
        }
    }

    pub(super) fn with_headers(self, headers: Option<HeaderNames>, only: bool) -> Carrier {
        Carrier { headers, header_only: only, ..self }
    }

    /// Every name that it reads or sets.
    pub(crate) fn all_names(&self) -> Vec<String> {
        let mut all = Vec::new();
        if let Some(headers) = &self.headers {
            all.extend([&headers.id, &headers.token, &headers.route].map(Clone::clone));
        }
        if !self.header_only {
            let parts = [Part::Id(Place::Own), Part::Id(Place::Newest), Part::Id(Place::Aside), Part::Token, Part::Route];
            let of = |names: &Names| parts.map(|part| format!("{}{}", names.id, names.ending(part)));
            all.extend(of(&self.usual).into_iter().chain(of(&self.loopback)));
        }
        all
    }

    /// The mode for this request.
    pub(crate) fn mode(&self, head: &Head<'_, impl Headers>) -> Mode {
        if let Some(headers) = &self.headers
            && (self.header_only || head.headers.all(&headers.id).next().is_some())
        {
            return Mode::Header;
        }
        match self.debug_build && self.secure && origin::loopback(head.headers, head.authority).is_some() {
            true => Mode::Loopback,
            false => Mode::Usual,
        }
    }

    fn names(&self, mode: Mode) -> &Names {
        match mode {
            Mode::Usual | Mode::Header => &self.usual,
            Mode::Loopback => &self.loopback,
        }
    }

    /// Reads what the request carries: each candidate for the id is given to `id`, in the order sent. `node` is this one's name. Values are
    /// bytes: somebody else's cookies may be no text.
    pub(crate) fn read<'a>(&self, mode: Mode, headers: &'a impl Headers, node: &str, mut id: impl FnMut(Place, &'a [u8])) -> Carried<'a> {
        let mut carried = Carried::default();
        let mut take = |part, value: &'a [u8]| match part {
            Part::Id(place) => id(place, value),
            Part::Token if carried.tokens.len() < TOKENS_MAX => carried.tokens.push(value),
            Part::Token => {}
            Part::Route => carried.routed |= value.strip_prefix(b".") == Some(node.as_bytes()),
        };
        if let (Mode::Header, Some(names)) = (mode, &self.headers) {
            for (name, part) in [(&names.id, Part::Id(Place::Own)), (&names.token, Part::Token), (&names.route, Part::Route)] {
                headers.all(name).for_each(|value| take(part, value.trim_ascii()));
            }
            return carried;
        }
        let names = self.names(mode);
        for header in headers.all("cookie") {
            for pair in pairs(header) {
                if let Some(rest) = pair.trim_ascii_start().strip_prefix(names.id.as_bytes())
                    && let Some((part, value)) = names.pair(rest)
                {
                    take(part, value);
                }
            }
        }
        carried
    }

    /// Says on what the response depends.
    pub(crate) fn vary(&self, headers: &mut impl Headers) {
        if let Some(names) = &self.headers {
            caching::vary_by(headers, names.id.clone().into());
        }
        if !self.header_only {
            caching::vary_by(headers, "cookie".into());
        }
    }

    /// Whether the browser may have kept the visitor's own session away from a request that carries none.
    pub(crate) fn is_kept_away(&self, mode: Mode, head: &Head<'_, impl Headers>) -> bool {
        mode != Mode::Header && origin::is_kept_away(self.site, head.method, head.headers)
    }

    /// Adds the id, `ID.ROUTE`, to a response, at the birth of the id. After a login or a rotation it is `renewed`.
    pub(crate) fn set_id(&self, mode: Mode, headers: &mut impl Headers, place: Place, value: [&str; 2], keep: Option<Duration>) {
        let [id, route] = value;
        if let (Mode::Header, Some(names)) = (mode, &self.headers) {
            return insert(headers, &names.id, &[id, ".", route]);
        }
        let keep = if place == Place::Newest { Some(NEWEST_KEEP) } else { keep };
        self.names(mode).set(headers, Part::Id(place), &[id, ".", route], keep);
        if place != Place::Newest && !self.watch.came_back.load(Ordering::Relaxed) {
            self.watch.born.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Adds the version token to a response.
    pub(crate) fn set_token(&self, mode: Mode, headers: &mut impl Headers, token: &str, keep: Option<Duration>) {
        match (mode, &self.headers) {
            (Mode::Header, Some(names)) => insert(headers, &names.token, &[token]),
            _ => self.names(mode).set(headers, Part::Token, &[token], keep),
        }
    }

    /// Tells the client to forget the version token.
    pub(crate) fn clear_token(&self, mode: Mode, headers: &mut impl Headers) {
        match (mode, &self.headers) {
            (Mode::Header, Some(names)) => insert(headers, &names.token, &[]),
            _ => self.names(mode).set(headers, Part::Token, &[], Some(Duration::ZERO)),
        }
    }

    /// Adds the node that serves the session now.
    pub(crate) fn set_route(&self, mode: Mode, headers: &mut impl Headers, node: &str) {
        match (mode, &self.headers) {
            (Mode::Header, Some(names)) => insert(headers, &names.route, &[".", node]),
            _ => self.names(mode).set(headers, Part::Route, &[".", node], None),
        }
    }

    /// A request brought an id of ours.
    pub(crate) fn came_back(&self) {
        if !self.watch.came_back.load(Ordering::Relaxed) {
            self.watch.came_back.store(true, Ordering::Relaxed);
        }
    }

    /// A request brought no id of ours; `foreign` is whether one came that is like ours and is not. Says once what may be wrong.
    pub(crate) fn came_without(&self, mode: Mode, head: &Head<'_, impl Headers>, foreign: bool) {
        let (watch, name) = (&self.watch, &self.names(mode).id);
        if mode == Mode::Header {
            return;
        }
        if foreign && once(&watch.said_foreign) {
            tracing::warn!(
                "a cookie {name} holds a session id that this cluster did not issue: two applications on one host, on whatever ports, \
                 overwrite each other's cookie; give one of them another cookie.name or namespace (after a change of the cluster's secret \
                 this is said once)"
            );
        }
        if mode == Mode::Loopback || !self.secure {
            return;
        }
        if !self.debug_build
            && !watch.said_loopback.load(Ordering::Relaxed)
            && let Some(host) = origin::loopback(head.headers, head.authority)
            && once(&watch.said_loopback)
        {
            tracing::warn!(
                "the host is {host}: Safari does not keep the cookie {name} over plain HTTP; if it is meant to work there, set \
                 OUTLIVE_COOKIE_SECURE=danger_plain_http"
            );
        }
        self.watch_for_plain_http(head);
    }

    /// Browsers do not keep a cookie that is `Secure` over plain HTTP, and then each visitor is a new one for ever.
    fn watch_for_plain_http(&self, head: &Head<'_, impl Headers>) {
        let (watch, name) = (&self.watch, &self.usual.id);
        let born = watch.born.load(Ordering::Relaxed);
        if born < BORN_IN_VAIN_PLAIN || watch.came_back.load(Ordering::Relaxed) || watch.said_plain.load(Ordering::Relaxed) {
            return;
        }
        let what = match origin::is_plain_http(head.headers) {
            true => "and requests say that they come over plain HTTP",
            false if born >= BORN_IN_VAIN => "which is what it looks like when visitors come over plain HTTP",
            false => return,
        };
        if once(&watch.said_plain) {
            tracing::warn!(
                "{born} sessions have begun on this node and no cookie {name} has come back, {what}: browsers keep it over HTTPS only; \
                 put TLS before this node, or set OUTLIVE_COOKIE_SECURE=danger_plain_http"
            );
        }
    }

    /// A session has begun beside the visitor's own. Says once what to do.
    pub(crate) fn began_aside(&self) {
        if once(&self.watch.said_kept_away) {
            tracing::warn!(
                "a session began in a request from another site, from which browsers keep the cookie {} away: it is set aside and does \
                 not replace the visitor's own; to go on with that one, respond with 303 to a page of this site and change it there",
                self.usual.id
            );
        }
    }
}

fn insert(headers: &mut impl Headers, name: &str, value: &[&str]) {
    headers.set(name, value.concat().into());
}
