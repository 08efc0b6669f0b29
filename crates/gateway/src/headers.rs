//! What a request and a response lose and gain on their way through, and which requests are refused for their framing.

use crate::forwarded::Forwarded;
use http::header::{CONNECTION, CONTENT_LENGTH, HOST, HeaderMap, HeaderName, HeaderValue, TE, TRANSFER_ENCODING, UPGRADE};
use http::{Method, Request, Response, StatusCode, Uri, Version};
use std::net::IpAddr;

pub(crate) const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub(crate) const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
pub(crate) const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// Meant for one connection only (RFC 9110, 7.6.1), plus what proxies of old invented.
const HOP_BY_HOP: [HeaderName; 6] =
    [CONNECTION, HeaderName::from_static("keep-alive"), HeaderName::from_static("proxy-connection"), TE, TRANSFER_ENCODING, UPGRADE];
/// What only a proxy that is trusted may say, so that an application can believe it.
const FORWARDING: [HeaderName; 7] = [
    X_FORWARDED_FOR,
    X_FORWARDED_PROTO,
    X_FORWARDED_HOST,
    HeaderName::from_static("x-forwarded-port"),
    HeaderName::from_static("x-forwarded-server"),
    HeaderName::from_static("x-real-ip"),
    HeaderName::from_static("forwarded"),
];

/// Why a member's response is not passed on: two readers of its bytes could disagree about where it ends.
pub(crate) fn unframed<B>(response: &Response<B>) -> Option<&'static str> {
    let headers = response.headers();
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let length = lengths.next();
    if let Some(coding) = codings.next() {
        if codings.next().is_some() || !coding.as_bytes().eq_ignore_ascii_case(b"chunked") {
            return Some("a transfer coding other than `chunked`, once");
        }
        if response.version() != Version::HTTP_11 {
            return Some("a transfer coding in HTTP/1.0");
        }
        if length.is_some() {
            return Some(LENGTH_AND_CODING);
        }
    }
    let is_number = |length: &HeaderValue| {
        let digits = length.to_str().ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
        digits.is_some_and(|digits| digits.parse::<u64>().is_ok())
    };
    if length.is_some_and(|length| !is_number(length)) {
        return Some("a Content-Length that is no number");
    }
    lengths.any(|other| Some(other) != length).then_some("two different Content-Lengths")
}

/// Whether whoever sent this head closes the connection after what it belongs to.
pub(crate) fn closes(version: Version, headers: &HeaderMap) -> bool {
    let says = |token: &str| headers.get_all(CONNECTION).iter().any(|value| lists(value, token));
    says("close") || (version != Version::HTTP_11 && !says("keep-alive"))
}

/// Why a request is answered 400: two readers of its bytes could disagree about where it ends or whom it is for.
pub(crate) fn ambiguous<B>(req: &Request<B>) -> Option<&'static str> {
    let headers = req.headers();
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next() {
        if codings.next().is_some() || !coding.as_bytes().eq_ignore_ascii_case(b"chunked") {
            return Some("the only transfer coding understood here is `chunked`, once");
        }
        if headers.contains_key(CONTENT_LENGTH) {
            return Some(LENGTH_AND_CODING);
        }
    }
    let mut hosts = headers.get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(_), Some(_)) => return Some("more than one Host"),
        (Some(host), None) if !is_host(host.as_bytes()) => return Some("a Host that is none"),
        (None, _) if req.version() == Version::HTTP_11 => return Some("no Host"),
        _ => {}
    }
    if req.uri().authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Some("credentials in the target");
    }
    None
}

