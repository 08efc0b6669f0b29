//! The messages of the crate `http`, which tower, axum and hyper speak.

use crate::error::{CommitError, LoginError, OpenError};
use crate::message::{Head, Headers};
use crate::node::{Durable, Step};
use crate::outlive::{Liveness, Readiness};
use crate::request::{self, Slot};
use crate::session::Session;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Extensions, Method, Response, StatusCode, Uri};
use std::borrow::Cow;

impl Headers for HeaderMap {
    fn names(&self) -> impl Iterator<Item = &str> {
        self.keys().map(HeaderName::as_str)
    }

    #[inline]
    fn all<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        let all = match at_hand(name) {
            Some(name) => self.get_all(name),
            None => self.get_all(name),
        };
        all.into_iter().map(HeaderValue::as_bytes)
    }

    #[inline(always)]
    fn add(&mut self, name: &str, value: Cow<'static, str>) {
        let value = match value {
            Cow::Borrowed(text) => Ok(HeaderValue::from_static(text)),
            Cow::Owned(text) => HeaderValue::try_from(text),
        };
        let name = match at_hand(name) {
            Some(name) => Ok(name),
            None => HeaderName::from_bytes(name.as_bytes()),
        };
        if let (Ok(name), Ok(value)) = (name, value) {
            // It fails where there are more than a header can have.
            let _ = self.try_append(name, value);
        }
    }

    fn remove(&mut self, name: &str) {
        HeaderMap::remove(self, name);
    }
}

/// The names that most requests have to do with: any other has to be read first. Those who ask write them out, and where this is inlined
/// the compiler knows the answer.
#[inline(always)]
fn at_hand(name: &str) -> Option<HeaderName> {
    match name {
        "cookie" => Some(header::COOKIE),
        "vary" => Some(header::VARY),
        "set-cookie" => Some(header::SET_COOKIE),
        "cache-control" => Some(header::CACHE_CONTROL),
        _ => None,
    }
}

/// The session of a request that a layer has seen.
pub(crate) fn open(extensions: &Extensions, method: &Method, uri: &Uri, headers: &HeaderMap) -> Step<Result<Session, OpenError>> {
    let head = Head { method: method.as_str(), authority: uri.authority().map(|authority| authority.as_str()), headers };
    request::open(extensions.get::<Slot>(), &head)
}

/// Puts into the response what its session requires, or replaces it by an error.
pub(super) fn seal<B: Default>(session: &Session, result: Result<Durable, CommitError>, answer: &mut Response<B>, debug_header: bool) {
    let result = request::told(session, result);
    if let Err(error) = &result {
        *answer = Response::new(B::default());
        *answer.status_mut() = error.status();
        answer.extensions_mut().insert(error.clone());
    }
    if let Some(committed) = request::seal(session, result, answer.headers_mut(), debug_header) {
        answer.extensions_mut().insert(committed);
    }
}

fn status(code: u16) -> StatusCode {
    StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

impl OpenError {
    /// 500 without a layer, 429 when busy, otherwise 503.
    pub fn status(&self) -> StatusCode {
        status(self.code())
    }
}

impl CommitError {
    /// 500 when the application has to be changed, otherwise 503.
    pub fn status(&self) -> StatusCode {
        status(self.code())
    }
}

impl LoginError {
    /// 403 over the cap, 500 for a name that cannot be one, otherwise 503.
    pub fn status(&self) -> StatusCode {
        status(self.code())
    }
}

impl Readiness {
    /// The status and the text: one word, and behind a colon why, if that is not plain.
    pub fn answer(&self) -> (StatusCode, String) {
        let (code, text) = self.said();
        (status(code), text)
    }
}

impl Liveness {
    /// The status and the word.
    pub fn answer(&self) -> (StatusCode, &'static str) {
        let (code, word) = self.said();
        (status(code), word)
    }
}
