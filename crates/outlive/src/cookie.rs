//! How a session's id and version token travel: in two cookies, or in two headers of their own.
//!
//! The `Cookie` header is scanned by hand, because parsing every pair costs more than the session; `Set-Cookie` is built by a crate.
//! Two cookies and not one: in one, an answer that began before a login would put the old id back and log the user out.

use cookie::SameSite;
use http::header::{COOKIE, HOST, HeaderMap, HeaderName, HeaderValue, SET_COOKIE};
use http::uri::Authority;
use smallvec::SmallVec;
use std::borrow::Cow;
use std::sync::atomic::{AtomicBool, Ordering};

/// Bytes of the value of the id cookie: id, dot, route.
pub(crate) const ID_MAX: usize = 96;
/// Bytes of the value of the token cookie.
pub(crate) const TOKEN_MAX: usize = 64;

/// How the session's id travels. The default is `__Host-session; Secure; HttpOnly; SameSite=Lax; Path=/`, and beside it
/// `__Host-session-v` with the version token.
///
/// Neither Chrome nor Safari keeps that cookie on plain `http://localhost`. So in a *debug build*, when the request's host is loopback
/// and no proxy has forwarded it, the cookie is `session-dev` without `Secure`. A release build never decides by the host: behind a
/// proxy that sends `Host: 127.0.0.1` a production site would lose `Secure` unseen. Set
/// [`danger_plain_http`](Cookie::danger_plain_http) there if it has to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cookie {
    name: Option<Cow<'static, str>>,
    header: bool,
    plain_http: bool,
    cross_site: bool,
}

impl Default for Cookie {
    fn default() -> Self {
        Cookie::new()
    }
}

impl Cookie {
    /// The default cookie.
    #[must_use]
    pub const fn new() -> Cookie {
        Cookie { name: None, header: false, plain_http: false, cross_site: false }
    }

    /// A pair of headers instead of cookies, for clients that are not browsers: `name` carries the id in requests and answers, `name-v`
    /// the version token. Such a client keeps both and sends the last ones back.
    #[must_use]
    pub fn header(name: impl Into<Cow<'static, str>>) -> Cookie {
        Cookie { name: Some(name.into()), header: true, ..Cookie::new() }
    }

    /// Another name: 1 to 48 characters of a token. The token's cookie is `name-v` (`NAME-V` where the name is in capitals).
    #[must_use]
    pub fn name(mut self, name: impl Into<Cow<'static, str>>) -> Cookie {
        self.name = Some(name.into());
        self
    }

    /// Gives up `Secure` and the prefix `__Host-`, so that the cookie works over plain HTTP, where everybody on the way can read and
    /// replace it.
    #[must_use]
    pub fn danger_plain_http(mut self) -> Cookie {
        self.plain_http = true;
        self
    }

    /// `SameSite=None; Partitioned`: for a front end on another site, which asks with credentials.
    ///
    /// With it comes CORS: put the layer that answers it (tower-http's `CorsLayer`, with the front end's origin, not `*`, and
    /// credentials allowed) *outside* of the session's, added after it. A preflight carries no cookie, opens no session and need not
    /// reach the application. Without `SameSite=Lax` the browser sends the cookie with every cross-site request, so check `Origin`
    /// where something is changed. A front end that is no browser, or one that keeps what it is given, can have a pair of headers
    /// instead: [`Cookie::header`], which CORS then has to list as exposed and allowed.
    #[must_use]
    pub fn cross_site(mut self) -> Cookie {
        self.cross_site = true;
        self
    }

    /// The names for a namespace, or why there are none.
    pub(crate) fn resolve(&self, namespace: &str) -> Result<Carrier, String> {
        if let Some(name) = &self.name {
            let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
            if name.is_empty() || name.len() > 48 || !name.bytes().all(token) {
                return Err(format!("cookie.name is {name:?}, and must be 1 to 48 letters, digits or `-_.`"));
            }
            if self.plain_http && !prefix(name).is_empty() {
                return Err(format!("cookie.name is {name:?}, and no browser takes that prefix over plain HTTP"));
            }
        }
        if self.plain_http && self.cross_site {
            return Err("cookie.secure is `danger_plain_http`, and browsers send a cross-site cookie over HTTPS only".to_owned());
        }
        let usual = match &self.name {
            Some(name) => name.to_string(),
            None if self.plain_http => namespace.to_owned(),
            None => format!("__Host-{namespace}"),
        };
        let header = |name: &str| HeaderName::from_bytes(name.as_bytes()).map_err(|_| format!("{name:?} is not a header"));
        let headers = if self.header { Some((header(&usual)?, header(&format!("{usual}{}", suffix(&usual)))?)) } else { None };
        let same_site = if self.cross_site { SameSite::None } else { SameSite::Lax };
        Ok(Carrier {
            usual: Names::new(&usual, !self.plain_http, same_site),
            loopback: Names::new(&format!("{}-dev", &usual[prefix(&usual).len()..]), false, SameSite::Lax),
            headers,
            secure: !self.plain_http,
            debug_build: cfg!(debug_assertions),
            hinted: AtomicBool::new(false),
        })
    }
}

