//! A small HTTP client with a cookie jar: one shopper's browser.

use bytes::Bytes;
use http::header::{COOKIE, RETRY_AFTER, SET_COOKIE};
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client as Pool;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

/// Connections that all shoppers share.
pub(crate) type Connections = Pool<HttpConnector, Full<Bytes>>;

/// An answer that is larger is a failure.
const BODY_MAX: usize = 256 * 1024;
/// An answer that takes longer is a failure.
const PATIENCE: Duration = Duration::from_secs(15);

pub(crate) fn connections() -> Connections {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    Pool::builder(TokioExecutor::new()).build(connector)
}

/// The cookies of one shopper.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Jar(BTreeMap<String, String>);

impl Jar {
    fn header(&self) -> Option<String> {
        let pairs: Vec<String> = self.0.iter().map(|(name, value)| format!("{name}={value}")).collect();
        (!pairs.is_empty()).then(|| pairs.join("; "))
    }

    fn take(&mut self, headers: &HeaderMap) {
        for value in headers.get_all(SET_COOKIE).iter().filter_map(|v| v.to_str().ok()) {
            let mut parts = value.split(';').map(str::trim);
            let Some((name, value)) = parts.next().and_then(|pair| pair.split_once('=')) else { continue };
            if value.is_empty() || parts.any(|part| part.eq_ignore_ascii_case("max-age=0")) {
                self.0.remove(name);
            } else {
                self.0.insert(name.to_owned(), value.to_owned());
            }
        }
    }
}

/// An answer, read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// How long the server asks to wait, if it does.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        let seconds = self.headers.get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
        (self.status == StatusCode::SERVICE_UNAVAILABLE).then(|| Duration::from_secs(seconds))
    }
}

/// One request and its answer. The jar takes what the answer sets. `None`: no answer.
pub(crate) async fn ask(connections: &Connections, to: SocketAddr, method: &Method, path: &str, jar: &mut Jar) -> Option<Answer> {
    let mut request = Request::builder().method(method).uri(format!("http://{to}{path}"));
    if let Some(cookies) = jar.header() {
        request = request.header(COOKIE, cookies);
    }
    let request = request.body(Full::new(Bytes::new())).ok()?;
    let exchange = async {
        let response = connections.request(request).await.ok()?;
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, BODY_MAX).collect().await.ok()?.to_bytes();
        Some(Answer { status: parts.status, headers: parts.headers, body })
    };
    let answer = tokio::time::timeout(PATIENCE, exchange).await.ok()??;
    jar.take(&answer.headers);
    Some(answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn a_jar_keeps_replaces_and_forgets() {
        let mut jar = Jar::default();
        let mut set = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.append(SET_COOKIE, HeaderValue::from_static(text));
            jar.take(&headers);
            jar.header()
        };
        assert_eq!(set("a=1; Path=/").as_deref(), Some("a=1"));
        assert_eq!(set("b=2").as_deref(), Some("a=1; b=2"));
        assert_eq!(set("a=3; HttpOnly").as_deref(), Some("a=3; b=2"));
        assert_eq!(set("a=; Max-Age=0").as_deref(), Some("b=2"));
        assert_eq!(set("b=x; Max-Age=0"), None);
    }
}
