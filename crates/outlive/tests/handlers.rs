//! What handlers see and browsers get, through axum. The names of the tests are the decisions they hold.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use axum::Router;
use axum::extract::{Query, Request};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use outlive::testing::{self, Client};
use outlive::{CommitError, Committed, Ended, Key, Level, OpenError, Outlive, Rollback, Session};
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

/// Adds one and answers with the status that the query names.
async fn status(session: Session, Query(q): Query<HashMap<String, String>>) -> StatusCode {
    session.update(VISITS, |n| *n += 1);
    StatusCode::from_u16(q["s"].parse().unwrap()).unwrap()
}

fn router() -> Router {
    Router::new()
        .route("/", get(visits))
        .route("/read", get(read))
        .route("/who", get(who))
        .route("/login", get(login))
        .route("/logout", get(logout))
        .route("/status", get(status))
        .route("/static", get(|| async { ([(header::CACHE_CONTROL, "public, max-age=60")], "body") }))
}

fn shop() -> Client<Router> {
    testing::client(router().layer(Outlive::in_memory().layer())).host("shop.example")
}

fn set_cookies(headers: &HeaderMap) -> Vec<&str> {
    headers.get_all(header::SET_COOKIE).iter().map(|v| v.to_str().unwrap()).collect()
}

#[tokio::test]
async fn a_handler_is_called_directly_with_a_session_of_its_own() {
    let session = testing::session();
    assert_eq!(visits(session.clone()).await, "visit 1");
    assert_eq!(visits(session).await, "visit 2");
    assert_eq!(visits(testing::session()).await, "visit 1");
}

#[tokio::test]
async fn a_session_goes_on_with_its_cookie_and_another_visitor_has_another_one() {
    let (ada, bob) = (shop(), shop());
    for n in 1..=3 {
        assert_eq!(ada.get("/").await.text, format!("visit {n}"));
    }
    assert_eq!(bob.get("/").await.text, "visit 1");
    ada.forget();
    assert_eq!(ada.get("/").await.text, "visit 1");
}

#[tokio::test]
async fn the_safe_cookies_are_set_once_and_the_token_when_the_version_rose() {
    let client = shop();
    let first = client.get("/").await;
    let cookies = set_cookies(&first.headers);
    assert_eq!(cookies.len(), 3);
    let [id, token, route] = [0, 1, 2].map(|at| cookies[at].split_once(';').unwrap());
    assert_eq!(route.0.trim_start_matches("__Host-session-r="), &id.0[id.0.find('.').unwrap()..]);
    assert!(id.0.starts_with("__Host-session=") && token.0.starts_with("__Host-session-v="));
    assert_eq!((id.1, token.1), (" HttpOnly; SameSite=Lax; Secure; Path=/", " HttpOnly; SameSite=Lax; Secure; Path=/"));
    assert!(id.0.len() - "__Host-session=".len() <= 96 && token.0.len() - "__Host-session-v=".len() <= 64);
    let second = client.get("/").await;
    let second = set_cookies(&second.headers);
    assert!(second.len() == 1 && second[0].starts_with("__Host-session-v="));
    assert!(set_cookies(&client.get("/read").await.headers).is_empty());
}

#[cfg(debug_assertions)]
#[tokio::test]
async fn on_localhost_a_debug_build_has_a_cookie_that_every_browser_keeps() {
    let client = testing::client(router().layer(Outlive::in_memory().layer())).host("localhost:3000");
    let first = client.get("/").await;
    assert!(set_cookies(&first.headers)[0].starts_with("session-dev=") && !set_cookies(&first.headers)[0].contains("Secure"));
    assert_eq!(client.get("/").await.text, "visit 2");
}

#[tokio::test]
async fn nothing_is_created_by_reading() {
    let client = shop();
    let answer = client.get("/read").await;
    assert_eq!((answer.text.as_str(), client.cookies().len()), ("0", 0));
    assert_eq!(client.get("/who").await.text, "nobody");
    client.get("/").await;
    assert_eq!(client.get("/who").await.text, "anonymous");
}

