//! Two releases of an application on one session: what the second one reads of what the first one wrote.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

mod support;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use outlive::testing::{self, Client};
use outlive::{CommitError, Fault, Key, Outlive, Retry, Session};
use serde::{Deserialize, Deserializer, Serialize};
use std::sync::atomic::{AtomicU8, Ordering};
use support::log::Log;
use support::{browser, cluster, insist, routes};
use tokio::sync::Mutex;

/// Which release this process is. A test that changes it has it alone.
static RELEASE: AtomicU8 = AtomicU8::new(1);
static ONE: Mutex<()> = Mutex::const_new(());

#[derive(Deserialize)]
struct First {
    items: Vec<String>,
}

/// Somebody forgot `#[serde(default)]`.
#[derive(Deserialize)]
struct WithGift {
    items: Vec<String>,
    #[serde(rename = "gift")]
    _gift: bool,
}

/// As it was in the release that this process is.
#[derive(Clone, Debug, Default, Serialize)]
struct Cart {
    items: Vec<String>,
}

impl<'de> Deserialize<'de> for Cart {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Cart, D::Error> {
        let items = match RELEASE.load(Ordering::Relaxed) {
            2 => WithGift::deserialize(from)?.items,
            _ => First::deserialize(from)?.items,
        };
        Ok(Cart { items })
    }
}

const CART: Key<Cart> = Key::new("releases-cart");

async fn fill(session: Session) {
    session.update(CART, |cart| cart.items.push("bell".to_owned()));
}

async fn look(session: Session) -> String {
    format!("{:?}", session.get(CART).map(|cart| cart.items.len()))
}

async fn old(session: Session) -> String {
    format!("{:?}", session.quarantined(CART))
}

fn shop(outlive: &Outlive) -> Router {
    let app = routes().route("/fill", get(fill)).route("/look", get(look)).route("/old", get(old));
    let modify = |session: Session| async move { format!("{:?}", session.modify(CART, |cart| cart.items.clear())) };
    let remove = |session: Session| async move { format!("{:?}", session.remove(CART).is_some()) };
    app.route("/modify", get(modify)).route("/remove", get(remove)).layer(outlive.layer())
}