/// `uri-host [ ":" port ]` (RFC 9110, 7.2), or nothing, which HTTP/1.1 allows.
fn is_host(value: &[u8]) -> bool {
    let (host, rest) = match value {
        [b'[', inner @ ..] => match inner.iter().position(|byte| *byte == b']') {
            Some(end) => (&inner[..end], &inner[end + 1..]),
            None => return false,
        },
        _ => value.split_at(value.iter().position(|byte| *byte == b':').unwrap_or(value.len())),
    };
    let port_is_one = match rest {
        [] => true,
        [b':', port @ ..] => port.len() <= 5 && port.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    let plain = if value.starts_with(b"[") { b"-._~:".as_slice() } else { b"-._~%!$&'()*+,;=" };
    port_is_one && host.iter().all(|byte| byte.is_ascii_alphanumeric() || plain.contains(byte)) && (rest.is_empty() || !host.is_empty())
}

pub(crate) const LENGTH_AND_CODING: &str = "both Content-Length and Transfer-Encoding";

/// Whether a request head with both a length and a coding ends in `bytes`, which is what came in since the last request was
/// answered. The parser settles such a head silently (the coding wins and the length is dropped), so it shows only here.
pub(crate) fn length_and_coding(bytes: &[u8]) -> bool {
    let (mut length, mut coding) = (false, false);
    for line in bytes.split(|byte| *byte == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            if length && coding {
                return true;
            }
            (length, coding) = (false, false);
            continue;
        }
        let name = line.split(|byte| *byte == b':').next().unwrap_or_default();
        length |= name.eq_ignore_ascii_case(b"content-length");
        coding |= name.eq_ignore_ascii_case(b"transfer-encoding");
    }
    false
}

/// Whether the request asks to speak WebSocket. No other upgrade is passed on: `h2c` would carry requests past the gateway.
pub(crate) fn wants_websocket<B>(req: &Request<B>) -> bool {
    let has = |name, token: &str| req.headers().get_all(name).iter().any(|value| lists(value, token));
    req.headers().contains_key(UPGRADE) && req.method() == Method::GET && has(UPGRADE, "websocket") && has(CONNECTION, "upgrade")
}

fn lists(value: &HeaderValue, token: &str) -> bool {
    tokens(value).any(|listed| listed.eq_ignore_ascii_case(token.as_bytes()))
}

fn tokens(value: &HeaderValue) -> impl Iterator<Item = &[u8]> {
    value.as_bytes().split(|byte| *byte == b',').map(|token| token.trim_ascii())
}

/// Makes a client's request one of ours: origin form, no hop-by-hop headers, forwarding headers that can be believed.
pub(crate) fn to_backend<B>(req: &mut Request<B>, peer: &Forwarded, websocket: bool) {
    if req.uri().authority().is_some() {
        absolute_to_origin(req);
    }
    *req.version_mut() = Version::HTTP_11;
    let headers = req.headers_mut();
    // Trailers pass only to those who say that they want them, and then the member has to hear it.
    let trailers = headers.contains_key(TE) && headers.get_all(TE).iter().any(|value| lists(value, "trailers"));
    remove_hop_by_hop(headers);
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    if !peer.trusted {
        remove_listed(headers, &FORWARDING);
    }
    if websocket {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    }
    // An empty Host is how HTTP/1.1 says that a request of HTTP/1.0 named none.
    let host = headers.entry(HOST).or_insert_with(|| HeaderValue::from_static("")).clone();
    if peer.trusted && headers.contains_key(X_FORWARDED_FOR) {
        let chain = joined(headers, &peer.address);
        headers.insert(X_FORWARDED_FOR, chain);
    } else {
        headers.insert(X_FORWARDED_FOR, peer.address.clone());
    }
    if !peer.trusted || !headers.contains_key(X_FORWARDED_PROTO) {
        headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static("http"));
    }
    if !peer.trusted || !headers.contains_key(X_FORWARDED_HOST) {
        headers.insert(X_FORWARDED_HOST, host);
    }
}

/// Makes a backend's answer one of ours; an answer that switches protocols keeps the two headers that say so.
pub(crate) fn to_client(headers: &mut HeaderMap, status: StatusCode) {
    let upgrade = if status == StatusCode::SWITCHING_PROTOCOLS { headers.get(UPGRADE).cloned() } else { None };
    remove_hop_by_hop(headers);
    // Twice the same is once; and what has no body has no length (RFC 9110, 8.6).
    if status == StatusCode::NO_CONTENT || status.is_informational() {
        headers.remove(CONTENT_LENGTH);
    } else if let Some(length) = headers.get_all(CONTENT_LENGTH).iter().nth(1).cloned() {
        headers.insert(CONTENT_LENGTH, length);
    }
    if let Some(upgrade) = upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, upgrade);
    }
}

