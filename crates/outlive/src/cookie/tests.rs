use super::carrier::Carried;
use super::*;
use crate::message::Head;
use http::header::{COOKIE, HeaderMap, HeaderName, HeaderValue, SET_COOKIE};

const OWN: Place = Place::Own;

fn carrier(cookie: Cookie, debug_build: bool) -> Carrier {
    let mut carrier = cookie.resolve("session").unwrap();
    carrier.debug_build = debug_build;
    carrier
}

fn request(headers: &[(&'static str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
    }
    map
}

/// What a request of these headers is to the carrier.
fn head(headers: &HeaderMap) -> Head<'_, HeaderMap> {
    Head { method: "GET", authority: None, headers }
}

fn mode(carrier: &Carrier, headers: &[(&'static str, &str)]) -> Mode {
    carrier.mode(&head(&request(headers)))
}

fn set(carrier: &Carrier, mode: Mode) -> Vec<String> {
    let mut headers = HeaderMap::new();
    carrier.set_id(mode, &mut headers, OWN, ["ID", "a"], None);
    carrier.set_token(mode, &mut headers, "TOKEN", None);
    carrier.set_route(mode, &mut headers, "b");
    headers.get_all(SET_COOKIE).iter().map(|v| v.to_str().unwrap().to_owned()).collect()
}

fn ids<'a>(carrier: &Carrier, mode: Mode, headers: &'a HeaderMap) -> Vec<&'a str> {
    let mut ids = Vec::new();
    carrier.read(mode, headers, "a", |place, id| ids.push((place, id)));
    assert!(ids.iter().all(|(place, _)| *place == OWN), "{ids:?}");
    ids.into_iter().map(|(_, id)| core::str::from_utf8(id).unwrap_or("no text")).collect()
}

fn read<'a>(carrier: &Carrier, mode: Mode, headers: &'a HeaderMap) -> Carried<'a> {
    carrier.read(mode, headers, "a", |_, _| ())
}

const SAFE: [&str; 3] = [
    "__Host-session=ID.a; HttpOnly; SameSite=Lax; Secure; Path=/",
    "__Host-session-v=TOKEN; HttpOnly; SameSite=Lax; Secure; Path=/",
    "__Host-session-r=.b; HttpOnly; SameSite=Lax; Secure; Path=/",
];

#[test]
fn the_safe_cookies_are_set_in_a_release_build_on_every_host() {
    let carrier = carrier(Cookie::new(), false);
    for host in ["shop.example", "localhost:3000", "127.0.0.1:3000"] {
        assert_eq!(set(&carrier, mode(&carrier, &[("host", host)])), SAFE, "{host}");
    }
}