#[tokio::test]
async fn an_answer_with_our_cookie_is_not_cached_and_one_without_the_session_is_untouched() {
    let client = shop();
    let first = client.get("/").await;
    assert_eq!(
        (&first.headers[header::CACHE_CONTROL], &first.headers[header::VARY]),
        (&"no-store".parse().unwrap(), &"cookie".parse().unwrap())
    );
    // The first time that the cookie comes back the session's idle time becomes the usual one, and the token says so.
    client.get("/read").await;
    let read = client.get("/read").await;
    assert!(!read.headers.contains_key(header::CACHE_CONTROL) && read.headers[header::VARY] == "cookie");
    let file = client.get("/static").await;
    assert_eq!(
        (file.headers[header::CACHE_CONTROL].as_bytes(), file.headers.contains_key(header::VARY)),
        (&b"public, max-age=60"[..], false)
    );
    assert!(set_cookies(&file.headers).is_empty());
}

#[tokio::test]
async fn changes_are_rolled_back_on_5xx_and_kept_on_2xx_3xx_and_4xx() {
    let client = shop();
    client.get("/").await;
    for (status, visits) in [(200, "2"), (303, "3"), (422, "4"), (401, "5"), (500, "5"), (503, "5")] {
        assert_eq!(client.get(&format!("/status?s={status}")).await.status, status);
        assert_eq!(client.get("/read").await.text, visits, "{status}");
    }
    for (rollback, want) in [(Rollback::ClientError, "1"), (Rollback::Never, "3")] {
        let client = testing::client(router().layer(Outlive::in_memory().layer().rollback_on(rollback)));
        client.get("/").await;
        client.get("/status?s=422").await;
        client.get("/status?s=500").await;
        assert_eq!(client.get("/read").await.text, want, "{rollback:?}");
    }
}

#[tokio::test]
async fn a_panic_rolls_back_and_is_not_swallowed() {
    let kept: Arc<std::sync::Mutex<Option<Session>>> = Arc::default();
    let keep = kept.clone();
    let app = router().route(
        "/panic",
        get(move |session: Session| async move {
            session.update(VISITS, |n| *n += 1);
            *keep.lock().unwrap() = Some(session);
            if true {
                panic!("a handler's own")
            }
        }),
    );
    let client = testing::client(app.layer(Outlive::in_memory().layer()));
    client.get("/").await;
    let other = client.clone();
    let panic = tokio::spawn(async move { other.get("/panic").await }).await.unwrap_err().into_panic();
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"a handler's own"));
    assert_eq!(client.get("/read").await.text, "1");
    assert_eq!(kept.lock().unwrap().take().unwrap().get(VISITS).as_deref(), Some(&1));
}

#[tokio::test]
async fn a_dropped_request_rolls_back() {
    let reached = Arc::new(tokio::sync::Notify::new());
    let notify = reached.clone();
    let app = router().route(
        "/hang",
        get(move |session: Session| async move {
            session.update(VISITS, |n| *n += 1);
            notify.notify_one();
            core::future::pending::<()>().await
        }),
    );
    let client = testing::client(app.layer(Outlive::in_memory().layer()));
    client.get("/").await;
    let hanging = client.clone();
    let task = tokio::spawn(async move { hanging.get("/hang").await });
    reached.notified().await;
    assert_eq!(client.get("/read").await.text, "2", "a parallel request sees it, as in servlets");
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    assert_eq!(client.get("/read").await.text, "1");
}

#[tokio::test]
async fn login_gives_a_new_id_and_the_old_one_is_dead() {
    let client = shop();
    client.get("/").await;
    let thief = client.copy();
    assert_eq!(client.get("/login").await.text, "welcome");
    assert_eq!((client.get("/who").await.text, client.get("/read").await.text), ("ada".into(), "1".into()));
    let before = thief.cookies();
    assert_eq!(thief.get("/who").await.text, "nobody");
    // It left before the rotation, as far as anybody knows: it must not overwrite the newer cookie.
    assert_eq!(thief.cookies(), before);
    let write = thief.get("/").await;
    assert_eq!((write.status, thief.cookies()), (StatusCode::SERVICE_UNAVAILABLE, before));
    assert!(matches!(write.extensions.get(), Some(CommitError::Ended)));
}

