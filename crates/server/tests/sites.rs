//! Two sites in a real browser: what it keeps, what it sends, and that a POST from another site costs nobody their cart.
//!
//! `localhost` and `127.0.0.1` are two sites, and both are trustworthy enough for `Secure` and for `Sec-Fetch-Site`. Needs `chromium` and
//! `chromedriver`; `OUTLIVE_WITHOUT_BROWSER=1` leaves it out.

#![allow(clippy::unwrap_used, reason = "a test says what is wrong by panicking")]
#![allow(dead_code, reason = "each test uses its part of the support")]

mod support;

use axum::Router;
use axum::http::{HeaderMap, header};
use axum::response::{Html, Redirect};
use axum::routing::{get, post};
use outlive::{Key, Outlive, Session};
use support::browser::Browser;

const CART: Key<u64> = Key::new("cart");
const PAID: Key<bool> = Key::new("paid");

async fn add(session: Session) -> String {
    session.update(CART, |n| {
        *n += 1;
        n.to_string()
    })
}

async fn cart(session: Session) -> String {
    format!("{} {}", session.get(CART).unwrap_or_default(), session.get(PAID).is_some())
}

fn shop() -> Router {
    let outlive = Outlive::in_memory();
    Router::new()
        .route("/add", get(add).post(add))
        .route("/cart", get(cart))
        // How to go on with the visitor's own session after a POST from another site: as a page of this one.
        .route("/return", post(|| async { Redirect::to("/paid") }))
        .route(
            "/paid",
            get(|session: Session| async move {
                session.set(PAID, true);
                cart(session).await
            }),
        )
        .layer(outlive.layer())
        .route(
            "/host-prefix",
            get(|| async { ([(header::SET_COOKIE, "__Host-probe=kept; Secure; HttpOnly; SameSite=Lax; Path=/")], "set") }),
        )
        .route(
            "/echo",
            get(|headers: HeaderMap| async move {
                headers.get(header::COOKIE).map_or_else(String::new, |cookie| cookie.to_str().unwrap().to_owned())
            }),
        )
}

fn left_out() -> bool {
    std::env::var_os("OUTLIVE_WITHOUT_BROWSER").is_some()
}

/// Serves until the test ends; the port.
fn serve(app: Router) -> u16 {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { axum::serve(tokio::net::TcpListener::from_std(listener).unwrap(), app).await.unwrap() });
    });
    port
}

fn text(browser: &Browser) -> String {
    browser.script("return document.body.innerText").as_str().unwrap().trim().to_owned()
}

#[test]
fn a_post_from_another_site_costs_nobody_their_cart() {
    if left_out() {
        return;
    }
    let shop = format!("http://localhost:{}", serve(shop()));
    let forms =
        ["add", "return"].map(|path| format!("<form method=post action='{shop}/{path}'><button id={path}>go</button></form>")).concat();
    let bank = format!("http://127.0.0.1:{}/", serve(Router::new().route("/", get(move || async { Html(forms) }))));
    let browser = Browser::open("sites");
    let at = |path: &str| {
        browser.go(&format!("{shop}{path}"));
        text(&browser)
    };
    assert_eq!((at("/add"), at("/add")), ("1".to_owned(), "2".to_owned()));
    browser.go(&bank);
    browser.click("#add");
    support::eventually("the shop's answer", || (text(&browser) == "1").then_some(()));
    assert_eq!(at("/cart"), "2 false", "the visitor's own cart is there");
    browser.go(&bank);
    browser.click("#return");
    support::eventually("the page behind the redirect", || (text(&browser) == "2 true").then_some(()));
    assert_eq!((at("/cart"), at("/add")), ("2 true".to_owned(), "3".to_owned()));
}

#[test]
fn chromium_keeps_the_safe_cookie_on_plain_http_localhost() {
    if left_out() {
        return;
    }
    let shop = format!("http://localhost:{}", serve(shop()));
    let browser = Browser::open("prefix");
    browser.go(&format!("{shop}/host-prefix"));
    browser.go(&format!("{shop}/echo"));
    assert_eq!(text(&browser), "__Host-probe=kept");
}
