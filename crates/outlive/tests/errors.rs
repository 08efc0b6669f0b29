//! What a handler is told, by what happens to its session while it runs: one table, and each cell is tried. The same table, with what to
//! do, is in `docs/errors.md`.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

mod support;

use axum::Router;
use axum::extract::Path;
use axum::routing::get;
use outlive::testing::Client;
use outlive::{CommitError, LoginError, NotNow, OpenError, Outlive, Retry, Session};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use support::{LAST, VISITS, browser, cluster, in_time, insist, routes, until};
use tokio::sync::watch;

/// What a handler may do, in the order of the table's columns.
const CALLS: [&str; 8] = ["get", "commit", "flush", "refresh", "rotate", "login", "touch", "invalidate"];

/// What happens between the opening of the session and the call, and what the calls then say.
const TABLE: &[(&str, [&str; 8])] = &[
    ("nothing, and there is no session", ["ok", "ok", "ok", "ok", "ok", "ok", "ok", "Everywhere"]),
    ("nothing", ["ok", "ok", "ok", "ok", "ok", "ok", "ok", "Everywhere"]),
    ("a logout", ["ok", "Ended", "Ended", "Ended", "Ended", "Ended", "ok", "Everywhere"]),
    ("a login in another request", ["ok", "ok", "ok", "ok", "Ended", "Ended", "ok", "Everywhere"]),
    ("it moves to another node", ["ok", "ok", "ok", "ok", "Conflict", "Conflict", "ok", "Everywhere"]),
    ("it moves, and is changed there", ["ok", "Conflict", "Conflict", "ok", "Conflict", "Conflict", "ok", "Everywhere"]),
    ("this node leaves in order", ["ok", "Gone", "Gone", "Gone", "Gone", "Gone", "ok", "Pending"]),
    ("this node dies to its cluster", ["ok", "Gone", "Gone", "Gone", "Gone", "Gone", "ok", "Pending"]),
    (
        "too few nodes are left",
        ["ok", "UnderReplicated", "UnderReplicated", "ok", "UnderReplicated", "UnderReplicated", "ok", "Everywhere"],
    ),
];

fn commit_error(error: &CommitError) -> &'static str {
    match error {
        CommitError::Unknown => "Unknown",
        CommitError::UnderReplicated => "UnderReplicated",
        CommitError::TooLarge { .. } => "TooLarge",
        CommitError::Encode { .. } => "Encode",
        CommitError::Undecodable { .. } => "Undecodable",
        CommitError::Ended => "Ended",
        CommitError::NoCookie => "NoCookie",
        CommitError::Conflict => "Conflict",
        CommitError::Unavailable { why: NotNow::Ended, .. } => "Gone",
        _ => "another error",
    }
}

fn open_error(error: &OpenError) -> &'static str {
    match error {
        OpenError::Ended => "Ended",
        OpenError::Unavailable { why: NotNow::Ended, .. } => "Gone",
        OpenError::Unavailable { why: NotNow::Starting, .. } => "Starting",
        OpenError::Stale { .. } => "Stale",
        _ => "another error",
    }
}

async fn call(session: &Session, call: &str) -> String {
    let text = match call {
        "get" => {
            let _ = session.get(VISITS);
            "ok"
        }
        "commit" => {
            session.update(VISITS, |n| *n += 100);
            "ok"
        }
        "flush" => {
            session.update(VISITS, |n| *n += 100);
            session.flush().await.as_ref().map_or_else(commit_error, |_| "ok")
        }
        "refresh" => session.refresh().await.as_ref().map_or_else(open_error, |()| "ok"),
        "rotate" => {
            session.rotate();
            "ok"
        }
        "login" => match session.login("ada").await {
            Ok(()) => "ok",
            Err(_) => "refused",
        },
        "touch" => {
            session.touch();
            "ok"
        }
        _ => return session.invalidate().await.map_or_else(|e| commit_error(&e).to_owned(), |ended| format!("{ended:?}")),
    };
    text.to_owned()
}