#[tokio::test]
async fn what_is_set_after_rotate_does_not_undo_it_and_a_failed_login_is_none() {
    let app = router()
        .route(
            "/rotate-set",
            get(|session: Session| async move {
                session.rotate();
                session.set(LAST, "after".to_owned());
            }),
        )
        .route(
            "/login-500",
            get(|session: Session| async move {
                session.login("eve").await.unwrap();
                StatusCode::INTERNAL_SERVER_ERROR
            }),
        )
        .route("/last", get(|session: Session| async move { session.get(LAST).unwrap_or_default().to_string() }));
    let client = testing::client(app.layer(Outlive::in_memory().layer()));
    client.get("/").await;
    client.get("/read").await;
    let before = client.cookies();
    client.get("/login-500").await;
    assert_eq!((client.cookies(), client.get("/who").await.text), (before.clone(), "anonymous".to_owned()));
    client.get("/rotate-set").await;
    assert_ne!(client.cookies()[0], before[0]);
    assert_eq!((client.get("/last").await.text, client.get("/read").await.text), ("after".into(), "1".into()));
}

#[tokio::test]
async fn a_request_that_was_opened_before_a_rotation_commits_to_the_new_id_and_sets_no_cookie() {
    let (reached, go) = (Arc::new(tokio::sync::Notify::new()), Arc::new(tokio::sync::Notify::new()));
    let (r, g) = (reached.clone(), go.clone());
    let app = router().route(
        "/slow",
        get(move |session: Session| async move {
            session.set(LAST, "slow".to_owned());
            r.notify_one();
            g.notified().await;
        }),
    );
    let app = app.route("/last", get(|session: Session| async move { session.get(LAST).unwrap_or_default().to_string() }));
    let client = testing::client(app.layer(Outlive::in_memory().layer()));
    client.get("/").await;
    let slow = client.copy();
    let task = tokio::spawn(async move { slow.get("/slow").await });
    reached.notified().await;
    client.get("/login").await;
    go.notify_one();
    let answer = task.await.unwrap();
    assert!(answer.status == 200 && set_cookies(&answer.headers).is_empty());
    assert_eq!(client.get("/last").await.text, "slow");
}

