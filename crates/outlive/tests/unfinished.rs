//! Every way in which a handler is dropped before its end: nothing of what it had changed is kept, except where the docs say so.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use axum::error_handling::HandleErrorLayer;
use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{BoxError, Router};
use core::time::Duration;
use outlive::testing::{self, Client};
use outlive::{Key, Outlive, Session, SessionLayer};
use tower::ServiceBuilder;
use tower::limit::GlobalConcurrencyLimitLayer;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::limit::RequestBodyLimitLayer;
use tower_http::timeout::TimeoutLayer;

const VISITS: Key<u64> = Key::new("visits");
const BY_MIDDLEWARE: Key<u64> = Key::new("by-middleware");
const SOON: Duration = Duration::from_secs(1);

/// Changes the session and does not come to its end.
async fn hangs(session: Session) {
    session.update(VISITS, |n| *n += 100);
    session.rotate();
    core::future::pending().await
}

async fn panics(session: Session) {
    session.update(VISITS, |n| *n += 100);
    if true {
        panic!("the handler's own")
    }
}

fn routes() -> Router {
    let visits = |session: Session| async move {
        session.update(VISITS, |n| *n += 1);
    };
    let read = |session: Session| async move { session.get(VISITS).unwrap_or_default().to_string() };
    Router::new().route("/", get(visits)).route("/read", get(read)).route("/hangs", get(hangs)).route("/panics", get(panics)).route(
        "/upload",
        axum::routing::post(|session: Session, _: String| async move {
            session.update(VISITS, |n| *n += 100);
        }),
    )
}

async fn begun(app: Router) -> Client<Router> {
    let client = testing::client(app);
    client.get("/").await;
    client
}

/// The handler's changes are gone, and the session goes on.
async fn nothing_is_left(client: &Client<Router>, what: &str) {
    assert_eq!(client.get("/read").await.text, "1", "{what}");
    client.get("/").await;
    assert_eq!(client.get("/read").await.text, "2", "{what}");
}

