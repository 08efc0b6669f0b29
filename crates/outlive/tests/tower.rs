//! A service without a framework: what poem, salvo or a bare hyper server need.

use bytes::Bytes;
use http::{Request, Response, header};
use http_body_util::Full;
use outlive::{Key, Outlive, tower};
use std::convert::Infallible;
use std::task::{Context, Poll};
use tower_layer::Layer;
use tower_service::Service;

const VISITS: Key<u64> = Key::new("visits");

#[derive(Clone)]
struct Counter;

impl Service<Request<String>> for Counter {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<String>) -> Self::Future {
        Box::pin(async move {
            let text = match tower::session(&request).await {
                Ok(session) => session.update(VISITS, |n| {
                    *n += 1;
                    n.to_string()
                }),
                Err(error) => error.to_string(),
            };
            Ok(Response::new(Full::from(text)))
        })
    }
}

#[tokio::test]
async fn a_service_without_a_framework_has_sessions() {
    let mut service = Outlive::in_memory().layer().layer(Counter);
    let first = service.call(Request::new(String::new())).await.unwrap();
    let cookies: Vec<_> =
        first.headers().get_all(header::SET_COOKIE).iter().map(|v| v.to_str().unwrap().split(';').next().unwrap()).collect();
    let again = Request::builder().header(header::COOKIE, cookies.join("; ")).body(String::new()).unwrap();
    let again = service.call(again).await.unwrap();
    assert!(again.headers().get_all(header::SET_COOKIE).iter().all(|v| v.to_str().unwrap().contains("-v=")));
    let body = http_body_util::BodyExt::collect(again.into_body()).await.unwrap().to_bytes();
    assert_eq!(body, "2");
}
