//! What a browser may bring, and what it is told to keep: several cookies of one name, requests from other sites, "keep me signed in",
//! headers beside cookies.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

mod support;

use axum::Router;
use axum::http::{HeaderMap, Request, StatusCode, header};
use axum::routing::{get, post};
use bytes::Bytes;
use core::time::Duration;
use http_body_util::Full;
use outlive::testing::{Answer, Client};
use outlive::{Cookie, Outlive, Session};
use support::{browser, in_time, login, logout, read, visits, who};

const DAY: u64 = 24 * 3600;
const MONTH: Duration = Duration::from_secs(30 * DAY);

fn app(outlive: &Outlive) -> Router {
    let remember = |session: Session| async move {
        session.login("ada").await.unwrap();
        session.remember(MONTH);
    };
    let app =
        Router::new().route("/", get(visits).post(visits)).route("/read", get(read)).route("/who", get(who)).route("/login", get(login));
    let app = app.route("/sso", post(login)).route("/logout", get(logout)).route("/remember", get(remember));
    app.route("/rotate", get(|session: Session| async move { session.rotate() })).layer(outlive.layer())
}

/// The cookies that a response sets, name, value and attributes.
fn set(headers: &HeaderMap) -> Vec<(String, String, String)> {
    let line = |line: &axum::http::HeaderValue| {
        let (pair, attributes) = line.to_str().unwrap().split_once(';').unwrap();
        let (name, value) = pair.split_once('=').unwrap();
        (name.to_owned(), value.to_owned(), attributes.to_owned())
    };
    headers.get_all(header::SET_COOKIE).iter().map(line).collect()
}

fn names(answer: &Answer) -> Vec<String> {
    set(&answer.headers).into_iter().map(|(name, ..)| name).collect()
}

async fn ask(client: &Client<Router>, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
    let mut request = Request::builder().method(method).uri(path).header("host", "shop.example");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    client.request(request.body(Full::<Bytes>::default()).unwrap()).await
}

/// A cookie of this client's.
fn cookie(client: &Client<Router>, name: &str) -> String {
    client.cookies().into_iter().find(|(n, _)| n == name).unwrap().1
}

/// Every order of these.
fn orders<T: Clone>(items: &[T]) -> Vec<Vec<T>> {
    if items.is_empty() {
        return vec![Vec::new()];
    }
    let with = |at: usize| {
        let mut rest = items.to_vec();
        let one = rest.remove(at);
        orders(&rest).into_iter().map(move |mut order| {
            order.insert(0, one.clone());
            order
        })
    };
    (0..items.len()).flat_map(with).collect()
}

#[tokio::test]
async fn of_several_cookies_of_one_name_the_living_one_counts_in_every_order() {
    let outlive = Outlive::in_memory();
    let strangers = browser(app(&Outlive::in_memory()));
    strangers.get("/").await;
    let client = browser(app(&outlive));
    // One that was logged out, one that a login replaced, one that lives.
    let mut cookies = vec![("__Host-session".to_owned(), "garbage".to_owned())];
    for path in ["/logout", "/login", "/read"] {
        client.forget();
        client.get("/").await;
        cookies.extend(client.cookies().into_iter().filter(|(name, _)| name == "__Host-session"));
        client.get(path).await;
    }
    let old_token = cookie(&client, "__Host-session-v");
    client.get("/").await;
    let token = cookie(&client, "__Host-session-v");
    cookies.push(("__Host-session".to_owned(), cookie(&strangers, "__Host-session")));
    client.forget();
    let mut visits = 2;
    for (n, order) in orders(&cookies).into_iter().enumerate() {
        let mut brought: Vec<String> = order.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
        // With tokens, of this session and of others, anywhere among them; or without one.
        match n % 3 {
            0 => brought.insert(n % 5, format!("__Host-session-v={token}; __Host-session-v={}", cookie(&strangers, "__Host-session-v"))),
            1 => brought.insert(n % 5, format!("__Host-session-v={old_token}; __Host-session-v={token}")),
            _ => {}
        }
        let answer = ask(&client, "GET", "/", &[("cookie", &brought.join("; "))]).await;
        visits += 1;
        assert_eq!((answer.status, answer.text), (StatusCode::OK, visits.to_string()), "{n}");
        assert!(set(&answer.headers).iter().all(|(name, ..)| name != "__Host-session"), "nobody is told to forget, or to have another one");
        client.forget();
    }
}

#[tokio::test]
async fn up_to_eight_ids_are_tried_and_tokens_of_one_session_start_no_war() {
    let outlive = Outlive::in_memory();
    let (mut dead, client) = (Vec::new(), browser(app(&outlive)));
    for _ in 0..7 {
        client.forget();
        client.get("/").await;
        dead.push(format!("__Host-session={}", cookie(&client, "__Host-session")));
        client.get("/logout").await;
    }
    client.forget();
    client.get("/").await;
    let first = cookie(&client, "__Host-session-v");
    client.get("/").await;
    client.get("/read").await;
    let all: Vec<String> = client.cookies().into_iter().map(|(name, value)| format!("{name}={value}")).collect();
    client.forget();
    let brought = format!("{}; __Host-session-v={first}; {}", dead.join("; "), all.join("; "));
    let read = ask(&client, "GET", "/read", &[("cookie", &brought)]).await;
    assert_eq!((read.text.as_str(), names(&read).len()), ("2", 0));
}

const CROSS: &[(&str, &str)] = &[("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate"), ("origin", "https://bank.example")];