fn prefix(name: &str) -> &str {
    ["__Host-", "__Secure-"].into_iter().find(|p| name.starts_with(p)).unwrap_or("")
}

fn suffix(name: &str) -> &'static str {
    if name.bytes().any(|b| b.is_ascii_lowercase()) { "-v" } else { "-V" }
}

/// The cookies' names in one mode, and `Set-Cookie` before and after a value.
#[derive(Debug)]
struct Names {
    id: Template,
    /// What the token's name has behind the id's: `-v`.
    suffix: &'static str,
    token: Template,
}

#[derive(Debug)]
struct Template {
    name: String,
    attributes: String,
}

impl Names {
    fn new(id: &str, secure: bool, same_site: SameSite) -> Names {
        let suffix = suffix(id);
        let template = |name: String| {
            let cookie = cookie::Cookie::build((name.clone(), "")).path("/").http_only(true).same_site(same_site);
            let cookie = if same_site == SameSite::None { cookie.partitioned(true) } else { cookie };
            let text = if secure { cookie.secure(true) } else { cookie }.build().to_string();
            Template { attributes: text[name.len() + 1..].to_owned(), name }
        };
        Names { id: template(id.to_owned()), suffix, token: template(format!("{id}{suffix}")) }
    }
}

impl Template {
    /// Adds `Set-Cookie` for these parts of a value; without one, it takes the cookie away from the client.
    fn set(&self, headers: &mut HeaderMap, value: &[&str]) {
        let end = if value.is_empty() { "; Max-Age=0" } else { "" };
        let length = self.name.len() + 1 + value.iter().map(|part| part.len()).sum::<usize>() + self.attributes.len() + end.len();
        // Of just that length, so that the header takes it over as it is.
        let mut text = String::with_capacity(length);
        text.push_str(&self.name);
        text.push('=');
        value.iter().for_each(|part| text.push_str(part));
        text.push_str(&self.attributes);
        text.push_str(end);
        if let Ok(value) = HeaderValue::try_from(text) {
            headers.append(SET_COOKIE, value);
        }
    }
}

/// A [`Cookie`] with its names.
#[derive(Debug)]
pub(crate) struct Carrier {
    usual: Names,
    /// In a debug build on a loopback host.
    loopback: Names,
    headers: Option<(HeaderName, HeaderName)>,
    secure: bool,
    debug_build: bool,
    hinted: AtomicBool,
}

/// Which of a carrier's names are in force for one request; the others are not even read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Usual,
    Loopback,
}

impl Carrier {
    /// Every name that it reads or sets.
    pub(crate) fn all_names(&self) -> Vec<String> {
        match &self.headers {
            Some((id, token)) => vec![id.to_string(), token.to_string()],
            None => [&self.usual, &self.loopback].iter().flat_map(|n| [n.id.name.clone(), n.token.name.clone()]).collect(),
        }
    }

    /// The mode for a request with these headers.
    pub(crate) fn mode(&self, headers: &HeaderMap, authority: Option<&Authority>) -> Mode {
        match self.debug_build && self.secure && self.headers.is_none() && loopback(headers, authority).is_some() {
            true => Mode::Loopback,
            false => Mode::Usual,
        }
    }

    /// Says once what to set if a release build is tried on a loopback host. Asked for visitors without a session only.
    pub(crate) fn hint(&self, headers: &HeaderMap, authority: Option<&Authority>) {
        if self.debug_build || !self.secure || self.headers.is_some() || self.hinted.load(Ordering::Relaxed) {
            return;
        }
        if let Some(host) = loopback(headers, authority)
            && !self.hinted.swap(true, Ordering::Relaxed)
        {
            tracing::warn!(
                "the host is {host}: browsers may not keep the cookie {} over plain HTTP; if it is meant to work there, set \
                 OUTLIVE_COOKIE_SECURE=danger_plain_http",
                self.usual.id.name
            );
        }
    }

