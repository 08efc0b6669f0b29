//! What handlers see and browsers get, through each framework: one suite, and a file for each of them. The names of the tests are the
//! decisions they hold.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

#[path = "frameworks/axum.rs"]
mod axum;
#[path = "frameworks/tower.rs"]
mod tower_alone;

use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use outlive::testing::{self, Client};
use outlive::{CommitError, Committed, Ended, Key, Level, OpenError, Outlive, Rollback, Session, SessionLayer};
use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use tokio::sync::Notify;

const VISITS: Key<u64> = Key::new("visits");
const LAST: Key<String> = Key::new("last");

// ---- what a framework gets: handlers at paths, and layers around all of them ------------------------------------------------------

type Later<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// A request, as a handler sees it.
struct Ask {
    query: String,
    /// Opens the session; for a handler that does not, there is none.
    open: Box<dyn FnOnce() -> Later<Result<Session, OpenError>> + Send>,
}

/// Calls a handler.
type Call = Arc<dyn Fn(Ask) -> Later<Response<String>> + Send + Sync>;

#[derive(Default)]
struct Routes {
    handlers: Vec<(&'static str, Call)>,
    /// The innermost first.
    layers: Vec<SessionLayer>,
}

impl Routes {
    fn route(mut self, path: &'static str, handler: Call) -> Routes {
        self.handlers.push((path, handler));
        self
    }

    fn layer(mut self, layer: SessionLayer) -> Routes {
        self.layers.push(layer);
        self
    }
}

#[derive(Default)]
struct Query(HashMap<String, String>);

/// What is a handler: asynchronous functions of the session, of the session and the query, or of nothing.
trait Handler<A>: Clone + Send + Sync + 'static {
    fn call(self, ask: Ask) -> impl Future<Output = Result<Response<String>, OpenError>> + Send;
}

impl<F, R> Handler<((), R)> for F
where
    F: FnOnce() -> R + Clone + Send + Sync + 'static,
    R: Future<Output: Reply> + Send,
{
    async fn call(self, _: Ask) -> Result<Response<String>, OpenError> {
        Ok(self().await.reply())
    }
}

impl<F, R> Handler<(Session, R)> for F
where
    F: FnOnce(Session) -> R + Clone + Send + Sync + 'static,
    R: Future<Output: Reply> + Send,
{
    async fn call(self, ask: Ask) -> Result<Response<String>, OpenError> {
        Ok(self((ask.open)().await?).await.reply())
    }
}

impl<F, R> Handler<(Session, Query, R)> for F
where
    F: FnOnce(Session, Query) -> R + Clone + Send + Sync + 'static,
    R: Future<Output: Reply> + Send,
{
    async fn call(self, ask: Ask) -> Result<Response<String>, OpenError> {
        let query = ask.query.split('&').filter_map(|pair| pair.split_once('=')).map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
        Ok(self((ask.open)().await?, Query(query)).await.reply())
    }
}

fn get<A>(handler: impl Handler<A>) -> Call {
    Arc::new(move |ask| {
        let handler = handler.clone();
        Box::pin(async move { handler.call(ask).await.unwrap_or_else(|error| respond(error.status(), error.to_string())) })
    })
}

/// What a handler may answer.
trait Reply {
    fn reply(self) -> Response<String>;
}

impl Reply for Response<String> {
    fn reply(self) -> Response<String> {
        self
    }
}

impl Reply for String {
    fn reply(self) -> Response<String> {
        Response::new(self)
    }
}

impl Reply for &'static str {
    fn reply(self) -> Response<String> {
        self.to_owned().reply()
    }
}

impl Reply for () {
    fn reply(self) -> Response<String> {
        "".reply()
    }
}

impl Reply for StatusCode {
    fn reply(self) -> Response<String> {
        respond(self, "")
    }
}

fn respond(status: StatusCode, text: impl Into<String>) -> Response<String> {
    let mut response = Response::new(text.into());
    *response.status_mut() = status;
    response
}

/// What an application would have any cache keep.
fn cacheable(mut response: Response<String>) -> Response<String> {
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=60"));
    response
}

/// Whoever can do this runs the suite.
trait Framework {
    /// A service of `http` requests, which a client of the suite asks.
    type App;
    fn serve(routes: Routes) -> Self::App;
}