#[tokio::test(start_paused = true)]
async fn a_timeout_leaves_nothing_of_what_its_handler_changed_inside_of_the_layer_or_outside() {
    for status in [StatusCode::REQUEST_TIMEOUT, StatusCode::GATEWAY_TIMEOUT, StatusCode::SERVICE_UNAVAILABLE] {
        let timeout = TimeoutLayer::with_status_code(status, SOON);
        let layer = Outlive::in_memory().layer();
        for (place, app) in [
            ("inside", routes().layer(timeout).layer(layer.clone())),
            ("outside", routes().layer(layer.clone()).layer(timeout)),
            ("between", routes().layer(layer.clone()).layer(timeout).layer(layer.clone())),
        ] {
            let client = begun(app).await;
            let id = client.cookies()[0].clone();
            assert_eq!(client.get("/hangs").await.status, status, "{place}");
            nothing_is_left(&client, place).await;
            assert_eq!(client.cookies()[0], id, "nor was it rotated");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_of_tower_that_a_handler_of_errors_answers_leaves_nothing() {
    let outlive = Outlive::in_memory();
    for status in [StatusCode::REQUEST_TIMEOUT, StatusCode::INTERNAL_SERVER_ERROR] {
        let errors = HandleErrorLayer::new(move |_: BoxError| async move { status });
        let stack = ServiceBuilder::new().layer(errors).layer(tower::timeout::TimeoutLayer::new(SOON));
        let client = begun(routes().layer(stack).layer(outlive.layer())).await;
        assert_eq!(client.get("/hangs").await.status, status);
        nothing_is_left(&client, status.as_str()).await;
    }
}

/// Middleware that drops the handler after a while and answers in its place, with a page.
async fn page(session: Session, request: Request, next: Next) -> Response {
    match tokio::time::timeout(SOON, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            session.update(BY_MIDDLEWARE, |n| *n += 1);
            (StatusCode::OK, "please try again").into_response()
        }
    }
}

fn with_page(inner: Option<SessionLayer>, outer: SessionLayer) -> Router {
    let noted = |session: Session| async move { session.get(BY_MIDDLEWARE).unwrap_or_default().to_string() };
    let app = routes().route("/noted", get(noted));
    let app = match inner {
        Some(inner) => app.layer(inner),
        None => app,
    };
    app.layer(middleware::from_fn(page)).layer(outer)
}

#[tokio::test(start_paused = true)]
async fn whatever_is_answered_in_its_place_the_layer_next_to_the_handler_takes_its_changes_back() {
    let layer = Outlive::in_memory().layer();
    let client = begun(with_page(Some(layer.clone()), layer.clone())).await;
    assert_eq!(client.get("/hangs").await.text, "please try again");
    nothing_is_left(&client, "a page").await;
    assert_eq!(client.get("/noted").await.text, "1", "what the middleware changed after it is kept");
    // The limit that the docs name: one layer, outside, sees a 200.
    let client = begun(with_page(None, layer)).await;
    client.get("/hangs").await;
    assert_eq!(client.get("/read").await.text, "101");
}

#[tokio::test]
async fn a_panic_that_is_caught_inside_of_the_layer_leaves_nothing() {
    let layer = Outlive::in_memory().layer();
    let odd = CatchPanicLayer::custom(|_| (StatusCode::OK, "all is well").into_response());
    let usual = CatchPanicLayer::new();
    for (what, app, want) in [
        ("a panic answered 500", routes().layer(usual).layer(layer.clone()), 500),
        ("a panic caught outside", routes().layer(layer.clone()).layer(usual), 500),
        ("a panic answered 200", routes().layer(layer.clone()).layer(odd).layer(layer.clone()), 200),
    ] {
        let client = begun(app).await;
        assert_eq!(client.get("/panics").await.status, want, "{what}");
        nothing_is_left(&client, what).await;
    }
}

#[tokio::test]
async fn a_request_that_a_limit_or_a_full_service_refuses_has_changed_nothing() {
    let layer = Outlive::in_memory().layer();
    let client = begun(routes().layer(RequestBodyLimitLayer::new(4)).layer(layer.clone())).await;
    assert_eq!(client.post("/upload", "more than four").await.status, StatusCode::PAYLOAD_TOO_LARGE);
    nothing_is_left(&client, "a body over its limit").await;

    let errors = HandleErrorLayer::new(|_: BoxError| async { StatusCode::SERVICE_UNAVAILABLE });
    let stack = ServiceBuilder::new().layer(errors).load_shed().layer(GlobalConcurrencyLimitLayer::new(1));
    let client = begun(routes().layer(stack).layer(layer)).await;
    let hanging = client.clone();
    let hanging = tokio::spawn(async move { hanging.get("/hangs").await });
    let full = async {
        while client.get("/read").await.status != StatusCode::SERVICE_UNAVAILABLE {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), full).await.unwrap();
    hanging.abort();
    assert!(hanging.await.unwrap_err().is_cancelled());
    nothing_is_left(&client, "a full service").await;
}

#[tokio::test]
async fn a_handler_whose_task_is_aborted_or_that_drops_a_part_of_itself_decides_itself() {
    async fn half(session: Session) -> StatusCode {
        let worker = session.clone();
        let task = tokio::spawn(async move {
            worker.update(VISITS, |n| *n += 100);
            core::future::pending::<()>().await
        });
        while session.get(VISITS).as_deref() != Some(&101) {
            tokio::task::yield_now().await;
        }
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
        session.rollback();
        StatusCode::OK
    }
    let client = begun(routes().route("/half", get(half)).layer(Outlive::in_memory().layer())).await;
    assert_eq!(client.get("/half").await.status, StatusCode::OK);
    nothing_is_left(&client, "rolled back by its handler").await;
}

#[tokio::test]
async fn a_handler_that_answers_in_time_keeps_its_changes_with_the_layer_on_both_sides() {
    let layer = Outlive::in_memory().layer();
    let timeout = TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, Duration::from_secs(3600));
    let client = begun(routes().layer(layer.clone()).layer(timeout).layer(layer)).await;
    let second = client.get("/").await;
    assert_eq!(client.get("/read").await.text, "2");
    // One commit, one cookie.
    assert_eq!(second.headers.get_all(header::SET_COOKIE).iter().count(), 1);
}