#[test]
fn a_debug_build_drops_secure_on_a_loopback_host_that_no_proxy_forwarded_to() {
    let carrier = carrier(Cookie::new(), true);
    let dev = [
        "session-dev=ID.a; HttpOnly; SameSite=Lax; Path=/",
        "session-dev-v=TOKEN; HttpOnly; SameSite=Lax; Path=/",
        "session-dev-r=.b; HttpOnly; SameSite=Lax; Path=/",
    ];
    for host in ["localhost", "LOCALHOST:3000", "shop.localhost", "127.0.0.1:3000", "127.9.9.9", "[::1]:3000", "localhost."] {
        assert_eq!(set(&carrier, mode(&carrier, &[("host", host)])), dev, "{host}");
    }
    for host in ["shop.example", "localhost.example", "127.0.0.1.example", "10.0.0.1", "", "[::2]", "notlocalhost", "äöüäöü.localhos"]
    {
        assert_eq!(mode(&carrier, &[("host", host)]), Mode::Usual, "{host}");
    }
    for forwarded in ["forwarded", "x-forwarded-for", "x-forwarded-proto", "x-real-ip", "via"] {
        assert_eq!(set(&carrier, mode(&carrier, &[("host", "localhost"), (forwarded, "x")])), SAFE, "{forwarded}");
    }
    for (authority, mode) in
        [("localhost:1", Mode::Loopback), ("user:pass@[::1]:1", Mode::Loopback), ("localhost@shop.example", Mode::Usual)]
    {
        let head = Head { method: "GET", authority: Some(authority), headers: &HeaderMap::new() };
        assert_eq!(carrier.mode(&head), mode, "{authority}");
    }
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
        ("cookie", "OUTLIVESID=foreign; OUTLIVESID-V=t;theme=dark;; =;OUTLIVESIDX=no; XOUTLIVESID=no; OUTLIVESID-v=no; OUTLIVESID-Q=no"),
        ("cookie", "  OUTLIVESID = \"quoted\" ; OUTLIVESID-=no; OUTLIVESID-VX=no;OUTLIVESID-V = u"),
        ("cookie", "OUTLIVESID=; OUTLIVESID; OUTLIVESID-R=.b"),
    ]);
    assert_eq!(ids(&carrier, Mode::Usual, &headers), ["foreign", "quoted", ""]);
    let carried = read(&carrier, Mode::Usual, &headers);
    assert_eq!((carried.tokens.to_vec(), carried.routed), (vec![&b"t"[..], b"u"], false));
    let mut odd = HeaderMap::new();
    odd.insert(COOKIE, HeaderValue::from_bytes(b"x=\xff; OUTLIVESID=\xff; OUTLIVESID=ok; OUTLIVESID-R=.a").unwrap());
    assert_eq!(ids(&carrier, Mode::Usual, &odd), ["no text", "ok"]);
    assert!(read(&carrier, Mode::Usual, &odd).routed);
}

#[test]
fn each_id_is_read_with_the_place_that_it_has() {
    let carrier = carrier(Cookie::new(), false);
    let headers = request(&[("cookie", "__Host-session-x=c; __Host-session=b; __Host-session-s=a")]);
    let mut read = Vec::new();
    carrier.read(Mode::Usual, &headers, "a", |place, id| read.push((place, id)));
    read.sort_unstable();
    assert_eq!(read, [(Place::Newest, &b"a"[..]), (Place::Own, b"b"), (Place::Aside, b"c")]);
    let mut headers = HeaderMap::new();
    carrier.set_id(Mode::Usual, &mut headers, Place::Newest, ["ID", "a"], None);
    assert_eq!(headers[SET_COOKIE], "__Host-session-s=ID.a; HttpOnly; SameSite=Lax; Secure; Path=/; Max-Age=300");
}

#[test]
fn a_name_that_node_names_make_longer_than_usual_breaks_nothing() {
    let mut headers = HeaderMap::new();
    carrier(Cookie::new(), true).set_id(Mode::Usual, &mut headers, OWN, ["ID", &"n".repeat(300)], None);
    assert!(headers[SET_COOKIE].len() > 300);
}

#[test]
fn other_modes_have_their_own_attributes() {
    let usual = |cookie| set(&carrier(cookie, false), Mode::Usual);
    let plain = usual(Cookie::new().name("OUTLIVESID").danger_plain_http());
    assert_eq!(plain[0], "OUTLIVESID=ID.a; HttpOnly; SameSite=Lax; Path=/");
    assert_eq!(plain[1..], ["-V=TOKEN", "-R=.b"].map(|rest| format!("OUTLIVESID{rest}; HttpOnly; SameSite=Lax; Path=/")));
    let first = |cookie| usual(cookie).remove(0);
    let cross = first(Cookie::new().cross_site());
    assert_eq!(cross, "__Host-session=ID.a; HttpOnly; SameSite=None; Partitioned; Secure; Path=/");
    assert_eq!(first(Cookie::new().strict()), "__Host-session=ID.a; HttpOnly; SameSite=Strict; Secure; Path=/");
    // `__Host-` means: of this host alone, and of all of it.
    let domain = first(Cookie::new().domain("example.com"));
    assert_eq!(domain, "__Secure-session=ID.a; HttpOnly; SameSite=Lax; Secure; Path=/; Domain=example.com");
    assert_eq!(first(Cookie::new().path("/shop")), "__Secure-session=ID.a; HttpOnly; SameSite=Lax; Secure; Path=/shop");
    assert_eq!(first(Cookie::new().path("/")), SAFE[0]);
    let mut headers = HeaderMap::new();
    carrier(Cookie::new(), false).set_id(Mode::Usual, &mut headers, OWN, ["ID", "a"], Some(core::time::Duration::from_secs(9)));
    assert_eq!(headers[SET_COOKIE], format!("{}; Max-Age=9", SAFE[0]).as_str());
    let dev = set(&carrier(Cookie::new().domain("example.com").strict(), true), Mode::Loopback).remove(0);
    assert_eq!(dev, "session-dev=ID.a; HttpOnly; SameSite=Strict; Path=/");
}