/// A visitor with a cart of the first release, and the node where the second release runs by now.
async fn next_release(name: &str, settings: &[&str]) -> (Vec<Outlive>, Client<Router>) {
    RELEASE.store(1, Ordering::Relaxed);
    let nodes = cluster(name, 2, settings).await;
    let client = browser(shop(&nodes[0]));
    assert_eq!(client.get("/fill").await.status, StatusCode::OK);
    RELEASE.store(2, Ordering::Relaxed);
    let there = support::at(&client, shop(&nodes[1]));
    assert_eq!(insist(&there, "/read").await, "0", "whoever does not use it notices nothing");
    (nodes, there)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_that_does_not_decode_is_said_in_the_log_with_the_reason_and_comes_back_when_it_does() {
    let (_one, log) = (ONE.lock().await, Log::of_the_process());
    let (nodes, there) = next_release("absent", &[]).await;
    assert_eq!(there.get("/look").await.text, "None");
    let said = log.lines("the bytes of a session attribute are no");
    assert_eq!(said.len(), 1, "{said:?}");
    for part in ["WARN", "releases-cart", "Cart`: missing field `gift`", "#[serde(default)]", "on_undecodable = fail"] {
        assert!(said[0].contains(part), "{part} is not in: {}", said[0]);
    }
    assert!(!said[0].contains("bell"));
    assert_eq!(there.get("/look").await.text, "None");
    assert_eq!(there.get("/old").await.text, format!("{:?}", Some(b"\x81\xa5items\x91\xa4bell")), "the first release's bytes");
    assert_eq!(log.lines("the bytes of a session attribute are no").len(), 1, "once");
    // Nothing was written, and the next release reads it again.
    RELEASE.store(3, Ordering::Relaxed);
    let back = support::at(&there, shop(&nodes[0]));
    assert_eq!(insist(&back, "/look").await, "Some(1)");
    assert_eq!(back.get("/old").await.text, "None");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_put_aside_by_the_first_write_can_be_had_until_the_session_ends() {
    let _one = ONE.lock().await;
    let (nodes, there) = next_release("aside", &[]).await;
    assert_eq!(there.get("/fill").await.status, StatusCode::OK);
    RELEASE.store(3, Ordering::Relaxed);
    let back = support::at(&there, shop(&nodes[0]));
    assert_eq!(insist(&back, "/look").await, "Some(1)", "the new one");
    let text = back.get("/old").await.text;
    let bytes: Vec<u8> = text.trim_matches(|c: char| !c.is_ascii_digit()).split(", ").map(|n| n.parse().unwrap()).collect();
    assert_eq!(testing::holds(CART, &bytes).items, ["bell"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_fail_a_request_that_uses_such_a_value_fails_and_nothing_is_overwritten() {
    let _one = ONE.lock().await;
    let (nodes, there) = next_release("fail", &["on_undecodable=fail"]).await;
    for path in ["/look", "/fill", "/modify", "/remove"] {
        let answer = there.get(path).await;
        assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR, "{path}");
        let Some(error @ CommitError::Undecodable { attribute }) = answer.extensions.get() else { panic!("{path}") };
        assert_eq!((&**attribute, error.fault(), error.retry()), ("releases-cart", Fault::Caller, Retry::Never));
        assert_eq!(error.status(), StatusCode::INTERNAL_SERVER_ERROR);
    }
    // Whoever does not use it goes on, and the bytes can be looked at.
    assert_eq!(there.get("/").await.text, "1");
    assert_eq!(there.get("/old").await.text, format!("{:?}", Some(b"\x81\xa5items\x91\xa4bell")));
    RELEASE.store(3, Ordering::Relaxed);
    let back = support::at(&there, shop(&nodes[0]));
    assert_eq!(insist(&back, "/look").await, "Some(1)");
    assert_eq!(back.get("/read").await.text, "1");
}

#[tokio::test]
async fn the_bytes_of_the_last_release_are_held_against_todays_type() {
    let _one = ONE.lock().await;
    RELEASE.store(1, Ordering::Relaxed);
    let file = testing::bytes(&Cart { items: vec!["bell".into()] });
    assert_eq!(testing::holds(CART, &file).items, ["bell"]);
    RELEASE.store(2, Ordering::Relaxed);
    let panic = std::panic::catch_unwind(|| testing::holds(CART, &file)).unwrap_err();
    let text = panic.downcast_ref::<String>().unwrap();
    assert!(text.contains("releases-cart") && text.contains("missing field `gift`") && text.contains("#[serde(default)]"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_field_that_is_skipped_is_there_until_the_session_moves() {
    #[derive(Clone, Default, Serialize, Deserialize)]
    struct Page {
        shown: u32,
        #[serde(skip)]
        cached: Option<String>,
    }
    const PAGE: Key<Page> = Key::new("releases-page");
    let set = |session: Session| async move {
        session.set(PAGE, Page { shown: 1, cached: Some("rendered".into()) });
    };
    let only_cached = |session: Session| async move {
        session.update(PAGE, |page| page.cached = Some("again".into()));
    };
    let show = |session: Session| async move {
        let page = session.get(PAGE).unwrap_or_default();
        format!("{} {:?}", page.shown, page.cached)
    };
    let app = |outlive: &Outlive| {
        let app = Router::new().route("/set", get(set)).route("/cached", get(only_cached)).route("/show", get(show));
        app.layer(outlive.layer())
    };
    let nodes = cluster("skipped", 2, &[]).await;
    let client = browser(app(&nodes[0]));
    client.get("/set").await;
    assert_eq!(client.get("/show").await.text, "1 Some(\"rendered\")");
    // A change of nothing else is none: nothing is sent, and nobody else will ever hear of it.
    let version = client.get("/show").await.extensions.get::<outlive::Committed>().unwrap().version;
    assert_eq!(client.get("/cached").await.extensions.get::<outlive::Committed>().unwrap().version, version);
    let there = support::at(&client, app(&nodes[1]));
    assert_eq!(insist(&there, "/show").await, "1 None");
}