/// `/calls/WHAT` opens its session, waits until `go`, and then calls.
struct Shop {
    reached: Arc<AtomicUsize>,
    go: watch::Sender<bool>,
}

impl Shop {
    fn new() -> Shop {
        Shop { reached: Arc::default(), go: watch::Sender::new(false) }
    }

    fn app(&self, outlive: &Outlive) -> Router {
        let (reached, go) = (self.reached.clone(), self.go.subscribe());
        let calls = move |Path(what): Path<String>, session: Session| async move {
            reached.fetch_add(1, Ordering::Relaxed);
            let mut go = go;
            go.wait_for(|go| *go).await.unwrap();
            call(&session, &what).await
        };
        routes().route("/calls/{what}", get(calls)).layer(outlive.layer())
    }
}

/// What happens to the sessions of all these visitors, at node `a` of two.
async fn happens(what: &str, nodes: &[Outlive], visitors: &[Client<Router>]) {
    let there = |visitor: &Client<Router>| support::at(visitor, support::app(&nodes[1]));
    match what {
        "nothing" | "nothing, and there is no session" => {}
        "a logout" => {
            for visitor in visitors {
                assert_eq!(visitor.copy().get("/logout").await.text, "Everywhere");
            }
        }
        "a login in another request" => {
            for visitor in visitors {
                assert!(visitor.copy().get("/login").await.status.is_success());
            }
        }
        "it moves to another node" => {
            for visitor in visitors {
                let there = there(visitor);
                in_time(async { while insist(&there, "/info").await.split(' ').next() != Some("b") {} }).await;
            }
        }
        "it moves, and is changed there" => {
            for visitor in visitors {
                let there = there(visitor);
                in_time(async { while there.get("/").await.text != "2" {} }).await;
            }
        }
        "this node leaves in order" => drop(nodes[0].drain().await.unwrap()),
        "this node dies to its cluster" => nodes[0].shutdown_now(),
        "too few nodes are left" => {
            nodes[1].shutdown_now();
            until("it is alone", || nodes[0].members() == 1).await;
        }
        other => panic!("{other} is not played"),
    }
}