/// Writes an informational response as one of ours.
pub(crate) fn write_interim(to: &mut Vec<u8>, status: StatusCode, headers: &HeaderMap) {
    let mut headers = headers.clone();
    to_client(&mut headers, status);
    to.extend_from_slice(format!("HTTP/1.1 {} {}\r\n", status.as_str(), status.canonical_reason().unwrap_or_default()).as_bytes());
    for (name, value) in &headers {
        to.extend_from_slice(name.as_str().as_bytes());
        to.extend_from_slice(b": ");
        to.extend_from_slice(value.as_bytes());
        to.extend_from_slice(b"\r\n");
    }
    to.extend_from_slice(b"\r\n");
}

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers.get_all(CONNECTION).iter().flat_map(tokens).filter_map(nominated).collect();
    remove_listed(headers, &HOP_BY_HOP);
    for name in named {
        headers.remove(name);
    }
}

/// A header that `Connection` names goes as well, except those without which the rest would mean something else.
fn nominated(token: &[u8]) -> Option<HeaderName> {
    let usual = [b"close".as_slice(), b"keep-alive", b"upgrade", b"te", b"host", b"content-length", b"cookie", b"set-cookie"];
    if usual.iter().any(|name| token.eq_ignore_ascii_case(name)) {
        return None;
    }
    HeaderName::from_bytes(token).ok()
}

/// Looks at the names that are there instead of looking up each that might be: a look-up hashes, and hardly any is there.
fn remove_listed<const N: usize>(headers: &mut HeaderMap, listed: &[HeaderName; N]) {
    let mut present = 0_u32;
    for name in headers.keys() {
        if let Some(index) = listed.iter().position(|listed| listed == name) {
            present |= 1 << index;
        }
    }
    for (index, name) in listed.iter().enumerate() {
        if present & (1 << index) != 0 {
            headers.remove(name);
        }
    }
}

/// The target names the host, and the Host header has to give way to it (RFC 9112, 3.2.2).
fn absolute_to_origin<B>(req: &mut Request<B>) {
    let host = req.uri().authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
    let path = req.uri().path_and_query().cloned();
    *req.uri_mut() = path.map_or_else(|| Uri::from_static("/"), Uri::from);
    if let Some(host) = host {
        req.headers_mut().insert(HOST, host);
    }
}

fn joined(headers: &HeaderMap, address: &HeaderValue) -> HeaderValue {
    let mut chain = Vec::new();
    for value in headers.get_all(X_FORWARDED_FOR).iter().chain([address]) {
        if !chain.is_empty() {
            chain.extend_from_slice(b", ");
        }
        chain.extend_from_slice(value.as_bytes());
    }
    HeaderValue::from_bytes(&chain).unwrap_or_else(|_| address.clone())
}

