//! What is axum's own: its extractors, its middleware, its routes. What holds for every framework is in `frameworks.rs`. The names of the
//! tests are the decisions they hold.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use axum::Router;
use axum::extract::{Query, Request};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use outlive::testing::{self, Client};
use outlive::{CommitError, Ended, Key, OpenError, Outlive, Session};
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::Notify;

const VISITS: Key<u64> = Key::new("visits");
const LAST: Key<String> = Key::new("last");

async fn visits(session: Session) -> String {
    format!(
        "visit {}",
        session.update(VISITS, |n| {
            *n += 1;
            *n
        })
    )
}

async fn read(session: Session) -> String {
    session.get(VISITS).unwrap_or_default().to_string()
}

async fn who(session: Option<Session>) -> String {
    session.map_or("nobody".to_owned(), |s| s.user().map_or("anonymous".to_owned(), |u| u.to_string()))
}

async fn login(session: Session) -> String {
    session.login("ada").await.unwrap();
    "welcome".to_owned()
}

async fn logout(session: Session) -> String {
    format!("{:?}", session.invalidate().await.unwrap())
}

fn router() -> Router {
    Router::new()
        .route("/", get(visits))
        .route("/read", get(read))
        .route("/who", get(who))
        .route("/login", get(login))
        .route("/logout", get(logout))
}

#[tokio::test]
async fn a_handler_is_called_directly_with_a_session_of_its_own() {
    let session = testing::session();
    assert_eq!(visits(session.clone()).await, "visit 1");
    assert_eq!(visits(session).await, "visit 2");
    assert_eq!(visits(testing::session()).await, "visit 1");
}

#[tokio::test]
async fn without_a_layer_the_answer_says_where_to_put_it() {
    let text = "call `.layer(outlive.layer())` after the last `.route(...)`";
    let client = testing::client(router());
    for path in ["/", "/who"] {
        let answer = client.get(path).await;
        assert!(answer.status == 500 && answer.text.contains(text), "{path}: {}", answer.text);
    }
    // The usual mistake: a layer wraps only the routes that are there already.
    let app = Router::new().route("/a", get(visits)).layer(Outlive::in_memory().layer()).route("/b", get(visits));
    let client = testing::client(app);
    assert_eq!((client.get("/a").await.status, client.get("/b").await.status), (StatusCode::OK, StatusCode::INTERNAL_SERVER_ERROR));
}

#[tokio::test]
async fn a_handler_may_take_the_error_itself() {
    async fn own(session: Result<Session, OpenError>) -> Response {
        match session {
            Ok(_) => "fine".into_response(),
            Err(error) => (StatusCode::IM_A_TEAPOT, format!("{:?}", error.fault())).into_response(),
        }
    }
    let app = Router::new().route("/", get(own));
    assert_eq!(testing::client(app.clone()).get("/").await.text, "Caller");
    assert_eq!(testing::client(app.layer(Outlive::in_memory().layer())).get("/").await.text, "fine");
}

#[tokio::test]
async fn middleware_takes_the_session_like_a_handler() {
    async fn require_user(session: Session, request: axum::extract::Request, next: axum::middleware::Next) -> Response {
        match session.user() {
            Some(_) => next.run(request).await,
            None => StatusCode::UNAUTHORIZED.into_response(),
        }
    }
    let inside = Router::new().route("/inside", get(visits)).layer(axum::middleware::from_fn(require_user));
    let client = testing::client(inside.merge(router()).layer(Outlive::in_memory().layer()));
    assert_eq!(client.get("/inside").await.status, StatusCode::UNAUTHORIZED);
    client.get("/login").await;
    assert_eq!(client.get("/inside").await.text, "visit 1");
}