#[test]
fn the_page_of_errors_has_the_table() {
    let page = include_str!("../../../docs/errors.md");
    for (what, cells) in TABLE {
        let row = format!("| {what} | {} |", cells.join(" | "));
        assert!(page.lines().any(|line| line == row), "{row}");
    }
    assert!(page.contains(&format!("| meanwhile | {} |", CALLS.join(" | "))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_happens_to_a_session_each_call_says_what_is_true_of_it() {
    let mut wrong = Vec::new();
    for (n, (what, want)) in TABLE.iter().enumerate() {
        let settings: &[&str] = match *what {
            "too few nodes are left" => &["min_backups=1"],
            _ => &[],
        };
        let nodes = cluster(&format!("errors-{n}"), 2, settings).await;
        let shop = Shop::new();
        let visitors: Vec<_> = CALLS.iter().map(|_| browser(shop.app(&nodes[0]))).collect();
        if *what != "nothing, and there is no session" {
            for visitor in &visitors {
                assert_eq!(insist(visitor, "/").await, "1");
                insist(visitor, "/read").await;
            }
        }
        let mut running = Vec::new();
        for (visitor, call) in visitors.iter().zip(CALLS) {
            let visitor = visitor.copy();
            running.push(tokio::spawn(async move { visitor.get(&format!("/calls/{call}")).await }));
        }
        until("all are open", || shop.reached.load(Ordering::Relaxed) == CALLS.len()).await;
        happens(what, &nodes, &visitors).await;
        shop.go.send_replace(true);
        for ((call, want), answer) in CALLS.iter().zip(want).zip(running) {
            let answer = in_time(answer).await.unwrap();
            let said = match answer.extensions.get() {
                Some(error) => commit_error(error),
                None => &answer.text,
            };
            if said != *want {
                wrong.push(format!("{what}, {call}: {said} instead of {want}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// A session does not expire under a request that runs; a handle that outlives its request may see the end of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_written_into_a_session_that_has_expired_since_is_called_ended_and_not_unknown() {
    for what in ["flush", "refresh"] {
        let nodes = cluster(&format!("errors-expired-{what}"), 2, &["session.idle_timeout=1s"]).await;
        let (told, hear) = tokio::sync::oneshot::channel();
        let (go, told) = (watch::Sender::new(false), Arc::new(std::sync::Mutex::new(Some(told))));
        let waits = go.subscribe();
        let later = move |session: Session| async move {
            let mut waits = waits;
            tokio::spawn(async move {
                waits.wait_for(|go| *go).await.unwrap();
                let said = call(&session, what).await;
                let told = told.lock().unwrap().take().unwrap();
                told.send(said).unwrap();
            });
        };
        let client = browser(routes().route("/later", get(later)).layer(nodes[0].layer()));
        client.get("/").await;
        client.get("/later").await;
        until("it has expired", || nodes[0].stats().expired == 1).await;
        go.send_replace(true);
        assert_eq!(in_time(hear).await.unwrap(), "Ended", "{what}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_its_owner_elsewhere_refuses_is_called_by_its_own_name() {
    let nodes = cluster("errors-late", 2, &[]).await;
    let shop = Shop::new();
    // Together they are too large: half of it is set here, after the session has gone where the other half is.
    let half = || "x".repeat(700 << 10);
    let (there, here) = (
        move |session: Session| async move { session.set(LAST, half()) },
        move |session: Session| async move { session.set(LAST.of("other"), half()) },
    );
    let (reached, go) = (shop.reached.clone(), shop.go.subscribe());
    let here = move |session: Session| async move {
        reached.fetch_add(1, Ordering::Relaxed);
        go.clone().wait_for(|go| *go).await.unwrap();
        here(session).await;
    };
    let app = |outlive: &Outlive| routes().route("/there", get(there)).route("/here", get(here.clone())).layer(outlive.layer());
    let client = browser(app(&nodes[0]));
    client.get("/").await;
    let slow = client.copy();
    let slow = tokio::spawn(async move { slow.get("/here").await });
    until("it is open", || shop.reached.load(Ordering::Relaxed) == 1).await;
    let moved = support::at(&client, app(&nodes[1]));
    insist(&moved, "/there").await;
    shop.go.send_replace(true);
    let answer = in_time(slow).await.unwrap();
    let error = answer.extensions.get::<CommitError>().unwrap();
    assert!(matches!(error, CommitError::TooLarge { got, .. } if *got > 1 << 20), "{error}");
    assert_eq!(insist(&moved, "/read").await, "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_has_ended_says_so_and_sends_its_visitors_elsewhere() {
    async fn own(session: Result<Session, OpenError>) -> String {
        session.map_or_else(|error| format!("{error}; {:?}", error.retry()), |_| "here".to_owned())
    }
    let nodes = cluster("errors-ended", 1, &[]).await;
    let client = browser(routes().route("/own", get(own)).layer(nodes[0].layer()));
    client.get("/").await;
    nodes[0].shutdown_now();
    assert_eq!(client.get("/own").await.text, "the session cannot be had on this node for now: it has left its cluster; OtherNode");
    client.forget();
    let answer = client.get("/").await;
    let error = answer.extensions.get::<CommitError>().unwrap();
    assert_eq!((commit_error(error), error.retry()), ("Gone", Retry::OtherNode));
}

#[tokio::test]
async fn a_user_without_a_name_is_refused_and_the_session_stays_as_it_was() {
    let session = outlive::testing::session();
    session.set(VISITS, 1);
    let id = session.id();
    for name in [String::new(), "x".repeat(256)] {
        let error = session.login(&name).await.unwrap_err();
        assert!(matches!(error, LoginError::BadUser { got, limit: 255 } if got == name.len()), "{error}");
    }
    session.flush().await.unwrap();
    assert!(session.user().is_none() && session.id() == id);
    session.login(&"x".repeat(255)).await.unwrap();
    session.flush().await.unwrap();
    assert!(session.id() != id);
}