#[tokio::test]
async fn a_post_from_another_site_does_not_replace_the_session_that_the_browser_kept_away_from_it() {
    let outlive = Outlive::in_memory();
    let client = browser(app(&outlive));
    client.get("/").await;
    client.get("/").await;
    // `SameSite=Lax`: the browser sends no cookie, and takes those that come.
    let away = browser(app(&outlive));
    let answer = ask(&away, "POST", "/", CROSS).await;
    assert_eq!((answer.text.as_str(), names(&answer)), ("1", vec!["__Host-session-x".to_owned()]));
    let aside = cookie(&away, "__Host-session-x");
    client.set_cookie("__Host-session-x", &aside);
    assert_eq!(client.get("/").await.text, "3", "the visitor's own");
    // Who had none goes on with it, also under a new id.
    assert_eq!((away.get("/").await.text, away.get("/login").await.status), ("2".to_owned(), StatusCode::OK));
    assert_ne!(cookie(&away, "__Host-session"), aside);
    assert_eq!((away.get("/read").await.text.as_str(), away.get("/who").await.text.as_str()), ("2", "ada"));
    // And when their own has ended.
    client.get("/logout").await;
    assert_eq!(client.get("/who").await.text, "nobody");
}

#[tokio::test]
async fn a_login_by_a_post_from_another_site_is_taken_at_its_word() {
    let outlive = Outlive::in_memory();
    let client = browser(app(&outlive));
    client.get("/").await;
    let away = browser(app(&outlive));
    let answer = ask(&away, "POST", "/sso", CROSS).await;
    assert_eq!(names(&answer), ["__Host-session", "__Host-session-s", "__Host-session-v", "__Host-session-r"]);
    for (name, value, _) in set(&answer.headers) {
        client.set_cookie(&name, &value);
    }
    assert_eq!(client.get("/who").await.text, "ada");
}

#[tokio::test]
async fn only_what_the_cookies_attribute_keeps_away_is_set_aside() {
    let lax = Outlive::in_memory();
    let strict = Outlive::builder().cookie(Cookie::new().strict()).start().await.unwrap();
    let header = Outlive::builder().cookie(Cookie::new().or_header("x-session")).namespace("both").start().await.unwrap();
    for (outlive, method, headers, aside) in [
        (&lax, "GET", CROSS, false),
        (&lax, "POST", &CROSS[1..], false),
        (&lax, "POST", &[("sec-fetch-site", "same-origin")], false),
        (&strict, "GET", CROSS, true),
        (&strict, "GET", &[("sec-fetch-site", "none")], false),
        (&header, "POST", &[CROSS[0], ("x-session", "")], false),
    ] {
        let answer = ask(&browser(app(outlive)), method, "/", headers).await;
        assert_eq!(names(&answer).iter().any(|name| name.ends_with("-x")), aside, "{method} {headers:?}");
    }
}

#[tokio::test]
async fn who_is_remembered_has_cookies_that_outlive_the_browser_until_the_logout() {
    let client = browser(app(&Outlive::in_memory()));
    client.get("/").await;
    let age = |answer: &Answer, of: &str| {
        let (.., attributes) = set(&answer.headers).into_iter().find(|(name, ..)| name == of).unwrap();
        attributes.split("Max-Age=").nth(1).map(|age| age.parse::<u64>().unwrap())
    };
    let remembered = client.get("/remember").await;
    let [id, token] = ["__Host-session", "__Host-session-v"].map(|name| age(&remembered, name).unwrap());
    assert!((MONTH.as_secs() - 60..=MONTH.as_secs()).contains(&id) && id == token, "{id} s, {token} s");
    assert_eq!(client.get("/who").await.text, "ada");
    assert!(age(&client.get("/").await, "__Host-session-v").is_some());
    // A new id is kept for the rest.
    let rotated = client.get("/rotate").await;
    assert!(age(&rotated, "__Host-session").is_some_and(|rest| rest <= id));
    assert_eq!(client.get("/logout").await.text, "Everywhere");
    assert_eq!(age(&client.get("/").await, "__Host-session"), None);
}

#[tokio::test]
async fn who_is_remembered_outlives_the_configured_times() {
    let times = Duration::from_secs(1);
    let outlive = Outlive::builder().idle_timeout(times).lifetime(times).start().await.unwrap();
    let (short, long) = (browser(app(&outlive)), browser(app(&outlive)));
    long.get("/remember").await;
    long.get("/").await;
    short.get("/").await;
    in_time(async { while short.get("/read").await.text == "1" {} }).await;
    assert_eq!((long.get("/read").await.text.as_str(), long.get("/who").await.text.as_str()), ("1", "ada"));
}

#[tokio::test]
async fn a_browser_and_a_client_with_headers_share_one_cart() {
    let outlive = Outlive::builder().cookie(Cookie::new().or_header("x-session")).namespace("cart").start().await.unwrap();
    let client = browser(app(&outlive));
    assert_eq!(client.get("/").await.text, "1");
    let id = cookie(&client, "__Host-cart");
    let mobile = browser(app(&outlive));
    let answer = ask(&mobile, "GET", "/", &[("x-session", &id)]).await;
    assert_eq!((answer.text.as_str(), names(&answer).len()), ("2", 0));
    assert!(answer.headers.contains_key("x-session-v") && !answer.headers.contains_key("x-session"), "the id is not set again");
    assert_eq!(client.get("/").await.text, "3");
    // One that begins without an id says so.
    let answer = ask(&mobile, "GET", "/", &[("x-session", "")]).await;
    assert!(answer.headers["x-session"].to_str().unwrap().len() > 43 && names(&answer).is_empty(), "{:?}", answer.headers);
    assert_eq!(answer.headers[header::CACHE_CONTROL], "no-store");
    let vary: Vec<_> = answer.headers.get_all(header::VARY).iter().collect();
    assert_eq!(vary, ["x-session", "cookie"]);
}
