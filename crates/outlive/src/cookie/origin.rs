//! Where a request comes from, as far as its headers say: this machine, plain HTTP, another site.

use super::Site;
use crate::message::Headers;

/// The request's host, if it is this machine and no proxy forwarded the request.
pub(super) fn loopback<'a>(headers: &'a impl Headers, authority: Option<&'a str>) -> Option<&'a str> {
    let host = match authority {
        Some(authority) => host_of(authority.rsplit('@').next().unwrap_or_default()),
        None => host_of(headers.text("host")?),
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

fn is_forwarded(headers: &impl Headers) -> bool {
    ["forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip", "via"]
        .iter()
        .any(|h| headers.all(h).next().is_some())
}

/// Whether the request says that its browser speaks plain HTTP to another machine. A proxy that ends TLS and says nothing is not heard
/// here, nor is it taken for one.
pub(super) fn is_plain_http(headers: &impl Headers) -> bool {
    let said = |name: &str| headers.text(name).map(str::to_ascii_lowercase);
    if let Some(proto) = said("x-forwarded-proto") {
        // The first is the browser's own.
        return proto.split(',').next().is_some_and(|proto| proto.trim() == "http");
    }
    if let Some(forwarded) = said("forwarded") {
        let first = forwarded.split(',').next().unwrap_or_default();
        let proto = first.split(';').find_map(|part| part.trim().strip_prefix("proto=")).map(|proto| proto.trim_matches('"').to_owned());
        if let Some(proto) = proto {
            return proto == "http";
        }
    }
    // A page of this host that was itself loaded over plain HTTP.
    let (Some(origin), Some(host)) = (said("origin"), said("host")) else { return false };
    origin.strip_prefix("http://").is_some_and(|page| page == host && !is_loopback(host_of(page)))
}

/// Whether another site began the request in a way in which the browser keeps the session's cookies away. Browsers say so themselves,
/// over HTTPS and to localhost.
pub(super) fn is_kept_away(site: Site, method: &str, headers: &impl Headers) -> bool {
    let away = match site {
        Site::Lax => method != "GET" && method != "HEAD",
        Site::Strict => true,
        Site::None => false,
    };
    away && headers.text("sec-fetch-site") == Some("cross-site")
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::header::{HeaderMap, HeaderName, HeaderValue};

    fn request(headers: &[(&'static str, &'static str)]) -> HeaderMap {
        headers.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn a_request_over_plain_http_is_known_by_what_a_proxy_or_the_browser_says() {
        for plain in [
            &[("x-forwarded-proto", "http")][..],
            &[("x-forwarded-proto", "HTTP, https")],
            &[("forwarded", "for=1.2.3.4;proto=http;by=x")],
            &[("forwarded", "Proto=\"http\", proto=https")],
            &[("host", "shop.example:8080"), ("origin", "http://shop.example:8080")],
        ] {
            assert!(is_plain_http(&request(plain)), "{plain:?}");
        }
        for not in [
            &[][..],
            &[("host", "shop.example")],
            &[("x-forwarded-proto", "https")],
            &[("x-forwarded-proto", "https, http"), ("origin", "http://shop.example"), ("host", "shop.example")],
            &[("forwarded", "for=1.2.3.4;proto=https")],
            &[("host", "shop.example"), ("origin", "https://shop.example")],
            &[("host", "shop.example"), ("origin", "http://other.example")],
            &[("host", "localhost:3000"), ("origin", "http://localhost:3000")],
            &[("origin", "null"), ("host", "shop.example")],
        ] {
            assert!(!is_plain_http(&request(not)), "{not:?}");
        }
    }

    #[test]
    fn what_another_site_began_without_our_cookie_is_known_by_what_the_browser_says() {
        let from = |site| request(&[("sec-fetch-site", site)]);
        assert!(is_kept_away(Site::Lax, "POST", &from("cross-site")) && is_kept_away(Site::Strict, "GET", &from("cross-site")));
        assert!(!is_kept_away(Site::Lax, "GET", &from("cross-site")) && !is_kept_away(Site::None, "POST", &from("cross-site")));
        for site in ["same-origin", "same-site", "none", ""] {
            assert!(!is_kept_away(Site::Strict, "POST", &from(site)), "{site}");
        }
        assert!(!is_kept_away(Site::Strict, "POST", &HeaderMap::new()));
    }
}
