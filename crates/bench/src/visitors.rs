//! Clients in this process: each keeps its cookies, and their requests go to a service without a socket between.

use axum::body::Body;
use axum::http::{Request, Response, StatusCode};
use http::header::{COOKIE, HOST, HeaderMap, HeaderValue, SET_COOKIE};

/// One visitor's cookies.
#[derive(Clone, Debug, Default)]
pub(crate) struct Visitor {
    cookies: Vec<(String, String)>,
    header: Option<HeaderValue>,
}

impl Visitor {
    /// The visitor's next request, as a server has it after parsing.
    pub(crate) fn request(&self, path: &'static str) -> Request<Body> {
        let mut request = Request::new(Body::empty());
        *request.uri_mut() = http::Uri::from_static(path);
        request.headers_mut().insert(HOST, HeaderValue::from_static("shop.example"));
        if let Some(cookies) = &self.header {
            request.headers_mut().insert(COOKIE, cookies.clone());
        }
        request
    }

    /// The header `Cookie`, if there are any.
    pub(crate) fn cookies(&self) -> Option<&str> {
        self.header.as_ref()?.to_str().ok()
    }

    /// Takes over what an answer sets.
    pub(crate) fn keep(&mut self, headers: &HeaderMap) {
        let mut changed = false;
        for header in headers.get_all(SET_COOKIE) {
            let pair = header.to_str().unwrap_or_default().split(';').next().unwrap_or_default();
            let Some((name, value)) = pair.split_once('=') else { continue };
            match self.cookies.iter_mut().find(|(n, _)| n == name) {
                Some((_, old)) => value.clone_into(old),
                None => self.cookies.push((name.to_owned(), value.to_owned())),
            }
            changed = true;
        }
        if changed {
            let pairs: Vec<String> = self.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
            self.header = HeaderValue::from_str(&pairs.join("; ")).ok();
        }
    }

    /// Like [`keep`](Visitor::keep), after a look at the status: a refused request measures nothing.
    pub(crate) fn take<B>(&mut self, answer: &Response<B>) {
        assert_eq!(answer.status(), StatusCode::OK, "a measured request was refused");
        self.keep(answer.headers());
    }
}
