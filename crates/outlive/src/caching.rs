//! What a shared cache may do with an answer that has to do with a session.

use http::header::{CACHE_CONTROL, Entry, HeaderMap, HeaderName, HeaderValue, VARY};

/// An answer that sets our cookie must not be given to anybody else. A handler that forbade shared caching already knows better than
/// we do; one that said `public` is overruled, with a warning.
pub(crate) fn forbid_sharing(headers: &mut HeaderMap) {
    let no_store = HeaderValue::from_static("no-store");
    let mut said = match headers.entry(CACHE_CONTROL) {
        Entry::Vacant(entry) => {
            entry.insert(no_store);
            return;
        }
        Entry::Occupied(said) => said,
    };
    let has = |name: &str| said.iter().any(|v| directives(v).any(|d| d.eq_ignore_ascii_case(name)));
    let public = has("public");
    if has("no-store") || has("private") && !public {
        return;
    }
    if public {
        tracing::warn!("an answer that sets the session's cookie said `Cache-Control: public`; it was sent as `no-store`");
    }
    said.insert_mult(no_store);
}

/// The answer depends on the session.
pub(crate) fn vary_by(headers: &mut HeaderMap, name: &HeaderName) {
    let listed = |v: &HeaderValue| directives(v).any(|n| n == "*" || n.eq_ignore_ascii_case(name.as_str()));
    match headers.entry(VARY) {
        Entry::Vacant(entry) => {
            entry.insert(HeaderValue::from(name.clone()));
        }
        Entry::Occupied(mut said) => {
            if !said.iter().any(listed) {
                said.append(HeaderValue::from(name.clone()));
            }
        }
    }
}

fn directives(value: &HeaderValue) -> impl Iterator<Item = &str> {
    let list = value.to_str().unwrap_or("").split(',');
    list.map(|d| d.split('=').next().unwrap_or("").trim())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::header::COOKIE;

    fn after(said: Option<&'static str>) -> String {
        let mut headers = HeaderMap::new();
        said.map(|said| headers.insert(CACHE_CONTROL, HeaderValue::from_static(said)));
        forbid_sharing(&mut headers);
        headers[CACHE_CONTROL].to_str().unwrap().to_owned()
    }

    #[test]
    fn an_answer_with_our_cookie_is_not_stored_by_a_shared_cache() {
        for said in [None, Some("public, max-age=60"), Some("max-age=60"), Some("no-cache"), Some("s-maxage=9"), Some("private, public")] {
            assert_eq!(after(said), "no-store", "{said:?}");
        }
    }

    #[test]
    fn a_handler_that_forbade_shared_caching_is_left_alone() {
        for said in ["private, max-age=60", "no-store", "Private", "no-store, max-age=0", "private=\"x\""] {
            assert_eq!(after(Some(said)), said);
        }
    }

    #[test]
    fn vary_is_added_once() {
        for (before, want) in [("accept", 2), ("accept, Cookie", 1), ("*", 1), ("cookie", 1)] {
            let mut headers = HeaderMap::new();
            headers.insert(VARY, HeaderValue::from_static(before));
            vary_by(&mut headers, &COOKIE);
            assert_eq!(headers.get_all(VARY).iter().count(), want, "{before}");
        }
    }
}