    fn names(&self, mode: Mode) -> &Names {
        match mode {
            Mode::Usual => &self.usual,
            Mode::Loopback => &self.loopback,
        }
    }

    /// Reads the request's candidates: ids are given to `id` in the order sent until it takes one; the tokens are returned.
    pub(crate) fn read<'a>(&self, mode: Mode, headers: &'a HeaderMap, mut id: impl FnMut(&'a str) -> bool) -> Tokens<'a> {
        let (mut tokens, mut taken) = (Tokens::new(), false);
        if let Some((of_id, of_token)) = &self.headers {
            let texts = |name| headers.get_all(name).into_iter().filter_map(|v| v.to_str().ok().map(str::trim));
            let _ = texts(of_id).any(id);
            tokens.extend(texts(of_token).take(TOKENS_MAX));
            return tokens;
        }
        let names = self.names(mode);
        let mut pair = |pair: &'a str| {
            let Some(rest) = pair.trim_ascii_start().strip_prefix(names.id.name.as_str()) else { return };
            let (is_token, rest) = rest.strip_prefix(names.suffix).map_or((false, rest), |rest| (true, rest));
            let Some(value) = value(rest) else { return };
            if is_token {
                if tokens.len() < TOKENS_MAX {
                    tokens.push(value);
                }
            } else if !taken {
                taken = id(value);
            }
        };
        for header in headers.get_all(COOKIE) {
            match core::str::from_utf8(header.as_bytes()) {
                Ok(mut pairs) => {
                    while let Some(end) = memchr::memchr(b';', pairs.as_bytes()) {
                        pair(&pairs[..end]);
                        pairs = &pairs[end + 1..];
                    }
                    pair(pairs);
                }
                // A cookie of somebody else is no text; ours may be.
                Err(_) => header.as_bytes().split(|b| *b == b';').filter_map(|one| core::str::from_utf8(one).ok()).for_each(&mut pair),
            }
        }
        tokens
    }

    /// The header whose value an answer depends on.
    pub(crate) fn vary(&self) -> &HeaderName {
        self.headers.as_ref().map_or(&COOKIE, |h| &h.0)
    }

    /// Adds the id, `ID.ROUTE`, to an answer.
    pub(crate) fn set_id(&self, mode: Mode, headers: &mut HeaderMap, id: &str, route: &str) {
        debug_assert!(id.len() + 1 + route.len() <= ID_MAX, "an id of {} bytes", id.len() + 1 + route.len());
        match &self.headers {
            Some((name, _)) => insert(headers, name, &format!("{id}.{route}")),
            None => self.names(mode).id.set(headers, &[id, ".", route]),
        }
    }

    /// Adds the version token to an answer.
    pub(crate) fn set_token(&self, mode: Mode, headers: &mut HeaderMap, token: &str) {
        debug_assert!(token.len() <= TOKEN_MAX, "a token of {} bytes", token.len());
        match &self.headers {
            Some((_, name)) => insert(headers, name, token),
            None => self.names(mode).token.set(headers, &[token]),
        }
    }

    /// Tells the client to forget both.
    pub(crate) fn clear(&self, mode: Mode, headers: &mut HeaderMap) {
        if let Some((id, token)) = &self.headers {
            insert(headers, id, "");
            insert(headers, token, "");
        } else {
            let names = self.names(mode);
            names.id.set(headers, &[]);
            names.token.set(headers, &[]);
        }
    }
}

/// Candidates for the token in one request; duplicates are somebody else's doing.
pub(crate) type Tokens<'a> = SmallVec<[&'a str; 2]>;
const TOKENS_MAX: usize = 4;

fn insert(headers: &mut HeaderMap, name: &HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name.clone(), value);
    }
}

/// The value in what follows a cookie's name; nothing if the name goes on.
fn value(rest: &str) -> Option<&str> {
    let value = rest.trim_ascii_start().strip_prefix('=')?.trim_ascii();
    Some(value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).unwrap_or(value))
}

/// The request's host, if it is this machine and no proxy forwarded the request.
fn loopback<'a>(headers: &'a HeaderMap, authority: Option<&'a Authority>) -> Option<&'a str> {
    let host = match authority {
        Some(authority) => authority.host(),
        None => headers.get(HOST)?.to_str().ok().map(host_of)?,
    };
    (is_loopback(host) && !is_forwarded(headers)).then_some(host)
}

fn host_of(header: &str) -> &str {
    match header.strip_prefix('[').and_then(|rest| rest.find(']')) {
        Some(end) => &header[..end + 2],
        None => header.split(':').next().unwrap_or(""),
    }
}