/// The address as `X-Forwarded-For` writes it: an IPv4 address that came in over an IPv6 socket is an IPv4 address.
pub(crate) fn address_value(address: IpAddr) -> HeaderValue {
    HeaderValue::from_str(&address.to_canonical().to_string()).unwrap_or_else(|_| HeaderValue::from_static("unknown"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(trusted: bool) -> Forwarded {
        Forwarded { address: HeaderValue::from_static("192.0.2.7"), trusted }
    }

    fn request(target: &str, headers: &[(&str, &str)]) -> Request<()> {
        let mut builder = Request::builder().uri(target);
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        builder.body(()).unwrap()
    }

    fn all<'a>(req: &'a Request<()>, name: &str) -> Vec<&'a str> {
        req.headers().get_all(name).iter().map(|value| value.to_str().unwrap()).collect()
    }

    #[test]
    fn hop_by_hop_headers_and_those_that_connection_names_go_and_the_rest_stays() {
        let mut req = request(
            "/",
            &[
                ("host", "shop"),
                ("connection", "keep-alive, X-Secret"),
                ("connection", "Cookie"),
                ("keep-alive", "timeout=5"),
                ("proxy-connection", "close"),
                ("te", "gzip"),
                ("upgrade", "h2c"),
                ("x-secret", "1"),
                ("cookie", "a=1"),
                ("cookie", "b=2"),
                ("x-other", "kept"),
            ],
        );
        to_backend(&mut req, &peer(false), false);
        let mut names: Vec<_> = req.headers().keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["cookie", "host", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-other"]);
        assert_eq!(all(&req, "cookie"), ["a=1", "b=2"]);
    }

    #[test]
    fn forwarding_headers_are_believed_from_a_trusted_proxy_alone() {
        let sent = [
            ("host", "inner"),
            ("x-forwarded-for", "10.0.0.1"),
            ("x-forwarded-for", "10.0.0.2"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "shop.example"),
            ("x-real-ip", "10.0.0.1"),
            ("forwarded", "for=10.0.0.1"),
        ];
        for (trusted, chain, proto, host, others) in
            [(false, "192.0.2.7", "http", "inner", 0), (true, "10.0.0.1, 10.0.0.2, 192.0.2.7", "https", "shop.example", 1)]
        {
            let mut req = request("/", &sent);
            to_backend(&mut req, &peer(trusted), false);
            assert_eq!(all(&req, "x-forwarded-for"), [chain]);
            assert_eq!(all(&req, "x-forwarded-proto"), [proto]);
            assert_eq!(all(&req, "x-forwarded-host"), [host]);
            assert_eq!((all(&req, "x-real-ip").len(), all(&req, "forwarded").len()), (others, others));
            assert_eq!(all(&req, "host"), ["inner"]);
        }
    }

    #[test]
    fn an_absolute_target_becomes_a_path_and_its_host_wins() {
        let mut req = request("http://shop.example:81/cart?x=1", &[("host", "liar")]);
        to_backend(&mut req, &peer(false), false);
        assert_eq!(req.uri(), "/cart?x=1");
        assert_eq!(all(&req, "host"), ["shop.example:81"]);
    }

    #[test]
    fn ambiguous_requests_are_told_from_plain_ones() {
        let host = ("host", "h");
        for (headers, refused) in [
            (vec![host], false),
            (vec![], true),
            (vec![host, host], true),
            (vec![host, ("transfer-encoding", "chunked")], false),
            (vec![host, ("transfer-encoding", "Chunked")], false),
            (vec![host, ("transfer-encoding", "gzip, chunked")], true),
            (vec![host, ("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")], true),
            (vec![host, ("transfer-encoding", "chunked"), ("content-length", "3")], true),
            (vec![host, ("content-length", "3")], false),
        ] {
            assert_eq!(ambiguous(&request("/", &headers)).is_some(), refused, "{headers:?}");
        }
        assert!(ambiguous(&request("http://u:p@h/", &[host])).is_some());
    }

    #[test]
    fn a_length_beside_a_coding_is_found_in_the_bytes_of_one_head_only() {
        assert!(length_and_coding(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nCONTENT-LENGTH: 4\r\n\r\n0\r\n\r\n"));
        assert!(length_and_coding(b"POST / HTTP/1.1\ncontent-length:4\ntransfer-encoding:chunked\n\n"));
        assert!(!length_and_coding(b"POST / HTTP/1.1\r\ncontent-length: 0\r\n\r\nPOST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n"));
        assert!(!length_and_coding(b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\nx: content-length: 3\r\n\r\n"));
    }

    #[test]
    fn only_a_get_that_lists_both_tokens_is_a_websocket() {
        for (headers, wanted) in [
            (vec![("upgrade", "websocket"), ("connection", "keep-alive, Upgrade")], true),
            (vec![("upgrade", "WebSocket"), ("connection", "Upgrade")], true),
            (vec![("upgrade", "websocket")], false),
            (vec![("upgrade", "h2c"), ("connection", "Upgrade")], false),
            (vec![("connection", "Upgrade")], false),
        ] {
            assert_eq!(wants_websocket(&request("/", &headers)), wanted, "{headers:?}");
        }
    }
}
