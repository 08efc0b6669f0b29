//! A client for an application's own tests.

use bytes::Bytes;
use core::fmt::Display;
use core::mem;
use http::header::{CONTENT_TYPE, COOKIE, HOST, HeaderMap, HeaderValue, SET_COOKIE};
use http::{Extensions, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::{BodyExt, Full};
use parking_lot::Mutex;
use serde::Serialize;
use std::sync::Arc;
use tower_service::Service;

/// A client of a tower service, such as an axum `Router`, that keeps its cookies from request to request. Clones share the jar, as the
/// tabs of a browser do.
pub fn client<S>(app: S) -> Client<S> {
    Client { app, jar: Arc::default(), host: HeaderValue::from_static("localhost") }
}

/// See [`client`].
#[derive(Clone, Debug)]
pub struct Client<S> {
    app: S,
    jar: Arc<Mutex<Vec<(String, String)>>>,
    host: HeaderValue,
}

/// A response, read to its end.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub text: String,
    /// What layers left for each other, [`Committed`](crate::Committed) for one.
    pub extensions: Extensions,
}

impl<S> Client<S> {
    /// The `Host` that the client asks for; `localhost` otherwise.
    ///
    /// # Panics
    /// If it is not a header's value.
    #[must_use]
    pub fn host(mut self, host: &str) -> Client<S> {
        #[expect(clippy::expect_used, reason = "a test says what is wrong by panicking")]
        let host = HeaderValue::from_str(host).expect("a host is a header's value");
        self.host = host;
        self
    }

    /// The cookies in the jar, by name.
    pub fn cookies(&self) -> Vec<(String, String)> {
        self.jar.lock().clone()
    }

    /// Puts a cookie into the jar, in place of one of that name.
    pub fn set_cookie(&self, name: &str, value: &str) {
        let mut jar = self.jar.lock();
        jar.retain(|(n, _)| n != name);
        jar.push((name.to_owned(), value.to_owned()));
    }

    /// Empties the jar: another visitor.
    pub fn forget(&self) {
        mem::take(&mut *self.jar.lock());
    }

    /// A client of the same application with a jar of its own that holds the same cookies.
    #[must_use]
    pub fn copy(&self) -> Client<S>
    where
        S: Clone,
    {
        Client { jar: Arc::new(Mutex::new(self.cookies())), ..self.clone() }
    }

    fn keep(&self, headers: &HeaderMap) {
        for header in headers.get_all(SET_COOKIE) {
            let Some((name, rest)) = header.to_str().ok().and_then(|text| text.split_once('=')) else { continue };
            let (value, attributes) = rest.split_once(';').unwrap_or((rest, ""));
            self.set_cookie(name, value);
            if attributes.split(';').any(|a| a.trim() == "Max-Age=0") {
                self.jar.lock().retain(|(n, _)| n != name);
            }
        }
    }
}

impl<S> Client<S> {
    /// GET.
    ///
    /// # Panics
    /// If the service fails or its body cannot be read.
    pub async fn get<R>(&self, uri: &str) -> Answer
    where
        S: Service<Request<Full<Bytes>>, Response = Response<R>> + Clone,
        S::Error: Display,
        R: Body,
        R::Error: Display,
    {
        self.send(http::Method::GET, uri, "").await
    }

    /// POST, with the body's type `application/x-www-form-urlencoded`.
    ///
    /// # Panics
    /// As [`get`](Client::get).
    pub async fn post<R>(&self, uri: &str, form: &str) -> Answer
    where
        S: Service<Request<Full<Bytes>>, Response = Response<R>> + Clone,
        S::Error: Display,
        R: Body,
        R::Error: Display,
    {
        self.send(http::Method::POST, uri, form).await
    }

    /// POST, with the value as JSON.
    ///
    /// # Panics
    /// As [`get`](Client::get), and if the value has no JSON.
    pub async fn post_json<R>(&self, uri: &str, value: &impl Serialize) -> Answer
    where
        S: Service<Request<Full<Bytes>>, Response = Response<R>> + Clone,
        S::Error: Display,
        R: Body,
        R::Error: Display,
    {
        let json = serde_json::to_vec(value).unwrap_or_else(|e| panic!("it has no JSON: {e}"));
        let request = Request::post(uri).header(HOST, self.host.clone()).header(CONTENT_TYPE, "application/json");
        self.request(request.body(json.into()).unwrap_or_else(|e| panic!("{uri:?} is not a URI: {e}"))).await
    }

    async fn send<R>(&self, method: http::Method, uri: &str, form: &str) -> Answer
    where
        S: Service<Request<Full<Bytes>>, Response = Response<R>> + Clone,
        S::Error: Display,
        R: Body,
        R::Error: Display,
    {
        let mut request = Request::new(Full::new(Bytes::copy_from_slice(form.as_bytes())));
        *request.method_mut() = method;
        *request.uri_mut() = uri.parse().unwrap_or_else(|e| panic!("{uri:?} is not a URI: {e}"));
        request.headers_mut().insert(HOST, self.host.clone());
        if !form.is_empty() {
            let form = HeaderValue::from_static("application/x-www-form-urlencoded");
            request.headers_mut().insert(CONTENT_TYPE, form);
        }
        self.request(request).await
    }

    /// Any request; the jar's cookies are added.
    ///
    /// # Panics
    /// As [`get`](Client::get).
    pub async fn request<R>(&self, mut request: Request<Full<Bytes>>) -> Answer
    where
        S: Service<Request<Full<Bytes>>, Response = Response<R>> + Clone,
        S::Error: Display,
        R: Body,
        R::Error: Display,
    {
        let cookies: Vec<_> = self.jar.lock().iter().map(|(name, value)| format!("{name}={value}")).collect();
        if let (false, Ok(cookies)) = (cookies.is_empty(), HeaderValue::from_str(&cookies.join("; "))) {
            request.headers_mut().append(COOKIE, cookies);
        }
        let mut app = self.app.clone();
        core::future::poll_fn(|cx| app.poll_ready(cx)).await.unwrap_or_else(|e| panic!("the service is not ready: {e}"));
        let response = app.call(request).await.unwrap_or_else(|e| panic!("the service failed: {e}"));
        let (parts, body) = response.into_parts();
        self.keep(&parts.headers);
        let body = body.collect().await.unwrap_or_else(|e| panic!("the body failed: {e}")).to_bytes();
        let text = String::from_utf8_lossy(&body).into_owned();
        Answer { status: parts.status, headers: parts.headers, text, extensions: parts.extensions }
    }
}