fn is_loopback(host: &str) -> bool {
    let host = host.trim_end_matches('.');
    host.eq_ignore_ascii_case("localhost")
        || host.len() > 10 && host.is_char_boundary(host.len() - 10) && host[host.len() - 10..].eq_ignore_ascii_case(".localhost")
        || host == "[::1]"
        || host.parse::<core::net::Ipv4Addr>().is_ok_and(|ip| ip.is_loopback())
}

fn is_forwarded(headers: &HeaderMap) -> bool {
    ["forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip", "via"].iter().any(|h| headers.contains_key(*h))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn carrier(cookie: Cookie, debug_build: bool) -> Carrier {
        Carrier { debug_build, ..cookie.resolve("session").unwrap() }
    }

    fn request(headers: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
        }
        map
    }

    fn answer(carrier: &Carrier, mode: Mode) -> Vec<String> {
        let mut headers = HeaderMap::new();
        carrier.set_id(mode, &mut headers, "ID", "a");
        carrier.set_token(mode, &mut headers, "TOKEN");
        headers.get_all(SET_COOKIE).iter().map(|v| v.to_str().unwrap().to_owned()).collect()
    }

    fn ids<'a>(carrier: &Carrier, mode: Mode, headers: &'a HeaderMap) -> Vec<&'a str> {
        let mut ids = Vec::new();
        carrier.read(mode, headers, |id| {
            ids.push(id);
            false
        });
        ids
    }

    const SAFE: [&str; 2] =
        ["__Host-session=ID.a; HttpOnly; SameSite=Lax; Secure; Path=/", "__Host-session-v=TOKEN; HttpOnly; SameSite=Lax; Secure; Path=/"];

    #[test]
    fn the_safe_cookies_are_set_in_a_release_build_on_every_host() {
        let carrier = carrier(Cookie::new(), false);
        for host in ["shop.example", "localhost:3000", "127.0.0.1:3000"] {
            let mode = carrier.mode(&request(&[("host", host)]), None);
            assert_eq!(answer(&carrier, mode), SAFE, "{host}");
        }
    }

    #[test]
    fn a_debug_build_drops_secure_on_a_loopback_host_that_no_proxy_forwarded_to() {
        let carrier = carrier(Cookie::new(), true);
        let dev = ["session-dev=ID.a; HttpOnly; SameSite=Lax; Path=/", "session-dev-v=TOKEN; HttpOnly; SameSite=Lax; Path=/"];
        for host in ["localhost", "LOCALHOST:3000", "shop.localhost", "127.0.0.1:3000", "127.9.9.9", "[::1]:3000", "localhost."] {
            assert_eq!(answer(&carrier, carrier.mode(&request(&[("host", host)]), None)), dev, "{host}");
        }
        for host in ["shop.example", "localhost.example", "127.0.0.1.example", "10.0.0.1", "", "[::2]", "notlocalhost", "äöüäöü.localhos"]
        {
            assert_eq!(carrier.mode(&request(&[("host", host)]), None), Mode::Usual, "{host}");
        }
        for forwarded in ["forwarded", "x-forwarded-for", "x-forwarded-proto", "x-real-ip", "via"] {
            assert_eq!(answer(&carrier, carrier.mode(&request(&[("host", "localhost"), (forwarded, "x")]), None)), SAFE, "{forwarded}");
        }
        assert_eq!(carrier.mode(&HeaderMap::new(), Some(&Authority::from_static("localhost:1"))), Mode::Loopback);
    }

    #[test]
    fn only_the_name_of_the_mode_in_force_is_read() {
        let carrier = carrier(Cookie::new(), true);
        let headers = request(&[("cookie", "__Host-session=a; session-dev=b; session=c")]);
        assert_eq!(ids(&carrier, Mode::Usual, &headers), ["a"]);
        assert_eq!(ids(&carrier, Mode::Loopback, &headers), ["b"]);
    }

    #[test]
    fn several_headers_quotes_spaces_and_duplicates_are_read() {
        let carrier = carrier(Cookie::new().name("OUTLIVESID").danger_plain_http(), true);
        let headers = request(&[
            ("cookie", "OUTLIVESID=foreign; OUTLIVESID-V=t;theme=dark;; =;OUTLIVESIDX=no; XOUTLIVESID=no"),
            ("cookie", "  OUTLIVESID = \"quoted\" "),
            ("cookie", "OUTLIVESID=; OUTLIVESID"),
        ]);
        assert_eq!(ids(&carrier, Mode::Usual, &headers), ["foreign", "quoted", ""]);
        assert_eq!(carrier.read(Mode::Usual, &headers, |_| true).to_vec(), ["t"]);
        let mut odd = HeaderMap::new();
        odd.insert(COOKIE, HeaderValue::from_bytes(b"x=\xff; OUTLIVESID=\xff; OUTLIVESID=ok").unwrap());
        assert_eq!(ids(&carrier, Mode::Usual, &odd), ["ok"]);
    }

    #[test]
    fn other_modes_have_their_own_headers() {
        let plain = carrier(Cookie::new().name("OUTLIVESID").danger_plain_http(), false);
        let want = ["OUTLIVESID=ID.a; HttpOnly; SameSite=Lax; Path=/", "OUTLIVESID-V=TOKEN; HttpOnly; SameSite=Lax; Path=/"];
        assert_eq!(answer(&plain, Mode::Usual), want);
        let cross = carrier(Cookie::new().cross_site(), false);
        assert_eq!(answer(&cross, Mode::Usual)[0], "__Host-session=ID.a; HttpOnly; SameSite=None; Partitioned; Secure; Path=/");
        let mut headers = HeaderMap::new();
        carrier(Cookie::new(), false).clear(Mode::Usual, &mut headers);
        assert_eq!(headers[SET_COOKIE], "__Host-session=; HttpOnly; SameSite=Lax; Secure; Path=/; Max-Age=0");
    }

    #[test]
    fn headers_can_carry_the_session_instead_of_cookies() {
        let carrier = carrier(Cookie::header("X-Session"), true);
        let mut headers = HeaderMap::new();
        carrier.set_id(Mode::Usual, &mut headers, "ID", "a");
        carrier.set_token(Mode::Usual, &mut headers, "T");
        assert_eq!((headers["x-session"].as_bytes(), headers["x-session-v"].as_bytes()), (&b"ID.a"[..], &b"T"[..]));
        assert!(!headers.contains_key(SET_COOKIE));
        assert_eq!(ids(&carrier, Mode::Usual, &headers), ["ID.a"]);
        assert_eq!(carrier.read(Mode::Usual, &headers, |_| true).to_vec(), ["T"]);
        assert_eq!(carrier.vary(), "x-session");
    }

    #[test]
    fn names_that_no_browser_would_take_are_refused() {
        for bad in ["", "a b", "a;b", "a=b", "é"] {
            assert!(Cookie::new().name(bad).resolve("session").unwrap_err().contains("cookie.name"), "{bad:?}");
        }
        assert!(Cookie::new().name("__Host-x").danger_plain_http().resolve("session").is_err());
        assert!(Cookie::new().cross_site().danger_plain_http().resolve("session").is_err());
        assert!(Cookie::header("a b").resolve("session").is_err());
    }

    /// Keeps what is logged.
    #[derive(Clone, Default)]
    struct Log(std::sync::Arc<parking_lot::Mutex<Vec<String>>>);

    impl tracing::field::Visit for Log {
        fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn core::fmt::Debug) {
            if field.name() == "message" {
                self.0.lock().push(format!("{value:?}"));
            }
        }
    }

    impl tracing::Subscriber for Log {
        fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
            true
        }

        fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
            tracing::span::Id::from_u64(1)
        }

        fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

        fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

        fn event(&self, event: &tracing::Event<'_>) {
            event.record(&mut self.clone());
        }

        fn enter(&self, _: &tracing::span::Id) {}

        fn exit(&self, _: &tracing::span::Id) {}
    }

    /// What a carrier says when visitors without a session come to these hosts.
    fn hints(carrier: &Carrier, hosts: &[&str]) -> Vec<String> {
        let log = Log::default();
        tracing::subscriber::with_default(log.clone(), || {
            for host in hosts {
                carrier.hint(&request(&[("host", host)]), None);
            }
        });
        let said = log.0.lock();
        said.clone()
    }

    #[test]
    fn a_release_build_on_a_loopback_host_says_once_which_setting_to_use() {
        let said = hints(&carrier(Cookie::new(), false), &["shop.example", "localhost:3000", "127.0.0.1:3000", "localhost:3000"]);
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(said[0].contains("the host is localhost") && said[0].contains("OUTLIVE_COOKIE_SECURE=danger_plain_http"), "{said:?}");
        for (cookie, debug) in [(Cookie::new(), true), (Cookie::new().danger_plain_http(), false), (Cookie::header("x-session"), false)] {
            assert!(hints(&carrier(cookie, debug), &["localhost"]).is_empty());
        }
    }
}