#[test]
fn headers_can_carry_the_session_instead_of_cookies() {
    let carrier = carrier(Cookie::header("X-Session"), true);
    assert_eq!(mode(&carrier, &[("cookie", "session=x")]), Mode::Header);
    let mut headers = HeaderMap::new();
    carrier.set_id(Mode::Header, &mut headers, OWN, ["ID", "a"], None);
    carrier.set_token(Mode::Header, &mut headers, "T", None);
    carrier.set_route(Mode::Header, &mut headers, "b");
    let value = |name: &str| headers[name].to_str().unwrap();
    assert_eq!((value("x-session"), value("x-session-v"), value("x-session-r")), ("ID.a", "T", ".b"));
    assert!(!headers.contains_key(SET_COOKIE));
    assert_eq!(ids(&carrier, Mode::Header, &headers), ["ID.a"]);
    assert_eq!(read(&carrier, Mode::Header, &headers).tokens.to_vec(), [b"T"]);
    let mut vary = HeaderMap::new();
    carrier.vary(&mut vary);
    assert_eq!(vary.get_all("vary").iter().collect::<Vec<_>>(), ["x-session"]);
}

#[test]
fn with_both_a_request_that_brings_the_header_has_headers_and_every_other_one_has_cookies() {
    let carrier = carrier(Cookie::new().or_header("x-session"), false);
    assert_eq!(mode(&carrier, &[("x-session", ""), ("cookie", "__Host-session=a")]), Mode::Header);
    assert_eq!(mode(&carrier, &[("x-session-v", "t"), ("cookie", "__Host-session=a")]), Mode::Usual);
    let headers = request(&[("x-session", "h"), ("cookie", "__Host-session=c")]);
    assert_eq!((ids(&carrier, Mode::Header, &headers), ids(&carrier, Mode::Usual, &headers)), (vec!["h"], vec!["c"]));
    let mut vary = HeaderMap::new();
    carrier.vary(&mut vary);
    assert_eq!(vary.get_all("vary").iter().collect::<Vec<_>>(), ["x-session", "cookie"]);
}