/// Each test, for each framework.
macro_rules! suite {
    ($($(#[$about:meta])* async fn $name:ident() $body:block)*) => {
        mod through_axum {
            helpers!(axum::Axum);
            $($(#[$about])* async fn $name() $body)*
        }
        mod through_tower_alone {
            helpers!(tower_alone::Tower);
            $($(#[$about])* async fn $name() $body)*
        }
    };
}

macro_rules! helpers {
    ($framework:path) => {
        use super::*;
        type App = <$framework as Framework>::App;

        fn serve(routes: Routes) -> Client<App> {
            testing::client(<$framework as Framework>::serve(routes))
        }

        fn shop() -> Client<App> {
            serve(router().layer(Outlive::in_memory().layer())).host("shop.example")
        }
    };
}

fn router() -> Routes {
    let visits = |session: Session| async move {
        let n = session.update(VISITS, |n| {
            *n += 1;
            *n
        });
        format!("visit {n}")
    };
    let who = |session: Session| async move {
        if session.is_new() { "nobody".to_owned() } else { session.user().map_or("anonymous".to_owned(), |u| u.to_string()) }
    };
    let login = |session: Session| async move {
        session.login("ada").await.unwrap();
        "welcome"
    };
    // Adds one and answers with the status that the query names.
    let status = |session: Session, Query(q): Query| async move {
        session.update(VISITS, |n| *n += 1);
        StatusCode::from_u16(q["s"].parse().unwrap()).unwrap()
    };
    Routes::default()
        .route("/", get(visits))
        .route("/read", get(|session: Session| async move { session.get(VISITS).unwrap_or_default().to_string() }))
        .route("/who", get(who))
        .route("/login", get(login))
        .route("/logout", get(|session: Session| async move { format!("{:?}", session.invalidate().await.unwrap()) }))
        .route("/status", get(status))
        .route("/static", get(|| async { cacheable("body".reply()) }))
}

fn set_cookies(headers: &HeaderMap) -> Vec<&str> {
    headers.get_all(header::SET_COOKIE).iter().map(|v| v.to_str().unwrap()).collect()
}

// ---- the suite ----------------------------------------------------------------------------------------------------------------------

suite! {
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
    let client = serve(router().layer(Outlive::in_memory().layer())).host("localhost:3000");
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
        let client = serve(router().layer(Outlive::in_memory().layer().rollback_on(rollback)));
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
    let client = serve(app.layer(Outlive::in_memory().layer()));
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
    let client = serve(app.layer(Outlive::in_memory().layer()));
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
    let client = serve(app.layer(Outlive::in_memory().layer()));
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
    let client = serve(app.layer(Outlive::in_memory().layer()));
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
    let client = serve(app.layer(Outlive::in_memory().layer()));
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
async fn a_commit_that_fails_replaces_the_answer_and_keeps_nothing_of_the_request() {
    let app = router().route(
        "/big",
        get(|session: Session| async move {
            session.update(VISITS, |n| *n += 1);
            session.set(LAST, "x".repeat(2 << 20));
            "the page as if nothing were wrong"
        }),
    );
    let client = serve(app.layer(Outlive::in_memory().layer()));
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
    let client = serve(app.layer(Outlive::in_memory().layer()));
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
    let client = serve(app.layer(Outlive::in_memory().layer()));
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
    let client = serve(router().layer(outlive.layer()).layer(outlive.layer())).host("shop.example");
    let answer = client.get("/").await;
    assert_eq!(set_cookies(&answer.headers).len(), 3);
    assert_eq!(client.get("/").await.text, "visit 2");
    assert_eq!(answer.extensions.get::<Committed>().unwrap().version, 1);
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
async fn a_preflight_opens_no_session_and_stays_cacheable() {
    let client = shop();
    client.get("/").await;
    let mut preflight = http::Request::new(http_body_util::Full::default());
    *preflight.method_mut() = http::Method::OPTIONS;
    preflight.headers_mut().insert(header::ACCESS_CONTROL_REQUEST_METHOD, "POST".parse().unwrap());
    let answer = client.request(preflight).await;
    assert!(set_cookies(&answer.headers).is_empty() && !answer.headers.contains_key(header::VARY));
    assert!(answer.extensions.get::<Committed>().is_none());
}

#[tokio::test]
async fn first_requests_at_once_make_two_sessions_and_the_browser_keeps_one() {
    let outlive = Outlive::in_memory();
    let tab = serve(router().layer(outlive.layer()));
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
async fn a_debug_header_says_the_level_if_it_is_asked_for() {
    let outlive = Outlive::in_memory();
    let client = serve(router().layer(outlive.layer().debug_header()));
    assert_eq!(client.get("/").await.headers["outlive-committed"], "level=owner version=1");
    assert!(!client.get("/static").await.headers.contains_key("outlive-committed"));
    let client = serve(router().layer(outlive.layer()));
    assert!(!client.get("/").await.headers.contains_key("outlive-committed"));
}

#[tokio::test]
async fn a_change_that_ends_where_it_began_is_none_and_sets_no_cookie() {
    let nothing = |session: Session| async move {
        session.modify(VISITS, |n| *n += 1);
        session.modify(VISITS, |n| *n -= 1);
        session.set(LAST, "x".to_owned());
        session.remove(LAST);
    };
    let client = serve(router().route("/nothing", get(nothing)).layer(Outlive::in_memory().layer()));
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
async fn a_request_opened_under_an_id_that_has_ended_since_is_refused_and_sets_no_cookie() {
    let (reached, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (r, g) = (reached.clone(), go.clone());
    let slow = move |session: Session, Query(q): Query| async move {
        r.notify_one();
        g.notified().await;
        if q.contains_key("write") {
            session.set(LAST, "slow".to_owned());
        }
    };
    let client = serve(router().route("/slow", get(slow)).layer(Outlive::in_memory().layer()));
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
    let cached = |session: Session, Query(q): Query| async move {
        session.update(VISITS, |n| *n += 1);
        cacheable(StatusCode::from_u16(q["s"].parse().unwrap()).unwrap().reply())
    };
    let client = serve(router().route("/cached", get(cached)).layer(Outlive::in_memory().layer()));
    for (method, status) in [("GET", 200), ("GET", 304), ("HEAD", 200), ("GET", 404)] {
        let request = http::Request::builder().method(method).uri(format!("/cached?s={status}"));
        let answer = client.request(request.body(http_body_util::Full::default()).unwrap()).await;
        assert!(!set_cookies(&answer.headers).is_empty() && answer.status == status);
        assert_eq!(
            (&answer.headers[header::CACHE_CONTROL], &answer.headers[header::VARY]),
            (&"no-store".parse().unwrap(), &"cookie".parse().unwrap())
        );
    }
}
}