#[tokio::test]
async fn ended_resolves_at_logout_through_a_rotation() {
    let kept: Arc<std::sync::Mutex<Option<Session>>> = Arc::default();
    let keep = kept.clone();
    let app = router().route("/keep", get(move |session: Session| async move { *keep.lock().unwrap() = Some(session) }));
    let client = testing::client(app.layer(Outlive::in_memory().layer()));
    client.get("/").await;
    client.get("/keep").await;
    let ended = tokio::spawn(kept.lock().unwrap().take().unwrap().ended());
    client.get("/login").await;
    client.get("/").await;
    tokio::task::yield_now().await;
    assert!(!ended.is_finished());
    client.get("/logout").await;
    assert_eq!(ended.await.unwrap(), outlive::EndReason::Invalidated);
}

#[tokio::test]
async fn a_layer_of_another_namespace_inside_shadows_the_outer_one_and_each_commits_its_own() {
    const SEEN: Key<u64> = Key::new("seen");
    async fn outside(session: Session, request: Request, next: Next) -> Response {
        session.update(SEEN, |n| *n += 1);
        next.run(request).await
    }
    let (shop, admin) = (Outlive::in_memory(), Outlive::builder().namespace("admin").start().await.unwrap());
    let inner = Router::new().route("/admin", get(visits)).layer(admin.layer());
    let app = inner.route("/", get(visits)).layer(middleware::from_fn(outside)).layer(shop.layer());
    let client = testing::client(app).host("shop.example");
    client.get("/").await;
    let answer = client.get("/admin").await;
    assert_eq!(answer.text, "visit 1", "the inner session is another one");
    let names: Vec<_> = client.cookies().into_iter().map(|(name, _)| name).collect();
    let want = ["__Host-session", "__Host-session-r", "__Host-admin", "__Host-admin-v", "__Host-admin-r", "__Host-session-v"];
    assert_eq!(names, want);
    assert_eq!(client.get("/admin").await.text, "visit 2");
    assert_eq!(client.get("/").await.text, "visit 2", "what the outer one holds, the inner one did not touch");
    let outer = shop.stats().created + admin.stats().created;
    assert_eq!(outer, 2);
}

/// Reads, lets others run, and writes: loses changes unless it has the session to itself.
async fn careless(session: Session) -> String {
    let n = session.get(VISITS).as_deref().copied().unwrap_or_default();
    for _ in 0..5 {
        tokio::task::yield_now().await;
    }
    session.set(VISITS, n + 1);
    (n + 1).to_string()
}

/// So many requests at once, each answered with this status.
async fn at_once(client: &Client<Router>, path: &'static str, n: usize) {
    let tasks: Vec<_> = (0..n).map(|_| client.clone()).map(|c| tokio::spawn(async move { c.get(path).await.status })).collect();
    for task in tasks {
        assert_eq!(task.await.unwrap(), StatusCode::OK);
    }
}

#[tokio::test]
async fn under_exclusive_a_session_has_one_request_at_a_time() {
    let outlive = Outlive::in_memory();
    let app = || router().route("/careless", get(careless));
    let shared = testing::client(app().layer(outlive.layer()));
    shared.get("/").await;
    at_once(&shared, "/careless", 20).await;
    assert_ne!(shared.get("/read").await.text, "21", "without it they get into each other's way, or this test shows nothing");
    let alone = testing::client(app().layer(outlive.layer().exclusive()));
    alone.get("/").await;
    at_once(&alone, "/careless", 20).await;
    assert_eq!(alone.get("/read").await.text, "21");
}

#[tokio::test]
async fn an_exclusive_layer_inside_makes_its_routes_exclusive_even_where_middleware_has_opened_the_session() {
    async fn opens(session: Session, request: Request, next: Next) -> Response {
        drop(session.get(VISITS));
        next.run(request).await
    }
    let outlive = Outlive::in_memory();
    let inner = Router::new().route("/careless", get(careless)).layer(outlive.layer().exclusive());
    let app = inner.merge(router()).layer(middleware::from_fn(opens)).layer(outlive.layer());
    let client = testing::client(app);
    client.get("/").await;
    at_once(&client, "/careless", 20).await;
    assert_eq!(client.get("/read").await.text, "21");
}

