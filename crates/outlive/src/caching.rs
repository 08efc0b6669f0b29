//! What a shared cache may do with a response that has to do with a session.

use crate::message::Headers;
use core::sync::atomic::{AtomicBool, Ordering};
use std::borrow::Cow;

/// Headers in which a cache looks before, or instead of, `Cache-Control`, and what forbids storing there. What ends in `-cache-control`
/// is one of them whatever stands before: each delivery network has its own.
const ASIDE: [(&str, &str); 4] =
    [("surrogate-control", "no-store"), ("edge-control", "no-store"), ("x-accel-expires", "0"), ("expires", "0")];

/// A response that sets our cookie must not be given to anybody else, whichever of the headers that caches know says that it may. A
/// `Cache-Control` that forbids shared caches already is left as it is, so that a browser may keep the page; whatever permits it is
/// overruled, and the log says so once.
pub(crate) fn forbid_sharing(headers: &mut impl Headers) {
    let no_store = "no-store";
    // By far the usual case.
    if !headers.names().any(is_about_caching) {
        headers.add("cache-control", no_store.into());
        return;
    }
    let mut overruled = None;
    let elsewhere: Vec<String> = headers.names().filter(|name| is_elsewhere(name)).map(str::to_owned).collect();
    for name in elsewhere {
        let forbids = ASIDE.iter().find(|(n, _)| *n == name).map_or("no-store", |(_, forbids)| *forbids);
        if headers.all(&name).any(|value| value != forbids.as_bytes()) {
            headers.set(&name, forbids.into());
            overruled = Some(name).filter(|name| name != "expires").or(overruled);
        }
    }
    let said = Said::of(headers);
    if !said.forbids_sharing() {
        if said.public {
            overruled = Some("cache-control".to_owned());
        }
        headers.set("cache-control", no_store.into());
    }
    // It says nothing to a cache that follows `Cache-Control`, and something else to one that is older.
    match headers.text("pragma") {
        Some("no-cache") => headers.set("pragma", "no-cache".into()),
        _ => headers.remove("pragma"),
    }
    static SAID: AtomicBool = AtomicBool::new(false);
    if let Some(name) = overruled
        && !SAID.swap(true, Ordering::Relaxed)
    {
        tracing::warn!(
            "a response that sets the session's cookie said in `{name}` that a shared cache may keep it; that is overruled, here and \
             wherever it happens (said once)"
        );
    }
}

fn is_about_caching(name: &str) -> bool {
    name == "cache-control" || name == "pragma" || is_elsewhere(name)
}

fn is_elsewhere(name: &str) -> bool {
    // Every response's headers are looked at, and few end so.
    let may_be = name.ends_with("-control") || name.ends_with("expires");
    may_be && (name.ends_with("-cache-control") || ASIDE.iter().any(|(n, _)| *n == name))
}

/// What `Cache-Control` says in all of its lines together.
#[derive(Default)]
struct Said {
    no_store: bool,
    private: bool,
    /// To shared caches: `public`, or a time of their own.
    public: bool,
}

impl Said {
    fn of(headers: &impl Headers) -> Said {
        let mut said = Said::default();
        for line in headers.all("cache-control") {
            for (name, value) in directives(line) {
                said.no_store |= name.eq_ignore_ascii_case(b"no-store");
                // With a value it is about those headers alone.
                said.private |= name.eq_ignore_ascii_case(b"private") && value.is_empty();
                said.public |= name.eq_ignore_ascii_case(b"public") || name.eq_ignore_ascii_case(b"s-maxage");
            }
        }
        said
    }

    fn forbids_sharing(&self) -> bool {
        self.no_store || self.private && !self.public
    }
}

/// The directives of one line, name and value. Commas within quotes separate nothing.
fn directives(line: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let (mut quoted, mut escaped) = (false, false);
    line.split(move |byte| {
        let was_escaped = core::mem::take(&mut escaped);
        match byte {
            b'\\' if quoted && !was_escaped => escaped = true,
            b'"' if !was_escaped => quoted = !quoted,
            _ => {}
        }
        *byte == b',' && !quoted
    })
    .map(|one| {
        let at = one.iter().position(|b| *b == b'=').unwrap_or(one.len());
        (one[..at].trim_ascii(), one.get(at + 1..).unwrap_or_default().trim_ascii())
    })
}