#[test]
fn what_no_browser_would_take_is_refused_with_a_sentence() {
    for bad in ["", "a b", "a;b", "a=b", "é"] {
        assert!(Cookie::new().name(bad).resolve("session").unwrap_err().contains("cookie.name"), "{bad:?}");
    }
    for (cookie, said) in [
        (Cookie::new().name("__Host-x").danger_plain_http(), "no browser takes that prefix over plain HTTP"),
        (Cookie::new().name("__secure-x").danger_plain_http(), "no browser takes that prefix over plain HTTP"),
        (Cookie::new().name("__Host-x").domain("example.com"), "with cookie.domain: name it `__Secure-x`"),
        (Cookie::new().name("__HOST-x").path("/shop"), "with cookie.path: name it `__Secure-x`"),
        (Cookie::new().cross_site().danger_plain_http(), "over HTTPS only"),
        (Cookie::header("a b"), "cookie.header is \"a b\""),
        (Cookie::new().or_header(""), "cookie.header is \"\""),
        (Cookie::new().domain(""), "must be a domain like `example.com`"),
        (Cookie::new().domain("com"), "must be a domain"),
        (Cookie::new().domain(".example.com"), "must be a domain"),
        (Cookie::new().domain("https://example.com"), "must be a domain"),
        (Cookie::new().domain("example.com:8080"), "must be a domain"),
        (Cookie::new().domain("example.com; Secure"), "must be a domain"),
        (Cookie::new().domain("10.0.0.7"), "an address has no hosts below it"),
        (Cookie::new().path("shop"), "must be a path like `/shop`"),
        (Cookie::new().path("/a;b"), "must be a path"),
        (Cookie::new().path(""), "must be a path"),
    ] {
        let error = cookie.resolve("session").unwrap_err();
        assert!(error.contains(said), "{error}");
    }
    assert!(Cookie::new().name("__Host-x").path("/").resolve("session").is_ok());
    assert!(Cookie::new().name("x").domain("shop.example.com").path("/a/b").resolve("session").is_ok());
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

/// What is logged meanwhile.
fn said(f: impl FnOnce()) -> Vec<String> {
    let log = Log::default();
    tracing::subscriber::with_default(log.clone(), f);
    let said = log.0.lock();
    said.clone()
}

/// A visitor without a session of ours.
fn stranger(carrier: &Carrier, headers: &[(&'static str, &str)], foreign: bool) {
    let headers = request(headers);
    carrier.came_without(carrier.mode(&head(&headers)), &head(&headers), foreign);
}

/// So many visitors whose sessions begin.
fn visitors(carrier: &Carrier, n: usize, headers: &[(&'static str, &str)]) {
    for _ in 0..n {
        stranger(carrier, headers, false);
        set(carrier, Mode::Usual);
    }
}

#[test]
fn a_release_build_on_a_loopback_host_says_once_which_setting_to_use() {
    let hosts = |carrier: Carrier| {
        said(|| ["shop.example", "localhost:3000", "127.0.0.1:3000"].iter().for_each(|host| stranger(&carrier, &[("host", host)], false)))
    };
    let once = hosts(carrier(Cookie::new(), false));
    assert_eq!(once.len(), 1, "{once:?}");
    assert!(once[0].contains("the host is localhost") && once[0].contains("OUTLIVE_COOKIE_SECURE=danger_plain_http"), "{once:?}");
    for (cookie, debug) in [(Cookie::new(), true), (Cookie::new().danger_plain_http(), false), (Cookie::header("x-session"), false)] {
        assert!(hosts(carrier(cookie, debug)).is_empty());
    }
}

#[test]
fn where_no_cookie_ever_comes_back_the_log_says_once_what_to_set() {
    let host = ("host", "shop.example");
    let over_http = &[host, ("x-forwarded-proto", "http")][..];
    for (n, headers, lines) in [(20, &[host][..], 0), (100, &[host], 1), (3, over_http, 0), (10, over_http, 1)] {
        let carrier = carrier(Cookie::new(), false);
        let all = said(|| visitors(&carrier, n, headers));
        assert_eq!(all.len(), lines, "{n} {headers:?} {all:?}");
        assert!(
            all.iter().all(|line| line.contains("__Host-session") && line.contains("OUTLIVE_COOKIE_SECURE=danger_plain_http")),
            "{all:?}"
        );
    }
    // One that came back, at whatever time before, is proof that browsers keep them, whatever a proxy says.
    let carrier_of = carrier(Cookie::new(), false);
    visitors(&carrier_of, 2, over_http);
    carrier_of.came_back();
    assert!(said(|| visitors(&carrier_of, 100, over_http)).is_empty());
    assert!(said(|| visitors(&carrier(Cookie::new().danger_plain_http(), false), 100, over_http)).is_empty());
}

#[test]
fn a_foreign_id_under_our_name_is_said_once_with_the_setting() {
    for debug in [true, false] {
        let carrier = carrier(Cookie::new(), debug);
        let host = [("host", if debug { "localhost:3000" } else { "shop.example" })];
        let all = said(|| (0..3).for_each(|_| stranger(&carrier, &host, true)));
        assert_eq!(all.len(), 1, "{all:?}");
        assert!(all[0].contains("on whatever ports") && all[0].contains("cookie.name or namespace"), "{all:?}");
    }
}