#[tokio::test]
async fn under_exclusive_two_arguments_of_one_handler_share_its_turn_and_a_failure_takes_back_all() {
    async fn both(one: Session, other: Session, Query(q): Query<HashMap<String, String>>) -> StatusCode {
        one.update(VISITS, |n| *n += 1);
        other.update(VISITS, |n| *n += 1);
        StatusCode::from_u16(q["s"].parse().unwrap()).unwrap()
    }
    let app = router().route("/both", get(both)).layer(Outlive::in_memory().layer().exclusive());
    let client = testing::client(app);
    client.get("/").await;
    assert_eq!(client.get("/both?s=200").await.status, StatusCode::OK);
    client.get("/both?s=500").await;
    assert_eq!(client.get("/read").await.text, "3");
}

/// An exclusive application in which one request has the session until it is told to go on.
async fn held() -> (Client<Router>, Arc<Notify>, tokio::task::JoinHandle<StatusCode>) {
    let (reached, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (r, g) = (reached.clone(), go.clone());
    let hold = move |session: Session| async move {
        session.update(VISITS, |n| *n += 1);
        r.notify_one();
        g.notified().await;
    };
    let client = testing::client(router().route("/hold", get(hold)).layer(Outlive::in_memory().layer().exclusive()));
    client.get("/").await;
    let holder = client.clone();
    let holding = tokio::spawn(async move { holder.get("/hold").await.status });
    reached.notified().await;
    (client, go, holding)
}

#[tokio::test]
async fn more_than_64_requests_that_wait_for_a_session_are_answered_429() {
    let (client, go, holding) = held().await;
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..80 {
        let client = client.clone();
        waiting.spawn(async move { client.get("/").await });
    }
    for _ in 0..16 {
        let answer = waiting.join_next().await.unwrap().unwrap();
        assert_eq!((answer.status, &answer.headers[header::RETRY_AFTER]), (StatusCode::TOO_MANY_REQUESTS, &"1".parse().unwrap()));
        assert!(answer.text.contains("too many requests of this session at once"), "{}", answer.text);
    }
    go.notify_one();
    assert_eq!(holding.await.unwrap(), StatusCode::OK);
    while let Some(answer) = waiting.join_next().await {
        assert_eq!(answer.unwrap().status, StatusCode::OK);
    }
    assert_eq!(client.get("/read").await.text, "66");
}

#[tokio::test(start_paused = true)]
async fn a_request_that_waits_too_long_for_a_session_is_answered_429_and_one_that_gives_up_leaves_the_queue() {
    let (client, go, holding) = held().await;
    assert_eq!(client.get("/read").await.status, StatusCode::TOO_MANY_REQUESTS);
    assert!(tokio::time::timeout(core::time::Duration::from_secs(1), client.get("/read")).await.is_err());
    // Another visitor waits for nobody.
    let other = client.copy();
    other.forget();
    assert_eq!(other.get("/").await.text, "visit 1");
    go.notify_one();
    holding.await.unwrap();
    assert_eq!(client.get("/read").await.text, "2");
}

#[tokio::test]
async fn what_middleware_changed_before_an_exclusive_handler_failed_is_taken_back_as_well() {
    async fn counts(session: Session, request: Request, next: Next) -> Response {
        session.update(VISITS, |n| *n += 1);
        next.run(request).await
    }
    let outlive = Outlive::in_memory();
    let fails = |session: Session| async move {
        session.set(LAST, "half done".to_owned());
        StatusCode::INTERNAL_SERVER_ERROR
    };
    let last = |session: Session| async move { session.get(LAST).unwrap_or_default().to_string() };
    let inner = Router::new().route("/fails", get(fails)).layer(outlive.layer().exclusive()).layer(middleware::from_fn(counts));
    let client = testing::client(inner.merge(router()).route("/last", get(last)).layer(outlive.layer()));
    client.get("/").await;
    for _ in 0..3 {
        assert_eq!(client.get("/fails").await.status, StatusCode::INTERNAL_SERVER_ERROR);
    }
    assert_eq!((client.get("/read").await.text, client.get("/last").await.text), ("1".into(), String::new()));
}

#[tokio::test]
async fn under_exclusive_who_waited_through_a_login_or_a_logout_does_not_get_the_session() {
    for (path, want) in [("/slow-login", StatusCode::SERVICE_UNAVAILABLE), ("/slow-logout", StatusCode::OK)] {
        let (reached, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (r, g) = (reached.clone(), go.clone());
        let slow = move |session: Session, login: bool| async move {
            r.notify_one();
            g.notified().await;
            if login {
                session.login("ada").await.unwrap();
            } else {
                assert_eq!(session.invalidate().await.unwrap(), Ended::Everywhere);
            }
        };
        let other = slow.clone();
        let app = router()
            .route("/slow-login", get(move |s: Session| slow(s, true)))
            .route("/slow-logout", get(move |s: Session| other(s, false)));
        let app = app.route(
            "/user",
            get(|s: Session| async move {
                s.update(VISITS, |n| *n += 1);
                s.user().unwrap_or_default().to_string()
            }),
        );
        let client = testing::client(app.layer(Outlive::in_memory().layer().exclusive()));
        client.get("/").await;
        let (holder, waiter) = (client.copy(), client.copy());
        let holder = tokio::spawn(async move { holder.get(path).await.status });
        reached.notified().await;
        let mut waits = Box::pin(waiter.get("/user"));
        tokio::select! {
            biased;
            _ = &mut waits => panic!("it did not wait"),
            () = core::future::ready(()) => {}
        }
        go.notify_one();
        assert_eq!(holder.await.unwrap(), StatusCode::OK);
        let answer = waits.await;
        // It has the id from before: after a login its change is refused, after a logout it begins anew, as if it had come later.
        assert_eq!((answer.status, answer.text.as_str()), (want, ""), "{path}");
    }
}

#[tokio::test]
async fn a_handler_that_panics_or_is_dropped_gives_its_turn_back() {
    let (client, _, holding) = held().await;
    holding.abort();
    assert!(holding.await.unwrap_err().is_cancelled());
    assert_eq!(client.get("/read").await.text, "1", "and what it did is taken back");
}

#[tokio::test]
async fn modify_runs_only_if_there_is_a_value_and_try_update_keeps_nothing_of_an_error() {
    let session = testing::session();
    assert_eq!(session.modify(VISITS, |n| *n += 1), None);
    assert!(session.get(VISITS).is_none());
    session.set(VISITS, 1);
    assert_eq!(session.modify(VISITS, |n| *n += 1), Some(()));
    let refused = session.try_update(VISITS, |n| {
        *n = 99;
        Err::<(), _>("full")
    });
    assert_eq!((refused, session.get(VISITS).as_deref()), (Err("full"), Some(&2)));
    assert_eq!(session.remove(VISITS).as_deref(), Some(&2));
}

#[tokio::test]
async fn inside_of_a_closure_the_same_attribute_panics_with_its_name_and_another_one_works() {
    let session = testing::session();
    session.update(VISITS, |_| session.set(LAST, "works".to_owned()));
    assert_eq!(session.get(LAST).as_deref().map(String::as_str), Some("works"));
    let inner = session.clone();
    let panic = tokio::spawn(async move { inner.update(VISITS, |_| inner.get(VISITS)) }).await.unwrap_err().into_panic();
    let text = panic.downcast_ref::<String>().unwrap();
    assert!(text.contains("`visits` is used inside of the closure that changes it"), "{text}");
}

#[tokio::test]
async fn one_name_with_two_types_panics_and_names_both_places() {
    const NUMBER: Key<u64> = Key::new("two-types");
    const TEXT: Key<String> = Key::new("two-types");
    let session = testing::session();
    session.set(NUMBER, 1);
    let panic = tokio::spawn(async move { session.get(TEXT) }).await.unwrap_err().into_panic();
    let text = panic.downcast_ref::<String>().unwrap();
    assert!(text.contains("`two-types` has two types") && text.matches("handlers.rs:").count() == 2, "{text}");
}

#[tokio::test]
async fn an_application_may_have_its_own_page_for_a_commit_that_failed() {
    async fn page(mut answer: Response) -> Response {
        match answer.extensions_mut().remove::<CommitError>() {
            Some(error) => (error.status(), format!("our page: {error}")).into_response(),
            None => answer,
        }
    }
    let big = |session: Session| async move { session.set(LAST, "x".repeat(2 << 20)) };
    let app = router().route("/big", get(big)).layer(Outlive::in_memory().layer()).layer(middleware::map_response(page));
    let client = testing::client(app);
    let answer = client.get("/big").await;
    assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(answer.text.starts_with("our page: setting the session attribute `last` makes"), "{}", answer.text);
    assert!(client.cookies().is_empty() && client.get("/").await.text == "visit 1");
}

#[tokio::test]
async fn nothing_that_prints_shows_the_id() {
    let kept: Arc<std::sync::Mutex<Vec<String>>> = Arc::default();
    let keep = kept.clone();
    let print = move |session: Session| async move {
        let text = format!("{session:?} {:?} {:?} {:?}", session.id(), session.info(), session.flush().await);
        keep.lock().unwrap().push(text);
        session.set(LAST, "x".repeat(2 << 20));
    };
    let client = testing::client(router().route("/print", get(print)).layer(Outlive::in_memory().layer()));
    client.get("/").await;
    let answer = client.get("/print").await;
    let error = answer.extensions.get::<CommitError>().unwrap();
    let printed = format!("{error} {error:?} {}", kept.lock().unwrap().concat());
    let (_, cookie) = client.cookies().remove(0);
    let id = cookie.split('.').next().unwrap();
    assert!(id.len() == 43 && printed.contains("SessionId(..)"));
    assert!((0..id.len() - 12).all(|at| !printed.contains(&id[at..at + 12])), "{printed}");
}

#[tokio::test]
async fn a_session_can_be_sent_to_another_task_and_shared() {
    fn shared<T: Clone + Send + Sync + 'static>(_: &T) {}
    shared(&testing::session());
    shared(&Outlive::in_memory());
    let session = testing::session();
    session.set(VISITS, 7);
    let value = session.get(VISITS).unwrap();
    tokio::task::yield_now().await;
    session.update(VISITS, |n| *n += 1);
    assert_eq!((*value, session.get(VISITS).as_deref()), (7, Some(&8)), "a snapshot stays what it was");
}

#[tokio::test]
async fn a_stream_that_refreshes_and_a_route_that_does_not_touch_keep_no_session_alive() {
    let over = Arc::new(Notify::new());
    let told = over.clone();
    let watch = move |session: Session| async move {
        // What a stream of events does, after its response has begun: it looks again and again until the session is over.
        tokio::spawn(async move {
            while session.refresh().await.is_ok() {
                tokio::time::sleep(core::time::Duration::from_millis(10)).await;
            }
            told.notify_one();
        });
    };
    let outlive = Outlive::builder().idle_timeout(core::time::Duration::from_secs(1)).start().await.unwrap();
    let polled = Router::new().route("/poll", get(who)).layer(outlive.layer().no_touch());
    let app = router().route("/watch", get(watch)).merge(polled).layer(outlive.layer());
    let long = core::time::Duration::from_secs(60);
    let client = testing::client(app);
    client.get("/").await;
    client.get("/read").await;
    let poll = async { while client.get("/poll").await.text != "nobody" {} };
    tokio::time::timeout(long, poll).await.expect("a look keeps the session alive");
    client.get("/").await;
    client.get("/read").await;
    client.get("/watch").await;
    tokio::time::timeout(long, over.notified()).await.expect("a stream keeps the session alive");
}

#[tokio::test]
async fn a_client_posts_json() {
    let echo = |headers: HeaderMap, body: String| async move { format!("{:?} {body}", headers[header::CONTENT_TYPE]) };
    let client = testing::client(Router::new().route("/", axum::routing::post(echo)));
    assert_eq!(client.post_json("/", &["bell", "saddle"]).await.text, "\"application/json\" [\"bell\",\"saddle\"]");
}