/// The response depends on the session.
pub(crate) fn vary_by(headers: &mut impl Headers, name: Cow<'static, str>) {
    let listed = |value: &[u8]| directives(value).any(|(n, _)| n == b"*" || n.eq_ignore_ascii_case(name.as_bytes()));
    if !headers.all("vary").any(listed) {
        headers.add("vary", name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::header::{CACHE_CONTROL, HeaderMap, HeaderName, HeaderValue, PRAGMA, VARY};

    fn after(said: &[(&str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in said {
            headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_static(value));
        }
        forbid_sharing(&mut headers);
        headers
    }

    fn control(said: &[&'static str]) -> String {
        let said: Vec<_> = said.iter().map(|value| ("Cache-Control", *value)).collect();
        let lines: Vec<_> = after(&said).get_all(CACHE_CONTROL).iter().map(|v| v.to_str().unwrap().to_owned()).collect();
        lines.join(", ")
    }

    #[test]
    fn an_answer_with_our_cookie_is_not_stored_by_a_shared_cache() {
        for said in [
            &[][..],
            &["public, max-age=60"],
            &["max-age=60"],
            &["no-cache"],
            &["s-maxage=9"],
            &["private, public"],
            &["private", "PUBLIC"],
            &["private", "s-maxage=60"],
            &["Private, S-MaxAge=60"],
            // What is private here is one header, or is within another directive's value.
            &["private=\"x\", max-age=60"],
            &["private=\"set-cookie\""],
            &["max-age=60, x=\"a, private\""],
            &["max-age=60, x=\"\\\", private, no-store\""],
            &["privateer", "no-storey"],
            &["max-age=60, must-revalidate, immutable, stale-while-revalidate=9"],
        ] {
            assert_eq!(control(said), "no-store", "{said:?}");
        }
    }

    #[test]
    fn a_handler_that_forbade_shared_caching_is_left_alone() {
        for said in
            ["private, max-age=60", "no-store", "Private", "no-store, max-age=0", "NO-STORE", "no-store, public", " private ,x=\"y,z\""]
        {
            assert_eq!(control(&[said]), said);
        }
    }

    #[test]
    fn no_header_of_an_application_or_a_delivery_network_lets_a_shared_cache_keep_our_cookie() {
        let networks = [
            "CDN-Cache-Control",
            "Surrogate-Control",
            "Cloudflare-CDN-Cache-Control",
            "Vercel-CDN-Cache-Control",
            "Netlify-CDN-Cache-Control",
            "Fastly-Cache-Control",
            "X-LiteSpeed-Cache-Control",
            "cdn-CACHE-control",
            "Edge-Control",
        ];
        for name in networks {
            for said in
                [&["public, max-age=60"][..], &["max-age=60"], &["private", "max-age=60, stale-while-revalidate=9"], &["no-cache"], &[""]]
            {
                let mut all: Vec<_> = said.iter().map(|value| (name, *value)).collect();
                for control in [None, Some("private, max-age=9"), Some("no-store"), Some("public")] {
                    all.extend(control.map(|said| ("Cache-Control", said)));
                    let headers = after(&all);
                    assert_eq!(headers.get_all(name).iter().collect::<Vec<_>>(), ["no-store"], "{all:?}");
                    assert!(Said::of(&headers).forbids_sharing(), "{all:?}");
                }
            }
        }
        for (name, said) in [("X-Accel-Expires", "3600"), ("x-accel-expires", "@1893456000"), ("Expires", "Wed, 01 Jan 2031 00:00:00 GMT")]
        {
            let headers = after(&[(name, said), (name, said)]);
            assert_eq!(headers.get_all(name).iter().collect::<Vec<_>>(), ["0"]);
            assert_eq!(headers[CACHE_CONTROL], "no-store");
        }
        assert!(!after(&[("Pragma", "cache")]).contains_key(PRAGMA));
        assert_eq!(after(&[("Pragma", "no-cache")])[PRAGMA], "no-cache");
    }

    #[test]
    fn vary_is_added_once() {
        for (before, want) in [("accept", 2), ("accept, Cookie", 1), ("*", 1), ("cookie", 1)] {
            let mut headers = HeaderMap::new();
            headers.insert(VARY, HeaderValue::from_static(before));
            vary_by(&mut headers, "cookie".into());
            assert_eq!(headers.get_all(VARY).iter().count(), want, "{before}");
        }
    }
}