#[tokio::test]
async fn invalidate_acts_at_once_and_is_not_rolled_back_and_what_follows_is_a_fresh_session() {
    let app = router()
        .route(
            "/logout-500",
            get(|session: Session| async move {
                assert_eq!(session.invalidate().await.unwrap(), Ended::Everywhere);
                StatusCode::INTERNAL_SERVER_ERROR
            }),
        )
        .route(
            "/logout-flash",
            get(|session: Session| async move {
                let _ = session.invalidate().await.unwrap();
                assert!(session.get(VISITS).is_none());
                session.set(LAST, "bye".to_owned());
            }),
        )
        .route("/last", get(|session: Session| async move { session.get(LAST).unwrap_or_default().to_string() }));
    let client = testing::client(app.layer(Outlive::in_memory().layer()));
    client.get("/").await;
    let copy = client.copy();
    let answer = client.get("/logout-500").await;
    let forgotten = set_cookies(&answer.headers);
    assert_eq!(forgotten.len(), 1, "a response that clears the id may come after one that a login set it in");
    assert!(forgotten[0].ends_with("-v=; HttpOnly; SameSite=Lax; Path=/; Max-Age=0"), "{forgotten:?}");
    assert_eq!((copy.get("/who").await.text, copy.get("/").await.text), ("nobody".into(), "visit 1".into()));
    client.get("/").await;
    let before = client.cookies();
    client.get("/logout-flash").await;
    assert_ne!(client.cookies()[0], before[0]);
    assert_eq!((client.get("/last").await.text, client.get("/read").await.text), ("bye".into(), "0".into()));
    assert_eq!(client.get("/logout").await.text, "Everywhere");
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
async fn a_commit_that_fails_replaces_the_answer_and_keeps_nothing_of_the_request() {
    let app = router().route(
        "/big",
        get(|session: Session| async move {
            session.update(VISITS, |n| *n += 1);
            session.set(LAST, "x".repeat(2 << 20));
            "the page as if nothing were wrong"
        }),
    );
    let client = testing::client(app.layer(Outlive::in_memory().layer()));
    client.get("/").await;
    let answer = client.get("/big").await;
    assert_eq!((answer.status, answer.text.as_str()), (StatusCode::INTERNAL_SERVER_ERROR, ""));
    let error = answer.extensions.get::<CommitError>().unwrap();
    let text = error.to_string();
    assert!(text.contains("`last`") && text.contains("1048576"), "{text}");
    assert_eq!(client.get("/read").await.text, "1");
}

#[tokio::test]
async fn every_answer_says_what_level_its_commit_reached() {
    let client = shop();
    let answer = client.get("/").await;
    let committed = answer.extensions.get::<Committed>().unwrap();
    assert_eq!((committed.level, committed.version), (Level::Owner, 1));
    assert!(client.get("/static").await.extensions.get::<Committed>().is_none());
}

#[tokio::test]
async fn flush_commits_what_was_changed_so_far_and_a_later_failure_does_not_take_it_back() {
    let app = router().route(
        "/flush",
        get(|session: Session| async move {
            session.update(VISITS, |n| *n += 1);
            assert_eq!(session.flush().await.unwrap().level, Level::Owner);
            session.update(VISITS, |n| *n += 10);
            StatusCode::INTERNAL_SERVER_ERROR
        }),
    );
    let client = testing::client(app.layer(Outlive::in_memory().layer()));
    client.get("/").await;
    client.get("/flush").await;
    assert_eq!(client.get("/read").await.text, "2");
    // A session that began by a flush has its cookie even on a 500.
    client.forget();
    client.get("/flush").await;
    assert_eq!(client.get("/read").await.text, "1");
}

#[tokio::test]
async fn a_handle_that_outlives_its_request_keeps_what_it_writes() {
    let kept: Arc<std::sync::Mutex<Option<Session>>> = Arc::default();
    let keep = kept.clone();
    let app = router().route(
        "/keep",
        get(move |session: Session| async move {
            *keep.lock().unwrap() = Some(session);
        }),
    );
    let client = testing::client(app.layer(Outlive::in_memory().layer()));
    client.get("/").await;
    client.get("/keep").await;
    let late = kept.lock().unwrap().take().unwrap();
    late.update(VISITS, |n| *n += 1);
    late.flush().await.unwrap();
    assert_eq!(client.get("/read").await.text, "2");
    client.get("/").await;
    assert_eq!(late.get(VISITS).as_deref(), Some(&3));
    late.update(VISITS, |n| *n += 1);
    drop(late);
    assert_eq!(client.get("/read").await.text, "4");
    // Its answer left without a cookie.
    client.forget();
    client.get("/keep").await;
    let late = kept.lock().unwrap().take().unwrap();
    late.set(VISITS, 1);
    assert!(matches!(late.flush().await, Err(CommitError::NoCookie)));
}

#[tokio::test]
async fn the_same_layer_twice_is_one() {
    let outlive = Outlive::in_memory();
    let client = testing::client(router().layer(outlive.layer()).layer(outlive.layer())).host("shop.example");
    let answer = client.get("/").await;
    assert_eq!(set_cookies(&answer.headers).len(), 3);
    assert_eq!(client.get("/").await.text, "visit 2");
    assert_eq!(answer.extensions.get::<Committed>().unwrap().version, 1);
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
async fn parallel_requests_of_one_session_lose_nothing() {
    let client = shop();
    client.get("/").await;
    let tasks: Vec<_> = (0..50).map(|_| client.clone()).map(|c| tokio::spawn(async move { c.get("/").await.status })).collect();
    for task in tasks {
        assert_eq!(task.await.unwrap(), StatusCode::OK);
    }
    assert_eq!(client.get("/read").await.text, "51");
}

#[tokio::test]
async fn a_made_up_or_foreign_cookie_is_no_session_and_no_error() {
    let client = shop();
    for value in ["x", "", &"A".repeat(43), &format!("{}.local", "A".repeat(43)), &"z".repeat(4000)] {
        client.set_cookie("__Host-session", value);
        client.set_cookie("__Host-session-v", value);
        assert_eq!(client.get("/who").await.text, "nobody");
    }
    client.get("/").await;
    assert_eq!(client.get("/read").await.text, "1");
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
async fn a_change_that_ends_where_it_began_is_none_and_sets_no_cookie() {
    let nothing = |session: Session| async move {
        session.modify(VISITS, |n| *n += 1);
        session.modify(VISITS, |n| *n -= 1);
        session.set(LAST, "x".to_owned());
        session.remove(LAST);
    };
    let client = testing::client(router().route("/nothing", get(nothing)).layer(Outlive::in_memory().layer()));
    client.get("/").await;
    client.get("/read").await;
    let answer = client.get("/nothing").await;
    assert_eq!(answer.extensions.get::<Committed>().unwrap().version, 1);
    assert!(set_cookies(&answer.headers).is_empty() && !answer.headers.contains_key(header::CACHE_CONTROL));
    // For a visitor without a session, too: nothing begins.
    client.forget();
    client.get("/nothing").await;
    assert!(client.cookies().is_empty());
}

#[tokio::test]
async fn a_debug_header_says_the_level_if_it_is_asked_for() {
    let outlive = Outlive::in_memory();
    let client = testing::client(router().layer(outlive.layer().debug_header()));
    assert_eq!(client.get("/").await.headers["outlive-committed"], "level=owner version=1");
    assert!(!client.get("/static").await.headers.contains_key("outlive-committed"));
    let client = testing::client(router().layer(outlive.layer()));
    assert!(!client.get("/").await.headers.contains_key("outlive-committed"));
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
async fn a_preflight_opens_no_session_and_stays_cacheable() {
    let client = shop();
    client.get("/").await;
    let mut preflight = axum::http::Request::new(http_body_util::Full::default());
    *preflight.method_mut() = axum::http::Method::OPTIONS;
    preflight.headers_mut().insert(header::ACCESS_CONTROL_REQUEST_METHOD, "POST".parse().unwrap());
    let answer = client.request(preflight).await;
    assert!(set_cookies(&answer.headers).is_empty() && !answer.headers.contains_key(header::VARY));
    assert!(answer.extensions.get::<Committed>().is_none());
}

#[tokio::test]
async fn first_requests_at_once_make_two_sessions_and_the_browser_keeps_one() {
    let outlive = Outlive::in_memory();
    let tab = testing::client(router().layer(outlive.layer()));
    let (one, two) = (tab.copy(), tab.copy());
    assert_eq!((one.get("/").await.text, two.get("/").await.text), ("visit 1".into(), "visit 1".into()));
    assert_eq!(outlive.stats().created, 2);
    assert_ne!(one.cookies()[0].1, two.cookies()[0].1);
}

#[tokio::test]
async fn a_token_of_another_session_is_ignored_and_not_refused() {
    let (ada, bob) = (shop(), shop());
    ada.get("/").await;
    bob.get("/").await;
    let token = bob.cookies().into_iter().find(|(name, _)| name.ends_with("-v")).unwrap();
    ada.set_cookie(&token.0, &token.1);
    assert_eq!(ada.get("/").await.text, "visit 2");
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
async fn a_request_opened_under_an_id_that_has_ended_since_is_refused_and_sets_no_cookie() {
    let (reached, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (r, g) = (reached.clone(), go.clone());
    let slow = move |session: Session, Query(q): Query<HashMap<String, String>>| async move {
        r.notify_one();
        g.notified().await;
        if q.contains_key("write") {
            session.set(LAST, "slow".to_owned());
        }
    };
    let client = testing::client(router().route("/slow", get(slow)).layer(Outlive::in_memory().layer()));
    for (path, want) in [("/slow", StatusCode::OK), ("/slow?write=1", StatusCode::SERVICE_UNAVAILABLE)] {
        client.get("/").await;
        let slow = client.copy();
        let slow = tokio::spawn(async move { slow.get(path).await });
        reached.notified().await;
        assert_eq!(client.get("/logout").await.text, "Everywhere");
        go.notify_one();
        let answer = slow.await.unwrap();
        assert_eq!((answer.status, set_cookies(&answer.headers).len()), (want, 0), "{path}");
        if want != StatusCode::OK {
            assert!(matches!(answer.extensions.get(), Some(CommitError::Ended)));
        }
    }
}

#[tokio::test]
async fn an_answer_with_our_cookie_is_not_cached_whatever_its_status_and_method() {
    let cached = |session: Session, Query(q): Query<HashMap<String, String>>| async move {
        session.update(VISITS, |n| *n += 1);
        (StatusCode::from_u16(q["s"].parse().unwrap()).unwrap(), [(header::CACHE_CONTROL, "public, max-age=60")])
    };
    let client = testing::client(router().route("/cached", get(cached)).layer(Outlive::in_memory().layer()));
    for (method, status) in [("GET", 200), ("GET", 304), ("HEAD", 200), ("GET", 404)] {
        let request = axum::http::Request::builder().method(method).uri(format!("/cached?s={status}"));
        let answer = client.request(request.body(http_body_util::Full::default()).unwrap()).await;
        assert!(!set_cookies(&answer.headers).is_empty() && answer.status == status);
        assert_eq!(
            (&answer.headers[header::CACHE_CONTROL], &answer.headers[header::VARY]),
            (&"no-store".parse().unwrap(), &"cookie".parse().unwrap())
        );
    }
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
